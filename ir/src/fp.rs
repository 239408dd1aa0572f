//! Floating-point ops on vectors: their names and exact meaning. Under round to nearest, all exceptions masked, nothing
//! flushed to zero: a front end takes them only where the guest asks for just that.

use crate::types::named;

named! {
    /// What the SSE or SSE2 instruction does (SDM 1 chapters 10 and 11, SDM 2), NaNs and which operand's NaN included. `p32`
    /// and `p64` work on all lanes, `s32` and `s64` on the lowest, the others being a's; ops with one source take b. `cmp`
    /// makes masks, by the predicate of CMPPS that the number is.
    ///
    /// From `ComiS32` on the result is an I64: `comi` and `ucomi` give ZF, PF and CF where LAHF puts them (bits 6, 2 and 0), the
    /// others b's lowest lane as I32 (zero-extended) or I64, rounded or (`t`) truncated. From `I32ToS32` on b is an
    /// integer, of which `i32` takes the low half; the result is a vector again.
    FpOp {
        AddP32 = "add_p32", AddP64 = "add_p64", AddS32 = "add_s32", AddS64 = "add_s64",
        SubP32 = "sub_p32", SubP64 = "sub_p64", SubS32 = "sub_s32", SubS64 = "sub_s64",
        MulP32 = "mul_p32", MulP64 = "mul_p64", MulS32 = "mul_s32", MulS64 = "mul_s64",
        DivP32 = "div_p32", DivP64 = "div_p64", DivS32 = "div_s32", DivS64 = "div_s64",
        MinP32 = "min_p32", MinP64 = "min_p64", MinS32 = "min_s32", MinS64 = "min_s64",
        MaxP32 = "max_p32", MaxP64 = "max_p64", MaxS32 = "max_s32", MaxS64 = "max_s64",
        SqrtP32 = "sqrt_p32", SqrtP64 = "sqrt_p64", SqrtS32 = "sqrt_s32", SqrtS64 = "sqrt_s64",
        Cmp0P32 = "cmp0_p32", Cmp0P64 = "cmp0_p64", Cmp0S32 = "cmp0_s32", Cmp0S64 = "cmp0_s64",
        Cmp1P32 = "cmp1_p32", Cmp1P64 = "cmp1_p64", Cmp1S32 = "cmp1_s32", Cmp1S64 = "cmp1_s64",
        Cmp2P32 = "cmp2_p32", Cmp2P64 = "cmp2_p64", Cmp2S32 = "cmp2_s32", Cmp2S64 = "cmp2_s64",
        Cmp3P32 = "cmp3_p32", Cmp3P64 = "cmp3_p64", Cmp3S32 = "cmp3_s32", Cmp3S64 = "cmp3_s64",
        Cmp4P32 = "cmp4_p32", Cmp4P64 = "cmp4_p64", Cmp4S32 = "cmp4_s32", Cmp4S64 = "cmp4_s64",
        Cmp5P32 = "cmp5_p32", Cmp5P64 = "cmp5_p64", Cmp5S32 = "cmp5_s32", Cmp5S64 = "cmp5_s64",
        Cmp6P32 = "cmp6_p32", Cmp6P64 = "cmp6_p64", Cmp6S32 = "cmp6_s32", Cmp6S64 = "cmp6_s64",
        Cmp7P32 = "cmp7_p32", Cmp7P64 = "cmp7_p64", Cmp7S32 = "cmp7_s32", Cmp7S64 = "cmp7_s64",
        AddSubP32 = "addsub_p32", AddSubP64 = "addsub_p64", HAddP32 = "hadd_p32", HAddP64 = "hadd_p64",
        HSubP32 = "hsub_p32", HSubP64 = "hsub_p64",
        P32ToP64 = "p32_to_p64", P64ToP32 = "p64_to_p32", S32ToS64 = "s32_to_s64", S64ToS32 = "s64_to_s32",
        I32ToP32 = "i32_to_p32", I32ToP64 = "i32_to_p64", P32ToI32 = "p32_to_i32", P32ToI32T = "p32_to_i32t",
        P64ToI32 = "p64_to_i32", P64ToI32T = "p64_to_i32t",
        ComiS32 = "comi_s32", ComiS64 = "comi_s64", UcomiS32 = "ucomi_s32", UcomiS64 = "ucomi_s64",
        S32ToI32 = "s32_to_i32", S32ToI64 = "s32_to_i64", S32ToI32T = "s32_to_i32t", S32ToI64T = "s32_to_i64t",
        S64ToI32 = "s64_to_i32", S64ToI64 = "s64_to_i64", S64ToI32T = "s64_to_i32t", S64ToI64T = "s64_to_i64t",
        I32ToS32 = "i32_to_s32", I64ToS32 = "i64_to_s32", I32ToS64 = "i32_to_s64", I64ToS64 = "i64_to_s64",
    }
}

impl FpOp {
    /// Is the result an I64?
    pub const fn gives_integer(self) -> bool {
        self as u8 >= FpOp::ComiS32 as u8 && (self as u8) < FpOp::I32ToS32 as u8
    }

    /// Is b an I64?
    pub const fn takes_integer(self) -> bool {
        self as u8 >= FpOp::I32ToS32 as u8
    }
}

/// How a front end runs an op: on the bits of a and b, and its control and flags word, into which new exception flags go. The
/// result of what gives an I64 is in the low half.
pub type RunFp = fn(op: FpOp, a: u128, b: u128, flags: &mut u32) -> u128;
