//! The jump cache: which block a program counter leads to in a mode, for generated code and the dispatcher.
//!
//! UNSAFE: reads and marks the records that it names, which are freed only after it was cleared.
#![allow(unsafe_code)]

use crate::cache::Record;
use crate::exec::OURS;
use crate::jit::asm::{miss_address, stale_address};
use crate::vblock::VcpuBlock;
use vm_core::guest::{GuestCpu, MODE_BITS};

/// log2 of the entries of the inline jump cache.
const JC_BITS: u32 = 15;
pub const JC_ENTRIES: usize = 1 << JC_BITS;
/// Odd, near 2^32 divided by the golden ratio: spreads program counters that are alike, as functions begin at multiples of 16.
pub const JC_FACTOR: u32 = 0x9e37_79b1;
/// The top bits of the product, shifted this far, are an entry's offset in bytes; the rest is masked away.
pub const JC_SHIFT: u32 = 32 - JC_BITS - 5;
pub const JC_MASK: u32 = (JC_ENTRIES as u32 - 1) << 5;

/// Where a program counter in a mode leads. The record may have been dropped meanwhile: then its code says so.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct JcEntry {
    pub pc: u64,
    /// That of the mode (`tag_of`); all ones in an empty entry. Generated code compares it with `Engine::tag` and `exit`.
    pub tag: u64,
    pub rec: *mut Record,
    /// Its compiled code, or `jit::asm::miss_address`.
    pub code: u64,
}

/// `Record::jc`: in no entry that anyone knows of; perhaps in several. Else the index of the only one it may be in.
pub const JC_NONE: u16 = u16::MAX;
pub const JC_MANY: u16 = u16::MAX - 1;

/// The first place of a program counter; the second is beside it.
const fn jc_index(pc: u64) -> usize {
    ((pc as u32).wrapping_mul(JC_FACTOR) >> (32 - JC_BITS)) as usize
}

/// A mode word in 32 bits: what is the guest's (`MODE_BITS`), above it what is ours.
pub const fn tag_of(mode: u64) -> u32 {
    const { assert!(OURS >> OURS_FROM << OURS_FROM == OURS && 64 - OURS_FROM + MODE_BITS <= 32) };
    debug_assert!((mode & !OURS) >> MODE_BITS == 0);
    (mode >> OURS_FROM << MODE_BITS) as u32 | mode as u32 & ((1 << MODE_BITS) - 1)
}

/// Lowest bit of modes that is ours.
const OURS_FROM: u32 = 53;

impl JcEntry {
    /// Whether it leads to the block of `pc` in `mode`.
    #[inline]
    pub fn holds(&self, pc: u64, mode: u64) -> bool {
        self.is_of(pc, mode) && self.code != stale_address()
    }

    /// Whether it does or did.
    #[inline]
    pub fn is_of(&self, pc: u64, mode: u64) -> bool {
        self.pc == pc && self.tag == u64::from(tag_of(mode))
    }

    pub const EMPTY: JcEntry = JcEntry { pc: 0, tag: u64::MAX, rec: std::ptr::null_mut(), code: 0 };
}

/// Looks into second places until one is promoted.
const PATIENCE: u32 = 256;

/// Which jump-cache entries are filled, so that clearing costs what was filled.
#[derive(Default)]
pub struct JcFills {
    local: Vec<u16>,
    global: Vec<u16>,
    /// Entries that only say which block was there before: generated code does not follow them.
    stale: Vec<u16>,
    /// Whether an entry as it is now holds in every address space; empty before the first.
    is_global: Vec<bool>,
}

/// An entry that was left behind with its address space, and its index.
pub type LeftJump = (u16, JcEntry);

/// Entries that are kept of an address space at most: the newest.
const MOST_LEFT: usize = 1 << 12;

impl<C: GuestCpu> VcpuBlock<C> {
    /// The entry for a program counter in a mode, or else the one in its first place.
    #[inline]
    pub fn jc_entry(&self, pc: u64, mode: u64) -> JcEntry {
        self.eng.jc[self.jc_found(pc, mode).unwrap_or(jc_index(pc))]
    }

    #[inline]
    fn jc_found(&self, pc: u64, mode: u64) -> Option<usize> {
        let first = jc_index(pc);
        [first, first ^ 1].into_iter().find(|i| self.eng.jc[*i].is_of(pc, mode))
    }

    /// Nothing would be lost by an entry in this place.
    fn jc_is_free(&self, i: usize) -> bool {
        let e = &self.eng.jc[i];
        e.tag == JcEntry::EMPTY.tag || e.code == stale_address()
    }

    /// Enters a block in the jump cache: where the program counter is or was, or where there is room, or in its first place, from
    /// where another goes to the second. `global`: its mapping survives address-space switches.
    pub(crate) fn jc_fill(&mut self, pc: u64, mode: u64, rec: *mut Record, global: bool) {
        let first = jc_index(pc);
        let place = self.jc_found(pc, mode).or_else(|| [first, first ^ 1].into_iter().find(|i| self.jc_is_free(*i)));
        if place.is_none() {
            let old = std::mem::replace(&mut self.eng.jc[first], JcEntry::EMPTY);
            let was_global = self.jc_fills.is_global[first];
            self.jc_put(first ^ 1, old, was_global);
        }
        self.jc_put(place.unwrap_or(first), JcEntry { pc, tag: tag_of(mode).into(), rec, code: 0 }, global);
        if self.jc_fills.local.len().max(self.jc_fills.global.len()) >= JC_ENTRIES {
            self.jc_clear_all();
        }
    }

    /// The entry of a program counter goes to its first place, the one there to the second, if generated code has looked into
    /// second places often enough: what came there first may be what is used most.
    #[inline]
    pub fn jc_promote(&mut self, pc: u64, mode: u64) {
        if self.eng.second_places == 0 {
            self.eng.second_places = PATIENCE;
            let first = jc_index(pc);
            if self.eng.jc[first ^ 1].is_of(pc, mode) && !self.jc_is_free(first) {
                let [there, here] = [first, first ^ 1].map(|i| (self.eng.jc[i], self.jc_fills.is_global[i]));
                // Else its record would be taken for one that is in several places.
                self.eng.jc[first ^ 1] = JcEntry::EMPTY;
                self.jc_put(first, here.0, here.1);
                self.jc_put(first ^ 1, there.0, there.1);
            }
        }
    }

    /// Makes entry `i` that of a record, which is live, with the code that it has now.
    fn jc_put(&mut self, i: usize, e: JcEntry, global: bool) {
        // SAFETY: the caller found the record, or in the jump cache.
        let r = unsafe { &mut *e.rec };
        self.eng.jc[i] = JcEntry { code: if r.code == 0 { miss_address() } else { r.code }, ..e };
        r.jc = match r.jc {
            JC_NONE => i as u16,
            at if usize::from(at) == i => at,
            at if at != JC_MANY && !std::ptr::eq(self.eng.jc[usize::from(at)].rec, e.rec) => i as u16,
            _ => JC_MANY,
        };
        let fills = &mut self.jc_fills;
        fills.is_global.resize(JC_ENTRIES, false);
        fills.is_global[i] = global;
        if global { &mut fills.global } else { &mut fills.local }.push(i as u16);
    }

    /// Brings the jump cache up to date with records whose code came or went. Before generated code is entered.
    pub fn jc_sync(&mut self) {
        for rec in std::mem::take(&mut self.cache.changed) {
            // SAFETY: the list is emptied before dropped records are freed.
            let (at, code) = unsafe { ((*rec).jc, (*rec).code) };
            match at {
                JC_NONE => {}
                JC_MANY => self.jc_clear_all(),
                at => {
                    let e = &mut self.eng.jc[usize::from(at)];
                    if std::ptr::eq(e.rec, rec) && e.code != stale_address() {
                        e.code = if code == 0 { miss_address() } else { code };
                    }
                }
            }
        }
    }

    /// Entries that are not global no longer hold. Most will again in the next address space, so they stay as a hint.
    pub fn jc_let_local_go(&mut self) {
        if self.jc_fills.stale.len() > JC_ENTRIES {
            return self.jc_clear_local();
        }
        for i in self.jc_fills.local.drain(..) {
            let e = &mut self.eng.jc[usize::from(i)];
            if e.tag != JcEntry::EMPTY.tag && !self.jc_fills.is_global[usize::from(i)] {
                e.code = stale_address();
                self.jc_fills.stale.push(i);
            }
        }
    }

    /// The entries that are not global, before the address space that they hold in is left.
    pub fn jc_local(&self) -> Vec<LeftJump> {
        let newest = self.jc_fills.local.iter().rev().take(MOST_LEFT).rev();
        let mut left = Vec::with_capacity(newest.len());
        for &n in newest {
            let i = usize::from(n);
            if !self.jc_is_free(i) && !self.jc_fills.is_global[i] {
                left.push((n, self.eng.jc[i]));
            }
        }
        left
    }

    /// Back in that address space: they hold again, but for those of blocks that were dropped since.
    pub fn jc_come_back(&mut self, left: &[LeftJump]) {
        for (i, e) in left {
            // SAFETY: records are freed only after what was left behind was forgotten.
            if self.jc_is_free(usize::from(*i)) && !unsafe { (*e.rec).dead } {
                self.jc_put(usize::from(*i), *e, false);
            }
        }
    }

    fn jc_clear_local(&mut self) {
        for i in self.jc_fills.local.drain(..).chain(self.jc_fills.stale.drain(..)) {
            if !self.jc_fills.is_global[usize::from(i)] {
                self.eng.jc[usize::from(i)] = JcEntry::EMPTY;
            }
        }
    }

    /// Links go on: only `code_moved` ends them.
    pub fn jc_clear_all(&mut self) {
        self.left.forget();
        self.jc_clear_local();
        for i in self.jc_fills.global.drain(..) {
            self.eng.jc[usize::from(i)] = JcEntry::EMPTY;
        }
    }
}
