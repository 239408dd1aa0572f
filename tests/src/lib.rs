//! Test harness: the filetest engine, runs on the host processor, and the workspace seen from outside.

pub mod filetest;
#[cfg(target_arch = "x86_64")]
pub mod hostrun;
pub mod workspace;
