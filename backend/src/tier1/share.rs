//! Accesses near each other that one check covers: those of a block that lie at constant distances from one address. The first of
//! them looks whether all lie in one page that the TLB has; the others then use the host address that it found. Nothing within a
//! block takes a mapping back: what flushes the TLB ends its block.
//!
//! Where they do not lie in one page the block leaves. If that happens often (`cache::unlike`) the block is made anew with a cold
//! copy of what follows, in which each access has a check of its own; it meets the block again at the end.

use super::cold::{Cold, GroupMiss};
use super::emit::{Emit, Env, cc};
use super::memory::{Linear, calls};
use super::regs::{Loc, RAX, RDX, Regs};
use super::{asm, st};
use crate::jit::runtime::AccessInfo;
use crate::tlb;
use crate::vblock::Why;
use ir::{Block, Effects, Inst, Op, Ty, Val};
use std::rc::Rc;
use vm_core::guest::CTX_COUNT;

/// Bytes from the first to the last of a group at most: few groups cross a page then, and one byte of displacement reaches all.
const REACH: i64 = 256;
/// Groups that an access is compared with at most.
const LOOK_BACK: usize = 12;
/// Constant additions that are looked through.
const DEPTH: usize = 4;

/// Accesses of one context at constant distances.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The value that they are all relative to.
    root: Val,
    ctx: u16,
    /// Its check is one for writing, which lets read too.
    write: bool,
    /// Distances from the root: of the first byte, and of that after the last.
    from: i64,
    to: i64,
    /// Index of the op that checks.
    pub first: u32,
    /// Another has joined.
    joined: bool,
    /// From the first byte to that which the host address is of, once it is known.
    middle: i64,
}

impl Group {
    /// Where in a page it may begin at most.
    pub fn most(&self) -> i32 {
        4096 - tlb::Table::rounded((self.to - self.from) as i32)
    }

    /// From the first byte, which is `disp` from a register, to that which the host address is of: what the register's own address is,
    /// if one byte of displacement reaches all from there.
    fn middle(&self, disp: i64) -> i64 {
        let reached = |at: i64| i8::try_from(at).is_ok();
        match self.to - self.from {
            len if reached(disp) && reached(disp + len - 1) => -disp,
            len if len > 128 => 128,
            _ => 0,
        }
    }
}

/// The groups of a block, and which of them each op is in.
#[derive(Clone, Default)]
pub struct Groups {
    pub list: Vec<Group>,
    /// By op: the group, and the access's distance from the root.
    of: Vec<Option<(u16, i64)>>,
    /// First group that an access may join, and first whose check may become one for writing.
    open: usize,
    may_write: usize,
}

/// How an access finds its bytes on the host.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// At rcx plus the linear address.
    Checked(Linear),
    /// Near a register.
    Near(u8, i8),
}

/// Assembles an instruction with guest memory as its operand: what comes before the operand, what behind.
macro_rules! at {
    ($e:expr, $place:expr; [$($before:tt)*] [$($behind:tt)*]) => {
        match $place {
            crate::tier1::share::Place::Checked(crate::tier1::memory::Linear { base, disp }) => match (disp, i8::try_from(disp)) {
                (0, _) => asm!($e; $($before)* [rcx + Rq(base)] $($behind)*),
                (_, Ok(d)) => asm!($e; $($before)* [BYTE rcx + Rq(base) + d] $($behind)*),
                (d, Err(_)) => asm!($e; $($before)* [rcx + Rq(base) + d] $($behind)*),
            },
            crate::tier1::share::Place::Near(r, d) => {
                let start = $e.here();
                match d {
                    0 => asm!($e; $($before)* [Rq(r)] $($behind)*),
                    d => asm!($e; $($before)* [BYTE Rq(r) + d] $($behind)*),
                }
                $e.shorten(start);
            }
        }
    };
}
pub(crate) use at;

/// The value that an address is at a constant distance from, and the distance. A program counter counts as `Val::NONE`.
fn resolve(b: &Block, i: &Inst) -> (Val, i64) {
    let (mut v, mut off) = (i.a, i.imm);
    for _ in 0..DEPTH {
        let x = &b.insts[v.index()];
        match x.op {
            Op::PcRel => return (Val::NONE, off.wrapping_add(x.imm)),
            // In one page the sum does not wrap.
            Op::Add if matches!(x.ty, Ty::I32 | Ty::I64) => match b.as_const(x.b) {
                Some(c) if x.ty == Ty::I32 => (v, off) = (x.a, off.wrapping_add(i64::from(c as u32 as i32))),
                Some(c) => (v, off) = (x.a, off.wrapping_add(c as i64)),
                None => break,
            },
            // Beyond, sums of 64 bits would not wrap where those of 32 bits do.
            Op::ZExt if off == 0 && b.ty(x.a) == Ty::I32 => v = x.a,
            _ => break,
        }
    }
    (v, off)
}

impl Groups {
    /// Finds the groups of a block.
    pub fn find(&mut self, b: &Block, env: &Env) {
        self.list.clear();
        self.of.clear();
        self.of.resize(b.insts.len(), None);
        (self.open, self.may_write) = (0, 0);
        for (k, i) in b.insts.iter().enumerate() {
            match i.op {
                Op::Load => self.enter(b, i, k, false),
                Op::Store => self.enter(b, i, k, true),
                Op::ProbeW if !calls(i) => self.enter(b, i, k, true),
                // What follows a branch may well not run, where a page is not to be written.
                Op::Side => self.may_write = self.list.len(),
                // What it calls may do anything.
                Op::Call if env.helpers[usize::from(i.aux)].effects != Effects::NONE => self.open = self.list.len(),
                _ => {}
            }
        }
        for of in &mut self.of {
            if of.is_some_and(|(g, _)| !self.list[usize::from(g)].joined) {
                *of = None;
            }
        }
    }

    fn enter(&mut self, b: &Block, i: &Inst, k: usize, write: bool) {
        let ((root, off), ctx) = (resolve(b, i), i.aux & 3);
        let len = if i.op == Op::ProbeW { i64::from(i.aux >> 2) } else { i64::from(i.ty.bytes()) };
        let Some(to) = off.checked_add(len) else { return };
        let open = self.list.len().saturating_sub(LOOK_BACK).max(self.open);
        let joins = |n: usize| {
            let g = &self.list[n];
            let reach = g.to.max(to).checked_sub(g.from.min(off));
            let writes = g.write || !write || n >= self.may_write;
            g.root == root && g.ctx == ctx && writes && reach.is_some_and(|r| r <= REACH)
        };
        if let Some(n) = (open..self.list.len()).rev().find(|n| joins(*n)) {
            let g = &mut self.list[n];
            (g.from, g.to, g.write, g.joined) = (g.from.min(off), g.to.max(to), g.write | write, true);
            self.of[k] = Some((n as u16, off));
        } else if let Ok(n) = u16::try_from(self.list.len()) {
            self.list.push(Group { root, ctx, write, from: off, to, first: k as u32, joined: false, middle: 0 });
            self.of[k] = Some((n, off));
        }
    }

    /// Number and group of the op at `k`, and its access's distance from the root.
    pub fn get(&self, k: u32) -> Option<(u16, Group, i64)> {
        self.of.get(k as usize).copied().flatten().map(|(g, off)| (g, self.list[usize::from(g)], off))
    }
}

impl Emit<'_> {
    /// The pseudo-value of a group: the host address of its middle.
    pub fn host_of(&self, group: u16) -> Val {
        Val((self.block.insts.len() + usize::from(group)) as u32)
    }

    /// The group that the current op is in, if it goes by that: ops of copies do not.
    pub fn group(&self) -> Option<(u16, Group, i64)> {
        self.r.groups.get(self.at).filter(|(_, g, _)| g.first < self.apart_from)
    }

    /// Sees to it that the bytes of an access, the current op, may be accessed: by its group's check, or by its own.
    pub fn place(&mut self, i: &Inst, write: bool) -> Place {
        let Some((n, group, off)) = self.group() else {
            return Place::Checked(self.check(i, write));
        };
        if group.first == self.at {
            // Whoever waits for it waits for one addition less.
            return Place::Checked(self.check_group(i, n, group, off));
        }
        let h = self.gpr(self.host_of(n));
        let near = off - group.from - self.r.groups.list[usize::from(n)].middle;
        Place::Near(h, i8::try_from(near).expect("groups are no larger than REACH"))
    }

    /// Checks a group for the current op, its first; gives the linear address of that, to which rcx is then the addend.
    fn check_group(&mut self, i: &Inst, n: u16, group: Group, off: i64) -> Linear {
        let va = self.linear(i, i.imm.wrapping_add(group.from.wrapping_sub(off)));
        let (write, most) = (group.write, group.most());
        let ctx = usize::from(group.ctx).min(CTX_COUNT - 1);
        let jump = self.compare_tag(va, ctx, write, most);
        let back = self.here();
        let (copy, leave) = (self.note_copy(), self.leave_here(Why::Unlike));
        self.load_addend(ctx);
        let h = self.take(self.host_of(n));
        let middle = group.middle(va.disp.into());
        self.r.groups.list[usize::from(n)].middle = middle;
        match va.disp + middle as i32 {
            0 => asm!(self; lea Rq(h), [rcx + Rq(va.base)]),
            d => match i8::try_from(d) {
                Ok(d) => asm!(self; lea Rq(h), [BYTE rcx + Rq(va.base) + d]),
                Err(_) => asm!(self; lea Rq(h), [rcx + Rq(va.base) + d]),
            },
        }
        // A load stays one, though stores go by its check.
        let info = self.info(i, i.op != Op::Load);
        let delta = (off - group.from) as i32;
        self.cold.push(Cold::Group(GroupMiss { jump, back, va, delta, info, write, most, copy, leave }));
        Linear { disp: va.disp + delta, ..va }
    }

    /// A group's check missed: has the TLB filled for the first access and looks again. Gives the ends of the jumps for when that
    /// fails, and for when the group crosses a page.
    pub fn group_missed(&mut self, g: &GroupMiss) -> (usize, [usize; 2]) {
        let (va, most) = (g.va, g.most);
        let a = AccessInfo { write: g.write, ..AccessInfo::unpack(g.info) };
        self.look_beside(g.back, va, a, most);
        self.linear_to(RDX, va);
        asm!(self; and edx, 0xfff; cmp edx, DWORD most);
        let two_pages = self.jcc(cc::A);
        self.fill(Linear { disp: va.disp + g.delta, ..va }, g.info);
        let failed = self.jcc(cc::AE);
        // It may be a page that the debugger watches.
        let alone = self.compare_tag(va, a.ctx.min(CTX_COUNT - 1), a.write, most);
        let again = self.jmp();
        self.point(again, g.back);
        (failed, [two_pages, alone])
    }
}

/// What follows a group's check, to be emitted again with a check for each access.
pub struct Copy<'a> {
    block: &'a Block,
    regs: Regs,
    at: u32,
    insn: u32,
    rest: u32,
    /// `Emit::fp_ready`, `x87_ready`, `x87_home`.
    ready: [bool; 3],
    /// Where the block's end begins, with its values where.
    end: Option<(usize, Rc<Regs>)>,
    /// Its first byte.
    pub start: usize,
}

impl Emit<'_> {
    /// Notes that the group of the current instruction needs a copy: its number.
    fn note_copy(&mut self) -> Option<usize> {
        if !self.env.apart.contains(&self.insn) {
            return None;
        }
        let ready = [self.fp_ready, self.x87_ready, self.x87_home];
        let (block, regs) = (self.block, self.r.clone());
        self.copies.push(Copy { block, regs, at: self.at, insn: self.insn, rest: self.rest, ready, end: None, start: 0 });
        Some(self.copies.len() - 1)
    }

    /// Index of the op that the block's end begins with: it leads elsewhere, and copies do not hold it.
    fn end_of_block(&self) -> u32 {
        let last = self.block.insts.len().saturating_sub(1);
        let with_last = last.checked_sub(1).filter(|p| self.block.insts[*p].op == Op::Cmp && self.fuses(*p));
        with_last.unwrap_or(last) as u32
    }

    /// To be called before each op.
    pub fn note_end(&mut self) {
        if self.copies.last().is_none_or(|c| c.end.is_some()) || self.at != self.end_of_block() {
            return;
        }
        let (here, regs) = (self.here(), Rc::new(self.r.clone()));
        for c in self.copies.iter_mut().filter(|c| c.end.is_none()) {
            c.end = Some((here, regs.clone()));
        }
    }

    /// Emits the copies.
    pub fn copies(&mut self) {
        for n in 0..self.copies.len() {
            let start = self.here();
            let c = &mut self.copies[n];
            c.start = start;
            (self.block, self.at, self.insn, self.rest) = (c.block, c.at, c.insn, c.rest);
            [self.fp_ready, self.x87_ready, self.x87_home] = c.ready;
            let Some((back, end)) = c.end.take() else { continue };
            self.r = std::mem::take(&mut c.regs);
            self.r.unlock();
            self.apart_from = self.at;
            let last = self.end_of_block();
            for k in self.at..last {
                self.at = k;
                self.op(&self.block.insts[k as usize]);
                self.release();
            }
            self.meet(last, &end);
            let jump = self.jmp();
            self.point(jump, back);
        }
        self.apart_from = u32::MAX;
    }

    /// Brings what is used from op `last` on to where it is in `end`.
    fn meet(&mut self, last: u32, end: &Regs) {
        let moves = |e: &Self, v: &Val| {
            let (from, to) = (e.loc(*v), end.loc[v.index()]);
            end.last[v.index()] >= last && from != to && matches!(to, Loc::Gpr(_) | Loc::Spill(_))
        };
        let values: Vec<Val> = (0..last).map(Val).filter(|v| moves(self, v)).collect();
        for v in &values {
            self.copy_to(RAX, *v);
            asm!(self; push rax);
        }
        for v in values.iter().rev() {
            match end.loc[v.index()] {
                Loc::Gpr(r) => asm!(self; pop Rq(r)),
                Loc::Spill(off) => st!(self, off; [pop QWORD] []),
                _ => {}
            }
        }
    }
}
