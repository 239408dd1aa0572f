//! SSE and AVX packed integer and bitwise operations (SDM 1 "SSE2 128-Bit SIMD Integer Instructions").

use super::super::Tr;
use iced_x86::Mnemonic;
use ir::{VecOp, VecShift};

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    let m = tr.name();
    if let Some(op) = vec_op(m).or_else(|| wide_op(m)) {
        if tr.sse_enabled() {
            lanewise(tr, op);
        }
        return true;
    }
    if let Some((kind, all)) = shift(m) {
        if tr.sse_enabled() {
            let count = tr.insn.op_count().saturating_sub(1);
            match tr.is_reg(count) || tr.is_mem(count) {
                true => shift_all(tr, all, count),
                false => shift_imm(tr, kind),
            }
        }
        return true;
    }
    false
}

fn lanewise(tr: &mut Tr<'_>, op: VecOp) {
    if matches!(op, VecOp::Abs8 | VecOp::Abs16 | VecOp::Abs32 | VecOp::MinPosU16) {
        return tr.each(1, |tr, v| tr.vec(op, v, v));
    }
    if matches!(op, VecOp::Xor | VecOp::Sub8 | VecOp::Sub16 | VecOp::Sub32 | VecOp::Sub64) && tr.same_registers() {
        let z = tr.vzero();
        let high = if tr.is_wide() { z } else { ir::Val::NONE };
        return tr.vset(0, [z, high]);
    }
    tr.both(|tr, a, b| tr.vec(op, a, b));
}

/// Shifts all lanes by a count in a register or memory, which is 128 bits wide even if the others are 256.
fn shift_all(tr: &mut Tr<'_>, op: VecOp, count: u32) {
    let n = tr.vsrc(count);
    let source = tr.sources().0;
    tr.each(source, |tr, v| tr.vec(op, v, n));
}

/// The lane-wise op of an instruction that exists with MMX and XMM operands.
pub(in super::super) fn vec_op(m: Mnemonic) -> Option<VecOp> {
    use Mnemonic as M;
    Some(match m {
        M::Pand => VecOp::And,
        M::Por => VecOp::Or,
        M::Pxor => VecOp::Xor,
        M::Pandn => VecOp::AndNot,
        M::Paddb => VecOp::Add8,
        M::Paddw => VecOp::Add16,
        M::Paddd => VecOp::Add32,
        M::Paddq => VecOp::Add64,
        M::Psubb => VecOp::Sub8,
        M::Psubw => VecOp::Sub16,
        M::Psubd => VecOp::Sub32,
        M::Psubq => VecOp::Sub64,
        M::Paddsb => VecOp::AddSatS8,
        M::Paddsw => VecOp::AddSatS16,
        M::Paddusb => VecOp::AddSatU8,
        M::Paddusw => VecOp::AddSatU16,
        M::Psubsb => VecOp::SubSatS8,
        M::Psubsw => VecOp::SubSatS16,
        M::Psubusb => VecOp::SubSatU8,
        M::Psubusw => VecOp::SubSatU16,
        M::Pcmpeqb => VecOp::CmpEq8,
        M::Pcmpeqw => VecOp::CmpEq16,
        M::Pcmpeqd => VecOp::CmpEq32,
        M::Pcmpgtb => VecOp::CmpGtS8,
        M::Pcmpgtw => VecOp::CmpGtS16,
        M::Pcmpgtd => VecOp::CmpGtS32,
        M::Pminub => VecOp::MinU8,
        M::Pmaxub => VecOp::MaxU8,
        M::Pminsw => VecOp::MinS16,
        M::Pmaxsw => VecOp::MaxS16,
        M::Pavgb => VecOp::AvgU8,
        M::Pavgw => VecOp::AvgU16,
        M::Pmullw => VecOp::Mul16,
        M::Packsswb => VecOp::PackS16,
        M::Packssdw => VecOp::PackS32,
        M::Packuswb => VecOp::PackU16,
        M::Punpcklbw => VecOp::UnpkLo8,
        M::Punpcklwd => VecOp::UnpkLo16,
        M::Punpckldq => VecOp::UnpkLo32,
        M::Punpcklqdq => VecOp::UnpkLo64,
        M::Punpckhbw => VecOp::UnpkHi8,
        M::Punpckhwd => VecOp::UnpkHi16,
        M::Punpckhdq => VecOp::UnpkHi32,
        M::Punpckhqdq => VecOp::UnpkHi64,
        M::Pmulhw => VecOp::MulHiS16,
        M::Pmulhuw => VecOp::MulHiU16,
        M::Pmaddwd => VecOp::MulAddS16,
        M::Pmuludq => VecOp::MulU32,
        M::Psadbw => VecOp::SadU8,
        M::Pshufb => VecOp::Permute8,
        M::Phaddw => VecOp::HAdd16,
        M::Phaddd => VecOp::HAdd32,
        M::Phaddsw => VecOp::HAddSatS16,
        M::Phsubw => VecOp::HSub16,
        M::Phsubd => VecOp::HSub32,
        M::Phsubsw => VecOp::HSubSatS16,
        M::Pmaddubsw => VecOp::MulAddUS8,
        M::Pmulhrsw => VecOp::MulRoundS16,
        M::Psignb => VecOp::Sign8,
        M::Psignw => VecOp::Sign16,
        M::Psignd => VecOp::Sign32,
        M::Pabsb => VecOp::Abs8,
        M::Pabsw => VecOp::Abs16,
        M::Pabsd => VecOp::Abs32,
        _ => return None,
    })
}

/// Those without an MMX form, and those on floating-point operands that compute no number.
fn wide_op(m: Mnemonic) -> Option<VecOp> {
    use Mnemonic as M;
    Some(match m {
        M::Andps | M::Andpd => VecOp::And,
        M::Andnps | M::Andnpd => VecOp::AndNot,
        M::Orps | M::Orpd => VecOp::Or,
        M::Xorps | M::Xorpd => VecOp::Xor,
        M::Unpcklps => VecOp::UnpkLo32,
        M::Unpckhps => VecOp::UnpkHi32,
        M::Unpcklpd => VecOp::UnpkLo64,
        M::Unpckhpd => VecOp::UnpkHi64,
        M::Pcmpeqq => VecOp::CmpEq64,
        M::Pcmpgtq => VecOp::CmpGtS64,
        M::Pminsb => VecOp::MinS8,
        M::Pmaxsb => VecOp::MaxS8,
        M::Pminuw => VecOp::MinU16,
        M::Pmaxuw => VecOp::MaxU16,
        M::Pminsd => VecOp::MinS32,
        M::Pmaxsd => VecOp::MaxS32,
        M::Pminud => VecOp::MinU32,
        M::Pmaxud => VecOp::MaxU32,
        M::Pmulld => VecOp::Mul32,
        M::Pmuldq => VecOp::MulS32,
        M::Packusdw => VecOp::PackU32,
        M::Phminposuw => VecOp::MinPosU16,
        M::Vpsllvd => VecOp::ShlBy32,
        M::Vpsllvq => VecOp::ShlBy64,
        M::Vpsrlvd => VecOp::ShrBy32,
        M::Vpsrlvq => VecOp::ShrBy64,
        M::Vpsravd => VecOp::SarBy32,
        _ => return None,
    })
}

/// Shift by an immediate, and the operation with the count in a register.
pub(in super::super) fn shift(m: Mnemonic) -> Option<(VecShift, VecOp)> {
    use Mnemonic as M;
    Some(match m {
        M::Psllw => (VecShift::Shl16, VecOp::ShlAll16),
        M::Pslld => (VecShift::Shl32, VecOp::ShlAll32),
        M::Psllq => (VecShift::Shl64, VecOp::ShlAll64),
        M::Psrlw => (VecShift::Shr16, VecOp::ShrAll16),
        M::Psrld => (VecShift::Shr32, VecOp::ShrAll32),
        M::Psrlq => (VecShift::Shr64, VecOp::ShrAll64),
        M::Psraw => (VecShift::Sar16, VecOp::SarAll16),
        M::Psrad => (VecShift::Sar32, VecOp::SarAll32),
        _ => return None,
    })
}

/// A count of the lane width or more clears the lane, or fills it with the sign.
fn shift_imm(tr: &mut Tr<'_>, kind: VecShift) {
    let n = u32::from(tr.imm8());
    let last = kind.width() - 1;
    let arithmetic = matches!(kind, VecShift::Sar16 | VecShift::Sar32);
    let source = tr.sources().0;
    let z = tr.vzero();
    tr.each(source, |tr, v| if n > last && !arithmetic { z } else { tr.b.vshift(kind, v, n.min(last)) });
}
