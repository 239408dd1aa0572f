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

/// The one left last comes last.
#[derive(Default)]
pub struct LeftSpaces(Vec<Left>);

impl LeftSpaces {
    /// None can be come back to.
    pub fn forget(&mut self) {
        self.0.clear();
    }

    /// Nor can this one.
    pub fn forget_one(&mut self, id: u64) {
        self.0.retain(|l| l.id != id);
    }

    fn add(&mut self, left: Left) {
        self.forget_one(left.id);
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push(left);
    }

    fn take(&mut self, id: u64) -> Option<Left> {
        let at = self.0.iter().position(|l| l.id == id)?;
        Some(self.0.remove(at))
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
        self.left.add(left);
        let back = self.left.take(to).filter(|_| keep);
        self.local_code_moved();
        if let Some(back) = back {
            self.fills.come_back(&mut self.eng.tlb, &back.pages);
            self.jc_come_back(&back.jumps);
            self.known_pages.local = back.known;
            self.large.put_local(back.large);
            self.eng.spaces.local = back.space;
        }
    }
}
