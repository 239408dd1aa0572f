//! MC146818 real-time clock with 128 bytes of CMOS RAM (Motorola MC146818A data sheet; IBM PC/AT ports 70h, 71h).

use super::rtc_time::{self as time, DAY, Format, TimeRegs};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_core::{Clock, Device, IrqLine, LoadError, PortIo, Section, Timer};

const STATE_VERSION: u32 = 1;
const SECOND: u64 = 1_000_000_000;
/// UIP rises 244 µs before an update, which takes 1984 µs and ends with the second.
const UPDATE_NS: u64 = 244_000 + 1_984_000;
/// Time base of the divider chain in Hz.
const DIVIDER_HZ: u64 = 32_768;

const REG_A: u8 = 0x0a;
const REG_B: u8 = 0x0b;
const REG_C: u8 = 0x0c;
const REG_D: u8 = 0x0d;
/// IBM PC: century, in the time's format.
const REG_CENTURY: u8 = 0x32;
/// Alarm registers: both top bits set mean "any".
const ALARM_ANY: u8 = 0xc0;

const A_UIP: u8 = 0x80;
/// Register A: divider control; 010 runs, 11x holds the chain in reset.
const A_DV_RESET: u8 = 0x60;
/// Register A at power-on: divider running, 1024 Hz.
const A_DEFAULT: u8 = 0x26;
const B_SET: u8 = 0x80;
const B_PIE: u8 = 0x40;
const B_AIE: u8 = 0x20;
const B_UIE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;
const C_IRQF: u8 = 0x80;
const C_PF: u8 = 0x40;
const C_AF: u8 = 0x20;
const C_UF: u8 = 0x10;
/// Register D: the battery is good.
const D_VRT: u8 = 0x80;

/// Unix time of the first and last second that the registers can show.
const YEAR_0: i64 = -62_167_219_200;
const YEAR_9999_END: i64 = 253_402_300_799;

/// The clock. Time starts at the constructor's value and advances with the virtual clock.
pub struct Rtc {
    irq: IrqLine,
    /// While set (HPET LEG_RT_CNF) the interrupt does not reach its line.
    cut: Option<Arc<AtomicBool>>,
    timer: Timer,
    /// State at reset: initial time and memory sizes.
    fresh: RtcState,
    state: RtcState,
}

#[derive(Clone, Serialize, Deserialize)]
struct RtcState {
    index: u8,
    /// CMOS RAM, of which the time and control registers' places are unused.
    cmos: Vec<u8>,
    a: u8,
    b: u8,
    /// Flags of register C without IRQF.
    flags: u8,
    /// Unix time at divider time 0.
    base: i64,
    /// Divider time is the virtual clock plus this, ns.
    phase: u64,
    weekday_shift: u8,
    /// Time registers while SET or the divider's reset holds them.
    held: Option<TimeRegs>,
    /// Divider time up to which flags were set.
    seen: u64,
}

impl RtcState {
    fn format(&self) -> Format {
        Format { binary: self.b & B_BINARY != 0, hours_24: self.b & B_24H != 0 }
    }

    fn divider_reset(&self) -> bool {
        self.a & A_DV_RESET == A_DV_RESET
    }

    /// Number of divider pulses per periodic interrupt, as a shift; `None` if off. Rates 1 and 2 are 8 and 9.
    fn period_shift(&self) -> Option<u32> {
        match self.a & 15 {
            0 => None,
            r @ 1..=2 => Some(u32::from(r) + 6),
            r => Some(u32::from(r) - 1),
        }
    }
}

fn pulses(ns: u64) -> u64 {
    (u128::from(ns) * u128::from(DIVIDER_HZ) / u128::from(SECOND)) as u64
}

impl Rtc {
    /// A clock whose timer is not bound: flags are set when polled. `unix_seconds` is the time at virtual time 0.
    pub fn new(irq: IrqLine, clock: Clock, unix_seconds: i64) -> Self {
        let state = RtcState {
            index: 0,
            cmos: vec![0; 128],
            a: A_DEFAULT,
            b: B_24H,
            flags: 0,
            base: unix_seconds.clamp(YEAR_0, YEAR_9999_END),
            phase: 0,
            weekday_shift: 0,
            held: None,
            seen: clock.now(),
        };
        Self { irq, cut: None, timer: clock.timer("rtc"), fresh: state.clone(), state }
    }

    /// A clock that raises `irq` (ISA 8) as time passes.
    pub fn new_shared(irq: IrqLine, clock: Clock, unix_seconds: i64) -> Arc<Mutex<Self>> {
        let rtc = Arc::new(Mutex::new(Self::new(irq, clock, unix_seconds)));
        let weak = Arc::downgrade(&rtc);
        rtc.lock().timer.bind(move |_| {
            if let Some(r) = weak.upgrade() {
                r.lock().update();
            }
        });
        rtc
    }

    /// Moves the time of day by some seconds: host time that has passed while the machine was a file.
    pub fn advance(&mut self, seconds: i64) {
        self.state.base = self.state.base.saturating_add(seconds).clamp(YEAR_0, YEAR_9999_END);
        self.update();
    }

    /// While `flag` is set the interrupt does not reach its line (HPET legacy replacement).
    pub fn cut_by(&mut self, flag: Arc<AtomicBool>) {
        self.cut = Some(flag);
    }

    /// Fills the memory sizes that firmware and kernels read: base memory (15h), extended up to 64 MiB in KiB (17h, 30h),
    /// above 16 MiB in 64 KiB units (34h), above 4 GiB in 64 KiB units (5Bh). Sizes are bytes of RAM below and above 4 GiB.
    pub fn set_memory(&mut self, below_4g: u64, above_4g: u64) {
        let kib = (below_4g >> 10).saturating_sub(1024).min(0xffff) as u16;
        let above_16m = (below_4g.saturating_sub(16 << 20) >> 16).min(0xffff) as u16;
        let high = ((above_4g >> 16).min(0xff_ffff) as u32).to_le_bytes();
        for (at, bytes) in [
            (0x15, &640u16.to_le_bytes()[..]),
            (0x17, &kib.to_le_bytes()),
            (0x30, &kib.to_le_bytes()),
            (0x34, &above_16m.to_le_bytes()),
            (0x5b, &high[..3]),
        ] {
            for (i, b) in bytes.iter().enumerate() {
                self.set_cmos(at + i as u8, *b);
            }
        }
    }

    /// Sets a byte of CMOS RAM (0..=127, not a clock register) as of power-on: it survives reset.
    pub fn set_cmos(&mut self, at: u8, value: u8) {
        for s in [&mut self.fresh, &mut self.state] {
            s.cmos[usize::from(at & 0x7f)] = value;
        }
    }

    /// Divider time, ns.
    fn divider(&self) -> u64 {
        self.timer.now().wrapping_add(self.state.phase)
    }

    fn seconds_at(&self, divider: u64) -> i64 {
        self.state.base.saturating_add((divider / SECOND) as i64)
    }

    fn time_regs(&self) -> TimeRegs {
        let s = &self.state;
        s.held.unwrap_or_else(|| time::to_regs(self.seconds_at(self.divider()), s.weekday_shift, s.format()))
    }

    /// Makes `regs` the present time; the fraction of the second stays.
    fn set_time(&mut self, regs: &TimeRegs) {
        let (secs, shift) = time::from_regs(regs, self.state.format());
        self.state.base = secs - (self.divider() / SECOND) as i64;
        self.state.weekday_shift = shift;
    }

    /// Whether second `secs` (Unix) is one that the alarm registers name.
    fn alarm_matches(&self, secs: i64) -> bool {
        let (f, of_day) = (self.state.format(), secs.rem_euclid(DAY));
        let reg = |at: usize| self.state.cmos[at];
        let hit = |alarm: u8, value: u8| alarm & ALARM_ANY == ALARM_ANY || alarm == value;
        hit(reg(1), f.encode((of_day % 60) as u8))
            && hit(reg(3), f.encode((of_day / 60 % 60) as u8))
            && hit(reg(5), f.encode_hour((of_day / 3600) as u8))
    }

    /// Sets the flags of what happened since the last call, then the line and the timer.
    fn update(&mut self) {
        let now = self.divider();
        let from = self.state.seen;
        self.state.seen = from.max(now);
        if !self.state.divider_reset() && now > from {
            if let Some(shift) = self.state.period_shift()
                && pulses(now) >> shift > pulses(from) >> shift
            {
                self.state.flags |= C_PF;
            }
            if self.state.held.is_none() && now / SECOND > from / SECOND {
                self.state.flags |= C_UF;
                // A day holds every time of day: looking at more seconds finds nothing new.
                let (last, n) = (self.seconds_at(now), (now / SECOND - from / SECOND).min(DAY as u64) as i64);
                if self.state.flags & C_AF == 0 && (0..n).any(|i| self.alarm_matches(last - i)) {
                    self.state.flags |= C_AF;
                }
            }
        }
        self.drive();
        self.arm(now);
    }

    /// Register C without the effect of reading it.
    fn reg_c(&self) -> u8 {
        let s = &self.state;
        // PIE, AIE, UIE lie where PF, AF, UF do.
        s.flags | if s.flags & s.b & (B_PIE | B_AIE | B_UIE) != 0 { C_IRQF } else { 0 }
    }

    fn drive(&self) {
        if !self.cut.as_ref().is_some_and(|c| c.load(Ordering::SeqCst)) {
            self.irq.set(self.reg_c() & C_IRQF != 0);
        }
    }

    /// Arms for the next moment that can set an enabled flag which is not set yet.
    fn arm(&mut self, now: u64) {
        let s = &self.state;
        let wanted = s.b & !s.flags;
        let mut next: Option<u64> = None;
        if wanted & B_PIE != 0
            && !s.divider_reset()
            && let Some(shift) = s.period_shift()
        {
            let pulse = ((pulses(now) >> shift) + 1) << shift;
            next = Some((u128::from(pulse) * u128::from(SECOND)).div_ceil(u128::from(DIVIDER_HZ)) as u64);
        }
        if wanted & (B_AIE | B_UIE) != 0 && s.held.is_none() {
            let second = (now / SECOND + 1) * SECOND;
            next = Some(next.map_or(second, |n| n.min(second)));
        }
        match next {
            Some(t) => self.timer.arm(t.wrapping_sub(s.phase)),
            None => self.timer.cancel(),
        }
    }

    /// Registers A and B may stop or start the time registers.
    fn set_control(&mut self, a: u8, b: u8) {
        let was_reset = self.state.divider_reset();
        let regs = self.time_regs();
        (self.state.a, self.state.b) = (a & !A_UIP, b);
        if was_reset && !self.state.divider_reset() {
            // The first update comes half a second after the divider's release.
            let fraction = self.divider() % SECOND;
            let add = (SECOND + SECOND / 2 - fraction) % SECOND;
            self.state.phase = self.state.phase.wrapping_add(add) % SECOND;
            self.state.seen = self.divider();
        }
        let hold = b & B_SET != 0 || self.state.divider_reset();
        match (hold, self.state.held) {
            // Frozen in the format that now holds.
            (true, None) => {
                let secs = self.seconds_at(self.divider());
                self.state.held = Some(time::to_regs(secs, self.state.weekday_shift, self.state.format()));
            }
            (false, Some(_)) => {
                self.state.held = None;
                self.set_time(&regs);
            }
            _ => {}
        }
        if b & B_SET != 0 {
            // SET clears UIE (data sheet, "SET").
            self.state.b &= !B_UIE;
        }
    }

    /// Which time register lies at an index.
    fn time_index(index: u8) -> Option<usize> {
        Some(match index {
            0x00 => time::SECONDS,
            0x02 => time::MINUTES,
            0x04 => time::HOURS,
            0x06 => time::WEEKDAY,
            0x07 => time::DAY_OF_MONTH,
            0x08 => time::MONTH,
            0x09 => time::YEAR,
            REG_CENTURY => time::CENTURY,
            _ => return None,
        })
    }

    fn read_reg(&mut self, index: u8) -> u8 {
        self.update();
        match index {
            REG_A => {
                let updating = self.state.held.is_none() && self.divider() % SECOND >= SECOND - UPDATE_NS;
                self.state.a | if updating { A_UIP } else { 0 }
            }
            REG_B => self.state.b,
            REG_C => {
                let c = self.reg_c();
                self.state.flags = 0;
                self.update();
                c
            }
            REG_D => D_VRT,
            _ => match Self::time_index(index) {
                Some(i) => self.time_regs()[i],
                None => self.state.cmos[usize::from(index & 0x7f)],
            },
        }
    }

    fn write_reg(&mut self, index: u8, v: u8) {
        self.update();
        match index {
            REG_A => self.set_control(v, self.state.b),
            REG_B => self.set_control(self.state.a, v),
            REG_C | REG_D => {}
            _ => match Self::time_index(index) {
                Some(i) => {
                    let mut regs = self.time_regs();
                    regs[i] = v;
                    match &mut self.state.held {
                        Some(h) => *h = regs,
                        None => self.set_time(&regs),
                    }
                }
                None => self.state.cmos[usize::from(index & 0x7f)] = v,
            },
        }
        self.update();
    }
}

impl Device for Rtc {
    fn name(&self) -> &'static str {
        "rtc"
    }

    /// Back to the initial time base and CMOS content: what the guest has set does not survive.
    fn reset(&mut self) {
        self.state = self.fresh.clone();
        self.state.seen = self.divider();
        self.update();
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), STATE_VERSION, &self.state)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let state: RtcState = s.unpack(STATE_VERSION)?;
        if state.cmos.len() != 128 {
            return Err(s.bad("CMOS is 128 bytes"));
        }
        if state.phase >= SECOND || state.weekday_shift > 6 || state.base.unsigned_abs() > 1 << 40 {
            return Err(s.bad("time out of range"));
        }
        self.state = state;
        self.update();
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for Rtc {
    fn read(&mut self, _: u32, offset: u16, size: u8) -> u32 {
        (0..size.min(4)).fold(0, |v, i| {
            let byte = match offset.wrapping_add(i.into()) {
                1 => self.read_reg(self.state.index),
                // The index is write-only.
                _ => 0xff,
            };
            v | u32::from(byte) << (8 * i)
        })
    }

    fn write(&mut self, _: u32, offset: u16, size: u8, value: u32) {
        for i in 0..size.min(4) {
            let v = (value >> (8 * i)) as u8;
            match offset.wrapping_add(i.into()) {
                // Bit 7 masks NMI on the PC; nothing on this board raises one.
                0 => self.state.index = v & 0x7f,
                1 => self.write_reg(self.state.index, v),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
#[path = "rtc_tests.rs"]
mod tests;
