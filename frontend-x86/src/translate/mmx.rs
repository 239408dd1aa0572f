//! MMX (SDM 1 chapter 9), and the SSE instructions with MMX operands. An MMX register is the significand of the physical
//! x87 register of its number.

use super::Tr;
use super::sse::{shift, uses_mmx, vec_op};
use crate::helpers::sse::{FP, FP_XM, KEEP_DST, MASKMOVQ, MMX_INT, MmxOp};
use crate::helpers::vector::pack;
use crate::hostfp::sse::SseOp;
use crate::layout::{self, FSW, FTW};
use arch_x86::Mode;
use arch_x86::fault::vector;
use iced_x86::{EncodingKind, Mnemonic as M, Register};
use ir::{Op, SlotId, Ty, Val};

/// Translates the current instruction if it belongs here.
pub fn translate(tr: &mut Tr<'_>) -> bool {
    let m = tr.insn.mnemonic();
    if tr.insn.encoding() != EncodingKind::Legacy || !(uses_mmx(tr) || m == M::Emms) {
        return false;
    }
    let Some(run) = operation(tr) else { return false };
    if enabled(tr) {
        run(tr);
    }
    true
}

type Run = fn(&mut Tr<'_>);

fn operation(tr: &Tr<'_>) -> Option<Run> {
    let m = tr.insn.mnemonic();
    Some(match m {
        M::Emms => emms,
        M::Movd | M::Movq => mov,
        M::Movntq => mov,
        M::Movq2dq => movq2dq,
        M::Movdq2q => movdq2q,
        M::Pmovmskb => pmovmskb,
        M::Pinsrw => pinsrw,
        M::Pextrw => pextrw,
        M::Maskmovq => maskmovq,
        M::Pshufw => |tr| {
            let imm = tr.imm(2) as u8;
            binary(tr, MmxOp::Shuffle(imm));
        },
        M::Palignr => |tr| {
            let imm = tr.imm(2) as u8;
            binary(tr, MmxOp::Align(imm));
        },
        M::Cvtpi2ps | M::Cvtpi2pd => to_xmm,
        M::Cvtps2pi | M::Cvttps2pi | M::Cvtpd2pi | M::Cvttpd2pi => from_xmm,
        _ if packed(m).is_some() => |tr| {
            if let Some(op) = packed(tr.insn.mnemonic()) {
                binary(tr, op);
            }
        },
        _ => return None,
    })
}

fn packed(m: M) -> Option<MmxOp> {
    vec_op(m).or_else(|| shift(m).map(|(_, by)| by)).map(MmxOp::Vec)
}

/// What MMX instructions raise before they do anything (SDM 2 "Exception Conditions", MMX tables). `false`: it is certain.
fn enabled(tr: &mut Tr<'_>) -> bool {
    let xmm = (0..tr.insn.op_count()).any(|i| tr.is_reg(i) && tr.insn.op_register(i).is_xmm());
    if !tr.has_features() || tr.mode.has(Mode::EM) || xmm && !tr.mode.has(Mode::OSFXSR) {
        tr.ud();
        return false;
    }
    if tr.mode.has(Mode::TS) {
        tr.raise(vector::NM, None);
        return false;
    }
    tr.x87_wait();
    true
}

/// TOP = 0 and all registers valid (SDM 1 "Effect of MMX Instructions on the x87 FPU Tag Word"). After the last access that
/// can leave.
fn enter(tr: &mut Tr<'_>) {
    let sw = tr.b.get(Ty::I16, FSW, 0);
    let sw = tr.b.bin_imm(Op::And, sw, !(7 << 11));
    tr.b.set(Ty::I16, FSW, 0, sw);
    let all = tr.i8(0xff);
    tr.b.set(Ty::I8, FTW, 0, all);
}

fn emms(tr: &mut Tr<'_>) {
    enter(tr);
    let none = tr.i8(0);
    tr.b.set(Ty::I8, FTW, 0, none);
}

fn slot(tr: &Tr<'_>, i: u32) -> SlotId {
    layout::fpr((tr.insn.op_register(i) as u32).wrapping_sub(Register::MM0 as u32))
}

/// Value of source operand `i`: MMX register, memory or general register.
fn get(tr: &mut Tr<'_>, i: u32, ty: Ty) -> Val {
    let mmx = tr.is_reg(i) && tr.insn.op_register(i).is_mm();
    let v = if mmx {
        let s = slot(tr, i);
        tr.b.get(ty, s, 0)
    } else {
        tr.src(i, ty)
    };
    tr.b.zext(Ty::I64, v)
}

/// Writes MMX register operand `i`; the exponent becomes all ones.
fn set(tr: &mut Tr<'_>, i: u32, v: Val) {
    enter(tr);
    let s = slot(tr, i);
    tr.b.set(Ty::I64, s, 0, v);
    let ones = tr.b.iconst(Ty::I16, 0xffff);
    tr.b.set(Ty::I16, s, 8, ones);
}

fn binary(tr: &mut Tr<'_>, op: MmxOp) {
    // The low-half unpack reads 32 bits of memory.
    let ty = if tr.is_mem(1) { tr.op_ty(1) } else { Ty::I64 };
    let b = get(tr, 1, ty);
    let a = get(tr, 0, Ty::I64);
    let code = tr.i64(op.code());
    let r = tr.call(MMX_INT, &[code, a, b]);
    set(tr, 0, r);
}

fn mov(tr: &mut Tr<'_>) {
    let mmx = |i: u32| tr.is_reg(i) && tr.insn.op_register(i).is_mm();
    match (mmx(0), mmx(1)) {
        (true, true) => {
            let v = get(tr, 1, Ty::I64);
            set(tr, 0, v);
        }
        (true, false) => {
            let ty = tr.op_ty(1);
            let v = get(tr, 1, ty);
            set(tr, 0, v);
        }
        _ => {
            let ty = tr.op_ty(0);
            let s = slot(tr, 1);
            let v = tr.b.get(ty, s, 0);
            tr.dst(0, v);
            enter(tr);
        }
    }
}

fn xmm_slot(tr: &Tr<'_>, i: u32) -> SlotId {
    layout::xmm((tr.insn.op_register(i) as u32).wrapping_sub(Register::XMM0 as u32))
}

fn movq2dq(tr: &mut Tr<'_>) {
    let v = get(tr, 1, Ty::I64);
    enter(tr);
    let z = tr.b.iconst(Ty::V128, 0);
    let r = tr.b.vset_lane(z, 0, v);
    let dst = xmm_slot(tr, 0);
    tr.b.set(Ty::V128, dst, 0, r);
}

fn movdq2q(tr: &mut Tr<'_>) {
    let src = xmm_slot(tr, 1);
    let v = tr.b.get(Ty::I64, src, 0);
    set(tr, 0, v);
}

fn pmovmskb(tr: &mut Tr<'_>) {
    let v = get(tr, 1, Ty::I64);
    enter(tr);
    let z = tr.b.iconst(Ty::V128, 0);
    let v = tr.b.vset_lane(z, 0, v);
    let m = tr.b.vmask(v, 8);
    let m = tr.b.zext(Ty::I32, m);
    let r = tr.insn.op_register(0).full_register32();
    tr.set_reg(r, m);
}

fn pinsrw(tr: &mut Tr<'_>) {
    let v = tr.src(1, Ty::I16);
    let at = (tr.imm(2) as u32 & 3) * 2;
    let s = slot(tr, 0);
    enter(tr);
    tr.b.set(Ty::I16, s, at, v);
    let ones = tr.b.iconst(Ty::I16, 0xffff);
    tr.b.set(Ty::I16, s, 8, ones);
}

fn pextrw(tr: &mut Tr<'_>) {
    let (s, at) = (slot(tr, 1), (tr.imm(2) as u32 & 3) * 2);
    let v = tr.b.get(Ty::I16, s, at);
    enter(tr);
    let v = tr.b.zext(Ty::I32, v);
    let r = tr.insn.op_register(0).full_register32();
    tr.set_reg(r, v);
}

fn maskmovq(tr: &mut Tr<'_>) {
    let a = tr.masked_address();
    let (data, mask) = (get(tr, 1, Ty::I64), get(tr, 2, Ty::I64));
    tr.call(MASKMOVQ, &[a, data, mask]);
    enter(tr);
}

fn fp_helper(tr: &Tr<'_>) -> ir::HelperId {
    if tr.mode.has(Mode::XM) { FP_XM } else { FP }
}

/// CVTPI2PS, CVTPI2PD.
fn to_xmm(tr: &mut Tr<'_>) {
    let op = if tr.insn.mnemonic() == M::Cvtpi2ps { SseOp::Cvtpi2ps } else { SseOp::Cvtdq2pd };
    let v = get(tr, 1, Ty::I64);
    let dst = (tr.insn.op_register(0) as u32).wrapping_sub(Register::XMM0 as u32) & 15;
    let (code, zero) = (tr.i64(pack(op as u16, dst, dst, 0)), tr.i64(0));
    let h = fp_helper(tr);
    tr.call(h, &[code, v, zero]);
    enter(tr);
}

/// CVTPS2PI, CVTPD2PI and their truncating forms.
fn from_xmm(tr: &mut Tr<'_>) {
    let (op, wide) = match tr.insn.mnemonic() {
        M::Cvtps2pi => (SseOp::Cvtps2pi, false),
        M::Cvttps2pi => (SseOp::Cvttps2pi, false),
        M::Cvtpd2pi => (SseOp::Cvtpd2dq, true),
        _ => (SseOp::Cvttpd2dq, true),
    };
    let (lo, hi) = tr.vsrc_lanes(1, if wide { 16 } else { 8 });
    let code = tr.i64(op as u64 | KEEP_DST);
    let h = fp_helper(tr);
    let r = tr.call(h, &[code, lo, hi]);
    set(tr, 0, r);
}
