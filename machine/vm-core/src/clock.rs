//! Virtual time and the one timer queue. Devices read time and arm timers here; none reads the host's clock.

use crate::icount::InsnCounter;
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// Guest nanoseconds since the machine was made. Stands still while the machine is stopped.
pub type Ns = u64;

type Handler = Arc<dyn Fn(Ns) + Send + Sync>;

struct Slot {
    name: &'static str,
    deadline: Option<Ns>,
    handler: Option<Handler>,
}

struct State {
    /// Guest time at `since`, or now if stopped.
    base: Ns,
    /// Host instant at which the clock was last started; `None` while stopped.
    since: Option<Instant>,
    /// Time follows the instructions executed, not the host.
    counting: Option<Counting>,
    slots: Vec<Slot>,
}

/// Time by instructions.
struct Counting {
    counter: Arc<InsnCounter>,
    /// Instructions executed at guest time `State::base`.
    origin: u64,
    /// Nanoseconds an instruction, in units of `1 / RATE_ONE`.
    rate: u64,
}

/// One nanosecond an instruction.
pub const RATE_ONE: u64 = 1 << 16;

impl Counting {
    fn ns(&self, insns: u64) -> Ns {
        (u128::from(insns) * u128::from(self.rate) / u128::from(RATE_ONE)) as Ns
    }

    /// The fewest instructions that take `ns`.
    fn insns(&self, ns: Ns) -> u64 {
        (u128::from(ns) * u128::from(RATE_ONE)).div_ceil(u128::from(self.rate)) as u64
    }
}

impl State {
    fn now(&self) -> Ns {
        match (self.since, &self.counting) {
            (Some(_), Some(c)) => self.base + c.ns(c.counter.executed() - c.origin),
            (Some(t), None) => self.base + t.elapsed().as_nanos() as u64,
            (None, _) => self.base,
        }
    }

    /// Sets the time as it is now as the new base.
    fn rebase(&mut self) {
        self.base = self.now();
        if let Some(c) = &mut self.counting {
            c.origin = c.counter.executed();
        }
    }

    fn next(&self) -> Option<Ns> {
        self.slots.iter().filter_map(|s| s.deadline).min()
    }
}

/// What is needed to tell the time without the lock while it just runs. Written with the lock held only.
struct Shown {
    /// Even: time runs by the host's clock, and `ahead` holds. Odd: only the lock tells. Every change makes it another.
    version: AtomicU64,
    /// Guest time less the host's nanoseconds since `host`, modulo 2^64.
    ahead: AtomicU64,
    /// When the first timer is due; `NEVER`: none is armed.
    next: AtomicU64,
    host: Instant,
}

const NEVER: Ns = Ns::MAX;

impl Shown {
    fn new() -> Self {
        Self { version: AtomicU64::new(1), ahead: AtomicU64::new(0), next: AtomicU64::new(NEVER), host: Instant::now() }
    }

    /// The time, if it just runs. No reader gets one past that at which the clock is stopped: a version that is still the same
    /// after the host's clock was read was so before `stop` reads it.
    fn now(&self) -> Option<Ns> {
        let version = self.version.load(Ordering::Acquire);
        if version & 1 != 0 {
            return None;
        }
        let ahead = self.ahead.load(Ordering::Relaxed);
        let now = ahead.wrapping_add(self.host.elapsed().as_nanos() as u64);
        fence(Ordering::Acquire);
        (self.version.load(Ordering::Relaxed) == version).then_some(now)
    }

    /// From here on the lock tells.
    fn hide(&self) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version | 1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// What `hide` hid has changed.
    fn show(&self, s: &State) {
        if let (Some(since), None) = (s.since, &s.counting) {
            let at = since.duration_since(self.host).as_nanos() as u64;
            self.ahead.store(s.base.wrapping_sub(at), Ordering::Relaxed);
            let version = self.version.load(Ordering::Relaxed);
            self.version.store(version.wrapping_add(1), Ordering::Release);
        }
    }

    /// A deadline has changed.
    fn deadlines(&self, s: &State) {
        self.next.store(s.next().unwrap_or(NEVER), Ordering::Relaxed);
    }
}

/// Handle to the virtual clock; cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    shown: Shown,
    changed: Condvar,
    /// Called when an earlier deadline is set than there was.
    on_earlier: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A stopped clock at 0 ns.
    pub fn new() -> Self {
        Self::with(None)
    }

    /// A stopped clock at 0 ns that goes by the instructions of a vCPU, `rate` / `RATE_ONE` nanoseconds each. Its timers are
    /// run by the vCPU's thread, between two instructions.
    pub fn counting(counter: Arc<InsnCounter>, rate: u64) -> Self {
        Self::with(Some(Counting { counter, origin: 0, rate: rate.max(1) }))
    }

    fn with(counting: Option<Counting>) -> Self {
        let state = Mutex::new(State { base: 0, since: None, counting, slots: Vec::new() });
        Self(Arc::new(Inner { state, shown: Shown::new(), changed: Condvar::new(), on_earlier: OnceLock::new() }))
    }

    /// Changes how time goes. Readers wait meanwhile.
    fn change(&self, f: impl FnOnce(&mut State)) {
        let mut s = self.0.state.lock();
        self.0.shown.hide();
        f(&mut s);
        self.0.shown.show(&s);
    }

    pub fn now(&self) -> Ns {
        self.0.shown.now().unwrap_or_else(|| self.0.state.lock().now())
    }

    /// The time as a vCPU tells its guest: what was due by then has happened. Without this a guest that counts ticks while it
    /// watches the time would miss some where the host has no core to spare for the timers' thread. No lock may be held.
    pub fn tell(&self) -> Ns {
        let Some(now) = self.0.shown.now() else { return self.tell_locked() };
        if self.0.shown.next.load(Ordering::Relaxed) <= now {
            self.run_expired();
        }
        now
    }

    #[cold]
    fn tell_locked(&self) -> Ns {
        let (now, due) = {
            let s = self.0.state.lock();
            let now = s.now();
            let runs = s.since.is_some() && s.counting.is_none();
            (now, runs && s.next().is_some_and(|next| next <= now))
        };
        if due {
            self.run_expired();
        }
        now
    }

    pub fn start(&self) {
        self.change(|s| {
            if s.since.is_none() {
                s.rebase();
                s.since = Some(Instant::now());
            }
        });
        self.0.changed.notify_all();
    }

    pub fn stop(&self) {
        self.change(|s| {
            s.rebase();
            s.since = None;
        });
    }

    /// Sets the time (loading a saved machine, tests). The clock must be stopped.
    pub fn set(&self, now: Ns) {
        self.change(|s| {
            assert!(s.since.is_none(), "the clock is set only while stopped");
            s.base = now;
        });
    }

    /// Whether time follows instructions.
    pub fn counts(&self) -> bool {
        self.0.state.lock().counting.is_some()
    }

    /// Instructions from now at whose end the next timer is due, 0 if one is; `None`: no timer is armed. Only of use where
    /// time follows instructions.
    pub fn insns_to_deadline(&self) -> Option<u64> {
        let s = self.0.state.lock();
        let (next, c) = (s.next()?, s.counting.as_ref()?);
        let at = c.insns(next.saturating_sub(s.base));
        Some(at.saturating_sub(c.counter.executed() - c.origin))
    }

    /// Nanoseconds until the next timer is due; `None`: no timer is armed.
    pub fn ns_to_deadline(&self) -> Option<Ns> {
        let s = self.0.state.lock();
        Some(s.next()?.saturating_sub(s.now()))
    }

    /// Lets time jump, as a halted vCPU does where time follows instructions.
    pub fn skip(&self, ns: Ns) {
        self.change(|s| {
            s.rebase();
            s.base += ns;
        });
    }

    /// Changes the nanoseconds of an instruction, in units of `1 / RATE_ONE`, from now on.
    pub fn set_rate(&self, rate: u64) {
        self.change(|s| {
            s.rebase();
            if let Some(c) = &mut s.counting {
                c.rate = rate.max(1);
            }
        });
    }

    /// What to call, with no lock of the clock held, when a timer is armed for a time before all others. Once only.
    pub fn on_earlier(&self, f: Box<dyn Fn() + Send + Sync>) {
        if self.0.on_earlier.set(f).is_err() {
            unreachable!("one vCPU runs the timers");
        }
    }

    /// Makes a timer. `name` shows in `info timers`. It is not armed, and does nothing until `Timer::bind`.
    pub fn timer(&self, name: &'static str) -> Timer {
        let mut s = self.0.state.lock();
        s.slots.push(Slot { name, deadline: None, handler: None });
        Timer { clock: self.clone(), index: s.slots.len() - 1 }
    }

    /// Runs the handlers of all timers whose deadline has passed, earliest first. No lock is held while one runs.
    pub fn run_expired(&self) {
        loop {
            let (handler, now) = {
                let mut s = self.0.state.lock();
                let now = s.now();
                let due = s.slots.iter_mut().filter(|t| t.deadline.is_some_and(|d| d <= now)).min_by_key(|t| t.deadline);
                let Some(slot) = due else { return };
                slot.deadline = None;
                let handler = slot.handler.clone();
                self.0.shown.deadlines(&s);
                (handler, now)
            };
            if let Some(h) = handler {
                h(now);
            }
        }
    }

    /// Sleeps until the next deadline, a change of the queue, or `limit`. For the thread that calls `run_expired`.
    pub fn wait(&self, limit: Duration) {
        let mut s = self.0.state.lock();
        let wait = match (s.since, s.next()) {
            (Some(_), Some(d)) => Duration::from_nanos(d.saturating_sub(s.now())).min(limit),
            _ => limit,
        };
        if !wait.is_zero() {
            self.0.changed.wait_for(&mut s, wait);
        }
    }

    /// Wakes the thread that sleeps in `wait`.
    pub fn wake(&self) {
        drop(self.0.state.lock());
        self.0.changed.notify_all();
    }

    /// Names and deadlines of armed timers, for the monitor.
    pub fn armed(&self) -> Vec<(&'static str, Ns)> {
        let s = self.0.state.lock();
        s.slots.iter().filter_map(|t| Some((t.name, t.deadline?))).collect()
    }
}

/// One deadline in the queue, owned by a device. May be armed with the device's lock held.
pub struct Timer {
    clock: Clock,
    index: usize,
}

impl Timer {
    /// Sets what runs on expiry (on the timer thread, no lock held; it may lock the device and arm again).
    pub fn bind(&self, handler: impl Fn(Ns) + Send + Sync + 'static) {
        self.clock.0.state.lock().slots[self.index].handler = Some(Arc::new(handler));
    }

    /// Arms for guest time `deadline`, replacing an earlier deadline. A time in the past expires at once.
    pub fn arm(&self, deadline: Ns) {
        let inner = &self.clock.0;
        let mut s = inner.state.lock();
        s.slots[self.index].deadline = Some(deadline);
        let earlier = deadline < inner.shown.next.load(Ordering::Relaxed);
        inner.shown.deadlines(&s);
        drop(s);
        if earlier {
            inner.changed.notify_all();
            if let Some(f) = inner.on_earlier.get() {
                f();
            }
        }
    }

    pub fn cancel(&self) {
        let inner = &self.clock.0;
        let mut s = inner.state.lock();
        s.slots[self.index].deadline = None;
        inner.shown.deadlines(&s);
    }

    pub fn deadline(&self) -> Option<Ns> {
        self.clock.0.state.lock().slots[self.index].deadline
    }

    pub fn now(&self) -> Ns {
        self.clock.now()
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

#[cfg(test)]
#[path = "clock_tests.rs"]
mod tests;
