//! LOCK forms and the exchanging instructions (SDM 3A "Locked Atomic Operations").

use super::{Place, Tr, feature};
use crate::helpers::atomic::CMPXCHG16B;
use crate::layout;
use arch_x86::flags::bit;
use iced_x86::{Mnemonic, Register};
use ir::{Cond, Inst, Op, Rmw, SlotId, Ty, Val};

impl Tr<'_> {
    /// Atomic [a + disp] = old `kind` v; gives old.
    pub fn rmw(&mut self, kind: Rmw, a: Val, disp: i64, v: Val) -> Val {
        let (ty, aux) = (self.b.ty(v), (kind as u16) << 2 | self.ctx() as u16);
        self.b.push(Inst { a, b: v, aux, imm: disp, ..Inst::new(Op::AtomicRmw, ty) })
    }

    /// Atomic compare-and-swap at a + disp; gives old.
    pub fn cas(&mut self, a: Val, disp: i64, expected: Val, new: Val) -> Val {
        let (ty, aux) = (self.b.ty(new), self.ctx() as u16);
        self.b.push(Inst { a, b: expected, c: new, aux, imm: disp, ..Inst::new(Op::AtomicCas, ty) })
    }

    /// Swaps `new` in if memory still holds `old`; else nothing of the instruction happens and it is run again: the flags
    /// it sets are conditional (`set_cc`) and the block ends with a branch back to it.
    pub fn swap_or_retry(&mut self, a: Val, disp: i64, old: Val, new: Val) {
        let seen = self.cas(a, disp, old, new);
        self.retry = Some(self.b.cmp(Cond::Ne, seen, old));
    }
}

pub fn translate(tr: &mut Tr<'_>) -> bool {
    match tr.insn.mnemonic() {
        Mnemonic::Xchg => xchg(tr),
        Mnemonic::Xadd => xadd(tr),
        Mnemonic::Cmpxchg => cmpxchg(tr),
        Mnemonic::Cmpxchg8b => cmpxchg8b(tr),
        Mnemonic::Cmpxchg16b if tr.feature(feature::CX16) => cmpxchg16b(tr),
        _ => return false,
    }
    true
}

/// With memory always locked (SDM 2 "XCHG").
fn xchg(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let p = tr.place(0, ty, true);
    let b = tr.src(1, ty);
    let a = match p {
        Place::Mem(at, disp) => tr.rmw(Rmw::Xchg, at, disp, b),
        Place::Reg(_) => {
            let a = tr.read(p, ty);
            tr.write(p, b);
            a
        }
    };
    tr.dst(1, a);
}

fn xadd(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let p = tr.place(0, ty, true);
    let b = tr.src(1, ty);
    let (a, sum) = match p {
        Place::Mem(at, disp) if tr.insn.has_lock_prefix() => {
            let a = tr.rmw(Rmw::Add, at, disp, b);
            let sum = tr.b.bin(Op::Add, a, b);
            tr.dst(1, a);
            (a, sum)
        }
        _ => {
            let a = tr.read(p, ty);
            let sum = tr.b.bin(Op::Add, a, b);
            if let Place::Mem(..) = p {
                tr.write(p, sum);
                tr.dst(1, a);
            } else {
                tr.dst(1, a);
                tr.write(p, sum);
            }
            (a, sum)
        }
    };
    tr.flags_add(a, b, sum);
}

fn cmpxchg(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let p = tr.place(0, ty, true);
    let new = tr.src(1, ty);
    let acc = tr.get(ty, layout::RAX);
    let old = match p {
        Place::Mem(at, disp) => tr.cas(at, disp, acc, new),
        Place::Reg(_) => tr.read(p, ty),
    };
    let same = tr.b.cmp(Cond::Eq, acc, old);
    if let Place::Reg(r) = p {
        write_if(tr, same, r, new);
    }
    let res = tr.b.bin(Op::Sub, acc, old);
    if !matches!(p, Place::Reg(r) if Tr::gpr_of(r).is_some_and(|(s, off, _)| s == layout::RAX && off == 0)) {
        replace_if_not(tr, same, layout::RAX, old);
    }
    tr.flags_sub(acc, old, res);
}

/// Writes a general register if `c`; else even the upper half that a 32-bit value would clear stays.
pub(super) fn write_if(tr: &mut Tr<'_>, c: Val, r: Register, new: Val) {
    let Some((slot, off, ty)) = Tr::gpr_of(r) else { return };
    let ty = if ty == Ty::I32 { Ty::I64 } else { ty };
    let new = tr.b.zext(ty, new);
    let old = tr.b.get(ty, slot, off);
    let v = tr.b.select(c, new, old);
    tr.b.set(ty, slot, off, v);
}

/// Writes the low part of a register unless `same`.
fn replace_if_not(tr: &mut Tr<'_>, same: Val, slot: SlotId, new: Val) {
    let ty = tr.b.ty(new);
    let ty = if ty == Ty::I32 { Ty::I64 } else { ty };
    let new = tr.b.zext(ty, new);
    let old = tr.get(ty, slot);
    let v = tr.b.select(same, old, new);
    tr.b.set(ty, slot, 0, v);
}

fn pair(tr: &mut Tr<'_>, high: SlotId, low: SlotId) -> Val {
    let (h, l) = (tr.get(Ty::I32, high), tr.get(Ty::I32, low));
    let (h, l) = (tr.b.zext(Ty::I64, h), tr.b.zext(Ty::I64, l));
    let h = tr.b.bin_imm(Op::Shl, h, 32);
    tr.b.bin(Op::Or, h, l)
}

fn cmpxchg8b(tr: &mut Tr<'_>) {
    let (a, disp) = tr.mem(8, true);
    let expected = pair(tr, layout::RDX, layout::RAX);
    let new = pair(tr, layout::RCX, layout::RBX);
    let old = tr.cas(a, disp, expected, new);
    let same = tr.b.cmp(Cond::Eq, expected, old);
    let low = tr.b.zext(Ty::I32, old);
    let high = tr.b.bin_imm(Op::Shr, old, 32);
    let high = tr.b.zext(Ty::I32, high);
    replace_if_not(tr, same, layout::RAX, low);
    replace_if_not(tr, same, layout::RDX, high);
    let bits = tr.flag_bits();
    let rest = tr.b.bin_imm(Op::And, bits, bit::ARITH & !bit::ZF);
    let zf = tr.b.zext(Ty::I64, same);
    let zf = tr.b.bin_imm(Op::Shl, zf, u64::from(bit::ZF.trailing_zeros()));
    let bits = tr.b.bin(Op::Or, rest, zf);
    tr.flags_bits(bits);
}

fn cmpxchg16b(tr: &mut Tr<'_>) {
    let a = tr.mem_addr(16, true);
    tr.call(CMPXCHG16B, &[a]);
    tr.flags_unknown();
}
