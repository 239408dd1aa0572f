//! Tests of the TLB, and of who may write where.

use super::writers::{ANY, WRITERS, writers_of};
use super::*;

fn tables() -> Box<Tables> {
    let mut t = Box::new(Tables(
        [const { Table { limits: [const { AtomicU64::new(0) }; LIMITS], entries: [empty(0); ENTRIES] } }; CTX_COUNT],
    ));
    t.clear();
    t
}

fn hits(t: &Tables, va: u64, size: u64) -> bool {
    va.wrapping_sub(t.entry(va, 0).read) <= 4096 - size
}

#[test]
fn empty_entries_never_hit_and_crossing_misses() {
    let mut t = tables();
    for va in [0, 0xfff, 0x1000, u64::MAX, 0xffff_8000_0000_0000, 1 << 22] {
        assert!(!hits(&t, va, 1), "{va:#x}");
    }
    let mut f = Fills::default();
    let serves = Serves { read: true, write: false, exec: false, global: false };
    f.fill(&mut t, 0x7000, 0, serves, 0x100);
    assert!(hits(&t, 0x7ff8, 8) && !hits(&t, 0x7ff9, 8) && !hits(&t, 0x6fff, 1));
    assert!(!hits(&t, 0x7000 + (1 << 22), 1));
    f.flush_local(&mut t);
    assert!(!hits(&t, 0x7000, 1));
}

/// Random fills, flushes and revocations: as the search of the tables finds them.
#[test]
fn writes_are_revoked_wherever_they_are() {
    let (mut t, mut f, mut x) = (tables(), Fills::default(), 1u64);
    let mut random = |n: u64| {
        x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (x >> 33) % n
    };
    let mut left = Vec::new();
    for _ in 0..20_000 {
        let (va, host, ctx) = (random(40) << 12 | random(2) << 25, random(30) << 12 | random(2) << 24, random(3) as usize);
        match random(40) {
            0 => f.flush_local(&mut t),
            // As address spaces come and go; nothing that was revoked may come back.
            10 => left = f.leave(&mut t),
            11 => f.come_back(&mut t, &std::mem::take(&mut left)),
            1 => f.flush_all(&mut t),
            2 => f.flush_page(&mut t, va),
            3..10 => {
                f.revoke_writes(&mut t, host);
                left.clear();
                let writes = |e: &Entry, i: usize| e.write != empty_tag(i) && e.write.wrapping_add(e.addend) == host;
                assert!(!t.0.iter().any(|c| c.iter().enumerate().any(|(i, e)| writes(e, i))));
                assert!(f.victims.iter().all(Option::is_none));
            }
            n => {
                let serves = Serves { read: true, write: n % 2 == 0, exec: false, global: n % 3 == 0 };
                f.fill(&mut t, va, ctx, serves, host.wrapping_sub(va));
            }
        }
    }
}

#[test]
fn what_was_left_comes_back_but_for_what_is_global() {
    let (mut t, mut f) = (tables(), Fills::default());
    let serves = |global| Serves { read: true, write: true, exec: false, global };
    f.fill(&mut t, 0x7000, 0, serves(false), 0x100);
    f.fill(&mut t, 0x9000, 0, serves(true), 0x100);
    f.fill(&mut t, 0xb000, 0, serves(false), 0x100);
    let left = f.leave(&mut t);
    assert!(!hits(&t, 0x7000, 8) && hits(&t, 0x9000, 8) && left.len() == 2);
    // In the other space the place is a global page's.
    f.fill(&mut t, 0xb000 + (1 << 25), 0, serves(true), 0x200);
    f.come_back(&mut t, &left);
    assert!(hits(&t, 0x7000, 8) && hits(&t, 0x9000, 8) && !hits(&t, 0xb000, 8));
    assert!(!f.global(0x7000, 0));
    f.flush_local(&mut t);
    assert!(!hits(&t, 0x7000, 8) && hits(&t, 0x9000, 8));
}

/// Of host pages of one hash, written to in turns, none makes the others be searched for.
#[test]
fn writers_of_one_hash_are_told_apart() {
    let (mut t, mut f) = (tables(), Fills::default());
    let host = |n: u64| (n << WRITERS << 12) + 0x5000;
    f.revoke_writes(&mut t, host(1));
    for n in 1..100 {
        let va = 0x10_0000 + ((n % 50) << 12);
        f.fill(&mut t, va, 0, RW, host(n % 3 + 1).wrapping_sub(va));
        assert!(f.writers[writers_of(host(1))][0] != ANY);
        f.revoke_writes(&mut t, host(n % 3 + 1));
        assert!(t.entry(va, 0).write != va);
    }
    // Five at a time are too many to be told apart.
    for n in 1..6 {
        let va = 0x20_0000 + (n << 12);
        f.fill(&mut t, va, 0, RW, host(n).wrapping_sub(va));
    }
    assert!(f.writers[writers_of(host(1))][0] == ANY);
    f.revoke_writes(&mut t, host(2));
    assert!(t.entry(0x20_2000, 0).write != 0x20_2000 && t.entry(0x20_3000, 0).write == 0x20_3000);
}

#[test]
fn global_entries_survive_a_local_flush() {
    let (mut t, mut f) = (tables(), Fills::default());
    let serves = Serves { read: true, write: true, exec: true, global: true };
    f.fill(&mut t, 0x5000, 0, serves, 0);
    f.flush_local(&mut t);
    assert!(hits(&t, 0x5000, 1));
    f.revoke_host_page(&mut t, 0x5000, false);
    assert!(hits(&t, 0x5000, 1) && t.entry(0x5000, 0).write != 0x5000);
    f.flush_all(&mut t);
    assert!(!hits(&t, 0x5000, 1));
}

const RW: Serves = Serves { read: true, write: true, exec: false, global: false };
/// Two pages of the same place.
const A: u64 = 0x7000;
const B: u64 = A + ((ENTRIES as u64) << 12);

fn displaced() -> (Box<Tables>, Fills) {
    let (mut t, mut f) = (tables(), Fills::default());
    f.fill(&mut t, A, 0, Serves { write: false, ..RW }, 0x100);
    f.fill(&mut t, B, 0, RW, 0x200);
    (t, f)
}

#[test]
fn pages_of_one_place_take_turns() {
    let (mut t, mut f) = displaced();
    for _ in 0..3 {
        assert!(!hits(&t, A, 8) && hits(&t, B, 8));
        assert!(f.recall(&mut t, A + 5, 0, |e| e.read));
        assert!(hits(&t, A, 8) && !hits(&t, B, 8) && t.entry(A, 0).addend == 0x100);
        assert!(f.recall(&mut t, B, 0, |e| e.write));
    }
    assert!(!f.recall(&mut t, A, 1, |e| e.read), "another context");
    assert!(!f.recall(&mut t, A, 0, |e| e.write), "never served");
    assert_eq!(f.refills, 2);
}

/// Where generated code looks: in the page's own place, and beside it.
fn found(t: &Tables, va: u64) -> bool {
    let tag = |i: usize| t.0[0][i].read;
    [tag(index(va)), tag(beside(index(va)))].iter().any(|tag| va.wrapping_sub(*tag) <= 4088)
}

#[test]
fn two_pages_of_one_place_are_both_found() {
    let (mut t, mut f) = displaced();
    assert!(found(&t, A) && found(&t, B) && !found(&t, A + 0x1000));
    // The page whose own place is beside takes it: what is there was filled first.
    const C: u64 = A ^ 0x1000;
    f.fill(&mut t, C, 0, RW, 0x300);
    assert!(!found(&t, A) && found(&t, B) && found(&t, C));
    assert!(f.recall(&mut t, A, 0, |e| e.read) && f.refills == 3);
    assert!(found(&t, A) && !found(&t, B) && found(&t, C));
    f.flush_page(&mut t, A);
    assert!(!found(&t, A) && !found(&t, B) && !found(&t, C));
}

/// Halves of 32 bytes across two pages need both entries.
#[test]
fn neighbours_do_not_push_each_other_out() {
    for first in [A, A - 0x1000] {
        let (mut t, mut f) = displaced();
        f.fill(&mut t, B + 0x1000, 0, RW, 0);
        f.fill(&mut t, B - 0x1000, 0, RW, 0);
        f.fill(&mut t, first, 0, RW, 0);
        f.fill(&mut t, first + 0x1000, 0, RW, 0);
        assert!(hits(&t, first, 8) && hits(&t, first + 0x1000, 8));
    }
}

#[test]
fn what_drops_entries_drops_displaced_ones() {
    type Drop = fn(&mut Fills, &mut Tables);
    let drops: [Drop; 5] = [
        |f, t| f.flush_local(t),
        |f, t| f.flush_all(t),
        |f, t| f.flush_page(t, A),
        |f, t| f.revoke_host_page(t, A + 0x100, true),
        // Entered anew, with other rights.
        |f, t| {
            f.fill(t, A, 0, Serves { read: false, ..RW }, 0x300);
            f.fill(t, B, 0, RW, 0x200);
        },
    ];
    for d in drops {
        let (mut t, mut f) = displaced();
        d(&mut f, &mut t);
        assert!(!f.recall(&mut t, A, 0, |e| e.read));
    }
}

#[test]
fn what_is_withheld_is_known_until_mappings_or_writers_change() {
    let code = |f: &Fills, t: &Tables, va, write| f.withheld(t, va, 8, write, 0);
    let (mut t, mut f) = (tables(), Fills::default());
    let enter = |f: &mut Fills, t: &mut Tables| {
        f.fill(t, A, 0, Serves { write: false, ..RW }, 0x300);
        f.withhold(A, 0, 0x300, (false, true), Withheld::Code);
    };
    enter(&mut f, &mut t);
    assert_eq!(code(&f, &t, A + 8, true), Some(Withheld::Code));
    assert_eq!((code(&f, &t, A + 8, false), code(&f, &t, A + 0xffc, true), code(&f, &t, B, true)), (None, None, None));
    f.revoke_writes(&mut t, A + 0x300);
    assert_eq!(code(&f, &t, A, true), None);
    enter(&mut f, &mut t);
    f.flush_page(&mut t, B);
    assert_eq!(code(&f, &t, A, true), None);
}

#[test]
fn a_displaced_global_page_stays_global() {
    let (mut t, mut f) = (tables(), Fills::default());
    f.fill(&mut t, A, 0, Serves { global: true, ..RW }, 0);
    f.fill(&mut t, B, 0, RW, 0);
    assert!(f.recall(&mut t, A, 0, |e| e.read) && f.global(A, 0));
    f.flush_all(&mut t);
    assert!(!hits(&t, A, 1));
}

#[test]
fn limits_come_back() {
    let t = tables();
    assert!(!t.closed());
    for ctx in 0..CTX_COUNT {
        t.0[ctx].limits.iter().for_each(|l| l.store(0, Ordering::Relaxed));
        assert!(t.closed());
        t.open();
        assert!(!t.closed());
    }
    let limits = t.0[0].limits.each_ref().map(|l| 4097 - l.load(Ordering::Relaxed) as i32);
    assert_eq!(limits, SIZES);
    for (k, s) in (0..).zip(SIZES) {
        assert_eq!((Table::rounded(s), Table::limit(4096 - s)), (s, Some(8 * k + i8::MIN)));
    }
    assert_eq!((Table::rounded(9), Table::rounded(129), Table::limit(4095 - 9)), (12, 129, None));
}
