//! One 8259A: command words, priorities, in-service bits (8259A data sheet).

use super::pic_image::ChipImage;
use serde::{Deserialize, Serialize};
use vm_core::dlog;

/// ICW1 (recognised by D4), OCW2 and OCW3 (D3) share the address A0 = 0.
const ICW1: u8 = 0x10;
const ICW1_IC4: u8 = 0x01;
const ICW1_SNGL: u8 = 0x02;
const ICW4_UPM: u8 = 0x01;
const ICW4_AEOI: u8 = 0x02;
const ICW4_SFNM: u8 = 0x10;
const OCW3: u8 = 0x08;
const OCW3_RIS: u8 = 0x01;
const OCW3_RR: u8 = 0x02;
const OCW3_POLL: u8 = 0x04;
const OCW3_SMM: u8 = 0x20;
const OCW3_ESMM: u8 = 0x40;

/// OCW2 bits 7:5 (R, SL, EOI).
mod ocw2 {
    pub const CLEAR_ROTATE_AEOI: u8 = 0b000;
    pub const EOI: u8 = 0b001;
    pub const NOP: u8 = 0b010;
    pub const SPECIFIC_EOI: u8 = 0b011;
    pub const SET_ROTATE_AEOI: u8 = 0b100;
    pub const ROTATE_EOI: u8 = 0b101;
    pub const SET_PRIORITY: u8 = 0b110;
}

/// The word expected next at A0 = 1.
#[derive(Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
enum Expect {
    #[default]
    Ocw1,
    Icw2,
    Icw3,
    Icw4,
}

/// Registers of one chip, which are also its saved state.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct ChipState {
    /// Input pins.
    lines: u8,
    /// Edges seen and not yet accepted.
    edges: u8,
    /// Level-triggered inputs (ELCR).
    elcr: u8,
    imr: u8,
    isr: u8,
    /// The level of lowest priority.
    lowest: u8,
    icw1: u8,
    icw2: u8,
    icw3: u8,
    icw4: u8,
    expect: Expect,
    read_isr: bool,
    poll: bool,
    special_mask: bool,
    rotate_aeoi: bool,
}

pub(super) struct Chip(ChipState);

impl Default for Chip {
    fn default() -> Self {
        Self(ChipState {
            lines: 0,
            edges: 0,
            elcr: 0,
            imr: 0,
            isr: 0,
            lowest: 7,
            icw1: 0,
            icw2: 0,
            icw3: 0,
            icw4: 0,
            expect: Expect::Ocw1,
            read_isr: false,
            poll: false,
            special_mask: false,
            rotate_aeoi: false,
        })
    }
}

impl Chip {
    pub(super) fn state(&self) -> ChipState {
        self.0.clone()
    }

    pub(super) fn from_state(s: ChipState) -> Option<Self> {
        (s.lowest < 8).then_some(Self(s))
    }

    /// An edge stays latched until it is accepted or ICW1 clears it: an emulated pulse has no length, so unlike the
    /// chip we cannot ask that the input be still high at INTA.
    ///
    /// Whether the level has changed.
    pub(super) fn set_line(&mut self, level: u8, high: bool) -> bool {
        let bit = bit(level);
        let changed = high != (self.0.lines & bit != 0);
        if !high {
            self.0.lines &= !bit;
        } else if self.0.lines & bit == 0 {
            self.0.lines |= bit;
            self.0.edges |= bit;
        }
        changed
    }

    /// What software and another model can see.
    pub(super) fn image(&self) -> ChipImage {
        let s = &self.0;
        ChipImage {
            lines: s.lines,
            irr: self.irr(),
            imr: s.imr,
            isr: s.isr,
            top: self.top(),
            vectors: s.icw2 & 0xf8,
            read_isr: s.read_isr,
            poll: s.poll,
            special_mask: s.special_mask,
            expect: s.expect as u8,
            auto_eoi: s.icw4 & ICW4_AEOI != 0,
            rotate_aeoi: s.rotate_aeoi,
            nested: s.icw4 & ICW4_SFNM != 0,
            icw4: s.icw1 & ICW1_IC4 != 0,
            elcr: s.elcr,
        }
    }

    /// Takes an image over, but for the inputs' levels, which are known here.
    pub(super) fn set_image(&mut self, i: &ChipImage) {
        let s = &mut self.0;
        (s.edges, s.elcr, s.imr, s.isr) = (i.irr & !i.elcr, i.elcr, i.imr, i.isr);
        s.lowest = i.top.wrapping_sub(1) & 7;
        s.icw2 = i.vectors & 0xf8 | s.icw2 & 7;
        (s.read_isr, s.poll, s.special_mask, s.rotate_aeoi) = (i.read_isr, i.poll, i.special_mask, i.rotate_aeoi);
        s.expect = [Expect::Ocw1, Expect::Icw2, Expect::Icw3, Expect::Icw4][usize::from(i.expect & 3)];
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        s.icw4 = s.icw4 & !(ICW4_AEOI | ICW4_SFNM) | flag(i.auto_eoi, ICW4_AEOI) | flag(i.nested, ICW4_SFNM);
        s.icw1 = s.icw1 & !(ICW1_IC4 | ICW1_SNGL) | flag(i.icw4, ICW1_IC4);
    }

    /// ICW3, where special fully nested mode asks for it.
    pub(super) fn wired(&mut self, icw3: u8) {
        if self.0.icw4 & ICW4_SFNM != 0 {
            self.0.icw3 = icw3;
        }
    }

    pub(super) fn elcr(&self) -> u8 {
        self.0.elcr
    }

    pub(super) fn set_elcr(&mut self, v: u8) {
        // A level input has no edge memory; one that turns into an edge input needs a new edge.
        self.0.edges &= !(self.0.elcr ^ v);
        self.0.elcr = v;
    }

    pub(super) fn single(&self) -> bool {
        self.0.icw1 & ICW1_SNGL != 0
    }

    pub(super) fn polled(&self) -> bool {
        self.0.poll
    }

    pub(super) fn vector(&self, level: u8) -> u8 {
        (self.0.icw2 & 0xf8) | (level & 7)
    }

    fn irr(&self) -> u8 {
        (self.0.edges & !self.0.elcr) | (self.0.lines & self.0.elcr)
    }

    /// The set level of highest priority, as its distance from the top (0..=7); 8 if `set` is empty.
    fn rank(&self, set: u8) -> u32 {
        set.rotate_right(u32::from(self.top())).trailing_zeros()
    }

    fn top(&self) -> u8 {
        (self.0.lowest + 1) & 7
    }

    fn level_of(&self, rank: u32) -> u8 {
        (self.top() + (rank & 7) as u8) & 7
    }

    /// In-service levels that hold back others: not the masked ones in special mask mode.
    fn blocking(&self) -> u8 {
        if self.0.special_mask { self.0.isr & !self.0.imr } else { self.0.isr }
    }

    /// The request to be signalled on INT, if any.
    pub(super) fn pending(&self) -> Option<u8> {
        let request = self.rank(self.irr() & !self.0.imr);
        let service = self.rank(self.blocking());
        // Special fully nested mode: a chip in service does not hold back its own further requests. Only the
        // master is given this mode; its slave is on the levels named in ICW3.
        let same = self.0.icw4 & ICW4_SFNM != 0 && self.0.icw3 & bit(self.level_of(request)) != 0;
        (request < 8 && (request < service || (same && request == service))).then(|| self.level_of(request))
    }

    /// INTA for `level`.
    pub(super) fn accept(&mut self, level: u8) {
        self.0.edges &= !bit(level);
        if self.0.icw4 & ICW4_AEOI == 0 {
            self.0.isr |= bit(level);
        } else if self.0.rotate_aeoi {
            self.0.lowest = level;
        }
    }

    pub(super) fn read(&mut self, a0: bool) -> u8 {
        if std::mem::take(&mut self.0.poll) {
            let Some(level) = self.pending() else { return 0 };
            self.accept(level);
            return 0x80 | level;
        }
        match a0 {
            true => self.0.imr,
            false if self.0.read_isr => self.0.isr,
            false => self.irr(),
        }
    }

    pub(super) fn write(&mut self, a0: bool, v: u8) {
        match a0 {
            true => self.write_sequence(v),
            false if v & ICW1 != 0 => self.write_icw1(v),
            false if v & OCW3 != 0 => self.write_ocw3(v),
            false => self.write_ocw2(v),
        }
    }

    /// 8259A: ICW1 clears the edge memory, IMR and special mask, selects IRR and makes IR7 lowest. LTIM is ignored, as
    /// ELCR replaces it (82371SB ICW1).
    fn write_icw1(&mut self, v: u8) {
        let s = &self.0;
        self.0 = ChipState { lines: s.lines, elcr: s.elcr, icw2: s.icw2, icw3: s.icw3, ..Chip::default().0 };
        self.0.icw1 = v;
        self.0.expect = Expect::Icw2;
    }

    fn write_sequence(&mut self, v: u8) {
        let icw4 = if self.0.icw1 & ICW1_IC4 != 0 { Expect::Icw4 } else { Expect::Ocw1 };
        self.0.expect = match self.0.expect {
            Expect::Ocw1 => {
                self.0.imr = v;
                Expect::Ocw1
            }
            Expect::Icw2 => {
                self.0.icw2 = v;
                if self.single() { icw4 } else { Expect::Icw3 }
            }
            Expect::Icw3 => {
                self.0.icw3 = v;
                icw4
            }
            Expect::Icw4 => {
                if v & ICW4_UPM == 0 {
                    dlog!(UNIMP, "pic: ICW4 {v:#x} asks for MCS-80 mode; vectors are 8086's");
                }
                self.0.icw4 = v;
                Expect::Ocw1
            }
        };
    }

    fn write_ocw2(&mut self, v: u8) {
        let level = v & 7;
        match v >> 5 {
            ocw2::NOP => {}
            ocw2::SET_ROTATE_AEOI => self.0.rotate_aeoi = true,
            ocw2::CLEAR_ROTATE_AEOI => self.0.rotate_aeoi = false,
            ocw2::SET_PRIORITY => self.0.lowest = level,
            ocw2::SPECIFIC_EOI => self.0.isr &= !bit(level),
            op @ (ocw2::EOI | ocw2::ROTATE_EOI) => {
                // In special mask mode a masked in-service bit is out of a non-specific EOI's reach.
                let rank = self.rank(self.blocking());
                if rank < 8 {
                    self.end(self.level_of(rank), op == ocw2::ROTATE_EOI);
                }
            }
            _ => self.end(level, true),
        }
    }

    fn end(&mut self, level: u8, rotate: bool) {
        self.0.isr &= !bit(level);
        if rotate {
            self.0.lowest = level;
        }
    }

    fn write_ocw3(&mut self, v: u8) {
        if v & OCW3_ESMM != 0 {
            self.0.special_mask = v & OCW3_SMM != 0;
        }
        if v & OCW3_POLL != 0 {
            self.0.poll = true;
        } else if v & OCW3_RR != 0 {
            self.0.read_isr = v & OCW3_RIS != 0;
        }
    }
}

fn bit(level: u8) -> u8 {
    1 << (level & 7)
}
