//! Memory for generated code: one region of memory mapped twice, writable and executable, so that no page is ever both.
//! Ranges are freed one by one and used again.
//!
//! Each range has a hot and a cold part, in halves of the region of their own: slow paths are more than half of what is generated and
//! hardly ever run, and big guests run more code than the host's caches hold. Halves that fill get large pages from the host, where it has
//! them: such guests run more code than its TLB covers, too.
//!
//! UNSAFE: maps the region twice; writes through the writable mapping; `Arena` hands out disjoint ranges.
#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::{MapFlags, ProtFlags};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;

/// Address space for generated code; host memory is used as it is touched.
const SIZE: usize = 256 << 20;
const ALIGN: usize = 16;

/// Offset of the cold half. In offsets within code its cold part begins there, too.
pub const COLD: usize = SIZE / 2;

/// Generated code in two parts.
#[derive(Clone, Copy, Default)]
pub struct HostCode<'a> {
    pub hot: &'a [u8],
    pub cold: &'a [u8],
    /// Where the rel32s end that lead from one part to the other, as if they were `COLD` bytes apart.
    pub crossing: &'a [u32],
}

impl HostCode<'_> {
    pub fn len(&self) -> usize {
        self.hot.len() + self.cold.len()
    }
}

/// Bytes of a large page (SDM 3A "4-Level Paging": 2 MiB), and how much of one is used before it is asked for: small guests do with less.
const LARGE: usize = 2 << 20;
const ASK: usize = LARGE / 8;

/// The region as it is mapped once, where a large page begins.
struct Mapping {
    /// Address space that the mapping lies in and goes with.
    _reserved: MmapRaw,
    base: *mut u8,
}

// SAFETY: it is memory that whoever has the `Mapping` owns.
unsafe impl Send for Mapping {}
// SAFETY: as above; `base` alone says nothing of what is there.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(file: &File, prot: ProtFlags) -> io::Result<Self> {
        let reserved = MmapRaw::from(MmapOptions::new().len(SIZE + LARGE).no_reserve_swap().map_anon()?);
        let at = reserved.as_mut_ptr();
        // SAFETY: the region fits behind the first large page that begins in what is reserved.
        let base = unsafe { at.add(at.align_offset(LARGE)) };
        // SAFETY: what is replaced was just reserved, and nobody knows of it. The file is ours alone and is never truncated.
        unsafe { rustix::mm::mmap(base.cast(), SIZE, prot, MapFlags::SHARED | MapFlags::FIXED, file, 0)? };
        Ok(Self { _reserved: reserved, base })
    }
}

/// What has large pages: so many bytes of each half have been asked for.
#[derive(Default)]
struct Asked {
    hot: usize,
    cold: usize,
}

pub struct Arena {
    rw: Mapping,
    rx: Mapping,
    asked: Asked,
    free_hot: Free,
    free_cold: Free,
    used: usize,
}

/// A range of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    hot: Part,
    cold: Part,
    /// Bytes that both hold.
    filled: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    offset: usize,
    len: usize,
}

impl Range {
    /// Offset in the arena of what is at `offset` of the code.
    fn place_of(&self, offset: usize) -> usize {
        if offset < COLD { self.hot.offset + offset } else { self.cold.offset + offset - COLD }
    }
}

/// Free ranges.
struct Free {
    /// Offset to length.
    at: BTreeMap<usize, usize>,
    /// (length, offset).
    by_length: BTreeSet<(usize, usize)>,
    /// Ranges that were just given back, by length in `ALIGN`s: who writes code anew wants the same again.
    recent: Vec<Vec<usize>>,
    /// Bytes in `recent`.
    waiting: usize,
}

/// Lengths in `ALIGN`s that `Free::recent` has lists for, and bytes that may wait there.
const LENGTHS: usize = 256;
const MOST_WAITING: usize = 256 << 10;

impl Free {
    /// Half of the arena.
    fn half(offset: usize) -> Self {
        Self {
            at: BTreeMap::from([(offset, COLD)]),
            by_length: BTreeSet::from([(COLD, offset)]),
            recent: vec![Vec::new(); LENGTHS],
            waiting: 0,
        }
    }

    fn add(&mut self, offset: usize, len: usize) {
        self.at.insert(offset, len);
        self.by_length.insert((len, offset));
    }

    fn remove(&mut self, offset: usize) -> Option<usize> {
        let len = self.at.remove(&offset)?;
        self.by_length.remove(&(len, offset));
        Some(len)
    }

    /// Room for so many bytes.
    fn take(&mut self, bytes: usize) -> Option<Part> {
        let len = bytes.next_multiple_of(ALIGN).max(ALIGN);
        if let Some(offset) = self.recent.get_mut(len / ALIGN).and_then(Vec::pop) {
            self.waiting -= len;
            return Some(Part { offset, len });
        }
        self.take_smallest(len).or_else(|| {
            self.settle();
            self.take_smallest(len)
        })
    }

    /// Out of the smallest range that has as much.
    fn take_smallest(&mut self, len: usize) -> Option<Part> {
        let &(have, offset) = self.by_length.range((len, 0)..).next()?;
        self.remove(offset);
        if have > len {
            self.add(offset + len, have - len);
        }
        Some(Part { offset, len })
    }

    /// Gives a range back.
    fn give(&mut self, p: Part) {
        match self.recent.get_mut(p.len / ALIGN) {
            Some(list) => list.push(p.offset),
            None => return self.join(p),
        }
        self.waiting += p.len;
        if self.waiting > MOST_WAITING {
            self.settle();
        }
    }

    /// Joins what waits with its neighbours.
    fn settle(&mut self) {
        self.waiting = 0;
        for n in 0..LENGTHS {
            while let Some(offset) = self.recent[n].pop() {
                self.join(Part { offset, len: n * ALIGN });
            }
        }
    }

    /// Gives a range back, joined with its neighbours.
    fn join(&mut self, Part { mut offset, mut len }: Part) {
        if let Some((&before, &l)) = self.at.range(..offset).next_back()
            && before + l == offset
        {
            self.remove(before);
            (offset, len) = (before, len + l);
        }
        if let Some(l) = self.remove(offset + len) {
            len += l;
        }
        self.add(offset, len);
    }
}

impl Arena {
    pub fn new() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("rhea-code", rustix::fs::MemfdFlags::CLOEXEC)?;
        let file = File::from(fd);
        file.set_len(SIZE as u64)?;
        let rw = Mapping::new(&file, ProtFlags::READ | ProtFlags::WRITE)?;
        let rx = Mapping::new(&file, ProtFlags::READ | ProtFlags::EXEC)?;
        Ok(Self { rw, rx, asked: Asked::default(), free_hot: Free::half(0), free_cold: Free::half(COLD), used: 0 })
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Copies code in; `None` when there is no room.
    pub fn place(&mut self, code: HostCode<'_>) -> Option<Range> {
        let hot = self.free_hot.take(code.hot.len())?;
        let Some(cold) = self.free_cold.take(code.cold.len()) else {
            self.free_hot.give(hot);
            return None;
        };
        let range = Range { hot, cold, filled: code.len() };
        self.used += range.filled;
        self.asked.hot = self.ask(0, self.asked.hot, hot);
        self.asked.cold = self.ask(COLD, self.asked.cold, cold);
        // SAFETY: both parts lie in the mapping and were free, so nobody executes or reads them.
        unsafe {
            let p = self.rw.base;
            std::ptr::copy_nonoverlapping(code.hot.as_ptr(), p.add(hot.offset), code.hot.len());
            std::ptr::copy_nonoverlapping(code.cold.as_ptr(), p.add(cold.offset), code.cold.len());
        }
        let apart = (cold.offset - COLD) as i32 - hot.offset as i32;
        for end in code.crossing.iter().map(|e| *e as usize) {
            let rel = self.rel32(range.place_of(end));
            // SAFETY: `rel32` gives what is inside the mapping, in the range that nobody executes yet.
            unsafe { rel.write_unaligned(rel.read_unaligned().wrapping_add(if end < COLD { apart } else { -apart })) }
        }
        Some(range)
    }

    /// Asks the host for large pages up to a part that is about to be written, of the half that begins at `half`; so many bytes of it have
    /// been asked for. Hosts that have none do nothing (madvise(2): MADV_COLLAPSE, Linux 6.1).
    fn ask(&self, half: usize, mut asked: usize, p: Part) -> usize {
        while asked < COLD && half + asked + ASK <= p.offset + p.len {
            // SAFETY: a large page inside the mapping, whose content stays.
            #[cfg(target_os = "linux")]
            let _ = unsafe { libc::madvise(self.rw.base.add(half + asked).cast(), LARGE, libc::MADV_COLLAPSE) };
            asked += LARGE;
        }
        asked
    }

    /// The rel32 that ends at an offset in the arena.
    fn rel32(&mut self, end: usize) -> *mut i32 {
        assert!((4..=SIZE).contains(&end));
        // SAFETY: inside the mapping.
        unsafe { self.rw.base.add(end - 4).cast() }
    }

    /// Points the rel32 that ends at offset `end` of the range's code at the address `target` in the arena.
    pub fn point(&mut self, r: Range, end: usize, target: u64) {
        let rel = target.wrapping_sub(self.address_of(r, end)) as i32;
        let at = self.rel32(r.place_of(end));
        // SAFETY: inside the mapping; only the thread that runs the code changes it, so no other fetches it meanwhile.
        unsafe { at.write_unaligned(rel) }
    }

    /// Address at which the range executes.
    pub fn address(&self, r: Range) -> u64 {
        self.address_of(r, 0)
    }

    /// The same of what is at an offset of its code.
    pub fn address_of(&self, r: Range, offset: usize) -> u64 {
        self.rx.base as u64 + r.place_of(offset) as u64
    }

    /// Frees a range that nothing can enter or is in.
    pub fn release(&mut self, r: Range) {
        self.used -= r.filled;
        self.free_hot.give(r.hot);
        self.free_cold.give(r.cold);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_ranges_join_and_are_used_again() {
        let mut a = Arena::new().unwrap();
        let hot = |hot| HostCode { hot, ..HostCode::default() };
        let r: Vec<Range> = (0..3).map(|_| a.place(hot(&[0xc3; 100])).unwrap()).collect();
        assert_eq!((r[1].hot.offset, r[1].cold.offset), (112, COLD + 16));
        for i in [0, 2, 1] {
            a.release(r[i]);
        }
        // The last to be given back is the first to be used.
        let again = a.place(hot(&[0xc3; 110])).unwrap();
        assert_eq!(again, Range { filled: 110, ..r[1] });
        a.release(again);
        assert_eq!((a.used(), a.free_hot.waiting, a.free_cold.waiting), (0, 3 * 112, 3 * 16));
        a.free_hot.settle();
        a.free_cold.settle();
        assert_eq!((a.free_hot.at.len(), a.free_cold.at.len()), (1, 1));
        assert!(a.place(hot(&vec![0; COLD + 1])).is_none());
        assert!(a.place(HostCode { hot: &[0; 16], cold: &vec![0; COLD + 1], crossing: &[] }).is_none());
        let r = a.place(HostCode { hot: &[1; 16], cold: &[2; 24], crossing: &[] }).unwrap();
        assert_eq!((r.hot, r.cold, a.used()), (Part { offset: 0, len: 16 }, Part { offset: COLD, len: 32 }, 40));
        // SAFETY: both parts are in the mapping.
        let byte = |at: usize| unsafe { *a.rx.base.add(at) };
        assert_eq!((byte(15), byte(16), byte(COLD + 23)), (1, 0xc3, 2));
    }

    #[test]
    fn what_leads_to_the_other_part_does_so_wherever_they_are() {
        let mut a = Arena::new().unwrap();
        a.place(HostCode { hot: &[0; 100], ..HostCode::default() }).unwrap();
        // A jump from the end of the hot part to the cold part's first byte, and one from there to the hot part's.
        let to_cold = (COLD as i32 - 5).to_le_bytes();
        let to_hot = (-(COLD as i32) - 5).to_le_bytes();
        let (mut hot, mut cold) = (vec![0xe9], vec![0xe9]);
        hot.extend(to_cold);
        cold.extend(to_hot);
        let r = a.place(HostCode { hot: &hot, cold: &cold, crossing: &[5, COLD as u32 + 5] }).unwrap();
        let target = |a: &mut Arena, end: usize| {
            let at = a.rel32(r.place_of(end));
            // SAFETY: it is inside the mapping.
            a.address_of(r, end).wrapping_add_signed(unsafe { at.read_unaligned() }.into())
        };
        assert_eq!(target(&mut a, 5), a.address_of(r, COLD));
        assert_eq!(target(&mut a, COLD + 5), a.address(r));
        a.point(r, COLD + 5, a.address_of(r, COLD));
        assert_eq!(target(&mut a, COLD + 5), a.address_of(r, COLD));
    }
}
