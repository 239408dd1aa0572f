//! Interrupt wires: a device holds an `IrqLine` and knows nothing of the controller behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// An interrupt controller's input side. Called with the device's lock held; must not call back into the device.
pub trait IrqSink: Send + Sync {
    /// Sets input `line` to `level`. Setting a level again is harmless.
    fn set_irq(&self, line: u32, level: bool);
}

/// Takes message-signalled interrupts (PCI 3.0 §6.8; SDM 3A "Message Signalled Interrupts").
pub trait MsiSink: Send + Sync {
    fn send_msi(&self, addr: u64, data: u32);
}

/// One wire to one input of a controller. Not `Clone`: sharing is explicit, by `SharedIrq`.
pub struct IrqLine {
    sink: Arc<dyn IrqSink>,
    line: u32,
}

impl IrqLine {
    pub fn new(sink: Arc<dyn IrqSink>, line: u32) -> Self {
        Self { sink, line }
    }

    /// A wire that ends nowhere, for devices that are not routed and for tests.
    pub fn unconnected() -> Self {
        struct Nowhere;
        impl IrqSink for Nowhere {
            fn set_irq(&self, _: u32, _: bool) {}
        }
        Self::new(Arc::new(Nowhere), 0)
    }

    pub fn set(&self, level: bool) {
        self.sink.set_irq(self.line, level);
    }

    /// Low to high to low: one edge.
    pub fn pulse(&self) {
        self.set(true);
        self.set(false);
    }
}

/// Wired OR of several level-triggered sources on one wire (PCI INTx).
pub struct SharedIrq {
    out: IrqLine,
    raised: AtomicU32,
}

impl SharedIrq {
    pub fn new(out: IrqLine) -> Arc<Self> {
        Arc::new(Self { out, raised: AtomicU32::new(0) })
    }
}

impl IrqSink for SharedIrq {
    /// `line` (0..=31) is the number of the source.
    fn set_irq(&self, line: u32, level: bool) {
        let bit = 1u32 << (line & 31);
        let now = if level {
            self.raised.fetch_or(bit, Ordering::SeqCst) | bit
        } else {
            self.raised.fetch_and(!bit, Ordering::SeqCst) & !bit
        };
        self.out.set(now != 0);
    }
}
