//! Packet commands, and transfers by the bus master.

use super::super::bus_master::{gather, total};
use super::{Channel, Kind, Memory, NONE, Op, PACKET_DMA, PACKET_LEN, Phase, Reply, Segment, Transfer, error, reason, status};
use crate::block::SECTOR;
use crate::block::ata::disk::{MAX_TRIM_SECTORS, trim_ranges};
use vm_core::{Pa, dlog};

impl Channel {
    pub(super) fn begin_packet(&mut self) {
        let r = self.regs();
        let dma = r.features[0] & PACKET_DMA != 0;
        // Bytes of a block: even, and some.
        let limit = u32::from(r.high[0]) << 8 | u32::from(r.mid[0]);
        let block = if limit == 0 { 0xfffe } else { (limit & !1).max(2) };
        r.status = status::DRDY | status::DSC | status::DRQ;
        r.count[0] = reason::CD;
        self.state.transfer = Transfer { block, dma, packet: true, ..NONE };
        *self.buffer.lock() = vec![0; PACKET_LEN];
        self.state.phase = Phase::Packet { pos: 0 };
    }

    pub(super) fn run_packet(&mut self) {
        let mut packet = [0; PACKET_LEN];
        {
            let b = self.buffer.lock();
            let n = b.len().min(PACKET_LEN);
            packet[..n].copy_from_slice(&b[..n]);
        }
        let n = self.selected();
        let Some(drive) = &mut self.drives[n] else { return };
        let (block, dma) = (self.state.transfer.block, self.state.transfer.dma);
        match drive.packet(&packet) {
            Reply::Done => self.finish(),
            Reply::Failed(key) => self.fail_packet(key),
            Reply::Data(data) => self.give(data, block, true),
            Reply::Read { at, len } => {
                self.state.transfer = Transfer { kind: Kind::Read, at, left: len, block, dma, packet: true };
                if dma { self.want_dma() } else { self.fetch() }
            }
        }
    }

    pub(super) fn want_dma(&mut self) {
        self.state.phase = Phase::Dma;
        self.regs().status = status::DRDY | status::DSC | status::DRQ;
        self.start_dma();
    }

    /// Goes on with a command that waits for the bus master, if that has been started.
    pub(super) fn start_dma(&mut self) {
        if self.state.phase != Phase::Dma || !self.state.bm.started() {
            return;
        }
        let t = self.state.transfer.clone();
        let (list, more) = gather(&self.master, self.state.bm.table(), t.left);
        if total(&list) < t.left {
            dlog!(GUEST_ERRORS, "ide: descriptors for {} bytes of {}", total(&list), t.left);
            self.state.bm.ended();
            (self.state.phase, self.state.transfer) = (Phase::Idle, NONE);
            self.regs().status = status::DRDY | status::DSC;
            return;
        }
        self.state.bm.keep_active(more);
        let op = match t.kind {
            Kind::Buffer => {
                let data = self.buffer.lock().clone();
                let mut rest = &data[..];
                for s in &list {
                    let (now, later) = rest.split_at(rest.len().min(s.len as usize));
                    self.master.write(Pa(s.pa), now);
                    rest = later;
                }
                self.state.bm.ended();
                return self.finish();
            }
            Kind::Trim => match self.ranges(&list) {
                Some(ranges) => Op::Trim(ranges),
                None => {
                    self.state.bm.failed();
                    return self.fail(error::ABRT);
                }
            },
            Kind::Write { through } => Op::Write { at: t.at, from: list, through },
            Kind::Read | Kind::Flush => Op::Read { at: t.at, to: list },
        };
        self.submit(op, Some(Memory::Guest(self.master.clone())));
    }

    /// The ranges to discard that lie in the host's memory, if the disk has them.
    fn ranges(&self, list: &[Segment]) -> Option<Vec<(u64, u64)>> {
        let read = |s: &Segment| {
            let mut b = vec![0; s.len as usize];
            self.master.read(Pa(s.pa), &mut b);
            b
        };
        if total(list) > u64::from(MAX_TRIM_SECTORS) * SECTOR {
            return None;
        }
        let data: Vec<u8> = list.iter().flat_map(read).collect();
        let drive = self.drives[self.selected()].as_ref()?;
        trim_ranges(&data, drive.geometry().bytes)
    }

    pub fn bm_read(&self, offset: u64) -> u8 {
        self.state.bm.read(offset)
    }

    pub fn bm_write(&mut self, offset: u64, v: u8) {
        self.state.bm.write(offset, v);
        self.start_dma();
    }

    pub(super) fn fail_packet(&mut self, key: u8) {
        self.fail(key << 4 | error::ABRT);
        self.regs().count[0] = reason::IO | reason::CD;
    }
}
