//! Tier 1: one block of IR straight to host code, in one pass, some hundred nanoseconds a guest instruction. Values stay
//! in registers within the block, guest state lies in memory between blocks. x86-64 hosts; elsewhere tier 2 follows tier 0.
//!
//! Emitted code is entered with the seam (`vblock::BASE` beyond it) in r15 and returns a `Why` in eax, like regions (`jit::runtime`). It has two
//! entries: `full` takes the program counter from rdi, `linked` needs only the page's, as an edge of a block of the
//! same page leaves it. Both edges end in a jump that `cache` points at the target's `linked` entry.

// What the assembler macro expands to converts register numbers that are u8 already.
#![allow(clippy::useless_conversion)]

mod calls;
mod cold;
mod deposit;
mod emit;
mod flow;
mod fp;
mod integer;
mod late;
mod locked;
mod memory;
mod pins;
mod region;
mod regs;
mod share;
mod target;
mod tri;
mod vector;
mod x87;

pub use emit::{EDGES, Entries, Env, NEAR_OR_FAR, Tier1};
pub use region::RegionCode;

/// Assembles into `Emit::code`.
macro_rules! asm {
    ($e:expr; $($t:tt)*) => {
        {
            #[allow(unused_imports)]
            use dynasmrt::DynasmApi as _;
            dynasmrt::dynasm!($e.code ; .arch x64 ; $($t)*)
        }
    };
}
pub(crate) use asm;

/// Assembles an instruction with state as its memory operand: offset from the seam, what comes before the operand, what behind.
macro_rules! st {
    ($e:expr, $off:expr; [$($before:tt)*] [$($behind:tt)*]) => {
        {
            let from_base = $off - crate::vblock::BASE;
            match i8::try_from(from_base) {
                Ok(near) => asm!($e; $($before)* [BYTE r15 + near] $($behind)*),
                Err(_) => asm!($e; $($before)* [r15 + from_base] $($behind)*),
            }
        }
    };
}
pub(crate) use st;
