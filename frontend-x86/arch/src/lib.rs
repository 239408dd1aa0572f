//! x86 architectural state and what is defined on it alone: registers, lazy flags, page walk, segment loads, exception and
//! interrupt delivery, MSRs, CPUID, reset. The JIT, the interpreter, KVM, gdb and saved state share it.

pub mod fault;
pub mod flags;
pub mod mode;
pub mod state;

pub use mode::{CodeSize, Mode};
pub use state::{CpuState, DescTable, F80, SegReg, Segment};
