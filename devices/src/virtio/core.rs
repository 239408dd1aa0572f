//! What every virtio device has whatever its transport: status, feature negotiation, queues (virtio 1.2 §2, §3).

use super::queue::{NO_VECTOR, QueueState};
use super::{F_ANY_LAYOUT, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Model, Queues};
use crate::pci::BusMaster;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vm_core::dlog;

/// Device status (§2.1).
pub const DRIVER_OK: u8 = 4;
pub const FEATURES_OK: u8 = 8;
pub const NEEDS_RESET: u8 = 0x40;
const WRITABLE: u8 = 0x8f;

/// ISR status (§4.1.4.5).
pub const ISR_QUEUE: u8 = 1;
pub const ISR_CONFIG: u8 = 2;

/// Saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreState {
    status: u8,
    features: u64,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    config_vector: u16,
    isr: u8,
    queues: Vec<QueueState>,
    model: Value,
}

/// A device and its registers.
pub struct Core<M> {
    pub model: M,
    pub queues: Queues,
    status: u8,
    /// Features that the driver has accepted.
    features: u64,
    pub device_select: u32,
    pub driver_select: u32,
    pub queue_select: u16,
    pub config_vector: u16,
    pub isr: u8,
    offered: u64,
    /// A change that the driver is to be told of.
    config_changed: bool,
}

impl<M: Model> Core<M> {
    pub fn new(model: M, master: BusMaster) -> Self {
        let offered = model.features() | F_INDIRECT_DESC | F_EVENT_IDX | F_ANY_LAYOUT;
        let queues = Queues::new(model.kind(), &model.queues(), master);
        Self {
            model,
            queues,
            status: 0,
            features: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
            isr: 0,
            offered,
            config_changed: false,
        }
    }

    /// Features offered; legacy drivers know 32.
    pub fn offered(&self, legacy: bool) -> u64 {
        if legacy { self.offered & 0xffff_ffff } else { self.offered & !F_ANY_LAYOUT | F_VERSION_1 }
    }

    pub fn features(&self) -> u64 {
        self.features
    }

    /// The driver accepts features; after FEATURES_OK it is too late (§3.1.1).
    pub fn set_features(&mut self, features: u64) {
        if self.status & (FEATURES_OK | DRIVER_OK) == 0 {
            self.features = features;
        }
    }

    pub fn status(&self) -> u8 {
        self.status
    }

    /// The driver writes the device status.
    pub fn set_status(&mut self, value: u8, legacy: bool) {
        if value == 0 {
            return self.reset();
        }
        let mut new = value & WRITABLE | self.status & NEEDS_RESET;
        // Bits are only ever set but by a reset (§2.1.1).
        new |= self.status;
        if new & !self.status & FEATURES_OK != 0 && !legacy {
            let unknown = self.features & !self.offered(false);
            if unknown != 0 || self.features & F_VERSION_1 == 0 {
                dlog!(GUEST_ERRORS, "{}: features {:#x} are not what is offered", self.model.kind().name, self.features);
                new &= !FEATURES_OK;
            }
        }
        let start = new & !self.status & DRIVER_OK != 0;
        self.status = new;
        if start {
            if legacy {
                self.features &= self.offered(true);
            }
            self.model.start(self.features);
            self.queues.start(self.features);
            // What a driver put there too early.
            (0..self.queues.len()).for_each(|i| self.model.kick(i, &mut self.queues));
            self.service();
        }
    }

    /// Everything as after power-on.
    pub fn reset(&mut self) {
        self.model.reset();
        self.queues.reset();
        (self.status, self.features, self.isr) = (0, 0, 0);
        (self.device_select, self.driver_select, self.queue_select) = (0, 0, 0);
        self.config_vector = NO_VECTOR;
        self.config_changed = false;
    }

    /// The driver says that there is something in a queue.
    pub fn notify(&mut self, index: u16) {
        if usize::from(index) >= self.queues.len() || !self.queues.works() {
            dlog!(GUEST_ERRORS, "{}: queue {index} is notified and does not work", self.model.kind().name);
            return;
        }
        self.model.kick(index.into(), &mut self.queues);
        self.service();
    }

    /// Work that was begun may be done. What follows from it is in `interrupts`.
    pub fn service(&mut self) {
        self.model.service(&mut self.queues);
        if self.queues.broken() && self.status & NEEDS_RESET == 0 {
            self.status |= NEEDS_RESET;
            self.config_changed = self.status & DRIVER_OK != 0;
        }
    }

    /// Vectors to raise, and ISR bits to set, since the last look.
    pub fn interrupts(&mut self) -> (Vec<u16>, u8) {
        let mut vectors = self.queues.take_fired();
        let mut isr = if vectors.is_empty() { 0 } else { ISR_QUEUE };
        if std::mem::take(&mut self.config_changed) {
            vectors.push(self.config_vector);
            isr |= ISR_CONFIG;
        }
        vectors.retain(|v| *v != NO_VECTOR);
        (vectors, isr)
    }

    /// Reads the device's configuration; zeroes beyond its end.
    pub fn config_read(&self, offset: u64, size: u8) -> u64 {
        let bytes = self.model.config();
        let at = |i: u64| bytes.get(usize::try_from(offset.wrapping_add(i)).unwrap_or(usize::MAX)).copied().unwrap_or(0);
        (0..u64::from(size)).fold(0, |v, i| v | u64::from(at(i)) << (8 * i))
    }

    pub fn config_write(&mut self, offset: u64, size: u8, value: u64) {
        self.model.config_write(offset, &value.to_le_bytes()[..usize::from(size.min(8))]);
    }

    pub fn save(&self) -> CoreState {
        CoreState {
            status: self.status,
            features: self.features,
            device_select: self.device_select,
            driver_select: self.driver_select,
            queue_select: self.queue_select,
            config_vector: self.config_vector,
            isr: self.isr,
            queues: self.queues.save(),
            model: self.model.save(),
        }
    }

    /// Takes a saved state. On an error the device is as after reset.
    pub fn load(&mut self, s: CoreState) -> Result<(), String> {
        self.reset();
        let r = self.queues.load(s.queues).map_err(str::to_owned).and_then(|()| self.model.load(&s.model));
        if r.is_err() {
            self.reset();
            return r;
        }
        (self.status, self.features, self.isr) = (s.status & (WRITABLE | NEEDS_RESET), s.features, s.isr & 3);
        (self.device_select, self.driver_select, self.queue_select) = (s.device_select, s.driver_select, s.queue_select);
        self.config_vector = s.config_vector;
        let live = self.status & DRIVER_OK != 0;
        if live {
            self.model.start(self.features);
        }
        self.queues.resume(live, self.status & NEEDS_RESET != 0, self.features);
        self.model.resume(&mut self.queues);
        Ok(())
    }
}
