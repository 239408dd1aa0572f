//! Ops on three vectors: the host's FMA3, AES-NI, PCLMULQDQ and SHA instructions where it has them, else the runtime.

use super::asm;
use super::emit::Emit;
use crate::jit::runtime::TRI_OP;
use ir::{Inst, TriOp};
use std::is_x86_feature_detected as has;

/// A host instruction of two operands, the first of which it overwrites: opcode after 0F, mandatory prefix 66 or none, immediate.
type Code = ([u8; 2], bool, Option<u8>);

/// Opcode and W of a fused multiply-add (SDM 2 "VFMADD132PD" and on): the order of operands is the high digit, the low one
/// operation and scalar or packed.
fn fused(op: TriOp) -> (u8, bool) {
    let (n, alternating) = (op as u8, TriOp::Fmaddsub132P32 as u8);
    let order = 0x90 + 0x10 * (n % 3);
    let form = n / 3;
    let low = match n.checked_sub(alternating) {
        // Operations by four forms: two packed, two scalar.
        None => 8 + 2 * (form / 4) + (form >> 1 & 1),
        Some(k) => 6 + k / 6,
    };
    (order | low, form & 1 != 0)
}

/// Of the others, if the host has it.
fn code_of(op: TriOp) -> Option<Code> {
    use TriOp::*;
    let (three_bytes, with_imm) = (|op| [0x38, op], |op| [0x3a, op]);
    let aes = |op| has!("aes").then_some((three_bytes(op), true, None));
    let sha = |op| has!("sha").then_some((three_bytes(op), false, None));
    let clmul = |imm| has!("pclmulqdq").then_some((with_imm(0x44), true, Some(imm)));
    match op {
        AesImc => aes(0xdb),
        AesEnc => aes(0xdc),
        AesEncLast => aes(0xdd),
        AesDec => aes(0xde),
        AesDecLast => aes(0xdf),
        ClmulLowLow => clmul(0),
        ClmulHighLow => clmul(1),
        ClmulLowHigh => clmul(0x10),
        ClmulHighHigh => clmul(0x11),
        Sha1Rnds0 | Sha1Rnds1 | Sha1Rnds2 | Sha1Rnds3 => {
            has!("sha").then_some((with_imm(0xcc), false, Some(op as u8 - Sha1Rnds0 as u8)))
        }
        Sha1Nexte => sha(0xc8),
        Sha1Msg1 => sha(0xc9),
        Sha1Msg2 => sha(0xca),
        Sha256Rnds2 => sha(0xcb),
        Sha256Msg1 => sha(0xcc),
        Sha256Msg2 => sha(0xcd),
        _ => None,
    }
}

impl Emit<'_> {
    pub fn tri(&mut self, i: &Inst) {
        let op = i.tri_op();
        match code_of(op) {
            _ if op.is_fused() && has!("fma") => self.fused(i, op),
            Some(code) => self.tri_insn(i, op, code),
            None => self.vec_slow(i, i.aux | TRI_OP),
        }
    }

    fn fused(&mut self, i: &Inst, op: TriOp) {
        self.ready_for_fp();
        let (b, c) = (self.xmm(i.b), self.xmm(i.c));
        let d = self.dest_from_xmm(i.a);
        let (byte, w) = fused(op);
        // VEX.128.66.0F38: R, X, B and vvvv are inverted.
        let second = (d >> 3 ^ 1) << 7 | 0x40 | (c >> 3 ^ 1) << 5 | 2;
        self.code.extend([0xc4, second, u8::from(w) << 7 | (!b & 15) << 3 | 1, byte, 0xc0 | (d & 7) << 3 | c & 7]);
    }

    fn tri_insn(&mut self, i: &Inst, op: TriOp, (byte, prefix, imm): Code) {
        let b = self.xmm(i.b);
        if op == TriOp::Sha256Rnds2 {
            // Its third operand is always xmm0.
            let c = self.xmm(i.c);
            asm!(self; movdqa xmm0, Rx(c));
        }
        let d = if op == TriOp::AesImc { self.dest_xmm() } else { self.dest_from_xmm(i.a) };
        self.code.extend(prefix.then_some(0x66));
        self.code.extend([0x40 | d >> 3 << 2 | b >> 3, 0x0f, byte[0], byte[1], 0xc0 | (d & 7) << 3 | b & 7]);
        self.code.extend(imm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From SDM 2, one of each operation and form.
    #[test]
    fn fused_opcodes_are_the_manuals() {
        use TriOp::*;
        let rows = [
            (Fmadd132P32, 0x98, false),
            (Fmadd213P64, 0xa8, true),
            (Fmadd231S32, 0xb9, false),
            (Fmadd132S64, 0x99, true),
            (Fmsub132P32, 0x9a, false),
            (Fmsub231S64, 0xbb, true),
            (Fnmadd213P64, 0xac, true),
            (Fnmadd231S32, 0xbd, false),
            (Fnmsub132P64, 0x9e, true),
            (Fnmsub213S64, 0xaf, true),
            (Fmaddsub132P32, 0x96, false),
            (Fmaddsub231P64, 0xb6, true),
            (Fmsubadd213P32, 0xa7, false),
            (Fmsubadd132P64, 0x97, true),
        ];
        for (op, byte, w) in rows {
            assert_eq!(fused(op), (byte, w), "{op:?}");
        }
    }
}
