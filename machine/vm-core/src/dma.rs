//! How devices reach guest RAM: by guest-physical address, without the CPU. Every write is a host write (`Ram::write`).

use crate::addr::{PAGE_SIZE, Pa};
use crate::memmap::{MemMap, Target};
use crate::ram::{HostWrites, Ram};
use std::sync::Arc;
use vm_memory::{
    GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection, GuestUsize,
    MemoryRegionAddress, VolatileSlice,
};

/// Guest RAM as the crates of rust-vmm see it: its writable ranges.
pub type GuestRam = GuestRegionCollection<RamRegion>;

/// One writable range of the memory map.
pub struct RamRegion {
    ram: Arc<Ram>,
    start: u64,
    len: u64,
    offset: u64,
}

impl GuestMemoryRegion for RamRegion {
    type B = HostWrites;

    fn len(&self) -> GuestUsize {
        self.len
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.start)
    }

    fn bitmap(&self) -> HostWrites {
        HostWrites::new(self.ram.clone(), self.offset)
    }

    fn get_slice(&self, at: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_, HostWrites>, GuestMemoryError> {
        match at.0.checked_add(count as u64) {
            Some(end) if end <= self.len => Ok(self.ram.volatile(self.offset + at.0, count)),
            _ => Err(GuestMemoryError::InvalidBackendAddress),
        }
    }
}

impl GuestMemoryRegionBytes for RamRegion {}

/// A device's way to guest RAM; cheap to clone. Devices do not reach other devices: reads of what is not RAM give ones, writes
/// to it are dropped, and so are writes to ROM.
#[derive(Clone)]
pub struct Dma {
    ram: Arc<Ram>,
    map: Arc<MemMap>,
    regions: Arc<GuestRam>,
}

impl Dma {
    pub fn new(ram: Arc<Ram>, map: &MemMap) -> Self {
        let region = |(start, len, writable): (Pa, u64, bool)| match map.target(start) {
            Target::Ram { offset, .. } if writable => Some(RamRegion { ram: ram.clone(), start: start.0, len, offset }),
            _ => None,
        };
        let regions = GuestRam::from_regions(map.ram_ranges().filter_map(region).collect()).unwrap_or_default();
        Self { map: Arc::new(map.clone()), regions: Arc::new(regions), ram }
    }

    /// For virtqueues.
    pub fn guest_ram(&self) -> &Arc<GuestRam> {
        &self.regions
    }

    /// Calls `f` with target, position in the buffer, and length, for each part of `len` bytes at `pa`. Addresses wrap.
    fn parts(&self, pa: Pa, len: usize, mut f: impl FnMut(Target, usize, usize)) {
        let mut done = 0;
        while done < len {
            let (target, room) = self.map.extent(Pa(pa.0.wrapping_add(done as u64)));
            let n = (len - done).min(usize::try_from(room).unwrap_or(usize::MAX));
            f(target, done, n);
            done += n;
        }
    }

    pub fn read(&self, pa: Pa, buf: &mut [u8]) {
        self.parts(pa, buf.len(), |target, at, n| match target {
            Target::Ram { offset, .. } => self.ram.read(offset, &mut buf[at..at + n]),
            Target::Mmio => buf[at..at + n].fill(0xff),
        });
    }

    /// Gives the whole pages of RAM in a range back to the host; they read as zeroes from now on. ROM stays.
    pub fn discard(&self, pa: Pa, len: u64) {
        let first = pa.0.checked_next_multiple_of(PAGE_SIZE);
        let last = pa.0.saturating_add(len) / PAGE_SIZE * PAGE_SIZE;
        let mut at = first.unwrap_or(last);
        while at < last {
            let (target, room) = self.map.extent(Pa(at));
            let n = room.min(last - at).max(1);
            if let Target::Ram { offset, writable: true } = target {
                self.ram.zero(offset, n);
            }
            at = at.saturating_add(n);
        }
    }

    pub fn write(&self, pa: Pa, data: &[u8]) {
        self.parts(pa, data.len(), |target, at, n| {
            if let Target::Ram { offset, writable: true } = target {
                self.ram.write(offset, &data[at..at + n]);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::PageBits;
    use vm_memory::{Bytes, GuestMemory, Permissions};

    fn dma() -> Dma {
        let mut map = MemMap::default();
        map.map_ram(Pa(0), 0x3000, 0, true);
        map.map_ram(Pa(0x1000), 0x1000, 0x1000, false);
        map.map_ram(Pa(0x8000), 0x1000, 0x3000, true);
        Dma::new(Arc::new(Ram::new(0x4000).unwrap()), &map)
    }

    #[test]
    fn what_is_not_ram_reads_ones_and_keeps_nothing() {
        let d = dma();
        d.write(Pa(0xffe), &[1, 2, 3, 4]);
        d.write(Pa(0x1ffe), &[5, 6, 7, 8]);
        d.write(Pa(0x2fff), &[9; 0x5002]);
        let mut buf = [0; 4];
        d.read(Pa(0xffe), &mut buf);
        assert_eq!(buf, [1, 2, 0, 0], "ROM is not written");
        d.read(Pa(0x1ffe), &mut buf);
        assert_eq!(buf, [0, 0, 7, 8]);
        d.read(Pa(0x2ffe), &mut buf);
        assert_eq!(buf, [0, 9, 0xff, 0xff]);
        d.read(Pa(0x7fff), &mut buf);
        assert_eq!(buf, [0xff, 9, 0, 0]);
        d.read(Pa(u64::MAX), &mut buf);
        assert_eq!(buf, [0xff, 0, 0, 0]);
    }

    #[test]
    fn whole_pages_of_ram_are_discarded() {
        let d = dma();
        d.ram.write(0, &[9; 0x4000]);
        d.discard(Pa(1), u64::MAX);
        let left: Vec<_> = (0..4).map(|p| d.ram.read_uint(p * 0x1000, 1)).collect();
        assert_eq!(left, [9, 9, 0, 0], "a page in part, and ROM, stay");
        d.discard(Pa(u64::MAX), 5);
        d.discard(Pa(0), 0xfff);
        assert_eq!(d.ram.read_uint(0, 1), 9);
    }

    #[test]
    fn writes_by_way_of_vm_memory_are_host_writes() {
        let d = dma();
        d.ram.set_page_bits(3, PageBits::CODE);
        let before = d.ram.version(3);
        d.guest_ram().write_obj(0x1234_5678u32, GuestAddress(0x8ffc)).unwrap();
        assert_eq!(d.ram.version(3), before + 1);
        assert_eq!(d.ram.read_uint(0x3ffc, 4), 0x1234_5678);
        assert!(d.guest_ram().write_obj(0u32, GuestAddress(0x8ffe)).is_err(), "beyond the end");
        assert!(d.guest_ram().read_obj::<u32>(GuestAddress(0x1000)).is_err(), "rings do not lie in ROM");
        assert!(!GuestMemory::check_range(&**d.guest_ram(), GuestAddress(u64::MAX - 1), 8, Permissions::Read));
    }
}
