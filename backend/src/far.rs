//! Links from block to block of tier 1 across pages. The code that an edge leads to is known by its place in RAM, so such a link
//! holds only while the target's page is mapped as it was: as long as the source runs at the same address and nothing
//! has changed in the address space. Both are one word, the link's key, which generated code compares.
//!
//! An address space has a number in the upper 16 bits of `Engine::spaces`, which canonical addresses do not need. It changes
//! whenever mappings may have; pages that are global keep theirs when the guest goes to another address space.
//!
//! A block that straddles two pages has such a key for itself.
//!
//! UNSAFE: reads the records of a link that is being made.
#![allow(unsafe_code)]

use crate::cache::Record;
use crate::vblock::VcpuBlock;
use vm_core::Va;
use vm_core::guest::GuestCpu;

/// Key that no address space has.
const NEVER: u64 = u64::MAX;
/// `Far::code`: do not ask for a link again.
const REFUSED: u64 = 1;

/// An edge that leaves the page, as its code sees it.
#[repr(C)]
#[derive(Debug)]
pub struct Far {
    /// Program counter of the source's page, and the space in which the link holds.
    pub key: u64,
    /// Full entry of the target if the code may renew the key by itself once the jump cache has led there; 0: it may not.
    pub code: u64,
    pub record: *mut Record,
    pub edge: u32,
    /// From the source's page to the target's, in bytes.
    pub delta: i32,
    /// The key is of the space of global pages.
    pub global: bool,
}

impl Far {
    pub fn new(record: *mut Record, edge: u32, delta: i32, global: bool) -> Box<Self> {
        Box::new(Self { key: NEVER, code: 0, record, edge, delta, global })
    }

    pub fn hold(&mut self, key: u64, code: u64) {
        (self.key, self.code) = (key, code);
    }

    pub fn let_go(&mut self) {
        self.hold(NEVER, 0);
    }

    pub fn refuse(&mut self) {
        self.hold(NEVER, REFUSED);
    }
}

/// Numbers of the address space: what links depend on, and what those between global pages do.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Spaces {
    pub local: u64,
    pub global: u64,
}

const STEP: u64 = 1 << 48;

impl Spaces {
    pub const FIRST: Spaces = Spaces { local: STEP, global: STEP };
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
        if global { &mut self.global } else { &mut self.local }.add(va);
    }
}

/// Pages by hash: none that was added is missed, others may seem to be there.
#[derive(Default)]
pub struct PageSet(Vec<u64>);

impl PageSet {
    const BITS: u64 = 4096;

    fn bit(va: u64) -> (usize, u64) {
        let n = (va >> 12 ^ va >> 24) % Self::BITS;
        ((n / 64) as usize, 1 << (n % 64))
    }

    pub fn add(&mut self, va: u64) {
        let (word, bit) = Self::bit(va);
        self.0.resize((Self::BITS / 64) as usize, 0);
        self.0[word] |= bit;
    }

    pub fn has(&self, va: u64) -> bool {
        let (word, bit) = Self::bit(va);
        self.0.get(word).is_some_and(|w| w & bit != 0)
    }

    pub fn clear(&mut self) {
        self.0.fill(0);
    }
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Mappings of pages that are not global may have changed.
    pub fn local_code_moved(&mut self) {
        self.jc_let_local_go();
        self.known_pages.local.clear();
        self.eng.spaces.local = self.next_space(self.eng.spaces.local);
    }

    /// Any mapping may have changed.
    pub fn code_moved(&mut self) {
        self.jc_clear_all();
        self.known_pages.local.clear();
        self.known_pages.global.clear();
        self.eng.spaces.local = self.next_space(self.eng.spaces.local);
        self.eng.spaces.global = self.next_space(self.eng.spaces.global);
    }

    /// The mapping of a page may have changed.
    pub fn page_moved(&mut self, va: u64) {
        if self.known_pages.global.has(va) {
            self.code_moved();
        } else if self.known_pages.local.has(va) {
            self.local_code_moved();
        }
    }

    /// Numbers come back after 65,534 changes, links must not.
    fn next_space(&mut self, old: u64) -> u64 {
        let new = old.wrapping_add(STEP);
        // Upper bits of canonical addresses would cancel out with these; none has them otherwise.
        if new == NEVER << 48 {
            self.cache.let_all_links_go();
            return STEP;
        }
        new
    }

    /// The block at the program counter, which straddles, was found right: lets its code run where both pages are as they are.
    pub(crate) fn open_guard(&mut self, rec: *mut Record, va: Va) {
        let next = va.0.wrapping_add(4096);
        self.known_pages.local.add(next);
        // Addresses may have 32 bits only.
        self.known_pages.local.add(next & 0xffff_ffff);
        let key = self.page_pc() ^ self.eng.spaces.local;
        // SAFETY: just found, so it is live.
        let code = unsafe { (*rec).tier1.as_deref_mut() };
        if let Some(guard) = code.and_then(|c| c.guard.as_mut()) {
            guard.hold(key, 0);
        }
    }

    /// After the block at the program counter was found for an edge that leaves the page: links it if that may be. `page`: the
    /// source's program counter of its page, `global`: the target's page is.
    pub(crate) fn link_far(&mut self, from: *mut Record, edge: u8, to: *mut Record, page: u64, global: bool) {
        let va = self.cpu.linear(self.cpu.pc()).0;
        // SAFETY: the block just ran, the other was just found; nothing was freed since.
        let (from_block, to_block) = unsafe { (&*from, &*to) };
        let Some(far) = from_block.tier1.as_ref().and_then(|t| t.far[usize::from(edge)].as_ref()) else { return };
        let mode = from_block.key.mode;
        let space = if far.global { self.eng.spaces.global } else { self.eng.spaces.local };
        let there = self.page_pc() == page.wrapping_add_signed(far.delta.into());
        let fits = there && to_block.key.mode == mode && !from_block.dead && !to_block.dead;
        let may_renew = !far.global;
        self.known_pages.add(va, far.global);
        if fits && (global || !far.global) && !self.is_cut(mode, to_block.start) {
            self.cache.link_far(from, edge, to, page ^ space, may_renew);
        } else {
            self.cache.refuse_far(from, edge);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_pages_are_never_missed() {
        let mut k = PageSet::default();
        assert!(!k.has(0x1000));
        for va in [0x1000, 0xffff_ffff_8100_0000, 0x7fff_0000_0000] {
            k.add(va);
            assert!(k.has(va) && k.has(va | 0xfff));
        }
        assert!(!k.has(0x5_5000));
        k.clear();
        assert!(!k.has(0x1000));
    }
}
