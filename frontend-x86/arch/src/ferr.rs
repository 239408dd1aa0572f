//! FERR# and IGNNE#: how x87 exceptions are reported where CR0.NE is clear (SDM 1 §8.7.2 "MS-DOS Compatibility Sub-mode";
//! appendix D "Guidelines for Writing x87 FPU Exception Handlers").
//!
//! FERR# is asserted at the first instruction that would raise #MF. The processor then stands still before it, until an
//! interrupt comes: that of the chipset, which FERR# leads to.

use crate::state::{CpuState, cr0};
use vm_core::dlog;
use vm_core::guest::GuestEnv;

fn outside(cpu: &CpuState) -> bool {
    cpu.cr0 & cr0::NE == 0
}

/// Do instructions go on although an exception is pending?
pub fn ignored<E: GuestEnv<Cpu = CpuState>>(env: &E) -> bool {
    outside(env.cpu_ref()) && env.io().ignne()
}

/// In the place of #MF: `true` if it is reported outside.
pub(crate) fn report<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> bool {
    let cpu = env.cpu();
    if !outside(cpu) {
        return false;
    }
    cpu.halted = true;
    dlog!(INT, "FERR#: cs:rip={:04x}:{:016x}", cpu.seg[1].selector, cpu.rip);
    env.io().ferr(true);
    true
}

/// No exception is pending any more.
pub fn end<E: GuestEnv<Cpu = CpuState>>(env: &E) {
    if outside(env.cpu_ref()) {
        env.io().ferr(false);
    }
}
