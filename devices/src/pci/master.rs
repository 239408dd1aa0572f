//! A PCI function's way to guest memory: open while the command register's Bus Master bit is set (PCI Local Bus 3.0 §6.2.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_core::dma::GuestRam;
use vm_core::{Dma, Pa};

/// Handle of one function; cheap to clone, so that threads that do a device's work can hold it.
#[derive(Clone)]
pub struct BusMaster {
    dma: Dma,
    on: Arc<AtomicBool>,
}

impl BusMaster {
    pub fn new(dma: Dma) -> Self {
        Self { dma, on: Arc::default() }
    }

    /// As of a device that is on no PCI bus: always open.
    pub fn open(dma: Dma) -> Self {
        Self { dma, on: Arc::new(AtomicBool::new(true)) }
    }

    pub fn enabled(&self) -> bool {
        self.on.load(Ordering::SeqCst)
    }

    /// For the function's configuration space.
    pub(super) fn enable(&self, on: bool) {
        self.on.store(on, Ordering::SeqCst);
    }

    /// Reads guest memory; ones where there is none, and while the function is no bus master.
    pub fn read(&self, pa: Pa, buf: &mut [u8]) {
        if self.enabled() {
            self.dma.read(pa, buf);
        } else {
            buf.fill(0xff);
        }
    }

    /// Writes guest memory; nothing happens where there is none, and while the function is no bus master.
    pub fn write(&self, pa: Pa, data: &[u8]) {
        if self.enabled() {
            self.dma.write(pa, data);
        }
    }

    /// Gives RAM in a range back to the host: its pages read as zeroes from now on. Nothing happens where there is none.
    pub fn discard(&self, pa: Pa, len: u64) {
        if self.enabled() {
            self.dma.discard(pa, len);
        }
    }

    /// Guest RAM for virtqueues; `None` while the function is no bus master.
    pub fn ram(&self) -> Option<Arc<GuestRam>> {
        self.enabled().then(|| self.dma.guest_ram().clone())
    }
}
