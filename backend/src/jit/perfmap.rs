//! `/tmp/perf-PID.map`, in which `perf` looks generated code up: start, size (hexadecimal), name, a line each
//! (tools/perf/Documentation/jit-interface.txt of Linux). Where code is freed and its place used again, the later line counts.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};

/// The file, to which each vCPU appends.
#[derive(Debug)]
pub struct PerfMap(File);

impl PerfMap {
    /// In place of one that an older process of this number left. `Err`: the file cannot be written.
    pub fn open() -> io::Result<PerfMap> {
        let path = format!("/tmp/perf-{}.map", std::process::id());
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        Ok(PerfMap(OpenOptions::new().create_new(true).append(true).open(path)?))
    }

    /// Code and its slow paths: address and bytes of each.
    pub fn add(&self, hot: (u64, usize), cold: (u64, usize), name: &str) {
        let lines = line(hot, name) + &line(cold, &format!("{name}_cold"));
        // A map that lacks a line is no reason to stop the guest.
        if let Err(e) = (&self.0).write_all(lines.as_bytes()) {
            vm_core::dlog!(UNIMP, "perf map: {e}");
        }
    }
}

fn line((start, size): (u64, usize), name: &str) -> String {
    if size == 0 { String::new() } else { format!("{start:x} {size:x} {name}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_perf_reads_them() {
        assert_eq!(line((0x7f00_1000, 0x40), "guest_ffffffff81000000"), "7f001000 40 guest_ffffffff81000000\n");
        assert_eq!(line((1, 0), "nothing"), "");
    }
}
