//! Ops on three vectors: fused multiply-add, and the steps of ciphers and hashes that processors have instructions for.

use crate::types::named;

named! {
    /// What the instruction of this name does (SDM 1 "Fused-Multiply-ADD (FMA)", SDM 2): a is its first operand, which the result takes the
    /// place of, b and c the others. Lanes are named as those of `FpOp`, and floating point is done under the same control. `clmul`
    /// multiplies the named halves of a and b; `sha1rnds` has the number of its function; `sha256rnds2` has the words and
    /// constants in c. Those that need less ignore c, `aesimc` also a.
    TriOp {
        Fmadd132P32 = "fmadd132_p32", Fmadd213P32 = "fmadd213_p32", Fmadd231P32 = "fmadd231_p32",
        Fmadd132P64 = "fmadd132_p64", Fmadd213P64 = "fmadd213_p64", Fmadd231P64 = "fmadd231_p64",
        Fmadd132S32 = "fmadd132_s32", Fmadd213S32 = "fmadd213_s32", Fmadd231S32 = "fmadd231_s32",
        Fmadd132S64 = "fmadd132_s64", Fmadd213S64 = "fmadd213_s64", Fmadd231S64 = "fmadd231_s64",
        Fmsub132P32 = "fmsub132_p32", Fmsub213P32 = "fmsub213_p32", Fmsub231P32 = "fmsub231_p32",
        Fmsub132P64 = "fmsub132_p64", Fmsub213P64 = "fmsub213_p64", Fmsub231P64 = "fmsub231_p64",
        Fmsub132S32 = "fmsub132_s32", Fmsub213S32 = "fmsub213_s32", Fmsub231S32 = "fmsub231_s32",
        Fmsub132S64 = "fmsub132_s64", Fmsub213S64 = "fmsub213_s64", Fmsub231S64 = "fmsub231_s64",
        Fnmadd132P32 = "fnmadd132_p32", Fnmadd213P32 = "fnmadd213_p32", Fnmadd231P32 = "fnmadd231_p32",
        Fnmadd132P64 = "fnmadd132_p64", Fnmadd213P64 = "fnmadd213_p64", Fnmadd231P64 = "fnmadd231_p64",
        Fnmadd132S32 = "fnmadd132_s32", Fnmadd213S32 = "fnmadd213_s32", Fnmadd231S32 = "fnmadd231_s32",
        Fnmadd132S64 = "fnmadd132_s64", Fnmadd213S64 = "fnmadd213_s64", Fnmadd231S64 = "fnmadd231_s64",
        Fnmsub132P32 = "fnmsub132_p32", Fnmsub213P32 = "fnmsub213_p32", Fnmsub231P32 = "fnmsub231_p32",
        Fnmsub132P64 = "fnmsub132_p64", Fnmsub213P64 = "fnmsub213_p64", Fnmsub231P64 = "fnmsub231_p64",
        Fnmsub132S32 = "fnmsub132_s32", Fnmsub213S32 = "fnmsub213_s32", Fnmsub231S32 = "fnmsub231_s32",
        Fnmsub132S64 = "fnmsub132_s64", Fnmsub213S64 = "fnmsub213_s64", Fnmsub231S64 = "fnmsub231_s64",
        Fmaddsub132P32 = "fmaddsub132_p32", Fmaddsub213P32 = "fmaddsub213_p32", Fmaddsub231P32 = "fmaddsub231_p32",
        Fmaddsub132P64 = "fmaddsub132_p64", Fmaddsub213P64 = "fmaddsub213_p64", Fmaddsub231P64 = "fmaddsub231_p64",
        Fmsubadd132P32 = "fmsubadd132_p32", Fmsubadd213P32 = "fmsubadd213_p32", Fmsubadd231P32 = "fmsubadd231_p32",
        Fmsubadd132P64 = "fmsubadd132_p64", Fmsubadd213P64 = "fmsubadd213_p64", Fmsubadd231P64 = "fmsubadd231_p64",
        AesEnc = "aesenc", AesEncLast = "aesenclast", AesDec = "aesdec", AesDecLast = "aesdeclast",
        AesImc = "aesimc", ClmulLowLow = "clmul_ll", ClmulHighLow = "clmul_hl", ClmulLowHigh = "clmul_lh",
        ClmulHighHigh = "clmul_hh", Sha1Rnds0 = "sha1rnds0", Sha1Rnds1 = "sha1rnds1", Sha1Rnds2 = "sha1rnds2",
        Sha1Rnds3 = "sha1rnds3", Sha1Nexte = "sha1nexte", Sha1Msg1 = "sha1msg1", Sha1Msg2 = "sha1msg2",
        Sha256Rnds2 = "sha256rnds2", Sha256Msg1 = "sha256msg1", Sha256Msg2 = "sha256msg2",
    }
}

impl TriOp {
    /// Is it floating point, which raises exception flags?
    pub const fn is_fused(self) -> bool {
        (self as u8) < TriOp::AesEnc as u8
    }
}

/// How a front end runs an op, as `RunFp`.
pub type RunTri = fn(op: TriOp, a: u128, b: u128, c: u128, flags: &mut u32) -> u128;
