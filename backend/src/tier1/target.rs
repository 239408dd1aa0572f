//! Where a computed jump may go: programs' addresses must be canonical, so a block raises before a jump to others. Where the jump cache
//! or the frame of a call leads, a block has been found: only where they do not know the target is the check done.

use super::cold::{Cold, Leave};
use super::emit::{Emit, cc};
use super::{asm, st};
use crate::vblock::Why;
use ir::{Block, Cond, Inst, Op, Ty, Val};

/// A check: of a target, by the bits from `shift` on, which must all be alike.
#[derive(Clone, Copy, Debug)]
pub struct TargetCheck {
    /// Index of the `RaiseIf`.
    raise: u32,
    shift: i8,
    /// The jump is a return.
    returns: bool,
}

/// A return's check where the frame does not know the target: the block leaves before the instruction, which has already added a number
/// to slots: offset, number.
pub struct CheckedReturn {
    pub shift: i8,
    pub leave: Leave,
    added: Vec<(i32, i32)>,
}

/// A value as another plus a number.
fn sum(b: &Block, v: Val) -> (Val, i64) {
    let i = &b.insts[v.index()];
    let n = if i.op == Op::Add && i.ty == Ty::I64 { b.as_const(i.b) } else { None };
    n.map_or((v, 0), |n| (i.a, n as i64))
}

/// The number by which the set at `set` changes what its slot was at the op at `since`, if it is one.
fn adds(b: &Block, set: usize, since: usize) -> Option<i32> {
    let new = Some(&b.insts[set]).filter(|s| s.ty == Ty::I64)?;
    let of_slot = |i: &Inst| matches!(i.op, Op::Get | Op::Set) && i.ty == Ty::I64 && (i.aux, i.imm) == (new.aux, new.imm);
    let overlaps = |i: &Inst| matches!(i.op, Op::Set) && i.aux == new.aux;
    let (root, n) = sum(b, new.a);
    let got = of_slot(&b.insts[root.index()]) && b.insts[root.index()].op == Op::Get;
    let (then, before) = match b.insts[..since].iter().rposition(overlaps) {
        Some(k) if !(got && root.index() > k) => Some(&b.insts[k]).filter(|s| of_slot(s)).map(|s| sum(b, s.a))?,
        _ if got => (root, 0),
        _ => return None,
    };
    i32::try_from(n.checked_sub(before)?).ok().filter(|_| then == root)
}

/// The check before the block's last op, and the ops that it consists of.
fn find(b: &Block) -> Option<(TargetCheck, [Val; 3])> {
    let jump = b.terminator().filter(|t| t.op == Op::JumpInd && t.aux != 1)?;
    let raise = b.insts.iter().rposition(|i| i.op == Op::RaiseIf)?;
    let between = &b.insts[raise + 1..b.insts.len() - 1];
    let returns = jump.aux == 2;
    // A jump's check is done at the jump: the state must be that before the instruction.
    let undone = |k: usize| match b.insts[raise + 1 + k].op {
        Op::Const => true,
        Op::Add => returns,
        Op::Set => returns && adds(b, raise + 1 + k, raise).is_some(),
        _ => false,
    };
    let sets = between.iter().filter(|i| i.op == Op::Set).count();
    if sets > 1 || !(0..between.len()).all(undone) {
        return None;
    }
    let cmp = b.insts[raise].a;
    let bad = Some(&b.insts[cmp.index()]).filter(|i| i.op == Op::Cmp && i.cond() == Cond::Ugt && b.as_const(i.b) == Some(1))?;
    let add = Some(&b.insts[bad.a.index()]).filter(|i| i.op == Op::Add && b.as_const(i.b) == Some(1))?;
    let sar = Some(&b.insts[add.a.index()]).filter(|i| i.op == Op::Sar && i.a == jump.a)?;
    let shift = b.as_const(sar.b).and_then(|n| i8::try_from(n).ok())?;
    Some((TargetCheck { raise: raise as u32, shift, returns }, [cmp, bad.a, add.a]))
}

impl Emit<'_> {
    /// Finds the check, which then is not done as it stands.
    pub(super) fn find_target_check(&mut self) {
        self.r.target = None;
        let Some((check, [cmp, add, sar])) = find(self.block) else { return };
        let parts = [cmp, add, sar];
        let mut uses = 0;
        for i in &self.block.insts {
            i.each_operand(|v| uses += u32::from(parts.contains(&v)));
        }
        // By each other, and by the check.
        if uses == 3 {
            parts.into_iter().for_each(|v| self.r.late.sink(v));
            self.r.target = Some(check);
        }
    }

    /// The current op is a `RaiseIf`: whether it is such a check, which the jump sees to.
    pub(super) fn checks_target(&mut self) -> bool {
        self.r.target.is_some_and(|c| c.raise == self.at)
    }

    /// The check of the current op, a return, if it has one.
    pub(super) fn checked_return(&mut self) -> Option<CheckedReturn> {
        let check = self.r.target.filter(|c| c.returns)?;
        let (block, raise) = (self.block, check.raise as usize);
        let sets = (raise..block.insts.len()).filter(|k| block.insts[*k].op == Op::Set);
        let added = sets.filter_map(|k| Some((self.slot_off(&block.insts[k]), adds(block, k, raise)?))).collect();
        Some(CheckedReturn { shift: check.shift, leave: self.leave_here(Why::Leave), added })
    }

    /// Takes back what a return has done before it is found to be wrong.
    pub(super) fn undo_return(&mut self, c: &CheckedReturn) {
        for (off, n) in &c.added {
            match self.r.pins.find(*off) {
                Some((pin, _)) => asm!(self; sub Rq(pin.reg), DWORD *n),
                None => st!(self, *off; [sub QWORD] [, DWORD *n]),
            }
        }
    }

    /// The jump cache does not have the target in rdi in its first place; jumps from `jumps`, and then to the second.
    pub(super) fn jump_elsewhere(&mut self, jumps: [usize; 2]) {
        let Some(check) = self.r.target else { return };
        let leave = self.leave_here(Why::Leave);
        self.cold.push(Cold::Elsewhere { jumps, shift: check.shift, leave });
    }

    /// Whether the current op, a jump, is checked where it misses the jump cache.
    pub(super) fn checks_jump(&self) -> bool {
        self.r.target.is_some_and(|c| !c.returns)
    }

    /// Gives the end of the jump for when the address in rdi is not canonical. Uses rdx.
    pub(super) fn not_canonical(&mut self, shift: i8) -> usize {
        asm!(self; mov rdx, rdi; sar rdx, BYTE shift; add rdx, 1; cmp rdx, 1);
        self.jcc(cc::A)
    }
}
