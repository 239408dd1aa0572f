//! The user-mode network's side of the wire: frames of the guest's taken apart, connections, and their sockets.

use super::datagram::{Datagram, Ping};
use super::dhcp::{Leases, SERVER_PORT};
use super::forward::{Forward, Source};
use super::fragments::Fragments;
use super::resolver::Resolver;
use super::tcp::{After, Tcp};
use super::wire::{HELD, MAC, Wire, unchecked};
use super::{Lines, Protocol, Settings};
use devices::net::{Frame, Mac};
use rustix::event::epoll::{self, EventData, EventFlags};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpControl, TcpPacket,
    TcpRepr, UdpPacket,
};
use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;
use vm_core::dlog;

/// Connections and the like at most, of each kind.
pub const TCP_FLOWS: usize = 2048;
const UDP_FLOWS: usize = 512;
const PINGS: usize = 64;
/// Token of the waker; flows come after it.
pub const WAKER: u64 = 0;

/// Which flow a packet belongs to, by the addresses that the guest sees. Of pings, the ports are identifier and 0.
pub type Key = (Protocol, SocketAddrV4, SocketAddrV4);

pub enum Flow {
    Tcp(Box<Tcp>),
    Udp(Datagram),
    Ping(Ping),
}

/// See the module.
pub struct Stack {
    pub net: Settings,
    /// Back ends that `net` names.
    pub lines: Lines,
    pub wire: Wire,
    epoll: OwnedFd,
    pub flows: HashMap<u64, Flow>,
    keys: HashMap<Key, u64>,
    next: u64,
    pub forwards: HashMap<u64, Forward>,
    /// Connections that can go on when there is room.
    again: BTreeSet<u64>,
    /// Connections that may owe an acknowledgement.
    touched: BTreeSet<u64>,
    leases: Leases,
    fragments: Fragments,
    resolver: Resolver,
    /// For first sequence numbers.
    random: u64,
}

impl Stack {
    pub fn new(net: Settings) -> io::Result<Self> {
        let mut seed = [0; 8];
        let _ = rustix::rand::getrandom(&mut seed[..], rustix::rand::GetRandomFlags::empty());
        let resolver = Resolver::new(&net.resolv_conf);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let (lines, wire, flows, keys, forwards, again, touched, leases, fragments) = Default::default();
        let (next, random) = (WAKER + 1, u64::from_ne_bytes(seed));
        Ok(Self { net, lines, wire, epoll, flows, keys, next, forwards, again, touched, leases, fragments, resolver, random })
    }

    pub fn epoll(&self) -> io::Result<OwnedFd> {
        self.epoll.try_clone()
    }

    pub fn watch(&self, fd: impl AsFd, token: u64, flags: EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), flags)?)
    }

    pub fn token(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// A first sequence number (splitmix64).
    fn iss(&mut self) -> u32 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = self.random;
        let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) as u32
    }

    fn count(&self, protocol: Protocol) -> usize {
        self.keys.keys().filter(|k| k.0 == protocol).count()
    }

    pub fn find(&self, key: &Key) -> Option<u64> {
        self.keys.get(key).copied()
    }

    pub fn insert(&mut self, token: u64, key: Key, flow: Flow) {
        self.keys.insert(key, token);
        self.flows.insert(token, flow);
    }

    pub fn remove(&mut self, token: u64) {
        let key = match self.flows.remove(&token) {
            Some(Flow::Tcp(t)) => (Protocol::Tcp, t.guest, t.remote),
            Some(Flow::Udp(u)) => (Protocol::Udp, u.guest, u.remote),
            Some(Flow::Ping(p)) => (Protocol::Icmp, p.guest, p.remote),
            None => return,
        };
        self.keys.remove(&key);
        self.again.remove(&token);
        self.touched.remove(&token);
    }

    /// Ends all connections, without a word to the guest.
    pub fn forget_all(&mut self) {
        self.flows.values().for_each(|f| {
            if let Flow::Tcp(t) = f {
                t.reset_host();
            }
        });
        (self.flows, self.keys, self.again, self.touched) = Default::default();
    }

    /// Makes room for one more datagram flow: the one that has been silent longest goes.
    pub fn make_room(&mut self, protocol: Protocol) {
        let most = if protocol == Protocol::Udp { UDP_FLOWS } else { PINGS };
        if self.count(protocol) < most {
            return;
        }
        let last = |f: &Flow| match (protocol, f) {
            (Protocol::Udp, Flow::Udp(u)) => Some(u.last),
            (Protocol::Icmp, Flow::Ping(p)) => Some(p.last),
            _ => None,
        };
        let oldest = self.flows.iter().filter_map(|(t, f)| Some((last(f)?, *t))).min();
        if let Some((_, token)) = oldest {
            self.remove(token);
        }
    }

    /// Where the host finds what the guest calls by this address; `None`: nowhere, or it is not to be reached.
    pub fn target(&mut self, remote: SocketAddrV4, now: Instant) -> Option<SocketAddr> {
        let (ip, port) = (*remote.ip(), remote.port());
        if self.net.restrict {
            return None;
        }
        if ip == self.net.host {
            return Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        }
        if ip == self.net.dns {
            return if port == 53 { self.resolver.address(now) } else { None };
        }
        let odd = ip.is_broadcast() || ip.is_multicast() || ip.is_loopback() || ip.is_unspecified() || self.net.contains(ip);
        (!odd).then_some(SocketAddr::V4(remote))
    }

    /// What is ours of the guest's network.
    pub fn is_ours(&self, ip: Ipv4Addr) -> bool {
        ip == self.net.host || ip == self.net.dns || self.net.guestfwd.iter().any(|g| *g.at.ip() == ip)
    }

    /// A frame of the guest's.
    pub fn frame(&mut self, frame: Frame, now: Instant) {
        let checked = frame.offload.checksum.is_some();
        let bytes = frame.into_bytes();
        let Ok(eth) = EthernetFrame::new_checked(&bytes[..]) else { return };
        let (to, from) = (eth.dst_addr(), eth.src_addr());
        if !(to.0 == MAC || to.is_broadcast()) || !from.is_unicast() {
            return;
        }
        match eth.ethertype() {
            EthernetProtocol::Arp => self.arp(eth.payload()),
            EthernetProtocol::Ipv4 => self.ipv4(eth.payload(), from.0, checked, now),
            _ => {}
        }
    }

    fn arp(&mut self, bytes: &[u8]) {
        let parsed = ArpPacket::new_checked(bytes).and_then(|p| ArpRepr::parse(&p));
        let Ok(ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, .. }) =
            parsed
        else {
            return;
        };
        let (mac, guest) = (source_hardware_addr.0, source_protocol_addr);
        self.learn(guest, mac);
        if operation == ArpOperation::Request && self.is_ours(target_protocol_addr) {
            self.wire.arp(ArpOperation::Reply, target_protocol_addr, guest, Some(mac));
        }
    }

    /// Whether an address can be a guest's; if so, its hardware address is remembered.
    fn learn(&mut self, guest: Ipv4Addr, mac: Mac) -> bool {
        let good = self.net.contains(guest) && !self.is_ours(guest) && mac[0] & 1 == 0 && mac != MAC;
        if good {
            self.wire.learn(guest, mac);
        }
        good
    }

    fn ipv4(&mut self, bytes: &[u8], mac: Mac, checked: bool, now: Instant) {
        let Ok(packet) = Ipv4Packet::new_checked(bytes) else { return };
        let fragment = packet.more_frags() || packet.frag_offset() > 0;
        if packet.version() != 4 || packet.header_len() < 20 || !packet.verify_checksum() {
            return;
        }
        let (src, dst, protocol) = (packet.src_addr(), packet.dst_addr(), packet.next_header());
        let dhcp = protocol == IpProtocol::Udp && packet.payload().get(2..4) == Some(&SERVER_PORT.to_be_bytes()) && !fragment;
        if dhcp && (dst.is_broadcast() || dst == self.net.host) {
            return self.dhcp(packet.payload());
        }
        if !self.learn(src, mac) {
            return dlog!(GUEST_ERRORS, "user network: a packet from {src}, which is not in it");
        }
        if fragment {
            let key = (src, dst, protocol.into(), packet.ident());
            let (at, more) = (packet.frag_offset().into(), packet.more_frags());
            if let Some(whole) = self.fragments.add(key, at, packet.payload(), more, now) {
                self.payload(src, dst, protocol, &whole, false, now);
            }
            return;
        }
        self.payload(src, dst, protocol, packet.payload(), checked, now);
    }

    fn payload(&mut self, src: Ipv4Addr, dst: Ipv4Addr, protocol: IpProtocol, bytes: &[u8], checked: bool, now: Instant) {
        match protocol {
            IpProtocol::Tcp => self.tcp(src, dst, bytes, checked, now),
            IpProtocol::Udp => {
                let Ok(p) = UdpPacket::new_checked(bytes) else { return };
                if checked || p.verify_checksum(&IpAddress::Ipv4(src), &IpAddress::Ipv4(dst)) {
                    self.datagram(SocketAddrV4::new(src, p.src_port()), SocketAddrV4::new(dst, p.dst_port()), p.payload(), now);
                }
            }
            IpProtocol::Icmp => self.icmp(src, dst, bytes, now),
            _ => {}
        }
    }

    fn dhcp(&mut self, udp: &[u8]) {
        let Ok(p) = UdpPacket::new_checked(udp) else { return };
        if let Some(answer) = self.leases.answer(p.payload(), &self.net) {
            self.wire.learn(answer.ip, answer.mac);
            self.wire.udp(SocketAddrV4::new(self.net.host, SERVER_PORT), answer.to, &answer.bytes);
        }
    }

    fn tcp(&mut self, src: Ipv4Addr, dst: Ipv4Addr, bytes: &[u8], checked: bool, now: Instant) {
        let caps = if checked { unchecked() } else { ChecksumCapabilities::default() };
        let Ok(p) = TcpPacket::new_checked(bytes) else { return };
        let Ok(s) = TcpRepr::parse(&p, &IpAddress::Ipv4(src), &IpAddress::Ipv4(dst), &caps) else { return };
        let (guest, remote) = (SocketAddrV4::new(src, s.src_port), SocketAddrV4::new(dst, s.dst_port));
        if let Some(token) = self.find(&(Protocol::Tcp, guest, remote)) {
            let Some(Flow::Tcp(t)) = self.flows.get_mut(&token) else { return };
            let after = t.segment(&mut self.wire, &s, now);
            return self.after(token, after);
        }
        match s.control {
            TcpControl::Syn if s.ack_number.is_none() => self.called(guest, remote, &s, now),
            _ => self.wire.refuse(remote, guest, &s),
        }
    }

    /// The guest opens a connection.
    fn called(&mut self, guest: SocketAddrV4, remote: SocketAddrV4, s: &TcpRepr, now: Instant) {
        if self.count(Protocol::Tcp) >= TCP_FLOWS || self.held() > HELD {
            dlog!(GUEST_ERRORS, "user network: too many connections");
            return self.wire.refuse(remote, guest, s);
        }
        let forward = self.net.guestfwd.iter().find(|g| g.at == remote).cloned();
        let opened = match forward {
            Some(g) => g.open(&self.lines),
            None => {
                self.target(remote, now).ok_or_else(|| io::ErrorKind::ConnectionRefused.into()).and_then(super::forward::connect)
            }
        };
        let Ok(fd) = opened else { return self.wire.refuse(remote, guest, s) };
        let (token, iss) = (self.token(), self.iss());
        if self.watch(&fd, token, EventFlags::IN | EventFlags::OUT | EventFlags::ET).is_err() {
            return self.wire.refuse(remote, guest, s);
        }
        let t = Tcp::called(fd, guest, remote, s, iss, now);
        self.insert(token, (Protocol::Tcp, guest, remote), Flow::Tcp(Box::new(t)));
    }

    /// Somebody calls the guest by way of a forwarded port.
    pub fn call(&mut self, fd: OwnedFd, peer: SocketAddr, guest: SocketAddrV4, now: Instant) {
        let remote = self.net.seen(peer);
        let key = (Protocol::Tcp, guest, remote);
        if self.count(Protocol::Tcp) >= TCP_FLOWS || self.find(&key).is_some() || self.held() > HELD {
            return;
        }
        let (token, iss) = (self.token(), self.iss());
        if self.watch(&fd, token, EventFlags::IN | EventFlags::OUT | EventFlags::ET).is_ok() {
            let t = Tcp::call(fd, guest, remote, iss, &mut self.wire, now);
            self.insert(token, key, Flow::Tcp(Box::new(t)));
        }
    }

    fn held(&self) -> usize {
        self.flows.values().map(|f| if let Flow::Tcp(t) = f { t.held() } else { 0 }).sum()
    }

    fn after(&mut self, token: u64, after: After) {
        match after {
            After::Gone => return self.remove(token),
            After::Again => self.again.insert(token),
            After::Wait => self.again.remove(&token),
        };
        self.touched.insert(token);
    }

    /// A socket of the host's is ready.
    pub fn ready(&mut self, token: u64, flags: EventFlags, now: Instant) {
        if self.forwards.contains_key(&token) {
            return self.incoming(token, now);
        }
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let (readable, writable) = (broken || flags.contains(EventFlags::IN), broken || flags.contains(EventFlags::OUT));
        match self.flows.get_mut(&token) {
            Some(Flow::Tcp(t)) => {
                let after = t.ready(&mut self.wire, readable, writable, now);
                self.after(token, after);
            }
            Some(Flow::Udp(_)) => self.udp_ready(token, now),
            Some(Flow::Ping(_)) => self.ping_ready(token, now),
            None => {}
        }
    }

    fn incoming(&mut self, token: u64, now: Instant) {
        match self.forwards.get(&token).map(|f| &f.source) {
            Some(Source::Tcp(_)) => self.accept(token, now),
            Some(Source::Udp(_)) => self.receive(token, now),
            None => {}
        }
    }

    /// Whether some connection could go on if there were room.
    pub fn has_more(&self) -> bool {
        !self.again.is_empty()
    }

    /// Lets connections go on that have waited for room or for others, and acknowledges what came in.
    pub fn turn(&mut self, now: Instant) {
        self.wire.connections = self.count(Protocol::Tcp);
        for token in std::mem::take(&mut self.again) {
            if let Some(Flow::Tcp(t)) = self.flows.get_mut(&token) {
                let after = t.work(&mut self.wire, now);
                self.after(token, after);
            }
        }
        for token in std::mem::take(&mut self.touched) {
            if let Some(Flow::Tcp(t)) = self.flows.get_mut(&token) {
                t.settle(&mut self.wire);
            }
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant) {
        let tokens: Vec<u64> = self.flows.keys().copied().collect();
        for token in tokens {
            match self.flows.get_mut(&token) {
                Some(Flow::Tcp(t)) => {
                    let after = t.tick(&mut self.wire, now);
                    if after != After::Wait {
                        self.after(token, after);
                    }
                }
                Some(Flow::Udp(u)) if u.is_old(now) => self.remove(token),
                Some(Flow::Ping(p)) if p.is_old(now) => self.remove(token),
                _ => {}
            }
        }
    }
}
