//! I/O APIC with 24 inputs and an EOI register (82093AA data sheet; version 20h as in the ICH family).

use super::apic_bus::EoiSink;
use super::message::{Delivery, compose_msi};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::{Device, IrqSink, LoadError, Mmio, MsiSink, Section, dlog};

/// Number of inputs.
pub const PINS: usize = 24;
/// Length of the register window in bytes.
pub const MMIO_LEN: u64 = 0x1000;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOIR: u64 = 0x40;

const REG_ID: u8 = 0;
const REG_VERSION: u8 = 1;
const REG_ARBITRATION: u8 = 2;
const REG_REDIRECTION: u8 = 0x10;
/// With an EOI register.
const VERSION_EOI: u8 = 0x20;
/// Without.
const VERSION_PLAIN: u8 = 0x11;

/// Redirection entry (82093AA IOREDTBL).
pub(super) mod rte {
    pub const DELIVERY_SHIFT: u32 = 8;
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    pub const DEST_SHIFT: u32 = 56;
    /// All but delivery status, remote IRR and reserved bits.
    pub const WRITABLE: u64 = 0xff00_0000_0001_afff;
}

const SAVED_VERSION: u32 = 1;

/// Is told which messages the inputs send. Called with the I/O APIC's lock held.
pub trait Routes: Send + Sync {
    /// Input `pin` sends this message (address, data) by level, and waits for its end; `None`: it is masked, or works by edges.
    fn set(&self, pin: usize, message: Option<(u64, u32)>);
}

/// The polarity bit is kept but has no effect: inputs are logical levels, `true` is asserted.
pub struct IoApic {
    out: Arc<dyn MsiSink>,
    pub(super) s: IoApicState,
    routes: Option<Arc<dyn Routes>>,
    version: u8,
    /// Another model has the state; it is told of the inputs.
    pub(super) away: Option<Arc<dyn IrqSink>>,
}

impl IoApic {
    /// `out` takes the messages (the APIC bus).
    pub fn new(out: Arc<dyn MsiSink>) -> Self {
        Self { out, s: IoApicState::default(), routes: None, version: VERSION_EOI, away: None }
    }

    /// As the 82093AA: software finds no EOI register, which other models that take the state over do not have.
    pub fn without_eoi_register(&mut self) {
        self.version = VERSION_PLAIN;
    }

    /// Tells `routes` of what the inputs send, now and at each change.
    pub fn set_routes(&mut self, routes: Arc<dyn Routes>) {
        self.routes = Some(routes);
        self.tell_all();
    }

    pub(super) fn tell_all(&self) {
        (0..PINS).for_each(|pin| self.tell(pin));
    }

    fn tell(&self, pin: usize) {
        let Some(routes) = &self.routes else { return };
        let by_level = self.level_pin(pin) && self.s.rte[pin] & rte::MASKED == 0;
        routes.set(pin, by_level.then(|| self.message(pin, true)).flatten());
    }

    /// Address and data of what an input sends; `None`: its delivery mode is reserved.
    fn message(&self, pin: usize, level: bool) -> Option<(u64, u32)> {
        let e = self.s.rte[pin];
        Some(compose_msi((e >> rte::DEST_SHIFT) as u8, e & rte::LOGICAL != 0, delivery(e)?, e as u8, level))
    }

    /// Level of input `pin` (0..=23; others are ignored).
    pub fn set_input(&mut self, pin: u32, level: bool) {
        if pin as usize >= PINS {
            return;
        }
        let bit = 1u32 << pin;
        let changed = level != (self.s.lines & bit != 0);
        let rising = level && changed;
        self.s.lines = if level { self.s.lines | bit } else { self.s.lines & !bit };
        if let Some(to) = &self.away {
            if changed {
                to.set_irq(pin, level);
            }
            return;
        }
        let pin = pin as usize;
        if self.level_pin(pin) {
            self.service_level(pin);
        } else if rising && self.s.rte[pin] & rte::MASKED == 0 {
            // 82093AA: an edge on a masked pin is neither delivered nor held.
            self.send(pin, false);
        }
    }

    /// A local APIC ended `vector`: level inputs with this vector may interrupt again, and do if still asserted.
    pub fn eoi(&mut self, vector: u8) {
        for pin in 0..PINS {
            let e = self.s.rte[pin];
            if e as u8 == vector && e & rte::REMOTE_IRR != 0 {
                self.s.rte[pin] &= !rte::REMOTE_IRR;
                self.service_level(pin);
            }
        }
    }

    /// Whether the pin works by level: only for delivery modes that an EOI ends, the others are always edges.
    pub(super) fn level_pin(&self, pin: usize) -> bool {
        let e = self.s.rte[pin];
        let ended = matches!(delivery(e), Some(Delivery::Fixed | Delivery::LowestPriority));
        e & rte::LEVEL != 0 && ended
    }

    pub(super) fn service_level(&mut self, pin: usize) {
        let e = self.s.rte[pin];
        let idle = e & (rte::MASKED | rte::REMOTE_IRR) == 0;
        if idle && self.level_pin(pin) && self.s.lines >> pin & 1 != 0 {
            self.s.rte[pin] |= rte::REMOTE_IRR;
            self.send(pin, true);
        }
    }

    fn send(&self, pin: usize, level: bool) {
        match self.message(pin, level) {
            Some((addr, data)) => self.out.send_msi(addr, data),
            None => dlog!(GUEST_ERRORS, "ioapic: pin {pin} has the reserved delivery mode"),
        }
    }

    fn read_reg(&self) -> u32 {
        match self.s.select {
            REG_ID | REG_ARBITRATION => u32::from(self.s.id) << 24,
            REG_VERSION => u32::from(self.version) | (PINS as u32 - 1) << 16,
            sel => match rte_index(sel) {
                Some((pin, high)) => (self.s.rte[pin] >> (32 * u32::from(high))) as u32,
                None => {
                    dlog!(GUEST_ERRORS, "ioapic: read of register {sel:#x}");
                    !0
                }
            },
        }
    }

    fn write_reg(&mut self, v: u32) {
        match (self.s.select, rte_index(self.s.select)) {
            (REG_ID, _) => self.s.id = (v >> 24) as u8 & 0x0f,
            (_, Some((pin, high))) => self.write_rte(pin, high, v),
            (sel, None) => dlog!(GUEST_ERRORS, "ioapic: write of {v:#x} to register {sel:#x}"),
        }
    }

    fn write_rte(&mut self, pin: usize, high: bool, v: u32) {
        let shift = 32 * u32::from(high);
        let mask = rte::WRITABLE & 0xffff_ffff << shift;
        let mut e = self.s.rte[pin] & !mask | u64::from(v) << shift & mask;
        if e & rte::LEVEL == 0 {
            // Software without the EOI register clears remote IRR by way of edge mode.
            e &= !rte::REMOTE_IRR;
        }
        self.s.rte[pin] = e;
        self.tell(pin);
        self.service_level(pin);
    }
}

fn delivery(e: u64) -> Option<Delivery> {
    Delivery::from_bits((e >> rte::DELIVERY_SHIFT) as u32)
}

/// Pin and half (`true`: bits 63:32) behind a register number.
fn rte_index(sel: u8) -> Option<(usize, bool)> {
    let i = usize::from(sel.checked_sub(REG_REDIRECTION)?);
    (i / 2 < PINS).then_some((i / 2, i & 1 != 0))
}

impl Mmio for IoApic {
    fn read(&mut self, _region: u32, offset: u64, size: u8) -> u64 {
        match (offset, size) {
            (IOREGSEL, _) => self.s.select.into(),
            (IOWIN, 4) => self.read_reg().into(),
            (EOIR, 4) => 0,
            _ => {
                dlog!(GUEST_ERRORS, "ioapic: read at {offset:#x} size {size}");
                !0
            }
        }
    }

    fn write(&mut self, _region: u32, offset: u64, size: u8, value: u64) {
        match (offset, size) {
            (IOREGSEL, _) => self.s.select = value as u8,
            (IOWIN, 4) => self.write_reg(value as u32),
            (EOIR, 4) => self.eoi(value as u8),
            _ => dlog!(GUEST_ERRORS, "ioapic: write of {value:#x} at {offset:#x} size {size}"),
        }
    }
}

impl Device for IoApic {
    fn name(&self) -> &'static str {
        "ioapic"
    }

    fn reset(&mut self) {
        self.s = IoApicState::default();
        self.tell_all();
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), SAVED_VERSION, &self.s)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let state: IoApicState = s.unpack(SAVED_VERSION)?;
        let known = rte::WRITABLE | rte::REMOTE_IRR;
        if state.rte.iter().any(|e| e & !known != 0) || state.lines >> PINS != 0 {
            return Err(s.bad("a reserved bit is set"));
        }
        self.s = state;
        self.tell_all();
        Ok(())
    }

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

/// The inputs as an interrupt sink, and the controller as a receiver of EOI broadcasts.
pub struct IoApicInputs(pub Arc<Mutex<IoApic>>);

impl IrqSink for IoApicInputs {
    fn set_irq(&self, line: u32, level: bool) {
        self.0.lock().set_input(line, level);
    }
}

impl EoiSink for IoApicInputs {
    fn eoi(&self, vector: u8) {
        self.0.lock().eoi(vector);
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct IoApicState {
    pub id: u8,
    pub select: u8,
    pub lines: u32,
    pub rte: [u64; PINS],
}

impl Default for IoApicState {
    /// 82093AA: all entries masked.
    fn default() -> Self {
        Self { id: 0, select: 0, lines: 0, rte: [rte::MASKED; PINS] }
    }
}
