//! SSE, SSE2 and SSE3 floating-point operations (SDM 1 chapters 10-12), run by the host under the guest's MXCSR with all
//! exceptions masked. Every operation maps two 128-bit operands to one 128-bit result.

#[cfg(target_arch = "x86_64")]
use std::{arch::asm, arch::x86_64::__m128i, mem::transmute};

/// MXCSR after reset, and the host's: all exceptions masked, round to nearest, no FTZ, no DAZ.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// The sticky exception flags IE DE ZE OE UE PE.
pub const MXCSR_FLAGS: u32 = 0x3f;
/// Mask bits of the six exceptions.
pub const MXCSR_MASKS: u32 = 0x1f80;
/// What blocks load at their end; a static because they need its address.
static HOST_MXCSR: u32 = MXCSR_DEFAULT;
/// Everything but the flags: DAZ, masks, RC, FTZ.
const CONTROL: u32 = 0xffc0;

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn register(v: u128) -> __m128i {
    // SAFETY: both types have 16 bytes, for which all patterns are values.
    unsafe { transmute::<u128, __m128i>(v) }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn value(v: __m128i) -> u128 {
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
}

impl SseOp {
    pub fn from_index(i: u16) -> Option<SseOp> {
        Self::ALL.get(usize::from(i)).copied()
    }

    /// `self` is the form of a comparison with predicate 0; gives the one with predicate `p & 7`.
    pub fn predicate(self, p: u8) -> SseOp {
        Self::from_index(self as u16 + u16::from(p & 7)).expect("eight predicates follow each other in the table")
    }

    /// May the result be tiny without being inexact? Then an unmasked underflow is signalled all the same.
    fn arithmetic(self) -> bool {
        let i = self as u16;
        i <= SseOp::Divsd as u16
            || (SseOp::Addsubps as u16..=SseOp::Hsubpd as u16).contains(&i)
            || matches!(self, SseOp::Cvtpd2ps | SseOp::Cvtsd2ss)
    }

    /// Bits of the result's lanes that hold a number computed by this operation, and the lanes' width.
    fn lanes(self) -> (u32, u32) {
        let i = self as u16;
        match self {
            SseOp::Cvtpd2ps => (2, 32),
            SseOp::Cvtsd2ss => (1, 32),
            SseOp::Addsubps | SseOp::Haddps | SseOp::Hsubps => (4, 32),
            SseOp::Addsubpd | SseOp::Haddpd | SseOp::Hsubpd => (2, 64),
            _ => [(4, 32), (2, 64), (1, 32), (1, 64)][usize::from(i & 3)],
        }
    }

    fn has_tiny_lane(self, r: u128) -> bool {
        let (n, width) = self.lanes();
        let (frac, exp) = if width == 32 { (0x7f_ffff, 0x7f80_0000) } else { ((1 << 52) - 1, 0x7ff << 52) };
        (0..n).any(|i| {
            let x = (r >> (i * width)) as u64 & (u64::MAX >> (64 - width));
            x & exp == 0 && x & frac != 0
        })
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

    /// Flags as the CPU sets them when some exception is unmasked: exceptions found before computing (IE DE ZE) end the
    /// operation if unmasked; with underflow unmasked FTZ is ignored and an exact tiny result signals.
    #[cold]
    fn run_unmasked(self, a: &mut u128, lo: u64, hi: u64, mxcsr: u32) -> u32 {
        const UM: u32 = 1 << 11;
        const FTZ: u32 = 1 << 15;
        let control = if mxcsr & UM == 0 { mxcsr & !FTZ } else { mxcsr };
        let mut flags = Self::CODE[self as usize](a, lo, hi, control & CONTROL | MXCSR_MASKS);
        let unmasked = !(mxcsr >> 7) & MXCSR_FLAGS;
        if unmasked & 1 << 4 != 0 && self.arithmetic() && self.has_tiny_lane(*a) {
            flags |= 1 << 4;
        }
        if flags & unmasked & 7 != 0 {
            flags &= 7;
        }
        flags
    }
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
