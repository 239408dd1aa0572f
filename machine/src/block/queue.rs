//! A drive's jobs and the threads that do them; what becomes of errors (`werror=`, `rerror=`).

use super::image::Image;
use super::lease::{Lease, Leased};
use crate::control::Control;
use crate::options::{DriveConfig, ImageFormat, OnError};
use crate::say;
use devices::block::{Disk, Geometry, Job};
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Threads of one drive: jobs that wait for the host's disk do not hold up all others.
const THREADS: usize = 4;

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    /// Jobs that a thread has in hand, or has not yet told the end of.
    running: usize,
    /// Those of them that have been given up. Others do not begin before they have ended.
    given_up: usize,
    /// Jobs are given up by going on to the next one.
    epoch: u64,
    lease: Arc<Lease>,
    /// Stopped by an error until the machine goes on.
    parked: Vec<Job>,
    /// Threads are to end.
    closed: bool,
}

struct Inner {
    image: Image,
    id: String,
    on_write: OnError,
    on_read: OnError,
    control: Control,
    state: Mutex<State>,
    work: Condvar,
    idle: Condvar,
    /// An error has been told once.
    told: AtomicBool,
    /// Who is to know of another size.
    watchers: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
}

/// A job in a thread's hand.
struct Taken {
    job: Job,
    epoch: u64,
    lease: Arc<Lease>,
}

/// A drive that is open. Its threads have ended when it has been dropped, and with them the image's locks.
pub struct HostDisk(Arc<Inner>, Vec<JoinHandle<()>>);

impl HostDisk {
    pub fn start(c: &DriveConfig, image: Image, control: Control) -> io::Result<Arc<Self>> {
        let (state, work, idle, told, watchers) = Default::default();
        let (id, on_write, on_read) = (c.id.clone(), c.werror, c.rerror);
        let inner = Arc::new(Inner { image, id, on_write, on_read, control, state, work, idle, told, watchers });
        let mut this = Self(inner, Vec::new());
        for n in 0..THREADS {
            let inner = this.0.clone();
            this.1.push(std::thread::Builder::new().name(format!("disk{n}-{}", c.id)).spawn(move || inner.serve())?);
        }
        Ok(Arc::new(this))
    }

    pub fn format(&self) -> &'static str {
        match self.0.image.format {
            ImageFormat::Raw => "raw",
            ImageFormat::Qcow2 => "qcow2",
        }
    }

    pub fn backing(&self) -> Option<&Path> {
        self.0.image.backing.as_deref()
    }

    /// Whether an error has stopped jobs.
    pub fn stopped(&self) -> bool {
        !self.0.state.lock().parked.is_empty()
    }

    /// Jobs that have begun wait while the guard lives.
    #[cfg(test)]
    pub fn hold(&self) -> impl Drop + '_ {
        self.0.image.hold()
    }

    /// Jobs that a thread has in hand.
    #[cfg(test)]
    pub fn running(&self) -> usize {
        self.0.state.lock().running
    }

    /// Begins anew what an error has stopped.
    pub fn resume(&self) {
        let mut s = self.0.state.lock();
        let parked = std::mem::take(&mut s.parked);
        s.waiting.extend(parked);
        self.0.work.notify_all();
    }

    /// Gives the disk another size. What runs ends first; what comes later sees the new one.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        self.0.image.resize(bytes)?;
        self.0.watchers.lock().iter().for_each(|w| w());
        Ok(())
    }

    /// Everything to the image; an error is told.
    pub fn flush(&self) {
        if let Err(e) = self.0.image.flush() {
            say!("-drive {}: writing the last of it: {e}", self.0.id);
        }
    }
}

impl Disk for HostDisk {
    fn geometry(&self) -> Geometry {
        self.0.image.geometry()
    }

    fn submit(&self, job: Job) {
        self.0.state.lock().waiting.push_back(job);
        self.0.work.notify_one();
    }

    fn drain(&self) {
        let mut s = self.0.state.lock();
        while s.running > 0 || !s.waiting.is_empty() {
            self.0.idle.wait(&mut s);
        }
    }

    fn abandon(&self) {
        let mut s = self.0.state.lock();
        s.waiting.clear();
        s.parked.clear();
        s.epoch += 1;
        s.given_up = s.running;
        let lease = std::mem::take(&mut s.lease);
        if s.running == 0 {
            self.0.idle.notify_all();
        }
        drop(s);
        lease.end();
    }

    fn watch(&self, changed: Box<dyn Fn() + Send + Sync>) {
        self.0.watchers.lock().push(changed);
    }
}

impl Drop for HostDisk {
    fn drop(&mut self) {
        self.0.state.lock().closed = true;
        self.0.work.notify_all();
        // The last one to let go may be a thread of its own, which ends by itself.
        let own = std::thread::current().id();
        self.1.drain(..).filter(|t| t.thread().id() != own).for_each(|t| drop(t.join()));
    }
}

impl Inner {
    fn serve(&self) {
        let mut buf = Vec::new();
        loop {
            let mut s = self.state.lock();
            let taken = loop {
                if s.given_up == 0
                    && let Some(job) = s.waiting.pop_front()
                {
                    s.running += 1;
                    break Taken { job, epoch: s.epoch, lease: s.lease.clone() };
                }
                if s.closed {
                    return;
                }
                self.work.wait(&mut s);
            };
            drop(s);
            let (done, epoch) = (taken.job.done.clone(), taken.epoch);
            let told = self.run(taken, &mut buf);
            let mut s = self.state.lock();
            s.running -= 1;
            if epoch != s.epoch {
                s.given_up -= 1;
                self.work.notify_all();
            }
            if s.running == 0 && s.waiting.is_empty() {
                self.idle.notify_all();
            }
            drop(s);
            if told {
                done.kick();
            }
        }
    }

    /// Does a job; whether its end was told.
    fn run(&self, taken: Taken, buf: &mut Vec<u8>) -> bool {
        let (job, memory) = (&taken.job, Leased { memory: &taken.job.memory, lease: &taken.lease });
        // A library that falls over an image must not leave the guest waiting for ever.
        let done = catch_unwind(AssertUnwindSafe(|| self.image.perform(&job.op, &memory, buf)));
        let ok = match done.unwrap_or_else(|_| Err(io::Error::other("the image's format is in disorder"))) {
            Ok(()) => true,
            Err(_) if self.state.lock().epoch != taken.epoch => return false,
            Err(e) => {
                let full = e.raw_os_error() == Some(nix::libc::ENOSPC);
                let policy = if matches!(job.op, devices::block::Op::Read { .. }) { self.on_read } else { self.on_write };
                match policy {
                    OnError::Stop => return self.park(taken, &e),
                    OnError::Enospc if full => return self.park(taken, &e),
                    OnError::Ignore => true,
                    OnError::Report | OnError::Enospc => {
                        self.tell(&e, "the guest is told");
                        false
                    }
                }
            }
        };
        // Under the lock: who has given it up is not told afterwards.
        let s = self.state.lock();
        if s.epoch == taken.epoch {
            job.done.done(job.id, ok);
        }
        s.epoch == taken.epoch
    }

    fn park(&self, taken: Taken, e: &io::Error) -> bool {
        let mut s = self.state.lock();
        if s.epoch == taken.epoch {
            s.parked.push(taken.job);
            drop(s);
            self.tell(e, "the machine is stopped; 'cont' tries again");
            self.control.stop_for_io_error();
        }
        false
    }

    /// The first error is told, others are in the log.
    fn tell(&self, e: &io::Error, what: &str) {
        vm_core::dlog!(GUEST_ERRORS, "drive {}: {e}", self.id);
        if !self.told.swap(true, Ordering::Relaxed) {
            say!("-drive {}: {e} ({what})", self.id);
        }
    }
}
