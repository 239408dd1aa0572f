//! One port of the HBA: its registers, the device behind it, and the commands that run (AHCI 1.3.1 §3.3 "Port registers", §5
//! "Data transfer operation").

mod end;
mod saved;

pub use saved::Saved;

use super::fis::{self, Frame, Header, Registers};
use crate::block::ata::{
    Completions, Drive, DriveState, Plan, Reply, Task, Way, command, error, identify, reason, status, trim_ranges,
};
use crate::block::{Memory, Op};
use crate::pci::BusMaster;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use vm_core::{Pa, dlog};

/// Offsets of the registers.
mod reg {
    pub const CLB: u64 = 0x00;
    pub const CLBU: u64 = 0x04;
    pub const FB: u64 = 0x08;
    pub const FBU: u64 = 0x0c;
    pub const IS: u64 = 0x10;
    pub const IE: u64 = 0x14;
    pub const CMD: u64 = 0x18;
    pub const TFD: u64 = 0x20;
    pub const SIG: u64 = 0x24;
    pub const SSTS: u64 = 0x28;
    pub const SCTL: u64 = 0x2c;
    pub const SERR: u64 = 0x30;
    pub const SACT: u64 = 0x34;
    pub const CI: u64 = 0x38;
}
/// PxIS.
mod is {
    /// Register, PIO setup, set device bits FIS.
    pub const DHRS: u32 = 1 << 0;
    pub const PSS: u32 = 1 << 1;
    pub const SDBS: u32 = 1 << 3;
    /// PxSERR.DIAG.X, PxSERR.DIAG.N: these are cleared there.
    pub const PCS: u32 = 1 << 6;
    pub const PRCS: u32 = 1 << 22;
    /// More data than descriptors.
    pub const OFS: u32 = 1 << 24;
    pub const TFES: u32 = 1 << 30;
}
/// What of PxIE there is.
const IE_WRITABLE: u32 = 0xfdc0_00ff;
/// PxCMD.
mod cmd {
    pub const ST: u32 = 1 << 0;
    /// Spun up and powered, always.
    pub const SUD_POD: u32 = 3 << 1;
    pub const CLO: u32 = 1 << 3;
    pub const FRE: u32 = 1 << 4;
    pub const FR: u32 = 1 << 14;
    pub const CR: u32 = 1 << 15;
    pub const ATAPI: u32 = 1 << 24;
    pub const WRITABLE: u32 = ST | FRE | ATAPI | 0x0600_0000;
}
/// PxSSTS: a device is there, generation 2, active.
const SSTS_PRESENT: u32 = 0x123;
/// PxSCTL.DET.
const DET: u32 = 0xf;
/// PxSERR: exchanged, changed.
const SERR_X: u32 = 1 << 26;
const SERR_N: u32 = 1 << 16;
/// Control register: reset.
const SRST: u8 = 1 << 2;
/// Signatures.
const SIG_DISK: u64 = 0x0101;
const SIG_CD: u64 = 0xeb14_0101;
const READY: u8 = status::DRDY | status::DSC;
/// Task file without a device.
const TFD_NONE: u32 = 0x7f;
/// Features of PACKET, which does its data by DMA always: all the same here.
const SLOTS: u32 = 32;

/// How the end of a job is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Dma,
    PioIn,
    Packet,
    Queued,
}

/// A command whose job is under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    slot: u32,
    kind: Kind,
    op: Op,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    clb: u64,
    fb: u64,
    is: u32,
    ie: u32,
    cmd: u32,
    tfd: u32,
    sig: u32,
    sctl: u32,
    serr: u32,
    sact: u32,
    ci: u32,
    /// An error has stopped it until PxCMD.ST is cleared.
    halted: bool,
    /// The device is held in reset by its control register.
    in_reset: bool,
    /// The signature waits until FISes are received.
    unsent: bool,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
}

/// See the module. Its jobs' ids are its number and multiples of `SLOTS` more.
pub struct Port {
    number: u64,
    drive: Option<Drive>,
    master: BusMaster,
    done: Arc<Completions>,
    state: State,
    /// Something new is to be told by a message.
    pub raised: bool,
}

impl Port {
    pub fn new(number: u64, drive: Option<Drive>, master: BusMaster, done: Arc<Completions>) -> Self {
        let mut this = Self { number, drive, master, done, state: State::default(), raised: false };
        this.power_on();
        this
    }

    fn power_on(&mut self) {
        self.state = State { tfd: TFD_NONE, sig: !0, ..State::default() };
        self.link_up();
    }

    /// The device tells its signature.
    fn link_up(&mut self) {
        let Some(d) = &self.drive else { return };
        self.state.serr |= SERR_X | SERR_N;
        self.state.is |= is::PCS | is::PRCS;
        self.state.sig = if d.is_cd() { SIG_CD as u32 } else { SIG_DISK as u32 };
        self.state.tfd = u32::from(error::PASSED) << 8 | u32::from(if d.is_cd() { 0 } else { READY });
        self.state.unsent = true;
        self.send_signature();
    }

    fn send_signature(&mut self) {
        if !self.state.unsent || self.state.cmd & cmd::FRE == 0 {
            return;
        }
        self.state.unsent = false;
        let sig = u64::from(self.state.sig);
        let (status, error) = (self.state.tfd as u8, (self.state.tfd >> 8) as u8);
        let registers = Registers { status, error, lba: sig >> 8, count: (sig & 0xff) as u16, device: 0 };
        self.receive(fis::REGISTER_AT, &fis::register(&registers, false));
    }

    /// As after power-on, with the device.
    pub fn reset(&mut self) {
        self.stop();
        if let Some(d) = &mut self.drive {
            d.reset();
        }
        self.power_on();
        self.raised = false;
    }

    /// Gives up what is under way.
    fn stop(&mut self) {
        if !self.state.pending.is_empty() {
            self.state.pending.clear();
            self.drive.iter().for_each(Drive::abandon);
        }
    }

    /// Whether its interrupt is raised.
    pub fn interrupt(&self) -> bool {
        self.state.is & self.state.ie != 0
    }

    fn raise(&mut self, bits: u32) {
        self.raised |= bits & self.state.ie != 0;
        self.state.is |= bits;
    }

    /// Writes a FIS where the host wants it.
    fn receive(&self, at: u64, fis: &[u8]) {
        if self.state.cmd & cmd::FRE != 0 {
            self.master.write(Pa(self.state.fb.wrapping_add(at)), fis);
        }
    }

    pub fn read(&self, offset: u64) -> u32 {
        let s = &self.state;
        match offset {
            reg::CLB => s.clb as u32,
            reg::CLBU => (s.clb >> 32) as u32,
            reg::FB => s.fb as u32,
            reg::FBU => (s.fb >> 32) as u32,
            reg::IS => s.is,
            reg::IE => s.ie,
            reg::CMD => {
                let current = s.pending.values().next().map_or(0, |p| p.slot);
                s.cmd | cmd::SUD_POD | current << 8
            }
            reg::TFD => s.tfd,
            reg::SIG => s.sig,
            reg::SSTS => match (&self.drive, s.sctl & DET) {
                (Some(_), 0) => SSTS_PRESENT,
                _ => 0,
            },
            reg::SCTL => s.sctl,
            reg::SERR => s.serr,
            reg::SACT => s.sact,
            reg::CI => s.ci,
            _ => 0,
        }
    }

    pub fn write(&mut self, offset: u64, v: u32) {
        let low = |old: u64, mask: u32| old & !0xffff_ffff | u64::from(v & mask);
        let high = |old: u64| old & 0xffff_ffff | u64::from(v) << 32;
        let s = &mut self.state;
        match offset {
            reg::CLB => s.clb = low(s.clb, !0x3ff),
            reg::CLBU => s.clb = high(s.clb),
            reg::FB => s.fb = low(s.fb, !0xff),
            reg::FBU => s.fb = high(s.fb),
            reg::IS => s.is &= !v | is::PCS | is::PRCS,
            reg::IE => s.ie = v & IE_WRITABLE,
            reg::CMD => self.set_cmd(v),
            reg::SCTL => {
                let before = std::mem::replace(&mut s.sctl, v & 0xfff) & DET;
                if before == 1 && v & DET == 0 {
                    self.stop();
                    self.link_up();
                }
            }
            reg::SERR => {
                s.serr &= !v;
                let gone = |bit, status| if s.serr & bit == 0 { status } else { 0 };
                s.is &= !(gone(SERR_X, is::PCS) | gone(SERR_N, is::PRCS));
            }
            reg::SACT if s.cmd & cmd::ST != 0 => s.sact |= v,
            reg::CI if s.cmd & cmd::ST != 0 => {
                s.ci |= v;
                self.process();
            }
            _ => {}
        }
    }

    fn set_cmd(&mut self, v: u32) {
        let old = self.state.cmd;
        let mut new = v & cmd::WRITABLE;
        if new & cmd::FRE != 0 {
            new |= cmd::FR;
        }
        if v & cmd::CLO != 0 {
            self.state.tfd &= !u32::from(status::BSY | status::DRQ);
        }
        if new & cmd::ST != 0 {
            new |= cmd::CR;
        } else if old & cmd::ST != 0 {
            self.stop();
            (self.state.ci, self.state.sact, self.state.halted) = (0, 0, false);
            self.state.tfd &= !u32::from(status::BSY | status::DRQ);
        }
        self.state.cmd = new;
        self.send_signature();
        self.process();
    }

    /// Runs what has been issued: queued commands together, others one after the other.
    fn process(&mut self) {
        // Each turn either begins a command whose job is under way then, or takes its bit away: so this ends.
        for _ in 0..=SLOTS {
            let s = &self.state;
            if s.cmd & cmd::CR == 0 || s.halted || s.pending.values().any(|p| p.kind != Kind::Queued) {
                return;
            }
            let Some(slot) = (0..SLOTS).find(|n| s.ci >> n & 1 == 1) else { return };
            let header = fis::header(&self.master, s.clb, slot);
            match fis::frame(&self.master, header.table) {
                Frame::Control(v) => self.control(slot, v, &header),
                Frame::Command(task) => {
                    let queued = matches!(task.command, command::READ_FPDMA_QUEUED | command::WRITE_FPDMA_QUEUED);
                    if !queued && !s.pending.is_empty() {
                        return;
                    }
                    self.command(slot, &task, &header);
                }
                Frame::Unknown(kind) => {
                    dlog!(GUEST_ERRORS, "ahci: a FIS of type {kind:#04x} in slot {slot}");
                    self.fail(slot, error::ABRT, is::TFES);
                }
            }
        }
    }

    fn control(&mut self, slot: u32, v: u8, header: &Header) {
        self.state.ci &= !(1 << slot);
        let was = std::mem::replace(&mut self.state.in_reset, v & SRST != 0);
        if v & SRST != 0 {
            self.state.tfd = u32::from(if header.clear_busy { READY } else { status::BSY });
        } else if was {
            self.link_up();
            self.raise(is::DHRS);
        }
    }

    fn command(&mut self, slot: u32, task: &Task, header: &Header) {
        let Some(drive) = &mut self.drive else {
            return self.fail(slot, error::ABRT, is::TFES);
        };
        drive.refresh();
        let (geometry, identity) = (drive.geometry().clone(), drive.identity.clone());
        match &mut drive.state {
            DriveState::Disk(disk) => {
                let plan = disk.plan(task, &geometry, &identity, true);
                self.begin(slot, plan, header);
            }
            DriveState::Cd(_) => match task.command {
                command::PACKET => self.packet(slot, header),
                0xa1 => self.begin(slot, Plan::Data(identify::packet(&identity, 0x45, true)), header),
                // SET FEATURES, power management, flushing: nothing to do.
                0xef | 0xe0..=0xe3 | 0xe6 | 0xe7 | 0xea => self.end(slot, Registers::default()),
                command::DEVICE_RESET => {
                    self.state.ci &= !(1 << slot);
                    self.link_up();
                    self.raise(is::DHRS);
                }
                // IDENTIFY DEVICE and all the others.
                _ => self.fail(slot, error::ABRT, is::TFES),
            },
        }
    }

    fn begin(&mut self, slot: u32, plan: Plan, header: &Header) {
        match plan {
            Plan::Done(count) => self.end(slot, Registers { count: count.unwrap_or(0).into(), ..Registers::default() }),
            Plan::Address(lba) => self.end(slot, Registers { lba, ..Registers::default() }),
            Plan::Data(data) => {
                let n = self.give(&data, header);
                fis::set_count(&self.master, self.state.clb, slot, n);
                self.end_pio(slot, n);
            }
            Plan::Flush => self.submit(slot, Kind::Dma, Op::Flush),
            Plan::Trim { len } => self.trim(slot, header, len),
            Plan::Abort => self.fail(slot, error::ABRT, is::TFES),
            Plan::NotFound => self.fail(slot, error::IDNF, is::TFES),
            Plan::Read { at, len, way } => self.transfer(slot, header, way, len, |to| Op::Read { at, to }),
            Plan::Write { at, len, through, way } => {
                self.transfer(slot, header, way, len, |from| Op::Write { at, from, through });
            }
        }
    }

    fn transfer(&mut self, slot: u32, header: &Header, way: Way, len: u64, op: impl Fn(Vec<crate::block::Segment>) -> Op) {
        let op = op(fis::gather(&self.master, header, len));
        let kind = match way {
            // Software names the tag by the slot's number.
            // A tag that is in use stands for the command that has it.
            Way::Queued(_) if self.state.pending.values().any(|p| p.slot == slot) => {
                dlog!(GUEST_ERRORS, "ahci: slot {slot} has a command already");
                return self.fail(slot, error::ABRT, is::TFES);
            }
            Way::Queued(tag) if u32::from(tag) == slot => Kind::Queued,
            Way::Queued(_) => return self.fail(slot, error::ABRT, is::TFES),
            Way::Pio(_) if !op.writes() => Kind::PioIn,
            _ => Kind::Dma,
        };
        if op.len() < len {
            dlog!(GUEST_ERRORS, "ahci: descriptors for {} bytes of {len}", op.len());
            return self.fail(slot, error::ABRT, is::TFES | is::OFS);
        }
        if op.writes() != header.write {
            dlog!(GUEST_ERRORS, "ahci: slot {slot} has another direction than its command");
        }
        self.submit(slot, kind, op);
    }

    fn trim(&mut self, slot: u32, header: &Header, len: u64) {
        let list = fis::gather(&self.master, header, len);
        let read = |s: &crate::block::Segment| {
            let mut b = vec![0; s.len as usize];
            self.master.read(Pa(s.pa), &mut b);
            b
        };
        let data: Vec<u8> = list.iter().flat_map(read).collect();
        let bytes = self.drive.as_ref().map_or(0, |d| d.geometry().bytes);
        match trim_ranges(&data, bytes) {
            _ if (data.len() as u64) < len => self.fail(slot, error::ABRT, is::TFES | is::OFS),
            Some(ranges) => self.submit(slot, Kind::Dma, Op::Trim(ranges)),
            None => self.fail(slot, error::ABRT, is::TFES),
        }
    }

    /// Data that are there already go to the host; how many there was room for.
    fn give(&self, data: &[u8], header: &Header) -> u32 {
        let list = fis::gather(&self.master, header, data.len() as u64);
        let mut rest = data;
        for s in &list {
            let (now, later) = rest.split_at(rest.len().min(s.len as usize));
            self.master.write(Pa(s.pa), now);
            rest = later;
        }
        (data.len() - rest.len()) as u32
    }

    fn packet(&mut self, slot: u32, header: &Header) {
        if !header.atapi {
            dlog!(GUEST_ERRORS, "ahci: slot {slot} has PACKET and is no packet command");
        }
        let packet = fis::packet(&self.master, header.table);
        let Some(drive) = &mut self.drive else { return };
        match drive.packet(&packet) {
            Reply::Done => self.end_packet(slot, 0),
            Reply::Failed(key) => self.fail_packet(slot, key),
            Reply::Data(data) => {
                let n = self.give(&data, header);
                self.end_packet(slot, n);
            }
            Reply::Read { at, len } => {
                let to = fis::gather(&self.master, header, len);
                let op = Op::Read { at, to };
                if op.len() < len {
                    return self.fail(slot, error::ABRT, is::TFES | is::OFS);
                }
                self.submit(slot, Kind::Packet, op);
            }
        }
    }

    fn submit(&mut self, slot: u32, kind: Kind, op: Op) {
        let id = self.number + u64::from(SLOTS) * self.state.next_id;
        self.state.next_id += 1;
        if kind == Kind::Queued {
            // The device has taken it.
            self.state.ci &= !(1 << slot);
            self.state.tfd = READY.into();
        } else {
            self.state.tfd = status::BSY.into();
        }
        self.state.pending.insert(id, Pending { slot, kind, op: op.clone() });
        self.send(id, op);
    }

    fn send(&self, id: u64, op: Op) {
        if let Some(d) = &self.drive {
            d.submit(id, op, Memory::Guest(self.master.clone()), &self.done);
        }
    }
}
