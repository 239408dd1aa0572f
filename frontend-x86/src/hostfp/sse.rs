//! SSE to SSE4.1 and AVX floating-point operations (SDM 1 chapters 10-14), run by the host under the guest's MXCSR with all
//! exceptions masked. Every operation maps two 128-bit operands to one 128-bit result.

use super::unmasked;
#[cfg(target_arch = "x86_64")]
use std::{arch::asm, arch::x86_64::__m128i, mem::transmute};

/// MXCSR after reset, and the host's: all exceptions masked, round to nearest, no FTZ, no DAZ.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// The sticky exception flags IE DE ZE OE UE PE.
pub const MXCSR_FLAGS: u32 = 0x3f;
/// Mask bits of the six exceptions.
pub const MXCSR_MASKS: u32 = 0x1f80;
/// What blocks load at their end; a static because they need its address.
pub(super) static HOST_MXCSR: u32 = MXCSR_DEFAULT;
/// Everything but the flags: DAZ, masks, RC, FTZ.
pub(super) const CONTROL: u32 = 0xffc0;

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn register(v: u128) -> __m128i {
    // SAFETY: both types have 16 bytes, for which all patterns are values.
    unsafe { transmute::<u128, __m128i>(v) }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn value(v: __m128i) -> u128 {
    // SAFETY: as in `register`.
    unsafe { transmute::<__m128i, u128>(v) }
}

/// Runs `$asm` on xmm0 = `*a`, xmm1 = `hi`:`lo`; xmm0 is the result. Returns the exception flags raised that `mxcsr` lacks,
/// at least.
///
/// While the guest's control bits are the default ones MXCSR is not loaded, and STMXCSR, the dear part, is left out where
/// operands and result show that no flag is new. The host's sticky flags may be there already, from an earlier operation
/// or from Rust code; only if they are not a subset of the guest's is the operation done again with cleared flags. So
/// nobody has to keep the host's flags in step.
#[cfg(target_arch = "x86_64")]
macro_rules! body {
    ($op:expr, $asm:literal, $a:ident, $lo:ident, $hi:ident, $mxcsr:ident) => {{
        let before = *$a;
        let (x, b) = (register(before), register(u128::from($hi) << 64 | u128::from($lo)));
        let (r, mut csr): (__m128i, u32);
        if $mxcsr & CONTROL == MXCSR_DEFAULT {
            if $op.often_quiet() {
                let r: __m128i;
                // SAFETY: touches the declared registers and MXCSR's flags only.
                unsafe {
                    asm!($asm, inout("xmm0") x => r, inout("xmm1") b => _, out("rax") _, options(nostack, nomem));
                }
                let r = value(r);
                if $op.quiet(before as u64, $lo, r as u64, $mxcsr) {
                    *$a = r;
                    return 0;
                }
            } else {
                let r: __m128i;
                csr = 0;
                // SAFETY: writes `csr`; else as above.
                unsafe {
                    asm!($asm, "stmxcsr [rcx]", inout("xmm0") x => r, inout("xmm1") b => _, in("rcx") &raw mut csr, out("rax") _,
                        options(nostack));
                }
                if csr & MXCSR_FLAGS & !$mxcsr == 0 {
                    *$a = value(r);
                    return 0;
                }
            }
            csr = MXCSR_DEFAULT;
            // SAFETY: as above; MXCSR is loaded with the host's own control bits.
            unsafe {
                asm!("ldmxcsr [rcx]", $asm, "stmxcsr [rcx]", inout("xmm0") x => r, inout("xmm1") b => _, in("rcx") &raw mut csr,
                    out("rax") _, options(nostack));
            }
        } else {
            csr = $mxcsr & CONTROL | MXCSR_MASKS;
            // SAFETY: as above; the guest's MXCSR (reserved bits are clear, all masked) is in force only inside the block.
            unsafe {
                asm!("ldmxcsr [rcx]", $asm, "stmxcsr [rcx]", "ldmxcsr [rdx]", inout("xmm0") x => r, inout("xmm1") b => _,
                    in("rcx") &raw mut csr, in("rdx") &raw const HOST_MXCSR, out("rax") _, options(nostack));
            }
        }
        *$a = value(r);
        csr & MXCSR_FLAGS
    }};
}

#[cfg(not(target_arch = "x86_64"))]
macro_rules! body {
    ($op:expr, $asm:literal, $a:ident, $lo:ident, $hi:ident, $mxcsr:ident) => {{
        let _ = ($op, $asm, $a, $lo, $hi, $mxcsr, CONTROL, HOST_MXCSR);
        super::unsupported()
    }};
}

macro_rules! ops {
    ($($name:ident = $asm:literal;)*) => {
        /// An operation on xmm0 and xmm1; see the table for its instructions. Results in general registers and EFLAGS
        /// (bits 7:0 as LAHF gives them) are the low bits of the result.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum SseOp { $($name,)* }

        impl SseOp {
            pub const ALL: &'static [SseOp] = &[$(SseOp::$name,)*];
            const CODE: &'static [fn(&mut u128, u64, u64, u32) -> u32] =
                &[$({ fn run(a: &mut u128, lo: u64, hi: u64, mxcsr: u32) -> u32 { body!(SseOp::$name, $asm, a, lo, hi, mxcsr) } run },)*];
        }
    };
}

ops! {
    Addps = "addps xmm0, xmm1"; Addpd = "addpd xmm0, xmm1"; Addss = "addss xmm0, xmm1"; Addsd = "addsd xmm0, xmm1";
    Subps = "subps xmm0, xmm1"; Subpd = "subpd xmm0, xmm1"; Subss = "subss xmm0, xmm1"; Subsd = "subsd xmm0, xmm1";
    Mulps = "mulps xmm0, xmm1"; Mulpd = "mulpd xmm0, xmm1"; Mulss = "mulss xmm0, xmm1"; Mulsd = "mulsd xmm0, xmm1";
    Divps = "divps xmm0, xmm1"; Divpd = "divpd xmm0, xmm1"; Divss = "divss xmm0, xmm1"; Divsd = "divsd xmm0, xmm1";
    Minps = "minps xmm0, xmm1"; Minpd = "minpd xmm0, xmm1"; Minss = "minss xmm0, xmm1"; Minsd = "minsd xmm0, xmm1";
    Maxps = "maxps xmm0, xmm1"; Maxpd = "maxpd xmm0, xmm1"; Maxss = "maxss xmm0, xmm1"; Maxsd = "maxsd xmm0, xmm1";
    Sqrtps = "sqrtps xmm0, xmm1"; Sqrtpd = "sqrtpd xmm0, xmm1"; Sqrtss = "sqrtss xmm0, xmm1"; Sqrtsd = "sqrtsd xmm0, xmm1";
    Rcpps = "rcpps xmm0, xmm1"; Rcpss = "rcpss xmm0, xmm1"; Rsqrtps = "rsqrtps xmm0, xmm1"; Rsqrtss = "rsqrtss xmm0, xmm1";
    Addsubps = "addsubps xmm0, xmm1"; Addsubpd = "addsubpd xmm0, xmm1"; Haddps = "haddps xmm0, xmm1";
    Haddpd = "haddpd xmm0, xmm1"; Hsubps = "hsubps xmm0, xmm1"; Hsubpd = "hsubpd xmm0, xmm1";
    Cmpps0 = "cmpps xmm0, xmm1, 0"; Cmpps1 = "cmpps xmm0, xmm1, 1"; Cmpps2 = "cmpps xmm0, xmm1, 2"; Cmpps3 = "cmpps xmm0, xmm1, 3";
    Cmpps4 = "cmpps xmm0, xmm1, 4"; Cmpps5 = "cmpps xmm0, xmm1, 5"; Cmpps6 = "cmpps xmm0, xmm1, 6"; Cmpps7 = "cmpps xmm0, xmm1, 7";
    Cmppd0 = "cmppd xmm0, xmm1, 0"; Cmppd1 = "cmppd xmm0, xmm1, 1"; Cmppd2 = "cmppd xmm0, xmm1, 2"; Cmppd3 = "cmppd xmm0, xmm1, 3";
    Cmppd4 = "cmppd xmm0, xmm1, 4"; Cmppd5 = "cmppd xmm0, xmm1, 5"; Cmppd6 = "cmppd xmm0, xmm1, 6"; Cmppd7 = "cmppd xmm0, xmm1, 7";
    Cmpss0 = "cmpss xmm0, xmm1, 0"; Cmpss1 = "cmpss xmm0, xmm1, 1"; Cmpss2 = "cmpss xmm0, xmm1, 2"; Cmpss3 = "cmpss xmm0, xmm1, 3";
    Cmpss4 = "cmpss xmm0, xmm1, 4"; Cmpss5 = "cmpss xmm0, xmm1, 5"; Cmpss6 = "cmpss xmm0, xmm1, 6"; Cmpss7 = "cmpss xmm0, xmm1, 7";
    Cmpsd0 = "cmpsd xmm0, xmm1, 0"; Cmpsd1 = "cmpsd xmm0, xmm1, 1"; Cmpsd2 = "cmpsd xmm0, xmm1, 2"; Cmpsd3 = "cmpsd xmm0, xmm1, 3";
    Cmpsd4 = "cmpsd xmm0, xmm1, 4"; Cmpsd5 = "cmpsd xmm0, xmm1, 5"; Cmpsd6 = "cmpsd xmm0, xmm1, 6"; Cmpsd7 = "cmpsd xmm0, xmm1, 7";
    Comiss = "comiss xmm0, xmm1; lahf; movzx eax, ah; movd xmm0, eax";
    Comisd = "comisd xmm0, xmm1; lahf; movzx eax, ah; movd xmm0, eax";
    Ucomiss = "ucomiss xmm0, xmm1; lahf; movzx eax, ah; movd xmm0, eax";
    Ucomisd = "ucomisd xmm0, xmm1; lahf; movzx eax, ah; movd xmm0, eax";
    Cvtps2pd = "cvtps2pd xmm0, xmm1"; Cvtpd2ps = "cvtpd2ps xmm0, xmm1";
    Cvtss2sd = "cvtss2sd xmm0, xmm1"; Cvtsd2ss = "cvtsd2ss xmm0, xmm1";
    Cvtdq2ps = "cvtdq2ps xmm0, xmm1"; Cvtdq2pd = "cvtdq2pd xmm0, xmm1";
    Cvtps2dq = "cvtps2dq xmm0, xmm1"; Cvttps2dq = "cvttps2dq xmm0, xmm1";
    Cvtpd2dq = "cvtpd2dq xmm0, xmm1"; Cvttpd2dq = "cvttpd2dq xmm0, xmm1";
    Cvtsi2ss32 = "movd eax, xmm1; cvtsi2ss xmm0, eax"; Cvtsi2ss64 = "movq rax, xmm1; cvtsi2ss xmm0, rax";
    Cvtsi2sd32 = "movd eax, xmm1; cvtsi2sd xmm0, eax"; Cvtsi2sd64 = "movq rax, xmm1; cvtsi2sd xmm0, rax";
    Cvtss2si32 = "cvtss2si eax, xmm1; movd xmm0, eax"; Cvtss2si64 = "cvtss2si rax, xmm1; movq xmm0, rax";
    Cvttss2si32 = "cvttss2si eax, xmm1; movd xmm0, eax"; Cvttss2si64 = "cvttss2si rax, xmm1; movq xmm0, rax";
    Cvtsd2si32 = "cvtsd2si eax, xmm1; movd xmm0, eax"; Cvtsd2si64 = "cvtsd2si rax, xmm1; movq xmm0, rax";
    Cvttsd2si32 = "cvttsd2si eax, xmm1; movd xmm0, eax"; Cvttsd2si64 = "cvttsd2si rax, xmm1; movq xmm0, rax";
    // The MMX register is the low half of xmm1; a result in one is the low half of xmm0.
    Cvtpi2ps = "movq xmm1, xmm1; cvtdq2ps xmm1, xmm1; movsd xmm0, xmm1";
    Cvtps2pi = "movq xmm1, xmm1; cvtps2dq xmm0, xmm1"; Cvttps2pi = "movq xmm1, xmm1; cvttps2dq xmm0, xmm1";
    // SSE4.1. Rounding by MXCSR.RC; all products, the sum everywhere: see `run_imm`.
    Roundps = "roundps xmm0, xmm1, 4"; Roundpd = "roundpd xmm0, xmm1, 4"; Roundss = "roundss xmm0, xmm1, 4";
    Roundsd = "roundsd xmm0, xmm1, 4"; Dpps = "dpps xmm0, xmm1, 0xff"; Dppd = "dppd xmm0, xmm1, 0xff";
    // F16C.
    Cvtph2ps = "vcvtph2ps xmm0, xmm1"; Cvtps2ph = "vcvtps2ph xmm0, xmm1, 4";
    // The comparisons that AVX adds.
    Cmpps8 = "vcmpps xmm0, xmm0, xmm1, 8"; Cmpps9 = "vcmpps xmm0, xmm0, xmm1, 9"; Cmpps10 = "vcmpps xmm0, xmm0, xmm1, 10";
    Cmpps11 = "vcmpps xmm0, xmm0, xmm1, 11"; Cmpps12 = "vcmpps xmm0, xmm0, xmm1, 12"; Cmpps13 = "vcmpps xmm0, xmm0, xmm1, 13";
    Cmpps14 = "vcmpps xmm0, xmm0, xmm1, 14"; Cmpps15 = "vcmpps xmm0, xmm0, xmm1, 15"; Cmpps16 = "vcmpps xmm0, xmm0, xmm1, 16";
    Cmpps17 = "vcmpps xmm0, xmm0, xmm1, 17"; Cmpps18 = "vcmpps xmm0, xmm0, xmm1, 18"; Cmpps19 = "vcmpps xmm0, xmm0, xmm1, 19";
    Cmpps20 = "vcmpps xmm0, xmm0, xmm1, 20"; Cmpps21 = "vcmpps xmm0, xmm0, xmm1, 21"; Cmpps22 = "vcmpps xmm0, xmm0, xmm1, 22";
    Cmpps23 = "vcmpps xmm0, xmm0, xmm1, 23"; Cmpps24 = "vcmpps xmm0, xmm0, xmm1, 24"; Cmpps25 = "vcmpps xmm0, xmm0, xmm1, 25";
    Cmpps26 = "vcmpps xmm0, xmm0, xmm1, 26"; Cmpps27 = "vcmpps xmm0, xmm0, xmm1, 27"; Cmpps28 = "vcmpps xmm0, xmm0, xmm1, 28";
    Cmpps29 = "vcmpps xmm0, xmm0, xmm1, 29"; Cmpps30 = "vcmpps xmm0, xmm0, xmm1, 30"; Cmpps31 = "vcmpps xmm0, xmm0, xmm1, 31";
    Cmppd8 = "vcmppd xmm0, xmm0, xmm1, 8"; Cmppd9 = "vcmppd xmm0, xmm0, xmm1, 9"; Cmppd10 = "vcmppd xmm0, xmm0, xmm1, 10";
    Cmppd11 = "vcmppd xmm0, xmm0, xmm1, 11"; Cmppd12 = "vcmppd xmm0, xmm0, xmm1, 12"; Cmppd13 = "vcmppd xmm0, xmm0, xmm1, 13";
    Cmppd14 = "vcmppd xmm0, xmm0, xmm1, 14"; Cmppd15 = "vcmppd xmm0, xmm0, xmm1, 15"; Cmppd16 = "vcmppd xmm0, xmm0, xmm1, 16";
    Cmppd17 = "vcmppd xmm0, xmm0, xmm1, 17"; Cmppd18 = "vcmppd xmm0, xmm0, xmm1, 18"; Cmppd19 = "vcmppd xmm0, xmm0, xmm1, 19";
    Cmppd20 = "vcmppd xmm0, xmm0, xmm1, 20"; Cmppd21 = "vcmppd xmm0, xmm0, xmm1, 21"; Cmppd22 = "vcmppd xmm0, xmm0, xmm1, 22";
    Cmppd23 = "vcmppd xmm0, xmm0, xmm1, 23"; Cmppd24 = "vcmppd xmm0, xmm0, xmm1, 24"; Cmppd25 = "vcmppd xmm0, xmm0, xmm1, 25";
    Cmppd26 = "vcmppd xmm0, xmm0, xmm1, 26"; Cmppd27 = "vcmppd xmm0, xmm0, xmm1, 27"; Cmppd28 = "vcmppd xmm0, xmm0, xmm1, 28";
    Cmppd29 = "vcmppd xmm0, xmm0, xmm1, 29"; Cmppd30 = "vcmppd xmm0, xmm0, xmm1, 30"; Cmppd31 = "vcmppd xmm0, xmm0, xmm1, 31";
    Cmpss8 = "vcmpss xmm0, xmm0, xmm1, 8"; Cmpss9 = "vcmpss xmm0, xmm0, xmm1, 9"; Cmpss10 = "vcmpss xmm0, xmm0, xmm1, 10";
    Cmpss11 = "vcmpss xmm0, xmm0, xmm1, 11"; Cmpss12 = "vcmpss xmm0, xmm0, xmm1, 12"; Cmpss13 = "vcmpss xmm0, xmm0, xmm1, 13";
    Cmpss14 = "vcmpss xmm0, xmm0, xmm1, 14"; Cmpss15 = "vcmpss xmm0, xmm0, xmm1, 15"; Cmpss16 = "vcmpss xmm0, xmm0, xmm1, 16";
    Cmpss17 = "vcmpss xmm0, xmm0, xmm1, 17"; Cmpss18 = "vcmpss xmm0, xmm0, xmm1, 18"; Cmpss19 = "vcmpss xmm0, xmm0, xmm1, 19";
    Cmpss20 = "vcmpss xmm0, xmm0, xmm1, 20"; Cmpss21 = "vcmpss xmm0, xmm0, xmm1, 21"; Cmpss22 = "vcmpss xmm0, xmm0, xmm1, 22";
    Cmpss23 = "vcmpss xmm0, xmm0, xmm1, 23"; Cmpss24 = "vcmpss xmm0, xmm0, xmm1, 24"; Cmpss25 = "vcmpss xmm0, xmm0, xmm1, 25";
    Cmpss26 = "vcmpss xmm0, xmm0, xmm1, 26"; Cmpss27 = "vcmpss xmm0, xmm0, xmm1, 27"; Cmpss28 = "vcmpss xmm0, xmm0, xmm1, 28";
    Cmpss29 = "vcmpss xmm0, xmm0, xmm1, 29"; Cmpss30 = "vcmpss xmm0, xmm0, xmm1, 30"; Cmpss31 = "vcmpss xmm0, xmm0, xmm1, 31";
    Cmpsd8 = "vcmpsd xmm0, xmm0, xmm1, 8"; Cmpsd9 = "vcmpsd xmm0, xmm0, xmm1, 9"; Cmpsd10 = "vcmpsd xmm0, xmm0, xmm1, 10";
    Cmpsd11 = "vcmpsd xmm0, xmm0, xmm1, 11"; Cmpsd12 = "vcmpsd xmm0, xmm0, xmm1, 12"; Cmpsd13 = "vcmpsd xmm0, xmm0, xmm1, 13";
    Cmpsd14 = "vcmpsd xmm0, xmm0, xmm1, 14"; Cmpsd15 = "vcmpsd xmm0, xmm0, xmm1, 15"; Cmpsd16 = "vcmpsd xmm0, xmm0, xmm1, 16";
    Cmpsd17 = "vcmpsd xmm0, xmm0, xmm1, 17"; Cmpsd18 = "vcmpsd xmm0, xmm0, xmm1, 18"; Cmpsd19 = "vcmpsd xmm0, xmm0, xmm1, 19";
    Cmpsd20 = "vcmpsd xmm0, xmm0, xmm1, 20"; Cmpsd21 = "vcmpsd xmm0, xmm0, xmm1, 21"; Cmpsd22 = "vcmpsd xmm0, xmm0, xmm1, 22";
    Cmpsd23 = "vcmpsd xmm0, xmm0, xmm1, 23"; Cmpsd24 = "vcmpsd xmm0, xmm0, xmm1, 24"; Cmpsd25 = "vcmpsd xmm0, xmm0, xmm1, 25";
    Cmpsd26 = "vcmpsd xmm0, xmm0, xmm1, 26"; Cmpsd27 = "vcmpsd xmm0, xmm0, xmm1, 27"; Cmpsd28 = "vcmpsd xmm0, xmm0, xmm1, 28";
    Cmpsd29 = "vcmpsd xmm0, xmm0, xmm1, 29"; Cmpsd30 = "vcmpsd xmm0, xmm0, xmm1, 30"; Cmpsd31 = "vcmpsd xmm0, xmm0, xmm1, 31";
}

impl SseOp {
    #[inline]
    pub fn from_index(i: u16) -> Option<SseOp> {
        Self::ALL.get(usize::from(i)).copied()
    }

    /// `self` is the form of a comparison with predicate 0; gives the one with predicate `p & 31`, of which legacy forms
    /// have 0 to 7.
    pub fn predicate(self, p: u8) -> SseOp {
        let p = u16::from(p & 31);
        let first = if p < 8 { self as u16 } else { SseOp::Cmpps8 as u16 + (self as u16 - SseOp::Cmpps0 as u16) / 8 * 24 - 8 };
        Self::from_index(first + p).expect("predicates follow each other in the table")
    }

    /// May the result be tiny without being inexact? Then an unmasked underflow is signalled all the same.
    fn arithmetic(self) -> bool {
        let i = self as u16;
        i <= SseOp::Divsd as u16
            || (SseOp::Addsubps as u16..=SseOp::Hsubpd as u16).contains(&i)
            || matches!(self, SseOp::Cvtpd2ps | SseOp::Cvtsd2ss | SseOp::Cvtps2ph)
    }

    /// Bits of the result's lanes that hold a number computed by this operation, and the lanes' width.
    fn lanes(self) -> (u32, u32) {
        let i = self as u16;
        match self {
            SseOp::Cvtpd2ps => (2, 32),
            SseOp::Cvtsd2ss => (1, 32),
            SseOp::Addsubps | SseOp::Haddps | SseOp::Hsubps => (4, 32),
            SseOp::Addsubpd | SseOp::Haddpd | SseOp::Hsubpd => (2, 64),
            SseOp::Cvtps2ph => (4, 16),
            _ => [(4, 32), (2, 64), (1, 32), (1, 64)][usize::from(i & 3)],
        }
    }

    fn has_tiny_lane(self, r: u128) -> bool {
        has_tiny(self.lanes(), r)
    }

    /// Is `quiet` worth asking?
    #[inline(always)]
    fn often_quiet(self) -> bool {
        use SseOp::*;
        matches!(
            self,
            Addsd
                | Subsd
                | Mulsd
                | Divsd
                | Addss
                | Subss
                | Mulss
                | Divss
                | Comisd
                | Ucomisd
                | Comiss
                | Ucomiss
                | Cvtsi2sd32
                | Cvtsi2sd64
                | Cvtsi2ss32
                | Cvtsi2ss64
                | Cvttsd2si32
                | Cvttsd2si64
                | Cvtss2sd
                | Cvtsd2ss
        )
    }

    /// Can a scalar operation on `a` and `b` with result `r`, rounded to nearest, have raised no flag that `mxcsr` lacks?
    /// `false` if in doubt.
    #[inline(always)]
    fn quiet(self, a: u64, b: u64, r: u64, mxcsr: u32) -> bool {
        use SseOp::*;
        const PE: u32 = 1 << 5;
        let inexact = mxcsr & PE != 0;
        match self {
            Addsd | Subsd | Mulsd | Divsd => inexact && normal64(a) && normal64(b) && normal64(r),
            Addss | Subss | Mulss | Divss => inexact && normal32(a) && normal32(b) && normal32(r),
            Comisd | Ucomisd => (normal64(a) || a << 1 == 0) && (normal64(b) || b << 1 == 0),
            Comiss | Ucomiss => (normal32(a) || a << 33 == 0) && (normal32(b) || b << 33 == 0),
            Cvtsi2sd32 => true,
            Cvtsi2sd64 | Cvtsi2ss32 | Cvtsi2ss64 => inexact,
            Cvttsd2si32 => inexact && r as u32 != 1 << 31,
            Cvttsd2si64 => inexact && r != 1 << 63,
            Cvtss2sd => normal32(b) || b << 33 == 0,
            Cvtsd2ss => inexact && normal64(b) && normal32(r),
            _ => false,
        }
    }

    /// Runs with xmm0 = `a` and xmm1 = `hi`:`lo` under the guest's `mxcsr`; `a` becomes the result. Gives the exception
    /// flags to be set; if one of them is unmasked in `mxcsr` the destination must not be written (SDM 1 "SSE, SSE2, and
    /// SSE3 Exception Conditions").
    #[inline]
    pub fn run(self, a: &mut u128, lo: u64, hi: u64, mxcsr: u32) -> u32 {
        if mxcsr & MXCSR_MASKS == MXCSR_MASKS {
            return Self::CODE[self as usize](a, lo, hi, mxcsr);
        }
        self.run_unmasked(a, lo, hi, mxcsr)
    }

    /// As `run`, of an instruction with the immediate `imm` (ROUNDPS, DPPS, VCVTPS2PH and their like).
    #[inline]
    pub fn run_imm(self, a: &mut u128, lo: u64, hi: u64, mxcsr: u32, imm: u8) -> u32 {
        if (self as u16) < SseOp::Roundps as u16 || self as u16 > SseOp::Cvtps2ph as u16 {
            return self.run(a, lo, hi, mxcsr);
        }
        self.run_with(a, lo, hi, mxcsr, imm)
    }

    fn run_with(self, a: &mut u128, lo: u64, hi: u64, mxcsr: u32, imm: u8) -> u32 {
        const PE: u32 = 1 << 5;
        const RC: u32 = 3 << 13;
        // Bit 2 of a rounding control asks for MXCSR's, bit 3 of ROUNDPS ignores the precision exception.
        let control = if imm & 4 != 0 { mxcsr } else { mxcsr & !RC | u32::from(imm & 3) << 13 };
        match self {
            SseOp::Roundps | SseOp::Roundpd | SseOp::Roundss | SseOp::Roundsd => {
                let quiet = if imm & 8 != 0 { PE } else { 0 };
                self.run(a, lo, hi, control) & !quiet
            }
            SseOp::Cvtps2ph => self.run(a, lo, hi, control),
            SseOp::Dpps | SseOp::Dppd => {
                let lanes = if self == SseOp::Dpps { 4 } else { 2 };
                let (used, kept) = (lane_mask(imm >> 4, lanes), lane_mask(imm, lanes));
                let raised = self.dot_raises([(*a, u128::from(hi) << 64 | u128::from(lo))], mxcsr, imm);
                if raised != 0 {
                    return raised;
                }
                // A lane left out has the product +0.0, and raises nothing.
                *a &= used;
                let (lo, hi) = (lo & used as u64, hi & (used >> 64) as u64);
                let flags = self.run(a, lo, hi, mxcsr);
                *a &= kept;
                flags
            }
            _ => self.run(a, lo, hi, mxcsr),
        }
    }

    /// Flags of a dot product of halves that raises an exception, else 0; 0 of other operations, too.
    pub(crate) fn dot_raises<const N: usize>(self, halves: [(u128, u128); N], mxcsr: u32, imm: u8) -> u32 {
        if mxcsr & MXCSR_MASKS == MXCSR_MASKS || !matches!(self, SseOp::Dpps | SseOp::Dppd) {
            return 0;
        }
        let used = lane_mask(imm >> 4, if self == SseOp::Dpps { 4 } else { 2 });
        let flags = unmasked::dot(self, halves.map(|(x, y)| (x & used, y & used)), mxcsr);
        if flags & unmasked::unmasked(mxcsr) != 0 { flags } else { 0 }
    }

    /// The operation with all exceptions masked.
    pub(super) fn run_masked(self, a: &mut u128, lo: u64, hi: u64, mxcsr: u32) -> u32 {
        Self::CODE[self as usize](a, lo, hi, mxcsr & CONTROL | MXCSR_MASKS)
    }

    /// Flags as the CPU sets them when some exception is unmasked: exceptions found before computing (IE DE ZE) end the
    /// operation if unmasked; with underflow unmasked FTZ is ignored and an exact tiny result signals.
    #[cold]
    fn run_unmasked(self, a: &mut u128, lo: u64, hi: u64, mxcsr: u32) -> u32 {
        const UM: u32 = 1 << 11;
        const FTZ: u32 = 1 << 15;
        const OUT_OF_RANGE: u32 = 3 << 3;
        let control = if mxcsr & UM == 0 { mxcsr & !FTZ } else { mxcsr };
        let before = *a;
        let mut flags = self.run_masked(a, lo, hi, control);
        let unmasked = unmasked::unmasked(mxcsr);
        if self.arithmetic() && unmasked & OUT_OF_RANGE != 0 && (flags & OUT_OF_RANGE != 0 || self.has_tiny_lane(*a)) {
            flags = unmasked::by_parts(self, before, u128::from(hi) << 64 | u128::from(lo), control, mxcsr);
        }
        if flags & unmasked & 7 != 0 {
            flags &= 7;
        }
        flags
    }
}

/// Is one of the `n` lanes of `width` bits a denormal?
pub(super) fn has_tiny((n, width): (u32, u32), r: u128) -> bool {
    let (frac, exp) = match width {
        16 => (0x3ff, 0x7c00),
        32 => (0x7f_ffff, 0x7f80_0000),
        _ => ((1 << 52) - 1, 0x7ff << 52),
    };
    (0..n).any(|i| {
        let x = (r >> (i * width)) as u64 & (u64::MAX >> (64 - width));
        x & exp == 0 && x & frac != 0
    })
}

/// Ones in those of `n` lanes whose bit is set.
fn lane_mask(bits: u8, n: u32) -> u128 {
    let width = 128 / n;
    (0..n).filter(|i| bits >> i & 1 == 1).fold(0, |m, i| m | (u128::MAX >> (128 - width)) << (i * width))
}

/// Neither zero, denormal, infinite nor NaN, and not the smallest normal exponent: a result there may have been tiny
/// before its last rounding.
#[inline(always)]
fn normal64(x: u64) -> bool {
    (x >> 52 & 0x7ff).wrapping_sub(2) < 0x7fd
}

#[inline(always)]
fn normal32(x: u64) -> bool {
    (x >> 23 & 0xff).wrapping_sub(2) < 0xfd
}
