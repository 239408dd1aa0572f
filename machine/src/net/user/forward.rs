//! Ports of the host's that lead to the guest (`hostfwd`), and addresses of the guest's network that lead to the host (`guestfwd`).

use super::stack::Stack;
use super::{ForwardTarget, GuestForward, HostForward, Lines, Protocol};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::io;
use std::net::{SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

/// Connections that are taken from a port in one turn, and ports in all.
const BATCH: usize = 64;
pub const MOST: usize = 256;

pub enum Source {
    Tcp(TcpListener),
    Udp(Arc<OwnedFd>),
}

/// A port of the host's that is open.
pub struct Forward {
    pub config: HostForward,
    pub source: Source,
    /// Where in the guest it leads.
    pub guest: SocketAddrV4,
}

impl Forward {
    pub fn udp(&self) -> Option<(Arc<OwnedFd>, SocketAddrV4)> {
        match &self.source {
            Source::Udp(fd) => Some((fd.clone(), self.guest)),
            Source::Tcp(_) => None,
        }
    }
}

fn open(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

fn begun(r: rustix::io::Result<()>) -> io::Result<()> {
    match r {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A connection that is being made.
pub fn connect(to: SocketAddr) -> io::Result<OwnedFd> {
    let fd = open(if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 })?;
    begun(rustix::net::connect(&fd, &to)).map(|()| fd)
}

impl GuestForward {
    /// A connection to what the guest's address leads to.
    pub fn open(&self, lines: &Lines) -> io::Result<OwnedFd> {
        match &self.to {
            ForwardTarget::Chardev(id) => lines.get(id).ok_or(io::ErrorKind::NotFound)?.open(),
            ForwardTarget::Tcp(to) => connect(*to),
            ForwardTarget::Unix(path) => {
                let fd = open(AddressFamily::UNIX)?;
                begun(rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)).map(|()| fd)
            }
            ForwardTarget::Command(line) => {
                let (ours, theirs) = UnixStream::pair()?;
                ours.set_nonblocking(true)?;
                let (input, output) = (OwnedFd::from(theirs.try_clone()?), OwnedFd::from(theirs));
                let mut c = Command::new("/bin/sh");
                let mut child = c.arg("-c").arg(line).stdin(Stdio::from(input)).stdout(Stdio::from(output)).spawn()?;
                // It ends when its connection does, or when it likes.
                std::thread::Builder::new().name("guestfwd".into()).spawn(move || drop(child.wait()))?;
                Ok(ours.into())
            }
        }
    }
}

impl Stack {
    /// Opens a port of the host's.
    pub fn add_forward(&mut self, config: &HostForward) -> io::Result<()> {
        if self.forwards.len() >= MOST {
            return Err(io::Error::other("there are too many"));
        }
        let guest_ip = if config.guest.ip().is_unspecified() { self.net.dhcp_start } else { *config.guest.ip() };
        let source = match config.protocol {
            Protocol::Udp => {
                let s = UdpSocket::bind(config.host)?;
                s.set_nonblocking(true)?;
                Source::Udp(Arc::new(s.into()))
            }
            _ => {
                let s = TcpListener::bind(config.host)?;
                s.set_nonblocking(true)?;
                Source::Tcp(s)
            }
        };
        let token = self.token();
        match &source {
            Source::Tcp(s) => self.watch(s, token, EventFlags::IN)?,
            Source::Udp(s) => self.watch(s, token, EventFlags::IN)?,
        }
        let guest = SocketAddrV4::new(guest_ip, config.guest.port());
        self.forwards.insert(token, Forward { config: config.clone(), source, guest });
        Ok(())
    }

    /// Closes a port; connections go on. `false`: it was not open.
    pub fn remove_forward(&mut self, protocol: Protocol, host: SocketAddrV4) -> bool {
        let found = self.forwards.iter().find(|(_, f)| f.config.protocol == protocol && f.config.host == host);
        match found.map(|(t, _)| *t) {
            Some(token) => self.forwards.remove(&token).is_some(),
            None => false,
        }
    }

    /// Connections that have come to a port.
    pub fn accept(&mut self, token: u64, now: Instant) {
        for _ in 0..BATCH {
            let Some(Forward { source: Source::Tcp(listener), guest, .. }) = self.forwards.get(&token) else { return };
            let guest = *guest;
            let Ok((stream, peer)) = listener.accept() else { return };
            if stream.set_nonblocking(true).is_ok() {
                self.call(stream.into(), peer, guest, now);
            }
        }
    }
}
