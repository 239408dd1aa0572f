//! IDENTIFY DEVICE and IDENTIFY PACKET DEVICE data (ATA8-ACS, tables of both commands).

use super::disk::{MAX_MULTIPLE, MAX_TRIM_SECTORS, QUEUE_DEPTH, chs};
use crate::block::{Geometry, SECTOR};

/// Names that a device tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// 20 characters at most.
    pub serial: String,
    /// 40 characters at most.
    pub model: String,
}

const FIRMWARE: &str = "1.0";
/// Word 49: DMA, LBA, IORDY.
const CAPABILITIES: u16 = 1 << 8 | 1 << 9 | 1 << 11;
/// Word 53: words 54-58, 64-70 and 88 are valid.
const VALID: u16 = 7;
/// Cycle time of PIO and multiword DMA, ns.
const CYCLE_NS: u16 = 120;
/// Word 80: ATA-4 to ATA8-ACS.
const VERSIONS: u16 = 0x1f0;
/// Words 83, 84 and 87: always 01 at the top.
const MARK: u16 = 1 << 14;
/// Word 83: 48-bit addresses, FLUSH CACHE, FLUSH CACHE EXT.
const SETS_83: u16 = 1 << 10 | 1 << 12 | 1 << 13;
/// Word 84: WRITE DMA FUA EXT.
const SETS_84: u16 = 1 << 6;
/// Word 82: write cache; look-ahead.
const WRITE_CACHE: u16 = 1 << 5;
/// Word 82 of packet devices: PACKET, DEVICE RESET.
const PACKET_SETS: u16 = 1 << 4 | 1 << 9;

struct Words([u16; 256]);

impl Words {
    fn set(&mut self, list: &[(usize, u16)]) {
        list.iter().for_each(|(at, v)| self.0[*at] = *v);
    }

    fn number(&mut self, at: usize, words: usize, value: u64) {
        (0..words).for_each(|i| self.0[at + i] = (value >> (16 * i)) as u16);
    }

    /// Two characters a word, the first one high.
    fn text(&mut self, at: usize, words: usize, text: &str) {
        let mut bytes = text.bytes().map(|b| if b.is_ascii_graphic() { b } else { b' ' }).chain(std::iter::repeat(b' '));
        for w in &mut self.0[at..at + words] {
            let mut next = || u16::from(bytes.next().unwrap_or(b' '));
            *w = next() << 8 | next();
        }
    }

    fn names(&mut self, identity: &Identity) {
        self.text(10, 10, &identity.serial);
        self.text(23, 4, FIRMWARE);
        self.text(27, 20, &identity.model);
    }

    /// Modes of DMA: which there are, and in the upper half which is set.
    fn modes(&mut self, mode: u8) {
        let set = |base: u8| if mode & 0xf8 == base { 1u16 << (8 + (mode & 7)) } else { 0 };
        self.set(&[(63, 7 | set(0x20)), (64, 3), (65, CYCLE_NS), (66, CYCLE_NS), (67, CYCLE_NS), (68, CYCLE_NS)]);
        self.set(&[(88, 0x3f | set(0x40))]);
    }

    /// On a parallel cable: an 80-conductor one, device 0. On a serial one: generations 1 and 2, with queued commands or without.
    fn cable(&mut self, sata: bool, queued: bool) {
        if sata {
            self.set(&[(76, 1 << 1 | 1 << 2 | if queued { 1 << 8 } else { 0 })]);
        } else {
            self.set(&[(93, MARK | 1 << 13 | 1)]);
        }
    }

    fn bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|w| w.to_le_bytes()).collect()
    }
}

/// Of a disk. `multiple`: sectors of a block of READ MULTIPLE, or 0.
pub fn disk(g: &Geometry, identity: &Identity, multiple: u8, write_back: bool, mode: u8, sata: bool) -> Vec<u8> {
    let mut w = Words([0; 256]);
    let sectors = g.bytes / SECTOR;
    let (cylinders, heads, per_track) = chs(g);
    let cache = if write_back { WRITE_CACHE } else { 0 };
    w.names(identity);
    w.set(&[(0, 0x40), (1, cylinders), (3, heads), (6, per_track), (47, 0x8000 | u16::from(MAX_MULTIPLE))]);
    w.set(&[(49, CAPABILITIES), (50, MARK), (53, VALID), (54, cylinders), (55, heads), (56, per_track)]);
    w.number(57, 2, u64::from(cylinders) * u64::from(heads) * u64::from(per_track));
    if multiple > 0 {
        w.set(&[(59, 0x100 | u16::from(multiple))]);
    }
    w.number(60, 2, sectors.min(0xfff_ffff));
    w.modes(mode);
    w.set(&[(80, VERSIONS), (82, WRITE_CACHE), (83, MARK | SETS_83), (84, MARK | SETS_84)]);
    w.set(&[(85, cache), (86, SETS_83), (87, MARK | SETS_84)]);
    w.number(100, 4, sectors);
    if g.discard && !g.read_only {
        // DATA SET MANAGEMENT: sectors of ranges; TRIM.
        w.set(&[(105, MAX_TRIM_SECTORS), (169, 1)]);
    }
    if sata {
        w.set(&[(75, u16::from(QUEUE_DEPTH) - 1)]);
    }
    w.cable(sata, true);
    w.bytes()
}

/// Of a CD-ROM drive.
pub fn packet(identity: &Identity, mode: u8, sata: bool) -> Vec<u8> {
    let mut w = Words([0; 256]);
    w.names(identity);
    // A packet device of type 5, removable, which asks for its command within 50 µs; 12-byte commands.
    w.set(&[(0, 0x85c0), (49, CAPABILITIES), (50, MARK), (53, VALID)]);
    w.modes(mode);
    w.set(&[(80, VERSIONS), (82, PACKET_SETS), (83, MARK), (84, MARK), (85, PACKET_SETS), (87, MARK)]);
    w.cable(sata, false);
    w.bytes()
}
