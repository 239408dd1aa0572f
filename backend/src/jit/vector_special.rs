//! Vector ops that take several Cranelift instructions: multiplications across widths, sums of differences, signs, and shifts
//! by counts in a register.

use super::lower::Lower;
use super::vector::ssse3;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8X16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use ir::VecOp;

/// `None`: there is no short form.
pub fn lower(l: &mut Lower<'_, '_>, op: VecOp, a: Value, b: Value) -> Option<Value> {
    use VecOp::*;
    let (left, right) = (Direction::Left, Direction::Right);
    Some(match op {
        Sign8 | Sign16 | Sign32 => sign(l, a, b),
        MulHiS16 => mul_high(l, a, b, true),
        MulHiU16 => mul_high(l, a, b, false),
        MulAddS16 => mul_add(l, a, b),
        // Cranelift has the signed operand first.
        MulAddUS8 if ssse3() => {
            let (a, b) = (l.cast(I8X16, a), l.cast(I8X16, b));
            l.b.ins().x86_pmaddubsw(b, a)
        }
        MulU32 => mul_even(l, a, b, false),
        MulS32 => mul_even(l, a, b, true),
        SadU8 => sad(l, a, b),
        ShlAll16 => shift_all(l, I16X8, left, a, b),
        ShlAll32 => shift_all(l, I32X4, left, a, b),
        ShlAll64 => shift_all(l, I64X2, left, a, b),
        ShrAll16 => shift_all(l, I16X8, right, a, b),
        ShrAll32 => shift_all(l, I32X4, right, a, b),
        ShrAll64 => shift_all(l, I64X2, right, a, b),
        SarAll16 => shift_all(l, I16X8, Direction::Signed, a, b),
        SarAll32 => shift_all(l, I32X4, Direction::Signed, a, b),
        ShlBy32 => shift_by(l, I32X4, left, a, b),
        ShlBy64 => shift_by(l, I64X2, left, a, b),
        ShrBy32 => shift_by(l, I32X4, right, a, b),
        ShrBy64 => shift_by(l, I64X2, right, a, b),
        SarBy32 => shift_by(l, I32X4, Direction::Signed, a, b),
        _ => return None,
    })
}

fn constant(l: &mut Lower<'_, '_>, ty: Type, v: u128) -> Value {
    let c = l.b.func.dfg.constants.insert(v.to_le_bytes().to_vec().into());
    l.b.ins().vconst(ty, c)
}

/// a, -a or 0 by the sign of b.
fn sign(l: &mut Lower<'_, '_>, a: Value, b: Value) -> Value {
    let zero = constant(l, l.b.func.dfg.value_type(b), 0);
    let negative = l.b.ins().icmp(IntCC::SignedLessThan, b, zero);
    let none = l.b.ins().icmp(IntCC::Equal, b, zero);
    let flipped = l.b.ins().bxor(a, negative);
    let v = l.b.ins().isub(flipped, negative);
    l.b.ins().band_not(v, none)
}

fn mul_high(l: &mut Lower<'_, '_>, a: Value, b: Value, signed: bool) -> Value {
    let (a, b) = (l.cast(I16X8, a), l.cast(I16X8, b));
    let n = l.iconst(I32, 16);
    let ins = |l: &mut Lower<'_, '_>, low: bool| {
        let widen = |l: &mut Lower<'_, '_>, v: Value| match (signed, low) {
            (true, true) => l.b.ins().swiden_low(v),
            (true, false) => l.b.ins().swiden_high(v),
            (false, true) => l.b.ins().uwiden_low(v),
            (false, false) => l.b.ins().uwiden_high(v),
        };
        let (x, y) = (widen(l, a), widen(l, b));
        let p = l.b.ins().imul(x, y);
        if signed { l.b.ins().sshr(p, n) } else { l.b.ins().ushr(p, n) }
    };
    let (low, high) = (ins(l, true), ins(l, false));
    if signed { l.b.ins().snarrow(low, high) } else { l.b.ins().unarrow(low, high) }
}

/// Cranelift knows this shape as one instruction.
fn mul_add(l: &mut Lower<'_, '_>, a: Value, b: Value) -> Value {
    let (a, b) = (l.cast(I16X8, a), l.cast(I16X8, b));
    let (x, y) = (l.b.ins().swiden_low(a), l.b.ins().swiden_low(b));
    let low = l.b.ins().imul(x, y);
    let (x, y) = (l.b.ins().swiden_high(a), l.b.ins().swiden_high(b));
    let high = l.b.ins().imul(x, y);
    l.b.ins().iadd_pairwise(low, high)
}

/// Products of the even 32-bit lanes.
fn mul_even(l: &mut Lower<'_, '_>, a: Value, b: Value, signed: bool) -> Value {
    let even: [u8; 16] = std::array::from_fn(|i| if i < 8 { (i / 4 * 8 + i % 4) as u8 } else { i as u8 });
    let widened = [a, b].map(|v| {
        let v = l.cast(I8X16, v);
        let v = l.shuffle(v, v, even);
        let v = l.cast(I32X4, v);
        if signed { l.b.ins().swiden_low(v) } else { l.b.ins().uwiden_low(v) }
    });
    l.b.ins().imul(widened[0], widened[1])
}

/// Sums of eight absolute differences of bytes, by adding neighbours three times.
fn sad(l: &mut Lower<'_, '_>, a: Value, b: Value) -> Value {
    let (a, b) = (l.cast(I8X16, a), l.cast(I8X16, b));
    let (most, least) = (l.b.ins().umax(a, b), l.b.ins().umin(a, b));
    let mut v = l.b.ins().isub(most, least);
    for (ty, bits, mask) in [
        (I16X8, 8, u128::MAX / 0xffff * 0xff),
        (I32X4, 16, u128::MAX / 0xffff_ffff * 0xffff),
        (I64X2, 32, u128::MAX / u128::from(u64::MAX) * 0xffff_ffff),
    ] {
        let x = l.cast(ty, v);
        let (n, m) = (l.iconst(I32, bits), constant(l, ty, mask));
        let (high, low) = (l.b.ins().ushr(x, n), l.b.ins().band(x, m));
        v = l.b.ins().iadd(high, low);
    }
    v
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Left,
    Right,
    Signed,
}

/// Shifts `v`, a vector or a number, by `n`, which is taken modulo the width.
fn shift(l: &mut Lower<'_, '_>, how: Direction, v: Value, n: Value) -> Value {
    match how {
        Direction::Left => l.b.ins().ishl(v, n),
        Direction::Right => l.b.ins().ushr(v, n),
        Direction::Signed => l.b.ins().sshr(v, n),
    }
}

/// All lanes of type `ty` by the low 64 bits of `b`.
fn shift_all(l: &mut Lower<'_, '_>, ty: Type, how: Direction, a: Value, b: Value) -> Value {
    let (a, b) = (l.cast(ty, a), l.cast(I64X2, b));
    let n = l.b.ins().extractlane(b, 0);
    let width = i64::from(ty.lane_bits());
    if how == Direction::Signed {
        let last = l.iconst(I64, width - 1);
        let n = l.b.ins().umin(n, last);
        return shift(l, how, a, n);
    }
    let limit = l.iconst(I64, width);
    let inside = l.b.ins().icmp(IntCC::UnsignedLessThan, n, limit);
    let shifted = shift(l, how, a, n);
    let zero = constant(l, ty, 0);
    l.b.ins().select(inside, shifted, zero)
}

/// Each lane by the lane of `b`.
fn shift_by(l: &mut Lower<'_, '_>, ty: Type, how: Direction, a: Value, b: Value) -> Value {
    let (a, b) = (l.cast(ty, a), l.cast(ty, b));
    let (lane, width) = (ty.lane_type(), i64::from(ty.lane_bits()));
    let mut r = a;
    for i in 0..ty.lane_count() as u8 {
        let (v, n) = (l.b.ins().extractlane(a, i), l.b.ins().extractlane(b, i));
        let x = if how == Direction::Signed {
            let last = l.iconst(lane, width - 1);
            let n = l.b.ins().umin(n, last);
            shift(l, how, v, n)
        } else {
            let limit = l.iconst(lane, width);
            let inside = l.b.ins().icmp(IntCC::UnsignedLessThan, n, limit);
            let (x, zero) = (shift(l, how, v, n), l.iconst(lane, 0));
            l.b.ins().select(inside, x, zero)
        };
        r = l.b.ins().insertlane(r, x, i);
    }
    r
}
