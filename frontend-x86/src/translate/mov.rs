//! Data movement between general registers and memory, sign extensions, conditional moves, flag bits (SDM 2).

use super::{Tr, feature};
use crate::helpers::atomic::PAUSE;
use crate::layout;
use arch_x86::SegReg;
use arch_x86::flags::bit;
use iced_x86::{Code, Mnemonic, Register};
use ir::{Op, Ty};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic::*;
    match tr.insn.mnemonic() {
        Mov => return mov(tr),
        Movzx | Movsx | Movsxd => extend(tr),
        Lea => lea(tr),
        Movnti => {
            let ty = tr.op_ty(1);
            let v = tr.src(1, ty);
            tr.dst(0, v);
        }
        Cmovo | Cmovno | Cmovb | Cmovae | Cmove | Cmovne | Cmovbe | Cmova | Cmovs | Cmovns | Cmovp | Cmovnp | Cmovl | Cmovge
        | Cmovle | Cmovg => cmov(tr),
        Seto | Setno | Setb | Setae | Sete | Setne | Setbe | Seta | Sets | Setns | Setp | Setnp | Setl | Setge | Setle | Setg => {
            let c = tr.cond(tr.cc());
            tr.dst(0, c);
        }
        Cbw | Cwde | Cdqe => {
            let (from, to) = convert(tr.insn.mnemonic());
            let v = tr.get(from, layout::RAX);
            let v = tr.b.sext(to, v);
            tr.put(layout::RAX, v);
        }
        Cwd | Cdq | Cqo => {
            let ty = convert(tr.insn.mnemonic()).1;
            let v = tr.get(ty, layout::RAX);
            let v = tr.b.bin_imm(Op::Sar, v, u64::from(ty.bits()) - 1);
            tr.put(layout::RDX, v);
        }
        Bswap => bswap(tr),
        Movbe if tr.feature(feature::MOVBE) => {
            let ty = if tr.is_mem(0) { tr.op_ty(1) } else { tr.op_ty(0) };
            let v = tr.src(1, ty);
            let v = tr.b.unary(Op::Bswap, v);
            tr.dst(0, v);
        }
        Xlatb => xlat(tr),
        Pause if tr.peers => {
            tr.call(PAUSE, &[]);
        }
        Nop | Pause | Reservednop | Endbr64 | Endbr32 | Prefetch | Prefetchw | Prefetcht0 | Prefetcht1 | Prefetcht2
        | Prefetchnta | Cldemote => {}
        Lahf => lahf(tr),
        Sahf => sahf(tr),
        Clc => {
            let c = tr.i8(0);
            tr.set_cf_only(c);
        }
        Stc => {
            let c = tr.i8(1);
            tr.set_cf_only(c);
        }
        Cmc => {
            let c = tr.cond(3);
            tr.set_cf_only(c);
        }
        Cld => change_eflags(tr, Op::And, !bit::DF),
        Std => change_eflags(tr, Op::Or, bit::DF),
        _ => return false,
    }
    true
}

impl Tr<'_> {
    /// Condition code of the current instruction, 0..=15.
    pub fn cc(&self) -> u8 {
        (self.insn.condition_code() as u8).wrapping_sub(1) & 15
    }
}

fn change_eflags(tr: &mut Tr<'_>, op: Op, mask: u64) {
    let f = tr.b.get(Ty::I64, layout::EFLAGS, 0);
    let f = tr.b.bin_imm(op, f, mask);
    tr.b.set(Ty::I64, layout::EFLAGS, 0, f);
}

/// MOV of general registers, memory, immediates, and from segment registers; the others are in `system`.
fn mov(tr: &mut Tr<'_>) -> bool {
    if tr.is_reg(0) {
        let r = tr.insn.op0_register();
        let Some((_, _, ty)) = Tr::gpr_of(r) else { return false };
        if tr.is_reg(1) {
            let s = tr.insn.op1_register();
            if let Some(seg) = Tr::seg_of(s) {
                let v = tr.b.get(Ty::I16, layout::seg_sel(seg), 0);
                let v = tr.b.zext(ty, v);
                tr.set_reg(r, v);
                return true;
            }
            if Tr::gpr_of(s).is_none() {
                return false;
            }
        }
        let v = tr.src(1, ty);
        tr.set_reg(r, v);
        return true;
    }
    if tr.is_reg(1) {
        let s = tr.insn.op1_register();
        if let Some(seg) = Tr::seg_of(s) {
            store_selector(tr, seg);
            return true;
        }
    }
    let ty = tr.op_ty(0);
    let v = tr.src(1, ty);
    tr.dst(0, v);
    true
}

/// A selector goes to memory as 16 bits whatever the operand size.
fn store_selector(tr: &mut Tr<'_>, seg: SegReg) {
    let v = tr.b.get(Ty::I16, layout::seg_sel(seg), 0);
    tr.dst(0, v);
}

fn extend(tr: &mut Tr<'_>) {
    let to = tr.op_ty(0);
    let from = tr.op_ty(1);
    let v = tr.src(1, from);
    let v = if tr.insn.mnemonic() == Mnemonic::Movzx { tr.b.zext(to, v) } else { tr.b.sext(to, v) };
    tr.dst(0, v);
}

fn lea(tr: &mut Tr<'_>) {
    let to = tr.op_ty(0);
    if to == Ty::I32
        && let Some(low) = tr.low_offset()
    {
        return tr.dst(0, low);
    }
    let (mut v, disp) = tr.offset();
    if disp != 0 {
        v = tr.b.bin_imm(Op::Add, v, disp as u64);
    }
    let v = tr.b.zext(to, v);
    tr.dst(0, v);
}

fn cmov(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let new = tr.src(1, ty);
    let old = tr.src(0, ty);
    let c = tr.cond(tr.cc());
    let v = tr.b.select(c, new, old);
    tr.dst(0, v);
}

fn convert(m: Mnemonic) -> (Ty, Ty) {
    match m {
        Mnemonic::Cbw => (Ty::I8, Ty::I16),
        Mnemonic::Cwde => (Ty::I16, Ty::I32),
        Mnemonic::Cdqe => (Ty::I32, Ty::I64),
        Mnemonic::Cwd => (Ty::I16, Ty::I16),
        Mnemonic::Cdq => (Ty::I32, Ty::I32),
        _ => (Ty::I64, Ty::I64),
    }
}

fn bswap(tr: &mut Tr<'_>) {
    let r = tr.insn.op0_register();
    let v = tr.reg(r);
    // The 16-bit form is undefined; processors clear the register's low half (SDM 2 "BSWAP").
    let v = if tr.insn.code() == Code::Bswap_r16 { tr.b.iconst(Ty::I16, 0) } else { tr.b.unary(Op::Bswap, v) };
    tr.set_reg(r, v);
}

fn xlat(tr: &mut Tr<'_>) {
    let base = tr.insn.memory_base();
    let ty = Tr::gpr_of(base).map_or(Ty::I32, |(_, _, ty)| ty);
    let b = tr.get(ty, layout::RBX);
    let al = tr.get(Ty::I8, layout::RAX);
    let i = tr.b.zext(ty, al);
    let off = tr.b.bin(Op::Add, b, i);
    let off = tr.b.zext(Ty::I64, off);
    let seg = Tr::seg_of(tr.insn.memory_segment()).unwrap_or(SegReg::Ds);
    let (a, disp) = tr.linear(seg, off, 0, 1, false);
    let ctx = tr.ctx();
    let v = tr.b.load(Ty::I8, a, disp, ctx);
    tr.put(layout::RAX, v);
}

fn lahf(tr: &mut Tr<'_>) {
    let f = tr.flag_bits();
    let f = tr.b.zext(Ty::I8, f);
    let f = tr.b.bin_imm(Op::Or, f, bit::ONE);
    tr.set_reg(Register::AH, f);
}

fn sahf(tr: &mut Tr<'_>) {
    let f = tr.flag_bits();
    let of = tr.b.bin_imm(Op::And, f, bit::OF);
    let ah = tr.reg(Register::AH);
    let ah = tr.b.zext(Ty::I64, ah);
    let low = tr.b.bin_imm(Op::And, ah, bit::ARITH & 0xff);
    let f = tr.b.bin(Op::Or, of, low);
    tr.flags_bits(f);
}
