//! Tests of the memory-mapped transport: what a driver finds, requests with interrupts, rules of register accesses, saved state.

use super::*;
use crate::block::testkit::MemoryDisk;
use crate::virtio::testkit::{Heard, PIN, ram};
use crate::virtio::{Blk, BlkConfig, F_VERSION_1, Rng};
use vm_core::Ram;

const RINGS: u64 = 0x4_0000;

fn rng() -> Rng {
    Rng::new(Box::new(|b| b.fill(0x5a)))
}

struct Machine<M> {
    device: VirtioMmio<M>,
    ram: Arc<Ram>,
    heard: Arc<Heard>,
}

fn machine<M: Model>(model: M) -> Machine<M> {
    let (ram, dma) = ram();
    let heard = Arc::new(Heard::default());
    let device = VirtioMmio::new(model, MmioWires { irq: IrqLine::new(heard.clone(), 0), dma });
    Machine { device, ram, heard }
}

impl<M: Model> Machine<M> {
    fn get(&mut self, offset: u64) -> u32 {
        self.device.read(0, offset, 4) as u32
    }

    fn set(&mut self, offset: u64, value: u32) {
        self.device.write(0, offset, 4, value.into());
    }

    /// As §4.2.3 has it, with one queue of 8 places.
    fn start(&mut self, features: u64) {
        self.set(STATUS, 3);
        for half in 0..2 {
            self.set(DRIVER_FEATURES_SEL, half);
            self.set(DRIVER_FEATURES, ((features | F_VERSION_1) >> (32 * half)) as u32);
        }
        self.set(STATUS, 0xb);
        self.set(QUEUE_SEL, 0);
        assert_eq!(self.get(QUEUE_READY), 0);
        self.set(QUEUE_NUM, 8);
        for (n, at) in (0..).zip([QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE]) {
            self.set(at, (RINGS + 0x1000 * n) as u32);
            self.set(at + 4, 0);
        }
        self.set(QUEUE_READY, 1);
        self.set(STATUS, 0xf);
    }

    /// Makes one buffer for the device to write available, as request number `n`.
    fn offer(&mut self, n: u16, pa: u64, len: u32) {
        let (desc, avail) = (RINGS + 16 * u64::from(n % 8), RINGS + 0x1000);
        self.ram.write_uint(desc, 8, pa);
        self.ram.write_uint(desc + 8, 8, u64::from(len) | 2 << 32);
        self.ram.write_uint(avail + 4 + 2 * u64::from(n % 8), 2, (n % 8).into());
        self.ram.write_uint(avail + 2, 2, u64::from(n) + 1);
    }

    fn level(&self) -> Option<u32> {
        self.heard.0.lock().last().copied()
    }

    fn used(&self) -> u64 {
        self.ram.read_uint(RINGS + 0x2002, 2)
    }
}

#[test]
fn saved_state_contract() {
    let fresh = || VirtioMmio::new(rng(), MmioWires { irq: IrqLine::unconnected(), dma: ram().1 });
    vm_core::testing::contract(fresh, 1, SIZE);
    vm_core::testing::contract(fresh, 1, 0x80);
}

#[test]
fn a_driver_finds_the_device() {
    let disk = MemoryDisk::new(1 << 20).shared();
    let mut m = machine(Blk::new(disk, BlkConfig::default()));
    assert_eq!([MAGIC_VALUE, VERSION_REG, DEVICE_ID, VENDOR_ID].map(|r| m.get(r)), [0x7472_6976, 2, 2, 0x1af4]);
    m.set(DEVICE_FEATURES_SEL, 1);
    assert_eq!(m.get(DEVICE_FEATURES), 1, "VIRTIO_F_VERSION_1");
    m.set(DEVICE_FEATURES_SEL, 2);
    assert_eq!(m.get(DEVICE_FEATURES), 0);
    assert_eq!((m.get(QUEUE_NUM_MAX), m.device.read(0, CONFIG, 8), m.device.read(0, CONFIG + 12, 2)), (256, 2048, 254));
    m.set(QUEUE_SEL, 0x1_0000);
    assert_eq!(m.get(QUEUE_NUM_MAX), 0, "no queue has that number");
    assert_eq!((m.get(SHM_FIRST), m.get(SHM_FIRST + 4)), (!0, !0));
    // Registers are neither split nor joined.
    assert_eq!((m.device.read(0, MAGIC_VALUE, 1), m.device.read(0, 2, 4), m.device.read(0, 0, 8)), (0, 0, 0));
    m.device.write(0, STATUS, 1, 1);
    assert_eq!(m.get(STATUS), 0);
}

#[test]
fn requests_are_done_and_interrupts_acknowledged() {
    let mut m = machine(rng());
    m.start(0);
    m.offer(0, 0x8000, 4);
    m.set(QUEUE_NOTIFY, 0);
    assert_eq!((m.used(), m.ram.read_uint(0x8000, 8)), (1, 0x5a5a_5a5a));
    assert_eq!((m.get(INTERRUPT_STATUS), m.level()), (1, Some(PIN + 1)));
    m.set(INTERRUPT_ACK, 2);
    assert_eq!(m.get(INTERRUPT_STATUS), 1);
    m.set(INTERRUPT_ACK, 1);
    assert_eq!((m.get(INTERRUPT_STATUS), m.level()), (0, Some(PIN)));
    // A queue that is not ready gives nothing.
    m.set(QUEUE_READY, 0);
    m.offer(1, 0x9000, 4);
    m.set(QUEUE_NOTIFY, 0);
    assert_eq!((m.get(QUEUE_READY), m.used(), m.get(INTERRUPT_STATUS)), (0, 1, 0));
    m.set(STATUS, 0);
    assert_eq!((m.get(STATUS), m.get(QUEUE_READY)), (0, 0));
}

#[test]
fn a_driver_must_take_version_1_and_no_more_than_is_offered() {
    for features in [0, F_VERSION_1 | 1 << 40] {
        let mut m = machine(rng());
        m.set(STATUS, 3);
        for half in 0..2 {
            m.set(DRIVER_FEATURES_SEL, half);
            m.set(DRIVER_FEATURES, (features >> (32 * half)) as u32);
        }
        m.set(STATUS, 0xb);
        assert_eq!(m.get(STATUS), 3, "{features:#x}");
    }
}

#[test]
fn a_queue_outside_ram_needs_a_reset() {
    let mut m = machine(rng());
    m.set(QUEUE_DESC, !0xf);
    m.set(QUEUE_DESC + 4, !0);
    assert_eq!(m.device.core.queues.state(0).map(|q| q.desc), Some(!0xf));
    m.start(0);
    m.ram.write_uint(RINGS + 0x1002, 2, 0x7777);
    m.set(QUEUE_NOTIFY, 0);
    assert_eq!((m.get(STATUS), m.get(INTERRUPT_STATUS)), (0x4f, 2));
    m.set(QUEUE_NOTIFY, 0xffff_0000);
    m.set(STATUS, 0);
    assert_eq!((m.get(STATUS), m.level()), (0, Some(PIN)));
}

#[test]
fn a_request_under_way_and_an_interrupt_survive() {
    let disk = Arc::new(MemoryDisk::new(1 << 20).holding());
    let blk = || Blk::new(disk.clone(), BlkConfig::default());
    let mut m = machine(blk());
    m.start(0);
    // VIRTIO_BLK_T_GET_ID's answer is there at once, that of a read is not.
    m.ram.write_uint(0x1000, 8, 8);
    m.ram.write_uint(0x1010, 8, 0);
    for (n, len) in [(0u64, 20), (1, 512)] {
        let at = RINGS + 48 * n;
        for (i, (pa, len, flags)) in
            [(0x1000 + 16 * n, 16, 1), (0x8000 + 0x1000 * n, len, 3), (0x3000 + n, 1, 2)].into_iter().enumerate()
        {
            let next = (3 * n + i as u64 + 1) % 8;
            m.ram.write_uint(at + 16 * i as u64, 8, pa);
            m.ram.write_uint(at + 16 * i as u64 + 8, 8, len | flags << 32 | next << 48);
        }
        m.ram.write_uint(RINGS + 0x1004 + 2 * n, 2, 3 * n);
    }
    m.ram.write_uint(RINGS + 0x1002, 2, 2);
    m.set(QUEUE_NOTIFY, 0);
    assert_eq!((m.used(), m.get(INTERRUPT_STATUS)), (1, 1));
    let saved = m.device.save();
    let mut map = vm_core::MemMap::default();
    map.map_ram(vm_core::Pa(0), m.ram.size(), 0, true);
    let (heard, dma) = (Arc::new(Heard::default()), Dma::new(m.ram.clone(), &map));
    let mut other =
        Machine { device: VirtioMmio::new(blk(), MmioWires { irq: IrqLine::new(heard.clone(), 0), dma }), heard, ram: m.ram };
    drop(m.device);
    other.device.load(&saved).unwrap();
    assert_eq!(other.level(), Some(PIN + 1));
    other.set(INTERRUPT_ACK, 1);
    disk.run();
    other.device.service();
    assert_eq!((other.used(), other.get(INTERRUPT_STATUS)), (2, 1));
}
