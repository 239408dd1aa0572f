//! Breakpoints of a debugger by the processor's debug registers (api.rst: KVM_SET_GUEST_DEBUG), so that the guest runs natively up to
//! them. The guest's own debug registers are out of sight meanwhile, and come back when the last one goes.

use crate::vcpu::KvmCpu;
use crate::{KvmError, at};
use kvm_bindings::{KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_DB, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug};

/// Breakpoints that there are registers for.
pub const BREAKPOINTS: usize = 4;
/// DR7: L0, and RW0 and LEN0 for execution are 0 (SDM 3B "Debug Control Register").
const LOCAL: u64 = 1;

/// DR7 for breakpoints on the execution of as many instructions.
fn dr7(count: usize) -> u64 {
    (0..count.min(BREAKPOINTS)).fold(0, |v, i| v | LOCAL << (2 * i))
}

impl KvmCpu {
    /// Has the vCPU stop before the instructions at these linear addresses, at most `BREAKPOINTS` of them; the rest is not looked at.
    pub fn set_breakpoints(&mut self, addresses: &[u64]) -> Result<(), KvmError> {
        let wanted = &addresses[..addresses.len().min(BREAKPOINTS)];
        if self.breakpoints == wanted {
            return Ok(());
        }
        self.breakpoints = wanted.to_vec();
        self.set_debug(false)
    }

    /// `inject`: and has the guest take a #DB.
    pub(crate) fn set_debug(&mut self, inject: bool) -> Result<(), KvmError> {
        let mut debug = kvm_guest_debug::default();
        if !self.breakpoints.is_empty() {
            debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg.iter_mut().zip(&self.breakpoints).for_each(|(r, a)| *r = *a);
            debug.arch.debugreg[7] = dr7(self.breakpoints.len());
        }
        debug.control |= if inject { KVM_GUESTDBG_INJECT_DB } else { 0 };
        self.fd.set_guest_debug(&debug).map_err(at("KVM_SET_GUEST_DEBUG"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Irqchip;
    use crate::selftest::{CODE, run_bench};
    use crate::tests::{machine_with, started};
    use std::time::Duration;
    use vm_core::StopReason;
    use vm_core::debug::DebugEvent;

    #[test]
    fn each_register_has_its_bits() {
        assert_eq!((dr7(0), dr7(1), dr7(4), dr7(9)), (0, 1, 0x55, 0x55));
    }

    #[test]
    fn a_guest_that_runs_natively_stops_before_an_instruction() {
        // inc %rax; inc %rbx; inc %rcx; hlt
        let code = [0x48, 0xff, 0xc0, 0x48, 0xff, 0xc3, 0x48, 0xff, 0xc1, 0xf4];
        let Some((vm, io, state)) = machine_with(Irqchip::Off, 64 << 10, &code) else { return };
        let mut cpu = started(&vm, &io, state);
        cpu.set_breakpoints(&[0x123, CODE + 3, CODE + 6]).expect("KVM takes them");
        let broken = StopReason::Debug(DebugEvent::Break { hard: true });
        for (at, rax, rbx) in [(3, 1, 0), (6, 1, 1)] {
            assert_eq!(run_bench(&mut cpu, &io, Duration::from_secs(20)), Ok(broken));
            let c = cpu.cpu();
            assert_eq!((c.rip, c.gpr[0], c.gpr[3]), (CODE + at, rax, rbx));
            // As a debugger does: past it without it.
            let others: Vec<u64> = [CODE + 3, CODE + 6].into_iter().filter(|a| *a != CODE + at).collect();
            cpu.set_breakpoints(&others).expect("KVM takes them");
        }
        cpu.set_breakpoints(&[]).expect("KVM takes none");
        assert_eq!(run_bench(&mut cpu, &io, Duration::from_secs(20)), Ok(StopReason::Halted));
        assert_eq!((cpu.cpu().gpr[1], cpu.cpu().dr[7] & 0xff), (1, 0), "the guest's own registers are as they were");
    }
}
