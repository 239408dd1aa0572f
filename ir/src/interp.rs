//! The reference interpreter: what a block means, written to be read. Engines are tested against it.

use crate::block::{Block, Inst, Val};
use crate::eval;
use crate::layout::{HelperDesc, HelperId, SlotId, StateLayout};
use crate::ops::{Effects, Op};
use crate::types::{Rmw, Ty};
use crate::vec;

/// Guest memory as a block sees it: linear addresses, any alignment. `ctx` is the op's access context. An `Err` means
/// that nothing was read or written.
pub trait Memory {
    type Fault;
    fn load(&mut self, addr: u64, ty: Ty, ctx: u16) -> Result<u128, Self::Fault>;
    fn store(&mut self, addr: u64, ty: Ty, value: u128, ctx: u16) -> Result<(), Self::Fault>;
    /// Atomically stores `kind` of the old value and `value`; gives the old value.
    fn rmw(&mut self, addr: u64, ty: Ty, kind: Rmw, value: u64, ctx: u16) -> Result<u64, Self::Fault>;
    /// Atomically stores `new` if the old value is `expected`; gives the old value.
    fn cas(&mut self, addr: u64, ty: Ty, expected: u64, new: u64, ctx: u16) -> Result<u64, Self::Fault>;
    /// Whether a write of `len` bytes would succeed.
    fn probe(&mut self, addr: u64, len: u32, ctx: u16) -> Result<(), Self::Fault>;
}

/// How a block ended. `at` and `to` are page offsets; `StateLayout::pc_page` holds what they are relative to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<F> {
    /// Continue at page offset `to`: `Jump`, `Side`, or `Br` taken or not.
    Jump { to: i64 },
    /// Continue at a computed program counter; `hint` as in `JumpInd`.
    Indirect { pc: u64, hint: u16 },
    /// To the dispatcher; the program counter in the state is right.
    Exit,
    /// To the dispatcher, continuing at page offset `to`.
    ExitNext { to: i64 },
    /// The instruction at `at` left: a memory access or a helper failed. State is as before the instruction.
    Fault { at: i64, fault: F },
    /// The instruction at `at` raised an exception (`RaiseIf`).
    Raise { at: i64, vector: u8, error: Option<u32> },
    /// The instruction at `at` must run alone (`LeaveIf`).
    Leave { at: i64 },
    /// An op without a meaning for its operands: a division that the block does not guard.
    Undefined { inst: usize },
}

/// Runs a helper on state, memory and three operands (those not used are 0).
pub type CallHelper<'a, M> = dyn FnMut(&mut [u8], &mut M, HelperId, [u64; 3]) -> Result<u64, <M as Memory>::Fault> + 'a;

/// Executes verified blocks.
#[derive(Clone, Copy)]
pub struct Interp<'a> {
    pub layout: &'a StateLayout,
    pub helpers: &'a [HelperDesc],
    /// The blocks' mode, for `StateLayout::pc_mask`.
    pub mode: u64,
}

impl Interp<'_> {
    /// Executes `block` over the guest state (`layout.size` bytes). The caller writes the program counter of
    /// the outcome into the state.
    ///
    /// # Panics
    /// If the block does not verify or `state` is too short.
    pub fn run<M: Memory>(&self, block: &Block, state: &mut [u8], mem: &mut M, call: &mut CallHelper<M>) -> Outcome<M::Fault> {
        let mut run = Run { interp: self, block, state, values: Vec::with_capacity(block.insts.len()), at: 0 };
        for i in &block.insts {
            match run.step(i, mem, call) {
                Ok(v) => run.values.push(v),
                Err(outcome) => return outcome,
            }
        }
        unreachable!("a block ends with a terminator: the verifier checks it")
    }
}

struct Run<'a> {
    interp: &'a Interp<'a>,
    block: &'a Block,
    state: &'a mut [u8],
    /// Results so far; 0 for ops without one.
    values: Vec<u128>,
    /// Page offset of the current guest instruction.
    at: i64,
}

impl Run<'_> {
    fn wide(&self, v: Val) -> u128 {
        self.values[v.index()]
    }

    fn int(&self, v: Val) -> u64 {
        self.wide(v) as u64
    }

    /// One op: its result, or how the block ended.
    fn step<M: Memory>(&mut self, i: &Inst, mem: &mut M, call: &mut CallHelper<M>) -> Result<u128, Outcome<M::Fault>> {
        let value = match i.op {
            Op::Insn => {
                self.at = i.imm;
                0
            }
            Op::Const => u128::from(i.imm as u64 & i.ty.mask()),
            Op::PcRel => u128::from(self.page().wrapping_add(i.imm as u64)),
            Op::Source => {
                let at = self.page().wrapping_add(i.imm as u64);
                mem.load(at, i.ty, 0).map_err(|fault| Outcome::Fault { at: self.at, fault })?
            }
            Op::Get => self.get(i.ty, i.slot(), i.imm),
            Op::Set => {
                self.set(i.ty, i.slot(), i.imm, self.wide(i.a));
                0
            }
            Op::Load | Op::Store | Op::ProbeW | Op::AtomicRmw | Op::AtomicCas => {
                self.access(i, mem).map_err(|fault| Outcome::Fault { at: self.at, fault })?
            }
            Op::Call => {
                let args = [i.a, i.b, i.c].map(|v| if v == Val::NONE { 0 } else { self.int(v) });
                if i.effects(self.interp.helpers).has(Effects::MAY_LEAVE) {
                    self.set_pc();
                }
                let r = call(self.state, mem, i.helper(), args);
                r.map(u128::from).map_err(|fault| Outcome::Fault { at: self.at, fault })?
            }
            Op::Select if i.ty == Ty::V128 => self.wide(if self.int(i.a) != 0 { i.b } else { i.c }),
            Op::Vec => i.vec_op().eval(self.wide(i.a), self.wide(i.b)),
            Op::VFp | Op::FpGet | Op::FpSet => self.fp(i),
            Op::VTri => self.tri(i),
            Op::VShift => i.vec_shift().eval(self.wide(i.a), i.imm as u32),
            Op::VShuffle => vec::shuffle(self.wide(i.a), self.wide(i.b), i.shuffle_mask()),
            Op::VMask => vec::high_bits(self.wide(i.a), i.aux).into(),
            Op::VLane => self.wide(i.a) >> (64 * i.aux) & u128::from(u64::MAX),
            Op::VSetLane => {
                let sh = 64 * i.aux;
                self.wide(i.a) & !(u128::from(u64::MAX) << sh) | u128::from(self.int(i.b)) << sh
            }
            Op::RaiseIf | Op::LeaveIf | Op::Side if self.int(i.a) == 0 => 0,
            Op::RaiseIf | Op::LeaveIf | Op::Side => return Err(self.end(i)),
            Op::Jump | Op::Br | Op::JumpInd | Op::Exit | Op::ExitNext => return Err(self.end(i)),
            _ => self.integer(i)?,
        };
        Ok(value)
    }

    /// Runs a function on the floating-point flags.
    fn with_flags(&mut self, f: impl FnOnce(&mut u32) -> u128) -> u128 {
        let slot = self.interp.layout.fp_flags;
        let mut flags = self.get(Ty::I32, slot, 0) as u32;
        let r = f(&mut flags);
        self.set(Ty::I32, slot, 0, flags.into());
        r
    }

    fn tri(&mut self, i: &Inst) -> u128 {
        let (run, [a, b, c]) = (self.interp.layout.run_tri, [i.a, i.b, i.c].map(|v| self.wide(v)));
        self.with_flags(|flags| run(i.tri_op(), a, b, c, flags))
    }

    fn fp(&mut self, i: &Inst) -> u128 {
        let (run, [a, b]) = (self.interp.layout.run_fp, [i.a, i.b].map(|v| self.wide(v)));
        let r = self.with_flags(|flags| run(i.fp_op(), a, b, flags));
        if i.op == Op::FpGet { r & u128::from(u64::MAX) } else { r }
    }

    fn integer<F>(&self, i: &Inst) -> Result<u128, Outcome<F>> {
        let arg = |v: Val| if v == Val::NONE { 0 } else { self.int(v) };
        let r = eval::integer(i, self.block.ty(i.a), arg(i.a), arg(i.b), arg(i.c));
        r.map(u128::from).ok_or(Outcome::Undefined { inst: self.values.len() })
    }

    fn access<M: Memory>(&self, i: &Inst, mem: &mut M) -> Result<u128, M::Fault> {
        let addr = self.int(i.a).wrapping_add(i.imm as u64);
        let ctx = i.aux & 3;
        match i.op {
            Op::Load => mem.load(addr, i.ty, ctx),
            Op::Store => mem.store(addr, i.ty, self.wide(i.b), ctx).map(|()| 0),
            Op::AtomicRmw => mem.rmw(addr, i.ty, i.rmw(), self.int(i.b), ctx).map(u128::from),
            Op::AtomicCas => mem.cas(addr, i.ty, self.int(i.b), self.int(i.c), ctx).map(u128::from),
            _ => mem.probe(addr, (i.aux >> 2).into(), ctx).map(|()| 0),
        }
    }

    fn end<F>(&self, i: &Inst) -> Outcome<F> {
        match i.op {
            Op::RaiseIf => Outcome::Raise { at: self.at, vector: i.aux as u8, error: u32::try_from(i.imm).ok() },
            Op::LeaveIf => Outcome::Leave { at: self.at },
            Op::Jump | Op::Side => Outcome::Jump { to: i.imm },
            Op::Br if self.int(i.a) != 0 => Outcome::Jump { to: i.imm },
            Op::Br => Outcome::Jump { to: self.block.next },
            Op::JumpInd => Outcome::Indirect { pc: self.int(i.a), hint: i.aux },
            Op::ExitNext => Outcome::ExitNext { to: self.block.next },
            _ => Outcome::Exit,
        }
    }

    fn page(&self) -> u64 {
        self.get(Ty::I64, self.interp.layout.pc_page, 0) as u64
    }

    /// Brings the program counter up to date for a helper that may raise an exception.
    fn set_pc(&mut self) {
        let l = self.interp.layout;
        let pc = self.page().wrapping_add(self.at as u64) & (l.pc_mask)(self.interp.mode);
        self.set(Ty::I64, l.pc, 0, pc.into());
    }

    fn range(&self, ty: Ty, slot: SlotId, off: i64) -> std::ops::Range<usize> {
        let start = self.interp.layout.slot(slot).offset as usize + off as usize;
        start..start + ty.bytes() as usize
    }

    fn get(&self, ty: Ty, slot: SlotId, off: i64) -> u128 {
        let mut b = [0; 16];
        b[..ty.bytes() as usize].copy_from_slice(&self.state[self.range(ty, slot, off)]);
        u128::from_le_bytes(b)
    }

    fn set(&mut self, ty: Ty, slot: SlotId, off: i64, v: u128) {
        let r = self.range(ty, slot, off);
        self.state[r].copy_from_slice(&v.to_le_bytes()[..ty.bytes() as usize]);
    }
}

/// New value of an atomic read-modify-write.
pub fn rmw(ty: Ty, kind: Rmw, old: u64, v: u64) -> u64 {
    let r = match kind {
        Rmw::Add => old.wrapping_add(v),
        Rmw::And => old & v,
        Rmw::Or => old | v,
        Rmw::Xor => old ^ v,
        Rmw::Xchg => v,
    };
    r & ty.mask()
}
