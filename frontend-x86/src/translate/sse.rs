//! SSE, SSE2 and SSE3 (SDM 1 chapters 10-12): which instructions may run, and vector operands. The topics below translate
//! them.

mod fp;
mod int;
mod mov;
mod shuffle;

pub(super) use int::{int_op, shift, vec_op};

use super::Tr;
use crate::layout;
use arch_x86::Mode;
use arch_x86::fault::vector;
use iced_x86::{CpuidFeature, EncodingKind, OpKind, Register};
use ir::{Cond, Op, SlotId, Ty, Val, VecOp};

/// Translates the current instruction if it belongs here.
pub fn translate(tr: &mut Tr<'_>) -> bool {
    if tr.insn.encoding() != EncodingKind::Legacy || uses_mmx(tr) {
        return false;
    }
    let sse = |f: &CpuidFeature| matches!(f, CpuidFeature::SSE | CpuidFeature::SSE2 | CpuidFeature::SSE3);
    if !tr.insn.cpuid_features().iter().any(sse) {
        return false;
    }
    mov::translate(tr) || int::translate(tr) || shuffle::translate(tr) || fp::translate(tr)
}

/// Has the instruction an MMX register among its operands?
pub(super) fn uses_mmx(tr: &Tr<'_>) -> bool {
    (0..tr.insn.op_count()).any(|i| tr.is_reg(i) && tr.insn.op_register(i).is_mm())
}

/// Number of an XMM register.
fn number(r: Register) -> u32 {
    (r as u32).wrapping_sub(Register::XMM0 as u32) & 15
}

impl Tr<'_> {
    /// Has the CPU all that the instruction's encoding needs?
    pub(super) fn has_features(&self) -> bool {
        self.insn.cpuid_features().iter().all(|f| match f {
            CpuidFeature::MMX => self.has(0, 23),
            CpuidFeature::FXSR => self.has(0, 24),
            CpuidFeature::SSE => self.has(0, 25),
            CpuidFeature::SSE2 => self.has(0, 26),
            CpuidFeature::SSE3 => self.has(1, 0),
            CpuidFeature::FPU | CpuidFeature::FPU287 | CpuidFeature::FPU387 => self.has(0, 0),
            _ => true,
        })
    }

    /// Raises what an SSE instruction raises before it does anything (SDM 2 "Exception Conditions"). `false`: it did, and
    /// the instruction is translated.
    fn sse_enabled(&mut self) -> bool {
        if !self.has_features() || self.mode.has(Mode::EM) || !self.mode.has(Mode::OSFXSR) {
            self.ud();
            return false;
        }
        if self.mode.has(Mode::TS) {
            self.raise(vector::NM, None);
            return false;
        }
        true
    }

    /// Slot of XMM operand `i`.
    fn xslot(&self, i: u32) -> SlotId {
        layout::xmm(number(self.insn.op_register(i)))
    }

    fn xget(&mut self, i: u32) -> Val {
        let slot = self.xslot(i);
        self.b.get(Ty::V128, slot, 0)
    }

    fn xset(&mut self, i: u32, v: Val) {
        let slot = self.xslot(i);
        self.b.set(Ty::V128, slot, 0, v);
    }

    fn vzero(&mut self) -> Val {
        self.b.iconst(Ty::V128, 0)
    }

    /// #GP(0) unless the address is a multiple of 16.
    fn aligned16(&mut self, a: Val, disp: i64) {
        let a = if disp & 15 == 0 { a } else { self.b.bin_imm(Op::Add, a, disp as u64) };
        let low = self.b.zext(Ty::I8, a);
        let low = self.b.bin_imm(Op::And, low, 15);
        let bad = self.b.cmp_imm(Cond::Ne, low, 0);
        self.b.raise_if(bad, vector::GP, Some(0));
    }

    /// Loads the memory operand as `ty`.
    fn vload(&mut self, ty: Ty, aligned: bool) -> Val {
        let (a, disp) = self.mem(ty.bytes(), false);
        if aligned && ty == Ty::V128 {
            self.aligned16(a, disp);
        }
        let ctx = self.ctx();
        self.b.load(ty, a, disp, ctx)
    }

    fn vstore(&mut self, v: Val, aligned: bool) {
        let (a, disp) = self.mem(self.b.ty(v).bytes(), true);
        if aligned && self.b.ty(v) == Ty::V128 {
            self.aligned16(a, disp);
        }
        let ctx = self.ctx();
        self.b.store(a, disp, v, ctx);
    }

    /// 128-bit source operand `i`, aligned if in memory.
    fn vsrc(&mut self, i: u32) -> Val {
        if self.is_mem(i) { self.vload(Ty::V128, true) } else { self.xget(i) }
    }

    /// Low and high lane of source operand `i`, of which `bytes` are used; what is not used is 0 or anything.
    pub(super) fn vsrc_lanes(&mut self, i: u32, bytes: u32) -> (Val, Val) {
        if self.is_mem(i) {
            if bytes == 16 {
                let v = self.vload(Ty::V128, true);
                return (self.b.vlane(v, 0), self.b.vlane(v, 1));
            }
            let v = self.vload(Ty::int(bytes), false);
            return (self.b.zext(Ty::I64, v), self.i64(0));
        }
        if !self.insn.op_register(i).is_xmm() {
            let v = self.src(i, Ty::int(bytes));
            return (self.b.zext(Ty::I64, v), self.i64(0));
        }
        let slot = self.xslot(i);
        let lo = self.b.get(Ty::I64, slot, 0);
        let hi = if bytes == 16 { self.b.get(Ty::I64, slot, 8) } else { self.i64(0) };
        (lo, hi)
    }

    /// Both register operands the same?
    fn same_registers(&self) -> bool {
        self.is_reg(0) && self.is_reg(1) && self.insn.op_register(0) == self.insn.op_register(1)
    }

    fn imm8(&self, i: u32) -> u8 {
        match self.insn.op_kind(i) {
            OpKind::Immediate8 | OpKind::Immediate8_2nd => self.imm(i) as u8,
            _ => 0,
        }
    }

    fn vec2(&mut self, op: VecOp, swap: bool) {
        let b = self.vsrc(1);
        let a = self.xget(0);
        let r = if swap { self.b.vec(op, b, a) } else { self.b.vec(op, a, b) };
        self.xset(0, r);
    }
}
