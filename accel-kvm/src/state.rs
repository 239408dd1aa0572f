//! A vCPU's registers between `CpuState` and KVM.

use crate::vcpu::{KvmCpu, Where};
use crate::{at, ioctl, msrs, regs, xsave};
use arch_x86::flags::bit;
use arch_x86::msr::index::APIC_BASE;
use arch_x86::state::{cr4, efer};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_xcrs};
use vm_core::{CpuIo, Events};

impl KvmCpu {
    /// Gives the registers to KVM if it does not have them.
    pub(crate) fn send(&mut self, io: &dyn CpuIo) -> Result<(), String> {
        if self.at == Where::Here {
            // Where KVM refuses some of it they stay here.
            self.send_all(io).map_err(|(what, e)| format!("{what}: {e}"))?;
            // Its exits before that say nothing about this state. A halted CPU of KVM's would not wake up to say that it is ready.
            let ready = self.vm.kernel_lapic() && self.cpu.eflags & bit::IF != 0 && !self.cpu.pending.valid;
            self.fd.get_kvm_run().ready_for_interrupt_injection = ready.into();
            self.fd.get_kvm_run().if_flag = ready.into();
            self.fd.get_kvm_run().cr8 = io.cr8().into();
        }
        self.at = Where::Kvm;
        if std::mem::take(&mut self.tsc_here) {
            let tsc = io.tsc().wrapping_add(self.cpu.tsc_offset);
            msrs::push_tsc(&self.fd, tsc);
        }
        Ok(())
    }

    fn send_all(&mut self, io: &dyn CpuIo) -> Result<(), (&'static str, kvm_ioctls::Error)> {
        let c = &mut self.cpu;
        let named = |what| move |e| (what, e);
        let base = io.msr_read(APIC_BASE).unwrap_or(0);
        self.fd.set_sregs(&regs::sregs(c, io.cr8(), base)).map_err(named("KVM_SET_SREGS"))?;
        self.fd.set_regs(&regs::regs(c)).map_err(named("KVM_SET_REGS"))?;
        if c.has(arch_x86::cpuid::feature::XSAVE) {
            let mut x = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            x.xcrs[0].value = c.xcr0;
            self.fd.set_xcrs(&x).map_err(named("KVM_SET_XCRS"))?;
        }
        ioctl::set_xsave(&self.fd, &xsave::pack(c, self.vm.components())).map_err(named("KVM_SET_XSAVE"))?;
        self.fd.set_debug_regs(&regs::debug_registers(c)).map_err(named("KVM_SET_DEBUGREGS"))?;
        msrs::push(&self.fd, c);
        self.fd.set_vcpu_events(&regs::events(c)).map_err(named("KVM_SET_VCPU_EVENTS"))?;
        if self.vm.kernel_lapic() {
            self.fd.set_mp_state(regs::mp_state(c)).map_err(named("KVM_SET_MP_STATE"))?;
        }
        Ok(())
    }

    /// Begins the delivery of an external interrupt that the guest can take. From then on it is part of the vCPU's state.
    pub(crate) fn deliver(&self, vector: u8) -> Result<(), (&'static str, kvm_ioctls::Error)> {
        let named = |what| move |e| (what, e);
        if !self.vm.kernel_lapic() {
            return ioctl::interrupt(&self.fd, vector).map_err(named("KVM_INTERRUPT"));
        }
        // With a local APIC of KVM's that request puts the vector where nobody can look it up: a vCPU that is stopped before the
        // guest has taken it would lose it. So the event is set, and HLT, which it does not end by itself, is ended.
        self.fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).map_err(named("KVM_SET_MP_STATE"))?;
        let mut events = self.fd.get_vcpu_events().map_err(named("KVM_GET_VCPU_EVENTS"))?;
        regs::begin_interrupt(&mut events, vector);
        self.fd.set_vcpu_events(&events).map_err(named("KVM_SET_VCPU_EVENTS"))
    }

    /// Takes the registers from KVM. Without `io` guest time goes on, and the TSC stays in KVM.
    pub(crate) fn fetch(&mut self, io: Option<&dyn CpuIo>) {
        if self.at == Where::Kvm {
            if let Err((what, e)) = self.fetch_all() {
                self.lost = Some(at(what)(e));
            }
            if !self.vm.kernel_lapic() {
                (self.cpu.halted, self.cpu.wait_sipi) = (self.halted, self.wait_sipi);
            }
            self.cpu.update_mode();
            self.at = Where::Both;
        }
        let c = &mut self.cpu;
        if c.paging() && c.cr4 & cr4::PAE != 0 && c.efer & efer::LMA == 0 {
            let read = |pa| self.vm.read_u64(pa);
            c.pdpte = arch_x86::paging::load_pdptes(c.cr3, read).unwrap_or(c.pdpte);
        }
        if let Some(io) = io {
            self.fetch_tsc(io);
        }
        if self.at == Where::Both {
            self.cpu.clone_into(&mut self.seen);
        }
        if let Some(io) = io.filter(|_| std::mem::take(&mut self.nmi_waits)) {
            // Whoever goes on takes it from there: so KVM must forget it.
            io.signals().raise(Events::NMI);
            self.at = Where::Here;
        }
    }

    /// Takes the TSC from KVM.
    pub(crate) fn fetch_tsc(&mut self, io: &dyn CpuIo) {
        if !std::mem::replace(&mut self.tsc_here, true)
            && let Some(tsc) = msrs::tsc(&self.fd)
        {
            self.cpu.tsc_offset = tsc.wrapping_sub(io.tsc());
        }
    }

    fn fetch_all(&mut self) -> Result<(), (&'static str, kvm_ioctls::Error)> {
        let c = &mut self.cpu;
        let named = |what| move |e| (what, e);
        if self.vm.kernel_lapic() {
            // First, as KVM accepts INIT and start-up interrupts then: these change the registers.
            regs::set_mp_state(c, self.fd.get_mp_state().map_err(named("KVM_GET_MP_STATE"))?);
        }
        regs::set_regs(c, &self.fd.get_regs().map_err(named("KVM_GET_REGS"))?);
        regs::set_sregs(c, &self.fd.get_sregs().map_err(named("KVM_GET_SREGS"))?);
        if c.has(arch_x86::cpuid::feature::XSAVE) {
            c.xcr0 = self.fd.get_xcrs().map_err(named("KVM_GET_XCRS"))?.xcrs[0].value;
        }
        xsave::unpack(c, &self.fd.get_xsave().map_err(named("KVM_GET_XSAVE"))?);
        regs::set_debug_registers(c, &self.fd.get_debug_regs().map_err(named("KVM_GET_DEBUGREGS"))?);
        msrs::pull(&self.fd, c);
        let events = self.fd.get_vcpu_events().map_err(named("KVM_GET_VCPU_EVENTS"))?;
        regs::set_events(c, &events);
        self.nmi_waits = events.nmi.pending != 0;
        // What the last exit said may be out of date by that.
        self.fd.get_kvm_run().if_flag = (c.eflags & bit::IF != 0).into();
        Ok(())
    }
}
