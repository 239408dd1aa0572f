//! Constant folding: ops on constants, algebraic identities, chains of conversions, comparisons and selects, and constant
//! displacements moved into memory ops. Constants end up on the right.

use super::{Passes, Tables};
use crate::block::{Block, Inst, Val};
use crate::eval;
use crate::ops::Op;
use crate::types::{Cond, Ty};

/// Rounds of simplification per op; each makes the op simpler, so this is only a bound.
const ROUNDS: usize = 8;

/// What became of an op.
enum Step {
    /// Nothing to do.
    Done,
    /// It equals this value.
    Value(Val),
    /// It is this op now; try again.
    Again(Inst),
    /// It never does anything.
    Gone,
}

pub fn run(p: &mut Passes, block: &mut Block, _: Tables) {
    p.rewrite.run(block, |out, mut i| {
        for _ in 0..ROUNDS {
            match step(out, &i) {
                Step::Done => break,
                Step::Value(v) => return v,
                Step::Again(n) => i = n,
                Step::Gone => return Val::NONE,
            }
        }
        out.push(i)
    });
}

fn step(out: &mut Block, i: &Inst) -> Step {
    match i.op {
        Op::Add
        | Op::Mul
        | Op::MulHiU
        | Op::MulHiS
        | Op::And
        | Op::Or
        | Op::Xor
        | Op::Sub
        | Op::DivU
        | Op::RemU
        | Op::DivS
        | Op::RemS => binary(out, i),
        Op::Shl | Op::Shr | Op::Sar | Op::Rotl | Op::Rotr => shift(out, i),
        Op::Neg | Op::Not | Op::Clz | Op::Ctz | Op::Popcnt | Op::Bswap => unary(out, i),
        Op::ZExt | Op::SExt => extend(out, i),
        Op::Trunc => trunc(out, i),
        Op::Cmp => compare(out, i),
        Op::Select => select(out, i),
        Op::Load | Op::Store | Op::ProbeW | Op::AtomicRmw | Op::AtomicCas => address(out, i),
        Op::RaiseIf | Op::LeaveIf | Op::Side | Op::Br => condition(out, i),
        _ => Step::Done,
    }
}

fn constant(out: &mut Block, ty: Ty, v: u64) -> Step {
    Step::Value(out.iconst(ty, v))
}

/// The op on constants, if all its operands are.
fn evaluate(out: &mut Block, i: &Inst) -> Option<Step> {
    let value = |v: Val| if v == Val::NONE { Some(0) } else { out.as_const(v) };
    let (a, b, c) = (value(i.a)?, value(i.b)?, value(i.c)?);
    let v = eval::integer(i, out.ty(i.a), a, b, c)?;
    Some(constant(out, i.result()?, v))
}

fn binary(out: &mut Block, i: &Inst) -> Step {
    if let Some(s) = evaluate(out, i) {
        return s;
    }
    let commutes = matches!(i.op, Op::Add | Op::Mul | Op::MulHiU | Op::MulHiS | Op::And | Op::Or | Op::Xor);
    if commutes && out.as_const(i.a).is_some() {
        return Step::Again(Inst { a: i.b, b: i.a, ..*i });
    }
    if let Some(c) = out.as_const(i.b) {
        return binary_const(out, i, c);
    }
    match i.op {
        Op::Sub | Op::Xor if i.a == i.b => constant(out, i.ty, 0),
        Op::And | Op::Or if i.a == i.b => Step::Value(i.a),
        Op::Sub if out.as_const(i.a) == Some(0) => Step::Again(Inst { op: Op::Neg, a: i.b, b: Val::NONE, ..*i }),
        // Page bases and displacements: pcrel has no constant value, but a difference has.
        Op::Sub if both(out, i, Op::PcRel) => {
            let d = out.insts[i.a.index()].imm.wrapping_sub(out.insts[i.b.index()].imm);
            constant(out, i.ty, d as u64)
        }
        _ => Step::Done,
    }
}

fn both(out: &Block, i: &Inst, op: Op) -> bool {
    out.insts[i.a.index()].op == op && out.insts[i.b.index()].op == op
}

fn binary_const(out: &mut Block, i: &Inst, c: u64) -> Step {
    let ones = i.ty.mask();
    match (i.op, c) {
        (Op::Add | Op::Sub | Op::Or | Op::Xor, 0) | (Op::Mul | Op::DivU, 1) => return Step::Value(i.a),
        (Op::Mul | Op::MulHiU | Op::MulHiS | Op::And, 0) | (Op::MulHiU | Op::RemU, 1) => return constant(out, i.ty, 0),
        (Op::And, c) if c == ones => return Step::Value(i.a),
        (Op::Or, c) if c == ones => return constant(out, i.ty, ones),
        (Op::Xor, c) if c == ones => return Step::Again(Inst { op: Op::Not, b: Val::NONE, ..*i }),
        (Op::Sub, c) => {
            let b = out.iconst(i.ty, c.wrapping_neg());
            return Step::Again(Inst { op: Op::Add, b, ..*i });
        }
        (Op::Mul, c) if c.is_power_of_two() => return with_const(out, i, Op::Shl, u64::from(c.trailing_zeros())),
        (Op::DivU, c) if c.is_power_of_two() => return with_const(out, i, Op::Shr, u64::from(c.trailing_zeros())),
        (Op::RemU, c) if c.is_power_of_two() => return with_const(out, i, Op::And, c - 1),
        _ => {}
    }
    let x = out.insts[i.a.index()];
    let inner = (x.op == i.op).then(|| out.as_const(x.b)).flatten();
    match (i.op, inner) {
        (Op::Add, Some(d)) => chain(out, i, &x, c.wrapping_add(d)),
        (Op::And, Some(d)) => chain(out, i, &x, c & d),
        (Op::Or, Some(d)) => chain(out, i, &x, c | d),
        (Op::Xor, Some(d)) => chain(out, i, &x, c ^ d),
        (Op::Add, None) if x.op == Op::PcRel => {
            Step::Again(Inst { op: Op::PcRel, a: Val::NONE, b: Val::NONE, imm: x.imm.wrapping_add(c as i64), ..*i })
        }
        // What the mask lets through is all there is.
        (Op::And, _) if x.op == Op::ZExt && out.ty(x.a).mask() & !c == 0 => Step::Value(i.a),
        (Op::And, _) if is_bool(out, i.a) && c & 1 == 1 => Step::Value(i.a),
        (Op::Xor, _) if x.op == Op::Cmp && c == 1 => Step::Again(Inst { aux: x.cond().negate() as u16, ..x }),
        _ => Step::Done,
    }
}

/// `i` with its constant operand replaced.
fn with_const(out: &mut Block, i: &Inst, op: Op, c: u64) -> Step {
    let b = out.iconst(i.ty, c);
    Step::Again(Inst { op, b, ..*i })
}

/// `(x op d) op c` becomes `x op (d op c)`.
fn chain(out: &mut Block, i: &Inst, inner: &Inst, c: u64) -> Step {
    let b = out.iconst(i.ty, c);
    Step::Again(Inst { a: inner.a, b, ..*i })
}

fn shift(out: &mut Block, i: &Inst) -> Step {
    if let Some(s) = evaluate(out, i) {
        return s;
    }
    if matches!(i.op, Op::Shl | Op::Shr | Op::Sar) && out.as_const(i.a) == Some(0) {
        return Step::Value(i.a);
    }
    let Some(n) = out.as_const(i.b) else { return Step::Done };
    let width = u64::from(i.ty.bits());
    if n >= width {
        return with_const(out, i, i.op, n % width);
    }
    if n == 0 {
        return Step::Value(i.a);
    }
    let x = out.insts[i.a.index()];
    match (x.op == i.op).then(|| out.as_const(x.b)).flatten() {
        Some(m) if matches!(i.op, Op::Shl | Op::Shr) && m % width + n >= width => constant(out, i.ty, 0),
        Some(m) if i.op == Op::Sar => chain(out, i, &x, (m % width + n).min(width - 1)),
        Some(m) => chain(out, i, &x, (m % width + n) % width),
        None => Step::Done,
    }
}

fn unary(out: &mut Block, i: &Inst) -> Step {
    let x = out.insts[i.a.index()];
    if matches!(i.op, Op::Neg | Op::Not | Op::Bswap) && x.op == i.op {
        return Step::Value(x.a);
    }
    evaluate(out, i).unwrap_or(Step::Done)
}

fn extend(out: &mut Block, i: &Inst) -> Step {
    if let Some(s) = evaluate(out, i) {
        return s;
    }
    let x = out.insts[i.a.index()];
    match (x.op, i.op) {
        (Op::ZExt, _) => Step::Again(Inst { op: Op::ZExt, a: x.a, ..*i }),
        (Op::SExt, Op::SExt) => Step::Again(Inst { a: x.a, ..*i }),
        (Op::Trunc, Op::ZExt) if out.ty(x.a) == i.ty => {
            let b = out.iconst(i.ty, x.ty.mask());
            Step::Again(Inst { op: Op::And, a: x.a, b, ..*i })
        }
        _ => Step::Done,
    }
}

fn trunc(out: &mut Block, i: &Inst) -> Step {
    if let Some(s) = evaluate(out, i) {
        return s;
    }
    let x = out.insts[i.a.index()];
    match x.op {
        Op::Trunc => Step::Again(Inst { a: x.a, ..*i }),
        Op::ZExt | Op::SExt => {
            let from = out.ty(x.a);
            match i.ty.bytes().cmp(&from.bytes()) {
                std::cmp::Ordering::Equal => Step::Value(x.a),
                std::cmp::Ordering::Less => Step::Again(Inst { a: x.a, ..*i }),
                std::cmp::Ordering::Greater => Step::Again(Inst { op: x.op, a: x.a, ..*i }),
            }
        }
        // A mask that leaves the kept bits alone.
        Op::And if out.as_const(x.b).is_some_and(|c| c & i.ty.mask() == i.ty.mask()) => Step::Again(Inst { a: x.a, ..*i }),
        _ => Step::Done,
    }
}

/// 0 or 1 for certain.
fn is_bool(out: &Block, v: Val) -> bool {
    let i = &out.insts[v.index()];
    i.op == Op::Cmp || (i.op == Op::And && out.as_const(i.b) == Some(1))
}

fn compare(out: &mut Block, i: &Inst) -> Step {
    if let Some(s) = evaluate(out, i) {
        return s;
    }
    if i.a == i.b {
        return constant(out, Ty::I8, u64::from(i.cond().eval(i.ty, 0, 0)));
    }
    if out.as_const(i.a).is_some() {
        return Step::Again(Inst { a: i.b, b: i.a, aux: swapped(i.cond()) as u16, ..*i });
    }
    let Some(c) = out.as_const(i.b) else { return Step::Done };
    match (i.cond(), c) {
        (Cond::Ult, 0) => return constant(out, Ty::I8, 0),
        (Cond::Uge, 0) => return constant(out, Ty::I8, 1),
        (Cond::Ule, 0) | (Cond::Ult, 1) => return compare_with(out, i, Cond::Eq, i.a, i.ty, 0),
        (Cond::Ugt, 0) | (Cond::Uge, 1) => return compare_with(out, i, Cond::Ne, i.a, i.ty, 0),
        (Cond::Ugt, c) if c == i.ty.mask() => return constant(out, Ty::I8, 0),
        (Cond::Ule, c) if c == i.ty.mask() => return constant(out, Ty::I8, 1),
        (Cond::Eq | Cond::Ne, c) => return equality(out, i, c),
        _ => {}
    }
    Step::Done
}

/// `b cond' a` is `a cond b`.
fn swapped(c: Cond) -> Cond {
    match c {
        Cond::Eq | Cond::Ne => c,
        Cond::Ult => Cond::Ugt,
        Cond::Ugt => Cond::Ult,
        Cond::Uge => Cond::Ule,
        Cond::Ule => Cond::Uge,
        Cond::Slt => Cond::Sgt,
        Cond::Sgt => Cond::Slt,
        Cond::Sge => Cond::Sle,
        Cond::Sle => Cond::Sge,
    }
}

fn compare_with(out: &mut Block, i: &Inst, cond: Cond, a: Val, ty: Ty, c: u64) -> Step {
    let b = out.iconst(ty, c);
    Step::Again(Inst { ty, a, b, aux: cond as u16, ..*i })
}

/// `a == c`, `a != c`.
fn equality(out: &mut Block, i: &Inst, c: u64) -> Step {
    let cond = i.cond();
    let x = out.insts[i.a.index()];
    match x.op {
        // The comparison itself, or its opposite.
        Op::Cmp if c > 1 => constant(out, Ty::I8, u64::from(cond == Cond::Ne)),
        Op::Cmp if (cond == Cond::Ne) == (c == 0) => Step::Value(i.a),
        Op::Cmp => Step::Again(Inst { aux: x.cond().negate() as u16, ..x }),
        _ if c == 1 && is_bool(out, i.a) => compare_with(out, i, cond.negate(), i.a, i.ty, 0),
        Op::And if c == 0 && i.ty == Ty::I8 && cond == Cond::Ne && is_bool(out, i.a) => Step::Value(i.a),
        Op::ZExt => {
            let from = out.ty(x.a);
            if c & !from.mask() != 0 {
                return constant(out, Ty::I8, u64::from(cond == Cond::Ne));
            }
            compare_with(out, i, cond, x.a, from, c)
        }
        Op::Sub | Op::Xor if c == 0 => Step::Again(Inst { a: x.a, b: x.b, ..*i }),
        Op::Add => match out.as_const(x.b) {
            Some(d) => compare_with(out, i, cond, x.a, i.ty, c.wrapping_sub(d)),
            None => Step::Done,
        },
        _ => Step::Done,
    }
}

fn select(out: &mut Block, i: &Inst) -> Step {
    match out.as_const(i.a) {
        Some(0) => return Step::Value(i.c),
        Some(_) => return Step::Value(i.b),
        None if i.b == i.c => return Step::Value(i.b),
        None => {}
    }
    if let Step::Again(n) = condition(out, i) {
        return Step::Again(n);
    }
    match (out.as_const(i.b), out.as_const(i.c)) {
        (Some(1), Some(0)) if i.ty == Ty::I8 && is_bool(out, i.a) => Step::Value(i.a),
        (Some(1), Some(0)) if i.ty != Ty::V128 && is_bool(out, i.a) => {
            Step::Again(Inst { op: Op::ZExt, b: Val::NONE, c: Val::NONE, ..*i })
        }
        _ => Step::Done,
    }
}

/// Operand a is only asked whether it is 0.
fn condition(out: &Block, i: &Inst) -> Step {
    match (i.op, out.as_const(i.a)) {
        (Op::RaiseIf | Op::LeaveIf | Op::Side, Some(0)) => return Step::Gone,
        (Op::Br, Some(c)) => {
            let imm = if c != 0 { i.imm } else { out.next };
            return Step::Again(Inst { imm, ..Inst::new(Op::Jump, Ty::I64) });
        }
        _ => {}
    }
    let x = out.insts[i.a.index()];
    if x.op != Op::Cmp || x.ty != Ty::I8 || out.as_const(x.b) != Some(0) {
        return Step::Done;
    }
    match (x.cond(), i.op) {
        (Cond::Ne, _) => Step::Again(Inst { a: x.a, ..*i }),
        (Cond::Eq, Op::Select) => Step::Again(Inst { a: x.a, b: i.c, c: i.b, ..*i }),
        _ => Step::Done,
    }
}

/// Moves a constant summand of the address into `imm`.
fn address(out: &Block, i: &Inst) -> Step {
    let x = out.insts[i.a.index()];
    match (x.op == Op::Add).then(|| out.as_const(x.b)).flatten() {
        Some(c) => Step::Again(Inst { a: x.a, imm: i.imm.wrapping_add(c as i64), ..*i }),
        None => Step::Done,
    }
}
