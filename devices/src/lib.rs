//! Device models: islands that get wires, clock and host back end in `new`.

pub mod block;
pub mod chr;
pub mod display;
pub mod fw;
pub mod input;
pub mod irq;
pub mod net;
pub mod pci;
pub mod power;
pub mod timer;
pub mod virtio;
mod waking;
