//! Virtio devices under a driver that keeps to the rules now and then.

use super::pci::Bench;
use super::{Behaviour, Bytes};
use devices::pci::PciFunction;
use devices::virtio::{F_VERSION_1, Model, PciOptions, VirtioPci};
use std::sync::Arc;
use vm_core::{Device, Ram};

/// Places of each queue; its parts lie at `RINGS + n * 4000h`, a page for each.
pub const SIZE: u16 = 8;
pub const RINGS: u64 = 0x8_0000;
pub const QUEUES: u16 = 8;
const BARS: [u32; 3] = [4, 1, 0];
const COMMON: u32 = 4;

/// A model, and what the host does: `outside` is given the device and a number of the input's.
pub struct Subject<M, D> {
    pub make: fn() -> M,
    pub outside: fn(&mut D, u8),
}

/// One on PCI.
pub type OnPci<M> = Subject<M, VirtioPci<M>>;

/// A device on a bench, by whatever registers it has.
pub trait Transport<D> {
    fn device(&mut self) -> &mut D;
    fn ram(&self) -> &Arc<Ram>;
    /// Interrupts so far.
    fn interrupts(&self) -> u32;
    fn status(&mut self) -> u64;
    /// All that a driver does before it uses the device; queue `q` lies at `RINGS + q * 4000h`.
    fn start(&mut self, features: u64);
    fn notify(&mut self, queue: u8);
    fn configure(&mut self, at: u64, value: u32);
    /// Another operation of the input's.
    fn other(&mut self, b: &mut Bytes, seen: &mut Behaviour);
}

impl<M: Model> Bench<VirtioPci<M>> {
    fn set(&mut self, at: u64, size: u8, v: u64) {
        self.device.bar_write(COMMON, at, size, v);
    }
}

impl<M: Model> Transport<VirtioPci<M>> for Bench<VirtioPci<M>> {
    fn device(&mut self) -> &mut VirtioPci<M> {
        &mut self.device
    }

    fn ram(&self) -> &Arc<Ram> {
        &self.ram
    }

    fn interrupts(&self) -> u32 {
        self.interrupts()
    }

    fn status(&mut self) -> u64 {
        self.device.bar_read(COMMON, 0x14, 1)
    }

    fn start(&mut self, features: u64) {
        self.set(0x14, 1, 0);
        self.set(0x14, 1, 3);
        for half in 0..2 {
            self.set(0, 4, half);
            let offered = self.device.bar_read(COMMON, 4, 4);
            self.set(8, 4, half);
            self.set(0xc, 4, offered & ((features | F_VERSION_1) >> (32 * half)));
        }
        self.set(0x14, 1, 0xb);
        for q in 0..u64::from(QUEUES) {
            self.set(0x16, 2, q);
            self.set(0x18, 2, SIZE.into());
            for (at, part) in [(0x20, 0), (0x28, 1), (0x30, 2)] {
                self.set(at, 8, RINGS + q * 0x4000 + part * 0x1000);
            }
            self.set(0x1c, 2, 1);
        }
        self.set(0x14, 1, 0xf);
    }

    fn notify(&mut self, queue: u8) {
        self.set(0x3000 + 4 * u64::from(queue), 2, queue.into());
    }

    fn configure(&mut self, at: u64, value: u32) {
        self.set(0x2000 + at, 4, value.into());
    }

    fn other(&mut self, b: &mut Bytes, seen: &mut Behaviour) {
        let op = b.u8();
        self.operation(op, b, &BARS, seen);
    }
}

/// The driver's side.
struct Driver<T> {
    bench: T,
    next: [u16; QUEUES as usize],
    avail: [u16; QUEUES as usize],
}

impl<T> Driver<T> {
    fn start<D>(&mut self, features: u64)
    where
        T: Transport<D>,
    {
        self.bench.start(features);
        (self.next, self.avail) = Default::default();
        for q in 0..u64::from(QUEUES) {
            (0..3).for_each(|part| self.bench.ram().write_uint(RINGS + q * 0x4000 + part * 0x1000, 8, 0));
        }
    }

    /// A request of a few buffers, the first of which has bytes of the input's.
    fn request<D>(&mut self, b: &mut Bytes)
    where
        T: Transport<D>,
    {
        let shape = b.u8();
        let (queue, readable, writable) = (usize::from(shape % 8), shape >> 3 & 3, shape >> 5 & 3);
        let (head, all) = (self.next[queue] % SIZE, u16::from(readable + writable));
        let base = RINGS + queue as u64 * 0x4000;
        for i in 0..all {
            let (pa, len) = (0x1000 + u64::from(b.u8()) * 0x400, u32::from(b.u16()));
            let flags = u64::from(i + 1 < all) | if i >= readable.into() { 2 } else { 0 };
            let at = base + 16 * u64::from((head + i) % SIZE);
            self.bench.ram().write_uint(at, 8, pa);
            self.bench.ram().write_uint(at + 8, 8, u64::from(len) | flags << 32 | u64::from((head + i + 1) % SIZE) << 48);
            if i == 0 {
                let n = usize::from(b.u8() % 40);
                self.bench.ram().write(pa, &b.take(n));
            }
        }
        self.next[queue] = (head + all) % SIZE;
        let n = self.avail[queue];
        self.avail[queue] = n.wrapping_add(1);
        self.bench.ram().write_uint(base + 0x1004 + 2 * u64::from(n % SIZE), 2, head.into());
        self.bench.ram().write_uint(base + 0x1002, 2, self.avail[queue].into());
        self.bench.notify(queue as u8);
    }

    fn look<D>(&mut self, op: u8, before: u32, seen: &mut Behaviour)
    where
        T: Transport<D>,
    {
        let status = self.bench.status();
        let used: Vec<u64> = (0..4).map(|q| self.bench.ram().read_uint(RINGS + q * 0x4000 + 0x2002, 2).min(9)).collect();
        seen.saw((op % 16, status, used, (self.bench.interrupts() - before).min(3)));
    }
}

/// Runs one input on a PCI device.
pub fn run<M: Model>(s: &OnPci<M>, input: &[u8], seen: &mut Behaviour) {
    let make = s.make;
    let options = PciOptions { legacy: true, modern: true, vectors: Some(4) };
    run_on(Bench::new(move |wires, _| VirtioPci::new(make(), wires, options)), s.outside, input, seen);
}

/// Runs one input on a device.
pub fn run_on<D: Device>(bench: impl Transport<D>, outside: fn(&mut D, u8), input: &[u8], seen: &mut Behaviour) {
    let mut m = Driver { bench, next: Default::default(), avail: Default::default() };
    let mut b = Bytes(input);
    while !b.is_empty() {
        let (op, before) = (b.u8(), m.bench.interrupts());
        match op % 16 {
            0..=5 => m.request(&mut b),
            6 => m.start(b.u64() | b.u64()),
            7 => m.bench.notify(op >> 4),
            8 | 9 => outside(m.bench.device(), b.u8()),
            10 => m.bench.configure(u64::from(op >> 4) * 4, b.u32()),
            _ => m.bench.other(&mut b, seen),
        }
        m.look(op, before, seen);
    }
    seen.state(&m.bench.device().save().data);
}

/// Inputs to begin with: a driver that starts and makes one request on each queue.
pub fn first() -> Vec<Vec<u8>> {
    let start = [&[6u8][..], &[0xff; 16]].concat();
    let plain = [&[6u8][..], &[0; 16]].concat();
    let request = |queue: u8, shape: u8, data: &[u8]| {
        let count = (shape & 3) + (shape >> 2 & 3);
        let mut v = vec![0, queue | (shape & 3) << 3 | (shape >> 2 & 3) << 5];
        for i in 0..count {
            v.extend([8 * i, 0x10, 2]);
            if i == 0 {
                v.push(data.len() as u8);
                v.extend(data);
            }
        }
        v
    };
    let kind = |k: u8| [&[k][..], &[0; 15]].concat();
    let mut list = vec![start.clone(), plain.clone()];
    for queue in 0..8 {
        for shape in [1, 2, 4, 5, 6, 8, 9] {
            for data in
                [vec![], kind(0), kind(1), kind(4), kind(8), kind(11), vec![21, 0, 0, 0, 100, 0xff, 0xff, 0, 16, 0, 0, 8, 0]]
            {
                let one = request(queue, shape, &data);
                list.push([&start[..], &one, &[8, 3], &one, &[8, 0xff]].concat());
            }
        }
    }
    list.push([&plain[..], &request(1, 1, b"hello"), &[8, 1]].concat());
    list
}
