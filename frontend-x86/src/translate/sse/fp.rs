//! SSE and AVX floating-point arithmetic, comparisons and conversions: IR ops where MXCSR's control bits are what they are
//! after reset, helpers that run the host's instruction elsewhere and for what has no IR op.

use super::super::Tr;
use super::{Halves, number};
use crate::fp::op_of;
use crate::helpers::sse::{FP, FP_WIDE_XM, FP_XM, KEEP_DST, MEMORY, STORE_HALF, Shape, wide};
use crate::helpers::vector::pack;
use crate::hostfp::sse::SseOp;
use arch_x86::Mode;
use iced_x86::{Code, Mnemonic};
use ir::{FpOp, Op, Ty, Val, VecOp};

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    let Some((op, bytes)) = fp_op(tr) else { return false };
    if tr.sse_enabled() {
        if let Some(op) = op_of(op).filter(|_| !tr.mode.has(Mode::XM)) {
            direct(tr, op, bytes);
            return true;
        }
        match op {
            SseOp::Comiss | SseOp::Comisd | SseOp::Ucomiss | SseOp::Ucomisd => compare(tr, op, bytes),
            SseOp::Cvtps2ph => to_half(tr),
            _ if tr.is_reg(0) && tr.insn.op_register(0).is_gpr() => to_gpr(tr, op, bytes),
            _ if !tr.is_vex() => {
                let dst = number(tr.insn.op_register(0));
                let source = tr.vsrc_lanes(1, bytes);
                call(tr, pack(op as u16, dst, dst, tr.imm8()), source);
            }
            _ => vex(tr, op, bytes),
        }
    }
    true
}

/// As an IR op; the second operand has `bytes`.
fn direct(tr: &mut Tr<'_>, op: FpOp, bytes: u32) {
    // The last operand that is no immediate is the second source; the first source is only there if it is not operand 1.
    let last = (1..tr.insn.op_count()).rev().find(|i| tr.is_reg(*i) || tr.is_mem(*i)).unwrap_or(1);
    if op.gives_integer() {
        let b = vector_source(tr, last, bytes);
        let compares = !tr.insn.op_register(0).is_gpr();
        let a = if compares { tr.xget(0) } else { b };
        let v = tr.b.fp(op, a, b);
        return if compares { tr.flags_bits(v) } else { put_integer(tr, v) };
    }
    let first = if last == 2 { 1 } else { 0 };
    if op.takes_integer() {
        let b = tr.src(last, Ty::int(bytes));
        let b = tr.b.zext(Ty::I64, b);
        let a = tr.xget(first);
        let r = tr.b.fp(op, a, b);
        return tr.xset(0, r);
    }
    if tr.is_wide() {
        return direct_wide(tr, op, last);
    }
    let b = vector_source(tr, last, bytes);
    let a = if last == 1 && takes_all_of_b(op) { b } else { tr.xget(first) };
    let r = tr.b.fp(op, a, b);
    tr.xset(0, r);
}

/// Does an op with one source leave nothing of a?
fn takes_all_of_b(op: FpOp) -> bool {
    use FpOp::*;
    matches!(op, SqrtP32 | SqrtP64 | P32ToP64 | P64ToP32 | I32ToP32 | I32ToP64 | P32ToI32 | P32ToI32T | P64ToI32 | P64ToI32T)
}

/// 256-bit forms: half by half, or from or to the lanes of 128 bits.
fn direct_wide(tr: &mut Tr<'_>, op: FpOp, last: u32) {
    let r = match op {
        FpOp::P32ToP64 | FpOp::I32ToP64 => {
            let b = vector_source(tr, last, 16);
            let high = tr.vec(VecOp::UnpkHi64, b, b);
            [tr.b.fp(op, b, b), tr.b.fp(op, high, high)]
        }
        FpOp::P64ToP32 | FpOp::P64ToI32 | FpOp::P64ToI32T => {
            let b = tr.halves(last);
            let parts = b.map(|b| tr.b.fp(op, b, b));
            [tr.vec(VecOp::UnpkLo64, parts[0], parts[1]), Val::NONE]
        }
        _ => {
            let b = tr.halves(last);
            let a = if last == 2 { tr.halves(1) } else { b };
            [tr.b.fp(op, a[0], b[0]), tr.b.fp(op, a[1], b[1])]
        }
    };
    tr.vset(0, r);
}

/// Vector operand `i`, of which the low `bytes` are used; in memory there are no more.
pub(super) fn vector_source(tr: &mut Tr<'_>, i: u32, bytes: u32) -> Val {
    if bytes == 16 {
        return tr.vsrc(i);
    }
    if !tr.is_mem(i) {
        return tr.xget(i);
    }
    let v = tr.vload(Ty::int(bytes), false);
    let v = tr.b.zext(Ty::I64, v);
    let z = tr.vzero();
    tr.b.vset_lane(z, 0, v)
}

fn put_integer(tr: &mut Tr<'_>, v: Val) {
    let r = tr.insn.op_register(0);
    let v = if r.is_gpr32() { tr.b.zext(Ty::I32, v) } else { v };
    tr.set_reg(r, v);
}

/// Calls the helper with the second operand's lanes.
fn call(tr: &mut Tr<'_>, code: u64, (lo, hi): (Val, Val)) -> Val {
    let code = tr.i64(code);
    let h = if tr.mode.has(Mode::XM) { FP_XM } else { FP };
    tr.call(h, &[code, lo, hi])
}

/// VEX forms with a vector register as destination.
fn vex(tr: &mut Tr<'_>, op: SseOp, bytes: u32) {
    // The last operand that is no immediate is the second source; the first source is only there if it is not operand 1.
    let last = (1..tr.insn.op_count()).rev().find(|i| tr.is_reg(*i) || tr.is_mem(*i)).unwrap_or(1);
    let dst = number(tr.insn.op_register(0));
    let first = if last == 2 { number(tr.insn.op_register(1)) } else { dst };
    let code = pack(op as u16, dst, first, tr.imm8());
    if !tr.is_wide() {
        let source = tr.vsrc_lanes(last, bytes);
        call(tr, code, source);
        return tr.clear_upper(0);
    }
    let shape = match op {
        SseOp::Cvtps2pd | SseOp::Cvtdq2pd | SseOp::Cvtph2ps => Shape::Widen,
        SseOp::Cvtpd2ps | SseOp::Cvtpd2dq | SseOp::Cvttpd2dq => Shape::Narrow,
        _ => Shape::Same,
    };
    if tr.mode.has(Mode::XM) {
        let bytes = if shape == Shape::Widen { 16 } else { 32 };
        let (source, at) = wide_operand(tr, last, bytes);
        let code = tr.i64(code | wide(source, shape));
        tr.call(FP_WIDE_XM, &[code, at]);
        return;
    }
    if shape == Shape::Widen {
        let (lo, hi) = tr.vsrc_lanes(last, 16);
        let z = tr.i64(0);
        call(tr, code, (lo, z));
        call(tr, pack(op as u16, dst + 16, first + 16, tr.imm8()), (hi, z));
        return;
    }
    let v = tr.halves(last);
    let [low, high] = lanes(tr, v);
    if shape == Shape::Narrow {
        let (x, y) = (call(tr, code | KEEP_DST, low), call(tr, code | KEEP_DST, high));
        let r = tr.pack(x, y);
        return tr.xset(0, r);
    }
    call(tr, code, low);
    call(tr, pack(op as u16, dst + 16, first + 16, tr.imm8()), high);
}

/// Lanes of both halves.
pub(super) fn lanes(tr: &mut Tr<'_>, v: Halves) -> [(Val, Val); 2] {
    v.map(|v| (tr.b.vlane(v, 0), tr.b.vlane(v, 1)))
}

/// Operand `i` for a helper that reads it itself: its number and the address.
pub(super) fn wide_operand(tr: &mut Tr<'_>, i: u32, bytes: u32) -> (u32, Val) {
    if !tr.is_mem(i) {
        return (number(tr.insn.op_register(i)), tr.i64(0));
    }
    let a = tr.mem_addr(bytes, false);
    if bytes >= 16 {
        tr.alignment(a, 0, 16, bytes);
    }
    (MEMORY, a)
}

/// VCVTPS2PH: the destination, half as wide as the source, may be in memory.
fn to_half(tr: &mut Tr<'_>) {
    let is_wide = tr.is_wide();
    let source = number(tr.insn.op_register(1));
    let code = |dst| pack(SseOp::Cvtps2ph as u16, dst, source, tr.imm8());
    if tr.is_mem(0) {
        let code = code(0) | wide(source, Shape::Narrow);
        let bytes = if is_wide { 16 } else { 8 };
        let at = tr.mem_addr(bytes, true);
        if is_wide {
            tr.alignment(at, 0, 16, 16);
        }
        let (code, bytes) = (tr.i64(code), tr.i64(bytes.into()));
        tr.call(STORE_HALF, &[code, at, bytes]);
        return;
    }
    let code = code(number(tr.insn.op_register(0)));
    if is_wide && tr.mode.has(Mode::XM) {
        let (code, at) = (tr.i64(code | wide(source, Shape::Narrow)), tr.i64(0));
        tr.call(FP_WIDE_XM, &[code, at]);
        return;
    }
    let v = tr.halves(1);
    let mut r = [tr.i64(0); 2];
    for (k, v) in v.into_iter().enumerate().filter(|(_, v)| *v != Val::NONE) {
        let source = (tr.b.vlane(v, 0), tr.b.vlane(v, 1));
        r[k] = call(tr, code | KEEP_DST, source);
    }
    let v = tr.pack(r[0], r[1]);
    tr.xset(0, v);
}

/// ZF PF CF from the comparison, OF SF AF cleared (SDM 2 "COMISD").
fn compare(tr: &mut Tr<'_>, op: SseOp, bytes: u32) {
    let first = number(tr.insn.op_register(0));
    let source = tr.vsrc_lanes(1, bytes);
    let f = call(tr, pack(op as u16, first, first, 0) | KEEP_DST, source);
    let f = tr.b.bin_imm(Op::And, f, 0x45);
    tr.flags_bits(f);
}

fn to_gpr(tr: &mut Tr<'_>, op: SseOp, bytes: u32) {
    let source = tr.vsrc_lanes(1, bytes);
    let v = call(tr, pack(op as u16, 0, 0, 0) | KEEP_DST, source);
    put_integer(tr, v);
}

/// The operation, and how many bytes of the second operand it reads.
fn fp_op(tr: &Tr<'_>) -> Option<(SseOp, u32)> {
    arithmetic(tr.name()).or_else(|| comparison(tr)).or_else(|| conversion(tr))
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
            Mnemonic::Roundps => (SseOp::Roundps, 16),
            Mnemonic::Roundpd => (SseOp::Roundpd, 16),
            Mnemonic::Roundss => (SseOp::Roundss, 4),
            Mnemonic::Roundsd => (SseOp::Roundsd, 8),
            Mnemonic::Dpps => (SseOp::Dpps, 16),
            Mnemonic::Dppd => (SseOp::Dppd, 16),
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
    let (base, bytes) = match tr.name() {
        M::Comiss => return Some((SseOp::Comiss, 4)),
        M::Comisd => return Some((SseOp::Comisd, 8)),
        M::Ucomiss => return Some((SseOp::Ucomiss, 4)),
        M::Ucomisd => return Some((SseOp::Ucomisd, 8)),
        M::Cmpps => (SseOp::Cmpps0, 16),
        M::Cmppd => (SseOp::Cmppd0, 16),
        M::Cmpss => (SseOp::Cmpss0, 4),
        M::Cmpsd if tr.is_vex() || tr.insn.code() == Code::Cmpsd_xmm_xmmm64_imm8 => (SseOp::Cmpsd0, 8),
        _ => return None,
    };
    // Legacy forms look at three bits.
    Some((base.predicate(if tr.is_vex() { tr.imm8() } else { tr.imm8() & 7 }), bytes))
}

fn conversion(tr: &Tr<'_>) -> Option<(SseOp, u32)> {
    use Mnemonic as M;
    let to64 = tr.is_reg(0) && tr.insn.op_register(0).is_gpr64();
    let integer = tr.insn.op_count().saturating_sub(1);
    let from = |narrow, wide| if tr.op_ty(integer) == Ty::I64 { (wide, 8) } else { (narrow, 4) };
    let to = |narrow, wide| if to64 { wide } else { narrow };
    Some(match tr.name() {
        M::Vcvtph2ps => (SseOp::Cvtph2ps, 8),
        M::Vcvtps2ph => (SseOp::Cvtps2ph, 16),
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
