//! Checks that a block is well formed: operands, types, field ranges, shape, and the precise-state rule (docs/ir.md,
//! "The leaving rule").

use crate::block::{Block, Inst, Val};
use crate::fp::FpOp;
use crate::layout::{HelperDesc, StateLayout};
use crate::ops::{Effects, Op};
use crate::tri::TriOp;
use crate::types::{Cond, Rmw, Ty};
use crate::vec::{VecOp, VecShift};

/// A block that breaks a rule of the IR: a bug of the front end or of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("%{inst}: {reason}")]
pub struct VerifyError {
    /// Index of the op in `Block::insts`.
    pub inst: usize,
    pub reason: Reason,
}

/// The rule broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    #[error("the block is empty")]
    Empty,
    #[error("the first op is not an insn marker")]
    NoInsn,
    #[error("start or guest_insns disagree with the insn markers")]
    Header,
    #[error("the last op is not a terminator")]
    NoTerminator,
    #[error("a terminator before the end")]
    EarlyTerminator,
    #[error("operand {0} is missing")]
    MissingOperand(u32),
    #[error("operand {0} is not used by this op")]
    ExtraOperand(u32),
    #[error("operand {0} is not defined before its use")]
    Undefined(u32),
    #[error("operand {0} has no result")]
    NoResult(u32),
    #[error("operand {0} is {got}, not {want}", got = .1.name(), want = .2.name())]
    OperandType(u32, Ty, Ty),
    #[error("the op has no form of type {}", .0.name())]
    Type(Ty),
    #[error("operand must be a {0} integer")]
    Resize(&'static str),
    #[error("aux is out of range")]
    Aux,
    #[error("imm is out of range")]
    Imm,
    #[error("no such slot")]
    Slot,
    #[error("access outside the slot")]
    SlotRange,
    #[error("no such helper")]
    Helper,
    #[error("wrong number of arguments for the helper")]
    HelperArgs,
    #[error("may leave after the same instruction wrote state")]
    LeaveAfterState,
    #[error("may leave after the same instruction wrote memory")]
    LeaveAfterWrite,
}

/// Checks `block`; the first error found.
pub fn verify(block: &Block, layout: &StateLayout, helpers: &[HelperDesc]) -> Result<(), VerifyError> {
    let Some(last) = block.insts.len().checked_sub(1) else {
        return Err(VerifyError { inst: 0, reason: Reason::Empty });
    };
    let mut leaving = Leaving::default();
    for (n, i) in block.insts.iter().enumerate() {
        let check = || {
            operands(block, n, i)?;
            types(block, i)?;
            fields(i, layout, helpers)?;
            shape(n, i, last)
        };
        check().and_then(|()| leaving.step(i, helpers)).map_err(|reason| VerifyError { inst: n, reason })?;
    }
    let insns = block.insts.iter().filter(|i| i.op == Op::Insn).count();
    if insns != block.guest_insns as usize || block.insts[0].imm != i64::from(block.start) {
        return Err(VerifyError { inst: 0, reason: Reason::Header });
    }
    Ok(())
}

fn shape(n: usize, i: &Inst, last: usize) -> Result<(), Reason> {
    if n == 0 && i.op != Op::Insn {
        return Err(Reason::NoInsn);
    }
    match (i.op.is_terminator(), n == last) {
        (true, false) => Err(Reason::EarlyTerminator),
        (false, true) => Err(Reason::NoTerminator),
        _ => Ok(()),
    }
}

/// Exactly the operands that the op has, each defined earlier.
fn operands(block: &Block, n: usize, i: &Inst) -> Result<(), Reason> {
    let used = if i.op == Op::Call { i.imm.clamp(0, 3) as u32 } else { i.op.args() };
    for (k, v) in [i.a, i.b, i.c].into_iter().enumerate() {
        let k = k as u32;
        match (k < used, v == Val::NONE) {
            (true, true) => return Err(Reason::MissingOperand(k)),
            (false, false) => return Err(Reason::ExtraOperand(k)),
            (true, false) if v.index() >= n => return Err(Reason::Undefined(k)),
            (true, false) if block.insts[v.index()].result().is_none() => return Err(Reason::NoResult(k)),
            _ => {}
        }
    }
    Ok(())
}

/// Types of the operands, and that the op exists in type `ty`. Operands are known to be defined.
fn types(block: &Block, i: &Inst) -> Result<(), Reason> {
    let want = |k: u32, v: Val, t: Ty| {
        let got = block.ty(v);
        if got == t { Ok(()) } else { Err(Reason::OperandType(k, got, t)) }
    };
    let form = |ok: bool| if ok { Ok(()) } else { Err(Reason::Type(i.ty)) };
    let int = i.ty != Ty::V128;
    match i.op {
        Op::Const | Op::Get => Ok(()),
        Op::Source => form(int),
        Op::Insn | Op::PcRel | Op::Jump | Op::Exit | Op::ExitNext => form(i.ty == Ty::I64),
        Op::Set => want(0, i.a, i.ty),
        Op::DivU | Op::RemU | Op::DivS | Op::RemS => {
            form(matches!(i.ty, Ty::I32 | Ty::I64))?;
            want(0, i.a, i.ty)?;
            want(1, i.b, i.ty)
        }
        Op::Add
        | Op::Sub
        | Op::Mul
        | Op::MulHiU
        | Op::MulHiS
        | Op::And
        | Op::Or
        | Op::Xor
        | Op::Cmp
        | Op::Shl
        | Op::Shr
        | Op::Sar
        | Op::Rotl
        | Op::Rotr => {
            form(int)?;
            want(0, i.a, i.ty)?;
            want(1, i.b, i.ty)
        }
        Op::Neg | Op::Not | Op::Clz | Op::Ctz | Op::Popcnt => form(int).and_then(|()| want(0, i.a, i.ty)),
        Op::Bswap => form(int && i.ty != Ty::I8).and_then(|()| want(0, i.a, i.ty)),
        Op::ZExt | Op::SExt => form(int).and_then(|()| resize(block.ty(i.a), i.ty, true)),
        Op::Trunc => form(int).and_then(|()| resize(block.ty(i.a), i.ty, false)),
        Op::Select => {
            want(0, i.a, Ty::I8)?;
            want(1, i.b, i.ty)?;
            want(2, i.c, i.ty)
        }
        Op::Load => want(0, i.a, Ty::I64),
        Op::ProbeW | Op::JumpInd => form(i.ty == Ty::I64).and_then(|()| want(0, i.a, Ty::I64)),
        Op::Store => want(0, i.a, Ty::I64).and_then(|()| want(1, i.b, i.ty)),
        Op::AtomicRmw => {
            form(int)?;
            want(0, i.a, Ty::I64)?;
            want(1, i.b, i.ty)
        }
        Op::AtomicCas => {
            form(int)?;
            want(0, i.a, Ty::I64)?;
            want(1, i.b, i.ty)?;
            want(2, i.c, i.ty)
        }
        Op::Vec | Op::VShuffle => {
            form(!int)?;
            want(0, i.a, Ty::V128)?;
            want(1, i.b, Ty::V128)
        }
        Op::VFp | Op::FpGet => {
            form(!int)?;
            want(0, i.a, Ty::V128)?;
            want(1, i.b, Ty::V128)
        }
        Op::VTri => {
            form(!int)?;
            i.operands().enumerate().try_for_each(|(k, v)| want(k as u32, v, Ty::V128))
        }
        Op::FpSet => {
            form(!int)?;
            want(0, i.a, Ty::V128)?;
            want(1, i.b, Ty::I64)
        }
        Op::VLane | Op::VShift | Op::VMask => form(!int).and_then(|()| want(0, i.a, Ty::V128)),
        Op::VSetLane => {
            form(!int)?;
            want(0, i.a, Ty::V128)?;
            want(1, i.b, Ty::I64)
        }
        Op::Call => {
            form(i.ty == Ty::I64)?;
            i.operands().enumerate().try_for_each(|(k, v)| want(k as u32, v, Ty::I64))
        }
        Op::RaiseIf | Op::LeaveIf | Op::Side | Op::Br => form(i.ty == Ty::I8).and_then(|()| want(0, i.a, Ty::I8)),
    }
}

fn resize(from: Ty, to: Ty, wider: bool) -> Result<(), Reason> {
    if wider && from.bytes() >= to.bytes() {
        return Err(Reason::Resize("narrower"));
    }
    if !wider && (from == Ty::V128 || from.bytes() <= to.bytes()) {
        return Err(Reason::Resize("wider"));
    }
    Ok(())
}

/// Ranges of `aux` and `imm`. Fields that an op does not use must be 0, so that equal ops compare equal.
fn fields(i: &Inst, layout: &StateLayout, helpers: &[HelperDesc]) -> Result<(), Reason> {
    let aux_ok = match i.op {
        Op::Insn => (1..=64).contains(&i.aux),
        Op::Get | Op::Set | Op::Call | Op::VShuffle => true,
        Op::Cmp => Cond::from_index(i.aux).is_some(),
        Op::Vec => VecOp::from_index(i.aux).is_some(),
        Op::VFp | Op::FpGet | Op::FpSet => FpOp::from_index(i.aux)
            .is_some_and(|o| o.gives_integer() == (i.op == Op::FpGet) && o.takes_integer() == (i.op == Op::FpSet)),
        Op::VTri => TriOp::from_index(i.aux).is_some(),
        Op::VMask => matches!(i.aux, 8 | 16 | 32 | 64),
        Op::VShift => VecShift::from_index(i.aux).is_some(),
        Op::Load | Op::Store | Op::AtomicCas => i.aux <= 3,
        Op::ProbeW => i.aux >> 2 != 0,
        Op::AtomicRmw => Rmw::from_index(i.aux >> 2).is_some(),
        Op::VLane | Op::VSetLane => i.aux <= 1,
        Op::RaiseIf => i.aux <= 255,
        Op::JumpInd => i.aux <= 2,
        Op::Jump => i.aux <= 1,
        _ => i.aux == 0,
    };
    let imm_ok = match i.op {
        Op::Insn | Op::Side => (0..4096).contains(&i.imm),
        Op::Source => i.imm >= 0 && i.imm + i64::from(i.ty.bytes()) <= 4096,
        Op::Const | Op::PcRel | Op::Get | Op::Set | Op::Call | Op::Jump | Op::Br | Op::VShuffle => true,
        Op::VShift => VecShift::from_index(i.aux).is_none_or(|s| (0..i64::from(s.width())).contains(&i.imm)),
        Op::Load | Op::Store | Op::ProbeW | Op::AtomicRmw | Op::AtomicCas => true,
        Op::RaiseIf => (-1..=i64::from(u32::MAX)).contains(&i.imm),
        _ => i.imm == 0,
    };
    match i.op {
        Op::Get | Op::Set => slot(i, layout)?,
        Op::Call => {
            let h = helpers.get(usize::from(i.aux)).ok_or(Reason::Helper)?;
            if i.imm != i64::from(h.args) {
                return Err(Reason::HelperArgs);
            }
        }
        _ => {}
    }
    match (aux_ok, imm_ok) {
        (false, _) => Err(Reason::Aux),
        (_, false) => Err(Reason::Imm),
        _ => Ok(()),
    }
}

fn slot(i: &Inst, layout: &StateLayout) -> Result<(), Reason> {
    let s = layout.slots.get(usize::from(i.aux)).ok_or(Reason::Slot)?;
    let room = i64::from(s.size) - i64::from(i.ty.bytes());
    if (0..=room).contains(&i.imm) { Ok(()) } else { Err(Reason::SlotRange) }
}

/// State of the precise-state rule inside one guest instruction.
#[derive(Default)]
struct Leaving {
    wrote_state: bool,
    wrote_memory: bool,
    probes: Vec<Inst>,
}

impl Leaving {
    fn step(&mut self, i: &Inst, helpers: &[HelperDesc]) -> Result<(), Reason> {
        if i.op == Op::Insn {
            self.wrote_state = false;
            self.wrote_memory = false;
            self.probes.clear();
            return Ok(());
        }
        let e = i.effects(helpers);
        if e.has(Effects::MAY_LEAVE) {
            if self.wrote_state {
                return Err(Reason::LeaveAfterState);
            }
            if self.wrote_memory && !self.probes.iter().any(|p| covers(p, i)) {
                return Err(Reason::LeaveAfterWrite);
            }
        }
        if i.op == Op::ProbeW {
            self.probes.push(*i);
        }
        self.wrote_state |= e.has(Effects::WRITES_STATE.or(Effects::FP_FLAGS));
        self.wrote_memory |= e.has(Effects::WRITES_MEM);
        Ok(())
    }
}

/// The probe has already asked about every byte that `i` writes, in the same access context.
fn covers(probe: &Inst, i: &Inst) -> bool {
    if !matches!(i.op, Op::Store | Op::AtomicRmw | Op::AtomicCas) || i.a != probe.a || (i.aux ^ probe.aux) & 3 != 0 {
        return false;
    }
    // Addresses wrap, and so do their displacements.
    let into = i.imm.wrapping_sub(probe.imm) as u64;
    into.checked_add(i.ty.bytes().into()).is_some_and(|end| end <= u64::from(probe.aux >> 2))
}
