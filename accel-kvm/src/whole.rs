//! All interrupt controllers in KVM (`kernel-irqchip=on`): 8259s, I/O APIC and 8254 beside the local APICs, their wires, and their state in
//! KVM's own form (api.rst: KVM_CREATE_IRQCHIP, KVM_CREATE_PIT2, KVM_IRQ_LINE, KVM_GET_IRQCHIP, KVM_GET_PIT2).

use crate::chips::PINS;
use crate::vm::Vm;
use crate::{KvmError, at, ioctl};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY,
    KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_pit_config,
};
pub use kvm_bindings::{
    KVM_PIT_FLAGS_HPET_LEGACY as HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON as SPEAKER, kvm_pic_state as PicRegs,
    kvm_pit_channel_state as ChannelRegs, kvm_pit_state2 as PitRegs,
};
use kvm_ioctls::{Cap, VmFd};
use vm_core::dlog;

/// Where the I/O APIC lies on every board.
const IO_APIC: u64 = 0xfec0_0000;
/// The interrupt that KVM's 8254 raises: input 0 of the 8259s, and 2 of the I/O APIC.
const TIMER: u32 = 0;
const TIMER_PIN: u32 = 2;
/// Input 0 of the I/O APIC, to which nothing is connected on a PC.
const PIN_0: u32 = 40;
/// Input 0 of the 8259s; the others follow.
const PIC: u32 = 24;
/// Their input that the slave drives.
const CASCADE: u32 = 2;

/// An input of one of KVM's interrupt controllers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Of the 8259s, 0..=15. Input 0 is the 8254's, and goes with input 2 of the I/O APIC.
    Pic(u32),
    /// Of the I/O APIC, 0..=23.
    IoApic(u32),
}

impl Input {
    /// KVM's number for it.
    fn gsi(self) -> Option<u32> {
        match self {
            Self::Pic(0 | CASCADE) => None,
            Self::Pic(n) => (n < 16).then_some(PIC + n),
            Self::IoApic(TIMER_PIN) => Some(TIMER),
            Self::IoApic(0) => Some(PIN_0),
            Self::IoApic(n) => (n < PINS as u32).then_some(n),
        }
    }
}

/// The I/O APIC as KVM has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoApicRegs {
    pub id: u32,
    pub select: u32,
    /// Inputs that ask.
    pub asserted: u32,
    pub rte: [u64; PINS],
}

fn route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut e = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    e.u.irqchip = kvm_irq_routing_irqchip { irqchip, pin };
    e
}

/// Each input by a number of its own, but for the timer's two.
fn routes() -> Vec<kvm_irq_routing_entry> {
    let ioapic = (0..PINS as u32).filter_map(|n| Some(route(Input::IoApic(n).gsi()?, KVM_IRQCHIP_IOAPIC, n)));
    let chip = |n: u32| if n < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
    let pic = (0..16).filter_map(|n| Some(route(Input::Pic(n).gsi()?, chip(n), n % 8)));
    [route(TIMER, KVM_IRQCHIP_PIC_MASTER, 0)].into_iter().chain(ioapic).chain(pic).collect()
}

/// Before there is any vCPU.
pub(crate) fn create(fd: &VmFd) -> Result<(), KvmError> {
    let needed = [
        (Cap::Irqchip, "interrupt controllers (use kernel-irqchip=split or off)"),
        (Cap::IrqRouting, "interrupt routing (use kernel-irqchip=off)"),
        (Cap::SignalMsi, "message-signalled interrupts (use kernel-irqchip=off)"),
        (Cap::PitState2, "8254 (use kernel-irqchip=split or off)"),
    ];
    if let Some((_, what)) = needed.into_iter().find(|(cap, _)| !fd.check_extension(*cap)) {
        return Err(KvmError::Lacks(what));
    }
    fd.create_irq_chip().map_err(at("KVM_CREATE_IRQCHIP"))?;
    let table = KvmIrqRouting::from_entries(&routes()).map_err(|_| KvmError::Lacks("room for interrupt routes"))?;
    fd.set_gsi_routing(&table).map_err(at("KVM_SET_GSI_ROUTING"))
}

impl Vm {
    /// Adds an 8254, where the machine has one, with port 61h's part of it.
    pub fn create_pit(&self) -> Result<(), KvmError> {
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        self.fd().create_pit2(config).map_err(at("KVM_CREATE_PIT2"))
    }

    /// Level of an input.
    pub fn set_input(&self, input: Input, level: bool) {
        if let Some(gsi) = input.gsi()
            && let Err(e) = self.fd().set_irq_line(gsi, level)
        {
            dlog!(UNIMP, "KVM_IRQ_LINE({input:?}, {level}): {e}");
        }
    }

    /// Master and slave.
    pub fn pics(&self) -> Result<[PicRegs; 2], KvmError> {
        let one = |chip| ioctl::pic(self.fd(), chip).map_err(at("KVM_GET_IRQCHIP"));
        Ok([one(KVM_IRQCHIP_PIC_MASTER)?, one(KVM_IRQCHIP_PIC_SLAVE)?])
    }

    pub fn set_pics(&self, [master, slave]: [PicRegs; 2]) -> Result<(), KvmError> {
        let one = |chip, state| ioctl::set_pic(self.fd(), chip, state).map_err(at("KVM_SET_IRQCHIP"));
        one(KVM_IRQCHIP_PIC_MASTER, master)?;
        one(KVM_IRQCHIP_PIC_SLAVE, slave)
    }

    pub fn ioapic(&self) -> Result<IoApicRegs, KvmError> {
        ioctl::ioapic(self.fd()).map_err(at("KVM_GET_IRQCHIP"))
    }

    /// Inputs that ask by level are told to the local APICs at once.
    pub fn set_ioapic(&self, regs: &IoApicRegs) -> Result<(), KvmError> {
        ioctl::set_ioapic(self.fd(), IO_APIC, regs).map_err(at("KVM_SET_IRQCHIP"))
    }

    /// Times in it are the host's monotonic clock, ns. Counts begin anew when they are set.
    pub fn pit(&self) -> Result<PitRegs, KvmError> {
        self.fd().get_pit2().map_err(at("KVM_GET_PIT2"))
    }

    pub fn set_pit(&self, state: &PitRegs) -> Result<(), KvmError> {
        self.fd().set_pit2(state).map_err(at("KVM_SET_PIT2"))
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

    #[test]
    fn no_two_inputs_have_one_number() {
        let mut all: Vec<u32> = (0..30).flat_map(|n| [Input::Pic(n).gsi(), Input::IoApic(n).gsi()]).flatten().collect();
        let n = all.len();
        all.sort();
        all.dedup();
        // 24 of the I/O APIC, and the 8259s' without the timer and the cascade.
        assert_eq!((all.len(), n), (24 + 14, 24 + 14));
        assert_eq!(routes().len(), n + 1);
    }

    #[test]
    fn states_of_kvms_chips_come_back_as_they_went() {
        let Some((vm, _, _)) = machine_with(Irqchip::On, 64 << 10, &[0xf4]) else { return };
        vm.create_pit().expect("an 8254");
        let mut pics = vm.pics().expect("two chips");
        for (p, base) in pics.iter_mut().zip([0x30, 0x38]) {
            (p.imr, p.irq_base, p.elcr, p.priority_add, p.read_reg_select) = (0xa5, base, p.elcr_mask & 0x18, 3, 1);
        }
        vm.set_pics(pics).expect("taken");
        assert_eq!(vm.pics().expect("two chips"), pics);
        let mut io = vm.ioapic().expect("an I/O APIC");
        assert!(io.rte.iter().all(|e| e >> 16 & 1 == 1), "{io:x?}");
        (io.select, io.id, io.rte[5]) = (0x1a, 3, 0x0100_0000_0001_a945);
        vm.set_ioapic(&io).expect("taken");
        assert_eq!(vm.ioapic().expect("an I/O APIC"), io);
        let mut pit = vm.pit().expect("an 8254");
        (pit.channels[2].count, pit.channels[2].mode, pit.flags) = (777, 3, SPEAKER);
        vm.set_pit(&pit).expect("taken");
        let back = vm.pit().expect("an 8254");
        let same = ChannelRegs { count_load_time: back.channels[2].count_load_time, ..pit.channels[2] };
        assert_eq!((back.channels[2], back.flags), (same, SPEAKER));
    }

    /// The timer and a line by way of KVM's 8259s, without an exit.
    #[test]
    fn kvms_8254_and_a_line_interrupt_a_halted_guest() {
        // mov $0x34,%al; out %al,$0x43; mov $0xff,%al; out %al,$0x40; out %al,$0x40; 1: sti; hlt; jmp 1b
        let code = [0xb0, 0x34, 0xe6, 0x43, 0xb0, 0xff, 0xe6, 0x40, 0xe6, 0x40, 0xfb, 0xf4, 0xeb, 0xfc];
        // mov $7,%al; out %al,$0x80; jmp .
        for timer in [true, false] {
            let Some((vm, io, state)) = machine_with(Irqchip::On, 64 << 10, &code) else { return };
            vm.create_pit().expect("an 8254");
            io.ram.write(CODE + 0x220, &[0xb0, 7, 0xe6, 0x80, 0xeb, 0xfe]);
            let mut cpu = started(&vm, &io, state);
            let port = cpu.port().expect("a descriptor");
            let (mut lapic, _) = port.take_lapic().expect("KVM gives it");
            // LINT0: ExtINT.
            (lapic.regs[0x0f], lapic.regs[0x35]) = (0x1ff, 0x700);
            port.set_lapic(&lapic).expect("KVM takes it");
            let mut pics = vm.pics().expect("two chips");
            // The self-test's vector, by the timer's input or by 5.
            let input = if timer { 0 } else { 5 };
            (pics[0].irq_base, pics[0].imr, pics[1].imr) = (0x40 - input, !(1 << input), 0xff);
            (pics[0].auto_eoi, pics[0].init_state) = (0, 0);
            vm.set_pics(pics).expect("taken");
            if !timer {
                let vm = vm.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(50));
                    vm.set_input(Input::Pic(5), true);
                });
            }
            assert_eq!(run_bench(&mut cpu, &io, Duration::from_millis(400)), Ok(StopReason::Stopped));
            let seen: Vec<_> = io.written.lock().iter().filter(|w| w.0 == 0x80).copied().collect();
            assert_eq!(seen, [(0x80, 1, 7)], "timer {timer}");
        }
    }
}
