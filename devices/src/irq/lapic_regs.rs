//! Register numbers and bits of the local APIC (SDM 3A "Local APIC Register Address Map", "x2APIC Register Address Space").

/// Register numbers: MMIO offset / 16, and the distance from MSR 800h.
pub mod reg {
    pub const ID: u16 = 0x02;
    pub const VERSION: u16 = 0x03;
    pub const TPR: u16 = 0x08;
    pub const APR: u16 = 0x09;
    pub const PPR: u16 = 0x0a;
    pub const EOI: u16 = 0x0b;
    pub const RRD: u16 = 0x0c;
    pub const LDR: u16 = 0x0d;
    pub const DFR: u16 = 0x0e;
    pub const SVR: u16 = 0x0f;
    pub const ISR: u16 = 0x10;
    pub const TMR: u16 = 0x18;
    pub const IRR: u16 = 0x20;
    pub const ESR: u16 = 0x28;
    pub const ICR: u16 = 0x30;
    pub const ICR_HIGH: u16 = 0x31;
    pub const LVT_TIMER: u16 = 0x32;
    pub const LVT_ERROR: u16 = 0x37;
    pub const INITIAL_COUNT: u16 = 0x38;
    pub const CURRENT_COUNT: u16 = 0x39;
    pub const DIVIDE: u16 = 0x3e;
    pub const SELF_IPI: u16 = 0x3f;
}

pub mod msr {
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x83f;
}

/// IA32_APIC_BASE.
pub mod base {
    pub const DEFAULT: u64 = 0xfee0_0000;
    pub const BSP: u64 = 1 << 8;
    pub const EXTD: u64 = 1 << 10;
    pub const EN: u64 = 1 << 11;
}

/// Version 14h, six LVT entries, EOI broadcasts can be suppressed.
pub const VERSION: u32 = 0x14 | (LVTS as u32 - 1) << 16 | 1 << 24;

pub mod svr {
    pub const ENABLE: u32 = 1 << 8;
    pub const SUPPRESS_EOI: u32 = 1 << 12;
    /// Bit 9 is focus processor checking, kept without effect.
    pub const WRITABLE: u32 = 0x13ff;
    pub const RESET: u32 = 0xff;
}

/// Indices into the local vector table, from 320h on.
pub const LVTS: usize = 6;
pub const TIMER: usize = 0;
pub const LINT0: usize = 3;
pub const LINT1: usize = 4;
pub const ERROR: usize = 5;

pub mod lvt {
    pub const MODE_SHIFT: u32 = 8;
    pub const REMOTE_IRR: u32 = 1 << 14;
    pub const LEVEL: u32 = 1 << 15;
    pub const MASKED: u32 = 1 << 16;
    pub const TIMER_MODE_SHIFT: u32 = 17;
    /// Bits that software can change: timer, thermal, performance, LINT0, LINT1, error.
    pub const WRITABLE: [u32; super::LVTS] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
    /// Delivery status, and in LINT0 and LINT1 remote IRR: writing them does nothing.
    pub const READ_ONLY: [u32; super::LVTS] = [0x1000, 0x1000, 0x1000, 0x5000, 0x5000, 0x1000];
}

/// Error status register.
pub mod esr {
    pub const SEND_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_VECTOR: u32 = 1 << 6;
    pub const REGISTER: u32 = 1 << 7;
}

/// Interrupt command register, low half.
pub mod icr {
    pub const LOGICAL: u32 = 1 << 11;
    pub const ASSERT: u32 = 1 << 14;
    pub const LEVEL: u32 = 1 << 15;
    pub const SHORTHAND_SHIFT: u32 = 18;
    pub const WRITABLE: u32 = 0xc_cfff;
    /// Delivery status.
    pub const READ_ONLY: u32 = 0x1000;
}

/// Bits 3, 1, 0.
pub const DIVIDE_WRITABLE: u32 = 0xb;
