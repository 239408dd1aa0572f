//! What a guest architecture supplies to any engine.

use crate::block::Block;
use crate::layout::{HelperDesc, StateLayout};

/// Everything that a translation depends on: where its bytes lie and the mode. The virtual address is no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// Offset in guest RAM of the first byte.
    pub phys: u64,
    /// `GuestCpu::mode` bits; all that a translator may read of the CPU.
    pub mode: u64,
}

/// Branches at most that a block goes on behind.
pub const SIDES: usize = 4;

/// The way that a block takes where it goes on behind branches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Path {
    /// Page offset of a branch, and of the instruction that follows: the target, or the next one.
    ways: [(u16, u16); SIDES],
    len: u8,
}

impl Path {
    /// Where the block goes on behind the branch at a page offset; `None`: nowhere.
    pub fn behind(&self, branch: u32) -> Option<u32> {
        let known = &self.ways[..usize::from(self.len)];
        known.iter().find(|(at, _)| u32::from(*at) == branch).map(|(_, to)| u32::from(*to))
    }

    /// From the branch at a page offset on to another, further behind. `false`: it has as many as it can.
    pub fn push(&mut self, branch: u32, to: u32) -> bool {
        debug_assert!(branch < to && to < 4096);
        let free = self.ways.get_mut(usize::from(self.len));
        self.len += u8::from(free.is_some());
        free.map(|way| *way = (branch as u16, to as u16)).is_some()
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Ranges of source bytes that are apart at most: see `Changing`.
const RANGES: usize = 8;

/// Source bytes that change again and again while those around them stay: ranges of page offsets, apart and in no order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changing {
    ranges: [(u16, u16); RANGES],
    len: u8,
}

impl Changing {
    /// Adds bytes, to those that they meet or touch if they do. `false`: there are too many ranges.
    pub fn add(&mut self, from: u16, to: u16) -> bool {
        let (mut from, mut to, mut n) = (from, to, 0);
        while let Some(&(f, t)) = self.ranges().get(n) {
            if f <= to && from <= t {
                (from, to) = (from.min(f), to.max(t));
                self.len -= 1;
                self.ranges[n] = self.ranges[usize::from(self.len)];
                n = 0;
            } else {
                n += 1;
            }
        }
        let free = self.ranges.get_mut(usize::from(self.len));
        self.len += u8::from(free.is_some());
        free.map(|r| *r = (from, to)).is_some()
    }

    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.ranges[..usize::from(self.len)]
    }

    /// Whether any of the bytes changes.
    pub fn meets(&self, from: u16, to: u16) -> bool {
        self.ranges().iter().any(|(f, t)| *f < to && from < *t)
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Source bytes of a block.
pub trait CodeFetch {
    type Fault;
    /// The page that holds the first byte.
    fn page(&self) -> &[u8; 4096];
    /// The virtually next page; asked for only if the first instruction straddles the boundary.
    fn next_page(&mut self) -> Result<&[u8; 4096], Self::Fault>;
    /// What `StateLayout::guessed` will probably hold where the block begins. Translations may rely on it behind a `LeaveIf`.
    fn guess(&self) -> Option<u32> {
        None
    }
    /// Bytes that a translation had better hold no copy of: immediates of them may be read when it runs (`Op::Source`).
    fn changing(&self) -> Changing {
        Changing::default()
    }
    /// Branches that the block goes on behind.
    fn path(&self) -> Path {
        Path::default()
    }
}

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslateError<F> {
    /// Fetching the second page of a straddling first instruction faulted.
    Fetch(F),
}

/// A guest architecture's translator.
pub trait Frontend: Send + Sync + 'static {
    fn layout(&self) -> &StateLayout;
    fn helpers(&self) -> &[HelperDesc];
    /// Translates from page offset `start`, at most `max_insns` instructions, within one page, into `out` (cleared first).
    /// Never fails for bytes that are no instruction: the block then raises the guest's exception.
    fn translate<C: CodeFetch>(
        &self,
        mode: u64,
        start: u32,
        max_insns: u32,
        code: &mut C,
        out: &mut Block,
    ) -> Result<(), TranslateError<C::Fault>>;
    /// One line of assembly for the instruction at the start of `bytes`, and its length (at least 1).
    fn disassemble(&self, mode: u64, pc: u64, bytes: &[u8]) -> (String, usize);
}
