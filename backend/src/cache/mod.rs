//! The translation cache of one vCPU.
//!
//! A block's identity is `BlockKey`: RAM offset of its first byte and mode. Indexes:
//! - `blocks`: exact map from key to record; the only owner of records.
//! - `pages`: per RAM page the records with source bytes in it, and a bitmap of 64-byte granules that hold any: decides
//!   whether a store touches code, and finds what it kills.
//! - the jump cache (in `Engine`): (program counter, mode) to record, for the dispatcher; dropped by TLB flushes.
//! - links: a record's edges point at the code of their targets; `Record::incoming` is the reverse.
//!
//! UNSAFE: records are boxed and reached by raw pointers from links, jump cache and tier 0's code; a dropped record is kept
//! in `graveyard` until the dispatcher, which holds none of these pointers, empties it.
#![allow(unsafe_code)]

mod code;
mod rewritten;
mod unlike;

pub use code::Tier1Code;
use rewritten::Rewritten;
pub use unlike::Unlike;

use crate::far::Keys;
use crate::jit::arena::{Arena, Range};
use crate::jit::asm::{THUNK, THUNK_FULL};
use crate::jit::compile::Compiled;
use crate::peers::{Member, granules};
use crate::tier0::form::{COp, Edge, Handler};
use ir::{BlockKey, Changing};
use rustc_hash::FxHashMap;
use std::ptr;
use vm_core::PageBits;
use vm_core::Ram;

/// One translated block. What tier 0 and the dispatcher look at whenever it runs lies in one line of the host's cache.
#[repr(C, align(64))]
pub struct Record {
    pub runs: u32,
    /// `runs` at which tier 0 asks for compilation.
    pub threshold: u32,
    /// Page offset of the first byte.
    pub start: u32,
    /// Where the jump cache has it: an index, `JC_NONE` or `JC_MANY`.
    pub jc: u16,
    pub dead: bool,
    /// Tier 0's form; `ops[0]` is the block start.
    pub ops: Box<[COp]>,
    /// RAM page of the second part of a straddling block.
    pub second: Option<u64>,
    /// Entry address of compiled code, 0 if there is none or the block was dropped: with the program counter in rdi, from who has looked
    /// whether the dispatcher is wanted.
    pub code: u64,
    /// Entry of compiled code that needs only the page's program counter in the state, 0 as `code`.
    pub linked: u64,
    /// The same for calls, which ask whether the dispatcher is wanted, and for edges that lead forward, in the page or out of it, which
    /// do not, as every loop also has an edge that leads back.
    pub forward: u64,
    pub key: BlockKey,
    /// Page offset of the byte after the last (more than 4096 if it straddles).
    pub end: u32,
    /// Page offset behind the last byte that it was made from, `end` or more: its compiled code may go on behind branches.
    pub reach: u32,
    /// Runs in tier 1 until it asks for a region; counted down by its code.
    pub hot: u32,
    /// Indexes in `ops` of edges.
    pub edges: [u16; 2],
    pub insns: u32,
    /// What its translation relies on, if on anything: `ir::CodeFetch::guess`.
    pub guess: Option<u32>,
    /// Handler that block starts get when the block is dropped.
    pub dead_start: Handler,
    /// Source bytes that it holds no copy of, as page offsets: `ir::Block::loose`.
    pub loose: Box<[(u16, u16)]>,
    /// (index in `ops`, page offset) of each guest instruction.
    pub insn_at: Box<[(u16, u16)]>,
    pub incoming: Vec<*mut Edge>,
    /// Its code from tier 1, while `code` is that.
    pub tier1: Option<Box<Tier1Code>>,
    /// Edges of tier 1 code, as (block, number), that jump to `linked`.
    pub callers: Vec<(*mut Record, u8)>,
}

const _: () = assert!(std::mem::offset_of!(Record, linked) < 64 && size_of::<Record>() == 256);

impl Record {
    /// Whether its compiled code is a region.
    pub fn in_region(&self) -> bool {
        self.code != 0 && self.tier1.is_none()
    }

    /// Page offset of the guest instruction that the op at `op` belongs to, and the block's number of instructions from it on.
    pub fn place_of(&self, op: *const COp) -> (u32, u64) {
        let index = (op as usize - self.ops.as_ptr() as usize) / size_of::<COp>();
        let i = self.insn_at.partition_point(|(at, _)| usize::from(*at) <= index).saturating_sub(1);
        let rest = u64::from(self.insns) - i as u64;
        (self.insn_at.get(i).map_or(self.start, |at| at.1.into()), rest)
    }

    /// Whether it is part of no region, nor of another block's code: its second page may be mapped elsewhere next time, or its source
    /// changes.
    pub fn stays_alone(&self) -> bool {
        self.second.is_some() || !self.loose.is_empty()
    }

    /// Source bytes that it holds no copy of.
    pub fn loose(&self) -> Changing {
        let mut all = Changing::default();
        for (from, to) in &self.loose {
            let fits = all.add(*from, *to);
            debug_assert!(fits, "they were asked for in as few ranges");
        }
        all
    }

    /// Whether it holds a copy of a byte of a range.
    fn copies(&self, offset: u64, end: u64) -> bool {
        let page = self.key.phys & !0xfff;
        // Loose bytes are apart, in any order: behind all of them that lead on from the first byte is another, or the end.
        let tied = |from: u64, to: u64| {
            let (mut at, to) = (from.max(offset), to.min(end));
            while let Some((_, t)) = self.loose.iter().find(|(f, t)| (page + u64::from(*f)..page + u64::from(*t)).contains(&at)) {
                at = page + u64::from(*t);
            }
            at < to
        };
        self.ranges().into_iter().flatten().any(|(from, to)| tied(from, to))
    }

    /// RAM byte ranges of its source.
    fn ranges(&self) -> [Option<(u64, u64)>; 2] {
        let page = self.key.phys & !0xfff;
        let first = (page + u64::from(self.start), page + u64::from(self.reach.min(4096)));
        let second = self.second.map(|p| (p << 12, (p << 12) + u64::from(self.end.saturating_sub(4096)).max(1)));
        [Some(first), second]
    }

    fn edge(&mut self, i: usize) -> Option<*mut Edge> {
        match self.edges[i] {
            0 => None,
            at => Some((&raw mut self.ops[usize::from(at)]).cast()),
        }
    }

    /// Page offset of the target and count of the taken and not-taken edge (the first only for an unconditional jump).
    pub fn successors(&self) -> impl Iterator<Item = (i32, u32)> + '_ {
        self.edges.iter().filter(|at| **at != 0).map(|at| {
            // SAFETY: `edges` names slots that hold an `Edge`, which is as large as a `COp`.
            let e = unsafe { &*(&raw const self.ops[usize::from(*at)]).cast::<Edge>() };
            (e.off, e.count)
        })
    }
}

/// A compiled region, as far as entering and invalidation are concerned. It lies in one page.
pub struct Region {
    pub mode: u64,
    /// Live records that enter it.
    pub entries: Vec<*mut Record>,
    /// Source bytes, as RAM offsets.
    pub ranges: Vec<(u64, u64)>,
    /// Page offsets of its blocks; block i is entered at `thunks + THUNK * i`.
    pub members: Vec<u32>,
    pub thunks: u64,
    pub code: Range,
    /// Block-start handler of the entries while the region lives.
    pub compiled_start: Handler,
    /// Handler that they get back, and after how many runs they are compiled again.
    pub start: Handler,
    pub threshold: u32,
}

impl Region {
    /// Lets `rec` (live) enter here if it is one of the blocks. True if it does.
    fn adopt(&mut self, rec: *mut Record) -> bool {
        // SAFETY: by the caller's promise.
        let r = unsafe { &mut *rec };
        let Some(i) = self.members.iter().position(|s| *s == r.start) else { return false };
        let fits = r.key.mode == self.mode && !r.in_region() && !r.stays_alone();
        if fits {
            r.linked = self.thunks + (THUNK * i) as u64;
            r.forward = r.linked;
            r.code = r.linked + THUNK_FULL as u64;
            r.ops[0].set_handler(self.compiled_start);
            self.entries.push(rec);
        }
        fits
    }
}

/// A page of which the guest has rewritten more blocks than this is taken to be written again and again.
const CALM: u32 = 32;

#[derive(Default)]
struct PageCode {
    records: Vec<*mut Record>,
    regions: Vec<u32>,
    granules: u64,
}

#[derive(Default)]
pub struct Cache {
    blocks: FxHashMap<BlockKey, *mut Record>,
    pages: FxHashMap<u64, PageCode>,
    graveyard: Vec<*mut Record>,
    regions: FxHashMap<u32, Region>,
    next_region: u32,
    /// Code of dropped regions; the compiler frees it.
    pub freed: Vec<Range>,
    /// How often code of a page was dropped because the guest wrote to it, by RAM page.
    churn: FxHashMap<u64, u32>,
    /// Records whose compiled code came or went since the jump cache was last told.
    pub changed: Vec<*mut Record>,
    /// Where compiled code lies; none without a compiler.
    pub arena: Option<Arena>,
    /// Which keys of links are free.
    pub keys: Keys,
    /// Writes to code by the instruction that runs alone: first byte, length.
    writes: Vec<(u64, u64)>,
    pub unlike: Unlike,
    pub rewritten: Rewritten,
    pub invalidations: u64,
    pub insns: u64,
    /// The vCPU among others of its machine, if there are any.
    pub member: Option<Member>,
}

impl Cache {
    pub fn get(&self, key: &BlockKey) -> Option<*mut Record> {
        self.blocks.get(key).copied()
    }

    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub fn records(&self) -> impl Iterator<Item = &Record> {
        // SAFETY: records in `blocks` are live; the shared borrow of `self` keeps them so.
        self.blocks.values().map(|r| unsafe { &**r })
    }

    /// Takes a record in, in place of one with the same key. Its pages have been claimed (`VcpuBlock::claim_code_page`).
    pub fn insert(&mut self, rec: Box<Record>) -> *mut Record {
        self.insns += u64::from(rec.insns);
        let (key, ranges) = (rec.key, rec.ranges());
        let p = Box::into_raw(rec);
        for (from, to) in ranges.into_iter().flatten() {
            let page = self.pages.entry(from >> 12).or_default();
            page.records.push(p);
            page.granules |= granules(from, to);
            for id in &page.regions {
                if let Some(region) = self.regions.get_mut(id) {
                    // It has no other code yet.
                    let _ = region.adopt(p);
                }
            }
        }
        if let Some(old) = self.blocks.insert(key, p) {
            self.unlink(old);
            self.forget(old);
            self.graveyard.push(old);
        }
        p
    }

    /// Keeps a record that is used once only until the next `bury`.
    pub fn insert_transient(&mut self, rec: Box<Record>) -> *mut Record {
        let p = Box::into_raw(rec);
        self.graveyard.push(p);
        p
    }

    /// Whether stored code was read from any byte of a range within one page.
    pub fn overlaps(&self, offset: u64, len: u64) -> bool {
        self.pages.get(&(offset >> 12)).is_some_and(|p| self.meets(p, offset, len))
    }

    /// Whether stored code was read from the page of a range, but from none of its bytes.
    pub fn lies_beside(&self, offset: u64, len: u64) -> bool {
        self.pages.get(&(offset >> 12)).is_some_and(|p| !self.meets(p, offset, len))
    }

    fn meets(&self, p: &PageCode, offset: u64, len: u64) -> bool {
        let meets = |&(from, to): &(u64, u64)| from < offset + len && offset < to;
        len != 0
            && p.granules & granules(offset, offset + len) != 0
            // SAFETY: records listed in `pages` are live.
            && (p.records.iter().any(|r| unsafe { &**r }.copies(offset, offset + len))
                || p.regions.iter().any(|id| self.regions[id].ranges.iter().any(meets)))
    }

    /// Whether any code of the page is kept.
    pub fn has_code(&self, page: u64) -> bool {
        self.pages.contains_key(&page)
    }

    /// Remembers a store to code, to be applied when the instruction has ended.
    pub fn note_write(&mut self, offset: u64, len: u64) {
        self.writes.push((offset, len));
    }

    /// Lets other vCPUs know where the source bytes of a kept record lie (the caller reads them again).
    pub fn publish(&self, ram: &Ram, rec: *mut Record) {
        if let Some(m) = &self.member {
            // SAFETY: by the caller's promise `rec` is live.
            for (from, to) in unsafe { &*rec }.ranges().into_iter().flatten() {
                m.note_source(ram, from, to);
            }
        }
    }

    /// Where other vCPUs may have written unseen: publishes a region's source, and tells whether it is what was compiled.
    pub fn source_is_still(&self, ram: &Ram, c: &Compiled) -> bool {
        let (Some(m), Some(then)) = (&self.member, &c.bytes) else { return true };
        let mut now = [0; 4096];
        c.ranges.iter().filter(|(from, to)| from < to).all(|&(from, to)| {
            m.note_source(ram, from, to);
            let (start, len) = ((from & 0xfff) as usize, (to - from) as usize);
            ram.read(from, &mut now[..len]);
            then[start..start + len] == now[..len]
        })
    }

    /// Applies noted writes: drops every block whose source bytes they changed.
    pub fn apply_writes(&mut self, ram: &Ram) {
        for (offset, len) in std::mem::take(&mut self.writes) {
            self.drop_range(ram, offset, len, true);
        }
    }

    /// Another vCPU stored to code, all of it in one page.
    pub fn peer_wrote(&mut self, ram: &Ram, offset: u64, len: u64) {
        self.drop_range(ram, offset, len, true);
    }

    /// Drops every block with a source byte in the range; neighbours in the page stay.
    pub fn invalidate(&mut self, ram: &Ram, offset: u64, len: u64) {
        self.drop_range(ram, offset, len, false);
    }

    /// `by_guest`: counts for the pages in which the dropped blocks start.
    fn drop_range(&mut self, ram: &Ram, offset: u64, len: u64, by_guest: bool) {
        let end = offset + len.max(1);
        for page in offset >> 12..=(end - 1) >> 12 {
            let Some(code) = self.pages.get(&page) else { continue };
            let hit: Vec<*mut Record> = code
                .records
                .iter()
                .copied()
                .filter(|r| {
                    // SAFETY: records listed in `pages` are live.
                    unsafe { &**r }.copies(offset, end)
                })
                .collect();
            let dead: Vec<u32> = code
                .regions
                .iter()
                .copied()
                .filter(|id| self.regions[id].ranges.iter().any(|(from, to)| *from < end && offset < *to))
                .collect();
            ram.bump_version(page);
            if by_guest && !dead.is_empty() {
                self.note_churn(page);
            }
            dead.into_iter().for_each(|id| self.drop_region(id));
            for r in hit {
                vm_core::dlog!(SMC, "drop block at RAM offset {:#x}", key_of(r).phys);
                self.invalidations += 1;
                if by_guest {
                    self.note_churn(key_of(r).phys >> 12);
                }
                self.blocks.remove(&key_of(r));
                self.unlink(r);
                self.forget(r);
                self.graveyard.push(r);
            }
            if self.pages.get(&page).is_some_and(|c| c.records.is_empty() && c.regions.is_empty()) {
                self.pages.remove(&page);
                self.release_page(ram, page);
            }
        }
    }

    /// No code of the page is left here.
    pub fn release_page(&self, ram: &Ram, page: u64) {
        match &self.member {
            Some(m) => m.forget_page(ram, page),
            None => ram.clear_page_bits(page, PageBits::CODE),
        }
    }

    fn note_churn(&mut self, page: u64) {
        let n = self.churn.entry(page).or_default();
        *n = n.saturating_add(1);
    }

    /// Whether code of the page is written again and again: compiling it pays only if it runs long.
    pub fn changes_often(&self, page: u64) -> bool {
        self.churn.get(&page).is_some_and(|n| *n > CALM)
    }

    /// Takes a compiled region in; the page's blocks enter it from now on.
    pub fn add_region(&mut self, mut region: Region) {
        let id = self.next_region;
        self.next_region += 1;
        let page = region.ranges.first().and_then(|r| self.pages.get(&(r.0 >> 12)));
        let adopted: Vec<*mut Record> = page.into_iter().flat_map(|p| &p.records).copied().filter(|r| region.adopt(*r)).collect();
        for r in adopted {
            self.changed.push(r);
            self.drop_tier1(r);
            self.point_callers(r);
        }
        for &(from, to) in &region.ranges {
            let page = self.pages.entry(from >> 12).or_default();
            page.granules |= granules(from, to);
            if !page.regions.contains(&id) {
                page.regions.push(id);
            }
        }
        self.regions.insert(id, region);
    }

    pub fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// Drops a region: its entry runs in tier 0 again.
    fn drop_region(&mut self, id: u32) {
        let Some(region) = self.regions.remove(&id) else { return };
        self.invalidations += 1;
        if let Some(page) = region.ranges.first().and_then(|r| self.pages.get_mut(&(r.0 >> 12))) {
            page.regions.retain(|x| *x != id);
        }
        for entry in region.entries {
            // SAFETY: a record that is dropped leaves the regions it enters (`forget`), so `entry` is live.
            let entry = unsafe { &mut *entry };
            self.unlink_callers(entry);
            self.changed.push(entry);
            (entry.code, entry.linked, entry.forward) = (0, 0, 0);
            entry.ops[0].set_handler(region.start);
            entry.threshold = entry.runs.saturating_add(region.threshold);
        }
        self.freed.push(region.code);
    }

    /// Drops every region: the arena is full.
    pub fn drop_regions(&mut self) {
        let all: Vec<u32> = self.regions.keys().copied().collect();
        all.into_iter().for_each(|id| self.drop_region(id));
    }

    /// Removes a record from the page index and from the regions that it enters.
    fn forget(&mut self, r: *mut Record) {
        // SAFETY: `r` is live.
        let (code, page) = unsafe { ((*r).code, (*r).key.phys >> 12) };
        if let (true, Some(page)) = (code != 0, self.pages.get(&page)) {
            for id in &page.regions {
                if let Some(region) = self.regions.get_mut(id) {
                    region.entries.retain(|e| !ptr::eq(*e, r));
                }
            }
        }
        self.unlink_callers(r);
        self.drop_tier1(r);
        self.changed.push(r);
        // SAFETY: `r` is live: it was just taken out of `blocks`.
        let ranges = unsafe {
            (*r).dead = true;
            ((*r).code, (*r).linked, (*r).forward) = (0, 0, 0);
            (*r).ops[0].set_handler((*r).dead_start);
            (*r).ranges()
        };
        for (from, _) in ranges.into_iter().flatten() {
            if let Some(page) = self.pages.get_mut(&(from >> 12)) {
                page.records.retain(|x| !ptr::eq(*x, r));
                page.granules = page.records.iter().fold(0, |g, x| {
                    // SAFETY: records listed in `pages` are live.
                    let x = unsafe { &**x };
                    x.ranges()
                        .into_iter()
                        .flatten()
                        .filter(|(f, _)| f >> 12 == from >> 12)
                        .fold(g, |g, (f, t)| g | granules(f, t))
                });
                for id in &page.regions {
                    page.granules = self.regions[id].ranges.iter().fold(page.granules, |g, (f, t)| g | granules(*f, *t));
                }
            }
        }
    }

    /// Code of `rec` (live) is about to be made from its page's bytes up to an offset.
    pub fn reach(&mut self, ram: &Ram, rec: *mut Record, end: u32) {
        // SAFETY: by the caller's promise.
        let ranges = unsafe {
            (*rec).reach = (*rec).reach.max(end);
            (*rec).ranges()
        };
        for (from, to) in ranges.into_iter().flatten() {
            if let Some(page) = self.pages.get_mut(&(from >> 12)) {
                page.granules |= granules(from, to);
            }
        }
        self.publish(ram, rec);
    }

    /// Cuts all links to and from a record.
    fn unlink(&mut self, r: *mut Record) {
        // SAFETY: `r` is live; edges in `incoming` belong to live records, as a dying record takes its own out below.
        unsafe {
            for e in std::mem::take(&mut (*r).incoming) {
                (*e).link = ptr::null_mut();
            }
            for i in 0..2 {
                let Some(e) = (*r).edge(i) else { continue };
                if !(*e).link.is_null() {
                    let target = (*(*e).link).record();
                    (*target).incoming.retain(|x| !ptr::eq(*x, e));
                    (*e).link = ptr::null_mut();
                }
            }
        }
    }

    /// Links an edge to a record in the same page.
    ///
    /// # Safety
    /// `e` is an edge of a live record, `to` is live.
    pub unsafe fn link(&mut self, e: *mut Edge, to: *mut Record) {
        // SAFETY: by the caller's promise.
        unsafe {
            if (*e).link.is_null() {
                (*e).link = (&raw mut (*to).ops).as_mut().expect("not null").as_mut_ptr();
                (*to).incoming.push(e);
            }
        }
    }

    /// Frees dropped records. Called by the dispatcher, which holds no pointer to one, after clearing the jump cache; returns the guest instructions that
    /// they executed in tier 0, for statistics.
    pub fn bury(&mut self) -> u64 {
        let mut executed = 0;
        for r in self.graveyard.drain(..) {
            // SAFETY: it came from `Box::into_raw` and left every index.
            let r = unsafe { Box::from_raw(r) };
            executed += u64::from(r.runs) * u64::from(r.insns);
        }
        executed
    }

    /// Dropped records not yet freed.
    pub fn dead(&self) -> usize {
        self.graveyard.len()
    }

    /// Drops everything.
    pub fn clear(&mut self, ram: &Ram) {
        self.drop_regions();
        for page in std::mem::take(&mut self.pages).into_keys() {
            ram.bump_version(page);
            self.release_page(ram, page);
        }
        for (_, r) in std::mem::take(&mut self.blocks) {
            self.unlink(r);
            self.forget(r);
            self.graveyard.push(r);
        }
    }
}

/// Key of a live record.
pub fn key_of(r: *mut Record) -> BlockKey {
    // SAFETY: callers pass live records.
    unsafe { (*r).key }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.graveyard.extend(self.blocks.drain().map(|(_, r)| r));
        self.bury();
    }
}

#[cfg(test)]
pub mod tests;
