//! Bit tests, scans and counts (SDM 2 "BT", "BSF", "LZCNT", "POPCNT").

use super::atomic::write_if;
use super::{Place, Tr, feature};
use arch_x86::flags::bit;
use iced_x86::Mnemonic;
use ir::{Cond, Op, Rmw, Ty, Val};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic::*;
    match tr.insn.mnemonic() {
        Bt | Bts | Btr | Btc => bit_test(tr),
        Bsf => scan(tr, false),
        Bsr => scan(tr, true),
        // Without the feature the prefix means nothing (SDM 2 "LZCNT", "TZCNT").
        Tzcnt if !tr.feature(feature::BMI1) => scan(tr, false),
        Lzcnt if !tr.feature(feature::LZCNT) => scan(tr, true),
        Tzcnt => count(tr, Op::Ctz),
        Lzcnt => count(tr, Op::Clz),
        Popcnt if tr.feature(feature::POPCNT) => popcnt(tr),
        _ => return false,
    }
    true
}

fn scan(tr: &mut Tr<'_>, reverse: bool) {
    let ty = tr.op_ty(0);
    let v = tr.src(1, ty);
    let found = tr.b.cmp_imm(Cond::Ne, v, 0);
    let n = if reverse {
        let n = tr.b.unary(Op::Clz, v);
        tr.b.bin_imm(Op::Xor, n, u64::from(ty.bits()) - 1)
    } else {
        tr.b.unary(Op::Ctz, v)
    };
    // Of a zero source the destination stays as it was, as all processors do.
    write_if(tr, found, tr.insn.op0_register(), n);
    tr.flags_logic(v);
}

fn count(tr: &mut Tr<'_>, op: Op) {
    let ty = tr.op_ty(0);
    let v = tr.src(1, ty);
    let res = tr.b.unary(op, v);
    tr.dst(0, res);
    let none = tr.b.cmp_imm(Cond::Eq, v, 0);
    let cf = tr.b.zext(Ty::I64, none);
    tr.flags_cfof(res, cf);
}

fn popcnt(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let v = tr.src(1, ty);
    let res = tr.b.unary(Op::Popcnt, v);
    tr.dst(0, res);
    let none = tr.b.cmp_imm(Cond::Eq, v, 0);
    let zf = tr.b.zext(Ty::I64, none);
    let zf = tr.b.bin_imm(Op::Shl, zf, u64::from(bit::ZF.trailing_zeros()));
    tr.flags_bits(zf);
}

fn bit_test(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let index = tr.src(1, ty);
    let m = tr.insn.mnemonic();
    let write = m != Mnemonic::Bt;
    let p = bit_place(tr, ty, index, write);
    let n = tr.b.bin_imm(Op::And, index, u64::from(ty.bits()) - 1);
    let one = tr.b.iconst(ty, 1);
    let mask = tr.b.bin(Op::Shl, one, n);
    let a = match (p, m) {
        (Place::Mem(at, disp), Mnemonic::Bts) if tr.insn.has_lock_prefix() => tr.rmw(Rmw::Or, at, disp, mask),
        (Place::Mem(at, disp), Mnemonic::Btc) if tr.insn.has_lock_prefix() => tr.rmw(Rmw::Xor, at, disp, mask),
        (Place::Mem(at, disp), Mnemonic::Btr) if tr.insn.has_lock_prefix() => {
            let keep = tr.b.unary(Op::Not, mask);
            tr.rmw(Rmw::And, at, disp, keep)
        }
        _ => {
            let a = tr.read(p, ty);
            if write {
                let v = changed(tr, m, a, mask);
                tr.write(p, v);
            }
            a
        }
    };
    let b = tr.b.bin(Op::Shr, a, n);
    let b = tr.b.zext(Ty::I8, b);
    let cf = tr.b.bin_imm(Op::And, b, 1);
    tr.set_cf_only(cf);
}

fn changed(tr: &mut Tr<'_>, m: Mnemonic, a: Val, mask: Val) -> Val {
    match m {
        Mnemonic::Bts => tr.b.bin(Op::Or, a, mask),
        Mnemonic::Btc => tr.b.bin(Op::Xor, a, mask),
        _ => {
            let keep = tr.b.unary(Op::Not, mask);
            tr.b.bin(Op::And, a, keep)
        }
    }
}

/// A register index reaches beyond the memory operand: its upper bits, signed, count operands (SDM 2 "BT").
fn bit_place(tr: &mut Tr<'_>, ty: Ty, index: Val, write: bool) -> Place {
    if !tr.is_mem(0) {
        return Place::Reg(tr.insn.op0_register());
    }
    if !tr.is_reg(1) {
        return tr.place(0, ty, write);
    }
    let (off, disp) = tr.offset();
    let i = tr.b.sext(Ty::I64, index);
    let i = tr.b.bin_imm(Op::Sar, i, u64::from(ty.bits().trailing_zeros()));
    let i = tr.b.bin_imm(Op::Shl, i, u64::from(ty.bytes().trailing_zeros()));
    let off = tr.b.bin(Op::Add, off, i);
    let addr = tr.addr_ty();
    let off = if addr == Ty::I64 { off } else { tr.b.bin_imm(Op::And, off, addr.mask()) };
    let seg = Tr::seg_of(tr.insn.memory_segment()).unwrap_or(arch_x86::SegReg::Ds);
    let (a, disp) = tr.linear(seg, off, disp, ty.bytes(), write);
    Place::Mem(a, disp)
}
