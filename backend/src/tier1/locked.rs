//! Locked accesses (SDM 3A "Locked Atomic Operations") as the host's: compare-and-swap, exchange, and addition, aligned and in RAM that
//! the TLB serves. Others are done by the runtime, with every register preserved.

use super::cold::Cold;
use super::emit::{Emit, cc};
use super::memory::Linear;
use super::regs::{Loc, RAX};
use super::{asm, st};
use crate::jit::runtime::{AccessInfo, func};
use crate::vblock::Engine;
use ir::{Inst, Op, Rmw, Ty};
use std::mem::offset_of;
use vm_core::guest::CTX_COUNT;

/// What cold code must know of a locked access.
#[derive(Clone, Copy, Debug)]
pub struct Locked {
    /// Ends of the jumps for when the TLB does not serve it, and for when it is not aligned.
    missed: usize,
    unaligned: Option<usize>,
    /// Where it goes on with its TLB entry at rcx, and behind the access, with the old value in rax.
    back: usize,
    done: usize,
    /// The address, `AccessInfo` with the kind.
    va: Linear,
    info: u32,
    /// What is added, exchanged or compared; the new value of a compare-and-swap.
    operand: Loc,
    new: Option<u8>,
}

/// Whether the host has the op as one instruction that gives the old value.
pub fn is_inline(i: &Inst) -> bool {
    i.op == Op::AtomicCas || i.op == Op::AtomicRmw && matches!(i.rmw(), Rmw::Add | Rmw::Xchg)
}

impl Emit<'_> {
    /// As `AccessInfo`, with the kind of read-modify-write + 1 (0: compare-and-swap).
    pub fn atomic_info(&self, i: &Inst) -> u32 {
        let kind = if i.op == Op::AtomicRmw { i.rmw() as u32 + 1 } else { 0 };
        self.info(i, true) | kind << AccessInfo::RMW_SHIFT
    }

    pub fn locked(&mut self, i: &Inst) {
        let new = (i.op == Op::AtomicCas).then(|| self.gpr(i.c));
        let base = self.address(i, i.imm);
        let va = Linear { base, disp: 0 };
        let (ctx, size) = (usize::from(i.aux & 3).min(CTX_COUNT - 1), i.ty.bytes() as i32);
        let unaligned = (size > 1).then(|| {
            asm!(self; test Rb(base), BYTE (size - 1) as i8);
            self.jcc(cc::NE)
        });
        let missed = self.compare_tag(va, ctx, true, 4096 - size);
        let (back, operand) = (self.here(), self.loc(i.b));
        self.load_addend(ctx);
        asm!(self; add rcx, Rq(base));
        self.copy_to(RAX, i.b);
        match (new, i.op == Op::AtomicRmw && i.rmw() == Rmw::Add) {
            (Some(new), _) => match i.ty {
                Ty::I8 => asm!(self; lock cmpxchg [rcx], Rb(new)),
                Ty::I16 => asm!(self; lock cmpxchg [rcx], Rw(new)),
                Ty::I32 => asm!(self; lock cmpxchg [rcx], Rd(new)),
                _ => asm!(self; lock cmpxchg [rcx], Rq(new)),
            },
            (None, true) => match i.ty {
                Ty::I8 => asm!(self; lock xadd [rcx], al),
                Ty::I16 => asm!(self; lock xadd [rcx], ax),
                Ty::I32 => asm!(self; lock xadd [rcx], eax),
                _ => asm!(self; lock xadd [rcx], rax),
            },
            (None, false) => match i.ty {
                Ty::I8 => asm!(self; xchg [rcx], al),
                Ty::I16 => asm!(self; xchg [rcx], ax),
                Ty::I32 => asm!(self; xchg [rcx], eax),
                _ => asm!(self; xchg [rcx], rax),
            },
        }
        let (done, info) = (self.here(), self.atomic_info(i));
        self.cold.push(Cold::Locked(Locked { missed, unaligned, back, done, va, info, operand, new }));
        self.result_of_call();
    }

    /// The runtime does it. Gives the end of the jump for when it fails.
    pub fn locked_missed(&mut self, l: Locked) -> usize {
        let here = self.here();
        self.point(l.missed, here);
        let a = AccessInfo::unpack(l.info);
        self.look_beside(l.back, l.va, a, 4096 - a.ty.bytes() as i32);
        if let Some(jump) = l.unaligned {
            let here = self.here();
            self.point(jump, here);
        }
        let (addr, what) = (self.eng(offset_of!(Engine, slow_addr)), self.eng(offset_of!(Engine, slow_info)));
        let (values, status) = (self.eng(offset_of!(Engine, vec_a)), self.eng(offset_of!(Engine, status)));
        let stub = self.eng(offset_of!(Engine, fns) + 8 * func::LOCKED_STUB);
        st!(self, addr; [mov] [, Rq(l.va.base)]);
        st!(self, what; [mov DWORD] [, DWORD l.info as i32]);
        self.load_loc(RAX, a.ty, l.operand);
        st!(self, values; [mov] [, rax]);
        if let Some(new) = l.new {
            st!(self, values + 8; [mov] [, Rq(new)]);
        }
        st!(self, stub; [call QWORD] []);
        st!(self, values; [mov rax,] []);
        self.cmp_state(false, status, 0);
        let done = self.jcc(cc::E);
        self.point(done, l.done);
        self.jmp()
    }
}
