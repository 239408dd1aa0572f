//! PCI of the board: bus, bridges, and the devices that the command line plugs in.

use super::memory::ECAM;
use super::storage;
use super::virtio::{self, Bus, Look, Placed};
use super::wires::Wires;
use super::{BoardError, Builder, ECAM_BUSES, Outside};
use crate::options::{MachineConfig, MachineKind, PciSlot};
use devices::fw::acpi;
use devices::pci::{Bridge, Pam, PciBus, PciEcam, PciPorts, PciWires, Smm};
use devices::virtio::{Access, Balloon, Console, Model, PciOptions, VirtioPci};
use parking_lot::Mutex;
use std::sync::Arc;
use vm_core::{DeviceCell, Dma, MemMap, MsiSink};

/// Takes note of the ends of a controller's jobs.
pub type Service = Box<dyn Fn() + Send + Sync>;
/// Gives a network card's address. Takes the card's lock: after it nobody is at work that began before.
pub type Card = Box<dyn Fn() -> [u8; 6] + Send + Sync>;

/// Where the ISA bridge is: as in QEMU.
pub fn isa_device(kind: MachineKind) -> u8 {
    match kind {
        MachineKind::Pc => 1,
        MachineKind::Q35 => 0x1f,
        // There is none.
        MachineKind::Microvm => 0,
    }
}

pub fn add_bus(b: &mut Builder, config: MachineConfig, out: &Outside, map: &MemMap) -> Result<Arc<PciBus>, BoardError> {
    let bus = PciBus::new();
    let pam = map.shadow().map(|shadow| Pam { shadow: shadow.clone(), changed: out.remap.clone() });
    let smm = map.smram().map(|smram| Smm { smram: smram.clone(), end: super::memory::sizes(map).0, changed: out.remap.clone() });
    let host = Arc::new(Mutex::new(Bridge::host(Some(ECAM), pam, smm)));
    let isa = Arc::new(Mutex::new(match config.kind {
        MachineKind::Pc => Bridge::piix(),
        MachineKind::Q35 | MachineKind::Microvm => Bridge::ich9(acpi::PM1A_EVT),
    }));
    bus.add(0, 0, host.clone());
    bus.add(isa_device(config.kind), 0, isa.clone());
    b.devices.extend([host as DeviceCell, isa]);
    b.ports(&Arc::new(Mutex::new(PciPorts::new(bus.clone(), out.power.clone()))), &[(0xcf8, 8, 0)])?;
    b.mmio(&Arc::new(Mutex::new(PciEcam::new(bus.clone()))), ECAM, ECAM_BUSES * devices::pci::bus::ECAM_BUS_SIZE);
    b.ports.set_rest(bus.clone());
    b.mmio.set_rest(bus.clone());
    Ok(bus)
}

/// What a PCI device of the board is made with.
pub struct Slots<'a> {
    pub bus: Arc<PciBus>,
    pub wires: &'a Wires,
    pub msi: Arc<dyn MsiSink>,
    pub dma: Dma,
    /// Bytes of RAM.
    pub ram: u64,
}

impl Slots<'_> {
    /// The wires of a device.
    pub(super) fn wires(&self, device: u8) -> PciWires {
        let (intx, line) = self.wires.pci(device);
        PciWires { intx, msi: self.msi.clone(), dma: self.dma.clone(), line }
    }

    /// Interrupt line `n` of ISA's.
    pub(super) fn isa(&self, n: u32) -> vm_core::IrqLine {
        self.wires.isa(n)
    }

    /// Device and function of a slot, and its wires.
    fn take(&self, name: &'static str, slot: &PciSlot) -> Result<(u8, u8, PciWires), BoardError> {
        let (device, function) = match slot.addr {
            Some(at) => at,
            None => (self.bus.free_device().filter(|d| *d < 31).ok_or(BoardError::NoSlot(name))?, 0),
        };
        if !self.bus.is_free(device, function) {
            return Err(BoardError::SlotTaken(name, device, function));
        }
        Ok((device, function, self.wires(device)))
    }
}

impl Bus for Slots<'_> {
    fn ram(&self) -> u64 {
        self.ram
    }

    fn place<M: Model>(
        &mut self,
        b: &mut Builder,
        name: &'static str,
        slot: &PciSlot,
        model: M,
    ) -> Result<Placed<M>, BoardError> {
        let (device, function, wires) = self.take(name, slot)?;
        let options = PciOptions { legacy: slot.legacy, modern: slot.modern, vectors: slot.vectors };
        let cell = VirtioPci::new_shared(model, wires, options);
        self.bus.add(device, function, cell.clone());
        b.devices.push(cell.clone());
        let (access, seen) = (VirtioPci::access(&cell), cell.clone());
        let look: Look<M> = Box::new(move |f| f(seen.lock().model()));
        Ok(Placed { access, look, service: Box::new(move || cell.lock().service()), at: Some((device, function)) })
    }
}

/// What has been added to the bus.
#[derive(Default)]
pub struct Added {
    pub storage: Vec<Service>,
    pub cards: Vec<Card>,
    pub consoles: Vec<Access<Console>>,
    pub balloon: Option<Access<Balloon>>,
    /// Boot indexes, and Open Firmware paths of what has them.
    pub order: Vec<(u32, String)>,
}

/// Adds the PCI devices among `out.devices`.
pub fn add_devices(b: &mut Builder, kind: MachineKind, out: &Outside, slots: &mut Slots) -> Result<Added, BoardError> {
    let mut added = Added::default();
    added.order = storage::add_ide(b, kind, out, slots, &mut added)?;
    out.devices.iter().try_for_each(|(spec, _)| virtio::add(b, spec, out, slots, &mut added))?;
    added.order.sort();
    Ok(added)
}
