//! Lane-wise vector ops on two 128-bit operands: their names and exact meaning. Those without floating point; each is one
//! instruction on common hosts.

use crate::types::named;

named! {
    /// Lane-wise ops; the number is the lane width in bits. `unpk_lo8` interleaves the low halves, a first.
    VecOp {
        And = "and", Or = "or", Xor = "xor", AndNot = "andnot",
        Add8 = "add8", Add16 = "add16", Add32 = "add32", Add64 = "add64",
        Sub8 = "sub8", Sub16 = "sub16", Sub32 = "sub32", Sub64 = "sub64",
        CmpEq8 = "cmpeq8", CmpEq16 = "cmpeq16", CmpEq32 = "cmpeq32",
        CmpGtS8 = "cmpgt_s8", CmpGtS16 = "cmpgt_s16", CmpGtS32 = "cmpgt_s32",
        MinU8 = "min_u8", MaxU8 = "max_u8", MinS16 = "min_s16", MaxS16 = "max_s16",
        Mul16 = "mul16", UnpkLo8 = "unpk_lo8", UnpkLo16 = "unpk_lo16", UnpkLo32 = "unpk_lo32", UnpkLo64 = "unpk_lo64",
        UnpkHi8 = "unpk_hi8", UnpkHi16 = "unpk_hi16", UnpkHi32 = "unpk_hi32", UnpkHi64 = "unpk_hi64",
    }
}

fn lanes<const W: u32>(a: u128, b: u128, f: impl Fn(u64, u64) -> u64) -> u128 {
    let mask = if W == 64 { u64::MAX } else { (1 << W) - 1 };
    (0..128 / W).fold(0, |r, i| {
        let (x, y) = ((a >> (i * W)) as u64 & mask, (b >> (i * W)) as u64 & mask);
        r | u128::from(f(x, y) & mask) << (i * W)
    })
}

fn unpack<const W: u32>(a: u128, b: u128) -> u128 {
    let mask = if W == 64 { u64::MAX as u128 } else { (1u128 << W) - 1 };
    (0..64 / W).fold(0, |r, i| {
        let (x, y) = ((a >> (i * W)) & mask, (b >> (i * W)) & mask);
        r | x << (2 * i * W) | y << ((2 * i + 1) * W)
    })
}

fn ones(c: bool) -> u64 {
    if c { !0 } else { 0 }
}

impl VecOp {
    /// The reference meaning.
    pub fn eval(self, a: u128, b: u128) -> u128 {
        use VecOp::*;
        match self {
            And => a & b,
            Or => a | b,
            Xor => a ^ b,
            AndNot => !a & b,
            Add8 => lanes::<8>(a, b, u64::wrapping_add),
            Add16 => lanes::<16>(a, b, u64::wrapping_add),
            Add32 => lanes::<32>(a, b, u64::wrapping_add),
            Add64 => lanes::<64>(a, b, u64::wrapping_add),
            Sub8 => lanes::<8>(a, b, u64::wrapping_sub),
            Sub16 => lanes::<16>(a, b, u64::wrapping_sub),
            Sub32 => lanes::<32>(a, b, u64::wrapping_sub),
            Sub64 => lanes::<64>(a, b, u64::wrapping_sub),
            CmpEq8 => lanes::<8>(a, b, |x, y| ones(x == y)),
            CmpEq16 => lanes::<16>(a, b, |x, y| ones(x == y)),
            CmpEq32 => lanes::<32>(a, b, |x, y| ones(x == y)),
            CmpGtS8 => lanes::<8>(a, b, |x, y| ones(x as i8 > y as i8)),
            CmpGtS16 => lanes::<16>(a, b, |x, y| ones(x as i16 > y as i16)),
            CmpGtS32 => lanes::<32>(a, b, |x, y| ones(x as i32 > y as i32)),
            MinU8 => lanes::<8>(a, b, u64::min),
            MaxU8 => lanes::<8>(a, b, u64::max),
            MinS16 => lanes::<16>(a, b, |x, y| (x as i16).min(y as i16) as u64),
            MaxS16 => lanes::<16>(a, b, |x, y| (x as i16).max(y as i16) as u64),
            Mul16 => lanes::<16>(a, b, u64::wrapping_mul),
            UnpkLo8 => unpack::<8>(a, b),
            UnpkLo16 => unpack::<16>(a, b),
            UnpkLo32 => unpack::<32>(a, b),
            UnpkLo64 => unpack::<64>(a, b),
            UnpkHi8 => unpack::<8>(a >> 64, b >> 64),
            UnpkHi16 => unpack::<16>(a >> 64, b >> 64),
            UnpkHi32 => unpack::<32>(a >> 64, b >> 64),
            UnpkHi64 => unpack::<64>(a >> 64, b >> 64),
        }
    }
}
