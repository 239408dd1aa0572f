//! A vCPU as the machine reaches it while it does not run: its local APIC, where that is KVM's (api.rst: KVM_GET_LAPIC,
//! KVM_GET_MP_STATE).

use crate::ioctl::{self, Asked};
use crate::{KvmError, at};
use arch_x86::msr::index::APIC_BASE;
use kvm_bindings::{
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_NMI_PENDING, kvm_lapic_state, kvm_mp_state,
};
use std::os::fd::OwnedFd;

/// Registers in the page, 16 bytes apart.
const REGS: usize = 64;

/// A local APIC, as its register page shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LapicRegs {
    /// The 32-bit registers by their numbers (offset / 16).
    pub regs: [u32; REGS],
    /// IA32_APIC_BASE.
    pub base: u64,
}

/// What else had come for a vCPU by way of its local APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latched {
    /// An NMI that it has not taken.
    pub nmi: bool,
    /// It waits for a start-up interrupt.
    pub waits: bool,
}

/// For any thread. The vCPU is not in KVM_RUN meanwhile.
pub struct CpuPort {
    fd: OwnedFd,
}

fn page(regs: &[u32; REGS]) -> kvm_lapic_state {
    let mut state = kvm_lapic_state::default();
    for (to, v) in state.regs.chunks_exact_mut(16).zip(regs) {
        to.iter_mut().zip(v.to_le_bytes()).for_each(|(to, b)| *to = b as _);
    }
    state
}

fn words(state: &kvm_lapic_state) -> [u32; REGS] {
    let mut regs = [0; REGS];
    for (r, from) in regs.iter_mut().zip(state.regs.chunks_exact(16)) {
        *r = u32::from_le_bytes([from[0] as u8, from[1] as u8, from[2] as u8, from[3] as u8]);
    }
    regs
}

impl CpuPort {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd }
    }

    /// Gives KVM's local APIC these registers.
    pub fn set_lapic(&self, l: &LapicRegs) -> Result<(), KvmError> {
        ioctl::set_msr(&self.fd, APIC_BASE, l.base).map_err(at("KVM_SET_MSRS(APIC_BASE)"))?;
        ioctl::ask(&self.fd, Asked::SetLapic(&page(&l.regs))).map_err(at("KVM_SET_LAPIC"))
    }

    /// Takes them back, and what had come for the vCPU, which KVM forgets.
    pub fn take_lapic(&self) -> Result<(LapicRegs, Latched), KvmError> {
        // First, as KVM accepts INIT and start-up interrupts then.
        let mut mp = kvm_mp_state::default();
        ioctl::ask(&self.fd, Asked::MpState(&mut mp)).map_err(at("KVM_GET_MP_STATE"))?;
        let mut state = kvm_lapic_state::default();
        ioctl::ask(&self.fd, Asked::Lapic(&mut state)).map_err(at("KVM_GET_LAPIC"))?;
        let base = ioctl::msr(&self.fd, APIC_BASE).map_err(at("KVM_GET_MSRS(APIC_BASE)"))?;
        let mut events = kvm_bindings::kvm_vcpu_events::default();
        ioctl::ask(&self.fd, Asked::Events(&mut events)).map_err(at("KVM_GET_VCPU_EVENTS"))?;
        let nmi = events.nmi.pending != 0;
        if nmi {
            events.nmi.pending = 0;
            events.flags |= KVM_VCPUEVENT_VALID_NMI_PENDING;
            ioctl::ask(&self.fd, Asked::SetEvents(&events)).map_err(at("KVM_SET_VCPU_EVENTS"))?;
        }
        let waits = matches!(mp.mp_state, KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED);
        Ok((LapicRegs { regs: words(&state), base }, Latched { nmi, waits }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_lie_16_bytes_apart() {
        let regs: [u32; REGS] = std::array::from_fn(|i| 0x8765_4300 + i as u32);
        let p = page(&regs);
        assert_eq!((p.regs[0x20] as u8, p.regs[0x23] as u8, p.regs[0x24]), (0x02, 0x87, 0));
        assert_eq!(words(&p), regs);
    }
}
