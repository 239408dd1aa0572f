//! Guest memory accesses and calls of the runtime.

use super::cold::{Cold, Held};
use super::emit::{Emit, Tier1, cc};
use super::regs::{RAX, RCX, RDX, imm32};
use super::share::at;
use super::{asm, st};
use crate::jit::runtime::{AccessInfo, PURE, func};
use crate::tlb;
use crate::vblock::{BASE, Engine};
use ir::{Effects, Inst, Op, Ty, Val};
use std::mem::offset_of;
use vm_core::guest::CTX_COUNT;

/// r8, the fourth operand of a call beside the seam.
const R8: u8 = 8;
const RSI: u8 = 6;

/// A linear address: what is in a register, plus a number.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    pub base: u8,
    /// Less than 2^30 in either direction.
    pub disp: i32,
}

/// Is the op a probe that calls the runtime?
pub fn calls(i: &Inst) -> bool {
    let len = u32::from(i.aux >> 2);
    i.op == Op::ProbeW && len != 32 && !Ty::ALL.iter().any(|t| t.bytes() == len)
}

impl Emit<'_> {
    pub fn eng(&self, in_engine: usize) -> i32 {
        (self.env.shape.eng)(in_engine)
    }

    /// Of a probe, of its first bytes.
    pub fn info(&self, i: &Inst, write: bool) -> u32 {
        let ty = match i.op {
            Op::ProbeW => Ty::ALL.into_iter().find(|t| t.bytes() == u32::from(i.aux >> 2)).unwrap_or(Ty::V128),
            _ => i.ty,
        };
        AccessInfo { ty, ctx: usize::from(i.aux & 3), write, insn: self.insn, rest: self.rest }.pack()
    }

    /// Linear address at a distance from an access's base: by the register of the base, or in rax.
    pub fn linear(&mut self, i: &Inst, distance: i64) -> Linear {
        let base = self.gpr(i.a);
        match i32::try_from(distance) {
            // So that what is added to it fits as well.
            Ok(disp) if disp.unsigned_abs() < 1 << 30 => Linear { base, disp },
            _ => {
                asm!(self; mov rax, QWORD distance; add rax, Rq(base));
                Linear { base: RAX, disp: 0 }
            }
        }
    }

    /// The same in a register, that of the base or rax.
    pub fn address(&mut self, i: &Inst, distance: i64) -> u8 {
        match self.linear(i, distance) {
            Linear { base, disp: 0 } => base,
            Linear { base, disp } => {
                self.lea(RAX, base, disp);
                RAX
            }
        }
    }

    /// A linear address into a register.
    pub fn linear_to(&mut self, r: u8, va: Linear) {
        match va.disp {
            0 => asm!(self; mov Rq(r), Rq(va.base)),
            disp => self.lea(r, va.base, disp),
        }
    }

    /// Compares the tag of an address's TLB entry with it; the entry is at rcx then. Gives the end of the jump for when they
    /// differ, or the address is more than `most` bytes into its page.
    pub fn compare_tag(&mut self, va: Linear, ctx: usize, write: bool, most: i32) -> usize {
        const { assert!(size_of::<tlb::Entry>() == 32) };
        let index = ((tlb::ENTRIES - 1) << 5) as i32;
        // The bits that a rotation brings in at the top are not of the index.
        const { assert!((tlb::ENTRIES - 1) << 5 < 1 << 25) };
        // Where the index need not wait for the copy it does not.
        self.linear_to(RDX, va);
        let from = if va.disp == 0 { va.base } else { RDX };
        if Tier1::has_rorx() {
            asm!(self; rorx ecx, Rd(from), BYTE 7);
        } else {
            asm!(self; mov ecx, Rd(from); shr ecx, BYTE 7);
        }
        asm!(self; and ecx, DWORD index);
        self.compare_tag_there(ctx, write, most);
        self.jcc(cc::AE)
    }

    /// Whether the block asks for the dispatcher as it goes: checks of accesses that are always made fail while that is wanted.
    pub fn asks(&self) -> bool {
        let always = self.block.insts.iter().enumerate().take_while(|(_, i)| i.op != Op::Side);
        let mut accesses = always.filter(|(_, i)| matches!(i.op, Op::Load | Op::Store) && usize::from(i.aux & 3) == self.env.ctx);
        !self.env.counted
            && accesses.any(|(k, i)| match self.r.groups.get(k as u32) {
                Some((_, g, _)) => g.first == k as u32 && tlb::Table::limit(g.most()).is_some(),
                None => tlb::Table::limit(4096 - i.ty.bytes() as i32).is_some(),
            })
    }

    /// The same of the entry at rcx and the address in rdx; leaves the host's flags.
    fn compare_tag_there(&mut self, ctx: usize, write: bool, most: i32) {
        let field = if write { offset_of!(tlb::Entry, write) } else { offset_of!(tlb::Entry, read) };
        match (ctx == self.env.ctx, field) {
            (true, 0) => asm!(self; sub rdx, [r14 + rcx]),
            (true, f) => asm!(self; sub rdx, [BYTE r14 + rcx + f as i8]),
            (false, f) => {
                let tag = self.entry_field(ctx, f);
                asm!(self; sub rdx, [r15 + rcx + tag]);
            }
        }
        match tlb::Table::limit(most).filter(|_| ctx == self.env.ctx) {
            Some(limit) => asm!(self; cmp rdx, [BYTE r14 + limit]),
            None => asm!(self; cmp rdx, DWORD most + 1),
        }
    }

    /// An address's own entry, at rcx, has another page: looks at the one beside, and goes back with that if it fits.
    pub fn look_beside(&mut self, back: usize, va: Linear, a: AccessInfo, most: i32) {
        const BESIDE: i8 = (size_of::<tlb::Entry>() * tlb::beside(0)) as i8;
        asm!(self; xor ecx, BYTE BESIDE);
        self.linear_to(RDX, va);
        self.compare_tag_there(a.ctx.min(CTX_COUNT - 1), a.write, most);
        let found = self.jcc(cc::B);
        self.point(found, back);
        asm!(self; xor ecx, BYTE BESIDE);
    }

    fn entry_field(&self, ctx: usize, field: usize) -> i32 {
        self.eng(offset_of!(Engine, tlb) + tlb::Tables::entries_of(ctx) + field) - BASE
    }

    /// Loads the addend of the entry at rcx into it.
    pub fn load_addend(&mut self, ctx: usize) {
        const ADDEND: usize = offset_of!(tlb::Entry, addend);
        if ctx == self.env.ctx {
            asm!(self; mov rcx, [BYTE r14 + rcx + ADDEND as i8]);
        } else {
            let addend = self.entry_field(ctx, ADDEND);
            asm!(self; mov rcx, [r15 + rcx + addend]);
        }
    }

    /// Checks an access against the TLB; gives its linear address, to which rcx is then the addend.
    pub fn check(&mut self, i: &Inst, write: bool) -> Linear {
        let va = self.linear(i, i.imm);
        let ctx = usize::from(i.aux & 3).min(CTX_COUNT - 1);
        let jump = self.compare_tag(va, ctx, write, 4096 - i.ty.bytes() as i32);
        let (back, mut info) = (self.here(), self.info(i, write));
        self.load_addend(ctx);
        let late = self.note_late();
        let across = match i.op {
            Op::Load => Some(Held::Nothing),
            Op::Store if i.b != Val::NONE => Some(self.held(i)),
            _ => None,
        };
        info |= if across.is_some() { AccessInfo::ACROSS } else { 0 };
        let across = across.map(|held| (held, self.here()));
        self.cold.push(Cold::Miss { jump, back, va, info, across, late });
        va
    }

    /// Where the value of a store is, which has been seen to.
    fn held(&mut self, i: &Inst) -> Held {
        match (i.ty, self.block.as_const(i.b).and_then(|c| imm32(i.ty, c))) {
            (Ty::V128, _) => Held::Xmm(self.xmm(i.b)),
            (_, Some(c)) => Held::Imm(c),
            _ => Held::Gpr(self.gpr(i.b)),
        }
    }

    /// Gives the value of a store to `access`.
    pub fn hand_over(&mut self, held: Held) {
        let value = self.eng(offset_of!(Engine, vec_a));
        match held {
            Held::Nothing => {}
            Held::Xmm(r) => st!(self, value; [movdqu] [, Rx(r)]),
            Held::Gpr(r) => st!(self, value; [mov] [, Rq(r)]),
            Held::Imm(c) => st!(self, value; [mov QWORD] [, DWORD c]),
        }
    }

    pub fn load(&mut self, i: &Inst) {
        let place = self.place(i, false);
        if i.ty == Ty::V128 {
            let d = self.dest_xmm();
            return at!(self, place; [movdqu Rx(d),] []);
        }
        let d = self.dest();
        match (i.ty, self.load_extends(self.at as usize)) {
            (Ty::I8, None) => at!(self, place; [movzx Rd(d), BYTE] []),
            (Ty::I16, None) => at!(self, place; [movzx Rd(d), WORD] []),
            (Ty::I32, None) => at!(self, place; [mov Rd(d),] []),
            (Ty::I8, Some(Ty::I64)) => at!(self, place; [movsx Rq(d), BYTE] []),
            (Ty::I16, Some(Ty::I64)) => at!(self, place; [movsx Rq(d), WORD] []),
            (Ty::I32, Some(_)) => at!(self, place; [movsxd Rq(d), DWORD] []),
            (Ty::I8, Some(_)) => at!(self, place; [movsx Rd(d), BYTE] []),
            (Ty::I16, Some(_)) => at!(self, place; [movsx Rd(d), WORD] []),
            _ => at!(self, place; [mov Rq(d),] []),
        }
    }

    /// The type to which the load at `at` extends by its sign, for the next op.
    fn load_extends(&self, at: usize) -> Option<Ty> {
        let next = at + 1;
        self.is_extended(at).then(|| self.block.insts[next].ty).filter(|_| !self.r.late.is_sunk(next as u32))
    }

    /// Whether the op at `at` is a load that the next op alone uses, to extend it by its sign.
    pub fn is_extended(&self, at: usize) -> bool {
        let (insts, last) = (&self.block.insts, self.r.last[at] as usize);
        let next = insts.get(at + 1).is_some_and(|n| n.op == Op::SExt && n.a.index() == at);
        next && insts[at].op == Op::Load && last == at + 1
    }

    pub fn store(&mut self, i: &Inst) {
        if i.ty == Ty::V128 {
            let v = self.xmm(i.b);
            let place = self.place(i, true);
            return at!(self, place; [movdqu] [, Rx(v)]);
        }
        if let Some(c) = self.block.as_const(i.b).and_then(|c| imm32(i.ty, c)) {
            let place = self.place(i, true);
            return match i.ty {
                Ty::I8 => at!(self, place; [mov BYTE] [, BYTE c as i8]),
                Ty::I16 => at!(self, place; [mov WORD] [, WORD c as i16]),
                Ty::I32 => at!(self, place; [mov DWORD] [, DWORD c]),
                _ => at!(self, place; [mov QWORD] [, DWORD c]),
            };
        }
        let v = self.gpr(i.b);
        let place = self.place(i, true);
        match i.ty {
            Ty::I8 => at!(self, place; [mov] [, Rb(v)]),
            Ty::I16 => at!(self, place; [mov] [, Rw(v)]),
            Ty::I32 => at!(self, place; [mov] [, Rd(v)]),
            _ => at!(self, place; [mov] [, Rq(v)]),
        }
    }

    // --- calls

    /// Calls `Engine::fns[index]` with the seam and what is in the other argument registers. Nothing lives in a register
    /// that calls do not preserve.
    fn call_runtime(&mut self, index: usize) {
        let f = self.eng(offset_of!(Engine, fns) + 8 * index);
        // The stack is 8 off its alignment within emitted code.
        asm!(self; lea rdi, [BYTE r15 + -(BASE as i8)]; sub rsp, BYTE 8);
        st!(self, f; [call QWORD] []);
        asm!(self; add rsp, BYTE 8);
    }

    /// As `call_runtime`; the pins, which have been written back, are taken in again.
    pub fn call_with_pins(&mut self, index: usize, writes_state: bool) {
        self.call_runtime(index);
        self.load_pins(writes_state);
    }

    /// Leaves if the last call failed.
    fn check_status(&mut self) {
        let status = self.eng(offset_of!(Engine, status));
        self.cmp_state(false, status, 0);
        let jump = self.jcc(cc::NE);
        self.cold.push(Cold::Failed { jump });
    }

    /// Address of an access into an argument register, values having been spilled.
    fn address_to(&mut self, r: u8, i: &Inst) {
        self.copy_to(r, i.a);
        match i32::try_from(i.imm) {
            Ok(0) => {}
            Ok(imm) => self.lea(r, r, imm),
            Err(_) => asm!(self; mov rax, QWORD i.imm; add Rq(r), rax),
        }
    }

    /// A probe of what an access would touch is the check of that access.
    pub fn probe(&mut self, i: &Inst) {
        let ctx = i.aux & 3;
        let part = |ty: Ty, at: i64| Inst { op: Op::Store, ty, aux: ctx, imm: i.imm.wrapping_add(at), ..*i };
        if calls(i) {
            self.probe_by_call(i);
        } else if self.group().is_some() {
            self.place(i, true);
        } else if let Some(ty) = Ty::ALL.iter().find(|t| t.bytes() == u32::from(i.aux >> 2)) {
            self.check(&part(*ty, 0), true);
        } else {
            // Both halves have entries then: they lie in one page or in neighbours, which are in different entries.
            self.check(&part(Ty::V128, 0), true);
            self.check(&part(Ty::V128, 16), true);
        }
    }

    fn probe_by_call(&mut self, i: &Inst) {
        let (len, info) = (u64::from(i.aux >> 2), u64::from(self.info(i, true)));
        self.spill_for_call();
        self.write_back();
        self.address_to(RSI, i);
        self.mov_imm(RDX, len);
        self.mov_imm(RCX, info);
        self.call_with_pins(func::PROBE, false);
        self.check_status();
    }

    pub fn atomic(&mut self, i: &Inst) {
        let info = self.atomic_info(i);
        self.spill_for_call();
        self.write_back();
        self.address_to(RSI, i);
        self.mov_imm(RDX, info.into());
        self.copy_to(RCX, i.b);
        self.copy_to(R8, if i.c == Val::NONE { i.b } else { i.c });
        self.call_with_pins(func::ATOMIC, false);
        self.check_status();
        self.result_of_call();
    }

    pub fn result_of_call(&mut self) {
        if self.r.last[self.at as usize] > self.at {
            let d = self.dest();
            asm!(self; mov Rq(d), rax);
        }
    }

    pub fn call(&mut self, i: &Inst) {
        if self.x87(i) {
            return;
        }
        let effects = self.env.helpers[usize::from(i.aux)].effects;
        let leaves = effects.has(Effects::MAY_LEAVE);
        if effects.has(Effects::WRITES_STATE) {
            self.save_aliased(None);
        }
        self.spill_for_call();
        self.write_back();
        if leaves || effects.has(Effects::READS_STATE) {
            self.set_pc_in_page(self.insn as i32);
        }
        let pure = effects == Effects::NONE;
        self.fp_ready &= pure;
        if !pure {
            self.x87_collected();
        }
        let flag = if pure { PURE } else { 0 };
        self.mov_imm(RSI, u64::from(i.aux) | u64::from(self.rest) << 16 | u64::from(self.insn) << 32 | flag);
        for (r, v) in [(RDX, i.a), (RCX, i.b), (R8, i.c)] {
            if v != Val::NONE {
                self.copy_to(r, v);
            }
        }
        self.call_with_pins(func::HELPER, effects.has(Effects::WRITES_STATE));
        if leaves {
            self.check_status();
        }
        self.result_of_call();
    }
}
