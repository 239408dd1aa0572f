//! The device side of the waist. A device is an island: it gets wires, clock and host back end in `new`, and is then
//! driven only through these traits.

use crate::saved::{LoadError, Section};

/// A device model. Optional capabilities are asked for by accessor; a device that returns `None` does not have one.
pub trait Device: Send {
    /// Name of the device, also the name of its section in saved state. Unique within a machine.
    fn name(&self) -> &'static str;
    /// Power-on state: equal to that of a fresh device.
    fn reset(&mut self);
    fn save(&self) -> Section;
    /// Replaces the state. On error the device is unchanged.
    fn load(&mut self, s: &Section) -> Result<(), LoadError>;
    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        None
    }
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        None
    }
}

/// A device that keeps nothing between accesses: it has nothing to reset, and its section of saved state is empty.
pub trait Stateless: Send {
    /// As `Device::name`.
    const NAME: &'static str;
    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        None
    }
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        None
    }
}

/// Version of the empty section.
const STATELESS_VERSION: u32 = 1;

impl<D: Stateless> Device for D {
    fn name(&self) -> &'static str {
        D::NAME
    }
    fn reset(&mut self) {}
    fn save(&self) -> Section {
        Section::pack(D::NAME, STATELESS_VERSION, &())
    }
    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        s.unpack(STATELESS_VERSION)
    }
    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Stateless::ports(self)
    }
    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Stateless::mmio(self)
    }
}

/// I/O port access. `offset` counts from the first port of the range that was registered; `size` is 1, 2 or 4 bytes.
/// `region` is the number given at registration, for devices with several ranges.
pub trait PortIo {
    fn read(&mut self, region: u32, offset: u16, size: u8) -> u32;
    fn write(&mut self, region: u32, offset: u16, size: u8, value: u32);
}

/// Memory-mapped access. `offset` counts from the start of the range; `size` is 1, 2, 4 or 8 bytes, never beyond its end.
pub trait Mmio {
    fn read(&mut self, region: u32, offset: u64, size: u8) -> u64;
    fn write(&mut self, region: u32, offset: u64, size: u8, value: u64);
}
