//! Text of `info jit`.

use super::Driver;
use crate::jit::Jit;
use crate::vblock::{VcpuBlock, Why};
use ir::Frontend;
use vm_core::guest::GuestCpu;

impl<F: Frontend, C: GuestCpu> Driver<F, C> {
    pub(super) fn info(&self, b: &mut VcpuBlock<C>) -> String {
        let s = &b.eng.stats;
        let live: u64 = b.cache.records().map(|r| u64::from(r.runs) * u64::from(r.insns)).sum();
        let mut text = format!(
            "blocks               {}\nguest insns in them  {}\ninsns interpreted    {}\ntranslated insns     {}\nwarm-up: building    {:.3} s\nwarm-up: interpreting {:.3} s (sampled)\nwarm-up: compiling   {:.3} s\ndispatcher visits    {}\n  ended by           {}\n  spared             {}\ncache look-ups       {}\nleaves               {}\nfaults               {}\nevents               {}\ninvalidations        {}\nTLB refills          {}\nTLB flushes          {}\ninsns not kept       {}\nnotes from peers     {}\n",
            b.cache.len(),
            b.cache.records().map(|r| u64::from(r.insns)).sum::<u64>(),
            live + s.interpreted_dropped,
            s.insns_translated,
            s.translate_ns as f64 / 1e9,
            s.interpret_ns as f64 / 1e9,
            self.jit.as_ref().map_or(0.0, Jit::seconds),
            s.dispatches,
            ends(&s.ends),
            s.straight_on,
            s.lookups,
            s.leaves,
            s.faults,
            s.events,
            b.cache.invalidations,
            b.fills.refills,
            b.fills.flushes,
            s.unclaimed,
            s.notes,
        );
        match &self.jit {
            Some(j) => text.push_str(&j.info(b.cache.arena_used())),
            None => text.push_str("compiler             off\n"),
        }
        text
    }
}

fn ends(counts: &[u64; Why::COUNT]) -> String {
    let met = Why::NAMES.iter().zip(counts).filter(|(_, n)| **n != 0);
    met.map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>().join(", ")
}
