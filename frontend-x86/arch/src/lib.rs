//! x86 architectural state and what is defined on it alone: registers, lazy flags, page walk, segment loads, exception and
//! interrupt delivery, MSRs, CPUID, reset. The JIT, the interpreter, KVM, gdb and saved state share it.

pub mod control;
pub mod cpuid;
pub mod debug;
pub mod deliver;
pub mod desc;
mod dump;
pub mod far;
pub mod fault;
pub mod features;
pub mod ferr;
pub mod flags;
mod guest_cpu;
pub mod mode;
pub mod models;
pub mod monitor;
pub mod msr;
pub mod paging;
pub mod pvclock;
pub mod refine;
pub mod reset;
mod saved;
pub mod segment;
pub mod smm;
pub mod stack;
pub mod state;
pub mod syscall;
mod task;
#[cfg(test)]
mod tests;
pub mod topology;
pub mod tss;
mod vme;
mod x87_image;

pub use mode::{CodeSize, Mode};
pub use state::{CpuState, DescTable, F80, SegReg, Segment};
pub use topology::Topology;
