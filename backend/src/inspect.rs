//! A look at what the compilers make of given code, for tests and for people who work on them.

use crate::jit::compile::{Compiler, Job, Source};
use crate::tier1::Tier1;
use crate::vblock::VcpuBlock;
use ir::{BlockKey, Frontend};
use std::sync::Arc;
use vm_core::guest::GuestCpu;

/// Host code that runs while nothing leaves it.
pub struct HotPath {
    /// Its instructions, as text.
    pub insns: Vec<String>,
    pub bytes: usize,
}

/// The region that tier 2 makes of the block at the beginning of `code`, which is that of a page. `None`: the block is no loop, or the host
/// has no emitter.
pub fn hot_path<C: GuestCpu, F: Frontend>(fe: Arc<F>, mode: u64, code: &[u8]) -> Option<HotPath> {
    let mut bytes = Box::new([0; 4096]);
    bytes.get_mut(..code.len())?.copy_from_slice(code);
    let entry = Source { start: 0, insns: crate::MAX_INSNS, guess: None };
    let job = Job {
        number: 0,
        key: BlockKey { phys: 0, mode },
        entry,
        bytes,
        version: 0,
        also: Vec::new(),
        known: Some(vec![entry]),
        apart: Vec::new(),
        single: false,
        taken: Arc::default(),
    };
    let emitter = Tier1::available().then(Tier1::default)?;
    let compiled = Compiler::new(fe, VcpuBlock::<C>::SHAPE, false, Some(emitter)).compile(job);
    let hot = compiled.code.get(..compiled.hot).filter(|c| !c.is_empty())?;
    Some(HotPath { insns: crate::dump::host_asm(hot).lines().map(str::to_owned).collect(), bytes: hot.len() })
}
