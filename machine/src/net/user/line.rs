//! Addresses of the guest's network behind which is a character back end (`guestfwd=…-chardev:ID`). All connections share it: what any of
//! them sends goes there, and what comes from there is for the newest one; without one it waits (as with QEMU's slirp).

use crate::chardev::{Event, Front};
use crate::event_loop::{Source, Waker, Want};
use devices::chr::CharSink;
use parking_lot::Mutex;
use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// Bytes that move at once.
const CHUNK: usize = 4096;

/// By the back ends' ids.
pub type Lines = BTreeMap<String, Arc<Line>>;

/// The far side of a connection of the guest's.
struct Peer {
    fd: Arc<OwnedFd>,
    token: u32,
    /// Nothing more comes from it; it may still listen.
    ended: bool,
}

#[derive(Default)]
struct State {
    /// In the order of their coming.
    peers: Vec<Peer>,
    next: u32,
    /// The newest one takes no more for now.
    full: bool,
}

impl State {
    fn remove(&mut self, token: u32) {
        self.peers.retain(|p| p.token != token);
        self.full = false;
    }
}

/// See the module.
pub struct Line {
    sink: Arc<dyn CharSink>,
    waker: Waker,
    state: Mutex<State>,
}

impl Line {
    /// A line to a back end, which is to have the line's `front`.
    pub fn start(sink: Arc<dyn CharSink>, waker: &Waker) -> Arc<Self> {
        let this = Arc::new(Self { sink, waker: waker.clone(), state: Mutex::default() });
        waker.add(this.clone());
        this
    }

    pub fn front(self: &Arc<Self>) -> Arc<dyn Front> {
        Arc::new(LineFront(Arc::downgrade(self)))
    }

    /// A new connection.
    pub fn open(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let mut s = self.state.lock();
        let token = s.next;
        s.next = s.next.wrapping_add(1);
        s.peers.push(Peer { fd: Arc::new(ours.into()), token, ended: false });
        s.full = false;
        drop(s);
        self.waker.wake();
        Ok(theirs.into())
    }

    /// Passes on what a connection has sent. `false`: it is no more.
    fn pass_on(&self, token: u32, fd: &OwnedFd) -> bool {
        let mut buf = [0; CHUNK];
        let room = self.sink.room().min(CHUNK);
        if room == 0 {
            return true;
        }
        match rustix::io::read(fd, &mut buf[..room]) {
            Ok(0) => self.state.lock().peers.iter_mut().filter(|p| p.token == token).for_each(|p| p.ended = true),
            Ok(n) => self.sink.write(&buf[..n]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return false,
        }
        true
    }
}

impl Source for Line {
    fn interest(&self, wants: &mut Vec<Want>) {
        let room = self.sink.room() > 0;
        let s = self.state.lock();
        for (i, p) in s.peers.iter().enumerate() {
            let mut events = PollFlags::empty();
            events.set(PollFlags::IN, room && !p.ended);
            events.set(PollFlags::OUT, s.full && i + 1 == s.peers.len());
            // One that has ended is waited for until it has gone.
            if p.ended || !events.is_empty() {
                wants.push(Want { fd: p.fd.clone(), events, token: p.token });
            }
        }
    }

    fn ready(&self, token: u32, events: PollFlags) {
        let found = self.state.lock().peers.iter().find(|p| p.token == token).map(|p| (p.fd.clone(), p.ended));
        let Some((fd, ended)) = found else { return };
        let gone = events.intersects(PollFlags::HUP | PollFlags::ERR) && (ended || !events.contains(PollFlags::IN));
        let stays = !gone && (!events.contains(PollFlags::IN) || self.pass_on(token, &fd));
        if !stays {
            self.state.lock().remove(token);
        } else if events.contains(PollFlags::OUT) {
            self.state.lock().full = false;
        }
        self.sink.input_wanted();
    }

    fn deadline(&self) -> Option<Instant> {
        None
    }
}

/// What the back end gives its input to. Weak, as the line has the back end.
struct LineFront(Weak<Line>);

impl Front for LineFront {
    fn room(&self) -> usize {
        let Some(line) = self.0.upgrade() else { return 0 };
        let s = line.state.lock();
        if s.peers.is_empty() || s.full { 0 } else { CHUNK }
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        let Some(line) = self.0.upgrade() else { return 0 };
        let mut s = line.state.lock();
        let Some((fd, token)) = s.peers.last().map(|p| (p.fd.clone(), p.token)) else { return 0 };
        let n = match rustix::net::send(&*fd, bytes, SendFlags::NOSIGNAL) {
            Ok(n) => n,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(_) => {
                s.remove(token);
                return 0;
            }
        };
        s.full = n < bytes.len();
        if s.full {
            // It is waited for from the next turn on.
            line.waker.wake();
        }
        n
    }

    fn event(&self, _: Event) {}

    fn pump(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chardev::Chardev;
    use crate::event_loop::EventLoop;
    use std::io::{Read, Write};
    use std::time::Duration;
    use vm_core::Clock;

    /// A line, the host's end of its back end, and what runs them.
    fn line() -> (Arc<Line>, UnixStream, EventLoop) {
        let events = EventLoop::start(Clock::new()).unwrap();
        let (back, host) = UnixStream::pair().unwrap();
        back.set_nonblocking(true).unwrap();
        let (input, output) = (OwnedFd::from(back.try_clone().unwrap()), OwnedFd::from(back));
        let dev = Chardev::from_fds(Some(input), Some(output), "line", &events.waker());
        let line = Line::start(dev.clone(), &events.waker());
        dev.set_front(line.front());
        limit(&host);
        (line, host, events)
    }

    fn limit(s: &UnixStream) {
        s.set_nonblocking(false).unwrap();
        s.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        s.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    }

    fn connect(line: &Line) -> UnixStream {
        let s = UnixStream::from(line.open().unwrap());
        limit(&s);
        s
    }

    fn read<const N: usize>(s: &mut UnixStream) -> String {
        let mut buf = [0; N];
        s.read_exact(&mut buf).unwrap();
        String::from_utf8(buf.to_vec()).unwrap()
    }

    #[test]
    fn all_connections_speak_and_the_newest_hears() {
        let (line, mut host, _events) = line();
        // Nobody is there: it waits.
        host.write_all(b"early").unwrap();
        let mut first = connect(&line);
        assert_eq!(read::<5>(&mut first), "early");
        let mut second = connect(&line);
        first.write_all(b"one").unwrap();
        assert_eq!(read::<3>(&mut host), "one");
        second.write_all(b"two").unwrap();
        assert_eq!(read::<3>(&mut host), "two");
        host.write_all(b"newest").unwrap();
        assert_eq!(read::<6>(&mut second), "newest");
        // One that says no more still hears.
        second.shutdown(std::net::Shutdown::Write).unwrap();
        host.write_all(b"still").unwrap();
        assert_eq!(read::<5>(&mut second), "still");
        drop(second);
        while line.state.lock().peers.len() > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
        host.write_all(b"first").unwrap();
        assert_eq!(read::<5>(&mut first), "first");
    }

    #[test]
    fn nothing_is_lost_between_slow_ends() {
        let (line, mut host, _events) = line();
        let mut guest = connect(&line);
        let data: Vec<u8> = (0..3_000_000u32).map(|i| ((i * 7919) >> 8) as u8).collect();
        let mut got = vec![0; data.len()];
        for towards_the_guest in [true, false] {
            let (from, to) = if towards_the_guest { (&mut host, &mut guest) } else { (&mut guest, &mut host) };
            let mut from = from.try_clone().unwrap();
            let sent = data.clone();
            let writer = std::thread::spawn(move || from.write_all(&sent).unwrap());
            std::thread::sleep(Duration::from_millis(200));
            to.read_exact(&mut got).unwrap();
            assert!(got == data, "towards the guest: {towards_the_guest}");
            writer.join().unwrap();
        }
    }
}
