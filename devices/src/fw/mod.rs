//! What firmware would leave in memory for an operating system.

pub mod acpi;
mod dsdt;
pub mod fw_cfg;
pub mod loader;
pub mod reduced;
