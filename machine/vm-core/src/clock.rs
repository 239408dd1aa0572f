//! Virtual time and the one timer queue. Devices read time and arm timers here; none reads the host's clock.

use crate::icount::InsnCounter;
use parking_lot::{Condvar, Mutex};
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

/// Handle to the virtual clock; cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
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
        Self(Arc::new(Inner { state, changed: Condvar::new(), on_earlier: OnceLock::new() }))
    }

    pub fn now(&self) -> Ns {
        self.0.state.lock().now()
    }

    /// The time as a vCPU tells its guest: what was due by then has happened. Without this a guest that counts ticks while it
    /// watches the time would miss some where the host has no core to spare for the timers' thread. No lock may be held.
    pub fn tell(&self) -> Ns {
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
        let mut s = self.0.state.lock();
        if s.since.is_none() {
            s.rebase();
            s.since = Some(Instant::now());
        }
        self.0.changed.notify_all();
    }

    pub fn stop(&self) {
        let mut s = self.0.state.lock();
        s.rebase();
        s.since = None;
    }

    /// Sets the time (loading a saved machine, tests). The clock must be stopped.
    pub fn set(&self, now: Ns) {
        let mut s = self.0.state.lock();
        assert!(s.since.is_none(), "the clock is set only while stopped");
        s.base = now;
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
        let mut s = self.0.state.lock();
        s.rebase();
        s.base += ns;
    }

    /// Changes the nanoseconds of an instruction, in units of `1 / RATE_ONE`, from now on.
    pub fn set_rate(&self, rate: u64) {
        let mut s = self.0.state.lock();
        s.rebase();
        if let Some(c) = &mut s.counting {
            c.rate = rate.max(1);
        }
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
                (slot.handler.clone(), now)
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
        let mut s = self.clock.0.state.lock();
        let was_next = s.next();
        s.slots[self.index].deadline = Some(deadline);
        let earlier = was_next.is_none_or(|n| deadline < n);
        drop(s);
        if earlier {
            self.clock.0.changed.notify_all();
            if let Some(f) = self.clock.0.on_earlier.get() {
                f();
            }
        }
    }

    pub fn cancel(&self) {
        self.clock.0.state.lock().slots[self.index].deadline = None;
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
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn by_instructions_a_timer_is_due_at_the_first_count_not_before_it() {
        let counter = Arc::new(InsnCounter::default());
        let clock = Clock::counting(counter.clone(), 8 * RATE_ONE);
        let timer = clock.timer("t");
        clock.start();
        for (deadline, insns) in [(0, 0), (1, 1), (8, 1), (9, 2), (80, 10)] {
            timer.arm(deadline);
            assert_eq!(clock.insns_to_deadline(), Some(insns), "{deadline} ns");
        }
        counter.publish(9);
        assert_eq!((clock.now(), clock.insns_to_deadline(), clock.ns_to_deadline()), (72, Some(1), Some(8)));
        clock.skip(8);
        assert_eq!((clock.now(), clock.insns_to_deadline()), (80, Some(0)));
        clock.stop();
        counter.publish(100);
        assert_eq!(clock.now(), 80, "the clock stands");
        clock.start();
        counter.publish(101);
        assert_eq!(clock.now(), 88);
        clock.set_rate(RATE_ONE / 2);
        counter.publish(104);
        assert_eq!(clock.now(), 89);
    }

    #[test]
    fn timers_are_never_behind_the_time_that_is_told() {
        let clock = Clock::new();
        let (timer, runs) = (clock.timer("test"), Arc::new(AtomicU32::new(0)));
        let count = runs.clone();
        timer.bind(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        timer.arm(1);
        clock.set(5);
        assert_eq!((clock.tell(), runs.load(Ordering::Relaxed)), (5, 0), "the machine is stopped");
        clock.start();
        assert!(clock.tell() >= 5 && runs.load(Ordering::Relaxed) == 1);
        timer.arm(u64::MAX);
        clock.tell();
        assert_eq!(runs.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn only_an_earlier_deadline_is_told() {
        let clock = Clock::new();
        let told = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let t = told.clone();
        clock.on_earlier(Box::new(move || {
            t.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }));
        let (a, b) = (clock.timer("a"), clock.timer("b"));
        a.arm(100);
        b.arm(200);
        b.arm(50);
        assert_eq!(told.load(std::sync::atomic::Ordering::Relaxed), 2);
    }
}
