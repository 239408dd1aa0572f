//! Opens the character back ends of a configuration and connects serial ports, monitors, QMP and debug consoles to them.

use crate::chardev::{Chardev, DeviceFront, Front, Kind, Mux, MuxPort};
use crate::event_loop::Waker;
use crate::gdb::{Arch, script};
use crate::machine::Machine;
use crate::monitor::Monitor;
use crate::options::{self, Config, DeviceSpec};
use crate::qmp::Qmp;
use crate::run::RunError;
use devices::chr::CharSink;
use std::fs::OpenOptions;
use std::io;
use std::sync::Arc;

/// One user's side of a back end.
#[derive(Clone)]
enum End {
    Alone(Arc<Chardev>),
    Port(Arc<MuxPort>),
}

impl End {
    fn sink(&self) -> Arc<dyn CharSink> {
        match self {
            Self::Alone(dev) => dev.clone(),
            Self::Port(port) => port.clone(),
        }
    }

    fn set_front(&self, front: Arc<dyn Front>) {
        match self {
            Self::Alone(dev) => dev.set_front(front),
            Self::Port(port) => port.set_front(front),
        }
    }
}

struct Backend {
    id: String,
    dev: Arc<Chardev>,
    mux: Option<Arc<Mux>>,
}

/// All back ends, and the ends that the board's ports have.
pub struct Consoles {
    backends: Vec<Backend>,
    serials: [Option<End>; 4],
}

impl Consoles {
    /// Opens all back ends. `quit` is called for Ctrl-A X, on the event loop's thread.
    pub fn open(config: &Config, waker: &Waker, quit: impl Fn() + Clone + Send + Sync + 'static) -> Result<Self, RunError> {
        let mut backends = vec![];
        for spec in &config.chardevs {
            let dev = Chardev::open(&Kind::from(&spec.backend), &spec.id, waker)?;
            open_log(spec, &dev)?;
            let mux = spec.mux.then(|| Mux::new(dev.clone(), quit.clone()));
            backends.push(Backend { id: spec.id.clone(), dev, mux });
        }
        Ok(Self { backends, serials: Default::default() })
    }

    /// A new end of back end `id`.
    fn end(&self, id: &str) -> Option<End> {
        let b = self.backends.iter().find(|b| b.id == id)?;
        Some(match &b.mux {
            Some(mux) => End::Port(mux.port()),
            None => End::Alone(b.dev.clone()),
        })
    }

    /// Where the serial ports write to.
    pub fn serials(&mut self, config: &Config) -> [Option<Arc<dyn CharSink>>; 4] {
        for (i, id) in config.serials.iter().enumerate() {
            self.serials[i] = id.as_ref().and_then(|id| self.end(id));
        }
        std::array::from_fn(|i| self.serials[i].as_ref().map(End::sink))
    }

    /// The extra devices with their outputs.
    pub fn devices(&self, config: &Config) -> Vec<(DeviceSpec, Option<Arc<dyn CharSink>>)> {
        let sink = |d: &DeviceSpec| match d {
            DeviceSpec::IsaDebugcon { chardev, .. } => self.end(chardev).map(|e| e.sink()),
            _ => None,
        };
        config.devices.iter().map(|d| (d.clone(), sink(d))).collect()
    }

    /// Lets input flow to the serial ports and monitors. Errors are those of making threads.
    pub fn connect(&self, config: &Config, machine: &Arc<Machine>) -> io::Result<()> {
        for (end, uart) in self.serials.iter().zip(&machine.board.uarts) {
            if let (Some(end), Some(uart)) = (end, uart) {
                end.set_front(DeviceFront::new(uart));
            }
        }
        for end in config.monitors.iter().filter_map(|id| self.end(id)) {
            let monitor = Monitor::new(machine.clone(), end.sink());
            end.set_front(monitor);
        }
        for spec in &config.qmp {
            let Some(b) = self.backends.iter().find(|b| b.id == spec.chardev) else { continue };
            let qmp = Qmp::start(b.dev.clone(), machine.clone(), spec.pretty)?;
            machine.control.add_observer(qmp.clone());
            b.dev.set_front(qmp);
        }
        if let Some(b) = config.gdb.as_ref().and_then(|g| self.backends.iter().find(|b| b.id == g.chardev)) {
            let i386 = config.gdb.as_ref().is_some_and(|g| g.i386);
            machine.gdb.start(machine, b.dev.clone(), Arch::of(i386))?;
            script::announce(b.dev.summary().1);
        }
        self.backends.iter().filter_map(|b| b.mux.as_ref()).for_each(Mux::start);
        Ok(())
    }

    pub fn all(&self) -> Vec<Arc<Chardev>> {
        self.backends.iter().map(|b| b.dev.clone()).collect()
    }

    /// Gives the peers a moment to take the last output.
    pub fn drain(&self) {
        self.backends.iter().for_each(|b| b.dev.drain());
    }
}

fn open_log(spec: &options::Chardev, dev: &Chardev) -> Result<(), RunError> {
    let Some(path) = &spec.logfile else { return Ok(()) };
    let file = OpenOptions::new().create(true).write(true).append(spec.logappend).truncate(!spec.logappend).open(path);
    dev.set_log(file.map_err(|e| RunError::File(path.clone(), e))?);
    Ok(())
}
