//! How commands begin.

use super::{CONTROL_SRST, Channel, DriveState, Kind, NONE, Op, Transfer, error, status};
use crate::block::ata::{Plan, Way, command, identify};
use vm_core::dlog;

impl Channel {
    pub(super) fn command(&mut self, code: u8) {
        let n = self.selected();
        let busy = self.state.regs[n].status & (status::BSY | status::DRQ) != 0;
        if self.drives[n].is_none() || self.state.control & CONTROL_SRST != 0 {
            return;
        }
        // Packet devices are reset whatever they do; disks know no such command.
        let reset = code == command::DEVICE_RESET && self.drives[n].as_ref().is_some_and(|d| d.is_cd());
        if busy && !reset {
            dlog!(GUEST_ERRORS, "ide: command {code:#04x} while another is under way");
            return;
        }
        self.set_irq(false);
        let device = self.state.device;
        let task = self.state.regs[n].task(code, device);
        self.regs().error = 0;
        self.state.transfer = NONE;
        let Some(drive) = &mut self.drives[n] else { return };
        let cd = drive.is_cd();
        match (code, cd) {
            (command::EXECUTE_DEVICE_DIAGNOSTIC, _) => {
                self.signatures();
                self.set_irq(true);
            }
            (command::DEVICE_RESET, true) => {
                self.stop();
                self.regs().signature(true);
            }
            (command::PACKET, true) => self.begin_packet(),
            (0xa1, true) => {
                let data = identify::packet(&drive.identity, 0x45, false);
                self.give(data, 512, false);
            }
            // What disks do and packet devices do not: they show what they are.
            (0xec | 0x20 | 0x21, true) => {
                self.regs().signature(true);
                self.fail(error::ABRT);
            }
            // Features; power management; flush: nothing to do here.
            (0xef | 0xe0..=0xe3 | 0xe6 | 0xe7 | 0xea | 0x00, true) if code != 0 => self.finish(),
            (0xe5, true) => {
                self.regs().count[0] = 0xff;
                self.finish();
            }
            (_, true) => self.fail(error::ABRT),
            (_, false) => {
                drive.refresh();
                let (geometry, identity) = (drive.geometry().clone(), drive.identity.clone());
                let DriveState::Disk(disk) = &mut drive.state else { return };
                let plan = disk.plan(&task, &geometry, &identity, false);
                self.begin(plan);
            }
        }
    }

    pub(super) fn begin(&mut self, plan: Plan) {
        match plan {
            Plan::Done(count) => {
                if let Some(c) = count {
                    self.regs().count[0] = c;
                }
                self.finish();
            }
            Plan::Address(lba) => {
                let r = self.regs();
                let byte = |n: u32| (lba >> (8 * n)) as u8;
                (r.low, r.mid, r.high) = ([byte(0), byte(3)], [byte(1), byte(4)], [byte(2), byte(5)]);
                self.state.device = self.state.device & 0xf0 | byte(3) & 0xf;
                self.finish();
            }
            Plan::Data(data) => self.give(data, 512, false),
            Plan::Abort => self.fail(error::ABRT),
            Plan::NotFound => self.fail(error::IDNF),
            Plan::Flush => {
                self.state.transfer = Transfer { kind: Kind::Flush, ..NONE };
                self.submit(Op::Flush, None);
            }
            Plan::Trim { len } => self.begin_transfer(Kind::Trim, 0, len, Way::Dma),
            Plan::Read { at, len, way } => self.begin_transfer(Kind::Read, at, len, way),
            Plan::Write { at, len, through, way } => self.begin_transfer(Kind::Write { through }, at, len, way),
        }
    }

    pub(super) fn begin_transfer(&mut self, kind: Kind, at: u64, left: u64, way: Way) {
        let (block, dma) = match way {
            Way::Pio(block) => (block, false),
            Way::Dma | Way::Queued(_) => (512, true),
        };
        self.state.transfer = Transfer { kind, at, left, block, dma, packet: false };
        match (dma, kind) {
            (true, _) => self.want_dma(),
            (false, Kind::Read) => self.fetch(),
            // There is no interrupt before the first block.
            (false, _) => self.take_block(),
        }
    }
}
