//! Tests of the PIT: each mode's OUT, counts at exact times, latches, and the way Linux calibrates through port 61h.

use super::*;
use crate::timer::testkit::{Probe, at};
use vm_core::testing::contract;

fn pit() -> (Clock, Arc<Probe>, Arc<Mutex<Pit>>) {
    let clock = Clock::new();
    let (probe, irq) = Probe::wire();
    let pit = Pit::new_shared(irq, clock.clone());
    (clock, probe, pit)
}

fn out(p: &Arc<Mutex<Pit>>, port: u16, v: u8) {
    let (region, off) = if port == 0x61 { (1, 0) } else { (0, port - 0x40) };
    PortIo::write(&mut *p.lock(), region, off, 1, v.into());
}

fn inb(p: &Arc<Mutex<Pit>>, port: u16) -> u8 {
    let (region, off) = if port == 0x61 { (1, 0) } else { (0, port - 0x40) };
    PortIo::read(&mut *p.lock(), region, off, 1) as u8
}

fn count(p: &Arc<Mutex<Pit>>, ch: u16) -> u16 {
    out(p, 0x43, (ch as u8) << 6);
    u16::from_le_bytes([inb(p, 0x40 + ch), inb(p, 0x40 + ch)])
}

#[test]
fn saved_state_contract() {
    contract(|| Pit::new(IrqLine::unconnected(), Clock::new()), 2, 5);
}

#[test]
fn mode_2_interrupts_at_the_programmed_rate() {
    let (clock, probe, pit) = pit();
    out(&pit, 0x43, 0x34);
    out(&pit, 0x40, 0x9c);
    out(&pit, 0x40, 0x2e); // 11932: 100 Hz
    probe.edges();
    let mut edges = 0;
    for ms in 0..1005 {
        at(&clock, ms * 1_000_000);
        edges += probe.edges();
    }
    assert_eq!(edges, 100);
}

#[test]
fn mode_0_fires_once_and_keeps_counting() {
    let (clock, probe, pit) = pit();
    out(&pit, 0x43, 0x30);
    assert!(!probe.level());
    out(&pit, 0x40, 100);
    out(&pit, 0x40, 0);
    at(&clock, ns_of(100));
    assert!(!probe.level(), "OUT rises N + 1 pulses after the write");
    at(&clock, ns_of(101));
    assert!(probe.level());
    at(&clock, ns_of(101 + 5));
    assert_eq!(count(&pit, 0), 0xfffb);
    at(&clock, ns_of(500_000));
    assert_eq!(probe.edges(), 1);
}

#[test]
fn mode_3_halves_and_odd_counts() {
    let (clock, probe, pit) = pit();
    out(&pit, 0x43, 0x16); // LSB only
    out(&pit, 0x40, 5);
    let mut seen = Vec::new();
    for t in 1..11 {
        clock.set(ns_of(t));
        let mut p = pit.lock();
        seen.push(p.state.counters[0].out(t));
    }
    assert_eq!(seen, [true, true, true, false, false, true, true, true, false, false]);
    clock.set(ns_of(3));
    out(&pit, 0x43, 0x00);
    assert_eq!(inb(&pit, 0x40), 0, "4, 2, 0 in the high half of an odd count");
    probe.edges();
    at(&clock, ns_of(6));
    assert_eq!(probe.edges(), 1);
}

#[test]
fn modes_1_and_5_wait_for_the_gate() {
    let (clock, _, pit) = pit();
    for (cw, before, during) in [(0x92, true, false), (0x9a, true, true)] {
        clock.set(0);
        out(&pit, 0x61, 0);
        out(&pit, 0x43, cw);
        out(&pit, 0x42, 10);
        clock.set(ns_of(100));
        assert_eq!(inb(&pit, 0x61) & 0x20 != 0, before);
        out(&pit, 0x61, 1);
        clock.set(ns_of(105));
        assert_eq!(inb(&pit, 0x61) & 0x20 != 0, during);
        clock.set(ns_of(111));
        assert_eq!(inb(&pit, 0x61) & 0x20 != 0, !during);
        clock.set(ns_of(112));
        assert_eq!(inb(&pit, 0x61) & 0x20, 0x20);
    }
}

#[test]
fn mode_4_strobes_for_one_pulse() {
    let (clock, probe, pit) = pit();
    out(&pit, 0x43, 0x38);
    out(&pit, 0x40, 50);
    out(&pit, 0x40, 0);
    probe.edges();
    at(&clock, ns_of(51));
    assert!(!pit.lock().state.counters[0].out(51));
    at(&clock, ns_of(52));
    assert_eq!(probe.edges(), 1, "the interrupt comes with the strobe's end");
    at(&clock, ns_of(70_000));
    assert_eq!(probe.edges(), 0);
}

#[test]
fn mode_2_takes_a_new_count_at_the_cycles_end() {
    let (clock, _, pit) = pit();
    out(&pit, 0x43, 0x14);
    out(&pit, 0x40, 100);
    clock.set(ns_of(51));
    out(&pit, 0x40, 20);
    assert_eq!(count(&pit, 0) & 0xff, 50);
    clock.set(ns_of(101 + 3));
    out(&pit, 0x43, 0);
    assert_eq!(inb(&pit, 0x40), 17);
}

#[test]
fn bcd_counts_in_decimal() {
    let (clock, _, pit) = pit();
    out(&pit, 0x43, 0x31);
    out(&pit, 0x40, 0x00);
    out(&pit, 0x40, 0x10);
    clock.set(ns_of(2));
    assert_eq!(count(&pit, 0), 0x0999);
    clock.set(ns_of(1 + 1001));
    assert_eq!(count(&pit, 0), 0x9999);
}

#[test]
fn latch_holds_until_read_and_status_comes_first() {
    let (clock, _, pit) = pit();
    out(&pit, 0x43, 0x34);
    out(&pit, 0x40, 0);
    out(&pit, 0x40, 0);
    clock.set(ns_of(1001));
    out(&pit, 0x43, 0xc2); // read-back of count and status, counter 0
    clock.set(ns_of(5001));
    assert_eq!(inb(&pit, 0x40), 0xb4, "OUT high, count loaded, both bytes, mode 2");
    assert_eq!(u16::from_le_bytes([inb(&pit, 0x40), inb(&pit, 0x40)]), (0x10000 - 1000) as u16);
    assert_eq!(count(&pit, 0), (0x10000 - 5000) as u16);
    out(&pit, 0x43, 0x36);
    out(&pit, 0x43, 0xe2);
    assert_eq!(inb(&pit, 0x40) & 0x40, 0x40, "null count after a control word");
}

#[test]
fn linux_calibration_sees_ten_milliseconds() {
    let (clock, _, pit) = pit();
    clock.set(123_456_789);
    out(&pit, 0x61, (inb(&pit, 0x61) & !2) | 1);
    out(&pit, 0x43, 0xb0);
    let latch = (PIT_HZ / 100) as u16;
    out(&pit, 0x42, latch as u8);
    out(&pit, 0x42, (latch >> 8) as u8);
    let start = clock.now();
    let mut now = start;
    while inb(&pit, 0x61) & 0x20 == 0 {
        now += 100;
        clock.set(now);
    }
    let took = now - start;
    assert!((9_999_000..10_003_000).contains(&took), "{took}");
}

#[test]
fn gate_of_channel_2_pauses_mode_0() {
    let (clock, _, pit) = pit();
    out(&pit, 0x61, 1);
    out(&pit, 0x43, 0xb0);
    out(&pit, 0x42, 0xff);
    out(&pit, 0x42, 0xff);
    clock.set(ns_of(101));
    out(&pit, 0x61, 0);
    clock.set(ns_of(9000));
    assert_eq!(count(&pit, 2), 0xffff - 100);
    out(&pit, 0x61, 1);
    clock.set(ns_of(9011));
    assert_eq!(count(&pit, 2), 0xffff - 110);
}

#[test]
fn refresh_toggles_and_a_cut_line_stays_still() {
    let (clock, probe, pit) = pit();
    let a = inb(&pit, 0x61) & 0x10;
    clock.set(ns_of(18));
    assert_ne!(inb(&pit, 0x61) & 0x10, a);
    let cut = Arc::new(AtomicBool::new(true));
    pit.lock().cut_by(cut.clone());
    out(&pit, 0x43, 0x34);
    out(&pit, 0x40, 0);
    out(&pit, 0x40, 4);
    at(&clock, 10_000_000);
    assert_eq!(probe.edges(), 0);
    cut.store(false, Ordering::SeqCst);
    at(&clock, 20_000_000);
    assert_eq!(probe.edges(), 1);
}

#[test]
fn a_restored_machine_keeps_its_interrupt() {
    let (clock, _, pit) = pit();
    out(&pit, 0x43, 0x34);
    out(&pit, 0x40, 0);
    out(&pit, 0x40, 0x10);
    clock.set(1_000_000);
    let saved = pit.lock().save();
    let (clock2, probe2, pit2) = self::pit();
    clock2.set(1_000_000);
    pit2.lock().load(&saved).unwrap();
    at(&clock2, ns_of(0x1001));
    assert_eq!(probe2.edges(), 1);
}

#[test]
fn mode_3_takes_a_new_count_at_the_middle() {
    let (clock, probe, pit) = pit();
    out(&pit, 0x43, 0x16);
    out(&pit, 0x40, 20);
    clock.set(ns_of(3));
    out(&pit, 0x40, 6);
    let mut seen = Vec::new();
    for t in [10, 11, 13, 14, 16, 17] {
        clock.set(ns_of(t));
        seen.push(pit.lock().state.counters[0].out(t));
    }
    assert_eq!(seen, [true, false, false, true, true, false], "high for 10 pulses, then low for 3");
    let (clock, probe2, pit2) = self::pit();
    out(&pit2, 0x43, 0x16);
    out(&pit2, 0x40, 20);
    clock.set(ns_of(3));
    out(&pit2, 0x40, 6);
    probe2.edges();
    at(&clock, ns_of(13));
    assert_eq!(probe2.edges(), 0);
    at(&clock, ns_of(14));
    assert_eq!(probe2.edges(), 1, "the interrupt comes where OUT rises");
    drop(probe);
}

#[test]
fn gate_of_channel_2_stops_mode_2_and_reloads() {
    let (clock, _, pit) = pit();
    out(&pit, 0x61, 1);
    out(&pit, 0x43, 0xb4);
    out(&pit, 0x42, 100);
    out(&pit, 0x42, 0);
    clock.set(ns_of(31));
    out(&pit, 0x61, 0);
    clock.set(ns_of(1000));
    assert_eq!(count(&pit, 2), 70);
    out(&pit, 0x61, 1);
    clock.set(ns_of(1011));
    assert_eq!(count(&pit, 2), 90);
}

/// OUT as sampled pulse by pulse must rise exactly where `next_rise` says, whatever was programmed.
#[test]
fn next_rise_agrees_with_out() {
    let mut r = vm_core::testing::Rng(7);
    for _ in 0..3000 {
        let mut c = Counter::new(true);
        c.control(0x10 | (r.below(6) as u8) << 1);
        let mut t = 5 + r.below(50);
        c.write(2 + r.below(40) as u8, t);
        for _ in 0..3 {
            t += r.below(60);
            match r.below(3) {
                0 => c.write(2 + r.below(40) as u8, t),
                1 => c.set_gate(r.below(2) == 0, t),
                _ => {}
            }
        }
        let mut level = c.out(t);
        let said = c.next_rise(t);
        let mut rise = None;
        for u in t + 1..t + 200 {
            let now = c.clone().out(u);
            if now && !level {
                rise = Some(u);
                break;
            }
            level = now;
        }
        assert_eq!(said, rise, "{c:?} at {t}");
    }
}

/// A count of 250 Hz on channel 0.
fn run_250_hz(pit: &Arc<Mutex<Pit>>) {
    out(pit, 0x43, 0x34);
    out(pit, 0x40, 0xa5);
    out(pit, 0x40, 0x12); // 4773
}

#[test]
fn edges_that_a_late_timer_missed_are_made_up_for_one_by_one() {
    let (clock, probe, pit) = pit();
    run_250_hz(&pit);
    at(&clock, 5_000_000);
    probe.edges();
    // Nothing ran for 41 ms: ten edges.
    let mut got = Vec::new();
    for step in 0..20 {
        at(&clock, 46_000_000 + step * 300_000);
        got.push(probe.edges());
    }
    assert!(got.iter().all(|n| *n <= 1), "{got:?}");
    assert_eq!(got.iter().sum::<u32>(), 10 + 1, "{got:?}");
    let late = (0..1000).filter(|ms| {
        at(&clock, 60_000_000 + ms * 1_000_000);
        probe.edges() > 0
    });
    let late = late.count();
    assert!((248..=254).contains(&late), "back at the programmed rate: {late}");
}

#[test]
fn an_edge_waits_until_the_cpu_has_taken_the_one_before() {
    let (clock, probe, pit) = pit();
    let busy = Arc::new(AtomicBool::new(false));
    let b = busy.clone();
    pit.lock().wait_while(move || b.load(Ordering::SeqCst));
    run_250_hz(&pit);
    probe.edges();
    at(&clock, 5_000_000);
    assert_eq!(probe.edges(), 1);
    busy.store(true, Ordering::SeqCst);
    for ms in 6..30 {
        at(&clock, ms * 1_000_000);
    }
    assert_eq!(probe.edges(), 0);
    busy.store(false, Ordering::SeqCst);
    let made_up: u32 = (0..8)
        .map(|step| {
            at(&clock, 30_000_000 + step * 300_000);
            probe.edges()
        })
        .sum();
    assert_eq!(made_up, 6 + 1, "those of 8 to 28 ms, and of 32");
}

#[test]
fn an_hour_of_missed_edges_is_not_made_up_for() {
    let (clock, probe, pit) = pit();
    run_250_hz(&pit);
    let hour = 3_600_000_000_000;
    let mut edges = 0;
    for step in 0..4000 {
        at(&clock, hour + step * 300_000);
        edges += u64::from(probe.edges());
    }
    assert!((500..=600).contains(&edges), "{edges}: a second of them, and those of the {} ms since", 4000 * 3 / 10);
}

/// The clock tells the time, the guest programs the counter anew, then the timer's handler runs.
#[test]
fn a_handler_that_comes_late_makes_no_edge_of_its_own() {
    let (clock, probe, pit) = pit();
    out(&pit, 0x43, 0x30);
    out(&pit, 0x40, 100);
    out(&pit, 0x40, 0);
    at(&clock, ns_of(200));
    assert_eq!(probe.edges(), 1);
    pit.lock().expired(ns_of(50));
    assert!(probe.level(), "OUT has risen and stays");
    assert_eq!(probe.edges(), 0);
}
