//! A job's way to memory, which ends when the job is given up: what the host is still at must not show in the guest.

use devices::block::Memory;
use parking_lot::RwLock;
use std::io;

/// Of all jobs that are given up together.
#[derive(Default)]
pub struct Lease {
    ended: RwLock<bool>,
}

/// Memory under a lease.
pub struct Leased<'a> {
    pub memory: &'a Memory,
    pub lease: &'a Lease,
}

impl Lease {
    /// Nobody touches memory under it any more; waits for who does so now, not for the host.
    pub fn end(&self) {
        *self.ended.write() = true;
    }
}

impl Leased<'_> {
    /// Lets `f` use the memory, or fails if the job has been given up.
    pub fn with(&self, f: impl FnOnce(&Memory)) -> io::Result<()> {
        let ended = self.lease.ended.read();
        if *ended {
            return Err(io::Error::other("the guest has given the job up"));
        }
        f(self.memory);
        Ok(())
    }
}
