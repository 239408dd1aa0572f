//! The HBA with disks in memory: detection, commands of all kinds, queued ones, packets, errors, interrupts, saved state.

use super::*;
use crate::block::ata::Medium;
use crate::block::testkit::{MemoryDisk, RAM, dma};
use vm_core::testing::{Rng, contract};
use vm_core::{Dma, IrqLine, IrqSink, MsiSink, Pa};

const LIST: u64 = 0x1000;
const FIS: u64 = 0x2000;
const TABLES: u64 = 0x4000;
const DATA: u64 = 0x8000;
const P0: u64 = 0x100;
const P1: u64 = 0x180;

#[derive(Default)]
struct Heard {
    level: Mutex<bool>,
    messages: Mutex<Vec<(u64, u32)>>,
}

impl IrqSink for Heard {
    fn set_irq(&self, _: u32, level: bool) {
        *self.level.lock() = level;
    }
}

impl MsiSink for Heard {
    fn send_msi(&self, address: u64, data: u32) {
        self.messages.lock().push((address, data));
    }
}

struct Kit {
    hba: Ahci,
    disk: Arc<MemoryDisk>,
    disc: Arc<MemoryDisk>,
    heard: Arc<Heard>,
    dma: Dma,
}

fn drives(disk: &Arc<MemoryDisk>, disc: &Arc<MemoryDisk>) -> [Option<Drive>; PORTS] {
    let disk = Drive::new(Medium::Disk(disk.clone()), "", 0);
    [Some(disk), Some(Drive::new(Medium::Cd(Some(disc.clone())), "", 1)), None, None, None, None]
}

/// Both ports started, interrupts on.
fn kit_with(disk: MemoryDisk) -> Kit {
    let (disk, disc, heard, dma) =
        (disk.shared(), MemoryDisk::new(64 << 10).read_only().shared(), Arc::<Heard>::default(), dma());
    let wires = PciWires { intx: IrqLine::new(heard.clone(), 0), msi: heard.clone(), dma: dma.clone(), line: 11 };
    let mut hba = Ahci::new(drives(&disk, &disc), wires);
    hba.config_write(0x24, 4, 0xd000_0000);
    hba.config_write(4, 2, 6);
    let mut k = Kit { hba, disk, disc, heard, dma };
    for p in [P0, P1] {
        for (r, v) in [(0, LIST), (8, FIS), (0x30, !0), (0x10, !0), (0x14, !0), (0x18, 0x10), (0x18, 0x11)] {
            k.set(p + r, v as u32);
        }
    }
    k.set(4, 2);
    k
}

fn kit() -> Kit {
    let k = kit_with(MemoryDisk::new(1 << 20));
    let bytes: Vec<u8> = (0..1 << 20).map(|i: u32| (i / 512 * 7 + i % 251) as u8).collect();
    k.disk.fill(0, &bytes);
    k.disc.fill(0, &bytes[..64 << 10]);
    k
}

impl Kit {
    fn set(&mut self, at: u64, v: u32) {
        self.hba.bar_write(ABAR, at, 4, v.into());
    }

    fn get(&mut self, at: u64) -> u32 {
        self.hba.bar_read(ABAR, at, 4) as u32
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut b = vec![0; len];
        self.dma.read(Pa(at), &mut b);
        b
    }

    /// Prepares a slot: a command FIS, and one descriptor for `len` bytes at `DATA`.
    fn prepare(&mut self, slot: u64, fis: &[u8], flags: u32, len: u32) {
        let table = TABLES + slot * 0x100;
        let header = [5 | flags | 1 << 16, 0, table as u32, 0].map(u32::to_le_bytes).concat();
        self.dma.write(Pa(LIST + slot * 32), &header);
        self.dma.write(Pa(table), &[0; 0x80]);
        self.dma.write(Pa(table), fis);
        let descriptor = [DATA as u32, 0, 0, len.wrapping_sub(1)].map(u32::to_le_bytes).concat();
        self.dma.write(Pa(table + 0x80), &descriptor);
    }

    /// A command with a 48-bit address and a count.
    fn fis(command: u8, lba: u32, count: u8) -> [u8; 20] {
        let l = lba.to_le_bytes();
        [0x27, 0x80, command, 0, l[0], l[1], l[2], 0x40, l[3], 0, 0, 0, count, 0, 0, 0, 0, 0, 0, 0]
    }

    fn run(&mut self, port: u64, fis: &[u8], flags: u32, len: u32) {
        self.prepare(0, fis, flags, len);
        self.set(port + 0x38, 1);
    }

    fn level(&self) -> bool {
        *self.heard.level.lock()
    }

    fn acknowledge(&mut self, port: u64) -> u32 {
        let is = self.get(port + 0x10);
        self.set(port + 0x10, is);
        self.set(8, !0);
        is
    }
}

#[test]
fn saved_state_contract() {
    let made = || {
        let (disk, disc) = (MemoryDisk::new(1 << 20).shared(), MemoryDisk::new(64 << 10).read_only().shared());
        Ahci::new(drives(&disk, &disc), PciWires::unconnected(dma()))
    };
    contract(made, 7, 0x400);
}

#[test]
fn ports_tell_what_is_behind_them() {
    let mut k = kit();
    assert_eq!((k.get(0) & 0x1f, k.get(0x0c), k.get(4) >> 31), (5, 0x3f, 1));
    assert_eq!((k.get(P0 + 0x28), k.get(P0 + 0x24), k.get(P0 + 0x20)), (0x123, 0x101, 0x150));
    assert_eq!((k.get(P1 + 0x28), k.get(P1 + 0x24)), (0x123, 0xeb14_0101));
    assert_eq!((k.get(0x228), k.get(0x220)), (0, 0x7f), "nothing there");
    // The link is taken down and up again: the signature arrives.
    k.dma.write(Pa(FIS + 0x40), &[0; 20]);
    k.set(P1 + 0x18, 0x10);
    k.set(P1 + 0x2c, 1);
    assert_eq!(k.get(P1 + 0x28), 0);
    k.set(P1 + 0x2c, 0);
    assert_eq!((k.get(P1 + 0x28), k.get(P1 + 0x30) >> 26), (0x123, 1));
    assert_eq!((&k.bytes(FIS + 0x40, 8)[4..7], k.bytes(FIS + 0x4c, 1)), (&[1, 0x14, 0xeb][..], vec![1]));
}

#[test]
fn identify_arrives_with_a_pio_setup() {
    let mut k = kit();
    k.run(P0, &Kit::fis(0xec, 0, 0), 0, 512);
    assert_eq!((k.level(), k.get(P0 + 0x38), k.get(8)), (true, 0, 1));
    assert_eq!(k.acknowledge(P0), 2);
    assert!(!k.level());
    assert_eq!((k.bytes(FIS + 0x20, 3), k.bytes(FIS + 0x2f, 1)), (vec![0x5f, 0x60, 0x58], vec![0x50]));
    assert_eq!((k.bytes(DATA + 120, 3), k.bytes(LIST + 4, 4)), (vec![0, 8, 0], vec![0, 2, 0, 0]));
}

#[test]
fn dma_in_both_directions() {
    let mut k = kit();
    k.run(P0, &Kit::fis(0x25, 3, 4), 0, 2048);
    assert_eq!((k.bytes(DATA, 2048), k.acknowledge(P0)), (k.disk.bytes(3 * 512, 2048), 1));
    assert_eq!((k.bytes(FIS + 0x40, 3), k.bytes(LIST + 4, 4)), (vec![0x34, 0x40, 0x50], vec![0, 8, 0, 0]));
    k.dma.write(Pa(DATA), &[0x5a; 512]);
    k.run(P0, &Kit::fis(0x3d, 9, 1), 1 << 6, 512);
    assert_eq!((k.disk.bytes(9 * 512, 512), k.disk.log().pop()), (vec![0x5a; 512], Some("write 4608 512 through".into())));
    // Too few descriptors.
    k.acknowledge(P0);
    k.run(P0, &Kit::fis(0x25, 0, 4), 0, 512);
    assert_eq!((k.acknowledge(P0), k.get(P0 + 0x38)), (1 << 30 | 1 << 24 | 1, 1));
}

#[test]
fn queued_commands_run_together() {
    let mut k = kit_with(MemoryDisk::new(1 << 20).holding());
    for slot in 0..3u8 {
        let mut fis = Kit::fis(0x60, u32::from(slot) * 8, slot << 3);
        (fis[3], fis[12]) = (1, slot << 3);
        k.prepare(slot.into(), &fis, 0, 512);
    }
    k.set(P0 + 0x34, 7);
    k.set(P0 + 0x38, 7);
    assert_eq!((k.get(P0 + 0x38), k.get(P0 + 0x34), k.get(P0 + 0x20)), (0, 7, 0x50));
    assert_eq!(k.disk.run(), 3);
    k.hba.service();
    assert_eq!((k.get(P0 + 0x34), k.acknowledge(P0), k.bytes(FIS + 0x58, 1)), (0, 8, vec![0xa1]));
}

#[test]
fn a_tag_that_is_in_use_is_refused() {
    let mut k = kit_with(MemoryDisk::new(1 << 20).holding());
    // READ FPDMA QUEUED of one sector, tag 3, again and again.
    let mut fis = Kit::fis(0x60, 0, 3 << 3);
    fis[3] = 1;
    k.prepare(3, &fis, 0, 512);
    for _ in 0..50 {
        k.set(P0 + 0x34, 1 << 3);
        k.set(P0 + 0x38, 1 << 3);
    }
    assert_eq!((k.get(P0 + 0x20) & 1, k.disk.run()), (1, 1), "the task file has an error, the disk one job");
}

#[test]
fn a_queued_command_that_fails_stops_the_port_and_is_told() {
    let mut failing = MemoryDisk::new(1 << 20);
    failing.fail_from = 4096;
    let mut k = kit_with(failing);
    let mut fis = Kit::fis(0x60, 8, 2 << 3);
    fis[3] = 1;
    k.prepare(2, &fis, 0, 512);
    k.set(P0 + 0x34, 4);
    k.set(P0 + 0x38, 4);
    assert_eq!((k.get(P0 + 0x34), k.get(P0 + 0x20)), (4, 0x4051));
    assert_eq!(k.acknowledge(P0), 1 << 30 | 8);
    // Started anew, the log tells the tag.
    k.set(P0 + 0x18, 0x10);
    assert_eq!(k.get(P0 + 0x34), 0);
    k.set(P0 + 0x18, 0x11);
    k.run(P0, &Kit::fis(0x2f, 0x10, 1), 0, 512);
    assert_eq!(k.bytes(DATA, 4), [2, 0, 0x51, 0x40]);
}

#[test]
fn packets_of_a_cd() {
    let mut k = kit();
    let packet = |k: &mut Kit, c: &[u8], len| {
        k.prepare(0, &Kit::fis(0xa0, 0, 0), 1 << 5, len);
        k.dma.write(Pa(TABLES + 0x40), c);
        k.set(P1 + 0x38, 1);
    };
    packet(&mut k, &[0x28, 0, 0, 0, 0, 2, 0, 0, 3, 0, 0, 0], 6144);
    assert_eq!((k.bytes(DATA, 6144), k.bytes(FIS + 0x4c, 1), k.acknowledge(P1)), (k.disc.bytes(4096, 6144), vec![3], 1));
    packet(&mut k, &[0x28, 0, 0, 0, 99, 2, 0, 0, 3, 0, 0, 0], 6144);
    assert_eq!((k.get(P1 + 0x20), k.acknowledge(P1)), (0x5451, 1 << 30 | 1));
    k.set(P1 + 0x18, 0x10);
    k.set(P1 + 0x18, 0x11);
    packet(&mut k, &[3, 0, 0, 0, 18, 0, 0, 0, 0, 0, 0, 0], 64);
    assert_eq!((k.bytes(DATA + 12, 1), k.bytes(LIST + 4, 1)), (vec![0x21], vec![18]));
}

#[test]
fn messages_instead_of_the_pin() {
    let mut k = kit();
    let at = k.hba.config_read(0x34, 1) as u16;
    for (o, v) in [(4, 0xfee0_0000), (12, 0x61)] {
        k.hba.config_write(at + o, 4, v);
    }
    k.hba.config_write(at + 2, 2, 1);
    k.run(P0, &Kit::fis(0xe7, 0, 0), 0, 512);
    assert_eq!((k.level(), std::mem::take(&mut *k.heard.messages.lock())), (false, vec![(0xfee0_0000, 0x61)]));
    // What is left when the handler acknowledges is told again.
    k.set(8, !0);
    assert_eq!(k.heard.messages.lock().len(), 1);
    k.acknowledge(P0);
    assert_eq!(k.heard.messages.lock().len(), 1);
}

#[test]
fn what_waits_goes_on_in_another_process() {
    let mut k = kit_with(MemoryDisk::new(1 << 20).holding());
    k.run(P0, &Kit::fis(0x25, 2, 1), 0, 512);
    assert_eq!(k.get(P0 + 0x20), 0x80);
    let saved = k.hba.save();
    let other = MemoryDisk::new(1 << 20).shared();
    other.fill(1024, &[9; 512]);
    let (disc, heard) = (k.disc.clone(), Arc::<Heard>::default());
    let wires = || PciWires { intx: IrqLine::new(heard.clone(), 0), msi: heard.clone(), dma: k.dma.clone(), line: 11 };
    let mut hba = Ahci::new(drives(&other, &disc), wires());
    hba.load(&saved).unwrap();
    assert_eq!((k.bytes(DATA, 2), *heard.level.lock()), (vec![9; 2], true));
    let small = Ahci::new(drives(&MemoryDisk::new(512).shared(), &disc), wires()).load(&saved).unwrap_err();
    assert!(small.to_string().contains("the drive has 512 bytes"), "{small}");
    // A reset of the HBA forgets it.
    k.set(4, 1);
    k.disk.run();
    k.hba.service();
    assert_eq!((k.get(P0 + 0x20), k.get(4)), (0x150, 1 << 31));
}

/// Lists, tables and registers of garbage, with jobs that end late.
#[test]
fn hostile_lists() {
    for seed in 0..20 {
        let mut r = Rng(seed);
        let disk = MemoryDisk::new(1 << 20);
        let mut k = kit_with(if seed % 2 == 0 { disk } else { disk.holding() });
        for _ in 0..5_000 {
            let (port, v) = (P0 + 0x80 * r.below(3), r.next_u64());
            match r.below(10) {
                0 | 1 => {
                    let code = r.pick(&[0x25, 0x35, 0x60, 0x61, 0xa0, 0xec, 0xa1, 0x2f, 0x20, 0x30, 0xe7, 0xef, 0x08, 0]);
                    let mut fis = Kit::fis(code, r.below(3000) as u32, v as u8);
                    if r.one_in(4) {
                        let at = r.below(20) as usize;
                        fis[at] = (v >> 8) as u8;
                    }
                    k.prepare(r.below(32), &fis, (v >> 16) as u32, (v >> 24) as u32);
                }
                2 => k.dma.write(Pa(r.below(RAM - 8)), &v.to_le_bytes()),
                3 => k.set(port + 4 * r.below(16), v as u32),
                4 => k.set(port + 0x34, v as u32),
                5 | 6 => k.set(port + 0x38, v as u32),
                7 => drop(k.disk.run()),
                8 if r.one_in(20) => k.set(4, v as u32),
                _ => k.set(port + 0x18, r.pick(&[0x10, 0x11, 0x11, 0x11, 0])),
            }
            k.hba.service();
            if r.one_in(200) {
                let saved = k.hba.save();
                k.hba.load(&saved).expect("own state loads");
            }
        }
    }
}

/// DATA SET MANAGEMENT; and a disk that has got another size.
#[test]
fn trimmed_ranges_are_discarded() {
    let mut k = kit();
    let trim = |k: &mut Kit, range: u64| {
        k.dma.write(Pa(DATA), &[&range.to_le_bytes()[..], &[0; 504]].concat());
        k.disk.log();
        let mut fis = Kit::fis(0x06, 0, 1);
        fis[3] = 1;
        k.run(P0, &fis, 1 << 6, 512);
        k.hba.service();
        (k.get(P0 + 0x20), k.disk.log())
    };
    assert_eq!(trim(&mut k, 8 | 16 << 48), (0x50, vec!["trim [(4096, 8192)]".to_owned()]));
    k.disk.resize(2 << 20);
    assert_eq!(trim(&mut k, 4095 | 1 << 48), (0x50, vec!["trim [(2096640, 512)]".to_owned()]));
    assert_eq!(trim(&mut k, 4095 | 2 << 48), (0x451, vec![]));
}
