//! One block: what an op needs to know, and the walk over the ops.

use super::cold::Cold;
use super::late::LateStore;
use super::locked::is_inline;
use super::region::Inside;
use super::regs::{Loc, Regs};
use super::share::Copy;
use super::{asm, st};
use crate::cache::Record;
use crate::far::{Far, Key};
use crate::jit::arena::{COLD, HostCode};
use crate::vblock::Shape;
use ir::{Block, HelperDesc, Inst, Op, StateLayout, Ty, Val};

use dynasmrt::{DynasmApi, SimpleAssembler};

/// Edges of a block that may leave its page, and all that it can have.
pub const NEAR_OR_FAR: usize = 3;
pub const EDGES: usize = NEAR_OR_FAR + ir::SIDES;

/// What emitting must know of the engine and the guest.
pub struct Env<'a> {
    pub layout: &'a StateLayout,
    pub helpers: &'a [HelperDesc],
    /// Where the engine's state lies, and the guest's.
    pub shape: Shape,
    pub pc_mask: u64,
    /// Access context of ordinary accesses, whose TLB r14 leads to.
    pub ctx: usize,
    /// The record that the code is for; it lives as long as the code.
    pub record: *mut Record,
    /// Count down `Record::hot` and leave with `Why::Hot` at 0.
    pub counts: bool,
    /// Take the block's instructions from `Engine::budget`.
    pub counted: bool,
    /// Places for the keys of edges that leave the page, and of the guard.
    pub keys: [Key; NEAR_OR_FAR + 1],
    /// Links out of the page are to other global pages.
    pub global: bool,
    /// The block straddles: it runs only where it is known to be right.
    pub guarded: bool,
    /// Page offsets of instructions whose accesses often cross pages: see `share`.
    pub apart: &'a [u32],
    /// Host address of the page that the block comes from, which may change at any time but stays where it is.
    pub source: u64,
}

/// Where a block's code is entered: see `cache::Record`.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    pub full: u32,
    pub linked: u32,
    pub forward: u32,
}

/// Emitted code of a block; offsets are from its first byte.
pub struct Code<'a> {
    pub code: HostCode<'a>,
    pub entries: Entries,
    /// The first edge is a call, which asks for the dispatcher itself.
    pub calls: bool,
    /// For each edge, 0 = taken, 1 = not, 2 = behind a call, then those of `Op::Side`: where the rel32 of its jump ends, and the stub that it leads to while not linked.
    pub edges: [Option<(u32, u32)>; EDGES],
    /// For those edges that leave the page.
    pub far: [Option<Box<Far>>; NEAR_OR_FAR],
    pub guard: Option<Box<Far>>,
}

/// Reused from block to block.
#[derive(Default)]
pub(super) struct Buffers {
    pub code: Vec<u8>,
    pub regs: Regs,
    pub cold: Vec<Cold>,
    pub ways: Vec<(usize, i32, u32)>,
    pub late_stores: Vec<LateStore>,
    pub crossing: Vec<u32>,
}

impl Buffers {
    /// The code, whose cold part begins at byte `split`.
    pub fn parts(&self, split: usize) -> HostCode<'_> {
        let (hot, cold) = self.code.split_at(split);
        HostCode { hot, cold, crossing: &self.crossing }
    }
}

#[derive(Default)]
pub struct Tier1 {
    pub(super) buffers: Buffers,
}

pub(super) struct Emit<'a> {
    pub code: SimpleAssembler,
    pub env: &'a Env<'a>,
    pub block: &'a Block,
    pub r: Regs,
    pub cold: Vec<Cold>,
    /// Jumps to other pages: end of the jump, page offset, number of the edge.
    pub ways: Vec<(usize, i32, u32)>,
    /// Where the cold part begins.
    pub split: usize,
    /// See `HostCode`.
    pub crossing: Vec<u32>,
    /// Index of the op.
    pub at: u32,
    /// Page offset of the guest instruction.
    pub insn: u32,
    /// Instructions of the block from this one on.
    pub rest: u32,
    pub edges: [Option<(u32, u32)>; EDGES],
    pub far: [Option<Box<Far>>; NEAR_OR_FAR],
    /// Ops of kind `Side` so far.
    pub sides: u32,
    pub guard: Option<Box<Far>>,
    /// The first edge is a call.
    pub calls: bool,
    /// Floating point has been made ready: see `fp`.
    pub fp_ready: bool,
    /// The x87 state is known to be in the host's FPU, or in the guest's state: see `x87`.
    pub x87_ready: bool,
    pub x87_home: bool,
    pub region: Option<Inside>,
    pub copies: Vec<Copy<'a>>,
    /// Stores of cold code: see `late`.
    pub late_stores: Vec<LateStore>,
    /// Groups that begin at this op or behind are not used.
    pub apart_from: u32,
}

impl Tier1 {
    /// Whether this host has what emitted code uses.
    pub fn available() -> bool {
        #[cfg(target_arch = "x86_64")]
        return is_x86_feature_detected!("ssse3") && is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("popcnt");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether the host has RORX, which shifts into another register.
    pub fn has_rorx() -> bool {
        #[cfg(target_arch = "x86_64")]
        return is_x86_feature_detected!("bmi2");
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Emits an optimised block.
    pub fn emit<'a>(&'a mut self, env: &'a Env<'a>, block: &'a Block) -> Code<'a> {
        let mut b = std::mem::take(&mut self.buffers);
        b.code.clear();
        b.cold.clear();
        b.late_stores.clear();
        b.crossing.clear();
        let mut code = SimpleAssembler::new();
        code.ops = b.code;
        let mut e = Emit {
            code,
            env,
            block,
            r: b.regs,
            cold: b.cold,
            ways: b.ways,
            split: usize::MAX,
            crossing: b.crossing,
            at: 0,
            insn: block.start,
            rest: 0,
            edges: [None; EDGES],
            far: [const { None }; NEAR_OR_FAR],
            sides: 0,
            guard: None,
            calls: false,
            fp_ready: false,
            x87_ready: false,
            x87_home: false,
            region: None,
            copies: Vec::new(),
            late_stores: b.late_stores,
            apart_from: u32::MAX,
        };
        e.prepare();
        let entries = e.entry();
        e.ops();
        e.cold_code();
        let (edges, far, guard, split, calls) = (e.edges, e.far, e.guard, e.split, e.calls);
        self.buffers =
            Buffers { code: e.code.ops, regs: e.r, cold: e.cold, ways: e.ways, late_stores: e.late_stores, crossing: e.crossing };
        Code { code: self.buffers.parts(split), entries, calls, edges, far, guard }
    }
}

impl Emit<'_> {
    /// Finds last uses and calls. What the next op does (`fuses`) has its operands live till then.
    pub(super) fn prepare(&mut self) {
        self.r.reset(self.block.insts.len());
        self.rest = self.block.guest_insns + 1;
        self.find_last_uses();
        for (i, inst) in self.block.insts.iter().enumerate() {
            let calls = match inst.op {
                Op::Call => !self.is_x87(inst),
                Op::Vec => super::vector::opcode(inst.vec_op()).is_none(),
                Op::AtomicRmw | Op::AtomicCas => !is_inline(inst),
                _ => super::memory::calls(inst),
            };
            if calls {
                self.r.calls.push(i as u32);
            }
        }
        for (i, inst) in self.block.insts.iter().enumerate() {
            if self.fuses(i) {
                inst.each_operand(|v| {
                    let last = &mut self.r.last[v.index()];
                    *last = (*last).max(i as u32 + 1);
                });
            }
        }
        self.find_direct();
        self.find_late();
        self.find_target_check();
        self.find_deposits();
    }

    /// Also of the groups' host addresses.
    fn find_last_uses(&mut self) {
        let (block, n) = (self.block, self.block.insts.len());
        self.r.groups.find(block, self.env);
        let all = n + self.r.groups.list.len();
        self.r.loc.resize(all, Loc::None);
        self.r.last.resize(all, 0);
        for (k, inst) in (0..).zip(&block.insts) {
            inst.each_operand(|v| self.r.last[v.index()] = k);
            if let Some((g, ..)) = self.r.groups.get(k) {
                let host = self.host_of(g);
                self.r.last[host.index()] = k;
            }
        }
        if let Some(v) = self.returns_to() {
            self.r.last[v.index()] = n as u32 - 1;
        }
    }

    /// All ops of the block.
    pub(super) fn ops(&mut self) {
        for i in 0..self.block.insts.len() {
            self.at = i as u32;
            self.note_end();
            self.op(&self.block.insts[i]);
            self.release();
        }
    }

    /// Whether the op at `i` is left to the next, which alone uses it: a comparison that is its condition, a shift that a sum takes
    /// as the host's addresses do.
    pub fn fuses(&self, i: usize) -> bool {
        let (inst, v) = (&self.block.insts[i], Val(i as u32));
        if !matches!(inst.op, Op::Cmp | Op::Shl) || self.r.last[i] != i as u32 + 1 {
            return false;
        }
        self.block.insts.get(i + 1).is_some_and(|n| match (inst.op, n.op) {
            (Op::Cmp, Op::Br | Op::Side | Op::Select | Op::RaiseIf | Op::LeaveIf) => n.a == v && n.b != v && n.c != v,
            (Op::Shl, Op::Add) if matches!(n.ty, Ty::I32 | Ty::I64) && self.scale(inst).is_some() => {
                n.a != n.b && self.block.as_const(if n.a == v { n.b } else { n.a }).is_none()
            }
            _ => false,
        })
    }

    /// log2 of what a shift multiplies by, if addresses may.
    pub fn scale(&self, shift: &Inst) -> Option<u64> {
        self.block.as_const(shift.b).filter(|c| (1..=3).contains(c))
    }

    pub fn slot_off(&self, i: &Inst) -> i32 {
        self.env.layout.slot(i.slot()).offset as i32 + i.imm as i32
    }

    pub(super) fn op(&mut self, i: &Inst) {
        let v = Val(self.at);
        if self.r.late.is_sunk(self.at) {
            return;
        }
        match i.op {
            Op::Insn => (self.insn, self.rest) = (i.imm as u32, self.rest - 1),
            Op::Const => self.r.loc[v.index()] = Loc::Const(i.imm as u64 & i.ty.mask()),
            Op::Get => {
                let off = self.slot_off(i);
                self.x87_to_state(off);
                self.r.alias(v, off, i.ty);
            }
            Op::Set => self.set(i),
            Op::PcRel => {
                let (d, off) = (self.dest(), self.page_off());
                st!(self, off; [mov Rq(d),] []);
                self.add_imm(d, i.imm);
            }
            Op::Source => {
                let d = self.dest();
                asm!(self; mov Rq(d), QWORD (self.env.source + i.imm as u64) as i64);
                match i.ty {
                    Ty::I8 => asm!(self; movzx Rd(d), BYTE [Rq(d)]),
                    Ty::I16 => asm!(self; movzx Rd(d), WORD [Rq(d)]),
                    Ty::I32 => asm!(self; mov Rd(d), [Rq(d)]),
                    _ => asm!(self; mov Rq(d), [Rq(d)]),
                }
            }
            Op::Load => self.load(i),
            Op::Store => self.store(i),
            Op::ProbeW => self.probe(i),
            Op::AtomicRmw | Op::AtomicCas if is_inline(i) => self.locked(i),
            Op::AtomicRmw | Op::AtomicCas => self.atomic(i),
            Op::Call => self.call(i),
            Op::RaiseIf if self.checks_target() => {}
            Op::RaiseIf | Op::LeaveIf => self.raise_if(i),
            Op::Side => self.side(i),
            Op::Jump | Op::Br | Op::JumpInd | Op::Exit | Op::ExitNext => self.terminator(i),
            Op::Vec | Op::VLane | Op::VSetLane | Op::VShift | Op::VShuffle | Op::VMask => self.vector(i),
            Op::VFp | Op::FpGet | Op::FpSet => self.fp(i),
            Op::VTri => self.tri(i),
            Op::Cmp | Op::Shl if self.fuses(self.at as usize) => {}
            _ => self.integer(i),
        }
    }

    /// A register plus a constant; flags stay as they are.
    pub fn lea(&mut self, d: u8, base: u8, imm: i32) {
        self.lea_of(true, d, base, imm);
    }

    /// The same, of the low 32 bits unless `wide`.
    pub fn lea_of(&mut self, wide: bool, d: u8, base: u8, imm: i32) {
        let start = self.here();
        match (i8::try_from(imm), wide) {
            (Ok(imm), true) => asm!(self; lea Rq(d), [BYTE Rq(base) + imm]),
            (Ok(imm), false) => asm!(self; lea Rd(d), [BYTE Rq(base) + imm]),
            (Err(_), true) => asm!(self; lea Rq(d), [Rq(base) + imm]),
            (Err(_), false) => asm!(self; lea Rd(d), [Rq(base) + imm]),
        }
        self.shorten(start);
    }

    /// The instruction that begins at `start` and has been written last: the assembler gives operands whose register it learns late a
    /// byte for an index (SIB, SDM 2A 2.1.5) that most can do without.
    pub fn shorten(&mut self, start: usize) {
        shorten(&mut self.code.ops, start);
    }

    /// Adds a constant to a 64-bit register; flags stay as they are.
    pub fn add_imm(&mut self, r: u8, imm: i64) {
        if imm == 0 {
        } else if let Ok(imm) = i32::try_from(imm) {
            self.lea(r, r, imm);
        } else {
            asm!(self; mov rax, QWORD imm; lea Rq(r), [Rq(r) + rax]);
        }
    }

    fn set(&mut self, i: &Inst) {
        let (off, size) = (self.slot_off(i), i.ty.bytes() as i32);
        if self.put_off(i, off) {
            return;
        }
        if self.loc(i.a) == Loc::State(off) {
            return;
        }
        if i.ty == Ty::V128 && self.set_zeros(i, off) {
            return;
        }
        self.x87_to_state(off);
        if let Some((pin, 0)) = self.r.pins.find(off).filter(|(p, _)| !p.is_vector()) {
            self.save_aliased(Some((off, size)));
            return self.store_pin(i.ty, pin, i.a);
        }
        // A wide load cannot be served from a narrow store that is on its way to memory: the host would wait for it.
        if matches!(i.ty, Ty::I8 | Ty::I16) && i.imm == 0 && self.env.layout.slot(i.slot()).size == 8 {
            return self.merge(i, off);
        }
        let constant = match self.loc(i.a) {
            Loc::Const(c) if i.ty != Ty::V128 => super::regs::imm32(i.ty, c),
            _ => None,
        };
        // In a register before its slot may change.
        match (i.ty, constant) {
            (Ty::V128, _) => {
                let r = self.xmm(i.a);
                self.save_aliased(Some((off, size)));
                match self.r.pins.find(off) {
                    Some((p, _)) => asm!(self; movdqa Rx(p.reg), Rx(r)),
                    None => st!(self, off; [movdqu] [, Rx(r)]),
                }
            }
            (_, Some(c)) => {
                self.save_aliased(Some((off, size)));
                self.store_imm(i.ty, off, c);
            }
            (ty, None) => {
                let r = self.gpr(i.a);
                self.save_aliased(Some((off, size)));
                self.store_state(ty, off, r);
            }
        }
    }

    /// Sets the low part of a slot by storing all of it.
    fn merge(&mut self, i: &Inst, off: i32) {
        let r = self.gpr(i.a);
        self.save_aliased(Some((off, i.ty.bytes() as i32)));
        st!(self, off; [mov rax,] []);
        match i.ty {
            Ty::I8 => asm!(self; mov al, Rb(r)),
            _ => asm!(self; mov ax, Rw(r)),
        }
        st!(self, off; [mov] [, rax]);
    }

    pub(super) fn store_imm(&mut self, ty: Ty, off: i32, c: i32) {
        match ty {
            Ty::I8 => st!(self, off; [mov BYTE] [, BYTE c as i8]),
            Ty::I16 => st!(self, off; [mov WORD] [, WORD c as i16]),
            Ty::I32 => st!(self, off; [mov DWORD] [, DWORD c]),
            _ => st!(self, off; [mov QWORD] [, DWORD c]),
        }
    }

    pub fn store_state(&mut self, ty: Ty, off: i32, r: u8) {
        match ty {
            Ty::I8 => st!(self, off; [mov] [, Rb(r)]),
            Ty::I16 => st!(self, off; [mov] [, Rw(r)]),
            Ty::I32 => st!(self, off; [mov] [, Rd(r)]),
            _ => st!(self, off; [mov] [, Rq(r)]),
        }
    }

    // --- jumps whose targets are filled in later

    pub fn here(&self) -> usize {
        self.code.offset().0
    }

    /// A near conditional jump; gives the end of its rel32. `cc`: low 4 bits of the opcode (SDM 2 Jcc).
    pub fn jcc(&mut self, cc: u8) -> usize {
        self.code.extend([0x0f, 0x80 | cc, 0, 0, 0, 0]);
        self.here()
    }

    pub fn jmp(&mut self) -> usize {
        self.code.extend([0xe9, 0, 0, 0, 0]);
        self.here()
    }

    /// Offset in the code of the byte before which `at` lies in the buffer.
    pub fn offset(&self, at: usize) -> usize {
        if at > self.split { at - self.split + COLD } else { at }
    }

    /// The same of the byte at `at`.
    pub fn offset_at(&self, at: usize) -> usize {
        self.offset(at + 1) - 1
    }

    /// Points the rel32 that ends at `jump` at what is at `target`.
    pub fn point(&mut self, jump: usize, target: usize) {
        let (from, to) = (self.offset(jump), self.offset_at(target));
        if (from < COLD) != (to < COLD) {
            self.crossing.push(from as u32);
        }
        let rel = to as i32 - from as i32;
        self.code.ops[jump - 4..jump].copy_from_slice(&rel.to_le_bytes());
    }
}

/// See `Emit::shorten`.
fn shorten(code: &mut Vec<u8>, start: usize) {
    let (mut at, mut rex) = (start, 0);
    // Prefixes: 66h, F2h, F3h, LOCK, REX; then one byte of opcode, or two.
    while let Some(prefix @ (0x66 | 0xf0 | 0xf2 | 0xf3 | 0x40..=0x4f)) = code.get(at) {
        (at, rex) = (at + 1, *prefix);
    }
    at += if code.get(at) == Some(&0x0f) { 2 } else { 1 };
    let Some(&[modrm, sib]) = code.get(at..at + 2) else { return };
    let (plain, base) = (sib >> 3 == 4 && rex & 0xf2 != 0x42, sib & 7);
    // A base of 4 says that there is a SIB byte, one of 5 without displacement that there is no base.
    if modrm & 7 == 4 && modrm >> 6 != 3 && plain && base != 4 && !(base == 5 && modrm >> 6 == 0) {
        code[at] = modrm & !7 | base;
        code.remove(at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::shorten;

    #[test]
    fn operands_without_an_index_lose_the_byte_for_it() {
        let short = |code: &[u8]| {
            let mut v = code.to_vec();
            shorten(&mut v, 0);
            v
        };
        // mov [r8+28h], rsi; movzx ecx, byte [rdi]; lea rsi, [rsi+200h]
        assert_eq!(short(&[0x49, 0x89, 0x74, 0x20, 0x28]), [0x49, 0x89, 0x70, 0x28]);
        assert_eq!(short(&[0x0f, 0xb6, 0x0c, 0x27]), [0x0f, 0xb6, 0x0f]);
        assert_eq!(short(&[0x48, 0x8d, 0xb4, 0x26, 0, 2, 0, 0]), [0x48, 0x8d, 0xb6, 0, 2, 0, 0]);
        // [r12], [rbp], [rcx+rdi] and registers keep what they have.
        for kept in [
            &[0x49, 0x8b, 0x04, 0x24][..],
            &[0x48, 0x8b, 0x04, 0x25],
            &[0x48, 0x8b, 0x04, 0x39],
            &[0x4a, 0x8b, 0x04, 0x27],
            &[0x48, 0x89, 0xc4, 0x20],
        ] {
            assert_eq!(short(kept), kept);
        }
    }
}

/// Condition codes of Jcc, SETcc, CMOVcc.
pub mod cc {
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const A: u8 = 7;
    pub const L: u8 = 12;
    pub const GE: u8 = 13;
    pub const LE: u8 = 14;
    pub const G: u8 = 15;
}
