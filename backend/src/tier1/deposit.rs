//! Low bytes of a value replaced by those of another, as 8- and 16-bit instructions of x86 do to registers: `or (and old, !mask),
//! (zext low)`, which the host does by one move into the low part of a register.

use super::asm;
use super::emit::Emit;
use super::regs::Loc;
use ir::{Inst, Op, Ty, Val};

/// What the `or` at an index stands for.
#[derive(Clone, Copy, Debug)]
pub struct Deposit {
    at: u32,
    old: Val,
    low: Val,
    ty: Ty,
}

impl Emit<'_> {
    /// Finds them. The ops that they consist of are not done, if nothing else uses them.
    pub(super) fn find_deposits(&mut self) {
        self.r.deposits.clear();
        // Slots that live in registers are written there at once.
        if !self.r.pins.is_empty() {
            return;
        }
        let block = self.block;
        let ors = block.insts.iter().zip(0..).filter(|(i, _)| i.op == Op::Or && i.ty == Ty::I64);
        for (or, at) in ors {
            let Some((rest, d)) = self.deposit(or, at).or_else(|| self.deposit(&Inst { a: or.b, b: or.a, ..*or }, at)) else {
                continue;
            };
            self.r.late.sink(rest);
            let low = &block.insts[d.low.index()];
            if low.op == Op::ZExt && self.r.late.used_once(d.low) {
                self.r.late.sink(d.low);
            }
            let low = if low.op == Op::ZExt { low.a } else { d.low };
            self.r.deposits.push(Deposit { low, ..d });
            [d.old, low].into_iter().for_each(|v| self.keep_until(v, at));
        }
    }

    /// The `and`, and what an `or` of it and another value is.
    fn deposit(&self, or: &Inst, at: u32) -> Option<(Val, Deposit)> {
        let (and, low) = (&self.block.insts[or.a.index()], &self.block.insts[or.b.index()]);
        if and.op != Op::And || !self.r.late.used_once(or.a) {
            return None;
        }
        let mask = !self.block.as_const(and.b)?;
        let ty = [Ty::I8, Ty::I16].into_iter().find(|t| t.mask() == mask)?;
        let fits = match low.op {
            Op::ZExt => self.block.ty(low.a) == ty,
            Op::Const => low.imm as u64 & !mask == 0,
            _ => false,
        };
        fits.then_some((or.a, Deposit { at, old: and.a, low: or.b, ty }))
    }

    fn keep_until(&mut self, v: Val, at: u32) {
        let last = &mut self.r.last[v.index()];
        *last = (*last).max(at);
        self.r.late.keep_until(v, at);
    }

    /// Does the current op, if it is one.
    pub(super) fn put_low(&mut self) -> bool {
        let Some(d) = self.r.deposits.iter().find(|d| d.at == self.at).copied() else { return false };
        if let Loc::Const(c) = self.loc(d.low) {
            let r = self.dest_from(d.old);
            match d.ty {
                Ty::I8 => asm!(self; mov Rb(r), BYTE c as i8),
                _ => asm!(self; mov Rw(r), WORD c as i16),
            }
            return true;
        }
        let s = self.gpr(d.low);
        let r = self.dest_from(d.old);
        match d.ty {
            Ty::I8 => asm!(self; mov Rb(r), Rb(s)),
            _ => asm!(self; mov Rw(r), Rw(s)),
        }
        true
    }
}
