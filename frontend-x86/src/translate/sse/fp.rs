//! SSE floating-point arithmetic, comparisons and conversions: helpers that run the host's instruction.

use super::super::Tr;
use crate::helpers::sse::{FP, FP_XM, KEEP_DST};
use crate::hostfp::sse::SseOp;
use arch_x86::Mode;
use iced_x86::{Code, Mnemonic};
use ir::{Op, Ty, Val};

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    let Some((op, bytes)) = fp_op(tr) else { return false };
    if tr.sse_enabled() {
        match op {
            SseOp::Comiss | SseOp::Comisd | SseOp::Ucomiss | SseOp::Ucomisd => compare(tr, op, bytes),
            _ if tr.insn.op_register(0).is_gpr() => to_gpr(tr, op, bytes),
            _ => {
                call(tr, op, bytes, u64::from(super::number(tr.insn.op_register(0))) << 16);
            }
        }
    }
    true
}

fn call(tr: &mut Tr<'_>, op: SseOp, bytes: u32, dst: u64) -> Val {
    let (lo, hi) = tr.vsrc_lanes(1, bytes);
    let code = tr.i64(op as u64 | dst);
    let h = if tr.mode.has(Mode::XM) { FP_XM } else { FP };
    tr.call(h, &[code, lo, hi])
}

/// ZF PF CF from the comparison, OF SF AF cleared (SDM 2 "COMISD").
fn compare(tr: &mut Tr<'_>, op: SseOp, bytes: u32) {
    let first = u64::from(super::number(tr.insn.op_register(0)));
    let f = call(tr, op, bytes, first << 16 | KEEP_DST);
    let f = tr.b.bin_imm(Op::And, f, 0x45);
    tr.flags_bits(f);
}

fn to_gpr(tr: &mut Tr<'_>, op: SseOp, bytes: u32) {
    let v = call(tr, op, bytes, KEEP_DST);
    let r = tr.insn.op_register(0);
    let v = if r.is_gpr32() { tr.b.zext(Ty::I32, v) } else { v };
    tr.set_reg(r, v);
}

/// The operation, and how many bytes of the second operand it reads.
fn fp_op(tr: &Tr<'_>) -> Option<(SseOp, u32)> {
    arithmetic(tr.insn.mnemonic()).or_else(|| comparison(tr)).or_else(|| conversion(tr))
}

macro_rules! four_forms {
    ($m:expr; $($ps:ident $pd:ident $ss:ident $sd:ident;)*) => {
        match $m {
            $(Mnemonic::$ps => (SseOp::$ps, 16), Mnemonic::$pd => (SseOp::$pd, 16), Mnemonic::$ss => (SseOp::$ss, 4),
              Mnemonic::$sd => (SseOp::$sd, 8),)*
            Mnemonic::Rcpps => (SseOp::Rcpps, 16),
            Mnemonic::Rcpss => (SseOp::Rcpss, 4),
            Mnemonic::Rsqrtps => (SseOp::Rsqrtps, 16),
            Mnemonic::Rsqrtss => (SseOp::Rsqrtss, 4),
            Mnemonic::Addsubps => (SseOp::Addsubps, 16),
            Mnemonic::Addsubpd => (SseOp::Addsubpd, 16),
            Mnemonic::Haddps => (SseOp::Haddps, 16),
            Mnemonic::Haddpd => (SseOp::Haddpd, 16),
            Mnemonic::Hsubps => (SseOp::Hsubps, 16),
            Mnemonic::Hsubpd => (SseOp::Hsubpd, 16),
            _ => return None,
        }
    };
}

fn arithmetic(m: Mnemonic) -> Option<(SseOp, u32)> {
    Some(four_forms! { m;
        Addps Addpd Addss Addsd;
        Subps Subpd Subss Subsd;
        Mulps Mulpd Mulss Mulsd;
        Divps Divpd Divss Divsd;
        Minps Minpd Minss Minsd;
        Maxps Maxpd Maxss Maxsd;
        Sqrtps Sqrtpd Sqrtss Sqrtsd;
    })
}

fn comparison(tr: &Tr<'_>) -> Option<(SseOp, u32)> {
    use Mnemonic as M;
    let (base, bytes) = match tr.insn.mnemonic() {
        M::Comiss => return Some((SseOp::Comiss, 4)),
        M::Comisd => return Some((SseOp::Comisd, 8)),
        M::Ucomiss => return Some((SseOp::Ucomiss, 4)),
        M::Ucomisd => return Some((SseOp::Ucomisd, 8)),
        M::Cmpps => (SseOp::Cmpps0, 16),
        M::Cmppd => (SseOp::Cmppd0, 16),
        M::Cmpss => (SseOp::Cmpss0, 4),
        M::Cmpsd if tr.insn.code() == Code::Cmpsd_xmm_xmmm64_imm8 => (SseOp::Cmpsd0, 8),
        _ => return None,
    };
    Some((base.predicate(tr.imm8(2)), bytes))
}

fn conversion(tr: &Tr<'_>) -> Option<(SseOp, u32)> {
    use Mnemonic as M;
    let to64 = tr.is_reg(0) && tr.insn.op_register(0).is_gpr64();
    let from = |narrow, wide| if tr.op_ty(1) == Ty::I64 { (wide, 8) } else { (narrow, 4) };
    let to = |narrow, wide| if to64 { wide } else { narrow };
    Some(match tr.insn.mnemonic() {
        M::Cvtps2pd => (SseOp::Cvtps2pd, 8),
        M::Cvtpd2ps => (SseOp::Cvtpd2ps, 16),
        M::Cvtss2sd => (SseOp::Cvtss2sd, 4),
        M::Cvtsd2ss => (SseOp::Cvtsd2ss, 8),
        M::Cvtdq2ps => (SseOp::Cvtdq2ps, 16),
        M::Cvtdq2pd => (SseOp::Cvtdq2pd, 8),
        M::Cvtps2dq => (SseOp::Cvtps2dq, 16),
        M::Cvttps2dq => (SseOp::Cvttps2dq, 16),
        M::Cvtpd2dq => (SseOp::Cvtpd2dq, 16),
        M::Cvttpd2dq => (SseOp::Cvttpd2dq, 16),
        M::Cvtsi2ss => from(SseOp::Cvtsi2ss32, SseOp::Cvtsi2ss64),
        M::Cvtsi2sd => from(SseOp::Cvtsi2sd32, SseOp::Cvtsi2sd64),
        M::Cvtss2si => (to(SseOp::Cvtss2si32, SseOp::Cvtss2si64), 4),
        M::Cvttss2si => (to(SseOp::Cvttss2si32, SseOp::Cvttss2si64), 4),
        M::Cvtsd2si => (to(SseOp::Cvtsd2si32, SseOp::Cvtsd2si64), 8),
        M::Cvttsd2si => (to(SseOp::Cvttsd2si32, SseOp::Cvttsd2si64), 8),
        // The memory forms have no MMX register, and touch no x87 state (SDM 2 "CVTPI2PD"; CVTPI2PS as CPUs do it).
        M::Cvtpi2ps => (SseOp::Cvtpi2ps, 8),
        M::Cvtpi2pd => (SseOp::Cvtdq2pd, 8),
        _ => return None,
    })
}
