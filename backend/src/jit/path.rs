//! Which branches a block of tier 1 goes on behind: those that nearly always went one way, forward, while tier 0 ran them. State and
//! flags then stay in registers over several blocks, and accesses of several share their checks.
//!
//! UNSAFE: reads live records.
#![allow(unsafe_code)]

use crate::cache::Record;
use crate::debug::BREAKS;
use crate::exec::Settings;
use crate::vblock::VcpuBlock;
use ir::{BlockKey, Path};
use vm_core::guest::GuestCpu;

/// A branch goes one way if it took that at least this many times as often as the other.
const MOSTLY: u64 = 15;
/// Bytes from the first to the last of a block at most: as many as are read (`exec::read_code`).
const REACH: u32 = 1000;
/// Instructions and bytes behind the first branch where nothing is known of what follows.
const UNSEEN: (u32, u32) = (16, 240);

/// What to emit: the path, the number of instructions, and the page offset behind the last of them (at most).
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub path: Path,
    pub insns: u32,
    pub end: u32,
}

/// The way on from `rec`, a live record that has run, or that is compiled at first sight.
pub fn choose<C: GuestCpu>(b: &VcpuBlock<C>, rec: *const Record, s: &Settings) -> Way {
    // SAFETY: by the caller's promise; records in the cache are live, and only this thread touches them.
    let mut at = unsafe { &*rec };
    let mut way = Way { path: Path::default(), insns: at.insns, end: at.end };
    if at.second.is_some() || at.key.mode & BREAKS != 0 {
        return way;
    }
    let (first, page) = (at.start, at.key.phys & !0xfff);
    loop {
        let Some(to) = goes_to(at) else { return way };
        let next = b.cache.get(&BlockKey { phys: page | u64::from(to), mode: at.key.mode });
        let (insns, end) = match next {
            // SAFETY: as above.
            Some(r) => match unsafe { &*r } {
                r if r.in_region() || r.stays_alone() || is_loop(r) => return way,
                r => (r.insns, r.end),
            },
            None if s.threshold == 0 && way.path.is_empty() => (UNSEEN.0, (to + UNSEEN.1).min(4096)),
            None => return way,
        };
        let fits = way.insns + insns <= s.max_insns && end.saturating_sub(first) <= REACH;
        let branch = at.insn_at.last().map_or(at.start, |(_, offset)| u32::from(*offset));
        if !fits || !way.path.push(branch, to) {
            return way;
        }
        (way.insns, way.end) = (way.insns + insns, end);
        match next {
            // SAFETY: as above.
            Some(r) => at = unsafe { &*r },
            None => return way,
        }
    }
}

/// The page offset that a block nearly always goes on at, if it lies behind it in the page.
fn goes_to(r: &Record) -> Option<u32> {
    let all: u64 = r.successors().map(|(_, n)| u64::from(n)).sum();
    // If none was taken yet, the next instruction's.
    let (to, _) = r.successors().filter(|(_, n)| u64::from(*n) * (MOSTLY + 1) >= all * MOSTLY).last()?;
    (to >= r.end as i32 && to < 4096).then_some(to as u32)
}

/// Whether the block may lead back to its own start, or to what lies before it.
fn is_loop(r: &Record) -> bool {
    r.successors().any(|(to, _)| (0..=r.start as i32).contains(&to))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::tests::record;

    #[test]
    fn a_block_goes_on_where_it_nearly_always_did() {
        // (offset, count) of the taken edge and the other, and where the block, from 0x100 to 0x110, goes on.
        for (taken, other, want) in [
            ((0x180, 0), (0x110, 40), Some(0x110)),
            ((0x180, 2), (0x110, 38), Some(0x110)),
            ((0x180, 3), (0x110, 37), None),
            ((0x180, 39), (0x110, 1), Some(0x180)),
            ((0x80, 40), (0x110, 0), None),
            ((0x1010, 40), (0x110, 0), None),
            ((0x180, 0), (0x110, 0), Some(0x110)),
        ] {
            let r = record(0x100, 0x110, [taken, other]);
            assert_eq!(goes_to(&r), want, "{taken:x?} {other:x?}");
        }
        assert!(is_loop(&record(0x100, 0x110, [(0x100, 1), (0x110, 1)])));
        assert!(!is_loop(&record(0x100, 0x110, [(0x108, 1), (0x110, 1)])));
    }
}
