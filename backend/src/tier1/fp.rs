//! Floating point: SSE2 and SSE3 instructions of the host, under its control word `Engine::fp_control`. Exception flags
//! stay in the host's MXCSR until Rust gets to run (`VcpuBlock::collect_fp`).

use super::cold::Cold;
use super::emit::{Emit, cc};
use super::regs::RAX;
use super::{asm, st};
use crate::vblock::{Engine, LIVE_SSE};
use ir::{FpOp, Inst, Op};
use std::mem::offset_of;

/// Mandatory prefix, second byte of the opcode (after 0F), REX.W.
type Code = (Option<u8>, u8, bool);

const P32: Option<u8> = None;
const P64: Option<u8> = Some(0x66);
const S32: Option<u8> = Some(0xf3);
const S64: Option<u8> = Some(0xf2);
const CMP: u8 = 0xc2;

/// The host's instruction (SDM 2 of each; the forms differ in their prefix).
fn code_of(op: FpOp) -> Code {
    use FpOp::*;
    let n = op as u8;
    let form = [P32, P64, S32, S64][usize::from(n & 3)];
    let (prefix, byte) = match op {
        _ if n < Cmp0P32 as u8 => (form, [0x58, 0x5c, 0x59, 0x5e, 0x5d, 0x5f, 0x51][usize::from(n >> 2)]),
        _ if n < AddSubP32 as u8 => (form, CMP),
        AddSubP32 => (S64, 0xd0),
        AddSubP64 => (P64, 0xd0),
        HAddP32 => (S64, 0x7c),
        HAddP64 => (P64, 0x7c),
        HSubP32 => (S64, 0x7d),
        HSubP64 => (P64, 0x7d),
        P32ToP64 => (P32, 0x5a),
        P64ToP32 => (P64, 0x5a),
        S32ToS64 => (S32, 0x5a),
        S64ToS32 => (S64, 0x5a),
        I32ToP32 => (P32, 0x5b),
        P32ToI32 => (P64, 0x5b),
        P32ToI32T => (S32, 0x5b),
        I32ToP64 => (S32, 0xe6),
        P64ToI32 => (S64, 0xe6),
        P64ToI32T => (P64, 0xe6),
        ComiS32 => (P32, 0x2f),
        ComiS64 => (P64, 0x2f),
        UcomiS32 => (P32, 0x2e),
        UcomiS64 => (P64, 0x2e),
        S32ToI32 | S32ToI64 => (S32, 0x2d),
        S32ToI32T | S32ToI64T => (S32, 0x2c),
        S64ToI32 | S64ToI64 => (S64, 0x2d),
        S64ToI32T | S64ToI64T => (S64, 0x2c),
        I32ToS32 | I64ToS32 => (S32, 0x2a),
        _ => (S64, 0x2a),
    };
    let wide = matches!(op, S32ToI64 | S32ToI64T | S64ToI64 | S64ToI64T | I64ToS32 | I64ToS64);
    (prefix, byte, wide)
}

/// Does the op overwrite all of its destination?
fn unary(op: FpOp) -> bool {
    use FpOp::*;
    (P32ToP64 as u8..=P64ToI32T as u8).contains(&(op as u8)) && !matches!(op, S32ToS64 | S64ToS32)
        || matches!(op, SqrtP32 | SqrtP64)
}

impl Emit<'_> {
    pub fn fp(&mut self, i: &Inst) {
        self.ready_for_fp();
        let op = i.fp_op();
        match i.op {
            Op::FpSet => {
                let b = self.gpr(i.b);
                let d = self.dest_from_xmm(i.a);
                self.fp_insn(op, d, b);
            }
            Op::FpGet if op as u8 >= FpOp::S32ToI32 as u8 => {
                let b = self.xmm(i.b);
                let d = self.dest();
                self.fp_insn(op, d, b);
            }
            Op::FpGet => {
                let (a, b) = (self.xmm(i.a), self.xmm(i.b));
                self.fp_insn(op, a, b);
                asm!(self; lahf; movzx eax, ah; and eax, BYTE 0x45);
                let d = self.dest();
                asm!(self; mov Rd(d), Rd(RAX));
            }
            _ => {
                let b = self.xmm(i.b);
                let d = if unary(op) { self.dest_xmm() } else { self.dest_from_xmm(i.a) };
                self.fp_insn(op, d, b);
            }
        }
    }

    fn fp_insn(&mut self, op: FpOp, d: u8, s: u8) {
        let (prefix, byte, wide) = code_of(op);
        self.code.extend(prefix);
        self.code.extend([0x40 | u8::from(wide) << 3 | d >> 3 << 2 | s >> 3, 0x0f, byte, 0xc0 | (d & 7) << 3 | s & 7]);
        if byte == CMP {
            self.code.extend([(op as u8 - FpOp::Cmp0P32 as u8) >> 2]);
        }
    }

    /// Makes sure that the host's control word is the one to compute under, and that its flags are the guest's alone.
    pub fn ready_for_fp(&mut self) {
        if std::mem::replace(&mut self.fp_ready, true) {
            return;
        }
        let live = self.eng(offset_of!(Engine, fp_live));
        st!(self, live; [test BYTE] [, BYTE LIVE_SSE as i8]);
        let jump = self.jcc(cc::E);
        let back = self.here();
        self.cold.push(Cold::Fp { jump, back });
    }

    pub fn make_fp_ready(&mut self, jump: usize, back: usize) {
        let here = self.here();
        self.point(jump, here);
        let (live, control) = (self.eng(offset_of!(Engine, fp_live)), self.eng(offset_of!(Engine, fp_control)));
        st!(self, control; [ldmxcsr] []);
        st!(self, live; [or DWORD] [, DWORD LIVE_SSE as i32]);
        let again = self.jmp();
        self.point(again, back);
    }
}
