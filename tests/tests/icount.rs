//! `-icount`: time is exact to the instruction and the same on every engine setting, and so is all that follows from it.
//!
//! The long form: boot Debian with `-icount shift=3,sleep=off -d hash,every=1000000 -D FILE` on each setting, and compare the files.

use backend::Settings;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use machine::diff::{self, MakeEngine};
use machine::engine;
use machine::options::{IcountConfig, Request, parse};
use rhea_tests::boot::{ENTRY, file, pvh_elf, run, scratch};
use rhea_tests::engines::machine::{Image, Machine, World, at, engines};
use rhea_tests::engines::program::Program;
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_core::testing::Rng;
use vm_core::{InsnCounter, StopReason};

/// Limits that only a hang exceeds.
const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 600 } else { 60 });
const EXIT: u32 = 0x501;

const SETTINGS: [&str; 6] =
    ["interp", "jit", "jit,threshold=0", "jit,threshold=0,region=block", "jit,hot=50", "jit,tier1=off,threshold=20"];

/// Memory that the guests use, beyond their code.
const DATA: u32 = ENTRY + 0x10_000;
const IDT: u32 = ENTRY + 0x8000;
const TICKS: u32 = DATA;
const SUM: u32 = DATA + 4;
const BUFFER: u32 = DATA + 0x1000;
/// HPET: main counter (IA-PC HPET 1.0a).
const HPET_COUNTER: u32 = 0xfed0_00f0;

fn elf(name: &str, body: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> String {
    let assemble = || {
        let mut a = CodeAssembler::new(32)?;
        a.cli()?;
        a.mov(esp, ENTRY + 0x7000)?;
        body(&mut a)?;
        a.assemble(u64::from(ENTRY))
    };
    file(&format!("{name}.elf"), &pvh_elf(&assemble().expect("the guest assembles")))
}

fn exit(a: &mut CodeAssembler, value: u32) -> Result<(), IcedError> {
    a.mov(dx, EXIT)?;
    a.mov(eax, value)?;
    a.out(dx, eax)
}

/// Lets `vector` lead to a handler.
fn on(
    a: &mut CodeAssembler,
    vector: u32,
    handler: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Result<(), IcedError> {
    let (at, mut over) = (IDT + 8 * vector, a.create_label());
    // The call leaves the handler's address on the stack.
    a.call(over)?;
    handler(a)?;
    a.iretd()?;
    a.set_label(&mut over)?;
    a.pop(eax)?;
    a.mov(word_ptr(at), ax)?;
    a.mov(word_ptr(at + 2), cs)?;
    a.mov(word_ptr(at + 4), 0x8e00)?;
    a.shr(eax, 16)?;
    a.mov(word_ptr(at + 6), ax)?;
    a.mov(word_ptr(DATA + 0x10), 0x7ff)?;
    a.mov(dword_ptr(DATA + 0x12), IDT)?;
    a.lidt(ptr(DATA + 0x10))
}

fn out(a: &mut CodeAssembler, port: u32, value: u32) -> Result<(), IcedError> {
    a.mov(al, value)?;
    a.out(port, al)
}

/// Busy with everything that could make one engine's run differ from another's: timer interrupts, device registers that show
/// time, the time-stamp counter, random numbers, faults, repeated instructions over several pages, code that changes, HLT.
/// Ends with status 3 after 60 timer interrupts.
fn busy(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut round, mut inner, mut here, mut no_halt) = (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    on(a, 0x20, |a| {
        a.pushad()?;
        a.rdtsc()?;
        a.add(dword_ptr(SUM), eax)?;
        a.inc(dword_ptr(TICKS))?;
        out(a, 0x20, 0x20)?;
        a.popad()
    })?;
    on(a, 6, |a| a.add(dword_ptr(esp), 2))?;
    // 8259A: ICW1 to ICW4, then all but IRQ 0 masked.
    for (port, v) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)] {
        out(a, port, v)?;
    }
    // 8254: counter 0, mode 2, every 500 us.
    for (port, v) in [(0x43, 0x34), (0x40, 0x55), (0x40, 2)] {
        out(a, port, v)?;
    }
    a.sti()?;
    a.xor(ebp, ebp)?;
    a.set_label(&mut round)?;
    a.inc(ebp)?;
    a.mov(ecx, 300)?;
    a.set_label(&mut inner)?;
    a.mov(ebx, ecx)?;
    a.rol(ebx, 7)?;
    a.xor(dword_ptr(BUFFER + ecx * 4), ebx)?;
    a.add(esi, dword_ptr(BUFFER + ecx * 8))?;
    a.dec(ecx)?;
    a.jnz(inner)?;
    a.mov(esi, BUFFER)?;
    a.lea(edi, dword_ptr(BUFFER + 0x2001 + ebp * 1))?;
    a.mov(ecx, 5000)?;
    a.rep().movsb()?;
    a.mov(eax, dword_ptr(HPET_COUNTER))?;
    a.mov(ecx, 700)?;
    a.std()?;
    a.rep().stosb()?;
    a.cld()?;
    a.ud2()?;
    a.rdtsc()?;
    a.add(dword_ptr(SUM), eax)?;
    a.rdrand(eax)?;
    a.xor(dword_ptr(SUM), eax)?;
    a.in_(al, 0x61)?;
    a.add(byte_ptr(SUM), al)?;
    // The operand of the instruction after the store, which lies 5 bytes after the POP.
    a.call(here)?;
    a.set_label(&mut here)?;
    a.pop(edx)?;
    a.mov(dword_ptr(edx + 5), ebp)?;
    a.mov(eax, 0x1234_5678)?;
    a.add(dword_ptr(SUM), eax)?;
    a.test(ebp, 15)?;
    a.jnz(no_halt)?;
    a.hlt()?;
    a.set_label(&mut no_halt)?;
    a.cmp(dword_ptr(TICKS), 60)?;
    a.jb(round)?;
    exit(a, 1)
}

/// The log of a run that ends with this status.
fn hashes(name: &str, kernel: &str, accel: &str, icount: &str, every: u64, status: i32) -> String {
    let log = scratch().join(format!("{name}.hash"));
    let log_arg = log.to_str().expect("the target folder's path is UTF-8");
    let item = format!("hash,every={every}");
    let end = ["-device", "isa-debug-exit,iobase=0x501,iosize=4", "-display", "none", "-no-reboot"];
    let args = ["-accel", accel, "-cpu", "max", "-m", "8M", "-kernel", kernel, "-icount", icount, "-d", &item, "-D", log_arg];
    let out = run(name, &[&args[..], &end].concat(), LIMIT);
    assert_eq!(out.status.code(), Some(status), "{name} {accel}: {}", String::from_utf8_lossy(&out.stderr));
    std::fs::read_to_string(log).expect("the log is there")
}

#[test]
fn every_engine_setting_runs_alike_to_the_instruction() {
    let kernel = elf("icount-busy", busy);
    let want = hashes("icount-0", &kernel, SETTINGS[0], "shift=3,sleep=off", 10_007, 3);
    assert!(want.lines().count() > 100, "{want}");
    for (n, accel) in SETTINGS.iter().enumerate() {
        let got = hashes(&format!("icount-{n}"), &kernel, accel, "shift=3,sleep=off", 10_007, 3);
        let differs = want.lines().zip(got.lines()).find(|(a, b)| a != b);
        assert_eq!(differs, None, "{accel}");
        assert_eq!(want.lines().count(), got.lines().count(), "{accel}");
    }
    let other = hashes("icount-shift", &kernel, "jit", "shift=4,sleep=off", 10_007, 3);
    assert_ne!(want, other, "time is part of the state");
}

/// Ends with status 3 if stretches of known lengths take as many instructions, at 2^3 ns each; else with another.
fn measured(a: &mut CodeAssembler) -> Result<(), IcedError> {
    type Stretch = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    // With the second RDTSC and the move between.
    let stretches: [(u32, Stretch); 6] = [
        (2, |_| Ok(())),
        (102, |a| (0..100).try_for_each(|_| a.nop())),
        // Each iteration is one.
        (4 + 9000, |a| {
            a.mov(ecx, 9000)?;
            a.mov(edi, BUFFER)?;
            a.rep().stosb()
        }),
        (4, |a| {
            a.xor(ecx, ecx)?;
            a.rep().movsd()
        }),
        // Two at ports, one to a device's memory.
        (5, |a| {
            a.in_(al, 0x61)?;
            a.in_(al, 0x61)?;
            a.mov(eax, dword_ptr(HPET_COUNTER))
        }),
        (3 + 2 * 1000, |a| {
            let mut again = a.create_label();
            a.mov(ecx, 1000)?;
            a.set_label(&mut again)?;
            a.dec(ecx)?;
            a.jnz(again)
        }),
    ];
    let mut wrong = a.create_label();
    // Often enough that all is compiled where it is to be.
    let mut again = a.create_label();
    a.mov(ebp, 200)?;
    a.set_label(&mut again)?;
    for (insns, stretch) in stretches {
        a.rdtsc()?;
        a.mov(ebx, eax)?;
        stretch(a)?;
        a.rdtsc()?;
        a.sub(eax, ebx)?;
        a.cmp(eax, 8 * insns)?;
        a.mov(edx, insns)?;
        a.jne(wrong)?;
    }
    a.dec(ebp)?;
    a.jnz(again)?;
    exit(a, 1)?;
    a.set_label(&mut wrong)?;
    exit(a, 2)
}

#[test]
fn the_time_stamp_counter_counts_instructions() {
    let kernel = elf("icount-measured", measured);
    for (n, accel) in SETTINGS.iter().enumerate() {
        hashes(&format!("icount-measured-{n}"), &kernel, accel, "3", 1_000_000, 3);
    }
}

/// Halts until the timer has ticked 40 times, 10 ms each, and ends with status 3.
fn idle(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut again = a.create_label();
    on(a, 0x20, |a| {
        a.push(eax)?;
        a.inc(dword_ptr(TICKS))?;
        out(a, 0x20, 0x20)?;
        a.pop(eax)
    })?;
    for (port, v) in [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe), (0x43, 0x34), (0x40, 0x9c), (0x40, 0x2e)] {
        out(a, port, v)?;
    }
    a.set_label(&mut again)?;
    a.sti()?;
    a.hlt()?;
    a.cmp(dword_ptr(TICKS), 40)?;
    a.jb(again)?;
    exit(a, 1)
}

#[test]
fn a_halted_cpu_waits_in_real_time_only_if_asked_to() {
    let kernel = elf("icount-idle", idle);
    let timed = |name: &str, icount: &str| {
        let start = Instant::now();
        let log = hashes(name, &kernel, "jit", icount, 50, 3);
        (log, start.elapsed())
    };
    let (slow, long) = timed("icount-sleep", "shift=3");
    let (fast, short) = timed("icount-no-sleep", "shift=3,sleep=off");
    assert_eq!(slow, fast, "guest time is the same");
    assert!(long > Duration::from_millis(390), "40 ticks of 10 ms took {long:?}");
    assert!(short < long, "{short:?} {long:?}");
    let (_, auto) = timed("icount-auto", "auto");
    assert!(auto > Duration::from_millis(300), "{auto:?}");
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let refused = |args: &[&str], text: &str| {
        let out = run("icount-refused", args, LIMIT);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && said.contains(text) && said.lines().count() == 1, "{args:?}: {said}");
    };
    let some = elf("icount-some", idle);
    let with = |args: &[&str], text: &str| refused(&[&["-kernel", &some], args].concat(), text);
    with(&["-icount", "11"], "shift is auto or 0 to 10");
    with(&["-icount", "auto,sleep=off"], "do not go together");
    with(&["-icount", "2,align=on"], "not built yet");
    with(&["-icount", "2,rr=record,rrfile=x"], "record and replay");
    with(&["-icount", "2", "-smp", "2"], "one CPU");
    with(&["-d", "hash"], "only of use with -icount");
    with(&["-icount", "2", "-d", "hash,every=0"], "a number of instructions");
}

/// Random programs stand in the same state after the same number of instructions, wherever that is.
#[test]
fn random_programs_stop_alike_at_random_counts() {
    const CASES: u64 = if cfg!(debug_assertions) { 100 } else { 500 };
    let mut machines: Vec<_> = engines()
        .into_iter()
        .map(|(name, settings)| {
            let counter = Arc::<InsnCounter>::default();
            (name, Machine::new(Settings { counter: Some(counter.clone()), ..settings }).unwrap(), counter)
        })
        .collect();
    let mut rng = Rng(7);
    let mut stopped = 0;
    for seed in 0..CASES {
        let image = Program::random(seed).image();
        for _ in 0..3 {
            let limit = 1 + rng.below(120);
            let mut want = None;
            for (name, machine, counter) in &mut machines {
                let start = counter.executed();
                counter.set_limit(start + limit);
                let got = (machine.outcome(&image), counter.executed() - start);
                let want = want.get_or_insert_with(|| (got.0.clone(), got.1));
                assert!(got.0 == want.0 && got.1 == want.1, "program {seed}, limit {limit}, {name}: {} and {}", got.1, want.1);
                stopped += u64::from(got.0.stop == StopReason::Limit);
            }
        }
    }
    assert!(stopped > CASES, "{stopped} runs reached the limit");
}

/// Entering the handler of #DB may hit a breakpoint, again and again: time passes all the same.
#[test]
fn debug_exceptions_without_end_do_not_stop_time() {
    for (name, settings) in engines() {
        let counter = Arc::new(InsnCounter::default());
        let mut machine = Machine::new(Settings { counter: Some(counter.clone()), ..settings }).expect("the host gives memory");
        // Breakpoint 0: execution of the handler. Breakpoint 1: writes of four bytes to the stack.
        for (enables, breakpoint) in [(0x402, at::HANDLER + 8), (0x402 | 0xd << 16, at::STACK_TOP - 0x40)] {
            let mut image = Image::new(World::Flat);
            image.put(at::CODE, &[0xf1]);
            image.put(at::HANDLER + 8, &[0xc3]);
            (image.cpu.dr[0], image.cpu.dr[7]) = (breakpoint, enables);
            image.cpu.update_mode();
            machine.load(&image);
            let start = counter.executed();
            counter.set_limit(start + 1000);
            assert_eq!((machine.run(), counter.executed() - start), (StopReason::Limit, 1000), "{name}, DR7 {enables:#x}");
        }
    }
}

/// A machine saved at some count goes on alike where it was and on another engine.
#[test]
fn a_saved_machine_goes_on_to_the_same_counts() {
    let kernel = elf("icount-saved", busy);
    let made = |accel: &str| {
        let words =
            ["-cpu", "max", "-m", "8M", "-nodefaults", "-display", "none", "-no-reboot", "-kernel", &kernel, "-accel", accel];
        let Ok(Request::Run(config)) = parse(words.iter().map(|w| (*w).to_owned())) else { panic!("{words:?}") };
        let (cpu, settings) = (config.cpu.clone(), engine::settings(&config.accel).unwrap());
        let make: MakeEngine =
            Box::new(move |settings, signals| Ok(engine::make(&cpu, settings, std::slice::from_ref(signals))?.0.remove(0)));
        diff::Machine::new(&config, &IcountConfig { shift: Some(3), sleep: false }, settings, &make, false).unwrap()
    };
    let (mut a, mut b) = (made("jit"), made("interp"));
    let mut rng = Rng(3);
    let mut at = 0;
    for _ in 0..12 {
        at += 1 + rng.below(70_000);
        a.run_to(at).unwrap();
        let (saved, then) = (a.save().unwrap(), at + 1 + rng.below(70_000));
        // Devices differ in how far they have counted up what they will show.
        let state = |m: &mut diff::Machine| {
            m.run_to(then).unwrap();
            let h = m.hashes();
            (m.count(), h.cpu, h.ram)
        };
        let want = state(&mut a);
        for m in [&mut a, &mut b] {
            m.load(&saved).unwrap();
            assert_eq!(m.count(), at);
            assert_eq!(state(m), want, "from {at} to {then}");
        }
        at = then;
    }
}
