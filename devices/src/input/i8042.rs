//! 8042 keyboard controller with its keyboard and mouse (IBM PS/2 Technical Reference, "Keyboard/Auxiliary Device Controller").

use super::keyboard::Keyboard;
use super::mouse::Mouse;
use super::scancode::{self, Key};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use vm_core::{Device, IrqLine, LoadError, PortIo, Section, dlog};

/// Region numbers to register port 60h and port 64h with.
pub const REGION_DATA: u32 = 0;
pub const REGION_COMMAND: u32 = 1;

/// Status register, port 64h.
mod status {
    pub const OBF: u8 = 1;
    pub const SYS: u8 = 4;
    pub const COMMAND: u8 = 8;
    /// Clear when a lock on the case inhibits the keyboard.
    pub const UNLOCKED: u8 = 0x10;
    pub const AUX_OBF: u8 = 0x20;
}

/// Command byte, byte 0 of the controller's RAM.
mod ctr {
    pub const KBD_INT: u8 = 1;
    pub const AUX_INT: u8 = 2;
    pub const SYS: u8 = 4;
    pub const KBD_DISABLE: u8 = 0x10;
    pub const AUX_DISABLE: u8 = 0x20;
    pub const TRANSLATE: u8 = 0x40;
    /// What the power-on self test of firmware leaves; lets a kernel that is started without firmware find a usable
    /// controller. SYS stays clear, as it marks a completed self test.
    pub const POWER_ON: u8 = KBD_INT | AUX_INT | TRANSLATE;
}

mod cmd {
    pub const READ_RAM: u8 = 0x20;
    pub const WRITE_RAM: u8 = 0x60;
    pub const AUX_OFF: u8 = 0xa7;
    pub const AUX_ON: u8 = 0xa8;
    pub const AUX_TEST: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const KBD_TEST: u8 = 0xab;
    pub const KBD_OFF: u8 = 0xad;
    pub const KBD_ON: u8 = 0xae;
    pub const READ_INPUT_PORT: u8 = 0xc0;
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const WRITE_KBD_BUFFER: u8 = 0xd2;
    pub const WRITE_AUX_BUFFER: u8 = 0xd3;
    pub const WRITE_AUX: u8 = 0xd4;
    /// A20 off and on: not IBM's, but firmware of the time used them.
    pub const A20_OFF: u8 = 0xdd;
    pub const A20_ON: u8 = 0xdf;
    /// F0h..=FFh pulse the output port bits that are 0 in the low nibble.
    pub const PULSE: u8 = 0xf0;
}

/// Output port: bit 0 is the CPU's reset (active low), bit 1 A20.
mod outport {
    pub const NOT_RESET: u8 = 1;
    pub const A20: u8 = 2;
    pub const KBD_OBF: u8 = 0x10;
    pub const AUX_OBF: u8 = 0x20;
    pub const CLOCKS_IDLE: u8 = 0xc0;
}

const SELF_TEST_PASSED: u8 = 0x55;
const TEST_PASSED: u8 = 0;
/// Input port: keyboard not inhibited, manufacturing jumper not installed.
const INPUT_PORT: u8 = 0xa0;
/// Answers of the controller itself that wait for the output buffer.
const MAX_ANSWERS: usize = 16;
const VERSION: u32 = 1;

/// Where the controller's pins lead. The callbacks run with the device locked and must not call back into it.
pub struct Wires {
    pub kbd_irq: IrqLine,
    pub aux_irq: IrqLine,
    /// Asks for a reset of the CPU.
    pub reset: Box<dyn Fn() + Send>,
    /// Level of the A20 gate.
    pub a20: Box<dyn Fn(bool) + Send>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    /// Controller RAM; byte 0 is the command byte.
    ram: [u8; 32],
    /// Byte in the output buffer, kept after it is read.
    data: u8,
    full: bool,
    /// The byte in the output buffer came from the auxiliary device.
    from_aux: bool,
    /// The last write went to port 64h.
    command_written: bool,
    /// Command that waits for a byte at port 60h.
    expects: Option<u8>,
    /// The controller's own answers, with the auxiliary flag.
    answers: VecDeque<(u8, bool)>,
    /// Translation has seen F0h: the next code is a break code.
    break_code: bool,
    a20: bool,
    kbd: Keyboard,
    mouse: Mouse,
}

impl Default for State {
    fn default() -> Self {
        let mut ram = [0; 32];
        ram[0] = ctr::POWER_ON;
        Self {
            ram,
            data: 0,
            full: false,
            from_aux: false,
            command_written: true,
            expects: None,
            answers: VecDeque::new(),
            break_code: false,
            a20: true,
            kbd: Keyboard::default(),
            mouse: Mouse::default(),
        }
    }
}

impl State {
    fn ctr(&self, bit: u8) -> bool {
        self.ram[0] & bit != 0
    }

    /// The keyboard's next byte, translated to set 1 if the command byte says so.
    fn keyboard_byte(&mut self) -> Option<u8> {
        loop {
            let b = self.kbd.pop()?;
            if !self.ctr(ctr::TRANSLATE) {
                return Some(b);
            }
            if b == 0xf0 {
                self.break_code = true;
                continue;
            }
            let brk = if std::mem::take(&mut self.break_code) { 0x80 } else { 0 };
            return Some(scancode::translate(b) | brk);
        }
    }

    /// What goes into the output buffer next, with the auxiliary flag.
    fn next_byte(&mut self) -> Option<(u8, bool)> {
        if let Some(answer) = self.answers.pop_front() {
            return Some(answer);
        }
        if !self.ctr(ctr::KBD_DISABLE)
            && let Some(b) = self.keyboard_byte()
        {
            return Some((b, false));
        }
        if self.ctr(ctr::AUX_DISABLE) { None } else { self.mouse.pop().map(|b| (b, true)) }
    }

    fn output_port(&self) -> u8 {
        let bit = |on, b| if on { b } else { 0 };
        outport::NOT_RESET
            | outport::CLOCKS_IDLE
            | bit(self.a20, outport::A20)
            | bit(self.full && !self.from_aux, outport::KBD_OBF)
            | bit(self.full && self.from_aux, outport::AUX_OBF)
    }

    fn status(&self) -> u8 {
        let bit = |on, b| if on { b } else { 0 };
        status::UNLOCKED
            | bit(self.full, status::OBF)
            | bit(self.full && self.from_aux, status::AUX_OBF)
            | bit(self.ctr(ctr::SYS), status::SYS)
            | bit(self.command_written, status::COMMAND)
    }
}

/// The controller. Commands take no time: the input buffer is never seen full.
pub struct I8042 {
    wires: Wires,
    s: State,
}

impl I8042 {
    /// Port 60h is registered as `REGION_DATA`, port 64h as `REGION_COMMAND`, one port each.
    pub fn new(wires: Wires) -> Self {
        Self { wires, s: State::default() }
    }

    /// A key event; see `Keyboard::key`.
    pub fn key(&mut self, key: Key, down: bool) -> bool {
        let taken = self.s.kbd.key(key, down);
        self.pump();
        taken
    }

    /// A mouse event; see `Mouse::motion`.
    pub fn mouse(&mut self, dx: i32, dy: i32, dz: i32, buttons: u8) {
        self.s.mouse.motion(dx, dy, dz, buttons);
        self.pump();
    }

    /// Keyboard lights: bit 0 scroll lock, 1 num lock, 2 caps lock.
    pub fn leds(&self) -> u8 {
        self.s.kbd.leds()
    }

    /// Fills the output buffer if it is empty, and drives the interrupt lines.
    fn pump(&mut self) {
        if !self.s.full
            && let Some((b, aux)) = self.s.next_byte()
        {
            self.s.data = b;
            self.s.from_aux = aux;
            self.s.full = true;
        }
        self.update_irq();
    }

    fn update_irq(&self) {
        let s = &self.s;
        self.wires.kbd_irq.set(s.full && !s.from_aux && s.ctr(ctr::KBD_INT) && !s.ctr(ctr::KBD_DISABLE));
        self.wires.aux_irq.set(s.full && s.from_aux && s.ctr(ctr::AUX_INT));
    }

    fn answer(&mut self, b: u8, aux: bool) {
        if self.s.answers.len() < MAX_ANSWERS {
            self.s.answers.push_back((b, aux));
        } else {
            dlog!(GUEST_ERRORS, "i8042: {b:#x} lost, the guest does not read port 60h");
        }
    }

    fn read_data(&mut self) -> u8 {
        let v = self.s.data;
        if self.s.full {
            self.s.full = false;
            // The lines fall between two bytes: each byte is an edge.
            self.update_irq();
            self.pump();
        }
        v
    }

    fn write_data(&mut self, v: u8) {
        self.s.command_written = false;
        match self.s.expects.take() {
            None => {
                self.s.ram[0] &= !ctr::KBD_DISABLE;
                self.s.kbd.write(v);
            }
            Some(c @ cmd::WRITE_RAM..=0x7f) => self.s.ram[usize::from(c & 0x1f)] = v,
            Some(cmd::WRITE_OUTPUT_PORT) => self.write_output_port(v),
            Some(cmd::WRITE_KBD_BUFFER) => self.answer(v, false),
            Some(cmd::WRITE_AUX_BUFFER) => self.answer(v, true),
            Some(_) => {
                self.s.ram[0] &= !ctr::AUX_DISABLE;
                self.s.mouse.write(v);
            }
        }
        self.pump();
    }

    fn write_output_port(&mut self, v: u8) {
        self.set_a20(v & outport::A20 != 0);
        if v & outport::NOT_RESET == 0 {
            (self.wires.reset)();
        }
    }

    fn set_a20(&mut self, on: bool) {
        self.s.a20 = on;
        (self.wires.a20)(on);
    }

    fn write_command(&mut self, v: u8) {
        self.s.command_written = true;
        self.s.expects = None;
        match v {
            cmd::READ_RAM..=0x3f => self.answer(self.s.ram[usize::from(v & 0x1f)], false),
            cmd::WRITE_RAM..=0x7f | cmd::WRITE_OUTPUT_PORT..=cmd::WRITE_AUX => self.s.expects = Some(v),
            cmd::AUX_OFF => self.s.ram[0] |= ctr::AUX_DISABLE,
            cmd::AUX_ON => self.s.ram[0] &= !ctr::AUX_DISABLE,
            cmd::AUX_TEST | cmd::KBD_TEST => self.answer(TEST_PASSED, false),
            cmd::SELF_TEST => {
                self.s.ram[0] |= ctr::SYS;
                self.answer(SELF_TEST_PASSED, false);
            }
            cmd::KBD_OFF => self.s.ram[0] |= ctr::KBD_DISABLE,
            cmd::KBD_ON => self.s.ram[0] &= !ctr::KBD_DISABLE,
            cmd::READ_INPUT_PORT => self.answer(INPUT_PORT, false),
            cmd::READ_OUTPUT_PORT => self.answer(self.s.output_port(), false),
            cmd::A20_OFF => self.set_a20(false),
            cmd::A20_ON => self.set_a20(true),
            cmd::PULSE..=0xff => {
                if v & outport::NOT_RESET == 0 {
                    (self.wires.reset)();
                }
            }
            _ => dlog!(UNIMP, "i8042: command {v:#x}"),
        }
        self.pump();
    }
}

impl PortIo for I8042 {
    /// The controller is an 8-bit device; the upper bytes of a wide read are ones.
    fn read(&mut self, region: u32, _: u16, size: u8) -> u32 {
        let v = if region == REGION_DATA { self.read_data() } else { self.s.status() };
        if size == 1 { v.into() } else { u32::from(v) | 0xffff_ff00 }
    }

    fn write(&mut self, region: u32, _: u16, _: u8, value: u32) {
        if region == REGION_DATA { self.write_data(value as u8) } else { self.write_command(value as u8) }
    }
}

impl Device for I8042 {
    fn name(&self) -> &'static str {
        "i8042"
    }

    fn reset(&mut self) {
        self.s = State::default();
        (self.wires.a20)(self.s.a20);
        self.update_irq();
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), VERSION, &self.s)
    }

    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        let s: State = section.unpack(VERSION)?;
        if s.answers.len() > MAX_ANSWERS || !s.kbd.plausible() || !s.mouse.plausible() {
            return Err(section.bad("a queue is longer than it can be"));
        }
        self.s = s;
        (self.wires.a20)(self.s.a20);
        self.update_irq();
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

#[cfg(test)]
#[path = "i8042_tests.rs"]
mod tests;
