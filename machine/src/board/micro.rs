//! The board of `-machine microvm`, made for quick starts: processors, I/O APIC, serial ports, debug exit, and virtio devices in memory.
//! Addresses are those of QEMU's machine of this name. No PCI; without ACPI there are 8259s and an 8254 as well, as nothing else tells a
//! kernel of interrupts and time.

use super::virtio::{self, Bus, Look, Placed};
use super::{BoardError, Builder, Outside, Parts, Place, TSC_HZ, add_extra, add_serials, memory, new_pit};
use crate::options::{MachineConfig, MachineKind, PciSlot};
use devices::fw::reduced::Reduced;
use devices::power::sleep::{self, Sleep};
use devices::timer::pit;
use devices::virtio::Model;
use devices::virtio::mmio::{self, MmioWires, VirtioMmio};
use parking_lot::Mutex;
use std::fmt::Write as _;
use std::sync::Arc;
use vm_core::{IrqLine, Pa};

/// Sleep and reset registers.
const SLEEP: u32 = 0xfea0_0200;
/// Registers of the first virtio device; the others follow.
const VIRTIO: u32 = 0xfeb0_0000;
/// As many as have an interrupt of their own.
const SLOTS: u32 = 8;
/// Doorbells that a device has at most. Each ring looks at all, so those of a console's many ports would cost more than they save.
const BELLS: u32 = 16;
/// Interrupt of the first device: with ACPI an input of the I/O APIC, else one of ISA's, which kernels know without being told.
const GSI: u32 = 16;
const ISA: u32 = 5;

/// Are there 8259s?
pub fn has_pic(config: MachineConfig) -> bool {
    config.kind != MachineKind::Microvm || !config.acpi
}

/// Adds what the board has beyond processors and interrupt controllers.
pub fn add(b: &mut Builder, config: MachineConfig, out: &Outside, at: &Place) -> Result<Parts, BoardError> {
    let pit = has_pic(config).then(|| new_pit(out, at.wires));
    if let Some(pit) = &pit {
        b.ports(pit, &[(0x40, 4, pit::REGION_COUNTERS), (0x61, 1, pit::REGION_PORT_B)])?;
    }
    b.mmio(&Arc::new(Mutex::new(Sleep::new(out.power.clone()))), Pa(SLEEP.into()), sleep::LEN);
    let uarts = add_serials(b, out, at.wires)?;
    add_extra(b, out)?;
    let mut parts = Parts { uarts, pit, ..Parts::default() };
    let mut slots = Slots { first: if config.acpi { GSI } else { ISA }, taken: Vec::new(), at };
    out.devices.iter().try_for_each(|(spec, _)| virtio::add(b, spec, out, &mut slots, &mut parts.added))?;
    parts.slots = slots.taken;
    Ok(parts)
}

/// A virtio device: its address, its interrupt, its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    base: u32,
    number: u32,
    queues: u32,
}

/// Places of virtio devices.
struct Slots<'a> {
    /// The first one's interrupt.
    first: u32,
    taken: Vec<Slot>,
    at: &'a Place<'a>,
}

impl Bus for Slots<'_> {
    fn ram(&self) -> u64 {
        let (below, above) = memory::sizes(self.at.map);
        below + above
    }

    /// Puts a device into the next slot.
    fn place<M: Model>(&mut self, b: &mut Builder, name: &'static str, _: &PciSlot, model: M) -> Result<Placed<M>, BoardError> {
        let n = self.taken.len() as u32;
        let number = self.first + n;
        let line = |n| if n < GSI { Some(self.at.wires.isa(n)) } else { self.at.wires.gsi(n) };
        let irq: IrqLine = line(number).filter(|_| n < SLOTS).ok_or(BoardError::NoPlace(name))?;
        let base = VIRTIO + n * mmio::SIZE as u32;
        let queues = model.queues().len() as u32;
        let cell = VirtioMmio::new_shared(model, MmioWires { irq, dma: self.at.dma.clone() });
        b.mmio(&cell, Pa(base.into()), mmio::SIZE);
        self.taken.push(Slot { base, number, queues });
        let (access, seen) = (VirtioMmio::access(&cell), cell.clone());
        let look: Look<M> = Box::new(move |f| f(seen.lock().model()));
        Ok(Placed { access, look, service: Box::new(move || cell.lock().service()), at: None })
    }
}

/// What ACPI says of it.
pub fn describe(slots: &[Slot]) -> Reduced {
    let virtio = slots.iter().map(|s| (s.base, mmio::SIZE as u32, s.number)).collect();
    Reduced { sleep: SLEEP, virtio }
}

/// QueueNotify of each device, by the number of the queue.
pub fn doorbells(slots: &[Slot]) -> Vec<(Pa, u32)> {
    let of = |s: &Slot| (0..s.queues.min(BELLS)).map(|q| (Pa(u64::from(s.base) + mmio::QUEUE_NOTIFY), q)).collect::<Vec<_>>();
    slots.iter().flat_map(of).collect()
}

/// Words of a kernel's command line that say what nothing else does. `tsc_khz`: the rate of the guest's TSC.
pub fn kernel_args(config: MachineConfig, slots: &[Slot], tsc_khz: u64) -> String {
    let mut words = String::new();
    if !config.kernel_args || config.kind != MachineKind::Microvm {
        return words;
    }
    if config.acpi {
        // There is no other clock to measure it by.
        let _ = write!(words, " tsc_early_khz={tsc_khz}");
    } else {
        for Slot { base, number: irq, .. } in slots {
            let _ = write!(words, " virtio_mmio.device={}@{base:#x}:{irq}", mmio::SIZE);
        }
    }
    words
}

/// Rate of the TSC where the machine makes it.
pub const TSC_KHZ: u64 = TSC_HZ / 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_announced_once() {
        let with = |acpi, kernel_args| MachineConfig { kind: MachineKind::Microvm, acpi, hpet: false, vga: false, kernel_args };
        let slot = |base, number, queues| Slot { base, number, queues };
        assert_eq!(doorbells(&[slot(0xfeb0_0000, 5, 64)]).len(), BELLS as usize);
        let slots = [slot(0xfeb0_0000, 5, 1), slot(0xfeb0_0200, 6, 2)];
        let bells = [(Pa(0xfeb0_0050), 0), (Pa(0xfeb0_0250), 0), (Pa(0xfeb0_0250), 1)];
        assert_eq!(doorbells(&slots), bells);
        let words = " virtio_mmio.device=512@0xfeb00000:5 virtio_mmio.device=512@0xfeb00200:6";
        assert_eq!(kernel_args(with(false, true), &slots, 5), words);
        assert_eq!(kernel_args(with(true, true), &slots, 1_000_000), " tsc_early_khz=1000000");
        assert_eq!(kernel_args(with(false, false), &slots, 5), "");
        assert_eq!(describe(&[slot(0xfeb0_0000, 16, 1)]).virtio, [(0xfeb0_0000, 0x200, 16)]);
        assert!(has_pic(with(false, true)) && !has_pic(with(true, true)));
    }
}
