//! ENTER, PUSHF, POPF (SDM 2).

use super::segment::linear;
use super::{ANY, CHECKS, Env, Res};
use arch_x86::{CpuState, Mode, SegReg, Segment, control};
use vm_core::{Access, Fault, Va};

rows! {
    topic stack;
    /// (operand bytes, frame bytes, nesting level 0..=31)
    ENTER = enter(3) ANY;
    /// (operand bytes): RFLAGS as PUSHF stores them; #GP(0) in virtual-8086 mode with IOPL < 3.
    PUSHF = pushf(1) CHECKS;
    /// (value, operand bytes): what POPF may change of RFLAGS at this privilege.
    POPF = popf(2) ANY;
}

/// Mask of the stack pointer.
fn sp_mask(cpu: &CpuState) -> u64 {
    if cpu.mode().is_64() {
        !0
    } else if cpu.seg(SegReg::Ss).attr & Segment::DB != 0 {
        0xffff_ffff
    } else {
        0xffff
    }
}

/// Replaces the part of a register that `mask` covers; 32-bit writes clear the upper half.
pub(super) fn merge(old: u64, new: u64, mask: u64) -> u64 {
    if mask == 0xffff { old & !mask | new & mask } else { new & mask }
}

fn at<E: Env>(env: &E, off: u64, bytes: u64, write: bool) -> Result<Va, Fault> {
    let cpu = env.cpu_ref();
    let va = linear(cpu, SegReg::Ss, off, bytes, write)?;
    if cpu.mode().has(Mode::ALIGN) {
        arch_x86::segment::aligned(cpu, va, bytes, bytes)?;
    }
    Ok(Va(va))
}

/// Pushes `v` with a stack pointer that is not yet the register's.
fn push<E: Env>(env: &mut E, sp: &mut u64, v: u64, bytes: u64) -> Result<(), Fault> {
    let (mask, ctx) = (sp_mask(env.cpu_ref()), env.cpu_ref().mode().ctx());
    *sp = merge(*sp, sp.wrapping_sub(bytes), mask);
    let va = at(env, *sp & mask, bytes, true)?;
    env.store(va, bytes as u8, v, ctx)
}

fn enter<E: Env>(env: &mut E, bytes: u64, frame: u64, level: u64) -> Res {
    let (mask, ctx) = (sp_mask(env.cpu_ref()), env.cpu_ref().mode().ctx());
    let (mut sp, old_bp) = (env.cpu_ref().gpr[4], env.cpu_ref().gpr[5]);
    let mut bp = old_bp;
    push(env, &mut sp, old_bp, bytes)?;
    let frame_ptr = sp;
    for _ in 1..level {
        bp = merge(bp, bp.wrapping_sub(bytes), mask);
        let va = at(env, bp & mask, bytes, false)?;
        let v = env.load(va, bytes as u8, ctx)?;
        push(env, &mut sp, v, bytes)?;
    }
    if level > 0 {
        push(env, &mut sp, frame_ptr, bytes)?;
    }
    sp = merge(sp, sp.wrapping_sub(frame), mask);
    // The new top must be writable before anything changes (SDM 2 "ENTER").
    let va = at(env, sp & mask, bytes, true)?;
    env.probe(va, bytes, Access::Write, ctx)?;
    let bp_mask = match bytes {
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => !0,
    };
    let g = &mut env.cpu().gpr;
    (g[5], g[4]) = (merge(old_bp, frame_ptr, bp_mask), sp);
    Ok(0)
}

fn pushf<E: Env>(env: &mut E, bytes: u64, _: u64, _: u64) -> Res {
    control::pushf(env.cpu_ref(), bytes as u8)
}

fn popf<E: Env>(env: &mut E, value: u64, bytes: u64, _: u64) -> Res {
    control::popf(env.cpu(), value, bytes as u8).map(|()| 0)
}
