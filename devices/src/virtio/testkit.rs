//! A driver for tests: sets a virtio device up by its PCI registers, and puts requests into its queues.

use super::{Model, PciOptions, VirtioPci};
use crate::pci::bus::PciFunction;
use crate::pci::endpoint::{MSIX_BAR, PciWires};
use parking_lot::Mutex;
use std::sync::Arc;
use vm_core::{Device, Dma, IrqLine, IrqSink, MemMap, MsiSink, Pa, Ram, Section};

pub const RAM: u64 = 1 << 20;
/// Queue n's parts lie at `RINGS + n * 0x4000`: descriptors, available ring, used ring, indirect table.
const RINGS: u64 = 0x4_0000;
pub const SIZE: u16 = 8;

/// Interrupts that have come: MSI data, and levels of the pin as `PIN` and `PIN + 1`.
#[derive(Default)]
pub struct Heard(pub Mutex<Vec<u32>>);
pub const PIN: u32 = 0x1000;

impl MsiSink for Heard {
    fn send_msi(&self, _: u64, data: u32) {
        self.0.lock().push(data);
    }
}

impl IrqSink for Heard {
    fn set_irq(&self, _: u32, level: bool) {
        let v = PIN + u32::from(level);
        let mut all = self.0.lock();
        if all.last() != Some(&v) {
            all.push(v);
        }
    }
}

/// See the module.
pub struct Driver<M> {
    pub device: VirtioPci<M>,
    pub ram: Arc<Ram>,
    pub heard: Arc<Heard>,
    next_desc: [u16; 8],
    avail: [u16; 8],
    seen: [u16; 8],
    pub legacy: bool,
}

pub fn ram() -> (Arc<Ram>, Dma) {
    let ram = Arc::new(Ram::new(RAM).unwrap());
    let mut map = MemMap::default();
    map.map_ram(Pa(0), RAM, 0, true);
    (ram.clone(), Dma::new(ram, &map))
}

impl<M: Model> Driver<M> {
    pub fn with(model: M, options: PciOptions, legacy: bool) -> Self {
        let (ram, dma) = ram();
        let heard = Arc::new(Heard::default());
        let wires = PciWires { intx: IrqLine::new(heard.clone(), 0), msi: heard.clone(), dma, line: 11 };
        let mut device = VirtioPci::new(model, wires, options);
        device.config_write(4, 2, 7);
        Self { device, ram, heard, next_desc: [0; 8], avail: [0; 8], seen: [0; 8], legacy }
    }

    pub fn modern(model: M) -> Self {
        Self::with(model, PciOptions::default(), false)
    }

    /// The contract of all devices, on every register of the device; on few of them more often.
    pub fn contract(make: impl Fn() -> M) {
        let fresh = || VirtioPci::new(make(), PciWires::unconnected(ram().1), PciOptions::default());
        vm_core::testing::contract(fresh, 8, 0x4000);
        vm_core::testing::contract(fresh, 8, 64);
    }

    pub fn common(&mut self, offset: u64, size: u8, value: u64) {
        self.device.bar_write(4, offset, size, value);
    }

    pub fn status(&mut self) -> u64 {
        self.device.bar_read(4, 0x14, 1)
    }

    /// Vector v of MSI-X sends data v.
    pub fn msix(&mut self) {
        for v in 0..4 {
            self.device.bar_write(MSIX_BAR, 16 * v, 8, 0xfee0_0000);
            self.device.bar_write(MSIX_BAR, 16 * v + 8, 8, v);
        }
        self.device.config_write(0x42, 2, 0x8000);
        self.common(0x10, 2, 0);
        for q in 0..2 {
            self.common(0x16, 2, q);
            self.common(0x1a, 2, q + 1);
        }
    }

    /// Brings the device up with these features, and with all its queues.
    pub fn start(&mut self, features: u64) {
        let queues = self.device.bar_read(4, 0x12, 2).min(8);
        if self.legacy {
            self.device.bar_write(0, 18, 1, 3);
            self.device.bar_write(0, 4, 4, features);
            for q in 0..queues {
                self.device.bar_write(0, 14, 2, q);
                self.device.bar_write(0, 8, 4, (RINGS + q * 0x4000) / 4096);
            }
            return self.device.bar_write(0, 18, 1, 7);
        }
        self.common(0x14, 1, 3);
        for half in 0..2 {
            self.common(8, 4, half);
            self.common(0xc, 4, (features | super::F_VERSION_1) >> (32 * half) & 0xffff_ffff);
        }
        self.common(0x14, 1, 0xb);
        for q in 0..queues {
            self.common(0x16, 2, q);
            self.common(0x18, 2, SIZE.into());
            let at = RINGS + q * 0x4000;
            for (offset, v) in [(0x20, at), (0x28, at + 0x1000), (0x30, at + 0x2000)] {
                self.common(offset, 8, v);
            }
            self.common(0x1c, 2, 1);
        }
        self.common(0x14, 1, 0xf);
    }

    fn at(&self, queue: usize, part: u64) -> u64 {
        let base = RINGS + queue as u64 * 0x4000;
        let max = self.device.core_queue_max(queue);
        match (self.legacy, part) {
            (true, 1) => base + 16 * u64::from(max),
            (true, 2) => (base + 16 * u64::from(max) + 6 + 2 * u64::from(max)).next_multiple_of(4096),
            _ => base + 0x1000 * part,
        }
    }

    fn size(&self, queue: usize) -> u16 {
        if self.legacy { self.device.core_queue_max(queue) } else { SIZE }
    }

    pub fn descriptor(&self, queue: usize, index: u16, pa: u64, len: u32, flags: u16, next: u16) {
        let at = self.at(queue, 0) + 16 * u64::from(index);
        self.put_descriptor(at, pa, len, flags, next);
    }

    pub fn put_descriptor(&self, at: u64, pa: u64, len: u32, flags: u16, next: u16) {
        self.ram.write_uint(at, 8, pa);
        self.ram.write_uint(at + 8, 8, u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48);
    }

    /// Makes a head available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let (at, n) = (self.at(queue, 1), self.avail[queue]);
        self.ram.write_uint(at + 4 + 2 * u64::from(n % self.size(queue)), 2, head.into());
        self.avail[queue] = n.wrapping_add(1);
        self.ram.write_uint(at + 2, 2, self.avail[queue].into());
    }

    /// Puts a request of buffers to read and to write (address, length) into a queue; gives its head.
    pub fn add(&mut self, queue: usize, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let head = self.next_desc[queue];
        let all: Vec<_> = readable.iter().map(|b| (b, 0)).chain(writable.iter().map(|b| (b, 2))).collect();
        for (i, ((pa, len), flags)) in all.iter().enumerate() {
            let index = (head + i as u16) % SIZE;
            let next = u16::from(i + 1 < all.len());
            self.descriptor(queue, index, *pa, *len, flags | next, (index + 1) % SIZE);
        }
        self.next_desc[queue] = (head + all.len() as u16) % SIZE;
        self.offer(queue, head);
        head
    }

    pub fn notify(&mut self, queue: u64) {
        if self.legacy {
            self.device.bar_write(0, 16, 2, queue);
        } else {
            self.device.bar_write(4, 0x3000 + 4 * queue, 2, queue);
        }
    }

    /// Requests given back since the last look: head and length.
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let at = self.at(queue, 2);
        let end = self.ram.read_uint(at + 2, 2) as u16;
        let mut list = Vec::new();
        while self.seen[queue] != end {
            let e = at + 4 + 8 * u64::from(self.seen[queue] % self.size(queue));
            list.push((self.ram.read_uint(e, 4) as u32, self.ram.read_uint(e + 4, 4) as u32));
            self.seen[queue] = self.seen[queue].wrapping_add(1);
        }
        list
    }

    pub fn bytes(&self, pa: u64, len: usize) -> Vec<u8> {
        let mut b = vec![0; len];
        self.ram.read(pa, &mut b);
        b
    }

    pub fn take_heard(&self) -> Vec<u32> {
        std::mem::take(&mut self.heard.0.lock())
    }

    /// The same machine around another device that has loaded this one's state.
    pub fn moved_to(self, model: M) -> Self {
        let saved: Section = self.device.save();
        let Self { ram, heard, next_desc, avail, seen, legacy, .. } = self;
        let mut map = MemMap::default();
        map.map_ram(Pa(0), RAM, 0, true);
        let dma = Dma::new(ram.clone(), &map);
        let wires = PciWires { intx: IrqLine::new(heard.clone(), 0), msi: heard.clone(), dma, line: 11 };
        let mut device = VirtioPci::new(model, wires, PciOptions::default());
        device.load(&saved).unwrap();
        Self { device, ram, heard, next_desc, avail, seen, legacy }
    }
}
