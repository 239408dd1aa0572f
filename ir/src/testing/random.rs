//! Random well-formed blocks of the toy guest, made from a list of numbers so that a test framework can shrink them.

use crate::block::{Block, Val};
use crate::layout::{HelperId, SlotId};
use crate::ops::Op;
use crate::types::{Cond, Rmw, Ty};
use crate::vec::{VecOp, VecShift};

use super::SLOTS;

/// Decisions, taken one by one from a list; all 0 once it is used up.
pub struct Choices<'a>(std::slice::Iter<'a, u32>);

impl<'a> Choices<'a> {
    pub fn new(list: &'a [u32]) -> Self {
        Self(list.iter())
    }

    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        self.0.next().map_or(0, |c| *c as usize % n)
    }

    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn is_over(&self) -> bool {
        self.0.as_slice().is_empty()
    }
}

const INTS: [Ty; 4] = [Ty::I8, Ty::I16, Ty::I32, Ty::I64];
const CONSTS: [u64; 16] = [0, 1, 2, 3, 4, 8, 15, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x8000_0000, 0xffff_ffff, 1 << 63, u64::MAX];
const BINARY: [Op; 17] = [
    Op::Add,
    Op::Sub,
    Op::And,
    Op::Or,
    Op::Xor,
    Op::Shl,
    Op::Shr,
    Op::Sar,
    Op::Add,
    Op::And,
    Op::Sub,
    Op::Mul,
    Op::MulHiU,
    Op::MulHiS,
    Op::Rotl,
    Op::Rotr,
    Op::Xor,
];
const UNARY: [Op; 6] = [Op::Neg, Op::Not, Op::Clz, Op::Ctz, Op::Popcnt, Op::Bswap];

/// A block that verifies, of as many guest instructions as the choices last for (at most 12).
pub fn random_block(list: &[u32]) -> Block {
    let mut g = Gen { c: Choices::new(list), b: Block { start: 0x10, ..Block::default() } };
    let mut off = 0x10;
    while off == 0x10 || (!g.c.is_over() && g.b.guest_insns < 12) {
        let len = 1 + g.c.below(4) as u32;
        g.b.insn(off, len);
        g.instruction();
        off += len;
    }
    g.b.next = off.into();
    g.end();
    g.b
}

/// A block of one instruction that computes a chain of ops with many constants, each from the one before, and shows every
/// link in the state: for what folds.
pub fn random_chain(list: &[u32]) -> Block {
    let mut g = Gen { c: Choices::new(list), b: Block { next: 4, ..Block::default() } };
    g.b.insn(0, 4);
    let mut v = g.int(Ty::I64);
    let mut links = vec![v];
    while !g.c.is_over() && links.len() < 12 {
        v = g.link(v);
        links.push(v);
    }
    // Alternately the last links only, so that inner ones may go, and all of them.
    let shown = if g.c.below(2) == 0 { links.len() } else { 1 };
    for (k, v) in links.into_iter().rev().take(shown).enumerate() {
        let ty = g.b.ty(v);
        g.b.set(ty, SlotId(2 + (k % 4) as u16), 0, v);
    }
    let cond = if g.b.ty(v) == Ty::I8 { v } else { g.b.zext(Ty::I8, v) };
    g.b.br(cond, 0x40);
    g.b
}

struct Gen<'a> {
    c: Choices<'a>,
    b: Block,
}

impl Gen<'_> {
    /// What may leave first, then what writes.
    fn instruction(&mut self) {
        for _ in 0..self.c.below(5) {
            self.reading();
        }
        match self.c.below(6) {
            0 => self.probed_stores(),
            1 => self.write(),
            2 => {
                let (x, y, z) = (self.int(Ty::I64), self.int(Ty::I64), self.int(Ty::I64));
                self.b.call(HelperId(5), &[x, y, z]);
            }
            _ => {}
        }
        for _ in 0..self.c.below(5) {
            self.writing();
        }
    }

    /// Computes, or reads what may fail.
    fn reading(&mut self) {
        match self.c.below(12) {
            0 => {
                let (a, imm, ty) = (self.address(), self.imm(), self.c.of(&Ty::ALL));
                self.b.load(ty, a, imm, 1);
            }
            1 => {
                let v = self.int(Ty::I64);
                self.b.call(HelperId(4), &[v]);
            }
            2 => {
                let v = self.int(Ty::I8);
                match self.c.of(&[None, Some(None), Some(Some(0)), Some(Some(5))]) {
                    Some(error) => self.b.raise_if(v, 13, error),
                    None => self.b.leave_if(v),
                }
            }
            3 => {
                let v = self.b.iconst(Ty::I8, 0);
                self.b.raise_if(v, 14, None);
            }
            _ => self.pure(),
        }
    }

    fn writing(&mut self) {
        match self.c.below(10) {
            0 => {
                let (x, y) = (self.int(Ty::I64), self.int(Ty::I64));
                self.b.call(HelperId(2), &[x, y]);
            }
            1 => {
                let v = self.int(Ty::I64);
                self.b.call(HelperId(3), &[v]);
            }
            2 => {
                let h = self.c.of(&[1, 7]);
                self.b.call(HelperId(h), &[]);
            }
            3 => self.pure(),
            _ => self.set(),
        }
    }

    /// One write that may leave.
    fn write(&mut self) {
        let (a, imm, ty) = (self.address(), self.imm(), self.c.of(&INTS));
        match self.c.below(5) {
            0 => {
                let (kind, v) = (self.c.of(Rmw::ALL), self.int(ty));
                self.b.rmw(kind, a, v, 0);
            }
            1 => {
                let (e, n) = (self.int(ty), self.int(ty));
                self.b.cas(a, e, n, 0);
            }
            2 => {
                let v = self.int(Ty::I64);
                self.b.call(HelperId(6), &[a, v]);
            }
            3 => {
                let v = self.vector();
                self.b.store(a, imm, v, 2);
            }
            _ => {
                let v = self.int(ty);
                self.b.store(a, imm, v, 2);
            }
        }
    }

    fn probed_stores(&mut self) {
        let (a, imm) = (self.address(), self.imm());
        let values = [self.int(Ty::I32), self.int(Ty::I16), self.int(Ty::I64)];
        self.b.probe_w(a, imm, 16, 1);
        for (k, v) in values.into_iter().enumerate() {
            self.b.store(a, imm + 4 * k as i64, v, 1);
        }
    }

    fn set(&mut self) {
        let slot = self.c.below(SLOTS.len() - 2);
        let (ty, off) = self.part(slot);
        let v = if ty == Ty::V128 { self.vector() } else { self.int(ty) };
        self.b.set(ty, SlotId(slot as u16), off, v);
    }

    /// A type that fits into the slot and a place for it.
    fn part(&mut self, slot: usize) -> (Ty, u32) {
        let size = SLOTS[slot].size;
        let fitting: Vec<Ty> = Ty::ALL.into_iter().filter(|t| t.bytes() <= size).collect();
        let ty = self.c.of(&fitting);
        let free = self.c.below((size - ty.bytes() + 1) as usize) as u32;
        (ty, if self.c.below(4) == 0 { free } else { free / ty.bytes() * ty.bytes() })
    }

    fn pure(&mut self) {
        let ty = self.c.of(&INTS);
        match self.c.below(16) {
            0..=4 => {
                let (op, x, y) = (self.c.of(&BINARY), self.int(ty), self.int(ty));
                self.b.bin(op, x, y);
            }
            5 | 6 => {
                let (op, x, k) = (self.c.of(&BINARY), self.int(ty), self.c.of(&CONSTS));
                self.b.bin_imm(op, x, k);
            }
            7 => {
                let (op, x) = (self.c.of(&UNARY), self.int(ty));
                let op = if op == Op::Bswap && ty == Ty::I8 { Op::Not } else { op };
                self.b.unary(op, x);
            }
            8 | 9 => {
                let from = self.c.of(&INTS);
                let x = self.int(from);
                if self.c.below(2) == 0 {
                    self.b.zext(ty, x)
                } else {
                    self.b.sext(ty, x)
                };
            }
            10 | 11 => {
                let (cond, x, y) = (self.c.of(Cond::ALL), self.int(ty), self.int(ty));
                if self.c.below(2) == 0 {
                    self.b.cmp(cond, x, y);
                } else {
                    let k = self.c.of(&CONSTS);
                    self.b.cmp_imm(cond, x, k);
                }
            }
            12 => {
                let (s, x, y) = (self.int(Ty::I8), self.int(ty), self.int(ty));
                self.b.select(s, x, y);
            }
            13 => self.divide(),
            14 => {
                self.any_vector();
            }
            _ => {
                let (x, y) = (self.int(Ty::I64), self.int(Ty::I64));
                self.b.call(HelperId(0), &[x, y]);
            }
        }
    }

    /// An op on `v`.
    fn link(&mut self, v: Val) -> Val {
        let ty = self.b.ty(v);
        let k = self.c.of(&CONSTS);
        match self.c.below(12) {
            0..=3 => {
                let op = self.c.of(&BINARY);
                self.b.bin_imm(op, v, k)
            }
            4 => {
                let (op, k) = (self.c.of(&BINARY), self.b.iconst(ty, k));
                self.b.bin(op, k, v)
            }
            5 | 6 => {
                let to = self.c.of(&INTS);
                if self.c.below(2) == 0 { self.b.zext(to, v) } else { self.b.sext(to, v) }
            }
            7 => {
                let cond = self.c.of(Cond::ALL);
                self.b.cmp_imm(cond, v, k)
            }
            8 => {
                let (cond, k) = (self.c.of(Cond::ALL), self.b.iconst(ty, k));
                self.b.cmp(cond, k, v)
            }
            9 => {
                let (cond, k) = (self.c.of(&[Cond::Eq, Cond::Ne]), self.c.below(2) as u64);
                self.b.cmp_imm(cond, v, k)
            }
            10 => {
                let op = self.c.of(&UNARY);
                let op = if op == Op::Bswap && ty == Ty::I8 { Op::Neg } else { op };
                self.b.unary(op, v)
            }
            _ => self.choice(v),
        }
    }

    /// A select by `v`, or of `v` with itself or another value.
    fn choice(&mut self, v: Val) -> Val {
        if self.b.ty(v) != Ty::I8 {
            let (op, w) = (self.c.of(&BINARY), self.int(self.b.ty(v)));
            return self.b.bin(op, v, w);
        }
        let ty = self.c.of(&INTS);
        let (x, y) = match self.c.below(2) {
            0 => (self.b.iconst(ty, 1), self.b.iconst(ty, 0)),
            _ => (self.int(ty), self.int(ty)),
        };
        self.b.select(v, x, y)
    }

    fn divide(&mut self) {
        let ty = self.c.of(&[Ty::I32, Ty::I64]);
        let (op, x, y) = (self.c.of(&[Op::DivU, Op::RemU, Op::DivS, Op::RemS]), self.int(ty), self.int(ty));
        let y = self.b.bin_imm(Op::And, y, 0x7f);
        let y = self.b.bin_imm(Op::Or, y, 1);
        self.b.bin(op, x, y);
    }

    /// An earlier value of this type, a fresh get or a constant.
    fn int(&mut self, ty: Ty) -> Val {
        let n = self.b.insts.len();
        for _ in 0..3 {
            let v = Val((n - 1 - self.c.below(n.min(16))) as u32);
            if self.b.insts[v.index()].result() == Some(ty) {
                return v;
            }
        }
        if self.c.below(5) == 0 {
            let k = self.c.of(&CONSTS);
            return self.b.iconst(ty, k);
        }
        if self.c.below(16) == 0 && ty == Ty::I64 {
            return self.b.pcrel(5);
        }
        let fitting: Vec<usize> = (0..SLOTS.len() - 2).filter(|s| SLOTS[*s].size >= ty.bytes()).collect();
        let slot = self.c.of(&fitting);
        let off = self.c.below((SLOTS[slot].size / ty.bytes()) as usize) as u32 * ty.bytes();
        self.b.get(ty, SlotId(slot as u16), off)
    }

    fn vector(&mut self) -> Val {
        let n = self.b.insts.len();
        let v = Val((n - 1 - self.c.below(n.min(16))) as u32);
        if self.b.insts[v.index()].result() == Some(Ty::V128) {
            return v;
        }
        let slot = self.c.below(2) as u16;
        self.b.get(Ty::V128, SlotId(slot), 0)
    }

    fn any_vector(&mut self) -> Val {
        let (x, lane) = (self.vector(), self.c.below(2) as u16);
        match self.c.below(7) {
            0 => self.b.vlane(x, lane),
            4 => {
                let width = 8 << self.c.below(4);
                self.b.vmask(x, width)
            }
            2 => {
                let (kind, n) = (self.c.of(VecShift::ALL), self.c.below(64) as u32);
                self.b.vshift(kind, x, n % kind.width())
            }
            3 => {
                let (y, mask) = (self.vector(), std::array::from_fn(|_| self.c.below(32) as u8));
                self.b.vshuffle(x, y, mask)
            }
            1 => {
                let v = self.int(Ty::I64);
                self.b.vset_lane(x, lane, v)
            }
            _ => {
                let (op, y) = (self.c.of(VecOp::ALL), self.vector());
                self.b.vec(op, x, y)
            }
        }
    }

    /// Mostly inside a small window, so that accesses overlap.
    fn address(&mut self) -> Val {
        let v = self.int(Ty::I64);
        match self.c.below(3) {
            0 => v,
            1 => self.b.bin_imm(Op::And, v, 0xf),
            _ => {
                let v = self.b.bin_imm(Op::And, v, 0xf);
                self.b.bin_imm(Op::Add, v, 8)
            }
        }
    }

    fn imm(&mut self) -> i64 {
        self.c.of(&[0, 4, -3, 1])
    }

    fn end(&mut self) {
        match self.c.below(6) {
            0 => self.b.jump(0x80),
            1 => {
                let v = self.int(Ty::I64);
                self.b.jump_ind(v, 2);
            }
            2 => self.b.exit(),
            3 => self.b.exit_next(),
            _ => {
                let v = self.int(Ty::I8);
                self.b.br(v, 0x40);
            }
        }
    }
}
