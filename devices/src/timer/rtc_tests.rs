//! Tests of the real-time clock: reading and setting the time, its three interrupts, UIP, and CMOS.

use super::*;
use crate::timer::testkit::{Probe, at};
use vm_core::testing::contract;

/// Thursday 2024-02-29 12:34:56.
const START: i64 = 1_709_210_096;
const MS: u64 = 1_000_000;

fn rtc() -> (Clock, Arc<Probe>, Arc<Mutex<Rtc>>) {
    let clock = Clock::new();
    let (probe, irq) = Probe::wire();
    let rtc = Rtc::new_shared(irq, clock.clone(), START);
    (clock, probe, rtc)
}

fn get(r: &Arc<Mutex<Rtc>>, index: u8) -> u8 {
    let mut r = r.lock();
    r.write(0, 0, 1, index.into());
    PortIo::read(&mut *r, 0, 1, 1) as u8
}

fn set(r: &Arc<Mutex<Rtc>>, index: u8, v: u8) {
    let mut r = r.lock();
    r.write(0, 0, 1, index.into());
    r.write(0, 1, 1, v.into());
}

#[test]
fn saved_state_contract() {
    contract(|| Rtc::new(IrqLine::unconnected(), Clock::new(), START), 1, 3);
}

#[test]
fn time_advances_with_the_clock() {
    let (clock, _, r) = rtc();
    assert_eq!((get(&r, 0), get(&r, 2), get(&r, 4), get(&r, 7), get(&r, 0x32)), (0x56, 0x34, 0x12, 0x29, 0x20));
    clock.set(3_999 * MS);
    assert_eq!(get(&r, 0), 0x59);
    clock.set(4_000 * MS);
    assert_eq!((get(&r, 0), get(&r, 2)), (0x00, 0x35));
    clock.set(86_400_000 * MS);
    assert_eq!((get(&r, 7), get(&r, 8)), (0x01, 0x03), "1 March");
    set(&r, REG_B, B_BINARY);
    assert_eq!(get(&r, 4), 0x80 | 12, "noon hour in 12-hour binary");
}

#[test]
fn linux_sets_the_time_with_the_divider_in_reset() {
    let (clock, _, r) = rtc();
    clock.set(5_300 * MS);
    let (a, b) = (get(&r, REG_A), get(&r, REG_B));
    set(&r, REG_B, b | B_SET);
    set(&r, REG_A, a & 0x0f | 0x70);
    for (reg, v) in [(9, 0x99), (0x32, 0x19), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58)] {
        set(&r, reg, v);
    }
    set(&r, REG_B, b);
    set(&r, REG_A, a);
    clock.set(5_799 * MS);
    assert_eq!(get(&r, 0), 0x58);
    clock.set(5_801 * MS);
    assert_eq!(get(&r, 0), 0x59, "first update half a second after the release");
    clock.set(6_801 * MS);
    assert_eq!((get(&r, 0), get(&r, 9), get(&r, 0x32)), (0, 0, 0x20), "into the year 2000");
}

#[test]
fn writes_without_set_take_effect_at_once() {
    let (clock, _, r) = rtc();
    set(&r, 2, 0x07);
    clock.set(1_000 * MS);
    assert_eq!((get(&r, 0), get(&r, 2), get(&r, 4)), (0x57, 0x07, 0x12));
}

#[test]
fn periodic_interrupt_runs_at_1024_hz() {
    let (clock, irq, r) = rtc();
    set(&r, REG_B, B_24H | B_PIE);
    let mut n = 0;
    for t in 1..=10_000 {
        at(&clock, t * 100_000);
        if irq.edges() > 0 {
            n += 1;
            assert_eq!(get(&r, REG_C) & (C_IRQF | C_PF), C_IRQF | C_PF);
            assert!(!irq.level());
        }
    }
    assert_eq!(n, 1024);
}

#[test]
fn update_and_alarm_interrupts() {
    let (clock, irq, r) = rtc();
    set(&r, 1, 0x58);
    set(&r, 3, 0xff);
    set(&r, 5, 0xc0);
    set(&r, REG_B, B_24H | B_AIE);
    at(&clock, 1_000 * MS);
    assert!(!irq.level());
    at(&clock, 2_000 * MS);
    assert!(irq.level());
    assert_eq!(get(&r, REG_C), C_IRQF | C_AF | C_UF | C_PF);
    set(&r, REG_B, B_24H | B_UIE);
    irq.edges();
    at(&clock, 2_900 * MS);
    assert_eq!(irq.edges(), 0);
    at(&clock, 3_000 * MS);
    assert_eq!((irq.edges(), get(&r, REG_C) & C_UF), (1, C_UF));
}

#[test]
fn an_alarm_passed_while_nobody_looked_is_found() {
    let (clock, _, r) = rtc();
    set(&r, 1, 0x00);
    set(&r, 3, 0x00);
    set(&r, 5, 0x03);
    get(&r, REG_C);
    clock.set(10 * 3_600_000 * MS);
    assert_eq!(get(&r, REG_C) & C_AF, 0);
    clock.set(20 * 3_600_000 * MS);
    assert_eq!(get(&r, REG_C) & C_AF, C_AF);
}

#[test]
fn uip_precedes_the_update() {
    let (clock, _, r) = rtc();
    clock.set(997 * MS);
    assert_eq!(get(&r, REG_A), 0x26);
    clock.set(998 * MS);
    assert_eq!(get(&r, REG_A), 0xa6);
    clock.set(1_000 * MS);
    assert_eq!(get(&r, REG_A), 0x26);
    assert_eq!(get(&r, REG_D), 0x80);
}

#[test]
fn memory_sizes_survive_reset() {
    let (_, _, r) = rtc();
    r.lock().set_memory(2 << 30, 5 << 30);
    set(&r, 0x40, 0x5a);
    assert_eq!(get(&r, 0x40), 0x5a);
    r.lock().reset();
    assert_eq!((get(&r, 0x15), get(&r, 0x16), get(&r, 0x17), get(&r, 0x30)), (0x80, 0x02, 0xff, 0xff));
    assert_eq!(u16::from_le_bytes([get(&r, 0x34), get(&r, 0x35)]), 0x7f00);
    assert_eq!((get(&r, 0x5b), get(&r, 0x5c), get(&r, 0x5d)), (0x00, 0x40, 0x01));
    assert_eq!(get(&r, 0x40), 0);
}

#[test]
fn advancing_moves_the_time_of_day_and_nothing_else() {
    let r = &mut Rtc::new(IrqLine::unconnected(), Clock::new(), 59);
    let read = |r: &mut Rtc, index| {
        r.write(0, 0, 1, index);
        r.read(0, 1, 1)
    };
    r.advance(3 * 3600 + 1);
    // BCD: 03:01:00.
    assert_eq!((read(r, 4), read(r, 2), read(r, 0), read(r, 0xc)), (3, 1, 0, 0));
    r.advance(i64::MAX);
    r.advance(i64::MIN);
}
