//! The bus between local APICs, I/O APICs and MSI senders (SDM 3A "System Bus Vs. APIC Bus", "Issuing IPIs").

use super::lapic::Lapic;
use super::lapic_image::LapicImage;
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
    /// Where messages go while other models of the local APICs have their state. Lock order: I/O APIC < this < local APIC.
    away: RwLock<Option<Arc<dyn MsiSink>>>,
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

    /// Gives the state of all local APICs, by their index, to other models; messages go to `to` from then on. On an error none is given.
    pub fn hand_over<E>(&self, to: Arc<dyn MsiSink>, mut give: impl FnMut(usize, &LapicImage) -> Result<(), E>) -> Result<(), E> {
        // Messages wait meanwhile.
        let mut away = self.away.write();
        let lapics = self.lapics.read();
        let mut given = Vec::new();
        for (i, l) in lapics.iter().enumerate() {
            let image = l.hand_over();
            let done = give(i, &image);
            given.push((l, image));
            if done.is_err() {
                given.iter().for_each(|(l, image)| l.take_back(image));
                return done;
            }
        }
        *away = Some(to);
        Ok(())
    }

    /// Takes the state of all local APICs back, if it was given. Where `take` has an error, that one goes on as it was when it was given.
    pub fn take_back<E>(&self, mut take: impl FnMut(usize) -> Result<LapicImage, E>) -> Result<(), E> {
        let mut away = self.away.write();
        if away.is_none() {
            return Ok(());
        }
        let mut outcome = Ok(());
        for (i, l) in self.lapics.read().iter().enumerate() {
            match take(i) {
                Ok(image) => l.take_back(&image),
                Err(e) => {
                    l.take_back(&l.hand_over());
                    outcome = Err(e);
                }
            }
        }
        *away = None;
        outcome
    }

    /// Tells the I/O APICs that a level-triggered vector has ended.
    pub fn broadcast_eoi(&self, vector: u8) {
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
        if let Some(to) = &*self.away.read() {
            return to.send_msi(addr, data);
        }
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
