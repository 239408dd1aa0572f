//! What ATA and ATAPI devices do, whatever carries their commands (ATA8-ACS, "ATA/ATAPI Command Set"; MMC-6): task file, commands,
//! identification. IDE and AHCI controllers drive it.

pub mod disk;
pub mod drive;
pub mod identify;
pub mod packet;
#[cfg(test)]
mod tests;

pub use disk::{Disk, Plan, Way, trim_ranges};
pub use drive::{Completions, Drive, DriveState, Medium};
pub use packet::{Packet, Reply};

/// Status register.
pub mod status {
    pub const ERR: u8 = 1 << 0;
    pub const DRQ: u8 = 1 << 3;
    /// Seek complete, as older software wants to see it.
    pub const DSC: u8 = 1 << 4;
    /// Device fault.
    pub const DF: u8 = 1 << 5;
    pub const DRDY: u8 = 1 << 6;
    pub const BSY: u8 = 1 << 7;
}

/// Error register.
pub mod error {
    pub const ABRT: u8 = 1 << 2;
    pub const IDNF: u8 = 1 << 4;
    pub const UNC: u8 = 1 << 6;
    /// After a reset: the device has passed its diagnostics.
    pub const PASSED: u8 = 1;
}

/// Device register: sectors are counted, not named by cylinder, head and sector.
pub const DEVICE_LBA: u8 = 1 << 6;
/// Device register: the second of two devices.
pub const DEVICE_SECOND: u8 = 1 << 4;
/// Device register of a queued write: done when it is on disk.
pub const DEVICE_FUA: u8 = 1 << 7;

/// Commands that controllers must know.
pub mod command {
    pub const DATA_SET_MANAGEMENT: u8 = 0x06;
    pub const DEVICE_RESET: u8 = 0x08;
    pub const READ_FPDMA_QUEUED: u8 = 0x60;
    pub const WRITE_FPDMA_QUEUED: u8 = 0x61;
    pub const EXECUTE_DEVICE_DIAGNOSTIC: u8 = 0x90;
    pub const PACKET: u8 = 0xa0;
}

/// Interrupt reason of packet commands, in the count register: a command is wanted or has ended; data go to the host.
pub mod reason {
    pub const CD: u8 = 1 << 0;
    pub const IO: u8 = 1 << 1;
}

/// A command with its parameters. Those of 48-bit commands have their upper halves from what was written before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Task {
    pub command: u8,
    pub features: u16,
    pub count: u16,
    /// 48 bits. Of shorter commands the lower 24 count, and the device register's lower 4.
    pub lba: u64,
    pub device: u8,
}

/// Sectors of a track and heads of a disk, as disks tell since they have been larger than that.
pub const SECTORS: u64 = 63;
pub const HEADS: u64 = 16;
const MAX_CYLINDERS: u64 = 16383;

/// Cylinders that a disk of so many sectors claims.
pub fn cylinders(sectors: u64) -> u64 {
    (sectors / (SECTORS * HEADS)).clamp(1, MAX_CYLINDERS)
}

impl Task {
    fn lba28(&self) -> u64 {
        self.lba & 0xff_ffff | u64::from(self.device & 0xf) << 24
    }

    /// First sector of a 28-bit command, by LBA or by cylinder, head and sector; `None`: there is no such sector.
    pub fn first(&self) -> Option<u64> {
        if self.device & DEVICE_LBA != 0 {
            return Some(self.lba28());
        }
        let (sector, cylinder, head) = (self.lba & 0xff, self.lba >> 8 & 0xffff, u64::from(self.device & 0xf));
        (1..=SECTORS).contains(&sector).then(|| (cylinder * HEADS + head) * SECTORS + sector - 1)
    }

    /// Sectors of a 28-bit command.
    pub fn sectors(&self) -> u64 {
        match self.count & 0xff {
            0 => 256,
            n => n.into(),
        }
    }

    /// Sectors of a 48-bit command.
    pub fn sectors_ext(&self) -> u64 {
        if self.count == 0 { 0x1_0000 } else { self.count.into() }
    }
}
