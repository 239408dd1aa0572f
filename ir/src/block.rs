//! A block of IR: one entry, straight-line ops with side exits, one terminator. Values are numbered by the op that makes
//! them.

use crate::fp::FpOp;
use crate::layout::{HelperDesc, HelperId, SlotId};
use crate::ops::{Effects, Op, Res};
use crate::tri::TriOp;
use crate::types::{Cond, Rmw, Ty};
use crate::vec::{VecOp, VecShift};

/// An SSA value: the index of its op in `Block::insts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Val(pub u32);

impl Val {
    /// Operand not used.
    pub const NONE: Val = Val(u32::MAX);

    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// One op. See `Op` for the fields that each uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inst {
    pub op: Op,
    pub ty: Ty,
    pub aux: u16,
    pub a: Val,
    pub b: Val,
    pub c: Val,
    pub imm: i64,
}

impl Inst {
    pub const fn new(op: Op, ty: Ty) -> Self {
        Self { op, ty, aux: 0, a: Val::NONE, b: Val::NONE, c: Val::NONE, imm: 0 }
    }

    /// Type of the result, `None` if there is none.
    #[inline]
    pub const fn result(&self) -> Option<Ty> {
        match self.op.result() {
            Res::None => None,
            Res::Ty => Some(self.ty),
            Res::Fixed(t) => Some(t),
        }
    }

    /// Effects of this op, with those of the helper that a `Call` names. A call without side effects lacks `KEEP`.
    #[inline]
    pub fn effects(&self, helpers: &[HelperDesc]) -> Effects {
        if self.op == Op::Call { self.call_effects(helpers) } else { self.op.effects() }
    }

    fn call_effects(&self, helpers: &[HelperDesc]) -> Effects {
        match helpers.get(usize::from(self.aux)) {
            Some(h) if h.effects.has(Effects::SIDE) => h.effects.or(Effects::KEEP),
            Some(h) => h.effects,
            None => Effects::SIDE.or(Effects::KEEP).or(Effects::READS_STATE).or(Effects::READS_MEM),
        }
    }

    /// The operands in use.
    #[inline]
    pub fn operands(&self) -> impl Iterator<Item = Val> {
        [self.a, self.b, self.c].into_iter().filter(|v| *v != Val::NONE)
    }

    /// Calls a function with each operand in use: what loops over whole blocks take, as it comes to three comparisons.
    #[inline(always)]
    pub fn each_operand(&self, mut f: impl FnMut(Val)) {
        for v in [self.a, self.b, self.c] {
            if v != Val::NONE {
                f(v);
            }
        }
    }

    pub fn cond(&self) -> Cond {
        Cond::from_index(self.aux).expect("aux of Cmp is a Cond: the verifier checks it")
    }

    pub fn rmw(&self) -> Rmw {
        Rmw::from_index(self.aux >> 2).expect("aux of AtomicRmw holds an Rmw: the verifier checks it")
    }

    pub fn vec_op(&self) -> VecOp {
        VecOp::from_index(self.aux).expect("aux of Vec is a VecOp: the verifier checks it")
    }

    pub fn fp_op(&self) -> FpOp {
        FpOp::from_index(self.aux).expect("aux of a floating-point op is an FpOp: the verifier checks it")
    }

    pub fn tri_op(&self) -> TriOp {
        TriOp::from_index(self.aux).expect("aux of VTri is a TriOp: the verifier checks it")
    }

    pub fn vec_shift(&self) -> VecShift {
        VecShift::from_index(self.aux).expect("aux of VShift is a VecShift: the verifier checks it")
    }

    /// Source byte (0..=31) of each byte of a VShuffle.
    pub fn shuffle_mask(&self) -> [u8; 16] {
        let bits = u128::from(self.aux) << 64 | u128::from(self.imm as u64);
        std::array::from_fn(|i| (bits >> (5 * i)) as u8 & 31)
    }

    pub fn slot(&self) -> SlotId {
        SlotId(self.aux)
    }

    pub fn helper(&self) -> HelperId {
        HelperId(self.aux)
    }
}

/// IR of one guest basic block.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Block {
    pub insts: Vec<Inst>,
    /// Page offset of the instruction after the block (4096 and more: the next page).
    pub next: i64,
    /// Page offset of the first instruction.
    pub start: u32,
    /// Number of guest instructions.
    pub guest_insns: u32,
    /// The block's one instruction straddles a page boundary.
    pub straddles: bool,
    /// Page offset of the instruction that relies on `CodeFetch::guess`, if one does.
    pub guesses: Option<u32>,
    /// Source bytes, from and to page offsets, of which the block holds no copy (`Op::Source`): it stays right when they change.
    pub loose: Vec<(u16, u16)>,
}

impl Block {
    pub fn clear(&mut self) {
        self.insts.clear();
        self.next = 0;
        self.start = 0;
        self.guest_insns = 0;
        self.straddles = false;
        self.guesses = None;
        self.loose.clear();
    }

    #[inline]
    pub fn push(&mut self, i: Inst) -> Val {
        self.insts.push(i);
        Val(self.insts.len() as u32 - 1)
    }

    #[inline]
    pub fn ty(&self, v: Val) -> Ty {
        self.insts[v.index()].result().expect("operand has a result: the verifier checks it")
    }

    /// Page offsets that the block goes to directly: taken, not taken.
    pub fn targets(&self) -> [Option<i64>; 2] {
        match self.terminator() {
            Some(t) if t.op == Op::Jump => [Some(t.imm), None],
            Some(t) if t.op == Op::Br => [Some(t.imm), Some(self.next)],
            _ => [None, None],
        }
    }

    /// Value of `v` if it is a constant, zero-extended from its type.
    #[inline]
    pub fn as_const(&self, v: Val) -> Option<u64> {
        let i = &self.insts[v.index()];
        (i.op == Op::Const && i.ty != Ty::V128).then_some(i.imm as u64 & i.ty.mask())
    }

    // --- building: one method per op

    pub fn insn(&mut self, page_offset: u32, len: u32) {
        self.guest_insns += 1;
        self.push(Inst { imm: page_offset.into(), aux: len as u16, ..Inst::new(Op::Insn, Ty::I64) });
    }

    pub fn iconst(&mut self, ty: Ty, v: u64) -> Val {
        self.push(Inst { imm: (v & ty.mask()) as i64, ..Inst::new(Op::Const, ty) })
    }

    pub fn pcrel(&mut self, off: i64) -> Val {
        self.push(Inst { imm: off, ..Inst::new(Op::PcRel, Ty::I64) })
    }

    /// Source bytes from page offset `off` on, as they are when the block runs.
    pub fn source(&mut self, ty: Ty, off: u16) -> Val {
        self.loose.push((off, off + ty.bytes() as u16));
        self.push(Inst { imm: off.into(), ..Inst::new(Op::Source, ty) })
    }

    pub fn get(&mut self, ty: Ty, slot: SlotId, off: u32) -> Val {
        self.push(Inst { aux: slot.0, imm: off.into(), ..Inst::new(Op::Get, ty) })
    }

    pub fn set(&mut self, ty: Ty, slot: SlotId, off: u32, v: Val) {
        debug_assert_eq!(self.ty(v), ty);
        self.push(Inst { a: v, aux: slot.0, imm: off.into(), ..Inst::new(Op::Set, ty) });
    }

    /// One-operand op: Neg, Not, Clz, Ctz, Popcnt, Bswap.
    pub fn unary(&mut self, op: Op, a: Val) -> Val {
        let ty = self.ty(a);
        self.push(Inst { a, ..Inst::new(op, ty) })
    }

    /// Two-operand integer op, Add to Rotr.
    pub fn bin(&mut self, op: Op, a: Val, b: Val) -> Val {
        let ty = self.ty(a);
        debug_assert_eq!(ty, self.ty(b), "{op:?}");
        self.push(Inst { a, b, ..Inst::new(op, ty) })
    }

    pub fn bin_imm(&mut self, op: Op, a: Val, imm: u64) -> Val {
        let b = self.iconst(self.ty(a), imm);
        self.bin(op, a, b)
    }

    /// Zero-extends or truncates to `ty`; nothing if it has the type.
    pub fn zext(&mut self, ty: Ty, a: Val) -> Val {
        self.resize(Op::ZExt, ty, a)
    }

    /// Sign-extends or truncates to `ty`.
    pub fn sext(&mut self, ty: Ty, a: Val) -> Val {
        self.resize(Op::SExt, ty, a)
    }

    #[inline]
    fn resize(&mut self, ext: Op, ty: Ty, a: Val) -> Val {
        let from = self.ty(a).bytes();
        match from.cmp(&ty.bytes()) {
            std::cmp::Ordering::Equal => a,
            std::cmp::Ordering::Less => self.push(Inst { a, ..Inst::new(ext, ty) }),
            std::cmp::Ordering::Greater => self.push(Inst { a, ..Inst::new(Op::Trunc, ty) }),
        }
    }

    pub fn cmp(&mut self, cond: Cond, a: Val, b: Val) -> Val {
        let ty = self.ty(a);
        debug_assert_eq!(ty, self.ty(b));
        self.push(Inst { a, b, aux: cond as u16, ..Inst::new(Op::Cmp, ty) })
    }

    pub fn cmp_imm(&mut self, cond: Cond, a: Val, imm: u64) -> Val {
        let b = self.iconst(self.ty(a), imm);
        self.cmp(cond, a, b)
    }

    pub fn select(&mut self, c: Val, yes: Val, no: Val) -> Val {
        let ty = self.ty(yes);
        debug_assert_eq!(ty, self.ty(no));
        self.push(Inst { a: c, b: yes, c: no, ..Inst::new(Op::Select, ty) })
    }

    pub fn load(&mut self, ty: Ty, addr: Val, off: i64, ctx: usize) -> Val {
        self.push(Inst { a: addr, imm: off, aux: ctx as u16, ..Inst::new(Op::Load, ty) })
    }

    pub fn store(&mut self, addr: Val, off: i64, v: Val, ctx: usize) {
        let ty = self.ty(v);
        self.push(Inst { a: addr, b: v, imm: off, aux: ctx as u16, ..Inst::new(Op::Store, ty) });
    }

    pub fn probe_w(&mut self, addr: Val, off: i64, len: u32, ctx: usize) {
        self.push(Inst { a: addr, imm: off, aux: (len << 2) as u16 | ctx as u16, ..Inst::new(Op::ProbeW, Ty::I64) });
    }

    pub fn rmw(&mut self, kind: Rmw, addr: Val, v: Val, ctx: usize) -> Val {
        let ty = self.ty(v);
        self.push(Inst { a: addr, b: v, aux: (kind as u16) << 2 | ctx as u16, ..Inst::new(Op::AtomicRmw, ty) })
    }

    pub fn cas(&mut self, addr: Val, expected: Val, new: Val, ctx: usize) -> Val {
        let ty = self.ty(new);
        self.push(Inst { a: addr, b: expected, c: new, aux: ctx as u16, ..Inst::new(Op::AtomicCas, ty) })
    }

    pub fn vec(&mut self, op: VecOp, a: Val, b: Val) -> Val {
        self.push(Inst { a, b, aux: op as u16, ..Inst::new(Op::Vec, Ty::V128) })
    }

    /// A floating-point op, in the form that it has.
    pub fn fp(&mut self, op: FpOp, a: Val, b: Val) -> Val {
        let form = match (op.gives_integer(), op.takes_integer()) {
            (true, _) => Op::FpGet,
            (_, true) => Op::FpSet,
            _ => Op::VFp,
        };
        self.push(Inst { a, b, aux: op as u16, ..Inst::new(form, Ty::V128) })
    }

    pub fn tri(&mut self, op: TriOp, a: Val, b: Val, c: Val) -> Val {
        self.push(Inst { a, b, c, aux: op as u16, ..Inst::new(Op::VTri, Ty::V128) })
    }

    /// Shifts lanes by a constant less than their width.
    pub fn vshift(&mut self, kind: VecShift, a: Val, n: u32) -> Val {
        debug_assert!(n < kind.width());
        self.push(Inst { a, aux: kind as u16, imm: n.into(), ..Inst::new(Op::VShift, Ty::V128) })
    }

    /// Byte i of the result is byte `mask[i]` of b:a (0..=31).
    pub fn vshuffle(&mut self, a: Val, b: Val, mask: [u8; 16]) -> Val {
        let bits = mask.iter().rev().fold(0u128, |r, m| r << 5 | u128::from(m & 31));
        self.push(Inst { a, b, aux: (bits >> 64) as u16, imm: bits as u64 as i64, ..Inst::new(Op::VShuffle, Ty::V128) })
    }

    /// Top bits of the lanes of `width` bits.
    pub fn vmask(&mut self, v: Val, width: u16) -> Val {
        self.push(Inst { a: v, aux: width, ..Inst::new(Op::VMask, Ty::V128) })
    }

    pub fn vlane(&mut self, v: Val, lane: u16) -> Val {
        self.push(Inst { a: v, aux: lane, ..Inst::new(Op::VLane, Ty::V128) })
    }

    pub fn vset_lane(&mut self, v: Val, lane: u16, x: Val) -> Val {
        self.push(Inst { a: v, b: x, aux: lane, ..Inst::new(Op::VSetLane, Ty::V128) })
    }

    /// Calls a helper with up to three I64 operands.
    pub fn call(&mut self, helper: HelperId, args: &[Val]) -> Val {
        let arg = |i: usize| args.get(i).copied().unwrap_or(Val::NONE);
        debug_assert!(args.len() <= 3 && args.iter().all(|v| self.ty(*v) == Ty::I64));
        self.push(Inst { a: arg(0), b: arg(1), c: arg(2), imm: args.len() as i64, aux: helper.0, ..Inst::new(Op::Call, Ty::I64) })
    }

    /// `error`: error code of the exception, if it has one.
    pub fn raise_if(&mut self, cond: Val, vector: u8, error: Option<u32>) {
        let imm = error.map_or(-1, i64::from);
        self.push(Inst { a: cond, aux: vector.into(), imm, ..Inst::new(Op::RaiseIf, Ty::I8) });
    }

    pub fn leave_if(&mut self, cond: Val) {
        self.push(Inst { a: cond, ..Inst::new(Op::LeaveIf, Ty::I8) });
    }

    pub fn side(&mut self, cond: Val, target: i64) {
        self.push(Inst { a: cond, imm: target, ..Inst::new(Op::Side, Ty::I8) });
    }

    pub fn jump(&mut self, target: i64) {
        self.push(Inst { imm: target, ..Inst::new(Op::Jump, Ty::I64) });
    }

    /// As `jump`, for a call that returns to the next instruction.
    pub fn call_to(&mut self, target: i64) {
        self.push(Inst { imm: target, aux: 1, ..Inst::new(Op::Jump, Ty::I64) });
    }

    pub fn br(&mut self, cond: Val, taken: i64) {
        self.push(Inst { a: cond, imm: taken, ..Inst::new(Op::Br, Ty::I8) });
    }

    pub fn jump_ind(&mut self, pc: Val, hint: u16) {
        self.push(Inst { a: pc, aux: hint, ..Inst::new(Op::JumpInd, Ty::I64) });
    }

    pub fn exit(&mut self) {
        self.push(Inst::new(Op::Exit, Ty::I64));
    }

    pub fn exit_next(&mut self) {
        self.push(Inst::new(Op::ExitNext, Ty::I64));
    }

    pub fn terminator(&self) -> Option<&Inst> {
        self.insts.last().filter(|i| i.op.is_terminator())
    }
}
