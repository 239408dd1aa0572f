//! SSE to SSE4.2, AVX and AVX2 (SDM 1 chapters 10-15): which instructions may run, and vector operands. The topics below
//! translate them. A legacy instruction and its VEX form share their code: VEX forms have a destination of their own, may be
//! 256 bits wide, do not need alignment and clear the register's upper part.

mod avx;
mod blend;
mod crypto;
mod fma;
mod fp;
mod int;
mod mov;
mod names;
mod shuffle;
mod sse4a;

pub(super) use int::{shift, vec_op};

use super::Tr;
use crate::layout;
use arch_x86::Mode;
use arch_x86::cpuid::Word;
use arch_x86::fault::vector;
use iced_x86::{CpuidFeature, EncodingKind, Mnemonic, OpKind, Register};
use ir::{Cond, Op, SlotId, Ty, Val, VecOp};

/// The 128-bit parts of a value: the second is `Val::NONE` unless the instruction is 256 bits wide.
pub(super) type Halves = [Val; 2];

/// Translates the current instruction if it belongs here.
pub fn translate(tr: &mut Tr<'_>) -> bool {
    if !matches!(tr.insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX) || uses_mmx(tr) {
        return false;
    }
    if !tr.insn.cpuid_features().iter().any(is_ours) {
        return false;
    }
    mov::translate(tr)
        || int::translate(tr)
        || shuffle::translate(tr)
        || fp::translate(tr)
        || blend::translate(tr)
        || fma::translate(tr)
        || avx::translate(tr)
        || crypto::translate(tr)
        || sse4a::translate(tr)
}

fn is_ours(f: &CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        f,
        SSE | SSE2
            | SSE3
            | SSSE3
            | SSE4_1
            | SSE4_2
            | AES
            | PCLMULQDQ
            | SHA
            | AVX
            | AVX2
            | FMA
            | F16C
            | VAES
            | VPCLMULQDQ
            | GFNI
            | SSE4A
    )
}

/// Has the instruction an MMX register among its operands?
pub(super) fn uses_mmx(tr: &Tr<'_>) -> bool {
    (0..tr.insn.op_count()).any(|i| tr.is_reg(i) && tr.insn.op_register(i).is_mm())
}

/// Number of an XMM or YMM register.
fn number(r: Register) -> u32 {
    let first = if r.is_ymm() { Register::YMM0 } else { Register::XMM0 };
    (r as u32).wrapping_sub(first as u32) & 15
}

impl Tr<'_> {
    /// Has the CPU all that the instruction's encoding needs?
    pub(super) fn has_features(&self) -> bool {
        use CpuidFeature::*;
        self.insn.cpuid_features().iter().all(|f| {
            let (word, bit) = match f {
                FPU | FPU287 | FPU387 => (Word::L1Edx, 0),
                TSC => (Word::L1Edx, 4),
                MSR => (Word::L1Edx, 5),
                CX8 => (Word::L1Edx, 8),
                SEP => (Word::L1Edx, 11),
                CMOV => (Word::L1Edx, 15),
                MMX => (Word::L1Edx, 23),
                FXSR => (Word::L1Edx, 24),
                SSE => (Word::L1Edx, 25),
                SSE2 => (Word::L1Edx, 26),
                SSE3 => (Word::L1Ecx, 0),
                PCLMULQDQ => (Word::L1Ecx, 1),
                SSSE3 => (Word::L1Ecx, 9),
                FMA => (Word::L1Ecx, 12),
                SSE4_1 => (Word::L1Ecx, 19),
                SSE4_2 => (Word::L1Ecx, 20),
                SSE4A => (Word::ExtEcx, 6),
                AES => (Word::L1Ecx, 25),
                AVX => (Word::L1Ecx, 28),
                F16C => (Word::L1Ecx, 29),
                AVX2 => (Word::L7Ebx, 5),
                SHA => (Word::L7Ebx, 29),
                GFNI => (Word::L7Ecx, 8),
                VAES => (Word::L7Ecx, 9),
                VPCLMULQDQ => (Word::L7Ecx, 10),
                _ => return true,
            };
            self.feature((word, bit))
        })
    }

    /// Is the instruction VEX-encoded?
    fn is_vex(&self) -> bool {
        self.insn.encoding() == EncodingKind::VEX
    }

    /// Has it 256-bit operands?
    fn is_wide(&self) -> bool {
        let ymm = |i: u32| self.is_reg(i) && self.insn.op_register(i).is_ymm();
        self.is_vex() && ((0..self.insn.op_count()).any(ymm) || self.insn.memory_size().size() == 32)
    }

    /// The mnemonic; of VEX forms that of the legacy form, if there is one.
    fn name(&self) -> Mnemonic {
        if self.is_vex() { names::legacy(self.insn.mnemonic()) } else { self.insn.mnemonic() }
    }

    /// Operand numbers of the two sources of an instruction whose legacy form has its destination as first source.
    fn sources(&self) -> (u32, u32) {
        if self.is_vex() { (1, 2) } else { (0, 1) }
    }

    /// Raises what an SSE or AVX instruction raises before it does anything (SDM 2 "Exception Conditions", "Exception
    /// Specifications of VEX-Encoded Instructions"). `false`: it did, and the instruction is translated.
    fn sse_enabled(&mut self) -> bool {
        let usable = if self.is_vex() {
            self.mode.has(Mode::AVX) && self.mode.protected()
        } else {
            self.mode.has(Mode::OSFXSR) && !self.mode.has(Mode::EM)
        };
        if !usable || !self.has_features() {
            self.ud();
            return false;
        }
        if self.mode.has(Mode::TS) {
            self.raise(vector::NM, None);
            return false;
        }
        true
    }

    /// Slot of the low 128 bits of vector register operand `i`.
    fn xslot(&self, i: u32) -> SlotId {
        layout::xmm(number(self.insn.op_register(i)))
    }

    /// Slot of the high 128 bits.
    fn yslot(&self, i: u32) -> SlotId {
        layout::ymmh(number(self.insn.op_register(i)))
    }

    fn xget(&mut self, i: u32) -> Val {
        let slot = self.xslot(i);
        self.b.get(Ty::V128, slot, 0)
    }

    fn yget(&mut self, i: u32) -> Val {
        let slot = self.yslot(i);
        self.b.get(Ty::V128, slot, 0)
    }

    /// Writes 128 bits of register operand `i`; VEX forms clear the rest.
    fn xset(&mut self, i: u32, v: Val) {
        self.vset(i, [v, Val::NONE]);
    }

    /// Writes register operand `i`; VEX forms of 128 bits clear the rest.
    fn vset(&mut self, i: u32, v: Halves) {
        let slot = self.xslot(i);
        self.b.set(Ty::V128, slot, 0, v[0]);
        if self.is_vex() {
            let high = if v[1] == Val::NONE { self.vzero() } else { v[1] };
            let slot = self.yslot(i);
            self.b.set(Ty::V128, slot, 0, high);
        }
    }

    /// Clears the upper half of register operand `i` if the instruction is a VEX form.
    fn clear_upper(&mut self, i: u32) {
        if self.is_vex() {
            let (z, slot) = (self.vzero(), self.yslot(i));
            self.b.set(Ty::V128, slot, 0, z);
        }
    }

    fn vzero(&mut self) -> Val {
        self.b.iconst(Ty::V128, 0)
    }

    /// #GP(0) unless the address is a multiple of `bytes` (a power of two).
    fn aligned(&mut self, a: Val, disp: i64, bytes: u8) {
        let rest = bytes - 1;
        let a = if disp & i64::from(rest) == 0 { a } else { self.b.bin_imm(Op::Add, a, disp as u64) };
        let low = self.b.zext(Ty::I8, a);
        let low = self.b.bin_imm(Op::And, low, rest.into());
        let bad = self.b.cmp_imm(Cond::Ne, low, 0);
        self.b.raise_if(bad, vector::GP, Some(0));
    }

    /// The checks of a vector's address: #GP(0) where it must be aligned, else #AC(0), to 16 bytes, if that is checked.
    fn vector_place(&mut self, a: Val, disp: i64, bytes: u8, aligned: bool) {
        if aligned {
            self.aligned(a, disp, bytes);
        } else {
            self.alignment(a, disp, 16, bytes.into());
        }
    }

    /// Loads the memory operand as `ty`.
    fn vload(&mut self, ty: Ty, aligned: bool) -> Val {
        let (a, disp) = self.mem(ty.bytes(), false);
        if ty == Ty::V128 {
            self.vector_place(a, disp, 16, aligned);
        }
        let ctx = self.ctx();
        self.b.load(ty, a, disp, ctx)
    }

    fn vstore(&mut self, v: Val, aligned: bool) {
        let (a, disp) = self.mem(self.b.ty(v).bytes(), true);
        if self.b.ty(v) == Ty::V128 {
            self.vector_place(a, disp, 16, aligned);
        }
        let ctx = self.ctx();
        self.b.store(a, disp, v, ctx);
    }

    /// Loads 256 bits.
    fn yload(&mut self, aligned: bool) -> Halves {
        let (a, disp) = self.mem(32, false);
        self.vector_place(a, disp, 32, aligned);
        let ctx = self.ctx();
        [self.b.load(Ty::V128, a, disp, ctx), self.b.load(Ty::V128, a, disp + 16, ctx)]
    }

    /// Stores 256 bits.
    fn ystore(&mut self, v: Halves, aligned: bool) {
        let (a, disp) = self.mem(32, true);
        self.vector_place(a, disp, 32, aligned);
        let ctx = self.ctx();
        self.b.probe_w(a, disp, 32, ctx);
        self.b.store(a, disp, v[0], ctx);
        self.b.store(a, disp + 16, v[1], ctx);
    }

    /// 128-bit source operand `i`; in memory it must be aligned for a legacy form.
    fn vsrc(&mut self, i: u32) -> Val {
        let aligned = !self.is_vex();
        if self.is_mem(i) { self.vload(Ty::V128, aligned) } else { self.xget(i) }
    }

    /// Source operand `i` in the instruction's width, aligned as `vsrc`.
    fn halves(&mut self, i: u32) -> Halves {
        match (self.is_wide(), self.is_mem(i)) {
            (false, _) => [self.vsrc(i), Val::NONE],
            (true, true) => self.yload(false),
            (true, false) => [self.xget(i), self.yget(i)],
        }
    }

    /// Destination = `f` of the low halves, and of the high ones, of the two sources.
    fn both(&mut self, f: impl Fn(&mut Self, Val, Val) -> Val) {
        self.both_by_half(|tr, _, a, b| f(tr, a, b));
    }

    /// The same; `f` also gets 0 for the low halves and 1 for the high ones.
    fn both_by_half(&mut self, f: impl Fn(&mut Self, u8, Val, Val) -> Val) {
        let (i, j) = self.sources();
        let b = self.halves(j);
        let a = self.halves(i);
        let low = f(self, 0, a[0], b[0]);
        let high = if b[1] == Val::NONE { Val::NONE } else { f(self, 1, a[1], b[1]) };
        self.vset(0, [low, high]);
    }

    /// Destination = `f` of the halves of the one source, operand `i`.
    fn each(&mut self, i: u32, f: impl Fn(&mut Self, Val) -> Val) {
        let v = self.halves(i);
        let low = f(self, v[0]);
        let high = if v[1] == Val::NONE { Val::NONE } else { f(self, v[1]) };
        self.vset(0, [low, high]);
    }

    /// Low and high lane of source operand `i`, of which `bytes` are used; what is not used is 0 or anything.
    pub(super) fn vsrc_lanes(&mut self, i: u32, bytes: u32) -> (Val, Val) {
        if self.is_mem(i) {
            if bytes == 16 {
                let v = self.vsrc(i);
                return (self.b.vlane(v, 0), self.b.vlane(v, 1));
            }
            let v = self.vload(Ty::int(bytes), false);
            return (self.b.zext(Ty::I64, v), self.i64(0));
        }
        let r = self.insn.op_register(i);
        if !r.is_xmm() && !r.is_ymm() {
            let v = self.src(i, Ty::int(bytes));
            return (self.b.zext(Ty::I64, v), self.i64(0));
        }
        let slot = self.xslot(i);
        let lo = self.b.get(Ty::I64, slot, 0);
        let hi = if bytes == 16 { self.b.get(Ty::I64, slot, 8) } else { self.i64(0) };
        (lo, hi)
    }

    /// Are the two sources the same register?
    fn same_registers(&self) -> bool {
        let (i, j) = self.sources();
        self.is_reg(j) && self.insn.op_register(i) == self.insn.op_register(j)
    }

    /// The last operand, an immediate byte.
    fn imm8(&self) -> u8 {
        let last = self.insn.op_count().saturating_sub(1);
        match self.insn.op_kind(last) {
            OpKind::Immediate8 | OpKind::Immediate8_2nd => self.imm(last) as u8,
            _ => 0,
        }
    }

    /// The vector with `lo` and `hi` as its lanes.
    fn pack(&mut self, lo: Val, hi: Val) -> Val {
        let z = self.vzero();
        let v = self.b.vset_lane(z, 0, lo);
        self.b.vset_lane(v, 1, hi)
    }

    fn vec(&mut self, op: VecOp, a: Val, b: Val) -> Val {
        self.b.vec(op, a, b)
    }
}
