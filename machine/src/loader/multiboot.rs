//! Multiboot 1 kernels (Multiboot Specification 0.6.96): header, placement, modules, and the information that they are given.

use super::entry::{EntryState, place};
use super::{BoardInfo, Guest, Image, Images, LoadError, elf};
use goblin::elf::program_header::PT_LOAD;

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What EAX holds at the kernel's entry.
const BOOT_MAGIC: u64 = 0x2bad_b002;
/// Where a header may lie in the file.
const SEARCH: usize = 8192;
const LOWEST: u64 = 0x10_0000;
const PAGE: u64 = 4096;
/// Modules at most.
pub const MAX_MODULES: usize = 64;

/// Header flags. Of bits 15:0 those not known here make a loader refuse the kernel.
mod flag {
    /// Modules start at pages: they do here always.
    pub const ALIGN: u32 = 1 << 0;
    /// Memory information is wanted: it is given always.
    pub const MEMORY: u32 = 1 << 1;
    /// A video mode is preferred: text is what there is.
    pub const VIDEO: u32 = 1 << 2;
    /// Addresses in the header rather than ELF's.
    pub const ADDRESSES: u32 = 1 << 16;
}

/// Information flags: which fields hold something.
mod info {
    pub const MEMORY: u32 = 1 << 0;
    pub const CMDLINE: u32 = 1 << 2;
    pub const MODULES: u32 = 1 << 3;
    pub const MEMORY_MAP: u32 = 1 << 6;
    pub const LOADER_NAME: u32 = 1 << 9;
}

/// Offsets from `place::START_INFO`: the information, the modules, the memory map.
const MODULES: u64 = 0x80;
const MODULE_SIZE: u64 = 16;
const MEMMAP: u64 = MODULES + MAX_MODULES as u64 * MODULE_SIZE;
const MEMMAP_ENTRY: usize = 24;
const LOADER_NAME: &str = "rhea";

/// A file beside the kernel and the words that it is announced with.
#[derive(Debug, Clone, Default)]
pub struct Module {
    pub data: Image,
    pub text: String,
}

/// A header, and where in the file it is.
struct Header {
    at: usize,
    flags: u32,
}

fn word(file: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(file.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn header(file: &[u8]) -> Option<Header> {
    (0..SEARCH.min(file.len())).step_by(4).find_map(|at| {
        let (magic, flags, sum) = (word(file, at)?, word(file, at + 4)?, word(file, at + 8)?);
        let valid = magic == HEADER_MAGIC && magic.wrapping_add(flags).wrapping_add(sum) == 0;
        (valid && at + 12 <= SEARCH).then_some(Header { at, flags })
    })
}

/// Whether the file has a Multiboot header.
pub fn is(file: &[u8]) -> bool {
    header(file).is_some()
}

/// Loads kernel and modules.
pub fn load(guest: &Guest<'_>, images: &Images, board: BoardInfo<'_>) -> Result<EntryState, LoadError> {
    let file = &*images.kernel.whole()?;
    let Some(h) = header(file) else { return Err(LoadError::Unknown) };
    if h.flags & 0xffff & !(flag::ALIGN | flag::MEMORY | flag::VIDEO) != 0 {
        return Err(LoadError::Header("it asks for Multiboot features that there are not"));
    }
    let (entry, end) = if h.flags & flag::ADDRESSES != 0 { by_addresses(guest, file, &h)? } else { by_elf(guest, file)? };
    let modules = write_modules(guest, &images.modules, end)?;
    write_info(guest, images, board, &modules)?;
    Ok(EntryState { rax: BOOT_MAGIC, ..EntryState::prot32(guest, entry, 0, place::START_INFO) })
}

/// Placement by the header's own addresses: entry, and the end of what the kernel uses.
fn by_addresses(guest: &Guest<'_>, file: &[u8], h: &Header) -> Result<(u32, u64), LoadError> {
    let field = |n: usize| {
        let need = (h.at + 12 + 4 * 5) as u64;
        word(file, h.at + 12 + 4 * n).ok_or(LoadError::CutOff { have: file.len() as u64, need })
    };
    let (header_addr, load, load_end, bss_end, entry) = (field(0)?, field(1)?, field(2)?, field(3)?, field(4)?);
    let before = header_addr.checked_sub(load).map(|n| n as usize).filter(|n| *n <= h.at);
    let Some(before) = before else { return Err(LoadError::Header("its load address does not fit its place in the file")) };
    let rest = &file[h.at - before..];
    let len = match load_end {
        0 => rest.len(),
        e => e.checked_sub(load).ok_or(LoadError::Header("it ends before it begins"))? as usize,
    };
    let data = rest.get(..len).ok_or(LoadError::CutOff { have: rest.len() as u64, need: len as u64 })?;
    let (load, entry_at) = (u64::from(load), u64::from(entry));
    let end = (load + len as u64).max(u64::from(bss_end));
    place_segment(guest, load, data, end - load)?;
    if !(load..end).contains(&entry_at) {
        return Err(LoadError::Header("its entry lies outside of it"));
    }
    Ok((entry, end))
}

fn place_segment(guest: &Guest<'_>, start: u64, data: &[u8], len: u64) -> Result<(), LoadError> {
    let what = "the kernel";
    if start < LOWEST || start.checked_add(len).is_none_or(|end| end > guest.top_below_4g()) {
        return Err(LoadError::OutsideRam { what, start, len });
    }
    guest.write(what, start, data, len)
}

/// Placement by ELF's program headers. The entry may be a virtual address, as the segment that holds it says.
fn by_elf(guest: &Guest<'_>, file: &[u8]) -> Result<(u32, u64), LoadError> {
    if !file.starts_with(b"\x7fELF\x01") {
        return Err(LoadError::Header("a Multiboot kernel without addresses must be a 32-bit ELF file"));
    }
    let headers = elf::program_headers(file)?;
    let given = word(file, 24).map_or(0, u64::from);
    let (mut entry, mut end) = (given, LOWEST);
    for p in headers.iter().filter(|p| p.p_type == PT_LOAD && p.p_memsz > 0) {
        end = end.max(elf::load_segment(guest, file, p)?);
        if let Some(off) = given.checked_sub(p.p_vaddr).filter(|o| *o < p.p_memsz) {
            entry = p.p_paddr.saturating_add(off);
        }
    }
    match u32::try_from(entry) {
        Ok(e) if (LOWEST..end).contains(&entry) => Ok((e, end)),
        _ => Err(LoadError::Elf("the entry lies outside the loaded segments".into())),
    }
}

/// Modules page by page behind the kernel: first and last address and text of each.
fn write_modules(guest: &Guest<'_>, list: &[Module], end: u64) -> Result<Vec<(u64, u64, String)>, LoadError> {
    if list.len() > MAX_MODULES {
        return Err(LoadError::Header("it is given more than 64 modules"));
    }
    let mut at = end.next_multiple_of(PAGE);
    let mut out = Vec::new();
    for m in list {
        let len = m.data.len();
        let room = guest.top_below_4g().saturating_sub(at);
        if len > room {
            return Err(LoadError::InitrdTooLarge { len, room });
        }
        guest.load("a module", at, &m.data, 0)?;
        out.push((at, at + len, m.text.clone()));
        at = (at + len).next_multiple_of(PAGE);
    }
    Ok(out)
}

/// Texts, each with its zero, one after the other from `place::CMDLINE` on.
struct Texts<'a> {
    guest: &'a Guest<'a>,
    at: u64,
}

impl Texts<'_> {
    fn put(&mut self, text: &str) -> Result<u32, LoadError> {
        let len = text.len() as u64;
        let max = (place::CMDLINE + place::CMDLINE_ROOM - 1).saturating_sub(self.at);
        if text.contains('\0') {
            return Err(LoadError::CommandLineZero);
        }
        if len > max {
            return Err(LoadError::CommandLine { len, max });
        }
        self.guest.write("command line", self.at, text.as_bytes(), len + 1)?;
        let at = self.at as u32;
        self.at += len + 1;
        Ok(at)
    }
}

fn write_info(guest: &Guest<'_>, images: &Images, board: BoardInfo<'_>, modules: &[(u64, u64, String)]) -> Result<(), LoadError> {
    let mut texts = Texts { guest, at: place::CMDLINE };
    let cmdline = texts.put(format!("{} {}", images.name, images.cmdline).trim_end())?;
    let name = texts.put(LOADER_NAME)?;
    let mut map = guest.e820(board.reserved);
    map.truncate((place::GDT - place::START_INFO - MEMMAP) as usize / MEMMAP_ENTRY);
    let mut b = vec![0; MEMMAP as usize];
    let mut put = |at: u64, v: u32| b[at as usize..at as usize + 4].copy_from_slice(&v.to_le_bytes());
    let flags = info::MEMORY | info::CMDLINE | info::MODULES | info::MEMORY_MAP | info::LOADER_NAME;
    // Conventional memory and memory above 1 MiB, in KiB.
    let upper = (guest.top_below_4g() - LOWEST) >> 10;
    for (at, v) in [(0, flags), (4, 639), (8, upper as u32), (16, cmdline), (64, name)] {
        put(at, v);
    }
    put(20, modules.len() as u32);
    put(24, (place::START_INFO + MODULES) as u32);
    put(44, (map.len() * MEMMAP_ENTRY) as u32);
    put(48, (place::START_INFO + MEMMAP) as u32);
    for (i, (start, end, text)) in (0..).zip(modules) {
        let at = MODULES + i * MODULE_SIZE;
        put(at, *start as u32);
        put(at + 4, *end as u32);
        put(at + 8, texts.put(text)?);
    }
    for e in map {
        b.extend((MEMMAP_ENTRY as u32 - 4).to_le_bytes());
        b.extend(e.start.to_le_bytes());
        b.extend(e.len.to_le_bytes());
        b.extend((e.kind as u32).to_le_bytes());
    }
    guest.write_low(place::START_INFO, &b);
    Ok(())
}
