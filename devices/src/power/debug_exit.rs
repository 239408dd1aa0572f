//! Debug exit port: a guest under test ends the program with a status of its own.

use super::PowerSink;
use std::sync::Arc;
use vm_core::{PortIo, Stateless};

/// A write of v ends the program with status (v << 1) | 1, which is never 0: the guest cannot claim a clean end.
pub struct DebugExit {
    power: Arc<dyn PowerSink>,
}

impl DebugExit {
    /// The machine registers it at a base of its choice (501h, one port or four).
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { power }
    }
}

impl Stateless for DebugExit {
    const NAME: &'static str = "debug-exit";

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for DebugExit {
    fn read(&mut self, _: u32, _: u16, _: u8) -> u32 {
        0
    }

    fn write(&mut self, _: u32, _: u16, _: u8, value: u32) {
        // A process has eight bits of exit status.
        self.power.exit(((value << 1 | 1) & 0xff) as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::testkit::Asked;

    #[test]
    fn saved_state_contract() {
        vm_core::testing::contract(|| DebugExit::new(Asked::new()), 1, 4);
    }

    #[test]
    fn status_is_odd() {
        let asked = Asked::new();
        let mut d = DebugExit::new(asked.clone());
        d.write(0, 0, 1, 0);
        d.write(0, 0, 4, 0x10);
        assert_eq!(asked.take(), ["exit 1", "exit 33"]);
    }
}
