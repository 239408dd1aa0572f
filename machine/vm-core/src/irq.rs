//! Interrupt wires: a device holds an `IrqLine` and knows nothing of the controller behind it.

use parking_lot::Mutex;
use std::sync::Arc;

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
    /// A bit for each source. Held while the wire is set: sources are on several threads, and the last level must be the right one.
    raised: Mutex<u32>,
}

impl SharedIrq {
    pub fn new(out: IrqLine) -> Arc<Self> {
        Arc::new(Self { out, raised: Mutex::new(0) })
    }
}

impl IrqSink for SharedIrq {
    /// `line` (0..=31) is the number of the source.
    fn set_irq(&self, line: u32, level: bool) {
        let bit = 1u32 << (line & 31);
        let mut raised = self.raised.lock();
        *raised = if level { *raised | bit } else { *raised & !bit };
        self.out.set(*raised != 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[derive(Default)]
    struct Wire(AtomicBool);

    impl IrqSink for Wire {
        fn set_irq(&self, _: u32, level: bool) {
            self.0.store(level, Ordering::SeqCst);
        }
    }

    /// Whoever is last, on whatever thread, the wire is up while one source is.
    #[test]
    fn a_shared_wire_ends_at_the_right_level() {
        let wire = Arc::new(Wire::default());
        let shared = SharedIrq::new(IrqLine::new(wire.clone(), 0));
        for round in 0..200 {
            std::thread::scope(|s| {
                for source in 0..2 {
                    let shared = &shared;
                    // One ends high in every other round.
                    s.spawn(move || (0..50).for_each(|i| shared.set_irq(source, (i + round * source) % 2 == 0)));
                }
            });
            assert_eq!(wire.0.load(Ordering::SeqCst), round % 2 == 1, "round {round}");
        }
    }
}
