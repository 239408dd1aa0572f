//! One host back end: opening, input under flow control, peers that come and go.

use super::output::Output;
use super::spec::Kind;
use super::{Event, Front, term};
use crate::options::SocketAddress as Address;
use crate::event_loop::{Source, Waker, Want};
use devices::chr::CharSink;
use parking_lot::Mutex;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// Why a back end cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("character back end {label}: {what}: {source}")]
pub struct OpenError {
    label: String,
    what: String,
    source: io::Error,
}

/// Longest read at once.
const READ_CHUNK: usize = 4096;
/// Time for one attempt of a client to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Time given to a peer for the last bytes when the back end is closed.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

const INPUT: u32 = 0;
const OUTPUT: u32 = 1;
const LISTENER: u32 = 2;

enum Listener {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Listener {
    fn fd(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(l) => l.as_fd().try_clone_to_owned(),
            Self::Tcp(l) => l.as_fd().try_clone_to_owned(),
        }
    }

    /// The next client, non-blocking.
    fn accept(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(l) => {
                let s = l.accept()?.0;
                s.set_nonblocking(true)?;
                Ok(s.into())
            }
            Self::Tcp(l) => tcp_ready(l.accept()?.0),
        }
    }
}

/// Where peers come from.
enum Origin {
    /// The descriptors given at the start are all there will be.
    Fixed,
    Server { listener: Listener, fd: Arc<OwnedFd> },
    Client { address: Address, reconnect: Option<Duration>, next_try: Option<Instant> },
}

struct Link {
    origin: Origin,
    input: Option<Arc<OwnedFd>>,
    output: Option<Output>,
    /// Lost with earlier peers, or for want of one.
    dropped: u64,
    /// The far side of a pty.
    _far_side: Option<OwnedFd>,
}

impl Link {
    fn connected(&self) -> bool {
        self.input.is_some() || self.output.is_some()
    }

    fn attach(&mut self, fd: OwnedFd) {
        let fd = Arc::new(fd);
        self.output = Some(Output::nonblocking(fd.clone()));
        self.input = Some(fd);
    }

    fn detach(&mut self) {
        self.input = None;
        if let Some(o) = self.output.take() {
            self.dropped += o.dropped;
        }
        if let Origin::Client { reconnect: Some(delay), next_try, .. } = &mut self.origin {
            *next_try = Some(Instant::now() + *delay);
        }
    }
}

/// A back end. Devices write to it as a `CharSink`; its input goes to the `Front` that was set.
pub struct Chardev {
    label: String,
    what: String,
    link: Mutex<Link>,
    front: Mutex<Option<Arc<dyn Front>>>,
    /// Input that the front end had room for when it was read, and no longer had when it was offered.
    held: Mutex<Vec<u8>>,
    /// A copy of all output.
    log: Mutex<Option<File>>,
    waker: Waker,
    this: Weak<Self>,
}

impl Chardev {
    /// Opens `kind` and puts it under the event loop. `label` names it in messages and in `info chardev`.
    /// A server with `wait` returns when its first client has come.
    pub fn open(kind: &Kind, label: &str, waker: &Waker) -> Result<Arc<Self>, OpenError> {
        let what = describe(kind);
        let fail = |source| OpenError { label: label.into(), what: what.clone(), source };
        let (link, what) = open_kind(kind, label, &what).map_err(fail)?;
        Ok(Self::with_link(link, label, &what, waker))
    }

    /// A back end over descriptors that are open already and non-blocking (tests, inherited pipes).
    pub fn from_fds(input: Option<OwnedFd>, output: Option<OwnedFd>, label: &str, waker: &Waker) -> Arc<Self> {
        let output = output.map(|fd| Output::nonblocking(Arc::new(fd)));
        let link = Link { origin: Origin::Fixed, input: input.map(Arc::new), output, dropped: 0, _far_side: None };
        Self::with_link(link, label, "descriptors", waker)
    }

    fn with_link(link: Link, label: &str, what: &str, waker: &Waker) -> Arc<Self> {
        let make = |this: &Weak<Self>| Self {
            label: label.into(),
            what: what.into(),
            link: Mutex::new(link),
            front: Mutex::default(),
            held: Mutex::default(),
            log: Mutex::default(),
            waker: waker.clone(),
            this: this.clone(),
        };
        let dev = Arc::new_cyclic(make);
        waker.add(dev.clone());
        dev
    }

    /// Sets who gets the input. Until then none is read.
    pub fn set_front(&self, front: Arc<dyn Front>) {
        let connected = self.link.lock().connected();
        *self.front.lock() = Some(front.clone());
        if connected {
            front.event(Event::Opened);
        }
        self.waker.wake();
    }

    /// Copies all further output to a file (`logfile=`).
    pub fn set_log(&self, file: File) {
        *self.log.lock() = Some(file);
    }

    /// One line for `info chardev`.
    pub fn info(&self) -> String {
        let link = self.link.lock();
        let lost = link.dropped + link.output.as_ref().map_or(0, |o| o.dropped);
        let state = if link.connected() { "connected" } else { "not connected" };
        let state = if matches!(link.origin, Origin::Fixed) { "open" } else { state };
        let lost = if lost > 0 { format!(", {lost} bytes lost") } else { String::new() };
        format!("{}: {} ({state}{lost})", self.label, self.what)
    }

    /// Whether input comes from a terminal, that is, from a person who must be able to leave.
    pub fn is_interactive(&self) -> bool {
        self.link.lock().input.as_ref().is_some_and(rustix::termios::isatty)
    }

    /// Gives the peer a moment to take the last output; called before the program ends.
    pub fn drain(&self) {
        if let Some(o) = &mut self.link.lock().output {
            o.drain(DRAIN_LIMIT);
        }
    }

    fn front(&self) -> Option<Arc<dyn Front>> {
        self.front.lock().clone()
    }

    fn tell(&self, event: Event) {
        if let Some(f) = self.front() {
            f.event(event);
        }
    }

    /// Offers held input again; true if none is left.
    fn offer_held(&self, front: &dyn Front) -> bool {
        let mut bytes = std::mem::take(&mut *self.held.lock());
        if !bytes.is_empty() {
            let n = front.receive(&bytes).min(bytes.len());
            bytes.drain(..n);
        }
        let done = bytes.is_empty();
        *self.held.lock() = bytes;
        done
    }

    fn read_input(&self) {
        let (Some(front), Some(fd)) = (self.front(), self.link.lock().input.clone()) else { return };
        let mut buf = [0; READ_CHUNK];
        let room = front.room().min(READ_CHUNK);
        if room == 0 {
            return;
        }
        match rustix::io::read(&*fd, &mut buf[..room]) {
            Ok(0) => self.lost_peer(),
            Ok(n) => {
                self.held.lock().extend_from_slice(&buf[..n]);
                self.offer_held(&*front);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.lost_peer(),
        }
    }

    /// End of input. Of a fixed back end only the input ends: at the end of stdin the guest runs on.
    fn lost_peer(&self) {
        let mut link = self.link.lock();
        if matches!(link.origin, Origin::Fixed) {
            link.input = None;
        } else {
            link.detach();
        }
        drop(link);
        self.tell(Event::Closed);
    }

    fn accept(&self) {
        let mut link = self.link.lock();
        let Origin::Server { listener, .. } = &link.origin else { return };
        match listener.accept() {
            Ok(fd) => link.attach(fd),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) => {
                eprintln!("rhea: {}: {}: {e}", self.label, self.what);
                // The client still waits, and would be tried again at once.
                return std::thread::sleep(Duration::from_millis(100));
            }
        }
        drop(link);
        self.tell(Event::Opened);
    }

    /// Starts a new attempt to connect if one is due. A thread waits for it, as the loop must not.
    fn reconnect(&self) {
        let address = match &mut self.link.lock().origin {
            Origin::Client { address, next_try, .. } if next_try.is_some_and(|t| t <= Instant::now()) => {
                *next_try = None;
                address.clone()
            }
            _ => return,
        };
        let this = self.this.clone();
        let run = move || {
            let peer = connect(&address);
            let Some(dev) = this.upgrade() else { return };
            let mut link = dev.link.lock();
            match peer {
                Ok(fd) => {
                    link.attach(fd);
                    drop(link);
                    dev.tell(Event::Opened);
                }
                // Without a peer, this sets the time of the next attempt.
                Err(_) => link.detach(),
            }
            dev.waker.wake();
        };
        if let Err(e) = std::thread::Builder::new().name("connect".into()).spawn(run) {
            eprintln!("rhea: {}: {e}", self.label);
            self.link.lock().detach();
        }
    }
}

impl CharSink for Chardev {
    fn write(&self, bytes: &[u8]) {
        if let Some(f) = &mut *self.log.lock() {
            // A full disk must not stop the guest.
            let _ = f.write_all(bytes);
        }
        let mut link = self.link.lock();
        let Some(out) = &mut link.output else {
            link.dropped += bytes.len() as u64;
            return;
        };
        // The loop is told of changes only: it looks after a peer that is behind until it has caught up.
        let needs_loop = |o: &Output| (o.waits_for().is_some(), o.is_broken());
        let before = needs_loop(out);
        out.write(bytes);
        if needs_loop(out) != before {
            self.waker.wake();
        }
    }

    fn input_wanted(&self) {
        self.waker.wake();
    }
}

impl Source for Chardev {
    fn interest(&self, wants: &mut Vec<Want>) {
        self.reconnect();
        let room = self.front().is_some_and(|f| {
            f.pump();
            self.offer_held(&*f) && f.room() > 0
        });
        let mut link = self.link.lock();
        if link.output.as_ref().is_some_and(Output::is_broken) && !matches!(link.origin, Origin::Fixed) {
            link.detach();
            drop(link);
            self.tell(Event::Closed);
            link = self.link.lock();
        }
        let mut want = |fd: &Arc<OwnedFd>, events, token| wants.push(Want { fd: fd.clone(), events, token });
        if let Some(fd) = link.input.as_ref().filter(|_| room) {
            want(fd, PollFlags::IN, INPUT);
        }
        if let Some(fd) = link.output.as_ref().and_then(Output::waits_for) {
            want(&fd, PollFlags::OUT, OUTPUT);
        }
        match &link.origin {
            Origin::Server { fd, .. } if !link.connected() => want(fd, PollFlags::IN, LISTENER),
            _ => {}
        }
    }

    fn ready(&self, token: u32, _: PollFlags) {
        match token {
            INPUT => self.read_input(),
            OUTPUT => {
                if let Some(out) = &mut self.link.lock().output {
                    out.flush();
                }
            }
            _ => self.accept(),
        }
    }

    fn deadline(&self) -> Option<Instant> {
        match &self.link.lock().origin {
            Origin::Client { next_try, .. } => *next_try,
            _ => None,
        }
    }
}

fn describe(kind: &Kind) -> String {
    match kind {
        Kind::Null => "null".into(),
        Kind::Stdio { .. } => "stdio".into(),
        Kind::Pty => "pty".into(),
        Kind::File { path, .. } => format!("file {}", path.display()),
        Kind::Server { address, .. } => describe_address(address, "server"),
        Kind::Client { address, .. } => describe_address(address, "client"),
    }
}

fn describe_address(address: &Address, role: &str) -> String {
    match address {
        Address::Unix(p) => format!("unix socket {} ({role})", p.display()),
        Address::Tcp { host, port } => format!("tcp {host}:{port} ({role})"),
    }
}

/// The link and its description (which for a pty names the path to open).
fn open_kind(kind: &Kind, label: &str, what: &str) -> io::Result<(Link, String)> {
    let fixed = |input, output| Link { origin: Origin::Fixed, input, output, dropped: 0, _far_side: None };
    let link = match kind {
        Kind::Null => fixed(None, None),
        Kind::Stdio { signal } => {
            term::enter_raw(*signal)?;
            let input = io::stdin().as_fd().try_clone_to_owned()?;
            fixed(Some(Arc::new(input)), Some(Output::shared(io::stdout().as_fd().try_clone_to_owned()?)))
        }
        Kind::File { path, append } => {
            let file = OpenOptions::new().create(true).write(true).append(*append).truncate(!append).open(path)?;
            fixed(None, Some(Output::shared(file.into())))
        }
        Kind::Server { address, wait } => listen(address, *wait, label, what)?,
        Kind::Client { address, reconnect } => client(address, *reconnect)?,
        Kind::Pty => {
            let (fd, slave, path) = open_pty()?;
            eprintln!("rhea: {label} is on {path}");
            let fd = Arc::new(fd);
            let link = fixed(Some(fd.clone()), Some(Output::nonblocking(fd)));
            return Ok((Link { _far_side: Some(slave), ..link }, format!("pty {path}")));
        }
    };
    Ok((link, what.into()))
}

fn listen(address: &Address, wait: bool, label: &str, what: &str) -> io::Result<Link> {
    let listener = match address {
        Address::Unix(path) => {
            // A socket left by an earlier run; anything else at that path is not ours to remove.
            if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
                std::fs::remove_file(path)?;
            }
            Listener::Unix(UnixListener::bind(path)?)
        }
        Address::Tcp { host, port } if host.is_empty() => {
            Listener::Tcp(TcpListener::bind(("::", *port)).or_else(|_| TcpListener::bind(("0.0.0.0", *port)))?)
        }
        Address::Tcp { host, port } => Listener::Tcp(TcpListener::bind((host.as_str(), *port))?),
    };
    let first = if wait {
        eprintln!("rhea: {label} waits for a connection on {what}");
        Some(listener.accept()?)
    } else {
        None
    };
    match &listener {
        Listener::Unix(l) => l.set_nonblocking(true)?,
        Listener::Tcp(l) => l.set_nonblocking(true)?,
    }
    let fd = Arc::new(listener.fd()?);
    let mut link = Link { origin: Origin::Server { listener, fd }, input: None, output: None, dropped: 0, _far_side: None };
    if let Some(fd) = first {
        link.attach(fd);
    }
    Ok(link)
}

/// A client whose first attempt fails is an error, unless it is to try again.
fn client(address: &Address, reconnect: Option<Duration>) -> io::Result<Link> {
    let origin = Origin::Client { address: address.clone(), reconnect, next_try: None };
    let mut link = Link { origin, input: None, output: None, dropped: 0, _far_side: None };
    match connect(address) {
        Ok(fd) => link.attach(fd),
        Err(_) if reconnect.is_some() => link.detach(),
        Err(e) => return Err(e),
    }
    Ok(link)
}

fn connect(address: &Address) -> io::Result<OwnedFd> {
    match address {
        Address::Unix(path) => {
            let s = UnixStream::connect(path)?;
            s.set_nonblocking(true)?;
            Ok(s.into())
        }
        Address::Tcp { host, port } => {
            let host = if host.is_empty() { "localhost" } else { host };
            let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
            for a in (host, *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&a, CONNECT_LIMIT) {
                    Ok(s) => return tcp_ready(s),
                    Err(e) => last = e,
                }
            }
            Err(last)
        }
    }
}

fn tcp_ready(s: TcpStream) -> io::Result<OwnedFd> {
    s.set_nodelay(true)?;
    s.set_nonblocking(true)?;
    Ok(s.into())
}

/// A pseudo-terminal in raw mode, and the path of the side to open. We hold that side open too: without it the
/// master reports a hang-up for as long as nobody has it open.
fn open_pty() -> io::Result<(OwnedFd, OwnedFd, String)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let path = ptsname(&master, Vec::new())?.to_string_lossy().into_owned();
    let slave = OpenOptions::new().read(true).write(true).open(&path)?;
    let mut modes = rustix::termios::tcgetattr(&slave)?;
    modes.make_raw();
    rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &modes)?;
    rustix::io::ioctl_fionbio(&master, true)?;
    Ok((master, slave.into(), path))
}
