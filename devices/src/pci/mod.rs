//! PCI: configuration space, bus 0, and the ways to reach it (PCI Local Bus 3.0; PCI Express 5.0 "ECAM").

pub mod bridge;
pub mod bus;
pub mod config;
pub mod decode;
pub mod endpoint;
pub mod master;
pub mod msix;

pub use bridge::{Bridge, Pam, Smm};
pub use bus::{FunctionCell, PciBus, PciEcam, PciFunction, PciPorts};
pub use config::{BarKind, ConfigSpace};
pub use endpoint::{Endpoint, EndpointState, PciWires};
pub use master::BusMaster;

/// First global system interrupt of the eight that INTx pins share.
pub const INTX_FIRST_GSI: u32 = 16;

/// First of the two interrupts of the 8259s that INTx pins share, for guests without the I/O APIC.
pub const PCI_ISA_FIRST: u8 = 10;

/// Interrupt of the 8259s of a device's pin (0 is INTA). The DSDT's _PRT says the same.
pub fn intx_isa(device: u8, pin: u8) -> u8 {
    PCI_ISA_FIRST + (intx_gsi(device, pin) % 2) as u8
}

/// Global system interrupt of a device's pin (0 is INTA). The DSDT's _PRT says the same.
pub fn intx_gsi(device: u8, pin: u8) -> u32 {
    INTX_FIRST_GSI + (u32::from(device) + u32::from(pin)) % 8
}
