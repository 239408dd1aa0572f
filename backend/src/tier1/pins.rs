//! Pins: state slots that live in host registers all through a region. A value in a pinned slot is still said to be in the
//! state (`Loc::State`); who reads or writes state bytes asks here for the register first.

use super::emit::Emit;
use super::integer::is_clean;
use super::regs::{Loc, POOL};
use super::{asm, st};
use ir::{Block, Effects, Inst, Op, StateLayout, Ty, Val};

/// Registers that may be pinned, those that calls preserve first. What remains suffices for any op.
const GPRS: [u8; 6] = [3, 5, 12, 13, 10, 9];
const XMMS: [u8; 9] = [15, 14, 13, 12, 11, 10, 9, 8, 7];
/// Those that calls do not preserve; vector registers all are of that kind.
const LOST: u16 = 1 << 9 | 1 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// Slot, byte offset from the seam, and its size: 8, or 16 in a vector register.
    pub off: i32,
    pub size: i32,
    pub reg: u8,
    /// The region changes it.
    pub written: bool,
}

impl Pin {
    pub fn is_vector(&self) -> bool {
        self.size == 16
    }

    fn is_lost_by_calls(&self) -> bool {
        self.is_vector() || LOST >> self.reg & 1 != 0
    }
}

/// The pins of a region, and the registers that are left. Without pins all are.
#[derive(Clone, Debug)]
pub struct Pins {
    list: Vec<Pin>,
    pub gprs: u16,
    pub xmms: u16,
}

impl Default for Pins {
    fn default() -> Self {
        Self { list: Vec::new(), gprs: POOL.iter().fold(0, |m, r| m | 1 << r), xmms: 0xfffc }
    }
}

/// How a region uses a slot.
#[derive(Clone, Copy, Default)]
struct Use {
    gets: u32,
    sets: u32,
    /// In a way that a register does not serve.
    odd: bool,
    written: bool,
}

impl Pins {
    /// The slots used most, by blocks with their weights.
    pub fn choose(layout: &StateLayout, blocks: &[(&Block, u32)]) -> Pins {
        let mut uses = vec![Use::default(); layout.slots.len()];
        for (block, weight) in blocks {
            for i in block.insts.iter().filter(|i| matches!(i.op, Op::Get | Op::Set)) {
                let (slot, u) = (layout.slot(i.slot()), &mut uses[usize::from(i.aux)]);
                u.odd |= !serves(i.op, i.ty, i.imm, slot.size);
                u.written |= i.op == Op::Set;
                *(if i.op == Op::Get { &mut u.gets } else { &mut u.sets }) += weight;
            }
        }
        for s in [layout.pc, layout.pc_page, layout.fp_flags] {
            uses[usize::from(s.0)].odd = true;
        }
        let x87 = layout.x87.map_or(0..0, |x| x.start..x.end);
        for (u, slot) in uses.iter_mut().zip(&layout.slots) {
            u.odd |= x87.contains(&slot.offset);
        }
        let mut pins = Pins::default();
        for (size, registers) in [(8, &GPRS[..]), (16, &XMMS[..])] {
            let of_size = |n: &usize| layout.slots[*n].size == size && !uses[*n].odd && uses[*n].gets > 0;
            let mut slots: Vec<usize> = (0..uses.len()).filter(of_size).collect();
            slots.sort_by_key(|n| std::cmp::Reverse(uses[*n].gets + uses[*n].sets));
            for (n, reg) in slots.into_iter().zip(registers) {
                let (off, written) = (layout.slots[n].offset as i32, uses[n].written);
                pins.list.push(Pin { off, size: size as i32, reg: *reg, written });
                *(if size == 8 { &mut pins.gprs } else { &mut pins.xmms }) &= !(1 << reg);
            }
        }
        pins
    }

    /// The pin of the slot that holds a state byte, and the byte's place in it.
    #[inline]
    pub fn find(&self, off: i32) -> Option<(Pin, i32)> {
        self.list.iter().find(|p| (p.off..p.off + p.size).contains(&off)).map(|p| (*p, off - p.off))
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}

/// Can the access be one to a register that holds the slot?
fn serves(op: Op, ty: Ty, at: i64, size: u32) -> bool {
    match (size, op) {
        (8, Op::Get) => at == 0 || at == 1 && ty == Ty::I8,
        (8, _) => at == 0 && ty != Ty::I32,
        (16, Op::Get) => ty == Ty::V128 || at % 8 + i64::from(ty.bytes()) <= 8,
        (16, _) => ty == Ty::V128,
        _ => false,
    }
}

impl Emit<'_> {
    /// The general register that holds a value of the state as it is.
    pub fn pinned(&self, v: Val) -> Option<u8> {
        match self.loc(v) {
            Loc::State(off) => self.r.pins.find(off).filter(|(p, at)| !p.is_vector() && *at == 0).map(|(p, _)| p.reg),
            _ => None,
        }
    }

    /// The same of a vector register.
    pub fn pinned_xmm(&self, v: Val) -> Option<u8> {
        match self.loc(v) {
            Loc::State(off) => self.r.pins.find(off).filter(|(p, at)| p.is_vector() && *at == 0).map(|(p, _)| p.reg),
            _ => None,
        }
    }

    /// Whether state bytes lie in a register.
    pub fn is_pinned(&self, off: i32) -> bool {
        self.r.pins.find(off).is_some()
    }

    /// Whether loading the value changes the host's flags: it lies within a pinned slot.
    pub fn takes_shift(&self, v: Val) -> bool {
        matches!(self.loc(v), Loc::State(off) if self.r.pins.find(off).is_some_and(|(_, at)| at % 8 != 0))
    }

    /// Loads `ty` from byte `at` of a pinned slot, zero-extended.
    pub fn load_pin(&mut self, r: u8, ty: Ty, (p, at): (Pin, i32)) {
        if p.is_vector() {
            if at < 8 {
                asm!(self; movq Rq(r), Rx(p.reg));
            } else {
                asm!(self; pextrq Rq(r), Rx(p.reg), BYTE 1);
            }
        } else if at == 0 {
            return match ty {
                Ty::I8 => asm!(self; movzx Rd(r), Rb(p.reg)),
                Ty::I16 => asm!(self; movzx Rd(r), Rw(p.reg)),
                Ty::I32 => asm!(self; mov Rd(r), Rd(p.reg)),
                _ => asm!(self; mov Rq(r), Rq(p.reg)),
            };
        } else {
            asm!(self; mov Rq(r), Rq(p.reg));
        }
        if at % 8 != 0 {
            asm!(self; shr Rq(r), BYTE (at % 8 * 8) as i8);
        }
        match ty {
            Ty::I8 => asm!(self; movzx Rd(r), Rb(r)),
            Ty::I16 => asm!(self; movzx Rd(r), Rw(r)),
            Ty::I32 => asm!(self; mov Rd(r), Rd(r)),
            _ => {}
        }
    }

    /// Sets the low bytes of a pinned slot of 8 bytes.
    pub fn store_pin(&mut self, ty: Ty, p: Pin, v: Val) {
        match (ty, self.loc(v)) {
            (Ty::I64, Loc::Const(c)) => self.mov_imm(p.reg, c),
            (Ty::I64, _) => self.copy_to(p.reg, v),
            (Ty::I8, _) => {
                let r = self.gpr(v);
                asm!(self; mov Rb(p.reg), Rb(r));
            }
            _ => {
                let r = self.gpr(v);
                asm!(self; mov Rw(p.reg), Rw(r));
            }
        }
    }

    /// Before the state is looked at by others: brings it up to date.
    pub fn write_back(&mut self) {
        for k in 0..self.r.pins.list.len() {
            let p = self.r.pins.list[k];
            if !p.written {
                continue;
            }
            if p.is_vector() {
                st!(self, p.off; [movdqu] [, Rx(p.reg)]);
            } else {
                st!(self, p.off; [mov] [, Rq(p.reg)]);
            }
        }
    }

    /// Takes the slots into their registers: all, or those that a call has lost.
    pub fn load_pins(&mut self, all: bool) {
        for k in 0..self.r.pins.list.len() {
            let p = self.r.pins.list[k];
            if !all && !p.is_lost_by_calls() {
                continue;
            }
            if p.is_vector() {
                st!(self, p.off; [movdqu Rx(p.reg),] []);
            } else {
                st!(self, p.off; [mov Rq(p.reg),] []);
            }
        }
    }

    // --- results that go to their slot at once

    /// Finds values that may be computed right in the register of the slot that they are going to be set in: nothing leaves or
    /// looks at the state between.
    pub fn find_direct(&mut self) {
        self.r.direct.clear();
        if self.r.pins.is_empty() {
            return;
        }
        let insts = &self.block.insts;
        self.r.direct.resize(insts.len(), None);
        // Of ops up to here, the first after which nothing has left or looked.
        let mut quiet = 0;
        for (j, i) in insts.iter().enumerate() {
            if i.op == Op::Set && matches!(i.ty, Ty::I64 | Ty::V128) && i.a.index() >= quiet {
                let off = self.slot_off(i);
                let found = self.r.pins.find(off).filter(|(p, at)| *at == 0 && p.is_vector() == (i.ty == Ty::V128));
                let between = &insts[i.a.index() + 1..j];
                let asked = between.iter().any(|b| matches!(b.op, Op::Get | Op::Set) && b.aux == i.aux);
                if let (Some((p, _)), false) = (found, asked) {
                    self.r.direct[i.a.index()] = Some(p);
                    self.find_extended(i.a, quiet, p);
                }
            }
            let e = i.effects(self.env.helpers);
            if e.has(Effects::MAY_LEAVE) || i.op == Op::Call {
                // Its own result may.
                quiet = j;
            }
        }
    }

    /// The same of what such a value is the extension of, if an instruction on its narrower type extends it as well.
    fn find_extended(&mut self, wide: Val, quiet: usize, p: Pin) {
        let insts = &self.block.insts;
        let i = &insts[wide.index()];
        let extends = match i.op {
            Op::ZExt => is_clean(self.block, i.a),
            Op::SExt => self.is_extended(i.a.index()),
            _ => false,
        };
        if !extends || i.a.index() < quiet {
            return;
        }
        let slot = |b: &Inst| matches!(b.op, Op::Get | Op::Set) && self.slot_off(b) & !7 == p.off & !7;
        if !insts[i.a.index() + 1..wide.index()].iter().any(slot) {
            self.r.direct[i.a.index()] = Some(p);
        }
    }

    pub fn goes_direct(&self) -> bool {
        self.r.direct.get(self.at as usize).is_some_and(Option::is_some)
    }

    /// Whether the result of the current op may take the place of an operand: see `dest_from`.
    pub fn may_become(&self, v: Val) -> bool {
        match self.r.direct.get(self.at as usize).copied().flatten() {
            Some(p) => self.loc(v) == Loc::State(p.off),
            None => self.in_place(v),
        }
    }

    /// What lives in the slot that the current op's result goes to, and is used later, moves away: before flags are made that moving parts of
    /// it would change.
    pub fn clear_the_way(&mut self) {
        if let Some(p) = self.r.direct.get(self.at as usize).copied().flatten() {
            self.save_aliased(Some((p.off, p.size)));
        }
    }

    /// The register of the slot that the current op's result goes to, which it becomes. `from`: the operand whose place
    /// the result may take; the others must not be lost.
    pub fn direct(&mut self, from: Option<Val>) -> Option<u8> {
        let at = self.at as usize;
        let p = (*self.r.direct.get(at)?)?;
        let range = p.off..p.off + p.size;
        let i = self.block.insts[at];
        let lies = |e: &Self, v: Val| matches!(e.loc(v), Loc::State(off) if range.contains(&off));
        if from.is_some() && i.operands().any(|v| Some(v) != from && lies(self, v)) {
            return None;
        }
        // Results of 32 bits are extended to the whole of the register by the instruction that makes them.
        let whole = |e: &Self, v: Val| e.block.ty(v).bytes() as i32 == p.size || i.ty == Ty::I32 && e.block.ty(v) == Ty::I32;
        let here = from.filter(|v| self.loc(*v) == Loc::State(p.off) && whole(self, *v));
        self.save_aliased(Some((p.off, p.size)));
        if let (Some(v), None) = (from, here) {
            if p.is_vector() {
                let loc = self.loc(v);
                self.load_xmm(p.reg, loc);
            } else {
                self.copy_to(p.reg, v);
            }
        }
        self.r.alias(Val(self.at), p.off, i.result().unwrap_or(i.ty));
        Some(p.reg)
    }
}
