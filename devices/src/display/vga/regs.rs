//! Registers of the VGA (IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem"), and what they hold in mode 3.

use serde::{Deserialize, Serialize};

/// Miscellaneous output: the CRTC is at 3D4h, not 3B4h.
pub const MISC_COLOR: u8 = 1;

/// Sequencer.
pub mod seq {
    pub const CLOCKING: usize = 1;
    /// Characters are 8 dots wide, not 9.
    pub const CLOCKING_8_DOTS: u8 = 1;
    pub const CLOCKING_SCREEN_OFF: u8 = 1 << 5;
    pub const MAP_MASK: usize = 2;
    pub const FONTS: usize = 3;
    pub const MODE: usize = 4;
    /// Accesses are not odd/even.
    pub const MODE_SEQUENTIAL: u8 = 1 << 2;
    pub const MODE_CHAIN4: u8 = 1 << 3;
    pub const COUNT: usize = 5;
}

/// CRT controller.
pub mod crtc {
    pub const H_DISPLAY_END: usize = 1;
    pub const OVERFLOW: usize = 7;
    pub const MAX_SCAN_LINE: usize = 9;
    pub const CURSOR_START: usize = 0xa;
    pub const CURSOR_OFF: u8 = 1 << 5;
    pub const CURSOR_END: usize = 0xb;
    pub const START: usize = 0xc;
    pub const CURSOR: usize = 0xe;
    pub const V_RETRACE_END: usize = 0x11;
    /// Registers 0 to 7 cannot be written.
    pub const PROTECT: u8 = 1 << 7;
    pub const V_DISPLAY_END: usize = 0x12;
    pub const OFFSET: usize = 0x13;
    pub const COUNT: usize = 0x19;
}

/// Graphics controller.
pub mod gc {
    pub const SET_RESET: usize = 0;
    pub const ENABLE_SET_RESET: usize = 1;
    pub const COMPARE: usize = 2;
    pub const ROTATE: usize = 3;
    pub const READ_MAP: usize = 4;
    pub const MODE: usize = 5;
    pub const MODE_READ_COMPARE: u8 = 1 << 3;
    pub const MODE_ODD_EVEN: u8 = 1 << 4;
    pub const MISC: usize = 6;
    pub const MISC_GRAPHICS: u8 = 1;
    pub const DONT_CARE: usize = 7;
    pub const BIT_MASK: usize = 8;
    pub const COUNT: usize = 9;
}

/// Attribute controller.
pub mod attr {
    /// Of the index: the palette is in use, not open to the CPU.
    pub const PALETTE_IN_USE: u8 = 1 << 5;
    pub const MODE: usize = 0x10;
    /// The ninth dot of line-drawing characters repeats the eighth.
    pub const MODE_LINE: u8 = 1 << 2;
    /// The highest attribute bit blinks rather than brightens the background.
    pub const MODE_BLINK: u8 = 1 << 3;
    pub const MODE_P54: u8 = 1 << 7;
    pub const COLOR_SELECT: usize = 0x14;
    pub const COUNT: usize = 0x15;
}

/// All registers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regs {
    pub misc: u8,
    pub feature: u8,
    pub seq_index: u8,
    pub seq: [u8; seq::COUNT],
    pub crtc_index: u8,
    pub crtc: [u8; crtc::COUNT],
    pub gc_index: u8,
    pub gc: [u8; gc::COUNT],
    pub attr_index: u8,
    pub attr: [u8; attr::COUNT],
    /// The next write to 3C0h is data.
    pub attr_data: bool,
    pub dac_mask: u8,
    pub dac_read: u8,
    pub dac_write: u8,
    /// The last index written was for reading.
    pub dac_reading: bool,
    /// Which of red, green and blue is next: 0 to 2.
    pub dac_part: u8,
    /// 256 colours of three values below 64.
    pub dac: Vec<u8>,
    pub latch: [u8; 4],
    /// Index of the Bochs display interface.
    #[serde(default)]
    pub dispi_index: u16,
}

/// Mode 3: 80 by 25 characters of 9 by 16 dots, 16 colours. There is no VGA BIOS to set it.
impl Default for Regs {
    fn default() -> Self {
        let mut crtc = [0; crtc::COUNT];
        // 100 characters a line, 80 of them shown; 449 lines, 400 of them shown.
        crtc[..10].copy_from_slice(&[95, 79, 80, 130, 85, 129, 191, 31, 0, 79]);
        // A cursor of the last two lines but one.
        crtc[crtc::CURSOR_START..=crtc::CURSOR_END].copy_from_slice(&[13, 14]);
        crtc[0x10..].copy_from_slice(&[156, 142, 143, 40, 31, 150, 185, 163, 255]);
        let mut attr = [0; attr::COUNT];
        for (i, a) in (0u8..16).zip(&mut attr) {
            // Bright colours are the primary and the secondary bits together; brown has half of its green.
            *a = match i {
                6 => 0x14,
                8.. => i + 0x30,
                _ => i,
            };
        }
        attr[attr::MODE] = attr::MODE_LINE | attr::MODE_BLINK;
        (attr[0x12], attr[0x13]) = (0xf, 8);
        let mut gc = [0; gc::COUNT];
        // B8000h, odd/even.
        (gc[gc::MODE], gc[gc::MISC], gc[gc::DONT_CARE], gc[gc::BIT_MASK]) = (gc::MODE_ODD_EVEN, 0xe, 0xf, 0xff);
        Self {
            misc: 0x67,
            feature: 0,
            seq_index: 0,
            seq: [3, 0, 3, 0, 2],
            crtc_index: 0,
            crtc,
            gc_index: 0,
            gc,
            attr_index: attr::PALETTE_IN_USE,
            attr,
            attr_data: false,
            dac_mask: 0xff,
            dac_read: 0,
            dac_write: 0,
            dac_reading: false,
            dac_part: 0,
            dac: default_dac(),
            latch: [0; 4],
            dispi_index: 0,
        }
    }
}

/// Colours 0 to 63 as an EGA mixes them: bits 2:0 are two thirds of red, green and blue, bits 5:3 one third.
fn default_dac() -> Vec<u8> {
    let level = |i: u8, n: u8| (i >> n & 1) * 42 + (i >> (n + 3) & 1) * 21;
    (0..=255u8).flat_map(|i| if i < 64 { [level(i, 2), level(i, 1), level(i, 0)] } else { [0; 3] }).collect()
}

impl Regs {
    /// Does what loaded state says stay within the registers' ranges?
    pub fn plausible(&self) -> bool {
        self.dac.len() == 768 && self.dac.iter().all(|v| *v < 64) && self.dac_part < 3
    }
}
