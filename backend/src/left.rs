//! Address spaces that the guest left and may come back to with its translations kept, as processors keep them by process-context
//! identifier (SDM 3A 4.10.1): their TLB entries, jump-cache entries and the number that their links hold in. All are dropped when
//! code is found in more RAM or a page's use is withdrawn, and when any mapping may have changed.

use crate::far::Space;
use crate::jumps::LeftJump;
use crate::pages::PageSet;
use crate::tlb::LeftPage;
use crate::vblock::VcpuBlock;
use std::mem::take;
use vm_core::guest::GuestCpu;

/// Address spaces that are kept at most. Linux uses six identifiers at a time on each CPU.
const MOST: usize = 8;

struct Left {
    id: u64,
    pages: Vec<LeftPage>,
    jumps: Vec<LeftJump>,
    known: PageSet,
    large: PageSet,
    space: Space,
}

pub struct LeftSpaces {
    /// The one left last comes last.
    list: Vec<Left>,
    /// The number that was given last.
    newest: Space,
}

impl Default for LeftSpaces {
    fn default() -> Self {
        Self { list: Vec::new(), newest: Space::FIRST }
    }
}

impl LeftSpaces {
    /// A number that no space has; `None`: they begin anew, with `Space::FIRST`.
    pub fn number(&mut self) -> Option<Space> {
        let next = self.newest.next();
        self.newest = next.unwrap_or(Space::FIRST);
        next
    }

    /// None can be come back to.
    pub fn forget(&mut self) {
        self.list.clear();
    }

    /// Nor can this one.
    pub fn forget_one(&mut self, id: u64) {
        self.list.retain(|l| l.id != id);
    }

    fn add(&mut self, left: Left) {
        self.forget_one(left.id);
        if self.list.len() == MOST {
            self.list.remove(0);
        }
        self.list.push(left);
    }

    fn take(&mut self, id: u64) -> Option<Left> {
        let at = self.list.iter().position(|l| l.id == id)?;
        Some(self.list.remove(at))
    }
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// The guest goes from one address space to another. `keep`: what was kept of the other still holds.
    pub fn switch_space(&mut self, from: u64, to: u64, keep: bool) {
        let left = Left {
            id: from,
            jumps: self.jc_local(),
            pages: self.fills.leave(&mut self.eng.tlb),
            known: take(&mut self.known_pages.local),
            large: self.large.take_local(),
            space: self.eng.spaces.local,
        };
        // Before the other is added, which may push out the oldest.
        let back = self.left.take(to).filter(|_| keep);
        self.left.add(left);
        self.local_code_moved();
        // Numbers that begin anew have all forgotten, also that which was just added.
        if let Some(back) = back.filter(|_| !self.left.list.is_empty()) {
            self.fills.come_back(&mut self.eng.tlb, &back.pages);
            self.jc_come_back(&back.jumps);
            self.known_pages.local = back.known;
            self.large.put_local(back.large);
            self.eng.spaces.local = back.space;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(id: u64) -> Left {
        let (pages, jumps) = (Vec::new(), Vec::new());
        Left { id, pages, jumps, known: PageSet::default(), large: PageSet::default(), space: Space::FIRST }
    }

    #[test]
    fn the_spaces_left_last_are_kept() {
        let mut l = LeftSpaces::default();
        (0..MOST as u64 + 2).for_each(|id| l.add(left(id)));
        l.add(left(5));
        assert_eq!(l.list.iter().map(|l| l.id).collect::<Vec<_>>(), [2, 3, 4, 6, 7, 8, 9, 5]);
        l.forget_one(4);
        assert!(l.take(4).is_none() && l.take(1).is_none());
        assert_eq!((l.take(2).map(|l| l.id), l.list.len()), (Some(2), MOST - 2));
        l.forget();
        assert!(l.take(5).is_none());
    }

    #[test]
    fn numbers_begin_anew_after_the_last() {
        let mut l = LeftSpaces::default();
        let given = std::iter::from_fn(|| l.number()).count();
        assert!(given > 500_000);
        assert_eq!(l.number(), Space::FIRST.next());
    }
}
