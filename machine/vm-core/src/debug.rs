//! What a debugger outside the guest wants of a vCPU: where to stop, and how far to go. Nothing of it is visible to the guest.

use crate::addr::{PAGE_SIZE, Va};
use crate::guest::Access;
use std::ops::Range;
use std::sync::Arc;

/// A place in code where vCPUs stop, before the instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Breakpoint {
    /// Linear address.
    pub va: u64,
    /// What the debugger asked for; both kinds work alike.
    pub hard: bool,
    /// It counts only where the judge says so.
    pub conditional: bool,
}

/// Accesses that a watchpoint is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchKind {
    Write,
    Read,
    Any,
}

/// Bytes whose accesses stop a vCPU, after the instruction, or the element of a repeated one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watchpoint {
    /// First byte.
    pub at: u64,
    /// Number of bytes, 1 or more; they do not wrap.
    pub len: u64,
    pub kind: WatchKind,
    /// `at` is a physical address, not a linear one.
    pub physical: bool,
}

impl Watchpoint {
    fn meets(&self, at: u64, len: u64) -> bool {
        at.wrapping_sub(self.at) < self.len || self.at.wrapping_sub(at) < len
    }

    fn is_about(&self, write: bool) -> bool {
        match self.kind {
            WatchKind::Write => write,
            WatchKind::Read => !write,
            WatchKind::Any => true,
        }
    }
}

/// Where vCPUs stop. Made once, then shared.
#[derive(Clone, Debug, Default)]
pub struct Stops {
    /// By address; several at one address are possible.
    breaks: Vec<Breakpoint>,
    /// Pages with breakpoints, ascending.
    pages: Vec<u64>,
    watches: Vec<Watchpoint>,
}

impl Stops {
    pub fn new(mut breaks: Vec<Breakpoint>, watches: Vec<Watchpoint>) -> Self {
        breaks.sort_by_key(|b| b.va);
        let mut pages: Vec<u64> = breaks.iter().map(|b| b.va / PAGE_SIZE).collect();
        pages.dedup();
        Self { breaks, pages, watches }
    }

    pub fn breakpoints(&self) -> &[Breakpoint] {
        &self.breaks
    }

    pub fn watchpoints(&self) -> &[Watchpoint] {
        &self.watches
    }

    /// Is there a breakpoint in the page of `va`?
    pub fn breaks_in_page(&self, va: Va) -> bool {
        self.pages.binary_search(&(va.0 / PAGE_SIZE)).is_ok()
    }

    /// Breakpoints at `va`, as indexes of `breakpoints`.
    pub fn breaks_at(&self, va: Va) -> Range<usize> {
        let first = self.breaks.partition_point(|b| b.va < va.0);
        let n = self.breaks[first..].iter().take_while(|b| b.va == va.0).count();
        first..first + n
    }

    /// Must accesses of this kind to the page of `va`, at physical page `pa`, be looked at one by one?
    pub fn watches_page(&self, va: u64, pa: u64, access: Access) -> bool {
        let page = |w: &Watchpoint| if w.physical { pa } else { va } & !(PAGE_SIZE - 1);
        self.watches.iter().any(|w| w.is_about(access == Access::Write) && w.meets(page(w), PAGE_SIZE))
    }

    /// First watched byte, by the kind of address that the watchpoint has, of an access of `size` bytes at `va` in one page
    /// that a watchpoint is about. `pa`: the physical address, where it is known.
    pub fn watched(&self, va: u64, pa: Option<u64>, size: u8, write: bool) -> Option<(u64, WatchKind)> {
        let hit = |w: &Watchpoint| {
            let at = if w.physical { pa? } else { va };
            let first = if w.at.wrapping_sub(at) < u64::from(size) { w.at } else { at };
            (w.is_about(write) && w.meets(at, size.into())).then_some((first, w.kind))
        };
        self.watches.iter().find_map(hit)
    }
}

/// Decides about conditional breakpoints, on the vCPU's thread.
pub trait Judge<C>: Send + Sync {
    /// Is breakpoint `index` of `Stops::breakpoints` met? `read` reads memory at a linear address as far as it is mapped;
    /// `false`: some of it is not.
    fn holds(&self, index: usize, cpu: &C, read: &mut dyn FnMut(Va, &mut [u8]) -> bool) -> bool;
}

/// Breakpoints and watchpoints, and who decides about them.
pub struct Plan<C> {
    pub stops: Stops,
    pub judge: Option<Box<dyn Judge<C>>>,
}

/// How far a vCPU goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Go {
    /// Until something stops it.
    #[default]
    On,
    /// One instruction, one iteration of a repeated one, or the entry into a handler; then on for as long as the linear
    /// address of the next instruction lies in `range`. `masked`: interrupts wait, unless the CPU is halted.
    Step { range: Range<u64>, masked: bool },
}

/// Why a vCPU stopped for the debugger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DebugEvent {
    /// It has gone as far as `Go::Step` says.
    Step,
    Break {
        hard: bool,
    },
    Watch {
        /// First watched byte that was accessed, by the kind of address that the watchpoint has.
        at: u64,
        kind: WatchKind,
    },
}

/// What engines keep of a plan.
pub type SharedPlan<C> = Arc<Plan<C>>;

#[cfg(test)]
mod tests {
    use super::*;

    fn at(va: u64) -> Breakpoint {
        Breakpoint { va, hard: false, conditional: false }
    }

    fn watch(at: u64, len: u64, kind: WatchKind, physical: bool) -> Watchpoint {
        Watchpoint { at, len, kind, physical }
    }

    #[test]
    fn breakpoints_are_found_by_page_and_address() {
        let s = Stops::new(vec![at(0x5010), at(0x1000), at(0x5010), at(u64::MAX)], vec![]);
        assert_eq!((s.breaks_at(Va(0x5010)), s.breaks_at(Va(0x5011)).len(), s.breaks_at(Va(u64::MAX))), (1..3, 0, 3..4));
        assert!(s.breaks_in_page(Va(0x5fff)) && s.breaks_in_page(Va(!0xfff)) && !s.breaks_in_page(Va(0x4fff)));
    }

    #[test]
    fn watchpoints_meet_accesses_that_touch_a_byte() {
        let s = Stops::new(vec![], vec![watch(0x1ffe, 4, WatchKind::Write, false), watch(0x9000, 1, WatchKind::Read, true)]);
        assert_eq!(s.watched(0x1ff8, None, 8, true), Some((0x1ffe, WatchKind::Write)));
        assert_eq!(s.watched(0x2001, None, 1, true), Some((0x2001, WatchKind::Write)));
        assert_eq!((s.watched(0x2002, None, 8, true), s.watched(0x1ffe, None, 1, false)), (None, None));
        assert_eq!(s.watched(0x7ff8, Some(0x8ffc), 8, false), Some((0x9000, WatchKind::Read)));
        assert!(s.watches_page(0x1000, 0, Access::Write) && s.watches_page(0x2123, 0, Access::Write));
        assert!(!s.watches_page(0x1000, 0, Access::Read) && s.watches_page(0, 0x9abc, Access::Read));
    }
}
