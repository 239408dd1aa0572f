//! The ICH9's SATA controller in AHCI mode (AHCI 1.3.1; Intel ICH9 datasheet): six ports, queued commands, ATAPI, MSI.

mod fis;
mod port;
#[cfg(test)]
mod tests;

use super::ata::{Completions, Drive};
use crate::pci::bus::PciFunction;
use crate::pci::decode::Decoder;
use crate::pci::endpoint::config_by_endpoint;
use crate::pci::{BarKind, ConfigSpace, Endpoint, EndpointState, PciWires};
use crate::waking;
use parking_lot::Mutex;
use port::{Port, Saved};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::{Device, LoadError, Mmio, Section, dlog};

/// Ports of the HBA.
pub const PORTS: usize = 6;

const STATE_VERSION: u32 = 1;
const ABAR: u32 = 5;
const ABAR_SIZE: u64 = 4096;
/// Ports' registers.
const PORTS_AT: u64 = 0x100;
const PORT_SIZE: u64 = 0x80;

/// Generic host control.
mod reg {
    pub const CAP: u64 = 0x00;
    pub const GHC: u64 = 0x04;
    pub const IS: u64 = 0x08;
    pub const PI: u64 = 0x0c;
    pub const VS: u64 = 0x10;
}
/// CAP: 64-bit addresses, queued commands, command list override, AHCI only, generation 2, 32 slots; and the ports.
const CAP: u32 = 1 << 31 | 1 << 30 | 1 << 24 | 2 << 20 | 1 << 18 | 31 << 8 | (PORTS as u32 - 1);
/// GHC: AHCI enabled, always; interrupts; reset.
const GHC_AE: u32 = 1 << 31;
const GHC_IE: u32 = 1 << 1;
const GHC_HR: u32 = 1 << 0;
const VERSION: u32 = 0x0001_0300;

#[derive(Serialize, Deserialize)]
struct State {
    pci: EndpointState,
    interrupts: bool,
    ports: Vec<Saved>,
}

/// The controller.
pub struct Ahci {
    endpoint: Endpoint,
    ports: Vec<Port>,
    done: Arc<Completions>,
    /// GHC.IE.
    interrupts: bool,
}

impl Ahci {
    /// `drives`: one for each port.
    pub fn new(drives: [Option<Drive>; PORTS], wires: PciWires) -> Self {
        let mut config = ConfigSpace::new(0x8086, 0x2922, 0x01_06_01, 2);
        config.set_subsystem();
        config.add_bar(ABAR as usize, BarKind::Memory32, ABAR_SIZE);
        let endpoint = Endpoint::with_msi(config, wires);
        let done = Arc::<Completions>::default();
        let ports = (0..).zip(drives).map(|(n, d)| Port::new(n, d, endpoint.master().clone(), done.clone())).collect();
        Self { endpoint, ports, done, interrupts: false }
    }

    /// As `new`; other threads' work is taken note of as it ends.
    pub fn new_shared(drives: [Option<Drive>; PORTS], wires: PciWires) -> Arc<Mutex<Self>> {
        waking::shared(Self::new(drives, wires), |d, wake| d.done.set_wake(wake), Self::service)
    }

    /// Does what work that has been done leads to.
    pub fn service(&mut self) {
        loop {
            let done = self.done.take();
            for (id, ok) in &done {
                // Ids are the port's number and multiples of 32 more.
                if let Some(p) = self.ports.get_mut((id % 32) as usize) {
                    p.complete(*id, *ok);
                }
            }
            if done.is_empty() {
                break;
            }
        }
        self.deliver(false);
    }

    /// IS: a bit for each port whose interrupt is raised.
    fn status(&self) -> u32 {
        self.ports.iter().enumerate().fold(0, |v, (n, p)| v | u32::from(p.interrupt()) << n)
    }

    /// Sets the pin, or sends a message if there is something new, or (`again`) something left.
    fn deliver(&mut self, again: bool) {
        let raised = self.ports.iter_mut().fold(false, |v, p| std::mem::take(&mut p.raised) | v);
        let on = self.interrupts && self.status() != 0;
        self.endpoint.set_intx(on);
        if on && (raised || again) {
            self.endpoint.send_msi();
        }
    }

    fn reset_hba(&mut self) {
        self.ports.iter_mut().for_each(Port::reset);
        self.done.take();
        self.interrupts = false;
    }

    fn register(&self, offset: u64) -> u32 {
        match offset {
            reg::CAP => CAP,
            reg::GHC => GHC_AE | if self.interrupts { GHC_IE } else { 0 },
            reg::IS => self.status(),
            reg::PI => (1 << PORTS) - 1,
            reg::VS => VERSION,
            PORTS_AT.. => {
                let at = offset - PORTS_AT;
                self.ports.get((at / PORT_SIZE) as usize).map_or(0, |p| p.read(at % PORT_SIZE))
            }
            _ => 0,
        }
    }

    fn set_register(&mut self, offset: u64, v: u32) {
        match offset {
            reg::GHC => {
                if v & GHC_HR != 0 {
                    self.reset_hba();
                } else {
                    self.interrupts = v & GHC_IE != 0;
                }
            }
            PORTS_AT.. => {
                let at = offset - PORTS_AT;
                if let Some(p) = self.ports.get_mut((at / PORT_SIZE) as usize) {
                    p.write(at % PORT_SIZE, v);
                }
            }
            // IS follows the ports.
            _ => {}
        }
        self.service();
        self.deliver(offset == reg::IS);
    }
}

impl PciFunction for Ahci {
    config_by_endpoint!();

    /// Registers have 32 bits; a wider access is of two, a smaller one reads part of one.
    fn bar_read(&mut self, _: u32, offset: u64, size: u8) -> u64 {
        let low = u64::from(self.register(offset & !3));
        match size {
            8 => low | u64::from(self.register((offset & !3) + 4)) << 32,
            _ => low >> (8 * (offset & 3)),
        }
    }

    fn bar_write(&mut self, _: u32, offset: u64, size: u8, value: u64) {
        match size {
            8 | 4 if offset & 3 == 0 => {
                self.set_register(offset, value as u32);
                if size == 8 {
                    self.set_register(offset + 4, (value >> 32) as u32);
                }
            }
            _ => dlog!(GUEST_ERRORS, "ahci: {size}-byte write of {value:#x} at {offset:#x}"),
        }
    }
}

impl Device for Ahci {
    fn name(&self) -> &'static str {
        "ich9-ahci"
    }

    fn reset(&mut self) {
        self.reset_hba();
        self.endpoint.reset();
    }

    fn save(&self) -> Section {
        let ports = self.ports.iter().map(Port::save).collect();
        Section::pack(self.name(), STATE_VERSION, &State { pci: self.endpoint.save(), interrupts: self.interrupts, ports })
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let state: State = s.unpack(STATE_VERSION)?;
        if state.ports.len() != PORTS {
            return Err(s.bad("another number of ports"));
        }
        for (p, saved) in self.ports.iter().zip(&state.ports) {
            p.check(saved).map_err(|e| s.bad(e))?;
        }
        // Bus mastering first: the jobs go on.
        self.endpoint.load(state.pci).map_err(|e| s.bad(e))?;
        self.interrupts = state.interrupts;
        for (p, saved) in self.ports.iter_mut().zip(state.ports) {
            p.load(saved);
        }
        self.service();
        Ok(())
    }

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

/// The registers (region `ABAR`) and configuration space (the others), for tests.
impl Mmio for Ahci {
    fn read(&mut self, region: u32, offset: u64, size: u8) -> u64 {
        match region {
            ABAR => self.bar_read(ABAR, offset, size),
            _ => self.config_read((offset & 0xffc) as u16, size.min(4)).into(),
        }
    }

    fn write(&mut self, region: u32, offset: u64, size: u8, value: u64) {
        match region {
            ABAR => self.bar_write(ABAR, offset, size, value),
            _ => self.config_write((offset & 0xffc) as u16, size.min(4), value as u32),
        }
    }
}
