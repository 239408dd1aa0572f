//! Stores of state that only those who leave see: a slot is set again further down in the block, and between the two lie but ops that
//! may leave. The first store is then left to the cold code of those ops. (Flags that nobody asks for before the next instruction
//! makes others, the stack pointer between pushes.)

use super::emit::Emit;
use super::memory::calls;
use super::regs::{Loc, imm32};
use super::{asm, st};
use ir::{Effects, Inst, Op, Ty, Val};
use std::ops::Range;

/// A store that is not done yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    off: i32,
    ty: Ty,
    v: Val,
    /// Index of the op that sets the slot again, and of the last that may leave before it, 0 if none does.
    until: u32,
    leave: u32,
}

/// What is pending, and which ops' stores may be.
#[derive(Clone, Default)]
pub struct Late {
    pending: Vec<Pending>,
    /// By op: the one that sets the same slot again, 0 if it must be done at once.
    until: Vec<u32>,
    /// Indexes of ops that may leave.
    leaves: Vec<u32>,
    /// As `Regs::last`, but for late stores.
    last: Vec<u32>,
    /// By slot: the next op that sets all of it, 0 if something may look at it before.
    next: Vec<u32>,
}

/// Registers that must be free for a value to be kept for cold code alone.
const SPARE: u32 = 3;

impl Late {
    /// The last op that may leave between the set at `k` and the next of its slot; 0: there is none.
    fn last_leave(&self, k: u32) -> u32 {
        let before = self.leaves.partition_point(|l| *l < self.until[k as usize]);
        before.checked_sub(1).map(|n| self.leaves[n]).filter(|l| *l > k).unwrap_or(0)
    }

    /// Whether cold code alone uses a value from the op at `at` on.
    pub fn alone(&self, v: Val, at: u32) -> bool {
        self.last.get(v.index()).is_some_and(|last| *last <= at)
    }
}

/// A store for cold code: offset, type, and where the value is.
#[derive(Clone, Copy, Debug)]
pub(super) struct LateStore {
    off: i32,
    ty: Ty,
    from: Loc,
}

/// What an op is to the stores before it.
enum Kind {
    /// Nothing.
    Quiet,
    /// It may leave.
    Leaves,
    /// It may look at any of the state.
    Looks,
}

impl Emit<'_> {
    fn kind(&self, i: &Inst) -> Kind {
        match i.op {
            Op::Load | Op::Store | Op::RaiseIf | Op::LeaveIf => Kind::Leaves,
            Op::ProbeW if !calls(i) => Kind::Leaves,
            Op::ProbeW | Op::AtomicRmw | Op::AtomicCas | Op::VFp | Op::FpGet | Op::FpSet | Op::VTri => Kind::Looks,
            Op::Call if self.env.helpers[usize::from(i.aux)].effects == Effects::NONE => Kind::Quiet,
            Op::Call => Kind::Looks,
            _ if i.op.is_terminator() => Kind::Looks,
            _ => Kind::Quiet,
        }
    }

    /// Whether a set is of a whole slot that lies in memory, and which the engine itself does not use.
    fn may_be_late(&self, i: &Inst) -> bool {
        let (l, slot) = (self.env.layout, self.env.layout.slot(i.slot()));
        matches!(i.ty, Ty::I32 | Ty::I64)
            && slot.size == i.ty.bytes()
            && ![l.pc, l.pc_page, l.fp_flags].contains(&i.slot())
            && !l.x87.is_some_and(|x| (x.start..x.end).contains(&slot.offset))
            && !self.is_pinned(slot.offset as i32)
    }

    /// Finds the stores that may be late, and has their values live until the last op that may do them.
    pub(super) fn find_late(&mut self) {
        let mut late = std::mem::take(&mut self.r.late);
        let block = self.block;
        let insts = &block.insts;
        late.pending.clear();
        late.leaves.clear();
        late.until.clear();
        late.until.resize(insts.len(), 0);
        late.next.clear();
        late.next.resize(self.env.layout.slots.len(), 0);
        for (k, i) in insts.iter().enumerate().rev() {
            match self.kind(i) {
                Kind::Leaves => late.leaves.push(k as u32),
                Kind::Looks => late.next.fill(0),
                Kind::Quiet => {}
            }
            let next = match i.op {
                Op::Get | Op::Set => &mut late.next[usize::from(i.aux)],
                _ => continue,
            };
            let again = std::mem::take(next);
            if i.op == Op::Set && self.may_be_late(i) {
                *next = k as u32;
                late.until[k] = again;
            }
        }
        late.leaves.reverse();
        late.last.clone_from(&self.r.last);
        for (k, i) in insts.iter().enumerate().filter(|(k, _)| late.until[*k] != 0) {
            let last = &mut self.r.last[i.a.index()];
            *last = (*last).max(late.last_leave(k as u32));
        }
        self.r.late = late;
    }

    /// The current op sets a slot: what was pending for it need not be done. Whether its own store may be late.
    pub(super) fn put_off(&mut self, i: &Inst, off: i32) -> bool {
        while let Some(n) = self.r.late.pending.iter().position(|p| p.until == self.at) {
            let p = self.r.late.pending.swap_remove(n);
            if p.v != i.a {
                self.r.release(p.v, self.at);
            }
        }
        let until = self.r.late.until.get(self.at as usize).copied().unwrap_or(0);
        if until == 0 {
            return false;
        }
        let leave = self.r.late.last_leave(self.at);
        if leave != 0 && matches!(self.loc(i.a), Loc::Gpr(_)) && self.r.late.alone(i.a, self.at) && self.spare() < SPARE {
            self.forget_late(i.a);
            return false;
        }
        self.r.late.pending.push(Pending { off, ty: i.ty, v: i.a, until, leave });
        true
    }

    /// A value need not live for the current op's store, which is done at once.
    fn forget_late(&mut self, v: Val) {
        let others = self.r.late.pending.iter().filter(|p| p.v == v).map(|p| p.leave);
        self.r.last[v.index()] = others.max().unwrap_or(0).max(self.r.late.last[v.index()]);
    }

    /// The stores that are pending, for the cold code of the current op.
    pub(super) fn late_stores(&mut self) -> Range<usize> {
        let start = self.late_stores.len();
        for n in 0..self.r.late.pending.len() {
            let p = self.r.late.pending[n];
            self.late_stores.push(LateStore { off: p.off, ty: p.ty, from: self.loc(p.v) });
        }
        start..self.late_stores.len()
    }

    /// Does them; uses rax.
    pub(super) fn do_late(&mut self, stores: Range<usize>) {
        for n in stores {
            let LateStore { off, ty, from } = self.late_stores[n];
            match from {
                Loc::Gpr(r) => self.store_state(ty, off, r),
                Loc::Const(c) => match imm32(ty, c) {
                    Some(c) => self.store_imm(ty, off, c),
                    None => {
                        asm!(self; mov rax, QWORD c as i64);
                        self.store_state(ty, off, 0);
                    }
                },
                Loc::State(from) => {
                    self.load_state(0, ty, from);
                    self.store_state(ty, off, 0);
                }
                Loc::Spill(from) => {
                    st!(self, from; [mov rax,] []);
                    self.store_state(ty, off, 0);
                }
                Loc::None | Loc::Xmm(_) => debug_assert!(false, "a value that is to be stored lives in general registers"),
            }
        }
    }
}
