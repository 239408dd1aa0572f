//! Interrupt wiring: ISA lines go to the 8259s and to the I/O APIC, global system interrupts to the I/O APIC alone.

use devices::irq::{IoApic, IoApicInputs, Pic, ioapic};
use parking_lot::Mutex;
use std::sync::Arc;
use vm_core::IrqLine;
use vm_core::IrqSink;
use vm_core::irq::SharedIrq;

/// The I/O APIC's input for ISA 0, which the MADT overrides (input 0 would be the 8259's INTR).
const PIT_GSI: u32 = 2;
/// ISA interrupts that two serial ports share.
const SHARED_ISA: [u32; 2] = [3, 4];
/// Inputs 16 and up are PCI's, shared by level-triggered sources.
const FIRST_SHARED_GSI: u32 = 16;
/// The HPET's place among the sources of a shared input.
const HPET_SOURCE: u32 = 31;

/// ISA interrupts 0-15: line n drives input n of the 8259s, and the I/O APIC's input.
struct Isa {
    pic: Arc<Mutex<Pic>>,
    ioapic: Arc<Mutex<IoApic>>,
}

impl IrqSink for Isa {
    fn set_irq(&self, line: u32, level: bool) {
        self.pic.lock().set_input(line, level);
        self.ioapic.lock().set_input(if line == 0 { PIT_GSI } else { line }, level);
    }
}

/// Gives devices their wires.
pub struct Wires {
    isa: Arc<Isa>,
    shared_isa: [Arc<SharedIrq>; 2],
    gsi: Arc<IoApicInputs>,
    shared_gsi: Vec<Arc<SharedIrq>>,
}

impl Wires {
    pub fn new(pic: Arc<Mutex<Pic>>, ioapic: Arc<Mutex<IoApic>>) -> Self {
        let gsi = Arc::new(IoApicInputs(ioapic.clone()));
        let isa = Arc::new(Isa { pic, ioapic });
        let shared_isa = SHARED_ISA.map(|n| SharedIrq::new(IrqLine::new(isa.clone(), n)));
        let shared_gsi = (FIRST_SHARED_GSI..ioapic::PINS as u32).map(|n| SharedIrq::new(IrqLine::new(gsi.clone(), n))).collect();
        Self { isa, shared_isa, gsi, shared_gsi }
    }

    /// The only source of ISA interrupt `n` (0..=15).
    pub fn isa(&self, n: u32) -> IrqLine {
        IrqLine::new(self.isa.clone(), n)
    }

    /// Source number `source` of ISA interrupt `n`; interrupts that are not shared have one source.
    pub fn isa_shared(&self, n: u32, source: u32) -> IrqLine {
        match SHARED_ISA.iter().position(|s| *s == n) {
            Some(i) => IrqLine::new(self.shared_isa[i].clone(), source),
            None => self.isa(n),
        }
    }

    /// The I/O APIC's inputs, from 0, for the HPET.
    pub fn gsis(&self) -> Vec<IrqLine> {
        let own = (0..FIRST_SHARED_GSI).map(|n| IrqLine::new(self.gsi.clone(), n));
        let shared = self.shared_gsi.iter().map(|s| IrqLine::new(s.clone(), HPET_SOURCE));
        own.chain(shared).collect()
    }
}
