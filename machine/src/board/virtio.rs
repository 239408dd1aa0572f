//! Virtio consoles, the balloon and shared folders of the board.

use super::pci::{Added, Slots};
use super::{BoardError, Builder, Outside};
use crate::options::{DeviceSpec, PciSlot, SerialPort};
use devices::chr::CharSink;
use devices::virtio::{Access, Balloon, BalloonConfig, Console, Model, P9, PortConfig, Share, VirtioPci};
use parking_lot::Mutex;
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

/// Puts a device on the bus.
fn place<M: Model>(
    b: &mut Builder,
    slots: &Slots,
    name: &'static str,
    slot: &PciSlot,
    model: M,
) -> Result<Arc<Mutex<VirtioPci<M>>>, BoardError> {
    let (device, function, wires) = slots.take(name, slot)?;
    let cell = VirtioPci::new_shared(model, wires, super::pci::virtio_options(slot));
    slots.bus.add(device, function, cell.clone());
    b.devices.push(cell.clone());
    Ok(cell)
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

/// Adds one of these devices; others are left alone.
pub fn add(b: &mut Builder, spec: &DeviceSpec, out: &Outside, slots: &Slots, added: &mut Added) -> Result<(), BoardError> {
    match spec {
        DeviceSpec::VirtioSerial { max_ports, ports, slot } => {
            let model = console(ports, out.virtio.sinks.get(added.consoles.len()), *max_ports);
            let cell = place(b, slots, "virtio-serial-pci", slot, model)?;
            added.consoles.push(VirtioPci::access(&cell));
        }
        DeviceSpec::VirtioBalloon { deflate_on_oom, reporting, stats, slot } => {
            let tell = out.virtio.balloon.clone();
            let changed = Box::new(move |bytes| tell.iter().for_each(|f| f(bytes)));
            let config = BalloonConfig { ram: slots.ram, deflate_on_oom: *deflate_on_oom, reporting: *reporting };
            let cell = place(b, slots, "virtio-balloon-pci", slot, Balloon::new(config, changed))?;
            let access = VirtioPci::access(&cell);
            if let Some(every) = stats {
                poll(&out.clock, access.clone(), *every);
            }
            added.balloon = Some(access);
        }
        DeviceSpec::Virtio9p { share, tag, slot } => {
            let found = out.virtio.shares.get(share).cloned();
            let model = P9::new(tag, found.ok_or_else(|| BoardError::NoShare(share.clone()))?);
            let cell = place(b, slots, "virtio-9p-pci", slot, model)?;
            added.storage.push(Box::new(move || cell.lock().service()));
        }
        _ => {}
    }
    Ok(())
}
