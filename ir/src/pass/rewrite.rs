//! Forward rewriting of a block into a second buffer: each op, its operands already replaced, is kept, dropped or
//! replaced by an earlier or new value.

use crate::block::{Block, Inst, Val};

/// Buffers of one forward walk.
#[derive(Default)]
pub struct Rewrite {
    out: Block,
    map: Vec<Val>,
}

impl Rewrite {
    /// `f` gets the ops written so far and the next op; it writes what it wants and returns the value that stands for
    /// the op's result (anything if it has none).
    pub fn run(&mut self, block: &mut Block, mut f: impl FnMut(&mut Block, Inst) -> Val) {
        self.out.insts.clear();
        self.map.clear();
        self.out.next = block.next;
        for i in &block.insts {
            let v = f(&mut self.out, mapped(*i, &self.map));
            self.map.push(v);
        }
        std::mem::swap(&mut block.insts, &mut self.out.insts);
    }
}

#[inline]
fn mapped(mut i: Inst, map: &[Val]) -> Inst {
    for v in [&mut i.a, &mut i.b, &mut i.c] {
        if *v != Val::NONE {
            *v = map[v.index()];
        }
    }
    i
}

/// Drops the ops whose `keep` is false (nobody kept may use them) and renumbers.
pub fn compact(block: &mut Block, keep: &[bool], map: &mut Vec<Val>) {
    map.clear();
    let mut n = 0;
    for (old, k) in keep.iter().enumerate() {
        map.push(Val(n as u32));
        if *k {
            block.insts[n] = mapped(block.insts[old], map);
            n += 1;
        }
    }
    block.insts.truncate(n);
}

impl Rewrite {
    /// `compact` with this buffer.
    pub fn compact(&mut self, block: &mut Block, keep: &[bool]) {
        compact(block, keep, &mut self.map);
    }
}
