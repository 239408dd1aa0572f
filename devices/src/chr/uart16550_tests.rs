//! Tests of the 16550A: the probes guests make, interrupt rules, FIFO, loopback, saved state.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use vm_core::irq::IrqSink;
use vm_core::testing::contract;

#[derive(Default)]
struct Wire {
    level: AtomicBool,
    edges: AtomicU32,
}

impl IrqSink for Wire {
    fn set_irq(&self, _: u32, level: bool) {
        if level && !self.level.swap(level, Ordering::SeqCst) {
            self.edges.fetch_add(1, Ordering::SeqCst);
        }
        self.level.store(level, Ordering::SeqCst);
    }
}

#[derive(Default)]
struct Host {
    out: Mutex<Vec<u8>>,
    wanted: AtomicU32,
}

impl CharSink for Host {
    fn write(&self, bytes: &[u8]) {
        self.out.lock().extend_from_slice(bytes);
    }
    fn input_wanted(&self) {
        self.wanted.fetch_add(1, Ordering::SeqCst);
    }
}

struct Rig {
    uart: Arc<Mutex<Uart16550>>,
    wire: Arc<Wire>,
    host: Arc<Host>,
    clock: Clock,
}

impl Rig {
    fn new() -> Self {
        let (wire, host, clock) = (Arc::new(Wire::default()), Arc::new(Host::default()), Clock::new());
        let uart = Uart16550::new("serial0", IrqLine::new(wire.clone(), 4), &clock, host.clone());
        let uart = Arc::new(Mutex::new(uart));
        Uart16550::bind_timer(&uart);
        Self { uart, wire, host, clock }
    }
    fn rd(&self, r: u16) -> u8 {
        self.uart.lock().read(0, r, 1) as u8
    }
    fn wr(&self, r: u16, v: u8) {
        self.uart.lock().write(0, r, 1, v.into());
    }
    fn irq(&self) -> bool {
        self.wire.level.load(Ordering::SeqCst)
    }
    fn edges(&self) -> u32 {
        self.wire.edges.load(Ordering::SeqCst)
    }
    fn input(&self, bytes: &[u8]) -> usize {
        self.uart.lock().receive(bytes)
    }
}

/// The steps by which Linux's 8250 driver tells a 16550A from other chips.
#[test]
fn is_detected_as_16550a() {
    let r = Rig::new();
    r.wr(1, 0);
    assert_eq!(r.rd(1) & 0x0f, 0);
    r.wr(1, 0x0f);
    assert_eq!(r.rd(1), 0x0f);
    r.wr(1, 0);
    r.wr(4, 0x1a);
    assert_eq!(r.rd(6) & 0xf0, 0x90, "loopback: OUT2 to DCD, RTS to CTS");
    r.wr(4, 0);
    r.wr(2, 1);
    assert_eq!(r.rd(2) >> 6, 3, "FIFOs on");
    r.wr(3, 0x80);
    assert_ne!(r.rd(2), 0, "no EFR: not a 16650");
    r.wr(3, 0);
    r.wr(2, 0x21);
    assert_eq!(r.rd(2) >> 5, 6, "no 64-byte FIFO: not a 16750");
    r.wr(1, 0x40);
    assert_eq!(r.rd(1), 0, "no UUE bit: not an XScale");
    r.wr(7, 0xa5);
    assert_eq!(r.rd(7), 0xa5);
}

/// The driver measures the FIFO by filling it in loopback.
#[test]
fn fifo_is_16_deep_in_loopback() {
    let r = Rig::new();
    r.wr(2, 0x07);
    r.wr(4, 0x10);
    (0..20).for_each(|c| r.wr(0, c));
    assert_eq!(r.rd(5) & 3, 3, "data ready and overrun");
    assert_eq!(r.rd(5) & 2, 0, "reading LSR clears overrun");
    let got: Vec<u8> = std::iter::from_fn(|| (r.rd(5) & 1 != 0).then(|| r.rd(0))).collect();
    assert_eq!(got, (0..16).collect::<Vec<u8>>());
    assert!(r.host.out.lock().is_empty(), "loopback does not reach the line");
}

#[test]
fn thre_interrupt_rises_falls_and_rises_again() {
    let r = Rig::new();
    r.wr(1, 2);
    assert!(r.irq(), "enabling with an empty transmitter raises it");
    assert_eq!(r.rd(2), 0x02);
    assert!(!r.irq(), "reading IIR clears it");
    assert_eq!(r.rd(2), 0x01);
    r.wr(1, 0);
    r.wr(1, 2);
    assert!(r.irq(), "enabling again raises again");
    let before = r.edges();
    r.wr(0, b'x');
    r.wr(0, b'y');
    assert_eq!(r.edges(), before + 2, "each character gives an edge");
    assert_eq!(*r.host.out.lock(), b"xy");
    assert_eq!(r.rd(5), 0x60);
}

#[test]
fn receive_trigger_and_timeout() {
    let r = Rig::new();
    r.wr(3, 0x80);
    r.wr(0, 1);
    r.wr(1, 0);
    r.wr(3, 3);
    r.wr(2, 0x81);
    r.wr(1, 1);
    assert_eq!(r.input(b"abc"), 3);
    assert!(!r.irq(), "3 of 8 characters");
    r.clock.set(347_000);
    r.clock.run_expired();
    assert!(!r.irq(), "not yet four character times");
    r.clock.set(348_000);
    r.clock.run_expired();
    assert_eq!((r.irq(), r.rd(2)), (true, 0xcc));
    assert_eq!(r.rd(0), b'a');
    assert!(!r.irq(), "reading a character clears the timeout");
    assert_eq!(r.input(b"defghi"), 6);
    assert_eq!((r.irq(), r.rd(2)), (true, 0xc4));
    assert_eq!(r.rd(0), b'b');
    assert_eq!(r.rd(2), 0xc1);
}

#[test]
fn input_is_bounded_and_asked_for_again() {
    let r = Rig::new();
    assert_eq!(r.input(b"ab"), 1, "without FIFO one character");
    assert_eq!(r.host.wanted.load(Ordering::SeqCst), 0);
    assert_eq!(r.rd(0), b'a');
    assert_eq!(r.host.wanted.load(Ordering::SeqCst), 1);
    r.wr(2, 1);
    assert_eq!(r.input(&[0; 40]), 16);
    assert_eq!(r.rd(5) & 2, 0, "no overrun from the host");
    r.wr(4, 0x10);
    r.wr(2, 3);
    assert_eq!(r.uart.lock().room(), 0, "cut off in loopback");
    r.wr(4, 0);
    assert_eq!(r.uart.lock().room(), 16);
}

#[test]
fn break_shows_with_its_character() {
    let r = Rig::new();
    r.wr(2, 1);
    r.wr(1, 4);
    r.input(b"a");
    r.uart.lock().receive_break();
    assert_eq!(r.rd(5), 0xe1, "an error waits in the FIFO");
    assert!(!r.irq());
    assert_eq!(r.rd(0), b'a');
    assert_eq!((r.irq(), r.rd(2)), (true, 0xc6));
    assert_eq!(r.rd(5), 0xf1);
    assert_eq!(r.rd(5), 0x61);
    assert!(!r.irq());
    assert_eq!(r.rd(0), 0);
}

#[test]
fn modem_lines_and_deltas() {
    let r = Rig::new();
    r.wr(1, 8);
    assert_eq!(r.rd(6), 0xb0);
    r.uart.lock().set_modem_lines(true, true, true, false);
    assert!(r.irq());
    assert_eq!(r.rd(6), 0x78, "DCD changed; RI rose, which TERI does not report");
    assert!(!r.irq());
    r.uart.lock().set_modem_lines(true, true, false, false);
    assert_eq!(r.rd(6), 0x34);
}

#[test]
fn timeout_survives_save_and_load() {
    let r = Rig::new();
    r.wr(2, 0xc1);
    r.wr(1, 1);
    r.input(b"q");
    let saved = r.uart.lock().save();
    let t = Rig::new();
    t.uart.lock().load(&saved).unwrap();
    t.clock.set(1_000_000_000);
    t.clock.run_expired();
    assert_eq!((t.irq(), t.rd(2), t.rd(0)), (true, 0xcc, b'q'));
}

#[test]
fn contract_holds() {
    let clock = Clock::new();
    let make = || Uart16550::new("serial0", IrqLine::unconnected(), &clock, Arc::new(crate::chr::NullSink));
    contract(make, 1, PORTS.into());
}
