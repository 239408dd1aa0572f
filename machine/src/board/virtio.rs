//! Virtio devices of the board, on whatever bus it has.

use super::pci::{Added, Service};
use super::{BoardError, Builder, Outside, storage};
use crate::options::{DeviceSpec, PciSlot, SerialPort};
use devices::block::Disk;
use devices::chr::CharSink;
use devices::net::{Absent, NetBackend};
use devices::virtio::blk::MAX_QUEUES;
use devices::virtio::{
    Access, Balloon, BalloonConfig, Blk, BlkConfig, Console, Model, Net, NetConfig, P9, PortConfig, Rng, Share,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use vm_core::Clock;

/// Told how many bytes the guest has left beside the balloon.
pub type BalloonChanged = Arc<dyn Fn(u64) + Send + Sync>;

/// What these devices lead to.
#[derive(Default)]
pub struct Ends {
    /// Output of the ports of each console device, in the order of the devices and of their ports.
    pub sinks: Vec<Vec<Option<Arc<dyn CharSink>>>>,
    /// Shared folders by id.
    pub shares: BTreeMap<String, Arc<dyn Share>>,
    pub balloon: Option<BalloonChanged>,
}

/// Lets somebody look at a device's model. It takes the device's lock.
pub type Look<M> = Box<dyn Fn(&mut dyn FnMut(&M)) + Send + Sync>;

/// A device that has its place.
pub struct Placed<M> {
    pub access: Access<M>,
    pub look: Look<M>,
    pub service: Service,
    /// PCI device and function.
    pub at: Option<(u8, u8)>,
}

/// What a board puts virtio devices on.
pub trait Bus {
    /// Bytes of the guest's RAM.
    fn ram(&self) -> u64;
    /// Gives a device its place. `name`: that of `-device`, less its ending.
    fn place<M: Model>(&mut self, b: &mut Builder, name: &'static str, slot: &PciSlot, model: M)
    -> Result<Placed<M>, BoardError>;
}

/// A drive by its id.
fn disk(out: &Outside, id: &String) -> Result<Arc<dyn Disk>, BoardError> {
    out.disks.get(id).cloned().ok_or_else(|| BoardError::NoDrive(id.clone()))
}

/// A network by its id; without one there is no link.
fn network(out: &Outside, id: Option<&String>) -> Result<Arc<dyn NetBackend>, BoardError> {
    match id {
        Some(id) => out.nets.get(id).cloned().ok_or_else(|| BoardError::NoNetdev(id.clone())),
        None => Ok(Arc::new(Absent { offloads: true })),
    }
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

fn console(ports: &[SerialPort], sinks: Option<&Vec<Option<Arc<dyn CharSink>>>>, max_ports: u32) -> Console {
    let sink = |i: usize| sinks.and_then(|s| s.get(i)).cloned().flatten();
    let one = |(i, p): (usize, &SerialPort)| PortConfig { nr: p.nr, console: p.console, name: p.name.clone(), sink: sink(i) };
    Console::new(max_ports, ports.iter().enumerate().map(one).collect())
}

/// Has the guest tell of its memory again and again.
fn poll(clock: &Clock, access: Access<Balloon>, every: Duration) {
    let every = every.as_nanos() as u64;
    // Its handler keeps it: it lives as long as the clock.
    let timer = Arc::new(clock.timer("balloon"));
    let (again, now) = (timer.clone(), clock.now());
    timer.bind(move |at| {
        access(&mut |b, queues| b.request_stats(queues));
        again.arm(at + every);
    });
    timer.arm(now + every);
}

/// Adds a device, if it is one of virtio's.
pub fn add(b: &mut Builder, spec: &DeviceSpec, out: &Outside, bus: &mut impl Bus, added: &mut Added) -> Result<(), BoardError> {
    match spec {
        DeviceSpec::VirtioBlk { drive, serial, queues, queue_size, config_wce, slot, boot_index } => {
            let queues = queues.unwrap_or(out.cpus.len() as u16).clamp(1, MAX_QUEUES);
            let config = BlkConfig { serial: serial.clone(), queues, queue_size: *queue_size, config_wce: *config_wce };
            let placed = bus.place(b, "virtio-blk", slot, Blk::new(disk(out, drive)?, config))?;
            added.storage.push(placed.service);
            let path = |(device, function)| format!("{}/disk@0,0", storage::path("scsi", device, function));
            added.order.extend(boot_index.zip(placed.at.map(path)));
        }
        DeviceSpec::VirtioRng { slot } => {
            bus.place(b, "virtio-rng", slot, Rng::new(Box::new(host_random)))?;
        }
        DeviceSpec::VirtioNet { netdev, mac, rx_queue, tx_queue, slot } => {
            let config = NetConfig { mac: *mac, rx_queue: *rx_queue, tx_queue: *tx_queue };
            let look = bus.place(b, "virtio-net", slot, Net::new(network(out, netdev.as_ref())?, config))?.look;
            added.cards.push(Box::new(move || {
                let mut mac = [0; 6];
                look(&mut |card| mac = card.mac());
                mac
            }));
        }
        DeviceSpec::VirtioSerial { max_ports, ports, slot } => {
            let model = console(ports, out.virtio.sinks.get(added.consoles.len()), *max_ports);
            added.consoles.push(bus.place(b, "virtio-serial", slot, model)?.access);
        }
        DeviceSpec::VirtioBalloon { deflate_on_oom, reporting, stats, slot } => {
            let tell = out.virtio.balloon.clone();
            let changed = Box::new(move |bytes| tell.iter().for_each(|f| f(bytes)));
            let config = BalloonConfig { ram: bus.ram(), deflate_on_oom: *deflate_on_oom, reporting: *reporting };
            let access = bus.place(b, "virtio-balloon", slot, Balloon::new(config, changed))?.access;
            if let Some(every) = stats {
                poll(&out.clock, access.clone(), *every);
            }
            added.balloon = Some(access);
        }
        DeviceSpec::Virtio9p { share, tag, slot } => {
            let found = out.virtio.shares.get(share).cloned();
            let model = P9::new(tag, found.ok_or_else(|| BoardError::NoShare(share.clone()))?);
            added.storage.push(bus.place(b, "virtio-9p", slot, model)?.service);
        }
        DeviceSpec::Ide { .. } | DeviceSpec::IsaDebugExit { .. } | DeviceSpec::IsaDebugcon { .. } => {}
    }
    Ok(())
}
