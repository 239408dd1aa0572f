//! Port I/O with its permission check (SDM 1 chapter 19 "Input/Output").

use super::{ANY, CHECKS, Env, READS, Res, STATE};
use arch_x86::{Mode, control, tss};
use ir::Effects;
use vm_core::Fault;

/// Devices change guest memory and time, so nothing moves across.
const PORT: Effects = STATE.or(Effects::READS_MEM).or(Effects::WRITES_MEM);

rows! {
    topic io;
    /// (port, bytes): #GP(0) unless IOPL or the TSS allow the port.
    IO_CHECK = io_check(2) ANY;
    /// (port, bytes): the value, zero-extended.
    IN = input(2) PORT;
    /// (port, bytes, value)
    OUT = output(3) PORT;
    /// The time-stamp counter; #GP(0) with CR4.TSD above CPL 0.
    RDTSC = rdtsc(0) CHECKS;
    TSC_AUX = tsc_aux(0) READS;
}

/// The permission check of a port instruction.
pub(super) fn check<E: Env>(env: &mut E, port: u16, bytes: u8) -> Result<(), Fault> {
    if env.cpu_ref().mode().has(Mode::IO_OK) { Ok(()) } else { tss::io_allowed(env, port, bytes) }
}

/// Reads the port in DX.
pub(super) fn read_port<E: Env>(env: &mut E, bytes: u8) -> u64 {
    let port = env.cpu_ref().gpr[2] as u16;
    env.cpu().note_port(port, bytes);
    env.io().port_read(port, bytes).into()
}

/// Writes the port in DX.
pub(super) fn write_port<E: Env>(env: &mut E, bytes: u8, v: u64) {
    let port = env.cpu_ref().gpr[2] as u16;
    env.cpu().note_port(port, bytes);
    env.io().port_write(port, bytes, v as u32);
}

fn io_check<E: Env>(env: &mut E, port: u64, bytes: u64, _: u64) -> Res {
    check(env, port as u16, bytes as u8).map(|()| 0)
}

fn input<E: Env>(env: &mut E, port: u64, bytes: u64, _: u64) -> Res {
    env.cpu().note_port(port as u16, bytes as u8);
    Ok(env.io().port_read(port as u16, bytes as u8).into())
}

fn output<E: Env>(env: &mut E, port: u64, bytes: u64, v: u64) -> Res {
    env.cpu().note_port(port as u16, bytes as u8);
    env.io().port_write(port as u16, bytes as u8, v as u32);
    Ok(0)
}

fn rdtsc<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    control::rdtsc(env)
}

fn tsc_aux<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    Ok(env.cpu_ref().tsc_aux)
}
