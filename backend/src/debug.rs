//! A debugger's wishes on one vCPU (`vm_core::debug`).
//!
//! Pages with breakpoints have a mode bit of their own: blocks made for it end before each address that has a breakpoint, no
//! link and no jump-cache entry leads there, so the dispatcher comes by and looks. Blocks are found by physical address, so
//! they end at a page offset that has a breakpoint in any page; which offsets these are is part of the mode, as the number of
//! a generation. Pages with watched bytes serve no access that is watched from the TLB. Without either nothing is tested.

use crate::vblock::{LEAVE, VcpuBlock};
use std::ops::Range;
use vm_core::debug::{DebugEvent, Go, SharedPlan};
use vm_core::guest::GuestCpu;
use vm_core::{Access, CpuIo, Fault, Target, Va};

/// Mode bit of blocks of pages with breakpoints.
pub const BREAKS: u64 = 1 << 61;
const GENERATION_SHIFT: u32 = 53;
const GENERATIONS: u64 = 256;
/// Mode bits of `BREAKS` blocks beside the guest's.
pub const BREAK_BITS: u64 = BREAKS | (GENERATIONS - 1) << GENERATION_SHIFT;

/// Page offsets at which blocks end that are kept although no breakpoint has them any more.
const MAX_STALE: u32 = 64;

/// Page offsets at which blocks of pages with breakpoints end.
#[derive(Clone, PartialEq, Eq)]
struct Cuts(Box<[u64; 64]>);

impl Cuts {
    fn none() -> Self {
        Self(Box::new([0; 64]))
    }

    fn of(offsets: impl Iterator<Item = u64>) -> Self {
        let mut cuts = Self::none();
        offsets.for_each(|o| cuts.0[(o >> 6 & 63) as usize] |= 1 << (o & 63));
        cuts
    }

    fn has(&self, offset: u64) -> bool {
        self.0[(offset >> 6 & 63) as usize] >> (offset & 63) & 1 != 0
    }

    fn len(&self) -> u32 {
        self.0.iter().map(|w| w.count_ones()).sum()
    }

    fn with(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.0.iter_mut().zip(&*other.0).for_each(|(a, b)| *a |= b);
        all
    }
}

/// A debugger's wishes, and what came of them.
pub struct Debugging<C> {
    plan: Option<SharedPlan<C>>,
    go: Go,
    cuts: Cuts,
    generation: u64,
    /// The vCPU is to stop for this.
    event: Option<DebugEvent>,
}

impl<C> Default for Debugging<C> {
    fn default() -> Self {
        Self { plan: None, go: Go::On, cuts: Cuts::none(), generation: 0, event: None }
    }
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Sets where to stop.
    pub fn debug(&mut self, plan: Option<SharedPlan<C>>) {
        let mut d = self.debugging.take().unwrap_or_default();
        let same = match (&plan, &d.plan) {
            (None, None) => true,
            (Some(a), Some(b)) => std::sync::Arc::ptr_eq(a, b),
            _ => false,
        };
        if !same {
            let watches = |p: &Option<SharedPlan<C>>| p.as_ref().map_or(Vec::new(), |p| p.stops.watchpoints().to_vec());
            if watches(&d.plan) != watches(&plan) {
                self.fills.flush_all(&mut self.eng.tlb);
            }
            self.code_moved();
            d.plan = plan;
            let breaks = d.plan.as_ref().map_or(&[][..], |p| p.stops.breakpoints());
            let cuts = Cuts::of(breaks.iter().map(|b| b.va & 0xfff));
            let all = d.cuts.with(&cuts);
            if all != d.cuts {
                d.cuts = if all.len() <= cuts.len() + MAX_STALE { all } else { cuts };
                d.generation += 1;
            }
        }
        self.debugging = Some(d);
    }

    /// A generation's number is about to come round: blocks of the last one with it must go.
    pub fn debug_came_round(&mut self) -> bool {
        let Some(d) = self.debugging.as_mut().filter(|d| d.generation >= GENERATIONS) else { return false };
        d.generation = 0;
        true
    }

    /// Sets how far to go.
    pub fn go(&mut self, go: Go) {
        let mut d = self.debugging.take().unwrap_or_default();
        (d.go, d.event) = (go, None);
        self.debugging = Some(d);
    }

    /// Mode bits, beside the guest's, of code at the linear address of program counter `pc`.
    pub fn break_mode(&self, pc: u64) -> u64 {
        let Some((d, plan)) = self.debugging.as_ref().and_then(|d| Some((d, d.plan.as_ref()?))) else { return 0 };
        match plan.stops.breaks_in_page(self.cpu.linear(pc)) {
            true => BREAKS | d.generation << GENERATION_SHIFT,
            false => 0,
        }
    }

    /// May code of blocks with this mode not jump to this page offset by itself?
    pub fn is_cut(&self, mode: u64, offset: u32) -> bool {
        mode & BREAKS != 0 && self.debugging.as_ref().is_some_and(|d| d.cuts.has(offset.into()))
    }

    /// How many instructions of a block may stay together, given (anything, page offset) of each.
    pub fn uncut(&self, mode: u64, insn_at: &[(u16, u16)]) -> Option<u32> {
        let cut = insn_at.iter().skip(1).position(|(_, o)| self.is_cut(mode, u32::from(*o)))?;
        Some(cut as u32 + 1)
    }

    /// Why the vCPU is to stop for the debugger.
    pub fn debug_event(&self) -> Option<DebugEvent> {
        self.debugging.as_ref()?.event
    }

    pub fn debug_due(&self) -> bool {
        self.debug_event().is_some()
    }

    /// The vCPU stops.
    pub fn take_debug_event(&mut self) -> Option<DebugEvent> {
        let d = self.debugging.as_mut()?;
        let event = d.event.take()?;
        d.go = Go::On;
        Some(event)
    }

    /// The range of a step that is under way, and whether interrupts wait.
    pub fn stepping(&self) -> Option<(Range<u64>, bool)> {
        match &self.debugging.as_ref()?.go {
            Go::Step { range, masked } => Some((range.clone(), *masked)),
            Go::On => None,
        }
    }

    /// Must the dispatcher look between two blocks?
    pub fn debug_looks(&self) -> bool {
        let breaks = |d: &Debugging<C>| d.plan.as_ref().is_some_and(|p| !p.stops.breakpoints().is_empty());
        self.debugging.as_ref().is_some_and(|d| d.go != Go::On || breaks(d))
    }

    /// Notes a reason to stop, unless there is one.
    pub fn debug_stop(&mut self, event: DebugEvent) {
        if let Some(d) = &mut self.debugging {
            d.event.get_or_insert(event);
        }
    }

    /// Is there a breakpoint at the program counter, and does its condition hold? The vCPU stops then.
    pub fn at_break(&mut self) -> bool {
        let Some((d, plan)) = self.debugging.as_ref().and_then(|d| Some((d, d.plan.as_ref()?))) else { return false };
        let va = self.cpu.linear(self.cpu.pc());
        if !d.cuts.has(va.0) {
            return false;
        }
        let io = self.machine();
        let mut read = |va: Va, buf: &mut [u8]| read_linear(&self.cpu, io, va, buf);
        let met = |i: &usize| {
            let b = &plan.stops.breakpoints()[*i];
            !b.conditional || plan.judge.as_ref().is_none_or(|j| j.holds(*i, &self.cpu, &mut read))
        };
        let found = plan.stops.breaks_at(va).find(met).map(|i| plan.stops.breakpoints()[i].hard);
        found.into_iter().for_each(|hard| self.debug_stop(DebugEvent::Break { hard }));
        found.is_some()
    }

    /// Whether reads and writes of a page are watched.
    pub fn debug_watches(&self, va: u64, pa: u64) -> (bool, bool) {
        let Some(plan) = self.debugging.as_ref().and_then(|d| d.plan.as_ref()) else { return (false, false) };
        let watches = |a| plan.stops.watches_page(va, pa, a);
        (watches(Access::Read), watches(Access::Write))
    }

    /// Is there a watchpoint at a physical address?
    pub fn watches_physical(&self) -> bool {
        let plan = self.debugging.as_ref().and_then(|d| d.plan.as_ref());
        plan.is_some_and(|p| p.stops.watchpoints().iter().any(|w| w.physical))
    }

    /// Physical address of an access, as far as the debugger must know it.
    fn physical(&self, va: u64) -> Option<u64> {
        let walk = || self.cpu.debug_walk(Va(va), &crate::mmu::WalkMem::new(self.machine()));
        self.watches_physical().then(walk)?.map(|pa| pa.0)
    }

    /// Does an access in one page meet a watchpoint, or may it?
    pub fn debug_cares(&self, va: u64, size: u8, access: Access) -> bool {
        let Some(plan) = self.debugging.as_ref().and_then(|d| d.plan.as_ref()) else { return false };
        self.watches_physical() || plan.stops.watched(va, None, size, access == Access::Write).is_some()
    }

    /// An access that no TLB entry served is about to be done, in one page or across two. `Err`: it is watched, and its
    /// instruction must run alone so that the vCPU stops after it.
    pub fn debug_access(&mut self, va: u64, size: u8, write: bool) -> Result<(), Fault> {
        if self.debugging.is_none() {
            return Ok(());
        }
        // The second page may lie anywhere.
        let first = size.min((0x1000 - (va & 0xfff)).min(0xff) as u8);
        self.debug_part(va, first, write)?;
        if first < size { self.debug_part(va.wrapping_add(first.into()), size - first, write) } else { Ok(()) }
    }

    fn debug_part(&mut self, va: u64, size: u8, write: bool) -> Result<(), Fault> {
        let pa = self.physical(va);
        let Some(plan) = self.debugging.as_ref().and_then(|d| d.plan.as_ref()) else { return Ok(()) };
        let Some((at, kind)) = plan.stops.watched(va, pa, size, write) else { return Ok(()) };
        if !self.eng.single {
            return Err(LEAVE);
        }
        self.debug_stop(DebugEvent::Watch { at, kind });
        Ok(())
    }
}

/// Reads memory for the debugger, page by page. `false`: some of it is neither RAM nor mapped.
fn read_linear<C: GuestCpu>(cpu: &C, io: &dyn CpuIo, va: Va, buf: &mut [u8]) -> bool {
    let (mut at, mut rest) = (va.0, buf);
    while !rest.is_empty() {
        let room = (4096 - (at & 0xfff)).min(rest.len() as u64);
        let (piece, tail) = rest.split_at_mut(room as usize);
        match cpu.debug_walk(Va(at), &crate::mmu::WalkMem::new(io)).map(|pa| io.target(pa)) {
            Some(Target::Ram { offset, .. }) => io.ram().read(offset, piece),
            _ => return false,
        }
        (at, rest) = (at.wrapping_add(room), tail);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_are_page_offsets() {
        let c = Cuts::of([0x1000, 0x5fff, 0x123].into_iter().map(|a| a & 0xfff));
        assert!(c.has(0) && c.has(0xfff) && c.has(0x123) && !c.has(0x124) && c.len() == 3);
        assert_eq!(c.with(&Cuts::of([0x124].into_iter())).len(), 4);
    }
}
