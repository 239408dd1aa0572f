//! Tests of the user-mode network without a machine: a guest made of packets, and real sockets of the host's loopback.

use super::stack::Stack;
use super::wire::{self, unchecked};
use super::*;
use devices::net::{Frame, Takes};
use rustix::event::epoll::Event;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
};
use std::io::{Read, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use vm_core::testing::Rng;

const GUEST_MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

fn settings(more: &str) -> Settings {
    let Ok(crate::options::Request::Run(c)) = crate::options::parse(["-nic".to_owned(), format!("user{more}")]) else {
        panic!("{more}")
    };
    let crate::options::NetdevKind::User(u) = c.netdevs[0].kind.clone() else { panic!("it is one") };
    *u
}

/// No name server: that of the host is not to be bothered.
const ALONE: &str = ",resolv-conf=/dev/null";

/// A guest's side of the wire.
struct Guest {
    stack: Stack,
    epoll: OwnedFd,
    /// Frames for the guest.
    got: VecDeque<Frame>,
    now: Instant,
}

impl Guest {
    fn new(more: &str) -> Self {
        let mut stack = Stack::new(settings(more)).unwrap();
        for f in stack.net.hostfwd.clone() {
            stack.add_forward(&f).unwrap();
        }
        stack.wire.learn(GUEST, GUEST_MAC);
        let epoll = stack.epoll().unwrap();
        Self { stack, epoll, got: VecDeque::new(), now: Instant::now() }
    }

    /// One round of the thread's; waits for the host a little.
    fn turn(&mut self) {
        self.turn_for(5_000_000);
    }

    fn turn_for(&mut self, tv_nsec: i64) {
        self.stack.wire.room = 256;
        let mut events: Vec<Event> = Vec::with_capacity(64);
        let wait = Timespec { tv_sec: 0, tv_nsec };
        let _ = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&wait));
        for e in events {
            let (data, flags) = (e.data, e.flags);
            self.stack.ready(data.u64(), flags, self.now);
        }
        self.stack.turn(self.now);
        self.got.append(&mut self.stack.wire.out);
    }

    fn later(&mut self, by: Duration) {
        self.now += by;
        self.stack.wire.room = 256;
        self.stack.tick(self.now);
        self.turn();
    }

    fn put(&mut self, frame: Vec<u8>) {
        self.stack.wire.room = 256;
        self.stack.frame(Frame::plain(frame), self.now);
        self.turn_for(0);
    }

    fn ip(&mut self, to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) {
        self.put(packet(GUEST, to, protocol, payload));
    }

    fn udp(&mut self, from: u16, to: SocketAddrV4, data: &[u8]) {
        let mut w = super::wire::Wire::default();
        w.learn(*to.ip(), wire::MAC);
        w.udp(SocketAddrV4::new(GUEST, from), to, data);
        for f in w.out {
            let mut b = f.into_bytes();
            b[6..12].copy_from_slice(&GUEST_MAC);
            self.put(b);
        }
    }

    /// Sends a segment.
    fn tcp(&mut self, ports: (u16, SocketAddrV4), control: TcpControl, seq: u32, ack: Option<u32>, data: &[u8]) {
        let (src, dst) = (IpAddress::Ipv4(GUEST), IpAddress::Ipv4(*ports.1.ip()));
        let syn = control == TcpControl::Syn;
        let r = TcpRepr {
            src_port: ports.0,
            dst_port: ports.1.port(),
            control,
            seq_number: TcpSeqNumber(seq as i32),
            ack_number: ack.map(|a| TcpSeqNumber(a as i32)),
            window_len: 0xffff,
            window_scale: syn.then_some(4),
            max_seg_size: syn.then_some(1460),
            sack_permitted: false,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: data,
        };
        let mut b = vec![0; r.buffer_len()];
        r.emit(&mut TcpPacket::new_unchecked(&mut b[..]), &src, &dst, &ChecksumCapabilities::default());
        self.ip(*ports.1.ip(), IpProtocol::Tcp, &b);
    }

    /// The next packet for the guest of a protocol: source and payload.
    fn next(&mut self, protocol: IpProtocol) -> Option<(Ipv4Addr, Vec<u8>)> {
        for _ in 0..200 {
            while let Some(f) = self.got.pop_front() {
                let b = f.into_bytes();
                let eth = EthernetFrame::new_checked(&b[..]).unwrap();
                if eth.ethertype() != EthernetProtocol::Ipv4 {
                    continue;
                }
                let p = Ipv4Packet::new_checked(eth.payload()).unwrap();
                assert!(p.verify_checksum());
                if p.next_header() == protocol {
                    return Some((p.src_addr(), p.payload().to_vec()));
                }
            }
            self.turn();
        }
        None
    }

    /// The next segment: control, sequence, acknowledgement, data.
    fn segment(&mut self) -> Option<(TcpControl, u32, Option<u32>, Vec<u8>)> {
        let (_, b) = self.next(IpProtocol::Tcp)?;
        let p = TcpPacket::new_checked(&b[..]).unwrap();
        let caps = if self.stack.wire.takes.checksum { unchecked() } else { ChecksumCapabilities::default() };
        let addr = IpAddress::Ipv4(HOST);
        let r = TcpRepr::parse(&p, &addr, &IpAddress::Ipv4(GUEST), &caps).unwrap();
        Some((r.control, r.seq_number.0 as u32, r.ack_number.map(|a| a.0 as u32), r.payload.to_vec()))
    }

    /// Opens a connection from `port`: the next sequence numbers of both sides.
    fn open(&mut self, port: u16, to: SocketAddrV4) -> (u32, u32) {
        self.tcp((port, to), TcpControl::Syn, 1000, None, &[]);
        let (control, seq, ack, _) = self.segment().expect("an answer");
        assert_eq!((control, ack), (TcpControl::Syn, Some(1001)));
        self.tcp((port, to), TcpControl::None, 1001, Some(seq + 1), &[]);
        // The window opens wide.
        self.got.clear();
        (1001, seq.wrapping_add(1))
    }
}

fn packet(from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let mut w = super::wire::Wire::default();
    w.learn(to, wire::MAC);
    w.ip(from, to, protocol, payload);
    let mut b = w.out.pop_front().expect("it was made").into_bytes();
    b[6..12].copy_from_slice(&GUEST_MAC);
    b
}

fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(HOST, port)
}

fn port_of(a: io::Result<SocketAddr>) -> u16 {
    a.unwrap().port()
}

#[test]
fn a_connection_carries_data_both_ways_and_ends_on_both_sides() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = at(port_of(listener.local_addr()));
    let mut g = Guest::new("");
    let (mut seq, ack) = g.open(40000, to);
    let (mut host, _) = listener.accept().unwrap();
    g.tcp((40000, to), TcpControl::Psh, seq, Some(ack), b"hello");
    seq += 5;
    assert_eq!(g.segment().map(|s| (s.0, s.2)), Some((TcpControl::None, Some(seq))));
    let mut buf = [0; 5];
    host.read_exact(&mut buf).unwrap();
    host.write_all(b"and back").unwrap();
    let (_, s, _, data) = g.segment().unwrap();
    assert_eq!((s, &buf, &data[..]), (ack, b"hello", &b"and back"[..]));
    // Not acknowledged: it comes again. A repetition of ours is acknowledged and not given to the host again.
    g.later(Duration::from_secs(1));
    assert_eq!(g.segment().unwrap().3, b"and back");
    g.tcp((40000, to), TcpControl::Psh, seq - 5, Some(ack + 8), b"hello!");
    assert_eq!(g.segment().unwrap().2, Some(seq + 1));
    host.read_exact(&mut buf[..1]).unwrap();
    assert_eq!(buf[0], b'!');
    g.tcp((40000, to), TcpControl::Fin, seq + 1, Some(ack + 8), &[]);
    assert_eq!(g.segment().unwrap().2, Some(seq + 2));
    assert_eq!(host.read(&mut buf).unwrap(), 0, "the host sees the end");
    host.write_all(b"last").unwrap();
    drop(host);
    assert_eq!(g.segment().unwrap().3, b"last");
    let (control, s, ..) = g.segment().unwrap();
    assert_eq!((control, s), (TcpControl::Fin, ack + 12));
    g.tcp((40000, to), TcpControl::None, seq + 2, Some(ack + 13), &[]);
    assert!(g.stack.flows.is_empty());
    // What comes now belongs to nobody.
    g.tcp((40000, to), TcpControl::None, seq + 2, Some(ack + 13), &[]);
    assert_eq!(g.segment().unwrap().0, TcpControl::Rst);
}

#[test]
fn nobody_there_is_a_reset_as_is_a_reset_of_either_side() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = at(port_of(listener.local_addr()));
    let gone = {
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        at(port_of(l.local_addr()))
    };
    let mut g = Guest::new("");
    g.tcp((1, gone), TcpControl::Syn, 7, None, &[]);
    let s = g.segment().unwrap();
    assert_eq!((s.0, s.2), (TcpControl::Rst, Some(8)));
    let (seq, ack) = g.open(2, to);
    let (mut host, _) = listener.accept().unwrap();
    g.tcp((2, to), TcpControl::Rst, seq, Some(ack), &[]);
    assert_eq!(host.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    let (_, ack) = g.open(3, to);
    let (host, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&host, Some(Duration::ZERO)).unwrap();
    drop(host);
    let s = g.segment().unwrap();
    assert_eq!((s.0, s.1, g.stack.flows.len()), (TcpControl::Rst, ack, 0));
    // A reset from elsewhere than the window changes nothing.
    let (seq, ack) = g.open(4, to);
    g.tcp((4, to), TcpControl::Rst, seq.wrapping_sub(5), Some(ack), &[]);
    assert_eq!(g.stack.flows.len(), 1);
}

#[test]
fn much_data_goes_in_large_frames_to_guests_that_take_them_as_far_as_their_window() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = at(port_of(listener.local_addr()));
    for tso4 in [false, true] {
        let mut g = Guest::new("");
        g.stack.wire.takes = Takes { checksum: tso4, tso4, tso6: false };
        let (seq, mut ack) = g.open(5, to);
        let (mut host, _) = listener.accept().unwrap();
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
        let copy = sent.clone();
        let writer = std::thread::spawn(move || host.write_all(&copy));
        let (mut read, mut largest) = (Vec::new(), 0);
        while read.len() < sent.len() {
            let (_, s, _, data) = g.segment().expect("more");
            if s == ack {
                ack = ack.wrapping_add(data.len() as u32);
                largest = largest.max(data.len());
                read.extend(data);
                g.tcp((5, to), TcpControl::None, seq, Some(ack), &[]);
            }
        }
        writer.join().unwrap().unwrap();
        assert!(read == sent, "what arrives is what was sent");
        assert_eq!(largest > 1460, tso4, "{largest}");
    }
}

#[test]
fn a_host_that_does_not_read_shuts_the_window_and_nothing_is_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = at(port_of(listener.local_addr()));
    let mut g = Guest::new("");
    let (first, ack) = g.open(6, to);
    let (mut host, _) = listener.accept().unwrap();
    let piece = vec![9; 1400];
    let (mut seq, mut stuck, mut read) = (first, 0, 0usize);
    while stuck < 5 && seq - first < 40_000_000 {
        g.tcp((6, to), TcpControl::None, seq, Some(ack), &piece);
        let mut took = seq;
        while let Some(a) = g.got.pop_front().map(|f| f.into_bytes()) {
            took = u32::from_be_bytes(a[42..46].try_into().unwrap());
        }
        stuck = if took == seq { stuck + 1 } else { 0 };
        seq = took;
    }
    assert!(seq - first >= 1 << 20, "{} bytes were taken", seq - first);
    assert_eq!(stuck, 5, "and then no more");
    host.set_nonblocking(true).unwrap();
    let mut buf = vec![0; 1 << 16];
    for _ in 0..100_000 {
        match host.read(&mut buf) {
            Ok(n) => read += n,
            Err(_) => g.turn(),
        }
        if read == (seq - first) as usize {
            break;
        }
    }
    assert_eq!(read, (seq - first) as usize);
    assert!(g.got.iter().any(|f| f.head.len() >= 54), "the guest is told that the window is open again");
}

#[test]
fn forwarded_ports_call_the_guest() {
    let free = port_of(TcpListener::bind("127.0.0.1:0").unwrap().local_addr());
    let mut g = Guest::new(&format!(",hostfwd=tcp:127.0.0.1:{free}-:22,hostfwd=udp:127.0.0.1:{free}-:53"));
    let mut host = TcpStream::connect(("127.0.0.1", free)).unwrap();
    let (control, seq, ack, _) = g.segment().unwrap();
    assert_eq!((control, ack), (TcpControl::Syn, None));
    let peer = at(host.local_addr().unwrap().port());
    g.tcp((22, peer), TcpControl::Syn, 500, Some(seq + 1), &[]);
    assert_eq!(g.segment().unwrap().2, Some(501));
    g.tcp((22, peer), TcpControl::Psh, 501, Some(seq + 1), b"login:");
    let mut buf = [0; 6];
    host.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"login:");
    // Nobody listens in the guest: the caller sees a reset.
    let mut host = TcpStream::connect(("127.0.0.1", free)).unwrap();
    g.segment().unwrap();
    let (_, seq, ..) = g.segment().unwrap_or((TcpControl::Syn, seq, None, vec![]));
    let peer = at(host.local_addr().unwrap().port());
    g.tcp((22, peer), TcpControl::Rst, 0, Some(seq + 1), &[]);
    assert_eq!(host.read(&mut buf).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    // By UDP, and back.
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.send_to(b"question", ("127.0.0.1", free)).unwrap();
    let (from, b) = g.next(IpProtocol::Udp).unwrap();
    let p = UdpPacket::new_checked(&b[..]).unwrap();
    assert_eq!((from, p.dst_port(), p.payload()), (HOST, 53, &b"question"[..]));
    g.udp(53, SocketAddrV4::new(HOST, p.src_port()), b"answer");
    host.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (n, from) = host.recv_from(&mut buf).unwrap();
    assert_eq!((&buf[..n], from.port()), (&b"answer"[..], free));
    // The port is taken now, and free again afterwards.
    let f = g.stack.net.hostfwd[0].clone();
    assert_eq!(g.stack.add_forward(&f).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert!(g.stack.remove_forward(Protocol::Tcp, f.host) && !g.stack.remove_forward(Protocol::Tcp, f.host));
    assert!(g.stack.add_forward(&f).is_ok());
}

#[test]
fn datagrams_names_and_echoes() {
    let dir = std::env::temp_dir().join(format!("rhea-resolv-{}", std::process::id()));
    let server = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = port_of(server.local_addr());
    std::fs::write(&dir, format!("nameserver [127.0.0.1]:{port}\n")).unwrap();
    let mut g = Guest::new(&format!(",resolv-conf={}", dir.display()));
    let mut buf = [0; 4000];
    // The name server has an address of its own for the guest; a large answer comes in fragments, a large question may, too.
    for to in [SocketAddrV4::new(Ipv4Addr::new(10, 0, 2, 3), 53), at(port)] {
        g.udp(777, to, &[5; 3000]);
        let (n, from) = server.recv_from(&mut buf).unwrap();
        assert_eq!((n, buf[..n].iter().all(|b| *b == 5)), (3000, true));
        server.send_to(&[6; 2000], from).unwrap();
        let (from, first) = g.next(IpProtocol::Udp).unwrap();
        let (_, second) = g.next(IpProtocol::Udp).unwrap();
        let whole = [first, second].concat();
        let p = UdpPacket::new_checked(&whole[..]).unwrap();
        assert!(p.verify_checksum(&IpAddress::Ipv4(*to.ip()), &IpAddress::Ipv4(GUEST)));
        assert_eq!((from, p.src_port(), p.payload()), (*to.ip(), to.port(), &[6; 2000][..]));
    }
    std::fs::remove_file(dir).unwrap();
    // Nobody there.
    drop(server);
    g.udp(778, at(port), b"x");
    let (_, icmp) = g.next(IpProtocol::Icmp).unwrap();
    assert_eq!(icmp[..2], [3, 3]);
    let mut echo = vec![8, 0, 0, 0, 1, 2, 3, 4, 5, 6];
    let sum = devices::net::checksum::finish(devices::net::checksum::sum(&echo));
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    g.ip(HOST, IpProtocol::Icmp, &echo);
    let (_, reply) = g.next(IpProtocol::Icmp).unwrap();
    assert_eq!((reply[0], &reply[4..]), (0, &echo[4..]));
    // Silence ends flows.
    assert_eq!(g.stack.flows.len(), 3);
    g.later(Duration::from_secs(300));
    assert_eq!(g.stack.flows.len(), 0);
}

#[test]
fn a_restricted_guest_reaches_only_what_it_is_given() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = port_of(listener.local_addr());
    let fwd = Ipv4Addr::new(10, 0, 2, 100);
    let given = format!(",restrict=on,guestfwd=tcp:{fwd}:80-tcp:127.0.0.1:{port},guestfwd=tcp:{fwd}:81-cmd:echo from a program");
    let mut g = Guest::new(&given);
    g.tcp((9, at(port)), TcpControl::Syn, 7, None, &[]);
    assert_eq!(g.segment().unwrap().0, TcpControl::Rst);
    g.udp(9, at(port), b"x");
    assert!(g.stack.flows.is_empty());
    for (port, expect) in [(80, None), (81, Some(&b"from a program\n"[..]))] {
        let to = SocketAddrV4::new(fwd, port);
        g.tcp((9, to), TcpControl::Syn, 7, None, &[]);
        let (_, b) = g.next(IpProtocol::Tcp).unwrap();
        let p = TcpPacket::new_checked(&b[..]).unwrap();
        assert!(p.syn() && p.ack());
        if let Some(text) = expect {
            let ack = (p.seq_number().0 as u32).wrapping_add(1);
            g.tcp((9, to), TcpControl::None, 8, Some(ack), &[]);
            let said = (0..5).find_map(|_| {
                let (_, b) = g.next(IpProtocol::Tcp)?;
                let data = TcpPacket::new_checked(&b[..]).unwrap().payload().to_vec();
                (!data.is_empty()).then_some(data)
            });
            assert_eq!(said.as_deref(), Some(text));
        }
    }
}

#[test]
fn loaded_connections_are_reset() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = at(port_of(listener.local_addr()));
    let mut g = Guest::new("");
    let (seq, ack) = g.open(10, to);
    let stack = Arc::new(Mutex::new(g.stack));
    let saved = Mover(stack).save();
    let other = Guest::new("");
    let moved = Mover(Arc::new(Mutex::new(other.stack)));
    moved.load(&saved);
    let mut s = moved.0.lock();
    let b = s.wire.out.pop_front().expect("a reset").into_bytes();
    let p = TcpPacket::new_checked(&b[34..]).unwrap();
    assert_eq!((p.rst(), p.seq_number().0 as u32, p.ack_number().0 as u32, &b[..6]), (true, ack, seq, &GUEST_MAC[..]));
    drop(s);
    for forged in [serde_json::json!(null), serde_json::json!({ "neighbours": 5 }), serde_json::json!({ "connections": [[1]] })] {
        moved.load(&forged);
    }
}

#[test]
fn connections_and_datagrams_are_bounded() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = at(port_of(listener.local_addr()));
    let mut g = Guest::new("");
    for port in 1..=700 {
        g.udp(port, to, b"x");
    }
    assert_eq!(g.stack.flows.len(), 512);
    g.later(Duration::from_secs(300));
    assert_eq!(g.stack.flows.len(), 0);
}

/// Frames as an evil guest would send them: mutated good ones, and noise. The stack neither falls over nor grows without bound.
/// `RHEA_NET_FUZZ_SECONDS` and `RHEA_NET_FUZZ_SEED` make it a campaign.
#[test]
fn evil_frames_do_no_harm() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |s| s.parse().expect("it is a number"));
    let (seconds, seed) = (number("RHEA_NET_FUZZ_SECONDS", 2), number("RHEA_NET_FUZZ_SEED", 1));
    let end = Instant::now() + Duration::from_secs(seconds);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    echo.set_nonblocking(true).unwrap();
    let ports = [port_of(listener.local_addr()), port_of(echo.local_addr()), 67, 53];
    let mut r = Rng(seed);
    let (mut g, mut rounds, mut peers) = (Guest::new(ALONE), 0u64, VecDeque::new());
    let mut heard: Vec<(u16, u32, u32)> = vec![(1, 1, 1)];
    while Instant::now() < end {
        rounds += 1;
        if r.one_in(5000) {
            g = Guest::new(if r.one_in(2) { ALONE } else { ",restrict=on" });
        }
        if r.one_in(50) {
            g.stack.wire.takes = Takes { checksum: r.one_in(2), tso4: r.one_in(2), tso6: false };
        }
        let frame = evil(&mut r, &ports, &heard);
        g.stack.wire.room = r.below(300) as usize;
        g.stack.frame(frame, g.now);
        if r.one_in(8) {
            // It seldom waits for the host, or a campaign would do little else.
            g.turn_for(if r.one_in(25) { 5_000_000 } else { 0 });
        }
        if r.one_in(40) {
            let most = if r.one_in(20) { 400_000 } else { 3000 };
            g.now += Duration::from_millis(r.below(most));
            g.stack.tick(g.now);
        }
        talk(&mut r, &listener, &echo, &mut peers);
        // What the stack says is what an evil guest answers to.
        for f in g.got.drain(..) {
            assert!(f.len() <= devices::net::MAX_FRAME && f.len() >= 14);
            let b = f.into_bytes();
            if b.len() >= 54 && b[23] == 6 {
                let word = |at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
                heard.push((u16::from_be_bytes([b[36], b[37]]), word(42), word(38).wrapping_add(b.len() as u32 - 54)));
            }
        }
        let many = heard.len().saturating_sub(50);
        heard.drain(..many);
        assert!(g.stack.flows.len() <= 2048 + 512 + 64 && g.stack.wire.out.len() < 5000);
    }
    eprintln!("{rounds} frames, seed {seed}");
}

/// The host's side: takes connections, and is as moody as hosts are.
fn talk(r: &mut Rng, listener: &TcpListener, echo: &UdpSocket, peers: &mut VecDeque<TcpStream>) {
    let mut buf = [0; 2000];
    if let Ok((s, _)) = listener.accept() {
        let _ = s.set_nonblocking(true);
        peers.push_back(s);
    }
    if let Ok((n, from)) = echo.recv_from(&mut buf) {
        let _ = echo.send_to(&buf[..n], from);
    }
    if let Some(mut s) = peers.pop_front() {
        let _ = match r.below(4) {
            0 => s.read(&mut buf),
            1 => s.write(&buf[..r.below(2000) as usize]),
            _ => Ok(0),
        };
        if !r.one_in(30) && peers.len() < 300 {
            peers.push_back(s);
        }
    }
}

/// A frame of an evil guest's. `heard`: ports, acknowledgements and sequence numbers that fit connections.
fn evil(r: &mut Rng, ports: &[u16], heard: &[(u16, u32, u32)]) -> Frame {
    let some = |r: &mut Rng, n: u64| (0..r.below(n)).map(|_| r.next_u64() as u8).collect::<Vec<u8>>();
    let to = match r.below(12) {
        1 => Ipv4Addr::new(10, 0, 2, 3),
        2 => Ipv4Addr::BROADCAST,
        _ => HOST,
    };
    let (protocol, payload) = match r.below(10) {
        0 => (IpProtocol::Icmp, some(r, 100)),
        1..3 => {
            let mut b = some(r, 600);
            b.resize(b.len().max(8), 0);
            b[2..4].copy_from_slice(&r.pick(ports).to_be_bytes());
            let len = b.len() as u16;
            b[4..6].copy_from_slice(&if r.one_in(9) { r.next_u64() as u16 } else { len }.to_be_bytes());
            b[6..8].fill(0);
            (IpProtocol::Udp, b)
        }
        _ => {
            let (port, seq, ack) = heard[r.below(heard.len() as u64) as usize];
            let mut b = vec![0; 20];
            let from = if r.one_in(3) { r.below(60) as u16 + 1 } else { port };
            b[..2].copy_from_slice(&from.to_be_bytes());
            b[2..4].copy_from_slice(&ports[0].to_be_bytes());
            let near =
                |r: &mut Rng, v: u32| if r.one_in(4) { v.wrapping_add(r.below(4000) as u32).wrapping_sub(2000) } else { v };
            b[4..8].copy_from_slice(&near(r, seq).to_be_bytes());
            b[8..12].copy_from_slice(&near(r, ack).to_be_bytes());
            b[12] = if r.one_in(12) { r.next_u64() as u8 } else { 0x50 };
            b[13] = r.pick(&[2, 0x10, 0x18, 0x11, 0x10, 0x14, 0x12, 0, 0xff]);
            b[14..16].copy_from_slice(&(r.next_u64() as u16).to_be_bytes());
            b.extend(some(r, 3000));
            (IpProtocol::Tcp, b)
        }
    };
    let mut bytes = packet(GUEST, to, protocol, &payload[..payload.len().min(1480)]);
    let mut offload = devices::net::Offload { checksum: Some((34, 16)), ..Default::default() };
    for _ in 0..if r.one_in(3) { r.below(5) } else { 0 } {
        let at = r.below(bytes.len() as u64) as usize;
        bytes[at] = r.next_u64() as u8;
    }
    // Nothing of this leaves the host.
    bytes[30..34].copy_from_slice(&to.octets());
    if r.one_in(20) {
        bytes.truncate(r.below(bytes.len() as u64 + 1) as usize);
    }
    if r.one_in(20) {
        offload.checksum = None;
    }
    Frame { offload, ..Frame::plain(bytes) }
}
