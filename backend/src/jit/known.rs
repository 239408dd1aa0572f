//! What small state slots are known to hold where a block of a region is entered from within it. x86's lazy flags live on that:
//! how the last block made them is a constant there, and what is asked of them in the next one folds to a comparison.

use super::lower::Member;
use ir::pass::Passes;
use ir::{Block, Effects, HelperDesc, Inst, Op, StateLayout, Ty};

/// Gives members a form of their own for entries from other members, where something is known then.
pub fn specialise(members: &mut [Member], passes: &mut Passes, layout: &StateLayout, helpers: &[HelperDesc]) {
    for k in 0..members.len() {
        let found: Vec<(usize, i64)> = exposed(&members[k].ir, helpers)
            .into_iter()
            .filter_map(|at| before(members, members[k].start, members[k].ir.insts[at].aux, helpers).map(|c| (at, c)))
            .collect();
        if found.is_empty() {
            continue;
        }
        let mut block = members[k].ir.clone();
        for (at, c) in found {
            block.insts[at] = Inst { imm: c, ..Inst::new(Op::Const, Ty::I32) };
        }
        passes.optimize(&mut block, layout, helpers);
        members[k].entered = Some(std::mem::replace(&mut members[k].ir, block));
    }
}

/// Gets of whole small slots as they are at the block's start.
fn exposed(block: &Block, helpers: &[HelperDesc]) -> Vec<usize> {
    let (mut found, mut set) = (Vec::new(), Vec::new());
    for (at, i) in block.insts.iter().enumerate() {
        match i.op {
            Op::Get if i.ty == Ty::I32 && i.imm == 0 && !set.contains(&i.aux) => found.push(at),
            Op::Set => set.push(i.aux),
            Op::Call if i.effects(helpers).has(Effects::WRITES_STATE) => break,
            _ => {}
        }
    }
    found
}

/// The constant that a slot holds after every member that leads to the one at `start`, in either of its forms.
fn before(members: &[Member], start: u32, slot: u16, helpers: &[HelperDesc]) -> Option<i64> {
    let forms = members.iter().flat_map(|m| std::iter::once(&m.ir).chain(&m.entered));
    let leads = |ir: &&Block| ir.targets().contains(&Some(start.into()));
    let mut known = forms.filter(leads).map(|ir| after(ir, slot, helpers));
    let first = known.next()??;
    known.all(|c| c == Some(first)).then_some(first)
}

/// The constant that a block leaves in a slot.
fn after(block: &Block, slot: u16, helpers: &[HelperDesc]) -> Option<i64> {
    for i in block.insts.iter().rev() {
        match i.op {
            Op::Set if i.aux == slot => {
                let v = &block.insts[i.a.index()];
                return (v.op == Op::Const && i.ty == Ty::I32 && i.imm == 0).then_some(v.imm);
            }
            Op::Call if i.effects(helpers).has(Effects::WRITES_STATE) => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use ir::testing::{HELPERS, layout};

    fn member(start: u32, next: i64, text: &str) -> Member {
        let mut ir = ir::parse(text, &layout(), HELPERS).unwrap();
        (ir.start, ir.next) = (start, next);
        Member { start, ir, entered: None }
    }

    #[test]
    fn only_what_all_ways_in_agree_on_is_known() {
        let block = |start: u32, set: u32, to: &str| {
            let s = format!(
                "block +{start:#x} .. +{:#x}\n  insn +{start:#x}, 4\n    %1:i32 = get f32\n    %2:i64 = zext %1\n    set.i64 a %2\n    %4:i32 = const {set:#x}\n    set.i32 f32 %4\n{to}",
                start + 4
            );
            member(start, i64::from(start) + 4, &s)
        };
        // What 0 leaves is known only where it is entered from 4, so nothing is known in 8.
        let counts = "block +0x0 .. +0x4\n  insn +0x0, 4\n    %1:i32 = get f32\n    %2:i32 = const 1\n    %3:i32 = add %1, %2\n    set.i32 f32 %3\n    %5:i8 = get f8\n    br %5, +0x8\n";
        let mut m = [member(0, 4, counts), block(4, 7, "    jump +0x0\n"), block(8, 7, "    exit\n")];
        specialise(&mut m, &mut Passes::new(), &layout(), HELPERS);
        assert!(m[0].entered.is_some() && m[2].entered.is_none());
        let br = |to: u32| format!("    %6:i8 = get f8\n    br %6, +{to:#x}\n");
        // 0 leads to 4 and to itself, 4 to 0 and out.
        let mut m = [block(0, 7, &br(0)), block(4, 7, &br(0))];
        specialise(&mut m, &mut Passes::new(), &layout(), HELPERS);
        for m in &m {
            assert!(m.entered.is_some());
            assert!(!m.ir.insts.iter().any(|i| i.op == Op::Get && i.ty == Ty::I32), "{}", m.ir.display(&layout(), HELPERS));
        }
        let mut m = [block(0, 7, &br(0)), block(4, 8, &br(0))];
        specialise(&mut m, &mut Passes::new(), &layout(), HELPERS);
        assert!(m[0].entered.is_none() && m[1].entered.is_some());
    }
}
