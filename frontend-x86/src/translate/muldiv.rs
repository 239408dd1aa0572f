//! Multiplication and division (SDM 2 "MUL", "IMUL", "DIV", "IDIV").

use super::Tr;
use crate::helpers::div::{DIV64, IDIV64};
use crate::layout::{RAX, RDX};
use arch_x86::fault::vector;
use arch_x86::flags::bit;
use iced_x86::{Mnemonic, Register};
use ir::{Cond, Op, Ty, Val};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    match tr.insn.mnemonic() {
        Mnemonic::Mul => mul(tr, false),
        Mnemonic::Imul if tr.insn.op_count() == 1 => mul(tr, true),
        Mnemonic::Imul => imul(tr),
        Mnemonic::Div => div(tr, false),
        Mnemonic::Idiv => div(tr, true),
        _ => return false,
    }
    true
}

/// Low and high half of the product.
pub(super) fn product(tr: &mut Tr<'_>, signed: bool, a: Val, b: Val) -> (Val, Val) {
    let ty = tr.b.ty(a);
    if ty == Ty::I64 {
        let high = if signed { Op::MulHiS } else { Op::MulHiU };
        return (tr.b.bin(Op::Mul, a, b), tr.b.bin(high, a, b));
    }
    let wide = if ty == Ty::I32 { Ty::I64 } else { Ty::I32 };
    let (a, b) = if signed { (tr.b.sext(wide, a), tr.b.sext(wide, b)) } else { (tr.b.zext(wide, a), tr.b.zext(wide, b)) };
    let p = tr.b.bin(Op::Mul, a, b);
    let h = tr.b.bin_imm(Op::Shr, p, ty.bits().into());
    (tr.b.zext(ty, p), tr.b.zext(ty, h))
}

/// CF = OF = the high half says more than the extension of the low one.
fn set_flags(tr: &mut Tr<'_>, signed: bool, low: Val, high: Val) {
    let ty = tr.b.ty(low);
    let plain = if signed { tr.b.bin_imm(Op::Sar, low, u64::from(ty.bits()) - 1) } else { tr.b.iconst(ty, 0) };
    let over = tr.b.cmp(Cond::Ne, high, plain);
    let over = tr.b.zext(Ty::I64, over);
    let bits = tr.b.bin_imm(Op::Mul, over, bit::CF | bit::OF);
    tr.flags_cfof(low, bits);
}

fn mul(tr: &mut Tr<'_>, signed: bool) {
    let ty = tr.op_ty(0);
    let b = tr.src(0, ty);
    let a = tr.get(ty, RAX);
    let (low, high) = product(tr, signed, a, b);
    tr.put(RAX, low);
    if ty == Ty::I8 {
        tr.set_reg(Register::AH, high)
    } else {
        tr.put(RDX, high)
    }
    set_flags(tr, signed, low, high);
}

fn imul(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let n = tr.insn.op_count();
    let a = tr.src(n - 2, ty);
    let b = tr.src(n - 1, ty);
    let (low, high) = product(tr, true, a, b);
    tr.dst(0, low);
    set_flags(tr, true, low, high);
}

fn div(tr: &mut Tr<'_>, signed: bool) {
    let ty = tr.op_ty(0);
    let d = tr.src(0, ty);
    if ty == Ty::I64 {
        tr.call(if signed { IDIV64 } else { DIV64 }, &[d]);
        return;
    }
    let n = dividend(tr, ty, signed);
    let d = if signed { tr.b.sext(Ty::I64, d) } else { tr.b.zext(Ty::I64, d) };
    let zero = tr.b.cmp_imm(Cond::Eq, d, 0);
    tr.b.raise_if(zero, vector::DE, None);
    if signed && ty == Ty::I32 {
        let min = tr.b.cmp_imm(Cond::Eq, n, i64::MIN as u64);
        let minus = tr.b.cmp_imm(Cond::Eq, d, !0);
        let both = tr.b.bin(Op::And, min, minus);
        tr.b.raise_if(both, vector::DE, None);
    }
    let (dv, rm) = if signed { (Op::DivS, Op::RemS) } else { (Op::DivU, Op::RemU) };
    let q = tr.b.bin(dv, n, d);
    let q_ty = tr.b.zext(ty, q);
    let back = if signed { tr.b.sext(Ty::I64, q_ty) } else { tr.b.zext(Ty::I64, q_ty) };
    let over = tr.b.cmp(Cond::Ne, back, q);
    tr.b.raise_if(over, vector::DE, None);
    let r = tr.b.bin(rm, n, d);
    let r = tr.b.zext(ty, r);
    tr.put(RAX, q_ty);
    if ty == Ty::I8 { tr.set_reg(Register::AH, r) } else { tr.put(RDX, r) }
}

/// AX, DX:AX or EDX:EAX in 64 bits.
fn dividend(tr: &mut Tr<'_>, ty: Ty, signed: bool) -> Val {
    let wide = Ty::int(ty.bytes() * 2);
    let v = if ty == Ty::I8 {
        tr.get(Ty::I16, RAX)
    } else {
        let (low, high) = (tr.get(ty, RAX), tr.get(ty, RDX));
        let (low, high) = (tr.b.zext(wide, low), tr.b.zext(wide, high));
        let high = tr.b.bin_imm(Op::Shl, high, ty.bits().into());
        tr.b.bin(Op::Or, high, low)
    };
    if signed { tr.b.sext(Ty::I64, v) } else { tr.b.zext(Ty::I64, v) }
}
