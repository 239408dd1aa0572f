//! Decimal arithmetic, SALC (SDM 2 "AAA", "AAD", "AAM", "AAS", "DAA", "DAS").

use super::Tr;
use crate::helpers::bcd::{AAA, AAS, BCD, DAA, DAS};
use crate::layout::RAX;
use arch_x86::fault::vector;
use iced_x86::{Mnemonic, Register};
use ir::{Op, Ty};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    match tr.insn.mnemonic() {
        Mnemonic::Aaa => adjust(tr, AAA),
        Mnemonic::Aas => adjust(tr, AAS),
        Mnemonic::Daa => adjust(tr, DAA),
        Mnemonic::Das => adjust(tr, DAS),
        Mnemonic::Aam => aam(tr),
        Mnemonic::Aad => aad(tr),
        Mnemonic::Salc => {
            let c = tr.cf();
            let v = tr.b.unary(Op::Neg, c);
            tr.put(RAX, v);
        }
        _ => return false,
    }
    true
}

fn adjust(tr: &mut Tr<'_>, which: u64) {
    let ax = tr.get(Ty::I16, RAX);
    let ax = tr.b.zext(Ty::I64, ax);
    let flags = tr.flag_bits();
    let which = tr.i64(which);
    let r = tr.call(BCD, &[ax, flags, which]);
    let ax = tr.b.zext(Ty::I16, r);
    tr.put(RAX, ax);
    let bits = tr.b.bin_imm(Op::Shr, r, 32);
    tr.flags_bits(bits);
}

fn aam(tr: &mut Tr<'_>) {
    let base = tr.imm(0) & 0xff;
    if base == 0 {
        return tr.raise(vector::DE, None);
    }
    let al = tr.get(Ty::I8, RAX);
    let al = tr.b.zext(Ty::I32, al);
    let base = tr.b.iconst(Ty::I32, base);
    let (q, r) = (tr.b.bin(Op::DivU, al, base), tr.b.bin(Op::RemU, al, base));
    let (q, r) = (tr.b.zext(Ty::I8, q), tr.b.zext(Ty::I8, r));
    tr.put(RAX, r);
    tr.set_reg(Register::AH, q);
    tr.flags_logic(r);
}

fn aad(tr: &mut Tr<'_>) {
    let base = tr.imm(0);
    let al = tr.get(Ty::I8, RAX);
    let ah = tr.reg(Register::AH);
    let tens = tr.b.bin_imm(Op::Mul, ah, base);
    let r = tr.b.bin(Op::Add, al, tens);
    let ax = tr.b.zext(Ty::I16, r);
    tr.put(RAX, ax);
    tr.flags_logic(r);
}
