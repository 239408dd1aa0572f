//! Dead stores to state: a `set` whose bytes later sets overwrite, or make meaningless (`StateLayout::unused`), before anything reads
//! them, can leave or ends the block.
//! This is what removes the flags that nobody asks for; hence the pass's name `dead_flags`.

use super::{Passes, SlotBytes, Tables};
use crate::block::Block;
use crate::layout::{SlotId, StateLayout};
use crate::ops::{Effects, Op};

/// Per slot the bytes that are overwritten further down; valid only if stamped with the current epoch.
#[derive(Default)]
pub struct Scratch {
    dead: Vec<(u32, u16)>,
    epoch: u32,
    flat: Vec<u16>,
}

impl Scratch {
    fn start(&mut self, layout: &StateLayout, dead_out: &SlotBytes) {
        if self.dead.len() < layout.slots.len() {
            self.dead.resize(layout.slots.len(), (0, 0));
        }
        self.forget();
        for (d, m) in self.dead.iter_mut().zip(dead_out) {
            *d = (self.epoch, *m);
        }
    }

    /// From here up nothing is known to be overwritten.
    fn forget(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.dead.fill((0, 0));
            self.epoch = 1;
        }
    }

    fn slot(&mut self, slot: SlotId) -> &mut u16 {
        let d = &mut self.dead[usize::from(slot.0)];
        if d.0 != self.epoch {
            *d = (self.epoch, 0);
        }
        &mut d.1
    }

    /// What is known at the top of the walk, by slot.
    pub fn entry(&mut self, layout: &StateLayout) -> &SlotBytes {
        let epoch = self.epoch;
        self.flat.clear();
        self.flat.extend(self.dead[..layout.slots.len()].iter().map(|d| if d.0 == epoch { d.1 } else { 0 }));
        &self.flat
    }
}

pub fn run(p: &mut Passes, block: &mut Block, t: Tables) {
    with_edges(p, block, t, &[]);
}

/// `dead_out`: see `Passes::dead_state_at_edges`.
pub fn with_edges(p: &mut Passes, block: &mut Block, t: Tables, dead_out: &SlotBytes) {
    p.dead.start(t.layout, dead_out);
    p.keep.clear();
    p.keep.resize(block.insts.len(), true);
    let mut all = true;
    for (n, i) in block.insts.iter().enumerate().rev() {
        let bytes = ((1u32 << i.ty.bytes()) - 1).unbounded_shl(i.imm as u32) as u16;
        match i.op {
            Op::Set => {
                let dead = p.dead.slot(i.slot());
                if *dead & bytes == bytes {
                    p.keep[n] = false;
                    all = false;
                }
                *dead |= bytes;
                t.layout.unused_after(i, block).iter().for_each(|s| *p.dead.slot(*s) = u16::MAX);
            }
            Op::Get => *p.dead.slot(i.slot()) &= !bytes,
            // What follows the block by the program counter of the state goes to the dispatcher: it reads everything.
            Op::Exit | Op::ExitNext | Op::JumpInd => p.dead.forget(),
            _ => {
                if i.effects(t.helpers).has(Effects::MAY_LEAVE.or(Effects::READS_STATE)) {
                    p.dead.forget();
                }
            }
        }
    }
    if !all {
        p.rewrite.compact(block, &p.keep);
    }
}
