//! The local APIC timer's arithmetic (SDM 3A "APIC Timer"): the bus clock is 1 GHz, so a tick before the divider is 1 ns.

use serde::{Deserialize, Serialize};
use vm_core::clock::Ns;

/// Shortest distance between two expiries of a periodic timer that the host is asked for. The guest can program 1 ns;
/// its count stays exact, but periods that end sooner are merged.
pub const MIN_PERIOD_NS: Ns = 10_000;

/// LVT timer bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
    Reserved,
}

impl Mode {
    pub fn from_bits(bits: u32) -> Self {
        match bits & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

#[derive(Clone, Default, Serialize, Deserialize)]
pub struct TimerState {
    pub initial: u32,
    /// Divide configuration register.
    pub divide: u32,
    /// Guest time of the next expiry; `None` while stopped.
    pub next: Option<Ns>,
    /// IA32_TSC_DEADLINE; 0 when not armed.
    pub deadline: u64,
}

impl TimerState {
    /// log2 of the divisor: bits 3, 1, 0 count 2, 4 … 128, and 111b is 1.
    fn shift(&self) -> u32 {
        let code = (self.divide & 3) | (self.divide >> 1 & 4);
        (code + 1) & 7
    }

    fn period(&self) -> Ns {
        Ns::from(self.initial) << self.shift()
    }

    /// Current count register.
    pub fn current(&self, mode: Mode, now: Ns) -> u32 {
        match (mode, self.next) {
            (Mode::OneShot | Mode::Periodic, Some(next)) => {
                let left = next.saturating_sub(now).div_ceil(1 << self.shift());
                u32::try_from(left).unwrap_or(u32::MAX)
            }
            _ => 0,
        }
    }

    /// Goes on from a current count, as another model of the timer left it; 0: it has expired, or stands still.
    pub fn go_on(&mut self, mode: Mode, count: u32, now: Ns) {
        let left = match (mode, count) {
            (Mode::OneShot | Mode::Periodic, 1..) => Some(Ns::from(count) << self.shift()),
            // It begins anew at this moment.
            (Mode::Periodic, 0) if self.initial != 0 => Some(self.period()),
            _ => None,
        };
        self.next = left.map(|l| now.saturating_add(l));
    }

    /// Writing the initial count starts the timer, zero stops it; ignored in TSC-deadline mode.
    pub fn set_initial(&mut self, mode: Mode, v: u32, now: Ns) {
        if mode == Mode::TscDeadline {
            return;
        }
        self.initial = v;
        self.next = (v != 0 && mode != Mode::Reserved).then(|| now.saturating_add(self.period()));
    }

    /// A running count goes on from where it is, at the new rate.
    pub fn set_divide(&mut self, mode: Mode, v: u32, now: Ns) {
        let left = self.current(mode, now);
        self.divide = v;
        if self.next.is_some() && matches!(mode, Mode::OneShot | Mode::Periodic) {
            self.next = Some(now.saturating_add(Ns::from(left) << self.shift()));
        }
    }

    /// A change into or out of TSC-deadline mode disarms.
    pub fn change_mode(&mut self, old: Mode, new: Mode) {
        let counts = |m| matches!(m, Mode::OneShot | Mode::Periodic);
        if old != new && !(counts(old) && counts(new)) {
            self.next = None;
            self.deadline = 0;
        }
    }

    /// IA32_TSC_DEADLINE: a time in the past expires at once, zero disarms; ignored in other modes.
    pub fn set_deadline(&mut self, mode: Mode, tsc: u64, tsc_hz: u64) {
        if mode == Mode::TscDeadline {
            self.deadline = tsc;
            self.next = (tsc != 0).then(|| tsc_to_ns(tsc, tsc_hz));
        }
    }

    /// Takes the expiries up to `now`: true if there was one.
    pub fn expire(&mut self, mode: Mode, now: Ns) -> bool {
        let Some(next) = self.next.filter(|n| *n <= now) else { return false };
        self.next = None;
        self.deadline = 0;
        let period = self.period();
        if mode == Mode::Periodic && period != 0 {
            let whole = (now - next) / period;
            self.next = Some(next.saturating_add(whole.saturating_add(1).saturating_mul(period)));
        }
        true
    }
}

/// The first nanosecond at which a counter of `hz` that was 0 at time 0 has reached `tsc`.
fn tsc_to_ns(tsc: u64, hz: u64) -> Ns {
    let ns = (u128::from(tsc) * 1_000_000_000).div_ceil(u128::from(hz.max(1)));
    u64::try_from(ns).unwrap_or(u64::MAX)
}
