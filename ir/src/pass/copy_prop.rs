//! Copies: an op that equals one of its operands, or an earlier op with the same operands, is replaced by that value. What has not
//! left by a condition does not leave by it later.

use super::{Passes, Tables};
use crate::block::{Block, Inst, Val};
use crate::ops::{Effects, Op};

const SIZE: usize = 256;

pub struct Scratch {
    /// Values by a hash of their op: direct mapped, and checked against the block, so it is never cleared.
    values: Box<[u32; SIZE]>,
    /// Who has gone on has found these conditions to be 0.
    zero: Vec<Val>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self { values: Box::new([0; SIZE]), zero: Vec::new() }
    }
}

pub fn run(p: &mut Passes, block: &mut Block, t: Tables) {
    let Scratch { values, zero } = &mut p.copies;
    zero.clear();
    p.rewrite.run(block, |out, i| {
        if matches!(i.op, Op::RaiseIf | Op::LeaveIf) {
            if zero.contains(&i.a) {
                return Val::NONE;
            }
            zero.push(i.a);
        }
        if let Some(v) = same_as_operand(out, &i) {
            return v;
        }
        if i.effects(t.helpers) != Effects::NONE || i.result().is_none() {
            return out.push(i);
        }
        let bucket = &mut values[hash(&i)];
        if out.insts.get(*bucket as usize) == Some(&i) {
            return Val(*bucket);
        }
        let v = out.push(i);
        *bucket = v.0;
        v
    });
}

fn same_as_operand(out: &Block, i: &Inst) -> Option<Val> {
    match i.op {
        Op::And | Op::Or if i.a == i.b => Some(i.a),
        Op::Select if i.b == i.c => Some(i.b),
        // The lane is put back where it came from.
        Op::VSetLane => {
            let lane = &out.insts[i.b.index()];
            (lane.op == Op::VLane && lane.a == i.a && lane.aux == i.aux).then_some(i.a)
        }
        Op::VLane => {
            let v = &out.insts[i.a.index()];
            (v.op == Op::VSetLane && v.aux == i.aux).then_some(v.b)
        }
        _ => None,
    }
}

fn hash(i: &Inst) -> usize {
    let word = |a: u32, b: u32| u64::from(a) << 32 | u64::from(b);
    let head = word(u32::from(i.op as u8) << 8 | u32::from(i.ty as u8), i.aux.into());
    let h = head ^ (i.imm as u64).rotate_left(17) ^ word(i.b.0, i.a.0).wrapping_mul(0x9e37_79b9) ^ u64::from(i.c.0) << 20;
    (h.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as usize
}
