//! A PCI device on a bench: RAM, wires that count, and operations by number, as an input has them.

use super::{Behaviour, Bytes};
use devices::pci::{PciFunction, PciWires};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vm_core::{Device, Dma, IrqLine, IrqSink, MemMap, MsiSink, Pa, Ram};

pub const RAM: u64 = 1 << 20;

/// Interrupts so far.
#[derive(Default)]
pub struct Heard(AtomicU32);

impl MsiSink for Heard {
    fn send_msi(&self, _: u64, _: u32) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl IrqSink for Heard {
    fn set_irq(&self, _: u32, level: bool) {
        self.0.fetch_add(level.into(), Ordering::Relaxed);
    }
}

impl Heard {
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A device's way to a bench's RAM.
pub fn dma(ram: &Arc<Ram>) -> Dma {
    let mut map = MemMap::default();
    map.map_ram(Pa(0), RAM, 0, true);
    Dma::new(ram.clone(), &map)
}

type Make<D> = dyn Fn(PciWires, &Arc<Heard>) -> D;

/// See the module.
pub struct Bench<D> {
    pub device: D,
    pub ram: Arc<Ram>,
    heard: Arc<Heard>,
    make: Box<Make<D>>,
}

fn wires(ram: &Arc<Ram>, heard: &Arc<Heard>) -> PciWires {
    PciWires { intx: IrqLine::new(heard.clone(), 0), msi: heard.clone(), dma: dma(ram), line: 11 }
}

impl<D: Device + PciFunction> Bench<D> {
    /// The device as firmware leaves it: its ranges decoded, a bus master.
    ///
    /// # Panics
    /// If the host has no memory.
    pub fn new(make: impl Fn(PciWires, &Arc<Heard>) -> D + 'static) -> Self {
        let (ram, heard) = (Arc::new(Ram::new(RAM).expect("a mebibyte is there")), Arc::<Heard>::default());
        let mut device = make(wires(&ram, &heard), &heard);
        device.config_write(4, 2, 7);
        Self { device, ram, heard, make: Box::new(make) }
    }

    pub fn interrupts(&self) -> u32 {
        self.heard.count()
    }

    /// One operation that any device knows. `regions` are its ranges of ports.
    pub fn operation(&mut self, op: u8, b: &mut Bytes, bars: &[u32], seen: &mut Behaviour) {
        let bar = bars[usize::from(op >> 4) % bars.len()];
        match op % 8 {
            0 | 1 => {
                let (at, size) = (u64::from(b.u16() & 0x3fff), 1 << (b.u8() % 4));
                self.device.bar_write(bar, at & !(size - 1), size as u8, b.u32().into());
            }
            2 => {
                let (at, size) = (u64::from(b.u16() & 0x3fff), 1u64 << (b.u8() % 4));
                let v = self.device.bar_read(bar, at & !(size - 1), size as u8);
                seen.saw((bar, at, v.count_ones()));
            }
            3 => self.device.config_write(b.u16() & 0xfc, 4, b.u32()),
            4 | 5 => {
                let at = u64::from(b.u16()) * 16 % (RAM - 16);
                let (a, c) = (b.u64(), b.u64());
                self.ram.write_uint(at, 8, a);
                self.ram.write_uint(at + 8, 8, c);
            }
            6 => {
                let (at, n) = (u64::from(b.u16()) * 4 % (RAM - 64), usize::from(b.u8() % 64));
                self.ram.write(at, &b.take(n));
            }
            _ if op >= 0xf8 => self.device.reset(),
            _ if op >= 0xd0 => self.moved(),
            _ => drop(self.device.config_read(b.u16() & 0xfc, 4)),
        }
    }

    /// Saved and loaded: the same as before.
    fn moved(&mut self) {
        let saved = self.device.save();
        let mut other = (self.make)(wires(&self.ram, &self.heard), &self.heard);
        other.load(&saved).expect("what was saved can be loaded");
        self.device = other;
    }
}
