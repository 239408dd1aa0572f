//! BMI1, BMI2 and ADX, CRC32, random numbers (SDM 2 "ANDN", "BEXTR", "MULX", "PDEP", "ADCX", "CRC32", "RDRAND").

use super::{Tr, feature};
use crate::helpers::bmi::{CRC32, PDEP, PEXT, RANDOM};
use crate::layout::RDX;
use arch_x86::flags::bit;
use iced_x86::{EncodingKind, Mnemonic};
use ir::{Cond, Op, Ty, Val};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic::*;
    let (wanted, run): (_, fn(&mut Tr<'_>)) = match tr.insn.mnemonic() {
        Andn => (feature::BMI1, andn),
        Bextr => (feature::BMI1, bextr),
        Blsi | Blsmsk | Blsr => (feature::BMI1, lowest),
        Bzhi => (feature::BMI2, bzhi),
        Mulx => (feature::BMI2, mulx),
        Pdep => (feature::BMI2, |tr| spread(tr, true)),
        Pext => (feature::BMI2, |tr| spread(tr, false)),
        Rorx => (feature::BMI2, rorx),
        Sarx => (feature::BMI2, |tr| shift(tr, Op::Sar)),
        Shlx => (feature::BMI2, |tr| shift(tr, Op::Shl)),
        Shrx => (feature::BMI2, |tr| shift(tr, Op::Shr)),
        Adcx => (feature::ADX, |tr| add_carry(tr, bit::CF)),
        Adox => (feature::ADX, |tr| add_carry(tr, bit::OF)),
        Crc32 => (feature::SSE4_2, crc32),
        Rdrand => (feature::RDRAND, random),
        Rdseed => (feature::RDSEED, random),
        _ => return false,
    };
    // VEX encodings do not exist in real and virtual-8086 mode (SDM 2 "VEX Encoding Support in 32-bit mode").
    let vex = tr.insn.encoding() != EncodingKind::Legacy;
    if !tr.feature(wanted) || vex && !tr.mode.protected() {
        tr.ud();
    } else {
        run(tr);
    }
    true
}

fn andn(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let b = tr.src(2, ty);
    let a = tr.src(1, ty);
    let a = tr.b.unary(Op::Not, a);
    let r = tr.b.bin(Op::And, a, b);
    tr.dst(0, r);
    tr.flags_logic(r);
}

/// `c` (I8) as a flag in CF's place.
fn carry(tr: &mut Tr<'_>, c: Val) -> Val {
    tr.b.zext(Ty::I64, c)
}

fn lowest(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let v = tr.src(1, ty);
    let one = tr.b.iconst(ty, 1);
    let zero = tr.b.iconst(ty, 0);
    let (r, cond) = match tr.insn.mnemonic() {
        Mnemonic::Blsi => {
            let n = tr.b.unary(Op::Neg, v);
            (tr.b.bin(Op::And, n, v), Cond::Ne)
        }
        m => {
            let less = tr.b.bin(Op::Sub, v, one);
            (tr.b.bin(if m == Mnemonic::Blsr { Op::And } else { Op::Xor }, less, v), Cond::Eq)
        }
    };
    let cf = tr.b.cmp(cond, v, zero);
    let cf = carry(tr, cf);
    tr.dst(0, r);
    tr.flags_cfof(r, cf);
}

/// The low `n` (of type `ty`) bits of `v`; all if `n` is not below the width.
fn low_bits(tr: &mut Tr<'_>, v: Val, n: Val) -> Val {
    let ty = tr.b.ty(v);
    let one = tr.b.iconst(ty, 1);
    let mask = tr.b.bin(Op::Shl, one, n);
    let mask = tr.b.bin(Op::Sub, mask, one);
    let part = tr.b.bin(Op::And, v, mask);
    let inside = tr.b.cmp_imm(Cond::Ult, n, ty.bits().into());
    tr.b.select(inside, part, v)
}

fn bextr(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let v = tr.src(1, ty);
    let control = tr.src(2, ty);
    let start = tr.b.bin_imm(Op::And, control, 0xff);
    let len = tr.b.bin_imm(Op::Shr, control, 8);
    let len = tr.b.bin_imm(Op::And, len, 0xff);
    let moved = tr.b.bin(Op::Shr, v, start);
    let zero = tr.b.iconst(ty, 0);
    let inside = tr.b.cmp_imm(Cond::Ult, start, ty.bits().into());
    let moved = tr.b.select(inside, moved, zero);
    let r = low_bits(tr, moved, len);
    tr.dst(0, r);
    tr.flags_logic(r);
}

fn bzhi(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let v = tr.src(1, ty);
    let n = tr.src(2, ty);
    let n = tr.b.bin_imm(Op::And, n, 0xff);
    let r = low_bits(tr, v, n);
    let cf = tr.b.cmp_imm(Cond::Uge, n, ty.bits().into());
    let cf = carry(tr, cf);
    tr.dst(0, r);
    tr.flags_cfof(r, cf);
}

fn mulx(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let b = tr.src(2, ty);
    let a = tr.get(ty, RDX);
    let (low, high) = super::muldiv::product(tr, false, a, b);
    // If both destinations are one register it gets the high half.
    tr.dst(1, low);
    tr.dst(0, high);
}

fn spread(tr: &mut Tr<'_>, deposit: bool) {
    let ty = tr.op_ty(0);
    let mask = tr.src(2, ty);
    let v = tr.src(1, ty);
    let (v, mask) = (tr.b.zext(Ty::I64, v), tr.b.zext(Ty::I64, mask));
    let r = tr.call(if deposit { PDEP } else { PEXT }, &[v, mask]);
    let r = tr.b.zext(ty, r);
    tr.dst(0, r);
}

fn rorx(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let v = tr.src(1, ty);
    let r = tr.b.bin_imm(Op::Rotr, v, tr.imm(2) & u64::from(ty.bits() - 1));
    tr.dst(0, r);
}

fn shift(tr: &mut Tr<'_>, op: Op) {
    let ty = tr.op_ty(0);
    let v = tr.src(1, ty);
    let n = tr.src(2, ty);
    let r = tr.b.bin(op, v, n);
    tr.dst(0, r);
}

/// ADCX and ADOX: an addition whose carry in and out is the one flag `flag`.
fn add_carry(tr: &mut Tr<'_>, flag: u64) {
    let ty = tr.op_ty(0);
    let b = tr.src(1, ty);
    let a = tr.src(0, ty);
    let flags = tr.flag_bits();
    let old = tr.b.bin_imm(Op::And, flags, flag);
    let old = tr.b.cmp_imm(Cond::Ne, old, 0);
    let c = tr.b.zext(ty, old);
    let sum = tr.b.bin(Op::Add, a, b);
    let r = tr.b.bin(Op::Add, sum, c);
    let (first, second) = (tr.b.cmp(Cond::Ult, sum, a), tr.b.cmp(Cond::Ult, r, sum));
    let out = tr.b.bin(Op::Or, first, second);
    let out = tr.b.zext(Ty::I64, out);
    let out = tr.b.bin_imm(Op::Shl, out, flag.trailing_zeros().into());
    let rest = tr.b.bin_imm(Op::And, flags, bit::ARITH & !flag);
    let bits = tr.b.bin(Op::Or, rest, out);
    tr.dst(0, r);
    tr.flags_bits(bits);
}

fn crc32(tr: &mut Tr<'_>) {
    let (ty, from) = (tr.op_ty(0), tr.op_ty(1));
    let data = tr.src(1, from);
    let data = tr.b.zext(Ty::I64, data);
    let crc = tr.src(0, Ty::I32);
    let crc = tr.b.zext(Ty::I64, crc);
    let bytes = tr.i64(from.bytes().into());
    let r = tr.call(CRC32, &[crc, data, bytes]);
    let r = tr.b.zext(ty, r);
    tr.dst(0, r);
}

fn random(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let bytes = tr.i64(ty.bytes().into());
    let v = tr.call(RANDOM, &[bytes]);
    tr.flags_unknown();
    let v = tr.b.zext(ty, v);
    tr.dst(0, v);
}
