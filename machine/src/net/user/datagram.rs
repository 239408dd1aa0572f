//! UDP and ICMP echo of the user-mode network: each pair of addresses has a socket of its own, until nothing has come for a while.

use super::Protocol;
use super::stack::{Flow, Stack};
use devices::net::checksum;
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use smoltcp::wire::IpProtocol;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long silence lasts before a flow is forgotten; questions to name servers are short.
const UDP_SILENCE: Duration = Duration::from_secs(240);
const DNS_SILENCE: Duration = Duration::from_secs(10);
const PING_SILENCE: Duration = Duration::from_secs(10);
/// Datagrams of one flow in one turn.
const BATCH: usize = 32;
const LONGEST: usize = 65507;

/// ICMP (RFC 792).
const ECHO_REPLY: u8 = 0;
const ECHO: u8 = 8;
const PORT_UNREACHABLE: u8 = 3;
const PROHIBITED: u8 = 13;

/// One UDP flow.
pub struct Datagram {
    pub guest: SocketAddrV4,
    pub remote: SocketAddrV4,
    /// Its own, or that of a forwarded port with the peer's address.
    pub fd: Arc<OwnedFd>,
    pub peer: Option<SocketAddr>,
    pub last: Instant,
}

impl Datagram {
    pub fn is_old(&self, now: Instant) -> bool {
        let patience = if self.remote.port() == 53 { DNS_SILENCE } else { UDP_SILENCE };
        now.saturating_duration_since(self.last) > patience
    }

    fn send(&self, data: &[u8]) -> rustix::io::Result<usize> {
        match self.peer {
            Some(peer) => rustix::net::sendto(&*self.fd, data, SendFlags::NOSIGNAL, &peer),
            None => rustix::net::send(&*self.fd, data, SendFlags::NOSIGNAL),
        }
    }
}

/// One sender of ICMP echo requests; the port is the identifier.
pub struct Ping {
    pub guest: SocketAddrV4,
    pub remote: SocketAddrV4,
    fd: OwnedFd,
    pub last: Instant,
}

impl Ping {
    pub fn is_old(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) > PING_SILENCE
    }
}

/// A socket of the host's that does not wait, connected.
fn open(to: SocketAddr, protocol: Option<rustix::net::Protocol>) -> io::Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(family, SocketType::DGRAM, flags, protocol)?;
    rustix::net::connect(&fd, &to)?;
    Ok(fd)
}

impl Stack {
    /// A datagram of the guest's.
    pub fn datagram(&mut self, guest: SocketAddrV4, remote: SocketAddrV4, data: &[u8], now: Instant) {
        let key = (Protocol::Udp, guest, remote);
        let token = match self.find(&key) {
            Some(t) => t,
            None => {
                let Some(to) = self.target(remote, now) else { return };
                let Ok(fd) = open(to, None) else { return };
                self.make_room(Protocol::Udp);
                let token = self.token();
                if self.watch(&fd, token, EventFlags::IN).is_err() {
                    return;
                }
                self.insert(token, key, Flow::Udp(Datagram { guest, remote, fd: Arc::new(fd), peer: None, last: now }));
                token
            }
        };
        let Some(Flow::Udp(u)) = self.flows.get_mut(&token) else { return };
        u.last = now;
        // An error of an earlier datagram's may be told instead of sending this one.
        if u.send(data) == Err(Errno::CONNREFUSED) && u.send(data) == Err(Errno::CONNREFUSED) {
            self.no_port(token);
        }
    }

    fn no_port(&mut self, token: u64) {
        let Some(Flow::Udp(u)) = self.flows.get(&token) else { return };
        let (guest, remote) = (u.guest, u.remote);
        let header = [guest.port().to_be_bytes(), remote.port().to_be_bytes(), [0, 8], [0, 0]].concat();
        self.wire.unreachable((PORT_UNREACHABLE, IpProtocol::Udp), *remote.ip(), *guest.ip(), *remote.ip(), &header);
    }

    /// Datagrams for the guest on a flow's own socket.
    pub fn udp_ready(&mut self, token: u64, now: Instant) {
        let mut buf = vec![0; LONGEST];
        for _ in 0..BATCH {
            let Some(Flow::Udp(u)) = self.flows.get_mut(&token) else { return };
            match rustix::net::recv(&*u.fd, &mut buf[..], RecvFlags::empty()) {
                Ok((n, _)) => {
                    u.last = now;
                    let (from, to) = (u.remote, u.guest);
                    if !self.wire.crowded() {
                        self.wire.udp(from, to, &buf[..n.min(LONGEST)]);
                    }
                }
                Err(Errno::CONNREFUSED) => return self.no_port(token),
                Err(_) => return,
            }
        }
    }

    /// Datagrams that came to a forwarded port.
    pub fn receive(&mut self, token: u64, now: Instant) {
        let mut buf = vec![0; LONGEST];
        for _ in 0..BATCH {
            let Some((fd, guest)) = self.forwards.get(&token).and_then(|f| f.udp()) else { return };
            let Ok((n, _, Some(from))) = rustix::net::recvfrom(&*fd, &mut buf[..], RecvFlags::empty()) else { return };
            let Ok(peer) = SocketAddr::try_from(from) else { continue };
            let remote = self.net.seen(peer);
            let key = (Protocol::Udp, guest, remote);
            if self.find(&key).is_none() {
                self.make_room(Protocol::Udp);
                let token = self.token();
                self.insert(token, key, Flow::Udp(Datagram { guest, remote, fd: fd.clone(), peer: Some(peer), last: now }));
            }
            if !self.wire.crowded() {
                self.wire.udp(remote, guest, &buf[..n.min(LONGEST)]);
            }
        }
    }

    /// An ICMP message of the guest's: echo requests are all that leads anywhere.
    pub fn icmp(&mut self, src: Ipv4Addr, dst: Ipv4Addr, bytes: &[u8], now: Instant) {
        if bytes.len() < 8 || bytes[..2] != [ECHO, 0] || checksum::finish(checksum::sum(bytes)) != 0 {
            return;
        }
        if self.is_ours(dst) {
            return self.echo(dst, src, bytes.to_vec(), None);
        }
        let guest = SocketAddrV4::new(src, u16::from_be_bytes([bytes[4], bytes[5]]));
        let remote = SocketAddrV4::new(dst, 0);
        let Some(to) = self.target(remote, now) else { return };
        let key = (Protocol::Icmp, guest, remote);
        if self.find(&key).is_none() {
            let Ok(fd) = open(to, Some(ipproto::ICMP)) else {
                // The host does not let us (net.ipv4.ping_group_range).
                let host = self.net.host;
                return self.wire.unreachable((PROHIBITED, IpProtocol::Icmp), host, src, dst, bytes);
            };
            self.make_room(Protocol::Icmp);
            let token = self.token();
            if self.watch(&fd, token, EventFlags::IN).is_err() {
                return;
            }
            self.insert(token, key, Flow::Ping(Ping { guest, remote, fd, last: now }));
        }
        if let Some(Flow::Ping(p)) = self.find(&key).and_then(|t| self.flows.get_mut(&t)) {
            p.last = now;
            let _ = rustix::net::send(&p.fd, bytes, SendFlags::NOSIGNAL);
        }
    }

    /// Answers for a host that is `from`.
    fn echo(&mut self, from: Ipv4Addr, to: Ipv4Addr, mut message: Vec<u8>, ident: Option<u16>) {
        message[0] = ECHO_REPLY;
        if let Some(i) = ident {
            message[4..6].copy_from_slice(&i.to_be_bytes());
        }
        message[2..4].fill(0);
        let sum = checksum::finish(checksum::sum(&message));
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        self.wire.ip(from, to, IpProtocol::Icmp, &message);
    }

    pub fn ping_ready(&mut self, token: u64, now: Instant) {
        let mut buf = vec![0; LONGEST];
        for _ in 0..BATCH {
            let Some(Flow::Ping(p)) = self.flows.get_mut(&token) else { return };
            let Ok((n, _)) = rustix::net::recv(&p.fd, &mut buf[..], RecvFlags::empty()) else { return };
            p.last = now;
            let (guest, remote) = (p.guest, p.remote);
            if n >= 8 && buf[0] == ECHO_REPLY && !self.wire.crowded() {
                self.echo(*remote.ip(), *guest.ip(), buf[..n].to_vec(), Some(guest.port()));
            }
        }
    }
}
