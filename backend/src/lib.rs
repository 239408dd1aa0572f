//! The translating engine: software TLB, translation cache, tier 0 (interpreter), tier 1 (Cranelift), execution loop.
//! Guest-neutral: it knows the guest only through `ir::Frontend` and `vm_core::GuestCpu`.

mod cache;
mod dump;
mod exec;
mod jit;
mod mmu;
mod tier0;
mod tlb;
mod vblock;

pub use exec::{Engine, Settings};
pub use vblock::{Helper, VcpuBlock};
