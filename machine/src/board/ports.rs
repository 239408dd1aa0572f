//! The port bus while it is filled: two devices on one port are an error of the command line, not of the program.

use super::BoardError;
use std::sync::Arc;
use vm_core::bus::Subtractive;
use vm_core::{DeviceCell, PortBus};

struct Claim {
    name: &'static str,
    start: u32,
    end: u32,
}

#[derive(Default)]
pub struct Ports {
    bus: PortBus,
    claims: Vec<Claim>,
}

impl Ports {
    /// Gives `len` ports from `start` on to a device.
    pub fn add(&mut self, name: &'static str, start: u16, len: u16, region: u32, cell: DeviceCell) -> Result<(), BoardError> {
        let claim = Claim { name, start: start.into(), end: u32::from(start) + u32::from(len) };
        if claim.end > 0x1_0000 {
            return Err(BoardError::PortsBeyondEnd(name));
        }
        if let Some(old) = self.claims.iter().find(|c| c.start < claim.end && claim.start < c.end) {
            return Err(BoardError::PortClash { new: name, old: old.name, port: claim.start.max(old.start) as u16 });
        }
        self.claims.push(claim);
        self.bus.add(start, len, region, cell);
        Ok(())
    }

    /// Sends what nobody claims there.
    pub fn set_rest(&mut self, rest: Arc<dyn Subtractive>) {
        self.bus.set_rest(rest);
    }

    pub fn into_bus(self) -> PortBus {
        self.bus
    }
}
