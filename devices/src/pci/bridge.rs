//! The two functions that every board has: host bridge 0:0.0 and ISA bridge 0:1.0.
//!
//! The identities are those of Intel's Q35 memory controller and of the PIIX4's ISA bridge: no operating system attaches
//! a driver or quirk to them that needs registers beyond the header.

use super::bus::PciFunction;
use super::config::ConfigSpace;
use vm_core::{Device, LoadError, Pa, Section};

const STATE_VERSION: u32 = 1;

/// Q35 MCH: enhanced configuration base; bit 0 enables, bits 2:1 = 0 mean 256 buses.
const PCIEXBAR: u16 = 0x60;

/// A bridge without behaviour of its own.
pub struct Bridge {
    name: &'static str,
    config: ConfigSpace,
}

impl Bridge {
    /// Host bridge. `ecam` is where the ECAM window lies, shown in PCIEXBAR.
    pub fn host(ecam: Option<Pa>) -> Self {
        let mut config = ConfigSpace::new(0x8086, 0x29c0, 0x06_00_00, 0x02);
        config.set(PCIEXBAR, &ecam.map_or(0, |pa| pa.0 | 1).to_le_bytes());
        Self { name: "pci-host-bridge", config }
    }

    /// ISA bridge: behind it are the board's port devices.
    pub fn isa() -> Self {
        Self { name: "pci-isa-bridge", config: ConfigSpace::new(0x8086, 0x7110, 0x06_01_00, 0x02) }
    }
}

impl PciFunction for Bridge {
    fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        self.config.read(offset, size)
    }

    fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        self.config.write(offset, size, value);
    }
}

impl Device for Bridge {
    fn name(&self) -> &'static str {
        self.name
    }

    fn reset(&mut self) {
        self.config.reset();
    }

    fn save(&self) -> Section {
        Section::pack(self.name, STATE_VERSION, &self.config.bytes())
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let bytes: Vec<u8> = s.unpack(STATE_VERSION)?;
        if self.config.restore(&bytes) { Ok(()) } else { Err(s.bad("configuration space of the wrong size")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_state_contract() {
        vm_core::testing::contract(|| Bridge::host(Some(Pa(0xb000_0000))), 1, 256);
        vm_core::testing::contract(Bridge::isa, 1, 256);
    }

    #[test]
    fn state_survives_and_reset_restores() {
        let mut b = Bridge::host(Some(Pa(0xb000_0000)));
        let fresh = b.save();
        for off in 0..=255 {
            b.config_write(off, 1, 0xff);
        }
        assert_eq!((b.config_read(4, 2), b.config_read(0x60, 4)), (0x547, 0xb000_0001));
        let saved = b.save();
        let mut c = Bridge::host(Some(Pa(0xb000_0000)));
        c.load(&saved).unwrap();
        assert_eq!(c.save(), saved);
        b.reset();
        assert_eq!(b.save(), fresh);
        assert!(b.load(&Section::pack("pci-host-bridge", 1, &vec![0u8; 3])).is_err());
    }
}
