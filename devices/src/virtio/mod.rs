//! Virtio 1.2: queues, what all devices share, the transports (PCI, memory-mapped), and the devices.

pub mod balloon;
pub mod blk;
pub mod console;
pub mod core;
mod legacy;
pub mod mmio;
pub mod net;
pub mod p9;
pub mod pci;
pub mod queue;
pub mod rng;
#[cfg(test)]
mod testkit;

pub use balloon::{Balloon, BalloonConfig};
pub use blk::{Blk, BlkConfig};
pub use console::{Console, PortConfig};
pub use mmio::{MmioWires, VirtioMmio};
pub use net::{Net, NetConfig};
pub use p9::{P9, Share};
pub use pci::{PciOptions, VirtioPci};
pub use queue::{Chain, Queues};
pub use rng::Rng;

use serde_json::Value;
use std::sync::Arc;

/// VIRTIO_F_NOTIFY_ON_EMPTY and VIRTIO_F_ANY_LAYOUT are for legacy drivers; the others are for all.
pub const F_ANY_LAYOUT: u64 = 1 << 27;
pub const F_INDIRECT_DESC: u64 = 1 << 28;
pub const F_EVENT_IDX: u64 = 1 << 29;
pub const F_VERSION_1: u64 = 1 << 32;

/// What a device is.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    /// Name of the section of saved state.
    pub name: &'static str,
    /// Virtio device id (virtio 1.2 §5).
    pub id: u16,
    /// PCI device id of the transitional form (§4.1.2.1).
    pub transitional: u16,
    /// PCI base class, sub-class and interface.
    pub class: u32,
}

/// A way to a device's model from outside, whatever its transport. It takes the device's lock.
pub type Access<M> = Arc<dyn Fn(&mut dyn FnMut(&mut M, &mut Queues)) + Send + Sync>;

/// A virtio device, less its transport. All calls come with the transport's lock held.
pub trait Model: Send + 'static {
    fn kind(&self) -> Kind;
    /// Greatest size of each queue, a power of two of at most 1024.
    fn queues(&self) -> Vec<u16>;
    /// Feature bits of its own.
    fn features(&self) -> u64;
    /// The driver has accepted these features and is ready.
    fn start(&mut self, features: u64) {
        let _ = features;
    }
    /// Configuration space.
    fn config(&self) -> Vec<u8>;
    /// The driver writes `data` at `offset` of it; beyond its end nothing is there.
    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }
    /// There may be something in queue `index`.
    fn kick(&mut self, index: usize, queues: &mut Queues);
    /// What was begun earlier may be done.
    fn service(&mut self, queues: &mut Queues) {
        let _ = queues;
    }
    /// Back to the start. No work goes on after it.
    fn reset(&mut self);
    fn save(&self) -> Value;
    /// Takes a saved state, which may be forged; an error's text is told. Nothing has changed then.
    fn load(&mut self, saved: &Value) -> Result<(), String>;
    /// All of the device has been loaded: what was under way goes on.
    fn resume(&mut self, queues: &mut Queues) {
        let _ = queues;
    }
    /// What is to be called when `service` has something to do. Only called without the transport's lock.
    fn set_wake(&mut self, wake: Box<dyn Fn() + Send + Sync>) {
        drop(wake);
    }
}
