//! The machine: command line, loaders, board and run loop around the CPU engines.

pub mod chardev;
pub mod event_loop;
pub mod firstrun;
pub mod loader;
pub mod monitor;
pub mod options;
pub mod run;
