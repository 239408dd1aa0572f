//! Frame information structures that move between host and device (Serial ATA 3.0, "FIS types"), and the structures in memory by
//! which the HBA finds commands (AHCI 1.3.1 §4.2 "System memory structures").

use crate::block::Segment;
use crate::block::ata::Task;
use crate::pci::BusMaster;
use vm_core::Pa;

/// Types.
const REGISTER_H2D: u8 = 0x27;
const REGISTER_D2H: u8 = 0x34;
const SET_DEVICE_BITS: u8 = 0xa1;
const PIO_SETUP: u8 = 0x5f;
/// Register FIS from the host: the command register is written, else the control register.
const COMMAND: u8 = 1 << 7;
/// FISes from the device: interrupt.
const INTERRUPT: u8 = 1 << 6;
/// PIO setup: towards the host.
const TO_HOST: u8 = 1 << 5;

/// Where the HBA writes what it receives.
pub const PIO_SETUP_AT: u64 = 0x20;
pub const REGISTER_AT: u64 = 0x40;
pub const DEVICE_BITS_AT: u64 = 0x58;

/// A command header: flags, entries of the descriptor table, and the command table's address.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    pub atapi: bool,
    pub write: bool,
    /// Busy is cleared when the device has the FIS.
    pub clear_busy: bool,
    pub entries: u16,
    pub table: u64,
}

/// What a command FIS says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    Command(Task),
    /// The control register.
    Control(u8),
    Unknown(u8),
}

const HEADER: u64 = 32;
const FRAME: usize = 20;
const PACKET_AT: u64 = 0x40;
const DESCRIPTORS_AT: u64 = 0x80;
const DESCRIPTOR: u64 = 16;

/// Header of a slot in the list at `list`.
pub fn header(master: &BusMaster, list: u64, slot: u32) -> Header {
    let mut b = [0; 16];
    master.read(Pa(list.wrapping_add(HEADER * u64::from(slot))), &mut b);
    let word = |i: usize| u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]]);
    let flags = word(0);
    Header {
        atapi: flags & 1 << 5 != 0,
        write: flags & 1 << 6 != 0,
        clear_busy: flags & 1 << 10 != 0,
        entries: (flags >> 16) as u16,
        table: u64::from(word(12)) << 32 | u64::from(word(8) & !0x7f),
    }
}

/// Tells how many bytes were moved.
pub fn set_count(master: &BusMaster, list: u64, slot: u32, bytes: u32) {
    master.write(Pa(list.wrapping_add(HEADER * u64::from(slot) + 4)), &bytes.to_le_bytes());
}

/// The frame in a command table.
pub fn frame(master: &BusMaster, table: u64) -> Frame {
    let mut f = [0; FRAME];
    master.read(Pa(table), &mut f);
    if f[0] != REGISTER_H2D {
        return Frame::Unknown(f[0]);
    }
    if f[1] & COMMAND == 0 {
        return Frame::Control(f[15]);
    }
    let lba = [f[4], f[5], f[6], f[8], f[9], f[10], 0, 0];
    Frame::Command(Task {
        command: f[2],
        features: u16::from(f[11]) << 8 | u16::from(f[3]),
        count: u16::from(f[13]) << 8 | u16::from(f[12]),
        lba: u64::from_le_bytes(lba),
        device: f[7],
    })
}

/// The packet in a command table.
pub fn packet(master: &BusMaster, table: u64) -> [u8; 12] {
    let mut p = [0; 12];
    master.read(Pa(table.wrapping_add(PACKET_AT)), &mut p);
    p
}

/// The first `bytes` bytes of memory that a table's descriptors name; fewer if they name no more.
pub fn gather(master: &BusMaster, h: &Header, bytes: u64) -> Vec<Segment> {
    let (mut list, mut left) = (Vec::new(), bytes);
    for n in 0..u64::from(h.entries) {
        if left == 0 {
            break;
        }
        let mut d = [0; DESCRIPTOR as usize];
        master.read(Pa(h.table.wrapping_add(DESCRIPTORS_AT + DESCRIPTOR * n)), &mut d);
        let word = |i: usize| u32::from_le_bytes([d[i], d[i + 1], d[i + 2], d[i + 3]]);
        // Counted from 0; even.
        let len = (word(12) & 0x3f_ffff | 1) + 1;
        let now = left.min(len.into());
        list.push(Segment { pa: u64::from(word(4)) << 32 | u64::from(word(0) & !1), len: now as u32 });
        left -= now;
    }
    list
}

/// Registers that a device tells.
#[derive(Clone, Copy, Debug, Default)]
pub struct Registers {
    pub status: u8,
    pub error: u8,
    pub lba: u64,
    pub count: u16,
    pub device: u8,
}

/// Register FIS to the host.
pub fn register(r: &Registers, interrupt: bool) -> [u8; 20] {
    let l = r.lba.to_le_bytes();
    let mut f = [0; 20];
    f[..4].copy_from_slice(&[REGISTER_D2H, if interrupt { INTERRUPT } else { 0 }, r.status, r.error]);
    f[4..12].copy_from_slice(&[l[0], l[1], l[2], r.device, l[3], l[4], l[5], 0]);
    f[12..14].copy_from_slice(&r.count.to_le_bytes());
    f
}

/// PIO setup FIS of data for the host, which end with `end` as the status.
pub fn pio_setup(r: &Registers, end: u8, bytes: u16) -> [u8; 20] {
    let mut f = register(r, true);
    (f[0], f[1]) = (PIO_SETUP, INTERRUPT | TO_HOST);
    f[15] = end;
    f[16..18].copy_from_slice(&bytes.to_le_bytes());
    f
}

/// Set device bits FIS: queued commands that have ended.
pub fn device_bits(status: u8, error: u8, ended: u32) -> [u8; 8] {
    let e = ended.to_le_bytes();
    // Busy and data request are no part of it.
    [SET_DEVICE_BITS, INTERRUPT, status & 0x77, error, e[0], e[1], e[2], e[3]]
}
