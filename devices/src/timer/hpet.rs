//! High precision event timer: a 64-bit counter at 100 MHz and three comparators (IA-PC HPET Specification 1.0a).

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_core::clock::Ns;
use vm_core::{Clock, Device, IrqLine, LoadError, Mmio, Section, Timer, dlog};

/// Bytes of the register block.
pub const HPET_SIZE: u64 = 0x400;
/// Nanoseconds of one tick.
const TICK_NS: u64 = 10;
const TIMERS: usize = 3;
const STATE_VERSION: u32 = 1;
/// The host's thread is not asked to run more often than this; expiries between coincide.
const MIN_GAP_NS: Ns = 20_000;

/// GCAP_ID: period in femtoseconds, and what the ACPI table repeats (revision, 3 timers, 64 bits, legacy route, vendor).
const GCAP_ID: u64 = (TICK_NS * 1_000_000) << 32 | crate::fw::acpi::HPET_BLOCK_ID as u64;

const REG_GCAP_ID: u64 = 0x000;
const REG_GEN_CONF: u64 = 0x010;
const REG_GINTR_STA: u64 = 0x020;
const REG_MAIN_CNT: u64 = 0x0f0;
const REG_TIMERS: u64 = 0x100;

const GEN_ENABLE: u64 = 1 << 0;
const GEN_LEG_RT: u64 = 1 << 1;

const TN_INT_TYPE_LEVEL: u64 = 1 << 1;
const TN_INT_ENB: u64 = 1 << 2;
const TN_TYPE_PERIODIC: u64 = 1 << 3;
const TN_PER_INT_CAP: u64 = 1 << 4;
const TN_SIZE_CAP: u64 = 1 << 5;
const TN_VAL_SET: u64 = 1 << 6;
const TN_32MODE: u64 = 1 << 8;
const TN_INT_ROUTE: u64 = 31 << 9;
/// What the guest can write; FSB delivery is not offered.
const TN_WRITABLE: u64 = TN_INT_TYPE_LEVEL | TN_INT_ENB | TN_TYPE_PERIODIC | TN_VAL_SET | TN_32MODE | TN_INT_ROUTE;
/// INT_ROUTE_CAP: IO-APIC inputs each timer can use.
const ROUTE_CAP: [u32; TIMERS] = [0x00f0_0000, 0x00f0_0000, 0x00f0_0800];

/// The event timer block.
pub struct Hpet {
    /// IO-APIC inputs by number.
    gsi: Vec<IrqLine>,
    /// ISA 0 and ISA 8, which timers 0 and 1 take over under legacy replacement.
    legacy: [IrqLine; 2],
    /// Mirrors LEG_RT_CNF.
    replacing: Arc<AtomicBool>,
    /// Told of its changes.
    told: Option<Box<dyn Fn(bool) + Send>>,
    timer: Timer,
    state: HpetState,
}

#[derive(Clone, Serialize, Deserialize)]
struct HpetState {
    config: u64,
    /// GINTR_STA: level-triggered timers that are asserted.
    status: u64,
    /// The counter while halted; while it runs, ticks of the virtual clock minus the counter.
    count: u64,
    timers: [Comparator; TIMERS],
}

#[derive(Clone, Serialize, Deserialize)]
struct Comparator {
    config: u64,
    value: u64,
    period: u64,
    /// Tick of the virtual clock at which it matches.
    next: Option<u64>,
}

impl Comparator {
    fn mask(&self) -> u64 {
        if self.config & TN_32MODE != 0 { u32::MAX.into() } else { u64::MAX }
    }

    fn level(&self) -> bool {
        self.config & TN_INT_TYPE_LEVEL != 0
    }

    fn enabled(&self) -> bool {
        self.config & TN_INT_ENB != 0
    }

    fn periodic(&self) -> bool {
        self.config & TN_TYPE_PERIODIC != 0 && self.period != 0
    }

    /// Finds the next match for a counter that holds `counter` at tick `now`.
    fn schedule(&mut self, counter: u64, now: u64) {
        self.next = now.checked_add(self.value.wrapping_sub(counter) & self.mask());
    }

    /// Moves past all matches up to tick `now`; `true` if there was one.
    fn advance(&mut self, now: u64) -> bool {
        let Some(at) = self.next.filter(|at| *at <= now) else { return false };
        // A comparator that stays where it is matches again when the counter has wrapped.
        let step = if self.periodic() { self.period } else { self.mask() };
        let wrap = u64::from(!self.periodic());
        let Some(step) = step.checked_add(wrap) else {
            self.next = None;
            return true;
        };
        let times = (now - at) / step + 1;
        let moved = times.wrapping_mul(step);
        self.next = at.checked_add(moved);
        if self.periodic() {
            self.value = self.value.wrapping_add(moved) & self.mask();
        }
        true
    }
}

impl HpetState {
    fn new() -> Self {
        let c = Comparator { config: 0, value: u64::MAX, period: 0, next: None };
        Self { config: 0, status: 0, count: 0, timers: [c.clone(), c.clone(), c] }
    }

    fn running(&self) -> bool {
        self.config & GEN_ENABLE != 0
    }

    fn counter(&self, now: u64) -> u64 {
        if self.running() { now.wrapping_sub(self.count) } else { self.count }
    }

    fn set_counter(&mut self, value: u64, now: u64) {
        self.count = if self.running() { now.wrapping_sub(value) } else { value };
    }

    fn schedule_all(&mut self, now: u64) {
        let (running, counter) = (self.running(), self.counter(now));
        for t in &mut self.timers {
            if running { t.schedule(counter, now) } else { t.next = None }
        }
    }
}

impl Hpet {
    /// A block whose timer is not bound: comparators match when polled. `gsi` are the IO-APIC's inputs from 0 (shared
    /// wires where PCI uses them). `legacy` go to the very inputs that the PIT (ISA 0) and the RTC (ISA 8) drive, not
    /// through a wired OR: those two are cut off by `legacy_flag` while it is set.
    pub fn new(gsi: Vec<IrqLine>, legacy: [IrqLine; 2], clock: Clock) -> Self {
        Self { gsi, legacy, replacing: Arc::default(), told: None, timer: clock.timer("hpet"), state: HpetState::new() }
    }

    /// A block that interrupts as time passes.
    pub fn new_shared(gsi: Vec<IrqLine>, legacy: [IrqLine; 2], clock: Clock) -> Arc<Mutex<Self>> {
        let hpet = Arc::new(Mutex::new(Self::new(gsi, legacy, clock)));
        let weak = Arc::downgrade(&hpet);
        hpet.lock().timer.bind(move |_| {
            if let Some(h) = weak.upgrade() {
                let mut h = h.lock();
                h.update();
                h.arm(MIN_GAP_NS);
            }
        });
        hpet
    }

    /// Set while legacy replacement is on: the PIT and the RTC are then cut off from ISA 0 and ISA 8.
    pub fn legacy_flag(&self) -> Arc<AtomicBool> {
        self.replacing.clone()
    }

    /// Tells `f` of each change of the flag, with this device's lock held.
    pub fn on_legacy(&mut self, f: impl Fn(bool) + Send + 'static) {
        self.told = Some(Box::new(f));
    }

    fn replace_legacy(&self, on: bool) {
        if self.replacing.swap(on, Ordering::SeqCst) != on {
            self.told.iter().for_each(|f| f(on));
        }
    }

    fn tick(&self) -> u64 {
        self.timer.now() / TICK_NS
    }

    /// The wire of timer `n`, if it has one.
    fn line(&self, n: usize) -> Option<&IrqLine> {
        if self.state.config & GEN_LEG_RT != 0 && n < 2 {
            return Some(&self.legacy[n]);
        }
        let route = (self.state.timers[n].config & TN_INT_ROUTE) >> 9;
        let offered = ROUTE_CAP[n] >> route & 1 != 0;
        self.gsi.get(route as usize).filter(|_| offered)
    }

    /// Lets pass what the clock has brought.
    fn update(&mut self) {
        let now = self.tick();
        for n in 0..TIMERS {
            if !self.state.timers[n].advance(now) || !self.state.timers[n].enabled() {
                continue;
            }
            if self.state.timers[n].level() {
                self.state.status |= 1 << n;
                self.line(n).iter().for_each(|l| l.set(true));
            } else {
                self.line(n).iter().for_each(|l| l.pulse());
            }
        }
    }

    fn arm(&self, gap: Ns) {
        let next = self.state.timers.iter().filter(|t| t.enabled()).filter_map(|t| t.next).min();
        match next.and_then(|t| t.checked_mul(TICK_NS)) {
            Some(ns) => self.timer.arm(ns.max(self.timer.now().saturating_add(gap))),
            None => self.timer.cancel(),
        }
    }

    /// Sets the wires of asserted level-triggered timers.
    fn drive_levels(&self, level: bool) {
        for n in 0..TIMERS {
            if self.state.status >> n & 1 != 0 {
                self.line(n).iter().for_each(|l| l.set(level));
            }
        }
    }

    fn read_reg(&self, reg: u64) -> u64 {
        let s = &self.state;
        match reg {
            REG_GCAP_ID => GCAP_ID,
            REG_GEN_CONF => s.config,
            REG_GINTR_STA => s.status,
            REG_MAIN_CNT => s.counter(self.tick()),
            _ => match (s.timers.get(timer_of(reg)), reg & 0x1f) {
                (Some(t), 0x00) => {
                    let cap = u64::from(ROUTE_CAP[timer_of(reg)]) << 32 | TN_PER_INT_CAP | TN_SIZE_CAP;
                    t.config & !TN_VAL_SET | cap
                }
                (Some(t), 0x08) => t.value & t.mask(),
                // FSB route, reserved registers.
                _ => 0,
            },
        }
    }

    /// Writes the bytes of `mask` of one register.
    fn write_reg(&mut self, reg: u64, v: u64, mask: u64) {
        let now = self.tick();
        let merge = |old: u64| old & !mask | v & mask;
        match reg {
            REG_GEN_CONF => self.write_config(merge(self.state.config), now),
            REG_GINTR_STA => {
                self.drive_levels(false);
                self.state.status &= !(v & mask);
                self.drive_levels(true);
            }
            REG_MAIN_CNT => {
                let value = merge(self.state.counter(now));
                self.state.set_counter(value, now);
                self.state.schedule_all(now);
            }
            _ if reg >= REG_TIMERS && timer_of(reg) < TIMERS => match reg & 0x1f {
                0x00 => self.write_timer_config(timer_of(reg), merge(self.state.timers[timer_of(reg)].config)),
                0x08 => self.write_comparator(timer_of(reg), v, mask),
                _ => dlog!(GUEST_ERRORS, "hpet: write of {v:#x} to {reg:#x}"),
            },
            _ => dlog!(GUEST_ERRORS, "hpet: write of {v:#x} to {reg:#x}"),
        }
    }

    fn write_config(&mut self, new: u64, now: u64) {
        self.drive_levels(false);
        let counter = self.state.counter(now);
        let was = self.state.running();
        let replaces = new & !self.state.config & GEN_LEG_RT != 0;
        self.state.config = new & (GEN_ENABLE | GEN_LEG_RT);
        self.replace_legacy(new & GEN_LEG_RT != 0);
        if replaces {
            // The PIT may have left its wire high: the first edge would be lost.
            self.legacy.iter().for_each(|l| l.set(false));
        }
        self.state.set_counter(counter, now);
        if was != self.state.running() {
            self.state.schedule_all(now);
        }
        self.drive_levels(true);
    }

    fn write_timer_config(&mut self, n: usize, new: u64) {
        self.drive_levels(false);
        let now = self.tick();
        let (running, counter) = (self.state.running(), self.state.counter(now));
        let t = &mut self.state.timers[n];
        let mut new = new & TN_WRITABLE;
        if ROUTE_CAP[n] >> ((new & TN_INT_ROUTE) >> 9) & 1 == 0 {
            // INT_ROUTE_CNF: a value that is not offered does not stick.
            new = new & !TN_INT_ROUTE | t.config & TN_INT_ROUTE;
        }
        let resized = (t.config ^ new) & TN_32MODE != 0;
        t.config = new;
        if resized && running {
            t.schedule(counter, now);
        }
        if !t.level() || !t.enabled() {
            self.state.status &= !(1 << n);
        }
        self.drive_levels(true);
    }

    /// A periodic timer takes the value as its period; its comparator changes only with VAL_SET, which is then spent.
    fn write_comparator(&mut self, n: usize, v: u64, mask: u64) {
        let now = self.tick();
        let (running, counter) = (self.state.running(), self.state.counter(now));
        let t = &mut self.state.timers[n];
        let merge = |old: u64| old & !mask | v & mask;
        let periodic = t.config & TN_TYPE_PERIODIC != 0;
        if periodic {
            t.period = merge(t.period) & t.mask();
        }
        if !periodic || t.config & TN_VAL_SET != 0 {
            t.value = merge(t.value) & t.mask();
        }
        t.config &= !TN_VAL_SET;
        if running {
            t.schedule(counter, now);
        }
    }
}

/// Number of the timer whose registers lie at `reg`; out of range if none's.
fn timer_of(reg: u64) -> usize {
    if reg < REG_TIMERS { usize::MAX } else { ((reg - REG_TIMERS) / 0x20) as usize }
}

impl Device for Hpet {
    fn name(&self) -> &'static str {
        "hpet"
    }

    fn reset(&mut self) {
        self.drive_levels(false);
        self.state = HpetState::new();
        self.replace_legacy(false);
        self.timer.cancel();
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), STATE_VERSION, &self.state)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let mut state: HpetState = s.unpack(STATE_VERSION)?;
        state.config &= GEN_ENABLE | GEN_LEG_RT;
        state.status &= (1 << TIMERS) - 1;
        state.timers.iter_mut().for_each(|t| t.config &= TN_WRITABLE);
        self.state = state;
        self.replace_legacy(self.state.config & GEN_LEG_RT != 0);
        self.drive_levels(true);
        self.arm(0);
        Ok(())
    }

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

/// 64-bit registers, reached whole or in parts.
impl Mmio for Hpet {
    fn read(&mut self, _: u32, offset: u64, size: u8) -> u64 {
        self.update();
        let shift = 8 * (offset & 7);
        let low = self.read_reg(offset & !7) >> shift;
        if shift + 8 * u64::from(size) <= 64 {
            return low;
        }
        dlog!(GUEST_ERRORS, "hpet: misaligned read at {offset:#x}, size {size}");
        low | self.read_reg((offset & !7).wrapping_add(8)) << (64 - shift)
    }

    fn write(&mut self, _: u32, offset: u64, size: u8, value: u64) {
        self.update();
        let shift = 8 * (offset & 7);
        if shift + 8 * u64::from(size) > 64 {
            dlog!(GUEST_ERRORS, "hpet: misaligned write at {offset:#x}, size {size}, dropped");
            return;
        }
        let ones = if size >= 8 { u64::MAX } else { (1 << (8 * u64::from(size))) - 1 };
        self.write_reg(offset & !7, (value & ones) << shift, ones << shift);
        self.update();
        self.arm(0);
    }
}

#[cfg(test)]
#[path = "hpet_tests.rs"]
mod tests;
