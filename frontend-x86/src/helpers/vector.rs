//! Helpers of vector instructions that are more than lane-wise: AES, GFNI, carry-less products, SHA, MPSADBW, string comparisons
//! (SDM 2 of each).

mod aes;
mod sha;
mod strings;

use super::{Env, Res, STATE};
use crate::hostfp::crypto::CryptoOp;
use arch_x86::CpuState;
use std::sync::LazyLock;

rows! {
    topic vector;
    /// (`pack` of a `BlockOp`, second operand): destination = op of first operand and second.
    BLOCK = block(3) STATE;
    /// (`pack` of 1 explicit lengths | 2 mask result | 4 64-bit lengths, second operand): a string comparison. Gives the
    /// flags.
    STRINGS = string_compare(3) STATE;
}

/// First operand of vector helpers: what to do, destination and first source, an immediate. Registers are numbered 0..=15
/// for XMM, 16..=31 for the upper halves of YMM.
pub fn pack(op: u16, dst: u32, src: u32, imm: u8) -> u64 {
    u64::from(op) | u64::from(dst & 31) << 16 | u64::from(src & 31) << 24 | u64::from(imm) << 32
}

/// Fields of `pack`.
#[derive(Clone, Copy)]
pub(super) struct Packed(pub u64);

impl Packed {
    #[inline(always)]
    pub fn op(self) -> u16 {
        self.0 as u16
    }
    #[inline(always)]
    pub fn dst(self) -> usize {
        (self.0 >> 16 & 31) as usize
    }
    #[inline(always)]
    pub fn src(self) -> usize {
        (self.0 >> 24 & 31) as usize
    }
    #[inline(always)]
    pub fn imm(self) -> u8 {
        (self.0 >> 32) as u8
    }
}

/// Vector register half `n`.
#[inline(always)]
pub(super) fn half(cpu: &mut CpuState, n: usize) -> &mut u128 {
    if n < 16 { &mut cpu.xmm[n & 15] } else { &mut cpu.ymmh[n & 15] }
}

#[inline(always)]
pub(super) fn join(lo: u64, hi: u64) -> u128 {
    u128::from(hi) << 64 | u128::from(lo)
}

/// Operations on two vectors as wholes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum BlockOp {
    AesEnc,
    AesEncLast,
    AesDec,
    AesDecLast,
    /// Of the second operand.
    AesImc,
    AesKeygen,
    Clmul,
    Mpsadbw,
    Sha1Rnds4,
    Sha1Nexte,
    Sha1Msg1,
    Sha1Msg2,
    /// Takes its round constants from XMM0.
    Sha256Rnds2,
    Sha256Msg1,
    Sha256Msg2,
    Gf2p8Mul,
    Gf2p8Affine,
    Gf2p8AffineInv,
}

impl BlockOp {
    const ALL: [BlockOp; 18] = [
        BlockOp::AesEnc,
        BlockOp::AesEncLast,
        BlockOp::AesDec,
        BlockOp::AesDecLast,
        BlockOp::AesImc,
        BlockOp::AesKeygen,
        BlockOp::Clmul,
        BlockOp::Mpsadbw,
        BlockOp::Sha1Rnds4,
        BlockOp::Sha1Nexte,
        BlockOp::Sha1Msg1,
        BlockOp::Sha1Msg2,
        BlockOp::Sha256Rnds2,
        BlockOp::Sha256Msg1,
        BlockOp::Sha256Msg2,
        BlockOp::Gf2p8Mul,
        BlockOp::Gf2p8Affine,
        BlockOp::Gf2p8AffineInv,
    ];

    /// The host's instruction, if there is one.
    pub fn host(self, imm: u8) -> Option<CryptoOp> {
        use CryptoOp as C;
        Some(match self {
            BlockOp::AesEnc => C::AesEnc,
            BlockOp::AesEncLast => C::AesEncLast,
            BlockOp::AesDec => C::AesDec,
            BlockOp::AesDecLast => C::AesDecLast,
            BlockOp::AesImc => C::AesImc,
            BlockOp::Clmul => match imm & 0x11 {
                0x00 => C::ClmulLowLow,
                0x01 => C::ClmulHighLow,
                0x10 => C::ClmulLowHigh,
                _ => C::ClmulHighHigh,
            },
            BlockOp::Sha1Rnds4 => [C::Sha1Rnds0, C::Sha1Rnds1, C::Sha1Rnds2, C::Sha1Rnds3][usize::from(imm & 3)],
            BlockOp::Sha1Nexte => C::Sha1Nexte,
            BlockOp::Sha1Msg1 => C::Sha1Msg1,
            BlockOp::Sha1Msg2 => C::Sha1Msg2,
            BlockOp::Sha256Rnds2 => C::Sha256Rnds2,
            BlockOp::Sha256Msg1 => C::Sha256Msg1,
            BlockOp::Sha256Msg2 => C::Sha256Msg2,
            _ => return None,
        })
    }

    /// `third` is XMM0.
    fn eval(self, a: u128, b: u128, third: u128, imm: u8) -> u128 {
        self.host(imm).and_then(|op| op.run(a, b, third)).unwrap_or_else(|| self.portable(a, b, third, imm))
    }

    fn portable(self, a: u128, b: u128, third: u128, imm: u8) -> u128 {
        match self {
            BlockOp::AesEnc => aes::encrypt(a) ^ b,
            BlockOp::AesEncLast => aes::encrypt_last(a) ^ b,
            BlockOp::AesDec => aes::decrypt(a) ^ b,
            BlockOp::AesDecLast => aes::decrypt_last(a) ^ b,
            BlockOp::AesImc => aes::unmix(b),
            BlockOp::AesKeygen => aes::keygen(b, imm),
            BlockOp::Clmul => clmul((a >> (64 * (imm & 1))) as u64, (b >> (64 * (imm >> 4 & 1))) as u64),
            BlockOp::Mpsadbw => mpsadbw(a, b, imm),
            BlockOp::Sha1Rnds4 => sha::sha1_rounds(a, b, imm),
            BlockOp::Sha1Nexte => sha::sha1_next_e(a, b),
            BlockOp::Sha1Msg1 => sha::sha1_message1(a, b),
            BlockOp::Sha1Msg2 => sha::sha1_message2(a, b),
            BlockOp::Sha256Rnds2 => sha::sha256_rounds(a, b, third),
            BlockOp::Sha256Msg1 => sha::sha256_message1(a, b),
            BlockOp::Sha256Msg2 => sha::sha256_message2(a, b),
            BlockOp::Gf2p8Mul => aes::multiply(a, b),
            BlockOp::Gf2p8Affine => aes::affine(a, b, imm, false),
            BlockOp::Gf2p8AffineInv => aes::affine(a, b, imm, true),
        }
    }
}

/// Product of polynomials over GF(2).
fn clmul(a: u64, b: u64) -> u128 {
    (0..64).filter(|i| b >> i & 1 == 1).fold(0, |r, i| r ^ u128::from(a) << i)
}

/// What each of the host's instructions does: operation and immediate.
static FORMS: LazyLock<Vec<(BlockOp, u8)>> = LazyLock::new(|| {
    let form = |host: &CryptoOp| {
        let all = BlockOp::ALL.iter().flat_map(|op| [0, 1, 2, 3, 0x10, 0x11].map(|imm| (*op, imm)));
        all.clone().find(|(op, imm)| op.host(*imm) == Some(*host))
    };
    CryptoOp::ALL.iter().map(|host| form(host).expect("a test looks at all of them")).collect()
});

/// Result of a host's instruction, which this host need not have.
pub fn run_crypto(host: CryptoOp, a: u128, b: u128, third: u128) -> u128 {
    let (op, imm) = FORMS[host as usize];
    op.eval(a, b, third, imm)
}

/// Sums of differences of four bytes of b with those at eight places of a.
fn mpsadbw(a: u128, b: u128, imm: u8) -> u128 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    let (at, from) = (usize::from(imm >> 2 & 1) * 4, usize::from(imm & 3) * 4);
    (0..8).rev().fold(0, |r, i| {
        let sum: u16 = (0..4).map(|k| u16::from(a[at + i + k].abs_diff(b[from + k]))).sum();
        r << 16 | u128::from(sum)
    })
}

fn block<E: Env>(env: &mut E, code: u64, lo: u64, hi: u64) -> Res {
    let p = Packed(code);
    let Some(op) = BlockOp::ALL.get(usize::from(p.op())) else { return Ok(0) };
    let cpu = env.cpu();
    let (a, third) = (*half(cpu, p.src()), cpu.xmm[0]);
    *half(cpu, p.dst()) = op.eval(a, join(lo, hi), third, p.imm());
    Ok(0)
}

fn string_compare<E: Env>(env: &mut E, code: u64, lo: u64, hi: u64) -> Res {
    let p = Packed(code);
    let (explicit, mask, wide) = (p.op() & 1 != 0, p.op() & 2 != 0, p.op() & 4 != 0);
    let cpu = env.cpu();
    let len = |v: u64| if wide { v as i64 } else { (v as i32).into() };
    let lengths = explicit.then(|| (len(cpu.gpr[0]), len(cpu.gpr[2])));
    let r = strings::compare(*half(cpu, p.src()), join(lo, hi), lengths, p.imm());
    if mask {
        cpu.xmm[0] = r.mask();
    } else {
        cpu.gpr[1] = r.index().into();
    }
    Ok(r.flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_core::testing::Rng;

    #[test]
    fn every_instruction_of_the_host_has_a_form() {
        for host in CryptoOp::ALL {
            let (op, imm) = FORMS[*host as usize];
            assert_eq!(op.host(imm), Some(*host));
        }
    }

    /// The portable functions against the host's instructions.
    #[test]
    fn portable_forms_agree_with_the_host() {
        let mut r = Rng(11);
        let mut vector = || join(r.next_u64(), r.next_u64());
        let mut compared = 0;
        for op in BlockOp::ALL {
            for imm in 0..=255u8 {
                let (a, b, third) = (vector(), vector(), vector());
                if let Some(host) = op.host(imm).and_then(|h| h.run(a, b, third)) {
                    assert_eq!(op.portable(a, b, third, imm), host, "{op:?} {imm:#x}");
                    compared += 1;
                }
            }
        }
        if compared == 0 {
            vm_core::testing::left_out("AES, PCLMULQDQ, SHA: the host has none");
        }
    }
}
