//! AES rounds, carry-less products and SHA steps by the host's instructions, where it has them.

#[cfg(target_arch = "x86_64")]
use super::sse::{register, value};
#[cfg(target_arch = "x86_64")]
use std::arch::{asm, x86_64::__m128i};

macro_rules! ops {
    ($($name:ident = $feature:tt, $asm:literal;)*) => {
        /// An instruction on two vectors; see the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum CryptoOp { $($name,)* }

        impl CryptoOp {
            pub const ALL: &'static [CryptoOp] = &[$(CryptoOp::$name,)*];

            /// Result of the instruction with xmm1 = `a`, the destination, xmm2 = `b` and xmm0 = `third`. `None`: the host has
            /// no such instruction.
            #[cfg(target_arch = "x86_64")]
            pub fn run(self, a: u128, b: u128, third: u128) -> Option<u128> {
                match self {
                    $(CryptoOp::$name => {
                        if !std::is_x86_feature_detected!($feature) {
                            return None;
                        }
                        let r: __m128i;
                        // SAFETY: the host has the instruction, which touches the declared registers only.
                        unsafe {
                            asm!($asm, inout("xmm1") register(a) => r, in("xmm2") register(b), in("xmm0") register(third),
                                options(pure, nomem, nostack, preserves_flags));
                        }
                        Some(value(r))
                    })*
                }
            }

            #[cfg(not(target_arch = "x86_64"))]
            pub fn run(self, _: u128, _: u128, _: u128) -> Option<u128> {
                None
            }
        }
    };
}

ops! {
    AesEnc = "aes", "aesenc xmm1, xmm2";
    AesEncLast = "aes", "aesenclast xmm1, xmm2";
    AesDec = "aes", "aesdec xmm1, xmm2";
    AesDecLast = "aes", "aesdeclast xmm1, xmm2";
    AesImc = "aes", "aesimc xmm1, xmm2";
    ClmulLowLow = "pclmulqdq", "pclmulqdq xmm1, xmm2, 0x00";
    ClmulHighLow = "pclmulqdq", "pclmulqdq xmm1, xmm2, 0x01";
    ClmulLowHigh = "pclmulqdq", "pclmulqdq xmm1, xmm2, 0x10";
    ClmulHighHigh = "pclmulqdq", "pclmulqdq xmm1, xmm2, 0x11";
    Sha1Rnds0 = "sha", "sha1rnds4 xmm1, xmm2, 0";
    Sha1Rnds1 = "sha", "sha1rnds4 xmm1, xmm2, 1";
    Sha1Rnds2 = "sha", "sha1rnds4 xmm1, xmm2, 2";
    Sha1Rnds3 = "sha", "sha1rnds4 xmm1, xmm2, 3";
    Sha1Nexte = "sha", "sha1nexte xmm1, xmm2";
    Sha1Msg1 = "sha", "sha1msg1 xmm1, xmm2";
    Sha1Msg2 = "sha", "sha1msg2 xmm1, xmm2";
    Sha256Rnds2 = "sha", "sha256rnds2 xmm1, xmm2";
    Sha256Msg1 = "sha", "sha256msg1 xmm1, xmm2";
    Sha256Msg2 = "sha", "sha256msg2 xmm1, xmm2";
}
