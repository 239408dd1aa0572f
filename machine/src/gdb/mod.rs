//! The GDB stub: a server of GDB's remote serial protocol on a character back end (GDB manual, appendix "Remote Protocol").
//!
//! As with QMP, the event loop only fills a queue; a thread of the server's own takes work from it: input, clients that come
//! and go, and stops of the machine. It asks the machine through `Control`. Why the protocol is ours: ADR 0008.

mod agent;
mod host;
mod layout;
pub mod memory;
mod packet;
mod regs;
mod resume;
pub mod script;
mod session;
mod stops;
#[cfg(test)]
mod tests;
mod xml;

use crate::chardev::{Event, Front};
use crate::control::{Notice, Observer};
use crate::machine::Machine;
use crate::qmp::Line;
pub use host::Host;
pub use layout::Arch;
pub use resume::Action;

use packet::{Frame, Framer, frame};
use parking_lot::{Condvar, Mutex};
use session::{Answer, Session};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use vm_core::debug::DebugEvent;

/// Bytes of input that wait for the server's thread.
const INPUT: usize = 64 << 10;
/// Bytes of output that wait for the client at most, beyond which it is disconnected.
const LIMIT: usize = 1 << 20;
/// Bytes of output that wait, beyond which no packet is taken.
const BACKLOG: usize = 128 << 10;
/// How often a client that is behind is looked at.
const LOOK: Duration = Duration::from_millis(20);

enum Work {
    /// A client, by its number.
    Opened(u64),
    Closed,
    /// The machine stands still.
    Stopped,
    Input(Vec<u8>),
}

#[derive(Default)]
struct Queue {
    /// Changes when a client comes or goes.
    client: u64,
    work: VecDeque<Work>,
    /// Bytes of input in `work`.
    bytes: usize,
    /// What a vCPU stopped for.
    event: Option<(usize, DebugEvent)>,
    /// The client waits for the machine to stop.
    waiting: bool,
    closed: bool,
}

struct Shared {
    line: Arc<dyn Line>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// One server on one back end.
pub struct Gdb(Arc<Shared>);

impl Gdb {
    /// Starts a server with its thread. Errors are those of making a thread.
    pub fn start(line: Arc<dyn Line>, machine: Arc<Machine>, arch: Arch) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared { line, queue: Mutex::default(), wake: Condvar::new() });
        let for_thread = shared.clone();
        std::thread::Builder::new().name("gdb".into()).spawn(move || serve(&for_thread, &machine, arch))?;
        Ok(Arc::new(Self(shared)))
    }

    /// Ends the server, and the session.
    pub fn close(&self) {
        self.0.queue.lock().closed = true;
        self.0.wake.notify_all();
        self.0.line.disconnect();
    }
}

impl Drop for Gdb {
    fn drop(&mut self) {
        self.close();
    }
}

impl Front for Gdb {
    fn room(&self) -> usize {
        INPUT.saturating_sub(self.0.queue.lock().bytes)
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let mut q = self.0.queue.lock();
        let n = bytes.len().min(INPUT.saturating_sub(q.bytes));
        q.bytes += n;
        match q.work.back_mut() {
            Some(Work::Input(last)) => last.extend(&bytes[..n]),
            _ => q.work.push_back(Work::Input(bytes[..n].to_vec())),
        }
        self.0.wake.notify_all();
        n
    }

    fn event(&self, event: Event) {
        let mut q = self.0.queue.lock();
        // What a client has sent before it went is still done: it may be "kill".
        let number = q.client + 1;
        let work = match event {
            Event::Opened => Work::Opened(number),
            Event::Closed => Work::Closed,
            Event::Break | Event::Drained => return,
        };
        q.client = number;
        q.work.push_back(work);
        self.0.wake.notify_all();
    }

    fn pump(&self) {}
}

impl Observer for Gdb {
    fn notice(&self, n: Notice) {
        let mut q = self.0.queue.lock();
        match n {
            Notice::Debug(cpu, event) => q.event = Some((cpu, event)),
            Notice::Stop => {
                if !q.work.iter().any(|w| matches!(w, Work::Stopped)) {
                    q.work.push_back(Work::Stopped);
                }
                self.0.wake.notify_all();
            }
            // The server's thread may not come to it any more.
            Notice::End(status) if q.waiting => {
                self.0.line.offer(&frame(format!("W{status:02x}").as_bytes()), LIMIT);
            }
            _ => {}
        }
    }
}

impl Shared {
    /// The next thing to do, and what a vCPU stopped for. `None` once the server is no longer needed.
    fn next(&self) -> Option<(Work, Option<(usize, DebugEvent)>)> {
        let mut q = self.queue.lock();
        loop {
            if q.closed {
                return None;
            }
            if let Some(w) = q.work.pop_front() {
                if let Work::Input(bytes) = &w {
                    q.bytes -= bytes.len();
                }
                let event = if matches!(w, Work::Stopped) { q.event.take() } else { None };
                return Some((w, event));
            }
            self.wake.wait(&mut q);
        }
    }

    /// Sends something to a client, unless it has gone.
    fn send(&self, client: u64, bytes: &[u8]) {
        let q = self.queue.lock();
        if q.client == client && !self.line.offer(bytes, LIMIT) {
            self.line.disconnect();
        }
    }

    /// Waits until the client has read most of what it asked for, or has gone.
    fn wait_for_reader(&self, client: u64) {
        let mut q = self.queue.lock();
        while self.line.backlog() > BACKLOG && q.client == client && !q.closed {
            self.wake.wait_for(&mut q, LOOK);
        }
    }
}

/// The server's thread.
fn serve(s: &Shared, machine: &Arc<Machine>, arch: Arch) {
    let mut c = Conversation { s, machine, arch, client: 0, session: None, framer: Framer::default(), sent: Vec::new() };
    while let Some((work, event)) = s.next() {
        c.work(&work, event);
    }
    if let Some(session) = &mut c.session {
        session.detach(false);
    }
}

struct Conversation<'a> {
    s: &'a Shared,
    machine: &'a Arc<Machine>,
    /// What a client is told first.
    arch: Arch,
    client: u64,
    session: Option<Session>,
    framer: Framer,
    /// The last packet, in case that it was damaged on its way.
    sent: Vec<u8>,
}

impl Conversation<'_> {
    fn work(&mut self, work: &Work, event: Option<(usize, DebugEvent)>) {
        match work {
            Work::Opened(client) => {
                self.client = *client;
                let mut session = Session::new(self.machine.clone(), self.arch);
                session.attach();
                (self.session, self.framer) = (Some(session), Framer::default());
            }
            Work::Closed => {
                if let Some(mut session) = self.session.take() {
                    session.detach(false);
                }
            }
            Work::Stopped => {
                let Some(session) = self.session.as_mut().filter(|s| !s.guest_runs()) else { return };
                if let Some(reply) = session.stopped(event) {
                    self.s.queue.lock().waiting = false;
                    self.reply(&reply);
                }
            }
            Work::Input(bytes) => {
                self.s.line.input_wanted();
                for b in bytes {
                    if let Some(f) = self.framer.push(*b) {
                        self.s.wait_for_reader(self.client);
                        self.frame(&f);
                    }
                }
            }
        }
    }

    fn reply(&mut self, payload: &[u8]) {
        self.sent = frame(payload);
        self.s.send(self.client, &self.sent);
    }

    fn frame(&mut self, f: &Frame) {
        let Some(session) = &mut self.session else { return };
        match f {
            Frame::Interrupt => session.interrupt(),
            Frame::Nack => self.s.send(self.client, &self.sent),
            Frame::Damaged if session.acks => self.s.send(self.client, b"-"),
            Frame::Damaged => {}
            Frame::Packet(p) => {
                if session.acks {
                    self.s.send(self.client, b"+");
                }
                if session.running {
                    // Nothing is taken until the machine stops.
                    return;
                }
                self.s.queue.lock().waiting = true;
                let answer = session.packet(p);
                self.s.queue.lock().waiting = answer == Answer::Later;
                match answer {
                    Answer::Later => {}
                    Answer::Packets(list) => list.iter().for_each(|p| self.reply(p)),
                    Answer::Last(p) => {
                        if !p.is_empty() {
                            self.reply(&p);
                        }
                        self.session = None;
                    }
                }
            }
        }
    }
}
