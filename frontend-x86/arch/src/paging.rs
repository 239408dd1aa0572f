//! Page walks: no paging, 32-bit, PAE, 4-level and 5-level (SDM 3A chapter 4 "Paging").

use crate::fault::{gp, page as page_fault, pf};
use crate::mode::ctx;
use crate::state::{CpuState, cr0, cr4, efer};
use std::fmt::Write;
use vm_core::guest::{Mapping, PhysMem};
use vm_core::{Access, Fault, Pa, Va};

/// Physical-address width that CPUID 80000008h reports; entry bits above it are reserved.
pub const PHYS_BITS: u32 = 40;

/// Bits of a page-table entry (SDM 3A tables 4-4 to 4-20).
pub mod pte {
    pub const P: u64 = 1 << 0;
    pub const W: u64 = 1 << 1;
    pub const U: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const PS: u64 = 1 << 7;
    pub const G: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
    /// Protection key of a leaf: bits 62:59.
    pub const KEY_SHIFT: u32 = 59;
}

const PHYS_MASK: u64 = (1 << PHYS_BITS) - 1;
const FRAME: u64 = PHYS_MASK & !0xfff;
/// A walk that loses this many races for an accessed bit goes on without setting it: tables in ROM never take the bit.
const RETRIES: u32 = 64;
const DUMP_LINES: usize = 4096;
const DUMP_READS: u32 = 1 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Legacy,
    Pae,
    Long,
}

/// Where a walk starts. `shift` is that of the first table's index.
#[derive(Clone, Copy)]
struct Root {
    format: Format,
    table: u64,
    shift: u32,
}

impl Format {
    const fn index_bits(self) -> u32 {
        if matches!(self, Format::Legacy) { 10 } else { 9 }
    }

    fn entry_at(self, table: u64, va: u64, shift: u32) -> u64 {
        let index = va >> shift & ((1 << self.index_bits()) - 1);
        table + index * if self == Format::Legacy { 4 } else { 8 }
    }
}

/// Physical memory behind the A20 gate.
struct Gate<'a> {
    mem: &'a dyn PhysMem,
    mask: u64,
    format: Format,
}

impl Gate<'_> {
    fn read(&self, pa: u64) -> u64 {
        let pa = Pa(pa & self.mask);
        if self.format == Format::Legacy { self.mem.read_u32(pa).into() } else { self.mem.read_u64(pa) }
    }

    fn cas(&self, pa: u64, old: u64, new: u64) -> bool {
        let pa = Pa(pa & self.mask);
        if self.format == Format::Legacy { self.mem.cas_u32(pa, old as u32, new as u32) } else { self.mem.cas_u64(pa, old, new) }
    }
}

/// What all levels of a translation allow together.
#[derive(Clone, Copy)]
struct Rights {
    user: bool,
    write: bool,
    nx: bool,
}

/// A complete path through the tables: the entries read (address, value), leaf last.
struct Path {
    entries: [(u64, u64); 5],
    len: usize,
    rights: Rights,
    /// Shift of the leaf's level: its page has 2^shift bytes.
    shift: u32,
    frame: u64,
}

impl Path {
    fn leaf(&self) -> u64 {
        self.entries[self.len - 1].1
    }
}

/// Why a path ended early: error code bits P and RSVD.
struct Broken(u32);

pub(crate) fn a20_mask(cpu: &CpuState) -> u64 {
    if cpu.a20_masked { !(1 << 20) } else { !0 }
}

fn root(cpu: &CpuState, va: u64) -> Result<Root, Broken> {
    if cpu.cr4 & cr4::PAE == 0 {
        return Ok(Root { format: Format::Legacy, table: cpu.cr3 & 0xffff_f000, shift: 22 });
    }
    if cpu.long_mode() {
        let shift = if cpu.cr4 & cr4::LA57 != 0 { 48 } else { 39 };
        return Ok(Root { format: Format::Long, table: cpu.cr3 & FRAME, shift });
    }
    // The PDPTE registers were checked for reserved bits when CR3 was loaded.
    let pdpte = cpu.pdpte[(va >> 30 & 3) as usize];
    if pdpte & pte::P == 0 {
        return Err(Broken(0));
    }
    Ok(Root { format: Format::Pae, table: pdpte & FRAME, shift: 21 })
}

/// Bits that must be 0 in a present entry at `shift`; `leaf` tells a page from a table.
fn reserved(cpu: &CpuState, format: Format, shift: u32, leaf: bool) -> u64 {
    let large = leaf && shift > 12;
    if format == Format::Legacy {
        // PSE-36: bits 20:13 are address bits 39:32, bit 21 is reserved.
        return if large { 1 << 21 } else { 0 };
    }
    let nxe = cpu.efer & efer::NXE != 0;
    let high = match format {
        Format::Pae => (1 << 63) - (1 << PHYS_BITS),
        _ => (1 << 52) - (1 << PHYS_BITS),
    };
    let below = if large { (1u64 << shift) - (1 << 13) } else { 0 };
    let ps = if !leaf && shift > 21 || leaf && shift > 30 { pte::PS } else { 0 };
    high | below | ps | if nxe { 0 } else { pte::NX }
}

fn is_leaf(cpu: &CpuState, format: Format, shift: u32, entry: u64) -> bool {
    match shift {
        12 => true,
        22 => entry & pte::PS != 0 && cpu.cr4 & cr4::PSE != 0,
        21 => entry & pte::PS != 0,
        30 => entry & pte::PS != 0 && format == Format::Long && crate::cpuid::has_1g_pages(cpu),
        _ => false,
    }
}

fn leaf_frame(format: Format, shift: u32, entry: u64) -> u64 {
    if format == Format::Legacy {
        let low = entry & 0xffff_ffff & !((1 << shift) - 1);
        return if shift > 12 { low | (entry >> 13 & 0xff) << 32 } else { low };
    }
    entry & PHYS_MASK & !((1 << shift) - 1)
}

fn follow(cpu: &CpuState, va: u64, gate: &Gate, root: Root) -> Result<Path, Broken> {
    let Root { format, mut table, mut shift } = root;
    let mut entries = [(0, 0); 5];
    let mut rights = Rights { user: true, write: true, nx: false };
    for len in 1..=entries.len() {
        let pa = format.entry_at(table, va, shift);
        let entry = gate.read(pa);
        entries[len - 1] = (pa, entry);
        if entry & pte::P == 0 {
            return Err(Broken(0));
        }
        let leaf = is_leaf(cpu, format, shift, entry);
        if entry & reserved(cpu, format, shift, leaf) != 0 {
            return Err(Broken(pf::P | pf::RSVD));
        }
        rights.user &= entry & pte::U != 0;
        rights.write &= entry & pte::W != 0;
        rights.nx |= format != Format::Legacy && entry & pte::NX != 0;
        if leaf {
            return Ok(Path { entries, len, rights, shift, frame: leaf_frame(format, shift, entry) });
        }
        table = if format == Format::Legacy { entry & 0xffff_f000 } else { entry & FRAME };
        shift -= format.index_bits();
    }
    // Every format ends at shift 12 within five levels.
    Err(Broken(pf::P | pf::RSVD))
}

/// (read, write, execute) in access context `c` (SDM 3A §4.6 "Access Rights").
fn allowed(cpu: &CpuState, r: Rights, denied: Denied, c: usize) -> (bool, bool, bool) {
    let (read, write, exec) = by_tables(cpu, r, c);
    (read && !denied.access, write && !denied.access && !denied.write, exec)
}

/// What PKRU takes away of data accesses to a user page (SDM 3A §4.6.2 "Protection Keys").
#[derive(Clone, Copy, Default)]
struct Denied {
    access: bool,
    write: bool,
}

fn denied(cpu: &CpuState, path: &Path, c: usize) -> Denied {
    if cpu.cr4 & cr4::PKE == 0 || !cpu.long_mode() || !path.rights.user {
        return Denied::default();
    }
    let bits = cpu.pkru >> (2 * (path.leaf() >> pte::KEY_SHIFT & 15));
    Denied { access: bits & 1 != 0, write: bits & 2 != 0 && (c == ctx::USER || cpu.cr0 & cr0::WP != 0) }
}

fn by_tables(cpu: &CpuState, r: Rights, c: usize) -> (bool, bool, bool) {
    if c == ctx::USER {
        return (r.user, r.user && r.write, r.user && !r.nx);
    }
    let data = !(r.user && c == ctx::KERNEL_SMAP);
    let write = r.write || cpu.cr0 & cr0::WP == 0;
    let smep = r.user && cpu.cr4 & cr4::SMEP != 0;
    (data, data && write, !r.nx && !smep)
}

/// Error code of a page fault but for P and RSVD (SDM 3A §4.7 "Page-Fault Exceptions").
fn access_bits(cpu: &CpuState, access: Access, c: usize) -> u32 {
    let nx = cpu.cr4 & cr4::PAE != 0 && cpu.efer & efer::NXE != 0;
    let fetch = access == Access::Execute && (nx || cpu.cr4 & cr4::SMEP != 0);
    let bit = |on: bool, b: u32| if on { b } else { 0 };
    bit(access == Access::Write, pf::W) | bit(c == ctx::USER, pf::U) | bit(fetch, pf::I)
}

/// Whether `va` is canonical: bits above the linear-address width equal its highest bit.
pub fn canonical(cpu: &CpuState, va: u64) -> bool {
    let shift = if cpu.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
    ((va << shift) as i64 >> shift) as u64 == va
}

/// #GP(0) for an address that is not canonical.
pub(crate) fn unmappable(cpu: &CpuState, va: Va) -> Option<Fault> {
    // The address tells `deliver_fault` that this is why.
    (cpu.paging() && cpu.long_mode() && !canonical(cpu, va.0)).then(|| Fault { addr: va.0, ..gp(0) })
}

/// Sets A in all entries of the path and D in the leaf of a write. `false`: an entry changed meanwhile.
fn mark(gate: &Gate, path: &mut Path, write: bool) -> bool {
    for i in 0..path.len {
        let (pa, old) = path.entries[i];
        let dirty = if write && i + 1 == path.len { pte::D } else { 0 };
        let new = old | pte::A | dirty;
        if new != old {
            if !gate.cas(pa, old, new) {
                return false;
            }
            path.entries[i].1 = new;
        }
    }
    true
}

/// Translates the page of `va` for `access` in context `c` (`mode::ctx`), setting accessed and dirty bits.
/// Errors: #PF with its error code, #GP(0) for a non-canonical address.
pub fn walk(cpu: &CpuState, va: Va, access: Access, c: usize, mem: &dyn PhysMem) -> Result<Mapping, Fault> {
    let mask = a20_mask(cpu);
    if !cpu.paging() {
        let page = Pa(va.0 & 0xffff_f000 & mask);
        return Ok(Mapping { page, shift: 12, read: true, write: true, exec: true, global: true });
    }
    if let Some(fault) = unmappable(cpu, va) {
        return Err(fault);
    }
    let lin = if cpu.long_mode() { va.0 } else { va.0 & 0xffff_ffff };
    let bits = access_bits(cpu, access, c);
    let broken = |b: Broken| page_fault(va.0, b.0 | bits);
    let root = root(cpu, lin).map_err(broken)?;
    let gate = Gate { mem, mask, format: root.format };
    let mut tries = 0;
    loop {
        let mut path = follow(cpu, lin, &gate, root).map_err(broken)?;
        let denied = denied(cpu, &path, c);
        let (read, write, exec) = allowed(cpu, path.rights, denied, c);
        let ok = match access {
            Access::Read => read,
            Access::Write => write,
            Access::Execute => exec,
        };
        if !ok {
            let key = access != Access::Execute && (denied.access || denied.write && access == Access::Write);
            return Err(page_fault(va.0, pf::P | bits | if key { pf::PK } else { 0 }));
        }
        tries += 1;
        if !mark(&gate, &mut path, access == Access::Write) && tries < RETRIES {
            continue;
        }
        let dirty = path.leaf() & pte::D != 0 || access == Access::Write;
        let offset = lin & ((1 << path.shift) - 1) & !0xfff;
        let global = path.leaf() & pte::G != 0 && cpu.cr4 & cr4::PGE != 0;
        let page = Pa((path.frame | offset) & mask);
        return Ok(Mapping { page, shift: path.shift, read, write: write && dirty, exec, global });
    }
}

/// Translates `va` without side effects or permission checks.
pub fn debug_walk(cpu: &CpuState, va: Va, mem: &dyn PhysMem) -> Option<Pa> {
    let mask = a20_mask(cpu);
    if !cpu.paging() {
        return Some(Pa(va.0 & 0xffff_ffff & mask));
    }
    if cpu.long_mode() && !canonical(cpu, va.0) {
        return None;
    }
    let lin = if cpu.long_mode() { va.0 } else { va.0 & 0xffff_ffff };
    let root = root(cpu, lin).ok()?;
    let path = follow(cpu, lin, &Gate { mem, mask, format: root.format }, root).ok()?;
    Some(Pa((path.frame | lin & ((1 << path.shift) - 1)) & mask))
}

/// Reads the four PDPTEs that CR3 points to (SDM 3A §4.4.1). `None`: a present one has reserved bits set.
pub fn load_pdptes(cr3: u64, mut read: impl FnMut(u64) -> u64) -> Option<[u64; 4]> {
    let base = cr3 & 0xffff_ffe0;
    let bad = (!0u64 << PHYS_BITS) | 0x1e6;
    let mut out = [0; 4];
    for (i, slot) in out.iter_mut().enumerate() {
        *slot = read(base + i as u64 * 8);
        if *slot & pte::P != 0 && *slot & bad != 0 {
            return None;
        }
    }
    Some(out)
}

/// Bits of entries that all levels must agree on for an access to be allowed.
const ALLOW: u64 = pte::NX | pte::U | pte::W;

struct Dump<'a> {
    cpu: &'a CpuState,
    gate: Gate<'a>,
    text: String,
    lines: usize,
    reads: u32,
}

impl Dump<'_> {
    fn line(&mut self, va: u64, shift: u32, entry: u64) {
        let frame = leaf_frame(self.gate.format, shift, entry);
        let va = if self.gate.format == Format::Long { sign_extend(self.cpu, va) } else { va };
        let flags = [
            (pte::NX, 'X'),
            (pte::G, 'G'),
            (if shift > 12 { pte::PS } else { 0 }, 'P'),
            (pte::D, 'D'),
            (pte::A, 'A'),
            (1 << 4, 'C'),
            (1 << 3, 'T'),
            (pte::U, 'U'),
            (pte::W, 'W'),
        ];
        let flags: String = flags.iter().map(|&(b, c)| if entry & b != 0 { c } else { '-' }).collect();
        let size = [(30, " 1G"), (22, " 4M"), (21, " 2M")].into_iter().find_map(|(s, t)| (s == shift).then_some(t)).unwrap_or("");
        // Writing to a String cannot fail.
        let _ = writeln!(self.text, "{va:016x}: {frame:016x} {flags}{size}");
        self.lines += 1;
    }

    /// `false` once a bound is reached. `above`: what the tables on the way down allow (NX inverted, U, W).
    fn table(&mut self, table: u64, va: u64, shift: u32, above: u64) -> bool {
        let format = self.gate.format;
        for i in 0..1u64 << format.index_bits() {
            if self.lines >= DUMP_LINES || self.reads >= DUMP_READS {
                return false;
            }
            self.reads += 1;
            let here = va | i << shift;
            let entry = self.gate.read(format.entry_at(table, here, shift));
            if entry & pte::P == 0 {
                continue;
            }
            let allowed = above & (entry ^ pte::NX);
            if is_leaf(self.cpu, format, shift, entry) {
                self.line(here, shift, entry & !ALLOW | (allowed ^ pte::NX) & ALLOW);
            } else {
                let next = if format == Format::Legacy { entry & 0xffff_f000 } else { entry & FRAME };
                if !self.table(next, here, shift - format.index_bits(), allowed) {
                    return false;
                }
            }
        }
        true
    }
}

fn sign_extend(cpu: &CpuState, va: u64) -> u64 {
    let shift = if cpu.cr4 & cr4::LA57 != 0 { 7 } else { 16 };
    ((va << shift) as i64 >> shift) as u64
}

/// Lists the mappings of the current tables, one line a page: linear address, physical address, flags (U, W and X as all levels
/// together have them), size of a large page.
pub fn dump_mappings(cpu: &CpuState, mem: &dyn PhysMem) -> String {
    if !cpu.paging() {
        return "paging is off\n".into();
    }
    let quarters = if cpu.cr4 & cr4::PAE != 0 && !cpu.long_mode() { 4 } else { 1 };
    let mut dump: Option<Dump> = None;
    let mut whole = true;
    for q in 0..quarters {
        let va = q << 30;
        let Ok(root) = root(cpu, va) else { continue };
        let new = || Dump {
            cpu,
            gate: Gate { mem, mask: a20_mask(cpu), format: root.format },
            text: String::new(),
            lines: 0,
            reads: 0,
        };
        whole &= dump.get_or_insert_with(new).table(root.table, va, root.shift, ALLOW);
    }
    let mut text = dump.map(|d| d.text).unwrap_or_default();
    if !whole {
        text.push_str("(more mappings than this command lists)\n");
    }
    text
}
