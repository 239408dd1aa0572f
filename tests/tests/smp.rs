//! The guest of `rhea_tests::smp` on every engine. `RHEA_SMP_ENGINES` (separated by ';') names other settings of `-accel`,
//! for another program in `RHEA_TEST_PROGRAM`; `RHEA_SMP_CPUS`, `RHEA_SMP_ROUNDS` and `RHEA_SMP_TEST` are for the long form.

use rhea_tests::boot::{Guest, file};
use rhea_tests::smp::{Fault, STATUS_FAIL, STATUS_PASS, guest, tests};
use std::time::{Duration, Instant};

/// A limit that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3600 } else { 900 });

fn engines() -> Vec<String> {
    let named = std::env::var("RHEA_SMP_ENGINES").unwrap_or_else(|_| "interp;jit;jit,threshold=0".into());
    named.split(';').map(str::to_owned).collect()
}

/// The guest, started; `words` are for its command line.
fn start(engine: &str, cpus: u64, fault: Option<Fault>, words: &str) -> Guest {
    let name = format!("smp-{}-{cpus}-{}", engine.replace([',', '='], "-"), words.replace([' ', '='], "-"));
    let elf = file(&format!("{name}.elf"), &guest(fault).expect("the guest assembles"));
    let (smp, append) = (cpus.to_string(), format!("cpus={cpus} {words}"));
    let machine = ["-smp", &smp, "-m", "32M", "-display", "none", "-serial", "stdio", "-device", "isa-debug-exit", "-no-reboot"];
    Guest::start(&name, &[&machine[..], &["-accel", engine, "-kernel", &elf, "-append", &append]].concat())
}

fn all_pass(cpus: u64, rounds: u64) {
    for engine in engines() {
        let mut g = start(&engine, cpus, None, &format!("rounds={rounds}"));
        g.expect_exit(STATUS_PASS, LIMIT);
        let want: String = tests().iter().map(|t| format!("ok {t}\n")).collect();
        assert_eq!(g.serial_to_end(), want, "{engine}");
    }
}

#[test]
fn one_processor() {
    all_pass(1, 1000);
}

#[test]
fn two_processors() {
    all_pass(2, 300);
}

/// Few rounds: where the host has fewer processors, each round waits for its scheduler.
#[test]
fn four_processors() {
    all_pass(4, 40);
}

/// The long form: each test by itself, a million rounds.
#[test]
#[ignore = "takes an hour and more"]
fn a_million_rounds() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |s| s.parse().expect("it is a number"));
    let (cpus, rounds) = (number("RHEA_SMP_CPUS", 2), number("RHEA_SMP_ROUNDS", 1_000_000));
    let only = std::env::var("RHEA_SMP_TEST").ok();
    for engine in engines() {
        for test in tests().into_iter().filter(|t| only.as_deref().is_none_or(|o| o == *t)) {
            let began = Instant::now();
            let mut g = start(&engine, cpus, None, &format!("rounds={rounds} test={test}"));
            g.expect_exit(STATUS_PASS, Duration::from_secs(4 * 3600));
            assert_eq!(g.serial_to_end(), format!("ok {test}\n"), "{engine}");
            eprintln!("{engine}: {cpus} processors, {rounds} rounds of {test}: {:.0} s", began.elapsed().as_secs_f64());
        }
    }
}

/// Fails where the guest is wrong, and says what.
fn is_found(cpus: u64, fault: Fault, words: &str, said: &str) {
    for engine in engines() {
        let mut g = start(&engine, cpus, Some(fault), words);
        g.expect_exit(STATUS_FAIL, LIMIT);
        let serial = g.serial_to_end();
        assert!(serial.starts_with(said), "{engine}: {serial}");
    }
}

/// Two processors have to be at it at the same time, for which there are a few attempts.
#[test]
fn a_missing_lock_is_found() {
    let engine = engines().pop().expect("there are engines");
    let found = (0..10).any(|_| {
        let mut g = start(&engine, 2, Some(Fault::NoLock), "rounds=5000 test=lock");
        let status = g.wait_for_exit(LIMIT).code();
        let serial = g.serial_to_end();
        assert!(status == Some(STATUS_PASS) || status == Some(STATUS_FAIL) && serial.starts_with("FAIL lock "), "{serial}");
        status == Some(STATUS_FAIL)
    });
    assert!(found, "{engine}: nothing was lost without LOCK");
}

#[test]
fn a_stale_tlb_entry_is_found() {
    is_found(1, Fault::NoInvlpg, "rounds=100 test=shoot", "FAIL shoot data of an old frame, cpu 0");
}
