//! PCI bus 0 and access to it: configuration mechanism #1 (PCI Local Bus 3.0 §3.2.2.3.2) and ECAM (PCI Express 5.0
//! §7.2.2). Port 0CF9h, which lies between CONFIG_ADDRESS's bytes, is served here too.

use super::decode::Decoder;
use crate::power::PowerSink;
use crate::power::reset::ResetControl;
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use vm_core::bus::Subtractive;
use vm_core::{Device, LoadError, Mmio, PortIo, Section, Stateless, dlog};

const STATE_VERSION: u32 = 1;

/// CONFIG_ADDRESS: the data port reaches configuration space.
const CONFIG_ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: the two low bits and bits 30:24 are hardwired to 0.
const CONFIG_WRITABLE: u32 = 0x80ff_fffc;

/// Bytes of ECAM for one bus.
pub const ECAM_BUS_SIZE: u64 = 1 << 20;

/// One function's configuration space, as the bus reaches it.
pub trait PciFunction: Send {
    /// `offset` is 0..=4095; `size` is 1, 2 or 4 and does not cross a doubleword.
    fn config_read(&mut self, offset: u16, size: u8) -> u32;
    fn config_write(&mut self, offset: u16, size: u8, value: u32);
    /// What its base address registers decode, for functions that have some.
    fn decoder(&self) -> Option<Arc<Decoder>> {
        None
    }
    /// An access to what register `bar` decodes; it lies in the range whole. `size` is 1, 2, 4 or, in memory, 8.
    fn bar_read(&mut self, bar: u32, offset: u64, size: u8) -> u64 {
        let _ = (bar, offset, size);
        !0
    }
    fn bar_write(&mut self, bar: u32, offset: u64, size: u8, value: u64) {
        let _ = (bar, offset, size, value);
    }
}

pub type FunctionCell = Arc<Mutex<dyn PciFunction>>;

/// The functions of bus 0. Other buses are empty: there are no PCI-to-PCI bridges.
#[derive(Default)]
pub struct PciBus {
    functions: Mutex<BTreeMap<(u8, u8), FunctionCell>>,
    decoders: RwLock<Vec<(Arc<Decoder>, FunctionCell)>>,
}

impl PciBus {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Plugs a function in. `device` is 0..=31, `function` 0..=7; the place must be free.
    pub fn add(&self, device: u8, function: u8, cell: FunctionCell) {
        assert!(device < 32 && function < 8, "no such slot {device}.{function}");
        if let Some(d) = cell.lock().decoder() {
            self.decoders.write().push((d, cell.clone()));
        }
        let old = self.functions.lock().insert((device, function), cell);
        assert!(old.is_none(), "two functions at {device}.{function}");
    }

    /// The lowest device number that is free, if there is one.
    pub fn free_device(&self) -> Option<u8> {
        let functions = self.functions.lock();
        (0..32).find(|d| functions.range((*d, 0)..=(*d, 7)).next().is_none())
    }

    pub fn is_free(&self, device: u8, function: u8) -> bool {
        !self.functions.lock().contains_key(&(device, function))
    }

    /// The function that takes an access to ports or memory, with register and offset.
    fn decode(&self, io: bool, at: u64, size: u8) -> Option<(FunctionCell, u32, u64)> {
        let all = self.decoders.read();
        let hit = |(d, cell): &(Arc<Decoder>, FunctionCell)| d.find(io, at, size).map(|(bar, off)| (cell.clone(), bar, off));
        all.iter().find_map(hit)
    }

    fn find(&self, bus: u8, devfn: u8) -> Option<FunctionCell> {
        if bus != 0 {
            return None;
        }
        self.functions.lock().get(&(devfn >> 3, devfn & 7)).cloned()
    }

    /// All ones if nothing is there: how software finds an empty slot.
    fn read(&self, bus: u8, devfn: u8, offset: u16, size: u8) -> u32 {
        match self.find(bus, devfn) {
            Some(f) if offset & 3 <= 4 - u16::from(size) => f.lock().config_read(offset, size),
            Some(f) => {
                let mut f = f.lock();
                (0..size).fold(0, |v, i| v | (f.config_read(offset.wrapping_add(i.into()), 1) & 0xff) << (8 * i))
            }
            None => !0,
        }
    }

    fn write(&self, bus: u8, devfn: u8, offset: u16, size: u8, value: u32) {
        match self.find(bus, devfn) {
            Some(f) if offset & 3 <= 4 - u16::from(size) => f.lock().config_write(offset, size, value),
            Some(f) => {
                let mut f = f.lock();
                for i in 0..size {
                    f.config_write(offset.wrapping_add(i.into()), 1, value >> (8 * i) & 0xff);
                }
            }
            None => dlog!(GUEST_ERRORS, "pci: write to absent function {bus:x}:{:x}.{}", devfn >> 3, devfn & 7),
        }
    }
}

/// What no device of the board takes goes to PCI.
impl Subtractive for PciBus {
    fn read(&self, io: bool, at: u64, size: u8) -> Option<u64> {
        let (cell, bar, offset) = self.decode(io, at, size)?;
        Some(cell.lock().bar_read(bar, offset, size))
    }

    fn write(&self, io: bool, at: u64, size: u8, value: u64) -> bool {
        let hit = self.decode(io, at, size);
        hit.map(|(cell, bar, offset)| cell.lock().bar_write(bar, offset, size, value)).is_some()
    }
}

/// Ports 0CF8h-0CFFh: CONFIG_ADDRESS, CONFIG_DATA, and the reset control register as a byte at 0CF9h.
pub struct PciPorts {
    bus: Arc<PciBus>,
    power: Arc<dyn PowerSink>,
    state: PortsState,
}

#[derive(Clone, Default, Serialize, Deserialize)]
struct PortsState {
    address: u32,
    reset: ResetControl,
}

impl PciPorts {
    pub fn new(bus: Arc<PciBus>, power: Arc<dyn PowerSink>) -> Self {
        Self { bus, power, state: PortsState::default() }
    }

    /// Bus, device and function, and offset that the data port at `offset` (4..=7) reaches.
    fn target(&self, offset: u16) -> Option<(u8, u8, u16)> {
        let a = self.state.address;
        (a & CONFIG_ENABLE != 0).then_some(((a >> 16) as u8, (a >> 8) as u8, (a & 0xfc) as u16 + (offset & 3)))
    }
}

impl Device for PciPorts {
    fn name(&self) -> &'static str {
        "pci-ports"
    }

    fn reset(&mut self) {
        self.state = PortsState::default();
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), STATE_VERSION, &self.state)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        self.state = s.unpack(STATE_VERSION)?;
        self.state.address &= CONFIG_WRITABLE;
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for PciPorts {
    fn read(&mut self, _: u32, offset: u16, size: u8) -> u32 {
        match (offset, size) {
            (0, 4) => self.state.address,
            (1, 1) => self.state.reset.read().into(),
            (4..=7, _) if offset + u16::from(size) <= 8 => {
                self.target(offset).map_or(!0, |(bus, devfn, off)| self.bus.read(bus, devfn, off, size))
            }
            _ => !0,
        }
    }

    fn write(&mut self, _: u32, offset: u16, size: u8, value: u32) {
        match (offset, size) {
            // Only a doubleword reaches CONFIG_ADDRESS; smaller accesses are ordinary I/O.
            (0, 4) => self.state.address = value & CONFIG_WRITABLE,
            (1, 1) => self.state.reset.write(value as u8, &*self.power),
            (4..=7, _) if offset + u16::from(size) <= 8 => {
                if let Some((bus, devfn, off)) = self.target(offset) {
                    self.bus.write(bus, devfn, off, size, value);
                }
            }
            _ => dlog!(GUEST_ERRORS, "pci: write of {value:#x}, size {size}, to port {:#x}", 0xcf8 + u32::from(offset)),
        }
    }
}

/// The memory window onto configuration space: `ECAM_BUS_SIZE` bytes a bus.
pub struct PciEcam {
    bus: Arc<PciBus>,
}

impl PciEcam {
    pub fn new(bus: Arc<PciBus>) -> Self {
        Self { bus }
    }
}

impl Stateless for PciEcam {
    const NAME: &'static str = "pci-ecam";

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

impl Mmio for PciEcam {
    fn read(&mut self, _: u32, offset: u64, size: u8) -> u64 {
        let part = |at: u64, size| u64::from(self.bus.read((at >> 20) as u8, (at >> 12) as u8, (at & 0xfff) as u16, size));
        if size == 8 { part(offset, 4) | part(offset.wrapping_add(4), 4) << 32 } else { part(offset, size) }
    }

    fn write(&mut self, _: u32, offset: u64, size: u8, value: u64) {
        let part = |at: u64, size, v: u64| {
            self.bus.write((at >> 20) as u8, (at >> 12) as u8, (at & 0xfff) as u16, size, v as u32);
        };
        if size == 8 {
            part(offset, 4, value);
            part(offset.wrapping_add(4), 4, value >> 32);
        } else {
            part(offset, size, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::Bridge;
    use crate::power::testkit::Asked;
    use vm_core::testing::contract;
    use vm_core::{Pa, PortBus};

    fn bus() -> Arc<PciBus> {
        let bus = PciBus::new();
        bus.add(0, 0, Arc::new(Mutex::new(Bridge::host(Some(Pa(0xb000_0000)), None, None))));
        bus.add(1, 0, Arc::new(Mutex::new(Bridge::piix())));
        bus
    }

    #[test]
    fn saved_state_contract() {
        contract(|| PciPorts::new(bus(), Asked::new()), 1, 10);
        contract(|| PciEcam::new(bus()), 1, 3 << 20);
    }

    #[test]
    fn mechanism_1_reaches_functions_in_all_sizes() {
        let mut ports = PortBus::default();
        ports.add(0xcf8, 8, 0, Arc::new(Mutex::new(PciPorts::new(bus(), Asked::new()))));
        assert_eq!(ports.read(0xcfc, 4), !0, "disabled");
        ports.write(0xcf8, 4, 0x8000_0803);
        assert_eq!(ports.read(0xcf8, 4), 0x8000_0800);
        assert_eq!(ports.read(0xcfc, 4), 0x7110_8086);
        assert_eq!((ports.read(0xcfe, 2), ports.read(0xcfd, 1)), (0x7110, 0x80));
        ports.write(0xcf8, 4, 0x8000_1000);
        assert_eq!(ports.read(0xcfc, 4), !0, "absent device");
        ports.write(0xcf8, 4, 0x8001_0000);
        assert_eq!(ports.read(0xcfc, 2), 0xffff, "absent bus");
        ports.write(0xcf8, 4, 0x8000_0004);
        ports.write(0xcfd, 1, 0x04);
        assert_eq!(ports.read(0xcfc, 2), 0x0400);
    }

    #[test]
    fn the_reset_register_lies_inside_config_address() {
        let asked = Asked::new();
        let mut p = PciPorts::new(bus(), asked.clone());
        p.write(0, 0, 4, 0x8000_0600);
        assert!(asked.take().is_empty());
        p.write(0, 1, 1, 0x06);
        assert_eq!(asked.take(), ["reset"]);
        assert_eq!(p.read(0, 0, 4), 0x8000_0600);
    }

    #[test]
    fn ecam_reads_the_same_registers() {
        let mut e = PciEcam::new(bus());
        assert_eq!(e.read(0, 0, 8) as u32, 0x29c0_8086);
        assert_eq!(e.read(0, 1 << 15 | 8, 4), 0x0601_0002);
        assert_eq!(e.read(0, 1 << 15 | 2, 2), 0x7110);
        assert_eq!(e.read(0, 1 << 20, 4), 0xffff_ffff);
        e.write(0, 4, 2, 7);
        assert_eq!(e.read(0, 4, 2), 7);
        assert_eq!(e.read(0, 0x100, 4), 0, "no extended capabilities");
    }
}
