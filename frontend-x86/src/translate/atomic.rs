//! LOCK forms and the exchanging instructions (SDM 3A "Locked Atomic Operations").

use super::Tr;
use ir::{Cond, Inst, Op, Rmw, Val};

impl Tr<'_> {
    /// Atomic [a + disp] = old `kind` v; gives old.
    pub fn rmw(&mut self, kind: Rmw, a: Val, disp: i64, v: Val) -> Val {
        let (ty, aux) = (self.b.ty(v), (kind as u16) << 2 | self.ctx() as u16);
        self.b.push(Inst { a, b: v, aux, imm: disp, ..Inst::new(Op::AtomicRmw, ty) })
    }

    /// Atomic compare-and-swap at a + disp; gives old.
    pub fn cas(&mut self, a: Val, disp: i64, expected: Val, new: Val) -> Val {
        let (ty, aux) = (self.b.ty(new), self.ctx() as u16);
        self.b.push(Inst { a, b: expected, c: new, aux, imm: disp, ..Inst::new(Op::AtomicCas, ty) })
    }

    /// Swaps `new` in if memory still holds `old`; else nothing of the instruction happens and it is run again: the flags
    /// it sets are conditional (`set_cc`) and the block ends with a branch back to it.
    pub fn swap_or_retry(&mut self, a: Val, disp: i64, old: Val, new: Val) {
        let seen = self.cas(a, disp, old, new);
        self.retry = Some(self.b.cmp(Cond::Ne, seen, old));
    }
}
