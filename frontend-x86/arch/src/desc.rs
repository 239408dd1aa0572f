//! Segment and gate descriptors (SDM 3A §3.4.5, §5.8.3, §6.11).

use crate::stack::system_ctx;
use crate::state::{CpuState, Segment};
use vm_core::guest::GuestEnv;
use vm_core::{Fault, Va};

/// Types of system descriptors (SDM 3A table 3-2).
pub mod system {
    pub const TSS16: u8 = 1;
    pub const LDT: u8 = 2;
    pub const TSS16_BUSY: u8 = 3;
    pub const CALL16: u8 = 4;
    pub const TASK: u8 = 5;
    pub const INT16: u8 = 6;
    pub const TRAP16: u8 = 7;
    pub const TSS32: u8 = 9;
    pub const TSS32_BUSY: u8 = 11;
    pub const CALL32: u8 = 12;
    pub const INT32: u8 = 14;
    pub const TRAP32: u8 = 15;
}

/// A descriptor as fetched, and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Desc {
    pub raw: u64,
    pub va: u64,
}

impl Desc {
    fn hi(&self) -> u32 {
        (self.raw >> 32) as u32
    }

    /// The four type bits.
    pub fn kind(&self) -> u8 {
        (self.hi() >> 8 & 0xf) as u8
    }

    pub fn is_system(&self) -> bool {
        self.hi() & Segment::S == 0
    }

    pub fn is_code(&self) -> bool {
        !self.is_system() && self.hi() & Segment::CODE != 0
    }

    pub fn conforming(&self) -> bool {
        self.hi() & Segment::DC != 0
    }

    pub fn writable_data(&self) -> bool {
        !self.is_system() && self.hi() & (Segment::CODE | Segment::RW) == Segment::RW
    }

    pub fn readable(&self) -> bool {
        !self.is_system() && (self.hi() & Segment::CODE == 0 || self.hi() & Segment::RW != 0)
    }

    pub fn dpl(&self) -> u8 {
        (self.hi() >> Segment::DPL_SHIFT & 3) as u8
    }

    pub fn present(&self) -> bool {
        self.hi() & Segment::P != 0
    }

    pub fn long(&self) -> bool {
        self.hi() & Segment::L != 0
    }

    pub fn big(&self) -> bool {
        self.hi() & Segment::DB != 0
    }

    pub fn attr(&self) -> u32 {
        self.hi() & 0x00f0_ff00
    }

    pub fn base(&self) -> u64 {
        (self.raw >> 16 & 0xff_ffff) | (self.raw >> 56 & 0xff) << 24
    }

    /// Limit in bytes, G applied.
    pub fn limit(&self) -> u32 {
        let l = (self.raw & 0xffff) as u32 | self.hi() & 0xf_0000;
        if self.hi() & Segment::G != 0 { l << 12 | 0xfff } else { l }
    }

    pub fn segment(&self, selector: u16) -> Segment {
        Segment { base: self.base(), limit: self.limit(), attr: self.attr(), selector }
    }

    /// Target selector of a gate.
    pub fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }

    /// Offset of a gate; only the low word counts in 16-bit gates.
    pub fn gate_offset(&self) -> u64 {
        self.raw & 0xffff | self.raw >> 32 & 0xffff_0000
    }
}

/// Error code of a selector: without RPL.
pub fn code(selector: u16) -> u32 {
    u32::from(selector & !3)
}

pub fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// Fetches the descriptor `selector` names; `None` if it is null or outside its table. Errors are page faults.
pub fn fetch<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16) -> Result<Option<Desc>, Fault> {
    fetch_sized(env, selector, 8)
}

/// The same for a descriptor of `size` 8 or 16 bytes; only the first eight are read.
pub fn fetch_sized<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16, size: u64) -> Result<Option<Desc>, Fault> {
    let cpu = env.cpu_ref();
    let (base, limit) = match selector & 4 {
        0 if is_null(selector) => return Ok(None),
        0 => (cpu.gdt.base, u64::from(cpu.gdt.limit)),
        _ if !cpu.ldt.usable() => return Ok(None),
        _ => (cpu.ldt.base, u64::from(cpu.ldt.limit)),
    };
    let offset = u64::from(selector & !7);
    if offset + size - 1 > limit {
        return Ok(None);
    }
    let va = system_va(cpu, base, offset);
    let ctx = system_ctx(cpu);
    Ok(Some(Desc { raw: env.load(Va(va), 8, ctx)?, va }))
}

/// Linear address in a system table: 32 bits wide outside long mode.
pub(crate) fn system_va(cpu: &CpuState, base: u64, offset: u64) -> u64 {
    let va = base.wrapping_add(offset);
    if cpu.long_mode() { va } else { va & 0xffff_ffff }
}

/// Sets bits in a descriptor's type byte (accessed, busy) if they are not set. Writes only that byte.
pub(crate) fn set_type_bits<E: GuestEnv<Cpu = CpuState>>(env: &mut E, d: &mut Desc, bits: u64) -> Result<(), Fault> {
    let bits = bits << 40;
    if d.raw & bits == bits {
        return Ok(());
    }
    d.raw |= bits;
    let ctx = system_ctx(env.cpu_ref());
    env.store(Va(d.va.wrapping_add(5)), 1, d.raw >> 40 & 0xff, ctx)
}
