//! Shifts, rotates and double shifts (SDM 2 "SAL/SAR/SHL/SHR", "RCL/RCR/ROL/ROR", "SHLD", "SHRD").

use super::{Place, Tr};
use crate::helpers::shift::{RCL, RCL_FLAGS, RCR, RCR_FLAGS};
use crate::layout;
use arch_x86::flags::{CcKind, bit};
use iced_x86::{Mnemonic, OpKind};
use ir::{Cond, Op, Ty, Val};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic::*;
    match tr.insn.mnemonic() {
        Shl | Sal => shift(tr, Op::Shl),
        Shr => shift(tr, Op::Shr),
        Sar => shift(tr, Op::Sar),
        Rol => rotate(tr, Op::Rotl),
        Ror => rotate(tr, Op::Rotr),
        Rcl => through_carry(tr, true),
        Rcr => through_carry(tr, false),
        Shld => double(tr, true),
        Shrd => double(tr, false),
        _ => return false,
    }
    true
}

/// The count, masked to 5 bits (6 for 64-bit operands), as I8; and as a number if it is an immediate.
fn count(tr: &mut Tr<'_>, op: u32, ty: Ty) -> (Val, Option<u64>) {
    let mask = if ty == Ty::I64 { 63 } else { 31 };
    if tr.insn.op_kind(op) == OpKind::Register {
        let cl = tr.get(Ty::I8, layout::RCX);
        return (tr.b.bin_imm(Op::And, cl, mask), None);
    }
    let n = tr.imm(op) & mask;
    (tr.i8(n as u8), Some(n))
}

/// Type wide enough that a count of up to 31 is less than its width.
fn wide(ty: Ty) -> Ty {
    if ty == Ty::I64 { Ty::I64 } else { Ty::I32 }
}

/// CF (I8, 0 or 1) and OF (I8, 0 or 1) as bits.
fn cf_of(tr: &mut Tr<'_>, cf: Val, of: Val) -> Val {
    let cf = tr.b.zext(Ty::I64, cf);
    let of = tr.b.zext(Ty::I64, of);
    let of = tr.b.bin_imm(Op::Shl, of, u64::from(bit::OF.trailing_zeros()));
    tr.b.bin(Op::Or, cf, of)
}

fn msb(tr: &mut Tr<'_>, v: Val) -> Val {
    let ty = tr.b.ty(v);
    let z = tr.b.iconst(ty, 0);
    tr.b.cmp(Cond::Slt, v, z)
}

/// Bit `n` (of any integer type) of `v`, as I8.
fn bit_at(tr: &mut Tr<'_>, v: Val, n: Val) -> Val {
    let v = tr.b.bin(Op::Shr, v, n);
    let v = tr.b.zext(Ty::I8, v);
    tr.b.bin_imm(Op::And, v, 1)
}

/// A count of 0 leaves the flags alone.
fn finish(tr: &mut Tr<'_>, n: Val, known: Option<u64>, res: Val, bits: Val) {
    match known {
        Some(0) => {}
        Some(_) => tr.flags_cfof(res, bits),
        None => {
            let none = tr.b.cmp_imm(Cond::Eq, n, 0);
            tr.flags_cfof_unless(none, res, bits);
        }
    }
}

/// What says CF and OF of a shift of `a` by `n`, which the type's width is not less than; `rw`: the result, before it is cut to the type.
fn shifted_out(tr: &mut Tr<'_>, op: Op, a: Val, rw: Val, n: u64) -> (CcKind, Val) {
    let (ty, w) = (tr.b.ty(a), tr.b.ty(rw));
    if op == Op::Shl {
        let (of, left) = if w == ty { (a, u64::from(ty.bits()) - n) } else { (rw, ty.bits().into()) };
        let last = tr.b.bin_imm(Op::Shr, of, left);
        return (CcKind::Shl, tr.b.zext(ty, last));
    }
    // The top bit stays, for OF.
    let last = if n == 1 { a } else { tr.b.bin_imm(Op::Sar, a, n - 1) };
    (if op == Op::Shr { CcKind::Shr } else { CcKind::Sar }, last)
}

fn shift(tr: &mut Tr<'_>, op: Op) {
    let ty = tr.op_ty(0);
    let w = wide(ty);
    let p = tr.place(0, ty, true);
    let a = tr.read(p, ty);
    let (n, known) = count(tr, 1, ty);
    let nw = tr.b.zext(w, n);
    let aw = if op == Op::Sar { tr.b.sext(w, a) } else { tr.b.zext(w, a) };
    let rw = tr.b.bin(op, aw, nw);
    let res = tr.b.zext(ty, rw);
    tr.write(p, res);
    if let Some(n) = known.filter(|n| (1..=u64::from(ty.bits())).contains(n)) {
        let (kind, last) = shifted_out(tr, op, a, rw, n);
        return tr.flags_shift(kind, res, last);
    }
    // The last bit shifted out.
    let (cf, of) = if op == Op::Shl {
        let cf = if w == ty {
            let width = tr.b.iconst(w, ty.bits().into());
            let left = tr.b.bin(Op::Sub, width, nw);
            bit_at(tr, a, left)
        } else {
            let width = tr.b.iconst(w, ty.bits().into());
            bit_at(tr, rw, width)
        };
        let m = msb(tr, res);
        (cf, tr.b.bin(Op::Xor, m, cf))
    } else {
        let before = tr.b.bin_imm(Op::Sub, nw, 1);
        let last = tr.b.bin(op, aw, before);
        let last = tr.b.zext(Ty::I8, last);
        let cf = tr.b.bin_imm(Op::And, last, 1);
        (cf, if op == Op::Shr { msb(tr, a) } else { tr.i8(0) })
    };
    let bits = cf_of(tr, cf, of);
    finish(tr, n, known, res, bits);
}

/// Rotates change CF and OF only (I8, 0 or 1), and none for a masked count of 0.
fn set_cf_of(tr: &mut Tr<'_>, n: Val, known: Option<u64>, cf: Val, of: Val) {
    let keep = match known {
        Some(0) => return,
        Some(_) => None,
        None => Some(tr.b.cmp_imm(Cond::Eq, n, 0)),
    };
    tr.flags_apart(Some(cf), Some(of), keep);
}

fn rotate(tr: &mut Tr<'_>, op: Op) {
    let ty = tr.op_ty(0);
    let p = tr.place(0, ty, true);
    let a = tr.read(p, ty);
    let (n, known) = count(tr, 1, ty);
    let by = tr.b.zext(ty, n);
    let res = tr.b.bin(op, a, by);
    tr.write(p, res);
    let top = msb(tr, res);
    let (cf, of) = if op == Op::Rotl {
        let low = tr.b.zext(Ty::I8, res);
        let cf = tr.b.bin_imm(Op::And, low, 1);
        (cf, tr.b.bin(Op::Xor, top, cf))
    } else {
        let second = tr.b.bin_imm(Op::Shl, res, 1);
        let second = msb(tr, second);
        (top, tr.b.bin(Op::Xor, top, second))
    };
    set_cf_of(tr, n, known, cf, of);
}

fn through_carry(tr: &mut Tr<'_>, left: bool) {
    let ty = tr.op_ty(0);
    let p = tr.place(0, ty, true);
    let a = tr.read(p, ty);
    let (n, known) = count(tr, 1, ty);
    let cf = tr.cf();
    // Helper operands: value, carry, count | bits << 8.
    let (a, cf) = (tr.b.zext(Ty::I64, a), tr.b.zext(Ty::I64, cf));
    let how = tr.b.zext(Ty::I64, n);
    let how = tr.b.bin_imm(Op::Or, how, u64::from(ty.bits()) << 8);
    let (value, flags) = if left { (RCL, RCL_FLAGS) } else { (RCR, RCR_FLAGS) };
    let res = tr.call(value, &[a, cf, how]);
    let res = tr.b.zext(ty, res);
    tr.write(p, res);
    let bits = tr.call(flags, &[a, cf, how]);
    let flag = |tr: &mut Tr<'_>, mask: u64| {
        let v = tr.b.bin_imm(Op::Shr, bits, mask.trailing_zeros().into());
        let v = tr.b.zext(Ty::I8, v);
        tr.b.bin_imm(Op::And, v, 1)
    };
    let (cf, of) = (flag(tr, bit::CF), flag(tr, bit::OF));
    set_cf_of(tr, n, known, cf, of);
}

fn double(tr: &mut Tr<'_>, left: bool) {
    let ty = tr.op_ty(0);
    let p = tr.place(0, ty, true);
    let a = tr.read(p, ty);
    let b = tr.src(1, ty);
    let (n, known) = count(tr, 2, ty);
    let (res, cf) = if ty == Ty::I64 { double64(tr, left, a, b, n) } else { double_narrow(tr, left, ty, a, b, n) };
    match (known, p) {
        (Some(0), Place::Reg(_)) if ty != Ty::I32 => {}
        _ => tr.write(p, res),
    }
    let changed = tr.b.bin(Op::Xor, a, res);
    let of = msb(tr, changed);
    let bits = cf_of(tr, cf, of);
    finish(tr, n, known, res, bits);
}

/// Both operands side by side in 64 bits. 16-bit counts above 16 are undefined.
fn double_narrow(tr: &mut Tr<'_>, left: bool, ty: Ty, a: Val, b: Val, n: Val) -> (Val, Val) {
    let width = u64::from(ty.bits());
    let (a, b) = (tr.b.zext(Ty::I64, a), tr.b.zext(Ty::I64, b));
    let (high, low) = if left { (a, b) } else { (b, a) };
    let high = tr.b.bin_imm(Op::Shl, high, width);
    let both = tr.b.bin(Op::Or, high, low);
    let n = tr.b.zext(Ty::I64, n);
    if left {
        let r = tr.b.bin(Op::Shl, both, n);
        // 32-bit operands fill the register: the bit shifted out is taken from the operand.
        let w = tr.i64(width);
        let at = tr.b.bin(Op::Sub, w, n);
        let cf = bit_at(tr, a, at);
        let r = tr.b.bin_imm(Op::Shr, r, width);
        (tr.b.zext(ty, r), cf)
    } else {
        let r = tr.b.bin(Op::Shr, both, n);
        let before = tr.b.bin_imm(Op::Sub, n, 1);
        (tr.b.zext(ty, r), bit_at(tr, a, before))
    }
}

fn double64(tr: &mut Tr<'_>, left: bool, a: Val, b: Val, n: Val) -> (Val, Val) {
    let n = tr.b.zext(Ty::I64, n);
    let (op, other) = if left { (Op::Shl, Op::Shr) } else { (Op::Shr, Op::Shl) };
    let kept = tr.b.bin(op, a, n);
    // b moves by 64 - n, in two steps so that n = 0 moves all of it out.
    let once = tr.b.bin_imm(other, b, 1);
    let sixty_three = tr.i64(63);
    let rest = tr.b.bin(Op::Sub, sixty_three, n);
    let filled = tr.b.bin(other, once, rest);
    let res = tr.b.bin(Op::Or, kept, filled);
    let at = if left { tr.b.unary(Op::Neg, n) } else { tr.b.bin_imm(Op::Sub, n, 1) };
    (res, bit_at(tr, a, at))
}
