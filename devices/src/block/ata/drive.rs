//! A drive as controllers hold it: the host's disk or disc, what the device tells of itself, and jobs that are under way.

use super::disk::Disk;
use super::identify::Identity;
use super::packet::{PACKET_LEN, Packet, Reply};
use crate::block::{self, Done, Geometry, Job, Memory, Op};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, OnceLock};

/// What is in a bay. Hard disks always have a disk of the host's; CD-ROM drives may be empty.
#[derive(Clone)]
pub enum Medium {
    Disk(Arc<dyn block::Disk>),
    Cd(Option<Arc<dyn block::Disk>>),
}

/// State of the device behind the registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DriveState {
    Disk(Disk),
    Cd(Packet),
}

/// A drive.
pub struct Drive {
    medium: Medium,
    geometry: Geometry,
    pub identity: Identity,
    pub state: DriveState,
}

/// Where the host's threads leave word of jobs that are done; one for each controller.
#[derive(Default)]
pub struct Completions {
    list: Mutex<Vec<(u64, bool)>>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Completions {
    /// `wake` is called after jobs have ended, on any thread.
    pub fn set_wake(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.wake.set(wake);
    }

    pub fn take(&self) -> Vec<(u64, bool)> {
        std::mem::take(&mut *self.list.lock())
    }
}

impl Done for Completions {
    fn done(&self, id: u64, ok: bool) {
        self.list.lock().push((id, ok));
    }

    fn kick(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

impl Drive {
    /// `number` counts the machine's ATA drives, for those that have no serial number of their own.
    pub fn new(medium: Medium, serial: &str, number: usize) -> Self {
        const NOTHING: Geometry = Geometry { bytes: 0, read_only: true, discard: false, write_back: false };
        let (geometry, model) = match &medium {
            Medium::Disk(d) => (d.geometry(), "RHEA HARDDISK"),
            Medium::Cd(Some(d)) => (d.geometry(), "RHEA DVD-ROM"),
            Medium::Cd(None) => (NOTHING, "RHEA DVD-ROM"),
        };
        let serial = if serial.is_empty() { format!("RH{:05}", number + 1) } else { serial.to_owned() };
        let identity = Identity { serial, model: model.into() };
        let mut this = Self { medium, geometry, identity, state: DriveState::Cd(Packet::default()) };
        this.reset();
        this
    }

    /// The host's disk, if there is one.
    pub fn disk(&self) -> Option<&Arc<dyn block::Disk>> {
        match &self.medium {
            Medium::Disk(d) => Some(d),
            Medium::Cd(d) => d.as_ref(),
        }
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Takes note of another size of the disk.
    pub fn refresh(&mut self) {
        if let Medium::Disk(d) = &self.medium {
            self.geometry.bytes = d.geometry().bytes;
        }
    }

    pub fn is_cd(&self) -> bool {
        matches!(self.medium, Medium::Cd(_))
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.state = match self.medium {
            Medium::Disk(_) => DriveState::Disk(Disk::new(&self.geometry)),
            Medium::Cd(_) => DriveState::Cd(Packet::default()),
        };
    }

    /// Forgets all jobs: their ends are not told.
    pub fn abandon(&self) {
        if let Some(d) = self.disk() {
            d.abandon();
        }
    }

    /// Hands a job over to the host's threads; without a disk it has failed.
    pub fn submit(&self, id: u64, op: Op, memory: Memory, done: &Arc<Completions>) {
        match self.disk() {
            Some(d) => d.submit(Job { id, op, memory, done: done.clone() }),
            None => done.done(id, false),
        }
    }

    /// A CD-ROM drive's packet.
    pub fn packet(&mut self, packet: &[u8; PACKET_LEN]) -> Reply {
        let bytes = self.disk().map(|_| self.geometry.bytes);
        match &mut self.state {
            DriveState::Cd(p) => p.command(packet, bytes, &self.identity),
            DriveState::Disk(_) => Reply::Done,
        }
    }

    /// Reading the disc has failed: the sense key.
    pub fn medium_error(&mut self) -> u8 {
        match &mut self.state {
            DriveState::Cd(p) => p.medium_error(),
            DriveState::Disk(_) => 0,
        }
    }

    /// Whether a saved state is one of such a drive.
    pub fn accepts(&self, s: &DriveState) -> bool {
        match s {
            DriveState::Disk(d) => !self.is_cd() && d.plausible(),
            DriveState::Cd(_) => self.is_cd(),
        }
    }
}
