//! QMP, QEMU's machine protocol (docs/interop/qmp-spec of QEMU): JSON commands, replies and events on a character back end.
//!
//! The event loop and the vCPU never wait for a client. Input goes into a bounded buffer that a thread of the server's own
//! takes commands from. It takes none while `BACKLOG` bytes of replies wait for the client to read. A client that lets events
//! pile up beyond `LIMIT` is disconnected.

mod commands;
mod framer;

use crate::chardev::{Chardev, Event, Front};
use crate::control::{Cause, Notice, Observer};
use crate::monitor::MonitorTarget;
use framer::{Frame, Framer};
use parking_lot::{Condvar, Mutex};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Bytes of input that wait for the server's thread.
const INPUT: usize = 16 << 10;
/// Bytes of output that wait for the client, beyond which no command is taken.
const BACKLOG: usize = 64 << 10;
/// Bytes of output that wait for the client at most.
pub const LIMIT: usize = 1 << 20;
/// Longest reply.
const MAX_REPLY: usize = 512 << 10;
/// How often a client that is behind is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The client's side of a server. No method waits.
pub trait Line: Send + Sync {
    /// Sends all of `bytes`, or nothing if more than `limit` bytes would wait for the client then.
    fn offer(&self, bytes: &[u8], limit: usize) -> bool;
    /// Bytes that wait for the client.
    fn backlog(&self) -> usize;
    fn disconnect(&self);
    /// There is room for input again.
    fn input_wanted(&self);
}

impl Line for Chardev {
    fn offer(&self, bytes: &[u8], limit: usize) -> bool {
        Chardev::offer(self, bytes, limit)
    }

    fn backlog(&self) -> usize {
        Chardev::backlog(self)
    }

    fn disconnect(&self) {
        Chardev::disconnect(self);
    }

    fn input_wanted(&self) {
        devices::chr::CharSink::input_wanted(self);
    }
}

#[derive(Default)]
struct Session {
    /// Changes when a client comes or goes.
    number: u64,
    /// `qmp_capabilities` has been accepted.
    negotiated: bool,
    input: VecDeque<u8>,
    /// The server is no longer needed.
    closed: bool,
}

struct Shared {
    line: Arc<dyn Line>,
    target: Arc<dyn MonitorTarget>,
    pretty: bool,
    session: Mutex<Session>,
    wake: Condvar,
}

/// One server on one back end.
pub struct Qmp(Arc<Shared>);

impl Qmp {
    /// Starts a server with its thread. `pretty`: replies in several lines. Errors are those of making a thread.
    pub fn start(line: Arc<dyn Line>, target: Arc<dyn MonitorTarget>, pretty: bool) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared { line, target, pretty, session: Mutex::default(), wake: Condvar::new() });
        let for_thread = shared.clone();
        std::thread::Builder::new().name("qmp".into()).spawn(move || serve(&for_thread))?;
        Ok(Arc::new(Self(shared)))
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.0.session.lock().closed = true;
        self.0.wake.notify_all();
    }
}

impl Front for Qmp {
    fn room(&self) -> usize {
        INPUT.saturating_sub(self.0.session.lock().input.len())
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let mut s = self.0.session.lock();
        let n = bytes.len().min(INPUT.saturating_sub(s.input.len()));
        s.input.extend(&bytes[..n]);
        self.0.wake.notify_all();
        n
    }

    fn event(&self, event: Event) {
        let connected = match event {
            Event::Opened => true,
            Event::Closed => false,
            Event::Break | Event::Drained => return,
        };
        let mut s = self.0.session.lock();
        *s = Session { number: s.number + 1, closed: s.closed, ..Session::default() };
        if connected {
            self.0.send(&greeting());
        }
        self.0.wake.notify_all();
    }

    fn pump(&self) {}
}

impl Observer for Qmp {
    fn notice(&self, n: Notice) {
        let Some(event) = event(n) else { return };
        let s = self.0.session.lock();
        if s.negotiated && !self.0.send(&event) {
            self.0.line.disconnect();
        }
    }
}

fn version() -> Value {
    let part = |s: &str| s.parse::<u32>().unwrap_or(0);
    let (major, minor) = (part(env!("CARGO_PKG_VERSION_MAJOR")), part(env!("CARGO_PKG_VERSION_MINOR")));
    let number = json!({ "major": major, "minor": minor, "micro": part(env!("CARGO_PKG_VERSION_PATCH")) });
    json!({ "qemu": number, "package": "rhea" })
}

fn greeting() -> Value {
    json!({ "QMP": { "version": version(), "capabilities": [] } })
}

fn event(n: Notice) -> Option<Value> {
    let of = |c: Cause| Some(json!({ "guest": c.by_guest(), "reason": c.name() }));
    let (name, data) = match n {
        Notice::Stop => ("STOP", None),
        Notice::Resume => ("RESUME", None),
        Notice::Powerdown => ("POWERDOWN", None),
        Notice::Reset(c) => ("RESET", of(c)),
        Notice::Shutdown(c) => ("SHUTDOWN", of(c)),
        Notice::Balloon(actual) => ("BALLOON_CHANGE", Some(json!({ "actual": actual }))),
        Notice::Debug(..) | Notice::End(_) => return None,
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = json!({ "seconds": now.as_secs(), "microseconds": now.subsec_micros() });
    let mut e = json!({ "event": name, "timestamp": time });
    if let Some(data) = data {
        e["data"] = data;
    }
    Some(e)
}

/// The server's thread: takes messages until the server goes.
fn serve(s: &Shared) {
    let (mut framer, mut number) = (Framer::default(), 0);
    while let Some((from, bytes)) = s.next_input() {
        if from != number {
            (framer, number) = (Framer::default(), from);
        }
        s.line.input_wanted();
        for frame in bytes.into_iter().filter_map(|b| framer.push(b)) {
            if !s.wait_for_reader(number) {
                break;
            }
            s.handle(number, &frame);
        }
    }
}

impl Shared {
    /// Text on the line; `false` if the client is too far behind.
    fn send(&self, v: &Value) -> bool {
        let mut text = if self.pretty { format!("{v:#}") } else { v.to_string() };
        text.push_str("\r\n");
        self.line.offer(text.as_bytes(), LIMIT)
    }

    /// The next input and its session's number; `None` once the server is no longer needed.
    fn next_input(&self) -> Option<(u64, VecDeque<u8>)> {
        let mut s = self.session.lock();
        while s.input.is_empty() && !s.closed {
            self.wake.wait(&mut s);
        }
        (!s.closed).then(|| (s.number, std::mem::take(&mut s.input)))
    }

    /// Waits until the client has read most of what it asked for; `false` if it has gone.
    fn wait_for_reader(&self, number: u64) -> bool {
        let mut s = self.session.lock();
        loop {
            if s.number != number || s.closed {
                return false;
            }
            if self.line.backlog() <= BACKLOG {
                return true;
            }
            self.wake.wait_for(&mut s, LOOK);
        }
    }

    fn handle(&self, number: u64, frame: &Frame) {
        let negotiated = self.session.lock().negotiated;
        let done = match frame {
            Frame::TooLong => commands::Done::error(None, "JSON message too long"),
            Frame::Message(bytes) => commands::run(bytes, negotiated, &*self.target),
        };
        self.reply(number, &done);
        if done.quit {
            self.target.quit();
        }
    }

    /// Sends a reply to the client that asked, unless it has gone.
    fn reply(&self, number: u64, done: &commands::Done) {
        let mut s = self.session.lock();
        if s.number != number {
            return;
        }
        s.negotiated |= done.negotiated;
        let too_long = done.reply.to_string().len() > MAX_REPLY;
        let short = || commands::Done::error(done.reply.get("id").cloned(), "the reply is too long").reply;
        let sent = if too_long { self.send(&short()) } else { self.send(&done.reply) };
        if !sent {
            self.line.disconnect();
        }
    }
}

#[cfg(test)]
mod tests;
