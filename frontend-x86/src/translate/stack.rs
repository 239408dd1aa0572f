//! The stack: PUSH, POP and their families, ENTER, LEAVE, PUSHF, POPF (SDM 1 "Procedure Calls", SDM 2).

use super::{Place, Tr, branch};
use crate::helpers::stack::{ENTER, POPF, PUSHF};
use crate::layout::{self, RBP, RSP};
use arch_x86::{Mode, SegReg};
use iced_x86::Mnemonic;
use ir::{Op, Ty, Val};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    match tr.insn.mnemonic() {
        Mnemonic::Push => push(tr),
        Mnemonic::Pop => return pop(tr),
        Mnemonic::Leave => leave(tr),
        Mnemonic::Enter => enter(tr),
        Mnemonic::Pusha | Mnemonic::Pushad => pusha(tr),
        Mnemonic::Popa | Mnemonic::Popad => popa(tr),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => pushf(tr),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => popf(tr),
        _ => return false,
    }
    true
}

impl Tr<'_> {
    /// Type of the stack pointer: SS.B, 64 bits in 64-bit code.
    pub fn sp_ty(&self) -> Ty {
        if self.is_64() {
            Ty::I64
        } else if self.mode.has(Mode::STACK32) {
            Ty::I32
        } else {
            Ty::I16
        }
    }

    /// Linear address of `bytes` at `delta` from the stack pointer in `slot`; the new pointer.
    fn stack_at(&mut self, slot: ir::SlotId, delta: i64, bytes: u32, write: bool) -> (Val, i64, Val) {
        let ty = self.sp_ty();
        let sp = self.get(ty, slot);
        let at = if delta == 0 { sp } else { self.b.bin_imm(Op::Add, sp, delta as u64) };
        let off = self.b.zext(Ty::I64, at);
        let (a, disp) = self.linear(SegReg::Ss, off, 0, bytes, write);
        (a, disp, at)
    }

    /// Pushes a value of its type's size. The store may leave, so this comes before any other state change.
    pub fn push(&mut self, v: Val) {
        let bytes = self.b.ty(v).bytes();
        let (a, disp, sp) = self.stack_at(RSP, -i64::from(bytes), bytes, true);
        let ctx = self.ctx();
        self.b.store(a, disp, v, ctx);
        self.put(RSP, sp);
    }

    /// Value at the top of the stack; RSP stays: `add_sp` follows.
    pub fn pop_value(&mut self, ty: Ty) -> Val {
        let (a, disp, _) = self.stack_at(RSP, 0, ty.bytes(), false);
        let ctx = self.ctx();
        self.b.load(ty, a, disp, ctx)
    }

    pub fn add_sp(&mut self, n: i64) {
        let ty = self.sp_ty();
        let sp = self.get(ty, RSP);
        let sp = self.b.bin_imm(Op::Add, sp, n as u64);
        self.put(RSP, sp);
    }

    /// Type of what a push or pop moves.
    pub fn stack_ty(&self) -> Ty {
        Ty::int(self.insn.stack_pointer_increment().unsigned_abs())
    }
}

fn push(tr: &mut Tr<'_>) {
    let ty = tr.stack_ty();
    let v = match Tr::seg_of(tr.insn.op0_register()).filter(|_| tr.is_reg(0)) {
        Some(seg) => {
            let v = tr.b.get(Ty::I16, layout::seg_sel(seg), 0);
            tr.b.zext(ty, v)
        }
        None => tr.src(0, ty),
    };
    tr.push(v);
}

fn pop(tr: &mut Tr<'_>) -> bool {
    let ty = tr.stack_ty();
    if tr.is_reg(0) && Tr::gpr_of(tr.insn.op0_register()).is_none() {
        return false; // POP to a segment register: `far`
    }
    let v = tr.pop_value(ty);
    if tr.is_mem(0) {
        // An address relative to the stack pointer counts from its new value (SDM 2 "POP").
        if branch::is_sp(tr.insn.memory_base()) {
            let disp = tr.insn.memory_displacement64().wrapping_add(u64::from(ty.bytes()));
            tr.insn.set_memory_displacement64(disp);
        }
        tr.dst(0, v);
        tr.add_sp(ty.bytes().into());
    } else {
        tr.add_sp(ty.bytes().into());
        tr.write(Place::Reg(tr.insn.op0_register()), v);
    }
    true
}

fn leave(tr: &mut Tr<'_>) {
    let ty = tr.stack_ty_leave();
    let (a, disp, bp) = tr.stack_at(RBP, 0, ty.bytes(), false);
    let ctx = tr.ctx();
    let v = tr.b.load(ty, a, disp, ctx);
    let sp = tr.b.bin_imm(Op::Add, bp, ty.bytes().into());
    tr.put(RSP, sp);
    tr.put(RBP, v);
}

impl Tr<'_> {
    fn stack_ty_leave(&self) -> Ty {
        match self.insn.code() {
            iced_x86::Code::Leavew => Ty::I16,
            iced_x86::Code::Leaved => Ty::I32,
            _ => Ty::I64,
        }
    }
}

fn enter(tr: &mut Tr<'_>) {
    use iced_x86::Code::*;
    let bytes: u64 = match tr.insn.code() {
        Enterw_imm16_imm8 => 2,
        Enterd_imm16_imm8 => 4,
        _ => 8,
    };
    let level = u64::from(tr.insn.immediate8_2nd()) & 31;
    tr.call_imm(ENTER, &[bytes, u64::from(tr.insn.immediate16()), level]);
}

fn pusha(tr: &mut Tr<'_>) {
    let ty = if tr.insn.mnemonic() == Mnemonic::Pusha { Ty::I16 } else { Ty::I32 };
    let all = ty.bytes() * 8;
    let (a, disp, sp) = tr.stack_at(RSP, -i64::from(all), all, true);
    tr.alignment(a, disp, ty.bytes(), ty.bytes());
    let ctx = tr.ctx();
    tr.b.probe_w(a, disp, all, ctx);
    for i in 0..8u32 {
        let v = tr.get(ty, layout::gpr(7 - i));
        tr.b.store(a, disp + i64::from(i * ty.bytes()), v, ctx);
    }
    tr.put(RSP, sp);
}

fn popa(tr: &mut Tr<'_>) {
    let ty = if tr.insn.mnemonic() == Mnemonic::Popa { Ty::I16 } else { Ty::I32 };
    let all = ty.bytes() * 8;
    let (a, disp, _) = tr.stack_at(RSP, 0, all, false);
    tr.alignment(a, disp, ty.bytes(), ty.bytes());
    let ctx = tr.ctx();
    let mut v = [Val::NONE; 8];
    for i in (0..8u32).filter(|i| *i != 3) {
        v[7 - i as usize] = tr.b.load(ty, a, disp + i64::from(i * ty.bytes()), ctx);
    }
    for (i, v) in v.into_iter().enumerate().filter(|(i, _)| *i != 4) {
        tr.put(layout::gpr(i as u32), v);
    }
    tr.add_sp(all.into());
}

fn pushf(tr: &mut Tr<'_>) {
    let ty = tr.stack_ty();
    let v = tr.call_imm(PUSHF, &[ty.bytes().into()]);
    let v = tr.b.zext(ty, v);
    tr.push(v);
}

fn popf(tr: &mut Tr<'_>) {
    let ty = tr.stack_ty();
    let v = tr.pop_value(ty);
    let v = tr.b.zext(Ty::I64, v);
    let bytes = tr.i64(ty.bytes().into());
    tr.call(POPF, &[v, bytes]);
    tr.flags_unknown();
    tr.add_sp(ty.bytes().into());
    tr.exit_next();
}
