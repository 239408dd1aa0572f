//! SSE and AVX data movement (SDM 1 "SSE Data Movement Instructions", "SSE2 ...", "SSE3 ..."), MXCSR.

use super::super::Tr;
use crate::helpers::sse::{LDMXCSR, MASKMOVDQU, MXCSR_WRITABLE, STMXCSR};
use arch_x86::SegReg;
use arch_x86::fault::vector;
use iced_x86::{Code, Mnemonic};
use ir::{Cond, Op, Ty};

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic as M;
    let run: fn(&mut Tr<'_>) = match tr.name() {
        M::Movaps | M::Movapd | M::Movdqa | M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => |tr| full(tr, true),
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu => |tr| full(tr, false),
        M::Movss => |tr| scalar(tr, Ty::I32),
        M::Movsd if tr.is_vex() || is_sse_movsd(tr.insn.code()) => |tr| scalar(tr, Ty::I64),
        M::Movlps | M::Movlpd => |tr| half(tr, 0),
        M::Movhps | M::Movhpd => |tr| half(tr, 8),
        M::Movlhps => |tr| lane(tr, 8, 0),
        M::Movhlps => |tr| lane(tr, 0, 8),
        M::Movd | M::Movq => movd,
        M::Movmskps => |tr| mask(tr, 32),
        M::Movmskpd => |tr| mask(tr, 64),
        M::Pmovmskb => |tr| mask(tr, 8),
        M::Maskmovdqu => maskmovdqu,
        M::Movnti => return movnti(tr),
        M::Ldmxcsr => ldmxcsr,
        M::Stmxcsr => stmxcsr,
        _ => return false,
    };
    if tr.sse_enabled() {
        run(tr);
    }
    true
}

fn is_sse_movsd(c: Code) -> bool {
    matches!(c, Code::Movsd_xmm_xmmm64 | Code::Movsd_xmmm64_xmm)
}

fn full(tr: &mut Tr<'_>, aligned: bool) {
    if tr.is_wide() {
        let v = if tr.is_mem(1) { tr.yload(aligned) } else { tr.halves(1) };
        return if tr.is_mem(0) { tr.ystore(v, aligned) } else { tr.vset(0, v) };
    }
    let v = if tr.is_mem(1) { tr.vload(Ty::V128, aligned) } else { tr.xget(1) };
    if tr.is_mem(0) { tr.vstore(v, aligned) } else { tr.xset(0, v) }
}

/// MOVSS, MOVSD: a load clears the rest, a register move keeps it or takes it from the VEX form's first source.
fn scalar(tr: &mut Tr<'_>, ty: Ty) {
    if tr.is_mem(1) {
        let v = tr.vload(ty, false);
        let v = tr.b.zext(Ty::I64, v);
        return low_only(tr, v);
    }
    if tr.is_mem(0) {
        let src = tr.xslot(1);
        let v = tr.b.get(ty, src, 0);
        return tr.vstore(v, false);
    }
    let (i, j) = tr.sources();
    let (rest, low) = (tr.xget(i), tr.xget(j));
    let r = with_low(tr, rest, low, ty);
    tr.xset(0, r);
}

/// `rest` with the low part of `low`.
fn with_low(tr: &mut Tr<'_>, rest: ir::Val, low: ir::Val, ty: Ty) -> ir::Val {
    let n = ty.bytes() as u8;
    tr.b.vshuffle(low, rest, std::array::from_fn(|k| if (k as u8) < n { k as u8 } else { 16 + k as u8 }))
}

/// Operand 0 = the I64 `v`, zero-extended.
fn low_only(tr: &mut Tr<'_>, v: ir::Val) {
    let z = tr.vzero();
    let r = tr.b.vset_lane(z, 0, v);
    tr.xset(0, r);
}

/// MOVLPS, MOVHPS and their PD forms: 64 bits between memory and byte `at` of a register.
fn half(tr: &mut Tr<'_>, at: u32) {
    if tr.is_mem(0) {
        let src = tr.xslot(1);
        let v = tr.b.get(Ty::I64, src, at);
        tr.vstore(v, false);
    } else {
        let v = tr.vload(Ty::I64, false);
        replace_lane(tr, at, v);
    }
}

/// MOVLHPS, MOVHLPS: 64 bits at byte `from` of the second source go to byte `to`.
fn lane(tr: &mut Tr<'_>, to: u32, from: u32) {
    let (_, j) = tr.sources();
    let src = tr.xslot(j);
    let v = tr.b.get(Ty::I64, src, from);
    replace_lane(tr, to, v);
}

/// Destination = first source with `v` (I64) at byte `at`.
fn replace_lane(tr: &mut Tr<'_>, at: u32, v: ir::Val) {
    let first = tr.xget(if tr.is_vex() { 1 } else { 0 });
    let r = tr.b.vset_lane(first, (at / 8) as u16, v);
    tr.xset(0, r);
}

/// MOVD and MOVQ between XMM registers, general registers and memory; a destination register is cleared above.
fn movd(tr: &mut Tr<'_>) {
    let xmm = |i: u32| tr.is_reg(i) && tr.insn.op_register(i).is_xmm();
    let (to_xmm, from_xmm) = (xmm(0), xmm(1));
    // The operand that is not an XMM register tells the width; MOVQ between two has 64 bits.
    let ty = match (to_xmm, from_xmm) {
        (true, true) => Ty::I64,
        (true, false) => tr.op_ty(1),
        _ => tr.op_ty(0),
    };
    let v = if from_xmm {
        let src = tr.xslot(1);
        tr.b.get(ty, src, 0)
    } else {
        tr.src(1, ty)
    };
    if to_xmm {
        let v = tr.b.zext(Ty::I64, v);
        low_only(tr, v);
    } else {
        tr.dst(0, v);
    }
}

/// Sign bits of the lanes to a general register.
fn mask(tr: &mut Tr<'_>, width: u16) {
    let v = tr.halves(1);
    let mut m = tr.b.vmask(v[0], width);
    if v[1] != ir::Val::NONE {
        let high = tr.b.vmask(v[1], width);
        let high = tr.b.bin_imm(Op::Shl, high, u64::from(128 / width));
        m = tr.b.bin(Op::Or, m, high);
    }
    let m = tr.b.zext(Ty::I32, m);
    let r = tr.insn.op_register(0).full_register32();
    tr.set_reg(r, m);
}

fn maskmovdqu(tr: &mut Tr<'_>) {
    let a = tr.masked_address();
    tr.alignment(a, 0, 8, 8);
    let regs = u64::from(super::number(tr.insn.op_register(1))) | u64::from(super::number(tr.insn.op_register(2))) << 8;
    let regs = tr.i64(regs);
    tr.call(MASKMOVDQU, &[a, regs]);
}

impl Tr<'_> {
    /// Linear address DS:rAX of MONITOR.
    pub(in super::super) fn monitored(&mut self) -> ir::Val {
        use iced_x86::Code;
        let ty = match self.insn.code() {
            Code::Monitorw => Ty::I16,
            Code::Monitord => Ty::I32,
            _ => Ty::I64,
        };
        let off = self.get(ty, crate::layout::RAX);
        let off = self.b.zext(Ty::I64, off);
        let seg = Self::seg_of(self.insn.segment_prefix()).unwrap_or(arch_x86::SegReg::Ds);
        let (a, disp) = self.linear(seg, off, 0, 1, false);
        self.b.bin_imm(Op::Add, a, disp as u64)
    }

    /// Linear address DS:rDI of MASKMOVQ and MASKMOVDQU.
    pub(in super::super) fn masked_address(&mut self) -> ir::Val {
        use iced_x86::OpKind;
        let ty = match self.insn.op0_kind() {
            OpKind::MemorySegDI => Ty::I16,
            OpKind::MemorySegEDI => Ty::I32,
            _ => Ty::I64,
        };
        let off = self.get(ty, crate::layout::RDI);
        let off = self.b.zext(Ty::I64, off);
        let seg = Self::seg_of(self.insn.memory_segment()).unwrap_or(SegReg::Ds);
        let bytes = if self.insn.op_register(1).is_mm() { 8 } else { 16 };
        let (a, disp) = self.linear(seg, off, 0, bytes, true);
        self.b.bin_imm(Op::Add, a, disp as u64)
    }
}

/// MOVNTI stores a general register: no state is needed.
fn movnti(tr: &mut Tr<'_>) -> bool {
    if !tr.has_features() {
        tr.ud();
        return true;
    }
    let ty = tr.op_ty(1);
    let v = tr.src(1, ty);
    tr.dst(0, v);
    true
}

fn ldmxcsr(tr: &mut Tr<'_>) {
    let v = tr.vload(Ty::I32, false);
    let reserved = tr.b.bin_imm(Op::And, v, u64::from(!MXCSR_WRITABLE));
    let bad = tr.b.cmp_imm(Cond::Ne, reserved, 0);
    tr.b.raise_if(bad, vector::GP, Some(0));
    let v = tr.b.zext(Ty::I64, v);
    tr.call(LDMXCSR, &[v]);
    tr.exit_next();
}

fn stmxcsr(tr: &mut Tr<'_>) {
    let v = tr.call(STMXCSR, &[]);
    let v = tr.b.zext(Ty::I32, v);
    tr.vstore(v, false);
}
