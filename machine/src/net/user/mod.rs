//! `-netdev user`: a network in this process. The guest's packets end here, and go on by ordinary sockets of the host's.

mod datagram;
mod dhcp;
mod forward;
mod fragments;
mod line;
mod resolver;
mod stack;
mod tcp;
#[cfg(test)]
mod tests;
mod wire;

pub use crate::options::{ForwardTarget, GuestForward, HostForward, Protocol, UserNet as Settings};

pub use line::{Line, Lines};

use super::port::{Moves, Port};
use devices::net::Mac;
use parking_lot::Mutex;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use smoltcp::wire::TcpControl;
use stack::{Flow, Stack, WAKER};
use std::collections::VecDeque;
use std::fmt::Write;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wire::Segment;

/// Events that are taken from the host at once.
const EVENTS: usize = 256;
/// How often connections look at their time-outs.
const TICK: Duration = Duration::from_millis(100);

impl Settings {
    pub fn mask(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0))
    }

    /// Whether an address is one of the guest's network's, and not one of its ends.
    pub fn contains(&self, ip: Ipv4Addr) -> bool {
        let mask = u32::from(self.mask());
        let part = u32::from(ip) & !mask;
        u32::from(ip) & mask == u32::from(self.net) & mask && part != 0 && part != !mask
    }

    /// The address by which the guest is to know a peer of the host's.
    pub fn seen(&self, peer: SocketAddr) -> SocketAddrV4 {
        match peer {
            SocketAddr::V4(p) if !p.ip().is_loopback() && !self.contains(*p.ip()) => p,
            p => SocketAddrV4::new(self.host, p.port()),
        }
    }
}

/// What goes along with a saved machine: connections cannot, so the guest is told that they have ended.
#[derive(Default, Serialize, Deserialize)]
struct Saved {
    neighbours: Vec<(Ipv4Addr, Mac)>,
    /// Guest, its peer, and the sequence numbers of a reset.
    connections: Vec<(SocketAddrV4, SocketAddrV4, u32, u32)>,
}

struct Mover(Arc<Mutex<Stack>>);

impl Moves for Mover {
    fn save(&self) -> Value {
        let s = self.0.lock();
        let connection = |f: &Flow| match f {
            Flow::Tcp(t) => Some((t.guest, t.remote, t.seq().0, t.seq().1)),
            _ => None,
        };
        let saved = Saved {
            neighbours: s.wire.neighbours().copied().collect(),
            connections: s.flows.values().filter_map(connection).collect(),
        };
        serde_json::to_value(saved).unwrap_or_default()
    }

    fn load(&self, saved: &Value) {
        let mut s = self.0.lock();
        s.forget_all();
        let Saved { neighbours, connections } = Saved::deserialize(saved).unwrap_or_default();
        for (ip, mac) in neighbours {
            s.wire.learn(ip, mac);
        }
        for (guest, remote, seq, ack) in connections.into_iter().take(stack::TCP_FLOWS) {
            s.wire.tcp(remote, guest, &Segment::new(TcpControl::Rst, seq, Some(ack), 0), None, wire::MSS);
        }
    }
}

/// A user-mode network. Its thread has ended when it has been dropped.
pub struct User {
    port: Arc<Port>,
    stack: Arc<Mutex<Stack>>,
    thread: Option<JoinHandle<()>>,
}

impl User {
    /// Opens the forwarded ports and starts the thread. An error comes with the port that could not be opened.
    pub fn start(
        id: &str,
        settings: &Settings,
        lines: &Lines,
        port: Arc<Port>,
    ) -> Result<Self, (Option<HostForward>, io::Error)> {
        let plain = |e: io::Error| (None, e);
        let mut stack = Stack::new(settings.clone()).map_err(plain)?;
        stack.lines = lines.clone();
        for f in &settings.hostfwd {
            stack.add_forward(f).map_err(|e| (Some(f.clone()), e))?;
        }
        stack.watch(port.waker(), WAKER, EventFlags::IN).map_err(plain)?;
        let epoll = stack.epoll().map_err(plain)?;
        let stack = Arc::new(Mutex::new(stack));
        port.set_moves(Arc::new(Mover(stack.clone())));
        let (p, s) = (port.clone(), stack.clone());
        let run = move || Worker { port: p, stack: s, epoll, ticked: Instant::now() }.run();
        let thread = std::thread::Builder::new().name(format!("net-{id}")).spawn(run).map_err(plain)?;
        Ok(Self { port, stack, thread: Some(thread) })
    }

    /// For `info network`.
    pub fn describe(&self) -> String {
        let s = self.stack.lock();
        format!("net={},restrict={}", s.net.net, if s.net.restrict { "on" } else { "off" })
    }

    pub fn add_forward(&self, f: &HostForward) -> io::Result<()> {
        self.stack.lock().add_forward(f)
    }

    pub fn remove_forward(&self, protocol: Protocol, host: SocketAddrV4) -> bool {
        self.stack.lock().remove_forward(protocol, host)
    }

    /// Lines of `info usernet`.
    pub fn info(&self) -> String {
        let s = self.stack.lock();
        let mut lines: Vec<String> = Vec::new();
        let mut line = |what: &str, from: SocketAddr, to: SocketAddr, held: usize| {
            let mut l = String::new();
            // Writing to a String cannot fail.
            let _ = write!(l, "  {what:<19} {:>15} {:>5} {:>15} {:>5} {held:>9}", from.ip(), from.port(), to.ip(), to.port());
            lines.push(l);
        };
        for f in s.forwards.values() {
            let what = if f.config.protocol == Protocol::Udp { "UDP[HOST_FORWARD]" } else { "TCP[HOST_FORWARD]" };
            line(what, f.config.host.into(), f.guest.into(), 0);
        }
        for f in s.flows.values() {
            match f {
                Flow::Tcp(t) => line(&format!("TCP[{}]", t.state()), t.guest.into(), t.remote.into(), t.held()),
                Flow::Udp(u) => line("UDP", u.guest.into(), u.remote.into(), 0),
                Flow::Ping(p) => line("ICMP", p.guest.into(), p.remote.into(), 0),
            }
        }
        lines.sort();
        let head = "  Protocol[State]      Source Address  Port    Dest. Address  Port      Held\n";
        std::iter::once(head.to_owned()).chain(lines.into_iter().map(|l| l + "\n")).collect()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.port.close();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

/// The thread.
struct Worker {
    port: Arc<Port>,
    stack: Arc<Mutex<Stack>>,
    epoll: OwnedFd,
    ticked: Instant,
}

impl Worker {
    fn run(&mut self) {
        let mut events = Vec::with_capacity(EVENTS);
        let mut out = VecDeque::new();
        let mut busy = false;
        while !self.port.closed() {
            if !self.port.is_running() {
                // Sockets wait while the machine stands still.
                let second = Timespec { tv_sec: 1, tv_nsec: 0 };
                let _ = rustix::event::poll(&mut [PollFd::new(self.port.waker(), PollFlags::IN)], Some(&second));
                self.port.quiet();
                continue;
            }
            let wait = if busy { Duration::ZERO } else { TICK };
            let wait = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
            events.clear();
            if epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait)).is_err() {
                events.clear();
            }
            if events.iter().any(|e: &epoll::Event| e.data.u64() == WAKER) {
                self.port.quiet();
            }
            self.port.serve(false);
            let more = self.turn(&events, &mut out);
            let new = !out.is_empty();
            self.port.give(&mut out);
            self.port.serve(new);
            busy = more && self.port.room() > 0 || self.port.has_frames();
        }
    }

    /// One round of the stack; whether connections could go on if there were room.
    fn turn(&mut self, events: &[epoll::Event], out: &mut VecDeque<devices::net::Frame>) -> bool {
        let now = Instant::now();
        let mut s = self.stack.lock();
        (s.wire.takes, s.wire.room) = (self.port.takes(), self.port.room());
        for f in self.port.take() {
            s.frame(f, now);
        }
        for e in events.iter().filter(|e| e.data.u64() != WAKER) {
            // Copies: the structure is packed.
            let (data, flags) = (e.data, e.flags);
            s.ready(data.u64(), flags, now);
        }
        if now.saturating_duration_since(self.ticked) >= TICK {
            self.ticked = now;
            s.tick(now);
        }
        s.turn(now);
        std::mem::swap(&mut s.wire.out, out);
        s.has_more()
    }
}
