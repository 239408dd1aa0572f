//! Interrupt of the coprocessor: FERR# of the processor, IRQ 13, and port F0h, which ends it and lets the processor go on by
//! IGNNE# (Intel I/O Controller Hub 9 datasheet, "COPROC_ERR"; SDM 1 appendix D.2 "Hardware Circuit").

use serde::{Deserialize, Serialize};
use vm_core::{Device, IrqLine, LoadError, PortIo, Section};

const VERSION: u32 = 1;

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct State {
    /// FERR# is asserted.
    ferr: bool,
    /// IRQ 13, until the port is written.
    irq: bool,
    /// IGNNE#, until FERR# ends.
    ignne: bool,
}

/// The gates between the processor's pins and IRQ 13.
pub struct Coprocessor {
    line: IrqLine,
    state: State,
}

impl Coprocessor {
    /// At power-on: no error. `line` is IRQ 13.
    pub fn new(line: IrqLine) -> Self {
        Self { line, state: State::default() }
    }

    /// The processor's FERR# output.
    pub fn set_ferr(&mut self, on: bool) {
        let s = &mut self.state;
        if on && !s.ferr {
            s.irq = true;
        }
        s.ferr = on;
        s.ignne &= on;
        self.line.set(self.state.irq);
    }

    /// Its IGNNE# input.
    pub fn ignne(&self) -> bool {
        self.state.ignne
    }
}

impl PortIo for Coprocessor {
    fn read(&mut self, _: u32, _: u16, _: u8) -> u32 {
        0xff
    }

    fn write(&mut self, _: u32, _: u16, _: u8, _: u32) {
        let s = &mut self.state;
        s.ignne |= s.ferr;
        s.irq = false;
        self.line.set(false);
    }
}

impl Device for Coprocessor {
    fn name(&self) -> &'static str {
        "coprocessor"
    }

    fn reset(&mut self) {
        self.state = State::default();
        self.line.set(false);
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), VERSION, &self.state)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        self.state = s.unpack(VERSION)?;
        self.line.set(self.state.irq);
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use vm_core::IrqSink;

    #[derive(Default)]
    struct Level(AtomicBool);

    impl IrqSink for Level {
        fn set_irq(&self, _: u32, level: bool) {
            self.0.store(level, Ordering::SeqCst);
        }
    }

    #[test]
    fn saved_state_contract() {
        vm_core::testing::contract(|| Coprocessor::new(IrqLine::new(Arc::new(Level::default()), 13)), 1, 1);
    }

    #[test]
    fn the_port_ends_the_interrupt_and_ferr_ends_ignne() {
        let level = Arc::new(Level::default());
        let mut c = Coprocessor::new(IrqLine::new(level.clone(), 13));
        let irq = || level.0.load(Ordering::SeqCst);
        c.write(0, 0, 1, 0);
        assert_eq!((irq(), c.ignne()), (false, false));
        c.set_ferr(true);
        assert_eq!((irq(), c.ignne()), (true, false));
        c.write(0, 0, 1, 0);
        assert_eq!((irq(), c.ignne()), (false, true));
        // Still the same error.
        c.set_ferr(true);
        assert_eq!((irq(), c.ignne()), (false, true));
        c.set_ferr(false);
        assert_eq!((irq(), c.ignne()), (false, false));
        // The interrupt stays if the error ends before the port is written.
        c.set_ferr(true);
        c.set_ferr(false);
        assert_eq!((irq(), c.ignne()), (true, false));
        c.write(0, 0, 1, 0);
        assert_eq!((irq(), c.ignne()), (false, false));
    }
}
