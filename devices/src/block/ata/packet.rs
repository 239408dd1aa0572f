//! A CD-ROM drive's commands (SPC-4, SBC-3, MMC-6): twelve-byte packets in, data, a read of the disc, or an error with sense data
//! out. There is a disc or there is none; it does not change while the machine runs.

use super::identify::Identity;
use serde::{Deserialize, Serialize};
use vm_core::dlog;

/// Bytes of a packet, and of a block of a data disc.
pub const PACKET_LEN: usize = 12;
pub const BLOCK: u64 = 2048;

/// Sense keys.
const NOT_READY: u8 = 2;
const MEDIUM_ERROR: u8 = 3;
const ILLEGAL_REQUEST: u8 = 5;
/// Additional sense codes.
const UNRECOVERED_READ: u8 = 0x11;
const INVALID_COMMAND: u8 = 0x20;
const OUT_OF_RANGE: u8 = 0x21;
const INVALID_FIELD: u8 = 0x24;
const NO_MEDIUM: u8 = 0x3a;

/// Profiles of GET CONFIGURATION.
const PROFILE_CD: u16 = 8;
const PROFILE_DVD: u16 = 0x10;
/// Discs with more bytes than 80 minutes have are DVDs.
const CD_BYTES: u64 = 360_000 * BLOCK;
/// The lead-out's track number.
const LEAD_OUT: u8 = 0xaa;

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Done,
    Data(Vec<u8>),
    /// Bytes of the disc.
    Read {
        at: u64,
        len: u64,
    },
    /// The sense key for the error register; more is in the sense data.
    Failed(u8),
}

/// The drive's own state: key, code and qualifier of the last error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    key: u8,
    code: u8,
    /// The door is kept shut.
    locked: bool,
}

fn u16_at(c: &[u8], at: usize) -> usize {
    usize::from(c[at]) << 8 | usize::from(c[at + 1])
}

fn u32_at(c: &[u8], at: usize) -> u64 {
    (u16_at(c, at) as u64) << 16 | u16_at(c, at + 2) as u64
}

/// Data as long as the host wants them.
fn cut(mut data: Vec<u8>, most: usize) -> Reply {
    data.truncate(most);
    if data.is_empty() { Reply::Done } else { Reply::Data(data) }
}

/// Minutes, seconds and frames of a block; blocks count from two seconds on.
fn msf(block: u64) -> [u8; 4] {
    let b = block + 150;
    [0, (b / 75 / 60).min(255) as u8, (b / 75 % 60) as u8, (b % 75) as u8]
}

impl Packet {
    fn fail(&mut self, key: u8, code: u8) -> Reply {
        (self.key, self.code) = (key, code);
        Reply::Failed(key)
    }

    /// The host could not read the disc.
    pub fn medium_error(&mut self) -> u8 {
        (self.key, self.code) = (MEDIUM_ERROR, UNRECOVERED_READ);
        MEDIUM_ERROR
    }

    /// Takes a packet. `bytes`: of the disc, if there is one.
    pub fn command(&mut self, c: &[u8; PACKET_LEN], bytes: Option<u64>, identity: &Identity) -> Reply {
        match c[0] {
            // REQUEST SENSE and INQUIRY do not need a disc, nor do they forget the last error.
            0x03 => return self.request_sense(c),
            0x12 => return inquiry(c, identity),
            _ => (self.key, self.code) = (0, 0),
        }
        match c[0] {
            0x1a => self.mode_sense(c, usize::from(c[4]), 4),
            0x5a => self.mode_sense(c, u16_at(c, 7), 8),
            0x1b => Reply::Done,
            0x1e => {
                self.locked = c[4] & 1 != 0;
                Reply::Done
            }
            0x46 => configuration(c, bytes),
            0x4a => self.event(c, bytes.is_some()),
            // MECHANISM STATUS: nothing moves, one slot.
            0xbd => cut(vec![0, 0, 0, 0, 0, 0, 0, 0], u16_at(c, 8)),
            // SET CD SPEED.
            0xbb => Reply::Done,
            _ => match bytes {
                Some(b) => self.of_disc(c, b),
                None if matches!(c[0], 0x00 | 0x25 | 0x28 | 0x2b | 0x43 | 0x51 | 0xa8 | 0xbe) => self.fail(NOT_READY, NO_MEDIUM),
                None => self.unknown(c),
            },
        }
    }

    fn unknown(&mut self, c: &[u8; PACKET_LEN]) -> Reply {
        dlog!(GUEST_ERRORS, "atapi: command {:#04x} is not known", c[0]);
        self.fail(ILLEGAL_REQUEST, INVALID_COMMAND)
    }

    fn of_disc(&mut self, c: &[u8; PACKET_LEN], bytes: u64) -> Reply {
        let blocks = bytes / BLOCK;
        match c[0] {
            0x00 => Reply::Done,
            0x25 => {
                let last = blocks.saturating_sub(1).min(u32::MAX.into()) as u32;
                Reply::Data([last.to_be_bytes(), (BLOCK as u32).to_be_bytes()].concat())
            }
            0x28 => self.read(u32_at(c, 2), u16_at(c, 7) as u64, blocks),
            0xa8 => self.read(u32_at(c, 2), u32_at(c, 6), blocks),
            // READ CD: the user's data of a sector, or nothing.
            0xbe => match c[9] & 0xf8 {
                0x10 => self.read(u32_at(c, 2), u32_at(c, 5) & 0xff_ffff, blocks),
                0 => Reply::Done,
                _ => self.fail(ILLEGAL_REQUEST, INVALID_FIELD),
            },
            0x2b if u32_at(c, 2) < blocks => Reply::Done,
            0x2b => self.fail(ILLEGAL_REQUEST, OUT_OF_RANGE),
            0x43 => self.toc(c, blocks),
            // READ DISC INFORMATION: finalised, one session of one track.
            0x51 => {
                let mut d = vec![0; 34];
                (d[1], d[2], d[3], d[4], d[5], d[6]) = (32, 0xe, 1, 1, 1, 1);
                cut(d, u16_at(c, 7))
            }
            _ => self.unknown(c),
        }
    }

    fn read(&mut self, first: u64, n: u64, blocks: u64) -> Reply {
        match n {
            // Both have 32 bits.
            _ if first + n > blocks => self.fail(ILLEGAL_REQUEST, OUT_OF_RANGE),
            0 => Reply::Done,
            _ => Reply::Read { at: first * BLOCK, len: n * BLOCK },
        }
    }

    fn request_sense(&mut self, c: &[u8; PACKET_LEN]) -> Reply {
        let mut d = vec![0; 18];
        (d[0], d[2], d[7], d[12]) = (0x70, self.key, 10, self.code);
        (self.key, self.code) = (0, 0);
        cut(d, c[4].into())
    }

    /// MODE SENSE with headers of 4 or of 8 bytes.
    fn mode_sense(&mut self, c: &[u8; PACKET_LEN], most: usize, header: usize) -> Reply {
        // Error recovery; capabilities: reads CD-R, CD-RW and DVDs, has a tray, can be locked, 4x.
        const RECOVERY: [u8; 8] = [0x01, 6, 0, 5, 0, 0, 0, 0];
        let lock = 1 | if self.locked { 2 } else { 0 };
        let capabilities = [0x2a, 18, 0x3b, 0, 0x70, 0x60, 1 << 5 | 1 << 3 | lock, 0, 2, 0xc2, 0, 2, 0, 0, 2, 0xc2, 0, 0, 0, 0];
        let pages: Vec<u8> = match (c[2] & 0x3f, c[2] >> 6) {
            // Saved values there are none; changeable ones neither.
            (_, 1 | 3) => return self.fail(ILLEGAL_REQUEST, INVALID_FIELD),
            (0x01, _) => RECOVERY.to_vec(),
            (0x2a, _) => capabilities.to_vec(),
            (0x3f, _) => [&RECOVERY[..], &capabilities].concat(),
            _ => return self.fail(ILLEGAL_REQUEST, INVALID_FIELD),
        };
        let mut d = vec![0; header];
        let rest = header + pages.len();
        match header {
            4 => d[0] = (rest - 1) as u8,
            _ => d[1] = (rest - 2) as u8,
        }
        d.extend(pages);
        cut(d, most)
    }

    /// GET EVENT STATUS NOTIFICATION: media, polled.
    fn event(&mut self, c: &[u8; PACKET_LEN], disc: bool) -> Reply {
        const MEDIA: u8 = 4;
        if c[1] & 1 == 0 {
            return self.fail(ILLEGAL_REQUEST, INVALID_FIELD);
        }
        let d = match c[4] & 1 << MEDIA {
            0 => vec![0, 2, 0x80, 1 << MEDIA],
            _ => vec![0, 6, MEDIA, 1 << MEDIA, 0, if disc { 2 } else { 0 }, 0, 0],
        };
        cut(d, u16_at(c, 7))
    }

    /// READ TOC/PMA/ATIP: a single data track.
    fn toc(&mut self, c: &[u8; PACKET_LEN], blocks: u64) -> Reply {
        let in_msf = c[1] & 2 != 0;
        let address = |block: u64| if in_msf { msf(block) } else { (block as u32).to_be_bytes() };
        let track = |number: u8, block: u64| {
            let mut t = vec![0, 0x14, number, 0];
            t.extend(address(block));
            t
        };
        let format = if c[2] & 0xf == 0 { c[9] >> 6 } else { c[2] & 0xf };
        let mut d = vec![0, 0, 1, 1];
        match (format, c[6]) {
            (0, LEAD_OUT) => d.extend(track(LEAD_OUT, blocks)),
            (0, 0 | 1) => d.extend([track(1, 0), track(LEAD_OUT, blocks)].concat()),
            (1, _) => d.extend(track(1, 0)),
            (2, _) => {
                let entry = |point: u8, p: [u8; 3]| vec![1, 0x14, 0, point, 0, 0, 0, 0, p[0], p[1], p[2]];
                let [_, m, s, f] = msf(blocks);
                d.extend([entry(0xa0, [1, 0, 0]), entry(0xa1, [1, 0, 0]), entry(0xa2, [m, s, f]), entry(1, [0, 2, 0])].concat());
            }
            _ => return self.fail(ILLEGAL_REQUEST, INVALID_FIELD),
        }
        let len = (d.len() - 2) as u16;
        d[..2].copy_from_slice(&len.to_be_bytes());
        cut(d, u16_at(c, 7))
    }
}

fn inquiry(c: &[u8; PACKET_LEN], identity: &Identity) -> Reply {
    // A removable CD-ROM drive; ATAPI; 31 bytes follow.
    let mut d = vec![5, 0x80, 0, 0x21, 31, 0, 0, 0];
    let mut text = |s: &str, len: usize| d.extend(s.bytes().chain(std::iter::repeat(b' ')).take(len));
    let (vendor, product) = identity.model.split_once(' ').unwrap_or(("", &identity.model));
    text(vendor, 8);
    text(product, 16);
    text("1.0", 4);
    cut(d, u16_at(c, 3))
}

/// GET CONFIGURATION: the profiles, and what each removable drive has.
fn configuration(c: &[u8; PACKET_LEN], bytes: Option<u64>) -> Reply {
    let current = match bytes {
        Some(b) if b > CD_BYTES => PROFILE_DVD,
        Some(_) => PROFILE_CD,
        None => 0,
    };
    let mut d = vec![0; 6];
    d.extend(current.to_be_bytes());
    let on = |profile: u16| u8::from(profile == current);
    // Profile list; core (interface: ATAPI); removable medium with a tray.
    let list: [(u16, Vec<u8>); 3] = [
        (0, vec![0, 0, 3, 8, 0, PROFILE_DVD as u8, on(PROFILE_DVD), 0, 0, PROFILE_CD as u8, on(PROFILE_CD), 0]),
        (1, vec![0, 1, 0xb, 8, 0, 0, 0, 2, 1, 0, 0, 0]),
        (3, vec![0, 3, 3, 4, 0x29, 0, 0, 0]),
    ];
    let (kind, first) = (c[1] & 3, u16_at(c, 2) as u16);
    let wanted = |n: u16| if kind == 2 { n == first } else { n >= first };
    list.into_iter().filter(|(n, _)| wanted(*n)).for_each(|(_, f)| d.extend(f));
    let len = (d.len() - 4) as u32;
    d[..4].copy_from_slice(&len.to_be_bytes());
    cut(d, u16_at(c, 7))
}
