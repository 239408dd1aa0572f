//! Shared by the tests of this folder: a wire that counts, and steps of the virtual clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vm_core::{Clock, IrqLine, IrqSink};

/// Records the level of one wire and its rising edges.
#[derive(Default)]
pub struct Probe {
    level: AtomicBool,
    edges: AtomicU32,
}

impl IrqSink for Probe {
    fn set_irq(&self, _: u32, level: bool) {
        if level && !self.level.swap(level, Ordering::SeqCst) {
            self.edges.fetch_add(1, Ordering::SeqCst);
        }
        self.level.store(level, Ordering::SeqCst);
    }
}

impl Probe {
    pub fn wire() -> (Arc<Self>, IrqLine) {
        let p = Arc::new(Self::default());
        (p.clone(), IrqLine::new(p, 0))
    }

    pub fn level(&self) -> bool {
        self.level.load(Ordering::SeqCst)
    }

    /// Rising edges since the last call.
    pub fn edges(&self) -> u32 {
        self.edges.swap(0, Ordering::SeqCst)
    }
}

/// Sets a stopped clock and runs what is due.
pub fn at(clock: &Clock, ns: u64) {
    clock.set(ns);
    clock.run_expired();
}
