//! Interrupt wiring: ISA lines go to the 8259s and to the I/O APIC, global system interrupts to the I/O APIC alone.

use devices::irq::{IoApic, IoApicInputs, Pic, ioapic};
use devices::pci::{PCI_ISA_FIRST, intx_gsi, intx_isa};
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
    pic: Option<Arc<Mutex<Pic>>>,
    ioapic: Arc<Mutex<IoApic>>,
}

impl IrqSink for Isa {
    fn set_irq(&self, line: u32, level: bool) {
        if let Some(pic) = &self.pic {
            pic.lock().set_input(line, level);
        }
        self.ioapic.lock().set_input(if line == 0 { PIT_GSI } else { line }, level);
    }
}

/// An input of the 8259s alone.
struct PicInput(Option<Arc<Mutex<Pic>>>);

impl IrqSink for PicInput {
    fn set_irq(&self, line: u32, level: bool) {
        if let Some(pic) = &self.0 {
            pic.lock().set_input(line, level);
        }
    }
}

/// A PCI interrupt pin: the guest uses one of the two ways, and masks the other.
struct Pin {
    gsi: Arc<SharedIrq>,
    pic: Arc<SharedIrq>,
}

impl IrqSink for Pin {
    fn set_irq(&self, source: u32, level: bool) {
        self.pic.set_irq(source, level);
        self.gsi.set_irq(source, level);
    }
}

/// Gives devices their wires.
pub struct Wires {
    isa: Arc<Isa>,
    shared_isa: [Arc<SharedIrq>; 2],
    gsi: Arc<IoApicInputs>,
    shared_gsi: Vec<Arc<SharedIrq>>,
    /// The 8259s' inputs for PCI.
    pci_pic: [Arc<SharedIrq>; 2],
}

impl Wires {
    pub fn new(pic: Option<Arc<Mutex<Pic>>>, ioapic: Arc<Mutex<IoApic>>) -> Self {
        let gsi = Arc::new(IoApicInputs(ioapic.clone()));
        let input = Arc::new(PicInput(pic.clone()));
        let pci_pic = [0, 1].map(|n| SharedIrq::new(IrqLine::new(input.clone(), (PCI_ISA_FIRST + n).into())));
        let isa = Arc::new(Isa { pic, ioapic });
        let shared_isa = SHARED_ISA.map(|n| SharedIrq::new(IrqLine::new(isa.clone(), n)));
        let shared_gsi = (FIRST_SHARED_GSI..ioapic::PINS as u32).map(|n| SharedIrq::new(IrqLine::new(gsi.clone(), n))).collect();
        Self { isa, shared_isa, gsi, shared_gsi, pci_pic }
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

    /// A global system interrupt from 16 on (others up to 23 have none), whose only source this is.
    pub fn gsi(&self, n: u32) -> Option<IrqLine> {
        let shared = self.shared_gsi.get(n.checked_sub(FIRST_SHARED_GSI)? as usize)?;
        Some(IrqLine::new(shared.clone(), 0))
    }

    /// The INTx pin of a PCI device (0..=31), and the number of the 8259s' interrupt that it reaches beside the I/O APIC.
    pub fn pci(&self, device: u8) -> (IrqLine, u8) {
        let gsi = intx_gsi(device, 0);
        let shared = self.shared_gsi[(gsi - FIRST_SHARED_GSI) as usize].clone();
        let isa = intx_isa(device, 0);
        let pic = self.pci_pic[usize::from(isa - PCI_ISA_FIRST)].clone();
        // Device 0 is the host bridge, which has no pin.
        let source = if device == HPET_SOURCE as u8 { 0 } else { device };
        (IrqLine::new(Arc::new(Pin { gsi: shared, pic }), source.into()), isa)
    }

    /// The I/O APIC's inputs, from 0, for the HPET.
    pub fn gsis(&self) -> Vec<IrqLine> {
        let own = (0..FIRST_SHARED_GSI).map(|n| IrqLine::new(self.gsi.clone(), n));
        let shared = self.shared_gsi.iter().map(|s| IrqLine::new(s.clone(), HPET_SOURCE));
        own.chain(shared).collect()
    }
}
