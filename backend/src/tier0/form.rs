//! From IR to tier 0's ops: operands become byte offsets from the seam. A value that only travels between state slots gets
//! no place of its own: `get` gives the slot itself, and a result that is stored at once is computed in its slot.
//!
//! UNSAFE: only the reading of handlers and edges out of slots that this module wrote.
#![allow(unsafe_code)]

use super::vector;
use super::{counted, observed, ops};
use crate::atomic::AtomicArgs;
use crate::cache::Record;
use crate::vblock::{TEMPS, VcpuBlock};
use ir::{Block, Effects, HelperDesc, Inst, Op, Rmw, StateLayout, Ty, Val};
use vm_core::guest::GuestCpu;

pub type Handler = unsafe extern "C" fn(*mut u8, *mut COp) -> *mut COp;

/// One op, or a further slot of the op before it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct COp {
    /// The handler's address; in further slots any word.
    pub h: usize,
    /// Offset of the result.
    pub d: u16,
    pub a: u16,
    /// A 32-bit constant, or the offsets b (low) and c (high).
    pub x: u32,
}

/// A direct edge to another block; takes one slot.
#[repr(C)]
pub struct Edge {
    /// First op of the target, null while not linked.
    pub link: *mut COp,
    /// How often it was taken.
    pub count: u32,
    /// Page offset of the target.
    pub off: i32,
}

const _: () = assert!(size_of::<COp>() == 16 && size_of::<Edge>() == 16);

impl COp {
    fn new(h: Handler, d: u16, a: u16, x: u32) -> Self {
        Self { h: h as usize, d, a, x }
    }

    #[inline(always)]
    pub fn b(self) -> u16 {
        self.x as u16
    }

    #[inline(always)]
    pub fn c(self) -> u16 {
        (self.x >> 16) as u16
    }

    #[inline(always)]
    pub fn handler(self) -> Handler {
        // SAFETY: called on op slots only, whose `h` was written from a `Handler`.
        unsafe { std::mem::transmute::<usize, Handler>(self.h) }
    }

    /// The record that a block-start op names, in its d, a, x fields.
    #[inline(always)]
    pub fn record_here(&self) -> *mut Record {
        (u64::from(self.x) | u64::from(self.d) << 32 | u64::from(self.a) << 48) as *mut Record
    }

    pub fn set_record(&mut self, rec: *mut Record) {
        let p = rec as u64;
        (self.x, self.d, self.a) = (p as u32, (p >> 32) as u16, (p >> 48) as u16);
    }

    /// The record whose code starts at this op.
    ///
    /// # Safety
    /// The op is a block start.
    pub unsafe fn record(&self) -> *mut Record {
        self.record_here()
    }

    pub fn set_handler(&mut self, h: Handler) {
        self.h = h as usize;
    }

    fn pack_atomic(args: AtomicArgs) -> Self {
        let rmw = args.rmw.map_or(u16::MAX, |r| r as u16);
        Self { h: 0, d: args.ty as u16, a: rmw, x: args.ctx.into() }
    }

    pub fn atomic_args(self) -> AtomicArgs {
        AtomicArgs { ty: Ty::ALL[usize::from(self.d)], ctx: self.x as u8, rmw: Rmw::from_index(self.a) }
    }
}

/// Where a value is.
#[derive(Clone, Copy, Debug)]
enum Loc {
    /// Not computed (yet).
    None,
    Const(u64),
    /// State slot, byte offset from the seam; may be overwritten.
    State(u16),
    Temp(u16),
}

/// Reusable working storage.
#[derive(Default)]
pub struct Former {
    loc: Vec<Loc>,
    last_use: Vec<u32>,
    /// For each value, the state offset that it is computed in directly, or `NO_SLOT`.
    direct: Vec<u16>,
    /// Values that live in state slots: value, offset, size.
    aliased: Vec<(Val, u16, u16)>,
    free: Vec<u16>,
    next_temp: usize,
    out: Vec<COp>,
    insn_at: Vec<(u16, u16)>,
    edges: [u16; 2],
    insn: u32,
    /// Instructions are counted.
    counted: bool,
    /// Instructions of the block from the present one on.
    rest: u32,
    told: Told,
    /// Host address of the page that the block comes from.
    source: u64,
}

/// What an observer is told by a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Told {
    #[default]
    Nothing,
    Insns,
    /// Of itself too.
    All,
}

const NO_SLOT: u16 = u16::MAX;

/// A block's code.
pub struct Formed {
    pub ops: Box<[COp]>,
    pub insn_at: Box<[(u16, u16)]>,
    pub edges: [u16; 2],
}

/// The block needs more temporaries than there are: translate fewer instructions.
#[derive(Debug)]
pub struct TooLarge;

impl Former {
    /// `counted`: blocks take their instructions from `Engine::budget`.
    pub fn new(counted: bool) -> Self {
        Self { counted, ..Self::default() }
    }

    /// Handler of starts of blocks.
    fn start<C: GuestCpu>(&self) -> Handler {
        if self.counted { counted::start::<C> } else { ops::start::<C> }
    }

    /// Handler of starts of blocks of one instruction that runs alone.
    pub fn start_alone<C: GuestCpu>(&self) -> Handler {
        if self.counted { counted::start_alone::<C> } else { ops::start_alone::<C> }
    }

    /// `source`: host address of the page that the block comes from, which may change at any time but stays where it is.
    pub fn form<C: GuestCpu>(
        &mut self,
        block: &Block,
        layout: &StateLayout,
        helpers: &[HelperDesc],
        told: Told,
        source: u64,
    ) -> Result<Formed, TooLarge> {
        self.prepare(block, layout, helpers);
        (self.told, self.source) = (told, source);
        self.emit(COp::new(self.start::<C>(), 0, 0, 0));
        if told == Told::All {
            self.emit(COp::new(observed::block::<C>, 0, 0, 0));
        }
        for i in 0..block.insts.len() {
            self.one::<C>(block, layout, helpers, i)?;
        }
        Ok(Formed { ops: self.out.as_slice().into(), insn_at: self.insn_at.as_slice().into(), edges: self.edges })
    }

    fn prepare(&mut self, block: &Block, layout: &StateLayout, helpers: &[HelperDesc]) {
        let n = block.insts.len();
        self.loc.clear();
        self.loc.resize(n, Loc::None);
        self.last_use.clear();
        self.last_use.resize(n, 0);
        self.direct.clear();
        self.direct.resize(n, NO_SLOT);
        self.aliased.clear();
        self.free.clear();
        self.next_temp = 0;
        self.out.clear();
        self.insn_at.clear();
        self.edges = [0; 2];
        self.insn = block.start;
        self.rest = block.guest_insns + 1;
        for (i, inst) in block.insts.iter().enumerate() {
            inst.each_operand(|v| self.last_use[v.index()] = i as u32);
        }
        for (i, inst) in block.insts.iter().enumerate() {
            if inst.op == Op::Set {
                self.plan_direct(block, layout, helpers, i, inst);
            }
        }
    }

    /// Computes the stored value in its slot right away if nothing between sees the difference.
    fn plan_direct(&mut self, block: &Block, layout: &StateLayout, helpers: &[HelperDesc], at: usize, set: &Inst) {
        let def = set.a.index();
        let makes = &block.insts[def];
        let own = !matches!(makes.op, Op::Get | Op::Const) && self.direct[def] == NO_SLOT;
        let near = at - def <= 24;
        if !own || !near || makes.result() != Some(set.ty) {
            return;
        }
        let (off, size) = slot_range(layout, set);
        // The op's own side exit comes before its result is written, but a slow load writes nothing on a fault, so only
        // what lies between counts.
        let clear = block.insts[def + 1..at].iter().all(|i| {
            let touches = || matches!(i.op, Op::Get | Op::Set) && overlap(slot_range(layout, i), (off, size));
            let leaves = i.op.effects().has(Effects::MAY_LEAVE) || i.op == Op::Call && !pure_call(helpers, i);
            !leaves && !touches()
        });
        if clear {
            self.direct[def] = off;
        }
    }

    fn emit(&mut self, op: COp) {
        self.out.push(op);
    }

    fn temp<C: GuestCpu>(&mut self) -> Result<u16, TooLarge> {
        if let Some(t) = self.free.pop() {
            return Ok(t);
        }
        if self.next_temp == TEMPS {
            return Err(TooLarge);
        }
        self.next_temp += 1;
        Ok((VcpuBlock::<C>::temps_offset() + 16 * (self.next_temp - 1)) as u16)
    }

    /// Operand as an offset; a constant is put into a temporary.
    fn operand<C: GuestCpu>(&mut self, block: &Block, v: Val) -> Result<u16, TooLarge> {
        match self.loc[v.index()] {
            Loc::State(o) | Loc::Temp(o) => Ok(o),
            Loc::Const(c) => {
                let t = self.temp::<C>()?;
                self.emit_const(block.ty(v), t, c);
                self.loc[v.index()] = Loc::Temp(t);
                Ok(t)
            }
            Loc::None => Ok(VcpuBlock::<C>::temps_offset() as u16),
        }
    }

    fn emit_const(&mut self, ty: Ty, d: u16, c: u64) {
        match (ty, imm32(ty, c)) {
            (Ty::V128, _) => {
                self.emit(COp::new(ops::imm128, d, 0, 0));
                self.emit(COp { h: c as usize, d: 0, a: 0, x: 0 });
            }
            (_, Some(x)) => self.emit(COp::new(ops::imm(ty), d, 0, x)),
            _ => {
                self.emit(COp::new(ops::imm64, d, 0, 0));
                self.emit(COp { h: c as usize, d: 0, a: 0, x: 0 });
            }
        }
    }

    /// Before state bytes change: values that still live there and are used later move to temporaries. `at`: the op that
    /// changes them (its own operands are read before it writes).
    fn save_aliased<C: GuestCpu>(&mut self, block: &Block, at: usize, range: Option<(u16, u16)>) -> Result<(), TooLarge> {
        let mut i = 0;
        while i < self.aliased.len() {
            let (v, off, size) = self.aliased[i];
            let hit = range.is_none_or(|r| overlap(r, (off, size)));
            if !hit {
                i += 1;
                continue;
            }
            self.aliased.swap_remove(i);
            if self.last_use[v.index()] as usize > at {
                let t = self.temp::<C>()?;
                self.emit(COp::new(ops::copy(block.ty(v)), t, off, 0));
                self.loc[v.index()] = Loc::Temp(t);
            }
        }
        Ok(())
    }

    /// Gives temporaries whose last use was op `at` back.
    fn release(&mut self, inst: &Inst, at: usize) {
        inst.each_operand(|v| {
            if self.last_use[v.index()] as usize == at
                && let Loc::Temp(t) = self.loc[v.index()]
            {
                self.loc[v.index()] = Loc::None;
                self.free.push(t);
            }
        });
    }

    /// Where the result of op `at` goes.
    fn result<C: GuestCpu>(&mut self, block: &Block, at: usize) -> Result<u16, TooLarge> {
        let (v, size) = (Val(at as u32), block.insts[at].result().map_or(0, |t| t.bytes() as u16));
        match self.direct[at] {
            NO_SLOT => {
                let t = self.temp::<C>()?;
                if self.last_use[at] == 0 {
                    self.free.push(t);
                } else {
                    self.loc[at] = Loc::Temp(t);
                }
                Ok(t)
            }
            off => {
                self.save_aliased::<C>(block, at, Some((off, size)))?;
                self.loc[at] = Loc::State(off);
                self.aliased.push((v, off, size));
                Ok(off)
            }
        }
    }

    fn one<C: GuestCpu>(
        &mut self,
        block: &Block,
        layout: &StateLayout,
        helpers: &[HelperDesc],
        at: usize,
    ) -> Result<(), TooLarge> {
        let inst = &block.insts[at];
        match inst.op {
            Op::Insn => {
                self.insn = inst.imm as u32;
                self.rest = self.rest.saturating_sub(1);
                self.insn_at.push((self.out.len() as u16, inst.imm as u16));
                if self.told != Told::Nothing {
                    self.emit(COp::new(observed::insn::<C>, inst.aux, 0, self.insn));
                }
            }
            Op::Const => self.loc[at] = Loc::Const(inst.imm as u64 & inst.ty.mask()),
            Op::Get => {
                let (off, size) = slot_range(layout, inst);
                self.loc[at] = Loc::State(off);
                self.aliased.push((Val(at as u32), off, size));
            }
            Op::Set => self.set::<C>(block, layout, at)?,
            Op::Trunc => self.trunc::<C>(block, at)?,
            // Its operands are read by the branch: they must not be released here.
            Op::Cmp if self.fuses_with_branch(block, at) => return Ok(()),
            Op::Call => self.call::<C>(block, helpers, at)?,
            Op::Br => self.branch::<C>(block, at)?,
            Op::Jump => {
                self.emit(COp::new(ops::jump::<C>, 0, 0, 0));
                self.edge(0, inst.imm);
            }
            Op::JumpInd => {
                let a = self.operand::<C>(block, inst.a)?;
                self.emit(COp::new(ops::jump_ind::<C>, 0, a, 0));
            }
            Op::Exit => self.emit(COp::new(ops::exit::<C>, 0, 0, 0)),
            Op::ExitNext => self.emit(COp::new(ops::exit_next::<C>, 0, 0, block.next as u32)),
            Op::Load | Op::Store | Op::ProbeW | Op::AtomicRmw | Op::AtomicCas => self.memory::<C>(block, at)?,
            _ => self.plain::<C>(block, at)?,
        }
        let inst = &block.insts[at];
        self.release(inst, at);
        Ok(())
    }

    /// Arithmetic, comparison, conversion, vector ops.
    fn plain<C: GuestCpu>(&mut self, block: &Block, at: usize) -> Result<(), TooLarge> {
        let inst = block.insts[at];
        let a = if inst.a == Val::NONE { 0 } else { self.operand::<C>(block, inst.a)? };
        let imm_b = match inst.op {
            Op::Cmp => self.imm_operand(inst.b, inst.ty),
            _ if is_bin(inst.op) && inst.op.args() == 2 => self.imm_operand(inst.b, inst.ty),
            _ => None,
        };
        let b = if inst.b == Val::NONE || imm_b.is_some() { 0 } else { self.operand::<C>(block, inst.b)? };
        let c = if inst.c == Val::NONE { 0 } else { self.operand::<C>(block, inst.c)? };
        let bc = u32::from(b) | u32::from(c) << 16;
        let d = self.result::<C>(block, at)?;
        let (h, x) = match inst.op {
            Op::PcRel => (ops::pc_rel::<C> as Handler, inst.imm as u32),
            Op::Source => {
                self.emit(COp::new(ops::source(inst.ty), d, 0, 0));
                self.emit(COp { h: (self.source + inst.imm as u64) as usize, d: 0, a: 0, x: 0 });
                return Ok(());
            }
            Op::Cmp => (ops::cmp::<C>(inst.cond(), inst.ty, imm_b.is_some()), imm_b.unwrap_or(bc)),
            Op::ZExt => (ops::extend(false, block.ty(inst.a), inst.ty), 0),
            Op::SExt => (ops::extend(true, block.ty(inst.a), inst.ty), 0),
            Op::Select => (ops::select(inst.ty), bc),
            Op::Vec => (vector::vec(inst.vec_op()), u32::from(b) | u32::from(inst.aux) << 16),
            Op::VFp | Op::FpGet | Op::FpSet => (vector::fp::<C>(inst.op), u32::from(b) | u32::from(inst.aux) << 16),
            Op::VLane => (vector::vlane as Handler, inst.aux.into()),
            Op::VShift => (vector::vshift as Handler, u32::from(inst.aux) | (inst.imm as u32) << 16),
            Op::VMask => (vector::vmask as Handler, inst.aux.into()),
            Op::VTri => {
                self.emit(COp::new(vector::tri::<C>, d, a, bc));
                self.emit(COp { h: usize::from(inst.aux), d: 0, a: 0, x: 0 });
                return Ok(());
            }
            Op::VShuffle => {
                self.emit(COp::new(vector::vshuffle, d, a, u32::from(b)));
                self.emit_mask(inst.shuffle_mask());
                return Ok(());
            }
            Op::VSetLane => (vector::vset_lane as Handler, u32::from(b) | u32::from(inst.aux) << 16),
            Op::RaiseIf => {
                self.emit(COp::new(ops::raise_if::<C>, 0, a, 0));
                self.emit(COp { h: inst.imm as usize, d: 0, a: 0, x: inst.aux.into() });
                return Ok(());
            }
            Op::LeaveIf | Op::Side => (ops::leave_if::<C> as Handler, 0),
            _ => (ops::bin::<C>(inst.op, inst.ty, imm_b.is_some()), imm_b.unwrap_or(bc)),
        };
        self.emit(COp::new(h, d, a, x));
        Ok(())
    }

    fn emit_mask(&mut self, m: [u8; 16]) {
        let (lo, hi) = m.split_at(8);
        let word = |b: &[u8]| b.iter().rev().fold(0u64, |w, x| w << 8 | u64::from(*x));
        let hi = word(hi);
        self.emit(COp { h: word(lo) as usize, d: hi as u16, a: (hi >> 16) as u16, x: (hi >> 32) as u32 });
    }

    fn imm_operand(&self, v: Val, ty: Ty) -> Option<u32> {
        match self.loc[v.index()] {
            Loc::Const(c) => imm32(ty, c),
            _ => None,
        }
    }

    fn set<C: GuestCpu>(&mut self, block: &Block, layout: &StateLayout, at: usize) -> Result<(), TooLarge> {
        let inst = block.insts[at];
        let (off, size) = slot_range(layout, &inst);
        if let Loc::State(o) = self.loc[inst.a.index()]
            && o == off
            && self.direct[inst.a.index()] == off
        {
            return Ok(());
        }
        self.save_aliased::<C>(block, at, Some((off, size)))?;
        match self.loc[inst.a.index()] {
            Loc::Const(c) => self.emit_const(inst.ty, off, c),
            Loc::State(o) if o == off => {}
            _ => {
                let a = self.operand::<C>(block, inst.a)?;
                self.emit(COp::new(ops::copy(inst.ty), off, a, 0));
            }
        }
        Ok(())
    }

    /// The low bytes of a value are where the value is.
    fn trunc<C: GuestCpu>(&mut self, block: &Block, at: usize) -> Result<(), TooLarge> {
        let inst = block.insts[at];
        let a = self.operand::<C>(block, inst.a)?;
        let aliases = matches!(self.loc[inst.a.index()], Loc::State(_)) && self.direct[at] == NO_SLOT;
        if aliases {
            self.loc[at] = Loc::State(a);
            self.aliased.push((Val(at as u32), a, inst.ty.bytes() as u16));
        } else {
            let d = self.result::<C>(block, at)?;
            self.emit(COp::new(ops::copy(inst.ty), d, a, 0));
        }
        Ok(())
    }

    /// A comparison used only by the branch that ends the block, with nothing emitted between.
    fn fuses_with_branch(&self, block: &Block, at: usize) -> bool {
        let last = block.insts.len() - 1;
        let br = &block.insts[last];
        br.op == Op::Br && br.a.index() == at && block.insts[at + 1..last].iter().all(|i| i.op == Op::Const)
    }

    fn branch<C: GuestCpu>(&mut self, block: &Block, at: usize) -> Result<(), TooLarge> {
        let inst = block.insts[at];
        let cond = block.insts[inst.a.index()];
        if cond.op == Op::Cmp && self.fuses_with_branch(block, inst.a.index()) {
            let a = self.operand::<C>(block, cond.a)?;
            let imm = self.imm_operand(cond.b, cond.ty);
            let x = match imm {
                Some(x) => x,
                None => self.operand::<C>(block, cond.b)?.into(),
            };
            self.emit(COp::new(ops::cmp_br::<C>(cond.cond(), cond.ty, imm.is_some()), 0, a, x));
        } else {
            let a = self.operand::<C>(block, inst.a)?;
            self.emit(COp::new(ops::br::<C>, 0, a, 0));
        }
        self.edge(0, inst.imm);
        self.edge(1, block.next);
        Ok(())
    }

    fn edge(&mut self, i: usize, off: i64) {
        self.edges[i] = self.out.len() as u16;
        // As `Edge`: no link, count 0, the offset in the last word.
        self.emit(COp { h: 0, d: 0, a: 0, x: off as u32 });
    }

    fn call<C: GuestCpu>(&mut self, block: &Block, helpers: &[HelperDesc], at: usize) -> Result<(), TooLarge> {
        let inst = block.insts[at];
        let desc = &helpers[usize::from(inst.aux)];
        let mut arg = [VcpuBlock::<C>::temps_offset() as u16; 3];
        for (slot, v) in arg.iter_mut().zip([inst.a, inst.b, inst.c]) {
            if v != Val::NONE {
                *slot = self.operand::<C>(block, v)?;
            }
        }
        if desc.effects.has(Effects::WRITES_STATE) {
            self.save_aliased::<C>(block, at, None)?;
            // Operands may have moved; read them where they are now.
            for (slot, v) in arg.iter_mut().zip([inst.a, inst.b, inst.c]) {
                if v != Val::NONE {
                    *slot = self.operand::<C>(block, v)?;
                }
            }
        }
        let d = self.result::<C>(block, at)?;
        let needs_pc = desc.effects.has(Effects::MAY_LEAVE) || desc.effects.has(Effects::READS_STATE);
        let h = if self.counted { counted::call::<C> } else { ops::call::<C> };
        self.emit(COp::new(h, d, arg[0], u32::from(arg[1]) | u32::from(arg[2]) << 16));
        self.emit(COp { h: inst.aux.into(), d: self.rest as u16, a: needs_pc.into(), x: self.insn });
        Ok(())
    }

    fn memory<C: GuestCpu>(&mut self, block: &Block, at: usize) -> Result<(), TooLarge> {
        let inst = block.insts[at];
        let mut a = self.operand::<C>(block, inst.a)?;
        let mut x = inst.imm;
        // Given back once the op is out: its other operands must not land in the address.
        let mut spare = [None; 2];
        if x != i64::from(x as i32) || x != 0 && matches!(inst.op, Op::AtomicRmw | Op::AtomicCas) {
            let (t, u) = (self.temp::<C>()?, self.temp::<C>()?);
            self.emit_const(Ty::I64, t, x as u64);
            self.emit(COp::new(ops::bin::<C>(Op::Add, Ty::I64, false), u, a, t.into()));
            spare = [Some(t), Some(u)];
            (a, x) = (u, 0);
        }
        let (x, ctx) = (x as u32, usize::from(inst.aux & 3));
        match inst.op {
            Op::Load => {
                let d = self.result::<C>(block, at)?;
                self.emit(COp::new(ops::load::<C>(inst.ty, ctx), d, a, x));
            }
            Op::Store => {
                let b = self.operand::<C>(block, inst.b)?;
                self.emit(COp::new(ops::store::<C>(inst.ty, ctx), b, a, x));
            }
            Op::ProbeW => self.emit(COp::new(ops::probe_w::<C>, inst.aux, a, x)),
            _ => {
                let b = self.operand::<C>(block, inst.b)?;
                let c = if inst.c == Val::NONE { 0 } else { self.operand::<C>(block, inst.c)? };
                let rmw = (inst.op == Op::AtomicRmw).then(|| inst.rmw());
                let d = self.result::<C>(block, at)?;
                self.emit(COp::new(ops::atomic::<C>, d, a, u32::from(b) | u32::from(c) << 16));
                self.emit(COp::pack_atomic(AtomicArgs { ty: inst.ty, ctx: ctx as u8, rmw }));
            }
        }
        self.free.extend(spare.into_iter().flatten());
        Ok(())
    }
}

fn is_bin(op: Op) -> bool {
    (Op::Add as u8..=Op::Bswap as u8).contains(&(op as u8))
}

fn pure_call(helpers: &[HelperDesc], i: &Inst) -> bool {
    helpers[usize::from(i.aux)].effects == Effects::NONE
}

/// (offset from the seam, size) of the state bytes that a Get or Set touches.
fn slot_range(layout: &StateLayout, i: &Inst) -> (u16, u16) {
    ((layout.slot(i.slot()).offset + i.imm as u32) as u16, i.ty.bytes() as u16)
}

fn overlap(a: (u16, u16), b: (u16, u16)) -> bool {
    a.0 < b.0 + b.1 && b.0 < a.0 + a.1
}

/// The constant as 32 bits that sign-extend to it in `ty`.
fn imm32(ty: Ty, c: u64) -> Option<u32> {
    match ty {
        Ty::I8 | Ty::I16 | Ty::I32 => Some(c as u32),
        Ty::I64 => (c as i64 == i64::from(c as i32)).then_some(c as u32),
        Ty::V128 => None,
    }
}
