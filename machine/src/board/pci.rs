//! PCI of the board: bus, bridges, and the devices that the command line plugs in.

use super::memory::ECAM;
use super::wires::Wires;
use super::{BoardError, Builder, ECAM_BUSES, Outside};
use crate::options::{DeviceSpec, PciSlot};
use devices::block::Disk;
use devices::net::{Absent, NetBackend};
use devices::pci::{Bridge, PciBus, PciEcam, PciPorts, PciWires};
use devices::virtio::blk::MAX_QUEUES;
use devices::virtio::{Blk, BlkConfig, Net, NetConfig, PciOptions, Rng, VirtioPci};
use parking_lot::Mutex;
use std::sync::Arc;
use vm_core::{DeviceCell, Dma, MsiSink};

/// A disk, which must stand still while the machine does.
pub type SharedBlk = Arc<Mutex<VirtioPci<Blk>>>;
/// A network card, which must stand still while the machine does.
pub type SharedNet = Arc<Mutex<VirtioPci<Net>>>;

pub fn add_bus(b: &mut Builder, out: &Outside) -> Result<Arc<PciBus>, BoardError> {
    let bus = PciBus::new();
    let host = Arc::new(Mutex::new(Bridge::host(Some(ECAM))));
    let isa = Arc::new(Mutex::new(Bridge::isa()));
    bus.add(0, 0, host.clone());
    bus.add(1, 0, isa.clone());
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
}

impl Slots<'_> {
    /// Device and function of a slot, and its wires.
    fn take(&self, name: &'static str, slot: &PciSlot) -> Result<(u8, u8, PciWires), BoardError> {
        let (device, function) = match slot.addr {
            Some(at) => at,
            None => (self.bus.free_device().filter(|d| *d < 31).ok_or(BoardError::NoSlot(name))?, 0),
        };
        if !self.bus.is_free(device, function) {
            return Err(BoardError::SlotTaken(name, device, function));
        }
        let (intx, line) = self.wires.pci(device);
        Ok((device, function, PciWires { intx, msi: self.msi.clone(), dma: self.dma.clone(), line }))
    }
}

fn virtio_options(slot: &PciSlot) -> PciOptions {
    PciOptions { legacy: slot.legacy, modern: slot.modern, vectors: slot.vectors }
}

/// Adds the PCI devices among `out.devices`; gives the disks and the network cards.
pub fn add_devices(b: &mut Builder, out: &Outside, slots: &Slots) -> Result<(Vec<SharedBlk>, Vec<SharedNet>), BoardError> {
    let (mut disks, mut nets) = (Vec::new(), Vec::new());
    for (spec, _) in &out.devices {
        match spec {
            DeviceSpec::VirtioBlk { drive, serial, queues, queue_size, slot } => {
                let (device, function, wires) = slots.take("virtio-blk-pci", slot)?;
                let disk: Arc<dyn Disk> = out.disks.get(drive).cloned().ok_or_else(|| BoardError::NoDrive(drive.clone()))?;
                let queues = queues.unwrap_or(out.cpus.len() as u16).clamp(1, MAX_QUEUES);
                let config = BlkConfig { serial: serial.clone(), queues, queue_size: *queue_size };
                let cell = VirtioPci::new_shared(Blk::new(disk, config), wires, virtio_options(slot));
                slots.bus.add(device, function, cell.clone());
                b.devices.push(cell.clone());
                disks.push(cell);
            }
            DeviceSpec::VirtioRng { slot } => {
                let (device, function, wires) = slots.take("virtio-rng-pci", slot)?;
                let cell = VirtioPci::new_shared(Rng::new(Box::new(host_random)), wires, virtio_options(slot));
                slots.bus.add(device, function, cell.clone());
                b.devices.push(cell);
            }
            DeviceSpec::VirtioNet { netdev, mac, rx_queue, tx_queue, slot } => {
                let (device, function, wires) = slots.take("virtio-net-pci", slot)?;
                let backend: Arc<dyn NetBackend> = match netdev {
                    Some(id) => out.nets.get(id).cloned().ok_or_else(|| BoardError::NoNetdev(id.clone()))?,
                    None => Arc::new(Absent { offloads: true }),
                };
                let config = NetConfig { mac: *mac, rx_queue: *rx_queue, tx_queue: *tx_queue };
                let cell = VirtioPci::new_shared(Net::new(backend, config), wires, virtio_options(slot));
                slots.bus.add(device, function, cell.clone());
                b.devices.push(cell.clone());
                nets.push(cell);
            }
            DeviceSpec::IsaDebugExit { .. } | DeviceSpec::IsaDebugcon { .. } => {}
        }
    }
    Ok((disks, nets))
}

/// Random bytes of the host's.
fn host_random(buf: &mut [u8]) {
    let mut at = 0;
    while at < buf.len() {
        match rustix::rand::getrandom(&mut buf[at..], rustix::rand::GetRandomFlags::empty()) {
            Ok(n) => at += n,
            // It may be interrupted; other errors there are none of.
            Err(_) => std::thread::yield_now(),
        }
    }
}
