//! One counter of the 8254, as a function of time (Intel 82C54 data sheet, "Mode Definitions").
//!
//! Time is a number of CLK pulses since power-on; nothing here runs per pulse.

use serde::{Deserialize, Serialize};

/// RW field of the control word: which bytes of the count are transferred.
pub(super) const RW_LSB: u8 = 1;
pub(super) const RW_MSB: u8 = 2;
pub(super) const RW_BOTH: u8 = 3;

/// State of one counter; plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counter {
    /// 0..=5.
    pub mode: u8,
    pub bcd: bool,
    /// RW_LSB, RW_MSB or RW_BOTH.
    pub rw: u8,
    pub gate: bool,
    /// Count register, as a number of pulses: 1..=65536.
    pub reload: u32,
    /// A count was written since the control word.
    pub written: bool,
    /// LSB of a two-byte count of which the MSB is missing.
    pub half: Option<u8>,
    /// The next two-byte read gives the MSB.
    pub read_msb: bool,
    pub latched: Option<u16>,
    pub latched_status: Option<u8>,
    /// The counting element was loaded (modes 1 and 5: the gate has triggered).
    pub running: bool,
    /// Count that the element was loaded with, 1..=65536.
    pub n: u32,
    /// Pulse at which the element held `n`; before power-on (negative) if the count was resumed or taken over halfway.
    pub start: i64,
    /// Pulses counted when the gate stopped the counter.
    pub held: Option<u64>,
    /// Modes 2 and 3: a count that is to take over.
    pub next: Option<Takeover>,
}

/// A count written while modes 2 and 3 run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Takeover {
    /// Pulse at which it comes into effect.
    pub at: i64,
    /// The count, 1..=65536.
    pub n: u32,
    /// Mode 3: it begins with the low half.
    pub low_half: bool,
}

impl Counter {
    pub fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            rw: RW_BOTH,
            gate,
            reload: 0x10000,
            written: false,
            half: None,
            read_msb: false,
            latched: None,
            latched_status: None,
            running: false,
            n: 0x10000,
            start: 0,
            held: None,
            next: None,
        }
    }

    /// Whether a loaded state is one that this code can reach.
    pub fn valid(&self) -> bool {
        let count = |n: u32| (1..=0x10000).contains(&n);
        self.mode <= 5
            && (RW_LSB..=RW_BOTH).contains(&self.rw)
            && count(self.n)
            && count(self.reload)
            && self.next.is_none_or(|t| count(t.n) && t.at.unsigned_abs() < 1 << 62)
            && self.start.unsigned_abs().max(self.held.unwrap_or(0)) < 1 << 62
    }

    /// Control word: stops the counter until a count is written; OUT goes to the mode's initial state.
    pub fn control(&mut self, cw: u8) {
        let mode = (cw >> 1) & 7;
        // Modes 6 and 7 are 2 and 3: the top bit is "don't care" for them.
        let mode = if mode > 5 { mode & 3 } else { mode };
        *self = Self { mode, bcd: cw & 1 != 0, rw: (cw >> 4) & 3, ..Self::new(self.gate) };
    }

    /// Brings a count that was to take over at a cycle's end into effect.
    fn sync(&mut self, now: u64) {
        if let Some(t) = self.next
            && now as i64 >= t.at
        {
            self.next = None;
            self.n = t.n;
            self.start = t.at - if t.low_half { i64::from(t.n.div_ceil(2)) } else { 0 };
        }
    }

    pub fn elapsed(&self, now: u64) -> u64 {
        self.held.unwrap_or((now as i64 - self.start).max(0) as u64)
    }

    /// Loads the counting element on the next pulse.
    fn load(&mut self, now: u64) {
        self.running = true;
        self.n = self.reload;
        self.start = now as i64 + 1;
        self.next = None;
        self.held = (matches!(self.mode, 0 | 4) && !self.gate).then_some(0);
    }

    pub fn write(&mut self, v: u8, now: u64) {
        self.sync(now);
        match (self.rw, self.half) {
            (RW_LSB, _) => self.set_count(v.into(), now),
            (RW_MSB, _) => self.set_count(u16::from(v) << 8, now),
            (_, None) => {
                self.half = Some(v);
                if self.mode == 0 {
                    // Mode 0: the first byte of a two-byte count disables counting and OUT goes low at once.
                    self.held = Some(0);
                    self.running = false;
                }
            }
            (_, Some(lsb)) => {
                self.half = None;
                self.set_count(u16::from_le_bytes([lsb, v]), now);
            }
        }
    }

    fn set_count(&mut self, raw: u16, now: u64) {
        self.reload = match (raw, self.bcd) {
            (0, false) => 0x10000,
            (0, true) => 10_000,
            (_, false) => raw.into(),
            (_, true) => from_bcd(raw).max(1),
        };
        let first = !std::mem::replace(&mut self.written, true);
        match self.mode {
            1 | 5 => {}
            2 | 3 if !self.gate => {
                // The gate's rising edge will load it.
                (self.running, self.n, self.held) = (true, self.reload, Some(0));
            }
            2 | 3 if !first && self.running => self.next = Some(self.takeover(now)),
            _ => self.load(now),
        }
    }

    /// Modes 2 and 3: the written count takes over when the present cycle (mode 3: half cycle) ends.
    fn takeover(&self, now: u64) -> Takeover {
        let (n, e) = (u64::from(self.n), self.elapsed(now));
        let (cycle, half) = (e - e % n, n.div_ceil(2));
        let low_half = self.mode == 3 && n > 1 && e % n < half;
        let end = cycle + if low_half { half } else { n };
        Takeover { at: self.start + end as i64, n: self.reload, low_half }
    }

    pub fn set_gate(&mut self, gate: bool, now: u64) {
        self.sync(now);
        let rising = gate && !self.gate;
        let falling = !gate && self.gate;
        match self.mode {
            0 | 2 | 3 | 4 if falling && self.running => self.held = Some(self.elapsed(now)),
            0 | 4 if rising && self.running => {
                if let Some(e) = self.held.take() {
                    self.start = now as i64 + 1 - e as i64;
                }
            }
            1 | 2 | 3 | 5 if rising && self.written => self.load(now),
            _ => {}
        }
        self.gate = gate;
    }

    /// Level of OUT.
    pub fn out(&mut self, now: u64) -> bool {
        self.sync(now);
        let (e, n) = (self.elapsed(now), u64::from(self.n));
        // The pulse that loads the element has not come: nothing has been counted.
        let loaded = self.running && (now as i64 >= self.start || self.held.is_some());
        match self.mode {
            0 => self.running && e >= n,
            1 => !(loaded && e < n),
            2 => !(loaded && self.gate && n > 1 && e % n == n - 1),
            3 => !(loaded && self.gate) || e % n < n.div_ceil(2),
            _ => !(loaded && e == n),
        }
    }

    /// The first pulse after `now` at which OUT rises, if time alone makes it rise.
    pub fn next_rise(&mut self, now: u64) -> Option<u64> {
        self.sync(now);
        if !self.running || self.held.is_some() {
            return None;
        }
        let n = i64::from(self.n);
        let now = now as i64;
        let rise = match self.mode {
            0 | 1 => self.start + n,
            4 | 5 => self.start + n + 1,
            _ if !self.gate || n == 1 => return None,
            _ => {
                let past = (now - self.start).max(0);
                let end = self.start + past - past % n + n;
                // Mode 3: after a takeover at the middle OUT rises at the end of the new count's low half.
                match self.next {
                    Some(t) if t.low_half => t.at + i64::from(t.n / 2),
                    _ => end,
                }
            }
        };
        (rise > now).then_some(rise as u64)
    }

    /// Pulses between two rises of OUT while the counter runs on like this by itself; 0 if it does not.
    pub fn period(&self) -> u64 {
        if matches!(self.mode, 2 | 3) && self.next.is_none() { self.n.into() } else { 0 }
    }

    /// The counting element as the guest reads it.
    fn value(&mut self, now: u64) -> u16 {
        self.sync(now);
        let n = u64::from(self.n);
        let e = if self.running { self.elapsed(now) } else { 0 };
        let modulus = if self.bcd { 10_000 } else { 0x10000 };
        let v = match self.mode {
            2 => n - e % n,
            3 => {
                let (p, half) = (e % n, n.div_ceil(2));
                (n & !1).saturating_sub(2 * if p < half { p } else { p - half })
            }
            _ => (n + modulus - e % modulus) % modulus,
        } % modulus;
        if self.bcd { to_bcd(v as u16) } else { v as u16 }
    }

    /// Counter latch command: ignored while an earlier latch is unread.
    pub fn latch(&mut self, now: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.value(now));
        }
    }

    /// Read-back command, status: OUT, null count, RW, mode, BCD.
    pub fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            let out = self.out(now);
            // Null count: what was written last is not yet in the counting element.
            let null = !self.running || (now as i64) < self.start && self.held.is_none() || self.next.is_some();
            let s = u8::from(out) << 7 | u8::from(null) << 6 | self.rw << 4 | self.mode << 1 | u8::from(self.bcd);
            self.latched_status = Some(s);
        }
    }

    pub fn read(&mut self, now: u64) -> u8 {
        if let Some(s) = self.latched_status.take() {
            return s;
        }
        let v = match self.latched {
            Some(v) => v,
            None => self.value(now),
        };
        let [lsb, msb] = v.to_le_bytes();
        let (byte, last) = match self.rw {
            RW_LSB => (lsb, true),
            RW_MSB => (msb, true),
            _ if self.read_msb => (msb, true),
            _ => (lsb, false),
        };
        self.read_msb = !last;
        if last {
            self.latched = None;
        }
        byte
    }
}

fn from_bcd(v: u16) -> u32 {
    (0..4).rev().fold(0, |n, i| n * 10 + u32::from(v >> (4 * i) & 15).min(9))
}

fn to_bcd(mut v: u16) -> u16 {
    let mut out = 0;
    for i in 0..4 {
        out |= (v % 10) << (4 * i);
        v /= 10;
    }
    out
}
