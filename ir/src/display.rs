//! Text form of a block (docs/ir.md, "Text"). `parse` reads it back. Prints ill-formed blocks too: they are what one
//! wants to see.

use std::fmt::{self, Formatter};

use crate::block::{Block, Inst, Val};
use crate::fp::FpOp;
use crate::layout::{HelperDesc, StateLayout};
use crate::ops::Op;
use crate::tri::TriOp;
use crate::types::{Cond, Rmw};
use crate::vec::{VecOp, VecShift};

/// A block with the tables that name its slots and helpers.
pub struct Display<'a> {
    block: &'a Block,
    layout: &'a StateLayout,
    helpers: &'a [HelperDesc],
}

impl Block {
    /// `println!("{}", block.display(layout, helpers))`: what `-d op` prints.
    pub fn display<'a>(&'a self, layout: &'a StateLayout, helpers: &'a [HelperDesc]) -> Display<'a> {
        Display { block: self, layout, helpers }
    }
}

/// A page offset or displacement with its sign.
pub(crate) struct Signed(pub i64);

impl fmt::Display for Signed {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:#x}", if self.0 < 0 { '-' } else { '+' }, self.0.unsigned_abs())
    }
}

/// Name from a table, or `what#index` for a number outside it.
struct Name(Option<&'static str>, &'static str, u16);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(n) => f.write_str(n),
            None => write!(f, "{}#{}", self.1, self.2),
        }
    }
}

struct V(Val);

impl fmt::Display for V {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if self.0 == Val::NONE { f.write_str("%none") } else { write!(f, "%{}", self.0.0) }
    }
}

/// `[%a + 0x10]`
struct Mem<'a>(&'a Inst);

impl fmt::Display for Mem<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.imm {
            0 => write!(f, "[{}]", V(self.0.a)),
            n => write!(f, "[{} {} {:#x}]", V(self.0.a), if n < 0 { '-' } else { '+' }, n.unsigned_abs()),
        }
    }
}

impl fmt::Display for Display<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let b = self.block;
        let straddles = if b.straddles { " straddles" } else { "" };
        writeln!(f, "block {} .. {}{straddles}", Signed(b.start.into()), Signed(b.next))?;
        for (n, i) in b.insts.iter().enumerate() {
            f.write_str(if i.op == Op::Insn { "  " } else { "    " })?;
            self.inst(f, n, i)?;
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Display<'_> {
    fn inst(&self, f: &mut Formatter<'_>, n: usize, i: &Inst) -> fmt::Result {
        if let Some(t) = i.result() {
            write!(f, "%{n}:{} = ", t.name())?;
        }
        f.write_str(i.op.name())?;
        // The type, unless the result or the op tells it.
        if matches!(i.op, Op::Set | Op::Store | Op::Cmp) {
            write!(f, ".{}", i.ty.name())?;
        }
        match i.op {
            Op::Insn => write!(f, " {}, {}", Signed(i.imm), i.aux),
            Op::Const => write!(f, " {:#x}", i.imm as u64 & i.ty.mask()),
            Op::PcRel | Op::Source => write!(f, " {}", Signed(i.imm)),
            Op::Jump => {
                write!(f, " {}", Signed(i.imm))?;
                if i.aux == 0 { Ok(()) } else { write!(f, ", {}", Name(HINTS.get(usize::from(i.aux)).copied(), "hint", i.aux)) }
            }
            Op::Get => self.slot(f, i),
            Op::Set => self.slot(f, i).and_then(|()| write!(f, " {}", V(i.a))),
            Op::Cmp => {
                let c = Name(Cond::from_index(i.aux).map(Cond::name), "cond", i.aux);
                write!(f, " {c} {}, {}", V(i.a), V(i.b))
            }
            Op::Vec => {
                let o = Name(VecOp::from_index(i.aux).map(VecOp::name), "vecop", i.aux);
                write!(f, " {o} {}, {}", V(i.a), V(i.b))
            }
            Op::VFp | Op::FpGet | Op::FpSet => {
                let o = Name(FpOp::from_index(i.aux).map(FpOp::name), "fpop", i.aux);
                write!(f, " {o} {}, {}", V(i.a), V(i.b))
            }
            Op::VTri => {
                let o = Name(TriOp::from_index(i.aux).map(TriOp::name), "triop", i.aux);
                write!(f, " {o} {}, {}, {}", V(i.a), V(i.b), V(i.c))
            }
            Op::VShift => {
                let o = Name(VecShift::from_index(i.aux).map(VecShift::name), "vecshift", i.aux);
                write!(f, " {o} {}, {}", V(i.a), i.imm)
            }
            Op::VShuffle => {
                let mask = u128::from(i.aux) << 64 | u128::from(i.imm as u64);
                write!(f, " {}, {}, {mask:#x}", V(i.a), V(i.b))
            }
            Op::Load => write!(f, " ctx{} {}", i.aux, Mem(i)),
            Op::Store => write!(f, " ctx{} {}, {}", i.aux, Mem(i), V(i.b)),
            Op::ProbeW => write!(f, " {} ctx{} {}", i.aux >> 2, i.aux & 3, Mem(i)),
            Op::AtomicRmw => {
                let o = Name(Rmw::from_index(i.aux >> 2).map(Rmw::name), "rmw", i.aux >> 2);
                write!(f, " {o} ctx{} {}, {}", i.aux & 3, Mem(i), V(i.b))
            }
            Op::AtomicCas => write!(f, " ctx{} {}, {}, {}", i.aux, Mem(i), V(i.b), V(i.c)),
            Op::VLane | Op::VMask => write!(f, " {}, {}", V(i.a), i.aux),
            Op::VSetLane => write!(f, " {}, {}, {}", V(i.a), i.aux, V(i.b)),
            Op::Call => self.call(f, i),
            Op::RaiseIf => {
                write!(f, " {}, {}", V(i.a), i.aux)?;
                if i.imm >= 0 { write!(f, ", error {:#x}", i.imm) } else { Ok(()) }
            }
            Op::Br | Op::Side => write!(f, " {}, {}", V(i.a), Signed(i.imm)),
            Op::JumpInd => {
                let hint = HINTS.get(usize::from(i.aux)).copied();
                write!(f, " {}, {}", V(i.a), Name(hint, "hint", i.aux))
            }
            _ => {
                for (k, v) in [i.a, i.b, i.c].into_iter().take(i.op.args() as usize).enumerate() {
                    write!(f, "{}{}", if k == 0 { " " } else { ", " }, V(v))?;
                }
                Ok(())
            }
        }
    }

    fn slot(&self, f: &mut Formatter<'_>, i: &Inst) -> fmt::Result {
        write!(f, " {}", Name(self.layout.slots.get(usize::from(i.aux)).map(|s| s.name), "slot", i.aux))?;
        if i.imm == 0 { Ok(()) } else { write!(f, "{:+}", i.imm) }
    }

    fn call(&self, f: &mut Formatter<'_>, i: &Inst) -> fmt::Result {
        write!(f, " {}(", Name(self.helpers.get(usize::from(i.aux)).map(|h| h.name), "helper", i.aux))?;
        for (k, v) in i.operands().enumerate() {
            write!(f, "{}{}", if k == 0 { "" } else { ", " }, V(v))?;
        }
        f.write_str(")")
    }
}

/// Names of the prediction hints of `JumpInd`.
pub(crate) const HINTS: [&str; 3] = ["jump", "call", "ret"];
