//! Tests of the virtio block device, through its PCI registers: requests, errors, hostile drivers, saved state.

use super::*;
use crate::block::testkit::MemoryDisk;
use crate::pci::PciFunction;
use crate::virtio::testkit::{Driver, PIN, RAM, SIZE};
use crate::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, PciOptions};
use vm_core::Device;
use vm_core::testing::Rng;

const HEADER_AT: u64 = 0x1000;
const STATUS_AT: u64 = 0x2000;
const DATA_AT: u64 = 0x8000;

fn blk(disk: &Arc<MemoryDisk>) -> Blk {
    Blk::new(disk.clone(), BlkConfig { serial: "serial-0".into(), queues: 2, queue_size: 64, ..BlkConfig::default() })
}

fn driver(disk: &Arc<MemoryDisk>, features: u64) -> Driver<Blk> {
    let mut d = Driver::modern(blk(disk));
    d.start(features);
    d
}

/// Puts a header at `HEADER_AT + slot * 16`.
fn header(d: &Driver<Blk>, slot: u64, kind: u32, sector: u64) -> (u64, u32) {
    let at = HEADER_AT + 16 * slot;
    d.ram.write_uint(at, 8, kind.into());
    d.ram.write_uint(at + 8, 8, sector);
    (at, 16)
}

fn status(d: &Driver<Blk>, slot: u64) -> u8 {
    d.bytes(STATUS_AT + slot, 1)[0]
}

/// One request with the buffers to read and to write between header and status; gives the status.
fn request(d: &mut Driver<Blk>, kind: u32, sector: u64, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u8 {
    d.ram.write(STATUS_AT, &[0xee]);
    let h = header(d, 0, kind, sector);
    d.add(0, &[&[h], readable].concat(), &[writable, &[(STATUS_AT, 1)]].concat());
    d.notify(0);
    status(d, 0)
}

#[test]
fn saved_state_contract() {
    Driver::contract(|| blk(&MemoryDisk::new(1 << 20).shared()));
}

#[test]
fn data_goes_to_the_disk_and_back() {
    let disk = MemoryDisk::new(1 << 20).shared();
    let mut d = driver(&disk, F_FLUSH);
    let data: Vec<u8> = (0..1536u32).map(|i| (i * 7) as u8).collect();
    d.ram.write(DATA_AT, &data);
    assert_eq!(request(&mut d, T_OUT, 5, &[(DATA_AT, 1000), (DATA_AT + 1000, 536)], &[]), S_OK);
    assert_eq!(disk.bytes(5 * 512, 1536), data);
    assert_eq!(request(&mut d, T_IN, 6, &[], &[(0x2_0000, 512), (0x2_1000, 512)]), S_OK);
    assert_eq!([d.bytes(0x2_0000, 512), d.bytes(0x2_1000, 512)].concat(), data[512..]);
    assert_eq!(request(&mut d, T_FLUSH, 0, &[], &[]), S_OK);
    assert_eq!(disk.log(), ["write 2560 1536", "read 3072 1024", "flush"]);
    assert_eq!(d.used(0), [(0, 1), (4, 1025), (0, 1)]);
}

#[test]
fn legacy_drivers_that_cannot_flush_write_through() {
    let disk = MemoryDisk::new(1 << 20).shared();
    let mut d = Driver::with(blk(&disk), PciOptions::default(), true);
    d.start(0);
    d.ram.write(DATA_AT, &[7; 512]);
    assert_eq!(request(&mut d, T_OUT, 0, &[(DATA_AT, 512)], &[]), S_OK);
    assert_eq!((disk.log(), disk.bytes(0, 2)), (vec!["write 0 512 through".into()], vec![7, 7]));
    assert_eq!(d.used(0), [(0, 1)]);
    assert_eq!(d.device.bar_read(0, 20, 8) & 0xffff_ffff, 2048, "capacity");
    assert_eq!((d.take_heard().last(), d.device.bar_read(0, 19, 1), d.device.bar_read(0, 19, 1)), (Some(&(PIN + 1)), 1, 0));
    assert_eq!(d.take_heard(), [PIN]);
}

#[test]
fn a_driver_may_turn_write_back_off() {
    let disk = MemoryDisk::new(1 << 20).shared();
    let mut d = driver(&disk, F_FLUSH | F_CONFIG_WCE);
    d.device.bar_write(4, 0x2000 + 32, 1, 0);
    assert_eq!(request(&mut d, T_OUT, 0, &[(DATA_AT, 512)], &[]), S_OK);
    assert_eq!(disk.log(), ["write 0 512 through"]);
    assert_eq!(d.device.bar_read(4, 0x2000 + 32, 1), 0);
}

#[test]
fn without_a_write_cache_all_that_is_done_is_on_disk() {
    let disk = MemoryDisk::new(1 << 20).write_through().shared();
    let mut d = driver(&disk, F_FLUSH | F_CONFIG_WCE | F_WRITE_ZEROES);
    assert_eq!(d.device.bar_read(4, 0x2000 + 32, 1), 0, "writeback");
    assert_eq!(request(&mut d, T_OUT, 0, &[(DATA_AT, 512)], &[]), S_OK);
    d.ram.write_uint(DATA_AT, 8, 8);
    d.ram.write_uint(DATA_AT + 8, 8, 2);
    assert_eq!(request(&mut d, T_WRITE_ZEROES, 0, &[(DATA_AT, 16)], &[]), S_OK);
    assert_eq!(disk.log(), ["write 0 512 through", "zero 4096 1024 false through"]);
    // The driver may turn it on, until the device is reset.
    d.device.bar_write(4, 0x2000 + 32, 1, 1);
    assert_eq!(request(&mut d, T_OUT, 0, &[(DATA_AT, 512)], &[]), S_OK);
    assert_eq!(disk.log(), ["write 0 512"]);
    d.device.reset();
    assert_eq!(d.device.bar_read(4, 0x2000 + 32, 1), 0);
}

#[test]
fn a_driver_that_may_not_choose_sees_what_there_is() {
    let features = |disk: MemoryDisk| {
        Blk::new(disk.shared(), BlkConfig { config_wce: false, ..BlkConfig::default() }).features() & (F_FLUSH | F_CONFIG_WCE)
    };
    assert_eq!(features(MemoryDisk::new(1 << 20)), F_FLUSH);
    assert_eq!(features(MemoryDisk::new(1 << 20).write_through()), 0);
}

#[test]
fn ranges_are_discarded_and_zeroed() {
    let disk = MemoryDisk::new(1 << 20).shared();
    let mut d = driver(&disk, F_FLUSH | F_DISCARD | F_WRITE_ZEROES);
    let mut range = |kind, sector: u64, sectors: u64, flags: u64, len| {
        d.ram.write_uint(DATA_AT, 8, sector);
        d.ram.write_uint(DATA_AT + 8, 8, sectors | flags << 32);
        request(&mut d, kind, 0, &[(DATA_AT, len)], &[])
    };
    assert_eq!(range(T_DISCARD, 8, 8, 0, 16), S_OK);
    assert_eq!(range(T_WRITE_ZEROES, 16, 2, 1, 16), S_OK);
    assert_eq!(range(T_WRITE_ZEROES, 16, 2, 0, 16), S_OK);
    assert_eq!(range(T_DISCARD, 8, 8, 1, 16), S_UNSUPP);
    assert_eq!(range(T_WRITE_ZEROES, 2047, 2, 0, 16), S_IOERR);
    assert_eq!(range(T_WRITE_ZEROES, !0, 2, 0, 16), S_IOERR);
    assert_eq!(range(T_DISCARD, 0, 8, 0, 15), S_IOERR);
    assert_eq!(range(T_DISCARD, 0, 8, 0, 32), S_IOERR, "one range only");
    assert_eq!(disk.log(), ["discard 4096 4096", "zero 8192 1024 true", "zero 8192 1024 false"]);
}

#[test]
fn what_does_not_fit_is_an_error_and_changes_nothing() {
    let disk = MemoryDisk::new(1 << 20).shared();
    let mut d = driver(&disk, F_FLUSH);
    for (sector, len) in [(2048, 512), (2047, 1024), (!0, 512), (1 << 55, 512), (0, 100), (0, 513)] {
        assert_eq!(request(&mut d, T_OUT, sector, &[(DATA_AT, len)], &[]), S_IOERR, "{sector} {len}");
        assert_eq!(request(&mut d, T_IN, sector, &[], &[(DATA_AT, len)]), S_IOERR, "{sector} {len}");
    }
    assert_eq!(request(&mut d, 99, 0, &[], &[]), S_UNSUPP);
    assert_eq!(disk.log(), Vec::<String>::new());
    // No data at all is no error.
    assert_eq!(request(&mut d, T_IN, 0, &[], &[]), S_OK);
}

#[test]
fn read_only_disks_are_not_written() {
    let disk = MemoryDisk::new(1 << 20).read_only().shared();
    let mut d = driver(&disk, F_FLUSH);
    assert_ne!(d.device.bar_read(4, 4, 4) & F_RO, 0);
    assert_eq!(request(&mut d, T_OUT, 0, &[(DATA_AT, 512)], &[]), S_IOERR);
    assert_eq!(request(&mut d, T_WRITE_ZEROES, 0, &[(DATA_AT, 16)], &[]), S_IOERR);
    assert_eq!(request(&mut d, T_IN, 0, &[], &[(DATA_AT, 512)]), S_OK);
}

#[test]
fn the_serial_number_is_told() {
    let mut d = driver(&MemoryDisk::new(1 << 20).shared(), 0);
    d.ram.write(DATA_AT, &[0xff; 32]);
    assert_eq!(request(&mut d, T_GET_ID, 0, &[], &[(DATA_AT, 10), (DATA_AT + 10, 10)]), S_OK);
    assert_eq!(&d.bytes(DATA_AT, 21), b"serial-0\0\0\0\0\0\0\0\0\0\0\0\0\xff");
    assert_eq!(d.used(0), [(0, 21)]);
}

#[test]
fn errors_of_the_host_reach_the_driver() {
    let mut m = MemoryDisk::new(1 << 20);
    m.fail_from = 4096;
    let mut d = driver(&m.shared(), F_FLUSH);
    assert_eq!(request(&mut d, T_OUT, 8, &[(DATA_AT, 512)], &[]), S_IOERR);
    assert_eq!(request(&mut d, T_IN, 8, &[], &[(DATA_AT, 512)]), S_IOERR);
    assert_eq!(request(&mut d, T_OUT, 7, &[(DATA_AT, 512)], &[]), S_OK);
    assert_eq!(d.used(0).iter().map(|u| u.1).collect::<Vec<_>>(), [1, 1, 1]);
}

#[test]
fn requests_end_in_any_order_and_interrupt_by_their_queue() {
    let disk = MemoryDisk::new(1 << 20).holding().shared();
    let mut d = Driver::modern(blk(&disk));
    d.msix();
    d.start(F_FLUSH);
    let h = [header(&d, 0, T_FLUSH, 0), header(&d, 1, T_FLUSH, 0)];
    let a = d.add(0, &[h[0]], &[(STATUS_AT, 1)]);
    let b = d.add(0, &[h[1]], &[(STATUS_AT + 1, 1)]);
    d.add(1, &[h[0]], &[(STATUS_AT + 2, 1)]);
    d.notify(0);
    d.notify(1);
    assert_eq!((d.used(0).len(), d.take_heard().contains(&1)), (0, false));
    assert_eq!(disk.run(), 3);
    d.device.service();
    assert_eq!(d.used(0), [(b.into(), 1), (a.into(), 1)]);
    assert_eq!(d.used(1), [(0, 1)]);
    assert_eq!(d.take_heard(), [1, 2]);
}

#[test]
fn drivers_suppress_interrupts() {
    let disk = MemoryDisk::new(1 << 20).shared();
    let mut d = Driver::modern(blk(&disk));
    d.msix();
    d.start(0);
    // VIRTQ_AVAIL_F_NO_INTERRUPT.
    d.ram.write_uint(0x4_1000, 2, 1);
    request(&mut d, T_FLUSH, 0, &[], &[]);
    assert_eq!(d.take_heard().iter().filter(|v| **v == 1).count(), 0);
    d.ram.write_uint(0x4_1000, 2, 0);
    request(&mut d, T_FLUSH, 0, &[], &[]);
    assert_eq!(d.take_heard(), [1]);

    let mut d = Driver::modern(blk(&disk));
    d.msix();
    d.start(F_EVENT_IDX);
    d.take_heard();
    // used_event: after the third.
    d.ram.write_uint(0x4_1000 + 4 + 2 * u64::from(SIZE), 2, 2);
    for expect in [vec![], vec![], vec![1], vec![]] {
        request(&mut d, T_FLUSH, 0, &[], &[]);
        assert_eq!(d.take_heard(), expect);
    }
    // avail_event: tell of the next one.
    assert_eq!(d.ram.read_uint(0x4_2000 + 4 + 8 * u64::from(SIZE), 2), 4);
}

#[test]
fn indirect_tables_work_and_do_not_nest() {
    let disk = MemoryDisk::new(1 << 20).shared();
    let mut d = driver(&disk, F_INDIRECT_DESC);
    let table = 0x4_3000;
    let (h, _) = header(&d, 0, T_IN, 1);
    disk.fill(512, &[9; 512]);
    d.put_descriptor(table, h, 16, 1, 1);
    d.put_descriptor(table + 16, DATA_AT, 512, 3, 2);
    d.put_descriptor(table + 32, STATUS_AT, 1, 2, 0);
    d.descriptor(0, 0, table, 48, 4, 0);
    d.offer(0, 0);
    d.notify(0);
    assert_eq!((d.bytes(DATA_AT, 2), d.used(0)), (vec![9, 9], vec![(0, 513)]));
    d.put_descriptor(table + 16, table, 48, 5, 0);
    d.offer(0, 0);
    d.notify(0);
    assert_eq!((d.used(0), d.status() & 0x40), (vec![], 0x40));
}

/// A driver that breaks the rules gets no more work done until it resets the device; then all is well.
#[test]
fn broken_queues_stop_until_reset() {
    type Break = fn(&mut Driver<Blk>);
    let ways: [(&str, Break); 9] = [
        ("a loop", |d| {
            d.descriptor(0, 0, DATA_AT, 16, 1, 0);
            d.offer(0, 0);
        }),
        ("a head beyond the table", |d| d.offer(0, SIZE)),
        ("a link beyond the table", |d| {
            d.descriptor(0, 0, DATA_AT, 16, 1, SIZE);
            d.offer(0, 0);
        }),
        ("no status", |d| {
            let _ = d.add(0, &[(HEADER_AT, 16)], &[]);
        }),
        ("a short header", |d| {
            let _ = d.add(0, &[(HEADER_AT, 15)], &[(STATUS_AT, 1)]);
        }),
        ("an empty status", |d| {
            let _ = d.add(0, &[(HEADER_AT, 16)], &[(STATUS_AT, 0)]);
        }),
        ("a buffer to read after one to write", |d| {
            d.descriptor(0, 0, STATUS_AT, 1, 3, 1);
            d.descriptor(0, 1, HEADER_AT, 16, 0, 0);
            d.offer(0, 0);
        }),
        ("an index that jumps", |d| d.ram.write_uint(0x4_1002, 2, u64::from(SIZE) + 1)),
        ("an indirect table outside of RAM", |d| {
            d.descriptor(0, 0, RAM - 8, 32, 4, 0);
            d.offer(0, 0);
        }),
    ];
    for (what, break_it) in ways {
        let disk = MemoryDisk::new(1 << 20).shared();
        let mut d = driver(&disk, F_FLUSH);
        break_it(&mut d);
        d.notify(0);
        assert_eq!(d.status(), 0x4f, "{what}");
        assert_eq!((d.used(0), disk.log()), (vec![], vec![]), "{what}");
        d.common(0x14, 1, 0);
        assert_eq!(d.status(), 0, "{what}");
        let mut d = driver(&disk, F_FLUSH);
        assert_eq!(request(&mut d, T_FLUSH, 0, &[], &[]), S_OK, "{what}");
    }
}

#[test]
fn one_head_cannot_be_under_way_forever() {
    let disk = MemoryDisk::new(1 << 20).holding().shared();
    let mut d = driver(&disk, F_FLUSH);
    let h = header(&d, 0, T_FLUSH, 0);
    let head = d.add(0, &[h], &[(STATUS_AT, 1)]);
    for _ in 1..SIZE {
        d.offer(0, head);
        d.notify(0);
    }
    assert_eq!(d.status(), 0xf);
    d.offer(0, head);
    d.notify(0);
    assert_eq!(d.status(), 0x4f, "more than the queue has places");
}

#[test]
fn requests_under_way_go_on_after_loading() {
    let (first, second) = (MemoryDisk::new(1 << 20).holding().shared(), MemoryDisk::new(1 << 20).shared());
    let mut d = driver(&first, F_FLUSH);
    d.ram.write(DATA_AT, &[3; 512]);
    let h = header(&d, 0, T_OUT, 4);
    let head = d.add(0, &[h, (DATA_AT, 512)], &[(STATUS_AT, 1)]);
    d.notify(0);
    let mut e = d.moved_to(blk(&second));
    assert_eq!((second.log(), second.bytes(4 * 512, 1)), (vec!["write 2048 512".into()], vec![3]));
    assert_eq!((e.used(0), status(&e, 0)), (vec![(head.into(), 1)], S_OK));
    // And the queue goes on where it was.
    assert_eq!(request(&mut e, T_FLUSH, 0, &[], &[]), S_OK);
    assert_eq!(first.run(), 1);
}

#[test]
fn forged_states_are_refused() {
    let disk = MemoryDisk::new(1 << 20).holding().shared();
    let mut d = driver(&disk, F_FLUSH);
    let h = header(&d, 0, T_IN, 4);
    d.add(0, &[h], &[(DATA_AT, 512), (STATUS_AT, 1)]);
    d.notify(0);
    let good = d.device.save();
    let forge = |path: &str, v: serde_json::Value| {
        let mut s = good.clone();
        *s.data.pointer_mut(path).expect(path) = v;
        let mut e = driver(&disk, 0);
        let refused = e.device.load(&s).is_err();
        // Whatever became of it, it does not fall over.
        e.notify(0);
        refused
    };
    assert!(forge("/virtio/model/sectors", 5.into()));
    assert!(forge("/virtio/model/pending/0/op/Read/at", (1u64 << 40).into()));
    assert!(forge("/virtio/model/pending/0/op/Read/at", 1.into()));
    assert!(forge("/virtio/model/pending/0/head", 64.into()));
    assert!(forge("/virtio/model/pending/0/queue", 2.into()));
    assert!(forge("/virtio/queues/0/size", 3.into()));
    assert!(forge("/virtio/queues/0/size", 128.into()));
    assert!(forge("/virtio/queues/0/in_use", 65.into()));
    assert!(forge("/pci/config", vec![0; 7].into()));
    assert!(!forge("/virtio/queues/0/desc", (!0u64 - 15).into()));
    assert!(!forge("/virtio/queues/0/vector", 77.into()));
    assert!(!forge("/virtio/features", (!0u64).into()));
}

/// Rings and descriptors of random content, in memory that the driver changes as it likes.
#[test]
fn random_rings_do_no_harm() {
    for seed in 0..40 {
        let mut r = Rng(seed);
        let disk = MemoryDisk::new(1 << 20).shared();
        let mut d = driver(&disk, r.next_u64() & (F_FLUSH | F_EVENT_IDX | F_INDIRECT_DESC));
        for _ in 0..300 {
            let pa = |r: &mut Rng| if r.one_in(8) { r.next_u64() } else { r.below(RAM) };
            let index = r.below(SIZE.into()) as u16;
            let len = if r.one_in(10) { r.next_u64() as u32 } else { r.pick(&[16, 1, 512, 48]) };
            let (at, flags, next) = (pa(&mut r), r.below(8) as u16, r.below(SIZE as u64 + 1) as u16);
            d.descriptor((seed % 2) as usize, index, at, len, flags, next);
            header(&d, r.below(4), r.pick(&[0, 1, 4, 8, 11, 13]), r.below(2050));
            if r.one_in(3) {
                d.offer((seed % 2) as usize, index);
                d.notify(seed % 2);
            }
            if d.status() & 0x40 != 0 {
                d.common(0x14, 1, 0);
                d = driver(&disk, F_FLUSH | F_INDIRECT_DESC);
            }
        }
    }
}

#[test]
fn another_size_is_told() {
    let disk = MemoryDisk::new(1 << 20).shared();
    let mut d = Driver::with(blk(&disk), PciOptions::default(), false);
    d.msix();
    d.start(F_FLUSH);
    assert_eq!(request(&mut d, T_IN, 2048, &[], &[(DATA_AT, 512)]), S_IOERR);
    d.take_heard();
    disk.resize(3 << 20);
    d.device.service();
    assert_eq!(d.device.bar_read(4, 0x2000, 8), 6144);
    assert_eq!(d.take_heard(), [0], "the configuration's vector");
    assert_eq!(request(&mut d, T_IN, 2048, &[], &[(DATA_AT, 512)]), S_OK);
}
