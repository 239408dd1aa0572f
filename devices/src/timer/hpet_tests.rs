//! Tests of the HPET: counter, one-shot and periodic timers, edge and level, legacy replacement.

use super::*;
use crate::timer::testkit::{Probe, at};
use vm_core::testing::contract;

const T0: u64 = 0x100;
const T2: u64 = 0x140;

struct Board {
    clock: Clock,
    gsi: Vec<Arc<Probe>>,
    legacy: [Arc<Probe>; 2],
    hpet: Arc<Mutex<Hpet>>,
}

impl Board {
    fn new() -> Self {
        let clock = Clock::new();
        let (gsi, lines) = (0..24).map(|_| Probe::wire()).unzip();
        let (a, b) = (Probe::wire(), Probe::wire());
        let hpet = Hpet::new_shared(lines, [a.1, b.1], clock.clone());
        Self { clock, gsi, legacy: [a.0, b.0], hpet }
    }

    fn write(&self, at: u64, v: u64) {
        self.hpet.lock().write(0, at, 8, v);
    }

    fn write32(&self, at: u64, v: u64) {
        self.hpet.lock().write(0, at, 4, v);
    }

    fn read(&self, at: u64) -> u64 {
        self.hpet.lock().read(0, at, 8)
    }
}

#[test]
fn saved_state_contract() {
    let wires = || (0..24).map(|_| IrqLine::unconnected()).collect();
    let make = || Hpet::new(wires(), [IrqLine::unconnected(), IrqLine::unconnected()], Clock::new());
    contract(make, 1, 0x180);
}

#[test]
fn identification_and_counter() {
    let b = Board::new();
    assert_eq!(b.read(0), 0x0098_9680_8086_a201);
    assert_eq!(b.hpet.lock().read(0, 4, 4) & 0xffff_ffff, 10_000_000);
    b.clock.set(5_000);
    assert_eq!(b.read(REG_MAIN_CNT), 0, "halted at reset");
    b.write(REG_GEN_CONF, 1);
    b.clock.set(15_000);
    assert_eq!(b.read(REG_MAIN_CNT), 1000);
    b.write(REG_GEN_CONF, 0);
    b.clock.set(50_000);
    assert_eq!(b.read(REG_MAIN_CNT), 1000);
    b.write(REG_MAIN_CNT, 0xffff_ffff_ffff_fff0);
    b.write(REG_GEN_CONF, 1);
    b.clock.set(50_200);
    assert_eq!(b.read(REG_MAIN_CNT), 4);
}

#[test]
fn one_shot_edge_on_an_io_apic_input() {
    let b = Board::new();
    b.write(T2, 21 << 9 | TN_INT_ENB);
    b.write(T2 + 8, 100_000);
    b.write(REG_GEN_CONF, 1);
    at(&b.clock, 999_990);
    assert_eq!(b.gsi[21].edges(), 0);
    at(&b.clock, 1_000_000);
    assert_eq!((b.gsi[21].edges(), b.gsi[21].level()), (1, false));
    at(&b.clock, 900_000_000_000);
    assert_eq!(b.gsi[21].edges(), 0, "64 bits do not wrap");
}

#[test]
fn level_stays_until_acknowledged() {
    let b = Board::new();
    b.write(T0, 20 << 9 | TN_INT_ENB | TN_INT_TYPE_LEVEL);
    b.write(T0 + 8, 10);
    b.write(REG_GEN_CONF, 1);
    at(&b.clock, 100);
    assert_eq!((b.gsi[20].level(), b.read(REG_GINTR_STA)), (true, 1));
    b.write(T0, 22 << 9 | TN_INT_ENB | TN_INT_TYPE_LEVEL);
    assert!(!b.gsi[20].level() && b.gsi[22].level(), "a level follows its route");
    b.write(REG_GINTR_STA, 1);
    assert!(!b.gsi[22].level());
}

/// How Linux programs the clock event device: 32-bit, legacy replacement, VAL_SET and two writes.
#[test]
fn periodic_under_legacy_replacement() {
    let b = Board::new();
    let flag = b.hpet.lock().legacy_flag();
    vm_core::IrqSink::set_irq(&*b.legacy[0], 0, true);
    b.write(REG_GEN_CONF, 3);
    assert!(!b.legacy[0].level(), "what the PIT left high is taken down");
    b.legacy[0].edges();
    assert!(flag.load(Ordering::SeqCst));
    b.clock.set(1_000_000);
    let count = b.read(REG_MAIN_CNT);
    b.write32(T0, TN_INT_ENB | TN_TYPE_PERIODIC | TN_VAL_SET | TN_32MODE);
    b.write32(T0 + 8, count + 400_000);
    b.clock.set(1_001_000);
    b.write32(T0 + 8, 400_000);
    let mut n = 0;
    for t in 1..=1000 {
        at(&b.clock, 1_001_000 + t * 1_000_000);
        n += b.legacy[0].edges();
    }
    assert_eq!(n, 250);
    assert!(b.gsi.iter().all(|g| g.edges() == 0));
    b.write(REG_GEN_CONF, 1);
    assert!(!flag.load(Ordering::SeqCst));
    at(&b.clock, 3_000_000_000);
    assert_eq!(b.legacy[0].edges(), 0);
}

#[test]
fn a_32_bit_one_shot_matches_at_each_wrap() {
    let b = Board::new();
    b.write(T0, TN_INT_ENB | TN_32MODE | 23 << 9);
    b.write(T0 + 8, 1000);
    b.write(REG_GEN_CONF, 1);
    at(&b.clock, 10_000);
    assert_eq!(b.gsi[23].edges(), 1);
    at(&b.clock, 42_949_682_950);
    assert_eq!(b.gsi[23].edges(), 0);
    at(&b.clock, 42_949_672_960 + 10_000);
    assert_eq!(b.gsi[23].edges(), 1);
}

#[test]
fn a_tiny_period_does_not_hold_the_timer_thread() {
    let b = Board::new();
    b.write(T0, TN_INT_ENB | TN_TYPE_PERIODIC | TN_VAL_SET | 20 << 9);
    b.write(T0 + 8, 1);
    b.write(REG_GEN_CONF, 1);
    at(&b.clock, 1_000_000);
    assert_eq!(b.gsi[20].edges(), 1);
    assert!(b.clock.armed().iter().all(|(_, t)| *t >= 1_000_000 + MIN_GAP_NS));
}

#[test]
fn routes_not_offered_do_not_stick() {
    let b = Board::new();
    b.write(T0, 11 << 9);
    assert_eq!(b.read(T0) & TN_INT_ROUTE, 0);
    b.write(T2, 11 << 9);
    assert_eq!(b.read(T2) & TN_INT_ROUTE, 11 << 9);
    assert_eq!(b.read(T0) >> 32, 0x00f0_0000);
    assert_eq!(b.read(0x110), 0, "no FSB route");
}
