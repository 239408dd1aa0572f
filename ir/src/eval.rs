//! What the pure integer ops compute. The reference interpreter and the constant folder share it: it is their definition.

use crate::block::Inst;
use crate::ops::Op;
use crate::types::Ty;

/// Sign-extends the low `ty.bits()` of `v`.
pub const fn sext(ty: Ty, v: u64) -> i64 {
    let sh = if ty.bits() < 64 { 64 - ty.bits() } else { 0 };
    ((v << sh) as i64) >> sh
}

/// Result of a pure integer op, zero-extended. `from` is the type of the first operand; operands are zero-extended.
/// `None`: not a pure integer op, or one without a meaning for these operands (division by zero, overflowing quotient).
pub fn integer(i: &Inst, from: Ty, a: u64, b: u64, c: u64) -> Option<u64> {
    if i.ty == Ty::V128 {
        return None;
    }
    let r = match i.op {
        Op::Const => i.imm as u64,
        Op::Add => a.wrapping_add(b),
        Op::Sub => a.wrapping_sub(b),
        Op::Mul => a.wrapping_mul(b),
        Op::MulHiU => ((u128::from(a) * u128::from(b)) >> i.ty.bits()) as u64,
        Op::MulHiS => ((i128::from(sext(i.ty, a)) * i128::from(sext(i.ty, b))) >> i.ty.bits()) as u64,
        Op::DivU | Op::RemU | Op::DivS | Op::RemS => return divide(i, a, b),
        Op::And => a & b,
        Op::Or => a | b,
        Op::Xor => a ^ b,
        Op::Shl | Op::Shr | Op::Sar | Op::Rotl | Op::Rotr => shift(i, a, (b % u64::from(i.ty.bits())) as u32),
        Op::Neg => a.wrapping_neg(),
        Op::Not => !a,
        Op::Clz => u64::from(a.leading_zeros() - (64 - i.ty.bits())),
        Op::Ctz => u64::from(a.trailing_zeros().min(i.ty.bits())),
        Op::Popcnt => u64::from(a.count_ones()),
        Op::Bswap => a.swap_bytes() >> (64 - i.ty.bits()),
        Op::ZExt | Op::Trunc => a,
        Op::SExt => sext(from, a) as u64,
        Op::Cmp => return Some(u64::from(i.cond().eval(i.ty, a, b))),
        Op::Select => {
            if a != 0 {
                b
            } else {
                c
            }
        }
        _ => return None,
    };
    Some(r & i.ty.mask())
}

fn divide(i: &Inst, a: u64, b: u64) -> Option<u64> {
    let (sa, sb) = (sext(i.ty, a), sext(i.ty, b));
    let r = match i.op {
        Op::DivU => a.checked_div(b)?,
        Op::RemU => a.checked_rem(b)?,
        _ => {
            let min = sext(i.ty, 1 << (i.ty.bits() - 1));
            if sb == 0 || (sa == min && sb == -1) {
                return None;
            }
            (if i.op == Op::DivS { sa / sb } else { sa % sb }) as u64
        }
    };
    Some(r & i.ty.mask())
}

/// `n` is less than the width.
fn shift(i: &Inst, a: u64, n: u32) -> u64 {
    let back = (i.ty.bits() - n) % i.ty.bits();
    match i.op {
        Op::Shl => a << n,
        Op::Shr => a >> n,
        Op::Sar => (sext(i.ty, a) >> n) as u64,
        Op::Rotl => a << n | a >> back,
        _ => a >> n | a << back,
    }
}
