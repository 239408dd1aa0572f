//! The translating engine: software TLB, translation cache, tier 0 (interpreter), tier 1 (Cranelift), execution loop.
//! Guest-neutral: it knows the guest only through `ir::Frontend` and `vm_core::GuestCpu`.

pub mod cache;
pub mod dump;
pub mod exec;
pub mod jit;
pub mod mmu;
pub mod tier0;
pub mod tlb;
pub mod vblock;

pub use exec::{Engine, Settings};
pub use vblock::{Helper, VcpuBlock};
