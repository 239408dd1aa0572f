//! The controller with disks in memory: detection, transfers by the data register and by DMA, packets, errors, saved state.

use super::*;
use crate::block::ata::{DEVICE_LBA, Medium, status};
use crate::block::testkit::{MemoryDisk, dma};
use vm_core::testing::{Rng, contract};
use vm_core::{Dma, IrqSink, Pa};

const READY: u8 = status::DRDY | status::DSC;

#[derive(Default)]
struct Lines(Mutex<[bool; 2]>);

impl IrqSink for Lines {
    fn set_irq(&self, line: u32, level: bool) {
        self.0.lock()[line as usize] = level;
    }
}

struct Kit {
    ide: Ide,
    disk: Arc<MemoryDisk>,
    disc: Arc<MemoryDisk>,
    lines: Arc<Lines>,
    dma: Dma,
}

fn controller(disk: Arc<MemoryDisk>, disc: Arc<MemoryDisk>, lines: Arc<Lines>, dma: Dma) -> Ide {
    let drives = [
        Some(Drive::new(Medium::Disk(disk), "", 0)),
        None,
        Some(Drive::new(Medium::Cd(Some(disc)), "", 2)),
        Some(Drive::new(Medium::Cd(None), "", 3)),
    ];
    Ide::new(drives, [0, 1].map(|n| IrqLine::new(lines.clone(), n)), PciWires::unconnected(dma))
}

fn kit_with(disk: MemoryDisk) -> Kit {
    let (disk, disc, lines, dma) =
        (disk.shared(), MemoryDisk::new(64 << 10).read_only().shared(), Arc::<Lines>::default(), dma());
    let mut ide = controller(disk.clone(), disc.clone(), lines.clone(), dma.clone());
    // Bus master at C000h.
    ide.config_write(0x20, 4, 0xc000);
    ide.config_write(4, 2, 5);
    Kit { ide, disk, disc, lines, dma }
}

fn kit() -> Kit {
    let k = kit_with(MemoryDisk::new(1 << 20));
    let bytes: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 512 * 7 + i % 251) as u8).collect();
    k.disk.fill(0, &bytes);
    k.disc.fill(0, &bytes[..64 << 10]);
    k
}

impl Kit {
    fn out(&mut self, channel: u32, register: u16, v: u8) {
        PortIo::write(&mut self.ide, channel * 2, register, 1, v.into());
    }

    fn inb(&mut self, channel: u32, register: u16) -> u8 {
        PortIo::read(&mut self.ide, channel * 2, register, 1) as u8
    }

    fn irq(&self, channel: usize) -> bool {
        self.lines.0.lock()[channel]
    }

    /// A command on the first disk with a 28-bit address.
    fn command(&mut self, code: u8, lba: u32, count: u8) {
        for (r, v) in [(2, count), (3, lba as u8), (4, (lba >> 8) as u8), (5, (lba >> 16) as u8), (6, DEVICE_LBA)] {
            self.out(0, r, v);
        }
        self.out(0, 7, code);
    }

    fn words(&mut self, channel: u32, n: usize) -> Vec<u8> {
        (0..n).flat_map(|_| (PortIo::read(&mut self.ide, channel * 2, 0, 2) as u16).to_le_bytes()).collect()
    }

    /// One descriptor for `len` bytes at 8000h, and the bus master started.
    fn bus_master(&mut self, channel: u64, len: u32, to_memory: bool) {
        let d: Vec<u8> = 0x8000u32.to_le_bytes().into_iter().chain((len | 1 << 31).to_le_bytes()).collect();
        self.dma.write(Pa(0x1000), &d);
        self.ide.bar_write(BM_BAR, channel * 8 + 4, 4, 0x1000);
        self.ide.bar_write(BM_BAR, channel * 8, 1, if to_memory { 9 } else { 1 });
    }

    fn memory(&self, len: usize) -> Vec<u8> {
        let mut b = vec![0; len];
        self.dma.read(Pa(0x8000), &mut b);
        b
    }

    fn packet(&mut self, features: u8, limit: u16, c: &[u8]) {
        for (r, v) in [(6, 0), (1, features), (4, limit as u8), (5, (limit >> 8) as u8), (7, 0xa0)] {
            self.out(1, r, v);
        }
        let mut packet = [0; 12];
        packet[..c.len()].copy_from_slice(c);
        for w in packet.as_chunks::<2>().0 {
            PortIo::write(&mut self.ide, 2, 0, 2, u16::from_le_bytes(*w).into());
        }
    }
}

#[test]
fn saved_state_contract() {
    let made = || {
        let (disk, disc) = (MemoryDisk::new(1 << 20).shared(), MemoryDisk::new(64 << 10).read_only().shared());
        controller(disk, disc, Arc::default(), dma())
    };
    contract(made, 5, 16);
}

#[test]
fn drives_are_told_by_their_signatures() {
    let mut k = kit();
    let signature = |k: &mut Kit, channel, device| {
        k.out(channel, 6, device);
        [2, 3, 4, 5, 7].map(|r| k.inb(channel, r))
    };
    assert_eq!(signature(&mut k, 0, 0), [1, 1, 0, 0, READY]);
    assert_eq!(signature(&mut k, 0, 0x10)[4], 0, "nothing there");
    assert_eq!(signature(&mut k, 1, 0), [1, 1, 0x14, 0xeb, 0]);
    assert_eq!(signature(&mut k, 1, 0x10), [1, 1, 0x14, 0xeb, 0]);
    // Software reset of a channel.
    k.out(0, 6, 0);
    k.out(0, 2, 0x55);
    PortIo::write(&mut k.ide, 1, 0, 1, 4);
    assert_eq!(PortIo::read(&mut k.ide, 1, 0, 1) as u8 & status::BSY, status::BSY);
    PortIo::write(&mut k.ide, 1, 0, 1, 0);
    assert_eq!(signature(&mut k, 0, 0), [1, 1, 0, 0, READY]);
}

#[test]
fn identify_comes_through_the_data_register() {
    let mut k = kit();
    k.command(0xec, 0, 0);
    assert!(k.irq(0));
    assert_eq!((k.inb(0, 7), k.irq(0)), (READY | status::DRQ, false));
    let data = k.words(0, 256);
    assert_eq!((data[120], data[121], data[122]), (0, 8, 0), "2048 sectors");
    assert_eq!(k.inb(0, 7), READY);
    assert_eq!(k.words(0, 1), [0xff; 2], "no more");
    // A CD-ROM drive refuses, and shows what it is.
    k.out(1, 7, 0xec);
    assert_eq!((k.inb(1, 7), k.inb(1, 1), k.inb(1, 4)), (READY | status::ERR, 4, 0x14));
}

#[test]
fn sectors_move_through_the_data_register_each_with_an_interrupt() {
    let mut k = kit();
    k.command(0x20, 5, 200);
    for n in 5..205 {
        assert!(k.irq(0), "sector {n}");
        assert_eq!(k.inb(0, 7), READY | status::DRQ);
        assert_eq!(k.words(0, 256), k.disk.bytes(n * 512, 512), "sector {n}");
    }
    assert_eq!((k.irq(0), k.inb(0, 7)), (false, READY));
    k.command(0x30, 9, 2);
    assert!(!k.irq(0));
    for n in 0..2u32 {
        assert_eq!(k.inb(0, 7), READY | status::DRQ);
        (0..128).for_each(|i| PortIo::write(&mut k.ide, 0, 0, 4, i << 16 | n));
        assert!(k.irq(0));
    }
    assert_eq!((k.inb(0, 7), k.disk.bytes(9 * 512 + 4, 4), k.disk.bytes(10 * 512, 2)), (READY, vec![0, 0, 1, 0], vec![1, 0]));
    // READ MULTIPLE: eight sectors at once.
    k.command(0xc6, 0, 8);
    k.inb(0, 7);
    k.command(0xc4, 0, 12);
    assert_eq!(k.words(0, 8 * 256), k.disk.bytes(0, 4096));
    assert!(k.irq(0));
    assert_eq!(k.words(0, 4 * 256), k.disk.bytes(4096, 2048));
    assert_eq!(k.inb(0, 7), READY);
}

#[test]
fn dma_waits_for_the_bus_master_and_tells_it() {
    let mut k = kit();
    k.command(0xc8, 3, 4);
    assert!(!k.irq(0));
    k.bus_master(0, 2048, true);
    assert!(k.irq(0));
    assert_eq!((k.ide.bar_read(BM_BAR, 2, 1), k.inb(0, 7)), (4, READY));
    assert_eq!(k.memory(2048), k.disk.bytes(3 * 512, 2048));
    k.ide.bar_write(BM_BAR, 0, 1, 0);
    k.ide.bar_write(BM_BAR, 2, 1, 0x66);
    assert_eq!(k.ide.bar_read(BM_BAR, 2, 1), 0x60);
    // The bus master first; to the disk, beyond the end of a cache that is off.
    k.out(0, 1, 0x82);
    k.out(0, 7, 0xef);
    k.dma.write(Pa(0x8000), &[0xa5; 512]);
    k.disk.log();
    k.bus_master(0, 512, false);
    k.command(0xca, 7, 1);
    assert_eq!((k.disk.log(), k.disk.bytes(7 * 512, 2)), (vec!["write 3584 512 through".to_owned()], vec![0xa5; 2]));
    // Too few descriptors: the transfer ends without an interrupt.
    k.inb(0, 7);
    k.ide.bar_write(BM_BAR, 0, 1, 0);
    k.command(0xc8, 0, 4);
    k.bus_master(0, 512, true);
    assert_eq!((k.irq(0), k.ide.bar_read(BM_BAR, 2, 1) & 1, k.inb(0, 7)), (false, 0, READY));
}

#[test]
fn packets_by_both_ways() {
    let mut k = kit();
    k.packet(0, 0x800, &[0x28, 0, 0, 0, 0, 2, 0, 0, 3]);
    let mut got = Vec::new();
    for _ in 0..3 {
        assert!(k.irq(1));
        assert_eq!((k.inb(1, 7), k.inb(1, 2), k.inb(1, 4), k.inb(1, 5)), (READY | status::DRQ, 2, 0, 8));
        got.extend(k.words(1, 1024));
    }
    assert_eq!(got, k.disc.bytes(4096, 6144));
    assert_eq!((k.irq(1), k.inb(1, 2), k.inb(1, 7)), (true, 3, READY));
    k.packet(1, 0, &[0x28, 0, 0, 0, 0, 1, 0, 0, 2]);
    k.bus_master(1, 4096, true);
    assert_eq!((k.irq(1), k.memory(4096)), (true, k.disc.bytes(2048, 4096)));
    // Beyond the end; what the sense data say.
    k.packet(0, 0x800, &[0x28, 0, 0, 0, 1, 0, 0, 0, 1]);
    assert_eq!((k.inb(1, 7), k.inb(1, 1)), (READY | status::ERR, 0x54));
    k.packet(0, 0xfffe, &[3, 0, 0, 0, 18]);
    assert_eq!((k.inb(1, 4), k.words(1, 9)[12]), (18, 0x21));
}

#[test]
fn errors_of_the_host_are_the_guests() {
    let mut failing = MemoryDisk::new(1 << 20);
    failing.fail_from = 4096;
    let mut k = kit_with(failing);
    k.command(0x20, 8, 1);
    assert_eq!((k.irq(0), k.inb(0, 7), k.inb(0, 1)), (true, READY | status::ERR, 0x40));
    k.command(0xc8, 8, 1);
    k.bus_master(0, 512, true);
    assert_eq!((k.inb(0, 7) & 1, k.ide.bar_read(BM_BAR, 2, 1)), (1, 6));
    k.command(0x20, 0xfff_ff0, 1);
    assert_eq!(k.inb(0, 1), 0x10);
}

#[test]
fn what_waits_goes_on_in_another_process() {
    let mut k = kit_with(MemoryDisk::new(1 << 20).holding());
    k.disk.fill(1024, &[7; 512]);
    k.command(0x20, 2, 1);
    assert_eq!(k.inb(0, 7), status::BSY);
    k.out(0, 6, 0x10);
    k.out(0, 7, 0xec);
    let saved = k.ide.save();
    let other = MemoryDisk::new(1 << 20).shared();
    other.fill(1024, &[9; 512]);
    let lines = Arc::<Lines>::default();
    let mut ide = controller(other, k.disc.clone(), lines.clone(), dma());
    ide.load(&saved).unwrap();
    assert_eq!((lines.0.lock()[0], PortIo::read(&mut ide, 0, 0, 2)), (true, 0x0909));
    // A reset forgets it.
    k.ide.reset();
    k.disk.run();
    k.ide.service();
    assert_eq!(k.inb(0, 7), READY);
    let small = controller(MemoryDisk::new(512).shared(), k.disc.clone(), lines, dma()).load(&saved).unwrap_err();
    assert!(small.to_string().contains("the drive has 512 bytes"), "{small}");
}

/// Commands, data and resets in any order, with jobs that end late.
#[test]
fn hostile_commands() {
    for seed in 0..20 {
        let mut r = Rng(seed);
        let disk = MemoryDisk::new(1 << 20);
        let mut k = kit_with(if seed % 2 == 0 { disk } else { disk.holding() });
        for _ in 0..20_000 {
            let (channel, v) = (r.below(2) as u32, r.next_u64());
            match r.below(12) {
                0 => k.out(
                    channel,
                    7,
                    r.pick(&[0x20, 0x24, 0x25, 0x30, 0x34, 0x35, 0xa0, 0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xec, 0xe7]),
                ),
                1 => k.out(channel, 7, v as u8),
                2 => k.out(channel, r.below(8) as u16, v as u8),
                3 => PortIo::write(&mut k.ide, channel * 2 + 1, 0, 1, if r.one_in(8) { 4 } else { v as u32 & 2 }),
                4 => k.ide.bar_write(BM_BAR, r.below(16), 1, v),
                5 => k.bus_master(channel.into(), (v as u32) & 0xfffe, r.one_in(2)),
                6 => drop(k.disk.run()),
                7 => (0..r.below(300)).for_each(|_| PortIo::write(&mut k.ide, channel * 2, 0, 4, v as u32)),
                _ => drop(k.words(channel, r.below(300) as usize)),
            }
            k.ide.service();
            if r.one_in(200) {
                let saved = k.ide.save();
                k.ide.load(&saved).expect("own state loads");
            }
        }
    }
}

/// DATA SET MANAGEMENT, whose ranges come by the bus master.
#[test]
fn trimmed_ranges_are_discarded() {
    let mut k = kit();
    let trim = |k: &mut Kit, features, ranges: &[u64]| {
        let mut data: Vec<u8> = ranges.iter().flat_map(|r| r.to_le_bytes()).collect();
        data.resize(512, 0);
        k.dma.write(Pa(0x8000), &data);
        k.disk.log();
        k.out(0, 1, features);
        // The upper half of its count.
        k.out(0, 2, 0);
        k.command(0x06, 0, 1);
        k.bus_master(0, 512, false);
        k.ide.service();
        let ended = (k.inb(0, 7), k.inb(0, 1));
        k.ide.bar_write(BM_BAR, 0, 1, 0);
        (ended, k.disk.log())
    };
    let two = [8 | 16 << 48, 0, 100 | 1 << 48];
    assert_eq!(trim(&mut k, 1, &two), ((READY, 0), vec!["trim [(4096, 8192), (51200, 512)]".to_owned()]));
    assert!(k.disk.bytes(4096, 8192).iter().all(|b| *b == 0));
    let failed = (READY | status::ERR, crate::block::ata::error::ABRT);
    assert_eq!(trim(&mut k, 1, &[2047 | 2 << 48]), (failed, vec![]), "beyond the disk's end");
    assert_eq!(trim(&mut k, 1, &[!0]), (failed, vec![]));
    assert_eq!(trim(&mut k, 0, &two), (failed, vec![]), "another kind");
}
