//! `-trace FILE`: a record of what the CPUs executed, by an observer of each (`vm_core::observe`). `rhea-trace` reads it.
//!
//! Filters cost what they leave out nothing in the file; the guest runs as slowly with them.

pub mod filter;
pub mod format;
pub mod reader;

pub use filter::Filter;

use arch_x86::CpuState;
use format::{Insn, Writer};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::Arc;
use vm_core::GuestCpu;
use vm_core::observe::{Observer, Touch};

/// Accesses of one instruction that are kept: a long REP has more.
const MAX_TOUCHES: usize = 4096;

type Shared = Arc<Mutex<Writer<BufWriter<File>>>>;

/// The observer of one CPU.
struct Tracer {
    to: Shared,
    filter: Arc<Filter>,
    cpu: u32,
    /// The instruction that runs, unless it is left out.
    insn: Option<Insn>,
    touches: Vec<Touch>,
}

impl Tracer {
    fn flush(&mut self) {
        if let Some(insn) = self.insn.take() {
            self.to.lock().put(self.cpu, &insn, &self.touches);
        }
        self.touches.clear();
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.flush();
        self.to.lock().finish();
    }
}

impl Observer<CpuState> for Tracer {
    fn insn(&mut self, cpu: &CpuState, pc: u64, bytes: &[u8]) {
        self.flush();
        let va = cpu.linear(pc).0;
        if self.filter.takes(va, cpu) {
            self.insn = Some(Insn::of(cpu, va, bytes));
        }
    }

    fn access(&mut self, touch: &Touch) {
        if self.insn.is_some() && self.touches.len() < MAX_TOUCHES {
            self.touches.push(*touch);
        }
    }
}

/// Observers for `n` CPUs, which write to one file.
pub fn start(path: &Path, filter: &Filter, n: usize) -> io::Result<Vec<Box<dyn Observer<CpuState>>>> {
    let to = Arc::new(Mutex::new(Writer::new(BufWriter::new(File::create(path)?))?));
    let filter = Arc::new(filter.clone());
    let one = |cpu| -> Box<dyn Observer<CpuState>> {
        Box::new(Tracer { to: to.clone(), filter: filter.clone(), cpu, insn: None, touches: Vec::new() })
    };
    Ok((0..n as u32).map(one).collect())
}
