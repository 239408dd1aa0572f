//! The picture of a text mode (IBM VGA technical reference, "Alphanumeric Modes").

use super::Vga;
use super::regs::{attr, crtc, gc, seq};

/// Rows of dots, three bytes each: red, green, blue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    pub width: usize,
    pub height: usize,
    pub rgb: Vec<u8>,
}

impl Picture {
    /// As a file: portable pixmap, binary.
    pub fn to_ppm(&self) -> Vec<u8> {
        let mut out = format!("P6\n{} {}\n255\n", self.width, self.height).into_bytes();
        out.extend(&self.rgb);
        out
    }
}

/// How a text screen is laid out.
pub struct Layout {
    pub columns: usize,
    pub rows: usize,
    /// Lines and dots of a character.
    lines: usize,
    dots: usize,
    /// First character, and characters from one row to the next.
    start: usize,
    stride: usize,
}

/// Line-drawing characters, whose ninth dot repeats the eighth.
const LINE_DRAWING: std::ops::RangeInclusive<u8> = 0xc0..=0xdf;

impl Vga {
    /// `None` in graphics modes.
    pub fn layout(&self) -> Option<Layout> {
        let (r, c) = (&self.regs, &self.regs.crtc);
        if r.gc[gc::MISC] & gc::MISC_GRAPHICS != 0 {
            return None;
        }
        let overflow = usize::from(c[crtc::OVERFLOW]);
        let height = (usize::from(c[crtc::V_DISPLAY_END]) | (overflow >> 1 & 1) << 8 | (overflow >> 6 & 1) << 9) + 1;
        let lines = usize::from(c[crtc::MAX_SCAN_LINE] & 31) + 1;
        Some(Layout {
            columns: usize::from(c[crtc::H_DISPLAY_END]) + 1,
            rows: (height / lines).max(1),
            lines,
            dots: if r.seq[seq::CLOCKING] & seq::CLOCKING_8_DOTS != 0 { 8 } else { 9 },
            start: self.crtc_word(crtc::START),
            stride: usize::from(c[crtc::OFFSET]) * 2,
        })
    }

    fn crtc_word(&self, high: usize) -> usize {
        usize::from(self.regs.crtc[high]) << 8 | usize::from(self.regs.crtc[high + 1])
    }

    /// Character and attribute at a place of the screen; text modes use every other byte of the planes.
    fn cell(&self, l: &Layout, row: usize, column: usize) -> (u8, u8) {
        let [character, attribute, ..] = self.vram.bytes((l.start + row * l.stride + column) * 2);
        (character, attribute)
    }

    /// The characters of a text screen, row by row.
    pub fn text(&self) -> Option<Vec<Vec<u8>>> {
        let l = self.layout()?;
        Some((0..l.rows).map(|y| (0..l.columns).map(|x| self.cell(&l, y, x).0).collect()).collect())
    }

    /// What a monitor would show; `None` in graphics modes, which are not drawn.
    pub fn picture(&self) -> Option<Picture> {
        let l = self.layout()?;
        let (width, height) = (l.columns * l.dots, l.rows * l.lines);
        let mut rgb = vec![0; width * height * 3];
        let off = self.regs.seq[seq::CLOCKING] & seq::CLOCKING_SCREEN_OFF != 0;
        let colours: Vec<[u8; 3]> = (0..16).map(|i| self.colour(i)).collect();
        for (row, column) in (0..l.rows).flat_map(|y| (0..l.columns).map(move |x| (y, x))).filter(|_| !off) {
            let (character, attribute) = self.cell(&l, row, column);
            let background = if self.blinks() { attribute >> 4 & 7 } else { attribute >> 4 };
            let pair = [colours[usize::from(background)], colours[usize::from(attribute & 15)]];
            let cursor = self.cursor_lines(&l, row, column);
            for line in 0..l.lines {
                let bits = if cursor.contains(&line) { 0x1ff } else { self.glyph_line(character, attribute, line) };
                let at = ((row * l.lines + line) * width + column * l.dots) * 3;
                for (dot, out) in rgb[at..at + l.dots * 3].as_chunks_mut::<3>().0.iter_mut().enumerate() {
                    *out = pair[usize::from(bits >> (8 - dot) & 1)];
                }
            }
        }
        Some(Picture { width, height, rgb })
    }

    fn blinks(&self) -> bool {
        self.regs.attr[attr::MODE] & attr::MODE_BLINK != 0
    }

    /// Nine dots of a line of a character, the first in bit 8.
    fn glyph_line(&self, character: u8, attribute: u8, line: usize) -> u16 {
        // Bit 3 of the attribute chooses between two fonts: bits 5, 3:2 and 4, 1:0.
        let select = self.regs.seq[seq::FONTS];
        let font = if attribute & 8 != 0 { select >> 2 & 3 | select >> 3 & 4 } else { select & 3 | select >> 2 & 4 };
        // Fonts 0 to 3 are 16 KiB apart, 4 to 7 lie 8 KiB behind them.
        let base = usize::from(font & 3) * 0x4000 + usize::from(font >> 2) * 0x2000;
        let bits = u16::from(self.vram.bytes(base + usize::from(character) * 32 + line)[2]);
        let repeats = self.regs.attr[attr::MODE] & attr::MODE_LINE != 0 && LINE_DRAWING.contains(&character);
        bits << 1 | if repeats { bits & 1 } else { 0 }
    }

    /// Lines of this place that the cursor covers.
    fn cursor_lines(&self, l: &Layout, row: usize, column: usize) -> std::ops::Range<usize> {
        let c = &self.regs.crtc;
        let here = self.crtc_word(crtc::CURSOR) == (l.start + row * l.stride + column) & 0xffff;
        if !here || c[crtc::CURSOR_START] & crtc::CURSOR_OFF != 0 {
            return 0..0;
        }
        usize::from(c[crtc::CURSOR_START] & 31)..usize::from(c[crtc::CURSOR_END] & 31) + 1
    }

    /// Attribute colour `i` (below 16) through palette and DAC, values to 255.
    fn colour(&self, i: usize) -> [u8; 3] {
        let r = &self.regs;
        let (palette, select) = (r.attr[i & 15] & 0x3f, r.attr[attr::COLOR_SELECT]);
        let n = if r.attr[attr::MODE] & attr::MODE_P54 != 0 { palette & 0xf | select << 4 } else { palette | select << 4 & 0xc0 };
        let at = usize::from(n & r.dac_mask) * 3;
        [0, 1, 2].map(|k| r.dac[at + k] << 2 | r.dac[at + k] >> 4)
    }
}
