//! The local APIC (SDM 3A, "Advanced Programmable Interrupt Controller"): start-up, interrupts between processors.

use super::Emit;
use super::asm::Asm;
use super::layout::*;
use iced_x86::code_asm::*;

/// Offsets of registers.
pub const ID: u32 = 0x20;
pub const EOI: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
/// First of the eight words of the interrupt request register.
const IRR: u32 = 0x200;
const ICR_LOW: u32 = 0x300;
const ICR_HIGH: u32 = 0x310;
const ENABLE: u32 = 0x100;
const DELIVERY_PENDING: u32 = 1 << 12;
pub const SPURIOUS_VECTOR: u8 = 0xff;

/// Low words of the interrupt command register: delivery modes with level asserted, and shorthands.
pub mod icr {
    pub const FIXED: u32 = 0x4000;
    pub const NMI: u32 = 0x4400;
    pub const INIT: u32 = 0x4500;
    pub const STARTUP: u32 = 0x4600;
    pub const SELF: u32 = 1 << 18;
    pub const ALL: u32 = 2 << 18;
    pub const OTHERS: u32 = 3 << 18;
}

/// The local APIC on, with its identity in the processor's record; changes RAX and RDI.
pub fn enable(g: &mut Asm) -> Emit {
    g.mov(edi, APIC)?;
    g.mov(dword_ptr(rdi + SPURIOUS), ENABLE | u32::from(SPURIOUS_VECTOR))?;
    g.mov(eax, dword_ptr(rdi + ID))?;
    g.shr(eax, 24)?;
    g.mov(qword_ptr(r12 + per_cpu::APIC_ID), rax)
}

/// Both 8259s masked; changes RAX.
pub fn mask_8259(g: &mut Asm) -> Emit {
    g.mov(al, 0xff)?;
    g.out(0x21, al)?;
    g.out(0xa1, al)
}

/// Sends what EAX says, to the APIC in ECX if there is no shorthand; changes RAX, RCX, RDI.
pub fn send(g: &mut Asm, command: u32) -> Emit {
    g.mov(edi, APIC)?;
    idle(g)?;
    g.shl(ecx, 24)?;
    g.mov(dword_ptr(rdi + ICR_HIGH), ecx)?;
    g.mov(dword_ptr(rdi + ICR_LOW), command)
}

/// Waits until the last command has been sent; RDI points at the APIC.
fn idle(g: &mut Asm) -> Emit {
    g.again(
        |a, l| a.jne(l),
        |g| {
            g.pause()?;
            g.test(dword_ptr(rdi + ICR_LOW), DELIVERY_PENDING)
        },
    )
}

/// Waits until a vector is requested; changes RDI. The processor's interrupts are off.
pub fn wait_requested(g: &mut Asm, vector: u8) -> Emit {
    let word = IRR + u32::from(vector) / 32 * 0x10;
    g.mov(edi, APIC)?;
    g.again(|a, l| a.je(l), |g| g.test(dword_ptr(rdi + word), 1u32 << (vector % 32)))
}

/// Starts all other processors at `TRAMPOLINE` (SDM 3A, "MP Initialization Protocol"); changes RAX, RCX, RDX, RDI, R8.
pub fn start_others(g: &mut Asm) -> Emit {
    let startup = icr::STARTUP | icr::OTHERS | TRAMPOLINE >> 12;
    for (command, cycles) in [(icr::INIT | icr::OTHERS, 30_000_000), (startup, 600_000), (startup, 600_000)] {
        send(g, command)?;
        g.rdtsc()?;
        g.mov(r8d, eax)?;
        g.again(
            |a, l| a.jb(l),
            |g| {
                g.pause()?;
                g.rdtsc()?;
                g.sub(eax, r8d)?;
                g.cmp(eax, cycles)
            },
        )?;
    }
    Ok(())
}
