//! PCI of the board: bus, bridges, and the devices that the command line plugs in.

use super::memory::ECAM;
use super::storage;
use super::virtio;
use super::wires::Wires;
use super::{BoardError, Builder, ECAM_BUSES, Outside};
use crate::options::{DeviceSpec, MachineConfig, MachineKind, PciSlot};
use devices::block::Disk;
use devices::fw::acpi;
use devices::net::{Absent, NetBackend};
use devices::pci::{Bridge, Pam, PciBus, PciEcam, PciPorts, PciWires, Smm};
use devices::virtio::blk::MAX_QUEUES;
use devices::virtio::{Access, Balloon, Blk, BlkConfig, Console, Net, NetConfig, PciOptions, Rng, VirtioPci};
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
    pub(super) fn take(&self, name: &'static str, slot: &PciSlot) -> Result<(u8, u8, PciWires), BoardError> {
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

pub(super) fn virtio_options(slot: &PciSlot) -> PciOptions {
    PciOptions { legacy: slot.legacy, modern: slot.modern, vectors: slot.vectors }
}

/// What has been added to the bus.
#[derive(Default)]
pub struct Added {
    pub storage: Vec<Service>,
    pub cards: Vec<Card>,
    pub consoles: Vec<Access<Console>>,
    pub balloon: Option<Access<Balloon>>,
    /// Open Firmware paths of what has a boot index, in its order.
    pub bootorder: Vec<String>,
}

/// Adds the PCI devices among `out.devices`.
pub fn add_devices(b: &mut Builder, kind: MachineKind, out: &Outside, slots: &Slots) -> Result<Added, BoardError> {
    let mut added = Added::default();
    let mut order = storage::add_ide(b, kind, out, slots, &mut added)?;
    for (spec, _) in &out.devices {
        match spec {
            DeviceSpec::VirtioBlk { drive, serial, queues, queue_size, slot, boot_index } => {
                let (device, function, wires) = slots.take("virtio-blk-pci", slot)?;
                let queues = queues.unwrap_or(out.cpus.len() as u16).clamp(1, MAX_QUEUES);
                let config = BlkConfig { serial: serial.clone(), queues, queue_size: *queue_size };
                let cell = VirtioPci::new_shared(Blk::new(disk(out, drive)?, config), wires, virtio_options(slot));
                slots.bus.add(device, function, cell.clone());
                b.devices.push(cell.clone());
                added.storage.push(Box::new(move || cell.lock().service()));
                order.extend(boot_index.map(|n| (n, format!("{}/disk@0,0", storage::path("scsi", device, function)))));
            }
            DeviceSpec::VirtioRng { slot } => {
                let (device, function, wires) = slots.take("virtio-rng-pci", slot)?;
                let cell = VirtioPci::new_shared(Rng::new(Box::new(host_random)), wires, virtio_options(slot));
                slots.bus.add(device, function, cell.clone());
                b.devices.push(cell);
            }
            DeviceSpec::VirtioNet { netdev, mac, rx_queue, tx_queue, slot } => {
                let (device, function, wires) = slots.take("virtio-net-pci", slot)?;
                let config = NetConfig { mac: *mac, rx_queue: *rx_queue, tx_queue: *tx_queue };
                let cell = VirtioPci::new_shared(Net::new(backend(out, netdev.as_ref())?, config), wires, virtio_options(slot));
                slots.bus.add(device, function, cell.clone());
                b.devices.push(cell.clone());
                added.cards.push(Box::new(move || cell.lock().model().mac()));
            }
            DeviceSpec::VirtioSerial { .. } | DeviceSpec::VirtioBalloon { .. } | DeviceSpec::Virtio9p { .. } => {
                virtio::add(b, spec, out, slots, &mut added)?;
            }
            DeviceSpec::Ide { .. } | DeviceSpec::IsaDebugExit { .. } | DeviceSpec::IsaDebugcon { .. } => {}
        }
    }
    order.sort();
    added.bootorder = order.into_iter().map(|(_, path)| path).collect();
    Ok(added)
}

/// A drive by its id.
pub fn disk(out: &Outside, id: &String) -> Result<Arc<dyn Disk>, BoardError> {
    out.disks.get(id).cloned().ok_or_else(|| BoardError::NoDrive(id.clone()))
}

/// A network by its id; without one there is no link.
pub fn backend(out: &Outside, id: Option<&String>) -> Result<Arc<dyn NetBackend>, BoardError> {
    match id {
        Some(id) => out.nets.get(id).cloned().ok_or_else(|| BoardError::NoNetdev(id.clone())),
        None => Ok(Arc::new(Absent { offloads: true })),
    }
}

/// Random bytes of the host's.
pub fn host_random(buf: &mut [u8]) {
    let mut at = 0;
    while at < buf.len() {
        match rustix::rand::getrandom(&mut buf[at..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => at += n,
            // It may be interrupted; other errors there are none of.
            Err(_) => std::thread::yield_now(),
        }
    }
}
