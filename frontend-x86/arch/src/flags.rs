//! EFLAGS bits and lazily kept arithmetic flags.
//!
//! CF PF AF ZF SF OF are not stored as bits: `CpuState::{cc_op, cc_dst, cc_src, cc_aux}` tell which operation made them and
//! from what. `eflags` computes all six; the translator emits cheaper forms for single conditions, and a test compares.

/// EFLAGS bits (SDM 1 "EFLAGS Register").
pub mod bit {
    pub const CF: u64 = 1 << 0;
    pub const ONE: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const VIF: u64 = 1 << 19;
    pub const VIP: u64 = 1 << 20;
    pub const ID: u64 = 1 << 21;
    /// The six that are kept lazily.
    pub const ARITH: u64 = CF | PF | AF | ZF | SF | OF;
}

/// All bits that exist.
pub const KNOWN: u64 = bit::ARITH
    | bit::ONE
    | bit::TF
    | bit::IF
    | bit::DF
    | bit::IOPL
    | bit::NT
    | bit::RF
    | bit::VM
    | bit::AC
    | bit::VIF
    | bit::VIP
    | bit::ID;

/// CF and OF may be given apart from the rest, in `CpuState::cc_op`, by instructions that leave the other four alone.
pub mod over {
    use super::bit;
    /// Where the flags are: shifted left by this much.
    pub const SHIFT: u32 = 16;
    pub const CF: u32 = (bit::CF as u32) << SHIFT;
    pub const OF: u32 = (bit::OF as u32) << SHIFT;
    /// Set where a flag is given: one bit above it.
    pub const HAS_CF: u32 = CF << 1;
    pub const HAS_OF: u32 = OF << 1;
}

/// What made the flags. `CpuState::cc_op` holds `kind * 4 + log2(operand bytes)`, and flags given apart (`over`).
///
/// `cc_dst`, `cc_src`, `cc_aux` are zero-extended from the operand size to 64 bits where they hold operands or results: that is how
/// instructions leave results of 32 bits. So the carry of a sum or difference is a comparison of 64 bits, whatever the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CcKind {
    /// `cc_src` holds the six bits themselves (size ignored).
    Bits = 0,
    /// `cc_dst` = result, `cc_src` = second operand.
    Add = 1,
    /// `cc_dst` = first operand (not the result), `cc_src` = second operand. SUB, CMP, CMPXCHG, SCAS, CMPS.
    Sub = 2,
    /// `cc_dst` = result. CF = OF = AF = 0.
    Logic = 3,
    /// `cc_dst` = result, `cc_src` = CF as before (0 or 1).
    Inc = 4,
    Dec = 5,
    /// `cc_dst` = result, `cc_src` = CF and OF at their EFLAGS positions; AF = 0. Multiplications, shifts by
    /// a count in CL.
    CfOf = 6,
    /// `cc_dst` = result, `cc_src` = second operand, `cc_aux` = carry in (0 or 1).
    Adc = 7,
    /// `cc_dst` = first operand, `cc_src` = second operand, `cc_aux` = borrow in (0 or 1).
    Sbb = 8,
    /// `cc_dst` = result, bit 0 of `cc_src` = CF; OF = CF xor SF, AF = 0.
    Shl = 9,
    /// The same, but the top bit of `cc_src` (of the operand size) is OF.
    Shr = 10,
    /// The same, but OF = 0.
    Sar = 11,
}

impl CcKind {
    const ALL: [CcKind; 12] = [
        Self::Bits,
        Self::Add,
        Self::Sub,
        Self::Logic,
        Self::Inc,
        Self::Dec,
        Self::CfOf,
        Self::Adc,
        Self::Sbb,
        Self::Shl,
        Self::Shr,
        Self::Sar,
    ];

    /// Kind and bytes of operands that `cc_op` stands for; `None`: it gives flags apart, or means nothing.
    pub fn of(op: u32) -> Option<(CcKind, u32)> {
        Self::ALL.get((op >> 2) as usize).map(|kind| (*kind, 1 << (op & 3)))
    }

    /// `cc_op` for operands of `bytes` 1, 2, 4 or 8.
    pub const fn op(self, bytes: u32) -> u32 {
        (self as u32) << 2 | bytes.trailing_zeros()
    }
}

/// The lazy form, as kept in `CpuState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cc {
    pub op: u32,
    pub dst: u64,
    pub src: u64,
    pub aux: u64,
}

impl Cc {
    /// Flags given as bits.
    pub const fn bits(eflags: u64) -> Cc {
        Cc { op: 0, dst: 0, src: eflags & bit::ARITH, aux: 0 }
    }

    /// The six arithmetic flags at their EFLAGS positions. An unknown `op` counts as `Bits`.
    pub fn eflags(self) -> u64 {
        let given = |has: u32, flag: u64| if self.op & has != 0 { flag } else { 0 };
        let apart = given(over::HAS_CF, bit::CF) | given(over::HAS_OF, bit::OF);
        self.all_eflags() & !apart | u64::from(self.op >> over::SHIFT) & apart
    }

    /// As if no flag were given apart.
    fn all_eflags(self) -> u64 {
        let kind = *CcKind::ALL.get((self.op as u16 >> 2) as usize).unwrap_or(&CcKind::Bits);
        let width = 8u32 << (self.op & 3);
        let Cc { dst, src, aux, .. } = self;
        let (mask, sign) = (u64::MAX >> (64 - width), 1u64 << (width - 1));
        let sum_of = |a: u64, b: u64, r: u64| (!(a ^ b) & (a ^ r) & sign) != 0;
        let diff_of = |a: u64, b: u64, r: u64| ((a ^ b) & (a ^ r) & sign) != 0;
        let af = |a: u64, b: u64, r: u64| ((a ^ b ^ r) & 0x10) != 0;
        match kind {
            CcKind::Bits => src & bit::ARITH,
            CcKind::Add => {
                let a = dst.wrapping_sub(src);
                pack(dst & mask, sign, (dst & mask) < (src & mask), af(a, src, dst), sum_of(a, src, dst))
            }
            CcKind::Adc => {
                let a = dst.wrapping_sub(src).wrapping_sub(aux);
                let cf = if aux & 1 == 1 { dst & mask <= src & mask } else { dst & mask < src & mask };
                pack(dst & mask, sign, cf, af(a, src, dst), sum_of(a, src, dst))
            }
            CcKind::Sub => {
                let r = dst.wrapping_sub(src);
                pack(r & mask, sign, dst & mask < src & mask, af(dst, src, r), diff_of(dst, src, r))
            }
            CcKind::Sbb => {
                let r = dst.wrapping_sub(src).wrapping_sub(aux);
                let cf = if aux & 1 == 1 { dst & mask <= src & mask } else { dst & mask < src & mask };
                pack(r & mask, sign, cf, af(dst, src, r), diff_of(dst, src, r))
            }
            CcKind::Logic => pack(dst & mask, sign, false, false, false),
            CcKind::Inc => pack(dst & mask, sign, src & 1 == 1, dst & 0xf == 0, dst & mask == sign),
            CcKind::Dec => pack(dst & mask, sign, src & 1 == 1, dst & 0xf == 0xf, dst & mask == sign - 1),
            CcKind::CfOf => pack(dst & mask, sign, src & bit::CF != 0, false, src & bit::OF != 0),
            CcKind::Shl => pack(dst & mask, sign, src & 1 != 0, false, (dst & sign != 0) != (src & 1 != 0)),
            CcKind::Shr => pack(dst & mask, sign, src & 1 != 0, false, src & sign != 0),
            CcKind::Sar => pack(dst & mask, sign, src & 1 != 0, false, false),
        }
    }
}

/// `result` is masked to the operand size.
fn pack(result: u64, sign: u64, cf: bool, af: bool, of: bool) -> u64 {
    let pf = (result as u8).count_ones().is_multiple_of(2);
    let f = |c: bool, b: u64| if c { b } else { 0 };
    f(cf, bit::CF) | f(pf, bit::PF) | f(af, bit::AF) | f(result == 0, bit::ZF) | f(result & sign != 0, bit::SF) | f(of, bit::OF)
}

/// Whether condition code `cc` (0..=15, the low nibble of Jcc) holds for EFLAGS `f` (SDM 2 appendix B.1).
pub fn condition(cc: u8, f: u64) -> bool {
    let (cf, zf, sf, of, pf) = (f & bit::CF != 0, f & bit::ZF != 0, f & bit::SF != 0, f & bit::OF != 0, f & bit::PF != 0);
    let c = match cc >> 1 {
        0 => of,
        1 => cf,
        2 => zf,
        3 => cf || zf,
        4 => sf,
        5 => pf,
        6 => sf != of,
        _ => zf || sf != of,
    };
    c != (cc & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_and_sub_of_bytes_match_the_definition() {
        for a in 0..=255u64 {
            for b in 0..=255u64 {
                for c in 0..=1u64 {
                    let (sa, sb) = (a as i8 as i64 as u64, b as i8 as i64 as u64);
                    let sum = sa.wrapping_add(sb).wrapping_add(c) as i8 as i64 as u64;
                    let f = Cc { op: CcKind::Adc.op(1), dst: sum, src: sb, aux: c }.eflags();
                    let signed = (a as i8 as i32) + (b as i8 as i32) + c as i32;
                    assert_eq!(f & bit::CF != 0, a + b + c > 255, "{a}+{b}+{c}");
                    assert_eq!(f & bit::OF != 0, !(-128..=127).contains(&signed));
                    assert_eq!(f & bit::AF != 0, (a & 15) + (b & 15) + c > 15);
                    assert_eq!(f & bit::ZF != 0, (a + b + c) & 255 == 0);
                    let f = Cc { op: CcKind::Sbb.op(1), dst: sa, src: sb, aux: c }.eflags();
                    let signed = (a as i8 as i32) - (b as i8 as i32) - c as i32;
                    assert_eq!(f & bit::CF != 0, a < b + c);
                    assert_eq!(f & bit::OF != 0, !(-128..=127).contains(&signed));
                    assert_eq!(f & bit::AF != 0, (a & 15) < (b & 15) + c);
                    if c == 0 {
                        let add = Cc { op: CcKind::Add.op(1), dst: sum, src: sb, aux: 0 }.eflags();
                        assert_eq!(add, Cc { op: CcKind::Adc.op(1), dst: sum, src: sb, aux: 0 }.eflags());
                        let sub = Cc { op: CcKind::Sub.op(1), dst: sa, src: sb, aux: 0 }.eflags();
                        assert_eq!(sub, f);
                    }
                }
            }
        }
    }
}
