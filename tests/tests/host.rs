//! Random instructions and programs on the host processor and on the engines, and random bytes in every mode: the short forms
//! of what `cargo run --profile quick -p rhea-tests --bin campaign` does for long (docs/campaigns.md).
#![cfg(target_arch = "x86_64")]

use rhea_tests::anybytes::{AnyBytes, BATCH, Ends, MODES};
use rhea_tests::filetest::x86_texts;
use rhea_tests::host::bench::Bench;
use rhea_tests::host::campaign::{Plan, engines, run};
use rhea_tests::host::draw::Drawn;
use rhea_tests::host::sequence::{self, Summary};
use rhea_tests::host::{Bits, State, at, forms, masks, record};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[test]
fn random_instructions_agree_with_the_host() {
    let plan = Plan {
        seed: 1,
        cases: 60_000,
        time: Duration::from_secs(60),
        states: 4,
        engines: engines("interp:1,tier1:16").expect("engines that exist"),
        only: String::new(),
    };
    let report = run(&plan, &mut |_| {}).expect("the host runs cases");
    assert_eq!(report.mismatches(), 0, "\n{}", report.failures());
    assert!(report.cases > 40_000, "only {} cases in {:?}", report.cases, report.elapsed);
    for (bits, form, _) in &report.forms {
        if let Some((why, _)) = form.left_out.filter(|l| l.0.starts_with("the host has no")) {
            eprintln!("{:?} ({} bits): {why}", form.code, bits.count());
        }
    }
}

/// Bits in registers lie anywhere, also where 32-bit addresses wrap round. Of two pages that both fault the first is told.
#[test]
fn bits_far_away_across_two_pages_fault_as_on_the_host() {
    let mut bench = Bench::new(&engines("interp,tier1").expect("engines that exist")).expect("the host runs cases");
    // Read-only and absent, writable and absent, absent and writable, writable and read-only.
    for boundary in [at::END, at::ABSENT, at::DATA2, at::READ_ONLY] {
        for short in [false, true] {
            // BTS, BTR, BTC %rcx,(%rbx); ADD %rcx,(%rbx).
            for opcode in [&[0x0f, 0xab][..], &[0x0f, 0xb3], &[0x0f, 0xbb], &[0x01]] {
                let code = [if short { &[0x67, 0x48][..] } else { &[0x48] }, opcode, &[0x0b]].concat();
                let d = Drawn::new(Bits::B64, at::CODE + 0x40, &code).expect("an instruction");
                for bit in [0u64, 1 << 12, 1 << 34, 1 << 35, 1 << 38, 1 << 45, 1 << 62, 1 << 63, u64::MAX << 20, u64::MAX << 37] {
                    let away = if opcode.len() == 2 { (bit as i64 >> 6 << 3) as u64 } else { 0 };
                    let start = (boundary - 3).wrapping_sub(away);
                    let start = if short { start & 0xffff_ffff } else { start };
                    let mut s = State { rip: d.ip, ..State::new() };
                    (s.gpr[1], s.gpr[3]) = (bit, start);
                    let what = format!("{code:02x?} at {boundary:x}, bit {bit:x}");
                    let trap = bench.one(&d, &s).unwrap_or_else(|why| panic!("{what}: {why}"));
                    assert!(matches!(trap.vector, 13 | 14), "{what}: {trap:x?}");
                    assert!(!short || trap.vector == 14, "{what}: {trap:x?}");
                }
            }
        }
    }
}

#[test]
fn random_programs_agree_with_the_host() {
    let mut bench = Bench::new(&engines("interp,tier1").expect("engines that exist")).expect("the host runs cases");
    let forms = [Bits::B32, Bits::B64].map(sequence::usable);
    let (mut sum, begun) = (Summary::default(), Instant::now());
    while sum.programs < 1500 && begun.elapsed() < Duration::from_secs(10) {
        if let Err(why) = sequence::run(&mut bench, 1 + sum.programs, 20, &forms, &mut sum) {
            panic!("{why}");
        }
    }
    assert!(sum.programs >= 100 && sum.faults > 0, "{sum:?}");
}

/// Found by campaigns: each differed once, and says what was wrong.
#[test]
fn programs_that_differed_once_agree() {
    // A value that only cold code stores had lost its register behind the check that led there. A sum took its operand's register from it
    // while that was being read. A sum that was left to cold code was to make another value there.
    const FOUND: &[(u64, &str)] = &[(137_414, "region"), (300_052_709, "region"), (300_063_817, "tier1")];
    let forms = [Bits::B32, Bits::B64].map(sequence::usable);
    for (program, on) in FOUND {
        let mut bench = Bench::new(&engines(on).expect("engines that exist")).expect("the host runs cases");
        let mut sum = Summary::default();
        sequence::run(&mut bench, *program, 1, &forms, &mut sum).unwrap_or_else(|why| panic!("{why}"));
        assert!(sum.faults > 0, "{sum:?}");
    }
}

#[test]
fn random_bytes_in_every_mode_do_not_panic() {
    for jit in [false, true] {
        let mut m = AnyBytes::new(jit).expect("the host gives memory");
        let (mut ends, begun) = (Ends::default(), Instant::now());
        for seed in 0..if jit { 4 } else { 100 } {
            MODES.iter().for_each(|mode| m.batch(*mode, seed, &mut ends));
            if begun.elapsed() > Duration::from_secs(4) {
                break;
            }
        }
        assert!(ends.runs.iter().all(|n| *n >= BATCH) && ends.halted > 0 && ends.triple > 0 && ends.limit > 0, "{ends:?}");
    }
}

#[test]
fn the_table_of_masks_stays_short() {
    assert!(masks::TABLE.len() <= 60);
    assert!(masks::TABLE.iter().all(|r| !r.0.is_empty() && r.3.contains("APM")));
}

#[test]
fn every_form_and_memory_operand_has_a_filetest() {
    let have: BTreeSet<record::Subject> = x86_texts().iter().flat_map(|t| record::subjects_of(t)).collect();
    let (mut missing, mut faults) = (BTreeSet::new(), 0);
    for bits in [Bits::B64, Bits::B32] {
        for f in forms::all(bits) {
            let wanted = record::subjects(bits, &f);
            faults += wanted.iter().flatten().count();
            let lack = wanted.into_iter().filter(|s| !have.contains(&(f.code as u32, *s)));
            missing.extend(
                lack.map(|s| format!("{:?} {}", f.code, s.map_or("completes".into(), |k| format!("operand {k} faults")))),
            );
        }
    }
    // Those that no host runs, which the report says are tested there.
    let elsewhere = [Bits::B64, Bits::B32].into_iter().flat_map(forms::all);
    let elsewhere = elsewhere.filter(|f| f.left_out.is_some_and(|(_, by)| by == forms::FILES));
    missing
        .extend(elsewhere.filter(|f| !have.contains(&(f.code as u32, None))).map(|f| format!("{:?} (no host runs it)", f.code)));
    assert!(faults > 1000, "{faults} memory operands");
    assert!(missing.is_empty(), "{} cases are missing (see docs/campaigns.md): {missing:#?}", missing.len());
}
