//! Laws of passes, printer, parser and verifier on random blocks.

use ir::pass::{PASSES, Passes};
use ir::testing::{HELPERS, STATE_SIZE, TestMemory, layout, random_block, random_chain, run};
use ir::{Block, Inst, Op, Outcome, Ty, Val, parse, verify};
use proptest::prelude::*;

fn choices() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(any::<u32>(), 20..400)
}

fn state(seed: u64) -> [u8; STATE_SIZE] {
    let mut x = seed | 1;
    std::array::from_fn(|_| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        if x & 0x300 == 0 { 0 } else { x as u8 }
    })
}

/// Mostly small or extreme numbers, where identities break.
fn corner(seed: u64, kind: usize) -> [u8; STATE_SIZE] {
    match kind {
        0 => [0; STATE_SIZE],
        1 => [0xff; STATE_SIZE],
        2 => std::array::from_fn(|k| if k % 8 == 0 { (seed >> (k / 8)) as u8 & 3 } else { 0 }),
        _ => state(seed),
    }
}

fn memory(fail_after: Option<u32>) -> TestMemory {
    TestMemory { fail_after, ..TestMemory::default() }
}

/// Both blocks do the same from this state, whichever access fails.
fn same(a: &Block, b: &Block, seed: u64) -> Result<(), TestCaseError> {
    for fail in [None, Some(0), Some(1), Some(2), Some(4), Some(7)] {
        let (mut sa, mut sb) = (state(seed), state(seed));
        let (mut ma, mut mb) = (memory(fail), memory(fail));
        let (oa, ob) = (run(a, &mut sa, &mut ma), run(b, &mut sb, &mut mb));
        prop_assert_eq!(oa, ob);
        prop_assert_eq!(&sa[..], &sb[..]);
        prop_assert_eq!(ma, mb);
    }
    Ok(())
}

/// The block's instructions before the one at `at`.
fn prefix(b: &Block, at: i64) -> Block {
    let n = b.insts.iter().position(|i| i.op == Op::Insn && i.imm == at).expect("an instruction lies there");
    let mut p = Block { start: b.start, next: b.next, ..Block::default() };
    p.insts = b.insts[..n].to_vec();
    p.exit();
    p
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_blocks_verify(c in choices()) {
        prop_assert_eq!(verify(&random_block(&c), &layout(), HELPERS), Ok(()));
    }

    #[test]
    fn optimised_blocks_do_the_same(c in choices(), seed: u64) {
        let block = random_block(&c);
        let mut opt = block.clone();
        Passes::new().optimize(&mut opt, &layout(), HELPERS);
        prop_assert_eq!(verify(&opt, &layout(), HELPERS), Ok(()));
        same(&block, &opt, seed)?;
    }

    #[test]
    fn blocks_for_registers_do_the_same(c in choices(), seed: u64) {
        let block = random_block(&c);
        let mut opt = block.clone();
        Passes::new().optimize_for_registers(&mut opt, &layout(), HELPERS);
        prop_assert_eq!(verify(&opt, &layout(), HELPERS), Ok(()));
        same(&block, &opt, seed)?;
    }

    #[test]
    fn each_pass_keeps_the_meaning(c in choices(), seed: u64, order in prop::collection::vec(0..PASSES.len(), 1..6)) {
        let block = random_block(&c);
        let (mut opt, mut passes) = (block.clone(), Passes::new());
        for p in order {
            passes.run(&PASSES[p], &mut opt, &layout(), HELPERS);
        }
        same(&block, &opt, seed)?;
    }

    #[test]
    fn folding_keeps_the_meaning(c in prop::collection::vec(any::<u32>(), 4..60), seeds: [u64; 4]) {
        let block = random_chain(&c);
        let mut opt = block.clone();
        Passes::new().optimize(&mut opt, &layout(), HELPERS);
        for (k, seed) in seeds.into_iter().enumerate() {
            let (mut a, mut b) = (corner(seed, k), corner(seed, k));
            let (oa, ob) = (run(&block, &mut a, &mut memory(None)), run(&opt, &mut b, &mut memory(None)));
            prop_assert_eq!(oa, ob);
            prop_assert_eq!(&a[..], &b[..], "{}", block.display(&layout(), HELPERS));
        }
    }

    #[test]
    fn leaving_is_precise(c in choices(), seed: u64, fail in 0u32..12) {
        let block = random_block(&c);
        let (mut s, mut m) = (state(seed), memory(Some(fail)));
        let at = match run(&block, &mut s, &mut m) {
            Outcome::Fault { at, .. } | Outcome::Raise { at, .. } | Outcome::Leave { at } => at,
            _ => return Ok(()),
        };
        let (mut s2, mut m2) = (state(seed), memory(None));
        if at != i64::from(block.start) {
            prop_assert_eq!(run(&prefix(&block, at), &mut s2, &mut m2), Outcome::Exit);
        }
        let pc = 72..80;
        s2[pc.clone()].copy_from_slice(&s[pc]);
        prop_assert_eq!(&s[..], &s2[..]);
        prop_assert_eq!(m.bytes, m2.bytes);
    }

    #[test]
    fn text_round_trip(c in choices()) {
        let (block, l) = (random_block(&c), layout());
        let text = block.display(&l, HELPERS).to_string();
        prop_assert_eq!(parse(&text, &l, HELPERS).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?, block);
    }

    #[test]
    fn mutations_are_rejected(c in choices(), at: prop::sample::Index, kind in 0..8usize) {
        let mut block = random_block(&c);
        let n = at.index(block.insts.len());
        let bad = mutate(&mut block, n, kind);
        let got = verify(&block, &layout(), HELPERS);
        prop_assert!(!bad || got.is_err(), "mutation {kind} of %{n} passed:\n{}", block.display(&layout(), HELPERS));
        // Ill-formed blocks print, too.
        prop_assert!(!block.display(&layout(), HELPERS).to_string().is_empty());
    }

    #[test]
    fn hostile_text_is_refused_politely(text in "(block \\+0x1 \\.\\. \\+0x2\n)?([%a-z0-9 :=.,+\\[\\]()-]{0,30}\n){0,4}") {
        if let Err(e) = parse(&text, &layout(), HELPERS) {
            prop_assert!(e.line >= 1 && !e.message.is_empty());
        }
    }
}

/// Breaks `block` at op `n`; false if this mutation does not apply there.
fn mutate(block: &mut Block, n: usize, kind: usize) -> bool {
    let len = block.insts.len();
    let i = &mut block.insts[n];
    match kind {
        // An operand that comes later, is missing, or too many.
        0 if i.op.args() > 0 && i.a != Val::NONE => i.a = Val(n as u32),
        1 if i.op.args() > 0 && i.a != Val::NONE => i.a = Val::NONE,
        2 if i.op.args() == 0 && n > 0 => i.a = Val(0),
        // Slot, helper and table numbers.
        3 if matches!(i.op, Op::Get | Op::Set | Op::Call | Op::Cmp | Op::Vec | Op::AtomicRmw) => i.aux = 999,
        4 if matches!(i.op, Op::Get | Op::Set) => i.imm = 16,
        // The wrong type.
        5 if matches!(i.op, Op::Add | Op::Set | Op::Cmp | Op::Store | Op::RaiseIf | Op::Br) => {
            i.ty = if i.ty == Ty::I16 { Ty::I32 } else { Ty::I16 };
        }
        // Terminators.
        6 if n + 1 < len => block.insts[n] = Inst::new(Op::Exit, Ty::I64),
        7 => {
            block.insts.pop();
        }
        _ => return false,
    }
    true
}
