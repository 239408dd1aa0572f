//! What disk controllers ask of the host: jobs on one disk, done by other threads in any order.

pub mod ahci;
pub mod ata;
pub mod ide;
pub mod testkit;

use crate::pci::BusMaster;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::Pa;

/// Bytes of the unit that controllers count disks in.
pub const SECTOR: u64 = 512;

/// A range of guest memory, or of a host buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub pa: u64,
    pub len: u32,
}

/// What is to be done. Positions and lengths are bytes, multiples of `SECTOR`; the controller has checked that they lie in the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    Read {
        at: u64,
        to: Vec<Segment>,
    },
    /// `through`: done when it is on disk.
    Write {
        at: u64,
        from: Vec<Segment>,
        through: bool,
    },
    /// Done when all writes that were done before it are on disk.
    Flush,
    /// The content is of no further use.
    Discard {
        at: u64,
        len: u64,
    },
    /// As `Discard`, of several ranges: positions and lengths.
    Trim(Vec<(u64, u64)>),
    /// Reads as zeroes afterwards. `unmap`: space on the host may be given back; `through`: done when it is on disk.
    Zero {
        at: u64,
        len: u64,
        unmap: bool,
        #[serde(default)]
        through: bool,
    },
}

impl Op {
    /// Bytes of data that move, or of disk that is concerned.
    pub fn len(&self) -> u64 {
        match self {
            Self::Read { to: list, .. } | Self::Write { from: list, .. } => list.iter().map(|s| u64::from(s.len)).sum(),
            Self::Discard { len, .. } | Self::Zero { len, .. } => *len,
            Self::Trim(list) => list.iter().fold(0, |sum, (_, len)| sum.saturating_add(*len)),
            Self::Flush => 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it changes the disk.
    pub fn writes(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::Discard { .. } | Self::Trim(_) | Self::Zero { .. })
    }

    /// Whether it lies in a disk of `bytes`.
    pub fn fits(&self, bytes: u64) -> bool {
        match self {
            Self::Read { at, .. } | Self::Write { at, .. } | Self::Discard { at, .. } | Self::Zero { at, .. } => {
                range_fits(*at, self.len(), bytes)
            }
            Self::Trim(list) => list.iter().all(|(at, len)| range_fits(*at, *len, bytes)),
            Self::Flush => true,
        }
    }
}

fn range_fits(at: u64, len: u64, bytes: u64) -> bool {
    let aligned = at.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
    aligned && at.checked_add(len).is_some_and(|end| end <= bytes)
}

/// Where data comes from and goes to. Both may be used by any thread.
#[derive(Clone)]
pub enum Memory {
    Guest(BusMaster),
    /// A controller's own buffer; segments count from its start.
    Buffer(Arc<Mutex<Vec<u8>>>),
}

impl Memory {
    /// Reads what a segment names; ones where there is nothing.
    pub fn read(&self, at: u64, buf: &mut [u8]) {
        match self {
            Self::Guest(m) => m.read(Pa(at), buf),
            Self::Buffer(b) => {
                let b = b.lock();
                let from = b.get(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or_default();
                let n = from.len().min(buf.len());
                buf[..n].copy_from_slice(&from[..n]);
                buf[n..].fill(0xff);
            }
        }
    }

    /// Writes what a segment names; nothing happens where there is nothing.
    pub fn write(&self, at: u64, data: &[u8]) {
        match self {
            Self::Guest(m) => m.write(Pa(at), data),
            Self::Buffer(b) => {
                let mut b = b.lock();
                let to = b.get_mut(usize::try_from(at).unwrap_or(usize::MAX)..).unwrap_or_default();
                let n = to.len().min(data.len());
                to[..n].copy_from_slice(&data[..n]);
            }
        }
    }
}

/// Is told when jobs are done, on whatever thread did them.
pub trait Done: Send + Sync {
    /// Job `id` is done; must only note it. `ok`: the guest is to see no error.
    fn done(&self, id: u64, ok: bool);
    /// After `done`, when the job no longer counts as running: may take the device's lock.
    fn kick(&self);
}

/// A job and whom to tell.
pub struct Job {
    pub id: u64,
    pub op: Op,
    pub memory: Memory,
    pub done: Arc<dyn Done>,
}

/// What a controller tells its guest about a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// A multiple of `SECTOR`.
    pub bytes: u64,
    pub read_only: bool,
    /// Discards are of use.
    pub discard: bool,
    /// Writes may stay in the host's memory until a flush (`cache.writeback`).
    pub write_back: bool,
}

/// A disk of the host's. Jobs that are handed over together are done in any order.
pub trait Disk: Send + Sync {
    fn geometry(&self) -> Geometry;
    /// Takes a job; never waits for it, and may tell of its end before it returns.
    fn submit(&self, job: Job);
    /// Waits until no job runs. Those that an error has stopped stay.
    fn drain(&self);
    /// Forgets all jobs: their end is never told, and they touch memory no more. Does not wait for the host: what it is at goes on
    /// on the disk, and jobs that come later begin after it.
    fn abandon(&self);
    /// `changed` is called, on any thread, when the disk has got another size.
    fn watch(&self, changed: Box<dyn Fn() + Send + Sync>) {
        drop(changed);
    }
}

/// A disk that is not there: takes jobs and does nothing, for trying saved states.
pub struct Absent(pub Geometry);

impl Disk for Absent {
    fn geometry(&self) -> Geometry {
        self.0.clone()
    }
    fn submit(&self, _: Job) {}
    fn drain(&self) {}
    fn abandon(&self) {}
}
