//! Two-operand arithmetic and logic, INC, DEC, NEG, NOT (SDM 2).

use super::{Place, Tr};
use arch_x86::flags::CcKind;
use iced_x86::Mnemonic;
use ir::{Op, Rmw, Ty, Val};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    match tr.insn.mnemonic() {
        Mnemonic::Cmp => cmp(tr),
        Mnemonic::Test => test(tr),
        Mnemonic::Add => add(tr),
        Mnemonic::Sub => sub(tr),
        Mnemonic::And => logic(tr, Op::And, Rmw::And),
        Mnemonic::Or => logic(tr, Op::Or, Rmw::Or),
        Mnemonic::Xor => logic(tr, Op::Xor, Rmw::Xor),
        Mnemonic::Adc => carry(tr, CcKind::Adc),
        Mnemonic::Sbb => carry(tr, CcKind::Sbb),
        Mnemonic::Inc => incdec(tr, CcKind::Inc),
        Mnemonic::Dec => incdec(tr, CcKind::Dec),
        Mnemonic::Neg => neg(tr),
        Mnemonic::Not => not(tr),
        _ => return false,
    }
    true
}

/// Destination (read and to be written), its type, and source value.
fn operands(tr: &mut Tr<'_>) -> (Place, Ty, Val) {
    let ty = tr.op_ty(0);
    let p = tr.place(0, ty, true);
    let b = tr.src(1, ty);
    (p, ty, b)
}

fn cmp(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let a = tr.src(0, ty);
    let b = tr.src(1, ty);
    let res = tr.b.bin(Op::Sub, a, b);
    tr.flags_sub(a, b, res);
}

fn test(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let a = tr.src(0, ty);
    let b = tr.src(1, ty);
    let res = if same_register(tr) { a } else { tr.b.bin(Op::And, a, b) };
    tr.flags_logic(res);
}

fn same_register(tr: &Tr<'_>) -> bool {
    tr.is_reg(0) && tr.is_reg(1) && tr.insn.op0_register() == tr.insn.op1_register()
}

/// Old value of the destination: read plainly, or exchanged atomically for the result of `rmw` with `b`.
fn locked(tr: &mut Tr<'_>, p: Place, kind: Rmw, b: Val) -> Option<Val> {
    match p {
        Place::Mem(a, disp) if tr.insn.has_lock_prefix() => Some(tr.rmw(kind, a, disp, b)),
        _ => None,
    }
}

fn add(tr: &mut Tr<'_>) {
    let (p, ty, b) = operands(tr);
    let old = locked(tr, p, Rmw::Add, b);
    let a = old.unwrap_or_else(|| tr.read(p, ty));
    let res = tr.b.bin(Op::Add, a, b);
    if old.is_none() {
        tr.write(p, res);
    }
    tr.flags_add(a, b, res);
}

fn sub(tr: &mut Tr<'_>) {
    let (p, ty, b) = operands(tr);
    let old = match p {
        Place::Mem(a, disp) if tr.insn.has_lock_prefix() => {
            let minus = tr.b.unary(Op::Neg, b);
            Some(tr.rmw(Rmw::Add, a, disp, minus))
        }
        _ => None,
    };
    let a = old.unwrap_or_else(|| tr.read(p, ty));
    let res = tr.b.bin(Op::Sub, a, b);
    if old.is_none() {
        tr.write(p, res);
    }
    tr.flags_sub(a, b, res);
}

fn logic(tr: &mut Tr<'_>, op: Op, kind: Rmw) {
    if op == Op::Xor && same_register(tr) {
        let ty = tr.op_ty(0);
        let res = tr.b.iconst(ty, 0);
        tr.dst(0, res);
        return tr.flags_logic(res);
    }
    let (p, ty, b) = operands(tr);
    let old = locked(tr, p, kind, b);
    let a = old.unwrap_or_else(|| tr.read(p, ty));
    let res = tr.b.bin(op, a, b);
    if old.is_none() {
        tr.write(p, res);
    }
    tr.flags_logic(res);
}

/// Replaces the destination by `f(old)`, atomically under LOCK (compare-and-swap by helper loops back to this
/// instruction when another CPU was faster). Returns old and new value.
pub(super) fn modify(tr: &mut Tr<'_>, p: Place, ty: Ty, f: impl FnOnce(&mut Tr<'_>, Val) -> Val) -> (Val, Val) {
    let a = tr.read(p, ty);
    let res = f(tr, a);
    match p {
        Place::Mem(at, disp) if tr.insn.has_lock_prefix() => tr.swap_or_retry(at, disp, a, res),
        _ => tr.write(p, res),
    }
    (a, res)
}

fn carry(tr: &mut Tr<'_>, kind: CcKind) {
    let (p, ty, b) = operands(tr);
    let cf = tr.cf();
    let c = tr.b.zext(ty, cf);
    let op = if kind == CcKind::Adc { Op::Add } else { Op::Sub };
    let (a, res) = modify(tr, p, ty, |tr, a| {
        let r = tr.b.bin(op, a, b);
        tr.b.bin(op, r, c)
    });
    tr.flags_carry(kind, a, b, res, cf);
}

fn incdec(tr: &mut Tr<'_>, kind: CcKind) {
    let ty = tr.op_ty(0);
    let p = tr.place(0, ty, true);
    let cf = tr.cf();
    let (op, delta) = if kind == CcKind::Inc { (Op::Add, 1) } else { (Op::Sub, !0) };
    let one = tr.b.iconst(ty, 1);
    let res = match p {
        Place::Mem(at, disp) if tr.insn.has_lock_prefix() => {
            let d = tr.b.iconst(ty, delta);
            let a = tr.rmw(Rmw::Add, at, disp, d);
            tr.b.bin(op, a, one)
        }
        _ => {
            let a = tr.read(p, ty);
            let res = tr.b.bin(op, a, one);
            tr.write(p, res);
            res
        }
    };
    tr.flags_incdec(kind, res, cf);
}

fn neg(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let p = tr.place(0, ty, true);
    let (a, res) = modify(tr, p, ty, |tr, a| tr.b.unary(Op::Neg, a));
    let zero = tr.b.iconst(ty, 0);
    tr.flags_sub(zero, a, res);
}

fn not(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let p = tr.place(0, ty, true);
    modify(tr, p, ty, |tr, a| tr.b.unary(Op::Not, a));
}
