//! TLB shoot-down: the first processor maps a data page and a code page to other frames, again and again, and tells the
//! others by an interrupt. Once they have said that they know, nobody sees the old frames.

use crate::smp::Emit;
use crate::smp::apic::{self, icr};
use crate::smp::asm::{Asm, Fault, IMMEDIATE, Template};
use crate::smp::layout::{WINDOW, WINDOW_TABLE};
use iced_x86::code_asm::*;

const VECTOR: u8 = 0x41;
const FRAMES: u32 = 8;
/// Pages of the window.
const DATA_PAGE: u32 = 16;
const CODE_PAGE: u32 = 17;
const DATA: u32 = WINDOW + DATA_PAGE * 4096;
const CODE: u32 = WINDOW + CODE_PAGE * 4096;
/// Offset of the word in data frames.
const WORD: u32 = 0x18;
const PRESENT_WRITABLE: u32 = 3;

fn forget(g: &mut Asm) -> Emit {
    if g.fault == Some(Fault::NoInvlpg) {
        return Ok(());
    }
    for page in [DATA, CODE] {
        g.mov(eax, page)?;
        g.invlpg(byte_ptr(rax))?;
    }
    Ok(())
}

/// Offset of the frame of round `RBP - back` in RBX.
fn frame(g: &mut Asm, back: i32) -> Emit {
    g.lea(ebx, ptr(rbp - back))?;
    g.and(ebx, FRAMES as i32 - 1)?;
    g.shl(ebx, 12)
}

struct Memory {
    data: u32,
    code: u32,
    /// The round that all processors know of.
    known: u32,
    acks: u32,
}

/// What is in the pages is of the round in R9 or a later one.
fn look(g: &mut Asm, m: &Memory) -> Emit {
    g.mov(r9, qword_ptr(m.known))?;
    g.mov(r8, qword_ptr(DATA + WORD))?;
    g.cmp(r8, r9)?;
    g.fail_unless(|a, l| a.jae(l), "data of an old frame")?;
    g.mov(r9, qword_ptr(m.known))?;
    g.mov(eax, CODE)?;
    g.call(rax)?;
    g.mov(r8d, eax)?;
    g.cmp(r8, r9)?;
    g.fail_unless(|a, l| a.jae(l), "code of an old frame")
}

fn remap(g: &mut Asm, m: &Memory, t: Template) -> Emit {
    frame(g, 0)?;
    g.mov(qword_ptr(rbx + (m.data + WORD) as i32), rbp)?;
    g.lea(edi, ptr(rbx + m.code as i32))?;
    g.copy(t)?;
    for (frames, page) in [(m.data, DATA_PAGE), (m.code, CODE_PAGE)] {
        g.lea(eax, ptr(rbx + (frames | PRESENT_WRITABLE) as i32))?;
        g.mov(qword_ptr(WINDOW_TABLE + 8 * page), rax)?;
    }
    forget(g)?;
    apic::send(g, icr::FIXED | icr::OTHERS | u32::from(VECTOR))?;
    g.mov(edi, m.acks)?;
    g.lea(rsi, ptr(r14 - 1))?;
    g.imul_2(rsi, rbp)?;
    g.wait_at_least("the others did not answer")?;
    // The old frames from now on say round 0.
    frame(g, 1)?;
    g.mov(qword_ptr(rbx + (m.data + WORD) as i32), 0)?;
    g.mov(dword_ptr(rbx + (m.code + t.immediate) as i32), 0)?;
    g.mov(qword_ptr(m.known), rbp)
}

pub fn test(g: &mut Asm) -> Emit {
    let m = Memory { data: g.frames(FRAMES), code: g.frames(FRAMES), known: g.var(8), acks: g.var(8) };
    // Long enough to be interrupted inside.
    let t = g.template(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 100)?;
        a.set_label(&mut top)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.mov(eax, IMMEDIATE)?;
        a.ret()
    })?;
    g.handler(VECTOR, true, |g| {
        forget(g)?;
        g.lock().inc(qword_ptr(m.acks))
    })?;
    g.map_window(&[(DATA_PAGE, m.data), (CODE_PAGE, m.code)])?;
    g.alone(|g| {
        g.xor(ebp, ebp)?;
        g.mov(edi, m.code)?;
        g.copy(t)
    })?;
    let mut end = g.create_label();
    g.test(r15, r15)?;
    g.skip(
        |a, l| a.jne(l),
        |g| {
            g.xor(ebp, ebp)?;
            g.again(
                |a, l| a.jb(l),
                |g| {
                    g.inc(rbp)?;
                    remap(g, &m, t)?;
                    look(g, &m)?;
                    g.cmp(rbp, r13)
                },
            )?;
            g.jmp(end)
        },
    )?;
    g.sti()?;
    g.again(
        |a, l| a.jb(l),
        |g| {
            look(g, &m)?;
            g.cmp(qword_ptr(m.known), r13)
        },
    )?;
    g.cli()?;
    g.mark(&mut end)
}
