//! The order in which processors see each other's stores (SDM 3A, "Memory Ordering"): message passing, store buffering
//! with a fence between, and stores that are seen whole.

use crate::smp::Emit;
use crate::smp::asm::{Asm, Fault};
use crate::smp::layout::MAX_CPUS;
use iced_x86::code_asm::*;

/// Steps that both sides go through without waiting for each other; what they read is looked at afterwards.
const BATCH: u32 = 4096;

/// Steps of tests without batches in R10: many a round, as they are short.
fn steps(g: &mut Asm) -> Emit {
    g.mov(r10, r13)?;
    g.shl(r10, 8)
}

/// The first processor stores data, then a flag; the others, having seen the flag, see the data.
fn message_passing(g: &mut Asm) -> Emit {
    let (data, flag) = (g.var(8), g.var(8));
    let mut end = g.create_label();
    g.barrier()?;
    steps(g)?;
    g.test(r15, r15)?;
    g.skip(
        |a, l| a.jne(l),
        |g| {
            g.xor(eax, eax)?;
            g.again(
                |a, l| a.jb(l),
                |g| {
                    g.inc(rax)?;
                    g.mov(qword_ptr(data), rax)?;
                    g.mov(qword_ptr(flag), rax)?;
                    g.cmp(rax, r10)
                },
            )?;
            g.jmp(end)
        },
    )?;
    g.again(
        |a, l| a.jb(l),
        |g| {
            g.mov(r9, qword_ptr(flag))?;
            g.mov(r8, qword_ptr(data))?;
            g.cmp(r8, r9)?;
            g.fail_unless(|a, l| a.jae(l), "message passing: the flag was seen before the data")?;
            g.cmp(r9, r10)
        },
    )?;
    g.mark(&mut end)
}

/// Bytes of a processor's table of what it loaded; numbers of steps begin with 1.
const TABLE: u32 = BATCH * 8 + 4096;

/// What stands between the store and the load.
type Fence = fn(&mut Asm) -> Emit;

const FENCES: [(&str, Fence); 4] = [
    ("mfence", |g| g.mfence()),
    ("lock or", |g| g.lock().or(dword_ptr(rsp - 64), 0)),
    ("lock inc", |g| g.lock().inc(dword_ptr(rsp - 64))),
    ("xchg", |g| g.xchg(qword_ptr(rsp - 64), rax)),
];

/// Pairs of processors: in step i one stores i to X, and loads Y; the other the other way round. What one has loaded in step
/// i is j; so the other's step j + 1 stored later than that load, and its load must find i in X.
fn store_buffering(g: &mut Asm, name: &str, fence: Fence, words: u32, seen: u32) -> Emit {
    // RSI and RDI: mine and the other's word; R10 and R11: what was loaded.
    let addresses = |g: &mut Asm| -> Emit {
        for (word, table, flip) in [(rsi, r10, 0), (rdi, r11, 1)] {
            g.mov(eax, r15d)?;
            g.xor(eax, flip)?;
            g.imul_3(rcx, rax, 64)?;
            g.lea(word, ptr(rcx + words))?;
            g.imul_3(rcx, rax, TABLE as i32)?;
            g.lea(table, ptr(rcx + seen))?;
        }
        Ok(())
    };
    let mut alone = g.create_label();
    g.mov(rbp, r13)?;
    g.again(
        |a, l| a.jg(l),
        |g| {
            g.barrier()?;
            addresses(g)?;
            g.mov(qword_ptr(rsi), 0)?;
            g.barrier()?;
            addresses(g)?;
            // The last one of an odd number has nobody.
            g.mov(eax, r15d)?;
            g.or(eax, 1)?;
            g.cmp(rax, r14)?;
            let mut idle = g.create_label();
            g.jae(idle)?;
            g.xor(ecx, ecx)?;
            g.again(
                |a, l| a.jb(l),
                |g| {
                    g.inc(rcx)?;
                    g.mov(qword_ptr(rsi), rcx)?;
                    if g.fault != Some(Fault::NoFence) {
                        fence(g)?;
                    }
                    g.mov(rax, qword_ptr(rdi))?;
                    g.mov(qword_ptr(r10 + rcx * 8), rax)?;
                    g.cmp(ecx, BATCH)
                },
            )?;
            g.mark(&mut idle)?;
            g.barrier()?;
            addresses(g)?;
            g.mov(eax, r15d)?;
            g.or(eax, 1)?;
            g.cmp(rax, r14)?;
            g.jae(alone)?;
            g.xor(ecx, ecx)?;
            g.again(
                |a, l| a.jb(l),
                |g| {
                    g.inc(rcx)?;
                    g.mov(rax, qword_ptr(r10 + rcx * 8))?;
                    g.cmp(rax, BATCH as i32)?;
                    g.skip(
                        |a, l| a.jae(l),
                        |g| {
                            g.mov(r8, qword_ptr(r11 + rax * 8 + 8))?;
                            g.mov(r9, rcx)?;
                            g.cmp(r8, r9)?;
                            g.fail_unless(
                                |a, l| a.jae(l),
                                &format!("store buffering with {name}: both sides read what was before"),
                            )
                        },
                    )?;
                    g.cmp(ecx, BATCH)
                },
            )?;
            g.mark(&mut alone)?;
            g.sub(rbp, BATCH as i32)
        },
    )
}

/// Stores of all ones and all zeroes are seen whole. The first processor stores them.
fn whole(g: &mut Asm, size: u32) -> Emit {
    let (word, ended) = (g.var(8), g.var(8));
    let mut end = g.create_label();
    g.mov(edi, word)?;
    g.barrier()?;
    g.mov(edi, word)?;
    g.test(r15, r15)?;
    g.skip(
        |a, l| a.jne(l),
        |g| {
            g.xor(eax, eax)?;
            steps(g)?;
            g.again(
                |a, l| a.jne(l),
                |g| {
                    g.not(rax)?;
                    match size {
                        2 => g.mov(word_ptr(rdi), ax),
                        4 => g.mov(dword_ptr(rdi), eax),
                        _ => g.mov(qword_ptr(rdi), rax),
                    }?;
                    g.dec(r10)
                },
            )?;
            g.mov(qword_ptr(ended), 1)?;
            g.jmp(end)
        },
    )?;
    g.again(
        |a, l| a.je(l),
        |g| {
            super::lock::read(g, size)?;
            // All zeroes or, as many as there are bytes, all ones: adding one leaves none of the upper bits.
            g.lea(r9, ptr(r8 + 1))?;
            g.shl(r9, 64 - 8 * size as i32)?;
            g.cmp(r9, 0)?;
            g.skip(
                |a, l| a.je(l),
                |g| {
                    g.test(r8, r8)?;
                    g.fail_unless(|a, l| a.je(l), &format!("a store of {size} bytes was seen in part"))
                },
            )?;
            g.cmp(qword_ptr(ended), 0)
        },
    )?;
    g.mark(&mut end)
}

pub fn test(g: &mut Asm) -> Emit {
    message_passing(g)?;
    let (words, seen) = (g.var(64 * MAX_CPUS), g.frames(MAX_CPUS * TABLE / 4096));
    for (name, fence) in FENCES {
        store_buffering(g, name, fence, words, seen)?;
    }
    for size in [2, 4, 8] {
        whole(g, size)?;
    }
    Ok(())
}
