//! The gdb stub under a real gdb: tables of checks (`tests/gdb/*.txt`) run by a script in it, on a guest of our own that goes from
//! real to protected to long mode, and on Debian's kernel. And hostile clients.
//!
//! `RHEA_GDB_TIMES=N` runs each table N times, `RHEA_GDB_FUZZ_SECONDS=N` the hostile clients for so long.

use cpio::newc::{Builder, ModeFileType, trailer};
use machine::firstrun;
use machine::options::{self, Config, Request};
use machine::trace::reader::{Symbols, show};
use rhea_tests::boot::{Guest, file, scratch};
use rhea_tests::counters::counter;
use rhea_tests::workspace::root;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vm_core::testing::left_out;

const LIMIT: Duration = Duration::from_secs(60);
const GDBS: [&str; 2] = ["gdb", "gdb-multiarch"];

/// The gdbs that there are; with `RHEA_TEST_ALL` there must be one.
fn gdbs() -> Vec<&'static str> {
    let there = |g: &&str| {
        Command::new(g).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
    };
    let found: Vec<_> = GDBS.into_iter().filter(there).collect();
    if found.is_empty() {
        left_out("there is no gdb");
    }
    found
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// A path for a socket of its own, short enough for one.
fn socket() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    std::env::temp_dir().join(format!("rhea-gdb-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// The debugger's guest (`tests/gdb`), with debugging information.
fn guest() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<PathBuf>> = OnceLock::new();
    const FLAGS: &str = "-m64 -mno-red-zone -O0 -g -std=gnu11 -ffreestanding -fno-pic -no-pie -static -nostdlib -mgeneral-regs-only \
                         -fno-stack-protector -fcf-protection=none -Wall -Wextra -Wl,--build-id=none -Wl,-T,guest.ld";
    let built = BUILT.get_or_init(|| cc(FLAGS, &["start.S", "guest.c"], "gdb-guest.elf")).as_deref();
    if built.is_none() {
        left_out("there is no C compiler");
    }
    built
}

/// Runs a table in a gdb; gives the number of its checks. `setup`: gdb commands before it.
fn check(gdb: &str, table: &str, at: &Path, setup: &[String], elf: Option<&Path>) -> usize {
    let here = root().join("tests/gdb");
    let names = format!("python TABLE={:?}; TARGET={:?}", here.join(table).display().to_string(), at.display().to_string());
    let mut c = Command::new(gdb);
    c.args(["-nx", "-batch", "-ex", &names]).arg("-x").arg(root().join("machine/src/gdb/rhea-gdb.py"));
    setup.iter().for_each(|s| {
        c.args(["-ex", s]);
    });
    c.arg("-x").arg(here.join("run.py")).args(elf);
    let out = c.stdin(Stdio::null()).output().expect("gdb runs");
    let said = String::from_utf8_lossy(&out.stdout);
    let words: Vec<&str> = said.lines().last().unwrap_or_default().split([' ', ',']).collect();
    match words[..] {
        ["checks:", n, "", "failed:", "0"] => n.parse().expect("a number of checks"),
        _ => panic!("{gdb}, {table}:\n{said}\n{}", String::from_utf8_lossy(&out.stderr)),
    }
}

/// Runs a table on the debugger's guest, held at its first instruction.
fn on_guest(table: &str, more: &[&str]) -> usize {
    guest().map_or(0, |elf| run_on_guest(table, "", elf, more))
}

/// As `on_guest`, with more for the stub, and gdb given another file.
fn run_on_guest(table: &str, stub_options: &str, for_gdb: &Path, more: &[&str]) -> usize {
    let Some(elf) = guest() else { return 0 };
    let mut checks = 0;
    for gdb in gdbs() {
        for _ in 0..number("RHEA_GDB_TIMES", 1) {
            let at = socket();
            let stub = format!("unix:{}{stub_options}", at.display());
            let kernel = elf.display().to_string();
            let args = ["-m", "16", "-cpu", "max", "-display", "none", "-nodefaults", "-no-reboot", "-S"];
            let args = [&args[..], &["-gdb", &stub, "-kernel", &kernel], more].concat();
            let _g = Guest::start(&format!("gdb-{table}"), &args);
            let started = Instant::now();
            while UnixStream::connect(&at).is_err() {
                assert!(started.elapsed() < LIMIT, "no stub at {stub}");
                std::thread::sleep(Duration::from_millis(10));
            }
            checks = check(gdb, table, &at, &[], Some(for_gdb));
            let _ = std::fs::remove_file(&at);
        }
    }
    checks
}

#[test]
fn from_real_to_long_mode() {
    let n = on_guest("modes.txt", &[]);
    assert!(n == 0 || n >= 60, "{n} checks");
}

#[test]
fn from_real_to_long_mode_on_the_interpreter() {
    on_guest("modes.txt", &["-accel", "interp"]);
}

#[test]
fn code_with_symbols() {
    let n = on_guest("long.txt", &[]);
    assert!(n == 0 || n >= 60, "{n} checks");
}

#[test]
fn code_with_symbols_where_all_is_compiled() {
    on_guest("long.txt", &["-accel", "jit,threshold=0"]);
}

#[test]
fn code_of_32_bits_with_an_elf_file_of_32_bits() {
    let Some(elf) = guest() else { return };
    let small = scratch().join("gdb-guest32.elf");
    let out = Command::new("objcopy").args(["-I", "elf64-x86-64", "-O", "elf32-i386"]).args([elf, &small]).output();
    if !out.is_ok_and(|o| o.status.success()) {
        return left_out("there is no objcopy");
    }
    run_on_guest("bits32.txt", ",arch=i386", &small, &[]);
}

#[test]
fn several_cpus() {
    on_guest("smp.txt", &["-smp", "2"]);
}

/// Debian's kernel and initial RAM disk, where they can be had.
fn debian() -> Option<(String, String)> {
    let c: Config = match options::parse(Vec::new()) {
        Ok(Request::FirstRun(c)) => firstrun::prepare(*c).expect("some guest can always be made"),
        other => panic!("{other:?}"),
    };
    let path = |p: Option<PathBuf>| p.map(|p| p.display().to_string());
    path(c.kernel).zip(path(c.initrd))
}

/// A static program in `tests/gdb`, with debugging information.
fn cc(flags: &str, sources: &[&str], to: &str) -> Option<PathBuf> {
    let program = scratch().join(to);
    let mut cc = Command::new("cc");
    cc.current_dir(root().join("tests/gdb")).args(flags.split_whitespace()).args(sources).arg("-o").arg(&program);
    let out = cc.output().ok()?;
    assert!(out.status.success(), "{to} does not compile:\n{}", String::from_utf8_lossy(&out.stderr));
    Some(program)
}

/// The program whose processes are debugged, and the initial RAM disk with it as `/user`.
fn with_user(initrd: &str) -> Option<(PathBuf, String)> {
    const FLAGS: &str = "-O0 -g -std=gnu11 -ffreestanding -fno-pic -no-pie -static -nostdlib -fno-stack-protector \
                         -fcf-protection=none -Wall -Wextra -Wl,--build-id=none";
    let program = cc(FLAGS, &["user.c"], "gdb-user")?;
    let data = std::fs::read(&program).expect("it was just made");
    let mut archive = std::fs::read(initrd).expect("the initial RAM disk");
    // Several archives make one RAM disk (Linux, "initramfs buffer format").
    archive.resize(archive.len().next_multiple_of(512), 0);
    let len = u32::try_from(data.len()).expect("a small program");
    let mut w = Builder::new("user").mode(0o755).set_mode_file_type(ModeFileType::Regular).write(&mut archive, len);
    w.write_all(&data).and_then(|()| w.finish().map(drop)).expect("memory takes all");
    trailer(&mut archive).expect("memory takes all");
    Some((program, file("gdb-user.cpio", &archive)))
}

/// Boots Debian's kernel to a shell, and runs a table while it is busy. `elf`: for gdb.
fn on_debian(gdb: &str, table: &str, initrd: &str, elf: Option<&Path>) {
    let Some((kernel, _)) = debian() else { return };
    let at = socket();
    let stub = format!("unix:{}", at.display());
    let args = ["-m", "256", "-nographic", "-append", "console=ttyS0 quiet nokaslr", "-kernel", &kernel];
    let mut g = Guest::start(&format!("gdb-{table}"), &[&args[..], &["-initrd", initrd, "-gdb", &stub]].concat());
    g.wait_for("in rhea", LIMIT);
    g.wait_for("# ", LIMIT);
    // System.map is not in Debian's package; what is needed of it comes from the kernel itself.
    let names = [
        "__x64_sys_getpid",
        "__x64_sys_getppid",
        "__x64_sys_sched_yield",
        "schedule",
        "jiffies",
        "ksys_read",
        "default_idle_call",
    ];
    g.type_line(&format!("grep -E ' ({})$' /proc/kallsyms; echo do''ne", names.join("|")));
    let said = g.wait_for("done", LIMIT);
    let mut setup = Vec::new();
    for line in said.lines() {
        if let [address, _, name] = line.split_whitespace().collect::<Vec<_>>()[..]
            && names.contains(&name)
        {
            setup.push(format!("set ${name} = 0x{address}"));
        }
    }
    assert_eq!(setup.len(), names.len(), "{said}");
    let users = if elf.is_some() { "/user 1 & /user 2 & " } else { "" };
    g.type_line(&format!("{users}while :; do sh -c 'echo $PPID >/dev/null'; done"));
    check(gdb, table, &at, &setup, elf);
    let _ = std::fs::remove_file(&at);
}

/// gdbs for what takes long: one, unless time is no matter.
fn gdbs_for_long() -> Vec<&'static str> {
    let some = if number("RHEA_GDB_TIMES", 1) > 1 { GDBS.len() } else { 1 };
    gdbs().into_iter().take(some).collect()
}

#[test]
fn debians_kernel() {
    let Some((_, initrd)) = debian() else { return left_out("Debian's kernel cannot be fetched") };
    for gdb in gdbs_for_long() {
        (0..number("RHEA_GDB_TIMES", 1)).for_each(|_| on_debian(gdb, "debian.txt", &initrd, None));
    }
}

#[test]
fn processes_under_debians_kernel() {
    let Some((_, initrd)) = debian() else { return left_out("Debian's kernel cannot be fetched") };
    let Some((program, initrd)) = with_user(&initrd) else { return left_out("there is no C compiler") };
    for gdb in gdbs_for_long() {
        (0..number("RHEA_GDB_TIMES", 1)).for_each(|_| on_debian(gdb, "user.txt", &initrd, Some(&program)));
    }
}

/// What the guest did in real mode, from `-trace` and its reader.
#[test]
fn a_trace_names_what_ran() {
    let Some(elf) = guest() else { return };
    let (kernel, file) = (elf.display().to_string(), scratch().join("gdb-guest.trace"));
    let trace = format!("{},filter=real,symbols={kernel}", file.display());
    let args =
        ["-m", "16", "-cpu", "max", "-nographic", "-serial", "none", "-monitor", "stdio", "-kernel", &kernel, "-trace", &trace];
    let mut g = Guest::start("trace", &args);
    let started = Instant::now();
    g.wait_for("(rhea)", LIMIT);
    loop {
        g.send("info registers\n");
        if g.wait_for("(rhea)", LIMIT).contains("CS64") {
            break;
        }
        assert!(started.elapsed() < LIMIT, "the guest does not come to 64-bit mode");
        std::thread::sleep(Duration::from_millis(20));
    }
    g.send("quit\n");
    g.expect_exit(0, LIMIT);
    let symbols = Symbols::read(&std::fs::read(elf).expect("the guest")).expect("it has symbols");
    let mut text = Vec::new();
    show(&std::fs::read(&file).expect("the trace")[..], &symbols, &mut text).expect("it is whole");
    let text = String::from_utf8(text).expect("text");
    for wanted in [
        "0 0000000000010000 <real_entry+0x0> mov $0x2000,%ax",
        "<real_func+0x0> inc %bx  rbx=0x1235",
        "<real_rep+0x9> rep movsb (%si),(%di)",
        "w2[0x20014]=0x1",
        "<real_handler+0x4> iret",
    ] {
        assert!(text.contains(wanted), "no {wanted:?} in\n{text}");
    }
    assert!(!text.contains("long_entry"), "what the filter leaves out");
}

/// What the engine counts in a tenth of a second, for 1000 of the guest's rounds (each has one page fault and some traps).
fn counted(g: &mut Guest) -> [u64; 5] {
    const NAMES: [&str; 5] = ["faults", "dispatcher visits", "cache look-ups", "leaves", "translated insns"];
    let mut now = || {
        g.send("info jit\n");
        let said = g.wait_for("(rhea)", LIMIT);
        NAMES.map(|n| counter(&said, n).unwrap_or_else(|| panic!("no {n:?} in {said}")))
    };
    let before = now();
    std::thread::sleep(Duration::from_millis(100));
    let after = now();
    let each: Vec<u64> = before.iter().zip(after).map(|(b, a)| a - b).collect();
    assert!(each[0] > 0, "the guest stands still");
    [0, 1, 2, 3, 4].map(|i| each[i] * 1000 / each[0])
}

/// The guest with its monitor on standard output, and the stub's socket.
fn monitored(name: &str) -> Option<(Guest, PathBuf)> {
    let (elf, at) = (guest()?, socket());
    let stub = format!("unix:{}", at.display());
    let kernel = elf.display().to_string();
    let args =
        ["-m", "16", "-cpu", "max", "-nographic", "-serial", "none", "-monitor", "stdio", "-gdb", &stub, "-kernel", &kernel];
    Some((Guest::start(name, &args), at))
}

#[test]
fn a_client_that_sets_nothing_changes_no_counter() {
    let Some((mut g, at)) = monitored("gdb-counters") else { return };
    g.wait_for("(rhea)", LIMIT);
    // Until nothing is translated any more.
    let started = Instant::now();
    while counted(&mut g)[4] > 0 || started.elapsed() < Duration::from_secs(1) {
        assert!(started.elapsed() < LIMIT, "translation goes on and on");
    }
    let best = |g: &mut Guest| (0..10).map(|_| counted(g)).reduce(|a, b| [0, 1, 2, 3, 4].map(|i| a[i].min(b[i])));
    let alone = best(&mut g);
    let mut s = UnixStream::connect(&at).expect("the stub listens");
    for packet in ["?", "vCont;c"] {
        let sum = packet.bytes().fold(0u8, |s, b| s.wrapping_add(b));
        s.write_all(format!("${packet}#{sum:02x}").as_bytes()).expect("the stub reads");
        std::thread::sleep(Duration::from_millis(50));
    }
    counted(&mut g);
    let attached = best(&mut g);
    let (Some(alone), Some(attached)) = (alone, attached) else { panic!("ten each") };
    // Three of thirty ends of blocks ask the dispatcher while a client is there.
    let more = |i: usize| attached[i] * 10 > alone[i] * 12 + 100;
    assert!(![1, 2, 3, 4].into_iter().any(more), "alone {alone:?}, with a client {attached:?}");
    println!("alone {alone:?}, with a client {attached:?}");
    g.send("quit\n");
    g.expect_exit(0, LIMIT);
    let _ = std::fs::remove_file(&at);
}

/// Numbers that look random, the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.0 >> 33
    }
}

/// What a stub must survive: packets that are cut, damaged, too long, without sense.
fn hostile(n: &mut Numbers) -> Vec<u8> {
    const KNOWN: [&str; 34] = [
        "m0,ffffffffffffffff",
        "mffffffffffffffff,10",
        "Mffffffffffffffff,1:00",
        "M0,2:0",
        "X0,4:}",
        "g",
        "G00",
        "G",
        "p999",
        "pffffffffffffffffff",
        "P0=",
        "P10=zz",
        "P24=ffffffffffffffff",
        "Hg-1",
        "Hgffff",
        "Hc",
        "T0",
        "Z0,0,1;Xffff,00",
        "Z2,ffffffffffffffff,ffffffffffffffff",
        "Z9,,",
        "z0",
        "vCont;r0,ffffffffffffffff:1;c:99",
        "vCont;",
        "vCont;t",
        "qXfer:features:read:target.xml:ffffffffffffffff,ffffffffffffffff",
        "qXfer:threads:read::0",
        "qRcmd,",
        "qRcmd,783a",
        "qRcmd,782f39393939393939393939393939393939397820300a",
        "Qqemu.sstep=ff",
        "Qqemu.PhyMemMode:2",
        "qSupported:",
        "s",
        "vCont;s",
    ];
    let mut payload: Vec<u8> = match n.next() % 4 {
        0 => (0..n.next() % 300).map(|_| n.next() as u8).collect(),
        1 => vec![b'a' + (n.next() % 26) as u8; (n.next() % 40_000) as usize],
        _ => {
            let mut p = KNOWN[n.next() as usize % KNOWN.len()].as_bytes().to_vec();
            if n.next().is_multiple_of(3) && !p.is_empty() {
                let at = n.next() as usize % p.len();
                p[at] = n.next() as u8;
            }
            p
        }
    };
    // All but "kill".
    payload.iter_mut().take(1).filter(|b| **b == b'k').for_each(|b| *b = b'K');
    let sum = payload.iter().fold(0u8, |s, b| s.wrapping_add(*b));
    let mut bytes = b"$".to_vec();
    bytes.extend(payload);
    bytes.extend(format!("#{:02x}", if n.next().is_multiple_of(8) { sum ^ 1 } else { sum }).bytes());
    if n.next().is_multiple_of(6) {
        bytes.truncate(n.next() as usize % bytes.len());
    }
    if n.next().is_multiple_of(5) {
        bytes.push(3);
    }
    bytes
}

#[test]
fn hostile_clients() {
    let Some((mut g, at)) = monitored("gdb-hostile") else { return };
    let (end, mut n) = (Instant::now() + Duration::from_secs(number("RHEA_GDB_FUZZ_SECONDS", 4)), Numbers(1));
    g.wait_for("(rhea)", LIMIT);
    while Instant::now() < end {
        let mut s = UnixStream::connect(&at).expect("the stub listens");
        s.set_read_timeout(Some(Duration::from_millis(2))).expect("a time limit");
        for _ in 0..n.next() % 40 {
            if s.write_all(&hostile(&mut n)).is_err() {
                break;
            }
            let _ = s.read(&mut [0; 4096]);
        }
        // It goes in the middle of something.
        let _ = s.write_all(b"$vCont;");
    }
    // Nobody is there any more: the guest runs.
    let before = Instant::now();
    loop {
        g.send("info status\n");
        let said = g.wait_for("(rhea)", LIMIT);
        if said.contains("VM status: running") {
            break;
        }
        assert!(before.elapsed() < LIMIT, "the guest stands still: {said}");
        std::thread::sleep(Duration::from_millis(50));
    }
    g.send("quit\n");
    g.expect_exit(0, LIMIT);
    let _ = std::fs::remove_file(&at);
}
