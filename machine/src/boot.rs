//! Starts a kernel without firmware: tables and images into RAM, the loader's entry state into the CPU.

use crate::board::Board;
use crate::loader::{self, BoardInfo, E820Entry, E820Kind, EntryState, FlatSegment, Images, LoadError, TableRegister};
use arch_x86::{CpuState, DescTable, SegReg, Segment};
use vm_core::Target;

/// Writes the ACPI tables and the images to RAM and sets the CPU (which has just been reset) to the kernel's entry.
pub fn start(board: &Board, images: &Images, cpu: &mut CpuState) -> Result<(), LoadError> {
    board.prepare_direct_boot();
    let tables = board.acpi_tables();
    for (pa, bytes) in tables.iter().flat_map(|t| &t.blobs) {
        match board.map.target(*pa) {
            Target::Ram { offset, writable: true } if offset + bytes.len() as u64 <= board.ram.size() => {
                board.ram.write(offset, bytes);
            }
            _ => return Err(LoadError::OutsideRam { what: "ACPI table", start: pa.0, len: bytes.len() as u64 }),
        }
    }
    let (ecam, len) = board.ecam();
    let reserved = [E820Entry { start: ecam.0, len, kind: E820Kind::Reserved }];
    let info = BoardInfo { rsdp: tables.map(|t| t.rsdp), reserved: &reserved, text_screen: board.vga.is_some() };
    let entry = loader::load(&board.ram, &board.map, images, info)?;
    enter(cpu, &entry);
    Ok(())
}

fn segment(s: FlatSegment) -> Segment {
    // The loader's rights are the descriptor's bytes 5 and 6 without the limit's bits.
    Segment { base: 0, limit: s.limit, attr: u32::from(s.rights) << 8 & 0x00f0_ff00, selector: s.selector }
}

fn table(t: TableRegister) -> DescTable {
    DescTable { base: t.base, limit: t.limit }
}

/// Makes a reset CPU what the entry state says.
fn enter(cpu: &mut CpuState, e: &EntryState) {
    const RAX: usize = 0;
    const RBX: usize = 3;
    const RSP: usize = 4;
    const RSI: usize = 6;
    cpu.gpr = [0; 16];
    (cpu.gpr[RAX], cpu.gpr[RBX], cpu.gpr[RSP], cpu.gpr[RSI]) = (e.rax, e.rbx, e.rsp, e.rsi);
    (cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer) = (e.cr0, e.cr3, e.cr4, e.efer);
    (cpu.gdt, cpu.idt) = (table(e.gdt), table(e.idt));
    cpu.seg = [segment(e.data); 6];
    *cpu.seg_mut(SegReg::Cs) = segment(e.cs);
    cpu.tr = segment(e.tr);
    cpu.rip = e.rip;
    cpu.set_rflags(e.rflags);
    cpu.update_mode();
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch_x86::models;

    #[test]
    fn segments_of_the_entry_state_are_flat_and_64_bit() {
        let code = segment(FlatSegment { selector: 0x10, limit: u32::MAX, rights: 0xa09b });
        assert!(code.flat());
        assert_eq!(code.attr & (Segment::L | Segment::DB | Segment::CODE | Segment::P), Segment::L | Segment::CODE | Segment::P);
        assert_eq!((code.dpl(), code.selector), (0, 0x10));
        let data = segment(FlatSegment { selector: 0x18, limit: u32::MAX, rights: 0xc093 });
        assert_eq!(data.attr & (Segment::CODE | Segment::RW | Segment::DB), Segment::RW | Segment::DB);
    }

    #[test]
    fn a_32_bit_entry_sets_what_the_state_names() {
        let mut cpu = CpuState::new(&models::configure("qemu64", &[]).unwrap(), 0);
        let flat = |rights| FlatSegment { selector: 8, limit: u32::MAX, rights };
        let e = EntryState {
            mode: loader::EntryMode::Prot32,
            rip: 0x10_0000,
            rsp: 0x8ff0,
            rsi: 7,
            rax: 0,
            rbx: 0x6000,
            rflags: 2,
            cr0: 0x11,
            cr3: 0,
            cr4: 0,
            efer: 0,
            gdt: TableRegister { base: 0x8000, limit: 47 },
            idt: TableRegister::default(),
            cs: flat(0xc09b),
            data: flat(0xc093),
            tr: FlatSegment { selector: 0x20, limit: 0x67, rights: 0x8b },
        };
        enter(&mut cpu, &e);
        assert_eq!((cpu.rip, cpu.gpr[4], cpu.gpr[6], cpu.gpr[3]), (0x10_0000, 0x8ff0, 7, 0x6000));
        assert!(cpu.protected() && !cpu.paging() && !cpu.long_mode());
        assert_eq!(cpu.mode().code_size(), arch_x86::CodeSize::Bits32);
        assert_eq!((cpu.gdt.base, cpu.gdt.limit, cpu.idt.limit), (0x8000, 47, 0));
        assert_eq!(cpu.tr.attr, 0x8b00);
    }
}
