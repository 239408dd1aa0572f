//! Guest RAM: one anonymous host mapping, a state byte and a version per page, and the one function through which the
//! host writes to it. The only unsafe code of this crate.
//!
//! Guest RAM is shared with generated code and other threads, so it is never borrowed as a slice; all access is by value.
#![allow(unsafe_code)]

use crate::addr::PAGE_SIZE;
use crate::signals::{Events, VcpuSignals};
use memmap2::{MmapOptions, MmapRaw};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::{ReadVolatile, VolatileSlice};

bitflags::bitflags! {
    /// State of one RAM page. Engines fill write entries of their TLBs only for pages with no bit set, read entries only
    /// for pages without WATCHED; setting a bit must be followed by dropping those entries.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct PageBits: u8 {
        /// Translated code was read from here.
        const CODE = 1;
        /// Somebody keeps a log of dirty pages and this page is clean.
        const DIRTY_LOG = 2;
        /// A watchpoint lies in this page.
        const WATCHED = 4;
    }
}

#[derive(Default)]
struct Page {
    bits: AtomicU8,
    /// Grows with every write to the page while it has CODE set.
    version: AtomicU32,
}

/// Guest RAM and its page states. Offsets are bytes from the start of RAM, not guest-physical addresses.
pub struct Ram {
    map: MmapRaw,
    size: u64,
    pages: Box<[Page]>,
    /// vCPUs that keep translated code, in the order of their numbers.
    listeners: Mutex<Vec<Listener>>,
    /// Pages that were written while they had DIRTY_LOG, which they lost by it.
    written: Mutex<Vec<u64>>,
    /// Groups of pages that the host was asked for, one bit each: `about_to_write`.
    asked: Box<[AtomicU64]>,
}

struct Listener {
    signals: Arc<VcpuSignals>,
    /// Code that the host wrote to, as (first, last) byte offsets; the vCPU drains it on `Events::CODE`.
    writes: Vec<(u64, u64)>,
}

/// Makes what is written through a `VolatileSlice` a host write: vm-memory's log of dirty ranges is told after each write.
#[derive(Clone)]
pub struct HostWrites {
    ram: Arc<Ram>,
    /// Offset of the slice in RAM.
    base: u64,
}

impl HostWrites {
    pub fn new(ram: Arc<Ram>, base: u64) -> Self {
        Self { ram, base }
    }
}

impl std::fmt::Debug for HostWrites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RAM at {:#x}", self.base)
    }
}

impl WithBitmapSlice<'_> for HostWrites {
    type S = Self;
}

impl BitmapSlice for HostWrites {}

impl Bitmap for HostWrites {
    fn mark_dirty(&self, offset: usize, len: usize) {
        if len > 0 {
            self.ram.written(self.base + offset as u64, len as u64);
        }
    }

    fn dirty_at(&self, _: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { ram: self.ram.clone(), base: self.base + offset as u64 }
    }
}

/// Bytes of a group of pages that are asked for together.
const AROUND: u64 = 64 << 10;

/// Code writes that may wait for a vCPU; beyond them all of RAM counts as written.
const MAX_WRITES: usize = 1024;

impl Ram {
    /// Maps `size` bytes (a multiple of the page size) of zeroes; pages cost host memory once touched.
    pub fn new(size: u64) -> io::Result<Self> {
        let len = usize::try_from(size).map_err(io::Error::other)?;
        let map = MmapOptions::new().len(len).no_reserve_swap().map_anon()?.into();
        let pages = Box::<[Page]>::new_zeroed_slice(len / PAGE_SIZE as usize);
        // SAFETY: all zeroes is what `Page::default` gives; zeroed memory costs nothing before it is touched.
        let pages = unsafe { pages.assume_init() };
        let words = size.div_ceil(64 * AROUND);
        let asked = (0..words).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { map, size, pages, asked, listeners: Mutex::default(), written: Mutex::default() })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// Base of the mapping, for TLB addends. Accesses through it must be atomic or by generated code, and must respect
    /// the page states.
    pub fn host_base(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        assert!(offset.checked_add(len as u64).is_some_and(|e| e <= self.size), "RAM offset out of range");
        // SAFETY: offset + len lies inside the mapping, checked above.
        unsafe { self.map.as_mut_ptr().add(offset as usize) }
    }

    /// Copies out of RAM. The range must lie inside RAM.
    pub fn read(&self, offset: u64, buf: &mut [u8]) {
        let p = self.at(offset, buf.len());
        // SAFETY: `at` checked the range; `buf` is ours alone and cannot overlap the mapping. A concurrent guest write
        // gives a torn value, as it would on hardware.
        unsafe { std::ptr::copy_nonoverlapping(p, buf.as_mut_ptr(), buf.len()) }
    }

    /// All of RAM may have been written, by an engine that does not look at page states.
    pub fn all_written(&self) {
        self.written(0, self.size);
    }

    /// The same of these pages (offset / 4096) alone; those outside RAM are none.
    pub fn pages_written(&self, pages: &[u64]) {
        let inside = |p: &&u64| **p < self.size / PAGE_SIZE;
        pages.iter().filter(inside).for_each(|p| self.written(p * PAGE_SIZE, PAGE_SIZE));
    }

    /// Every host write to RAM (loader, DMA, debugger, monitor) comes through here: translated code is told.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let p = self.at(offset, data.len());
        // SAFETY: as in `read`, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), p, data.len()) }
        self.written(offset, data.len() as u64);
    }

    /// Reads `len` bytes of a file from its byte `at` on into RAM. The range must lie inside RAM; part of it may be written when it fails,
    /// as it does where the file ends before.
    pub fn read_from(&self, offset: u64, mut file: &File, at: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let p = self.at(offset, len as usize);
        self.populate(offset, len);
        // SAFETY: `at` checked the range, and the mapping lives as long as the borrow. Nobody holds references into it.
        let mut slice = unsafe { VolatileSlice::with_bitmap(p, len as usize, (), None) };
        file.seek(SeekFrom::Start(at))?;
        let done = file.read_exact_volatile(&mut slice).map_err(io::Error::other);
        self.written(offset, len);
        done
    }

    /// A range of RAM for the crates of rust-vmm. The range must lie inside RAM. What is written by way of it counts as
    /// written by the host.
    pub fn volatile(self: &Arc<Self>, offset: u64, len: usize) -> VolatileSlice<'_, HostWrites> {
        let p = self.at(offset, len);
        // SAFETY: `at` checked the range, and the mapping lives as long as the borrow. Nobody holds references into it.
        unsafe { VolatileSlice::with_bitmap(p, len, HostWrites { ram: self.clone(), base: offset }, None) }
    }

    /// Asks the host for the pages of a range that is about to be written whole: one call instead of a fault for each. The
    /// content stays; a host that cannot do it does nothing.
    pub fn populate(&self, offset: u64, len: u64) {
        self.at(offset, len as usize);
        let _ = self.map.advise_range(memmap2::Advice::PopulateWrite, offset as usize, len as usize);
    }

    /// A guest that has not written to this page for a while is about to: asks the host, once for each group of pages, for all of it. Who
    /// uses one page will soon use its neighbours, and the call costs a part of what their faults would.
    pub fn about_to_write(&self, offset: u64) {
        let group = offset / AROUND;
        let (word, bit) = ((group / 64) as usize, 1 << (group % 64));
        let asked = |a: &AtomicU64| a.load(Ordering::Relaxed) & bit != 0 || a.fetch_or(bit, Ordering::Relaxed) & bit != 0;
        if offset < self.size && self.asked.get(word).is_some_and(|a| !asked(a)) {
            let start = group * AROUND;
            self.populate(start, AROUND.min(self.size - start));
        }
    }

    /// Asks the host to use large pages where they fit into a range that is about to be written whole.
    pub fn prefer_large_pages(&self, offset: u64, len: u64) {
        const LARGE: u64 = 2 << 20;
        let base = self.at(offset, len as usize) as u64 - offset;
        let start = (base + offset).next_multiple_of(LARGE) - base;
        let end = ((base + offset + len) / LARGE * LARGE).saturating_sub(base);
        if start < end {
            #[cfg(target_os = "linux")]
            let _ = self.map.advise_range(memmap2::Advice::HugePage, start as usize, (end - start) as usize);
        }
    }

    /// Sets a range to zero. Whole pages are given back to the host, so that zeroing what was never touched costs nothing.
    pub fn zero(&self, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let p = self.at(offset, len as usize);
        let whole = (offset.next_multiple_of(PAGE_SIZE), (offset + len) / PAGE_SIZE * PAGE_SIZE);
        let given_back = whole.0 < whole.1 && {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the range lies inside the mapping (`at` checked it), which is private and anonymous: its pages read
            // as zero from now on. Nobody holds a reference into guest RAM.
            unsafe { self.map.unchecked_advise_range(advice, whole.0 as usize, (whole.1 - whole.0) as usize) }.is_ok()
        };
        let (head, tail) = if given_back { (whole.0 - offset, offset + len - whole.1) } else { (len, 0) };
        // SAFETY: both parts lie in the range that `at` checked.
        unsafe {
            std::ptr::write_bytes(p, 0, head as usize);
            std::ptr::write_bytes(p.add((len - tail) as usize), 0, tail as usize);
        }
        self.written(offset, len);
    }

    /// Copies within RAM, as `memmove`. For pages without CODE: the caller holds a writable TLB entry.
    pub fn copy_within(&self, from: u64, to: u64, len: u64) {
        let (src, dst) = (self.at(from, len as usize), self.at(to, len as usize));
        // SAFETY: `at` checked both ranges; `copy` allows overlap.
        unsafe { std::ptr::copy(src, dst, len as usize) }
    }

    /// Writes bytes. For pages without CODE, as `copy_within`.
    pub fn store_bytes(&self, offset: u64, bytes: &[u8]) {
        let p = self.at(offset, bytes.len());
        // SAFETY: `at` checked the range, and the guest's memory is none of Rust's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), p, bytes.len()) }
    }

    /// Writes `count` copies of the low `size` (1, 2, 4, 8) bytes of `v`. For pages without CODE, as `copy_within`.
    pub fn fill(&self, offset: u64, size: u8, v: u64, count: u64) {
        let p = self.at(offset, usize::from(size) * count as usize);
        let n = count as usize;
        // SAFETY: `at` checked the range; the writes are unaligned-safe.
        unsafe {
            match size {
                1 => std::ptr::write_bytes(p, v as u8, n),
                2 => (0..n).for_each(|i| p.cast::<u16>().add(i).write_unaligned(v as u16)),
                4 => (0..n).for_each(|i| p.cast::<u32>().add(i).write_unaligned(v as u32)),
                _ => (0..n).for_each(|i| p.cast::<u64>().add(i).write_unaligned(v)),
            }
        }
    }

    /// Reads a little-endian value of `size` 1, 2, 4 or 8 bytes, in one access.
    pub fn read_uint(&self, offset: u64, size: u8) -> u64 {
        let p = self.at(offset, usize::from(size));
        // SAFETY: `at` checked the range; volatile as the guest may write meanwhile.
        unsafe {
            match size {
                1 => p.read_volatile().into(),
                2 => u16::from_le(p.cast::<u16>().read_unaligned()).into(),
                4 => u32::from_le(p.cast::<u32>().read_unaligned()).into(),
                _ => u64::from_le(p.cast::<u64>().read_unaligned()),
            }
        }
    }

    /// As `store_uint`, for the host: translated code is told, as by `write`.
    pub fn write_uint(&self, offset: u64, size: u8, v: u64) {
        self.store_uint(offset, size, v);
        self.written(offset, size.into());
    }

    /// Writes the low `size` bytes of `v`, little-endian, in one access. For vCPUs, which look after code themselves.
    pub fn store_uint(&self, offset: u64, size: u8, v: u64) {
        let p = self.at(offset, usize::from(size));
        // SAFETY: `at` checked the range.
        unsafe {
            match size {
                1 => p.write_volatile(v as u8),
                2 => p.cast::<u16>().write_unaligned((v as u16).to_le()),
                4 => p.cast::<u32>().write_unaligned((v as u32).to_le()),
                _ => p.cast::<u64>().write_unaligned(v.to_le()),
            }
        }
    }

    /// Atomic compare-and-swap of an aligned u64 (page-table entries). `false` if it did not hold `old`.
    pub fn cas_u64(&self, offset: u64, old: u64, new: u64) -> bool {
        assert!(offset.is_multiple_of(8));
        let p = self.at(offset, 8).cast::<u64>();
        // SAFETY: in range and aligned; the mapping lives as long as `self`.
        let a = unsafe { AtomicU64::from_ptr(p) };
        let done = a.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if done && old != new {
            self.written(offset, 8);
        }
        done
    }

    pub fn cas_u32(&self, offset: u64, old: u32, new: u32) -> bool {
        assert!(offset.is_multiple_of(4));
        let p = self.at(offset, 4).cast::<u32>();
        // SAFETY: in range and aligned; the mapping lives as long as `self`.
        let a = unsafe { AtomicU32::from_ptr(p) };
        let done = a.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).is_ok();
        if done && old != new {
            self.written(offset, 4);
        }
        done
    }

    /// Bumps versions and queues the invalidation for every page of the range that holds translated code.
    fn written(&self, offset: u64, len: u64) {
        let (first, last) = (offset, offset + len.max(1) - 1);
        let mut hit = false;
        for page in first / PAGE_SIZE..=last / PAGE_SIZE {
            let bits = self.page_bits(page);
            if bits.contains(PageBits::CODE) {
                self.bump_version(page);
                hit = true;
            }
            if bits.contains(PageBits::DIRTY_LOG) {
                self.note_write(page);
            }
        }
        if hit {
            for l in self.listeners.lock().iter_mut() {
                if l.writes.len() >= MAX_WRITES {
                    l.writes = vec![(0, self.size - 1)];
                } else {
                    l.writes.push((first, last));
                }
                l.signals.raise(Events::CODE);
            }
        }
    }

    /// Byte ranges (inclusive) of code that the host wrote to since vCPU `index` asked last.
    pub fn take_code_writes(&self, index: usize) -> Vec<(u64, u64)> {
        self.listeners.lock().get_mut(index).map(|l| std::mem::take(&mut l.writes)).unwrap_or_default()
    }

    /// The next vCPU that keeps translated code; it is told by `Events::CODE`.
    pub fn add_listener(&self, signals: Arc<VcpuSignals>) {
        self.listeners.lock().push(Listener { signals, writes: Vec::new() });
    }

    /// A page with DIRTY_LOG is about to be written, or has been.
    pub fn note_write(&self, page: u64) {
        self.clear_page_bits(page, PageBits::DIRTY_LOG);
        self.written.lock().push(page);
    }

    /// Begins a log of written pages. Engines must drop what they keep for writing.
    pub fn log_writes(&self) {
        (0..self.pages.len() as u64).for_each(|p| self.set_page_bits(p, PageBits::DIRTY_LOG));
    }

    /// Pages written since the log began, or was last taken. Engines must drop what they keep for writing.
    pub fn take_written(&self) -> Vec<u64> {
        let pages = std::mem::take(&mut *self.written.lock());
        pages.iter().for_each(|p| self.set_page_bits(*p, PageBits::DIRTY_LOG));
        pages
    }

    /// State of page number `page` (offset / 4096).
    pub fn page_bits(&self, page: u64) -> PageBits {
        PageBits::from_bits_truncate(self.pages[page as usize].bits.load(Ordering::SeqCst))
    }

    pub fn set_page_bits(&self, page: u64, bits: PageBits) {
        self.pages[page as usize].bits.fetch_or(bits.bits(), Ordering::SeqCst);
    }

    pub fn clear_page_bits(&self, page: u64, bits: PageBits) {
        self.pages[page as usize].bits.fetch_and(!bits.bits(), Ordering::SeqCst);
    }

    /// Version of the page's content; compare before publishing a translation made from it.
    pub fn version(&self, page: u64) -> u32 {
        self.pages[page as usize].version.load(Ordering::SeqCst)
    }

    pub fn bump_version(&self, page: u64) {
        self.pages[page as usize].version.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_for_pages_changes_none_of_them() {
        let ram = Ram::new(AROUND + 3 * PAGE_SIZE).unwrap();
        let (last, end) = (AROUND + PAGE_SIZE, AROUND + 3 * PAGE_SIZE);
        ram.write(0x1ffe, &[1, 2, 3, 4]);
        ram.write(last, &[5]);
        [0, 0x1fff, AROUND - 1, last, end - 1, end, u64::MAX, 0].into_iter().for_each(|at| ram.about_to_write(at));
        let mut all = vec![0xff; end as usize];
        ram.read(0, &mut all);
        let set: Vec<(usize, u8)> = all.into_iter().enumerate().filter(|(_, b)| *b != 0).collect();
        assert_eq!(set, [(0x1ffe, 1), (0x1fff, 2), (0x2000, 3), (0x2001, 4), (last as usize, 5)]);
        let asked: Vec<u64> = ram.asked.iter().map(|a| a.load(Ordering::Relaxed)).collect();
        assert_eq!(asked, [0b11]);
    }

    #[test]
    fn host_writes_to_code_pages_bump_versions_and_tell_listeners() {
        let ram = Ram::new(4 * PAGE_SIZE).unwrap();
        let s = Arc::new(VcpuSignals::default());
        ram.add_listener(s.clone());
        ram.write(0x1ffe, &[1, 2, 3, 4]);
        assert!(s.pending().is_empty());
        ram.set_page_bits(2, PageBits::CODE);
        ram.write(0x1ffe, &[1, 2, 3, 4]);
        assert_eq!((ram.version(1), ram.version(2)), (0, 1));
        assert_eq!(s.pending(), Events::CODE);
        assert_eq!(ram.take_code_writes(0), [(0x1ffe, 0x2001)]);
        assert_eq!(ram.read_uint(0x1ffe, 4), 0x0403_0201);
    }

    #[test]
    fn zeroing_clears_the_range_and_no_more() {
        let ram = Ram::new(5 * PAGE_SIZE).unwrap();
        for (from, to) in [(0x800, 0x4800), (0x1000, 0x3000), (0x10, 0x20), (0xff8, 0x1008), (0, 0x5000), (7, 7)] {
            ram.write(0, &[0xaa; 5 * PAGE_SIZE as usize]);
            ram.zero(from, to - from);
            let mut all = [0; 5 * PAGE_SIZE as usize];
            ram.read(0, &mut all);
            let wrong = (0..).zip(all).find(|(i, b)| (*b == 0) != (from..to).contains(i));
            assert_eq!(wrong, None, "{from:#x}..{to:#x}");
        }
    }

    #[test]
    #[should_panic(expected = "out of range")]
    fn accesses_beyond_the_end_never_reach_memory() {
        Ram::new(PAGE_SIZE).unwrap().read_uint(PAGE_SIZE - 4, 8);
    }
}
