//! The human monitor: QEMU's command line (HMP) for a running machine.
//!
//! Input is hostile too (a socket may be behind it): lines, counts and buffers are bounded.

mod command;
mod dump;
mod editor;
mod keys;

pub use command::{run, shown};

use crate::chardev::{Event, Front};
use crate::control::RunState;
use devices::chr::CharSink;
use devices::input::scancode::Key;
use editor::{Edit, Editor};
use parking_lot::Mutex;
use serde_json::Value;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

pub const PROMPT: &str = "(rhea) ";

/// QEMU's words.
pub const NO_BALLOON: &str = "No balloon device has been activated";

/// What `info_board` is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Memory map and ports.
    Memory,
    Devices,
    /// The 8259s and the I/O APIC.
    Interrupts,
    /// The current CPU's local APIC.
    Lapic,
}

/// A CPU, for `info cpus` and `query-cpus-fast`.
#[derive(Clone, Copy, Debug)]
pub struct CpuInfo {
    /// Host thread id.
    pub thread: i32,
    /// Number of its socket, of its core there, and of the thread in that.
    pub place: [u32; 3],
    /// The monitor's commands are about it.
    pub current: bool,
}

/// What the monitors ask of the machine. Texts end with a newline or are empty; errors are one line without it.
pub trait MonitorTarget: Send + Sync {
    fn info_registers(&self) -> String;
    fn info_tlb(&self) -> String;
    fn info_jit(&self) -> String;
    fn info_chardev(&self) -> String;
    /// Whether KVM runs the guest now; `None`: it is not there.
    fn kvm(&self) -> Option<bool> {
        None
    }
    /// Has another engine run the guest: `jit`, `kvm`.
    fn accel(&self, _name: &str) -> Result<(), String> {
        Err("there is one engine only".into())
    }
    /// Drives and their images.
    fn info_block(&self) -> String {
        String::new()
    }
    /// The same as `query-block` has them.
    fn block(&self) -> Vec<Value> {
        Vec::new()
    }
    /// Gives a drive another size, in bytes.
    fn resize_drive(&self, _id: &str, _bytes: u64) -> Result<(), String> {
        Err("there are no drives".into())
    }
    /// Network cards and what is behind them.
    fn info_network(&self) -> String {
        String::new()
    }
    /// Connections and forwarded ports of user-mode networks.
    fn info_usernet(&self) -> String {
        String::new()
    }
    /// Bytes of RAM that the guest has left beside the balloon, and what it tells of its memory; `None`: there is no balloon.
    fn balloon(&self) -> Option<(u64, String)> {
        None
    }
    /// Asks the guest to live with so many bytes.
    fn set_balloon(&self, _bytes: u64) -> Result<(), String> {
        Err(NO_BALLOON.into())
    }
    /// Opens or closes a forwarded port, `[ID] FORWARD`.
    fn hostfwd(&self, _add: bool, _args: &str) -> Result<(), String> {
        Err("there is no user-mode network".into())
    }
    /// Label, file name and whether it is open, of each back end, as `query-chardev` has them.
    fn chardevs(&self) -> Vec<Value>;
    fn run_state(&self) -> RunState;
    fn cpus(&self) -> Vec<CpuInfo>;
    /// Makes CPU number `n` the current one; `false`: there is none.
    fn select_cpu(&self, n: usize) -> bool;
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
    /// `on [SYMBOLS]`, `off`: starts or stops a profile of the guest.
    fn profile(&self, _args: &str) -> Result<(), String> {
        Err("not available".into())
    }
    fn info_profile(&self) -> String {
        String::new()
    }
    /// Parts of the machine in words.
    fn info_board(&self, _: Part) -> String {
        "not available\n".into()
    }
    /// Physical address that a linear one of the current CPU stands for.
    fn translate(&self, _va: u64) -> Option<u64> {
        None
    }
    /// Presses keys and lets them go after `ms` milliseconds of guest time.
    fn send_keys(&self, _keys: Vec<Key>, _ms: u64) -> Result<(), String> {
        Err("there is no keyboard".into())
    }
    /// A non-maskable interrupt for the current CPU.
    fn nmi(&self) {}
    /// Starts a gdb stub on a back end, or ends it (`none`); gives what to say.
    fn gdbserver(&self, _device: &str) -> Result<String, String> {
        Err("not available".into())
    }
    /// Writes a picture of the screen to a file.
    fn screendump(&self, _path: &str) -> Result<(), String> {
        Err("there is no display".into())
    }
    fn stop(&self);
    fn cont(&self) -> Result<(), String>;
    fn quit(&self);
    fn reset(&self);
    fn powerdown(&self);
    /// `savevm`, `loadvm`: take as long as the disk does.
    fn save(&self, path: &str) -> Result<(), String>;
    fn load(&self, path: &str) -> Result<(), String>;
    /// Saves to a URI and stands still then. With `wait` returns when all is done.
    fn migrate(&self, uri: &str, wait: bool) -> Result<(), String>;
    fn migrate_incoming(&self, uri: &str) -> Result<(), String>;
    /// The reply to `query-migrate`.
    fn migration(&self) -> Value;
    fn info_migrate(&self) -> String;
}

/// One monitor on one back end or mux port.
pub struct Monitor {
    target: Arc<dyn MonitorTarget>,
    out: Arc<dyn CharSink>,
    editor: Mutex<Editor>,
    /// A command runs on a thread of its own: input waits.
    busy: AtomicBool,
    this: Weak<Self>,
}

impl Monitor {
    pub fn new(target: Arc<dyn MonitorTarget>, out: Arc<dyn CharSink>) -> Arc<Self> {
        let make =
            |this: &Weak<Self>| Self { target, out, editor: Mutex::default(), busy: AtomicBool::new(false), this: this.clone() };
        Arc::new_cyclic(make)
    }

    /// Runs one command line and writes its output.
    fn execute(&self, line: &str) {
        let text = command::run(line, &*self.target);
        if !text.is_empty() {
            self.print(&text);
        }
    }

    /// Runs a command that waits for a disk; the event loop must not.
    fn execute_apart(&self, line: String) {
        self.busy.store(true, Ordering::SeqCst);
        let this = self.this.clone();
        let run = move || {
            let Some(m) = this.upgrade() else { return };
            m.execute(&line);
            m.print(PROMPT);
            m.busy.store(false, Ordering::SeqCst);
            m.out.input_wanted();
        };
        if let Err(e) = std::thread::Builder::new().name("monitor".into()).spawn(run) {
            self.busy.store(false, Ordering::SeqCst);
            self.print(&format!("Error: {e}\n{PROMPT}"));
        }
    }

    fn print(&self, text: &str) {
        self.out.write(text.replace('\n', "\r\n").as_bytes());
    }
}

impl Front for Monitor {
    fn room(&self) -> usize {
        if self.busy.load(Ordering::SeqCst) { 0 } else { editor::MAX_LINE }
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        for (i, &b) in bytes.iter().enumerate() {
            if self.busy.load(Ordering::SeqCst) {
                return i;
            }
            // The lock is not held while a command runs.
            let edit = self.editor.lock().byte(b);
            match edit {
                Edit::Echo(text) => self.out.write(text.as_bytes()),
                Edit::Line(line) if command::is_long(&line) => {
                    self.print("\n");
                    self.execute_apart(line);
                }
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
            Event::Break | Event::Drained => {}
        }
    }

    fn pump(&self) {}
}

#[cfg(test)]
mod tests;
