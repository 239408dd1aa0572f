//! Which blocks form a region, and entering one.
//!
//! UNSAFE: works on live records and jumps into the arena.
#![allow(unsafe_code)]

use super::compile::{Job, Source};
use crate::cache::Record;
use crate::exec::Settings;
use crate::vblock::{VcpuBlock, Why};
use ir::Changing;
use std::sync::Arc;
use vm_core::guest::GuestCpu;

/// Blocks and guest instructions of a region at most.
pub const MAX_BLOCKS: usize = 48;
pub const MAX_INSNS: u32 = 300;

/// The job for the region that starts at `rec`, a live record.
pub fn choose<C: GuestCpu>(b: &VcpuBlock<C>, rec: *mut Record, number: u64, s: &Settings) -> Job {
    // SAFETY: by the caller's promise.
    let entry = unsafe { &*rec };
    let page = entry.key.phys >> 12;
    let ram = b.machine().ram();
    let mut bytes = Box::new([0; 4096]);
    let version = ram.version(page);
    ram.read(page << 12, &mut bytes[..]);
    // Static regions compile at once. Others hold only blocks that tier 0 has seen run, as those are watched for writes
    // until the code is installed.
    let known = (s.threshold != 0).then(|| follow_hot_edges(b, rec, s));
    let taken = Arc::default();
    Job {
        number,
        key: entry.key,
        entry: source(rec),
        bytes,
        version,
        also: Vec::new(),
        known,
        apart: b.cache.unlike.in_page(page),
        single: s.single_block_regions,
        taken,
    }
}

/// Blocks reached from `rec` (live) along edges that are taken often. They are compiled with it, so they need not ask for themselves.
fn follow_hot_edges<C: GuestCpu>(b: &VcpuBlock<C>, rec: *mut Record, s: &Settings) -> Vec<Source> {
    // SAFETY: by the caller's promise; records in the cache are live, and only this thread touches them.
    let (entry, hot) = (unsafe { &*rec }, s.threshold / 4);
    let mut found: Vec<*mut Record> = vec![rec];
    let (mut next, mut insns) = (0, entry.insns);
    while let (Some(&at), false) = (found.get(next), s.single_block_regions) {
        next += 1;
        // SAFETY: as above.
        for (off, count) in unsafe { &*at }.successors() {
            if count < hot || !(0..4096).contains(&off) || found.len() == MAX_BLOCKS {
                continue;
            }
            let key = ir::BlockKey { phys: entry.key.phys & !0xfff | off as u64, mode: entry.key.mode };
            let Some(to) = b.cache.get(&key) else { continue };
            // SAFETY: as above.
            let r = unsafe { &*to };
            if !r.stays_alone() && insns + r.insns <= MAX_INSNS && !found.contains(&to) {
                insns += r.insns;
                found.push(to);
            }
        }
    }
    let list = found.iter().map(|r| source(*r)).collect();
    found.into_iter().for_each(|r| ask_later(r, s.threshold.saturating_mul(super::PATIENCE)));
    list
}

/// `rec` (live) asks again after as many runs.
pub fn ask_later(rec: *mut Record, threshold: u32) {
    // SAFETY: by the caller's promise.
    unsafe { (*rec).threshold = (*rec).runs.saturating_add(threshold.max(1)) }
}

/// `rec` (live) asks again after as many runs in tier 1.
pub fn cool(rec: *mut Record, runs: u32) {
    // SAFETY: by the caller's promise.
    unsafe { (*rec).hot = runs }
}

/// `rec` (live) stays in tier 0: it does not compile.
pub fn never_ask(rec: *mut Record) {
    // SAFETY: by the caller's promise.
    unsafe { (*rec).threshold = u32::MAX }
}

/// Tier of the code of a live record: 0 none, 1, or 2 for a region.
pub fn tier(rec: *mut Record) -> u32 {
    // SAFETY: by the caller's promise.
    match unsafe { &*rec } {
        r if r.in_region() => 2,
        r => u32::from(r.tier1.is_some()),
    }
}

/// What to translate for a live record.
pub fn source(rec: *mut Record) -> Source {
    // SAFETY: by the caller's promise.
    let r = unsafe { &*rec };
    Source { start: r.start, insns: r.insns, guess: r.guess }
}

/// Key of a live record, and page offset of its end.
pub fn key_and_end(rec: *mut Record) -> (ir::BlockKey, u32) {
    // SAFETY: by the caller's promise.
    unsafe { ((*rec).key, (*rec).end) }
}

/// The RAM page that a live record goes into, beyond its own.
pub fn second(rec: *mut Record) -> Option<u64> {
    // SAFETY: by the caller's promise.
    unsafe { (*rec).second }
}

/// Whether a live record is part of no region.
pub fn alone(rec: *mut Record) -> bool {
    // SAFETY: by the caller's promise.
    unsafe { (*rec).stays_alone() }
}

/// Source bytes that a live record holds no copy of.
pub fn loose(rec: *mut Record) -> Changing {
    // SAFETY: by the caller's promise.
    unsafe { (*rec).loose() }
}

/// Runs compiled code of a live record.
pub fn enter<C: GuestCpu>(b: &mut VcpuBlock<C>, code: u64) -> Why {
    // SAFETY: `code` is the address of a region in the arena, compiled for this engine; the seam's block is inside `with_io`.
    unsafe { b.run_code(code) }
}
