//! The guest-physical memory map: which addresses are RAM (and at which offset of it), ROM, or belong to a device.

use crate::addr::{PAGE_SIZE, Pa};

/// What lies at a guest-physical page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Byte offset in `Ram` of this address. Not writable: ROM, writes are dropped by the bus.
    Ram { offset: u64, writable: bool },
    /// A device, or nothing: ask the bus.
    Mmio,
}

#[derive(Clone, Copy, Debug)]
struct Range {
    start: u64,
    end: u64,
    offset: u64,
    writable: bool,
}

/// Page-granular map from guest-physical addresses to RAM offsets; what it does not name is MMIO.
#[derive(Clone, Debug, Default)]
pub struct MemMap {
    ranges: Vec<Range>,
}

impl MemMap {
    /// Maps `len` bytes at `start` to RAM at `offset`. Both page-aligned; replaces what was mapped there.
    pub fn map_ram(&mut self, start: Pa, len: u64, offset: u64, writable: bool) {
        assert!((start.0 | len | offset).is_multiple_of(PAGE_SIZE), "RAM is mapped by whole pages");
        let new = Range { start: start.0, end: start.0 + len, offset, writable };
        let old = std::mem::take(&mut self.ranges);
        for r in old {
            if r.start < new.start {
                self.ranges.push(Range { end: r.end.min(new.start), ..r });
            }
            if r.end > new.end {
                let start = r.start.max(new.end);
                self.ranges.push(Range { start, offset: r.offset + (start - r.start), ..r });
            }
        }
        self.ranges.push(new);
        self.ranges.sort_by_key(|r| r.start);
        self.ranges.retain(|r| r.start < r.end);
    }

    pub fn target(&self, pa: Pa) -> Target {
        let i = self.ranges.partition_point(|r| r.end <= pa.0);
        match self.ranges.get(i) {
            Some(r) if r.start <= pa.0 => Target::Ram { offset: r.offset + (pa.0 - r.start), writable: r.writable },
            _ => Target::Mmio,
        }
    }

    /// As `target`, with the number of bytes from `pa` on to which the same applies; at least 1.
    pub fn extent(&self, pa: Pa) -> (Target, u64) {
        let i = self.ranges.partition_point(|r| r.end <= pa.0);
        match self.ranges.get(i) {
            Some(r) if r.start <= pa.0 => {
                (Target::Ram { offset: r.offset + (pa.0 - r.start), writable: r.writable }, r.end - pa.0)
            }
            Some(r) => (Target::Mmio, r.start - pa.0),
            None => (Target::Mmio, (u64::MAX - pa.0).max(1)),
        }
    }

    /// Mapped RAM as (first address, length, writable), ascending: for E820 and `info mtree`.
    pub fn ram_ranges(&self) -> impl Iterator<Item = (Pa, u64, bool)> + '_ {
        self.ranges.iter().map(|r| (Pa(r.start), r.end - r.start, r.writable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_mappings_split_earlier_ones() {
        let mut m = MemMap::default();
        m.map_ram(Pa(0), 0x10000, 0, true);
        m.map_ram(Pa(0x4000), 0x1000, 0x20000, false);
        assert_eq!(m.target(Pa(0x3fff)), Target::Ram { offset: 0x3fff, writable: true });
        assert_eq!(m.target(Pa(0x4010)), Target::Ram { offset: 0x20010, writable: false });
        assert_eq!(m.target(Pa(0x5000)), Target::Ram { offset: 0x5000, writable: true });
        assert_eq!(m.target(Pa(0x10000)), Target::Mmio);
        assert_eq!(m.ram_ranges().count(), 3);
    }
}
