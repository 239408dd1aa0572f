//! The script for gdb that comes with the program: where it is put, and what is said of it at the start.

use crate::firstrun::cache_file;
use crate::say;

/// Chooses the disassembler by the CPU's mode, shows CS:IP, and more: see docs/gdb.md.
pub const SCRIPT: &str = include_str!("rhea-gdb.py");

/// Says where the stub listens and which script to use.
pub fn announce(place: &str) {
    match cache_file("rhea-gdb.py", SCRIPT.as_bytes()) {
        Ok(path) => say!("gdb stub on {place}; in gdb: source {}", path.display()),
        Err(e) => say!("gdb stub on {place} (its script cannot be written: {e})"),
    }
}
