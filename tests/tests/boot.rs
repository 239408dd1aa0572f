//! Boots on every engine setting: the built-in guest, and Debian's kernel to a shell where it can be fetched.

use machine::firstrun;
use machine::options::{Config, Request, parse};
use rhea_tests::boot::{Guest, file, program, scratch};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use vm_core::testing::left_out;

/// Limits that only a hang exceeds: this many times as long in a build without optimisation.
const SLOW: u32 = if cfg!(debug_assertions) { 10 } else { 1 };
const SHORT: Duration = Duration::from_secs(60 * SLOW as u64);
const LONG: Duration = Duration::from_secs(300 * SLOW as u64);

/// Kernel and initial RAM disk of the first command, fetched once; `None` on a host that cannot fetch them.
fn debian() -> Option<&'static (String, String)> {
    static FILES: OnceLock<Option<(String, String)>> = OnceLock::new();
    let fetch = || {
        let config = first_command();
        let text = |p: std::path::PathBuf| p.into_os_string().into_string().expect("the cache folder's path is UTF-8");
        Some((text(config.kernel?), text(config.initrd?)))
    };
    FILES.get_or_init(fetch).as_ref()
}

fn first_command() -> Config {
    match parse([]) {
        Ok(Request::FirstRun(c)) => firstrun::prepare(*c).expect("some guest can always be made"),
        other => panic!("no arguments mean {other:?}"),
    }
}

/// Boots the built-in guest and tries all its words.
fn built_in(name: &str, accel: &str) {
    let elf = file(&format!("{name}.elf"), &firstrun::built_in().unwrap());
    let mut g = Guest::start(name, &["-accel", accel, "-m", "64M", "-nographic", "-kernel", &elf]);
    use_built_in(&mut g, 64 << 10);
}

fn use_built_in(g: &mut Guest, kib: u64) {
    g.wait_for("rhea's built-in guest", SHORT);
    g.wait_for("> ", SHORT);
    g.type_line("help");
    let help = g.wait_for("> ", SHORT);
    assert!(help.contains("power off"), "{help:?}");
    g.type_line("cpu");
    let cpu = g.wait_for("> ", SHORT);
    let vendor = cpu.lines().nth(1).unwrap_or_default();
    assert_eq!(vendor.trim().len(), 12, "a vendor has twelve letters: {cpu:?}");
    g.type_line("mem");
    let mem = g.wait_for(" KiB", SHORT);
    let found: u64 = mem.lines().last().and_then(|n| n.trim().parse().ok()).expect("a number of KiB");
    // Less the ranges below 1 MiB that are not RAM to the guest.
    assert!(found <= kib && found + 1024 > kib, "{found} KiB of {kib}");
    g.type_line("reboot");
    g.wait_for("rhea's built-in guest", SHORT);
    g.wait_for("> ", SHORT);
    g.type_line("off");
    g.wait_for("powering off", SHORT);
    g.expect_exit(0, SHORT);
}

/// Boots Debian's kernel to busybox's prompt, or the built-in guest where there is no Debian kernel.
fn debian_to_shell(name: &str, accel: &str) {
    let Some((kernel, initrd)) = debian() else {
        left_out(&format!("{name}: Debian's kernel cannot be fetched, so the built-in guest is booted"));
        return built_in(name, accel);
    };
    let start = Instant::now();
    let args = ["-accel", accel, "-m", "512M", "-nographic", "-no-reboot", "-kernel", kernel, "-initrd", initrd];
    let mut g = Guest::start(name, &[&args[..], &["-append", "console=ttyS0"]].concat());
    g.wait_for("in rhea", LONG);
    g.wait_for("# ", SHORT);
    eprintln!("{name}: prompt after {:.1} s", start.elapsed().as_secs_f64());
    use_shell(&mut g);
}

fn use_shell(g: &mut Guest) {
    g.type_line("echo 6*7=$((6*7))");
    g.wait_for("\n6*7=42", SHORT);
    g.wait_for("# ", SHORT);
    g.type_line("cat /proc/cpuinfo");
    let info = g.wait_for("# ", SHORT);
    for word in ["vendor_id", "model name", "sse2", "power management"] {
        assert!(info.contains(word), "no {word:?} in {info}");
    }
    g.type_line("poweroff -f");
    g.expect_exit(0, SHORT);
}

#[test]
fn built_in_guest_on_the_interpreter() {
    built_in("built-in-interp", "interp");
}

#[test]
fn built_in_guest_on_the_jit() {
    built_in("built-in-jit", "jit");
}

#[test]
fn built_in_guest_with_everything_compiled() {
    built_in("built-in-jit-0", "jit,threshold=0");
}

#[test]
fn built_in_guest_with_single_blocks_compiled() {
    built_in("built-in-jit-block", "jit,threshold=0,region=block");
}

#[test]
fn debian_on_the_interpreter() {
    debian_to_shell("debian-interp", "interp");
}

#[test]
fn debian_on_the_jit() {
    debian_to_shell("debian-jit", "jit");
}

#[test]
fn debian_with_single_blocks_compiled() {
    debian_to_shell("debian-jit-block", "jit,region=block");
}

/// Counted by instructions, the whole boot is the same on both.
#[test]
fn debian_by_instructions() {
    let Some((kernel, initrd)) = debian() else {
        return left_out("Debian's kernel cannot be fetched, so no boot is compared by instructions");
    };
    let hashes = |name: &str, accel: &str| {
        let log = file(&format!("{name}.hash"), &[]);
        let time = ["-icount", "shift=3", "-d", "hash,every=1000000", "-D", &log];
        let args = ["-accel", accel, "-m", "512M", "-nographic", "-no-reboot", "-kernel", kernel, "-initrd", initrd];
        let mut g = Guest::start(name, &[&args[..], &time, &["-append", "console=ttyS0"]].concat());
        g.wait_for("in rhea", LONG);
        g.wait_for("# ", SHORT);
        g.kill();
        let text = std::fs::read_to_string(log).expect("the log is there");
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (a, b) = (hashes("icount-interp", "interp"), hashes("icount-jit", "jit"));
    // The last line may be cut off.
    let both = a.len().min(b.len()).saturating_sub(1);
    assert!(both > 500, "{both} million instructions");
    assert_eq!(a[..both].iter().zip(&b).find(|(x, y)| x != y), None);
}

/// All CPUs come up, run, and do not come in each other's way.
fn debian_with_cpus(name: &str, accel: &str, smp: &str, cpus: u32) {
    let Some((kernel, initrd)) = debian() else {
        return left_out(&format!("{name}: Debian's kernel cannot be fetched"));
    };
    let args = ["-accel", accel, "-smp", smp, "-m", "512M", "-nographic", "-no-reboot", "-kernel", kernel, "-initrd", initrd];
    let mut g = Guest::start(name, &[&args[..], &["-append", "console=ttyS0"]].concat());
    let log = g.wait_for("in rhea", LONG);
    assert!(log.contains(&format!("smp: Brought up 1 node, {cpus} CPUs")), "{log}");
    g.wait_for("# ", SHORT);
    g.type_line("grep -c ^processor /proc/cpuinfo");
    g.wait_for(&format!("\n{cpus}"), SHORT);
    g.wait_for("# ", SHORT);
    // Each round is a job of its own on whichever CPU is free.
    g.type_line("for i in 1 2 3 4 5 6 7 8; do (seq 20000 | md5sum > /tmp/s$i) & done; wait; cat /tmp/s? | sort -u | wc -l");
    g.wait_for("\n1", SHORT);
    g.wait_for("# ", SHORT);
    g.type_line("poweroff -f");
    g.expect_exit(0, SHORT);
}

#[test]
fn debian_with_two_cpus() {
    debian_with_cpus("debian-smp-2", "jit", "2", 2);
}

#[test]
fn debian_with_four_cpus_in_two_sockets() {
    debian_with_cpus("debian-smp-4", "jit", "4,sockets=2", 4);
}

/// The README's first command, as typed.
#[test]
fn the_first_command_reaches_a_prompt() {
    let shell = debian().is_some();
    let mut g = Guest::start("first-command", &[]);
    if shell {
        g.wait_for("in rhea", LONG);
        g.wait_for("# ", SHORT);
        g.type_line("exit");
        g.expect_exit(0, SHORT);
    } else {
        left_out("first-command: Debian's kernel cannot be fetched, so the built-in guest is expected");
        use_built_in(&mut g, 512 << 10);
    }
}

/// The same on a host without Debian's tools: the built-in guest, and a word about why.
#[test]
fn without_debians_tools_the_built_in_guest_starts() {
    let home = scratch().join("no-tools");
    let mut c = Command::new(program());
    c.env("PATH", "/nonexistent").env("XDG_CACHE_HOME", &home);
    let _ = std::fs::remove_dir_all(&home);
    let mut g = Guest::spawn("no-tools", &mut c);
    use_built_in(&mut g, 512 << 10);
    assert!(g.errors().contains("apt-get is not there"), "{}", g.errors());
}
