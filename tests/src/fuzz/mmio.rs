//! Virtio devices in memory-mapped registers (microvm's), under the same driver as those on PCI.

use super::pci::{Heard, RAM, dma};
use super::virtio::{QUEUES, RINGS, SIZE, Subject, Transport, run_on};
use super::{Behaviour, Bytes};
use devices::virtio::{F_VERSION_1, MmioWires, Model, VirtioMmio};
use std::sync::Arc;
use vm_core::{Device, IrqLine, Mmio, Ram};

/// See the module.
struct Bench<M> {
    device: VirtioMmio<M>,
    ram: Arc<Ram>,
    heard: Arc<Heard>,
    make: fn() -> M,
}

fn device<M: Model>(model: M, ram: &Arc<Ram>, heard: &Arc<Heard>) -> VirtioMmio<M> {
    VirtioMmio::new(model, MmioWires { irq: IrqLine::new(heard.clone(), 0), dma: dma(ram) })
}

impl<M: Model> Bench<M> {
    fn set(&mut self, at: u64, v: u64) {
        self.device.write(0, at, 4, v);
    }

    /// Saved and loaded: the same as before.
    fn moved(&mut self) {
        let saved = self.device.save();
        let mut other = device((self.make)(), &self.ram, &self.heard);
        other.load(&saved).expect("what was saved can be loaded");
        self.device = other;
    }
}

impl<M: Model> Transport<VirtioMmio<M>> for Bench<M> {
    fn device(&mut self) -> &mut VirtioMmio<M> {
        &mut self.device
    }

    fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    fn interrupts(&self) -> u32 {
        self.heard.count()
    }

    fn status(&mut self) -> u64 {
        self.device.read(0, 0x70, 4)
    }

    fn start(&mut self, features: u64) {
        self.set(0x70, 0);
        self.set(0x70, 3);
        for half in 0..2 {
            self.set(0x14, half);
            let offered = self.device.read(0, 0x10, 4);
            self.set(0x24, half);
            self.set(0x20, offered & ((features | F_VERSION_1) >> (32 * half)));
        }
        self.set(0x70, 0xb);
        for q in 0..u64::from(QUEUES) {
            self.set(0x30, q);
            self.set(0x38, SIZE.into());
            for (at, part) in [(0x80, 0), (0x90, 1), (0xa0, 2)] {
                self.set(at, RINGS + q * 0x4000 + part * 0x1000);
                self.set(at + 4, 0);
            }
            self.set(0x44, 1);
        }
        self.set(0x70, 0xf);
    }

    fn notify(&mut self, queue: u8) {
        self.set(0x50, queue.into());
    }

    fn configure(&mut self, at: u64, value: u32) {
        self.set(0x100 + at, value.into());
    }

    fn other(&mut self, b: &mut Bytes, seen: &mut Behaviour) {
        let op = b.u8();
        match op % 8 {
            0..=2 => {
                let (at, size) = (u64::from(b.u16()) & 0x1ff, if op >= 0xe0 { 1 << (b.u8() % 4) } else { 4u64 });
                self.device.write(0, at & !(size - 1), size as u8, b.u64());
            }
            3 | 4 => {
                let (at, size) = (u64::from(b.u16()) & 0x1ff, if op >= 0xe0 { 1 << (b.u8() % 4) } else { 4u64 });
                let v = self.device.read(0, at & !(size - 1), size as u8);
                seen.saw((at, v.count_ones()));
            }
            5 => {
                let at = u64::from(b.u16()) * 16 % (RAM - 16);
                let (low, high) = (b.u64(), b.u64());
                self.ram.write_uint(at, 8, low);
                self.ram.write_uint(at + 8, 8, high);
            }
            6 if op >= 0xf0 => self.device.reset(),
            6 => self.moved(),
            // An interrupt taken.
            _ => {
                let isr = self.device.read(0, 0x60, 4);
                self.set(0x64, isr);
            }
        }
    }
}

/// One in memory-mapped registers.
pub type OnMmio<M> = Subject<M, VirtioMmio<M>>;

/// Runs one input on a device.
pub fn run<M: Model>(s: &OnMmio<M>, input: &[u8], seen: &mut Behaviour) {
    let (ram, heard) = (Arc::new(Ram::new(RAM).expect("a mebibyte is there")), Arc::<Heard>::default());
    let bench = Bench { device: device((s.make)(), &ram, &heard), ram, heard, make: s.make };
    run_on(bench, s.outside, input, seen);
}
