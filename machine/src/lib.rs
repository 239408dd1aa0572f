//! The machine: command line, loaders, board and run loop around the CPU engines.

pub mod block;
pub mod board;
pub mod boot;
pub mod chardev;
pub mod consoles;
pub mod control;
pub mod diff;
pub mod engine;
pub mod event_loop;
pub mod firmware;
pub mod firstrun;
pub mod gdb;
pub mod icount;
pub mod loader;
pub mod machine;
pub mod monitor;
pub mod net;
pub mod options;
pub mod profile;
pub mod qmp;
pub mod run;
pub mod runner;
pub mod say;
pub mod state;
mod switch;
pub mod trace;
pub mod vcpu_thread;
