//! Guest memory as a loader sees it: guest-physical writes that stay inside RAM, and the E820 map.

use super::{Image, LoadError};
use vm_core::{MemMap, Pa, Ram, Target};

/// Start and end of the legacy hole: video memory and ROM, never free for the kernel.
const HOLE: u64 = 0xa_0000;
const ONE_MIB: u64 = 0x10_0000;
/// The last KiB of conventional memory is the EBDA's.
const EBDA: u64 = 0x9_fc00;
const FOUR_GIB: u64 = 1 << 32;

/// One range of the map that the kernel is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct E820Entry {
    pub start: u64,
    pub len: u64,
    pub kind: E820Kind,
}

/// ACPI address range types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum E820Kind {
    Ram = 1,
    Reserved = 2,
    AcpiTables = 3,
}

/// RAM by guest-physical address.
pub struct Guest<'a> {
    ram: &'a Ram,
    map: &'a MemMap,
}

impl<'a> Guest<'a> {
    /// Fails if there is not the conventional memory that every loader needs for its tables.
    pub fn new(ram: &'a Ram, map: &'a MemMap) -> Result<Self, LoadError> {
        let g = Self { ram, map };
        if g.room_at(0) < EBDA { Err(LoadError::NoLowRam) } else { Ok(g) }
    }

    /// Bytes of writable, physically and in RAM contiguous memory from `pa` on; 0 if there is none.
    pub fn room_at(&self, pa: u64) -> u64 {
        let Target::Ram { offset, writable: true } = self.map.target(Pa(pa)) else { return 0 };
        let mut end = pa;
        for (start, len, writable) in self.map.ram_ranges().filter(|(s, l, _)| s.0.saturating_add(*l) > pa) {
            let follows =
                start.0 <= end && self.map.target(Pa(end)) == Target::Ram { offset: offset + (end - pa), writable: true };
            if !writable || !follows {
                break;
            }
            end = start.0 + len;
        }
        end - pa
    }

    /// End of the RAM that contains 1 MiB, at most 4 GiB.
    pub fn top_below_4g(&self) -> u64 {
        (ONE_MIB + self.room_at(ONE_MIB)).min(FOUR_GIB)
    }

    /// Writes `data` and then zeroes up to `len` bytes. `what` names it in the error.
    pub fn write(&self, what: &'static str, pa: u64, data: &[u8], len: u64) -> Result<(), LoadError> {
        let len = len.max(data.len() as u64);
        if len == 0 {
            return Ok(());
        }
        match self.map.target(Pa(pa)) {
            Target::Ram { offset, writable: true } if len <= self.room_at(pa) => {
                self.ram.write(offset, data);
                let rest = len - data.len() as u64;
                if rest > 0 {
                    self.ram.zero(offset + data.len() as u64, rest);
                }
                Ok(())
            }
            _ => Err(LoadError::OutsideRam { what, start: pa, len }),
        }
    }

    /// Copies what `image` has from its byte `from` on. `what` names it in the error.
    pub fn load(&self, what: &'static str, pa: u64, image: &Image, from: u64) -> Result<(), LoadError> {
        let len = image.len().saturating_sub(from);
        if len == 0 {
            return Ok(());
        }
        match self.map.target(Pa(pa)) {
            Target::Ram { offset, writable: true } if len <= self.room_at(pa) => image.copy_to(self.ram, offset, from),
            _ => Err(LoadError::OutsideRam { what, start: pa, len }),
        }
    }

    /// Writes a table of the loader's own, below the EBDA, which `new` has found to be RAM.
    pub(super) fn write_low(&self, pa: u64, data: &[u8]) {
        self.write("table", pa, data, 0).expect("conventional memory was checked by Guest::new");
    }

    /// The E820 map: RAM, without the legacy hole and what `reserved` takes out of it. Sorted, without overlaps.
    pub fn e820(&self, reserved: &[E820Entry]) -> Vec<E820Entry> {
        let fixed = E820Entry { start: EBDA, len: ONE_MIB - EBDA, kind: E820Kind::Reserved };
        let taken: Vec<E820Entry> = reserved.iter().copied().chain([fixed]).filter(|e| e.len > 0).collect();
        let mut free: Vec<(u64, u64)> =
            self.map.ram_ranges().filter(|r| r.2).map(|(s, l, _)| (s.0, s.0.saturating_add(l))).collect();
        let mut out: Vec<E820Entry> = Vec::new();
        for t in &taken {
            let (start, end) = (t.start, t.start.saturating_add(t.len));
            free = free.into_iter().flat_map(|(s, e)| [(s, e.min(start)), (s.max(end), e)]).filter(|(s, e)| s < e).collect();
        }
        // The hole itself needs no entry but for the BIOS area, where the tables are.
        let bios = E820Entry { start: 0xe_0000, len: 0x2_0000, kind: E820Kind::Reserved };
        let ebda = E820Entry { start: EBDA, len: HOLE - EBDA, kind: E820Kind::Reserved };
        out.extend(reserved.iter().copied().filter(|e| e.len > 0 && (e.start >= ONE_MIB || e.start < EBDA)));
        out.extend([ebda, bios]);
        out.extend(free.into_iter().map(|(start, end)| E820Entry { start, len: end - start, kind: E820Kind::Ram }));
        out.sort_by_key(|e| e.start);
        join(out)
    }
}

/// Joins neighbours of one kind.
fn join(list: Vec<E820Entry>) -> Vec<E820Entry> {
    let mut out: Vec<E820Entry> = Vec::new();
    for e in list {
        match out.last_mut() {
            Some(p) if p.kind == e.kind && p.start.saturating_add(p.len) == e.start => p.len = p.len.saturating_add(e.len),
            _ => out.push(e),
        }
    }
    out
}
