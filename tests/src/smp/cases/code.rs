//! Code that one processor writes and the others run (SDM 3A, "Handling Self- and Cross-Modifying Code"): what they run
//! after a flag and a serialising instruction is the new code.

use crate::smp::Emit;
use crate::smp::asm::{Asm, IMMEDIATE, Template};
use crate::smp::layout::WINDOW;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// One block.
fn short(g: &mut Asm) -> Result<Template, IcedError> {
    g.template(|a| {
        a.mov(eax, IMMEDIATE)?;
        a.ret()
    })
}

/// A loop and a call: the immediate after blocks of other lengths than in `branches`.
fn looping(g: &mut Asm) -> Result<Template, IcedError> {
    g.template(|a| {
        let (mut top, mut sub) = (a.create_label(), a.create_label());
        a.xor(eax, eax)?;
        a.mov(ecx, 3)?;
        a.set_label(&mut top)?;
        a.call(sub)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.lea(eax, ptr(rax + rdx))?;
        a.sub(eax, 3)?;
        a.ret()?;
        a.set_label(&mut sub)?;
        a.inc(eax)?;
        a.mov(edx, IMMEDIATE)?;
        a.ret()
    })
}

fn branches(g: &mut Asm) -> Result<Template, IcedError> {
    g.template(|a| {
        let (mut wrong, mut right, mut end) = (a.create_label(), a.create_label(), a.create_label());
        a.xor(eax, eax)?;
        a.test(eax, eax)?;
        a.jne(wrong)?;
        a.stc()?;
        a.jb(right)?;
        a.set_label(&mut wrong)?;
        a.ud2()?;
        a.set_label(&mut right)?;
        a.add(eax, IMMEDIATE)?;
        a.jmp(end)?;
        a.nops_with_size(9)?;
        a.set_label(&mut end)?;
        a.ret()
    })
}

/// Calls code; it returns the round's number.
fn call(g: &mut Asm, at: u32, what: &str) -> Emit {
    g.mov(edi, at)?;
    g.call(rdi)?;
    g.mov(r8d, eax)?;
    g.mov(r9d, ebp)?;
    g.check_equal(what)
}

/// Copies one template in odd rounds and the other in even ones.
fn copy_either(g: &mut Asm, odd: Template, even: Template) -> Emit {
    let (mut other, mut end) = (g.create_label(), g.create_label());
    g.test(ebp, 1)?;
    g.je(other)?;
    g.copy(odd)?;
    g.jmp(end)?;
    g.mark(&mut other)?;
    g.copy(even)?;
    g.mark(&mut end)
}

pub fn cross_modifying(g: &mut Asm) -> Emit {
    let (short, looping, branches) = (short(g)?, looping(g)?, branches(g)?);
    let frames = g.frames(6);
    let whole = frames + 4096 + 0x40;
    // The first blocks in one page, the others in the next one.
    let in_two = frames + 3 * 4096 - 0x10;
    // An instruction whose opcode and first byte of immediate are in one page; the pages' frames are the other way round.
    let (high, low) = (frames + 4 * 4096, frames + 5 * 4096);
    let apart = WINDOW + 4096 - 2;
    g.map_window(&[(0, low), (1, high)])?;
    g.alone(|g| {
        g.xor(ebp, ebp)?;
        for at in [frames, apart] {
            g.mov(edi, at)?;
            g.copy(short)?;
        }
        Ok(())
    })?;
    g.relay(
        |g| {
            g.mov(dword_ptr(frames + 1), ebp)?;
            g.mov(edi, whole)?;
            copy_either(g, looping, branches)?;
            g.mov(edi, in_two)?;
            copy_either(g, branches, looping)?;
            // Through the frames themselves.
            g.mov(eax, ebp)?;
            g.mov(byte_ptr(low + 4095), al)?;
            g.shr(eax, 8)?;
            g.mov(word_ptr(high), ax)?;
            g.shr(eax, 16)?;
            g.mov(byte_ptr(high + 2), al)
        },
        |g| {
            call(g, frames, "stale immediate")?;
            call(g, whole, "stale function")?;
            call(g, in_two, "stale function in two pages")?;
            call(g, apart, "stale instruction in two pages")
        },
    )
}

/// Pages that are code and data in turn.
const POOL: u32 = 8;
/// Where each processor has a word of its own, in the same granule as the code and far from it.
const NEAR: i32 = 0x20;
const FAR: i32 = 0x400;

/// The page of this round in RDI.
fn page(g: &mut Asm, pool: u32) -> Emit {
    g.mov(edi, ebp)?;
    g.and(edi, POOL as i32 - 1)?;
    g.shl(edi, 12)?;
    g.add(edi, pool as i32)
}

/// Each processor stores beside the code and finds what it stored.
fn store_beside(g: &mut Asm) -> Emit {
    let (mut far, mut end) = (g.create_label(), g.create_label());
    for offset in [FAR, 0xff8 - 64 * 8] {
        g.mov(qword_ptr(rdi + r15 * 8 + offset), rbp)?;
    }
    // There is room for four in the granule of the code.
    g.cmp(r15, 4)?;
    g.jae(far)?;
    g.mov(qword_ptr(rdi + r15 * 8 + NEAR), rbp)?;
    g.mov(r8, qword_ptr(rdi + r15 * 8 + NEAR))?;
    g.jmp(end)?;
    g.mark(&mut far)?;
    g.mov(r8, qword_ptr(rdi + r15 * 8 + FAR))?;
    g.mark(&mut end)?;
    g.mov(r9, rbp)?;
    g.check_equal("a store beside code was lost")
}

pub fn pages(g: &mut Asm) -> Emit {
    let (short, looping, branches) = (short(g)?, looping(g)?, branches(g)?);
    assert!(short.len <= NEAR as u32);
    let pool = g.frames(POOL);
    g.relay(
        |g| {
            // Data all over the page, each word its round's number; and looked at again.
            page(g, pool)?;
            g.mov(rax, rbp)?;
            g.mov(ecx, 512)?;
            g.cld()?;
            g.rep().stosq()?;
            g.mov(r8, qword_ptr(rdi - 8))?;
            g.mov(r9, rbp)?;
            g.check_equal("data over code was lost")?;
            page(g, pool)?;
            g.copy(short)?;
            page(g, pool)?;
            g.add(edi, 0x200)?;
            copy_either(g, branches, looping)
        },
        |g| {
            page(g, pool)?;
            g.call(rdi)?;
            g.mov(r8d, eax)?;
            g.mov(r9d, ebp)?;
            g.check_equal("stale code in a page that was data")?;
            store_beside(g)?;
            g.lea(rcx, ptr(rdi + 0x200))?;
            g.push(rdi)?;
            g.call(rcx)?;
            g.pop(rdi)?;
            g.mov(r8d, eax)?;
            g.mov(r9d, ebp)?;
            g.check_equal("stale blocks in a page that was data")?;
            store_beside(g)?;
            g.call(rdi)?;
            g.mov(r8d, eax)?;
            g.check_equal("code beside stores")
        },
    )
}
