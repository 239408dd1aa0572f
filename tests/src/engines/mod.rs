//! Differential test of the translating engine: random x86 programs run on every setting of it must leave the same CPU
//! and memory behind.

pub mod asm;
pub mod campaign;
mod instructions;
pub mod machine;
pub mod program;
