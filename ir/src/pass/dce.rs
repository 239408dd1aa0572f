//! Dead code: ops without effects whose results nobody uses go; the rest is renumbered.

use super::{Passes, Tables};
use crate::block::Block;
use crate::ops::Effects;

pub fn run(p: &mut Passes, block: &mut Block, t: Tables) {
    p.keep.clear();
    p.keep.resize(block.insts.len(), false);
    let mut all = true;
    for (n, i) in block.insts.iter().enumerate().rev() {
        if p.keep[n] || i.effects(t.helpers).has(Effects::KEEP) {
            p.keep[n] = true;
            i.each_operand(|v| p.keep[v.index()] = true);
        } else {
            all = false;
        }
    }
    if !all {
        p.rewrite.compact(block, &p.keep);
    }
}
