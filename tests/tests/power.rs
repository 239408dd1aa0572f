//! How a run ends: triple faults, isa-debug-exit, and Ctrl-A X whatever the guest does. Guests of a few instructions.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use rhea_tests::boot::{ENTRY, Guest, engines, file, program, pvh_elf};
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const COM1: u32 = 0x3f8;
const RUNNING: u8 = b'!';

/// A guest that says `RUNNING` on COM1, then does what `body` does.
fn guest(name: &str, body: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> String {
    let assemble = || {
        let mut a = CodeAssembler::new(32)?;
        a.cli()?;
        a.mov(esp, ENTRY + 0x8000)?;
        a.mov(edx, COM1)?;
        a.mov(eax, u32::from(RUNNING))?;
        a.out(dx, al)?;
        body(&mut a)?;
        a.assemble(u64::from(ENTRY))
    };
    file(&format!("{name}.elf"), &pvh_elf(&assemble().expect("the guest assembles")))
}

/// Starts the guest on each engine and, once it runs, hands it to `check`.
fn on_every_engine(name: &str, elf: &str, more: &[&str], check: fn(&mut Guest)) {
    for (engine, accel) in engines() {
        let args = [accel, &["-m", "16M", "-nographic", "-kernel", elf], more].concat();
        let mut g = Guest::start(&format!("{name}-{engine}"), &args);
        g.wait_for("!", LIMIT);
        check(&mut g);
    }
}

/// No IDT and an undefined instruction: #UD, #DF, shutdown.
fn triple_fault(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.push(0)?;
    a.push(0)?;
    a.lidt(ptr(esp))?;
    a.ud2()
}

#[test]
fn a_triple_fault_ends_the_run_if_reboot_is_off() {
    let elf = guest("triple-fault", triple_fault);
    on_every_engine("triple-fault", &elf, &["-no-reboot"], |g| g.expect_exit(0, LIMIT));
}

/// The kernel starts again from its file, as often as it faults.
#[test]
fn a_triple_fault_resets() {
    let elf = guest("triple-fault-reset", triple_fault);
    on_every_engine("triple-fault-reset", &elf, &[], |g| {
        for _ in 0..3 {
            g.wait_for("!", LIMIT);
        }
    });
}

#[test]
fn debug_exit_gives_the_status() {
    let elf = guest("debug-exit", |a| {
        a.mov(edx, 0x501)?;
        a.mov(eax, 21)?;
        a.out(dx, al)?;
        a.hlt()
    });
    on_every_engine("debug-exit", &elf, &["-device", "isa-debug-exit"], |g| g.expect_exit(43, LIMIT));
}

#[test]
fn debug_exit_sits_where_it_is_told() {
    let elf = guest("debug-exit-f4", |a| {
        a.mov(eax, 0)?;
        a.out(0xf4, eax)?;
        a.hlt()
    });
    let device = ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"];
    on_every_engine("debug-exit-f4", &elf, &device, |g| g.expect_exit(1, LIMIT));
}

fn escape_ends_it(g: &mut Guest) {
    // Long enough for the loop to be compiled.
    std::thread::sleep(Duration::from_millis(300));
    let typed = Instant::now();
    g.send("\x01x");
    g.expect_exit(0, LIMIT);
    let took = typed.elapsed();
    assert!(took < Duration::from_secs(1), "Ctrl-A X took {took:?}");
}

#[test]
fn the_escape_ends_a_loop_with_interrupts_off() {
    let elf = guest("spin", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.jmp(again)
    });
    on_every_engine("spin", &elf, &[], escape_ends_it);
}

/// A loop of several blocks with calls and memory, which a region compiles as a whole.
#[test]
fn the_escape_ends_a_loop_of_several_blocks() {
    let elf = guest("spin-blocks", |a| {
        let (mut again, mut odd, mut sub) = (a.create_label(), a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.inc(ecx)?;
        a.test(ecx, 1)?;
        a.jne(odd)?;
        a.call(sub)?;
        a.set_label(&mut odd)?;
        a.mov(dword_ptr(ENTRY + 0x7000), ecx)?;
        a.jmp(again)?;
        a.set_label(&mut sub)?;
        a.ret()
    });
    on_every_engine("spin-blocks", &elf, &[], escape_ends_it);
}

/// One instruction that runs for minutes: it has to give way between its steps.
#[test]
fn the_escape_ends_a_long_string_instruction() {
    let elf = guest("spin-string", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(ecx, u32::MAX)?;
        a.mov(esi, ENTRY + 0x7000)?;
        a.rep().lodsb()?;
        a.jmp(again)
    });
    on_every_engine("spin-string", &elf, &[], escape_ends_it);
}

#[test]
fn the_escape_ends_a_halt_with_interrupts_off() {
    let elf = guest("halt", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.hlt()?;
        a.jmp(again)
    });
    on_every_engine("halt", &elf, &[], escape_ends_it);
}

/// Page tables, GDT and everything else as the loader left them: a fetch from where there is nothing.
#[test]
fn the_escape_ends_a_guest_lost_outside_ram() {
    let elf = guest("lost", |a| {
        a.mov(eax, 0xd000_0000u32)?;
        a.call(eax)
    });
    on_every_engine("lost", &elf, &["-d", "guest_errors"], escape_ends_it);
}

/// Writes to ROM, and to and from where there is no device, for ever.
#[test]
fn the_escape_ends_a_loop_of_accesses_to_nothing() {
    let elf = guest("nothing", |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.inc(ecx)?;
        a.mov(dword_ptr(0xffff_fff0u32), ecx)?;
        a.mov(dword_ptr(0xc_0000u32), ecx)?;
        a.mov(dword_ptr(0xd000_0000u32), ecx)?;
        a.mov(eax, dword_ptr(0xd000_0010u32))?;
        a.jmp(again)
    });
    on_every_engine("nothing", &elf, &[], escape_ends_it);
}

/// Jumps to itself.
fn spin(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut here = a.create_label();
    a.set_label(&mut here)?;
    a.jmp(here)
}

/// Whoever read what rhea says and what the guest prints has gone.
#[test]
fn a_signal_ends_it_though_nobody_reads_its_messages() {
    let elf = guest("signal", spin);
    let mut command = Command::new(program());
    command.args(["-m", "16M", "-display", "none", "-serial", "stdio", "-kernel", &elf]);
    let mut rhea = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("rhea starts");
    let mut first = [0];
    rhea.stdout.take().expect("it is a pipe").read_exact(&mut first).expect("the guest prints");
    assert_eq!(first[0], RUNNING);
    drop(rhea.stderr.take());
    let killed = Command::new("kill").args(["-TERM", &rhea.id().to_string()]).status().expect("there is a kill");
    assert!(killed.success());
    let end = Instant::now() + LIMIT;
    while rhea.try_wait().expect("it is our child").is_none() {
        if Instant::now() > end {
            rhea.kill().expect("it is our child");
            panic!("SIGTERM does not end it");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
