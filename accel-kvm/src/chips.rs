//! Interrupt controllers of KVM's own: local APICs, with the I/O APIC and the 8259s left to the machine ("split"; api.rst:
//! KVM_CAP_SPLIT_IRQCHIP, KVM_SIGNAL_MSI, KVM_SET_GSI_ROUTING), and eventfds for writes of the guest (KVM_IOEVENTFD).

use crate::vm::Vm;
use crate::{KvmError, at, whole};
use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::{Cap, IoEventAddress, VmFd};
use vm_core::{MsiSink, Pa, dlog};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where the interrupt controllers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Irqchip {
    /// All of them in the machine.
    #[default]
    Off,
    /// The local APICs are KVM's.
    Split,
    /// All of them are KVM's, and the 8254.
    On,
}

/// Inputs of the machine's I/O APIC.
pub const PINS: usize = 24;
/// KVM_X2APIC_API_USE_32BIT_IDS: identifiers are as in x2APIC mode in what is got and set.
const IDS_OF_32_BITS: u64 = 1;

/// Before there is any vCPU.
pub fn create(fd: &VmFd, kind: Irqchip) -> Result<(), KvmError> {
    if kind == Irqchip::Off {
        return Ok(());
    }
    if kind == Irqchip::On {
        whole::create(fd)?;
        return ids(fd);
    }
    let needed = [(Cap::SplitIrqchip, "split interrupt controllers"), (Cap::SignalMsi, "message-signalled interrupts")];
    if let Some((_, what)) = needed.into_iter().find(|(cap, _)| !fd.check_extension(*cap)) {
        return Err(KvmError::Lacks(what));
    }
    let mut cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    cap.args[0] = PINS as u64;
    fd.enable_cap(&cap).map_err(at("KVM_ENABLE_CAP(SPLIT_IRQCHIP)"))?;
    ids(fd)
}

fn ids(fd: &VmFd) -> Result<(), KvmError> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X2APIC_API, ..Default::default() };
    cap.args[0] = IDS_OF_32_BITS;
    fd.enable_cap(&cap).map_err(at("KVM_ENABLE_CAP(X2APIC_API)"))
}

impl Vm {
    /// Tells KVM which level-triggered messages the machine's I/O APIC sends (address and data by input), so that it says when the guest
    /// ends them.
    pub fn set_routes(&self, messages: &[Option<(u64, u32)>; PINS]) -> Result<(), KvmError> {
        let entry = |(pin, m): (usize, &Option<(u64, u32)>)| {
            // One that is masked gets an edge: its end is of no interest.
            let (addr, data) = m.unwrap_or((0xfee0_0000, 0));
            let mut e = kvm_irq_routing_entry { gsi: pin as u32, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            e.u.msi.address_lo = addr as u32;
            e.u.msi.address_hi = (addr >> 32) as u32;
            e.u.msi.data = data;
            e
        };
        let entries: Vec<_> = messages.iter().enumerate().map(entry).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| KvmError::Lacks("room for interrupt routes"))?;
        self.fd().set_gsi_routing(&table).map_err(at("KVM_SET_GSI_ROUTING"))
    }

    /// Writes of `value`, 4 bytes long, to `pa` reach the eventfd instead of the machine.
    pub fn doorbell(&self, pa: Pa, value: u32) -> Result<EventFd, KvmError> {
        let fd = EventFd::new(EFD_NONBLOCK).map_err(|e| KvmError::Ioctl("eventfd", kvm_ioctls::Error::from(e)))?;
        self.fd().register_ioevent(&fd, &IoEventAddress::Mmio(pa.0), value).map_err(at("KVM_IOEVENTFD"))?;
        Ok(fd)
    }
}

#[cfg(test)]
impl Vm {
    /// Nanoseconds that a message takes by request, and by an irqfd.
    pub(crate) fn time_messages(&self, n: u32) -> Result<(u128, u128), KvmError> {
        let message = (0xfee0_0000, 0x4040);
        let mut all = [None; PINS];
        all[0] = Some(message);
        self.set_routes(&all)?;
        let fd = EventFd::new(0).map_err(|e| KvmError::Ioctl("eventfd", kvm_ioctls::Error::from(e)))?;
        self.fd().register_irqfd(&fd, 0).map_err(at("KVM_IRQFD"))?;
        let time = |f: &dyn Fn()| {
            let began = std::time::Instant::now();
            (0..n).for_each(|_| f());
            began.elapsed().as_nanos() / u128::from(n.max(1))
        };
        Ok((time(&|| self.send_msi(message.0, message.1)), time(&|| drop(fd.write(1)))))
    }
}

impl MsiSink for Vm {
    fn send_msi(&self, addr: u64, data: u32) {
        let msi = kvm_msi { address_lo: addr as u32, address_hi: (addr >> 32) as u32, data, ..Default::default() };
        if let Err(e) = self.fd().signal_msi(msi) {
            dlog!(GUEST_ERRORS, "KVM: message {data:#x} to {addr:#x}: {e}");
        }
    }
}
