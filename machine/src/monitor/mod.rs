//! The human monitor: QEMU's command line (HMP) for a running machine.
//!
//! Input is hostile too (a socket may be behind it): lines, counts and buffers are bounded.

mod command;
mod dump;
mod editor;

pub use command::{run, shown};

use crate::chardev::{Event, Front};
use crate::control::RunState;
use devices::chr::CharSink;
use editor::{Edit, Editor};
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::Arc;

pub const PROMPT: &str = "(rhea) ";

/// What the monitors ask of the machine. Texts end with a newline or are empty; errors are one line without it.
pub trait MonitorTarget: Send + Sync {
    fn info_registers(&self) -> String;
    fn info_tlb(&self) -> String;
    fn info_jit(&self) -> String;
    fn info_chardev(&self) -> String;
    /// Label, file name and whether it is open, of each back end, as `query-chardev` has them.
    fn chardevs(&self) -> Vec<Value>;
    fn run_state(&self) -> RunState;
    /// Host thread id of each CPU.
    fn cpu_threads(&self) -> Vec<i32>;
    /// `-name`.
    fn name(&self) -> Option<String>;
    /// Reads guest-physical memory; `false` if some of it is not RAM.
    fn read_phys(&self, pa: u64, buf: &mut [u8]) -> bool;
    /// Reads through the current CPU's page tables; `false` if some of it is not mapped to RAM.
    fn read_virt(&self, va: u64, buf: &mut [u8]) -> bool;
    /// Value of a register for `$name` in addresses.
    fn register(&self, name: &str) -> Option<u64>;
    /// Disassembles the instruction at `va` in the CPU's current mode: its length (1..=15) and text.
    fn disassemble(&self, va: u64, code: &[u8]) -> Option<(usize, String)>;
    fn stop(&self);
    fn cont(&self) -> Result<(), String>;
    fn quit(&self);
    fn reset(&self);
    fn powerdown(&self);
}

/// One monitor on one back end or mux port.
pub struct Monitor {
    target: Arc<dyn MonitorTarget>,
    out: Arc<dyn CharSink>,
    editor: Mutex<Editor>,
}

impl Monitor {
    pub fn new(target: Arc<dyn MonitorTarget>, out: Arc<dyn CharSink>) -> Arc<Self> {
        Arc::new(Self { target, out, editor: Mutex::default() })
    }

    /// Runs one command line and writes its output.
    fn execute(&self, line: &str) {
        let text = command::run(line, &*self.target);
        if !text.is_empty() {
            self.print(&text);
        }
    }

    fn print(&self, text: &str) {
        self.out.write(text.replace('\n', "\r\n").as_bytes());
    }
}

impl Front for Monitor {
    fn room(&self) -> usize {
        editor::MAX_LINE
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        for &b in bytes {
            // The lock is not held while a command runs.
            let edit = self.editor.lock().byte(b);
            match edit {
                Edit::Echo(text) => self.out.write(text.as_bytes()),
                Edit::Line(line) => {
                    self.print("\n");
                    self.execute(&line);
                    self.print(PROMPT);
                }
            }
        }
        bytes.len()
    }

    fn event(&self, event: Event) {
        match event {
            Event::Opened => {
                self.editor.lock().clear();
                self.print(&format!("\nrhea {} monitor - type 'help' for more information\n{PROMPT}", env!("CARGO_PKG_VERSION")));
            }
            Event::Closed => self.editor.lock().clear(),
            Event::Break => {}
        }
    }

    fn pump(&self) {}
}

#[cfg(test)]
mod tests;
