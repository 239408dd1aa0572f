//! `-icount`: the vCPU's thread stops the engine at the instruction at which the next timer is due, runs the timers there, and
//! lets time jump while the CPU is halted.

use crate::options::IcountConfig;
use crate::state::hash::HashLog;
use crate::vcpu_thread::{Cpu, NAP, wake_mask};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vm_core::clock::RATE_ONE;
use vm_core::{Clock, CpuIo, Events, InsnCounter, VcpuSignals};

/// `shift=auto` starts with 2^3 ns an instruction, as QEMU does, and then looks at the host this often.
const AUTO_SHIFT: u32 = 3;
const AUTO_PERIOD: Duration = Duration::from_millis(100);
/// Instructions between two looks, at most.
const AUTO_INSNS: u64 = 1_000_000;
/// Instructions without a timer, at most.
const LONG: u64 = 1 << 40;

/// Time of a machine that counts instructions.
pub struct Pace {
    counter: Arc<InsnCounter>,
    clock: Clock,
    sleep: bool,
    auto: Option<Auto>,
    hash: Option<HashLog>,
}

/// What `shift=auto` measures by.
struct Auto {
    since: Instant,
    insns: u64,
    virtual_ns: u64,
    /// Time slept since then.
    slept: Duration,
    /// How much guest time was behind the host's then, in ns.
    lag: i64,
}

/// The clock of a machine whose time follows the instructions counted by `counter`.
pub fn clock(config: &IcountConfig, counter: Arc<InsnCounter>) -> Clock {
    Clock::counting(counter, RATE_ONE << config.shift.unwrap_or(AUTO_SHIFT))
}

impl Pace {
    /// `clock` is that of the machine, whose only CPU has `signals`.
    pub fn new(
        config: &IcountConfig,
        counter: Arc<InsnCounter>,
        clock: Clock,
        signals: Arc<VcpuSignals>,
        hash: Option<HashLog>,
    ) -> Self {
        clock.on_earlier(Box::new(move || signals.raise(Events::TIMER)));
        let auto = config.shift.is_none().then(|| Auto::start(&clock, &counter, 0));
        Self { counter, clock, sleep: config.sleep, auto, hash }
    }

    /// At the limit: does what is due, and sets the next limit.
    pub fn at_limit(&mut self, cpu: &mut Cpu) {
        if let Some(hash) = &mut self.hash {
            hash.at(self.counter.executed(), cpu);
        }
        self.run_timers(cpu);
    }

    /// Runs the timers that are due, and sets the limit to where the next is.
    fn run_timers(&mut self, cpu: &Cpu) {
        cpu.io.signals().clear(Events::TIMER);
        self.clock.run_expired();
        let now = self.counter.executed();
        let mut next = self.clock.insns_to_deadline().unwrap_or(LONG).min(LONG);
        if let Some(hash) = &self.hash {
            next = next.min(hash.after(now));
        }
        if let Some(auto) = &mut self.auto {
            auto.adjust(&self.clock, &self.counter);
            next = next.min(AUTO_INSNS);
        }
        self.counter.set_limit(now + next);
    }

    /// The CPU is halted: time jumps to where the next timer is due, after as long in real time unless `sleep=off`.
    pub fn halted(&mut self, cpu: &mut Cpu) {
        let mask = wake_mask(cpu.engine.cpu());
        match self.clock.ns_to_deadline() {
            None => cpu.io.signals().wait(mask, NAP),
            Some(ns) if !self.sleep => self.clock.skip(ns),
            Some(ns) => {
                let start = Instant::now();
                let passed = wait(cpu, mask, start, ns);
                self.clock.skip(passed);
                if let Some(auto) = &mut self.auto {
                    auto.slept += start.elapsed();
                }
            }
        }
        self.run_timers(cpu);
    }
}

/// Waits `ns` from `start` on, or until something comes; gives the guest time that has passed.
fn wait(cpu: &Cpu, mask: Events, start: Instant, ns: u64) -> u64 {
    let passed = || ns.min(start.elapsed().as_nanos() as u64);
    loop {
        cpu.io.signals().wait(mask, Duration::from_nanos(ns - passed()));
        let came = cpu.io.signals().pending() & mask;
        if came.intersects(Events::INTR | Events::NMI | Events::SMI | Events::INIT | Events::SIPI) || passed() == ns {
            return passed();
        }
        if !came.is_empty() {
            // Not of the guest's world: it sleeps on afterwards, as if nothing had been.
            return 0;
        }
    }
}

impl Auto {
    fn start(clock: &Clock, counter: &InsnCounter, lag: i64) -> Self {
        let (insns, virtual_ns) = (counter.executed(), clock.now());
        Self { since: Instant::now(), insns, virtual_ns, slept: Duration::ZERO, lag }
    }

    /// Lets an instruction take as long as it took on the host of late, and a bit more or less to make up for the lag.
    fn adjust(&mut self, clock: &Clock, counter: &InsnCounter) {
        let real = self.since.elapsed();
        let insns = counter.executed() - self.insns;
        if real < AUTO_PERIOD || insns == 0 {
            return;
        }
        let period = AUTO_PERIOD.as_nanos() as i64;
        let lag = self.lag + real.as_nanos() as i64 - (clock.now() - self.virtual_ns) as i64;
        // A machine that was stopped is not to hurry after the host.
        let lag = lag.clamp(-period, period);
        let busy = real.saturating_sub(self.slept).as_nanos() as i64;
        let wanted = (busy + lag).max(busy / 8) as u128 * u128::from(RATE_ONE) / u128::from(insns);
        clock.set_rate(wanted.clamp(1, u128::from(RATE_ONE << 10)) as u64);
        *self = Self::start(clock, counter, lag);
    }
}
