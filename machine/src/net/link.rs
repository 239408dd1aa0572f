//! `-netdev socket`, `stream`, `dgram` and `tap`: frames go to another program, or to the host's network, as they are.

use super::port::Port;
use super::tap;
use crate::options::{LinkConfig, SocketAddress};
use devices::net::{Frame, MAX_FRAME};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketAddrAny, SocketAddrUnix};
use std::collections::VecDeque;
use std::io;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;

/// Bytes that may wait for a peer that does not read.
const WAITING: usize = 1 << 20;
/// Frames in one turn.
const BATCH: usize = 64;

/// How frames travel.
enum Carrier {
    /// One in each datagram, to this peer.
    Datagrams(OwnedFd, SocketAddrAny),
    /// One in each read and write.
    Tap(OwnedFd),
    Stream(Stream),
}

/// Frames after each other, each behind its length in 32 bits, the highest first.
#[derive(Default)]
struct Stream {
    listener: Option<OwnedFd>,
    peer: Option<OwnedFd>,
    input: Vec<u8>,
    output: VecDeque<u8>,
}

/// A link with its thread, which has ended when it has been dropped.
pub struct Link {
    port: Arc<Port>,
    thread: Option<JoinHandle<()>>,
    pub what: String,
}

fn show(a: &SocketAddress) -> String {
    match a {
        SocketAddress::Unix(path) => path.display().to_string(),
        SocketAddress::Tcp { host, port } => format!("{host}:{port}"),
    }
}

fn context(what: impl std::fmt::Display) -> impl Fn(io::Error) -> io::Error {
    move |e| io::Error::new(e.kind(), format!("{what}: {e}"))
}

fn host(h: &str) -> &str {
    if h.is_empty() { "0.0.0.0" } else { h }
}

fn resolve(h: &str, port: u16) -> io::Result<std::net::SocketAddr> {
    use std::net::ToSocketAddrs;
    (host(h), port).to_socket_addrs()?.next().ok_or_else(|| io::Error::other("no such host"))
}

fn listen(a: &SocketAddress) -> io::Result<OwnedFd> {
    Ok(match a {
        SocketAddress::Tcp { host: h, port } => TcpListener::bind((host(h), *port))?.into(),
        SocketAddress::Unix(path) => UnixListener::bind(path)?.into(),
    })
}

fn connect(a: &SocketAddress) -> io::Result<OwnedFd> {
    Ok(match a {
        SocketAddress::Tcp { host, port } => {
            let s = TcpStream::connect((&**host, *port))?;
            s.set_nodelay(true)?;
            s.into()
        }
        SocketAddress::Unix(path) => UnixStream::connect(path)?.into(),
    })
}

fn datagrams(local: &SocketAddress, remote: &SocketAddress) -> io::Result<Carrier> {
    let fd: OwnedFd = match local {
        SocketAddress::Tcp { host: h, port } => UdpSocket::bind((host(h), *port)).map_err(context(show(local)))?.into(),
        SocketAddress::Unix(path) => UnixDatagram::bind(path).map_err(context(show(local)))?.into(),
    };
    let peer = match remote {
        SocketAddress::Tcp { host, port } => resolve(host, *port).map_err(context(show(remote)))?.into(),
        SocketAddress::Unix(path) => SocketAddrUnix::new(path)?.into(),
    };
    Ok(Carrier::Datagrams(fd, peer))
}

impl Carrier {
    fn open(c: &LinkConfig) -> io::Result<Self> {
        let stream =
            |listener: Option<OwnedFd>, peer: Option<OwnedFd>| Self::Stream(Stream { listener, peer, ..Stream::default() });
        let opened = match c {
            LinkConfig::Listen(a) => stream(Some(listen(a).map_err(context(show(a)))?), None),
            LinkConfig::Connect(a) => stream(None, Some(connect(a).map_err(context(show(a)))?)),
            LinkConfig::Datagrams { local, remote } => datagrams(local, remote)?,
            LinkConfig::Tap { name } => Self::Tap(tap::open(name)?),
        };
        opened.fds().try_for_each(|fd| rustix::io::ioctl_fionbio(fd, true))?;
        Ok(opened)
    }

    fn fds(&self) -> impl Iterator<Item = &OwnedFd> {
        let (a, b) = match self {
            Self::Datagrams(fd, _) | Self::Tap(fd) => (Some(fd), None),
            Self::Stream(s) => (s.peer.as_ref(), s.listener.as_ref().filter(|_| s.peer.is_none())),
        };
        a.into_iter().chain(b)
    }

    /// Frames can be taken from the guest.
    fn ready(&self) -> bool {
        !matches!(self, Self::Stream(s) if s.output.len() >= WAITING)
    }

    fn waits(&self) -> bool {
        matches!(self, Self::Stream(s) if s.peer.is_some() && !s.output.is_empty())
    }

    /// A frame of the guest's. What cannot be sent at once is lost, as on a wire, but for streams.
    fn send(&mut self, frame: Frame) {
        let bytes = frame.into_bytes();
        match self {
            Self::Datagrams(fd, peer) => drop(rustix::net::sendto(&*fd, &bytes, SendFlags::NOSIGNAL, peer)),
            Self::Tap(fd) => drop(rustix::io::write(&*fd, &bytes)),
            Self::Stream(s) if s.peer.is_some() => {
                s.output.extend((bytes.len() as u32).to_be_bytes());
                s.output.extend(bytes);
            }
            Self::Stream(_) => {}
        }
    }

    /// Frames from outside, as far as `room`.
    fn receive(&mut self, room: usize, frames: &mut VecDeque<Frame>) {
        let mut buf = vec![0; MAX_FRAME];
        for _ in 0..room.min(BATCH) {
            let n = match self {
                Self::Datagrams(fd, _) => rustix::net::recv(&*fd, &mut buf[..], RecvFlags::empty()).map(|r| r.0),
                Self::Tap(fd) => rustix::io::read(&*fd, &mut buf[..]),
                Self::Stream(s) => return s.work(&mut buf, frames),
            };
            match n {
                Ok(n) if n >= devices::net::ETH_HEADER => frames.push_back(Frame::plain(buf[..n].to_vec())),
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl Stream {
    fn work(&mut self, buf: &mut [u8], frames: &mut VecDeque<Frame>) {
        if let (None, Some(l)) = (&self.peer, &self.listener) {
            self.peer = rustix::net::accept(l).ok().filter(|fd| rustix::io::ioctl_fionbio(fd, true).is_ok());
        }
        if self.write().and_then(|()| self.read(buf, frames)).is_none() {
            // The peer has gone; another may come.
            *self = Self { listener: self.listener.take(), ..Self::default() };
        }
    }

    /// `None`: the peer has gone.
    fn write(&mut self) -> Option<()> {
        let Some(fd) = &self.peer else { return Some(()) };
        while !self.output.is_empty() {
            match rustix::net::send(fd, self.output.as_slices().0, SendFlags::NOSIGNAL) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Some(()),
                Err(_) => return None,
            }
        }
        Some(())
    }

    fn read(&mut self, buf: &mut [u8], frames: &mut VecDeque<Frame>) -> Option<()> {
        let Some(fd) = &self.peer else { return Some(()) };
        match rustix::net::recv(fd, &mut *buf, RecvFlags::empty()) {
            Ok((0, _)) => return None,
            Ok((n, _)) => self.input.extend(&buf[..n]),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => return None,
        }
        let mut at = 0;
        while let Some((head, rest)) = self.input[at..].split_first_chunk::<4>() {
            let len = u32::from_be_bytes(*head) as usize;
            if !(devices::net::ETH_HEADER..=MAX_FRAME).contains(&len) {
                return None;
            }
            let Some(frame) = rest.get(..len) else { break };
            frames.push_back(Frame::plain(frame.to_vec()));
            at += 4 + len;
        }
        self.input.drain(..at);
        Some(())
    }
}

impl Link {
    pub fn start(id: &str, config: &LinkConfig, port: Arc<Port>) -> io::Result<Self> {
        let carrier = Carrier::open(config)?;
        let p = port.clone();
        let thread = std::thread::Builder::new().name(format!("net-{id}")).spawn(move || run(&p, carrier))?;
        let what = match config {
            LinkConfig::Listen(a) => format!("type=stream,listen={}", show(a)),
            LinkConfig::Connect(a) => format!("type=stream,connect={}", show(a)),
            LinkConfig::Datagrams { local, remote } => format!("type=dgram,local={},remote={}", show(local), show(remote)),
            LinkConfig::Tap { name } => format!("type=tap,ifname={name}"),
        };
        Ok(Self { port, thread: Some(thread), what })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.port.close();
        if let Some(t) = self.thread.take() {
            let _ = t.join();
        }
    }
}

fn run(port: &Port, mut carrier: Carrier) {
    let mut frames = VecDeque::new();
    while !port.closed() {
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        let mut fds = vec![PollFd::new(port.waker(), PollFlags::IN)];
        if port.is_running() {
            let mut flags = if port.room() > 0 { PollFlags::IN } else { PollFlags::empty() };
            if carrier.waits() {
                flags |= PollFlags::OUT;
            }
            fds.extend(carrier.fds().map(|fd| PollFd::from_borrowed_fd(fd.as_fd(), flags)));
        }
        let _ = poll(&mut fds, Some(&second));
        drop(fds);
        port.quiet();
        if !port.is_running() {
            continue;
        }
        port.serve(false);
        while carrier.ready() && port.has_frames() {
            port.take().into_iter().for_each(|f| carrier.send(f));
            port.serve(true);
        }
        carrier.receive(port.room(), &mut frames);
        let new = !frames.is_empty();
        port.give(&mut frames);
        port.serve(new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::net::NetBackend;
    use std::io::{Read, Write};
    use std::time::Duration;

    fn link(c: &LinkConfig) -> (Link, Arc<Port>) {
        let port = Arc::new(Port::new(false).unwrap());
        port.set_running(true);
        (Link::start("test", c, port.clone()).unwrap(), port)
    }

    fn next(port: &Port) -> Vec<u8> {
        for _ in 0..500 {
            if let Some(f) = port.next() {
                return f.into_bytes();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("no frame came");
    }

    fn give(port: &Port, bytes: &[u8]) {
        port.send(Frame::plain(bytes.to_vec()));
        port.wake();
    }

    #[test]
    fn streams_carry_frames_whole_and_peers_may_change() {
        let at = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let a = SocketAddress::Tcp { host: "127.0.0.1".into(), port: at };
        let (_a, server) = link(&LinkConfig::Listen(a.clone()));
        for _ in 0..2 {
            let (b, client) = link(&LinkConfig::Connect(a.clone()));
            give(&client, &[7; 60]);
            assert_eq!(next(&server), [7; 60]);
            give(&server, &[8; 1500]);
            assert_eq!(next(&client), [8; 1500]);
            drop(b);
        }
        // A peer that breaks the rules is let go.
        let mut raw = TcpStream::connect(("127.0.0.1", at)).unwrap();
        raw.write_all(&[0, 0, 0, 14, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0xff, 0xff, 0xff, 0xff]).unwrap();
        assert_eq!((next(&server), raw.read(&mut [0; 9]).unwrap_or(0)), (vec![1; 14], 0));
        let busy = Carrier::open(&LinkConfig::Listen(a)).err().unwrap().to_string();
        assert!(busy.starts_with(&format!("127.0.0.1:{at}: Address already in use")), "{busy}");
    }

    #[test]
    fn datagrams_carry_frames() {
        let dir = std::env::temp_dir();
        let path = |n| SocketAddress::Unix(dir.join(format!("rhea-dgram-{n}-{}", std::process::id())));
        let udp = || SocketAddress::Tcp {
            host: "127.0.0.1".into(),
            port: UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port(),
        };
        for (one, two) in [(path(1), path(2)), (udp(), udp())] {
            let (_a, a) = link(&LinkConfig::Datagrams { local: one.clone(), remote: two.clone() });
            let (_b, b) = link(&LinkConfig::Datagrams { local: two.clone(), remote: one.clone() });
            give(&a, &[7; 60]);
            assert_eq!(next(&b), [7; 60]);
            give(&b, &[8; 1500]);
            assert_eq!(next(&a), [8; 1500]);
            for p in [one, two] {
                if let SocketAddress::Unix(p) = p {
                    std::fs::remove_file(p).unwrap();
                }
            }
        }
    }
}
