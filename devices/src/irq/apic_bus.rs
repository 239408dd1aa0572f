//! The bus between local APICs, I/O APICs and MSI senders (SDM 3A "System Bus Vs. APIC Bus", "Issuing IPIs").

use super::lapic::Lapic;
use super::message::{Delivery, Dest, Message, decode_msi};
use parking_lot::RwLock;
use std::sync::Arc;
use vm_core::{IrqSink, MsiSink, dlog};

/// Hears the end of level-triggered interrupts. Called with no local APIC's lock held.
pub trait EoiSink: Send + Sync {
    fn eoi(&self, vector: u8);
}

/// Holds all local APICs, which register themselves in `Lapic::new`, and the I/O APICs.
#[derive(Default)]
pub struct ApicBus {
    lapics: RwLock<Vec<Arc<Lapic>>>,
    eoi: RwLock<Vec<Arc<dyn EoiSink>>>,
}

impl ApicBus {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Registers a receiver of EOI broadcasts.
    pub fn add_eoi_sink(&self, sink: Arc<dyn EoiSink>) {
        self.eoi.write().push(sink);
    }

    /// Adds a local APIC; its index on the bus is handed to `make`.
    pub(super) fn add(&self, make: impl FnOnce(usize) -> Arc<Lapic>) -> Arc<Lapic> {
        let mut all = self.lapics.write();
        let lapic = make(all.len());
        all.push(lapic.clone());
        lapic
    }

    /// Delivers a message to all it addresses. Called with no local APIC's lock held.
    pub fn send(&self, m: &Message) {
        let all = self.lapics.read();
        let addressed = || all.iter().enumerate().filter(|(i, l)| matches(&m.dest, *i, l)).map(|(_, l)| l);
        if m.delivery != Delivery::LowestPriority {
            addressed().for_each(|l| l.accept(m));
            return;
        }
        let ready: Vec<_> = addressed().filter_map(|l| Some((l.arbitration()?, l))).collect();
        let Some(lowest) = ready.iter().map(|(p, _)| *p).min() else {
            dlog!(GUEST_ERRORS, "apic: nobody takes {m:x?}");
            return;
        };
        // Equals are chosen by vector: spreads the load, and the choice needs no state.
        let equals: Vec<_> = ready.iter().filter(|(p, _)| *p == lowest).collect();
        if let Some((_, l)) = equals.get(usize::from(m.vector) % equals.len().max(1)) {
            l.accept(m);
        }
    }

    /// Tells the I/O APICs that a level-triggered vector has ended.
    pub(super) fn broadcast_eoi(&self, vector: u8) {
        self.eoi.read().iter().for_each(|s| s.eoi(vector));
    }
}

fn matches(dest: &Dest, index: usize, l: &Lapic) -> bool {
    match *dest {
        Dest::All => true,
        Dest::This(i) => index == i,
        Dest::Others(i) => index != i,
        ref d => l.is_addressed(d),
    }
}

impl MsiSink for ApicBus {
    fn send_msi(&self, addr: u64, data: u32) {
        if let Some(m) = decode_msi(addr, data) {
            self.send(&m);
        }
    }
}

/// The two wires that go to every local APIC: line 0 is the 8259's INTR, on LINT0; line 1 is NMI, on LINT1. (Wiring
/// them here lets a board make the PIC before the local APICs, which need it for their acknowledge.)
impl IrqSink for ApicBus {
    fn set_irq(&self, line: u32, level: bool) {
        self.lapics.read().iter().for_each(|l| l.set_lint(line as usize, level));
    }
}
