//! The guest-physical memory map: which addresses are RAM (and at which offset of it), ROM, or belong to a device.

use crate::addr::{PAGE_SIZE, Pa};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

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

/// Which of the areas between C0000h and 1 MiB are RAM at the moment: twelve of 16 KiB, and the one of 64 KiB at F0000h. It
/// changes while the guest runs; whoever sets it tells the engines.
#[derive(Debug, Default)]
pub struct Shadow(AtomicU32);

impl Shadow {
    pub const START: u64 = 0xc_0000;
    pub const END: u64 = 0x10_0000;
    /// Where the firmware's ROM shows below 1 MiB.
    pub const ROM: u64 = 0xe_0000;
    pub const AREAS: u32 = 13;
    const AREA: u64 = 0x4000;
    /// All areas read and write RAM.
    pub const OPEN: u32 = (1 << (2 * Self::AREAS)) - 1;

    /// Two bits for each area: bit 0 lets reads go to RAM, bit 1 writes.
    pub fn set(&self, areas: u32) {
        self.0.store(areas & Self::OPEN, Ordering::SeqCst);
    }

    pub fn get(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    fn at(&self, pa: u64) -> u32 {
        let area = ((pa - Self::START) / Self::AREA).min(Self::AREAS as u64 - 1);
        self.get() >> (2 * area) & 3
    }
}

/// RAM that only system management mode sees: behind video memory, and below the end of RAM. It changes as `Shadow` does.
#[derive(Debug, Default)]
pub struct Smram(AtomicU32);

/// What of it there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmramParts {
    /// The range A0000h to C0000h is RAM in system management mode.
    pub low: bool,
    /// Everybody sees what there is.
    pub open: bool,
    /// MiB below 4 GiB that are kept for system management mode: the first, and how many (0..=255).
    pub top: (u16, u8),
}

impl Smram {
    pub const START: u64 = 0xa_0000;
    pub const END: u64 = 0xc_0000;

    pub fn set(&self, parts: SmramParts) {
        let (first, count) = parts.top;
        let v = u32::from(parts.low) | u32::from(parts.open) << 1 | u32::from(first & 0xfff) << 4 | u32::from(count) << 16;
        self.0.store(v, Ordering::SeqCst);
    }

    pub fn get(&self) -> SmramParts {
        let v = self.0.load(Ordering::SeqCst);
        SmramParts { low: v & 1 != 0, open: v & 2 != 0, top: ((v >> 4 & 0xfff) as u16, (v >> 16) as u8) }
    }
}

impl SmramParts {
    /// First address and end of the part below the end of RAM.
    fn top(&self) -> (u64, u64) {
        let (first, count) = (u64::from(self.top.0) << 20, u64::from(self.top.1) << 20);
        (first, first + count)
    }

    /// `Some(true)`: RAM, `Some(false)`: nothing, `None`: what the map says otherwise.
    fn at(&self, pa: u64, smm: bool) -> Option<bool> {
        let seen = smm || self.open;
        if (Smram::START..Smram::END).contains(&pa) {
            return (self.low && seen).then_some(true);
        }
        let (start, end) = self.top();
        ((start..end).contains(&pa) && !seen).then_some(false)
    }
}

/// Page-granular map from guest-physical addresses to RAM offsets; what it does not name is MMIO. Copies share `Shadow` and `Smram`.
#[derive(Clone, Debug, Default)]
pub struct MemMap {
    ranges: Vec<Range>,
    /// Beside it where in RAM the ROM's bytes for `Shadow::ROM` lie.
    shadow: Option<(Arc<Shadow>, u64)>,
    smram: Option<Arc<Smram>>,
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

    /// Puts a ROM, whose last 128 KiB lie in RAM at `rom`, behind RAM below 1 MiB.
    pub fn set_shadow(&mut self, shadow: Arc<Shadow>, rom: u64) {
        self.shadow = Some((shadow, rom));
    }

    pub fn shadow(&self) -> Option<&Arc<Shadow>> {
        self.shadow.as_ref().map(|(s, _)| s)
    }

    /// Lets `smram` decide about memory of system management mode; RAM behind video memory lies at its own address.
    pub fn set_smram(&mut self, smram: Arc<Smram>) {
        self.smram = Some(smram);
    }

    pub fn smram(&self) -> Option<&Arc<Smram>> {
        self.smram.as_ref()
    }

    /// The same map with a `Shadow` and a `Smram` of its own.
    pub fn detached(&self) -> Self {
        let shadow = self.shadow.as_ref().map(|(s, rom)| (Arc::new(Shadow(s.get().into())), *rom));
        let smram = self.smram.as_ref().map(|s| Arc::new(Smram(s.0.load(Ordering::SeqCst).into())));
        Self { shadow, smram, ..self.clone() }
    }

    /// What lies at an address that is not plain RAM because the chipset says so.
    fn shadowed(&self, pa: u64) -> Option<Target> {
        let (shadow, rom) = self.shadow.as_ref().filter(|_| (Shadow::START..Shadow::END).contains(&pa))?;
        let behind = || match self.base(Pa(pa)) {
            Target::Ram { offset, .. } => Target::Ram { offset, writable: false },
            Target::Mmio => Target::Mmio,
        };
        match (shadow.at(pa), pa.checked_sub(Shadow::ROM)) {
            (3, _) => None,
            (1, _) => Some(behind()),
            (_, Some(at)) => Some(Target::Ram { offset: rom + at, writable: false }),
            _ => Some(Target::Mmio),
        }
    }

    /// Addresses above 1 MiB that are writable RAM at the same offset, for a processor that is not in system management mode; perhaps
    /// not all.
    pub fn plain(&self) -> std::ops::Range<u64> {
        let start = Shadow::END;
        let range = self.ranges.iter().find(|r| r.writable && r.start == r.offset && (r.start..r.end).contains(&start));
        let top = self.smram.as_ref().map_or((u64::MAX, u64::MAX), |s| s.get().top());
        let end = range.map_or(start, |r| r.end);
        start..if top.0 < top.1 { end.min(top.0) } else { end }
    }

    pub fn target(&self, pa: Pa) -> Target {
        self.target_in(pa, false)
    }

    /// As `target`, for a processor in system management mode.
    pub fn target_in(&self, pa: Pa, smm: bool) -> Target {
        match self.smram.as_ref().and_then(|s| s.get().at(pa.0, smm)) {
            Some(true) => Target::Ram { offset: pa.0, writable: true },
            Some(false) => Target::Mmio,
            None => self.shadowed(pa.0).unwrap_or_else(|| self.base(pa)),
        }
    }

    fn base(&self, pa: Pa) -> Target {
        let i = self.ranges.partition_point(|r| r.end <= pa.0);
        match self.ranges.get(i) {
            Some(r) if r.start <= pa.0 => Target::Ram { offset: r.offset + (pa.0 - r.start), writable: r.writable },
            _ => Target::Mmio,
        }
    }

    /// As `target`, with the number of bytes from `pa` on to which the same applies; at least 1.
    pub fn extent(&self, pa: Pa) -> (Target, u64) {
        if let Some(s) = &self.smram {
            // Up to where the answer may be another.
            let (start, end) = s.get().top();
            let edges = [Smram::START, Smram::END, start, end];
            let room = edges.iter().filter(|e| **e > pa.0).map(|e| e - pa.0).min().unwrap_or(u64::MAX);
            let (target, len) = self.shadowed_extent(pa);
            let target = if s.get().at(pa.0, false).is_some() { self.target(pa) } else { target };
            return (target, len.min(room));
        }
        self.shadowed_extent(pa)
    }

    fn shadowed_extent(&self, pa: Pa) -> (Target, u64) {
        let (target, len) = self.base_extent(pa);
        match &self.shadow {
            Some(_) if pa.0 < Shadow::START => (target, len.min(Shadow::START - pa.0)),
            Some(_) if pa.0 < Shadow::END => (self.shadowed(pa.0).unwrap_or(target), len.min(Shadow::AREA - pa.0 % Shadow::AREA)),
            _ => (target, len),
        }
    }

    fn base_extent(&self, pa: Pa) -> (Target, u64) {
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
    fn system_management_mode_sees_memory_of_its_own() {
        let mut m = MemMap::default();
        m.map_ram(Pa(0), 0xa_0000, 0, true);
        m.map_ram(Pa(0xc_0000), 0xff4_0000, 0xc_0000, true);
        let smram = Arc::new(Smram::default());
        m.set_smram(smram.clone());
        let both = |m: &MemMap, pa| [false, true].map(|smm| m.target_in(Pa(pa), smm) != Target::Mmio);
        assert_eq!((both(&m, 0xa_0000), both(&m, 0xf80_0000)), ([false, false], [true, true]));
        smram.set(SmramParts { low: true, open: false, top: (0xf8, 8) });
        assert_eq!((both(&m, 0xa_0000), both(&m, 0xb_ffff), both(&m, 0xc_0000)), ([false, true], [false, true], [true, true]));
        assert_eq!(
            (both(&m, 0xf7f_ffff), both(&m, 0xf80_0000), both(&m, 0xfff_ffff)),
            ([true, true], [false, true], [false, true])
        );
        assert_eq!(m.target_in(Pa(0xa_1234), true), Target::Ram { offset: 0xa_1234, writable: true });
        assert_eq!(m.extent(Pa(0xa_1000)), (Target::Mmio, 0x1_f000));
        assert_eq!(m.extent(Pa(0xf7f_f000)), (Target::Ram { offset: 0xf7f_f000, writable: true }, 0x1000));
        assert_eq!(m.extent(Pa(0xf80_0000)), (Target::Mmio, 8 << 20));
        let other = m.detached();
        smram.set(SmramParts { open: true, ..smram.get() });
        assert_eq!((both(&m, 0xa_0000), both(&m, 0xf80_0000)), ([true, true], [true, true]));
        assert_eq!(m.extent(Pa(0xa_0000)), (Target::Ram { offset: 0xa_0000, writable: true }, 0x2_0000));
        assert_eq!((both(&other, 0xa_0000), other.smram().unwrap().get().top), ([false, true], (0xf8, 8)));
    }

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

    #[test]
    fn areas_below_1_mib_change_between_rom_and_ram() {
        let mut m = MemMap::default();
        m.map_ram(Pa(0), 0xa_0000, 0, true);
        m.map_ram(Pa(0xc_0000), 0x14_0000, 0xc_0000, true);
        let shadow = Arc::new(Shadow::default());
        m.set_shadow(shadow.clone(), 0x20_0000);
        let rom = |offset| Target::Ram { offset, writable: false };
        let ram = |offset, writable| Target::Ram { offset, writable };
        assert_eq!((m.target(Pa(0xc_0000)), m.target(Pa(0xe_0010))), (Target::Mmio, rom(0x20_0010)));
        assert_eq!((m.target(Pa(0xf_fff0)), m.target(Pa(0x10_0000))), (rom(0x21_fff0), ram(0x10_0000, true)));
        assert_eq!(m.extent(Pa(0xd_3ff0)), (Target::Mmio, 16));
        assert_eq!(m.extent(Pa(0x1000)).1, 0x9_f000);
        // C4000h writable, F0000h to be read only.
        shadow.set(3 << 2 | 1 << 24);
        assert_eq!(m.target(Pa(0xc_4000)), ram(0xc_4000, true));
        assert_eq!((m.target(Pa(0xf_0000)), m.target(Pa(0xf_ffff))), (ram(0xf_0000, false), ram(0xf_ffff, false)));
        let other = m.detached();
        shadow.set(Shadow::OPEN);
        assert_eq!((m.target(Pa(0xf_0000)), other.target(Pa(0xf_0000))), (ram(0xf_0000, true), ram(0xf_0000, false)));
        assert_eq!(m.shadow().unwrap().get(), Shadow::OPEN);
    }
}
