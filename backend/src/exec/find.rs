//! Finding the block at the program counter: jump cache, TLB and page walk, translation cache. Going on there without the
//! dispatcher, where it would do nothing else.
//!
//! UNSAFE: reads records of the jump cache and the cache.
#![allow(unsafe_code)]

use super::{Driver, GRAVES, OBSERVED, ONE};
use crate::cache::Record;
use crate::jumps::{JcEntry, tag_of};
use crate::mmu::Place;
use crate::vblock::VcpuBlock;
use ir::{BlockKey, Frontend};
use std::sync::atomic::Ordering;
use vm_core::guest::GuestCpu;
use vm_core::log::{self, Item};
use vm_core::{Access, Fault, Va};

impl<F: Frontend, C: GuestCpu> Driver<F, C> {
    /// The block at the program counter, translated if need be; sets mode, mask and the page's program counter.
    pub(super) fn find(&mut self, b: &mut VcpuBlock<C>, one: bool) -> Result<*mut Record, Fault> {
        let (pc, mode) = b.take_mode();
        let known = if one { None } else { b.jc_known(pc, mode) };
        if let Some(rec) = known.and_then(|e| b.jc_leads_to(pc, mode, &e)) {
            b.jc_promote(pc, mode);
            return Ok(rec);
        }
        b.eng.stats.lookups += 1;
        let (va, ctx) = (b.cpu.linear(pc), C::mode_ctx(mode));
        b.set_page_pc(pc, (va.0 & 0xfff) as u32);
        let offset = match b.quick(va.0, 1, Access::Execute, ctx) {
            Some(o) => o,
            None => match b.place(va, Access::Execute, ctx)? {
                Place::Ram { offset, .. } => offset,
                Place::Mmio(pa) => return self.translate_mmio(b, pa, va, ctx, mode),
            },
        };
        let key = BlockKey { phys: offset, mode: if one { mode | ONE } else { mode } };
        // SAFETY: records named by the jump cache are freed only after it was cleared.
        let same = known.map(|e| e.rec).filter(|rec| unsafe { (**rec).key == key });
        let rec = match same.or_else(|| b.cache.get(&key)) {
            Some(r) => self.revalidate(b, r, va, ctx)?,
            None => None,
        };
        let rec = match rec {
            Some(r) => r,
            None => match self.translate(b, key, va, ctx)? {
                (r, true) => r,
                (r, false) => return Ok(r),
            },
        };
        // SAFETY: just found or made.
        let (straddles, guarded) = unsafe { ((*rec).second.is_some(), (*rec).tier1.is_some()) };
        if straddles && !b.open_guard(rec, va, ctx) {
            return self.find(b, true);
        }
        // Code of a block that straddles looks for itself where its second page is; nothing else does.
        if !one && (!straddles || guarded) && !log::enabled(Item::NOCHAIN) && !b.is_cut(mode, (va.0 & 0xfff) as u32) {
            let global = b.fills.global(va.0, ctx);
            b.known_pages.add(va.0, global);
            b.jc_fill(pc, mode, rec, global);
        }
        Ok(rec)
    }

    /// A straddling block is right only if its second page is still mapped where it was.
    fn revalidate(&mut self, b: &mut VcpuBlock<C>, r: *mut Record, va: Va, ctx: usize) -> Result<Option<*mut Record>, Fault> {
        // SAFETY: records in the cache are live.
        let Some(second) = (unsafe { (*r).second }) else { return Ok(Some(r)) };
        let next = Va((va.0 & !0xfff).wrapping_add(4096));
        let now = match b.quick(next.0, 1, Access::Execute, ctx) {
            Some(o) => Some(o >> 12),
            None => match b.place(next, Access::Execute, ctx)? {
                Place::Ram { offset, .. } => Some(offset >> 12),
                Place::Mmio(_) => None,
            },
        };
        Ok((now == Some(second)).then_some(r))
    }
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Sets mode and mask for the code at the program counter; gives that and the mode.
    fn take_mode(&mut self) -> (u64, u64) {
        let (pc, mode) = (self.cpu.pc(), self.cpu.mode() | if self.observing.is_some() { OBSERVED } else { 0 });
        let mode = mode | self.break_mode(pc);
        if mode != self.eng.mode {
            self.set_mode(mode);
        }
        // The jump cache knows program counters, not linear addresses.
        let base = self.cpu.code_base();
        if base != self.eng.code_base {
            self.eng.code_base = base;
            self.code_moved();
        }
        (pc, mode)
    }

    /// Sets the mode and what goes by it.
    pub fn set_mode(&mut self, mode: u64) {
        (self.eng.mode, self.eng.tag) = (mode, tag_of(mode));
        self.eng.pc_mask = (self.eng.mask_of)(mode);
        self.eng.table = (&raw const self.eng.tlb.0[C::mode_ctx(mode)].entries) as u64;
    }

    /// What the jump cache has for a program counter, or had: not of a block that is gone, or that straddles.
    fn jc_known(&self, pc: u64, mode: u64) -> Option<JcEntry> {
        let e = self.jc_entry(pc, mode);
        // SAFETY: records named by the jump cache are freed only after it was cleared.
        (e.is_of(pc, mode) && !unsafe { (*e.rec).dead || (*e.rec).second.is_some() }).then_some(e)
    }

    /// The block of an entry of `jc_known` that still holds; sets the page's program counter.
    fn jc_leads_to(&mut self, pc: u64, mode: u64, e: &JcEntry) -> Option<*mut Record> {
        if !e.holds(pc, mode) {
            return None;
        }
        // SAFETY: as in `jc_known`.
        self.set_page_pc(pc, unsafe { (*e.rec).start });
        Some(e.rec)
    }

    /// Between two blocks: something waits that is not the next block.
    pub(super) fn disturbed(&self) -> bool {
        let asked = !self.machine().signals().pending().is_empty() || self.eng.exit.load(Ordering::Relaxed) != 0;
        asked || self.cpu.halted() || self.out_of_budget() || self.debug_due()
    }

    /// So many dropped blocks wait that they are freed.
    pub(super) fn graves_full(&self) -> bool {
        self.cache.dead() > GRAVES
    }

    /// At an end of generated code that may have changed anything: where it goes on if the dispatcher would do nothing but find and
    /// enter the next block's code.
    pub fn straight_on(&mut self) -> Option<u64> {
        let watched = self.debug_looks() || self.observing.is_some() || log::enabled(Item::EXEC | Item::CPU);
        let alone = self.cpu.in_shadow() || self.cpu.single_step();
        if self.graves_full() || self.disturbed() || alone || watched || !self.cache.changed.is_empty() {
            return None;
        }
        let (pc, mode) = self.take_mode();
        let e = self.jc_known(pc, mode)?;
        let rec = self.jc_leads_to(pc, mode, &e)?;
        // SAFETY: as in `jc_known`.
        let code = unsafe { (*rec).code };
        self.eng.stats.straight_on += u64::from(code != 0);
        (code != 0).then_some(code)
    }

    /// Sets the program counter of the page's first byte, given one in it.
    pub(super) fn set_page_pc(&mut self, pc: u64, page_offset: u32) {
        let off = self.eng.pc_page_off as usize;
        let v = pc.wrapping_sub(page_offset.into());
        // SAFETY: the layout's `pc_page` slot lies inside the state.
        unsafe { self.seam().add(off).cast::<u64>().write_unaligned(v) }
    }
}
