//! Sleep and reset registers of a machine without ACPI's fixed hardware (ACPI 6.5 "Sleep Control and Status Registers",
//! "Reset Register").

use super::PowerSink;
use std::sync::Arc;
use vm_core::{Mmio, Stateless, dlog};

/// Bytes that the registers take.
pub const LEN: u64 = 3;
/// Offsets of the registers, each a byte.
pub const CONTROL: u64 = 0;
pub const STATUS: u64 = 1;
pub const RESET: u64 = 2;
/// What the reset register wants.
pub const RESET_VALUE: u8 = 0x42;
/// Sleep type of S5, the only one there is.
pub const SLP_TYP_S5: u8 = 5;

const SLP_TYP_SHIFT: u32 = 2;
const SLP_EN: u64 = 1 << 5;

/// The registers. Nothing is kept: the machine never wakes up.
pub struct Sleep {
    power: Arc<dyn PowerSink>,
}

impl Sleep {
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { power }
    }

    fn write_byte(&self, offset: u64, v: u64) {
        match offset {
            CONTROL if v & SLP_EN == 0 => {}
            CONTROL if (v >> SLP_TYP_SHIFT & 7) as u8 == SLP_TYP_S5 => self.power.power_off(),
            CONTROL => dlog!(GUEST_ERRORS, "sleep: there is no type {}", v >> SLP_TYP_SHIFT & 7),
            RESET if v as u8 == RESET_VALUE => self.power.reset(),
            RESET => dlog!(GUEST_ERRORS, "sleep: {v:#x} does not reset"),
            // Status: WAK_STS is cleared, and was never set.
            _ => {}
        }
    }
}

impl Stateless for Sleep {
    const NAME: &'static str = "sleep";

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

impl Mmio for Sleep {
    fn read(&mut self, _: u32, _: u64, _: u8) -> u64 {
        0
    }

    fn write(&mut self, _: u32, offset: u64, size: u8, value: u64) {
        (0..u64::from(size)).for_each(|i| self.write_byte(offset.wrapping_add(i), value >> (8 * i) & 0xff));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::testkit::Asked;

    #[test]
    fn saved_state_contract() {
        vm_core::testing::contract(|| Sleep::new(Asked::new()), 1, LEN);
    }

    #[test]
    fn s5_and_reset_are_asked_for_by_their_values_alone() {
        let asked = Asked::new();
        let mut d = Sleep::new(asked.clone());
        d.write(0, CONTROL, 1, 5 << 2);
        d.write(0, CONTROL, 1, 1 << 5 | 3 << 2);
        d.write(0, RESET, 1, 6);
        assert!(asked.take().is_empty());
        d.write(0, CONTROL, 1, 1 << 5 | 5 << 2);
        d.write(0, RESET, 1, 0x42);
        assert_eq!(asked.take(), ["power off", "reset"]);
        assert_eq!(d.read(0, STATUS, 1), 0);
    }
}
