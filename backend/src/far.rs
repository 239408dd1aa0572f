//! Links from block to block of tier 1 across pages. The code that an edge leads to is known by its place in RAM, so such a link
//! holds only while the target's page is mapped as it was: as long as the source runs at the same address and nothing
//! has changed in the address space. Both are one word, the link's key, which generated code compares.
//!
//! An address space has a number, in bits that such addresses of pages do not need, so that no two pairs make the same key. It
//! changes whenever mappings may have; pages that are global keep theirs when the guest goes to another address space.
//!
//! A block that straddles two pages has such a key for itself.
//!
//! Keys lie beside each other (`Engine::keys`), where generated code reaches them without an address in a register: those of neighbours in one
//! line of the host's cache.
//!
//! UNSAFE: reads the records of a link that is being made; keys are written through their addresses, which live as long as the engine.
#![allow(unsafe_code)]

use crate::cache::Record;
use crate::pages::PageSet;
use crate::vblock::VcpuBlock;
use std::mem::offset_of;
use vm_core::guest::GuestCpu;
use vm_core::{Access, Va};

/// Key that no address space has.
const NEVER: u64 = u64::MAX;
/// `Far::code`: do not ask for a link again.
const REFUSED: u64 = 1;

/// How many links there may be.
pub const KEYS: usize = 1 << 17;

/// The place of a link's key: program counter of the source's page, and the space in which the link holds.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    at: *mut u64,
    /// Index in `Engine::keys`.
    pub number: u32,
}

impl Key {
    pub const NONE: Key = Key { at: std::ptr::null_mut(), number: 0 };
    /// Offset of the address.
    pub const AT: usize = offset_of!(Self, at);

    #[cfg(test)]
    pub fn of_nobody() -> Self {
        Key { at: Box::leak(Box::new(0)), number: 0 }
    }
}

/// Which places are free.
#[derive(Default)]
pub struct Keys {
    free: Vec<u32>,
    /// None from here on has been taken.
    next: u32,
}

impl Keys {
    /// Whether there are so many.
    pub fn have(&self, n: usize) -> bool {
        self.free.len() + KEYS - self.next as usize >= n
    }

    /// A place in `keys`, of which there must be one.
    pub fn take(&mut self, keys: &mut [u64; KEYS]) -> Key {
        let number = self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        Key { at: &raw mut keys[number as usize], number }
    }

    pub fn give(&mut self, key: Key) {
        self.free.push(key.number);
    }
}

/// An edge that leaves the page, as its code sees it.
#[repr(C)]
#[derive(Debug)]
pub struct Far {
    pub key: Key,
    /// Full entry of the target if the code may renew the key by itself once the jump cache has led there; 0: it may not.
    pub code: u64,
    pub record: *mut Record,
    pub edge: u32,
    /// From the source's page to the target's, in bytes.
    pub delta: i32,
    /// The key is of the space of global pages.
    pub global: bool,
    /// The key is of 64-bit code.
    pub wide: bool,
}

impl Far {
    /// `key`: a place that nothing else has.
    pub fn new(key: Key, record: *mut Record, edge: u32, delta: i32, global: bool, wide: bool) -> Box<Self> {
        let mut far = Box::new(Self { key, code: 0, record, edge, delta, global, wide });
        far.let_go();
        far
    }

    pub fn hold(&mut self, key: u64, code: u64) {
        // SAFETY: the engine lives as long as its records and their links, and no other link has this place.
        unsafe { self.key.at.write(key) };
        self.code = code;
    }

    #[cfg(test)]
    pub fn held(&self) -> u64 {
        // SAFETY: as in `hold`.
        unsafe { self.key.at.read() }
    }

    /// The target's code is elsewhere now; the link leads there.
    pub fn follow(&mut self, code: u64) {
        if self.code > REFUSED {
            self.code = code;
        }
    }

    pub fn let_go(&mut self) {
        self.hold(NEVER, 0);
    }

    pub fn refuse(&mut self) {
        self.hold(NEVER, REFUSED);
    }
}

/// The number of an address space as keys hold it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// For 64-bit code, whose pages have addresses of 57 bits at most, with zeros in bits 11:0: in bits 63:57 and 11:0.
    pub wide: u64,
    /// For other code, whose addresses have 32 bits, extended by their sign where a segment begins within a page: in bits 63:40.
    pub narrow: u64,
}

impl Space {
    pub const FIRST: Space = Space::numbered(1);
    /// The numbers after it could make a key of `NEVER`.
    const LAST: u64 = 0xffe << 7;

    const fn numbered(n: u64) -> Self {
        Self { wide: (n & 0x7f) << 57 | n >> 7, narrow: n << 40 }
    }

    pub fn next(self) -> Option<Self> {
        let n = self.narrow >> 40;
        (n < Self::LAST).then_some(Self::numbered(n + 1))
    }

    /// The key of a link from a page.
    fn key(self, far: &Far, page: u64) -> u64 {
        page ^ if far.wide { self.wide } else { self.narrow }
    }
}

/// The address space: what links depend on, and what those between global pages do.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Spaces {
    pub local: Space,
    pub global: Space,
}

impl Spaces {
    pub const FIRST: Spaces = Spaces { local: Space::FIRST, global: Space::FIRST };

    /// Offset of the number that the key of a link is of.
    pub fn offset_for(far: &Far) -> usize {
        let space = if far.global { offset_of!(Spaces, global) } else { offset_of!(Spaces, local) };
        space + if far.wide { offset_of!(Space, wide) } else { offset_of!(Space, narrow) }
    }
}

/// Pages that the jump cache or links know code of: others may change their mapping without harm.
#[derive(Default)]
pub struct KnownPages {
    pub local: PageSet,
    /// Those of which something outlives `local_code_moved`.
    pub global: PageSet,
}

impl KnownPages {
    pub fn add(&mut self, va: u64, global: bool) {
        if global { &mut self.global } else { &mut self.local }.add(va >> 12);
    }
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Mappings of pages that are not global may have changed.
    pub fn local_code_moved(&mut self) {
        self.jc_let_local_go();
        self.known_pages.local.clear();
        self.eng.spaces.local = self.next_space();
    }

    /// Any mapping may have changed.
    pub fn code_moved(&mut self) {
        self.jc_clear_all();
        self.known_pages.local.clear();
        self.known_pages.global.clear();
        self.eng.spaces.local = self.next_space();
        self.eng.spaces.global = self.next_space();
    }

    /// The mapping of a page may have changed.
    pub fn page_moved(&mut self, va: u64) {
        if self.known_pages.global.has(va >> 12) {
            self.code_moved();
        } else if self.known_pages.local.has(va >> 12) {
            self.local_code_moved();
        }
    }

    /// Numbers come back, links must not, nor may a space keep an old one.
    fn next_space(&mut self) -> Space {
        self.left.number().unwrap_or_else(|| {
            self.cache.let_all_links_go();
            self.left.forget();
            self.eng.spaces = Spaces::FIRST;
            Space::FIRST
        })
    }

    /// The block at the program counter, which straddles, was found right: lets its code run where both pages are as they are. `false`:
    /// its code was made for global pages, and these are not.
    pub(crate) fn open_guard(&mut self, rec: *mut Record, va: Va, ctx: usize) -> bool {
        // SAFETY: just found, so it is live.
        let code = unsafe { (*rec).tier1.as_deref_mut() };
        let Some(guard) = code.and_then(|c| c.guard.as_mut()) else { return true };
        let next = (va.0 & !0xfff).wrapping_add(4096);
        if guard.global && !(self.is_global(va.0, ctx) && self.is_global(next, ctx)) {
            return false;
        }
        self.known_pages.add(next, guard.global);
        if !guard.wide {
            // Addresses have 32 bits.
            self.known_pages.add(next & 0xffff_ffff, guard.global);
        }
        let page = self.page_pc();
        let space = if guard.global { self.eng.spaces.global } else { self.eng.spaces.local };
        guard.hold(space.key(guard, page), 0);
        true
    }

    /// Whether a linear address is known to be in a global page of code.
    pub(crate) fn is_global(&self, va: u64, ctx: usize) -> bool {
        self.quick(va, 1, Access::Execute, ctx).is_some() && self.fills.global(va, ctx)
    }

    /// After the block at the program counter was found for an edge that leaves the page: links it if that may be. `page`: the
    /// source's program counter of its page, `global`: the target's page is.
    pub(crate) fn link_far(&mut self, from: *mut Record, edge: u8, to: *mut Record, page: u64, global: bool) {
        let va = self.cpu.linear(self.cpu.pc()).0;
        // SAFETY: the block just ran, the other was just found; nothing was freed since.
        let (from_block, to_block) = unsafe { (&*from, &*to) };
        let Some(far) = from_block.tier1.as_ref().and_then(|t| t.far.get(usize::from(edge))?.as_ref()) else { return };
        let mode = from_block.key.mode;
        let space = if far.global { self.eng.spaces.global } else { self.eng.spaces.local };
        let there = self.page_pc() == page.wrapping_add_signed(far.delta.into());
        let fits = there && to_block.key.mode == mode && !from_block.dead && !to_block.dead;
        let may_renew = !far.global;
        self.known_pages.add(va, far.global);
        if fits && (global || !far.global) && !self.is_cut(mode, to_block.start) {
            self.cache.link_far(from, edge, to, space.key(far, page), may_renew);
        } else {
            self.cache.refuse_far(from, edge);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pairs of an address and a number that differ make different keys, for addresses of each width.
    #[test]
    fn keys_are_of_one_page_in_one_space() {
        let far = |wide| Far::new(Key::of_nobody(), std::ptr::null_mut(), 0, 0, false, wide);
        let numbers: Vec<u64> = (0..19).map(|b| 1 << b).chain([1, 2, 3, 0xfff, 0x1fff, Space::LAST]).collect();
        let widths = |top: u32, low: u32| {
            let one = move |b: u32| ((1u64 << b) as i64) << (63 - top) >> (63 - top);
            (low..=top).map(move |b| one(b) as u64).chain([0, u64::MAX << low])
        };
        let wide: Vec<u64> = widths(56, 12).collect();
        let narrow: Vec<u64> = widths(32, 0).collect();
        for (pages, far) in [(wide, far(true)), (narrow, far(false))] {
            let mut seen = std::collections::HashMap::new();
            for page in &pages {
                for n in &numbers {
                    let key = Space::numbered(*n).key(&far, *page);
                    let first = seen.insert(key, (*page, *n));
                    assert!(key != NEVER && first.is_none_or(|f| f == (*page, *n)), "{page:#x} {n}: {first:x?}");
                }
            }
        }
    }

    #[test]
    fn places_of_keys_are_used_again() {
        let mut keys = Box::<[u64; KEYS]>::try_from(vec![0; KEYS].into_boxed_slice()).unwrap();
        let mut places = Keys::default();
        let all: Vec<u32> = (0..KEYS).map(|_| places.take(&mut keys).number).collect();
        assert!(all.iter().copied().eq(0..KEYS as u32) && !places.have(1));
        places.give(Key { number: 7, ..Key::NONE });
        assert!(places.have(1) && !places.have(2));
        assert_eq!(places.take(&mut keys).number, 7);
    }

    #[test]
    fn numbers_of_spaces_end() {
        let mut s = Space::FIRST;
        let mut n = 1;
        while let Some(next) = s.next() {
            (s, n) = (next, n + 1);
        }
        assert_eq!(n, Space::LAST);
    }
}
