//! The machine on the host's KVM: the same guest with the same end on every engine, moved between them while it runs, and where KVM
//! cannot go on. `tests/kvm/guest.S` checks itself and ends with status 33. Without /dev/kvm these tests say so and do nothing.

use rhea_tests::boot::{Guest, kvm_is_there as there, run, scratch};
use rhea_tests::qmp::Client;
use rhea_tests::small::guest_of;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
/// `isa-debug-exit` got 16.
const RIGHT: i32 = 33;

/// Past the test harness, which keeps what tests print.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// The guest, with preprocessor names.
fn guest(name: &str, defines: &[&str]) -> Option<String> {
    guest_of("guest.S", name, defines)
}

const MACHINE: [&str; 7] = ["-m", "16", "-display", "none", "-nodefaults", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"];
const SERIAL: [&str; 2] = ["-serial", "stdio"];
const MONITOR: [&str; 2] = ["-monitor", "stdio"];
/// KVM without its self-test, and the JIT behind it.
const BOTH: [&str; 4] = ["-accel", "kvm,self-test=off", "-accel", "jit"];

#[test]
fn the_same_end_on_jit_and_kvm() {
    for (name, defines, cpus) in [("plain", &[][..], "1"), ("smp", &["SMP"], "2")] {
        let Some(kernel) = guest(name, defines) else { return };
        let with = |accel: &[&str]| {
            let args = [&MACHINE[..], &SERIAL, &["-smp", cpus, "-kernel", &kernel], accel].concat();
            let out = run(&format!("kvm-{name}"), &args, LIMIT);
            let errors = String::from_utf8_lossy(&out.stderr).into_owned();
            assert_eq!((out.status.code(), &*out.stdout), (Some(RIGHT), &b"begins\nright\n"[..]), "{accel:?}: {errors}");
            errors
        };
        with(&["-accel", "jit"]);
        // What there is: with a line that says which, and why.
        let errors = with(&["-accel", "kvm:jit"]);
        assert!(errors.contains("KVM runs the guest") || errors.contains("-accel jit, for there is no KVM: "), "{errors}");
        if there() {
            with(&["-accel", "kvm"]);
            with(&["-accel", "kvm,kernel-irqchip=split"]);
            with(&["-accel", "kvm,kernel-irqchip=on"]);
        }
    }
}

/// A disk whose first block `tests/kvm/micro.S` knows.
fn known_disk(name: &str) -> (PathBuf, Vec<u8>) {
    let path = scratch().join(format!("kvm-{name}.img"));
    let block: Vec<u8> = (0..512u32).map(|i| (i * 7 + 3) as u8).collect();
    std::fs::write(&path, [&block[..], &[0; 63 * 512]].concat()).expect("a disk");
    (path, block)
}

#[test]
fn a_microvm_reaches_its_disk_on_every_engine() {
    for (machine, gsi) in [("microvm", "GSI=16"), ("microvm,acpi=off", "GSI=5")] {
        let Some(kernel) = guest_of("micro.S", &gsi.replace('=', ""), &[gsi]) else { return };
        for accel in ["jit", "interp", "kvm", "kvm,kernel-irqchip=split", "kvm,kernel-irqchip=on"] {
            if accel.starts_with("kvm") && !there() {
                continue;
            }
            let (path, block) = known_disk("micro");
            let drive = format!("file={},if=none,id=d,format=raw", path.display());
            let disk = ["-M", machine, "-drive", &drive, "-device", "virtio-blk-device,drive=d", "-no-reboot"];
            let args = [&MACHINE[..], &SERIAL, &disk, &["-accel", accel, "-kernel", &kernel]].concat();
            let out = run("kvm-micro", &args, LIMIT);
            let errors = String::from_utf8_lossy(&out.stderr);
            assert_eq!((out.status.code(), &*out.stdout), (Some(RIGHT), &b"begins\nright\n"[..]), "{machine} {accel}: {errors}");
            let after = std::fs::read(&path).expect("the disk");
            assert!(after[512..1024].iter().zip(&block).all(|(a, b)| *a == !b), "{machine} {accel}: not written");
        }
    }
}

/// kB of one kind in the program's mappings, but for the guest's memory (16 MiB, or a little more with what lies beside it).
fn kilobytes(smaps: &str, kind: &str) -> u64 {
    let (mut sum, mut guests) = (0, false);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("Size:"), Some(kb)) => guests = kb.parse().is_ok_and(|kb: u64| (16 << 10..17 << 10).contains(&kb)),
            (Some(k), Some(kb)) if k == kind && !guests => sum += kb.parse::<u64>().expect("a number"),
            _ => {}
        }
    }
    sum
}

/// What it is made of takes more in a build for tests; its heap does not.
#[test]
fn a_microvm_takes_no_large_pages_for_itself() {
    let Some(kernel) = guest_of("halt.S", "halt", &[]) else { return };
    let mut engines = vec!["jit"];
    if there() {
        engines.push("kvm");
    }
    for accel in engines {
        let args = [
            "-M",
            "microvm",
            "-m",
            "16",
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-accel",
            accel,
            "-kernel",
            &kernel,
        ];
        let mut g = Guest::start("kvm-small", &args);
        g.wait_for("halts", LIMIT);
        std::thread::sleep(Duration::from_millis(200));
        let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", g.process())).expect("it runs");
        let (all, large) = (kilobytes(&smaps, "Rss:"), kilobytes(&smaps, "AnonHugePages:"));
        say(&format!("{accel}: {all} kB resident beside the guest's"));
        assert_eq!(large, 0, "{smaps}");
    }
}

#[test]
fn what_microvm_has_not_is_said() {
    for (args, text) in [
        (&["-M", "microvm"][..], "no firmware"),
        (&["-M", "microvm", "-kernel", "k", "-device", "virtio-rng-pci"], "use virtio-rng-device"),
        (&["-device", "virtio-rng-device"], "use virtio-rng-pci"),
        (&["-M", "microvm", "-kernel", "k", "-hda", "x"], "no IDE"),
    ] {
        let out = run("micro-errors", &[args, &["-display", "none"]].concat(), LIMIT);
        let errors = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(1) && errors.contains(text) && errors.lines().count() == 1, "{args:?}: {errors}");
    }
}

/// How much longer the guest runs, where the host is too busy to move it so often meanwhile.
const LONGER: [u32; 3] = [1, 6, 36];

/// A hundred times from one engine to the other, of the guest with this many CPUs.
fn moves(name: &str, defines: &[&str], cpus: &str, engines: &[&str]) {
    if !there() {
        return;
    }
    let done = LONGER.iter().any(|times| {
        let ticks = format!("TICKS={}", 1500 * times);
        let kernel = guest(name, &[&[&*ticks], defines].concat());
        kernel.is_none_or(|k| move_about(name, &["-smp", cpus, "-kernel", &k], engines))
    });
    assert!(done, "the guest ends before it is moved");
}

/// `false`: the guest came to its right end before.
fn move_about(name: &str, args: &[&str], engines: &[&str]) -> bool {
    let args = [&MACHINE[..], &MONITOR, args, engines].concat();
    let mut g = Guest::start(&format!("kvm-{name}"), &args);
    for n in 0..100 {
        let (to, said) =
            if n % 2 == 0 { ("jit", "kvm support: enabled (another engine") } else { ("kvm", "kvm support: enabled") };
        g.send(&format!("accel {to}\ninfo kvm\n"));
        if n == 98 {
            g.send("info jit\n");
        }
        if !g.wait_for_or_end(said, LIMIT) {
            g.expect_exit(RIGHT, LIMIT);
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    g.expect_exit(RIGHT, LIMIT);
    let all = g.serial_to_end();
    let exits = rhea_tests::counters::counter(&all, "exits from KVM").unwrap_or_default();
    // On a busy host KVM may not get to begin each time; with interrupt controllers of its own it comes back for little else.
    assert!(exits > 0, "KVM did not run");
    true
}

#[test]
fn a_guest_that_runs_moves_a_hundred_times() {
    moves("moves", &[], "1", &BOTH);
}

#[test]
fn two_cpus_that_run_move_a_hundred_times() {
    moves("moves2", &["SMP"], "2", &BOTH);
}

/// The local APICs' state goes along.
#[test]
fn cpus_with_kvms_local_apics_move_a_hundred_times() {
    let engines = ["-accel", "kvm,self-test=off,kernel-irqchip=split", "-accel", "jit"];
    moves("split2", &["SMP"], "2", &engines);
}

/// The 8259s', the I/O APIC's and the 8254's too.
#[test]
fn cpus_with_all_of_kvms_interrupt_controllers_move_a_hundred_times() {
    let engines = ["-accel", "kvm,self-test=off,kernel-irqchip=on", "-accel", "jit"];
    moves("on2", &["SMP"], "2", &engines);
}

/// It goes on, and never backwards, at the right pace.
#[test]
fn kvms_clock_goes_on_through_a_hundred_moves() {
    let Some(kernel) = guest_of("clock.S", "clock", &["SECONDS=2"]) else { return };
    // On the JIT alone there is none, unless it is asked for.
    for (cpu, end) in [("max", 35), ("max,+kvmclock", RIGHT)] {
        let args = [&MACHINE[..], &SERIAL, &["-cpu", cpu, "-kernel", &kernel, "-accel", "jit"]].concat();
        let out = run("kvm-clock-jit", &args, LIMIT);
        assert_eq!(out.status.code(), Some(end), "{cpu}: {}", String::from_utf8_lossy(&out.stderr));
    }
    if !there() {
        return;
    }
    for irqchip in ["off", "on"] {
        let engine = format!("kvm,self-test=off,kernel-irqchip={irqchip}");
        let done = LONGER.iter().any(|times| {
            let seconds = 2 * times;
            let Some(kernel) = guest_of("clock.S", "clock", &[&format!("SECONDS={seconds}")]) else { return true };
            let started = Instant::now();
            let done = move_about("clock", &["-kernel", &kernel], &["-accel", &engine, "-accel", "jit"]);
            let (took, seconds) = (started.elapsed().as_secs_f64(), f64::from(seconds));
            assert!(took > seconds * 0.95 && took < seconds + 30.0, "{seconds} s of KVM's clock took {took}");
            done
        });
        assert!(done, "the guest ends before it is moved");
    }
}

/// Saved on KVM, with each kind of interrupt controllers, it goes on anywhere: by `savevm`, and by QMP's `migrate` to a file.
#[test]
fn a_machine_saved_on_kvm_goes_on_on_all() {
    let Some(kernel) = guest("saved", &["TICKS=700", "SMP"]) else { return };
    if !there() {
        return;
    }
    const IRQCHIPS: [&str; 3] = ["kvm", "kvm,kernel-irqchip=split", "kvm,kernel-irqchip=on"];
    // No feature that some KVM lacks.
    let args = [&MACHINE[..], &["-smp", "2", "-cpu", "x86-64-v1", "-kernel", &kernel]].concat();
    let (file, socket) = (scratch().join("kvm-saved.state"), scratch().join("kvm-saved.qmp"));
    let (path, qmp) = (file.display().to_string(), format!("unix:{},server=on,wait=off", socket.display()));
    let incoming = format!("file:{path}");
    for (from, migrate) in IRQCHIPS.into_iter().flat_map(|i| [(i, false), (i, true)]) {
        for old in [&file, &socket] {
            let _ = std::fs::remove_file(old);
        }
        let mut g = Guest::start("kvm-save", &[&args[..], &SERIAL, &["-qmp", &qmp, "-accel", from]].concat());
        g.wait_for("begins", LIMIT);
        let mut c = Client::new(&socket);
        std::thread::sleep(Duration::from_millis(150));
        if migrate {
            assert_eq!(c.migrate(&file)["status"], "completed");
        } else {
            assert_eq!(c.human(&format!("savevm {path}")), "");
        }
        c.send(r#"{"execute":"quit"}"#);
        g.expect_exit(0, LIMIT);
        let load = if migrate { ["-incoming", &*incoming] } else { ["-loadvm", &*path] };
        for accel in IRQCHIPS.into_iter().chain(["jit"]) {
            let out = run("kvm-load", &[&args[..], &SERIAL, &load, &["-accel", accel]].concat(), LIMIT);
            let errors = String::from_utf8_lossy(&out.stderr);
            assert_eq!((out.status.code(), &*out.stdout), (Some(RIGHT), &b"right\n"[..]), "{from} to {accel}: {errors}");
        }
    }
}

#[test]
fn where_kvm_cannot_go_on_the_jit_does() {
    if !there() {
        return;
    }
    for (name, defines, cpus) in [("sse", &["SSE"][..], "1"), ("sse2", &["SSE", "SMP"], "2")] {
        let Some(kernel) = guest(name, defines) else { return };
        falls_back(&[&MACHINE[..], &SERIAL, &["-smp", cpus, "-kernel", &kernel]].concat());
    }
}

fn falls_back(args: &[&str]) {
    let alone = run("kvm-alone", &[args, &["-accel", "kvm"]].concat(), LIMIT);
    let errors = String::from_utf8_lossy(&alone.stderr).into_owned();
    if alone.status.code() == Some(RIGHT) {
        say("this KVM can do all that the guest asks for: nothing to fall back from");
    } else {
        // movd %ebx,%xmm0
        assert!(errors.contains(" at 0x100") && errors.contains("(bytes 66 0f 6e c3 "), "{errors}");
        assert_eq!(alone.status.code(), Some(1), "{errors}");
    }
    let both = run("kvm-both", &[args, &BOTH].concat(), LIMIT);
    let said = String::from_utf8_lossy(&both.stderr).into_owned();
    assert_eq!((both.status.code(), &*both.stdout), (Some(RIGHT), &b"begins\nright\n"[..]), "{said}");
    let fell_back = said.contains("the guest goes on without it");
    assert_eq!(fell_back, alone.status.code() == Some(1), "{said}");
}

/// One packet to a gdb stub, and its answer's payload.
fn ask(s: &mut UnixStream, payload: &str) -> String {
    let sum = payload.bytes().fold(0u8, |s, b| s.wrapping_add(b));
    s.write_all(format!("${payload}#{sum:02x}").as_bytes()).expect("the stub reads");
    let (mut got, mut byte) = (Vec::new(), [0]);
    while got.iter().rev().nth(2) != Some(&b'#') {
        s.read_exact(&mut byte).expect("the stub answers");
        // Acknowledgements come between packets.
        if !(got.is_empty() && byte[0] != b'$') {
            got.push(byte[0]);
        }
    }
    s.write_all(b"+").expect("the stub reads");
    String::from_utf8_lossy(&got[1..got.len() - 3]).into_owned()
}

#[test]
fn gdb_stops_a_guest_that_kvm_runs() {
    let Some(kernel) = guest("gdb", &["TICKS=400"]) else { return };
    if !there() {
        return;
    }
    let at = std::env::temp_dir().join(format!("rhea-kvm-gdb-{}", std::process::id()));
    let stub = format!("unix:{}", at.display());
    let args = [&MACHINE[..], &SERIAL, &["-kernel", &kernel, "-gdb", &stub], &BOTH].concat();
    let mut g = Guest::start("kvm-gdb", &args);
    g.wait_for("begins", LIMIT);
    let started = Instant::now();
    let mut s = loop {
        match UnixStream::connect(&at) {
            Ok(s) => break s,
            Err(e) => assert!(started.elapsed() < LIMIT, "{e}"),
        }
    };
    s.set_read_timeout(Some(LIMIT)).expect("a time limit");
    // Of the loop: "inc %ebp" is found by its bytes in what lies at RIP's page.
    ask(&mut s, "?");
    let code = ask(&mut s, "m100000,200");
    let bytes: Vec<u8> = (0..code.len() / 2).map(|i| u8::from_str_radix(&code[2 * i..2 * i + 2], 16).expect("hex")).collect();
    // add $1013904223,%ebx; inc %ebp
    let add = [0x81, 0xc3, 0x5f, 0xf3, 0x6e, 0x3c, 0x45];
    let inc = 0x10_0000 + 6 + bytes.windows(7).position(|w| w == add).expect("the loop is there");
    let mut last = None;
    for _ in 0..3 {
        assert_eq!(ask(&mut s, &format!("Z0,{inc:x},1")), "OK");
        assert!(ask(&mut s, "vCont;c").starts_with("T05"));
        let register = |s: &mut UnixStream, n| {
            let hex = ask(s, &format!("p{n:x}"));
            (0..8).rev().fold(0u64, |v, i| v << 8 | u64::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("hex"))
        };
        assert_eq!(register(&mut s, 16), inc as u64, "RIP");
        assert_eq!(ask(&mut s, &format!("z0,{inc:x},1")), "OK");
        let count = register(&mut s, 6);
        // One instruction; then on by KVM for a while.
        assert!(ask(&mut s, "vCont;s:1").starts_with("T05"));
        assert_eq!((register(&mut s, 16), register(&mut s, 6)), (inc as u64 + 1, count + 1));
        assert!(last.is_none_or(|l| count > l), "EBP {count}, was {last:?}");
        last = Some(count);
        s.write_all(b"$vCont;c#a8").expect("the stub reads");
        std::thread::sleep(Duration::from_millis(20));
        s.write_all(&[3]).expect("the stub reads");
        let (mut got, mut byte) = (Vec::new(), [0]);
        while got.iter().rev().nth(2) != Some(&b'#') {
            s.read_exact(&mut byte).expect("a stop is told");
            got.push(byte[0]);
        }
        s.write_all(b"+").expect("the stub reads");
    }
    assert_eq!(ask(&mut s, "D"), "OK");
    drop(s);
    g.expect_exit(RIGHT, LIMIT);
    let _ = std::fs::remove_file(&at);
}

#[test]
fn where_instructions_are_counted_kvm_is_refused() {
    let Some(kernel) = guest("counted", &[]) else { return };
    let out = run("kvm-icount", &["-accel", "kvm", "-icount", "shift=3", "-kernel", &kernel], LIMIT);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("-icount needs -accel jit or interp"));
}
