//! Software TLB: per access context a table that generated code reads, and the list of filled entries that makes a flush cost
//! what was filled, not what the table holds.
//!
//! A page's place is the entry of its index. One that another page has pushed out is in the entry beside, whose host cache line is
//! the same, and where the cold code of an access looks; all else looks at a page's own place, to which `recall` brings it back.
//! An access hits if `va - tag <= 4096 - size` (unsigned): page and page crossing are tested at once. The tag of an empty
//! entry is the address of a page that belongs to other entries, so that it never matches.

use vm_core::guest::CTX_COUNT;

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
pub struct Tables(pub [[Entry; ENTRIES]; CTX_COUNT]);

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
    /// Where host pages may be written through, by hash; empty before the first revocation.
    writers: Vec<Writers>,
    pub refills: u64,
    pub flushes: u64,
}

/// Entries that serve writes to host pages of one hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Writers {
    /// There are none.
    None,
    /// To this page, by no entry but perhaps this or the one beside: host address, context, index of the page.
    One(u64, u8, u16),
    /// There may be any.
    Many,
}

/// log2 of the hashes of host pages.
const WRITERS: u32 = 12;

const fn writers_of(host: u64) -> usize {
    (host >> 12) as usize & ((1 << WRITERS) - 1)
}

/// Several arrays walked in step lie at the same indexes if they are a multiple of the table's reach apart: without these,
/// each access would be a page walk. (Two of them have the entries of a pair.)
const VICTIMS: usize = 8;

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
    pub fn clear(&mut self) {
        for table in &mut self.0 {
            for (i, e) in table.iter_mut().enumerate() {
                *e = empty(i);
            }
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
        let entry = std::mem::replace(&mut t.0[ctx][i], new.entry);
        let global = std::mem::replace(&mut self.is_global[i][ctx], new.global);
        if new.entry.write == new.page && !self.writers.is_empty() {
            self.note_writer(new.page.wrapping_add(new.entry.addend), new.ctx, new.page);
        }
        let (bit, list) = if new.global { (GLOBAL, &mut self.global) } else { (LOCAL, &mut self.local) };
        let seen = &mut self.listed[i][ctx];
        if *seen & bit == 0 {
            *seen |= bit;
            list.push((ctx as u8, i as u16));
        }
        Self::page_of(&entry, i).map(|page| Victim { page, ctx: new.ctx, global, entry })
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

    fn note_writer(&mut self, host: u64, ctx: u8, page: u64) {
        let w = &mut self.writers[writers_of(host)];
        let new = Writers::One(host, ctx, index(page) as u16);
        *w = if *w == Writers::None || *w == new { new } else { Writers::Many };
    }

    /// Drops the write permission of all entries that map the host page at `host`: what pages of code need again and again.
    pub fn revoke_writes(&mut self, t: &mut Tables, host: u64) {
        match self.writers.get(writers_of(host)) {
            Some(Writers::None) => self.forget_displaced(),
            Some(Writers::One(h, ..)) if *h != host => self.forget_displaced(),
            Some(&Writers::One(h, ctx, i)) => {
                self.forget_displaced();
                for i in [usize::from(i), beside(i.into())] {
                    let e = &mut t.0[usize::from(ctx)][i];
                    if e.write.wrapping_add(e.addend) == h {
                        e.write = empty_tag(i);
                    }
                }
                self.writers[writers_of(host)] = Writers::None;
            }
            Some(Writers::Many) | None => {
                self.revoke_host_page(t, host, false);
                self.find_writers(t);
            }
        }
    }

    /// Notes anew who may write where.
    fn find_writers(&mut self, t: &Tables) {
        self.writers.clear();
        self.writers.resize(1 << WRITERS, Writers::None);
        let listed = (std::mem::take(&mut self.local), std::mem::take(&mut self.global));
        for &(ctx, i) in listed.0.iter().chain(&listed.1) {
            let e = t.0[usize::from(ctx)][usize::from(i)];
            if e.write != empty_tag(usize::from(i)) {
                self.note_writer(e.write.wrapping_add(e.addend), ctx, e.write);
            }
        }
        (self.local, self.global) = listed;
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
mod tests {
    use super::*;

    fn tables() -> Box<Tables> {
        let mut t = Box::new(Tables([[empty(0); ENTRIES]; CTX_COUNT]));
        t.clear();
        t
    }

    fn hits(t: &Tables, va: u64, size: u64) -> bool {
        va.wrapping_sub(t.entry(va, 0).read) <= 4096 - size
    }

    #[test]
    fn empty_entries_never_hit_and_crossing_misses() {
        let mut t = tables();
        for va in [0, 0xfff, 0x1000, u64::MAX, 0xffff_8000_0000_0000, 1 << 22] {
            assert!(!hits(&t, va, 1), "{va:#x}");
        }
        let mut f = Fills::default();
        let serves = Serves { read: true, write: false, exec: false, global: false };
        f.fill(&mut t, 0x7000, 0, serves, 0x100);
        assert!(hits(&t, 0x7ff8, 8) && !hits(&t, 0x7ff9, 8) && !hits(&t, 0x6fff, 1));
        assert!(!hits(&t, 0x7000 + (1 << 22), 1));
        f.flush_local(&mut t);
        assert!(!hits(&t, 0x7000, 1));
    }

    /// Random fills, flushes and revocations: as the search of the tables finds them.
    #[test]
    fn writes_are_revoked_wherever_they_are() {
        let (mut t, mut f, mut x) = (tables(), Fills::default(), 1u64);
        let mut random = |n: u64| {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) % n
        };
        for _ in 0..20_000 {
            let (va, host, ctx) = (random(40) << 12 | random(2) << 25, random(30) << 12 | random(2) << 24, random(3) as usize);
            match random(40) {
                0 => f.flush_local(&mut t),
                1 => f.flush_all(&mut t),
                2 => f.flush_page(&mut t, va),
                3..10 => {
                    f.revoke_writes(&mut t, host);
                    let writes = |e: &Entry, i: usize| e.write != empty_tag(i) && e.write.wrapping_add(e.addend) == host;
                    assert!(!t.0.iter().any(|c| c.iter().enumerate().any(|(i, e)| writes(e, i))));
                    assert!(f.victims.iter().all(Option::is_none));
                }
                n => {
                    let serves = Serves { read: true, write: n % 2 == 0, exec: false, global: n % 3 == 0 };
                    f.fill(&mut t, va, ctx, serves, host.wrapping_sub(va));
                }
            }
        }
    }

    #[test]
    fn global_entries_survive_a_local_flush() {
        let (mut t, mut f) = (tables(), Fills::default());
        let serves = Serves { read: true, write: true, exec: true, global: true };
        f.fill(&mut t, 0x5000, 0, serves, 0);
        f.flush_local(&mut t);
        assert!(hits(&t, 0x5000, 1));
        f.revoke_host_page(&mut t, 0x5000, false);
        assert!(hits(&t, 0x5000, 1) && t.entry(0x5000, 0).write != 0x5000);
        f.flush_all(&mut t);
        assert!(!hits(&t, 0x5000, 1));
    }

    const RW: Serves = Serves { read: true, write: true, exec: false, global: false };
    /// Two pages of the same place.
    const A: u64 = 0x7000;
    const B: u64 = A + ((ENTRIES as u64) << 12);

    fn displaced() -> (Box<Tables>, Fills) {
        let (mut t, mut f) = (tables(), Fills::default());
        f.fill(&mut t, A, 0, Serves { write: false, ..RW }, 0x100);
        f.fill(&mut t, B, 0, RW, 0x200);
        (t, f)
    }

    #[test]
    fn pages_of_one_place_take_turns() {
        let (mut t, mut f) = displaced();
        for _ in 0..3 {
            assert!(!hits(&t, A, 8) && hits(&t, B, 8));
            assert!(f.recall(&mut t, A + 5, 0, |e| e.read));
            assert!(hits(&t, A, 8) && !hits(&t, B, 8) && t.entry(A, 0).addend == 0x100);
            assert!(f.recall(&mut t, B, 0, |e| e.write));
        }
        assert!(!f.recall(&mut t, A, 1, |e| e.read), "another context");
        assert!(!f.recall(&mut t, A, 0, |e| e.write), "never served");
        assert_eq!(f.refills, 2);
    }

    /// Where generated code looks: in the page's own place, and beside it.
    fn found(t: &Tables, va: u64) -> bool {
        let tag = |i: usize| t.0[0][i].read;
        [tag(index(va)), tag(beside(index(va)))].iter().any(|tag| va.wrapping_sub(*tag) <= 4088)
    }

    #[test]
    fn two_pages_of_one_place_are_both_found() {
        let (mut t, mut f) = displaced();
        assert!(found(&t, A) && found(&t, B) && !found(&t, A + 0x1000));
        // The neighbour of the one in its own place takes the entry beside: the latter was filled first.
        f.fill(&mut t, A + 0x1000, 0, RW, 0x300);
        assert!(!found(&t, A) && found(&t, B) && found(&t, A + 0x1000));
        assert!(f.recall(&mut t, A, 0, |e| e.read) && f.refills == 3);
        f.flush_page(&mut t, A);
        assert!(!found(&t, A) && !found(&t, B) && !found(&t, A + 0x1000));
    }

    /// Halves of 32 bytes across two pages need both entries.
    #[test]
    fn neighbours_do_not_push_each_other_out() {
        for first in [A, A - 0x1000] {
            let (mut t, mut f) = displaced();
            f.fill(&mut t, B + 0x1000, 0, RW, 0);
            f.fill(&mut t, B - 0x1000, 0, RW, 0);
            f.fill(&mut t, first, 0, RW, 0);
            f.fill(&mut t, first + 0x1000, 0, RW, 0);
            assert!(hits(&t, first, 8) && hits(&t, first + 0x1000, 8));
        }
    }

    #[test]
    fn what_drops_entries_drops_displaced_ones() {
        type Drop = fn(&mut Fills, &mut Tables);
        let drops: [Drop; 5] = [
            |f, t| f.flush_local(t),
            |f, t| f.flush_all(t),
            |f, t| f.flush_page(t, A),
            |f, t| f.revoke_host_page(t, A + 0x100, true),
            // Entered anew, with other rights.
            |f, t| {
                f.fill(t, A, 0, Serves { read: false, ..RW }, 0x300);
                f.fill(t, B, 0, RW, 0x200);
            },
        ];
        for d in drops {
            let (mut t, mut f) = displaced();
            d(&mut f, &mut t);
            assert!(!f.recall(&mut t, A, 0, |e| e.read));
        }
    }

    #[test]
    fn what_is_withheld_is_known_until_mappings_or_writers_change() {
        let code = |f: &Fills, t: &Tables, va, write| f.withheld(t, va, 8, write, 0);
        let (mut t, mut f) = (tables(), Fills::default());
        let enter = |f: &mut Fills, t: &mut Tables| {
            f.fill(t, A, 0, Serves { write: false, ..RW }, 0x300);
            f.withhold(A, 0, 0x300, (false, true), Withheld::Code);
        };
        enter(&mut f, &mut t);
        assert_eq!(code(&f, &t, A + 8, true), Some(Withheld::Code));
        assert_eq!((code(&f, &t, A + 8, false), code(&f, &t, A + 0xffc, true), code(&f, &t, B, true)), (None, None, None));
        f.revoke_writes(&mut t, A + 0x300);
        assert_eq!(code(&f, &t, A, true), None);
        enter(&mut f, &mut t);
        f.flush_page(&mut t, B);
        assert_eq!(code(&f, &t, A, true), None);
    }

    #[test]
    fn a_displaced_global_page_stays_global() {
        let (mut t, mut f) = (tables(), Fills::default());
        f.fill(&mut t, A, 0, Serves { global: true, ..RW }, 0);
        f.fill(&mut t, B, 0, RW, 0);
        assert!(f.recall(&mut t, A, 0, |e| e.read) && f.global(A, 0));
        f.flush_all(&mut t);
        assert!(!hits(&t, A, 1));
    }
}
