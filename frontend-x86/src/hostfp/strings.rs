//! String comparisons (PCMPISTRM, PCMPESTRM) by the host's instructions, where it has them.

/// IntRes2 of a comparison, one bit an element, and its flags CF, ZF, SF and OF where EFLAGS has them; see `compare`.
pub type Outcome = (u32, u64);

/// IntRes2 and the flags for operands `a` and `b`. `lengths`: those of the explicit form. Bits 5:0 of `imm` count. `None`: the host has
/// no SSE4.2.
#[cfg(target_arch = "x86_64")]
pub fn compare(a: u128, b: u128, lengths: Option<(i64, i64)>, imm: u8) -> Option<Outcome> {
    if !std::is_x86_feature_detected!("sse4.2") {
        return None;
    }
    let (high, low) = (usize::from(imm >> 3 & 7), usize::from(imm & 7));
    Some(match lengths {
        None => table::IMPLICIT[high][low](a, b),
        Some((la, lb)) => table::EXPLICIT[high][low](a, b, (saturated(la), saturated(lb))),
    })
}

#[cfg(not(target_arch = "x86_64"))]
pub fn compare(_: u128, _: u128, _: Option<(i64, i64)>, _: u8) -> Option<Outcome> {
    None
}

/// A length as the instructions saturate it, for the form with lengths of 32 bits.
#[cfg(target_arch = "x86_64")]
fn saturated(length: i64) -> u32 {
    length.unsigned_abs().min(16) as u32
}

#[cfg(target_arch = "x86_64")]
mod table {
    use super::super::sse::{register, value};
    use super::Outcome;
    use std::arch::{asm, x86_64::__m128i};

    /// AH as LAHF leaves it, whose CF, ZF and SF lie as in EFLAGS, and OF in AL.
    fn outcome(bits: __m128i, ax: u16) -> Outcome {
        (value(bits) as u32, u64::from(ax >> 8 & 0xc1) | u64::from(ax & 1) << 11)
    }

    fn implicit<const IMM: u8>(a: u128, b: u128) -> Outcome {
        let (bits, ax): (__m128i, u16);
        // SAFETY: the caller has made sure of SSE4.2; the declared registers and flags are all that is touched.
        unsafe {
            asm!("pcmpistrm xmm1, xmm2, {imm}", "seto al", "lahf", imm = const IMM, in("xmm1") register(a),
                in("xmm2") register(b), out("xmm0") bits, out("ax") ax, options(pure, nomem, nostack));
        }
        outcome(bits, ax)
    }

    fn explicit<const IMM: u8>(a: u128, b: u128, (la, lb): (u32, u32)) -> Outcome {
        let (bits, eax): (__m128i, u32);
        // SAFETY: as above.
        unsafe {
            asm!("pcmpestrm xmm1, xmm2, {imm}", "seto al", "lahf", imm = const IMM, in("xmm1") register(a),
                in("xmm2") register(b), out("xmm0") bits, inout("eax") la => eax, in("edx") lb, options(pure, nomem, nostack));
        }
        outcome(bits, eax as u16)
    }

    macro_rules! all {
        ($f:ident) => {
            all!($f 0 8 16 24 32 40 48 56)
        };
        ($f:ident $($i:literal)*) => {
            [$([$f::<$i>, $f::<{ $i + 1 }>, $f::<{ $i + 2 }>, $f::<{ $i + 3 }>, $f::<{ $i + 4 }>, $f::<{ $i + 5 }>,
                $f::<{ $i + 6 }>, $f::<{ $i + 7 }>],)*]
        };
    }

    type Implicit = fn(u128, u128) -> Outcome;
    type Explicit = fn(u128, u128, (u32, u32)) -> Outcome;

    /// By bits 5:3 and 2:0 of the immediate.
    pub static IMPLICIT: [[Implicit; 8]; 8] = all!(implicit);
    pub static EXPLICIT: [[Explicit; 8]; 8] = all!(explicit);
}
