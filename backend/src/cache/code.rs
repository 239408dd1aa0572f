//! Compiled code of records: its place in the arena, and the jumps between blocks of tier 1.
//!
//! UNSAFE: as the module above; callers and targets of links are live, as a record that loses its code takes its links away.

use super::{Cache, Record};
use crate::far::Far;
use crate::jit::arena::{Arena, COLD, HostCode, Range};
use crate::tier0::form::Handler;
use crate::tier1::{EDGES, Entries, NEAR_OR_FAR};
use std::ptr;

/// A block's code from tier 1.
pub struct Tier1Code {
    pub range: Range,
    /// For each edge, as offsets in the code: where the rel32 of its jump ends, and the stub for while it has no link.
    pub edges: [Option<(u32, u32)>; EDGES],
    /// Blocks that the edges are linked to.
    pub to: [*mut Record; EDGES],
    /// For edges that leave the page.
    pub far: [Option<Box<Far>>; NEAR_OR_FAR],
    /// Of a block that straddles: holds as a link into the second page would.
    pub guard: Option<Box<Far>>,
    /// The first edge is a call.
    pub calls: bool,
}

impl Record {
    /// Whether an edge of its code is a call.
    fn is_call(&self, edge: u8) -> bool {
        edge == 0 && self.tier1.as_ref().is_some_and(|c| c.calls)
    }

    /// Where an edge of `from`, a block of the same page, enters the code. `calls`: it is a call, which asks for the dispatcher itself.
    fn entry_from(&self, from: &Record, calls: bool) -> u64 {
        if calls || self.start > from.start { self.forward } else { self.linked }
    }
}

/// Where an edge that leaves the page enters the code of `to`. Going round and round takes an edge that leads back: forward alone,
/// program counters of 64 bits would come to addresses that are not canonical, which fault. Narrow ones wrap round.
fn far_entry(far: &Far, to: &Record, calls: bool) -> u64 {
    if calls || far.wide && far.delta > 0 { to.forward } else { to.linked }
}

impl Cache {
    // --- the arena

    /// Copies code in: its range and address; `None` when there is no room.
    pub fn place_code(&mut self, code: HostCode<'_>) -> Option<(Range, u64)> {
        let arena = self.arena.as_mut()?;
        let range = arena.place(code)?;
        Some((range, arena.address(range)))
    }

    /// Frees the code of what was dropped. Nobody is in compiled code now.
    pub fn release_freed(&mut self) {
        if let Some(arena) = &mut self.arena {
            self.freed.drain(..).for_each(|r| arena.release(r));
        }
    }

    /// Bytes of the arena in use.
    pub fn arena_used(&self) -> usize {
        self.arena.as_ref().map_or(0, Arena::used)
    }

    /// Addresses of the hot and the cold part of code.
    pub fn code_parts(&self, r: Range) -> Option<(u64, u64)> {
        self.arena.as_ref().map(|a| (a.address(r), a.address_of(r, COLD)))
    }

    // --- code of tier 1

    /// `rec` (live) gets code from tier 1.
    pub fn add_tier1(&mut self, rec: *mut Record, code: Tier1Code, e: Entries, compiled_start: Handler) {
        let Some(arena) = &self.arena else { return };
        let at = arena.address(code.range);
        // SAFETY: by the caller's promise.
        let r = unsafe { &mut *rec };
        [r.code, r.linked, r.forward] = [e.full, e.linked, e.forward].map(|entry| at + u64::from(entry));
        r.tier1 = Some(Box::new(code));
        r.ops[0].set_handler(compiled_start);
        self.changed.push(rec);
    }

    /// Lets an edge of `from`'s code lead to `to`'s. Both are live.
    pub fn link_code(&mut self, from: *mut Record, edge: u8, to: *mut Record) {
        // SAFETY: by the caller's promise; the references do not overlap in use where both are one record.
        unsafe {
            let calls = (*from).is_call(edge);
            let linked = (*to).entry_from(&*from, calls);
            let Some(code) = (*from).tier1.as_deref_mut().filter(|c| linked != 0 && c.to[usize::from(edge)].is_null()) else {
                return;
            };
            if let (Some((jump, _)), Some(arena)) = (code.edges[usize::from(edge)], &mut self.arena) {
                arena.point(code.range, jump as usize, linked);
                code.to[usize::from(edge)] = to;
                (*to).callers.push((from, edge));
            }
        }
    }

    /// Lets an edge of `from` that leaves the page lead to `to`'s code wherever it has the key. Both are live. `renews`: the code
    /// may give the link a new key by itself.
    pub fn link_far(&mut self, from: *mut Record, edge: u8, to: *mut Record, key: u64, renews: bool) {
        let e = usize::from(edge);
        // SAFETY: by the caller's promise; the references do not overlap in use where both are one record.
        unsafe {
            let (linked, full, calls) = ((*to).linked, (*to).code, (*from).is_call(edge));
            let Some(code) = (*from).tier1.as_deref_mut().filter(|_| linked != 0) else { return };
            if !ptr::eq(code.to[e], to) {
                if let Some(old) = code.to[e].as_mut() {
                    old.callers.retain(|(f, n)| !(ptr::eq(*f, from) && *n == edge));
                }
                let (Some((jump, _)), Some(far), Some(arena)) = (code.edges[e], &code.far[e], &mut self.arena) else { return };
                arena.point(code.range, jump as usize, far_entry(far, &*to, calls));
                code.to[e] = to;
                (*to).callers.push((from, edge));
            }
            if let Some(Some(far)) = code.far.get_mut(e) {
                far.hold(key, if renews { full } else { 0 });
            }
        }
    }

    /// An edge of `from` (live) that leaves the page cannot be linked: it goes through the jump cache from now on.
    pub fn refuse_far(&mut self, from: *mut Record, edge: u8) {
        // SAFETY: by the caller's promise.
        let code = unsafe { (*from).tier1.as_deref_mut() };
        if let Some(far) = code.and_then(|c| c.far.get_mut(usize::from(edge))?.as_mut()) {
            far.refuse();
        }
    }

    /// No link across pages holds any more; each may again.
    pub fn let_all_links_go(&mut self) {
        for r in self.blocks.values() {
            // SAFETY: records in `blocks` are live.
            let code = unsafe { (**r).tier1.as_deref_mut() };
            code.into_iter().flat_map(|c| c.far.iter_mut().chain([&mut c.guard]).flatten()).for_each(|f| f.let_go());
        }
    }

    /// Points the edges that lead to `to` (live) at its code, which is new.
    pub(super) fn point_callers(&mut self, to: *mut Record) {
        // SAFETY: callers are live: a record that loses its code leaves the lists of those that it calls.
        for &(from, edge) in unsafe { &(*to).callers } {
            // SAFETY: as above.
            let calls = unsafe { (*from).is_call(edge) };
            // SAFETY: as above.
            let (near, to) = unsafe { ((*to).entry_from(&*from, calls), &*to) };
            // SAFETY: as above.
            let code = unsafe { (*from).tier1.as_deref_mut() };
            if let (Some(code), Some(arena)) = (code, &mut self.arena) {
                let Some((jump, _)) = code.edges[usize::from(edge)] else { continue };
                let far = code.far.get_mut(usize::from(edge)).and_then(Option::as_mut);
                arena.point(code.range, jump as usize, far.as_ref().map_or(near, |f| far_entry(f, to, calls)));
                if let Some(far) = far {
                    far.follow(to.code);
                }
            }
        }
    }

    /// Edges that lead to `to` (live) go to the dispatcher again.
    pub(super) fn unlink_callers(&mut self, to: *mut Record) {
        // SAFETY: as `point_callers`.
        for (from, edge) in unsafe { std::mem::take(&mut (*to).callers) } {
            // SAFETY: as above.
            let code = unsafe { (*from).tier1.as_deref_mut() };
            if let (Some(code), Some(arena)) = (code, &mut self.arena) {
                let Some((jump, stub)) = code.edges[usize::from(edge)] else { continue };
                code.to[usize::from(edge)] = ptr::null_mut();
                if let Some(Some(far)) = code.far.get_mut(usize::from(edge)) {
                    far.let_go();
                    continue;
                }
                let stub = arena.address_of(code.range, stub as usize);
                arena.point(code.range, jump as usize, stub);
            }
        }
    }

    /// `r` (live) loses its code from tier 1, if it has any.
    pub(super) fn drop_tier1(&mut self, r: *mut Record) {
        // SAFETY: by the caller's promise.
        let Some(code) = (unsafe { (*r).tier1.take() }) else { return };
        for to in code.to.into_iter().filter(|t| !t.is_null()) {
            // SAFETY: targets of links are live: one that dies takes the links to it away.
            unsafe { (*to).callers.retain(|(from, _)| !ptr::eq(*from, r)) };
        }
        code.far.iter().chain([&code.guard]).flatten().for_each(|f| self.keys.give(f.key));
        self.freed.push(code.range);
    }

    /// Drops all code of tier 1: the arena is full.
    pub fn drop_all_tier1(&mut self, start: Handler, threshold: u32) {
        let all: Vec<*mut Record> = self.blocks.values().copied().collect();
        for r in all {
            // SAFETY: records in `blocks` are live.
            let has = unsafe { (*r).tier1.is_some() };
            if has {
                self.unlink_callers(r);
                self.drop_tier1(r);
                self.changed.push(r);
                // SAFETY: as above.
                let r = unsafe { &mut *r };
                (r.code, r.linked, r.forward) = (0, 0, 0);
                r.threshold = r.runs.saturating_add(threshold);
                r.ops[0].set_handler(start);
            }
        }
    }
}
