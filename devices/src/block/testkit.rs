//! A disk in memory for controllers' tests: does its jobs at once, or when it is told to.

use super::{Disk, Geometry, Job, Op};
use parking_lot::Mutex;
use std::sync::Arc;
use vm_core::{Dma, MemMap, Pa, Ram};

/// Bytes of the memory that tests give controllers.
pub const RAM: u64 = 1 << 20;

/// A controller's way to memory of its own.
///
/// # Panics
/// If the host has no memory.
pub fn dma() -> Dma {
    let mut map = MemMap::default();
    map.map_ram(Pa(0), RAM, 0, true);
    Dma::new(Arc::new(Ram::new(RAM).expect("a mebibyte is there")), &map)
}

#[derive(Default)]
struct State {
    data: Vec<u8>,
    waiting: Vec<Job>,
    log: Vec<String>,
}

/// See the module. Jobs beyond `fail_from` (bytes) end in errors.
pub struct MemoryDisk {
    state: Mutex<State>,
    geometry: Mutex<Geometry>,
    /// Jobs wait for `run`.
    pub hold: bool,
    pub fail_from: u64,
}

impl MemoryDisk {
    pub fn new(bytes: u64) -> Self {
        let state = State { data: vec![0; bytes as usize], ..State::default() };
        let geometry = Geometry { bytes, read_only: false, discard: true, write_back: true };
        let geometry = Mutex::new(geometry);
        Self { state: Mutex::new(state), geometry, hold: false, fail_from: u64::MAX }
    }

    pub fn read_only(self) -> Self {
        self.geometry.lock().read_only = true;
        self
    }

    /// Without a write cache.
    pub fn write_through(self) -> Self {
        self.geometry.lock().write_back = false;
        self
    }

    /// Another size; who watches is not told.
    pub fn resize(&self, bytes: u64) {
        self.state.lock().data.resize(bytes as usize, 0);
        self.geometry.lock().bytes = bytes;
    }

    pub fn holding(mut self) -> Self {
        self.hold = true;
        self
    }

    pub fn shared(self) -> Arc<Self> {
        Arc::new(self)
    }

    pub fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        self.state.lock().data[at..at + len].to_vec()
    }

    pub fn fill(&self, at: usize, data: &[u8]) {
        self.state.lock().data[at..at + data.len()].copy_from_slice(data);
    }

    /// What was done since the last look.
    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().log)
    }

    /// Does the jobs that wait, the last one first. Returns how many there were.
    pub fn run(&self) -> usize {
        let jobs = std::mem::take(&mut self.state.lock().waiting);
        let n = jobs.len();
        jobs.into_iter().rev().for_each(|j| self.finish(j));
        n
    }

    fn finish(&self, job: Job) {
        let ok = self.perform(&job);
        job.done.done(job.id, ok);
        // Devices under test hold their lock, or ask for the completions themselves.
    }

    fn perform(&self, job: &Job) -> bool {
        let mut s = self.state.lock();
        let range = |at: u64, len: u64| at as usize..(at + len) as usize;
        let now = |through: bool| if through { " through" } else { "" };
        let (text, at) = match &job.op {
            Op::Read { at, .. } => (format!("read {at} {}", job.op.len()), *at),
            Op::Write { at, through, .. } => (format!("write {at} {}{}", job.op.len(), now(*through)), *at),
            Op::Flush => ("flush".into(), 0),
            Op::Discard { at, len } => (format!("discard {at} {len}"), *at),
            Op::Trim(list) => (format!("trim {list:?}"), 0),
            Op::Zero { at, len, unmap, through } => (format!("zero {at} {len} {unmap}{}", now(*through)), *at),
        };
        s.log.push(text);
        if at >= self.fail_from {
            return false;
        }
        match &job.op {
            Op::Read { at, to } => {
                let mut at = *at;
                for seg in to {
                    job.memory.write(seg.pa, &s.data[range(at, seg.len.into())]);
                    at += u64::from(seg.len);
                }
            }
            Op::Write { at, from, .. } => {
                let mut at = *at;
                for seg in from {
                    job.memory.read(seg.pa, &mut s.data[range(at, seg.len.into())]);
                    at += u64::from(seg.len);
                }
            }
            Op::Zero { at, len, .. } | Op::Discard { at, len } => s.data[range(*at, *len)].fill(0),
            Op::Trim(list) => list.iter().for_each(|(at, len)| s.data[range(*at, *len)].fill(0)),
            Op::Flush => {}
        }
        true
    }
}

impl Disk for MemoryDisk {
    fn geometry(&self) -> Geometry {
        self.geometry.lock().clone()
    }

    fn submit(&self, job: Job) {
        if self.hold {
            self.state.lock().waiting.push(job);
        } else {
            self.finish(job);
        }
    }

    fn drain(&self) {}

    fn abandon(&self) {
        self.state.lock().waiting.clear();
    }
}
