//! Software TLB: per access context a table that generated code reads, and the list of filled entries that makes a flush cost
//! what was filled, not what the table holds.
//!
//! A page's place is the entry of its index. One that another page has pushed out is in the entry beside, whose host cache line is
//! the same, and where the cold code of an access looks; all else looks at a page's own place, to which `recall` brings it back.
//! An access hits if `va - tag <= 4096 - size` (unsigned): page and page crossing are tested at once. The tag of an empty
//! entry is the address of a page that belongs to other entries, so that it never matches.

mod writers;

use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use vm_core::guest::CTX_COUNT;
use writers::Writers;

/// log2 of the entries per context.
pub const BITS: u32 = 13;
pub const ENTRIES: usize = 1 << BITS;

/// One page. Tags are page-aligned linear addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    pub read: u64,
    pub write: u64,
    pub exec: u64,
    /// Host address minus guest linear address, wrapping.
    pub addend: u64,
}

/// The tables; `#[repr(C)]` as generated code indexes them.
#[repr(C)]
pub struct Tables(pub [Table; CTX_COUNT]);

/// The table of a context. Generated code has a register that leads to the first entry of the one that it uses most.
#[repr(C, align(64))]
pub struct Table {
    /// Before which byte of a page accesses of so many bytes (`SIZES`) begin: a comparison with memory near a register is three bytes shorter
    /// than one with a number. All are 0 while the dispatcher is wanted, so that generated code comes to ask for it.
    pub limits: [AtomicU64; LIMITS],
    pub entries: [Entry; ENTRIES],
}

const LIMITS: usize = 16;
const SIZES: [i32; LIMITS] = [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128];

impl Table {
    /// The size with a limit that so many bytes are taken for; those of more than the largest have none.
    pub fn rounded(bytes: i32) -> i32 {
        SIZES.into_iter().find(|s| *s >= bytes).unwrap_or(bytes)
    }

    /// Offset from the first entry of the number behind `most`, if it is in memory: bytes into a page that an access may begin at most.
    pub fn limit(most: i32) -> Option<i8> {
        let at = SIZES.iter().position(|s| 4096 - s == most)?;
        i8::try_from(8 * at as i64 - offset_of!(Self, entries) as i64).ok()
    }
}

impl Deref for Table {
    type Target = [Entry; ENTRIES];

    fn deref(&self) -> &Self::Target {
        &self.entries
    }
}

impl DerefMut for Table {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.entries
    }
}

pub const fn index(va: u64) -> usize {
    (va >> 12) as usize & (ENTRIES - 1)
}

/// The entry beside one.
pub const fn beside(index: usize) -> usize {
    index ^ 1
}

/// The same for both entries of a pair, between which pages move.
const fn empty_tag(index: usize) -> u64 {
    ((index as u64 & !1) ^ 2) << 12
}

const fn empty(index: usize) -> Entry {
    Entry { read: empty_tag(index), write: empty_tag(index), exec: empty_tag(index), addend: 0 }
}

/// What is known of filled entries beside the tables.
#[derive(Default)]
pub struct Fills {
    local: Vec<(u8, u16)>,
    global: Vec<(u8, u16)>,
    /// Bit 0: listed in `local`, bit 1: in `global`; by context and index.
    listed: Vec<[u8; CTX_COUNT]>,
    /// Whether an entry as it is now maps a global page.
    is_global: Vec<[bool; CTX_COUNT]>,
    /// Of each pair of entries, whether the odd one was filled last.
    odd_last: Vec<[bool; CTX_COUNT]>,
    /// Entries that others pushed out of the tables; any flush or revocation drops them all.
    victims: [Option<Victim>; VICTIMS],
    /// Pages in the tables that lack access for a reason that need not concern all of it; dropped with the victims.
    withheld: [Option<WithheldPage>; WITHHELD],
    /// Which of them goes next.
    oldest_withheld: usize,
    /// Which victim goes next.
    oldest: usize,
    /// What may serve writes to host pages, by hash; empty before the first revocation.
    writers: Vec<Writers>,
    pub refills: u64,
    pub flushes: u64,
}

/// Several arrays walked in step lie at the same indexes if they are a multiple of the table's reach apart: without these,
/// each access would be a page walk. (Two of them have the entries of a pair.)
const VICTIMS: usize = 8;

/// An entry that was left behind with its address space.
pub struct LeftPage {
    ctx: u8,
    index: u16,
    entry: Entry,
}

/// Entries that are kept of an address space at most: the newest.
const MOST_LEFT: usize = 1 << 11;

#[derive(Clone, Copy)]
struct Victim {
    page: u64,
    ctx: u8,
    global: bool,
    entry: Entry,
}

/// Withheld pages that are remembered: the top of a stack, what is copied from and to, and some.
const WITHHELD: usize = 4;

/// Why an entry serves less than page tables and RAM allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withheld {
    /// The debugger watches the page.
    Watched,
    /// Translated code came from the page.
    Code,
}

#[derive(Clone, Copy)]
struct WithheldPage {
    page: u64,
    ctx: u8,
    addend: u64,
    read: bool,
    write: bool,
    why: Withheld,
}

const LOCAL: u8 = 1;
const GLOBAL: u8 = 2;

/// Which accesses an entry serves.
#[derive(Clone, Copy, Debug)]
pub struct Serves {
    pub read: bool,
    pub write: bool,
    pub exec: bool,
    pub global: bool,
}

impl Tables {
    /// Offset of a context's first entry.
    pub const fn entries_of(ctx: usize) -> usize {
        ctx * size_of::<Table>() + offset_of!(Table, entries)
    }

    pub fn clear(&mut self) {
        self.open();
        for table in &mut self.0 {
            for (i, e) in table.iter_mut().enumerate() {
                *e = empty(i);
            }
        }
    }

    /// Whether limits have been taken away (`VcpuRef::kick`), so that no check of generated code that compares with one succeeds.
    pub fn closed(&self) -> bool {
        self.0.iter().any(|table| table.limits[0].load(Ordering::Relaxed) == 0)
    }

    /// Gives the limits back.
    pub fn open(&self) {
        for table in &self.0 {
            table.limits.iter().zip(SIZES).for_each(|(l, s)| l.store(4097 - s as u64, Ordering::Relaxed));
        }
    }

    pub fn entry(&self, va: u64, ctx: usize) -> &Entry {
        &self.0[ctx][index(va)]
    }
}

impl Fills {
    /// Enters a page.
    pub fn fill(&mut self, t: &mut Tables, va: u64, ctx: usize, serves: Serves, addend: u64) {
        let (page, i) = (va & !0xfff, index(va));
        let tag = |on: bool| if on { page } else { empty_tag(i) };
        let entry = Entry { read: tag(serves.read), write: tag(serves.write), exec: tag(serves.exec), addend };
        self.refills += 1;
        self.take(t, page, ctx);
        self.put(t, Victim { page, ctx: ctx as u8, global: serves.global, entry });
    }

    /// Brings a page back that was pushed out, if its entry serves what `tag` looks at; whether it did.
    pub fn recall(&mut self, t: &mut Tables, va: u64, ctx: usize, tag: fn(&Entry) -> u64) -> bool {
        let page = va & !0xfff;
        match self.take(t, page, ctx) {
            Some(v) if tag(&v.entry) == page => {
                self.put(t, v);
                true
            }
            // A walk will enter it anew.
            _ => false,
        }
    }

    /// Takes a page that was pushed out from where it is.
    fn take(&mut self, t: &mut Tables, page: u64, ctx: usize) -> Option<Victim> {
        let i = beside(index(page));
        let entry = &mut t.0[ctx][i];
        if Self::page_of(entry, i) == Some(page) {
            let entry = std::mem::replace(entry, empty(i));
            return Some(Victim { page, ctx: ctx as u8, global: self.is_global[i][ctx], entry });
        }
        let same = |v: &Option<Victim>| v.is_some_and(|v| v.page == page && usize::from(v.ctx) == ctx);
        self.victims.iter_mut().find(|v| same(v)).and_then(Option::take)
    }

    /// The page that an entry in place `i` serves.
    fn page_of(e: &Entry, i: usize) -> Option<u64> {
        [e.read, e.write, e.exec].into_iter().find(|p| *p != empty_tag(i))
    }

    /// Enters a page in its own place. What was there goes beside, if that was filled earlier; what is in its way then, or else
    /// itself, is a victim.
    fn put(&mut self, t: &mut Tables, new: Victim) {
        let (ctx, i) = (usize::from(new.ctx), index(new.page));
        if self.listed.is_empty() {
            self.listed = vec![[0; CTX_COUNT]; ENTRIES];
            self.is_global = vec![[false; CTX_COUNT]; ENTRIES];
            self.odd_last = vec![[false; CTX_COUNT]; ENTRIES / 2];
        }
        let old = self.set(t, i, new).filter(|old| old.page != new.page);
        let odd_last = std::mem::replace(&mut self.odd_last[i / 2][ctx], i % 2 == 1);
        let Some(old) = old else { return };
        let last = odd_last == (i % 2 == 1) || Self::page_of(&t.0[ctx][beside(i)], beside(i)).is_none();
        let victim = if last { self.set(t, beside(i), old) } else { Some(old) };
        if victim.is_some() {
            let free = self.victims.iter().position(Option::is_none);
            let at = free.unwrap_or(self.oldest);
            self.oldest = (at + 1) % VICTIMS;
            self.victims[at] = victim;
        }
    }

    /// Puts a page into entry `i`; gives that which was there.
    fn set(&mut self, t: &mut Tables, i: usize, new: Victim) -> Option<Victim> {
        let ctx = usize::from(new.ctx);
        let (entry, global) = (t.0[ctx][i], self.is_global[i][ctx]);
        self.write(t, (ctx, i), new.page, &new.entry, new.global);
        Self::page_of(&entry, i).map(|page| Victim { page, ctx: new.ctx, global, entry })
    }

    /// Puts a page into an entry.
    fn write(&mut self, t: &mut Tables, (ctx, i): (usize, usize), page: u64, entry: &Entry, global: bool) {
        t.0[ctx][i] = *entry;
        self.is_global[i][ctx] = global;
        if entry.write == page && !self.writers.is_empty() {
            self.note_writer(t, entry, ctx as u8);
        }
        let (bit, list) = if global { (GLOBAL, &mut self.global) } else { (LOCAL, &mut self.local) };
        let seen = &mut self.listed[i][ctx];
        if *seen & bit == 0 {
            *seen |= bit;
            list.push((ctx as u8, i as u16));
        }
    }

    /// Whether the entry that serves `va` (a hit) maps a global page.
    pub fn global(&self, va: u64, ctx: usize) -> bool {
        self.is_global.get(index(va)).is_some_and(|g| g[ctx])
    }

    fn drain(listed: &mut [[u8; CTX_COUNT]], list: &mut Vec<(u8, u16)>, bit: u8, t: &mut Tables) {
        for (ctx, i) in list.drain(..) {
            let (ctx, i) = (usize::from(ctx), usize::from(i));
            t.0[ctx][i] = empty(i);
            listed[i][ctx] &= !bit;
        }
    }

    /// Drops every entry that is not global. (An entry listed as both is dropped: that is allowed.)
    pub fn flush_local(&mut self, t: &mut Tables) {
        self.flushes += 1;
        self.forget_displaced();
        Self::drain(&mut self.listed, &mut self.local, LOCAL, t);
    }

    /// As `flush_local`; gives what may `come_back`.
    pub fn leave(&mut self, t: &mut Tables) -> Vec<LeftPage> {
        let newest = self.local.iter().rev().take(MOST_LEFT).rev();
        let mut left = Vec::with_capacity(newest.len());
        for &(ctx, index) in newest {
            let (c, i) = (usize::from(ctx), usize::from(index));
            let entry = &t.0[c][i];
            if !self.is_global[i][c] && Self::page_of(entry, i).is_some() {
                left.push(LeftPage { ctx, index, entry: *entry });
            }
        }
        self.flush_local(t);
        left
    }

    /// Back in the address space of these entries, none of which has lost anything since.
    pub fn come_back(&mut self, t: &mut Tables, left: &[LeftPage]) {
        for l in left {
            let (ctx, i) = (usize::from(l.ctx), usize::from(l.index));
            if let (Some(page), None) = (Self::page_of(&l.entry, i), Self::page_of(&t.0[ctx][i], i)) {
                self.write(t, (ctx, i), page, &l.entry, false);
            }
        }
    }

    fn forget_displaced(&mut self) {
        self.victims = Default::default();
        self.withheld = Default::default();
    }

    /// The page of `va` was just entered; but for `why` it would serve this as well.
    pub fn withhold(&mut self, va: u64, ctx: usize, addend: u64, (read, write): (bool, bool), why: Withheld) {
        let page = va & !0xfff;
        let same = |w: &Option<WithheldPage>| w.is_some_and(|w| w.page == page && usize::from(w.ctx) == ctx);
        let at = self.withheld.iter().position(same).unwrap_or(self.oldest_withheld);
        self.oldest_withheld = (self.oldest_withheld + 1) % WITHHELD;
        self.withheld[at] = Some(WithheldPage { page, ctx: ctx as u8, addend, read, write, why });
    }

    /// Why an access is withheld for which the table's entry, whatever it serves, holds the right addend.
    pub fn withheld(&self, t: &Tables, va: u64, size: u8, write: bool, ctx: usize) -> Option<Withheld> {
        let page = va & !0xfff;
        let addend = t.0[ctx][index(va)].addend;
        let fits = |w: &&WithheldPage| {
            let lets = if write { w.write } else { w.read };
            w.page == page && usize::from(w.ctx) == ctx && lets && w.addend == addend
        };
        let inside = va & 0xfff <= 4096 - u64::from(size);
        inside.then(|| self.withheld.iter().flatten().find(fits))?.map(|w| w.why)
    }

    pub fn flush_all(&mut self, t: &mut Tables) {
        self.flush_local(t);
        Self::drain(&mut self.listed, &mut self.global, GLOBAL, t);
    }

    pub fn flush_page(&mut self, t: &mut Tables, va: u64) {
        self.forget_displaced();
        for i in [index(va), beside(index(va))] {
            t.0.iter_mut().for_each(|table| table[i] = empty(i));
        }
    }

    /// Drops the write (and, if `reads`, read) permission of all entries that map the host page at `host`.
    pub fn revoke_host_page(&mut self, t: &mut Tables, host: u64, reads: bool) {
        self.forget_displaced();
        for &(ctx, i) in self.local.iter().chain(&self.global) {
            let e = &mut t.0[usize::from(ctx)][usize::from(i)];
            let none = empty_tag(usize::from(i));
            if Self::page_of(e, usize::from(i)).is_some_and(|p| p.wrapping_add(e.addend) == host) {
                e.write = none;
                if reads {
                    e.read = none;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
