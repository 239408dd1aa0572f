//! Bus master registers of a channel and the physical region descriptors that its transfers follow (Intel, "Programming Interface
//! for Bus Master IDE Controller", 1.0).

use crate::block::Segment;
use crate::pci::BusMaster;
use serde::{Deserialize, Serialize};
use vm_core::Pa;

/// Command register: started; towards memory.
const START: u8 = 1 << 0;
const TO_MEMORY: u8 = 1 << 3;
/// Status register.
const ACTIVE: u8 = 1 << 0;
const ERROR: u8 = 1 << 1;
const INTERRUPT: u8 = 1 << 2;
const DRIVES_CAPABLE: u8 = 3 << 5;
/// Descriptors of a table, which lies in 64 KiB.
const MOST: u64 = 8192;
const END: u32 = 1 << 31;

/// Registers of one channel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bmide {
    command: u8,
    status: u8,
    table: u32,
    /// The table has more than the transfer: it stays active.
    more: bool,
}

impl Bmide {
    pub fn read(&self, offset: u64) -> u8 {
        match offset {
            0 => self.command,
            2 => self.status,
            4..=7 => self.table.to_le_bytes()[offset as usize - 4],
            _ => 0xff,
        }
    }

    pub fn write(&mut self, offset: u64, v: u8) {
        match offset {
            0 => {
                let start = v & START != 0;
                if start && self.command & START == 0 {
                    self.status |= ACTIVE;
                } else if !start {
                    self.status &= !ACTIVE;
                }
                self.command = v & (START | TO_MEMORY);
            }
            2 => self.status = self.status & !(v & (ERROR | INTERRUPT)) & !DRIVES_CAPABLE | v & DRIVES_CAPABLE,
            4..=7 => {
                let mut bytes = self.table.to_le_bytes();
                bytes[offset as usize - 4] = v;
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
    }

    pub fn started(&self) -> bool {
        self.command & START != 0 && self.status & ACTIVE != 0
    }

    pub fn table(&self) -> u32 {
        self.table
    }

    /// The drive raises its interrupt.
    pub fn interrupt(&mut self) {
        self.status |= INTERRUPT;
    }

    /// For the transfer that begins: whether the table has more.
    pub fn keep_active(&mut self, more: bool) {
        self.more = more;
    }

    pub fn ended(&mut self) {
        if !std::mem::take(&mut self.more) {
            self.status &= !ACTIVE;
        }
    }

    pub fn failed(&mut self) {
        self.status |= ERROR;
        self.more = false;
        self.status &= !ACTIVE;
    }
}

/// The first `bytes` bytes of memory that a table names, and whether it names more.
pub fn gather(master: &BusMaster, table: u32, bytes: u64) -> (Vec<Segment>, bool) {
    let (mut list, mut left) = (Vec::new(), bytes);
    for n in 0..MOST {
        let mut d = [0; 8];
        // The table does not cross a boundary of 64 KiB: within that it wraps.
        let at = u64::from(table & !0xffff) | (u64::from(table) + 8 * n) & 0xffff;
        master.read(Pa(at), &mut d);
        let word = |i: usize| u32::from_le_bytes([d[i], d[i + 1], d[i + 2], d[i + 3]]);
        let len = match word(4) & 0xfffe {
            0 => 0x1_0000,
            n => n,
        };
        let now = left.min(len.into());
        if now > 0 {
            list.push(Segment { pa: (word(0) & !1).into(), len: now as u32 });
        }
        left -= now;
        let last = word(4) & END != 0;
        if last || left == 0 {
            return (list, !last || u64::from(len) > now);
        }
    }
    (list, false)
}

pub fn total(list: &[Segment]) -> u64 {
    list.iter().map(|s| u64::from(s.len)).sum()
}
