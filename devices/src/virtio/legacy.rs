//! The legacy interface of transitional devices: registers in I/O space, in the guest's byte order (virtio 1.2 §4.1.4.10,
//! §2.7.2 "Legacy Interfaces: A Note on Virtqueue Layout").

use super::core::Core;
use super::queue::QueueState;
use super::{F_VERSION_1, Model};
use vm_core::dlog;

/// Ports of the BAR: header and the device's configuration.
pub const SIZE: u64 = 128;

const GUEST_FEATURES: u64 = 4;
const QUEUE_PFN: u64 = 8;
const QUEUE_SIZE: u64 = 12;
const QUEUE_SELECT: u64 = 14;
const QUEUE_NOTIFY: u64 = 16;
const STATUS: u64 = 18;
const ISR: u64 = 19;
/// These two are there while MSI-X is enabled.
const CONFIG_VECTOR: u64 = 20;
const QUEUE_VECTOR: u64 = 22;
const CONFIG: u64 = 20;
const CONFIG_MSIX: u64 = 24;

/// Page size of QUEUE_PFN, and alignment of the used ring.
const PAGE: u64 = 4096;

/// Where a legacy queue's parts lie, from its page number.
fn layout(q: &mut QueueState, pfn: u32, size: u16) {
    let size = u64::from(size);
    q.desc = u64::from(pfn) * PAGE;
    q.driver = q.desc + 16 * size;
    q.device = (q.driver + 4 + 2 * size + 2).next_multiple_of(PAGE);
}

/// Reads a register; ISR is the transport's.
pub fn read<M: Model>(core: &Core<M>, offset: u64, size: u8, msix: bool) -> u64 {
    let queue = core.queues.state(core.queue_select);
    match offset {
        0 => core.offered(true),
        GUEST_FEATURES => core.features() & 0xffff_ffff,
        QUEUE_PFN => queue.filter(|q| q.enabled).map_or(0, |q| u64::from((q.desc / PAGE) as u32)),
        QUEUE_SIZE => core.queues.max(core.queue_select).into(),
        QUEUE_SELECT => core.queue_select.into(),
        STATUS => core.status().into(),
        CONFIG_VECTOR if msix => core.config_vector.into(),
        QUEUE_VECTOR if msix => queue.map_or(0xffff, |q| q.vector.into()),
        _ if msix && offset >= CONFIG_MSIX => core.config_read(offset - CONFIG_MSIX, size),
        _ if !msix && offset >= CONFIG => core.config_read(offset - CONFIG, size),
        _ => 0,
    }
}

/// What a write asks of the transport.
pub enum Then {
    Nothing,
    Reset,
    /// The vector of the configuration, or of the selected queue.
    ConfigVector(u16),
    QueueVector(u16),
}

/// Writes a register.
pub fn write<M: Model>(core: &mut Core<M>, offset: u64, size: u8, value: u64, msix: bool) -> Then {
    let select = core.queue_select;
    match offset {
        GUEST_FEATURES => core.set_features(value & core.offered(true) & !F_VERSION_1),
        QUEUE_PFN if value as u32 == 0 => core.queues.disable(select),
        QUEUE_PFN => {
            let max = core.queues.max(select);
            core.queues.set(select, |q| layout(q, value as u32, max));
            core.queues.enable(select);
        }
        QUEUE_SELECT => core.queue_select = value as u16,
        QUEUE_NOTIFY => core.notify(value as u16),
        STATUS if value as u8 == 0 => return Then::Reset,
        STATUS => core.set_status(value as u8, true),
        CONFIG_VECTOR if msix => return Then::ConfigVector(value as u16),
        QUEUE_VECTOR if msix => return Then::QueueVector(value as u16),
        0 | QUEUE_SIZE | ISR => {}
        _ if msix && offset >= CONFIG_MSIX => core.config_write(offset - CONFIG_MSIX, size, value),
        _ if !msix && offset >= CONFIG => core.config_write(offset - CONFIG, size, value),
        _ => dlog!(GUEST_ERRORS, "virtio: legacy write of {value:#x} at {offset:#x}"),
    }
    Then::Nothing
}
