//! Opens the character back ends of a configuration and connects serial ports, monitors, QMP and debug consoles to them.

use crate::board::Board;
use crate::chardev::{Chardev, DeviceFront, Event, Front, Kind, Mux, MuxPort};
use crate::event_loop::Waker;
use crate::gdb::{Arch, script};
use crate::machine::Machine;
use crate::monitor::Monitor;
use crate::net::user::{Line, Lines};
use crate::options::{self, Config, DeviceSpec, ForwardTarget, NetdevKind, SerialPort};
use crate::qmp::Qmp;
use crate::run::RunError;
use devices::chr::CharSink;
use devices::virtio::{Access, Console};
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
    /// Ends of the ports of each virtio console device.
    ports: Vec<Vec<Option<End>>>,
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
        Ok(Self { backends, serials: Default::default(), ports: Vec::new() })
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

    /// Where the ports of virtio console devices write to.
    pub fn ports(&mut self, config: &Config) -> Vec<Vec<Option<Arc<dyn CharSink>>>> {
        let end = |p: &SerialPort| p.chardev.as_ref().and_then(|id| self.end(id));
        self.ports = port_lists(config).map(|ports| ports.iter().map(end).collect()).collect();
        let sink = |e: &Option<End>| e.as_ref().map(End::sink);
        self.ports.iter().map(|ports| ports.iter().map(sink).collect()).collect()
    }

    /// Lines of user-mode networks to back ends.
    pub fn lines(&self, config: &Config, waker: &Waker) -> Lines {
        let users = config.netdevs.iter().filter_map(|n| match &n.kind {
            NetdevKind::User(u) => Some(&u.guestfwd),
            NetdevKind::Link(_) => None,
        });
        let mut lines = Lines::new();
        for g in users.flatten() {
            let ForwardTarget::Chardev(id) = &g.to else { continue };
            if let (false, Some(end)) = (lines.contains_key(id), self.end(id)) {
                let line = Line::start(end.sink(), waker);
                end.set_front(line.front());
                lines.insert(id.clone(), line);
            }
        }
        lines
    }

    /// Lets input flow to the ports of virtio console devices.
    fn connect_ports(&self, config: &Config, board: &Board) {
        for ((list, ends), access) in port_lists(config).zip(&self.ports).zip(&board.consoles) {
            for (p, end) in list.iter().zip(ends) {
                let Some(end) = end else { continue };
                let front = Arc::new(PortFront { access: access.clone(), nr: p.nr });
                end.set_front(front.clone());
                if let End::Port(_) = end {
                    // What shares a back end with others is always there.
                    front.event(Event::Opened);
                }
            }
        }
    }

    /// Lets input flow to the serial ports and monitors. Errors are those of making threads.
    pub fn connect(&self, config: &Config, machine: &Arc<Machine>) -> io::Result<()> {
        for (end, uart) in self.serials.iter().zip(&machine.board.uarts) {
            if let (Some(end), Some(uart)) = (end, uart) {
                end.set_front(DeviceFront::new(uart));
            }
        }
        self.connect_ports(config, &machine.board);
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

/// The ports of each virtio console device.
fn port_lists(config: &Config) -> impl Iterator<Item = &Vec<SerialPort>> {
    config.devices.iter().filter_map(|d| match d {
        DeviceSpec::VirtioSerial { ports, .. } => Some(ports),
        _ => None,
    })
}

/// A port of a virtio console device as front end.
struct PortFront {
    access: Access<Console>,
    nr: u32,
}

impl Front for PortFront {
    fn room(&self) -> usize {
        let mut room = 0;
        (self.access)(&mut |c, _| room = c.room(self.nr));
        room
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        (self.access)(&mut |c, queues| taken = c.receive(self.nr, bytes, queues));
        taken
    }

    fn event(&self, event: Event) {
        match event {
            Event::Opened | Event::Closed => (self.access)(&mut |c, queues| c.set_open(self.nr, event == Event::Opened, queues)),
            // Whoever gets at the device lets it go on.
            Event::Drained => (self.access)(&mut |_, _| {}),
            Event::Break => {}
        }
    }

    fn pump(&self) {
        (self.access)(&mut |_, _| {});
    }
}

fn open_log(spec: &options::Chardev, dev: &Chardev) -> Result<(), RunError> {
    let Some(path) = &spec.logfile else { return Ok(()) };
    let file = OpenOptions::new().create(true).write(true).append(spec.logappend).truncate(!spec.logappend).open(path);
    dev.set_log(file.map_err(|e| RunError::File(path.clone(), e))?);
    Ok(())
}
