//! Accesses near each other that one check covers: those of a block that lie at constant distances from one address. The first of
//! them looks whether all lie in one page that the TLB has; the others then use the host address that it found. Nothing within a
//! block takes a mapping back: what flushes the TLB ends its block.
//!
//! Where they do not lie in one page the block leaves, and is made anew without (`Cache::crossed`) if that happens again.

use super::asm;
use super::emit::{Cold, Emit, Env, cc};
use super::memory::calls;
use super::regs::RCX;
use crate::jit::runtime::AccessInfo;
use ir::{Block, Effects, Inst, Op, Ty, Val};
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
    first: u32,
    /// Another has joined.
    joined: bool,
}

impl Group {
    /// From the first byte to that which the host address is of.
    fn middle(&self) -> i64 {
        if self.to - self.from > 128 { 128 } else { 0 }
    }
}

/// The groups of a block, and which of them each op is in.
#[derive(Default)]
pub struct Groups {
    pub list: Vec<Group>,
    /// By op: the group, and the access's distance from the root.
    of: Vec<Option<(u16, i64)>>,
    /// First group that an access may join.
    open: usize,
}

/// How an access finds its bytes on the host.
#[derive(Clone, Copy, Debug)]
pub enum Place {
    /// At rcx plus the register.
    Checked(u8),
    /// Near a register.
    Near(u8, i8),
}

/// Assembles an instruction with guest memory as its operand: what comes before the operand, what behind.
macro_rules! at {
    ($e:expr, $place:expr; [$($before:tt)*] [$($behind:tt)*]) => {
        match $place {
            crate::tier1::share::Place::Checked(va) => asm!($e; $($before)* [rcx + Rq(va)] $($behind)*),
            crate::tier1::share::Place::Near(r, 0) => asm!($e; $($before)* [Rq(r)] $($behind)*),
            crate::tier1::share::Place::Near(r, d) => asm!($e; $($before)* [BYTE Rq(r) + d] $($behind)*),
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
        self.open = 0;
        let mut apart = false;
        for (k, i) in b.insts.iter().enumerate() {
            match i.op {
                Op::Insn => apart = env.apart.contains(&(i.imm as u32)),
                Op::Load => self.enter(b, i, k, false, apart),
                Op::Store => self.enter(b, i, k, true, apart),
                Op::ProbeW if !calls(i) => self.enter(b, i, k, true, apart),
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

    fn enter(&mut self, b: &Block, i: &Inst, k: usize, write: bool, apart: bool) {
        let ((root, off), ctx) = (resolve(b, i), i.aux & 3);
        let len = if i.op == Op::ProbeW { i64::from(i.aux >> 2) } else { i64::from(i.ty.bytes()) };
        let Some(to) = off.checked_add(len) else { return };
        let open = self.list.len().saturating_sub(LOOK_BACK).max(self.open);
        let joins = |g: &Group| {
            let reach = g.to.max(to).checked_sub(g.from.min(off));
            g.root == root && g.ctx == ctx && (g.write || !write) && reach.is_some_and(|r| r <= REACH)
        };
        if let Some(n) = (open..self.list.len()).rev().find(|n| joins(&self.list[*n])) {
            let g = &mut self.list[n];
            (g.from, g.to, g.joined) = (g.from.min(off), g.to.max(to), true);
            self.of[k] = Some((n as u16, off));
        } else if !apart && let Ok(n) = u16::try_from(self.list.len()) {
            self.list.push(Group { root, ctx, write, from: off, to, first: k as u32, joined: false });
            self.of[k] = Some((n, off));
        }
    }

    /// Whether the op needs no address: another has checked it.
    pub fn follows(&self, k: u32) -> bool {
        self.get(k).is_some_and(|(_, g, _)| g.first != k)
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

    /// Sees to it that the bytes of an access, the current op, may be accessed: by its group's check, or by its own.
    pub fn place(&mut self, i: &Inst, write: bool) -> Place {
        let Some((n, group, off)) = self.r.groups.get(self.at) else {
            return Place::Checked(self.check(i, write));
        };
        let h = if group.first == self.at { self.check_group(i, n, group, off) } else { self.gpr(self.host_of(n)) };
        let near = off - group.from - group.middle();
        Place::Near(h, i8::try_from(near).expect("groups are no larger than REACH"))
    }

    fn check_group(&mut self, i: &Inst, n: u16, group: Group, off: i64) -> u8 {
        let va = self.address(i, i.imm.wrapping_add(group.from.wrapping_sub(off)));
        let (write, most) = (group.write, 4096 - (group.to - group.from) as i32);
        let ctx = usize::from(group.ctx).min(CTX_COUNT - 1);
        let jump = self.compare_tag(va, ctx, write, most);
        let back = self.here();
        self.load_addend(ctx);
        let h = self.take(self.host_of(n));
        match group.middle() {
            0 => asm!(self; lea Rq(h), [rcx + Rq(va)]),
            m => asm!(self; lea Rq(h), [rcx + Rq(va) + m as i32]),
        }
        let info = self.info(i, write);
        let rest = if self.env.counted { self.rest } else { 0 };
        let (offset, delta) = (self.insn as i32, (off - group.from) as i32);
        self.cold.push(Cold::Group { jump, back, va, info, delta, most, offset, rest });
        h
    }

    /// A group's check missed: has the TLB filled for the first access and looks again. Gives the ends of the jumps for when that
    /// fails, and for when the group crosses a page.
    pub fn group_missed(&mut self, back: usize, va: u8, info: u32, delta: i32, most: i32) -> (usize, usize) {
        let a = AccessInfo::unpack(info);
        self.lea(RCX, va, delta);
        self.fill(RCX, info);
        let failed = self.jcc(cc::NE);
        let crossed = self.compare_tag(va, a.ctx.min(CTX_COUNT - 1), a.write, most);
        let again = self.jmp();
        self.point(again, back);
        (failed, crossed)
    }
}
