//! Video memory: four planes of 64 KiB behind the sequencer's and the graphics controller's address and data paths (IBM VGA
//! technical reference, "Video Memory Organization", "Graphics Controller").

use super::font;
use super::regs::{Regs, gc, seq};
use serde::{Deserialize, Serialize};

const PLANE: usize = 0x1_0000;
/// Bytes of a piece of saved state.
const PIECE: usize = 1024;

/// Bytes of the planes, those of one address together.
pub struct Vram(Vec<[u8; 4]>);

/// What differs from power-on: index of a piece and its bytes in hexadecimal.
#[derive(Serialize, Deserialize)]
pub struct SavedVram(Vec<(u16, String)>);

/// Which bytes an access of the CPU means.
struct Place {
    at: usize,
    /// Planes that it may write.
    planes: u8,
    /// Plane that it reads.
    read: usize,
}

impl Default for Vram {
    /// Blanks, grey on black, and the font in plane 2, as a BIOS leaves them.
    fn default() -> Self {
        let mut v = vec![[b' ', 7, 0, 0]; PLANE];
        for (n, glyph) in font::glyphs().iter().enumerate() {
            for (row, bits) in glyph.iter().enumerate() {
                v[n * font::SLOT + row][2] = *bits;
            }
        }
        Self(v)
    }
}

/// Offset in the window of an address from A0000h on, if it lies there.
fn window(r: &Regs, offset: u64) -> Option<usize> {
    let (start, len) = match r.gc[gc::MISC] >> 2 & 3 {
        0 => (0, 0x2_0000),
        1 => (0, 0x1_0000),
        2 => (0x1_0000, 0x8000),
        _ => (0x1_8000, 0x8000),
    };
    offset.checked_sub(start).filter(|o| *o < len).map(|o| o as usize)
}

fn place(r: &Regs, offset: u64) -> Option<Place> {
    let at = window(r, offset)? % PLANE;
    let mask = r.seq[seq::MAP_MASK] & 0xf;
    let read = usize::from(r.gc[gc::READ_MAP] & 3);
    Some(if r.seq[seq::MODE] & seq::MODE_CHAIN4 != 0 {
        Place { at: at & !3, planes: mask & 1 << (at & 3), read: at & 3 }
    } else if r.seq[seq::MODE] & seq::MODE_SEQUENTIAL == 0 || r.gc[gc::MODE] & gc::MODE_ODD_EVEN != 0 {
        Place { at: at & !1, planes: mask & 5 << (at & 1), read: read & 2 | at & 1 }
    } else {
        Place { at, planes: mask, read }
    })
}

impl Vram {
    pub fn bytes(&self, at: usize) -> [u8; 4] {
        self.0[at % PLANE]
    }

    /// A byte at `offset` from A0000h, without side effects.
    pub fn peek(&self, r: &Regs, offset: u64) -> Option<u8> {
        place(r, offset).map(|p| self.0[p.at][p.read])
    }

    /// The same as the CPU reads it: fills the latches.
    pub fn read(&self, r: &mut Regs, offset: u64) -> u8 {
        let Some(p) = place(r, offset) else { return 0xff };
        r.latch = self.0[p.at];
        if r.gc[gc::MODE] & gc::MODE_READ_COMPARE == 0 {
            return r.latch[p.read];
        }
        // Ones where all planes that are cared for have the colour.
        (0..4).filter(|n| r.gc[gc::DONT_CARE] >> n & 1 == 1).fold(0xff, |same, n| {
            let colour = if r.gc[gc::COMPARE] >> n & 1 == 1 { 0xff } else { 0 };
            same & !(r.latch[n] ^ colour)
        })
    }

    pub fn write(&mut self, r: &Regs, offset: u64, value: u8) {
        let Some(p) = place(r, offset) else { return };
        let cell = &mut self.0[p.at];
        for (n, byte) in cell.iter_mut().enumerate().filter(|(n, _)| p.planes >> n & 1 == 1) {
            *byte = data(r, n, value);
        }
    }

    pub fn save(&self) -> SavedVram {
        let fresh = Self::default();
        let pieces = self.0.chunks(PIECE / 4).zip(fresh.0.chunks(PIECE / 4)).enumerate();
        let hex = |p: &[[u8; 4]]| p.iter().flatten().map(|b| format!("{b:02x}")).collect();
        SavedVram(pieces.filter(|(_, (now, was))| now != was).map(|(i, (now, _))| (i as u16, hex(now))).collect())
    }

    /// `None`: not what `save` gives.
    pub fn load(saved: &SavedVram) -> Option<Self> {
        let mut v = Self::default();
        for (i, text) in &saved.0 {
            let piece = v.0.chunks_mut(PIECE / 4).nth(usize::from(*i))?;
            if text.len() != 2 * PIECE || !text.is_ascii() {
                return None;
            }
            for (k, byte) in piece.iter_mut().flatten().enumerate() {
                *byte = u8::from_str_radix(text.get(2 * k..2 * k + 2)?, 16).ok()?;
            }
        }
        Some(v)
    }
}

/// What plane `n` gets for a byte of the CPU: write modes 0 to 3.
fn data(r: &Regs, n: usize, value: u8) -> u8 {
    let full = |bits: u8| if bits >> n & 1 == 1 { 0xff } else { 0 };
    let latch = r.latch[n];
    let rotated = value.rotate_right(u32::from(r.gc[gc::ROTATE] & 7));
    let (source, mask) = match r.gc[gc::MODE] & 3 {
        0 if r.gc[gc::ENABLE_SET_RESET] >> n & 1 == 1 => (full(r.gc[gc::SET_RESET]), r.gc[gc::BIT_MASK]),
        0 => (rotated, r.gc[gc::BIT_MASK]),
        1 => return latch,
        2 => (full(value), r.gc[gc::BIT_MASK]),
        _ => (full(r.gc[gc::SET_RESET]), r.gc[gc::BIT_MASK] & rotated),
    };
    let mixed = match r.gc[gc::ROTATE] >> 3 & 3 {
        0 => source,
        1 => source & latch,
        2 => source | latch,
        _ => source ^ latch,
    };
    mixed & mask | latch & !mask
}
