//! Where things lie in the guest: physical addresses, which are the linear ones too, and selectors.

/// Start of the image, and its 32-bit PVH entry.
pub const BOOT: u32 = 0x10_0000;
pub const GDT: u32 = 0x10_1000;
/// Ten bytes for LGDT, and the same for LIDT.
pub const GDTR: u32 = 0x10_1800;
pub const IDTR: u32 = 0x10_1810;
pub const IDT: u32 = 0x10_2000;
pub const PML4: u32 = 0x10_3000;
pub const PDPT: u32 = 0x10_4000;
/// Four page directories, a GiB each, and the page table of the window.
pub const DIRECTORIES: u32 = 0x10_5000;
pub const WINDOW_TABLE: u32 = 0x10_9000;
/// 64-bit code and its strings.
pub const CODE: u32 = 0x11_0000;
pub const CODE_END: u32 = 0x1f_0000;
/// Variables; all zero at the start.
pub const VARS: u32 = 0x20_0000;
pub const VARS_END: u32 = 0x40_0000;
/// Page frames for tests.
pub const FRAMES: u32 = 0x40_0000;
pub const FRAMES_END: u32 = 0x80_0000;
/// A stack for each processor; each grows down from the next one's start.
pub const STACKS: u32 = 0x80_0000;
pub const STACK_SIZE: u32 = 0x2000;
/// A record for each processor (`per_cpu`).
pub const PER_CPU: u32 = 0x90_0000;
pub const PER_CPU_SIZE: u32 = 0x100;
pub const MAX_CPUS: u32 = 64;
/// First byte that the guest does not use: what `-m` must reach.
pub const END: u32 = 0xa0_0000;

/// Where the other processors start, in real mode: the SIPI's vector is its page number.
pub const TRAMPOLINE: u32 = 0x7_0000;
/// Linear address of 512 pages that `WINDOW_TABLE` maps; there is no RAM at this physical address.
pub const WINDOW: u32 = 0x4000_0000;
pub const APIC: u32 = 0xfee0_0000;

pub const CODE32: u16 = 0x08;
pub const DATA: u16 = 0x10;
pub const CODE64: u16 = 0x18;

/// Offsets in a processor's record, 8 bytes each. R12 points at the record.
pub mod per_cpu {
    pub const APIC_ID: i32 = 0x00;
    /// What the barrier's counter reaches next.
    pub const BARRIER: i32 = 0x08;
    /// Interrupts taken by vector 40h + 8 * n, and NMIs.
    pub const COUNTS: i32 = 0x10;
    pub const NMIS: i32 = 0x50;
    /// Where the order of interrupts is noted, a byte each.
    pub const ORDER: i32 = 0x58;
}
