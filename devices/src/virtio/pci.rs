//! Virtio over PCI (virtio 1.2 §4.1): modern registers in memory behind capabilities, and the legacy ones of transitional
//! devices in I/O space.

use super::core::{Core, CoreState, ISR_QUEUE, Part};
use super::legacy::{self, Then};
use super::queue::NO_VECTOR;
use super::{Access, Model, Queues};
use crate::pci::bus::PciFunction;
use crate::pci::decode::Decoder;
use crate::pci::endpoint::{Endpoint, EndpointState, MSIX_BAR, PciWires};
use crate::pci::{BarKind, ConfigSpace};
use crate::waking;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::{Device, LoadError, Mmio, Section, dlog};

const STATE_VERSION: u32 = 1;
const VENDOR: u16 = 0x1af4;
/// Device id of modern devices, less the virtio id.
const MODERN_BASE: u16 = 0x1040;

const LEGACY_BAR: u32 = 0;
const MODERN_BAR: u32 = 4;
/// Layout of the modern BAR, a page for each structure.
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MODERN_SIZE: u64 = 0x4000;
/// Bytes between the notification registers of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;

/// Capability: vendor-specific; then its length and type (§4.1.4).
const CAP_VENDOR: u8 = 9;
const TYPE_COMMON: u8 = 1;
const TYPE_NOTIFY: u8 = 2;
const TYPE_ISR: u8 = 3;
const TYPE_DEVICE: u8 = 4;
const TYPE_PCI: u8 = 5;

/// Offset of the region of configuration space among those of `Mmio`, which tests reach all registers by.
const CONFIG_REGION: u32 = 7;

/// How a device shows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciOptions {
    /// Legacy registers and device id.
    pub legacy: bool,
    /// Modern registers.
    pub modern: bool,
    /// MSI-X vectors; `None`: one for each queue and one for changes of the configuration.
    pub vectors: Option<u16>,
}

impl Default for PciOptions {
    fn default() -> Self {
        Self { legacy: true, modern: true, vectors: None }
    }
}

#[derive(Serialize, Deserialize)]
struct State {
    pci: EndpointState,
    virtio: CoreState,
}

/// A virtio device in a PCI slot.
pub struct VirtioPci<M> {
    endpoint: Endpoint,
    core: Core<M>,
    options: PciOptions,
    name: &'static str,
    /// Offset of the capability that reaches the BARs by configuration accesses (§4.1.4.9).
    window: u16,
}

impl<M: Model> VirtioPci<M> {
    pub fn new(model: M, wires: PciWires, options: PciOptions) -> Self {
        let kind = model.kind();
        let (device, revision) = if options.legacy { (kind.transitional, 0) } else { (MODERN_BASE + kind.id, 1) };
        let mut config = ConfigSpace::new(VENDOR, device, kind.class, revision);
        config.set(0x2c, &VENDOR.to_le_bytes());
        config.set(0x2e, &kind.id.to_le_bytes());
        if options.legacy {
            config.add_bar(LEGACY_BAR as usize, BarKind::Io, legacy::SIZE);
        }
        if options.modern {
            config.add_bar(MODERN_BAR as usize, BarKind::Memory64, MODERN_SIZE);
        }
        let queues = model.queues().len() as u16;
        let mut endpoint = Endpoint::new(config, wires, options.vectors.unwrap_or(queues + 1));
        let window = if options.modern { add_capabilities(&mut endpoint) } else { 0 };
        let core = Core::new(model, endpoint.master().clone());
        Self { endpoint, core, options, name: kind.name, window }
    }

    /// As `new`, for models whose work is done by other threads.
    pub fn new_shared(model: M, wires: PciWires, options: PciOptions) -> Arc<Mutex<Self>> {
        waking::shared(Self::new(model, wires, options), |d, wake| d.core.model.set_wake(wake), Self::service)
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

    #[cfg(test)]
    pub(super) fn core_queue_max(&self, queue: usize) -> u16 {
        self.core.queues.max(queue as u16)
    }

    pub fn model_mut(&mut self) -> &mut M {
        &mut self.core.model
    }

    fn deliver(&mut self) {
        let (vectors, isr) = self.core.interrupts();
        if self.endpoint.msix_enabled() {
            vectors.into_iter().for_each(|v| self.endpoint.raise(v));
        } else if isr != 0 {
            self.core.isr |= isr;
            self.endpoint.set_intx(true);
        }
    }

    fn read_isr(&mut self) -> u64 {
        self.endpoint.set_intx(false);
        std::mem::take(&mut self.core.isr).into()
    }

    /// A vector that there is, or none.
    fn vector(&self, v: u16) -> u16 {
        if v < self.endpoint.vectors() { v } else { NO_VECTOR }
    }

    fn set_status(&mut self, value: u8, legacy: bool) {
        if value == 0 {
            self.core.reset();
            self.endpoint.set_intx(false);
        } else {
            self.core.set_status(value, legacy);
        }
    }

    fn common_read(&self, offset: u64) -> u64 {
        let c = &self.core;
        let q = c.queues.state(c.queue_select);
        if let Some((part, high)) = queue_part(offset) {
            return c.queue_address(part, high).into();
        }
        match offset {
            0x00 => c.device_select.into(),
            0x04 => c.offered_half().into(),
            0x08 => c.driver_select.into(),
            0x0c => c.features_half().into(),
            0x10 => c.config_vector.into(),
            0x12 => c.queues.len() as u64,
            0x14 => c.status().into(),
            0x15 => (c.generation as u8).into(),
            0x16 => c.queue_select.into(),
            0x18 => q.map_or(0, |q| q.size.into()),
            0x1a => q.map_or(NO_VECTOR.into(), |q| q.vector.into()),
            0x1c => q.map_or(0, |q| q.enabled.into()),
            0x1e => c.queue_select.into(),
            _ => 0,
        }
    }

    fn common_write(&mut self, offset: u64, value: u64) {
        let select = self.core.queue_select;
        let vector = self.vector(value as u16);
        let c = &mut self.core;
        if let Some((part, high)) = queue_part(offset) {
            return c.set_queue_address(part, high, value as u32);
        }
        match offset {
            0x00 => c.device_select = value as u32,
            0x08 => c.driver_select = value as u32,
            0x0c => c.set_features_half(value as u32),
            0x10 => c.config_vector = vector,
            0x14 => self.set_status(value as u8, false),
            0x16 => c.queue_select = value as u16,
            0x18 => c.queues.set(select, |q| q.size = value as u16),
            0x1a => c.queues.set(select, |q| q.vector = vector),
            0x1c if value & 1 != 0 => c.queues.enable(select),
            _ => dlog!(GUEST_ERRORS, "{}: write of {value:#x} at {offset:#x} of its common configuration", self.name),
        }
    }

    fn modern_read(&mut self, offset: u64, size: u8) -> u64 {
        match offset {
            COMMON..ISR if size == 8 => self.common_read(offset) | self.common_read(offset + 4) << 32,
            COMMON..ISR => self.common_read(offset),
            ISR => self.read_isr(),
            CONFIG..NOTIFY => self.core.config_read(offset - CONFIG, size),
            _ => 0,
        }
    }

    fn modern_write(&mut self, offset: u64, size: u8, value: u64) {
        match offset {
            COMMON..ISR if size == 8 => {
                self.common_write(offset, value);
                self.common_write(offset + 4, value >> 32);
            }
            COMMON..ISR => self.common_write(offset, value),
            CONFIG..NOTIFY => self.core.config_write(offset - CONFIG, size, value),
            NOTIFY..MODERN_SIZE => self.core.notify(((offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER)) as u16),
            _ => {}
        }
    }

    fn legacy_read(&mut self, offset: u64, size: u8) -> u64 {
        match offset {
            19 => self.read_isr(),
            _ => legacy::read(&self.core, offset, size, self.endpoint.msix_enabled()),
        }
    }

    fn legacy_write(&mut self, offset: u64, size: u8, value: u64) {
        match legacy::write(&mut self.core, offset, size, value, self.endpoint.msix_enabled()) {
            Then::Nothing => {}
            Then::Reset => self.set_status(0, true),
            Then::ConfigVector(v) => self.core.config_vector = self.vector(v),
            Then::QueueVector(v) => {
                let v = self.vector(v);
                self.core.queues.set(self.core.queue_select, |q| q.vector = v);
            }
        }
    }

    /// Bar, offset and size that the window of configuration space is set to; `None` if that is nowhere.
    fn window_target(&self) -> Option<(u32, u64, u8)> {
        let at = |offset, size| self.endpoint.config_read(self.window + offset, size);
        let (bar, offset, len) = (at(4, 1), u64::from(at(8, 4)), at(12, 4));
        let fits = matches!(bar, LEGACY_BAR | MODERN_BAR) && matches!(len, 1 | 2 | 4) && offset < MODERN_SIZE;
        (self.window != 0 && fits).then_some((bar, offset, len as u8))
    }

    fn in_window(&self, offset: u16) -> bool {
        self.window != 0 && offset >= self.window + 16 && offset < self.window + 20
    }
}

/// What register of the common configuration is half of which address of a queue.
fn queue_part(offset: u64) -> Option<(Part, bool)> {
    let part = match offset & !7 {
        0x20 => Part::Desc,
        0x28 => Part::Driver,
        0x30 => Part::Device,
        _ => return None,
    };
    offset.is_multiple_of(4).then_some((part, offset & 4 != 0))
}

/// Adds the capabilities of a modern device; gives the offset of the one that is a window.
fn add_capabilities(e: &mut Endpoint) -> u16 {
    let mut add = |kind: u8, offset: u64, len: u64, more: &[u8]| {
        let mut body = vec![16 + more.len() as u8, kind, MODERN_BAR as u8, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((len as u32).to_le_bytes());
        body.extend(more);
        e.add_capability(CAP_VENDOR, &body)
    };
    add(TYPE_COMMON, COMMON, ISR - COMMON, &[]);
    add(TYPE_ISR, ISR, CONFIG - ISR, &[]);
    add(TYPE_DEVICE, CONFIG, NOTIFY - CONFIG, &[]);
    add(TYPE_NOTIFY, NOTIFY, MODERN_SIZE - NOTIFY, &NOTIFY_MULTIPLIER.to_le_bytes());
    let window = add(TYPE_PCI, 0, 0, &[0; 4]);
    e.allow(window + 4, &[0xff]);
    e.allow(window + 8, &[0xff; 8]);
    window
}

impl<M: Model> PciFunction for VirtioPci<M> {
    fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        if self.in_window(offset)
            && let Some((bar, at, len)) = self.window_target()
        {
            let v = self.bar_read(bar, at, len) as u32;
            return v.checked_shr(8 * u32::from(offset - self.window - 16)).unwrap_or(0);
        }
        self.endpoint.config_read(offset, size)
    }

    fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        if self.in_window(offset)
            && let Some((bar, at, len)) = self.window_target()
        {
            return self.bar_write(bar, at, len, value.into());
        }
        self.endpoint.config_write(offset, size, value);
    }

    fn decoder(&self) -> Option<Arc<Decoder>> {
        Some(self.endpoint.decoder())
    }

    fn bar_read(&mut self, bar: u32, offset: u64, size: u8) -> u64 {
        match bar {
            LEGACY_BAR if self.options.legacy => self.legacy_read(offset, size),
            MSIX_BAR => self.endpoint.msix_read(offset, size),
            MODERN_BAR if self.options.modern => self.modern_read(offset, size),
            _ => !0,
        }
    }

    fn bar_write(&mut self, bar: u32, offset: u64, size: u8, value: u64) {
        match bar {
            LEGACY_BAR if self.options.legacy => self.legacy_write(offset, size, value),
            MSIX_BAR => self.endpoint.msix_write(offset, size, value),
            MODERN_BAR if self.options.modern => self.modern_write(offset, size, value),
            _ => {}
        }
        self.deliver();
    }
}

impl<M: Model> Device for VirtioPci<M> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn reset(&mut self) {
        self.core.reset();
        self.endpoint.reset();
    }

    fn save(&self) -> Section {
        Section::pack(self.name, STATE_VERSION, &State { pci: self.endpoint.save(), virtio: self.core.save() })
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let state: State = s.unpack(STATE_VERSION)?;
        let before = self.endpoint.save();
        // Bus mastering first: loading the device may let work go on.
        self.endpoint.load(state.pci).map_err(|e| s.bad(e))?;
        if let Err(e) = self.core.load(state.virtio) {
            let _ = self.endpoint.load(before);
            return Err(s.bad(e));
        }
        if !self.endpoint.msix_enabled() && self.core.isr & ISR_QUEUE != 0 {
            self.endpoint.set_intx(true);
        }
        self.core.service();
        self.deliver();
        Ok(())
    }

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

/// All registers by number of the BAR, and configuration space: how tests drive the device as a whole.
impl<M: Model> Mmio for VirtioPci<M> {
    fn read(&mut self, region: u32, offset: u64, size: u8) -> u64 {
        match region {
            CONFIG_REGION => self.config_read((offset & 0xffc) as u16, size.min(4)).into(),
            _ => self.bar_read(region, offset, size),
        }
    }

    fn write(&mut self, region: u32, offset: u64, size: u8, value: u64) {
        match region {
            CONFIG_REGION => self.config_write((offset & 0xffc) as u16, size.min(4), value as u32),
            _ => self.bar_write(region, offset, size, value),
        }
    }
}
