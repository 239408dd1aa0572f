//! The PC's pair of 8259A interrupt controllers with edge/level control registers (8259A data sheet; 82371SB ELCR).

use super::pic_chip::{Chip, ChipState};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::{Device, IrqLine, IrqSink, LoadError, PortIo, Section, dlog};

/// Regions given to `PortBus::add`: ports 20h-21h, A0h-A1h and 4D0h-4D1h.
pub const REGION_MASTER: u32 = 0;
pub const REGION_SLAVE: u32 = 1;
pub const REGION_ELCR: u32 = 2;

/// The master's input that the slave's INT drives.
pub(super) const CASCADE: u8 = 2;
/// ELCR1 and ELCR2: IRQ 0, 1, 2, 8 and 13 are always edge triggered.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];
/// The level a chip answers with when no request is left at INTA (8259A: "default IR7").
const SPURIOUS: u8 = 7;
const VERSION: u32 = 1;

/// Master and slave; inputs 0-7 are the master's, 8-15 the slave's. Input 2 belongs to the cascade.
pub struct Pic {
    pub(super) out: IrqLine,
    pub(super) chips: [Chip; 2],
    /// Another model has the state; it is told of the inputs.
    pub(super) away: Option<Arc<dyn IrqSink>>,
}

impl Pic {
    /// `out` is the master's INT pin: the CPU's INTR, by way of the local APIC's LINT0.
    pub fn new(out: IrqLine) -> Self {
        Self { out, chips: [Chip::default(), Chip::default()], away: None }
    }

    /// Level of input `irq` (0..=15; 2 and others are ignored).
    pub fn set_input(&mut self, irq: u32, level: bool) {
        let changed = match irq {
            2 => {
                dlog!(GUEST_ERRORS, "pic: input 2 is the cascade");
                false
            }
            0..=7 => self.chips[0].set_line(irq as u8, level),
            8..=15 => self.chips[1].set_line(irq as u8 - 8, level),
            _ => return,
        };
        match &self.away {
            Some(to) if changed => to.set_irq(irq, level),
            Some(_) => {}
            None => self.update(),
        }
    }

    /// The CPU's interrupt acknowledge: accepts the request of highest priority and returns its vector. With nothing
    /// left to accept it is the vector of the master's or the slave's IR7, and no in-service bit is set.
    pub fn ack(&mut self) -> u8 {
        // 8259A: INT falls at INTA, so that an edge-triggered input behind it sees a further request as an edge.
        self.out.set(false);
        let [master, slave] = &mut self.chips;
        let vector = match master.pending() {
            Some(CASCADE) if !master.single() => {
                master.accept(CASCADE);
                let level = slave.pending();
                if let Some(l) = level {
                    slave.accept(l);
                }
                // INTA makes the slave's INT fall; a further request is then a new edge.
                master.set_line(CASCADE, false);
                slave.vector(level.unwrap_or(SPURIOUS))
            }
            Some(level) => {
                master.accept(level);
                master.vector(level)
            }
            None => master.vector(SPURIOUS),
        };
        self.update();
        vector
    }

    /// Level of the INT pin.
    pub fn intr(&self) -> bool {
        self.chips[0].pending().is_some()
    }

    /// Passes the slave's INT to the master, and the master's to the CPU.
    pub(super) fn update(&mut self) {
        let cascade = self.chips[1].pending().is_some();
        self.chips[0].set_line(CASCADE, cascade);
        self.out.set(self.intr());
    }

    fn read_byte(&mut self, region: u32, a0: bool) -> u8 {
        let value = match region {
            REGION_MASTER => self.chips[0].read(a0),
            REGION_SLAVE => {
                let polled = self.chips[1].polled();
                let v = self.chips[1].read(a0);
                if polled {
                    self.chips[0].set_line(CASCADE, false);
                }
                v
            }
            REGION_ELCR => self.chips[usize::from(a0)].elcr(),
            _ => 0xff,
        };
        self.update();
        value
    }

    fn write_byte(&mut self, region: u32, a0: bool, value: u8) {
        match region {
            REGION_MASTER => self.chips[0].write(a0, value),
            REGION_SLAVE => self.chips[1].write(a0, value),
            REGION_ELCR => self.chips[usize::from(a0)].set_elcr(value & ELCR_WRITABLE[usize::from(a0)]),
            _ => {}
        }
        self.update();
    }
}

impl PortIo for Pic {
    fn read(&mut self, region: u32, offset: u16, size: u8) -> u32 {
        let bytes = u16::from(size.min(4));
        (0..bytes).fold(0, |v, i| v | u32::from(self.read_byte(region, (offset.wrapping_add(i)) & 1 != 0)) << (8 * i))
    }

    fn write(&mut self, region: u32, offset: u16, size: u8, value: u32) {
        for i in 0..u16::from(size.min(4)) {
            self.write_byte(region, offset.wrapping_add(i) & 1 != 0, (value >> (8 * i)) as u8);
        }
    }
}

impl Device for Pic {
    fn name(&self) -> &'static str {
        "pic"
    }

    fn reset(&mut self) {
        self.chips = [Chip::default(), Chip::default()];
        self.update();
    }

    fn save(&self) -> Section {
        let [master, slave] = &self.chips;
        Section::pack(self.name(), VERSION, &PicState { master: master.state(), slave: slave.state() })
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let state: PicState = s.unpack(VERSION)?;
        let chip = |c| Chip::from_state(c).ok_or_else(|| s.bad("a value is out of range"));
        self.chips = [chip(state.master)?, chip(state.slave)?];
        self.out.set(self.intr());
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

/// The pair's 16 inputs as an interrupt sink.
pub struct PicInputs(pub Arc<Mutex<Pic>>);

impl IrqSink for PicInputs {
    fn set_irq(&self, line: u32, level: bool) {
        self.0.lock().set_input(line, level);
    }
}

#[derive(Serialize, Deserialize)]
struct PicState {
    master: ChipState,
    slave: ChipState,
}
