//! Lane-wise vector ops on two 128-bit operands: their names and exact meaning. Those without floating point; each is one
//! instruction on common hosts.

use crate::types::named;

named! {
    /// Lane-wise ops; the number is the lane width in bits. `unpk_lo8` interleaves the low halves, a first.
    /// `avg` rounds up; `pack_u16` narrows signed 16-bit lanes to unsigned bytes, with saturation, a's lanes first.
    VecOp {
        And = "and", Or = "or", Xor = "xor", AndNot = "andnot",
        Add8 = "add8", Add16 = "add16", Add32 = "add32", Add64 = "add64",
        Sub8 = "sub8", Sub16 = "sub16", Sub32 = "sub32", Sub64 = "sub64",
        CmpEq8 = "cmpeq8", CmpEq16 = "cmpeq16", CmpEq32 = "cmpeq32",
        CmpGtS8 = "cmpgt_s8", CmpGtS16 = "cmpgt_s16", CmpGtS32 = "cmpgt_s32",
        MinU8 = "min_u8", MaxU8 = "max_u8", MinS16 = "min_s16", MaxS16 = "max_s16",
        Mul16 = "mul16", UnpkLo8 = "unpk_lo8", UnpkLo16 = "unpk_lo16", UnpkLo32 = "unpk_lo32", UnpkLo64 = "unpk_lo64",
        UnpkHi8 = "unpk_hi8", UnpkHi16 = "unpk_hi16", UnpkHi32 = "unpk_hi32", UnpkHi64 = "unpk_hi64",
        AvgU8 = "avg_u8", AvgU16 = "avg_u16",
        AddSatS8 = "addsat_s8", AddSatS16 = "addsat_s16", AddSatU8 = "addsat_u8", AddSatU16 = "addsat_u16",
        SubSatS8 = "subsat_s8", SubSatS16 = "subsat_s16", SubSatU8 = "subsat_u8", SubSatU16 = "subsat_u16",
        PackS16 = "pack_s16", PackS32 = "pack_s32", PackU16 = "pack_u16",
    }
}

named! {
    /// Lane-wise shifts by a constant less than the lane width, which the number tells.
    VecShift {
        Shl16 = "shl16", Shl32 = "shl32", Shl64 = "shl64", Shr16 = "shr16", Shr32 = "shr32", Shr64 = "shr64",
        Sar16 = "sar16", Sar32 = "sar32",
    }
}

impl VecShift {
    /// Lane width in bits.
    pub const fn width(self) -> u32 {
        match self {
            VecShift::Shl16 | VecShift::Shr16 | VecShift::Sar16 => 16,
            VecShift::Shl32 | VecShift::Shr32 | VecShift::Sar32 => 32,
            VecShift::Shl64 | VecShift::Shr64 => 64,
        }
    }

    /// The reference meaning; `n` is taken modulo the width.
    pub fn eval(self, a: u128, n: u32) -> u128 {
        let n = n % self.width();
        match self {
            VecShift::Shl16 => lanes::<16>(a, 0, |x, _| x << n),
            VecShift::Shl32 => lanes::<32>(a, 0, |x, _| x << n),
            VecShift::Shl64 => lanes::<64>(a, 0, |x, _| x << n),
            VecShift::Shr16 => lanes::<16>(a, 0, |x, _| x >> n),
            VecShift::Shr32 => lanes::<32>(a, 0, |x, _| x >> n),
            VecShift::Shr64 => lanes::<64>(a, 0, |x, _| x >> n),
            VecShift::Sar16 => lanes::<16>(a, 0, |x, _| (x as i16 >> n) as u64),
            VecShift::Sar32 => lanes::<32>(a, 0, |x, _| (x as i32 >> n) as u64),
        }
    }
}

/// Byte i of the result is byte `mask[i]` of b:a: 0..=15 from a, 16..=31 from b.
pub fn shuffle(a: u128, b: u128, mask: [u8; 16]) -> u128 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    u128::from_le_bytes(mask.map(|m| if m & 16 == 0 { a[usize::from(m & 15)] } else { b[usize::from(m & 15)] }))
}

/// The top bits of the lanes of `width` (8, 16, 32, 64) bits.
pub fn high_bits(a: u128, width: u16) -> u64 {
    let w = u32::from(width.clamp(8, 64));
    (0..128 / w).fold(0, |r, i| r | ((a >> (i * w + w - 1)) as u64 & 1) << i)
}

/// Narrows signed lanes of `W` bits, those of a first, saturating to `min..=max`.
fn pack<const W: u32>(a: u128, b: u128, min: i64, max: i64) -> u128 {
    let half = |v: u128| {
        (0..128 / W).fold(0u128, |r, i| {
            let x = (v >> (i * W)) as u64 as i64;
            let x = x << (64 - W) >> (64 - W);
            r | u128::from(x.clamp(min, max) as u64 & (u64::MAX >> (64 - W / 2))) << (i * W / 2)
        })
    };
    half(a) | half(b) << 64
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
            AvgU8 => lanes::<8>(a, b, |x, y| (x + y + 1) >> 1),
            AvgU16 => lanes::<16>(a, b, |x, y| (x + y + 1) >> 1),
            AddSatS8 => lanes::<8>(a, b, |x, y| (x as i8).saturating_add(y as i8) as u64),
            AddSatS16 => lanes::<16>(a, b, |x, y| (x as i16).saturating_add(y as i16) as u64),
            AddSatU8 => lanes::<8>(a, b, |x, y| (x as u8).saturating_add(y as u8).into()),
            AddSatU16 => lanes::<16>(a, b, |x, y| (x as u16).saturating_add(y as u16).into()),
            SubSatS8 => lanes::<8>(a, b, |x, y| (x as i8).saturating_sub(y as i8) as u64),
            SubSatS16 => lanes::<16>(a, b, |x, y| (x as i16).saturating_sub(y as i16) as u64),
            SubSatU8 => lanes::<8>(a, b, |x, y| (x as u8).saturating_sub(y as u8).into()),
            SubSatU16 => lanes::<16>(a, b, |x, y| (x as u16).saturating_sub(y as u16).into()),
            PackS16 => pack::<16>(a, b, -0x80, 0x7f),
            PackS32 => pack::<32>(a, b, -0x8000, 0x7fff),
            PackU16 => pack::<16>(a, b, 0, 0xff),
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
