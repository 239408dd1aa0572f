//! One host back end at work: input under flow control, output, peers that come and go.

use super::open::{self, Listener};
use super::output::Output;
use super::spec::Kind;
use super::{Event, Front};
use crate::event_loop::{Source, Waker, Want};
use crate::options::SocketAddress as Address;
use crate::say;
use devices::chr::CharSink;
use parking_lot::Mutex;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
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
/// Time given to a peer for the last bytes when the back end is closed.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);

const INPUT: u32 = 0;
const OUTPUT: u32 = 1;
const LISTENER: u32 = 2;

/// Where peers come from.
pub(super) enum Origin {
    /// The descriptors given at the start are all there will be.
    Fixed,
    Server {
        listener: Listener,
        fd: Arc<OwnedFd>,
    },
    Client {
        address: Address,
        reconnect: Option<Duration>,
        next_try: Option<Instant>,
    },
}

pub(super) struct Link {
    origin: Origin,
    input: Option<Arc<OwnedFd>>,
    output: Option<Output>,
    /// Lost with earlier peers, or for want of one.
    dropped: u64,
    /// The far side of a pty.
    _far_side: Option<OwnedFd>,
}

impl Link {
    pub(super) fn new(origin: Origin, input: Option<Arc<OwnedFd>>, output: Option<Output>) -> Self {
        Self { origin, input, output, dropped: 0, _far_side: None }
    }

    /// Keeps `fd` open for as long as the link lives.
    pub(super) fn keeping(self, fd: OwnedFd) -> Self {
        Self { _far_side: Some(fd), ..self }
    }

    fn connected(&self) -> bool {
        self.input.is_some() || self.output.is_some()
    }

    pub(super) fn attach(&mut self, fd: OwnedFd) {
        let fd = Arc::new(fd);
        self.output = Some(Output::nonblocking(fd.clone()));
        self.input = Some(fd);
    }

    pub(super) fn detach(&mut self) {
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
        let what = open::describe(kind);
        let fail = |source| OpenError { label: label.into(), what: what.clone(), source };
        let (link, what) = open::link(kind, label, &what).map_err(fail)?;
        Ok(Self::with_link(link, label, &what, waker))
    }

    /// A back end over descriptors that are open already and non-blocking (tests, inherited pipes).
    pub fn from_fds(input: Option<OwnedFd>, output: Option<OwnedFd>, label: &str, waker: &Waker) -> Arc<Self> {
        let output = output.map(|fd| Output::nonblocking(Arc::new(fd)));
        let link = Link::new(Origin::Fixed, input.map(Arc::new), output);
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

    /// Name, what is behind it, and whether somebody is connected.
    pub fn summary(&self) -> (&str, &str, bool) {
        let link = self.link.lock();
        (&self.label, &self.what, link.connected() || matches!(link.origin, Origin::Fixed))
    }

    /// Output that never waits: all of `bytes` is taken, or nothing if more than `limit` bytes would wait for the peer.
    pub fn offer(&self, bytes: &[u8], limit: usize) -> bool {
        let mut link = self.link.lock();
        let Some(out) = &mut link.output else {
            link.dropped += bytes.len() as u64;
            return true;
        };
        let before = needs_loop(out);
        let taken = out.offer(bytes, limit);
        if needs_loop(out) != before {
            self.waker.wake();
        }
        if taken && let Some(f) = &mut *self.log.lock() {
            let _ = f.write_all(bytes);
        }
        taken
    }

    /// Bytes that the peer has not taken yet.
    pub fn backlog(&self) -> usize {
        self.link.lock().output.as_ref().map_or(0, Output::backlog)
    }

    /// Lets go of the peer; of a fixed back end only the output ends.
    pub fn disconnect(&self) {
        if let Some(out) = &mut self.link.lock().output {
            out.give_up();
        }
        self.waker.wake();
    }

    /// Lets go of the peer, and takes no more.
    pub fn close(&self) {
        let mut link = self.link.lock();
        if let Some(out) = &mut link.output {
            out.drain(DRAIN_LIMIT);
        }
        (link.origin, link.input, link.output) = (Origin::Fixed, None, None);
        drop(link);
        *self.front.lock() = None;
        self.waker.wake();
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
                say!("{}: {}: {e}", self.label, self.what);
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
            let peer = open::connect(&address);
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
            say!("{}: {e}", self.label);
            self.link.lock().detach();
        }
    }
}

/// What of an output concerns the event loop, which is told of changes only: it looks after a peer that is behind until it
/// has caught up.
fn needs_loop(o: &Output) -> (bool, bool) {
    (o.waits_for().is_some(), o.is_broken())
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
        let before = needs_loop(out);
        out.write(bytes);
        if needs_loop(out) != before {
            self.waker.wake();
        }
    }

    fn room(&self) -> usize {
        self.link.lock().output.as_ref().map_or(usize::MAX, Output::room)
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
                self.tell(Event::Drained);
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
