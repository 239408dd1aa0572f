//! One channel: two drives, the command and control block registers, and how a command goes on (ATA/ATAPI-7 volume 2, "Parallel
//! interface protocol").

mod command;
mod packet;
mod saved;

pub use saved::Saved;

use super::bus_master::Bmide;
use crate::block::ata::{Completions, DEVICE_SECOND, Drive, DriveState, Reply, Task, error, packet::PACKET_LEN, reason, status};
use crate::block::{Memory, Op, Segment};
use crate::pci::BusMaster;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::{IrqLine, dlog};

/// Control register: no interrupts; reset; the registers' older values are read.
const CONTROL_NIEN: u8 = 1 << 1;
const CONTROL_SRST: u8 = 1 << 2;
const CONTROL_HOB: u8 = 1 << 7;
/// Features register of PACKET: data go by DMA.
const PACKET_DMA: u8 = 1;
/// Bytes read from the disk at once for a transfer through the data register.
const CHUNK: u64 = 64 << 10;

/// Registers of the command block, each with the value written before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Regs {
    features: [u8; 2],
    count: [u8; 2],
    low: [u8; 2],
    mid: [u8; 2],
    high: [u8; 2],
    status: u8,
    error: u8,
}

impl Regs {
    fn task(&self, command: u8, device: u8) -> Task {
        let pair = |r: [u8; 2]| u16::from(r[1]) << 8 | u16::from(r[0]);
        let at = |i: usize| u64::from(self.low[i]) | u64::from(self.mid[i]) << 8 | u64::from(self.high[i]) << 16;
        Task { command, features: pair(self.features), count: pair(self.count), lba: at(1) << 24 | at(0), device }
    }

    /// What a device tells after a reset, by which packet devices are known.
    fn signature(&mut self, cd: bool) {
        let (mid, high) = if cd { (0x14, 0xeb) } else { (0, 0) };
        (self.count, self.low, self.mid, self.high) = ([1, 0], [1, 0], [mid, 0], [high, 0]);
        self.error = error::PASSED;
        self.status = if cd { 0 } else { status::DRDY | status::DSC };
    }
}

/// Where the command of the selected drive is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    Idle,
    /// The host reads the buffer from `pos` to `end`.
    In {
        pos: usize,
        end: usize,
    },
    /// The host writes the buffer, which is all of a block.
    Out {
        pos: usize,
    },
    /// The host writes a packet.
    Packet {
        pos: usize,
    },
    /// A job is under way.
    Job,
    /// The bus master has not been started.
    Dma,
}

/// What a command moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    /// The buffer's content, to the host.
    Buffer,
    Read,
    Write {
        through: bool,
    },
    Flush,
    /// Ranges to discard, from the host.
    Trim,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Transfer {
    kind: Kind,
    /// Position on the disk, and bytes that are left.
    at: u64,
    left: u64,
    /// Bytes of a block in the data register.
    block: u32,
    dma: bool,
    /// Of a packet command.
    packet: bool,
}

const NONE: Transfer = Transfer { kind: Kind::Buffer, at: 0, left: 0, block: 512, dma: false, packet: false };

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    regs: [Regs; 2],
    device: u8,
    control: u8,
    irq: bool,
    phase: Phase,
    transfer: Transfer,
    pending: Option<(u64, Op)>,
    next_id: u64,
    pub bm: Bmide,
}

/// The channel. Its jobs' ids begin at `base`.
pub struct Channel {
    drives: [Option<Drive>; 2],
    irq: IrqLine,
    master: BusMaster,
    done: Arc<Completions>,
    base: u64,
    buffer: Arc<Mutex<Vec<u8>>>,
    state: State,
}

impl Channel {
    pub fn new(drives: [Option<Drive>; 2], irq: IrqLine, master: BusMaster, done: Arc<Completions>, base: u64) -> Self {
        let state = State {
            regs: Default::default(),
            device: 0,
            control: 0,
            irq: false,
            phase: Phase::Idle,
            transfer: NONE,
            pending: None,
            next_id: 0,
            bm: Bmide::default(),
        };
        let mut this = Self { drives, irq, master, done, base, buffer: Arc::default(), state };
        this.signatures();
        this
    }

    fn selected(&self) -> usize {
        usize::from(self.state.device & DEVICE_SECOND != 0)
    }

    fn regs(&mut self) -> &mut Regs {
        let n = self.selected();
        &mut self.state.regs[n]
    }

    fn signatures(&mut self) {
        for (r, d) in self.state.regs.iter_mut().zip(&self.drives) {
            *r = Regs::default();
            if let Some(d) = d {
                r.signature(d.is_cd());
            }
        }
        self.state.device = 0;
    }

    /// As after power-on.
    pub fn reset(&mut self) {
        self.stop();
        self.drives.iter_mut().flatten().for_each(Drive::reset);
        (self.state.control, self.state.bm, self.state.next_id) = (0, Bmide::default(), 0);
        self.signatures();
        self.set_irq(false);
    }

    /// Gives up what is under way.
    fn stop(&mut self) {
        if self.state.pending.take().is_some() {
            self.drives.iter().flatten().for_each(Drive::abandon);
        }
        (self.state.phase, self.state.transfer) = (Phase::Idle, NONE);
        // A new one: a thread that is late writes to the old one.
        self.buffer = Arc::default();
    }

    fn set_irq(&mut self, on: bool) {
        self.state.irq = on;
        if on {
            self.state.bm.interrupt();
        }
        self.irq.set(on && self.state.control & CONTROL_NIEN == 0);
    }

    /// Reads a register of the command block (0..=7), or the alternate status (8).
    pub fn read(&mut self, register: u16) -> u8 {
        let n = self.selected();
        if self.drives.iter().all(Option::is_none) {
            return 0;
        }
        let absent = self.drives[n].is_none();
        let which = usize::from(self.state.control & CONTROL_HOB != 0);
        let r = &self.state.regs[n];
        match register {
            7 | 8 if absent => 0,
            1 => r.error,
            2 => r.count[which],
            3 => r.low[which],
            4 => r.mid[which],
            5 => r.high[which],
            6 => self.state.device | 0xa0,
            7 => {
                let v = r.status;
                self.set_irq(false);
                v
            }
            8 => r.status,
            _ => 0xff,
        }
    }

    /// Writes a register of the command block (1..=7), or device control (8).
    pub fn write(&mut self, register: u16, v: u8) {
        if register == 8 {
            return self.control(v);
        }
        if register < 7 && self.state.phase != Phase::Idle {
            dlog!(GUEST_ERRORS, "ide: write of {v:#x} to register {register} during a command");
            return;
        }
        // Both drives see them.
        self.state.control &= !CONTROL_HOB;
        for r in &mut self.state.regs {
            let pair = match register {
                1 => &mut r.features,
                2 => &mut r.count,
                3 => &mut r.low,
                4 => &mut r.mid,
                5 => &mut r.high,
                _ => break,
            };
            *pair = [v, pair[0]];
        }
        match register {
            6 => self.state.device = v,
            7 => self.command(v),
            _ => {}
        }
    }

    fn control(&mut self, v: u8) {
        let old = std::mem::replace(&mut self.state.control, v & (CONTROL_NIEN | CONTROL_SRST | CONTROL_HOB));
        match (old & CONTROL_SRST != 0, v & CONTROL_SRST != 0) {
            (false, true) => {
                self.stop();
                self.state.regs.iter_mut().for_each(|r| r.status = status::BSY);
                self.state.irq = false;
            }
            (true, false) => self.signatures(),
            _ => {}
        }
        self.irq.set(self.state.irq && v & CONTROL_NIEN == 0);
    }

    /// Data that are there already go to the host.
    fn give(&mut self, data: Vec<u8>, block: u32, packet: bool) {
        let dma = packet && self.state.transfer.dma;
        self.state.transfer = Transfer { kind: Kind::Buffer, left: data.len() as u64, block, dma, packet, ..NONE };
        *self.buffer.lock() = data;
        if dma { self.want_dma() } else { self.offer(0) }
    }

    /// The next block in the data register, from `pos` of the buffer on.
    fn offer(&mut self, pos: usize) {
        let t = &self.state.transfer;
        let end = self.buffer.lock().len().min(pos + t.block as usize);
        let packet = t.packet;
        self.state.phase = Phase::In { pos, end };
        let r = self.regs();
        r.status = status::DRDY | status::DSC | status::DRQ;
        if packet {
            let n = end - pos;
            (r.mid[0], r.high[0], r.count[0]) = (n as u8, (n >> 8) as u8, reason::IO);
        }
        self.set_irq(true);
    }

    /// Reads the next bytes of the disk into the buffer.
    fn fetch(&mut self) {
        let t = &self.state.transfer;
        // Whole blocks, of which the data register shows one after the other.
        let whole = (CHUNK / u64::from(t.block)).max(1) * u64::from(t.block);
        let n = if t.packet { t.left.min(CHUNK) } else { t.left.min(whole) };
        let op = Op::Read { at: t.at, to: vec![Segment { pa: 0, len: n as u32 }] };
        self.buffer = Arc::new(Mutex::new(vec![0; n as usize]));
        self.submit(op, None);
    }

    /// Asks the host for the next block to write.
    fn take_block(&mut self) {
        let t = &self.state.transfer;
        let n = t.left.min(t.block.into());
        self.buffer = Arc::new(Mutex::new(vec![0; n as usize]));
        self.state.phase = Phase::Out { pos: 0 };
        self.regs().status = status::DRDY | status::DSC | status::DRQ;
    }

    /// Hands over a job on the buffer, or on guest memory.
    fn submit(&mut self, op: Op, memory: Option<Memory>) {
        let id = self.base + self.state.next_id;
        self.state.next_id += 1;
        self.state.phase = Phase::Job;
        self.regs().status = status::BSY;
        self.state.pending = Some((id, op.clone()));
        self.send(id, op, memory);
    }

    fn send(&self, id: u64, op: Op, memory: Option<Memory>) {
        let memory = memory.unwrap_or_else(|| Memory::Buffer(self.buffer.clone()));
        if let Some(d) = &self.drives[self.selected()] {
            d.submit(id, op, memory, &self.done);
        }
    }

    /// A job has ended; those that were given up are not known any more.
    pub fn complete(&mut self, id: u64, ok: bool) {
        if self.state.pending.as_ref().is_none_or(|p| p.0 != id) {
            return;
        }
        let Some((_, op)) = self.state.pending.take() else { return };
        let t = self.state.transfer.clone();
        if !ok {
            return self.job_failed(&t);
        }
        match (t.kind, t.dma) {
            (Kind::Flush | Kind::Buffer | Kind::Trim, false) => self.finish(),
            (_, true) => {
                self.state.bm.ended();
                self.finish();
            }
            (Kind::Read, false) => {
                let n = op.len();
                (self.state.transfer.at, self.state.transfer.left) = (t.at + n, t.left - n.min(t.left));
                self.offer(0);
            }
            (Kind::Write { .. }, false) => {
                let n = op.len();
                (self.state.transfer.at, self.state.transfer.left) = (t.at + n, t.left - n.min(t.left));
                if self.state.transfer.left == 0 {
                    return self.finish();
                }
                self.take_block();
                self.set_irq(true);
            }
        }
    }

    fn job_failed(&mut self, t: &Transfer) {
        if t.dma {
            self.state.bm.failed();
        }
        if t.packet {
            let n = self.selected();
            let key = self.drives[n].as_mut().map_or(0, Drive::medium_error);
            return self.fail_packet(key);
        }
        self.fail(if t.kind == Kind::Read { error::UNC } else { error::ABRT });
    }

    /// The command has ended well.
    fn finish(&mut self) {
        let packet = self.state.transfer.packet;
        (self.state.phase, self.state.transfer) = (Phase::Idle, NONE);
        let r = self.regs();
        r.status = status::DRDY | status::DSC;
        if packet {
            r.count[0] = reason::IO | reason::CD;
        }
        self.set_irq(true);
    }

    fn fail(&mut self, error: u8) {
        (self.state.phase, self.state.transfer) = (Phase::Idle, NONE);
        let r = self.regs();
        r.error = error;
        r.status = status::DRDY | status::DSC | status::ERR;
        self.set_irq(true);
    }

    /// Bytes from the data register. Ones if there are none.
    pub fn read_data(&mut self, size: u8) -> u32 {
        let Phase::In { pos, end } = self.state.phase else { return !0 };
        let n = usize::from(size).min(end - pos);
        let v = self.buffer.lock()[pos..pos + n].iter().rev().fold(0, |v, b| v << 8 | u32::from(*b));
        let pos = pos + n;
        self.state.phase = Phase::In { pos, end };
        if pos == end {
            self.block_read(end);
        }
        v
    }

    fn block_read(&mut self, end: usize) {
        let len = self.buffer.lock().len();
        let t = &self.state.transfer;
        if end < len {
            return self.offer(end);
        }
        if t.kind == Kind::Read && t.left > 0 {
            return self.fetch();
        }
        if t.packet {
            return self.finish();
        }
        // The last block of a read through the data register ends without an interrupt.
        (self.state.phase, self.state.transfer) = (Phase::Idle, NONE);
        self.regs().status = status::DRDY | status::DSC;
    }

    /// Bytes to the data register.
    pub fn write_data(&mut self, size: u8, v: u32) {
        let (Phase::Out { pos } | Phase::Packet { pos }) = self.state.phase else { return };
        let mut b = self.buffer.lock();
        let len = b.len();
        let n = usize::from(size).min(len - pos);
        b[pos..pos + n].copy_from_slice(&v.to_le_bytes()[..n]);
        drop(b);
        let pos = pos + n;
        match &mut self.state.phase {
            Phase::Out { pos: p } | Phase::Packet { pos: p } => *p = pos,
            _ => {}
        }
        if pos < len {
            return;
        }
        match (self.state.phase, self.state.transfer.kind) {
            (Phase::Packet { .. }, _) => self.run_packet(),
            (_, Kind::Write { through }) => {
                let from = vec![Segment { pa: 0, len: len as u32 }];
                let last = self.state.transfer.left <= len as u64;
                self.submit(Op::Write { at: self.state.transfer.at, from, through: through && last }, None);
            }
            _ => self.fail(error::ABRT),
        }
    }
}
