//! What the outside may ask of a virtual CPU: a set of pending events, a kick, and a place to sleep while halted.

use parking_lot::{Condvar, Mutex};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

bitflags::bitflags! {
    /// Pending events of one vCPU. INTR is a level (it mirrors the interrupt controller's output); the others are latched.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Events: u32 {
        /// The local APIC (or the PIC through it) has an interrupt to deliver.
        const INTR = 1 << 0;
        const NMI = 1 << 1;
        const SMI = 1 << 2;
        const INIT = 1 << 3;
        /// Start-up IPI received while waiting for it.
        const SIPI = 1 << 4;
        /// The machine asks the vCPU thread to return from `Vcpu::run` (stop, reset, quit, state access).
        const STOP = 1 << 5;
        /// Guest memory that holds translated code was written from outside the vCPU, or another vCPU asks something of this
        /// one's translations.
        const CODE = 1 << 6;
        /// Another vCPU wants to be alone: come to the next instruction boundary and wait there.
        const EXCLUSIVE = 1 << 7;
        /// A timer was armed for a time before all others, where time follows instructions: `Vcpu::run` returns
        /// `StopReason::Limit`.
        const TIMER = 1 << 8;
    }
}

type Kick = Box<dyn Fn() + Send + Sync>;

/// Shared between one vCPU, its interrupt controller and the machine.
#[derive(Default)]
pub struct VcpuSignals {
    pending: AtomicU32,
    kick: OnceLock<Kick>,
    asleep: Mutex<()>,
    wake: Condvar,
}

impl VcpuSignals {
    /// Installs the engine's kick: makes generated code return to its dispatcher soon. Called once per vCPU.
    pub fn set_kick(&self, kick: Kick) {
        if self.kick.set(kick).is_err() {
            unreachable!("a vCPU has one engine");
        }
    }

    /// Adds events, wakes a halted vCPU and kicks a running one. Callable from any thread, with device locks held.
    pub fn raise(&self, ev: Events) {
        let old = self.pending.fetch_or(ev.bits(), Ordering::SeqCst);
        if old & ev.bits() == ev.bits() {
            return;
        }
        if let Some(kick) = self.kick.get() {
            kick();
        }
        drop(self.asleep.lock());
        self.wake.notify_all();
    }

    pub fn clear(&self, ev: Events) {
        self.pending.fetch_and(!ev.bits(), Ordering::SeqCst);
    }

    pub fn pending(&self) -> Events {
        Events::from_bits_truncate(self.pending.load(Ordering::SeqCst))
    }

    /// Sleeps until any event in `mask` is pending, or `limit` has passed.
    pub fn wait(&self, mask: Events, limit: Duration) {
        let mut guard = self.asleep.lock();
        if !self.pending().intersects(mask) {
            self.wake.wait_for(&mut guard, limit);
        }
    }
}
