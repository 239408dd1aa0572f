//! How commands end, and what the host is told of it.

use super::{Drive, DriveState, Kind, Op, Port, READY, Registers, error, fis, is, reason, status};
use vm_core::dlog;

impl Port {
    /// A job has ended; those that were given up are not known any more.
    pub fn complete(&mut self, id: u64, ok: bool) {
        let Some(p) = self.state.pending.remove(&id) else { return };
        match (p.kind, ok) {
            // What was under way beside a queued command that failed has ended without a word.
            (Kind::Queued, _) if self.state.halted => {}
            (Kind::Queued, true) => {
                self.state.sact &= !(1 << p.slot);
                self.receive(fis::DEVICE_BITS_AT, &fis::device_bits(READY, 0, 1 << p.slot));
                self.raise(is::SDBS);
            }
            (Kind::Queued, false) => self.queued_failed(p.slot, p.op.writes()),
            (Kind::Packet, true) => self.end_packet(p.slot, p.op.len() as u32),
            (Kind::Packet, false) => {
                let key = self.drive.as_mut().map_or(0, Drive::medium_error);
                self.fail_packet(p.slot, key);
            }
            (_, false) => self.fail(p.slot, if p.op.writes() { error::ABRT } else { error::UNC }, is::TFES),
            (kind, true) => {
                let moved = if matches!(p.op, Op::Trim(_)) { 0 } else { p.op.len() as u32 };
                fis::set_count(&self.master, self.state.clb, p.slot, moved);
                if kind == Kind::PioIn { self.end_pio(p.slot, p.op.len() as u32) } else { self.end(p.slot, Registers::default()) }
            }
        }
        self.process();
    }

    pub(super) fn queued_failed(&mut self, slot: u32, write: bool) {
        let error = if write { error::ABRT } else { error::UNC };
        let st = READY | status::ERR;
        if let Some(DriveState::Disk(d)) = self.drive.as_mut().map(|d| &mut d.state) {
            d.queued_failed(slot as u8, st, error);
        }
        self.state.halted = true;
        self.state.tfd = u32::from(error) << 8 | u32::from(st);
        self.receive(fis::DEVICE_BITS_AT, &fis::device_bits(st, error, 0));
        self.raise(is::SDBS | is::TFES);
    }

    /// A command has ended well; its registers, but for the status.
    pub(super) fn end(&mut self, slot: u32, r: Registers) {
        self.state.ci &= !(1 << slot);
        self.state.tfd = READY.into();
        self.receive(fis::REGISTER_AT, &fis::register(&Registers { status: READY, ..r }, true));
        self.raise(is::DHRS);
    }

    pub(super) fn end_pio(&mut self, slot: u32, bytes: u32) {
        self.state.ci &= !(1 << slot);
        self.state.tfd = READY.into();
        let r = Registers { status: READY | status::DRQ, ..Registers::default() };
        self.receive(fis::PIO_SETUP_AT, &fis::pio_setup(&r, READY, bytes as u16));
        self.raise(is::PSS);
    }

    pub(super) fn end_packet(&mut self, slot: u32, bytes: u32) {
        fis::set_count(&self.master, self.state.clb, slot, bytes);
        self.end(slot, Registers { count: (reason::IO | reason::CD).into(), ..Registers::default() });
    }

    /// A command has failed: nothing goes on before the port is started anew.
    pub(super) fn fail(&mut self, slot: u32, error: u8, bits: u32) {
        self.fail_with(slot, Registers { error, ..Registers::default() }, bits);
    }

    pub(super) fn fail_with(&mut self, slot: u32, r: Registers, bits: u32) {
        let r = Registers { status: READY | status::ERR, ..r };
        dlog!(GUEST_ERRORS, "ahci: the command in slot {slot} has failed, error {:#04x}", r.error);
        self.state.halted = true;
        self.state.tfd = u32::from(r.error) << 8 | u32::from(r.status);
        self.receive(fis::REGISTER_AT, &fis::register(&r, true));
        self.raise(is::DHRS | bits);
    }

    pub(super) fn fail_packet(&mut self, slot: u32, key: u8) {
        let count = (reason::IO | reason::CD).into();
        self.fail_with(slot, Registers { error: key << 4 | error::ABRT, count, ..Registers::default() }, is::TFES);
    }
}
