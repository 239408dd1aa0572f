//! What other threads, and devices, ask of the vCPU thread: requests, and jobs that need the CPU to stand still.

use crate::runner::Runner;
use devices::power::PowerSink;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;
use vm_core::debug::DebugEvent;
use vm_core::{Events, VcpuSignals};

/// Jobs that may wait for the vCPU thread.
const MAX_JOBS: usize = 16;
/// Longest wait for a job: a vCPU answers within a block of code, or a stalled write of a character back end.
const JOB_LIMIT: Duration = Duration::from_secs(5);

/// Whether the guest runs, for `info status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    Running,
    /// Not started yet (`-S`), or reset while it did not run.
    Prelaunch,
    Paused,
    /// Stands still for the debugger.
    Debug,
    /// The guest has powered off, and `-no-shutdown` keeps the program.
    Shutdown,
    /// Waits for a saved machine (`-incoming defer`).
    InMigrate,
    /// Has been saved by `migrate`, to go on elsewhere.
    PostMigrate,
    /// Loading a saved machine has failed half-way.
    InternalError,
    /// A disk's error has stopped it (`werror=stop`).
    IoError,
}

impl RunState {
    /// QMP's word for it (`RunState`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Prelaunch => "prelaunch",
            Self::Paused => "paused",
            Self::Debug => "debug",
            Self::Shutdown => "shutdown",
            Self::InMigrate => "inmigrate",
            Self::PostMigrate => "postmigrate",
            Self::InternalError => "internal-error",
            Self::IoError => "io-error",
        }
    }

    /// The monitor's words for it, as in QEMU.
    pub fn text(self) -> String {
        match self {
            Self::Running | Self::Paused => self.name().into(),
            _ => format!("paused ({})", self.name()),
        }
    }
}

/// Why the machine is reset, or the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    GuestReset,
    GuestShutdown,
    /// `system_reset`.
    HostReset,
    /// `quit`, or the mux's Ctrl-A X.
    HostQuit,
    HostSignal,
}

impl Cause {
    /// QMP's word for it (`ShutdownCause`).
    pub fn name(self) -> &'static str {
        match self {
            Self::GuestReset => "guest-reset",
            Self::GuestShutdown => "guest-shutdown",
            Self::HostReset => "host-qmp-system-reset",
            Self::HostQuit => "host-qmp-quit",
            Self::HostSignal => "host-signal",
        }
    }

    pub fn by_guest(self) -> bool {
        matches!(self, Self::GuestReset | Self::GuestShutdown)
    }
}

/// What has happened to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    Stop,
    Resume,
    Reset(Cause),
    Shutdown(Cause),
    /// The power button was pressed.
    Powerdown,
    /// The guest has so many bytes left beside the balloon.
    Balloon(u64),
    /// A vCPU, by its number, has stopped for the debugger. `Stop` follows.
    Debug(usize, DebugEvent),
    /// The program ends with this status.
    End(u8),
}

/// Is told what happens to the machine, mostly on the vCPU's thread: must not wait.
pub trait Observer: Send + Sync {
    fn notice(&self, n: Notice);
}

/// Runs on the vCPU thread, between two instructions.
pub type Job = Box<dyn FnOnce(&mut Runner) + Send>;

/// What was asked for since the last look.
#[derive(Default)]
pub struct Requests {
    pub reset: Option<Cause>,
    pub power_off: bool,
    /// A disk's error is to stop the machine.
    pub io_error: bool,
    /// The program ends with this status; without a cause nobody is told.
    pub end: Option<(u8, Option<Cause>)>,
    /// New level of address line 20 (`true`: enabled).
    pub a20: Option<bool>,
    /// Addresses have changed between ROM and RAM.
    pub remap: bool,
    pub jobs: VecDeque<Job>,
    /// The vCPU thread has ended: jobs would wait for nothing.
    closed: bool,
}

struct Inner {
    /// Of all vCPUs.
    signals: Vec<Arc<VcpuSignals>>,
    requests: Mutex<Requests>,
    state: Mutex<RunState>,
    observers: Mutex<Vec<Arc<dyn Observer>>>,
    /// Host thread ids of the vCPUs.
    threads: Mutex<Vec<i32>>,
}

/// Handle to the machine that runs; cheap to clone. All but `with_runner` only notes the request, so devices may call it
/// with their lock held.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

impl Control {
    /// `signals` of all vCPUs; at least one.
    pub fn new(signals: Vec<Arc<VcpuSignals>>, state: RunState) -> Self {
        let (observers, threads) = Default::default();
        Self(Arc::new(Inner { signals, requests: Mutex::default(), state: Mutex::new(state), observers, threads }))
    }

    fn ask(&self, what: impl FnOnce(&mut Requests)) {
        what(&mut self.0.requests.lock());
        self.stop_all();
    }

    /// Makes all vCPUs come back.
    pub fn stop_all(&self) {
        self.0.signals.iter().for_each(|s| s.raise(Events::STOP));
    }

    /// Where `Events::STOP` is seen while the machine stands still.
    pub fn signals(&self) -> &VcpuSignals {
        &self.0.signals[0]
    }

    /// Ends the program with this status. The first one asked for counts.
    pub fn end(&self, status: u8, cause: Option<Cause>) {
        self.ask(|r| r.end = r.end.or(Some((status, cause))));
    }

    /// Stops the machine for an error of a disk's.
    pub fn stop_for_io_error(&self) {
        self.ask(|r| r.io_error = true);
    }

    /// Forgets it: the machine goes on, and tries again what went wrong.
    pub fn forget_io_error(&self) {
        self.0.requests.lock().io_error = false;
    }

    /// Adds somebody to be told, for as long as the machine lives.
    pub fn add_observer(&self, o: Arc<dyn Observer>) {
        self.0.observers.lock().push(o);
    }

    pub fn tell(&self, n: Notice) {
        let observers = self.0.observers.lock().clone();
        observers.iter().for_each(|o| o.notice(n));
    }

    /// Host thread ids of the vCPUs that have started.
    pub fn threads(&self) -> Vec<i32> {
        self.0.threads.lock().clone()
    }

    /// For `vcpu_thread`, when they have started.
    pub fn set_threads(&self, ids: Vec<i32>) {
        *self.0.threads.lock() = ids;
    }

    pub fn set_a20(&self, on: bool) {
        self.ask(|r| r.a20 = Some(on));
    }

    /// Engines are to forget where addresses lead.
    pub fn remap(&self) {
        self.ask(|r| r.remap = true);
    }

    /// Takes all requests. `Events::STOP` is cleared first: what is asked later raises it again. All vCPUs stand still.
    pub fn take(&self) -> Requests {
        self.0.signals.iter().for_each(|s| s.clear(Events::STOP));
        std::mem::take(&mut self.0.requests.lock())
    }

    /// Runs `job` on the vCPU thread and waits for its result. `None`: that thread has ended or does not answer.
    pub fn with_runner<R: Send + 'static>(&self, job: impl FnOnce(&mut Runner) -> R + Send + 'static) -> Option<R> {
        self.submit(job)?.recv_timeout(JOB_LIMIT).ok()
    }

    /// The same for a job that takes its time. Not for the event loop's thread.
    pub fn with_runner_for_long<R: Send + 'static>(&self, job: impl FnOnce(&mut Runner) -> R + Send + 'static) -> Option<R> {
        self.submit(job)?.recv().ok()
    }

    fn submit<R: Send + 'static>(&self, job: impl FnOnce(&mut Runner) -> R + Send + 'static) -> Option<Receiver<R>> {
        let (tx, rx) = mpsc::sync_channel(1);
        {
            let mut r = self.0.requests.lock();
            if r.closed || r.jobs.len() >= MAX_JOBS {
                return None;
            }
            // A receiver that has given up is no error.
            r.jobs.push_back(Box::new(move |runner| drop(tx.send(job(runner)))));
        }
        self.stop_all();
        Some(rx)
    }

    /// Forgets a change of address line 20 that was asked for, as devices do that are being loaded.
    pub fn forget_a20(&self) {
        self.0.requests.lock().a20 = None;
    }

    /// The vCPU thread ends: whoever waits for a job is told.
    pub fn close(&self) {
        *self.0.requests.lock() = Requests { closed: true, ..Requests::default() };
    }

    pub fn state(&self) -> RunState {
        *self.0.state.lock()
    }

    /// For the vCPU thread.
    pub fn set_state(&self, s: RunState) {
        *self.0.state.lock() = s;
    }
}

impl PowerSink for Control {
    fn reset(&self) {
        self.ask(|r| r.reset = r.reset.or(Some(Cause::GuestReset)));
    }

    fn power_off(&self) {
        self.ask(|r| r.power_off = true);
    }

    fn exit(&self, status: i32) {
        self.end((status & 0xff) as u8, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_raise_stop_and_are_taken_once() {
        let signals = Arc::new(VcpuSignals::default());
        let c = Control::new(vec![signals.clone()], RunState::Running);
        c.exit(33);
        c.end(0, Some(Cause::HostQuit));
        c.reset();
        assert_eq!(signals.pending(), Events::STOP);
        let r = c.take();
        assert_eq!((r.end, r.reset, r.power_off), (Some((33, None)), Some(Cause::GuestReset), false));
        assert!(signals.pending().is_empty());
        assert!(c.take().end.is_none());
    }

    #[test]
    fn jobs_beyond_the_bound_are_refused() {
        let c = Control::new(vec![Arc::default()], RunState::Running);
        let mut full = VecDeque::new();
        full.resize_with(MAX_JOBS, || Box::new(|_: &mut Runner| ()) as Job);
        c.0.requests.lock().jobs = full;
        assert_eq!(c.with_runner(|_| 1), None);
    }

    #[test]
    fn jobs_for_a_thread_that_has_ended_return_at_once() {
        let c = Control::new(vec![Arc::default()], RunState::Running);
        let waiting = c.clone();
        let job = std::thread::spawn(move || waiting.with_runner(|_| 1));
        while c.0.requests.lock().jobs.is_empty() {
            std::thread::yield_now();
        }
        let start = std::time::Instant::now();
        c.close();
        assert_eq!(job.join().unwrap(), None);
        assert_eq!(c.with_runner(|_| 1), None);
        assert!(start.elapsed() < JOB_LIMIT);
    }
}
