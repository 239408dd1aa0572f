//! Unit tests of the translation cache.

use super::*;
use crate::far::{Far, Key};
use crate::jit::arena::{HostCode, Range};
use crate::tier1::{EDGES, Entries};

unsafe extern "C" fn alive(_: *mut u8, _: *mut COp) -> *mut COp {
    ptr::null_mut()
}

unsafe extern "C" fn dead(_: *mut u8, op: *mut COp) -> *mut COp {
    op
}

const SLOT: COp = COp { h: 0, d: 0, a: 0, x: 0 };

/// A block of page offsets `start` to `end`, with edges in slots 1 and 2: page offset of the target, and how often each was taken.
pub fn record(start: u32, end: u32, edges: [(i32, u32); 2]) -> Box<Record> {
    let edge = |(off, count): (i32, u32)| COp { h: 0, d: count as u16, a: (count >> 16) as u16, x: off as u32 };
    Box::new(Record {
        runs: 0,
        threshold: 10,
        code: 0,
        key: BlockKey { phys: start.into(), mode: 1 },
        start,
        end,
        reach: end,
        second: None,
        insns: 1,
        guess: None,
        loose: Box::new([]),
        ops: Box::new([SLOT, edge(edges[0]), edge(edges[1])]),
        insn_at: Box::new([]),
        edges: [1, 2],
        incoming: Vec::new(),
        dead: false,
        linked: 0,
        forward: 0,
        hot: 0,
        jc: crate::jumps::JC_NONE,
        tier1: None,
        callers: Vec::new(),
        dead_start: dead,
    })
}

/// A block at RAM offset `phys`, `len` bytes long.
fn block(c: &mut Cache, ram: &Ram, phys: u64, len: u32) -> *mut Record {
    let start = (phys & 0xfff) as u32;
    let end = start + len;
    let second = (end > 4096).then_some((phys >> 12) + 1);
    let mut r = record(start, end, [(0, 0); 2]);
    (r.key.phys, r.second) = (phys, second);
    let p = &raw mut *r;
    r.ops[0].set_record(p);
    r.ops[0].set_handler(alive);
    for page in [Some(phys >> 12), second].into_iter().flatten() {
        ram.set_page_bits(page, PageBits::CODE);
    }
    c.insert(r)
}

fn get(c: &Cache, phys: u64) -> bool {
    c.get(&BlockKey { phys, mode: 1 }).is_some()
}

fn setup() -> (Cache, Ram) {
    (Cache::default(), Ram::new(4 * 4096).unwrap())
}

#[test]
fn a_write_drops_what_it_overlaps_to_the_byte() {
    let (mut c, ram) = setup();
    block(&mut c, &ram, 0x1010, 4);
    block(&mut c, &ram, 0x1014, 4);
    assert!(!c.overlaps(0x1008, 8) && c.overlaps(0x1008, 9) && c.overlaps(0x1017, 1) && !c.overlaps(0x1018, 8));
    assert!(!c.overlaps(0x2010, 4) && !c.lies_beside(0x2010, 4), "another page");
    assert!(c.lies_beside(0x1008, 8) && !c.lies_beside(0x1017, 1));
    c.invalidate(&ram, 0x1008, 8);
    assert_eq!((c.len(), ram.page_bits(1)), (2, PageBits::CODE));
    c.invalidate(&ram, 0x1013, 1);
    assert!(!get(&c, 0x1010) && get(&c, 0x1014) && ram.page_bits(1) == PageBits::CODE);
    let version = ram.version(1);
    c.invalidate(&ram, 0x1000, 0x1000);
    assert!(c.is_empty() && ram.page_bits(1).is_empty() && ram.version(1) != version && !c.overlaps(0x1014, 4));
}

#[test]
fn loose_bytes_may_change() {
    let (mut c, ram) = setup();
    let mut r = record(0x10, 0x30, [(0, 0); 2]);
    (r.key.phys, r.loose) = (0x1010, Box::new([(0x28, 0x2c), (0x14, 0x18), (0x18, 0x19)]));
    ram.set_page_bits(1, PageBits::CODE);
    c.insert(r);
    for (at, len, copied) in [
        (0x1014, 4, false),
        (0x1013, 4, true),
        (0x1014, 5, false),
        (0x1014, 6, true),
        (0x1019, 1, true),
        (0x1028, 4, false),
        (0x1028, 5, true),
        (0x1008, 8, false),
        (0x102f, 1, true),
        (0x1030, 8, false),
        (0x1000, 0, false),
    ] {
        assert_eq!(c.overlaps(at, len), copied, "{at:#x}, {len}");
        assert_eq!(c.lies_beside(at, len), !copied, "{at:#x}, {len}");
    }
    c.invalidate(&ram, 0x1014, 5);
    assert!(get(&c, 0x1010));
    c.invalidate(&ram, 0x1014, 6);
    assert!(!get(&c, 0x1010) && ram.page_bits(1).is_empty());
}

#[test]
fn a_straddling_block_is_found_by_both_pages() {
    let (mut c, ram) = setup();
    block(&mut c, &ram, 0x1ffe, 5);
    assert!(c.overlaps(0x2002, 1) && !c.overlaps(0x2003, 1) && c.overlaps(0x1fff, 1));
    c.invalidate(&ram, 0x2002, 1);
    assert!(c.is_empty() && !c.overlaps(0x1ffe, 2) && ram.page_bits(2).is_empty());
}

#[test]
fn links_go_with_either_end() {
    let (mut c, ram) = setup();
    let (a, b) = (block(&mut c, &ram, 0x1000, 4), block(&mut c, &ram, 0x1100, 4));
    // SAFETY: records stay allocated until `bury`.
    unsafe {
        let (to_b, to_a, back) = ((*a).edge(0).unwrap(), (*a).edge(1).unwrap(), (*b).edge(0).unwrap());
        c.link(to_b, b);
        c.link(to_a, a);
        c.link(back, a);
        assert_eq!(((*to_b).link, (*a).incoming.len(), (*b).incoming.len()), ((*b).ops.as_mut_ptr(), 2, 1));
        c.invalidate(&ram, 0x1100, 1);
        assert!((*to_b).link.is_null() && (*back).link.is_null() && !(*to_a).link.is_null());
        assert_eq!((*a).incoming.len(), 1);
        c.invalidate(&ram, 0x1000, 1);
        assert!((*to_a).link.is_null() && (*a).incoming.is_empty());
    }
    assert_eq!(c.dead(), 2);
    c.bury();
    assert_eq!(c.dead(), 0);
}

#[test]
fn a_dead_block_has_no_code_and_another_start_until_it_is_buried() {
    let (mut c, ram) = setup();
    let old = block(&mut c, &ram, 0x1000, 4);
    let new = block(&mut c, &ram, 0x1000, 4);
    // SAFETY: as above.
    unsafe {
        (*new).runs = 3;
        assert!((*old).dead && (*old).ops[0].h == dead as *const () as usize && (*old).code == 0);
        assert!(!(*new).dead && (*new).ops[0].h == alive as *const () as usize);
    }
    assert!(c.overlaps(0x1000, 1));
    c.invalidate(&ram, 0x1000, 1);
    assert_eq!((c.dead(), c.bury()), (2, 3));
}

#[test]
fn a_region_goes_with_any_of_its_bytes_and_its_entry_stays() {
    let (mut c, ram) = setup();
    let entry = block(&mut c, &ram, 0x1000, 4);
    let code = Arena::new().unwrap().place(HostCode { hot: &[0x90; 16], ..HostCode::default() }).unwrap();
    // SAFETY: as above.
    let mode = unsafe {
        (*entry).runs = 20;
        (*entry).key.mode
    };
    let region = move || Region {
        mode,
        entries: Vec::new(),
        ranges: vec![(0x1000, 0x1004), (0x1200, 0x1208)],
        members: vec![0x200, 0],
        thunks: 0x1000,
        code,
        compiled_start: dead,
        start: alive,
        threshold: 5,
    };
    c.add_region(region());
    // SAFETY: as above.
    unsafe {
        let thunk = 0x1000 + (THUNK + THUNK_FULL) as u64;
        assert_eq!(((*entry).code, (*entry).ops[0].h), (thunk, dead as *const () as usize));
        let later = block(&mut c, &ram, 0x1200, 8);
        assert_eq!((*later).linked, 0x1000, "a block met later enters the region too");
        c.invalidate(&ram, 0x1200, 1);
        assert!(c.region_count() == 0 && (*later).dead);
        c.add_region(region());
    }
    c.freed.clear();
    assert!(c.overlaps(0x1207, 1) && !c.overlaps(0x1208, 1), "bytes of no block of its own");
    c.invalidate(&ram, 0x1207, 1);
    assert!(c.region_count() == 0 && get(&c, 0x1000) && !c.overlaps(0x1207, 1));
    // SAFETY: as above.
    unsafe {
        assert_eq!(((*entry).code, (*entry).threshold), (0, 25));
    }
    assert_eq!(std::mem::take(&mut c.freed), [code]);
    c.add_region(region());
    c.invalidate(&ram, 0x1000, 1);
    assert!(c.region_count() == 0 && c.is_empty() && c.freed == [code] && ram.page_bits(1).is_empty());
}

/// Code of tier 1 for `r`: a jump whose rel32 ends at 5 and leads to a stub at 6, for both edges alike; linked entry at 2, that for edges forward at 4.
fn emitted(c: &mut Cache, r: *mut Record) -> u64 {
    let (range, at) = c.place_code(HostCode { hot: &[0xe9, 1, 0, 0, 0, 0x90, 0xc3, 0x90], ..HostCode::default() }).unwrap();
    c.add_tier1(
        r,
        Tier1Code {
            range,
            edges: [Some((5, 6)); EDGES],
            to: [ptr::null_mut(); EDGES],
            far: [const { None }; 3],
            guard: None,
            calls: false,
        },
        Entries { full: 0, linked: 2, forward: 4 },
        dead,
    );
    at
}

/// Where the jump at `at` leads.
fn target(at: u64) -> u64 {
    // SAFETY: code that `emitted` has placed; the arena keeps it mapped.
    at.wrapping_add(5).wrapping_add_signed(unsafe { (at as *const u8).add(1).cast::<i32>().read_unaligned() }.into())
}

#[test]
fn a_store_to_what_compiled_code_reaches_drops_its_block() {
    let (mut c, ram) = setup();
    let r = block(&mut c, &ram, 0x1100, 8);
    c.invalidate(&ram, 0x1140, 1);
    assert!(get(&c, 0x1100));
    c.reach(&ram, r, 0x148);
    assert!(c.overlaps(0x1140, 1) && c.lies_beside(0x1148, 1) && ram.page_bits(1).contains(PageBits::CODE));
    c.invalidate(&ram, 0x1147, 1);
    assert!(!get(&c, 0x1100) && ram.page_bits(1).is_empty());
}

#[test]
fn edges_of_tier_1_lead_to_live_code_or_to_their_stub() {
    let (mut c, ram) = setup();
    c.arena = Some(Arena::new().unwrap());
    let (a, b) = (block(&mut c, &ram, 0x1000, 4), block(&mut c, &ram, 0x1100, 4));
    c.link_code(a, 0, b);
    let from = emitted(&mut c, a);
    c.link_code(a, 0, b);
    assert_eq!(target(from), from + 6, "b has no code yet");
    let to = emitted(&mut c, b);
    c.link_code(a, 0, b);
    c.link_code(b, 1, b);
    assert_eq!((target(from), target(to)), (to + 4, to + 2), "forward, and back to itself");
    c.invalidate(&ram, 0x1100, 1);
    // SAFETY: records stay allocated until `bury`.
    assert!(target(from) == from + 6 && unsafe { (*a).tier1.as_ref().unwrap().to[0].is_null() && (*b).callers.is_empty() });
    assert_eq!(c.freed.len(), 1);
    let again = block(&mut c, &ram, 0x1100, 4);
    let to = emitted(&mut c, again);
    c.link_code(a, 0, again);
    assert_eq!(target(from), to + 4);
    c.invalidate(&ram, 0x1000, 1);
    // SAFETY: as above.
    assert!(unsafe { (*again).callers.is_empty() && !(*again).dead });
    c.release_freed();
    c.drop_all_tier1(alive, 7);
    c.release_freed();
    // SAFETY: as above.
    unsafe { assert_eq!(((*again).code, (*again).threshold, (*again).ops[0].h), (0, 7, alive as *const () as usize)) };
    assert_eq!(c.arena_used(), 0);
}

/// A region of the block at 1100h alone.
fn one_block(mode: u64, code: Range, thunks: u64) -> Region {
    Region {
        mode,
        entries: Vec::new(),
        ranges: vec![(0x1100, 0x1104)],
        members: vec![0x100],
        thunks,
        code,
        compiled_start: dead,
        start: alive,
        threshold: 5,
    }
}

/// Only calls and links that lead forward for sure do not ask whether the dispatcher is wanted: narrow program counters wrap round.
#[test]
fn links_across_pages_that_lead_back_ask_for_the_dispatcher() {
    let cases = [(0x1000, true, false, 4), (-0x1000, true, false, 2), (0x1000, false, false, 2), (-0x1000, false, true, 4)];
    for (delta, wide, calls, entry) in cases {
        let (mut c, ram) = setup();
        c.arena = Some(Arena::new().unwrap());
        let (a, b) = (block(&mut c, &ram, 0x1100, 4), block(&mut c, &ram, 0x2000, 4));
        let (from, to) = (emitted(&mut c, a), emitted(&mut c, b));
        // SAFETY: records stay allocated until `bury`.
        let code = unsafe { (*a).tier1.as_mut().unwrap() };
        (code.far[0], code.calls) = (Some(Far::new(Key::of_nobody(), a, 0, delta, false, wide)), calls);
        c.link_far(a, 0, b, 5, true);
        assert_eq!(target(from), to + entry, "{delta} {wide} {calls}");
        c.point_callers(b);
        assert_eq!(target(from), to + entry, "{delta} {wide} {calls}, when its code is new");
    }
}

/// Code that has a place in the arena tells links across pages of it, but for those that must not renew themselves.
#[test]
fn links_across_pages_follow_their_target_unless_they_are_refused() {
    for (renews, refused) in [(true, false), (false, false), (true, true)] {
        let (mut c, ram) = setup();
        c.arena = Some(Arena::new().unwrap());
        let (a, b) = (block(&mut c, &ram, 0x2000, 4), block(&mut c, &ram, 0x1100, 4));
        emitted(&mut c, a);
        let to = emitted(&mut c, b);
        // SAFETY: records stay allocated until `bury`.
        unsafe { (*a).tier1.as_mut().unwrap().far[0] = Some(Far::new(Key::of_nobody(), a, 0, 0x1000, !renews, true)) };
        // SAFETY: as above.
        let link = || unsafe { (*a).tier1.as_ref().unwrap().far[0].as_ref().map(|f| (f.held(), f.code)).unwrap() };
        let fresh = link();
        c.link_far(a, 0, b, 5, renews);
        assert_eq!(link(), (5, if renews { to } else { 0 }));
        if refused {
            c.refuse_far(a, 0);
        }
        let before = link();
        let (code, at) = c.place_code(HostCode { hot: &[0x90; THUNK], ..HostCode::default() }).unwrap();
        // SAFETY: as above.
        let mode = unsafe { (*b).key.mode };
        c.add_region(one_block(mode, code, at));
        // SAFETY: as above.
        let full = unsafe { (*b).code };
        assert_eq!(link(), if renews && !refused { (5, full) } else { before });
        c.invalidate(&ram, 0x1100, 1);
        assert_eq!(link(), fresh);
    }
}

#[test]
fn a_region_takes_over_what_led_to_its_blocks() {
    let (mut c, ram) = setup();
    c.arena = Some(Arena::new().unwrap());
    let (a, b) = (block(&mut c, &ram, 0x1000, 4), block(&mut c, &ram, 0x1100, 4));
    let from = emitted(&mut c, a);
    emitted(&mut c, b);
    c.link_code(a, 1, b);
    let (code, at) = c.place_code(HostCode { hot: &[0x90; THUNK], ..HostCode::default() }).unwrap();
    // SAFETY: records stay allocated until `bury`.
    let mode = unsafe { (*b).key.mode };
    c.add_region(one_block(mode, code, at));
    // SAFETY: as above.
    unsafe { assert!((*b).in_region() && !(*a).in_region() && (*b).callers.len() == 1) };
    assert_eq!((target(from), c.freed.len()), (at, 1));
    c.invalidate(&ram, 0x1103, 1);
    assert_eq!(target(from), from + 6);
}

#[test]
fn a_page_that_is_written_again_and_again_is_known() {
    let (mut c, ram) = setup();
    for _ in 0..=CALM {
        assert!(!c.changes_often(1));
        block(&mut c, &ram, 0x1000, 4);
        c.note_write(0x1000, 1);
        c.apply_writes(&ram);
    }
    c.note_write(0x2000, 1);
    c.apply_writes(&ram);
    assert!(c.changes_often(1) && !c.changes_often(2));
}

#[test]
fn a_restless_page_is_the_one_in_which_the_block_starts() {
    let (mut c, ram) = setup();
    for _ in 0..=CALM {
        block(&mut c, &ram, 0x1ffe, 5);
        c.note_write(0x2000, 1);
        c.apply_writes(&ram);
    }
    block(&mut c, &ram, 0x2100, 5);
    c.invalidate(&ram, 0x2100, 1);
    assert!(c.changes_often(1) && !c.changes_often(2));
}
