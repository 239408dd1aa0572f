//! The machine: command line, loaders, board and run loop around the CPU engines.

pub mod firstrun;
pub mod loader;
pub mod options;
pub mod run;
