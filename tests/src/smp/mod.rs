//! A guest of our own for machines with several processors: it starts them, runs tests on all of them at once, and says
//! `ok NAME` or `FAIL NAME details` on COM1. It checks itself on any machine that enters kernels by PVH.
//!
//! Words on its command line: `cpus=N` (how many processors there are; 1), `rounds=N` (1000), `test=NAME` (all).
//! It ends by isa-debug-exit at port 501h. `asm`, `boot`, `image`, `apic` and `runtime` serve other guests as well.

pub mod apic;
pub mod asm;
pub mod boot;
mod cases;
pub mod image;
pub mod layout;
pub mod runtime;

use apic::SPURIOUS_VECTOR;
use asm::Asm;
pub use asm::Fault;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use image::Image;
use layout::*;
use runtime::Globals;

pub type Emit = Result<(), IcedError>;

/// What is written to isa-debug-exit; the program's status is twice that and one.
pub const EXIT_PASS: u32 = 0x10;
pub const EXIT_FAIL: u32 = 0x11;
pub const STATUS_PASS: i32 = 33;
pub const STATUS_FAIL: i32 = 35;

/// Names of the tests, in the order they run.
pub fn tests() -> Vec<&'static str> {
    cases::ALL.iter().map(|(name, _)| *name).collect()
}

/// The guest as an ELF file, right or with a mistake.
///
/// # Errors
/// If a test emits an instruction that does not exist.
pub fn guest(fault: Option<Fault>) -> Result<Vec<u8>, IcedError> {
    let mut g = Asm::new(fault)?;
    let globals = runtime::put(&mut g)?;
    let present = g.var(8);
    let (mut first, mut other, mut main) = (g.create_label(), g.create_label(), g.create_label());
    g.mark(&mut first)?;
    bring_up(&mut g, &globals, present)?;
    g.jmp(main)?;
    g.mark(&mut other)?;
    join(&mut g, present)?;
    g.mark(&mut main)?;
    for (name, test) in cases::ALL {
        one(&mut g, &globals, name, *test)?;
    }
    let pass = g.subs.pass;
    g.jmp(pass)?;
    g.handler(SPURIOUS_VECTOR, false, |_| Ok(()))?;
    let done = g.finish(&[first, other])?;
    let mut image = Image::default();
    boot::put(&mut image, &boot::Entries { first: done.labels[0], other: done.labels[1] })?;
    image.gdt();
    image.idt(&done.handlers);
    image.page_tables();
    image.put(CODE, &done.code);
    Ok(image.elf())
}

/// Makes R12 to R15 and the stack those of processor R15.
fn identity(g: &mut Asm) -> Emit {
    g.imul_3(r12, r15, PER_CPU_SIZE as i32)?;
    g.add(r12, PER_CPU as i32)?;
    g.imul_3(rsp, r15, STACK_SIZE as i32)?;
    g.add(rsp, (STACKS + STACK_SIZE) as i32)
}

/// The first processor: memory, command line, the other processors.
fn bring_up(g: &mut Asm, globals: &Globals, present: u32) -> Emit {
    g.cld()?;
    g.mov(edi, VARS)?;
    g.mov(ecx, (END - VARS) / 8)?;
    g.xor(eax, eax)?;
    g.rep().stosq()?;
    g.mov(dword_ptr(globals.info), ebx)?;
    g.xor(r15d, r15d)?;
    identity(g)?;
    g.lidt(ptr(IDTR))?;
    let name = g.text("start");
    g.lea(rax, ptr(name))?;
    g.mov(qword_ptr(globals.test), rax)?;
    for (word, default, at) in [("rounds=", 1000, ROUNDS), ("cpus=", 1, CPUS)] {
        let (word, find, number) = (g.text(word), g.subs.find, g.subs.number);
        g.lea(rdi, ptr(word))?;
        g.call(find)?;
        g.mov(eax, default)?;
        g.test(rsi, rsi)?;
        g.skip(|a, l| a.je(l), |g| g.call(number))?;
        g.mov(qword_ptr(at), rax)?;
    }
    asked(g)?;
    g.lea(rax, ptr(r14 - 1))?;
    g.cmp(rax, MAX_CPUS as i32 - 1)?;
    g.mov(r8, r14)?;
    g.mov(r9, r13)?;
    g.fail_unless(|a, l| a.jbe(l), "cpus= is not a number from 1 to 64")?;
    g.test(r13, r13)?;
    g.fail_unless(|a, l| a.jne(l), "rounds=0")?;
    g.mov(dword_ptr(present), 1)?;
    apic::mask_8259(g)?;
    apic::enable(g)?;
    let code = boot::trampoline();
    let label = g.bytes(&code);
    g.lea(rsi, ptr(label))?;
    g.mov(edi, TRAMPOLINE)?;
    g.mov(ecx, code.len() as u32)?;
    g.rep().movsb()?;
    g.cmp(r14, 1)?;
    g.skip(|a, l| a.je(l), apic::start_others)?;
    g.mov(edi, present)?;
    g.mov(rsi, r14)?;
    g.wait_at_least("not so many processors started")
}

/// What the command line asks for.
const ROUNDS: u32 = PER_CPU + MAX_CPUS * PER_CPU_SIZE;
const CPUS: u32 = ROUNDS + 8;

fn asked(g: &mut Asm) -> Emit {
    g.mov(r13, qword_ptr(ROUNDS))?;
    g.mov(r14, qword_ptr(CPUS))
}

/// Another processor: those that are not wanted sleep.
fn join(g: &mut Asm, present: u32) -> Emit {
    asked(g)?;
    g.mov(r15d, 1)?;
    g.lock().xadd(qword_ptr(present), r15)?;
    g.cmp(r15, r14)?;
    g.skip(
        |a, l| a.jb(l),
        |g| {
            g.again(
                |a, l| a.jmp(l),
                |g| {
                    g.cli()?;
                    g.hlt()
                },
            )
        },
    )?;
    identity(g)?;
    g.lidt(ptr(IDTR))?;
    apic::enable(g)
}

/// A test, if it is wanted, on all processors.
fn one(g: &mut Asm, globals: &Globals, name: &'static str, test: fn(&mut Asm) -> Emit) -> Emit {
    let (mut run, mut end) = (g.create_label(), g.create_label());
    let (word, find, any) = (g.text(&format!("test={name}")), g.subs.find, g.text("test="));
    g.barrier()?;
    g.lea(rdi, ptr(any))?;
    g.call(find)?;
    g.test(rsi, rsi)?;
    g.je(run)?;
    g.lea(rdi, ptr(word))?;
    g.call(find)?;
    g.test(rsi, rsi)?;
    g.je(end)?;
    g.cmp(byte_ptr(rsi), i32::from(b' '))?;
    g.ja(end)?;
    g.mark(&mut run)?;
    let text = g.text(name);
    g.alone(|g| {
        g.lea(rax, ptr(text))?;
        g.mov(qword_ptr(globals.test), rax)
    })?;
    test(g)?;
    g.alone(|g| {
        let (ok, newline, puts) = (g.text("ok "), g.text("\n"), g.subs.puts);
        for s in [ok, text, newline] {
            g.lea(rdi, ptr(s))?;
            g.call(puts)?;
        }
        Ok(())
    })?;
    g.mark(&mut end)
}
