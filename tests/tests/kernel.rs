//! The test kernel's rows on every engine. `RHEA_KERNEL_ENGINES` (separated by ';') names other settings of `-accel`.

use rhea_tests::boot::{Guest, kvm_is_there};
use rhea_tests::kernel::{Kernel, STATUS_PASS, build, build_for_kvm};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 1200 } else { 120 });

/// The emulator goes instruction by instruction.
const LIMIT_KVM: Duration = Duration::from_secs(600);

fn engines() -> Vec<String> {
    let named = std::env::var("RHEA_KERNEL_ENGINES").unwrap_or_else(|_| "interp;jit;jit,threshold=0".into());
    named.split(';').map(str::to_owned).collect()
}

fn start(elf: &str, engine: &str, cpu: &str) -> Guest {
    let machine = ["-m", "32M", "-display", "none", "-serial", "stdio", "-device", "isa-debug-exit", "-no-reboot"];
    let name = format!("kernel-{}-{cpu}", engine.replace([',', '='], "-"));
    Guest::start(&name, &[&machine[..], &["-accel", engine, "-cpu", cpu, "-kernel", elf]].concat())
}

/// Rows that ran.
fn rows(serial: &str) -> u64 {
    let end = serial.lines().find_map(|l| l.strip_prefix("end: ")?.split(' ').next()?.parse().ok());
    end.unwrap_or_else(|| panic!("the kernel did not come to its end:\n{serial}"))
}

fn all_pass(kernel: Kernel, cpu: &str, at_least: u64) {
    let Some(elf) = build(kernel, &[]) else { return };
    for engine in engines() {
        let mut g = start(elf.to_str().expect("the target folder's path is UTF-8"), &engine, cpu);
        let status = g.wait_for_exit(LIMIT);
        let serial = g.serial_to_end();
        assert_eq!(status.code(), Some(STATUS_PASS), "{engine}:\n{serial}");
        assert!(rows(&serial) >= at_least && !serial.contains("FAIL"), "{engine}:\n{serial}");
    }
}

#[test]
fn all_rows_of_the_64_bit_kernel() {
    all_pass(Kernel::Bits64, "max", 33_200);
}

#[test]
fn all_rows_of_the_32_bit_kernel() {
    all_pass(Kernel::Bits32, "max", 59_700);
}

/// The rows that the emulator of a KVM without VT can run, with the features that it gives: said alike there and on the JIT.
#[test]
fn rows_on_kvm_are_those_on_the_jit() {
    const CPU: &str = "max,-la57,-pku,-pcid,-invpcid,-pdpe1gb";
    let Some(elf) = build_for_kvm() else { return };
    if !kvm_is_there() {
        return;
    }
    let said = |engine: &str| {
        let mut g = start(elf.to_str().expect("the target folder's path is UTF-8"), engine, CPU);
        let status = g.wait_for_exit(LIMIT_KVM);
        let serial = g.serial_to_end();
        assert_eq!(status.code(), Some(STATUS_PASS), "{engine}:\n{serial}\n{}", g.errors());
        serial
    };
    let jit = said("jit");
    assert!(rows(&jit) >= 8_900, "{jit}");
    assert_eq!(said("kvm"), jit);
}

/// The model that the rows are judged by is made wrong in one place: what differs is told.
#[test]
fn a_wrong_row_is_told() {
    let Some(elf) = build(Kernel::Bits64, &["WRONG_MODEL"]) else { return };
    let mut g = start(elf.to_str().expect("the target folder's path is UTF-8"), "jit", "max");
    assert_ne!(g.wait_for_exit(LIMIT).code(), Some(STATUS_PASS));
    let serial = g.serial_to_end();
    assert!(serial.contains("FAIL 4-level paging: allowed: vector 14 error 5, leaf "), "{serial}");
    assert!(serial.contains("  user read cr0.wp 1 "), "{serial}");
}
