//! Where a computed jump may go: programs' addresses must be canonical, so a block raises before a jump to others. Where the jump cache
//! or the frame of a call leads, a block has been found: only where they do not know the target is the check done.

use super::asm;
use super::cold::{Cold, Leave};
use super::emit::{Emit, cc};
use crate::vblock::Why;
use ir::{Block, Cond, Op, Val};

/// A check: of a target, by the bits from `shift` on, which must all be alike.
#[derive(Clone, Copy, Debug)]
pub struct TargetCheck {
    /// Index of the `RaiseIf`.
    raise: u32,
    target: Val,
    shift: i8,
    /// The jump is a return.
    returns: bool,
}

/// The check before the block's last op, and the ops that it consists of.
fn find(b: &Block) -> Option<(TargetCheck, [Val; 3])> {
    let jump = b.terminator().filter(|t| t.op == Op::JumpInd && t.aux != 1)?;
    let raise = b.insts.iter().rposition(|i| i.op == Op::RaiseIf)?;
    let between = &b.insts[raise + 1..b.insts.len() - 1];
    let returns = jump.aux == 2;
    // A jump's check is done at the jump: the state must be that before the instruction.
    if !between.iter().all(|i| matches!(i.op, Op::Const) || returns && matches!(i.op, Op::Set | Op::Add)) {
        return None;
    }
    let cmp = b.insts[raise].a;
    let bad = Some(&b.insts[cmp.index()]).filter(|i| i.op == Op::Cmp && i.cond() == Cond::Ugt && b.as_const(i.b) == Some(1))?;
    let add = Some(&b.insts[bad.a.index()]).filter(|i| i.op == Op::Add && b.as_const(i.b) == Some(1))?;
    let sar = Some(&b.insts[add.a.index()]).filter(|i| i.op == Op::Sar && i.a == jump.a)?;
    let shift = b.as_const(sar.b).and_then(|n| i8::try_from(n).ok())?;
    Some((TargetCheck { raise: raise as u32, target: jump.a, shift, returns }, [cmp, bad.a, add.a]))
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

    /// The current op is a `RaiseIf`: whether it is such a check, which has been seen to.
    pub(super) fn checks_target(&mut self) -> bool {
        let Some(check) = self.r.target.filter(|c| c.raise == self.at) else { return false };
        if check.returns {
            let target = self.gpr(check.target);
            asm!(self; cmp Rq(target), [rsp + 8]);
            let jump = self.jcc(cc::NE);
            let (back, leave) = (self.here(), self.leave_here(Why::Leave));
            self.cold.push(Cold::Target { jump, back, target, shift: check.shift, leave });
        }
        true
    }

    /// The jump cache does not have the target in rdi in its first place; jumps from `jumps`, and then to the second.
    pub(super) fn jump_elsewhere(&mut self, jumps: [usize; 2]) {
        let Some(check) = self.r.target else { return };
        let leave = Leave { late: 0..0, ..self.leave_here(Why::Leave) };
        self.cold.push(Cold::Elsewhere { jumps, shift: check.shift, leave });
    }

    /// Whether the current op, a jump, is checked where it misses the jump cache.
    pub(super) fn checks_jump(&self) -> bool {
        self.r.target.is_some_and(|c| !c.returns)
    }

    /// Compares; the host's flags are `A` if the address is not canonical. Uses rdx.
    pub(super) fn compare_canonical(&mut self, target: u8, shift: i8) {
        asm!(self; mov rdx, Rq(target); sar rdx, BYTE shift; add rdx, 1; cmp rdx, 1);
    }
}
