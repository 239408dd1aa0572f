//! Time with and without the lock, and timers.

use super::*;
use std::sync::atomic::{AtomicU32, Ordering};

#[test]
fn by_instructions_a_timer_is_due_at_the_first_count_not_before_it() {
    let counter = Arc::new(InsnCounter::default());
    let clock = Clock::counting(counter.clone(), 8 * RATE_ONE);
    let timer = clock.timer("t");
    clock.start();
    for (deadline, insns) in [(0, 0), (1, 1), (8, 1), (9, 2), (80, 10)] {
        timer.arm(deadline);
        assert_eq!(clock.insns_to_deadline(), Some(insns), "{deadline} ns");
    }
    counter.publish(9);
    assert_eq!((clock.now(), clock.insns_to_deadline(), clock.ns_to_deadline()), (72, Some(1), Some(8)));
    clock.skip(8);
    assert_eq!((clock.now(), clock.insns_to_deadline()), (80, Some(0)));
    clock.stop();
    counter.publish(100);
    assert_eq!(clock.now(), 80, "the clock stands");
    clock.start();
    counter.publish(101);
    assert_eq!(clock.now(), 88);
    clock.set_rate(RATE_ONE / 2);
    counter.publish(104);
    assert_eq!(clock.now(), 89);
}

#[test]
fn timers_are_never_behind_the_time_that_is_told() {
    let clock = Clock::new();
    let (timer, runs) = (clock.timer("test"), Arc::new(AtomicU32::new(0)));
    let count = runs.clone();
    timer.bind(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    timer.arm(1);
    clock.set(5);
    assert_eq!((clock.tell(), runs.load(Ordering::Relaxed)), (5, 0), "the machine is stopped");
    clock.start();
    assert!(clock.tell() >= 5 && runs.load(Ordering::Relaxed) == 1);
    timer.arm(u64::MAX);
    clock.tell();
    assert_eq!(runs.load(Ordering::Relaxed), 1);
}

#[test]
fn the_lock_is_left_alone_while_time_just_runs() {
    let clock = Clock::new();
    assert_eq!(clock.0.shown.now(), None);
    clock.start();
    let (a, lock) = (clock.now(), clock.0.state.lock());
    let b = clock.tell();
    assert!(a <= b && b <= lock.now());
    drop(lock);
    clock.skip(1 << 50);
    assert!(clock.0.shown.now().is_some_and(|t| (b + (1 << 50)..b + (1 << 51)).contains(&t)));
    clock.stop();
    assert_eq!((clock.0.shown.now(), clock.now()), (None, clock.now()));
    clock.set(7);
    assert_eq!(clock.now(), 7);
    let counting = Clock::counting(Arc::new(InsnCounter::default()), RATE_ONE);
    counting.start();
    assert_eq!((counting.0.shown.now(), counting.now()), (None, 0));
}

#[test]
fn what_is_due_first_follows_every_change() {
    let clock = Clock::new();
    clock.set(100);
    clock.start();
    let ran = Arc::new(Mutex::new(Vec::new()));
    let timers = ["a", "b", "c", "d"].map(|name| {
        let (t, ran) = (clock.timer(name), ran.clone());
        t.bind(move |_| ran.lock().push(name));
        t
    });
    let next = || clock.0.shown.next.load(Ordering::Relaxed);
    [NEVER - 1, 50, 40, 30].into_iter().zip(&timers).for_each(|(d, t)| t.arm(d));
    timers[3].cancel();
    assert_eq!(next(), 40);
    clock.now();
    assert!(ran.lock().is_empty(), "whoever only looks at the time runs nothing");
    clock.tell();
    assert_eq!((&ran.lock()[..], next()), (&["c", "b"][..], NEVER - 1));
    timers[0].arm(NEVER - 2);
    assert_eq!(next(), NEVER - 2);
    timers[0].cancel();
    assert_eq!(next(), NEVER);
}

/// Readers on their own threads, while the clock is stopped, set and started.
#[test]
fn time_goes_back_for_nobody() {
    const ROUNDS: usize = 100_000;
    let clock = Clock::new();
    let done = AtomicU32::new(0);
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                let mut last = 0;
                while done.load(Ordering::Relaxed) == 0 {
                    let now = clock.tell();
                    assert!(now >= last, "{now} after {last}");
                    last = now;
                }
            });
        }
        for i in 0..ROUNDS {
            clock.start();
            let runs = clock.now();
            (0..i % 64).for_each(|_| std::hint::spin_loop());
            clock.stop();
            // Whoever has gone too far comes back here.
            (0..64).for_each(|_| std::hint::spin_loop());
            let stands = clock.now();
            assert!(runs <= stands && clock.now() == stands);
        }
        done.store(1, Ordering::Relaxed);
    });
}

#[test]
fn only_an_earlier_deadline_is_told() {
    let clock = Clock::new();
    let told = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let t = told.clone();
    clock.on_earlier(Box::new(move || {
        t.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }));
    let (a, b) = (clock.timer("a"), clock.timer("b"));
    a.arm(100);
    b.arm(200);
    b.arm(50);
    assert_eq!(told.load(std::sync::atomic::Ordering::Relaxed), 2);
}
