//! Packets of the user-mode network: what the guest's are taken apart into, and what ours are put together from.

use super::tcp::SHARE;
use devices::net::{Body, ETH_HEADER, Family, Frame, Mac, Offload, Takes, checksum};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpAddress, IpProtocol,
    Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber,
};
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

/// Our hardware address.
pub const MAC: Mac = [0x52, 0x55, 10, 0, 2, 2];
/// Bytes of an IP packet without fragmentation, and of a TCP segment's payload.
pub const MTU: usize = 1500;
pub const MSS: u16 = 1460;
/// Payload of one frame of several segments, a multiple of `MSS`. With a buffer for each it takes less than half of a queue of
/// 64: Linux puts new buffers into one that is half empty, and not before.
pub const SUPER: usize = 22 * MSS as usize;
const _: () = assert!(SUPER / (MSS as usize) < 32);
/// Bytes that all connections together may hold each way, before they take no more.
pub const HELD: usize = 256 << 20;
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
/// Hardware addresses that are remembered.
const NEIGHBOURS: usize = 16;

/// No checksum is looked at or made.
pub fn unchecked() -> ChecksumCapabilities {
    ChecksumCapabilities::ignored()
}

/// A TCP segment of ours, less its payload.
pub struct Segment {
    pub control: TcpControl,
    pub seq: u32,
    pub ack: Option<u32>,
    pub window: u16,
    pub scale: Option<u8>,
    pub mss: Option<u16>,
}

impl Segment {
    pub fn new(control: TcpControl, seq: u32, ack: Option<u32>, window: u16) -> Self {
        Self { control, seq, ack, window, scale: None, mss: None }
    }
}

/// The side that faces the guest: neighbours' addresses, and frames on their way to it.
#[derive(Default)]
pub struct Wire {
    pub out: VecDeque<Frame>,
    pub takes: Takes,
    /// Frames that `out` may have before connections hold theirs back.
    pub room: usize,
    /// Connections that there are.
    pub connections: usize,
    neighbours: VecDeque<(Ipv4Addr, Mac)>,
    ident: u16,
}

impl Wire {
    /// Bytes that a connection may hold each way.
    pub fn share(&self) -> u32 {
        ((HELD / self.connections.max(1)) as u32).min(SHARE)
    }

    /// Connections are to wait.
    pub fn crowded(&self) -> bool {
        self.out.len() >= self.room
    }

    /// A neighbour's address; the oldest one is forgotten when there are many.
    pub fn learn(&mut self, ip: Ipv4Addr, mac: Mac) {
        if let Some(n) = self.neighbours.iter_mut().find(|n| n.0 == ip) {
            n.1 = mac;
            return;
        }
        if self.neighbours.len() == NEIGHBOURS {
            self.neighbours.pop_front();
        }
        self.neighbours.push_back((ip, mac));
    }

    pub fn neighbours(&self) -> impl Iterator<Item = &(Ipv4Addr, Mac)> {
        self.neighbours.iter()
    }

    fn frame(to: Mac, kind: EthernetProtocol, len: usize) -> Vec<u8> {
        let mut b = vec![0; ETH_HEADER + len];
        let repr = EthernetRepr { src_addr: EthernetAddress(MAC), dst_addr: EthernetAddress(to), ethertype: kind };
        repr.emit(&mut EthernetFrame::new_unchecked(&mut b));
        b
    }

    /// Says who has an address, or asks who has it.
    pub fn arp(&mut self, operation: ArpOperation, from: Ipv4Addr, to: Ipv4Addr, to_mac: Option<Mac>) {
        let target = EthernetAddress(to_mac.unwrap_or([0; 6]));
        let repr = ArpRepr::EthernetIpv4 {
            operation,
            source_hardware_addr: EthernetAddress(MAC),
            source_protocol_addr: from,
            target_hardware_addr: target,
            target_protocol_addr: to,
        };
        let mut b = Self::frame(to_mac.unwrap_or([0xff; 6]), EthernetProtocol::Arp, repr.buffer_len());
        repr.emit(&mut ArpPacket::new_unchecked(&mut b[ETH_HEADER..]));
        self.out.push_back(Frame::plain(b));
    }

    /// The hardware address of a guest; `None`: it is being asked for, and the sender tries again later.
    fn resolve(&mut self, from: Ipv4Addr, to: Ipv4Addr) -> Option<Mac> {
        if to.is_broadcast() {
            return Some([0xff; 6]);
        }
        let known = self.neighbours.iter().find(|n| n.0 == to).map(|n| n.1);
        if known.is_none() {
            self.arp(ArpOperation::Request, from, to, None);
        }
        known
    }

    /// A frame with Ethernet and IP headers of a packet with `len` bytes behind these.
    fn packet(to_mac: Mac, src: Ipv4Addr, dst: Ipv4Addr, protocol: IpProtocol, len: usize) -> Vec<u8> {
        let mut b = Self::frame(to_mac, EthernetProtocol::Ipv4, IP_HEADER + len);
        let repr = Ipv4Repr { src_addr: src, dst_addr: dst, next_header: protocol, payload_len: len, hop_limit: 64 };
        repr.emit(&mut Ipv4Packet::new_unchecked(&mut b[ETH_HEADER..]), &ChecksumCapabilities::default());
        b
    }

    /// A packet of anything, in fragments if it is long.
    pub fn ip(&mut self, src: Ipv4Addr, dst: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) {
        let Some(mac) = self.resolve(src, dst) else { return };
        let piece = (MTU - IP_HEADER) / 8 * 8;
        self.ident = self.ident.wrapping_add(1);
        let last = payload.len().saturating_sub(1) / piece;
        for i in 0..=last {
            let part = &payload[i * piece..payload.len().min((i + 1) * piece)];
            let mut b = Self::packet(mac, src, dst, protocol, part.len());
            b[ETH_HEADER + IP_HEADER..].copy_from_slice(part);
            if last > 0 {
                let mut p = Ipv4Packet::new_unchecked(&mut b[ETH_HEADER..]);
                p.set_dont_frag(false);
                p.set_more_frags(i < last);
                p.set_frag_offset((i * piece) as u16);
                p.set_ident(self.ident);
                p.fill_checksum();
            }
            self.out.push_back(Frame::plain(b));
        }
    }

    /// A UDP datagram; `payload` of at most 65507 bytes.
    pub fn udp(&mut self, from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
        let len = (UDP_HEADER + payload.len()) as u16;
        let mut b = Vec::with_capacity(len.into());
        [from.port(), to.port(), len, 0].iter().for_each(|w| b.extend(w.to_be_bytes()));
        b.extend(payload);
        let sum = match checksum::finish(checksum::add(pseudo(from, to, 17, b.len()), checksum::sum(&b))) {
            0 => 0xffff,
            sum => sum,
        };
        b[6..8].copy_from_slice(&sum.to_be_bytes());
        self.ip(*from.ip(), *to.ip(), IpProtocol::Udp, &b);
    }

    /// Bytes of payload that one segment may have.
    pub fn largest(&self, mss: u16) -> usize {
        if self.takes.tso4 { SUPER } else { mss.into() }
    }

    /// A TCP segment, or several in one frame. `false`: the guest's hardware address is not known yet.
    pub fn tcp(&mut self, from: SocketAddrV4, to: SocketAddrV4, s: &Segment, body: Option<Body>, mss: u16) -> bool {
        let Some(mac) = self.resolve(*from.ip(), *to.ip()) else { return false };
        let payload = body.as_ref().map_or(0, |b| b.bytes().len());
        let repr = TcpRepr {
            src_port: from.port(),
            dst_port: to.port(),
            control: s.control,
            seq_number: TcpSeqNumber(s.seq as i32),
            ack_number: s.ack.map(|a| TcpSeqNumber(a as i32)),
            window_len: s.window,
            window_scale: s.scale,
            max_seg_size: s.mss,
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &[],
        };
        let header = repr.header_len();
        let mut head = Self::packet(mac, *from.ip(), *to.ip(), IpProtocol::Tcp, header + payload);
        head.truncate(ETH_HEADER + IP_HEADER + header);
        let (src, dst) = (IpAddress::Ipv4(*from.ip()), IpAddress::Ipv4(*to.ip()));
        repr.emit(&mut TcpPacket::new_unchecked(&mut head[ETH_HEADER + IP_HEADER..]), &src, &dst, &unchecked());
        let sum = !checksum::finish(pseudo(from, to, 6, header + payload));
        let at = ETH_HEADER + IP_HEADER;
        head[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
        let segments = (payload > usize::from(mss)).then_some((Family::V4, mss));
        let offload = Offload { checksum: Some((at as u16, 16)), segments, ecn: false, headers: head.len() as u16 };
        let mut frame = Frame { offload, head, body };
        if !self.takes.checksum {
            frame.finish_checksum();
        }
        self.out.push_back(frame);
        true
    }

    /// Answers a segment of a connection that there is not (RFC 9293 §3.10.7.1).
    pub fn refuse(&mut self, remote: SocketAddrV4, guest: SocketAddrV4, s: &TcpRepr) {
        if s.control == TcpControl::Rst {
            return;
        }
        let len = s.payload.len() as u32 + u32::from(matches!(s.control, TcpControl::Syn | TcpControl::Fin));
        let (seq, ack) = match s.ack_number {
            Some(a) => (a.0 as u32, None),
            None => (0, Some((s.seq_number.0 as u32).wrapping_add(len))),
        };
        self.tcp(remote, guest, &Segment::new(TcpControl::Rst, seq, ack, 0), None, MSS);
    }

    /// Tells a guest that a datagram of its own cannot be delivered; `what` is that packet's payload.
    pub fn unreachable(
        &mut self,
        (code, protocol): (u8, IpProtocol),
        from: Ipv4Addr,
        guest: Ipv4Addr,
        to: Ipv4Addr,
        what: &[u8],
    ) {
        let inner = Self::packet([0; 6], guest, to, protocol, what.len());
        let mut b = vec![3, code, 0, 0, 0, 0, 0, 0];
        b.extend(&inner[ETH_HEADER..ETH_HEADER + IP_HEADER]);
        b.extend(&what[..what.len().min(8)]);
        let sum = checksum::finish(checksum::sum(&b));
        b[2..4].copy_from_slice(&sum.to_be_bytes());
        self.ip(from, guest, IpProtocol::Icmp, &b);
    }
}

/// Sum of a pseudo header.
pub fn pseudo(from: SocketAddrV4, to: SocketAddrV4, protocol: u8, len: usize) -> u64 {
    let addresses = [from.ip().octets(), to.ip().octets()].concat();
    checksum::add(checksum::sum(&addresses), u64::from(protocol) + len as u64)
}

/// Bytes that may be shared by frames.
pub fn shared(bytes: Vec<u8>) -> Arc<Vec<u8>> {
    Arc::new(bytes)
}
