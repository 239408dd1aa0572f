//! Memory for generated code: one region of memory mapped twice, writable and executable, so that no page is ever both.
//! Ranges are freed one by one and used again.
//!
//! Each range has a hot and a cold part, `COLD` bytes apart: slow paths are half of what is generated and hardly ever run, and
//! big guests run more code than the host's caches hold.
//!
//! UNSAFE: writes through the writable mapping; `Arena` hands out disjoint ranges.
#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// Address space for generated code; host memory is used as it is touched.
const SIZE: usize = 256 << 20;
const ALIGN: usize = 16;

/// From the first byte of a range to the first of its cold part.
pub const COLD: usize = SIZE / 2;

/// Generated code in two parts. In offsets within the code the cold part begins at `COLD`.
#[derive(Clone, Copy)]
pub struct HostCode<'a> {
    pub hot: &'a [u8],
    pub cold: &'a [u8],
}

impl HostCode<'_> {
    pub fn len(&self) -> usize {
        self.hot.len() + self.cold.len()
    }
}

pub struct Arena {
    rw: MmapRaw,
    rx: memmap2::Mmap,
    free: Free,
    used: usize,
}

/// A range of the arena, in both parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    offset: usize,
    /// Bytes in each part.
    len: usize,
    /// Bytes that both hold.
    filled: usize,
}

/// Free ranges.
struct Free {
    /// Offset to length.
    at: BTreeMap<usize, usize>,
    /// (length, offset).
    by_length: BTreeSet<(usize, usize)>,
}

impl Free {
    fn add(&mut self, offset: usize, len: usize) {
        self.at.insert(offset, len);
        self.by_length.insert((len, offset));
    }

    fn remove(&mut self, offset: usize) -> Option<usize> {
        let len = self.at.remove(&offset)?;
        self.by_length.remove(&(len, offset));
        Some(len)
    }

    /// The offset of `len` bytes out of the smallest range that has them.
    fn take(&mut self, len: usize) -> Option<usize> {
        let &(have, offset) = self.by_length.range((len, 0)..).next()?;
        self.remove(offset);
        if have > len {
            self.add(offset + len, have - len);
        }
        Some(offset)
    }

    /// Gives a range back, joined with its neighbours.
    fn give(&mut self, mut offset: usize, mut len: usize) {
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
        let file = std::fs::File::from(fd);
        file.set_len(SIZE as u64)?;
        let rw = MmapOptions::new().len(SIZE).map_raw(&file)?;
        // SAFETY: the file is ours alone and is never truncated.
        let rx = unsafe { MmapOptions::new().len(SIZE).map_exec(&file)? };
        let free = Free { at: BTreeMap::from([(0, COLD)]), by_length: BTreeSet::from([(COLD, 0)]) };
        Ok(Self { rw, rx, free, used: 0 })
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Copies code in; `None` when there is no room.
    pub fn place(&mut self, code: HostCode<'_>) -> Option<Range> {
        let len = code.hot.len().max(code.cold.len()).next_multiple_of(ALIGN).max(ALIGN);
        let offset = self.free.take(len)?;
        self.used += code.len();
        // SAFETY: the range lies in each half of the mapping and was free, so nobody executes or reads it.
        unsafe {
            let p = self.rw.as_mut_ptr().add(offset);
            std::ptr::copy_nonoverlapping(code.hot.as_ptr(), p, code.hot.len());
            std::ptr::copy_nonoverlapping(code.cold.as_ptr(), p.add(COLD), code.cold.len());
        }
        Some(Range { offset, len, filled: code.len() })
    }

    /// Points the rel32 that ends at offset `end` of the range at the address `target` in the arena.
    pub fn point(&mut self, r: Range, end: usize, target: u64) {
        let end = r.offset + end;
        let rel = target.wrapping_sub(self.rx.as_ptr() as u64 + end as u64) as i32;
        assert!((4..=SIZE).contains(&end));
        // SAFETY: inside the mapping; only the thread that runs the code changes it, so no other fetches it meanwhile.
        unsafe { self.rw.as_mut_ptr().add(end - 4).cast::<i32>().write_unaligned(rel) }
    }

    /// Address at which the range executes.
    pub fn address(&self, r: Range) -> u64 {
        self.rx.as_ptr() as u64 + r.offset as u64
    }

    /// Frees a range that nothing can enter or is in.
    pub fn release(&mut self, r: Range) {
        self.used -= r.filled;
        self.free.give(r.offset, r.len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_ranges_join_and_are_used_again() {
        let mut a = Arena::new().unwrap();
        let hot = |hot| HostCode { hot, cold: &[] };
        let r: Vec<Range> = (0..3).map(|_| a.place(hot(&[0xc3; 100])).unwrap()).collect();
        assert_eq!(r[1].offset, 112);
        for i in [0, 2, 1] {
            a.release(r[i]);
        }
        assert_eq!((a.used(), a.free.at.len()), (0, 1));
        assert!(a.place(hot(&vec![0; COLD + 1])).is_none());
        let r = a.place(HostCode { hot: &[1; 16], cold: &[2; 24] }).unwrap();
        assert_eq!((r.offset, r.len, a.used()), (0, 32, 40));
        // SAFETY: both parts are in the mapping.
        let byte = |at: usize| unsafe { *a.rx.as_ptr().add(at) };
        assert_eq!((byte(15), byte(16), byte(COLD + 23)), (1, 0xc3, 2));
    }
}
