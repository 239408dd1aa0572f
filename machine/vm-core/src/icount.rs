//! What an engine and the clock share where time follows the instructions executed (`-icount`).

use std::sync::atomic::{AtomicU64, Ordering};

/// Number of instructions that one vCPU has executed, and the number at which its engine is to stop. The vCPU's thread
/// writes both; others may read.
#[derive(Debug, Default)]
pub struct InsnCounter {
    executed: AtomicU64,
    limit: AtomicU64,
}

impl InsnCounter {
    /// Instructions executed, exact whenever the vCPU's thread runs anything but guest code: a device, a timer, the machine.
    pub fn executed(&self) -> u64 {
        self.executed.load(Ordering::Relaxed)
    }

    /// For the engine, before it calls anybody who may ask.
    pub fn publish(&self, executed: u64) {
        self.executed.store(executed, Ordering::Relaxed);
    }

    /// `Vcpu::run` returns `StopReason::Limit` at this count, before the next instruction.
    pub fn limit(&self) -> u64 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Takes effect when the engine is run the next time.
    pub fn set_limit(&self, at: u64) {
        self.limit.store(at, Ordering::Relaxed);
    }
}
