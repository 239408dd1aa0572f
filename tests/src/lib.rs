//! Test harness: the filetest engine.

pub mod filetest;
