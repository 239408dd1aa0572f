//! The event loop: one thread that waits for host file descriptors, and one that runs the timer queue.

use crate::say;
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vm_core::Clock;

/// One descriptor a source waits for. `token` comes back in `Source::ready`.
pub struct Want {
    pub fd: Arc<OwnedFd>,
    pub events: PollFlags,
    pub token: u32,
}

/// Something that waits for the host. All methods run on the loop's thread.
pub trait Source: Send + Sync {
    /// Adds what it waits for now; asked again before every wait.
    fn interest(&self, wants: &mut Vec<Want>);
    /// A descriptor is ready (or has hung up, or is in error).
    fn ready(&self, token: u32, events: PollFlags);
    /// When to ask `interest` again even if nothing happens.
    fn deadline(&self) -> Option<Instant>;
}

struct Shared {
    wake: Arc<OwnedFd>,
    sources: Mutex<Vec<Arc<dyn Source>>>,
    stop: AtomicBool,
}

/// Makes the loop ask its sources again. Cheap to clone; callable from any thread, with device locks held.
#[derive(Clone)]
pub struct Waker(Arc<Shared>);

impl Waker {
    pub fn wake(&self) {
        // A full counter means that a wake is pending already.
        let _ = rustix::io::write(&*self.0.wake, &1u64.to_ne_bytes());
    }

    /// Adds a source for as long as the loop lives.
    pub fn add(&self, source: Arc<dyn Source>) {
        self.0.sources.lock().push(source);
        self.wake();
    }
}

/// The two threads; they end when this is dropped.
pub struct EventLoop {
    shared: Arc<Shared>,
    clock: Clock,
    threads: Vec<JoinHandle<()>>,
}

impl EventLoop {
    /// Starts the threads. Errors are those of eventfd and of making threads.
    pub fn start(clock: Clock) -> io::Result<Self> {
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let shared = Arc::new(Shared { wake, sources: Mutex::default(), stop: AtomicBool::new(false) });
        let mut this = Self { shared: shared.clone(), clock: clock.clone(), threads: vec![] };
        let for_io = shared.clone();
        this.threads.push(std::thread::Builder::new().name("events".into()).spawn(move || run_io(&for_io))?);
        if !clock.counts() {
            this.threads.push(std::thread::Builder::new().name("timers".into()).spawn(move || run_timers(&shared, &clock))?);
        }
        Ok(this)
    }

    pub fn waker(&self) -> Waker {
        Waker(self.shared.clone())
    }
}

impl Drop for EventLoop {
    /// Ends and joins both threads, unless the last owner is one of them. Sources hold wakers, and so the loop: letting
    /// go of them here ends the circle.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.waker().wake();
        self.clock.wake();
        let me = std::thread::current().id();
        for t in self.threads.drain(..).filter(|t| t.thread().id() != me) {
            if t.join().is_err() {
                say!("an event thread panicked");
            }
        }
        let sources = std::mem::take(&mut *self.shared.sources.lock());
        drop(sources);
    }
}

fn run_timers(shared: &Shared, clock: &Clock) {
    // The default slack of 50 us would be most of what a guest sees as timer latency.
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    while !shared.stop.load(Ordering::SeqCst) {
        clock.wait(Duration::from_millis(500));
        clock.run_expired();
    }
}

fn run_io(shared: &Shared) {
    while !shared.stop.load(Ordering::SeqCst) {
        let sources = shared.sources.lock().clone();
        if let Err(e) = turn(shared, &sources) {
            say!("the event loop cannot wait: {e}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Waits once and serves what is ready.
fn turn(shared: &Shared, sources: &[Arc<dyn Source>]) -> io::Result<()> {
    let mut wants = vec![];
    let mut owners = vec![];
    for (i, s) in sources.iter().enumerate() {
        s.interest(&mut wants);
        owners.resize(wants.len(), i);
    }
    let mut fds: Vec<_> = wants.iter().map(|w| PollFd::new(&*w.fd, w.events)).collect();
    fds.push(PollFd::new(&*shared.wake, PollFlags::IN));
    let wait = sources.iter().filter_map(|s| s.deadline()).min().map(|d| d.saturating_duration_since(Instant::now()));
    match poll(&mut fds, wait.and_then(|w| Timespec::try_from(w).ok()).as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => return Err(e.into()),
    }
    let events: Vec<_> = fds.iter().map(|f| f.revents()).collect();
    if events.last().is_some_and(|e| !e.is_empty()) {
        let _ = rustix::io::read(&*shared.wake, &mut [0u8; 8]);
    }
    for ((want, owner), ev) in wants.iter().zip(owners).zip(events) {
        if !ev.is_empty() {
            sources[owner].ready(want.token, ev);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn timers_run_and_drop_ends_the_threads() {
        let clock = Clock::new();
        let (tx, rx) = mpsc::channel();
        let timer = clock.timer("test");
        let c = clock.clone();
        timer.bind(move |_| tx.send(c.now()).unwrap());
        let events = EventLoop::start(clock.clone()).unwrap();
        clock.start();
        let at = clock.now() + 5_000_000;
        timer.arm(at);
        let ran = rx.recv_timeout(Duration::from_secs(5)).unwrap();
        assert!(ran >= at);
        drop(events);
    }
}
