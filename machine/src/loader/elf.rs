//! ELF kernels entered by PVH: Xen's x86/HVM direct boot ABI (`hvm_start_info`), found through XEN_ELFNOTE_PHYS32_ENTRY.

use super::entry::{EntryState, place};
use super::{BoardInfo, Guest, Images, LoadError};
use goblin::container::{Container, Ctx, Endian};
use goblin::elf::header::{EM_386, EM_X86_64, ET_DYN, ET_EXEC};
use goblin::elf::program_header::{PT_LOAD, ProgramHeader};
use goblin::elf::{Elf, Header};

const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
const START_MAGIC: u32 = 0x336e_c578;
const LOWEST: u64 = 0x10_0000;
/// Offsets from `place::START_INFO`.
const MODULES: u64 = 0x40;
const MEMMAP: u64 = 0x100;
const MEMMAP_ENTRY: usize = 24;

/// Loads the segments and the start info.
pub fn load(guest: &Guest<'_>, images: &Images, board: BoardInfo<'_>) -> Result<EntryState, LoadError> {
    let file = &*images.kernel.whole()?;
    let headers = program_headers(file)?;
    let entry = pvh_entry(file, &headers)?;
    let mut end = LOWEST;
    for p in headers.iter().filter(|p| p.p_type == PT_LOAD && p.p_memsz > 0) {
        end = end.max(load_segment(guest, file, p)?);
    }
    if u64::from(entry) >= end || u64::from(entry) < LOWEST {
        return Err(LoadError::Elf("the PVH entry lies outside the loaded segments".into()));
    }
    let cmdline = super::write_cmdline(guest, &images.cmdline, u64::MAX)?;
    let initrd = match images.initrd.as_ref().filter(|d| !d.is_empty()) {
        Some(d) => Some((super::write_initrd(guest, d, end, u64::from(u32::MAX))?, d.len())),
        None => None,
    };
    write_start_info(guest, board, cmdline, initrd);
    Ok(EntryState::prot32(guest, entry, 0, place::START_INFO))
}

pub(super) fn program_headers(file: &[u8]) -> Result<Vec<ProgramHeader>, LoadError> {
    let fail = |e: goblin::error::Error| LoadError::Elf(one_line(&e.to_string()));
    let header: Header = Elf::parse_header(file).map_err(fail)?;
    if !matches!(header.e_machine, EM_386 | EM_X86_64) || !header.endianness().is_ok_and(|e| e.is_little()) {
        return Err(LoadError::Elf("not for an x86 CPU".into()));
    }
    if !matches!(header.e_type, ET_EXEC | ET_DYN) {
        return Err(LoadError::Elf("not an executable".into()));
    }
    let ctx = Ctx::new(header.container().map_err(fail)?, Endian::Little);
    let size = if ctx.container == Container::Big { 56 } else { 32 };
    if usize::from(header.e_phentsize) != size {
        return Err(LoadError::Elf("program headers of a wrong size".into()));
    }
    let (have, count) = (file.len() as u64, usize::from(header.e_phnum));
    let need = header.e_phoff.saturating_add((count * size) as u64);
    if need > have {
        return Err(LoadError::CutOff { have, need });
    }
    ProgramHeader::parse(file, header.e_phoff as usize, count, ctx).map_err(fail)
}

fn one_line(s: &str) -> String {
    s.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn segment_bytes<'a>(file: &'a [u8], p: &ProgramHeader) -> Result<&'a [u8], LoadError> {
    let cut = LoadError::CutOff { have: file.len() as u64, need: p.p_offset.saturating_add(p.p_filesz) };
    let range = usize::try_from(p.p_offset).ok().zip(p.p_offset.checked_add(p.p_filesz).and_then(|e| usize::try_from(e).ok()));
    range.and_then(|(start, end)| file.get(start..end)).ok_or(cut)
}

/// Writes a segment, with zeroes behind what the file has of it; returns its end.
pub(super) fn load_segment(guest: &Guest<'_>, file: &[u8], p: &ProgramHeader) -> Result<u64, LoadError> {
    let data = segment_bytes(file, p)?;
    if p.p_filesz > p.p_memsz {
        return Err(LoadError::Elf("a segment is larger in the file than in memory".into()));
    }
    let outside = LoadError::OutsideRam { what: "a kernel segment", start: p.p_paddr, len: p.p_memsz };
    let end = p.p_paddr.checked_add(p.p_memsz).filter(|e| *e <= guest.top_below_4g() && p.p_paddr >= LOWEST).ok_or(outside)?;
    guest.write("a kernel segment", p.p_paddr, data, p.p_memsz)?;
    Ok(end)
}

/// The 32-bit physical entry from the first note of Xen's that has one. Notes are (name size, descriptor size, type),
/// name, descriptor, each padded to 4 bytes (ELF, "Note Section").
fn pvh_entry(file: &[u8], headers: &[ProgramHeader]) -> Result<u32, LoadError> {
    for p in headers.iter().filter(|p| p.p_type == goblin::elf::program_header::PT_NOTE) {
        let mut rest = segment_bytes(file, p)?;
        while let Some((name, kind, desc, next)) = note(rest) {
            if kind == XEN_ELFNOTE_PHYS32_ENTRY && name == b"Xen\0" {
                let mut b = [0; 8];
                let len = desc.len().min(8);
                b[..len].copy_from_slice(&desc[..len]);
                return u32::try_from(u64::from_le_bytes(b)).map_err(|_| LoadError::Elf("the PVH entry is above 4 GiB".into()));
            }
            rest = next;
        }
    }
    Err(LoadError::NoPvhNote)
}

type Note<'a> = (&'a [u8], u32, &'a [u8], &'a [u8]);

fn note(data: &[u8]) -> Option<Note<'_>> {
    let word = |at: usize| Some(u32::from_le_bytes(data.get(at..at + 4)?.try_into().ok()?));
    let padded = |n: u32| usize::try_from(n).ok()?.checked_next_multiple_of(4);
    let (name_len, desc_len) = (word(0)?, word(4)?);
    let desc_at = 12usize.checked_add(padded(name_len)?)?;
    let name = data.get(12..12usize.checked_add(name_len as usize)?)?;
    let desc = data.get(desc_at..desc_at.checked_add(desc_len as usize)?)?;
    let next = data.get(desc_at.checked_add(padded(desc_len)?)?..).unwrap_or_default();
    Some((name, word(8)?, desc, next))
}

/// `hvm_start_info` version 1, its module list (the initial RAM disk) and memory map.
fn write_start_info(guest: &Guest<'_>, board: BoardInfo<'_>, cmdline: u64, initrd: Option<(u64, u64)>) {
    let mut map = guest.e820(board.reserved);
    // Up to the zero page, which PVH does not use.
    map.truncate((0x1000 - MEMMAP as usize) / MEMMAP_ENTRY);
    let mut b = vec![0; MEMMAP as usize];
    let mut put = |at: usize, bytes: &[u8]| b[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &START_MAGIC.to_le_bytes());
    put(4, &1u32.to_le_bytes());
    put(24, &cmdline.to_le_bytes());
    put(32, &board.rsdp.map_or(0, |a| a.0).to_le_bytes());
    put(40, &(place::START_INFO + MEMMAP).to_le_bytes());
    put(48, &(map.len() as u32).to_le_bytes());
    if let Some((start, len)) = initrd {
        put(12, &1u32.to_le_bytes());
        put(16, &(place::START_INFO + MODULES).to_le_bytes());
        put(MODULES as usize, &start.to_le_bytes());
        put(MODULES as usize + 8, &len.to_le_bytes());
    }
    for e in map {
        b.extend(e.start.to_le_bytes());
        b.extend(e.len.to_le_bytes());
        b.extend(u64::from(e.kind as u32).to_le_bytes());
    }
    guest.write_low(place::START_INFO, &b);
}
