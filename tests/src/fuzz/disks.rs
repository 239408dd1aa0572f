//! IDE and AHCI controllers with a disk and a CD-ROM drive: registers at random, and commands that are nearly right.

use super::pci::Bench;
use super::{Behaviour, Bytes};
use devices::block::ahci::Ahci;
use devices::block::ata::{Drive, Medium};
use devices::block::ide::Ide;
use devices::block::testkit::MemoryDisk;
use devices::pci::PciFunction;
use std::cell::RefCell;
use std::sync::Arc;
use vm_core::{Device, IrqLine};

const SECTORS: u64 = 512;
/// Tables of bus masters, and data.
const TABLE: u64 = 0x1000;
const DATA: u64 = 0x1_0000;
/// Commands that do something: reads, writes, DMA, queued, packet, identification, settings, flush.
const COMMANDS: [u8; 24] = [
    0x20, 0x24, 0x25, 0x29, 0x30, 0x34, 0x35, 0x39, 0x3d, 0x06, 0x60, 0x61, 0x91, 0xa0, 0xa1, 0xc4, 0xc5, 0xc6, 0xc8, 0xca, 0xe7,
    0xea, 0xec, 0xef,
];
/// Packet commands.
const PACKETS: [u8; 14] = [0x00, 0x03, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0x42, 0x43, 0x46, 0x4a, 0x5a, 0xa8, 0xbe];

fn disks() -> [Arc<MemoryDisk>; 2] {
    [(); 2].map(|()| Arc::new(MemoryDisk::new(SECTORS * 512).holding()))
}

thread_local! {
    /// Those of the bench at work: a device that is made anew has the same ones.
    static DISKS: RefCell<[Arc<MemoryDisk>; 2]> = RefCell::new(disks());
}

fn drives() -> [Option<Drive>; 2] {
    DISKS.with_borrow(|d| {
        [Some(Drive::new(Medium::Disk(d[0].clone()), "fuzz-0", 0)), Some(Drive::new(Medium::Cd(Some(d[1].clone())), "fuzz-1", 1))]
    })
}

fn run_jobs() -> usize {
    DISKS.with_borrow(|d| d.iter().map(|d| d.run()).sum())
}

fn packet(b: &mut Bytes) -> Vec<u8> {
    let mut p = vec![PACKETS[usize::from(b.u8()) % PACKETS.len()]];
    p.extend(b.take(11));
    p
}

/// The registers of a command: features, count, position, device, command.
fn task(b: &mut Bytes) -> [u8; 7] {
    let command = COMMANDS[usize::from(b.u8()) % COMMANDS.len()];
    [b.u8(), b.u8(), b.u8(), b.u8() & 3, b.u8(), b.u8() | 0xa0, command]
}

fn ide_command(bench: &mut Bench<Ide>, b: &mut Bytes) {
    let channel = 2 * u32::from(b.u8() & 1);
    let regs = task(b);
    // A table of two ranges for the bus master.
    for i in 0..2u64 {
        let entry = (DATA + u64::from(b.u16())) | u64::from(b.u16() & 0xfffe) << 32 | i << 63;
        bench.ram.write_uint(TABLE + 8 * i, 8, entry);
    }
    let bm = u64::from(channel) * 4;
    bench.device.bar_write(4, bm + 4, 4, TABLE);
    let Some(ports) = bench.device.ports() else { return };
    for (at, v) in [(6, regs[5]), (1, regs[0]), (2, regs[1]), (3, regs[2]), (4, regs[3]), (5, regs[4]), (7, regs[6])] {
        ports.write(channel, at, 1, v.into());
    }
    if regs[6] == 0xa0 {
        packet(b).chunks(2).for_each(|w| ports.write(channel, 0, 2, u32::from(w[0]) | u32::from(w[1]) << 8));
    }
    bench.device.bar_write(4, bm, 1, u64::from(b.u8() & 9));
}

fn ide_data(bench: &mut Bench<Ide>, b: &mut Bytes) {
    let (what, n) = (b.u8(), b.u16() % 600);
    let Some(ports) = bench.device.ports() else { return };
    let (channel, size) = (2 * u32::from(what & 1), if what & 2 == 0 { 2 } else { 4 });
    for i in 0..n {
        match what & 4 {
            0 => drop(ports.read(channel, 0, size)),
            _ => ports.write(channel, 0, size, i.into()),
        }
    }
}

pub fn ide(input: &[u8], seen: &mut Behaviour) {
    DISKS.set(disks());
    let mut bench = Bench::new(|wires, heard| {
        let [disk, cd] = drives();
        let irqs = [0, 1].map(|n| IrqLine::new(heard.clone(), n));
        Ide::new([disk, None, cd, None], irqs, wires)
    });
    let mut b = Bytes(input);
    while !b.is_empty() {
        let (op, before) = (b.u8(), bench.interrupts());
        match op % 8 {
            0 | 1 => ide_command(&mut bench, &mut b),
            2 => ide_data(&mut bench, &mut b),
            3 => {
                let done = run_jobs();
                bench.device.service();
                seen.saw((op % 8, done));
            }
            4 => {
                let (region, at, size, v) = (b.u8() % 4, b.u8() % 8, 1 << (b.u8() % 3), b.u32());
                let Some(ports) = bench.device.ports() else { return };
                ports.write(region.into(), at.into(), size, v);
            }
            5 => {
                let (region, at, size) = (b.u8() % 4, b.u8() % 8, 1 << (b.u8() % 3));
                let Some(ports) = bench.device.ports() else { return };
                seen.saw((region, at, ports.read(region.into(), at.into(), size)));
            }
            _ => {
                let other = b.u8();
                bench.operation(other, &mut b, &[4], seen);
            }
        }
        let Some(ports) = bench.device.ports() else { return };
        let status = [ports.read(1, 0, 1), ports.read(3, 0, 1)];
        seen.saw((op % 8, status, bench.interrupts() - before));
    }
    seen.state(&bench.device.save().data);
}

fn ahci_command(bench: &mut Bench<Ahci>, b: &mut Bytes) {
    let what = b.u8();
    let (port, slot) = (u64::from(what & 1), u64::from(what >> 1 & 3));
    let regs = task(b);
    let base = 0x100 + 0x80 * port;
    for (at, v) in [(0, TABLE), (8, TABLE + 0x800), (0x14, !0), (0x18, 0x11)] {
        bench.device.bar_write(5, base + at, 4, v & 0xffff_ffff);
    }
    let (list, table) = (TABLE + 32 * slot, TABLE + 0x1000 + 0x400 * slot);
    let (flags, entries) = (b.u8(), u64::from(b.u8() % 5));
    bench.ram.write_uint(list, 8, 5 | u64::from(flags & 0xe0) | entries << 16);
    bench.ram.write_uint(list + 8, 8, table);
    let [features, count, low, mid, high, device, command] = regs;
    bench.ram.write(table, &[0x27, 0x80, command, features, low, mid, high, device, 0, 0, 0, 0, count, 0, 0, 0]);
    if command == 0xa0 {
        bench.ram.write(table + 0x40, &packet(b));
    }
    for i in 0..entries {
        let at = table + 0x80 + 16 * i;
        bench.ram.write_uint(at, 8, DATA + u64::from(b.u16()));
        bench.ram.write_uint(at + 8, 8, u64::from(b.u16()) << 32);
    }
    if command & 0xfe == 0x60 {
        bench.device.bar_write(5, base + 0x34, 4, 1 << slot);
    }
    bench.device.bar_write(5, base + 0x38, 4, 1 << slot);
}

pub fn ahci(input: &[u8], seen: &mut Behaviour) {
    DISKS.set(disks());
    let mut bench = Bench::new(|wires, _| {
        let [disk, cd] = drives();
        Ahci::new([disk, cd, None, None, None, None], wires)
    });
    let mut b = Bytes(input);
    while !b.is_empty() {
        let (op, before) = (b.u8(), bench.interrupts());
        match op % 8 {
            0..=3 => ahci_command(&mut bench, &mut b),
            4 => {
                let done = run_jobs();
                bench.device.service();
                seen.saw((op % 8, done));
            }
            5 => {
                let (at, v) = (0x100 + u64::from(op >> 7) * 0x80 + u64::from(b.u8() & 0x7c), b.u32());
                bench.device.bar_write(5, at, 4, v.into());
            }
            _ => {
                let other = b.u8();
                bench.operation(other, &mut b, &[5], seen);
            }
        }
        let status = [0x110, 0x120, 0x130, 0x138, 0x190, 0x1a0, 0x1b0, 0x1b8].map(|at| bench.device.bar_read(5, at, 4));
        seen.saw((op % 8, status, bench.interrupts() - before));
    }
    seen.state(&bench.device.save().data);
}

/// One of each command, for either controller, and what follows it.
pub fn first(job: u8) -> Vec<Vec<u8>> {
    let mut list = Vec::new();
    for target in 0..2u8 {
        for command in 0..COMMANDS.len() as u8 {
            for packet in 0..if command == 13 { PACKETS.len() as u8 } else { 1 } {
                let mut v = vec![0, target, command, target, 4, 0, 0, 0, 0x40];
                if job == 4 {
                    v.extend([0x20 * target, 2]);
                }
                v.extend([0, 0, 0, 4, 0, 8, 0, 4]);
                if command == 13 {
                    v.extend([packet, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
                }
                v.extend([9, job, 0, 2, target, 0, 1, job, 0]);
                list.push(v);
            }
        }
    }
    list
}
