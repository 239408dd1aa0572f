//! What only system software sees, in guests of a few routines on every engine: task switches, breakpoints.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use rhea_tests::boot::{ENTRY, Guest, file, pvh_elf};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
const ENGINES: [&str; 3] = ["interp", "jit,threshold=0", "jit"];
const COM1: u32 = 0x3f8;
const EXIT: u32 = 0x501;

/// Tables of a guest.
const GDT: u32 = 0x40_0000;
const IDT: u32 = GDT + 0x1000;
const TSS1: u32 = GDT + 0x2000;
const TSS2: u32 = GDT + 0x3000;
/// Descriptors: code, data, the TSSs.
const CODE: u32 = 0x08;
const DATA: u32 = 0x10;
const SEL1: u32 = 0x18;
const SEL2: u32 = 0x20;

type Body = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Bytes between the starts of two routines.
const STEP: u32 = 0x800;

fn routine(n: u32) -> u32 {
    ENTRY + n * STEP
}

/// A guest of routines, the first at `ENTRY`.
fn guest(name: &str, routines: &[Body]) -> String {
    let mut image = Vec::new();
    for (n, body) in (0..).zip(routines) {
        let mut a = CodeAssembler::new(32).expect("32-bit code exists");
        body(&mut a).expect("the routine is well formed");
        let code = a.assemble(u64::from(routine(n))).expect("the routine assembles");
        assert!(code.len() <= STEP as usize);
        image.resize((n * STEP) as usize, 0x90);
        image.extend(code);
    }
    file(&format!("{name}.elf"), &pvh_elf(&image))
}

/// Runs it on each engine until it exits, and compares what it said.
fn says(name: &str, elf: &str, want: &str) {
    for engine in ENGINES {
        let args = ["-accel", engine, "-m", "16M", "-nographic", "-no-reboot", "-kernel", elf, "-device", "isa-debug-exit"];
        let mut g = Guest::start(&format!("{name}-{}", engine.replace([',', '='], "-")), &args);
        g.wait_for(want, LIMIT);
        g.expect_exit(1, LIMIT);
    }
}

fn say(a: &mut CodeAssembler, c: char) -> Result<(), IcedError> {
    a.mov(edx, COM1)?;
    a.mov(eax, u32::from(c))?;
    a.out(dx, al)
}

fn exit(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, EXIT)?;
    a.mov(eax, 0)?;
    a.out(dx, al)?;
    a.hlt()
}

fn put(a: &mut CodeAssembler, at: u32, v: u32) -> Result<(), IcedError> {
    a.mov(dword_ptr(at), v)
}

fn descriptor(a: &mut CodeAssembler, at: u32, low: u32, high: u32) -> Result<(), IcedError> {
    put(a, at, low)?;
    put(a, at + 4, high)
}

/// A gate of the IDT: type and DPL in `kind` (bits 15:8 of the upper half).
fn gate(a: &mut CodeAssembler, vector: u32, kind: u32, selector: u32, offset: u32) -> Result<(), IcedError> {
    descriptor(a, IDT + vector * 8, selector << 16 | offset & 0xffff, offset & 0xffff_0000 | kind)
}

fn far(a: &mut CodeAssembler, opcode: u8, selector: u32, offset: u32) -> Result<(), IcedError> {
    let o = offset.to_le_bytes();
    let s = selector.to_le_bytes();
    a.db(&[opcode, o[0], o[1], o[2], o[3], s[0], s[1]])
}

/// Routine 0: flat segments and an IDT without gates; the rest is routine 1.
fn set_up(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.cli()?;
    a.mov(esp, GDT + 0x9000)?;
    descriptor(a, GDT + CODE, 0xffff, 0x00cf_9b00)?;
    descriptor(a, GDT + DATA, 0xffff, 0x00cf_9300)?;
    for (sel, tss) in [(SEL1, TSS1), (SEL2, TSS2)] {
        descriptor(a, GDT + sel, 0x67 | tss << 16, 0x8900 | tss >> 16 & 0xff | tss & 0xff00_0000)?;
    }
    for (at, base, limit) in [(GDT + 0x100, GDT, 0x7f), (GDT + 0x110, IDT, 0x7ff)] {
        a.mov(word_ptr(at), limit)?;
        put(a, at + 2, base)?;
    }
    a.lgdt(ptr(GDT + 0x100))?;
    a.lidt(ptr(GDT + 0x110))?;
    a.mov(ax, DATA)?;
    for s in [ds, es, ss, fs, gs] {
        a.mov(s, ax)?;
    }
    far(a, 0xea, CODE, routine(1))
}

/// The second task, to start at routine `n`.
fn second_task(a: &mut CodeAssembler, n: u32) -> Result<(), IcedError> {
    put(a, TSS2 + 0x20, routine(n))?;
    put(a, TSS2 + 0x24, 2)?;
    put(a, TSS2 + 0x38, GDT + 0xa000)?;
    for (i, s) in [DATA, CODE, DATA, DATA, 0, 0].into_iter().enumerate() {
        put(a, TSS2 + 0x48 + i as u32 * 4, s)?;
    }
    put(a, TSS2 + 0x60, 0)
}

/// Calls, a jump there and back, a task that serves an exception, and a task that cannot start.
fn tasks(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ax, SEL1)?;
    a.ltr(ax)?;
    second_task(a, 2)?;
    gate(a, 6, 0x8500, SEL2, 0)?;
    gate(a, 10, 0x8e00, CODE, routine(3))?;
    a.mov(ebp, 0u32)?;
    for c in '1'..='3' {
        far(a, 0x9a, SEL2, 0)?;
        say(a, c)?;
    }
    // Often enough for every engine to compile it.
    let mut again = a.create_label();
    a.mov(ebx, 3000)?;
    a.set_label(&mut again)?;
    put(a, TSS2 + 0x40, 1)?;
    far(a, 0x9a, SEL2, 0)?;
    a.dec(ebx)?;
    a.jne(again)?;
    say(a, '4')?;
    put(a, TSS2 + 0x40, 2)?;
    a.ud2()?;
    say(a, '5')?;
    // DS of the second task is outside the GDT.
    put(a, TSS2 + 0x54, 0x1000)?;
    far(a, 0x9a, SEL2, 0)?;
    say(a, '?')
}

/// ESI of its TSS tells it what to do: 0 talk, 1 be silent, 2 skip the other task's UD2.
fn other_task(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut again, mut silent, mut back) = (a.create_label(), a.create_label(), a.create_label());
    a.set_label(&mut again)?;
    a.cmp(esi, 1)?;
    a.je(back)?;
    a.ja(silent)?;
    say(a, 'T')?;
    a.jmp(back)?;
    a.set_label(&mut silent)?;
    a.add(dword_ptr(TSS1 + 0x20), 2)?;
    a.set_label(&mut back)?;
    a.iret()?;
    a.jmp(again)
}

/// #TS: in the second task, with the selector, before its next instruction.
fn invalid_tss(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut wrong = a.create_label();
    // The handler's frame is on the second task's stack, and DS is not usable there.
    a.mov(ax, DATA)?;
    a.mov(ds, ax)?;
    a.pop(eax)?;
    a.cmp(eax, 0x1000)?;
    a.jne(wrong)?;
    a.str(ax)?;
    a.cmp(ax, SEL2 as i32)?;
    a.jne(wrong)?;
    say(a, 'S')?;
    a.set_label(&mut wrong)?;
    say(a, '.')?;
    exit(a)
}

#[test]
fn tasks_are_switched() {
    let elf = guest("tasks", &[set_up, tasks, other_task, invalid_tss]);
    says("tasks", &elf, "T1T2T345S.");
}

/// Where the guests below keep what they watch.
const WATCHED: u32 = GDT + 0xb000;

/// DR7 for breakpoint 0: R/W and LEN in `how`.
fn break_on(a: &mut CodeAssembler, addr: u32, how: u32) -> Result<(), IcedError> {
    a.mov(eax, addr)?;
    a.mov(dr0, eax)?;
    a.mov(eax, how << 16 | 1)?;
    a.mov(dr7, eax)
}

/// Each line: what must trap, between letters that tell what has been done by then. The handler says `!` and the low digit of
/// DR6, or `b`, `s` for BD and BS.
fn breakpoints(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(ax, SEL1)?;
    a.ltr(ax)?;
    gate(a, 1, 0x8e00, CODE, routine(2))?;
    put(a, WATCHED, 0)?;
    a.mov(eax, 0x200)?;
    a.mov(cr4, eax)?;
    // An instruction, also after it has been compiled.
    let mut again = a.create_label();
    break_on(a, routine(3), 0)?;
    a.mov(ecx, routine(3))?;
    a.mov(ebx, 3)?;
    a.set_label(&mut again)?;
    a.call(ecx)?;
    a.dec(ebx)?;
    a.jne(again)?;
    // Four bytes, written: not by the first, by the others.
    break_on(a, WATCHED + 4, 1 | 3 << 2)?;
    a.mov(eax, dword_ptr(WATCHED + 4))?;
    a.mov(dword_ptr(WATCHED), eax)?;
    say(a, 'w')?;
    a.mov(dword_ptr(WATCHED + 1), eax)?;
    say(a, 'x')?;
    a.inc(byte_ptr(WATCHED + 7))?;
    say(a, 'y')?;
    a.movups(xmmword_ptr(WATCHED), xmm0)?;
    // One byte, read; a string instruction traps after the element, and goes on.
    break_on(a, WATCHED + 2, 3)?;
    a.mov(esi, WATCHED)?;
    a.mov(edi, WATCHED + 0x100)?;
    a.mov(ecx, 4)?;
    a.rep().movsb()?;
    a.cmp(ecx, 0)?;
    let mut wrong = a.create_label();
    a.jne(wrong)?;
    // A push to a watched stack.
    break_on(a, GDT + 0x9000 - 4, 1 | 3 << 2)?;
    a.push(5)?;
    a.pop(eax)?;
    // A port: CR4.DE.
    a.mov(eax, 0x208)?;
    a.mov(cr4, eax)?;
    break_on(a, 0x80, 2)?;
    a.mov(eax, 0)?;
    a.out(0x80, al)?;
    // Single steps: after the instruction that follows POPF, and still after the POPF that ends them.
    break_on(a, 0, 0)?;
    a.mov(eax, 0)?;
    a.mov(dr7, eax)?;
    a.push(2)?;
    a.push(0x102)?;
    a.popfd()?;
    a.nop()?;
    a.popfd()?;
    say(a, 'z')?;
    // ICEBP, and general detect.
    a.db(&[0xf1])?;
    a.mov(eax, 1 << 13)?;
    a.mov(dr7, eax)?;
    a.mov(eax, dr0)?;
    a.set_label(&mut wrong)?;
    say(a, '.')?;
    exit(a)
}

/// #DB: says what DR6 tells, clears it, and sets RF in the frame.
fn debug_handler(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.pushad()?;
    say(a, '!')?;
    a.mov(ecx, dr6)?;
    for (bit, c) in [(0, '0'), (13, 'b'), (14, 's')] {
        let mut not = a.create_label();
        a.bt(ecx, bit)?;
        a.jae(not)?;
        say(a, c)?;
        a.set_label(&mut not)?;
    }
    a.mov(ecx, 0)?;
    a.mov(dr6, ecx)?;
    a.or(dword_ptr(esp + 40), 1 << 16)?;
    a.popad()?;
    a.iretd()
}

fn called(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.nop()?;
    a.ret()
}

#[test]
fn breakpoints_trap_where_they_should() {
    let elf = guest("breakpoints", &[set_up, breakpoints, debug_handler, called]);
    says("breakpoints", &elf, "!0!0!0w!0x!0y!0!0!0!0!s!sz!!b.");
}
