//! The translating engine: software TLB, translation cache, tier 0 (interpreter), tier 1 (quick compiler),
//! tier 2 (regions, by Cranelift), execution loop.
//! Guest-neutral: it knows the guest only through `ir::Frontend` and `vm_core::GuestCpu`.

mod atomic;
mod cache;
mod count;
mod debug;
mod dump;
mod exec;
mod far;
pub mod inspect;
mod jit;
mod jumps;
mod left;
mod mmu;
mod observe;
mod pages;
mod peers;
mod tier0;
mod tier1;
mod tlb;
mod vblock;

pub use exec::{AT_ONCE, Engine, MAX_INSNS, Settings};
pub use jit::perfmap::PerfMap;
pub use peers::{MAX_CPUS, Member, Peers};
pub use vblock::{Helper, VcpuBlock};

/// Whether this host has the quick compiler, tier 1.
pub fn has_tier1() -> bool {
    tier1::Tier1::available()
}
