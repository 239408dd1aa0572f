//! What firmware would leave in memory for an operating system.

pub mod acpi;
mod dsdt;
