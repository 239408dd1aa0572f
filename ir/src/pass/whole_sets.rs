//! Sets of the low bytes of a slot of eight bytes become sets of all of it, where the block has to do with the slot elsewhere: its value
//! can stay in a register then, and only the last set of several need be done.

use super::{Passes, Tables};
use crate::block::{Block, Inst};
use crate::ops::Op;
use crate::types::Ty;

/// Whether anything changed; the other passes should run again then.
pub fn run(p: &mut Passes, block: &mut Block, t: Tables) -> bool {
    let uses = &mut p.touched;
    uses.clear();
    uses.resize(t.layout.slots.len(), (0, false));
    for i in block.insts.iter().filter(|i| matches!(i.op, Op::Get | Op::Set)) {
        let (n, apart) = &mut uses[usize::from(i.aux)];
        (*n, *apart) = (*n + 1, *apart || i.imm != 0);
    }
    let becomes_whole = |i: &Inst| {
        let low = i.op == Op::Set && matches!(i.ty, Ty::I8 | Ty::I16) && i.imm == 0;
        low && matches!(uses[usize::from(i.aux)], (2.., false)) && t.layout.slot(i.slot()).size == 8
    };
    if !block.insts.iter().any(becomes_whole) {
        return false;
    }
    p.rewrite.run(block, |out, i| {
        if !becomes_whole(&i) {
            return out.push(i);
        }
        let low = out.zext(Ty::I64, i.a);
        let old = out.get(Ty::I64, i.slot(), 0);
        let rest = out.bin_imm(Op::And, old, !i.ty.mask());
        let all = out.bin(Op::Or, rest, low);
        out.push(Inst { a: all, ty: Ty::I64, ..i })
    });
    true
}
