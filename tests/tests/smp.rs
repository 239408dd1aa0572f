//! The guest of `rhea_tests::smp` on every engine. `RHEA_SMP_ENGINES` (separated by ';') names other settings of `-accel`,
//! for another program in `RHEA_TEST_PROGRAM`.

use rhea_tests::boot::{Guest, file};
use rhea_tests::smp::{Fault, STATUS_FAIL, STATUS_PASS, guest, tests};
use std::time::Duration;

/// A limit that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 1200 } else { 240 });

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

fn all_pass(cpus: u64, rounds: u64, limit: Duration) {
    for engine in engines() {
        let mut g = start(&engine, cpus, None, &format!("rounds={rounds}"));
        g.expect_exit(STATUS_PASS, limit);
        let want: String = tests().iter().map(|t| format!("ok {t}\n")).collect();
        assert_eq!(g.serial_to_end(), want, "{engine}");
    }
}

#[test]
fn one_processor() {
    all_pass(1, 1000, LIMIT);
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

#[test]
fn a_stale_tlb_entry_is_found() {
    is_found(1, Fault::NoInvlpg, "rounds=100 test=shoot", "FAIL shoot data of an old frame, cpu 0");
}
