//! The commonest x87 instructions under the default control word, where nothing is wrong with the stack: without the detours of
//! `exec`, which says what they mean and does all others.

use super::stack::{physical, sw};
use super::{Code, Form};
use crate::Env;
use crate::hostfp::x87fast as host;
use arch_x86::CpuState;
use vm_core::{Fault, Va};

/// Executes the instruction if it is one of these; `false`: it is not, and nothing has changed.
pub fn run<E: Env>(env: &mut E, c: Code, addr: u64) -> Result<bool, Fault> {
    let cpu = env.cpu_ref();
    if !host::serves(cpu.fcw) || c.bytes() > 8 {
        return Ok(false);
    }
    match c.form {
        Form::ArithSt0 => Ok(registers(env.cpu(), c, 0, c.i)),
        Form::ArithSti => Ok(registers(env.cpu(), c, c.i, 0)),
        Form::ArithMem | Form::Unary if valid(cpu, 0) => {
            let mem = operand(env, c, addr)?;
            let cpu = env.cpu();
            let (guest, st0) = (cpu.fsw, physical(cpu, 0));
            let status = host::arith_mem(c.op, &mut cpu.fpr[st0], mem, guest);
            Ok(status.map(|s| finish(cpu, s, c.pops)).is_some())
        }
        Form::Load | Form::Constant if !valid(cpu, 7) => {
            let mem = operand(env, c, addr)?;
            let cpu = env.cpu();
            let (guest, new) = (cpu.fsw, physical(cpu, 7));
            let Some(status) = host::load(c.op, &mut cpu.fpr[new], mem, guest) else { return Ok(false) };
            cpu.ftw |= 1 << new;
            cpu.fsw = cpu.fsw & !sw::TOP | (new as u16) << sw::TOP_SHIFT;
            finish(cpu, status & !sw::C1, 0);
            Ok(true)
        }
        Form::Store if valid(cpu, 0) => {
            let Some((v, status)) = host::store(c.op, &cpu.fpr[physical(cpu, 0)], cpu.fsw) else { return Ok(false) };
            let ctx = cpu.mode().ctx();
            env.store(Va(addr), c.bytes(), v, ctx)?;
            finish(env.cpu(), status, c.pops);
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn valid(cpu: &CpuState, i: u8) -> bool {
    cpu.ftw >> physical(cpu, i) & 1 != 0
}

fn operand<E: Env>(env: &mut E, c: Code, addr: u64) -> Result<u64, Fault> {
    let ctx = env.cpu_ref().mode().ctx();
    if c.bytes() == 0 { Ok(0) } else { env.load(Va(addr), c.bytes(), ctx) }
}

/// ST(dst) = ST(dst) op ST(src).
fn registers(cpu: &mut CpuState, c: Code, dst: u8, src: u8) -> bool {
    if !valid(cpu, dst) || !valid(cpu, src) {
        return false;
    }
    let (guest, d, s) = (cpu.fsw, physical(cpu, dst), physical(cpu, src));
    let status = match cpu.fpr.get_disjoint_mut([d, s]) {
        Ok([d, s]) => host::arith(c.op, d, s, guest),
        Err(_) => {
            let v = cpu.fpr[s];
            host::arith(c.op, &mut cpu.fpr[d], &v, guest)
        }
    };
    status.map(|s| finish(cpu, s, c.pops)).is_some()
}

/// Exception flags and C1 of the host's status word; pops.
fn finish(cpu: &mut CpuState, status: u16, pops: u8) {
    cpu.fsw = cpu.fsw & !sw::C1 | status & (sw::FLAGS | sw::C1);
    for _ in 0..pops {
        let top = physical(cpu, 0);
        cpu.ftw &= !(1 << top);
        cpu.fsw = cpu.fsw & !sw::TOP | ((top as u16 + 1) & 7) << sw::TOP_SHIFT;
    }
}
