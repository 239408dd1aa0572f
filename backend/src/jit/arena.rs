//! Memory for generated code: one region of memory mapped twice, writable and executable, so that no page is ever both.
//! Ranges are freed one by one and used again.
//!
//! UNSAFE: writes through the writable mapping; `Arena` hands out disjoint ranges.
#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use std::collections::BTreeMap;
use std::io;

/// Address space for generated code; host memory is used as it is touched.
const SIZE: usize = 128 << 20;
const ALIGN: usize = 16;

pub struct Arena {
    rw: MmapRaw,
    rx: memmap2::Mmap,
    /// Free ranges: offset to length.
    free: BTreeMap<usize, usize>,
    used: usize,
}

/// A range of the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub offset: usize,
    pub len: usize,
}

impl Arena {
    pub fn new() -> io::Result<Self> {
        let fd = rustix::fs::memfd_create("rhea-code", rustix::fs::MemfdFlags::CLOEXEC)?;
        let file = std::fs::File::from(fd);
        file.set_len(SIZE as u64)?;
        let rw = MmapOptions::new().len(SIZE).map_raw(&file)?;
        // SAFETY: the file is ours alone and is never truncated.
        let rx = unsafe { MmapOptions::new().len(SIZE).map_exec(&file)? };
        Ok(Self { rw, rx, free: BTreeMap::from([(0, SIZE)]), used: 0 })
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Copies code in; `None` when there is no room.
    pub fn place(&mut self, code: &[u8]) -> Option<Range> {
        let len = code.len().next_multiple_of(ALIGN).max(ALIGN);
        let (&offset, &have) = self.free.iter().find(|(_, l)| **l >= len)?;
        self.free.remove(&offset);
        if have > len {
            self.free.insert(offset + len, have - len);
        }
        self.used += len;
        // SAFETY: the range lies in the mapping and was free, so nobody executes or reads it.
        unsafe { std::ptr::copy_nonoverlapping(code.as_ptr(), self.rw.as_mut_ptr().add(offset), code.len()) }
        Some(Range { offset, len })
    }

    /// Points the rel32 that ends at arena offset `end` at the address `target` in the arena.
    pub fn point(&mut self, end: usize, target: u64) {
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
        self.used -= r.len;
        let (mut offset, mut len) = (r.offset, r.len);
        if let Some((&before, &l)) = self.free.range(..offset).next_back()
            && before + l == offset
        {
            self.free.remove(&before);
            (offset, len) = (before, len + l);
        }
        if let Some(l) = self.free.remove(&(offset + len)) {
            len += l;
        }
        self.free.insert(offset, len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_ranges_join_and_are_used_again() {
        let mut a = Arena::new().unwrap();
        let r: Vec<Range> = (0..3).map(|_| a.place(&[0xc3; 100]).unwrap()).collect();
        assert_eq!(r[1].offset, 112);
        for i in [0, 2, 1] {
            a.release(r[i]);
        }
        assert_eq!((a.used(), a.free.len()), (0, 1));
        assert!(a.place(&vec![0; SIZE + 1]).is_none());
        assert_eq!(a.place(&[1; 16]).unwrap().offset, 0);
    }
}
