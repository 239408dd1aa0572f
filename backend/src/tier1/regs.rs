//! Where the values of a block are while tier 1 emits it: still in a state slot, in a host register, or in a spill slot
//! (tier 0's temporaries). Each value is made once, so a linear walk with the last uses known suffices.

use super::deposit::Deposit;
use super::emit::Emit;
use super::late::Late;
use super::pins::{Pin, Pins};
use super::share::Groups;
use super::target::TargetCheck;
use crate::tier1::{asm, st};
use ir::{Inst, Op, Ty, Val};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loc {
    /// Not computed, or dead.
    None,
    Const(u64),
    /// A state slot, byte offset from the seam, that has not changed since the value was read.
    State(i32),
    Gpr(u8),
    Xmm(u8),
    /// A spill slot, byte offset from the seam.
    Spill(i32),
}

/// An operand that an instruction takes as it is.
#[derive(Clone, Copy, Debug)]
pub enum Src {
    Gpr(u8),
    /// Memory at an offset from the seam.
    Mem(i32),
    Imm(i32),
}

/// Scratch registers, free between ops: rax, rcx, rdx, xmm0, xmm1. r15 leads to the state, r14 to the TLB of ordinary accesses,
/// rsp the stack.
pub const RAX: u8 = 0;
pub const RCX: u8 = 1;
pub const RDX: u8 = 2;
/// Holds values, and program counters on their way to another block.
pub const RDI: u8 = 7;
/// Registers for values; those that calls preserve come last.
pub const POOL: [u8; 10] = [6, 7, 8, 9, 10, 11, 3, 5, 12, 13];
const SAVED_FIRST: [u8; 10] = [3, 5, 12, 13, 6, 7, 8, 9, 10, 11];
const CALLER_SAVED: u16 = 0b1111_1100_0000;
const XMM_POOL: std::ops::Range<u8> = 2..16;

#[derive(Clone, Default)]
pub struct Regs {
    pub loc: Vec<Loc>,
    /// Index of the op that uses the value last, 0 if none does.
    pub last: Vec<u32>,
    /// Indexes of ops that call the runtime.
    pub calls: Vec<u32>,
    gpr: [Option<Val>; 16],
    /// A second value in the same register, of which the first is the low part or the extension.
    twin: [Option<Val>; 16],
    xmm: [Option<Val>; 16],
    /// Values that are in state slots: value, offset, size.
    aliased: Vec<(Val, i32, i32)>,
    free_spills: Vec<i32>,
    spills: i32,
    /// Slots that live in registers, and values that are to be computed there.
    pub pins: Pins,
    pub direct: Vec<Option<Pin>>,
    pub groups: Groups,
    pub late: Late,
    pub deposits: Vec<Deposit>,
    pub target: Option<TargetCheck>,
    /// Registers that the current op needs as they are.
    locked: u16,
    locked_x: u16,
}

impl Regs {
    pub fn reset(&mut self, n: usize) {
        self.loc.clear();
        self.loc.resize(n, Loc::None);
        self.last.clear();
        self.last.resize(n, 0);
        self.calls.clear();
        self.aliased.clear();
        self.free_spills.clear();
        (self.gpr, self.twin, self.xmm) = ([None; 16], [None; 16], [None; 16]);
        (self.spills, self.locked, self.locked_x) = (0, 0, 0);
    }

    pub fn unlock(&mut self) {
        (self.locked, self.locked_x) = (0, 0);
    }

    /// Gives back where a value is, if the op at `at` was the last to use it.
    #[inline]
    pub(super) fn release(&mut self, v: Val, at: u32) {
        if self.last[v.index()] > at {
            return;
        }
        match std::mem::replace(&mut self.loc[v.index()], Loc::None) {
            Loc::Gpr(r) => self.leave(usize::from(r), v),
            Loc::Xmm(r) => self.xmm[usize::from(r)] = None,
            Loc::Spill(off) => self.free_spills.push(off),
            _ => {}
        }
    }

    /// A value is no longer in a register.
    fn leave(&mut self, r: usize, v: Val) {
        let twin = self.twin[r].take();
        if self.gpr[r] == Some(v) {
            self.gpr[r] = twin;
        }
    }

    pub fn alias(&mut self, v: Val, off: i32, ty: Ty) {
        self.loc[v.index()] = Loc::State(off);
        self.aliased.push((v, off, ty.bytes() as i32));
    }
}

impl Emit<'_> {
    pub fn loc(&self, v: Val) -> Loc {
        self.r.loc[v.index()]
    }

    /// Whether the current op is the last to use a value.
    pub fn dies(&self, v: Val) -> bool {
        self.r.last[v.index()] <= self.at
    }

    /// Whether the current op may put its result where a value is: in a register that nothing else needs.
    pub fn in_place(&self, v: Val) -> bool {
        matches!(self.loc(v), Loc::Gpr(r) if self.r.twin[usize::from(r)].is_none()) && self.dies(v)
    }

    fn crosses_call(&self, v: Val) -> bool {
        let next = self.r.calls.partition_point(|c| *c <= self.at);
        self.r.calls.get(next).is_some_and(|c| *c < self.r.last[v.index()])
    }

    // --- taking registers

    /// A register for value `v`, whose location it becomes.
    pub fn take(&mut self, v: Val) -> u8 {
        let order = if self.crosses_call(v) { &SAVED_FIRST } else { &POOL };
        let usable = self.r.pins.gprs & !self.r.locked;
        let free = order.iter().copied().find(|r| usable >> r & 1 != 0 && self.r.gpr[usize::from(*r)].is_none());
        let r = free.unwrap_or_else(|| self.evict());
        self.r.gpr[usize::from(r)] = Some(v);
        self.r.loc[v.index()] = Loc::Gpr(r);
        self.r.locked |= 1 << r;
        r
    }

    /// Registers that are free.
    pub fn spare(&self) -> u32 {
        POOL.iter().filter(|r| self.r.pins.gprs >> **r & 1 != 0 && self.r.gpr[usize::from(**r)].is_none()).count() as u32
    }

    /// Frees the register whose value cold code alone uses, or else which is used last.
    fn evict(&mut self) -> u8 {
        let last = |e: &Self, r: u8| {
            let r = usize::from(r);
            let values = || e.r.gpr[r].into_iter().chain(e.r.twin[r]);
            (values().all(|v| e.r.late.alone(v, e.at)), values().map(|v| e.r.last[v.index()]).max())
        };
        let usable = self.r.pins.gprs & !self.r.locked;
        let unlocked = POOL.iter().copied().filter(|r| usable >> r & 1 != 0);
        let r = unlocked.max_by_key(|r| last(self, *r)).expect("an op needs fewer registers than there are");
        self.spill(r);
        r
    }

    fn spill_slot(&mut self) -> i32 {
        self.r.free_spills.pop().unwrap_or_else(|| {
            self.r.spills += 1;
            self.env.shape.temps + 16 * (self.r.spills - 1)
        })
    }

    fn spill(&mut self, r: u8) {
        let (v, twin) = (self.r.gpr[usize::from(r)].take(), self.r.twin[usize::from(r)].take());
        v.into_iter().chain(twin).for_each(|v| self.spill_value(r, v));
    }

    fn spill_value(&mut self, r: u8, v: Val) {
        let constant = self.block.insts.get(v.index()).filter(|i| i.op == Op::Const);
        self.r.loc[v.index()] = if let Some(i) = constant {
            Loc::Const(i.imm as u64 & i.ty.mask())
        } else {
            let off = self.spill_slot();
            st!(self, off; [mov] [, Rq(r)]);
            Loc::Spill(off)
        };
    }

    pub fn take_xmm(&mut self, v: Val) -> u8 {
        let usable = self.r.pins.xmms & !self.r.locked_x;
        let free = XMM_POOL.clone().find(|r| usable >> r & 1 != 0 && self.r.xmm[usize::from(*r)].is_none());
        let r = free.unwrap_or_else(|| {
            let last = |e: &Self, r: u8| e.r.xmm[usize::from(r)].map_or(0, |v| e.r.last[v.index()]);
            let unlocked = XMM_POOL.clone().filter(|r| usable >> r & 1 != 0);
            let r = unlocked.max_by_key(|r| last(self, *r)).expect("an op needs fewer registers than there are");
            self.spill_xmm(r);
            r
        });
        self.r.xmm[usize::from(r)] = Some(v);
        self.r.loc[v.index()] = Loc::Xmm(r);
        self.r.locked_x |= 1 << r;
        r
    }

    fn spill_xmm(&mut self, r: u8) {
        let Some(v) = self.r.xmm[usize::from(r)].take() else { return };
        let off = self.spill_slot();
        st!(self, off; [movdqu] [, Rx(r)]);
        self.r.loc[v.index()] = Loc::Spill(off);
    }

    /// Before a call: what it does not preserve goes to spill slots.
    pub fn spill_for_call(&mut self) {
        for r in 0..16 {
            if CALLER_SAVED >> r & 1 != 0 {
                self.spill(r);
            }
        }
        XMM_POOL.for_each(|r| self.spill_xmm(r));
    }

    // --- values in registers

    pub fn mov_imm(&mut self, r: u8, c: u64) {
        if c <= u64::from(u32::MAX) {
            asm!(self; mov Rd(r), DWORD c as i32);
        } else if c as i64 == i64::from(c as i32) {
            asm!(self; mov Rq(r), DWORD c as i32);
        } else {
            asm!(self; mov Rq(r), QWORD c as i64);
        }
    }

    /// Loads `ty` from an offset from the seam, zero-extended.
    pub fn load_state(&mut self, r: u8, ty: Ty, off: i32) {
        if let Some(pin) = self.r.pins.find(off) {
            return self.load_pin(r, ty, pin);
        }
        match ty {
            Ty::I8 => st!(self, off; [movzx Rd(r), BYTE] []),
            Ty::I16 => st!(self, off; [movzx Rd(r), WORD] []),
            Ty::I32 => st!(self, off; [mov Rd(r),] []),
            _ => st!(self, off; [mov Rq(r),] []),
        }
    }

    /// Copies a value into a register; bits beyond its type are undefined.
    pub fn copy_to(&mut self, r: u8, v: Val) {
        // Host addresses of groups are no ops' results.
        let ty = self.block.insts.get(v.index()).and_then(Inst::result).unwrap_or(Ty::I64);
        self.load_loc(r, ty, self.loc(v));
    }

    /// Copies a value of type `ty` from where it is.
    pub fn load_loc(&mut self, r: u8, ty: Ty, from: Loc) {
        match from {
            Loc::Const(c) => self.mov_imm(r, c),
            Loc::State(off) => self.load_state(r, ty, off),
            Loc::Spill(off) => st!(self, off; [mov Rq(r),] []),
            Loc::Gpr(s) if s != r => asm!(self; mov Rq(r), Rq(s)),
            _ => {}
        }
    }

    /// The register that a value is in, its own or that of its slot.
    pub fn register_of(&self, v: Val) -> Option<u8> {
        match self.loc(v) {
            Loc::Gpr(r) => Some(r),
            _ => self.pinned(v),
        }
    }

    /// The register that holds a value; loads it if need be.
    pub fn gpr(&mut self, v: Val) -> u8 {
        match self.register_of(v) {
            Some(r) => {
                self.r.locked |= 1 << r;
                r
            }
            None => self.own_gpr(v),
        }
    }

    /// Moves a value to a register of its own.
    fn own_gpr(&mut self, v: Val) -> u8 {
        let from = self.loc(v);
        let r = self.take(v);
        self.r.loc[v.index()] = from;
        self.copy_to(r, v);
        if let Loc::Spill(off) = from {
            self.r.free_spills.push(off);
        }
        self.r.loc[v.index()] = Loc::Gpr(r);
        r
    }

    pub fn xmm(&mut self, v: Val) -> u8 {
        if let Loc::Xmm(r) = self.loc(v) {
            self.r.locked_x |= 1 << r;
            return r;
        }
        match self.pinned_xmm(v) {
            Some(r) => r,
            None => self.own_xmm(v),
        }
    }

    fn own_xmm(&mut self, v: Val) -> u8 {
        let from = self.loc(v);
        let r = self.take_xmm(v);
        self.load_xmm(r, from);
        if let Loc::Spill(off) = from {
            self.r.free_spills.push(off);
        }
        r
    }

    pub fn load_xmm(&mut self, r: u8, from: Loc) {
        match from {
            Loc::State(off) if self.is_pinned(off) => {
                let (p, _) = self.r.pins.find(off).expect("it is pinned");
                if p.reg != r {
                    asm!(self; movdqa Rx(r), Rx(p.reg));
                }
            }
            Loc::State(off) | Loc::Spill(off) => st!(self, off; [movdqu Rx(r),] []),
            Loc::Xmm(s) => asm!(self; movdqa Rx(r), Rx(s)),
            Loc::Const(0) => asm!(self; pxor Rx(r), Rx(r)),
            Loc::Const(c) => {
                self.mov_imm(RAX, c);
                asm!(self; movq Rx(r), rax);
            }
            _ => {}
        }
    }

    /// A value as operand of an instruction on `ty` (I32, I64; narrower ones are never memory).
    pub fn src(&mut self, v: Val, ty: Ty) -> Src {
        match self.loc(v) {
            Loc::Const(c) => match imm32(ty, c) {
                Some(i) => Src::Imm(i),
                None => Src::Gpr(self.gpr(v)),
            },
            Loc::State(off) if self.is_pinned(off) => Src::Gpr(self.gpr(v)),
            Loc::State(off) | Loc::Spill(off) if self.dies(v) && matches!(ty, Ty::I32 | Ty::I64) => Src::Mem(off),
            _ => Src::Gpr(self.gpr(v)),
        }
    }

    /// A register that holds `a` and may be changed: it becomes that of the current op's result.
    pub fn dest_from(&mut self, a: Val) -> u8 {
        if let Some(r) = self.direct(Some(a)) {
            return r;
        }
        let d = Val(self.at);
        match self.loc(a) {
            Loc::Gpr(r) if self.in_place(a) => {
                self.r.gpr[usize::from(r)] = Some(d);
                self.r.loc[d.index()] = Loc::Gpr(r);
                self.r.loc[a.index()] = Loc::None;
                self.r.locked |= 1 << r;
                r
            }
            _ => {
                let r = self.take(d);
                self.copy_to(r, a);
                r
            }
        }
    }

    /// The current op's result is what is in the register of `a` already, which may be needed as it is. False: they cannot share it.
    pub fn share(&mut self, a: Val) -> bool {
        let d = Val(self.at);
        match self.loc(a) {
            Loc::Gpr(r) if self.r.twin[usize::from(r)].is_none() && !self.goes_direct() => {
                self.r.twin[usize::from(r)] = Some(d);
                self.r.loc[d.index()] = Loc::Gpr(r);
                self.r.locked |= 1 << r;
                true
            }
            _ => false,
        }
    }

    /// As `dest_from` for vectors.
    pub fn dest_from_xmm(&mut self, a: Val) -> u8 {
        if let Some(r) = self.direct(Some(a)) {
            return r;
        }
        let d = Val(self.at);
        match self.loc(a) {
            Loc::Xmm(r) if self.dies(a) => {
                self.r.xmm[usize::from(r)] = Some(d);
                self.r.loc[d.index()] = Loc::Xmm(r);
                self.r.loc[a.index()] = Loc::None;
                self.r.locked_x |= 1 << r;
                r
            }
            _ => {
                let r = self.take_xmm(d);
                let from = self.loc(a);
                self.load_xmm(r, from);
                r
            }
        }
    }

    /// A register for the current op's result.
    pub fn dest(&mut self) -> u8 {
        self.direct(None).unwrap_or_else(|| self.take(Val(self.at)))
    }

    pub fn dest_xmm(&mut self) -> u8 {
        self.direct(None).unwrap_or_else(|| self.take_xmm(Val(self.at)))
    }

    // --- state slots and lifetimes

    /// Before state bytes change: values that live there and are used after the current op move to registers.
    /// `None`: all of the state.
    pub fn save_aliased(&mut self, range: Option<(i32, i32)>) {
        let mut i = 0;
        while let Some(&(v, off, size)) = self.r.aliased.get(i) {
            if self.loc(v) != Loc::State(off) {
                self.r.aliased.swap_remove(i);
                continue;
            }
            if range.is_some_and(|(at, len)| off >= at + len || at >= off + size) {
                i += 1;
                continue;
            }
            self.r.aliased.swap_remove(i);
            if self.r.last[v.index()] > self.at {
                let locked = (self.r.locked, self.r.locked_x);
                if self.block.ty(v) == Ty::V128 {
                    self.own_xmm(v);
                } else {
                    self.own_gpr(v);
                }
                (self.r.locked, self.r.locked_x) = locked;
            }
        }
    }

    /// After an op: gives back what its operands held for the last time, and a result that nobody uses.
    pub fn release(&mut self) {
        let at = self.at as usize;
        let i = &self.block.insts[at];
        // An op done here by that which it is for: its operands die here too.
        let fused = at.checked_sub(1).filter(|p| self.fuses(*p));
        i.each_operand(|v| self.r.release(v, self.at));
        if let Some(p) = fused {
            self.block.insts[p].each_operand(|v| self.r.release(v, self.at));
        }
        if i.result().is_some() {
            self.r.release(Val(self.at), self.at);
        }
        if let Some((g, ..)) = self.r.groups.get(self.at) {
            let host = self.host_of(g);
            self.r.release(host, self.at);
        }
        self.r.unlock();
    }
}

/// The constant as 32 bits that sign-extend to it in `ty`.
pub fn imm32(ty: Ty, c: u64) -> Option<i32> {
    match ty {
        Ty::I8 => Some(i32::from(c as i8)),
        Ty::I16 => Some(i32::from(c as i16)),
        Ty::I32 => Some(c as i32),
        Ty::I64 => (c as i64 == i64::from(c as i32)).then_some(c as i32),
        Ty::V128 => None,
    }
}
