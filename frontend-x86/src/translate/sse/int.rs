//! SSE packed integer and bitwise operations (SDM 1 "SSE2 128-Bit SIMD Integer Instructions").

use super::super::Tr;
use crate::helpers::sse::{INT, IntOp};
use iced_x86::Mnemonic;
use ir::{Ty, VecOp, VecShift};

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    let m = tr.insn.mnemonic();
    if let Some(op) = vec_op(m).or_else(|| float_logic(m)) {
        if tr.sse_enabled() {
            lanewise(tr, op);
        }
        return true;
    }
    if let Some((kind, by)) = shift(m) {
        if tr.sse_enabled() {
            match tr.is_reg(1) || tr.is_mem(1) {
                true => helper(tr, by),
                false => shift_imm(tr, kind),
            }
        }
        return true;
    }
    if let Some(op) = int_op(m) {
        if tr.sse_enabled() {
            helper(tr, op);
        }
        return true;
    }
    false
}

fn lanewise(tr: &mut Tr<'_>, op: VecOp) {
    if matches!(op, VecOp::Xor | VecOp::Sub8 | VecOp::Sub16 | VecOp::Sub32 | VecOp::Sub64) && tr.same_registers() {
        let z = tr.vzero();
        return tr.xset(0, z);
    }
    tr.vec2(op, false);
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
        _ => return None,
    })
}

/// Instructions on floating-point operands that compute no number.
fn float_logic(m: Mnemonic) -> Option<VecOp> {
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
        _ => return None,
    })
}

/// Shift by an immediate, and the operation with the count in a register.
pub(in super::super) fn shift(m: Mnemonic) -> Option<(VecShift, IntOp)> {
    use Mnemonic as M;
    Some(match m {
        M::Psllw => (VecShift::Shl16, IntOp::Shl16),
        M::Pslld => (VecShift::Shl32, IntOp::Shl32),
        M::Psllq => (VecShift::Shl64, IntOp::Shl64),
        M::Psrlw => (VecShift::Shr16, IntOp::Shr16),
        M::Psrld => (VecShift::Shr32, IntOp::Shr32),
        M::Psrlq => (VecShift::Shr64, IntOp::Shr64),
        M::Psraw => (VecShift::Sar16, IntOp::Sar16),
        M::Psrad => (VecShift::Sar32, IntOp::Sar32),
        _ => return None,
    })
}

pub(in super::super) fn int_op(m: Mnemonic) -> Option<IntOp> {
    use Mnemonic as M;
    Some(match m {
        M::Pmulhw => IntOp::MulHiS16,
        M::Pmulhuw => IntOp::MulHiU16,
        M::Pmaddwd => IntOp::MulAdd16,
        M::Pmuludq => IntOp::MulU32,
        M::Psadbw => IntOp::SadU8,
        _ => return None,
    })
}

fn helper(tr: &mut Tr<'_>, op: IntOp) {
    let (lo, hi) = tr.vsrc_lanes(1, 16);
    let code = tr.i64(op as u64 | u64::from(super::number(tr.insn.op_register(0))) << 16);
    tr.call(INT, &[code, lo, hi]);
}

/// A count of the lane width or more clears the lane, or fills it with the sign.
fn shift_imm(tr: &mut Tr<'_>, kind: VecShift) {
    let n = u32::from(tr.imm8(1));
    let last = kind.width() - 1;
    let arithmetic = matches!(kind, VecShift::Sar16 | VecShift::Sar32);
    let r = if n > last && !arithmetic {
        tr.b.iconst(Ty::V128, 0)
    } else {
        let a = tr.xget(0);
        tr.b.vshift(kind, a, n.min(last))
    };
    tr.xset(0, r);
}
