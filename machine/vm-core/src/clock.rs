//! Virtual time and the one timer queue. Devices read time and arm timers here; none reads the host's clock.

use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
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
    slots: Vec<Slot>,
}

impl State {
    fn now(&self) -> Ns {
        match self.since {
            Some(t) => self.base + t.elapsed().as_nanos() as u64,
            None => self.base,
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
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock {
    /// A stopped clock at 0 ns.
    pub fn new() -> Self {
        Self(Arc::new(Inner { state: Mutex::new(State { base: 0, since: None, slots: Vec::new() }), changed: Condvar::new() }))
    }

    pub fn now(&self) -> Ns {
        self.0.state.lock().now()
    }

    pub fn start(&self) {
        let mut s = self.0.state.lock();
        if s.since.is_none() {
            s.since = Some(Instant::now());
        }
        self.0.changed.notify_all();
    }

    pub fn stop(&self) {
        let mut s = self.0.state.lock();
        s.base = s.now();
        s.since = None;
    }

    /// Sets the time (loading a saved machine, tests). The clock must be stopped.
    pub fn set(&self, now: Ns) {
        let mut s = self.0.state.lock();
        assert!(s.since.is_none(), "the clock is set only while stopped");
        s.base = now;
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
        if was_next.is_none_or(|n| deadline < n) {
            self.clock.0.changed.notify_all();
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
