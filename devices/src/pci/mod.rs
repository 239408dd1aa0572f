//! PCI: configuration space, bus 0, and the ways to reach it (PCI Local Bus 3.0; PCI Express 5.0 "ECAM").

pub mod bridge;
pub mod bus;
pub mod config;

pub use bridge::Bridge;
pub use bus::{FunctionCell, PciBus, PciEcam, PciFunction, PciPorts};
pub use config::{BarKind, ConfigSpace};

/// First global system interrupt of the eight that INTx pins share.
pub const INTX_FIRST_GSI: u32 = 16;

/// Global system interrupt of a device's pin (0 is INTA). The DSDT's _PRT says the same.
pub fn intx_gsi(device: u8, pin: u8) -> u32 {
    INTX_FIRST_GSI + (u32::from(device) + u32::from(pin)) % 8
}
