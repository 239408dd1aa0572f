//! Test harness: filetests, a bare x86 guest on the engines under test, runs on the host processor, boots of the built
//! program, a guest for several processors, and the workspace seen from outside.

pub mod anybytes;
pub mod bench;
pub mod boot;
pub mod complaints;
pub mod counters;
pub mod disks;
pub mod engines;
pub mod filetest;
pub mod fuzz;
#[cfg(target_arch = "x86_64")]
pub mod host;
pub mod kernel;
pub mod packages;
pub mod qmp;
pub mod refuse;
pub mod small;
pub mod smp;
pub mod workspace;
pub mod x86;
