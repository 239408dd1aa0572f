//! A look at what the compilers make of given code, for tests and for people who work on them.

use crate::jit::compile::{Compiler, Job, Source};
use crate::tier1::Tier1;
use crate::vblock::VcpuBlock;
use ir::{BlockKey, Frontend};
use std::sync::Arc;
use vm_core::guest::GuestCpu;

/// Host instructions of the region that tier 2 makes of the block at the beginning of `code`, which is that of a page: those that
/// run while nothing leaves the region, as text. `None`: the block is no loop, or the host has no emitter.
pub fn hot_path<C: GuestCpu, F: Frontend>(fe: Arc<F>, mode: u64, code: &[u8]) -> Option<Vec<String>> {
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
    let temps = VcpuBlock::<C>::temps_offset() as i32;
    let compiled = Compiler::new(fe, VcpuBlock::<C>::eng_offset, temps, false, Some(emitter)).compile(job);
    let text = crate::dump::host_asm(compiled.code.get(..compiled.hot).filter(|c| !c.is_empty())?);
    Some(text.lines().map(str::to_owned).collect())
}
