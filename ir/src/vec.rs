//! Vector ops on two 128-bit operands: their names and exact meaning. Those without floating point; each is one
//! instruction on common hosts.

use crate::types::named;

named! {
    /// Lane-wise ops; the number is the lane width in bits. `unpk_lo8` interleaves the low halves, a first.
    /// `avg` rounds up; `pack_u16` narrows signed 16-bit lanes to unsigned bytes, with saturation, a's lanes first.
    /// `madd_s16` adds the products of two neighbours, `madd_us8` those of unsigned bytes of a and signed ones of b, with
    /// saturation; `mulround_s16` gives bits 30..15 of the product, rounded; `mul_u32` and `mul_s32` multiply the even lanes to
    /// 64 bits; `sad_u8` adds the differences of eight bytes. `h...` work on neighbours, a's pairs first. `sign` negates a, or
    /// makes it 0, by the sign of b; `abs` ignores a. `permute8` takes bytes of a by the low four bits of b's bytes, 0 if bit 7
    /// is set; `permute32` lanes of a by b's low two bits, `permute64` by bit 1. `shl32_by` and so on shift each lane by the
    /// same lane of b, `shl32_all` all lanes by b's low 64 bits; counts above the width give 0 or copies of the sign.
    /// `minpos_u16` gives b's least lane and, in the next lane, its number.
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
        PackS16 = "pack_s16", PackS32 = "pack_s32", PackU16 = "pack_u16", PackU32 = "pack_u32",
        CmpEq64 = "cmpeq64", CmpGtS64 = "cmpgt_s64",
        MinS8 = "min_s8", MaxS8 = "max_s8", MinU16 = "min_u16", MaxU16 = "max_u16",
        MinS32 = "min_s32", MaxS32 = "max_s32", MinU32 = "min_u32", MaxU32 = "max_u32",
        Mul32 = "mul32", MulHiS16 = "mulhi_s16", MulHiU16 = "mulhi_u16", MulRoundS16 = "mulround_s16",
        MulAddS16 = "madd_s16", MulAddUS8 = "madd_us8", MulU32 = "mul_u32", MulS32 = "mul_s32", SadU8 = "sad_u8",
        HAdd16 = "hadd16", HAdd32 = "hadd32", HAddSatS16 = "haddsat_s16",
        HSub16 = "hsub16", HSub32 = "hsub32", HSubSatS16 = "hsubsat_s16",
        Sign8 = "sign8", Sign16 = "sign16", Sign32 = "sign32", Abs8 = "abs8", Abs16 = "abs16", Abs32 = "abs32",
        Permute8 = "permute8", Permute32 = "permute32", Permute64 = "permute64",
        ShlBy32 = "shl32_by", ShlBy64 = "shl64_by", ShrBy32 = "shr32_by", ShrBy64 = "shr64_by", SarBy32 = "sar32_by",
        ShlAll16 = "shl16_all", ShlAll32 = "shl32_all", ShlAll64 = "shl64_all",
        ShrAll16 = "shr16_all", ShrAll32 = "shr32_all", ShrAll64 = "shr64_all", SarAll16 = "sar16_all", SarAll32 = "sar32_all",
        MinPosU16 = "minpos_u16",
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

/// Pairs of neighbours, those of a first.
fn pairs<const W: u32>(a: u128, b: u128, f: impl Fn(u64, u64) -> u64) -> u128 {
    let mask = if W == 64 { u64::MAX } else { (1 << W) - 1 };
    let half = 64 / W;
    (0..2 * half).fold(0, |r, i| {
        let v = if i < half { a } else { b } >> (2 * (i % half) * W);
        r | u128::from(f(v as u64 & mask, (v >> W) as u64 & mask) & mask) << (i * W)
    })
}

fn sign<const W: u32>(a: u128, b: u128) -> u128 {
    lanes::<W>(a, b, |x, y| {
        let y = (y << (64 - W)) as i64;
        if y < 0 { x.wrapping_neg() } else { x & ones(y != 0) }
    })
}

/// Sum of the products of two neighbouring signed 16-bit lanes.
fn mul_add(x: u64, y: u64) -> u64 {
    let product = |s: u32| (x >> s) as i16 as i32 * (y >> s) as i16 as i32;
    product(0).wrapping_add(product(16)) as u64
}

/// The same of unsigned and signed bytes, saturated.
fn mul_add_bytes(x: u64, y: u64) -> u64 {
    let product = |s: u32| i32::from((x >> s) as u8) * i32::from((y >> s) as i8);
    (product(0) + product(8)).clamp(i16::MIN.into(), i16::MAX.into()) as u64
}

fn permute_bytes(a: u128, b: u128) -> u128 {
    let a = a.to_le_bytes();
    u128::from_le_bytes(b.to_le_bytes().map(|m| if m & 0x80 == 0 { a[usize::from(m & 15)] } else { 0 }))
}

fn min_pos(b: u128) -> u128 {
    let lane = |i: u32| (b >> (16 * i)) as u16;
    let least = (0..8).min_by_key(|i| lane(*i)).unwrap_or(0);
    u128::from(lane(least)) | u128::from(least) << 16
}

/// x << n, 0 if `n` is not less than the width.
const fn shl(width: u64, x: u64, n: u64) -> u64 {
    if n < width { x << n } else { 0 }
}

const fn shr(width: u64, x: u64, n: u64) -> u64 {
    if n < width { x >> n } else { 0 }
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
            PackU32 => pack::<32>(a, b, 0, 0xffff),
            UnpkLo8 => unpack::<8>(a, b),
            UnpkLo16 => unpack::<16>(a, b),
            UnpkLo32 => unpack::<32>(a, b),
            UnpkLo64 => unpack::<64>(a, b),
            UnpkHi8 => unpack::<8>(a >> 64, b >> 64),
            UnpkHi16 => unpack::<16>(a >> 64, b >> 64),
            UnpkHi32 => unpack::<32>(a >> 64, b >> 64),
            UnpkHi64 => unpack::<64>(a >> 64, b >> 64),
            _ => self.eval_wide(a, b),
        }
    }

    /// The ops that came with later instruction sets.
    fn eval_wide(self, a: u128, b: u128) -> u128 {
        use VecOp::*;
        let n = b as u64;
        match self {
            CmpEq64 => lanes::<64>(a, b, |x, y| ones(x == y)),
            CmpGtS64 => lanes::<64>(a, b, |x, y| ones(x as i64 > y as i64)),
            MinS8 => lanes::<8>(a, b, |x, y| (x as i8).min(y as i8) as u64),
            MaxS8 => lanes::<8>(a, b, |x, y| (x as i8).max(y as i8) as u64),
            MinU16 => lanes::<16>(a, b, u64::min),
            MaxU16 => lanes::<16>(a, b, u64::max),
            MinS32 => lanes::<32>(a, b, |x, y| (x as i32).min(y as i32) as u64),
            MaxS32 => lanes::<32>(a, b, |x, y| (x as i32).max(y as i32) as u64),
            MinU32 => lanes::<32>(a, b, u64::min),
            MaxU32 => lanes::<32>(a, b, u64::max),
            Mul32 => lanes::<32>(a, b, u64::wrapping_mul),
            MulHiS16 => lanes::<16>(a, b, |x, y| ((x as i16 as i32 * y as i16 as i32) >> 16) as u64),
            MulHiU16 => lanes::<16>(a, b, |x, y| (x * y) >> 16),
            MulRoundS16 => lanes::<16>(a, b, |x, y| ((((x as i16 as i32 * y as i16 as i32) >> 14) + 1) >> 1) as u64),
            MulAddS16 => lanes::<32>(a, b, mul_add),
            MulAddUS8 => lanes::<16>(a, b, mul_add_bytes),
            MulU32 => lanes::<64>(a, b, |x, y| (x & 0xffff_ffff) * (y & 0xffff_ffff)),
            MulS32 => lanes::<64>(a, b, |x, y| (i64::from(x as i32) * i64::from(y as i32)) as u64),
            SadU8 => {
                lanes::<64>(a, b, |x, y| x.to_le_bytes().iter().zip(y.to_le_bytes()).map(|(x, y)| u64::from(x.abs_diff(y))).sum())
            }
            HAdd16 => pairs::<16>(a, b, u64::wrapping_add),
            HAdd32 => pairs::<32>(a, b, u64::wrapping_add),
            HAddSatS16 => pairs::<16>(a, b, |x, y| (x as i16).saturating_add(y as i16) as u64),
            HSub16 => pairs::<16>(a, b, u64::wrapping_sub),
            HSub32 => pairs::<32>(a, b, u64::wrapping_sub),
            HSubSatS16 => pairs::<16>(a, b, |x, y| (x as i16).saturating_sub(y as i16) as u64),
            Sign8 => sign::<8>(a, b),
            Sign16 => sign::<16>(a, b),
            Sign32 => sign::<32>(a, b),
            Abs8 => sign::<8>(b, b),
            Abs16 => sign::<16>(b, b),
            Abs32 => sign::<32>(b, b),
            Permute8 => permute_bytes(a, b),
            Permute32 => lanes::<32>(0, b, |_, y| (a >> (32 * (y & 3))) as u64),
            Permute64 => lanes::<64>(0, b, |_, y| (a >> (64 * (y >> 1 & 1))) as u64),
            ShlBy32 => lanes::<32>(a, b, |x, y| shl(32, x, y)),
            ShlBy64 => lanes::<64>(a, b, |x, y| shl(64, x, y)),
            ShrBy32 => lanes::<32>(a, b, |x, y| shr(32, x, y)),
            ShrBy64 => lanes::<64>(a, b, |x, y| shr(64, x, y)),
            SarBy32 => lanes::<32>(a, b, |x, y| (x as i32 >> y.min(31)) as u64),
            ShlAll16 => lanes::<16>(a, 0, |x, _| shl(16, x, n)),
            ShlAll32 => lanes::<32>(a, 0, |x, _| shl(32, x, n)),
            ShlAll64 => lanes::<64>(a, 0, |x, _| shl(64, x, n)),
            ShrAll16 => lanes::<16>(a, 0, |x, _| shr(16, x, n)),
            ShrAll32 => lanes::<32>(a, 0, |x, _| shr(32, x, n)),
            ShrAll64 => lanes::<64>(a, 0, |x, _| shr(64, x, n)),
            SarAll16 => lanes::<16>(a, 0, |x, _| (x as i16 >> n.min(15)) as u64),
            SarAll32 => lanes::<32>(a, 0, |x, _| (x as i32 >> n.min(31)) as u64),
            // `eval` has the others.
            _ => min_pos(b),
        }
    }
}
