//! Virtual interrupt flag: virtual-8086 mode extensions (CR4.VME; SDM 3A §20.3.3, table 20-2) and protected-mode virtual
//! interrupts (CR4.PVI; SDM 3A §20.4).

use crate::fault::gp;
use crate::flags::bit;
use crate::segment::v86_segment;
use crate::stack::Stack;
use crate::state::{CpuState, SegReg, cr4};
use crate::tss;
use vm_core::guest::GuestEnv;
use vm_core::{Fault, Va};

/// Bytes of the interrupt redirection bitmap, which ends where the I/O permission bitmap begins.
const BITMAP: u32 = 32;

/// Virtual-8086 mode in which PUSHF, POPF, IRET and INT n work on VIF: IOPL does not let them work on IF.
pub(crate) fn virtual_if(cpu: &CpuState) -> bool {
    cpu.v86() && cpu.iopl() < 3 && cpu.cr4 & cr4::VME != 0
}

/// CLI and STI (`on`) where IOPL allows neither. Errors: #GP(0).
pub(crate) fn set_vif(cpu: &mut CpuState, on: bool) -> Result<(), Fault> {
    let allowed = if cpu.v86() { cpu.cr4 & cr4::VME != 0 } else { cpu.cpl == 3 && cpu.cr4 & cr4::PVI != 0 };
    if !allowed || on && cpu.eflags & bit::VIP != 0 {
        return Err(gp(0));
    }
    cpu.eflags = if on { cpu.eflags | bit::VIF } else { cpu.eflags & !bit::VIF };
    Ok(())
}

/// Flags as 8086 programs see them: IF is VIF, IOPL is 3.
pub(crate) fn image(cpu: &CpuState) -> u64 {
    let f = cpu.rflags() & !(bit::VM | bit::RF | bit::IF) | bit::IOPL;
    if f & bit::VIF != 0 { f | bit::IF } else { f }
}

/// RFLAGS after a POPF or IRET of 16 bits that sets VIF instead of IF. Errors: #GP(0) if a single step or a pending virtual
/// interrupt would have to follow.
pub(crate) fn loaded(cpu: &CpuState, value: u64) -> Result<u64, Fault> {
    let rflags = cpu.rflags();
    if value & bit::TF != 0 || value & bit::IF != 0 && rflags & bit::VIP != 0 {
        return Err(gp(0));
    }
    let m = (bit::ARITH | bit::TF | bit::DF | bit::NT) & 0xffff;
    let new = rflags & !(m | bit::VIF | bit::RF) | value & m;
    Ok(if value & bit::IF != 0 { new | bit::VIF } else { new })
}

/// Whether INT `vector` goes to the 8086 program's own handler; only asked in virtual-8086 mode with CR4.VME.
pub(crate) fn redirected<E: GuestEnv<Cpu = CpuState>>(env: &mut E, vector: u8) -> Result<bool, Fault> {
    let map = tss::read(env, 0x66, 2, 0)? as u32;
    let at = (map + u32::from(vector >> 3)).checked_sub(BITMAP).filter(|at| *at <= env.cpu_ref().tr.limit);
    // Outside of the TSS the bits are as set: the interrupt is for the monitor.
    let Some(at) = at else { return Ok(false) };
    Ok(tss::read(env, at, 1, 0)? >> (vector & 7) & 1 == 0)
}

/// INT `vector` by the vectors at linear address 0, as an 8086 does it.
pub(crate) fn interrupt<E: GuestEnv<Cpu = CpuState>>(env: &mut E, vector: u8, next_rip: u64) -> Result<(), Fault> {
    let ctx = env.cpu_ref().mode().ctx();
    let target = env.load(Va(u64::from(vector) * 4), 4, ctx)?;
    let cpu = env.cpu_ref();
    let by_vif = cpu.iopl() < 3;
    let flags = if by_vif { image(cpu) } else { cpu.rflags() };
    let mut stack = Stack::current(cpu, 0);
    for v in [flags, cpu.seg(SegReg::Cs).selector.into(), next_rip] {
        stack.push(cpu, 2, v & 0xffff)?;
    }
    stack.store(env)?;
    let cpu = env.cpu();
    cpu.gpr[4] = stack.sp;
    *cpu.seg_mut(SegReg::Cs) = v86_segment((target >> 16) as u16);
    cpu.rip = target & 0xffff;
    let cleared = bit::TF | bit::RF | if by_vif { bit::VIF } else { bit::IF };
    let new = cpu.rflags() & !cleared;
    cpu.set_rflags(new);
    Ok(())
}
