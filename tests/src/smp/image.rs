//! The guest's image: tables and code at fixed addresses, put together into an ELF file with a PVH note.

use super::layout::*;
use crate::boot::{ENTRY, pvh_elf};

const PRESENT_WRITABLE: u64 = 3;
/// A large page; not cached, for devices.
const LARGE: u64 = 0x80;
const UNCACHED: u64 = 0x18;
const PAGES: u64 = 512;

/// Bytes from `BOOT` on.
pub struct Image(Vec<u8>);

impl Default for Image {
    fn default() -> Self {
        assert_eq!(BOOT, ENTRY, "the image starts where the ELF file's entry is");
        Self(Vec::new())
    }
}

impl Image {
    /// Puts bytes at a physical address.
    pub fn put(&mut self, at: u32, bytes: &[u8]) {
        let start = (at - BOOT) as usize;
        let end = start + bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        assert!(self.0[start..end].iter().all(|b| *b == 0), "something is at {at:#x} already");
        self.0[start..end].copy_from_slice(bytes);
    }

    fn words(&mut self, at: u32, words: impl IntoIterator<Item = u64>) {
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        self.put(at, &bytes);
    }

    /// A flat GDT: 32-bit code, data, 64-bit code.
    pub fn gdt(&mut self) {
        let table = [0, 0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00af_9b00_0000_ffff];
        self.words(GDT, table);
        self.pointer(GDTR, GDT, table.len() * 8);
    }

    /// The operand of LGDT or LIDT.
    fn pointer(&mut self, at: u32, base: u32, len: usize) {
        self.put(at, &((len - 1) as u16).to_le_bytes());
        self.put(at + 2, &u64::from(base).to_le_bytes());
    }

    /// Interrupt gates of long mode (SDM 3A, "64-Bit Mode IDT").
    pub fn idt(&mut self, gates: &[(u8, u64)]) {
        for (vector, handler) in gates {
            let low = handler & 0xffff | u64::from(CODE64) << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
            self.words(IDT + u32::from(*vector) * 16, [low, handler >> 32]);
        }
        self.pointer(IDTR, IDT, 4096);
    }

    /// The first 4 GiB 1:1 by large pages; but at `WINDOW`, whose table is empty.
    pub fn page_tables(&mut self) {
        self.words(PML4, [u64::from(PDPT) | PRESENT_WRITABLE]);
        self.words(PDPT, (0..4).map(|i| (u64::from(DIRECTORIES) + i * 4096) | PRESENT_WRITABLE));
        let entry = |i: u64| match i << 21 {
            at if at == u64::from(WINDOW) => u64::from(WINDOW_TABLE) | PRESENT_WRITABLE,
            at if at >= 3 << 30 => at | PRESENT_WRITABLE | LARGE | UNCACHED,
            at => at | PRESENT_WRITABLE | LARGE,
        };
        self.words(DIRECTORIES, (0..4 * PAGES).map(entry));
        self.words(WINDOW_TABLE, (0..PAGES).map(|_| 0));
    }

    pub fn elf(&self) -> Vec<u8> {
        pvh_elf(&self.0)
    }
}
