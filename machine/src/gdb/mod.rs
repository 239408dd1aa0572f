//! The GDB stub: a server of GDB's remote serial protocol on a character back end (GDB manual, appendix "Remote Protocol").
//!
//! As with QMP, the event loop only fills a queue; a thread of the server's own takes work from it: input, clients that come
//! and go, and stops of the machine. It asks the machine through `Control`. Why the protocol is ours: ADR 0007.

mod agent;
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
    Opened,
    Closed,
    /// The machine stands still.
    Stopped,
}

#[derive(Default)]
struct Queue {
    /// Changes when a client comes or goes.
    client: u64,
    work: VecDeque<Work>,
    input: VecDeque<u8>,
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
    pub fn start(line: Arc<dyn Line>, machine: Arc<Machine>) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared { line, queue: Mutex::default(), wake: Condvar::new() });
        let for_thread = shared.clone();
        std::thread::Builder::new().name("gdb".into()).spawn(move || serve(&for_thread, &machine))?;
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
        INPUT.saturating_sub(self.0.queue.lock().input.len())
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let mut q = self.0.queue.lock();
        let n = bytes.len().min(INPUT.saturating_sub(q.input.len()));
        q.input.extend(&bytes[..n]);
        self.0.wake.notify_all();
        n
    }

    fn event(&self, event: Event) {
        let work = match event {
            Event::Opened => Work::Opened,
            Event::Closed => Work::Closed,
            Event::Break => return,
        };
        let mut q = self.0.queue.lock();
        let work_left = q.work.drain(..).filter(|w| !matches!(w, Work::Stopped)).collect();
        *q = Queue { client: q.client + 1, work: work_left, closed: q.closed, ..Queue::default() };
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

enum Next {
    Work(Work, Option<(usize, DebugEvent)>),
    Input(u64, VecDeque<u8>),
}

impl Shared {
    /// `None` once the server is no longer needed.
    fn next(&self) -> Option<Next> {
        let mut q = self.queue.lock();
        loop {
            if q.closed {
                return None;
            }
            if let Some(w) = q.work.pop_front() {
                let event = if matches!(w, Work::Stopped) { q.event.take() } else { None };
                return Some(Next::Work(w, event));
            }
            if !q.input.is_empty() {
                return Some(Next::Input(q.client, std::mem::take(&mut q.input)));
            }
            self.wake.wait(&mut q);
        }
    }

    fn send(&self, bytes: &[u8]) {
        if !self.line.offer(bytes, LIMIT) {
            self.line.disconnect();
        }
    }

    /// Waits until the client has read most of what it asked for; `false` if it has gone.
    fn wait_for_reader(&self, client: u64) -> bool {
        let mut q = self.queue.lock();
        loop {
            if q.client != client || q.closed {
                return false;
            }
            if self.line.backlog() <= BACKLOG {
                return true;
            }
            self.wake.wait_for(&mut q, LOOK);
        }
    }
}

/// The server's thread.
fn serve(s: &Shared, machine: &Arc<Machine>) {
    let mut conversation = Conversation { s, machine, session: None, framer: Framer::default(), sent: Vec::new() };
    while let Some(next) = s.next() {
        match next {
            Next::Work(work, event) => conversation.work(&work, event),
            Next::Input(client, bytes) => {
                s.line.input_wanted();
                for b in bytes {
                    let Some(f) = conversation.framer.push(b) else { continue };
                    if !s.wait_for_reader(client) {
                        break;
                    }
                    conversation.frame(&f);
                }
            }
        }
    }
    if let Some(session) = &mut conversation.session {
        session.detach(false);
    }
}

struct Conversation<'a> {
    s: &'a Shared,
    machine: &'a Arc<Machine>,
    session: Option<Session>,
    framer: Framer,
    /// The last packet, in case that it was damaged on its way.
    sent: Vec<u8>,
}

impl Conversation<'_> {
    fn work(&mut self, work: &Work, event: Option<(usize, DebugEvent)>) {
        match work {
            Work::Opened => {
                let mut session = Session::new(self.machine.clone());
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
        }
    }

    fn reply(&mut self, payload: &[u8]) {
        self.sent = frame(payload);
        self.s.send(&self.sent);
    }

    fn frame(&mut self, f: &Frame) {
        let Some(session) = &mut self.session else { return };
        match f {
            Frame::Interrupt => session.interrupt(),
            Frame::Nack => self.s.send(&self.sent),
            Frame::Damaged if session.acks => self.s.send(b"-"),
            Frame::Damaged => {}
            Frame::Packet(p) => {
                if session.acks {
                    self.s.send(b"+");
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
