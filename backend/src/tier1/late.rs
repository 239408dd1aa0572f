//! Stores of state that only those who leave see: a slot is set again further down in the block, or means nothing from there on, and between the two lie but ops that
//! may leave. The first store is then left to the cold code of those ops. (Flags that nobody asks for before the next instruction
//! makes others, the stack pointer between pushes.)

use super::emit::Emit;
use super::integer::is_clean;
use super::memory::calls;
use super::regs::{Loc, RAX, imm32};
use super::{asm, st};
use ir::{Block, Effects, Inst, Op, Ty, Val};
use std::ops::Range;

/// A store that is not done yet.
#[derive(Clone, Copy, Debug)]
struct Pending {
    off: i32,
    ty: Ty,
    /// Index of the set.
    set: u32,
    /// Index of the op that sets the slot again, and of the last that may leave before it, 0 if none does.
    until: u32,
    leave: u32,
}

/// What is pending, and which ops' stores may be.
#[derive(Clone, Default)]
pub struct Late {
    pending: Vec<Pending>,
    /// By op: the one that sets the same slot again or makes it meaningless, 0 if it must be done at once.
    until: Vec<u32>,
    /// Indexes of ops that may leave.
    leaves: Vec<u32>,
    /// As `Regs::last`, but for late stores.
    last: Vec<u32>,
    /// By op: it is not done, as only late stores use its result, for which cold code does it.
    sunk: Vec<bool>,
    /// By slot: the next op that sets all of it or makes it meaningless, 0 if something may look at it before.
    next: Vec<u32>,
    /// By value: how many ops use it, 2 standing for more.
    uses: Vec<u8>,
    /// Sets whose value is a sum: index, a value, a constant.
    sums: Vec<(u32, Val, i32)>,
}

/// Registers that must be free for a value to be kept for cold code alone.
const SPARE: u32 = 3;

impl Late {
    /// Finds ops whose results nothing but late stores uses.
    fn find_sunk(&mut self, block: &Block) {
        self.sunk.clear();
        self.sunk.resize(block.insts.len(), false);
        for (k, i) in block.insts.iter().enumerate().filter(|(k, _)| self.until[*k] != 0) {
            self.sunk[i.a.index()] = self.last[i.a.index()] == k as u32 && self.sinks(block, i.a).is_some();
        }
        for (i, _) in block.insts.iter().zip(&self.until).filter(|(_, until)| **until == 0) {
            i.each_operand(|v| self.sunk[v.index()] = false);
        }
        // With the extension of a shift, the shift.
        for (k, i) in block.insts.iter().enumerate() {
            if self.sunk[k] && self.extends_shift(block, i).is_some() {
                self.sunk[i.a.index()] = true;
            }
        }
    }

    fn count_uses(&mut self, block: &Block) {
        self.uses.clear();
        self.uses.resize(block.insts.len(), 0);
        for i in &block.insts {
            i.each_operand(|v| self.uses[v.index()] = (self.uses[v.index()] + 1).min(2));
        }
    }

    /// A shift that nothing but its extension uses.
    fn extends_shift(&self, block: &Block, i: &Inst) -> Option<(Val, Then)> {
        (i.op == Op::ZExt && self.uses[i.a.index()] == 1).then(|| shift(block, i.a))?
    }

    /// What a sunk op does, and to which value; `None`: it is not of the kinds that may be sunk.
    fn sinks(&self, block: &Block, v: Val) -> Option<(Val, Then)> {
        let i = &block.insts[v.index()];
        match i.op {
            Op::SExt => Some((i.a, Then::SignExtend(block.ty(i.a)))),
            Op::ZExt if self.extends_shift(block, i).is_some() => self.extends_shift(block, i),
            // That of a clean value is the value.
            Op::ZExt if !is_clean(block, i.a) => Some((i.a, Then::ZeroExtend(block.ty(i.a)))),
            Op::Add if i.ty == Ty::I64 => Some((i.a, Then::Add(i32::try_from(block.as_const(i.b)? as i64).ok()?))),
            Op::Shr | Op::Sar if i.ty == Ty::I64 => shift(block, v),
            _ => None,
        }
    }

    /// The last op that may leave between the set at `k` and the next of its slot; 0: there is none.
    fn last_leave(&self, k: u32) -> u32 {
        let before = self.leaves.partition_point(|l| *l < self.until[k as usize]);
        before.checked_sub(1).map(|n| self.leaves[n]).filter(|l| *l > k).unwrap_or(0)
    }

    /// Whether the op at `at` is left to cold code.
    pub fn is_sunk(&self, at: u32) -> bool {
        self.sunk.get(at as usize).is_some_and(|s| *s)
    }

    /// Whether one op alone uses a value.
    pub fn used_once(&self, v: Val) -> bool {
        self.uses[v.index()] == 1
    }

    /// The op at `at` uses a value, which others need not know.
    pub fn keep_until(&mut self, v: Val, at: u32) {
        if let Some(last) = self.last.get_mut(v.index()) {
            *last = (*last).max(at);
        }
    }

    /// What a slot held before a constant was added to it is the sum less the constant: the sum and that constant, if what was there
    /// is not used behind the sum but by the late set at `k`, and the sum is computed.
    fn less(&self, block: &Block, k: u32) -> Option<(Val, i32)> {
        const NEAR: usize = 12;
        let v = block.insts[k as usize].a;
        if !matches!(block.insts[v.index()], Inst { op: Op::Get, ty: Ty::I64, .. }) {
            return None;
        }
        let behind = (v.0 + 1..k)
            .take(NEAR)
            .find(|j| matches!(block.insts[*j as usize], Inst { op: Op::Add, ty: Ty::I64, a, .. } if a == v))?;
        let added = block.as_const(block.insts[behind as usize].b)?;
        if self.is_sunk(behind) {
            return None;
        }
        let constant = i32::try_from((added as i64).checked_neg()?).ok()?;
        let used = block.insts[behind as usize + 1..].iter().zip(behind + 1..).filter(|(_, n)| self.until[*n as usize] == 0);
        let mut others = used.filter(|(i, _)| i.operands().any(|o| o == v));
        others.next().is_none().then_some((Val(behind), constant))
    }

    /// The op that makes a value is not done.
    pub fn sink(&mut self, v: Val) {
        self.sunk[v.index()] = true;
    }

    /// Whether cold code alone uses a value from the op at `at` on.
    pub fn alone(&self, v: Val, at: u32) -> bool {
        self.last.get(v.index()).is_some_and(|last| *last <= at)
    }
}

/// A store for cold code: offset, type, where the value is, and what is to be done with it first.
#[derive(Clone, Copy, Debug)]
pub(super) struct LateStore {
    off: i32,
    ty: Ty,
    from: Loc,
    then: Then,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    Nothing,
    /// Its type is narrower than that of the store.
    SignExtend(Ty),
    ZeroExtend(Ty),
    /// Both are I64.
    Add(i32),
    /// Shifted by a number in a type, and zero-extended.
    Shift(Op, Ty, u8),
}

/// A shift by a number: of what, and how.
fn shift(block: &Block, v: Val) -> Option<(Val, Then)> {
    let i = &block.insts[v.index()];
    let n = matches!(i.op, Op::Shr | Op::Sar).then(|| block.as_const(i.b))??;
    (1..u64::from(i.ty.bits())).contains(&n).then_some((i.a, Then::Shift(i.op, i.ty, n as u8)))
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
            Op::Load | Op::Store | Op::RaiseIf | Op::LeaveIf | Op::Side => Kind::Leaves,
            Op::ProbeW if !calls(i) => Kind::Leaves,
            Op::ProbeW | Op::AtomicRmw | Op::AtomicCas | Op::VFp | Op::FpGet | Op::FpSet | Op::VTri => Kind::Looks,
            Op::Call if self.env.helpers[usize::from(i.aux)].effects == Effects::NONE => Kind::Quiet,
            Op::Call => Kind::Looks,
            _ if i.op.is_terminator() => Kind::Looks,
            _ => Kind::Quiet,
        }
    }

    /// Whether a set is of a whole slot, or of the low bytes of one that no register holds, which the engine itself does not use, and
    /// not of a vector's.
    fn may_be_late(&self, i: &Inst) -> bool {
        let (l, slot) = (self.env.layout, self.env.layout.slot(i.slot()));
        let whole = matches!(i.ty, Ty::I32 | Ty::I64) && slot.size == i.ty.bytes();
        let low = matches!(i.ty, Ty::I8 | Ty::I16) && i.imm == 0 && slot.size == 8 && !self.is_pinned(self.slot_off(i));
        (whole || low)
            && ![l.pc, l.pc_page, l.fp_flags].contains(&i.slot())
            && !l.x87.is_some_and(|x| (x.start..x.end).contains(&slot.offset))
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
                // What sets fewer bytes leaves some of these; what sets another slot makes them meaningless.
                let then = &insts[again as usize];
                let covers = then.aux != i.aux || i.ty.bytes() <= then.ty.bytes();
                late.until[k] = if covers { again } else { 0 };
            }
            for slot in self.env.layout.unused_after(i, block) {
                late.next[usize::from(slot.0)] = k as u32;
            }
        }
        late.leaves.reverse();
        late.last.clone_from(&self.r.last);
        late.count_uses(block);
        late.find_sunk(block);
        if !self.r.pins.is_empty() {
            // A pinned slot's register may as well have the value at once, if it must be computed.
            for (k, i) in insts.iter().enumerate().filter(|(_, i)| i.op == Op::Set) {
                if late.until[k] != 0 && !late.is_sunk(i.a.0) && self.is_pinned(self.slot_off(i)) {
                    late.until[k] = 0;
                }
            }
        }
        late.sums.clear();
        for (k, i) in insts.iter().enumerate().filter(|(k, _)| late.until[*k] != 0) {
            let sunk = if late.is_sunk(i.a.0) { late.sinks(block, i.a) } else { None };
            let sum = late.less(block, k as u32);
            late.sums.extend(sum.map(|(v, c)| (k as u32, v, c)));
            let v = sunk.map(|(from, _)| from).or(sum.map(|(v, _)| v)).unwrap_or(i.a);
            let last = &mut self.r.last[v.index()];
            *last = (*last).max(late.last_leave(k as u32));
        }
        self.r.late = late;
    }

    /// The current op sets a slot: what was pending for it, and for what it makes meaningless, need not be done. Whether its own store may be late.
    pub(super) fn put_off(&mut self, i: &Inst, off: i32) -> bool {
        while let Some(n) = self.r.late.pending.iter().position(|p| p.until == self.at) {
            let p = self.r.late.pending.swap_remove(n);
            let (v, _) = self.late_value(p.set);
            if v != i.a {
                self.r.release(v, self.at);
            }
        }
        let until = self.r.late.until.get(self.at as usize).copied().unwrap_or(0);
        if until == 0 {
            return false;
        }
        let leave = self.r.late.last_leave(self.at);
        let sunk = self.late_value(self.at).0 != i.a;
        if leave != 0 && !sunk && matches!(self.loc(i.a), Loc::Gpr(_)) && self.r.late.alone(i.a, self.at) && self.spare() < SPARE
        {
            self.forget_late(i.a);
            return false;
        }
        self.r.late.pending.push(Pending { off, ty: i.ty, set: self.at, until, leave });
        true
    }

    /// The value that cold code makes that of a late set of.
    fn late_value(&self, set: u32) -> (Val, Then) {
        if let Some((_, v, c)) = self.r.late.sums.iter().find(|s| s.0 == set) {
            return (*v, Then::Add(*c));
        }
        let v = self.block.insts[set as usize].a;
        let sunk = if self.r.late.is_sunk(v.0) { self.r.late.sinks(self.block, v) } else { None };
        sunk.unwrap_or((v, Then::Nothing))
    }

    /// A value need not live for the current op's store, which is done at once; but perhaps for others.
    fn forget_late(&mut self, v: Val) {
        let late = &self.r.late;
        let made_of = |set: u32| self.late_value(set).0 == v;
        let pending = late.pending.iter().filter(|p| made_of(p.set)).map(|p| p.leave);
        let behind = self.at + 1..self.r.last[v.index()].max(self.at + 1);
        let later = behind.filter(|k| late.until[*k as usize] != 0 && made_of(*k));
        let last = pending.chain(later.map(|k| late.last_leave(k))).max().unwrap_or(0);
        self.r.last[v.index()] = last.max(late.last[v.index()]);
    }

    /// The stores that are pending, for the cold code of the current op.
    pub(super) fn note_late(&mut self) -> Range<usize> {
        let start = self.late_stores.len();
        for n in 0..self.r.late.pending.len() {
            let p = self.r.late.pending[n];
            let (v, then) = self.late_value(p.set);
            self.late_stores.push(LateStore { off: p.off, ty: p.ty, from: self.loc(v), then });
        }
        start..self.late_stores.len()
    }

    /// Does them; uses rax. What comes from slots is taken before any slot changes.
    pub(super) fn do_late(&mut self, stores: Range<usize>) {
        let from_state = |e: &Self, n: &usize| matches!(e.late_stores[*n].from, Loc::State(_));
        for n in stores.clone().filter(|n| from_state(self, n)).collect::<Vec<_>>() {
            self.late_to_rax(n);
            asm!(self; push rax);
        }
        for n in stores.clone().filter(|n| !from_state(self, n)).collect::<Vec<_>>() {
            let LateStore { off, ty, from, then } = self.late_stores[n];
            match (from, then) {
                (Loc::Gpr(r), Then::Nothing) => self.store_late(ty, off, r),
                (Loc::Const(c), Then::Nothing) if imm32(ty, c).is_some() => {
                    self.store_imm(ty, off, imm32(ty, c).unwrap_or(0));
                }
                _ => {
                    self.late_to_rax(n);
                    self.store_late(ty, off, RAX);
                }
            }
        }
        for n in stores.rev().filter(|n| from_state(self, n)).collect::<Vec<_>>() {
            let LateStore { off, ty, .. } = self.late_stores[n];
            asm!(self; pop rax);
            self.store_late(ty, off, RAX);
        }
    }

    /// Into the slot's register if it has one, from which those who leave write it back.
    fn store_late(&mut self, ty: Ty, off: i32, r: u8) {
        match self.r.pins.find(off) {
            Some((pin, _)) => asm!(self; mov Rq(pin.reg), Rq(r)),
            None => self.store_state(ty, off, r),
        }
    }

    fn late_to_rax(&mut self, n: usize) {
        let LateStore { ty, from, then, .. } = self.late_stores[n];
        let narrow = if let Then::SignExtend(ty) | Then::ZeroExtend(ty) | Then::Shift(_, ty, _) = then { ty } else { ty };
        match from {
            Loc::Gpr(r) => asm!(self; mov rax, Rq(r)),
            Loc::Const(c) => self.mov_imm(RAX, c),
            Loc::State(from) => self.load_state(RAX, narrow, from),
            Loc::Spill(from) => st!(self, from; [mov rax,] []),
            Loc::None | Loc::Xmm(_) => debug_assert!(false, "what is to be stored lives in general registers"),
        }
        match then {
            Then::SignExtend(Ty::I8) => asm!(self; movsx rax, al),
            Then::SignExtend(Ty::I16) => asm!(self; movsx rax, ax),
            Then::SignExtend(_) => asm!(self; movsxd rax, eax),
            Then::ZeroExtend(Ty::I8) => asm!(self; movzx eax, al),
            Then::ZeroExtend(Ty::I16) => asm!(self; movzx eax, ax),
            Then::ZeroExtend(_) => asm!(self; mov eax, eax),
            Then::Add(n) => asm!(self; lea rax, [rax + n]),
            Then::Shift(op, ty, n) => self.shift_rax(op, ty, n as i8),
            Then::Nothing => {}
        }
    }

    /// Shifts the value of a type in rax right, and zero-extends it.
    fn shift_rax(&mut self, op: Op, ty: Ty, n: i8) {
        match (op, ty) {
            (Op::Sar, Ty::I8) => asm!(self; movsx eax, al; sar eax, BYTE n; movzx eax, al),
            (Op::Sar, Ty::I16) => asm!(self; movsx eax, ax; sar eax, BYTE n; movzx eax, ax),
            (Op::Sar, Ty::I32) => asm!(self; sar eax, BYTE n),
            (Op::Sar, _) => asm!(self; sar rax, BYTE n),
            (_, Ty::I8) => asm!(self; movzx eax, al; shr eax, BYTE n),
            (_, Ty::I16) => asm!(self; movzx eax, ax; shr eax, BYTE n),
            (_, Ty::I32) => asm!(self; shr eax, BYTE n),
            _ => asm!(self; shr rax, BYTE n),
        }
    }
}
