//! Interrupt controllers: the 8259A pair, the I/O APIC, the local APICs and the bus between them.

pub mod apic_bus;
pub mod coprocessor;
pub mod ioapic;
mod ioapic_image;
pub mod lapic;
mod lapic_access;
mod lapic_core;
mod lapic_image;
mod lapic_regs;
mod lapic_timer;
pub mod message;
pub mod pic;
mod pic_chip;
mod pic_image;

#[cfg(test)]
mod ioapic_tests;
#[cfg(test)]
mod lapic_tests;
#[cfg(test)]
mod lapic_timer_tests;
#[cfg(test)]
mod pic_tests;

pub use apic_bus::{ApicBus, EoiSink};
pub use coprocessor::Coprocessor;
pub use ioapic::{IoApic, IoApicInputs, Routes};
pub use ioapic_image::IoApicImage;
pub use lapic::{ExtInt, Lapic, LapicConfig};
pub use lapic_image::LapicImage;
pub use pic::{Pic, PicInputs};
pub use pic_image::ChipImage;
