//! Virtio over memory-mapped registers, for machines without PCI (virtio 1.2 §4.2.2); the legacy interface (version 1) is not offered.

use super::core::{Core, CoreState, Part};
use super::{Access, Model, Queues};
use crate::pci::BusMaster;
use crate::waking;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::{Device, Dma, IrqLine, LoadError, Mmio, Section, dlog};

/// Bytes that the registers take.
pub const SIZE: u64 = 0x200;

const STATE_VERSION: u32 = 1;
/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// The same as of the PCI devices.
const VENDOR: u32 = 0x1af4;

// Registers (§4.2.2).
const MAGIC_VALUE: u64 = 0x00;
const VERSION_REG: u64 = 0x04;
const DEVICE_ID: u64 = 0x08;
const VENDOR_ID: u64 = 0x0c;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SEL: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SEL: u64 = 0x24;
const QUEUE_SEL: u64 = 0x30;
const QUEUE_NUM_MAX: u64 = 0x34;
const QUEUE_NUM: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
/// A write of its number says that there may be something in a queue.
pub const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACK: u64 = 0x64;
const STATUS: u64 = 0x70;
const QUEUE_DESC: u64 = 0x80;
const QUEUE_DRIVER: u64 = 0x90;
const QUEUE_DEVICE: u64 = 0xa0;
const SHM_SEL: u64 = 0xac;
const SHM_FIRST: u64 = 0xb0;
const SHM_LAST: u64 = 0xbc;
const CONFIG_GENERATION: u64 = 0xfc;
const CONFIG: u64 = 0x100;

/// The wires of one device: an interrupt, level-triggered, and its way to guest RAM.
pub struct MmioWires {
    pub irq: IrqLine,
    pub dma: Dma,
}

#[derive(Serialize, Deserialize)]
struct State {
    virtio: CoreState,
}

/// A virtio device at an address that the board gives it.
pub struct VirtioMmio<M> {
    core: Core<M>,
    irq: IrqLine,
    name: &'static str,
    id: u16,
}

/// What register is half of which address of a queue.
fn queue_part(offset: u64) -> Option<(Part, bool)> {
    let part = match offset & !4 {
        QUEUE_DESC => Part::Desc,
        QUEUE_DRIVER => Part::Driver,
        QUEUE_DEVICE => Part::Device,
        _ => return None,
    };
    Some((part, offset & 4 != 0))
}

impl<M: Model> VirtioMmio<M> {
    pub fn new(model: M, wires: MmioWires) -> Self {
        let kind = model.kind();
        let core = Core::new(model, BusMaster::open(wires.dma));
        Self { core, irq: wires.irq, name: kind.name, id: kind.id }
    }

    /// As `new`, for models whose work is done by other threads.
    pub fn new_shared(model: M, wires: MmioWires) -> Arc<Mutex<Self>> {
        waking::shared(Self::new(model, wires), |d, wake| d.core.model.set_wake(wake), Self::service)
    }

    /// A way to the model that does not keep the device alive.
    pub fn access(cell: &Arc<Mutex<Self>>) -> Access<M> {
        let cell = Arc::downgrade(cell);
        Arc::new(move |f| {
            if let Some(d) = cell.upgrade() {
                d.lock().with(|m, q| f(m, q));
            }
        })
    }

    /// Does what work that has been done leads to.
    pub fn service(&mut self) {
        self.core.service();
        self.deliver();
    }

    /// Lets somebody outside act on the device.
    pub fn with<R>(&mut self, f: impl FnOnce(&mut M, &mut Queues) -> R) -> R {
        let r = self.core.with(f);
        self.deliver();
        r
    }

    pub fn model(&self) -> &M {
        &self.core.model
    }

    pub fn model_mut(&mut self) -> &mut M {
        &mut self.core.model
    }

    /// Lets the interrupt follow what has happened: vectors are PCI's.
    fn deliver(&mut self) {
        let (_, isr) = self.core.interrupts();
        self.core.isr |= isr;
        self.irq.set(self.core.isr != 0);
    }

    fn register(&self, offset: u64) -> u32 {
        let c = &self.core;
        let q = c.queues.state(c.queue_select);
        match offset {
            MAGIC_VALUE => MAGIC,
            VERSION_REG => VERSION,
            DEVICE_ID => self.id.into(),
            VENDOR_ID => VENDOR,
            DEVICE_FEATURES => c.offered_half(),
            QUEUE_NUM_MAX => c.queues.max(c.queue_select).into(),
            QUEUE_READY => q.map_or(0, |q| q.enabled.into()),
            INTERRUPT_STATUS => c.isr.into(),
            STATUS => c.status().into(),
            // No shared memory: a length of ones.
            SHM_FIRST..=SHM_LAST => !0,
            CONFIG_GENERATION => c.generation,
            _ => {
                dlog!(GUEST_ERRORS, "{}: read of register {offset:#x}", self.name);
                0
            }
        }
    }

    fn set_register(&mut self, offset: u64, value: u32) {
        let c = &mut self.core;
        let select = c.queue_select;
        if let Some((part, high)) = queue_part(offset) {
            return c.set_queue_address(part, high, value);
        }
        match offset {
            DEVICE_FEATURES_SEL => c.device_select = value,
            DRIVER_FEATURES => c.set_features_half(value),
            DRIVER_FEATURES_SEL => c.driver_select = value,
            // A queue that there is none of is chosen by any number beyond their end.
            QUEUE_SEL => c.queue_select = u16::try_from(value).unwrap_or(u16::MAX),
            QUEUE_NUM => c.queues.set(select, |q| q.size = u16::try_from(value).unwrap_or(0)),
            QUEUE_READY if value & 1 != 0 => c.queues.enable(select),
            QUEUE_READY => c.queues.disable(select),
            QUEUE_NOTIFY => c.notify(u16::try_from(value).unwrap_or(u16::MAX)),
            INTERRUPT_ACK => c.isr &= !(value as u8),
            STATUS => c.set_status(value as u8, false),
            SHM_SEL => {}
            _ => dlog!(GUEST_ERRORS, "{}: write of {value:#x} to register {offset:#x}", self.name),
        }
    }
}

impl<M: Model> Mmio for VirtioMmio<M> {
    fn read(&mut self, _: u32, offset: u64, size: u8) -> u64 {
        match offset {
            CONFIG.. => self.core.config_read(offset - CONFIG, size),
            // Registers are read whole (§4.2.2.2).
            _ if size == 4 && offset.is_multiple_of(4) => self.register(offset).into(),
            _ => {
                dlog!(GUEST_ERRORS, "{}: read of {size} bytes at {offset:#x}", self.name);
                0
            }
        }
    }

    fn write(&mut self, _: u32, offset: u64, size: u8, value: u64) {
        match offset {
            CONFIG.. => self.core.config_write(offset - CONFIG, size, value),
            _ if size == 4 && offset.is_multiple_of(4) => self.set_register(offset, value as u32),
            _ => dlog!(GUEST_ERRORS, "{}: write of {size} bytes at {offset:#x}", self.name),
        }
        self.deliver();
    }
}

impl<M: Model> Device for VirtioMmio<M> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn reset(&mut self) {
        self.core.reset();
        self.irq.set(false);
    }

    fn save(&self) -> Section {
        Section::pack(self.name, STATE_VERSION, &State { virtio: self.core.save() })
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let state: State = s.unpack(STATE_VERSION)?;
        let loaded = self.core.load(state.virtio).map_err(|e| s.bad(e));
        if loaded.is_ok() {
            self.core.service();
        }
        self.deliver();
        loaded
    }

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

#[cfg(test)]
#[path = "mmio_tests.rs"]
mod tests;
