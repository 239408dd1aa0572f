//! Tests of the 8259A pair.

use super::pic::{Pic, PicInputs, REGION_ELCR, REGION_MASTER, REGION_SLAVE};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_core::testing::{Rng, contract};
use vm_core::{Device, IrqLine, IrqSink, PortIo};

#[derive(Default)]
struct Wire(AtomicBool);

impl IrqSink for Wire {
    fn set_irq(&self, _: u32, level: bool) {
        self.0.store(level, Ordering::SeqCst);
    }
}

struct Board {
    pic: Arc<Mutex<Pic>>,
    irq: PicInputs,
    intr: Arc<Wire>,
}

impl Board {
    /// A pair as the BIOS sets it up: vectors 20h and 28h, all unmasked. `icw4` goes to both.
    fn new(icw4: u8) -> Self {
        let intr = Arc::new(Wire::default());
        let pic = Arc::new(Mutex::new(Pic::new(IrqLine::new(intr.clone(), 0))));
        let b = Self { irq: PicInputs(pic.clone()), pic, intr };
        for (region, base, icw3) in [(REGION_MASTER, 0x20, 4), (REGION_SLAVE, 0x28, 2)] {
            b.out(region, 0, 0x11);
            b.out(region, 1, base);
            b.out(region, 1, icw3);
            b.out(region, 1, icw4);
            b.out(region, 1, 0);
        }
        b
    }

    fn out(&self, region: u32, offset: u16, v: u8) {
        self.pic.lock().write(region, offset, 1, v.into());
    }

    fn inb(&self, region: u32, offset: u16) -> u8 {
        self.pic.lock().read(region, offset, 1) as u8
    }

    fn set(&self, irq: u32, level: bool) {
        self.irq.set_irq(irq, level);
    }

    fn pulse(&self, irq: u32) {
        self.set(irq, true);
        self.set(irq, false);
    }

    fn intr(&self) -> bool {
        assert_eq!(self.pic.lock().intr(), self.intr.0.load(Ordering::SeqCst));
        self.pic.lock().intr()
    }

    fn ack(&self) -> u8 {
        self.pic.lock().ack()
    }

    fn eoi(&self, region: u32) {
        self.out(region, 0, 0x20);
    }

    fn isr(&self, region: u32) -> u8 {
        self.out(region, 0, 0x0b);
        self.inb(region, 0)
    }

    fn irr(&self, region: u32) -> u8 {
        self.out(region, 0, 0x0a);
        self.inb(region, 0)
    }
}

#[test]
fn keeps_the_device_contract() {
    contract(|| Pic::new(IrqLine::unconnected()), 4, 3);
}

#[test]
fn survives_hostile_inputs_and_acknowledges() {
    let b = Board::new(1);
    let mut r = Rng(7);
    for _ in 0..50_000 {
        match r.below(4) {
            0 => b.set(r.below(20) as u32, r.below(2) == 1),
            1 => drop(b.ack()),
            2 => b.out(r.below(3) as u32, r.below(2) as u16, r.next_u64() as u8),
            _ => drop(b.inb(r.below(3) as u32, r.below(2) as u16)),
        }
        b.intr();
    }
}

#[test]
fn fully_nested_priorities() {
    let b = Board::new(1);
    b.pulse(4);
    assert!(b.intr());
    assert_eq!(b.ack(), 0x24);
    assert!(!b.intr());
    b.pulse(5);
    assert!(!b.intr(), "lower priority waits");
    b.pulse(1);
    assert_eq!(b.ack(), 0x21, "higher priority nests");
    assert_eq!(b.isr(REGION_MASTER), 0x12);
    b.eoi(REGION_MASTER);
    assert_eq!(b.isr(REGION_MASTER), 0x10);
    assert!(!b.intr());
    b.eoi(REGION_MASTER);
    assert_eq!(b.ack(), 0x25);
}

#[test]
fn cascade_order_and_vectors() {
    let b = Board::new(1);
    b.pulse(14);
    b.pulse(3);
    assert_eq!(b.irr(REGION_MASTER), 0x0c);
    assert_eq!(b.ack(), 0x2e, "the slave ranks as IR2, before IR3");
    assert_eq!((b.isr(REGION_MASTER), b.isr(REGION_SLAVE)), (4, 0x40));
    b.pulse(8);
    assert!(!b.intr(), "the master holds back its slave while IR2 is in service");
    b.eoi(REGION_SLAVE);
    b.eoi(REGION_MASTER);
    assert_eq!(b.ack(), 0x28);
    b.eoi(REGION_SLAVE);
    b.eoi(REGION_MASTER);
    assert_eq!(b.ack(), 0x23);
}

#[test]
fn special_fully_nested_mode_lets_the_slave_nest() {
    let b = Board::new(0x11);
    b.pulse(14);
    assert_eq!(b.ack(), 0x2e);
    b.pulse(3);
    assert!(!b.intr(), "IR3 is still lower than IR2");
    b.pulse(8);
    assert_eq!(b.ack(), 0x28);
    assert_eq!(b.isr(REGION_SLAVE), 0x41);
}

#[test]
fn masks() {
    let b = Board::new(1);
    b.out(REGION_MASTER, 1, 0x10);
    assert_eq!(b.inb(REGION_MASTER, 1), 0x10);
    b.pulse(4);
    assert!(!b.intr());
    b.out(REGION_MASTER, 1, 0);
    assert!(b.intr(), "an edge is remembered under the mask");
    assert_eq!(b.ack(), 0x24);
}

#[test]
fn edge_inputs_need_a_new_edge() {
    let b = Board::new(1);
    b.set(4, true);
    assert_eq!(b.ack(), 0x24);
    b.eoi(REGION_MASTER);
    assert!(!b.intr());
    b.set(4, true);
    assert!(!b.intr(), "no edge");
    b.set(4, false);
    b.set(4, true);
    assert!(b.intr());
}

#[test]
fn level_inputs_follow_the_line() {
    let b = Board::new(1);
    b.out(REGION_ELCR, 1, 0xff);
    b.out(REGION_ELCR, 0, 0xff);
    assert_eq!((b.inb(REGION_ELCR, 0), b.inb(REGION_ELCR, 1)), (0xf8, 0xde));
    b.set(10, true);
    assert_eq!(b.ack(), 0x2a);
    b.eoi(REGION_SLAVE);
    b.eoi(REGION_MASTER);
    assert_eq!(b.ack(), 0x2a, "still asserted: again");
    b.set(10, false);
    b.eoi(REGION_SLAVE);
    b.eoi(REGION_MASTER);
    assert!(!b.intr());
    b.set(5, true);
    assert!(b.intr());
    b.set(5, false);
    assert!(!b.intr(), "a level that goes takes its request with it");
}

#[test]
fn spurious_interrupts() {
    let b = Board::new(1);
    b.out(REGION_ELCR, 0, 0x20);
    b.set(5, true);
    b.set(5, false);
    assert_eq!(b.ack(), 0x27);
    assert_eq!(b.isr(REGION_MASTER), 0);
    b.pulse(12);
    b.out(REGION_SLAVE, 1, 0xff);
    assert_eq!(b.ack(), 0x2f, "the slave's request was masked after the master latched it");
    assert_eq!((b.isr(REGION_MASTER), b.isr(REGION_SLAVE)), (4, 0));
}

#[test]
fn automatic_eoi_and_rotation() {
    let b = Board::new(3);
    b.pulse(4);
    assert_eq!(b.ack(), 0x24);
    assert_eq!(b.isr(REGION_MASTER), 0);
    b.out(REGION_MASTER, 0, 0x80);
    b.pulse(4);
    assert_eq!(b.ack(), 0x24);
    b.pulse(4);
    b.pulse(6);
    assert_eq!(b.ack(), 0x26, "IR4 became lowest");
    assert_eq!(b.ack(), 0x24);
    // The slave ends by itself too, and offers its second request as a new edge.
    b.pulse(9);
    b.pulse(11);
    assert_eq!(b.ack(), 0x29);
    assert_eq!(b.ack(), 0x2b);
    assert!(!b.intr());
}

#[test]
fn rotation_and_set_priority() {
    let b = Board::new(1);
    b.out(REGION_MASTER, 0, 0xc0 | 3);
    b.pulse(3);
    b.pulse(4);
    assert_eq!(b.ack(), 0x24, "IR4 is top once IR3 is lowest");
    b.out(REGION_MASTER, 0, 0xa0);
    b.pulse(4);
    b.pulse(3);
    assert_eq!(b.ack(), 0x23, "rotate on non-specific EOI made IR4 lowest");
    b.out(REGION_MASTER, 0, 0xe0 | 3);
    assert_eq!(b.isr(REGION_MASTER), 0);
    assert_eq!(b.ack(), 0x24);
    b.out(REGION_MASTER, 0, 0x60 | 4);
    assert_eq!(b.isr(REGION_MASTER), 0, "specific EOI");
}

#[test]
fn special_mask_mode() {
    let b = Board::new(1);
    b.pulse(1);
    assert_eq!(b.ack(), 0x21);
    b.pulse(6);
    assert!(!b.intr());
    b.out(REGION_MASTER, 1, 0x02);
    assert!(!b.intr());
    b.out(REGION_MASTER, 0, 0x68);
    assert_eq!(b.ack(), 0x26, "the masked IR1 no longer holds back IR6");
    b.eoi(REGION_MASTER);
    assert_eq!(b.isr(REGION_MASTER), 0x02);
    b.eoi(REGION_MASTER);
    assert_eq!(b.isr(REGION_MASTER), 0x02, "a masked bit is out of reach");
    b.out(REGION_MASTER, 0, 0x48);
    b.eoi(REGION_MASTER);
    assert_eq!(b.isr(REGION_MASTER), 0);
}

#[test]
fn polling_acknowledges() {
    let b = Board::new(1);
    b.out(REGION_MASTER, 0, 0x0c);
    assert_eq!(b.inb(REGION_MASTER, 0), 0);
    b.pulse(3);
    b.out(REGION_MASTER, 0, 0x0c);
    assert_eq!(b.inb(REGION_MASTER, 0), 0x83);
    assert_eq!(b.isr(REGION_MASTER), 8);
    assert!(!b.intr());
    b.pulse(9);
    b.pulse(10);
    b.out(REGION_SLAVE, 0, 0x0c);
    assert_eq!(b.inb(REGION_SLAVE, 0), 0x81);
    b.eoi(REGION_SLAVE);
    assert_eq!(b.ack(), 0x2a);
}

#[test]
fn initialisation_clears_requests_and_skips_words() {
    let b = Board::new(1);
    b.set(4, true);
    b.out(REGION_MASTER, 1, 0xff);
    b.out(REGION_MASTER, 0, 0x12);
    b.out(REGION_MASTER, 1, 0x47);
    b.out(REGION_MASTER, 1, 0xfe);
    assert_eq!(b.inb(REGION_MASTER, 1), 0xfe, "single without ICW4: the next word is OCW1");
    assert!(!b.intr());
    b.pulse(0);
    assert_eq!(b.ack(), 0x40, "ICW2 holds only the upper five bits");
}

#[test]
fn a_loaded_pair_drives_its_output() {
    let b = Board::new(1);
    b.pulse(12);
    let saved = b.pic.lock().save();
    let c = Board::new(1);
    c.pic.lock().load(&saved).unwrap();
    assert!(c.intr());
    assert_eq!(c.ack(), 0x2c);
    let mut bad = saved.clone();
    bad.data["master"]["lowest"] = 8.into();
    assert!(c.pic.lock().load(&bad).is_err());
}

#[test]
fn word_access_reaches_both_ports() {
    let b = Board::new(1);
    b.pic.lock().write(REGION_ELCR, 0, 2, 0x0c20);
    assert_eq!(b.pic.lock().read(REGION_ELCR, 0, 2), 0x0c20);
}
