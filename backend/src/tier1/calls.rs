//! Guest calls and returns as calls and returns of the host: its predictor knows then where each return leads, though many
//! callers share it.
//!
//! A call pushes a frame of two words onto the host's stack: the program counter that the callee is expected to return to, and,
//! by the host's CALL, where to go on then. A return that goes there is the host's RET; any other drops the frame. The code behind
//! the call is an edge like others. Whoever leaves to the dispatcher drops all frames, so that they outlive neither code nor
//! mappings: every instruction that flushes the TLB ends its block there.

use super::cold::Cold;
use super::emit::{Emit, cc};
use super::regs::{Loc, RAX, RDI};
use super::{asm, st};
use crate::jit::runtime::func;
use crate::vblock::Engine;
use ir::{Inst, Op, Val};
use std::mem::offset_of;

/// `aux` of jumps.
const CALL: u16 = 1;
/// Number of the edge that goes on behind a call.
const RETURN: u32 = 2;
/// Bytes of a frame.
const FRAME: i8 = 16;

impl Emit<'_> {
    /// Is the direct jump a call? One to what follows only asks for the program counter.
    pub fn is_call(&self, i: &Inst) -> bool {
        i.aux == CALL && i.imm != self.block.next && self.may_return()
    }

    /// Whether a call has a frame: what follows is in the page, so that where a frame leads is canonical (`target`).
    pub fn may_return(&self) -> bool {
        self.block.next < 4096
    }

    pub fn call_near(&mut self) -> usize {
        self.code.extend([0xe8, 0, 0, 0, 0]);
        self.here()
    }

    /// Where the call that the block ends with returns to, if that is a value of the block: most calls store it.
    pub fn returns_to(&self) -> Option<Val> {
        let end = self.block.insts.last()?;
        let calls = end.op == Op::Jump && self.is_call(end) || end.op == Op::JumpInd && end.aux == CALL && self.may_return();
        if !calls || self.env.pc_mask != u64::MAX {
            return None;
        }
        let at = self.block.insts.iter().rposition(|i| i.op == Op::PcRel && i.imm == self.block.next)?;
        Some(Val(at as u32))
    }

    /// The first word of a frame, and a look whether the dispatcher is wanted: there is no room then. Uses rax. `to`: page offset of what
    /// is called; else the program counter is in rdi.
    pub fn push_frame(&mut self, to: Option<i32>) {
        let limit = self.eng(offset_of!(Engine, stack_limit));
        let word = match self.returns_to().map(|v| self.loc(v)) {
            // Jumps to what was loaded have that in rdi by now.
            Some(Loc::Gpr(r)) if r != RDI => r,
            _ => {
                self.pc_in_page(RAX, self.block.next);
                RAX
            }
        };
        st!(self, limit; [cmp rsp,] []);
        let jump = self.jcc(cc::B);
        self.cold.push(Cold::Frames { jump, back: self.here(), to });
        asm!(self; push Rq(word));
    }

    /// What follows the host's CALL: entered with the program counter in rdi.
    pub fn landing(&mut self) {
        // The frame's first word: shorter than an addition.
        asm!(self; pop rcx);
        let next = self.block.next;
        if self.enters(next) {
            return;
        }
        if self.region.is_some() {
            return self.chain();
        }
        self.set_page(next as i32);
        let jump = self.jmp();
        self.edge(RETURN, jump, next);
    }

    /// A direct call.
    pub fn call_direct(&mut self, i: &Inst) {
        self.push_frame(Some(i.imm as i32));
        self.calls = true;
        let member = self.region.as_ref().map(|r| r.member(i.imm));
        match member {
            None if (0..4096).contains(&i.imm) => {
                let call = self.call_near();
                self.edge(0, call, i.imm);
                self.landing();
            }
            None => self.far_way(i.imm as i32, 0, true),
            Some(Some(k)) => {
                let call = self.call_near();
                self.leads_to(call, k);
                self.landing();
            }
            Some(None) => {
                self.write_back();
                self.pc_in_page(RDI, i.imm);
                self.call_chain();
            }
        }
    }

    /// A call of what the program counter in rdi leads to; the frame's first word has been pushed.
    pub fn call_chain(&mut self) {
        let call = self.call_near();
        self.landing();
        let here = self.here();
        self.point(call, here);
        self.chain();
    }

    /// A return to the program counter in rdi. Where a frame leads is canonical: others are checked.
    pub fn return_to(&mut self) {
        asm!(self; cmp rdi, [rsp + 8]);
        let jump = self.jcc(cc::NE);
        let check = self.checked_return();
        self.cold.push(Cold::Return { jump, check });
        asm!(self; ret);
    }

    /// There is no room for a frame: all are dropped. Or another thread wants the dispatcher: the jump cache leads there then.
    pub fn drop_frames(&mut self, jump: usize, back: usize, to: Option<i32>) {
        let here = self.here();
        self.point(jump, here);
        let base = self.eng(offset_of!(Engine, stack_base));
        let (exit, chain) = (self.eng(offset_of!(Engine, exit)), self.eng(offset_of!(Engine, fns) + 8 * func::CHAIN));
        st!(self, base; [mov rsp,] []);
        self.cmp_state(false, exit, 0);
        let again = self.jcc(cc::E);
        self.point(again, back);
        self.write_back();
        if let Some(to) = to {
            self.pc_in_page(RDI, to.into());
        }
        st!(self, chain; [jmp QWORD] []);
    }

    /// The return does not go where the frame says.
    pub fn return_elsewhere(&mut self) {
        let base = self.eng(offset_of!(Engine, stack_base));
        st!(self, base; [cmp rsp,] []);
        let none = self.jcc(cc::E);
        asm!(self; add rsp, BYTE FRAME);
        let here = self.here();
        self.point(none, here);
        self.chain();
    }

    /// Before leaving to the dispatcher: drops all frames.
    pub fn unwind(&mut self) {
        let out = self.eng(offset_of!(Engine, way_out));
        st!(self, out; [mov rsp,] []);
    }
}
