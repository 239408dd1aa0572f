//! Forwards state through SSA values: a `get` takes what earlier sets and gets of the same slot left there, narrowed,
//! shifted or put together from parts as needed. A `set` of what the slot already holds goes.

use super::{Passes, Tables};
use crate::block::{Block, Inst, Val};
use crate::ops::{Effects, Op};
use crate::types::Ty;

/// Parts remembered per slot.
const PARTS: usize = 4;

/// `v` of type `ty` lies at byte `off`, except where a newer part lies over it.
#[derive(Clone, Copy)]
struct Part {
    off: u32,
    ty: Ty,
    v: Val,
}

impl Part {
    fn bytes(&self) -> u16 {
        mask(self.off, self.ty)
    }
}

fn mask(off: u32, ty: Ty) -> u16 {
    (((1u32 << ty.bytes()) - 1) << off) as u16
}

/// Known parts of one slot, oldest first.
#[derive(Clone, Copy)]
struct Known {
    epoch: u32,
    len: usize,
    parts: [Part; PARTS],
}

impl Known {
    const NOTHING: Known = Known { epoch: 0, len: 0, parts: [Part { off: 0, ty: Ty::I8, v: Val::NONE }; PARTS] };

    fn parts(&self) -> &[Part] {
        &self.parts[..self.len]
    }

    /// Adds a newest part. Forgetting an old part is always right; a newer one would uncover what lies below.
    fn push(&mut self, p: Part) {
        let mut n = 0;
        for k in 0..self.len {
            if self.parts[k].bytes() & !p.bytes() != 0 {
                self.parts[n] = self.parts[k];
                n += 1;
            }
        }
        if n == PARTS {
            self.parts.copy_within(1.., 0);
            n -= 1;
        }
        self.parts[n] = p;
        self.len = n + 1;
    }
}

#[derive(Default)]
pub struct Scratch {
    slots: Vec<Known>,
    epoch: u32,
}

impl Scratch {
    fn forget_all(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.slots.fill(Known::NOTHING);
            self.epoch = 1;
        }
    }

    fn slot(&mut self, n: u16) -> &mut Known {
        let k = &mut self.slots[usize::from(n)];
        if k.epoch != self.epoch {
            k.epoch = self.epoch;
            k.len = 0;
        }
        k
    }
}

pub fn run(p: &mut Passes, block: &mut Block, t: Tables) {
    let state = &mut p.forward;
    if state.slots.len() < t.layout.slots.len() {
        state.slots.resize(t.layout.slots.len(), Known::NOTHING);
    }
    state.forget_all();
    p.rewrite.run(block, |out, i| match i.op {
        Op::Get => get(state.slot(i.aux), out, i),
        Op::Set => {
            let part = Part { off: i.imm as u32, ty: i.ty, v: i.a };
            let known = state.slot(i.aux);
            if visible(known, part.off, part.ty).is_some_and(|old| old.v == part.v && old.off == part.off && old.ty == part.ty) {
                return Val::NONE;
            }
            known.push(part);
            // Stores to these from before need not have been done: what sets them again is no set of what is there.
            t.layout.unused_after(&i, out).iter().for_each(|s| state.slot(s.0).len = 0);
            out.push(i)
        }
        Op::Call => {
            let e = i.effects(t.helpers);
            if e.has(Effects::WRITES_STATE) {
                state.forget_all();
            } else if e.has(Effects::MAY_LEAVE) {
                // The engine brings the program counter up to date for it.
                state.slot(t.layout.pc.0).len = 0;
            }
            out.push(i)
        }
        _ => out.push(i),
    });
}

fn get(known: &mut Known, out: &mut Block, i: Inst) -> Val {
    let off = i.imm as u32;
    // A piece of a known part is not remembered: it would only lie over the whole.
    if let Some(v) = visible(known, off, i.ty).and_then(|p| extract(out, &p, off, i.ty)) {
        return v;
    }
    let v = merge(known, out, off, i.ty).unwrap_or_else(|| out.push(i));
    known.push(Part { off, ty: i.ty, v });
    v
}

/// The part that alone holds all these bytes.
fn visible(known: &Known, off: u32, ty: Ty) -> Option<Part> {
    let want = mask(off, ty);
    let newest = known.parts().iter().rev().find(|p| p.bytes() & want != 0)?;
    (newest.bytes() & want == want).then_some(*newest)
}

/// Bytes `off..` of a part that contains them, as type `ty`. `None` if it takes more than it is worth.
fn extract(out: &mut Block, p: &Part, off: u32, ty: Ty) -> Option<Val> {
    let at = off - p.off;
    if p.ty == ty {
        return Some(p.v);
    }
    if p.ty == Ty::V128 {
        let lane = at / 8;
        if at % 8 + ty.bytes() > 8 {
            return None;
        }
        let v = out.vlane(p.v, lane as u16);
        return extract(out, &Part { off: lane * 8, ty: Ty::I64, v }, at, ty);
    }
    let v = if at == 0 { p.v } else { out.bin_imm(Op::Shr, p.v, u64::from(at * 8)) };
    Some(out.zext(ty, v))
}

/// A value put together from several parts that cover it.
fn merge(known: &Known, out: &mut Block, off: u32, ty: Ty) -> Option<Val> {
    let want = mask(off, ty);
    let covered = known.parts().iter().fold(0, |m, p| m | p.bytes());
    if covered & want != want {
        return None;
    }
    if ty == Ty::V128 {
        return merge_vector(known, out);
    }
    if known.parts().iter().any(|p| p.ty == Ty::V128) {
        return None;
    }
    let mut rest = want;
    let mut sum = None;
    for p in known.parts().iter().rev() {
        let seen = p.bytes() & rest;
        if seen != 0 {
            rest &= !seen;
            let v = place(out, p, off, ty, seen);
            sum = Some(sum.map_or(v, |s| out.bin(Op::Or, s, v)));
        }
    }
    sum
}

/// The bytes `seen` of a part (bits as in its slot), moved to where a value at `off` has them; the other bits 0.
fn place(out: &mut Block, p: &Part, off: u32, ty: Ty, seen: u16) -> Val {
    let v = if p.off < off { out.bin_imm(Op::Shr, p.v, u64::from((off - p.off) * 8)) } else { p.v };
    let mut v = out.zext(ty, v);
    if p.off > off {
        v = out.bin_imm(Op::Shl, v, u64::from((p.off - off) * 8));
    }
    if seen == p.bytes() & mask(off, ty) {
        return v;
    }
    let bits = (0..ty.bytes()).filter(|k| seen >> (off + k) & 1 != 0).fold(0, |m, k| m | 0xff << (k * 8));
    out.bin_imm(Op::And, v, bits)
}

/// A vector under lanes written over it, or made of two lanes.
fn merge_vector(known: &Known, out: &mut Block) -> Option<Val> {
    let (first, lanes) = known.parts().split_first()?;
    let lane = |p: &Part| p.ty == Ty::I64 && p.off.is_multiple_of(8);
    if !lanes.iter().all(lane) {
        return None;
    }
    let mut v = match first.ty {
        Ty::V128 => first.v,
        _ if lane(first) => {
            let zero = out.iconst(Ty::V128, 0);
            out.vset_lane(zero, (first.off / 8) as u16, first.v)
        }
        _ => return None,
    };
    for p in lanes {
        v = out.vset_lane(v, (p.off / 8) as u16, p.v);
    }
    Some(v)
}
