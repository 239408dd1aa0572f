//! 8254 programmable interval timer and the PC's port 61h (Intel 82C54 data sheet; PC/AT port B).

use super::pit_counter::Counter;
use super::pit_image::Away;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_core::clock::Ns;
use vm_core::{Clock, Device, IrqLine, LoadError, PortIo, Section, Timer, dlog};

/// Frequency of CLK in Hz: 14.31818 MHz / 12.
pub const PIT_HZ: u64 = 1_193_182;
/// Region of ports 40h-43h.
pub const REGION_COUNTERS: u32 = 0;
/// Region of port 61h.
pub const REGION_PORT_B: u32 = 1;

const STATE_VERSION: u32 = 1;
/// Channel 0 never rings more often than this: a count of 2 would otherwise keep a host thread busy. Edges between
/// coincide, as they would on a CPU that is slow to acknowledge.
const MIN_GAP_NS: Ns = 20_000;
/// An edge that comes before the CPU has taken the interrupt of the one before waits; it is tried again this often.
const WAIT_NS: Ns = 1_000_000;
/// Edges that had to wait, or that a late timer thread has missed, are made up for one by one, this far apart: on a busy host a CPU
/// may not run for many periods, and Linux at its start counts edges against the TSC and panics if most are lost.
const REPLAY_GAP_NS: Ns = 250_000;
/// Edges older than this many pulses (one second) are not made up for.
const REPLAY_MAX: u64 = PIT_HZ;
/// Pulses between refresh requests on the PC (channel 1 as every BIOS sets it), shown by bit 4 of port 61h.
const REFRESH_PULSES: u64 = 18;

/// Port 61h: gate of channel 2.
pub(super) const PORT_B_GATE2: u8 = 1 << 0;
/// Port 61h: speaker data.
pub(super) const PORT_B_DATA: u8 = 1 << 1;
/// Port 61h: what the guest can write (gate, speaker data, two NMI disables).
const PORT_B_WRITABLE: u8 = 0x0f;

/// The interval timer. Channel 0 drives the interrupt line; channel 2 is heard through port 61h only.
pub struct Pit {
    irq: IrqLine,
    /// While set (HPET LEG_RT_CNF) channel 0 is cut off from its line.
    pub(super) cut: Option<Arc<AtomicBool>>,
    /// Whether the CPU has yet to take an interrupt.
    untaken: Option<Box<dyn Fn() -> bool + Send>>,
    pub(super) timer: Timer,
    pub(super) state: PitState,
    /// Another model has the state.
    pub(super) away: Option<Away>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(super) struct PitState {
    pub counters: [Counter; 3],
    pub port_b: u8,
    /// Pulse up to which rising edges of channel 0 were given to the line.
    pub seen: u64,
}

impl PitState {
    fn new(now: u64) -> Self {
        Self { counters: [Counter::new(true), Counter::new(true), Counter::new(false)], port_b: 0, seen: now }
    }
}

pub(super) fn pulse_of(ns: Ns) -> u64 {
    (u128::from(ns) * u128::from(PIT_HZ) / 1_000_000_000) as u64
}

/// First nanosecond of a pulse.
pub(super) fn ns_of(pulse: u64) -> Ns {
    let ns = (u128::from(pulse) * 1_000_000_000).div_ceil(u128::from(PIT_HZ));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

impl Pit {
    /// A PIT whose timer is not bound: channel 0 raises its line only when the guest accesses it. See `new_shared`.
    pub fn new(irq: IrqLine, clock: Clock) -> Self {
        let state = PitState::new(pulse_of(clock.now()));
        Self { irq, cut: None, untaken: None, timer: clock.timer("pit"), state, away: None }
    }

    /// A PIT that drives `irq` (ISA 0) as time passes.
    pub fn new_shared(irq: IrqLine, clock: Clock) -> Arc<Mutex<Self>> {
        let pit = Arc::new(Mutex::new(Self::new(irq, clock)));
        let weak = Arc::downgrade(&pit);
        pit.lock().timer.bind(move |now| {
            if let Some(p) = weak.upgrade() {
                p.lock().expired(now);
            }
        });
        pit
    }

    /// While `flag` is set channel 0 does not reach its line (HPET legacy replacement).
    pub fn cut_by(&mut self, flag: Arc<AtomicBool>) {
        self.cut = Some(flag);
    }

    /// Edges wait while `untaken` says that the CPU has yet to take an interrupt.
    pub fn wait_while(&mut self, untaken: impl Fn() -> bool + Send + 'static) {
        self.untaken = Some(Box::new(untaken));
    }

    pub(super) fn now(&self) -> u64 {
        pulse_of(self.timer.now())
    }

    pub(super) fn drive(&self, level: bool) {
        if !self.cut.as_ref().is_some_and(|c| c.load(Ordering::SeqCst)) {
            self.irq.set(level);
        }
    }

    /// Gives the line the edges that time has brought since the last call, and its present level.
    pub(super) fn catch_up(&mut self, now: u64) {
        let c = &mut self.state.counters[0];
        if c.next_rise(self.state.seen).is_some_and(|t| t <= now) {
            self.drive(false);
            self.drive(true);
        }
        self.state.seen = self.state.seen.max(now);
        let level = self.state.counters[0].out(now);
        self.drive(level);
    }

    pub(super) fn arm(&mut self, not_before: Ns) {
        match self.state.counters[0].next_rise(self.state.seen) {
            Some(t) => self.timer.arm(ns_of(t).max(not_before)),
            None => self.timer.cancel(),
        }
    }

    /// Gives the line one edge if any is due; those after it that are due too follow soon.
    fn expired(&mut self, now: Ns) {
        if self.away.is_some() {
            return;
        }
        // The guest may have been here since the clock told the time: what lies behind that has been seen to.
        let pulse = pulse_of(now).max(self.state.seen);
        self.state.seen = self.state.seen.max(pulse.saturating_sub(REPLAY_MAX));
        let due = self.state.counters[0].next_rise(self.state.seen).filter(|t| *t <= pulse);
        let more = due.and_then(|t| self.state.counters[0].next_rise(t)).is_some_and(|t| t <= pulse);
        let single = self.worth_replay() && due.is_some_and(|t| t > self.state.seen);
        match due {
            Some(_) if single && self.untaken.as_ref().is_some_and(|u| u()) => {
                self.timer.arm(now.saturating_add(WAIT_NS));
            }
            Some(t) if single && more => {
                self.drive(false);
                self.drive(true);
                self.state.seen = t;
                self.timer.arm(now.saturating_add(REPLAY_GAP_NS));
            }
            _ => {
                self.catch_up(pulse);
                self.arm(now.saturating_add(MIN_GAP_NS));
            }
        }
    }

    /// Whether edges come slowly enough that single ones matter and can be made up for.
    fn worth_replay(&self) -> bool {
        self.state.counters[0].period() > 4 * pulse_of(REPLAY_GAP_NS)
    }

    /// Runs `f` on the counters; if it may have changed channel 0, the line and the timer follow.
    fn change(&mut self, f: impl FnOnce(&mut PitState, u64)) {
        let now = self.now();
        self.catch_up(now);
        f(&mut self.state, now);
        let level = self.state.counters[0].out(now);
        self.drive(level);
        self.arm(0);
    }

    fn control(&mut self, v: u8) {
        let now = self.now();
        match (v >> 6, v >> 4 & 3) {
            (3, _) => self.read_back(v, now),
            (ch, 0) => self.state.counters[usize::from(ch)].latch(now),
            (ch, _) => self.change(|s, _| s.counters[usize::from(ch)].control(v)),
        }
    }

    /// Read-back command: bits 1-3 select counters; bit 5 low latches counts, bit 4 low latches status.
    fn read_back(&mut self, v: u8, now: u64) {
        for (i, c) in self.state.counters.iter_mut().enumerate() {
            if v >> (i + 1) & 1 == 0 {
                continue;
            }
            if v & 0x20 == 0 {
                c.latch(now);
            }
            if v & 0x10 == 0 {
                c.latch_status(now);
            }
        }
    }

    fn read_port_b(&mut self) -> u8 {
        let now = self.now();
        let refresh = (now / REFRESH_PULSES) as u8 & 1;
        self.state.port_b | refresh << 4 | u8::from(self.state.counters[2].out(now)) << 5
    }

    fn write_port_b(&mut self, v: u8) {
        let now = self.now();
        self.state.port_b = v & PORT_B_WRITABLE;
        self.state.counters[2].set_gate(v & PORT_B_GATE2 != 0, now);
    }

    fn read_byte(&mut self, region: u32, offset: u16) -> u8 {
        let now = self.now();
        match (region, offset) {
            (REGION_COUNTERS, 0..=2) => self.state.counters[usize::from(offset)].read(now),
            (REGION_PORT_B, 0) => self.read_port_b(),
            // The control word is write-only: the bus floats.
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, region: u32, offset: u16, v: u8) {
        match (region, offset) {
            (REGION_COUNTERS, 0) => self.change(|s, now| s.counters[0].write(v, now)),
            (REGION_COUNTERS, 1..=2) => {
                let now = self.now();
                self.state.counters[usize::from(offset)].write(v, now);
            }
            (REGION_COUNTERS, 3) => self.control(v),
            (REGION_PORT_B, 0) => self.write_port_b(v),
            _ => dlog!(GUEST_ERRORS, "pit: write of {v:#x} to region {region} offset {offset:#x}"),
        }
    }
}

impl Device for Pit {
    fn name(&self) -> &'static str {
        "pit"
    }

    fn reset(&mut self) {
        self.state = PitState::new(self.now());
        self.timer.cancel();
        self.drive(false);
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), STATE_VERSION, &self.state)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let state: PitState = s.unpack(STATE_VERSION)?;
        if !state.counters.iter().all(Counter::valid) {
            return Err(s.bad("counter out of range"));
        }
        self.state = state;
        self.arm(0);
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

/// An 8-bit device: a wider access is a row of byte accesses, as the ISA bridge makes it.
impl PortIo for Pit {
    fn read(&mut self, region: u32, offset: u16, size: u8) -> u32 {
        (0..size.min(4)).fold(0, |v, i| v | u32::from(self.read_byte(region, offset.wrapping_add(i.into()))) << (8 * i))
    }

    fn write(&mut self, region: u32, offset: u16, size: u8, value: u32) {
        for i in 0..size.min(4) {
            self.write_byte(region, offset.wrapping_add(i.into()), (value >> (8 * i)) as u8);
        }
    }
}

#[cfg(test)]
#[path = "pit_tests.rs"]
mod tests;
