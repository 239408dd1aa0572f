//! VGA (IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem"): all registers and the memory's data paths; pictures of
//! text modes. Without a VGA BIOS the registers hold mode 3 from power-on. Of the Bochs display interface (VBE extensions) there is what
//! a VGA BIOS needs to see that no VBE mode is there.

mod font;
mod memory;
mod regs;
#[cfg(test)]
mod tests;
mod text;

pub use text::{Layout, Picture};

use memory::{SavedVram, Vram};
use regs::{MISC_COLOR, Regs, attr, crtc, gc};
use serde::{Deserialize, Serialize};
use vm_core::clock::Clock;
use vm_core::{Device, LoadError, Mmio, PortIo, Section, dlog};

/// Video memory in the physical address space.
pub const MEMORY: u64 = 0xa_0000;
pub const MEMORY_LEN: u64 = 0x2_0000;
/// Port ranges: (first, number); a range's place here is its region.
pub const PORTS: [(u16, u16); 6] = [(0x3b4, 2), (0x3ba, 1), (0x3c0, 16), (0x3d4, 2), (0x3da, 1), (0x1ce, 3)];
/// Region of the Bochs display interface, whose ports are words: index and data, both at places of their own.
const REGION_DISPI: u32 = 5;

const VERSION: u32 = 1;
/// A line at 28.322 MHz with 900 dots; 449 of them a picture.
const LINE_NS: u64 = 31_778;
const LINES: u64 = 449;
const LINES_SHOWN: u64 = 400;
/// Input status 1.
const STATUS_BLANK: u8 = 1;
const STATUS_RETRACE: u8 = 1 << 3;

/// Registers of the Bochs display interface.
mod dispi {
    pub const ID: u16 = 0;
    /// Version 0 of the interface, which is all that is claimed; a BIOS may write any of the others.
    pub const ID_0: u16 = 0xb0c0;
}

/// The adapter.
pub struct Vga {
    regs: Regs,
    vram: Vram,
    clock: Clock,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    regs: Regs,
    vram: SavedVram,
}

impl Vga {
    pub fn new(clock: Clock) -> Self {
        Self { regs: Regs::default(), vram: Vram::default(), clock }
    }

    /// Reads video memory at physical address `pa` for the user, without side effects; `None`: nothing is there.
    pub fn peek(&self, pa: u64) -> Option<u8> {
        self.vram.peek(&self.regs, pa.checked_sub(MEMORY)?)
    }

    /// Input status 1, by where the beam is.
    fn status(&self) -> u8 {
        let in_picture = self.clock.now() % (LINE_NS * LINES);
        let (line, dot) = (in_picture / LINE_NS, in_picture % LINE_NS);
        let blank = line >= LINES_SHOWN || dot >= LINE_NS / 10 * 8;
        // Retrace is two lines long, twelve below the last one shown.
        let retrace = (LINES_SHOWN + 12..LINES_SHOWN + 14).contains(&line);
        (if blank { STATUS_BLANK } else { 0 }) | if retrace { STATUS_RETRACE } else { 0 }
    }

    fn read_port(&mut self, port: u16) -> u8 {
        let here = if self.regs.misc & MISC_COLOR != 0 { 0x3d0 } else { 0x3b0 };
        let r = &mut self.regs;
        match port {
            0x3b4 | 0x3b5 | 0x3ba | 0x3d4 | 0x3d5 | 0x3da if port & 0xff0 != here => 0xff,
            0x3b4 | 0x3d4 => r.crtc_index,
            0x3b5 | 0x3d5 => r.crtc.get(usize::from(r.crtc_index)).copied().unwrap_or(0),
            0x3ba | 0x3da => {
                r.attr_data = false;
                self.status()
            }
            0x3c0 => r.attr_index,
            0x3c1 => r.attr.get(usize::from(r.attr_index & 31)).copied().unwrap_or(0),
            // Input status 0: a colour monitor is there.
            0x3c2 => 0x10,
            0x3c4 => r.seq_index,
            0x3c5 => r.seq.get(usize::from(r.seq_index)).copied().unwrap_or(0),
            0x3c6 => r.dac_mask,
            0x3c7 => {
                if r.dac_reading {
                    3
                } else {
                    0
                }
            }
            0x3c8 => r.dac_write,
            0x3c9 => self.read_dac(),
            0x3ca => r.feature,
            0x3cc => r.misc,
            0x3ce => r.gc_index,
            0x3cf => r.gc.get(usize::from(r.gc_index)).copied().unwrap_or(0),
            _ => 0xff,
        }
    }

    fn write_port(&mut self, port: u16, v: u8) {
        let here = if self.regs.misc & MISC_COLOR != 0 { 0x3d0 } else { 0x3b0 };
        let r = &mut self.regs;
        match port {
            0x3b4 | 0x3b5 | 0x3ba | 0x3d4 | 0x3d5 | 0x3da if port & 0xff0 != here => {}
            0x3b4 | 0x3d4 => r.crtc_index = v,
            0x3b5 | 0x3d5 => self.write_crtc(v),
            0x3ba | 0x3da => r.feature = v,
            0x3c0 => self.write_attr(v),
            0x3c2 => r.misc = v,
            0x3c4 => r.seq_index = v & 7,
            0x3c5 => set(&mut r.seq, r.seq_index, v),
            0x3c6 => r.dac_mask = v,
            0x3c7 => (r.dac_read, r.dac_part, r.dac_reading) = (v, 0, true),
            0x3c8 => (r.dac_write, r.dac_part, r.dac_reading) = (v, 0, false),
            0x3c9 => self.write_dac(v),
            0x3ce => r.gc_index = v & 15,
            0x3cf => {
                if usize::from(r.gc_index) == gc::MISC && v & !r.gc[gc::MISC] & gc::MISC_GRAPHICS != 0 {
                    dlog!(UNIMP, "vga: a graphics mode: its picture is not drawn");
                }
                set(&mut r.gc, r.gc_index, v);
            }
            _ => dlog!(GUEST_ERRORS, "vga: write of {v:#x} to port {port:#x}"),
        }
    }

    fn read_dispi(&self, offset: u16) -> u16 {
        match (offset, self.regs.dispi_index) {
            (0, index) => index,
            (_, dispi::ID) => dispi::ID_0,
            // No memory for VBE modes either.
            _ => 0,
        }
    }

    fn write_dispi(&mut self, offset: u16, value: u16) {
        match (offset, self.regs.dispi_index) {
            (0, _) => self.regs.dispi_index = value,
            (_, dispi::ID) => {}
            (_, index) => dlog!(UNIMP, "vga: VBE register {index:#x} is set to {value:#x}"),
        }
    }

    fn write_crtc(&mut self, v: u8) {
        let r = &mut self.regs;
        let protected = r.crtc[crtc::V_RETRACE_END] & crtc::PROTECT != 0 && r.crtc_index < 8;
        match usize::from(r.crtc_index) {
            // Of the overflow register the line compare bit stays open.
            crtc::OVERFLOW if protected => r.crtc[crtc::OVERFLOW] = r.crtc[crtc::OVERFLOW] & !0x10 | v & 0x10,
            _ if protected => {}
            _ => set(&mut r.crtc, r.crtc_index, v),
        }
    }

    /// 3C0h takes index and data in turn; the palette's colours only while it is not in use.
    fn write_attr(&mut self, v: u8) {
        let r = &mut self.regs;
        r.attr_data = !r.attr_data;
        if r.attr_data {
            r.attr_index = v & 0x3f;
            return;
        }
        let i = r.attr_index & 31;
        if i >= 16 || r.attr_index & attr::PALETTE_IN_USE == 0 {
            set(&mut r.attr, i, v);
        }
    }

    fn read_dac(&mut self) -> u8 {
        let r = &mut self.regs;
        let v = r.dac[usize::from(r.dac_read) * 3 + usize::from(r.dac_part)];
        if r.dac_part == 2 {
            r.dac_read = r.dac_read.wrapping_add(1);
        }
        r.dac_part = (r.dac_part + 1) % 3;
        v
    }

    fn write_dac(&mut self, v: u8) {
        let r = &mut self.regs;
        r.dac[usize::from(r.dac_write) * 3 + usize::from(r.dac_part)] = v & 0x3f;
        if r.dac_part == 2 {
            r.dac_write = r.dac_write.wrapping_add(1);
        }
        r.dac_part = (r.dac_part + 1) % 3;
    }
}

/// Writes a register that may not be there.
fn set(regs: &mut [u8], index: u8, v: u8) {
    if let Some(r) = regs.get_mut(usize::from(index)) {
        *r = v;
    }
}

impl Device for Vga {
    fn name(&self) -> &'static str {
        "vga"
    }

    fn reset(&mut self) {
        (self.regs, self.vram) = (Regs::default(), Vram::default());
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), VERSION, &Saved { regs: self.regs.clone(), vram: self.vram.save() })
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let saved: Saved = s.unpack(VERSION)?;
        let vram = Vram::load(&saved.vram).ok_or_else(|| s.bad("pieces of video memory that there are not"))?;
        if !saved.regs.plausible() {
            return Err(s.bad("colours that there are not"));
        }
        (self.regs, self.vram) = (saved.regs, vram);
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }

    fn mmio(&mut self) -> Option<&mut dyn Mmio> {
        Some(self)
    }
}

/// Port of an access; wider ones are of bytes, as on ISA: an index and its data.
fn port(region: u32, offset: u16) -> u16 {
    PORTS.get(region as usize).map_or(0, |(first, len)| first + offset % len)
}

impl PortIo for Vga {
    fn read(&mut self, region: u32, offset: u16, size: u8) -> u32 {
        if region == REGION_DISPI {
            return self.read_dispi(offset).into();
        }
        (0..size.min(4)).fold(0, |v, i| {
            let byte = self.read_port(port(region, offset.wrapping_add(i.into())));
            v | u32::from(byte) << (8 * i)
        })
    }

    fn write(&mut self, region: u32, offset: u16, size: u8, value: u32) {
        if region == REGION_DISPI {
            return self.write_dispi(offset, value as u16);
        }
        for i in 0..size.min(4) {
            self.write_port(port(region, offset.wrapping_add(i.into())), (value >> (8 * i)) as u8);
        }
    }
}

impl Mmio for Vga {
    fn read(&mut self, _: u32, offset: u64, size: u8) -> u64 {
        (0..size).fold(0, |v, i| v | u64::from(self.vram.read(&mut self.regs, offset.wrapping_add(i.into()))) << (8 * i))
    }

    fn write(&mut self, _: u32, offset: u64, size: u8, value: u64) {
        for i in 0..size {
            self.vram.write(&self.regs, offset.wrapping_add(i.into()), (value >> (8 * i)) as u8);
        }
    }
}
