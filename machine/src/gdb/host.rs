//! The machine's one stub: from the command line, or started and ended by the monitor's `gdbserver`.

use super::{Arch, Gdb, script};
use crate::chardev::{Chardev, Kind};
use crate::event_loop::Waker;
use crate::machine::Machine;
use crate::options;
use parking_lot::Mutex;
use std::io;
use std::sync::{Arc, Weak};

/// Where the stub is, if there is one.
pub struct Host {
    waker: Waker,
    machine: Weak<Machine>,
    stub: Mutex<Option<(Arc<Chardev>, Arc<Gdb>)>>,
}

impl Host {
    pub fn new(waker: Waker, machine: Weak<Machine>) -> Self {
        Self { waker, machine, stub: Mutex::default() }
    }

    /// Starts a stub on a back end that is open. Errors are those of making a thread.
    pub fn start(&self, machine: &Arc<Machine>, line: Arc<Chardev>, arch: Arch) -> io::Result<()> {
        let gdb = Gdb::start(line.clone(), machine.clone(), arch)?;
        machine.control.add_observer(gdb.clone());
        line.set_front(gdb.clone());
        *self.stub.lock() = Some((line, gdb));
        Ok(())
    }

    /// The monitor's `gdbserver`: ends the stub that there is, and starts one on `device` unless that is `none`.
    pub fn serve(&self, device: &str) -> Result<String, String> {
        let backend = options::gdb_backend(device).map_err(|e| e.to_string())?;
        if let Some((line, gdb)) = self.stub.lock().take() {
            gdb.close();
            line.close();
        }
        let (Some((backend, config)), Some(machine)) = (backend, self.machine.upgrade()) else {
            return Ok("Disabled gdbserver\n".into());
        };
        let line = Chardev::open(&Kind::from(&backend), "gdb", &self.waker).map_err(|e| e.to_string())?;
        self.start(&machine, line, Arch::of(config.i386)).map_err(|e| e.to_string())?;
        script::announce(device);
        Ok(format!("Waiting for gdb connection on device '{device}'\n"))
    }
}
