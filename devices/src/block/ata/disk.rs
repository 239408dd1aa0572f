//! Commands of ATA disks (ATA8-ACS, "Command descriptions"): what a command asks for. Moving data is the controller's part.

use super::identify::{self, Identity};
use super::{DEVICE_FUA, Task, command, cylinders};
use crate::block::{Geometry, Op, SECTOR, Segment};
use serde::{Deserialize, Serialize};
use vm_core::dlog;

/// Most sectors of a block of READ MULTIPLE.
pub const MAX_MULTIPLE: u8 = 16;
/// Commands that wait at the same time, of NCQ.
pub const QUEUE_DEPTH: u8 = 32;

/// READ LOG EXT: page of the queued command that failed.
const LOG_NCQ_ERROR: u64 = 0x10;
/// Transfer modes of SET FEATURES: multiword and Ultra DMA, the first of each.
const MODE_MDMA: u8 = 0x20;
const MODE_UDMA: u8 = 0x40;
/// DATA SET MANAGEMENT: its kind in the features register; sectors of ranges that one command may have.
const TRIM: u8 = 1;
pub const MAX_TRIM_SECTORS: u16 = 8;

/// How data go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Way {
    /// Through the data register, in blocks of so many bytes.
    Pio(u32),
    Dma,
    /// DMA, with the tag of a queued command.
    Queued(u8),
}

/// What is to be done. Positions and lengths are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing but the end of the command; the count register afterwards, if it says something.
    Done(Option<u8>),
    /// As `Done`; the address registers afterwards.
    Address(u64),
    /// A sector of data for the host.
    Data(Vec<u8>),
    Read {
        at: u64,
        len: u64,
        way: Way,
    },
    Write {
        at: u64,
        len: u64,
        through: bool,
        way: Way,
    },
    Flush,
    /// So many bytes of ranges to discard come by DMA: see `trim_ranges`.
    Trim {
        len: u64,
    },
    /// The command is not known, or its parameters are wrong.
    Abort,
    /// There is no such sector.
    NotFound,
}

/// A disk's own state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Sectors of a block of READ MULTIPLE; 0: not set.
    multiple: u8,
    write_back: bool,
    /// Transfer mode of DMA.
    mode: u8,
    /// What READ LOG EXT tells of the queued command that failed last: its tag, status and error.
    failed: Option<(u8, u8, u8)>,
}

impl Disk {
    pub fn new(geometry: &Geometry) -> Self {
        Self { multiple: 0, write_back: geometry.write_back, mode: MODE_UDMA | 5, failed: None }
    }

    /// Whether a saved state is one.
    pub fn plausible(&self) -> bool {
        self.multiple <= MAX_MULTIPLE && (self.multiple == 0 || self.multiple.is_power_of_two())
    }

    /// Remembers which queued command has failed.
    pub fn queued_failed(&mut self, tag: u8, status: u8, error: u8) {
        self.failed = Some((tag, status, error));
    }

    fn through(&self) -> bool {
        !self.write_back
    }

    /// A range of sectors, if the disk has them.
    fn range(g: &Geometry, first: Option<u64>, sectors: u64) -> Option<(u64, u64)> {
        let (at, len) = (first?.checked_mul(SECTOR)?, sectors * SECTOR);
        (at.checked_add(len)? <= g.bytes).then_some((at, len))
    }

    fn read(g: &Geometry, first: Option<u64>, sectors: u64, way: Way) -> Plan {
        Self::range(g, first, sectors).map_or(Plan::NotFound, |(at, len)| Plan::Read { at, len, way })
    }

    fn write(&self, g: &Geometry, first: Option<u64>, sectors: u64, way: Way, fua: bool) -> Plan {
        if g.read_only {
            return Plan::Abort;
        }
        let through = fua || self.through();
        Self::range(g, first, sectors).map_or(Plan::NotFound, |(at, len)| Plan::Write { at, len, through, way })
    }

    fn block(&self) -> Option<Way> {
        (self.multiple > 0).then(|| Way::Pio(u32::from(self.multiple) * SECTOR as u32))
    }

    /// What a command asks for. `sata`: queued commands can be done.
    pub fn plan(&mut self, t: &Task, g: &Geometry, identity: &Identity, sata: bool) -> Plan {
        const ONE: Way = Way::Pio(SECTOR as u32);
        let (short, long) = ((t.first(), t.sectors()), (Some(t.lba), t.sectors_ext()));
        match t.command {
            0x20 | 0x21 => Self::read(g, short.0, short.1, ONE),
            0x24 => Self::read(g, long.0, long.1, ONE),
            0x25 => Self::read(g, long.0, long.1, Way::Dma),
            0xc8 | 0xc9 => Self::read(g, short.0, short.1, Way::Dma),
            0xc4 => self.block().map_or(Plan::Abort, |way| Self::read(g, short.0, short.1, way)),
            0x29 => self.block().map_or(Plan::Abort, |way| Self::read(g, long.0, long.1, way)),
            0x30 | 0x31 => self.write(g, short.0, short.1, ONE, false),
            0x34 => self.write(g, long.0, long.1, ONE, false),
            0x35 => self.write(g, long.0, long.1, Way::Dma, false),
            0x3d => self.write(g, long.0, long.1, Way::Dma, true),
            0xca | 0xcb => self.write(g, short.0, short.1, Way::Dma, false),
            0xc5 => self.block().map_or(Plan::Abort, |way| self.write(g, short.0, short.1, way, false)),
            0x39 => self.block().map_or(Plan::Abort, |way| self.write(g, long.0, long.1, way, false)),
            0xce => self.block().map_or(Plan::Abort, |way| self.write(g, long.0, long.1, way, true)),
            command::READ_FPDMA_QUEUED | command::WRITE_FPDMA_QUEUED if sata => self.plan_queued(t, g),
            // READ VERIFY SECTOR(S), SEEK: the sectors are there or not.
            0x40 | 0x41 | 0x70 => Self::range(g, short.0, short.1).map_or(Plan::NotFound, |_| Plan::Done(None)),
            0x42 => Self::range(g, long.0, long.1).map_or(Plan::NotFound, |_| Plan::Done(None)),
            0xe7 | 0xea => Plan::Flush,
            0xec => Plan::Data(identify::disk(g, identity, self.multiple, self.write_back, self.mode, sata)),
            command::DATA_SET_MANAGEMENT if t.features as u8 == TRIM && !g.read_only => match t.sectors_ext() {
                n if n <= MAX_TRIM_SECTORS.into() => Plan::Trim { len: n * SECTOR },
                _ => Plan::Abort,
            },
            0x2f if sata => self.log(t),
            _ => self.plan_other(t, g),
        }
    }

    fn plan_queued(&self, t: &Task, g: &Geometry) -> Plan {
        let task = Task { count: t.features, ..*t };
        let way = Way::Queued((t.count >> 3) as u8 & (QUEUE_DEPTH - 1));
        match t.command {
            command::READ_FPDMA_QUEUED => Self::read(g, Some(t.lba), task.sectors_ext(), way),
            _ => self.write(g, Some(t.lba), task.sectors_ext(), way, t.device & DEVICE_FUA != 0),
        }
    }

    /// Commands that move no data.
    fn plan_other(&mut self, t: &Task, g: &Geometry) -> Plan {
        let sectors = g.bytes / SECTOR;
        match t.command {
            // RECALIBRATE; power management: STANDBY IMMEDIATE, IDLE IMMEDIATE, STANDBY, IDLE, SLEEP, by all their numbers.
            0x10..=0x1f | 0xe0..=0xe3 | 0xe6 | 0x94..=0x97 | 0x99 => Plan::Done(None),
            // CHECK POWER MODE: active.
            0xe5 | 0x98 => Plan::Done(Some(0xff)),
            // INITIALIZE DEVICE PARAMETERS: only those that IDENTIFY DEVICE tells.
            0x91 if t.count & 0xff == super::SECTORS as u16 && t.device & 0xf == super::HEADS as u8 - 1 => Plan::Done(None),
            0xc6 => {
                let n = t.count as u8;
                if n > MAX_MULTIPLE || n != 0 && !n.is_power_of_two() {
                    return Plan::Abort;
                }
                self.multiple = n;
                Plan::Done(None)
            }
            0xef => self.set_features(t),
            // READ NATIVE MAX ADDRESS.
            0xf8 => Plan::Address(sectors.saturating_sub(1).min(0xfff_ffff)),
            0x27 => Plan::Address(sectors.saturating_sub(1)),
            _ => {
                dlog!(GUEST_ERRORS, "ata: command {:#04x} is not known", t.command);
                Plan::Abort
            }
        }
    }

    fn set_features(&mut self, t: &Task) -> Plan {
        match t.features as u8 {
            0x02 => self.write_back = true,
            0x82 => {
                self.write_back = false;
                // What is in the cache is to be on disk when it is off.
                return Plan::Flush;
            }
            0x03 => match t.count as u8 {
                // PIO modes are all the same.
                0..=0x0f => {}
                n @ (MODE_MDMA..=0x22 | MODE_UDMA..=0x46) => self.mode = n,
                _ => return Plan::Abort,
            },
            // Look-ahead, keeping settings over a reset, advanced power and noise management: no difference here.
            0x05 | 0x42 | 0x55 | 0x66 | 0x85 | 0xaa | 0xc2 | 0xcc => {}
            _ => return Plan::Abort,
        }
        Plan::Done(None)
    }

    /// READ LOG EXT: the directory, and which queued command failed.
    fn log(&mut self, t: &Task) -> Plan {
        let mut page = vec![0; SECTOR as usize];
        match t.lba & 0xff {
            0 => {
                page[0] = 1;
                page[2 * LOG_NCQ_ERROR as usize] = 1;
            }
            LOG_NCQ_ERROR => {
                // NQ is set if it was not a queued command.
                let (tag, status, error) = self.failed.take().unwrap_or((0x80, 0, 0));
                (page[0], page[2], page[3]) = (tag, status, error);
            }
            _ => return Plan::Abort,
        }
        let sum = page.iter().fold(0u8, |s, b| s.wrapping_add(*b));
        page[511] = sum.wrapping_neg();
        Plan::Data(page)
    }
}

/// Ranges of a disk of `bytes` that DATA SET MANAGEMENT names: 48 bits of a position and 16 of a length, in sectors each; those
/// without sectors stand for nothing. `None` if the disk has not all of them.
pub fn trim_ranges(data: &[u8], bytes: u64) -> Option<Vec<(u64, u64)>> {
    let entries = data.as_chunks::<8>().0.iter().map(|e| u64::from_le_bytes(*e));
    let ranges = entries.filter(|e| e >> 48 != 0).map(|e| ((e & 0xffff_ffff_ffff) * SECTOR, (e >> 48) * SECTOR));
    let list: Vec<_> = ranges.collect();
    Op::Trim(list.clone()).fits(bytes).then_some(list)
}

/// The job of a plan whose data lie at `memory`.
pub fn op(write: bool, at: u64, memory: Vec<Segment>, through: bool) -> Op {
    if write { Op::Write { at, from: memory, through } } else { Op::Read { at, to: memory } }
}

/// Cylinders, heads, sectors.
pub fn chs(g: &Geometry) -> (u16, u16, u16) {
    (cylinders(g.bytes / SECTOR) as u16, super::HEADS as u16, super::SECTORS as u16)
}
