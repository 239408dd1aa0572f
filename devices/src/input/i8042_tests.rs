//! Tests of the 8042: the probes of Linux's i8042, atkbd and psmouse drivers, interrupts, reset, A20, saved state.

use super::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use vm_core::irq::IrqSink;
use vm_core::testing::contract;

/// Interrupt lines 1 and 12 as bits, resets and A20.
#[derive(Default)]
struct Board {
    levels: AtomicU32,
    edges: [AtomicU32; 2],
    resets: AtomicU32,
    a20: AtomicU32,
}

impl IrqSink for Board {
    fn set_irq(&self, line: u32, level: bool) {
        let bit = 1 << line;
        let old = if level { self.levels.fetch_or(bit, Ordering::SeqCst) } else { self.levels.fetch_and(!bit, Ordering::SeqCst) };
        if level && old & bit == 0 {
            self.edges[usize::from(line == 12)].fetch_add(1, Ordering::SeqCst);
        }
    }
}

struct Rig {
    d: I8042,
    b: Arc<Board>,
}

impl Rig {
    fn new() -> Self {
        let b = Arc::new(Board::default());
        let (r, a) = (b.clone(), b.clone());
        let d = I8042::new(Wires {
            kbd_irq: IrqLine::new(b.clone(), 1),
            aux_irq: IrqLine::new(b.clone(), 12),
            reset: Box::new(move || {
                r.resets.fetch_add(1, Ordering::SeqCst);
            }),
            a20: Box::new(move |on| a.a20.store(on.into(), Ordering::SeqCst)),
        });
        Self { d, b }
    }
    fn st(&mut self) -> u8 {
        self.d.read(REGION_COMMAND, 0, 1) as u8
    }
    fn out(&mut self) -> u8 {
        self.d.read(REGION_DATA, 0, 1) as u8
    }
    fn cmd(&mut self, v: u8) {
        self.d.write(REGION_COMMAND, 0, 1, v.into());
    }
    fn data(&mut self, v: u8) {
        self.d.write(REGION_DATA, 0, 1, v.into());
    }
    /// All that can be read now, with the auxiliary flag.
    fn drain(&mut self) -> Vec<(u8, bool)> {
        std::iter::from_fn(|| {
            let st = self.st();
            (st & 1 != 0).then(|| (self.out(), st & 0x20 != 0))
        })
        .collect()
    }
    fn kbd(&mut self, v: u8) -> Vec<(u8, bool)> {
        self.data(v);
        self.drain()
    }
    fn irq(&self, line: u32) -> bool {
        self.b.levels.load(Ordering::SeqCst) >> line & 1 != 0
    }
}

#[test]
fn linux_controller_probe() {
    let mut r = Rig::new();
    assert_eq!(r.st() & 0x11, 0x10, "empty and not locked");
    r.cmd(0xaa);
    assert_eq!(r.drain(), [(0x55, false)]);
    r.cmd(0x20);
    assert_eq!(r.drain(), [(0x47, false)], "interrupts, SYS, translation");
    r.cmd(0x60);
    r.data(0x74);
    r.cmd(0xd3);
    r.data(0x5a);
    assert_eq!(r.drain(), [(0x5a, true)], "AUX loop");
    r.cmd(0xa9);
    assert_eq!(r.drain(), [(0, false)]);
    r.cmd(0xa7);
    r.cmd(0x20);
    assert_eq!(r.drain()[0].0 & 0x20, 0x20);
    r.cmd(0xa8);
    r.cmd(0x20);
    assert_eq!(r.drain()[0].0 & 0x20, 0);
    r.cmd(0x60);
    r.data(0x56);
    r.cmd(0xd3);
    r.data(0xa5);
    assert!(r.irq(12) && !r.irq(1), "AUX loop gives IRQ 12");
    assert_eq!(r.drain(), [(0xa5, true)]);
    assert!(!r.irq(12));
}

#[test]
fn keyboard_probe_is_translated() {
    let mut r = Rig::new();
    assert_eq!(r.kbd(0xf2), [(0xfa, false), (0xab, false), (0x41, false)]);
    assert_eq!(r.kbd(0xff), [(0xfa, false), (0xaa, false)]);
    assert_eq!((r.kbd(0xed), r.kbd(0)), (vec![(0xfa, false)], vec![(0xfa, false)]));
    r.d.key(0x1e, true);
    r.d.key(0x1e, false);
    assert_eq!(r.drain(), [(0x1e, false), (0x9e, false)]);
    r.cmd(0x60);
    r.data(0x05);
    r.d.key(0x1e, false);
    assert_eq!(r.drain(), [(0xf0, false), (0x1c, false)], "set 2 as it is");
}

#[test]
fn every_byte_is_an_edge() {
    let mut r = Rig::new();
    r.data(0xf2);
    assert!(r.irq(1));
    assert_eq!(r.drain().len(), 3);
    assert_eq!(r.b.edges[0].load(Ordering::SeqCst), 3);
    assert!(!r.irq(1));
    r.cmd(0x60);
    r.data(0x40);
    r.d.key(1, true);
    assert!(!r.irq(1), "interrupt disabled");
    r.cmd(0x60);
    r.data(0x41);
    assert!(r.irq(1), "enabling it with a full buffer raises it");
}

#[test]
fn a_disabled_interface_holds_its_bytes() {
    let mut r = Rig::new();
    r.cmd(0xad);
    r.d.key(0x1c, true);
    assert_eq!(r.drain(), []);
    r.cmd(0xae);
    assert_eq!(r.drain(), [(0x1c, false)]);
}

#[test]
fn mouse_speaks_through_the_controller() {
    let mut r = Rig::new();
    let mut mouse = |v: u8| {
        r.cmd(0xd4);
        r.data(v);
        r.drain()
    };
    assert_eq!(mouse(0xff), [(0xfa, true), (0xaa, true), (0, true)]);
    assert_eq!(mouse(0xf4), [(0xfa, true)]);
    r.d.mouse(3, 0, 0, 1);
    assert!(r.irq(12));
    assert_eq!(r.drain(), [(9, true), (3, true), (0, true)]);
}

#[test]
fn reset_and_a20() {
    let mut r = Rig::new();
    r.cmd(0xfe);
    assert_eq!(r.b.resets.load(Ordering::SeqCst), 1);
    r.cmd(0xff);
    assert_eq!(r.b.resets.load(Ordering::SeqCst), 1, "FFh pulses nothing");
    r.cmd(0xd1);
    r.data(0xdd);
    assert_eq!(r.b.a20.load(Ordering::SeqCst), 0);
    r.cmd(0xd0);
    assert_eq!(r.drain()[0].0 & 3, 1);
    r.cmd(0xd1);
    r.data(0xdf);
    assert_eq!(r.b.a20.load(Ordering::SeqCst), 1);
    r.cmd(0xd1);
    r.data(0xde);
    assert_eq!(r.b.resets.load(Ordering::SeqCst), 2);
}

#[test]
fn answers_are_bounded() {
    let mut r = Rig::new();
    (0..1000).for_each(|_| r.cmd(0xaa));
    assert_eq!(r.drain().len(), MAX_ANSWERS + 1);
}

#[test]
fn contract_holds() {
    contract(|| Rig::new().d, 2, 1);
}
