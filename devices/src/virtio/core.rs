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
    #[serde(default)]
    generation: u32,
    queues: Vec<QueueState>,
    model: Value,
}

/// A part of a virtqueue, which lies at an address of its own.
#[derive(Clone, Copy, Debug)]
pub enum Part {
    Desc,
    Driver,
    Device,
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
    /// Of the configuration: another after each change by the device (§2.5).
    pub generation: u32,
    /// The driver is to be told of NEEDS_RESET.
    failed: bool,
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
            generation: 0,
            failed: false,
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

    /// The 32 features offered that `device_select` chooses.
    pub fn offered_half(&self) -> u32 {
        if self.device_select < 2 { (self.offered(false) >> (32 * self.device_select)) as u32 } else { 0 }
    }

    /// The 32 features accepted that `driver_select` chooses.
    pub fn features_half(&self) -> u32 {
        if self.driver_select < 2 { (self.features >> (32 * self.driver_select)) as u32 } else { 0 }
    }

    /// The driver accepts the 32 features that `driver_select` chooses.
    pub fn set_features_half(&mut self, value: u32) {
        match self.driver_select {
            0 => self.set_features(self.features & !0xffff_ffff | u64::from(value)),
            1 => self.set_features(self.features & 0xffff_ffff | u64::from(value) << 32),
            _ => {}
        }
    }

    /// Half of the address of a part of the selected queue.
    pub fn queue_address(&self, part: Part, high: bool) -> u32 {
        let address = self.queues.state(self.queue_select).map_or(0, |q| match part {
            Part::Desc => q.desc,
            Part::Driver => q.driver,
            Part::Device => q.device,
        });
        (address >> if high { 32 } else { 0 }) as u32
    }

    /// The driver sets half of the address of a part of the selected queue.
    pub fn set_queue_address(&mut self, part: Part, high: bool, value: u32) {
        self.queues.set(self.queue_select, |q| {
            let address = match part {
                Part::Desc => &mut q.desc,
                Part::Driver => &mut q.driver,
                Part::Device => &mut q.device,
            };
            let shift = if high { 32 } else { 0 };
            *address = *address & !(0xffff_ffff << shift) | u64::from(value) << shift;
        });
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
        self.generation = 0;
        self.failed = false;
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
            self.failed = self.status & DRIVER_OK != 0;
        }
    }

    /// Lets somebody outside act on the device; what follows from it is in `interrupts`.
    pub fn with<R>(&mut self, f: impl FnOnce(&mut M, &mut Queues) -> R) -> R {
        let r = f(&mut self.model, &mut self.queues);
        self.service();
        r
    }

    /// Vectors to raise, and ISR bits to set, since the last look.
    pub fn interrupts(&mut self) -> (Vec<u16>, u8) {
        let mut vectors = self.queues.take_fired();
        let mut isr = if vectors.is_empty() { 0 } else { ISR_QUEUE };
        let changed = self.queues.take_config_changed();
        self.generation = self.generation.wrapping_add(changed.into());
        if std::mem::take(&mut self.failed) | (changed && self.status & DRIVER_OK != 0) {
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
            generation: self.generation,
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
        (self.config_vector, self.generation) = (s.config_vector, s.generation);
        let live = self.status & DRIVER_OK != 0;
        if live {
            self.model.start(self.features);
        }
        self.queues.resume(live, self.status & NEEDS_RESET != 0, self.features);
        self.model.resume(&mut self.queues);
        Ok(())
    }
}
