//! CPU state at a kernel's first instruction, as plain data, and the tables in RAM that it needs.
//!
//! Linux: 64-bit boot protocol (Documentation/arch/x86/boot.rst); PVH: Xen's x86/HVM direct boot ABI.

use super::mem::Guest;

/// Everything that differs from reset when the kernel starts. General registers not named here are 0, interrupts are off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryState {
    pub mode: EntryMode,
    pub rip: u64,
    pub rsp: u64,
    /// Multiboot: the number that says so.
    pub rax: u64,
    /// Linux: address of `boot_params`.
    pub rsi: u64,
    /// PVH: address of `hvm_start_info`. Multiboot: of the information.
    pub rbx: u64,
    /// Bit 1 (always one) only.
    pub rflags: u64,
    pub cr0: u64,
    /// Identity page tables for the first 4 GiB in long mode, else 0.
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub gdt: TableRegister,
    /// Empty: the kernel takes no interrupt before it has its own.
    pub idt: TableRegister,
    pub cs: FlatSegment,
    /// For DS, ES, SS, FS and GS.
    pub data: FlatSegment,
    pub tr: FlatSegment,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryMode {
    /// 64-bit code with paging.
    Long64,
    /// 32-bit protected mode without paging.
    Prot32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TableRegister {
    pub base: u64,
    pub limit: u16,
}

/// A segment register with its hidden part. The base is always 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FlatSegment {
    pub selector: u16,
    /// In bytes, after granularity.
    pub limit: u32,
    /// Access rights as in a descriptor's bytes 5 and 6: type, S, DPL, P in bits 0-7; AVL, L, D/B, G in bits 12-15.
    pub rights: u16,
}

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Selectors that the Linux boot protocol asks for (`__BOOT_CS`, `__BOOT_DS`).
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

const CODE64: u16 = 0xa09b;
const CODE32: u16 = 0xc09b;
const DATA32: u16 = 0xc093;
/// Busy 32-bit TSS, as TR holds it once loaded.
const TSS32: u16 = 0x008b;
const FLAT: u32 = u32::MAX;
const TSS_LIMIT: u32 = 0x67;

/// Where the loader puts its tables: conventional memory that kernels leave alone until they have read it.
pub mod place {
    pub const START_INFO: u64 = 0x6000;
    pub const ZERO_PAGE: u64 = 0x7000;
    pub const GDT: u64 = 0x8000;
    /// First byte above the stack of the entry state.
    pub const STACK_TOP: u64 = 0x8ff0;
    /// PML4, PDPT and four page directories.
    pub const PAGE_TABLES: u64 = 0x9000;
    pub const PAGE_TABLES_LEN: u64 = 6 * 0x1000;
    pub const CMDLINE: u64 = 0x2_0000;
    /// Room for the command line with its zero.
    pub const CMDLINE_ROOM: u64 = 0x1_0000;
}

/// Descriptor with base 0 (SDM 3A, "Segment Descriptors").
fn descriptor(limit: u32, rights: u16) -> u64 {
    let limit = u64::from(if rights & 0x8000 != 0 { limit >> 12 } else { limit });
    (limit & 0xffff) | (u64::from(rights & 0xff) << 40) | ((limit >> 16 & 0xf) << 48) | (u64::from(rights >> 12) << 52)
}

impl EntryState {
    /// 64-bit entry: writes GDT and identity page tables to low RAM.
    pub fn long64(guest: &Guest<'_>, rip: u64, boot_params: u64) -> Self {
        write_page_tables(guest);
        Self {
            mode: EntryMode::Long64,
            cr0: CR0_PE | CR0_ET | CR0_PG,
            cr3: place::PAGE_TABLES,
            cr4: CR4_PAE,
            efer: EFER_LME | EFER_LMA,
            rsi: boot_params,
            ..Self::flat(guest, rip, CODE64)
        }
    }

    /// 32-bit entry without paging: writes the GDT. Either address may be 0.
    pub fn prot32(guest: &Guest<'_>, eip: u32, boot_params: u64, start_info: u64) -> Self {
        Self { rsi: boot_params, rbx: start_info, ..Self::flat(guest, u64::from(eip), CODE32) }
    }

    fn flat(guest: &Guest<'_>, rip: u64, code: u16) -> Self {
        // The TSS descriptor in the table is available (type 9); TR's hidden part is busy.
        let gdt = [0, 0, descriptor(FLAT, code), descriptor(FLAT, DATA32), descriptor(TSS_LIMIT, TSS32 & !2), 0];
        let bytes: Vec<u8> = gdt.iter().flat_map(|d| d.to_le_bytes()).collect();
        guest.write_low(place::GDT, &bytes);
        Self {
            mode: EntryMode::Prot32,
            rip,
            rsp: place::STACK_TOP,
            rax: 0,
            rsi: 0,
            rbx: 0,
            rflags: 2,
            cr0: CR0_PE | CR0_ET,
            cr3: 0,
            cr4: 0,
            efer: 0,
            gdt: TableRegister { base: place::GDT, limit: bytes.len() as u16 - 1 },
            idt: TableRegister::default(),
            cs: FlatSegment { selector: BOOT_CS, limit: FLAT, rights: code },
            data: FlatSegment { selector: BOOT_DS, limit: FLAT, rights: DATA32 },
            tr: FlatSegment { selector: BOOT_TSS, limit: TSS_LIMIT, rights: TSS32 },
        }
    }
}

/// 2 MiB pages over the first 4 GiB (SDM 3A, "4-Level Paging").
fn write_page_tables(guest: &Guest<'_>) {
    const TABLE: u64 = 0x1000;
    const PRESENT_WRITE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let mut t = vec![0u8; place::PAGE_TABLES_LEN as usize];
    let mut put = |at: u64, v: u64| t[at as usize..at as usize + 8].copy_from_slice(&v.to_le_bytes());
    let pdpt = place::PAGE_TABLES + TABLE;
    put(0, pdpt | PRESENT_WRITE);
    for gib in 0..4 {
        put(TABLE + gib * 8, (pdpt + TABLE * (gib + 1)) | PRESENT_WRITE);
    }
    for page in 0..4 * 512 {
        put(2 * TABLE + page * 8, page << 21 | PRESENT_WRITE | LARGE);
    }
    guest.write_low(place::PAGE_TABLES, &t);
}
