//! Interrupts between processors and to oneself: none is lost, none comes twice, none where interrupts are off or just
//! turned on; they wake from HLT. The same for NMI.

use crate::smp::Emit;
use crate::smp::apic::{self, icr};
use crate::smp::asm::Asm;
use crate::smp::layout::{PER_CPU, PER_CPU_SIZE, per_cpu};
use iced_x86::code_asm::*;

const OWN: u8 = 0x40;
const PING: u8 = 0x42;
const EVERYBODY: u8 = 0x43;
const OTHERS: u8 = 0x44;
/// Vectors of rising priority.
const RISING: [u8; 3] = [0x50, 0x60, 0x70];
const NMI: u8 = 2;

/// Offset of a vector's count in the record.
fn count(vector: u8) -> i32 {
    per_cpu::COUNTS + 8 * i32::from(vector & 7)
}

/// The count of a vector is R10.
fn check_count(g: &mut Asm, vector: u8, what: &str) -> Emit {
    g.mov(r8, qword_ptr(r12 + count(vector)))?;
    g.mov(r9, r10)?;
    g.check_equal(what)
}

/// Sleeps until the count of a vector is R10 or more.
fn sleep_until(g: &mut Asm, vector: u8, what: &str) -> Emit {
    let (mut look, mut done) = (g.create_label(), g.create_label());
    g.mark(&mut look)?;
    g.cli()?;
    g.cmp(qword_ptr(r12 + count(vector)), r10)?;
    g.jae(done)?;
    g.sti()?;
    g.hlt()?;
    g.jmp(look)?;
    g.mark(&mut done)?;
    check_count(g, vector, what)
}

fn send_self(g: &mut Asm, vector: u8) -> Emit {
    apic::send(g, icr::FIXED | icr::SELF | u32::from(vector))?;
    apic::wait_requested(g, vector)
}

fn own(g: &mut Asm) -> Emit {
    g.xor(r10d, r10d)?;
    g.rounds(|g| {
        send_self(g, OWN)?;
        check_count(g, OWN, "an interrupt while interrupts were off")?;
        g.sti()?;
        g.cli()?;
        check_count(g, OWN, "an interrupt between STI and CLI")?;
        g.inc(r10)?;
        g.sti()?;
        g.nop()?;
        g.cli()?;
        check_count(g, OWN, "STI, NOP and CLI let in another number than one")?;

        g.inc(r10)?;
        send_self(g, OWN)?;
        g.sti()?;
        g.hlt()?;
        g.cli()?;
        check_count(g, OWN, "after STI and HLT")?;

        g.inc(r10)?;
        send_self(g, OWN)?;
        g.pushfq()?;
        g.or(dword_ptr(rsp), 0x200)?;
        g.popfq()?;
        g.cli()?;
        check_count(g, OWN, "POPF lets an interrupt in at once")?;

        // Interrupts on all the while.
        g.inc(r10)?;
        g.sti()?;
        apic::send(g, icr::FIXED | icr::SELF | u32::from(OWN))?;
        g.mov(rsi, r10)?;
        g.lea(rdi, ptr(r12 + count(OWN)))?;
        g.wait_at_least("an interrupt to oneself was lost")?;
        g.cli()?;
        check_count(g, OWN, "an interrupt to oneself came more than once")?;

        g.mov(qword_ptr(r12 + per_cpu::ORDER), 0)?;
        for vector in [RISING[1], RISING[0], RISING[2]] {
            send_self(g, vector)?;
        }
        g.sti()?;
        g.nop()?;
        g.cli()?;
        g.mov(r8, qword_ptr(r12 + per_cpu::ORDER))?;
        g.mov(r9d, 0x70_6050)?;
        g.check_equal("interrupts come by priority")
    })
}

/// Pairs of processors that wake each other from HLT in turn.
fn ping_pong(g: &mut Asm) -> Emit {
    let mut end = g.create_label();
    let send = |g: &mut Asm| -> Emit {
        g.mov(ecx, r15d)?;
        g.xor(ecx, 1)?;
        g.imul_3(ecx, ecx, PER_CPU_SIZE as i32)?;
        g.mov(ecx, dword_ptr(rcx + PER_CPU as i32 + per_cpu::APIC_ID))?;
        apic::send(g, icr::FIXED | u32::from(PING))
    };
    g.barrier()?;
    // The last one of an odd number has nobody.
    g.mov(eax, r15d)?;
    g.or(eax, 1)?;
    g.cmp(rax, r14)?;
    g.jae(end)?;
    g.xor(r10d, r10d)?;
    g.rounds(|g| {
        g.inc(r10)?;
        g.test(r15, 1)?;
        g.skip(|a, l| a.jne(l), send)?;
        sleep_until(g, PING, "ping-pong out of step")?;
        g.test(r15, 1)?;
        g.skip(|a, l| a.je(l), send)
    })?;
    g.mark(&mut end)
}

/// The first processor sends NMIs; some of the others spin with interrupts off, some sleep so.
fn nmi(g: &mut Asm) -> Emit {
    let acks = g.var(8);
    let (mut look, mut slept, mut end) = (g.create_label(), g.create_label(), g.create_label());
    g.handler(NMI, false, |g| {
        g.inc(qword_ptr(r12 + per_cpu::NMIS))?;
        // Between a look at the count and HLT, back to the look: an NMI there would be slept over. RIP lies above RAX and RDI.
        let mut elsewhere = g.create_label();
        g.lea(rax, ptr(slept))?;
        g.cmp(qword_ptr(rsp + 16), rax)?;
        g.jae(elsewhere)?;
        g.lea(rax, ptr(look))?;
        g.cmp(qword_ptr(rsp + 16), rax)?;
        g.jb(elsewhere)?;
        g.mov(qword_ptr(rsp + 16), rax)?;
        g.mark(&mut elsewhere)?;
        g.lock().inc(qword_ptr(acks))
    })?;
    g.barrier()?;
    g.test(r15, r15)?;
    g.skip(
        |a, l| a.jne(l),
        |g| {
            g.xor(ebp, ebp)?;
            g.again(
                |a, l| a.jb(l),
                |g| {
                    g.inc(rbp)?;
                    apic::send(g, icr::NMI | icr::OTHERS)?;
                    g.mov(edi, acks)?;
                    g.lea(rsi, ptr(r14 - 1))?;
                    g.imul_2(rsi, rbp)?;
                    g.wait_at_least("an NMI was lost")?;
                    g.cmp(rbp, r13)
                },
            )?;
            g.jmp(end)
        },
    )?;
    g.test(r15, 1)?;
    g.skip(
        |a, l| a.je(l),
        |g| {
            // One after the other: a wait has a limit.
            g.xor(r10d, r10d)?;
            g.rounds(|g| {
                g.inc(r10)?;
                g.mov(rsi, r10)?;
                g.lea(rdi, ptr(r12 + per_cpu::NMIS))?;
                g.wait_at_least("NMIs were lost")
            })?;
            g.jmp(end)
        },
    )?;
    g.mark(&mut look)?;
    g.cmp(qword_ptr(r12 + per_cpu::NMIS), r13)?;
    g.jae(end)?;
    g.hlt()?;
    g.mark(&mut slept)?;
    g.jmp(look)?;
    g.mark(&mut end)?;
    g.barrier()?;
    g.test(r15, r15)?;
    g.skip(
        |a, l| a.je(l),
        |g| {
            g.mov(r8, qword_ptr(r12 + per_cpu::NMIS))?;
            g.mov(r9, r13)?;
            g.check_equal("more NMIs than were sent")
        },
    )
}

/// Each round another processor sends to all, with or without itself, and all sleep until it has come.
fn broadcast(g: &mut Asm, vector: u8, shorthand: u32) -> Emit {
    let done = g.var(8);
    let (mut sent, mut asleep) = (g.create_label(), g.create_label());
    g.xor(ebp, ebp)?;
    g.xor(r10d, r10d)?;
    g.again(
        |a, l| a.jb(l),
        |g| {
            g.mov(rax, rbp)?;
            g.xor(edx, edx)?;
            g.div(r14)?;
            g.cmp(rdx, r15)?;
            g.skip(
                |a, l| a.jne(l),
                |g| {
                    g.mov(edi, done)?;
                    g.mov(rsi, rbp)?;
                    g.imul_2(rsi, r14)?;
                    g.wait_at_least("the others did not get the last broadcast")?;
                    apic::send(g, icr::FIXED | shorthand | u32::from(vector))?;
                    if shorthand == icr::OTHERS { g.jmp(sent) } else { g.jmp(asleep) }
                },
            )?;
            g.mark(&mut asleep)?;
            g.inc(r10)?;
            sleep_until(g, vector, "broadcasts out of step")?;
            g.mark(&mut sent)?;
            check_count(g, vector, "a broadcast came to its sender")?;
            g.lock().inc(qword_ptr(done))?;
            g.inc(rbp)?;
            g.cmp(rbp, r13)
        },
    )?;
    // Late ones would come now.
    g.barrier()?;
    g.sti()?;
    g.nop()?;
    g.cli()?;
    check_count(g, vector, "more broadcasts than were sent")
}

pub fn test(g: &mut Asm) -> Emit {
    for vector in [OWN, PING, EVERYBODY, OTHERS] {
        g.handler(vector, true, |g| g.inc(qword_ptr(r12 + count(vector))))?;
    }
    for vector in RISING {
        g.handler(vector, true, |g| {
            g.shl(qword_ptr(r12 + per_cpu::ORDER), 8)?;
            g.or(qword_ptr(r12 + per_cpu::ORDER), i32::from(vector))
        })?;
    }
    own(g)?;
    ping_pong(g)?;
    nmi(g)?;
    broadcast(g, EVERYBODY, icr::ALL)?;
    broadcast(g, OTHERS, icr::OTHERS)
}
