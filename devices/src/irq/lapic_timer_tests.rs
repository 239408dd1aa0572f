//! Tests of the local APIC timer: the clock is stopped and set by hand.

use super::apic_bus::ApicBus;
use super::lapic::{Lapic, LapicConfig};
use super::lapic_timer::MIN_PERIOD_NS;
use std::sync::Arc;
use vm_core::testing::Rng;
use vm_core::{Clock, Events};

const EOI: u64 = 0xb0;
const SVR: u64 = 0xf0;
const LVT: u64 = 0x320;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
const DEADLINE: u32 = 0x6e0;
const MASKED: u32 = 0x1_0000;
const PERIODIC: u32 = 0x2_0000;
const TSC: u32 = 0x4_0000;

fn make() -> (Clock, Arc<Lapic>) {
    let (clock, bus) = (Clock::new(), ApicBus::new());
    let config = LapicConfig { id: 0, bsp: true, x2apic: false, tsc_hz: 3_000_000_000, phys_bits: 40 };
    let l = Lapic::new(config, Arc::default(), &clock, &bus, Arc::new(|| None));
    l.mmio_write(SVR, 0x1ff);
    (clock, l)
}

fn at(clock: &Clock, ns: u64) {
    clock.set(ns);
    clock.run_expired();
}

/// Whether the timer's interrupt is there; takes and ends it.
fn fired(l: &Lapic) -> bool {
    let told = l.signals().pending().contains(Events::INTR);
    let v = l.ack();
    assert_eq!(told, v.is_some());
    if v.is_some() {
        l.mmio_write(EOI, 0);
    }
    v == Some(0x40)
}

#[test]
fn one_shot() {
    let (clock, l) = make();
    l.mmio_write(DIVIDE, 0xb);
    l.mmio_write(LVT, 0x40);
    l.mmio_write(INITIAL, 1000);
    at(&clock, 400);
    assert_eq!((l.mmio_read(INITIAL), l.mmio_read(CURRENT)), (1000, 600));
    at(&clock, 999);
    assert!(!fired(&l));
    at(&clock, 1000);
    assert!(fired(&l));
    assert_eq!(l.mmio_read(CURRENT), 0);
    at(&clock, 5000);
    assert!(!fired(&l), "once");
    l.mmio_write(INITIAL, 1000);
    l.mmio_write(INITIAL, 0);
    at(&clock, 9000);
    assert!(!fired(&l), "zero stops it");
}

#[test]
fn divider() {
    let (clock, l) = make();
    for (code, divisor) in [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)] {
        let start = clock.now();
        l.mmio_write(DIVIDE, code);
        l.mmio_write(INITIAL, 1000);
        at(&clock, start + 10 * divisor);
        assert_eq!(l.mmio_read(CURRENT), 990, "{divisor}");
    }
    l.mmio_write(DIVIDE, 0);
    assert_eq!(l.mmio_read(CURRENT), 990, "a new divisor changes the rate, not the count");
    at(&clock, clock.now() + 20);
    assert_eq!(l.mmio_read(CURRENT), 980);
    l.mmio_write(DIVIDE, !0);
    assert_eq!(l.mmio_read(DIVIDE), 0xb);
}

#[test]
fn periodic() {
    let (clock, l) = make();
    l.mmio_write(LVT, PERIODIC | 0x40);
    l.mmio_write(INITIAL, 50_000);
    for i in 1..5 {
        at(&clock, i * 100_000 - 1);
        assert!(!fired(&l));
        at(&clock, i * 100_000);
        assert!(fired(&l), "period {i}");
    }
    at(&clock, 1_030_000);
    assert!(fired(&l) && !fired(&l), "missed periods are one interrupt");
    assert_eq!(l.mmio_read(CURRENT), 35_000, "and the phase is kept");
    at(&clock, 1_100_000);
    assert!(fired(&l));
}

#[test]
fn short_periods_do_not_run_wild() {
    let (clock, l) = make();
    l.mmio_write(DIVIDE, 0xb);
    l.mmio_write(LVT, PERIODIC | 0x40);
    l.mmio_write(INITIAL, 1);
    at(&clock, 1);
    assert!(fired(&l));
    assert_eq!(clock.armed(), [("lapic", 1 + MIN_PERIOD_NS)]);
    at(&clock, 1 + MIN_PERIOD_NS);
    assert!(fired(&l));
}

#[test]
fn masked_timers_count_silently() {
    let (clock, l) = make();
    l.mmio_write(LVT, MASKED | PERIODIC | 0x40);
    l.mmio_write(INITIAL, 50_000);
    assert!(clock.armed().is_empty());
    at(&clock, 250_000);
    assert_eq!(l.mmio_read(CURRENT), 25_000);
    l.mmio_write(LVT, PERIODIC | 0x40);
    assert!(!fired(&l), "what ended under the mask is lost");
    at(&clock, 300_000);
    assert!(fired(&l));
    l.mmio_write(SVR, 0xff);
    assert!(clock.armed().is_empty(), "the host is not woken for nothing");
    at(&clock, 400_000);
    assert!(!fired(&l), "a software disable masks");
}

#[test]
fn an_expiry_is_judged_by_the_settings_of_its_time() {
    let (clock, l) = make();
    l.mmio_write(LVT, 0x40);
    l.mmio_write(INITIAL, 1000);
    clock.set(2500);
    l.mmio_write(LVT, MASKED | 0x40);
    assert!(fired(&l), "the timer thread was late, the interrupt is not lost");
    clock.run_expired();
    assert!(!fired(&l));
}

#[test]
fn tsc_deadline() {
    let (clock, l) = make();
    assert!(l.msr_write(DEADLINE, 3000));
    assert_eq!(l.msr_read(DEADLINE), Some(0), "ignored in other modes");
    l.mmio_write(LVT, TSC | 0x40);
    l.mmio_write(INITIAL, 77);
    assert_eq!((l.mmio_read(INITIAL), l.mmio_read(CURRENT)), (0, 0));
    assert!(l.msr_write(DEADLINE, 3001));
    assert_eq!(l.msr_read(DEADLINE), Some(3001));
    at(&clock, 1000);
    assert!(!fired(&l), "1000 ns is tick 3000");
    at(&clock, 1001);
    assert!(fired(&l));
    assert_eq!(l.msr_read(DEADLINE), Some(0));
    assert!(l.msr_write(DEADLINE, 5));
    assert!(fired(&l), "a time in the past expires at once");
    assert!(l.msr_write(DEADLINE, 9000) && l.msr_write(DEADLINE, 0));
    at(&clock, 4000);
    assert!(!fired(&l), "zero disarms");
    assert!(l.msr_write(DEADLINE, 15_000));
    l.mmio_write(LVT, 0x40);
    l.mmio_write(LVT, TSC | 0x40);
    at(&clock, 6000);
    assert!(!fired(&l), "a change of mode disarms");
    assert!(l.msr_write(DEADLINE, u64::MAX));
    assert!(!fired(&l));
}

#[test]
fn saved_timers_go_on() {
    let (clock, l) = make();
    l.mmio_write(LVT, 0x40);
    l.mmio_write(INITIAL, 1000);
    at(&clock, 500);
    let saved = l.save();
    let (clock, m) = make();
    clock.set(500);
    m.load(&saved).unwrap();
    assert_eq!(m.mmio_read(CURRENT), 750);
    at(&clock, 2000);
    assert!(fired(&m));
    m.mmio_write(INITIAL, 1000);
    m.reset();
    assert!(clock.armed().is_empty());
}

#[test]
fn hostile_writes_at_any_time() {
    let (clock, l) = make();
    let mut r = Rng(5);
    let mut now = 0u64;
    for _ in 0..20_000 {
        now = now.saturating_add(r.next_u64() >> (r.below(40) + 20));
        at(&clock, now);
        let reg = [LVT, INITIAL, DIVIDE, SVR][r.below(4) as usize];
        l.mmio_write(reg, r.next_u64() as u32 | if reg == SVR { 0x100 } else { 0 });
        l.msr_write(DEADLINE, r.next_u64());
        l.mmio_read(CURRENT);
        l.ack();
        l.mmio_write(EOI, 0);
    }
}
