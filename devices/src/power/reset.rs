//! Reset control register 0CF9h and system control port A, 92h (Intel ICH: RST_CNT, PORT92; PS/2 port A).

use super::PowerSink;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::{Device, LoadError, PortIo, Section};

const STATE_VERSION: u32 = 1;

/// RST_CNT: system reset rather than CPU only. Both reset the machine here.
const RST_CNT_SYS_RST: u8 = 1 << 1;
/// RST_CNT: a rising edge of this bit resets.
const RST_CNT_RST_CPU: u8 = 1 << 2;
/// RST_CNT: power cycle.
const RST_CNT_FULL_RST: u8 = 1 << 3;

/// The register at 0CF9h. It lies inside CONFIG_ADDRESS's ports, so it belongs to the device that owns 0CF8h-0CFFh
/// (`pci::PciPorts`).
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControl(u8);

impl ResetControl {
    pub fn read(self) -> u8 {
        self.0
    }

    pub fn write(&mut self, v: u8, power: &dyn PowerSink) {
        let edge = v & !self.0 & RST_CNT_RST_CPU != 0;
        self.0 = v & (RST_CNT_SYS_RST | RST_CNT_RST_CPU | RST_CNT_FULL_RST);
        if edge {
            power.reset();
        }
    }
}

/// Port 92h: a rising edge of this bit resets the CPU.
const PORT92_INIT: u8 = 1 << 0;
/// Port 92h: address line 20 enabled.
const PORT92_A20: u8 = 1 << 1;

/// Told of changes of address line 20 (`true`: enabled). Called with the device's lock held.
pub type A20Sink = Arc<dyn Fn(bool) + Send + Sync>;

/// System control port A: fast reset and one of the two A20 switches.
pub struct Port92 {
    power: Arc<dyn PowerSink>,
    a20: A20Sink,
    /// A20 is on at power-on: the board boots kernels without firmware.
    value: u8,
}

impl Port92 {
    pub fn new(power: Arc<dyn PowerSink>, a20: A20Sink) -> Self {
        Self { power, a20, value: PORT92_A20 }
    }
}

impl Device for Port92 {
    fn name(&self) -> &'static str {
        "port92"
    }

    fn reset(&mut self) {
        self.value = PORT92_A20;
        (self.a20)(true);
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), STATE_VERSION, &self.value)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        self.value = s.unpack::<u8>(STATE_VERSION)? & (PORT92_INIT | PORT92_A20);
        (self.a20)(self.value & PORT92_A20 != 0);
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for Port92 {
    fn read(&mut self, _: u32, _: u16, _: u8) -> u32 {
        self.value.into()
    }

    fn write(&mut self, _: u32, offset: u16, _: u8, value: u32) {
        if offset != 0 {
            return;
        }
        let new = value as u8 & (PORT92_INIT | PORT92_A20);
        let changed = new ^ self.value;
        self.value = new;
        if changed & PORT92_A20 != 0 {
            (self.a20)(new & PORT92_A20 != 0);
        }
        if changed & new & PORT92_INIT != 0 {
            self.power.reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::testkit::Asked;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn saved_state_contract() {
        vm_core::testing::contract(|| Port92::new(Asked::new(), Arc::new(|_| {})), 1, 2);
    }

    #[test]
    fn cf9_resets_on_the_rising_edge_only() {
        let asked = Asked::new();
        let mut r = ResetControl::default();
        r.write(0x02, &*asked);
        assert!(asked.take().is_empty());
        r.write(0x06, &*asked);
        r.write(0x06, &*asked);
        assert_eq!(asked.take(), ["reset"]);
        assert_eq!(r.read(), 0x06);
    }

    #[test]
    fn port_92_switches_a20_and_resets() {
        let asked = Asked::new();
        let a20 = Arc::new(AtomicBool::new(true));
        let wire = a20.clone();
        let mut p = Port92::new(asked.clone(), Arc::new(move |on| wire.store(on, Ordering::SeqCst)));
        assert_eq!(p.read(0, 0, 1), 2);
        p.write(0, 0, 1, 0);
        assert!(!a20.load(Ordering::SeqCst));
        p.write(0, 0, 1, 3);
        assert!(a20.load(Ordering::SeqCst));
        assert_eq!(asked.take(), ["reset"]);
    }
}
