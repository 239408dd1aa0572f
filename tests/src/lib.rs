//! Test harness: the filetest engine, and runs on the host processor.

pub mod filetest;
#[cfg(target_arch = "x86_64")]
pub mod hostrun;
