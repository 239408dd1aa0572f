//! 16550A UART (National Semiconductor PC16550D data sheet; register and bit names are the data sheet's).

use super::{CharInput, CharSink};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;
use vm_core::clock::Ns;
use vm_core::{Clock, Device, IrqLine, LoadError, PortIo, Section, Timer, dlog};

/// Register offsets; with LCR.DLAB set, 0 and 1 are the divisor latch.
mod reg {
    pub const RBR_THR: u16 = 0;
    pub const IER: u16 = 1;
    pub const IIR_FCR: u16 = 2;
    pub const LCR: u16 = 3;
    pub const MCR: u16 = 4;
    pub const LSR: u16 = 5;
    pub const MSR: u16 = 6;
    pub const SCR: u16 = 7;
}

mod ier {
    pub const ERBFI: u8 = 1;
    pub const ETBEI: u8 = 2;
    pub const ELSI: u8 = 4;
    pub const EDSSI: u8 = 8;
    pub const ALL: u8 = 0x0f;
}

/// Interrupt identification, highest priority first.
mod iir {
    pub const LINE_STATUS: u8 = 0x06;
    pub const DATA: u8 = 0x04;
    pub const TIMEOUT: u8 = 0x0c;
    pub const THRE: u8 = 0x02;
    pub const MODEM: u8 = 0x00;
    pub const NONE: u8 = 0x01;
    pub const FIFOS_ENABLED: u8 = 0xc0;
}

mod fcr {
    pub const ENABLE: u8 = 1;
    pub const RX_RESET: u8 = 2;
    /// Enable, DMA mode and trigger level are kept; the reset bits clear themselves.
    pub const KEPT: u8 = 0xc9;
}

mod lcr {
    pub const DLAB: u8 = 0x80;
}

mod mcr {
    pub const DTR: u8 = 1;
    pub const RTS: u8 = 2;
    pub const OUT1: u8 = 4;
    pub const OUT2: u8 = 8;
    pub const LOOP: u8 = 0x10;
    pub const ALL: u8 = 0x1f;
}

mod lsr {
    pub const DR: u8 = 1;
    pub const OE: u8 = 2;
    pub const BI: u8 = 0x10;
    pub const CHAR_ERRORS: u8 = 0x1c;
    pub const THRE_TEMT: u8 = 0x60;
    pub const FIFO_ERROR: u8 = 0x80;
}

mod msr {
    pub const DELTAS: u8 = 0x0f;
    pub const TERI: u8 = 4;
    pub const CTS: u8 = 0x10;
    pub const DSR: u8 = 0x20;
    pub const RI: u8 = 0x40;
    pub const DCD: u8 = 0x80;
    pub const LINES: u8 = 0xf0;
}

/// Depth of the receiver FIFO in characters.
const FIFO_DEPTH: usize = 16;
/// Number of ports.
pub const PORTS: u16 = 8;
const VERSION: u32 = 1;

/// Guest-visible state.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: u16,
    /// Error bits of LSR (OE, PE, FE, BI) until LSR is read.
    line_errors: u8,
    msr: u8,
    /// What the far end drives on CTS, DSR, RI, DCD, in MSR's bits; seen unless in loopback.
    lines: u8,
    /// Received characters with the LSR error bits that belong to each.
    rx: VecDeque<(u8, u8)>,
    /// Character last read, which an empty RBR still shows.
    rbr: u8,
    thre_pending: bool,
    timeout_pending: bool,
    timeout_at: Option<Ns>,
}

impl State {
    fn new(lines: u8) -> Self {
        Self {
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scr: 0,
            // The data sheet leaves it undefined; 9600 baud, so that the receive timeout has a sane length.
            divisor: 12,
            line_errors: 0,
            msr: lines,
            lines,
            rx: VecDeque::new(),
            rbr: 0,
            thre_pending: false,
            timeout_pending: false,
            timeout_at: None,
        }
    }

    fn fifos(&self) -> bool {
        self.fcr & fcr::ENABLE != 0
    }

    fn loopback(&self) -> bool {
        self.mcr & mcr::LOOP != 0
    }

    fn dlab(&self) -> bool {
        self.lcr & lcr::DLAB != 0
    }

    fn depth(&self) -> usize {
        if self.fifos() { FIFO_DEPTH } else { 1 }
    }

    /// Characters in the receiver from which data is announced.
    fn trigger(&self) -> usize {
        match (self.fifos(), self.fcr >> 6) {
            (false, _) | (true, 0) => 1,
            (true, 1) => 4,
            (true, 2) => 8,
            (true, _) => 14,
        }
    }

    /// Four character times of ten bits: the receive timeout (data sheet, "FIFO interrupt mode operation").
    fn timeout_ns(&self) -> Ns {
        40 * Ns::from(self.divisor.max(1)) * 1_000_000_000 / 115_200
    }

    /// The interrupt that IIR names.
    fn cause(&self) -> u8 {
        if self.ier & ier::ELSI != 0 && self.line_errors != 0 {
            iir::LINE_STATUS
        } else if self.ier & ier::ERBFI != 0 && self.rx.len() >= self.trigger() {
            iir::DATA
        } else if self.ier & ier::ERBFI != 0 && self.timeout_pending {
            iir::TIMEOUT
        } else if self.ier & ier::ETBEI != 0 && self.thre_pending {
            iir::THRE
        } else if self.ier & ier::EDSSI != 0 && self.msr & msr::DELTAS != 0 {
            iir::MODEM
        } else {
            iir::NONE
        }
    }

    fn lsr(&self) -> u8 {
        let ready = if self.rx.is_empty() { 0 } else { lsr::DR };
        let bad = self.line_errors & lsr::CHAR_ERRORS != 0 || self.rx.iter().any(|c| c.1 != 0);
        let fifo = if self.fifos() && bad { lsr::FIFO_ERROR } else { 0 };
        lsr::THRE_TEMT | self.line_errors | ready | fifo
    }

    /// The errors of the character at the head of the receiver show in LSR.
    fn show_head_errors(&mut self) {
        if let Some(head) = self.rx.front_mut() {
            self.line_errors |= std::mem::take(&mut head.1);
        }
    }

    /// Sets the modem inputs and the delta bits that follow (MSR; TERI reports only RI's trailing edge).
    fn set_inputs(&mut self, lines: u8) {
        let changed = (self.msr ^ lines) & msr::LINES;
        let mut deltas = changed >> 4;
        if lines & msr::RI != 0 {
            deltas &= !msr::TERI;
        }
        self.msr = lines | (self.msr & msr::DELTAS) | deltas;
    }

    /// MSR inputs in loopback: RTS, DTR, OUT1, OUT2 (data sheet, MCR bit 4).
    fn looped_inputs(&self) -> u8 {
        [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)]
            .iter()
            .fold(0, |v, &(out, input)| if self.mcr & out != 0 { v | input } else { v })
    }
}

/// One 16550A. Characters leave at once, without the delay of a baud rate; all else keeps the chip's rules.
///
/// OUT2 does not gate the interrupt, though PC adapters wire it so: guests that were only tried on emulators leave it 0.
pub struct Uart16550 {
    name: &'static str,
    irq: IrqLine,
    sink: Arc<dyn CharSink>,
    timer: Timer,
    s: State,
}

impl Uart16550 {
    /// `name` is unique in the machine ("serial0"). Call `bind_timer` once the device is in its cell.
    pub fn new(name: &'static str, irq: IrqLine, clock: &Clock, sink: Arc<dyn CharSink>) -> Self {
        let lines = msr::CTS | msr::DSR | msr::DCD;
        Self { name, irq, sink, timer: clock.timer(name), s: State::new(lines) }
    }

    /// Lets the receive timeout reach the device.
    pub fn bind_timer(cell: &Arc<Mutex<Self>>) {
        let weak = Arc::downgrade(cell);
        cell.lock().timer.bind(move |now| {
            if let Some(uart) = weak.upgrade() {
                uart.lock().receive_timeout(now);
            }
        });
    }

    /// What the far end drives on the modem inputs.
    pub fn set_modem_lines(&mut self, cts: bool, dsr: bool, ri: bool, dcd: bool) {
        let bit = |on, b| if on { b } else { 0 };
        self.s.lines = bit(cts, msr::CTS) | bit(dsr, msr::DSR) | bit(ri, msr::RI) | bit(dcd, msr::DCD);
        if !self.s.loopback() {
            self.s.set_inputs(self.s.lines);
        }
        self.update_irq();
    }

    fn receive_timeout(&mut self, now: Ns) {
        if self.s.timeout_at.is_some_and(|t| t <= now) {
            self.s.timeout_at = None;
            self.s.timeout_pending = true;
            self.update_irq();
        }
    }

    fn update_irq(&self) {
        self.irq.set(self.s.cause() != iir::NONE);
    }

    /// Restarts the receive timeout after a character came in or was read.
    fn restart_timeout(&mut self) {
        self.s.timeout_pending = false;
        self.s.timeout_at = (self.s.fifos() && !self.s.rx.is_empty()).then(|| self.timer.now() + self.s.timeout_ns());
        self.arm();
    }

    fn arm(&self) {
        match self.s.timeout_at {
            Some(t) => self.timer.arm(t),
            None => self.timer.cancel(),
        }
    }

    /// One character into the receiver, with overrun as the chip does it (LSR bit 1).
    fn push_rx(&mut self, c: u8, errors: u8) {
        if self.s.rx.len() >= self.s.depth() {
            self.s.line_errors |= lsr::OE;
            if !self.s.fifos() {
                self.s.rx.clear();
                self.s.rx.push_back((c, errors));
            }
        } else {
            self.s.rx.push_back((c, errors));
        }
        self.s.show_head_errors();
        self.restart_timeout();
    }

    fn read_rbr(&mut self) -> u8 {
        let was_full = self.room() == 0;
        if let Some((c, _)) = self.s.rx.pop_front() {
            self.s.rbr = c;
            self.s.show_head_errors();
            self.restart_timeout();
            self.update_irq();
        }
        self.tell_room(was_full);
        self.s.rbr
    }

    fn tell_room(&self, was_full: bool) {
        if was_full && self.room() > 0 {
            self.sink.input_wanted();
        }
    }

    fn write_thr(&mut self, c: u8) {
        // The line falls while the character is on its way, so that edge-triggered controllers see a new interrupt.
        self.s.thre_pending = false;
        self.update_irq();
        if self.s.loopback() {
            self.push_rx(c, 0);
        } else {
            self.sink.write(&[c]);
        }
        self.s.thre_pending = true;
        self.update_irq();
    }

    /// Enabling the THRE interrupt while the transmitter is empty raises it (data sheet, IIR).
    fn write_ier(&mut self, v: u8) {
        if v & !self.s.ier & ier::ETBEI != 0 {
            self.s.thre_pending = true;
        }
        self.s.ier = v & ier::ALL;
        self.update_irq();
    }

    fn write_fcr(&mut self, v: u8) {
        let was_full = self.room() == 0;
        let toggled = (v ^ self.s.fcr) & fcr::ENABLE != 0;
        // Without the enable bit the others are not programmed (data sheet, FCR bit 0).
        self.s.fcr = if v & fcr::ENABLE != 0 { v & fcr::KEPT } else { 0 };
        if toggled || v & (fcr::ENABLE | fcr::RX_RESET) == fcr::ENABLE | fcr::RX_RESET {
            self.s.rx.clear();
            self.restart_timeout();
        }
        self.update_irq();
        self.tell_room(was_full);
    }

    fn write_mcr(&mut self, v: u8) {
        let was_full = self.room() == 0;
        self.s.mcr = v & mcr::ALL;
        let inputs = if self.s.loopback() { self.s.looped_inputs() } else { self.s.lines };
        self.s.set_inputs(inputs);
        self.update_irq();
        self.tell_room(was_full);
    }

    fn read_reg(&mut self, offset: u16) -> u8 {
        match offset & 7 {
            reg::RBR_THR if self.s.dlab() => self.s.divisor as u8,
            reg::IER if self.s.dlab() => (self.s.divisor >> 8) as u8,
            reg::RBR_THR => self.read_rbr(),
            reg::IER => self.s.ier,
            reg::IIR_FCR => self.read_iir(),
            reg::LCR => self.s.lcr,
            reg::MCR => self.s.mcr,
            reg::LSR => {
                let v = self.s.lsr();
                self.s.line_errors = 0;
                self.update_irq();
                v
            }
            reg::MSR => {
                let v = self.s.msr;
                self.s.msr &= !msr::DELTAS;
                self.update_irq();
                v
            }
            _ => self.s.scr,
        }
    }

    fn read_iir(&mut self) -> u8 {
        let cause = self.s.cause();
        if cause == iir::THRE {
            self.s.thre_pending = false;
            self.update_irq();
        }
        cause | if self.s.fifos() { iir::FIFOS_ENABLED } else { 0 }
    }

    fn write_reg(&mut self, offset: u16, v: u8) {
        match offset & 7 {
            reg::RBR_THR if self.s.dlab() => self.s.divisor = self.s.divisor & 0xff00 | u16::from(v),
            reg::IER if self.s.dlab() => self.s.divisor = self.s.divisor & 0x00ff | u16::from(v) << 8,
            reg::RBR_THR => self.write_thr(v),
            reg::IER => self.write_ier(v),
            reg::IIR_FCR => self.write_fcr(v),
            // Set break (bit 6) has no counterpart in a host back end.
            reg::LCR => self.s.lcr = v,
            reg::MCR => self.write_mcr(v),
            reg::SCR => self.s.scr = v,
            _ => dlog!(GUEST_ERRORS, "{}: write of {v:#x} to read-only register {offset}", self.name),
        }
    }
}

impl CharInput for Uart16550 {
    /// In loopback the receiver is cut off from the line: input waits outside.
    fn room(&self) -> usize {
        if self.s.loopback() { 0 } else { self.s.depth().saturating_sub(self.s.rx.len()) }
    }

    fn receive(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.room());
        bytes[..n].iter().for_each(|&c| self.push_rx(c, 0));
        self.update_irq();
        n
    }

    /// A break is a zero character with BI.
    fn receive_break(&mut self) {
        if !self.s.loopback() {
            self.push_rx(0, lsr::BI);
            self.update_irq();
        }
    }
}

impl PortIo for Uart16550 {
    /// Wide accesses are split into bytes, as on an 8-bit ISA card.
    fn read(&mut self, _: u32, offset: u16, size: u8) -> u32 {
        (0..u16::from(size.min(4))).fold(0, |v, i| v | u32::from(self.read_reg(offset.wrapping_add(i))) << (8 * i))
    }

    fn write(&mut self, _: u32, offset: u16, size: u8, value: u32) {
        (0..u16::from(size.min(4))).for_each(|i| self.write_reg(offset.wrapping_add(i), (value >> (8 * i)) as u8));
    }
}

impl Device for Uart16550 {
    fn name(&self) -> &'static str {
        self.name
    }

    fn reset(&mut self) {
        self.s = State::new(self.s.lines);
        self.arm();
        self.update_irq();
        self.sink.input_wanted();
    }

    fn save(&self) -> Section {
        Section::pack(self.name, VERSION, &self.s)
    }

    fn load(&mut self, section: &Section) -> Result<(), LoadError> {
        let s: State = section.unpack(VERSION)?;
        if s.rx.len() > FIFO_DEPTH {
            return Err(section.bad("more than 16 received characters"));
        }
        self.s = s;
        self.arm();
        self.update_irq();
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

#[cfg(test)]
#[path = "uart16550_tests.rs"]
mod tests;
