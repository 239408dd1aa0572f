//! What every guest needs beneath its tests: COM1, numbers, waiting, barriers, the end, exceptions, the command line.

use super::asm::Asm;
use super::layout::*;
use super::{EXIT_FAIL, EXIT_PASS, Emit};
use iced_x86::code_asm::*;

const COM1: u32 = 0x3f8;
const LSR_THR_EMPTY: i32 = 0x20;
const DEBUG_EXIT: u32 = 0x501;
/// Waiting ends after 2^37 cycles: a minute or two.
const WAIT_CYCLES_LOG2: i32 = 37;
/// `hvm_start_info.cmdline_paddr`.
const CMDLINE: i32 = 24;

/// Subroutines.
pub struct Subs {
    /// Sends AL; changes RDX.
    putc: CodeLabel,
    /// Sends the string at RDI; changes RAX, RDX, RDI.
    pub puts: CodeLabel,
    /// Sends R8 in hexadecimal; changes RAX, RCX, RDX, R8.
    put_hex: CodeLabel,
    /// Tells on COM1 what is wrong (string at RDI, R8, R9) and ends the run. Jumped to.
    pub fail: CodeLabel,
    /// Ends the run well. Jumped to.
    pub pass: CodeLabel,
    /// Waits until the u64 at RDI is RSI or more, else fails with the string at R9; changes RAX, RCX, RDX, R8, R9.
    pub wait: CodeLabel,
    /// Waits until all processors are here; changes RAX, RCX, RDX, RDI, RSI, R8, R9.
    pub barrier: CodeLabel,
    /// The value behind the word at RDI ("name=") on the command line in RSI, or 0; changes RAX, RCX, RDX, RDI.
    pub find: CodeLabel,
    /// The decimal number at RSI in RAX; changes RCX, RSI.
    pub number: CodeLabel,
}

/// Variables of the runtime.
pub struct Globals {
    /// Address of the `hvm_start_info`.
    pub info: u32,
    /// Name of the test that runs.
    pub test: u32,
    printing: u32,
    barrier: u32,
}

impl Subs {
    pub fn new(a: &mut CodeAssembler) -> Self {
        let mut l = || a.create_label();
        Self { putc: l(), puts: l(), put_hex: l(), fail: l(), pass: l(), wait: l(), barrier: l(), find: l(), number: l() }
    }
}

/// All subroutines and the handlers of exceptions.
pub fn put(g: &mut Asm) -> Result<Globals, iced_x86::IcedError> {
    let globals = Globals { info: g.var(8), test: g.var(8), printing: g.var(8), barrier: g.var(8) };
    serial(g)?;
    ends(g, &globals)?;
    waiting(g, &globals)?;
    cmdline(g, &globals)?;
    exceptions(g)?;
    Ok(globals)
}

fn serial(g: &mut Asm) -> Emit {
    let (mut putc, mut puts, mut put_hex) = (g.subs.putc, g.subs.puts, g.subs.put_hex);
    g.mark(&mut putc)?;
    g.push(rax)?;
    g.mov(edx, COM1 + 5)?;
    g.again(
        |a, l| a.je(l),
        |g| {
            g.in_(al, dx)?;
            g.test(al, LSR_THR_EMPTY)
        },
    )?;
    g.pop(rax)?;
    g.mov(edx, COM1)?;
    g.out(dx, al)?;
    g.ret()?;

    g.mark(&mut puts)?;
    g.movzx(eax, byte_ptr(rdi))?;
    g.test(eax, eax)?;
    g.skip(
        |a, l| a.je(l),
        |g| {
            g.call(putc)?;
            g.inc(rdi)?;
            g.jmp(puts)
        },
    )?;
    g.ret()?;

    g.mark(&mut put_hex)?;
    g.mov(ecx, 16)?;
    g.again(
        |a, l| a.jne(l),
        |g| {
            g.rol(r8, 4)?;
            g.mov(eax, r8d)?;
            g.and(eax, 15)?;
            g.cmp(eax, 10)?;
            g.skip(|a, l| a.jb(l), |g| g.add(eax, i32::from(b'a' - b'0' - 10)))?;
            g.add(eax, i32::from(b'0'))?;
            g.call(putc)?;
            g.dec(ecx)
        },
    )?;
    g.ret()
}

fn ends(g: &mut Asm, globals: &Globals) -> Emit {
    let (mut fail, mut pass, puts, put_hex) = (g.subs.fail, g.subs.pass, g.subs.puts, g.subs.put_hex);
    let (word, comma, space, newline) = (g.text("FAIL "), g.text(", cpu "), g.text(" "), g.text("\n"));
    let exit = |g: &mut Asm, code: u32| -> Emit {
        g.mov(edx, DEBUG_EXIT)?;
        g.mov(eax, code)?;
        g.out(dx, al)?;
        g.again(
            |a, l| a.jmp(l),
            |g| {
                g.cli()?;
                g.hlt()
            },
        )
    };
    let say = |g: &mut Asm, text: CodeLabel| -> Emit {
        g.lea(rdi, ptr(text))?;
        g.call(puts)
    };
    g.mark(&mut fail)?;
    // The first one to fail speaks.
    g.cli()?;
    g.mov(eax, 1)?;
    g.xchg(dword_ptr(globals.printing), eax)?;
    g.test(eax, eax)?;
    g.skip(|a, l| a.je(l), |g| g.again(|a, l| a.jmp(l), |g| g.hlt()))?;
    g.push(r9)?;
    g.push(r8)?;
    g.push(rdi)?;
    say(g, word)?;
    g.mov(rdi, qword_ptr(globals.test))?;
    g.call(puts)?;
    say(g, space)?;
    g.pop(rdi)?;
    g.call(puts)?;
    say(g, comma)?;
    g.mov(r8, r15)?;
    g.call(put_hex)?;
    for _ in 0..2 {
        say(g, space)?;
        g.pop(r8)?;
        g.call(put_hex)?;
    }
    say(g, newline)?;
    exit(g, EXIT_FAIL)?;
    g.mark(&mut pass)?;
    exit(g, EXIT_PASS)
}

fn waiting(g: &mut Asm, globals: &Globals) -> Emit {
    let (mut wait, mut barrier, fail) = (g.subs.wait, g.subs.barrier, g.subs.fail);
    let mut done = g.create_label();
    let read_tsc = |g: &mut Asm| -> Emit {
        g.rdtsc()?;
        g.shl(rdx, 32)?;
        g.or(rax, rdx)
    };
    g.mark(&mut wait)?;
    g.cmp(qword_ptr(rdi), rsi)?;
    g.jae(done)?;
    read_tsc(g)?;
    g.mov(r8, rax)?;
    g.again(
        |a, l| a.je(l),
        |g| {
            g.mov(ecx, 1024)?;
            g.again(
                |a, l| a.jne(l),
                |g| {
                    g.cmp(qword_ptr(rdi), rsi)?;
                    g.jae(done)?;
                    g.pause()?;
                    g.dec(ecx)
                },
            )?;
            read_tsc(g)?;
            g.sub(rax, r8)?;
            g.shr(rax, WAIT_CYCLES_LOG2)
        },
    )?;
    g.mov(r8, qword_ptr(rdi))?;
    g.mov(rdi, r9)?;
    g.mov(r9, rsi)?;
    g.jmp(fail)?;
    g.mark(&mut done)?;
    g.ret()?;

    g.mark(&mut barrier)?;
    g.lock().inc(qword_ptr(globals.barrier))?;
    g.add(qword_ptr(r12 + per_cpu::BARRIER), r14)?;
    g.mov(rsi, qword_ptr(r12 + per_cpu::BARRIER))?;
    g.mov(edi, globals.barrier)?;
    g.wait_at_least("the others did not come to the barrier")?;
    g.ret()
}

fn cmdline(g: &mut Asm, globals: &Globals) -> Emit {
    let (mut find, mut number) = (g.subs.find, g.subs.number);
    g.mark(&mut find)?;
    let (mut next, mut compare, mut absent, mut found) = (g.create_label(), g.create_label(), g.create_label(), g.create_label());
    // RDX: where the word may begin; RCX: offset in it.
    g.mov(rsi, qword_ptr(globals.info))?;
    g.mov(rdx, qword_ptr(rsi + CMDLINE))?;
    g.test(rdx, rdx)?;
    g.je(absent)?;
    g.dec(rdx)?;
    g.mark(&mut next)?;
    g.inc(rdx)?;
    g.cmp(byte_ptr(rdx), 0)?;
    g.je(absent)?;
    g.xor(ecx, ecx)?;
    g.mark(&mut compare)?;
    g.mov(al, byte_ptr(rdi + rcx))?;
    g.test(al, al)?;
    g.je(found)?;
    g.cmp(al, byte_ptr(rdx + rcx))?;
    g.jne(next)?;
    g.inc(rcx)?;
    g.jmp(compare)?;
    g.mark(&mut found)?;
    g.lea(rsi, ptr(rdx + rcx))?;
    g.ret()?;
    g.mark(&mut absent)?;
    g.xor(esi, esi)?;
    g.ret()?;

    g.mark(&mut number)?;
    let (mut digit, mut end) = (g.create_label(), g.create_label());
    g.xor(eax, eax)?;
    g.mark(&mut digit)?;
    g.movzx(ecx, byte_ptr(rsi))?;
    g.sub(ecx, i32::from(b'0'))?;
    g.cmp(ecx, 9)?;
    g.ja(end)?;
    g.imul_3(rax, rax, 10)?;
    g.add(rax, rcx)?;
    g.inc(rsi)?;
    g.jmp(digit)?;
    g.mark(&mut end)?;
    g.ret()
}

/// Exceptions end the run: vector and error code in one number, and where it was. NMI has a handler of its own.
fn exceptions(g: &mut Asm) -> Emit {
    const WITH_ERROR_CODE: [u8; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];
    const NMI: u8 = 2;
    let mut common = g.create_label();
    for vector in (0..32).filter(|v| *v != NMI) {
        let mut label = g.create_label();
        g.mark(&mut label)?;
        if !WITH_ERROR_CODE.contains(&vector) {
            g.push(0)?;
        }
        g.push(i32::from(vector))?;
        g.jmp(common)?;
        g.enters(vector, label);
    }
    let (what, fail) = (g.text("exception (vector and error code, RIP)"), g.subs.fail);
    g.mark(&mut common)?;
    g.pop(r8)?;
    g.shl(r8, 32)?;
    g.pop(rax)?;
    g.or(r8, rax)?;
    g.mov(r9, qword_ptr(rsp))?;
    g.lea(rdi, ptr(what))?;
    g.jmp(fail)
}
