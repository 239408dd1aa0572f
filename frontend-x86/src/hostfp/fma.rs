//! Fused multiply-add (SDM 1 "Fused-Multiply-ADD (FMA)") by the host's instructions, under the guest's MXCSR as in `sse`.
//! A host without FMA has no guest with FMA (`arch_x86::features`).

#[cfg(target_arch = "x86_64")]
use super::sse::{CONTROL, HOST_MXCSR, MXCSR_DEFAULT, register, value};
use super::sse::{MXCSR_FLAGS, MXCSR_MASKS, has_tiny};
use super::unmasked;
#[cfg(target_arch = "x86_64")]
use std::arch::asm;

/// Runs `$asm` on xmm0 = `*a`, which becomes the result, xmm1 = b, xmm2 = c. Gives the exception flags raised that `mxcsr`
/// lacks, at least.
#[cfg(target_arch = "x86_64")]
macro_rules! body {
    ($asm:literal, $a:ident, $b:ident, $c:ident, $mxcsr:ident) => {{
        let (x, y, z) = (register(*$a), register($b), register($c));
        let mut csr = 0u32;
        let mut r;
        if $mxcsr & CONTROL == MXCSR_DEFAULT {
            // SAFETY: touches the declared registers, `csr`, and MXCSR's flags only.
            unsafe {
                asm!($asm, "stmxcsr [rcx]", inout("xmm0") x => r, in("xmm1") y, in("xmm2") z, in("rcx") &raw mut csr,
                    options(nostack));
            }
            if csr & MXCSR_FLAGS & !$mxcsr == 0 {
                *$a = value(r);
                return 0;
            }
        }
        csr = $mxcsr & CONTROL | MXCSR_MASKS;
        // SAFETY: as above; the guest's MXCSR (reserved bits are clear, all masked) is in force only inside the block.
        unsafe {
            asm!("ldmxcsr [rcx]", $asm, "stmxcsr [rcx]", "ldmxcsr [rdx]", inout("xmm0") x => r, in("xmm1") y, in("xmm2") z,
                in("rcx") &raw mut csr, in("rdx") &raw const HOST_MXCSR, options(nostack));
        }
        *$a = value(r);
        csr & MXCSR_FLAGS
    }};
}

#[cfg(not(target_arch = "x86_64"))]
macro_rules! body {
    ($asm:literal, $a:ident, $b:ident, $c:ident, $mxcsr:ident) => {{
        let _ = ($asm, $a, $b, $c, $mxcsr);
        super::unsupported()
    }};
}

type Code = fn(&mut u128, u128, u128, u32) -> u32;

macro_rules! ops {
    ($($name:ident = $asm:literal;)*) => {
        /// An operation on xmm0, the destination, xmm1 and xmm2.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum FmaOp { $($name,)* }

        impl FmaOp {
            pub const ALL: &'static [FmaOp] = &[$(FmaOp::$name,)*];
            const CODE: &'static [Code] =
                &[$({ fn run(a: &mut u128, b: u128, c: u128, mxcsr: u32) -> u32 { body!($asm, a, b, c, mxcsr) } run },)*];

            /// The operation of a mnemonic, as its `Debug` shows it without the V.
            pub fn by_name(name: &str) -> Option<FmaOp> {
                match name { $(stringify!($name) => Some(FmaOp::$name),)* _ => None }
            }
        }
    };
}

ops! {
    Fmadd132ps = "vfmadd132ps xmm0, xmm1, xmm2"; Fmadd213ps = "vfmadd213ps xmm0, xmm1, xmm2"; Fmadd231ps = "vfmadd231ps xmm0, xmm1, xmm2";
    Fmadd132pd = "vfmadd132pd xmm0, xmm1, xmm2"; Fmadd213pd = "vfmadd213pd xmm0, xmm1, xmm2"; Fmadd231pd = "vfmadd231pd xmm0, xmm1, xmm2";
    Fmadd132ss = "vfmadd132ss xmm0, xmm1, xmm2"; Fmadd213ss = "vfmadd213ss xmm0, xmm1, xmm2"; Fmadd231ss = "vfmadd231ss xmm0, xmm1, xmm2";
    Fmadd132sd = "vfmadd132sd xmm0, xmm1, xmm2"; Fmadd213sd = "vfmadd213sd xmm0, xmm1, xmm2"; Fmadd231sd = "vfmadd231sd xmm0, xmm1, xmm2";
    Fmsub132ps = "vfmsub132ps xmm0, xmm1, xmm2"; Fmsub213ps = "vfmsub213ps xmm0, xmm1, xmm2"; Fmsub231ps = "vfmsub231ps xmm0, xmm1, xmm2";
    Fmsub132pd = "vfmsub132pd xmm0, xmm1, xmm2"; Fmsub213pd = "vfmsub213pd xmm0, xmm1, xmm2"; Fmsub231pd = "vfmsub231pd xmm0, xmm1, xmm2";
    Fmsub132ss = "vfmsub132ss xmm0, xmm1, xmm2"; Fmsub213ss = "vfmsub213ss xmm0, xmm1, xmm2"; Fmsub231ss = "vfmsub231ss xmm0, xmm1, xmm2";
    Fmsub132sd = "vfmsub132sd xmm0, xmm1, xmm2"; Fmsub213sd = "vfmsub213sd xmm0, xmm1, xmm2"; Fmsub231sd = "vfmsub231sd xmm0, xmm1, xmm2";
    Fnmadd132ps = "vfnmadd132ps xmm0, xmm1, xmm2"; Fnmadd213ps = "vfnmadd213ps xmm0, xmm1, xmm2"; Fnmadd231ps = "vfnmadd231ps xmm0, xmm1, xmm2";
    Fnmadd132pd = "vfnmadd132pd xmm0, xmm1, xmm2"; Fnmadd213pd = "vfnmadd213pd xmm0, xmm1, xmm2"; Fnmadd231pd = "vfnmadd231pd xmm0, xmm1, xmm2";
    Fnmadd132ss = "vfnmadd132ss xmm0, xmm1, xmm2"; Fnmadd213ss = "vfnmadd213ss xmm0, xmm1, xmm2"; Fnmadd231ss = "vfnmadd231ss xmm0, xmm1, xmm2";
    Fnmadd132sd = "vfnmadd132sd xmm0, xmm1, xmm2"; Fnmadd213sd = "vfnmadd213sd xmm0, xmm1, xmm2"; Fnmadd231sd = "vfnmadd231sd xmm0, xmm1, xmm2";
    Fnmsub132ps = "vfnmsub132ps xmm0, xmm1, xmm2"; Fnmsub213ps = "vfnmsub213ps xmm0, xmm1, xmm2"; Fnmsub231ps = "vfnmsub231ps xmm0, xmm1, xmm2";
    Fnmsub132pd = "vfnmsub132pd xmm0, xmm1, xmm2"; Fnmsub213pd = "vfnmsub213pd xmm0, xmm1, xmm2"; Fnmsub231pd = "vfnmsub231pd xmm0, xmm1, xmm2";
    Fnmsub132ss = "vfnmsub132ss xmm0, xmm1, xmm2"; Fnmsub213ss = "vfnmsub213ss xmm0, xmm1, xmm2"; Fnmsub231ss = "vfnmsub231ss xmm0, xmm1, xmm2";
    Fnmsub132sd = "vfnmsub132sd xmm0, xmm1, xmm2"; Fnmsub213sd = "vfnmsub213sd xmm0, xmm1, xmm2"; Fnmsub231sd = "vfnmsub231sd xmm0, xmm1, xmm2";
    Fmaddsub132ps = "vfmaddsub132ps xmm0, xmm1, xmm2"; Fmaddsub213ps = "vfmaddsub213ps xmm0, xmm1, xmm2"; Fmaddsub231ps = "vfmaddsub231ps xmm0, xmm1, xmm2";
    Fmaddsub132pd = "vfmaddsub132pd xmm0, xmm1, xmm2"; Fmaddsub213pd = "vfmaddsub213pd xmm0, xmm1, xmm2"; Fmaddsub231pd = "vfmaddsub231pd xmm0, xmm1, xmm2";
    Fmsubadd132ps = "vfmsubadd132ps xmm0, xmm1, xmm2"; Fmsubadd213ps = "vfmsubadd213ps xmm0, xmm1, xmm2"; Fmsubadd231ps = "vfmsubadd231ps xmm0, xmm1, xmm2";
    Fmsubadd132pd = "vfmsubadd132pd xmm0, xmm1, xmm2"; Fmsubadd213pd = "vfmsubadd213pd xmm0, xmm1, xmm2"; Fmsubadd231pd = "vfmsubadd231pd xmm0, xmm1, xmm2";
}

impl FmaOp {
    #[inline]
    pub fn from_index(i: u16) -> Option<FmaOp> {
        Self::ALL.get(usize::from(i)).copied()
    }

    /// Lanes that are computed, and their width.
    pub fn lanes(self) -> (u32, u32) {
        let scalars = FmaOp::Fmaddsub132ps as u16;
        let i = self as u16;
        match (i / 3 % 4, i < scalars) {
            (0, true) => (4, 32),
            (1, true) => (2, 64),
            (2, true) => (1, 32),
            (3, true) => (1, 64),
            (n, _) => [(4, 32), (2, 64)][usize::from(n & 1)],
        }
    }

    /// As `SseOp::run`: `a` becomes the result; gives the flags to be set.
    #[inline]
    pub fn run(self, a: &mut u128, b: u128, c: u128, mxcsr: u32) -> u32 {
        if mxcsr & MXCSR_MASKS == MXCSR_MASKS {
            return Self::CODE[self as usize](a, b, c, mxcsr);
        }
        self.run_unmasked(a, b, c, mxcsr)
    }

    /// As `SseOp::run_unmasked`.
    #[cold]
    fn run_unmasked(self, a: &mut u128, b: u128, c: u128, mxcsr: u32) -> u32 {
        const UM: u32 = 1 << 11;
        const FTZ: u32 = 1 << 15;
        const OUT_OF_RANGE: u32 = 3 << 3;
        let control = (if mxcsr & UM == 0 { mxcsr & !FTZ } else { mxcsr }) & !MXCSR_FLAGS;
        let before = *a;
        let mut flags = Self::CODE[self as usize](a, b, c, control);
        let unmasked = unmasked::unmasked(mxcsr);
        if unmasked & OUT_OF_RANGE != 0 && (flags & OUT_OF_RANGE != 0 || has_tiny(self.lanes(), *a)) {
            flags = self.by_lanes(before, b, c, control, mxcsr);
        }
        if flags & unmasked & 7 != 0 {
            flags &= 7;
        }
        flags
    }

    /// Flags of an operation of which some lane is too small or too large, lane by lane.
    fn by_lanes(self, a: u128, b: u128, c: u128, control: u32, mxcsr: u32) -> u32 {
        const UE: u32 = 1 << 4;
        const OE: u32 = 1 << 3;
        const PE: u32 = 1 << 5;
        let ((n, width), unmasked) = (self.lanes(), unmasked::unmasked(mxcsr));
        // 1 × 1 + 1 raises nothing.
        let one = if width == 32 { 0x3f80_0000 } else { 0x3ff << 52 };
        let ones = (0..128 / width).fold(0u128, |v, i| v | one << (i * width));
        let mut all = 0;
        for i in 0..n {
            let mask = u128::MAX >> (128 - width) << (i * width);
            let [x, y, z] = [a, b, c].map(|v| v & mask | ones & !mask);
            let mut r = x;
            let mut flags = Self::CODE[self as usize](&mut r, y, z, control);
            let tiny = unmasked & UE != 0 && (flags & UE != 0 || has_tiny((n, width), r));
            if tiny {
                flags |= UE;
            }
            if tiny || flags & unmasked & OE != 0 {
                let [x, y, z] = [a, b, c].map(|v| (v & mask) >> (i * width)).map(|v| v as u64);
                // The number is the order of product and sum.
                let operands = match self as u16 % 3 {
                    0 => [x, z, y],
                    1 => [y, x, z],
                    _ => [y, z, x],
                };
                let inexact = unmasked::fused_inexact(operands, self.subtracts(i), width, mxcsr);
                flags = flags & !PE | if inexact { PE } else { 0 };
            }
            all |= flags;
        }
        all
    }

    /// Do product and third operand of lane `i` go in with different signs?
    fn subtracts(self, i: u32) -> bool {
        let (k, scalars) = (self as u16, FmaOp::Fmaddsub132ps as u16);
        match k {
            _ if k < scalars => matches!(k / 12, 1 | 2),
            _ if k < FmaOp::Fmsubadd132ps as u16 => i & 1 == 0,
            _ => i & 1 == 1,
        }
    }
}
