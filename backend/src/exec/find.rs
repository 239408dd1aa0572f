//! Finding the block at the program counter: jump cache, TLB and page walk, translation cache.
//!
//! UNSAFE: reads records of the jump cache and the cache.
#![allow(unsafe_code)]

use super::{Driver, OBSERVED, ONE};
use crate::cache::Record;
use crate::mmu::Place;
use crate::vblock::VcpuBlock;
use ir::{BlockKey, Frontend};
use vm_core::guest::GuestCpu;
use vm_core::log::{self, Item};
use vm_core::{Access, Fault, Va};

impl<F: Frontend, C: GuestCpu> Driver<F, C> {
    /// The block at the program counter, translated if need be; sets mode, mask and the page's program counter.
    pub(super) fn find(&mut self, b: &mut VcpuBlock<C>, one: bool) -> Result<*mut Record, Fault> {
        let (pc, mode) = (b.cpu.pc(), b.cpu.mode() | if b.observing.is_some() { OBSERVED } else { 0 });
        let mode = mode | b.break_mode(pc);
        b.eng.mode = mode;
        b.eng.pc_mask = (self.fe.layout().pc_mask)(mode);
        // The jump cache knows program counters, not linear addresses.
        let base = b.cpu.code_base();
        if base != b.eng.code_base {
            b.eng.code_base = base;
            b.code_moved();
        }
        let e = b.jc_entry(pc, mode);
        // SAFETY: records named by the jump cache are freed only after it was cleared.
        let known = !one && e.is_of(pc, mode) && !unsafe { (*e.rec).dead || (*e.rec).second.is_some() };
        if known && e.holds(pc, mode) {
            // SAFETY: as above.
            b.set_page_pc(pc, unsafe { (*e.rec).start });
            return Ok(e.rec);
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
        // SAFETY: as above, and nothing was freed since.
        let same = (known && unsafe { (*e.rec).key == key }).then_some(e.rec);
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
    /// Sets the program counter of the page's first byte, given one in it.
    pub(super) fn set_page_pc(&mut self, pc: u64, page_offset: u32) {
        let off = self.eng.pc_page_off as usize;
        let v = pc.wrapping_sub(page_offset.into());
        // SAFETY: the layout's `pc_page` slot lies inside the state.
        unsafe { self.seam().add(off).cast::<u64>().write_unaligned(v) }
    }
}
