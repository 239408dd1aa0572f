//! Interrupt controllers: the 8259A pair, the I/O APIC, the local APICs and the bus between them.

pub mod pic;
mod pic_chip;
#[cfg(test)]
mod pic_tests;
