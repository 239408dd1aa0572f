//! One TCP connection of the guest's, ended here and carried on by a socket of the host's (RFC 9293; why our own: ADR 0009).
//!
//! The wire to the guest loses nothing unless the guest does, and nobody else uses it, so there is no congestion control: segments
//! go as far as the guest's window, and its data is acknowledged when it is in our buffer or the socket's.

use super::wire::{MSS, SUPER, Segment, Wire, shared};
use devices::net::Body;
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, sockopt};
use smoltcp::wire::{TcpControl, TcpRepr};
use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What the guest may send ahead of the host's reader, and what is read ahead of the guest's acknowledgements.
/// With many connections it is less: `Wire::share`.
pub const SHARE: u32 = 1 << 20;
/// Window scale that we ask for.
const SCALE: u8 = 7;
/// Small pieces are put together up to this.
const PIECE: usize = 1 << 16;
/// First retransmission, longest distance of two, and how many there are.
const RTO: Duration = Duration::from_millis(500);
const RTO_MOST: Duration = Duration::from_secs(16);
const TRIES: u32 = 9;
/// How long the host may take to connect, one direction may stay open alone, and nothing may happen at all.
const CONNECT: Duration = Duration::from_secs(75);
const HALF_OPEN: Duration = Duration::from_secs(300);
const IDLE: Duration = Duration::from_secs(2 * 3600);
/// Reads from the host in one turn, so that others have theirs.
const READS: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The guest has called; the host is connecting.
    Connecting,
    /// We have called the guest.
    Calling,
    /// The guest has called and been answered.
    Answering,
    Open,
}

/// What becomes of a connection after something has happened to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    Wait,
    /// It could go on if there were room or if others had had their turn.
    Again,
    /// Forget it.
    Gone,
}

/// See the module. Sequence numbers are as on the wire.
pub struct Tcp {
    pub guest: SocketAddrV4,
    /// The other side as the guest knows it.
    pub remote: SocketAddrV4,
    pub fd: OwnedFd,
    pub phase: Phase,
    rcv_nxt: u32,
    /// End of the window that the guest has been told of.
    edge: u32,
    up: VecDeque<(Vec<u8>, usize)>,
    up_bytes: u32,
    guest_fin: bool,
    host_shut: bool,
    iss: u32,
    una: u32,
    nxt: u32,
    /// The farthest that has been sent.
    max: u32,
    /// End of what has been read from the host; FIN follows.
    end: u32,
    window: u32,
    /// The guest's scale; none unless both sides have one.
    scale: Option<u8>,
    mss: u16,
    down: VecDeque<(u32, Arc<Vec<u8>>)>,
    host_eof: bool,
    repeated: u32,
    readable: bool,
    writable: bool,
    ack_due: bool,
    deadline: Option<Instant>,
    tries: u32,
    last: Instant,
}

fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Bytes from `a` to `b`, 0 if that is backwards.
fn ahead(a: u32, b: u32) -> u32 {
    if before(a, b) { b.wrapping_sub(a) } else { 0 }
}

impl Tcp {
    fn new(fd: OwnedFd, guest: SocketAddrV4, remote: SocketAddrV4, iss: u32, now: Instant) -> Self {
        let _ = sockopt::set_tcp_nodelay(&fd, true);
        let (up, down) = Default::default();
        Self {
            guest,
            remote,
            fd,
            phase: Phase::Connecting,
            rcv_nxt: 0,
            edge: 0,
            up,
            up_bytes: 0,
            guest_fin: false,
            host_shut: false,
            iss,
            una: iss,
            nxt: iss,
            max: iss,
            end: iss.wrapping_add(1),
            window: 0,
            scale: None,
            mss: MSS,
            down,
            host_eof: false,
            repeated: 0,
            readable: false,
            writable: false,
            ack_due: false,
            deadline: Some(now + CONNECT),
            tries: 0,
            last: now,
        }
    }

    /// The guest calls with the SYN `s`; `fd` connects.
    pub fn called(fd: OwnedFd, guest: SocketAddrV4, remote: SocketAddrV4, s: &TcpRepr, iss: u32, now: Instant) -> Self {
        let mut t = Self::new(fd, guest, remote, iss, now);
        t.peer(s);
        t
    }

    /// A connection of the host's is passed on to the guest.
    pub fn call(fd: OwnedFd, guest: SocketAddrV4, remote: SocketAddrV4, iss: u32, wire: &mut Wire, now: Instant) -> Self {
        let mut t = Self::new(fd, guest, remote, iss, now);
        t.phase = Phase::Calling;
        t.greet(wire, now);
        t
    }

    /// Takes what a SYN of the guest's says.
    fn peer(&mut self, s: &TcpRepr) {
        self.rcv_nxt = (s.seq_number.0 as u32).wrapping_add(1);
        self.edge = self.rcv_nxt.wrapping_add(0xffff);
        self.window = s.window_len.into();
        self.scale = s.window_scale.map(|w| w.min(14));
        self.mss = s.max_seg_size.unwrap_or(536).clamp(64, MSS);
    }

    pub fn seq(&self) -> (u32, u32) {
        (self.nxt, self.rcv_nxt)
    }

    /// Bytes held in either direction.
    pub fn held(&self) -> usize {
        self.up_bytes as usize + ahead(self.una, self.end) as usize
    }

    pub fn state(&self) -> &'static str {
        match (self.phase, self.guest_fin, self.host_eof) {
            (Phase::Connecting | Phase::Calling, ..) => "SYN_SENT",
            (Phase::Answering, ..) => "SYN_RCVD",
            (Phase::Open, false, false) => "ESTABLISHED",
            (Phase::Open, true, false) => "CLOSE_WAIT",
            (Phase::Open, false, true) => "FIN_WAIT_1",
            (Phase::Open, true, true) => "LAST_ACK",
        }
    }

    fn field(&mut self, share: u32) -> u16 {
        let scaled = self.scale.is_some();
        let free = share.saturating_sub(self.up_bytes).min(if scaled { SHARE } else { 0xffff });
        let end = self.rcv_nxt.wrapping_add(free);
        if before(self.edge, end) {
            self.edge = end;
        }
        (ahead(self.rcv_nxt, self.edge) >> if scaled { SCALE } else { 0 }).min(0xffff) as u16
    }

    fn emit(&mut self, wire: &mut Wire, control: TcpControl, seq: u32, body: Option<Body>) -> bool {
        let s = Segment::new(control, seq, Some(self.rcv_nxt), self.field(wire.share()));
        self.ack_due = false;
        wire.tcp(self.remote, self.guest, &s, body, self.mss)
    }

    /// SYN, or the answer to one; again if need be.
    fn greet(&mut self, wire: &mut Wire, now: Instant) {
        let (ack, scale) = match self.phase {
            Phase::Calling => (None, Some(SCALE)),
            _ => (Some(self.rcv_nxt), self.scale.map(|_| SCALE)),
        };
        let s = Segment { scale, mss: Some(MSS), ..Segment::new(TcpControl::Syn, self.iss, ack, 0xffff) };
        wire.tcp(self.remote, self.guest, &s, None, MSS);
        self.nxt = self.iss.wrapping_add(1);
        self.max = self.nxt;
        self.again_at(now);
    }

    fn again_at(&mut self, now: Instant) {
        self.deadline = Some(now + (RTO * 2u32.pow(self.tries.min(5))).min(RTO_MOST));
    }

    /// Ends it for both sides at once.
    pub fn abort(&mut self, wire: &mut Wire) {
        self.reset_host();
        let (control, ack) = (TcpControl::Rst, (self.phase != Phase::Calling).then_some(self.rcv_nxt));
        let seq = if self.phase == Phase::Connecting { 0 } else { self.nxt };
        wire.tcp(self.remote, self.guest, &Segment::new(control, seq, ack, 0), None, MSS);
    }

    /// The host's peer is to see a reset, too.
    pub fn reset_host(&self) {
        let _ = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
    }

    /// The host's socket is ready for something.
    pub fn ready(&mut self, wire: &mut Wire, readable: bool, writable: bool, now: Instant) -> After {
        if self.phase == Phase::Connecting {
            return match sockopt::socket_error(&self.fd) {
                Ok(Ok(())) if writable => {
                    (self.phase, self.writable, self.readable) = (Phase::Answering, true, readable);
                    self.greet(wire, now);
                    After::Wait
                }
                Ok(Ok(())) => After::Wait,
                _ => {
                    self.abort(wire);
                    After::Gone
                }
            };
        }
        self.readable |= readable;
        self.writable |= writable;
        self.work(wire, now)
    }

    /// A segment of the guest's.
    pub fn segment(&mut self, wire: &mut Wire, s: &TcpRepr, now: Instant) -> After {
        self.last = now;
        let seq = s.seq_number.0 as u32;
        let ack = s.ack_number.map(|a| a.0 as u32);
        match (self.phase, s.control) {
            (Phase::Connecting, TcpControl::Rst) => {
                self.reset_host();
                return After::Gone;
            }
            (Phase::Connecting, _) => return After::Wait,
            (Phase::Calling, control) => return self.called_back(wire, s, control, ack, now),
            (_, TcpControl::Rst) => {
                if ahead(self.rcv_nxt.wrapping_sub(1), seq) <= SHARE + 1 && !before(seq, self.rcv_nxt) {
                    self.reset_host();
                    return After::Gone;
                }
                return After::Wait;
            }
            (Phase::Answering, TcpControl::Syn) => {
                self.greet(wire, now);
                return After::Wait;
            }
            (_, TcpControl::Syn) => {
                self.ack_due = true;
                return self.work(wire, now);
            }
            _ => {}
        }
        let Some(ack) = ack else { return After::Wait };
        if self.phase == Phase::Answering {
            if ack != self.nxt {
                wire.refuse(self.remote, self.guest, s);
                return After::Wait;
            }
            self.phase = Phase::Open;
        }
        if before(self.max, ack) {
            self.ack_due = true;
            return self.work(wire, now);
        }
        self.acknowledged(wire, s, ack, now);
        if let Err(after) = self.data(wire, s.payload, seq, s.control == TcpControl::Fin) {
            return after;
        }
        self.work(wire, now)
    }

    /// The guest answers our call.
    fn called_back(&mut self, wire: &mut Wire, s: &TcpRepr, control: TcpControl, ack: Option<u32>, now: Instant) -> After {
        if ack != Some(self.nxt) {
            wire.refuse(self.remote, self.guest, s);
            return After::Wait;
        }
        match control {
            TcpControl::Rst => {
                self.reset_host();
                return After::Gone;
            }
            TcpControl::Syn => {}
            _ => return After::Wait,
        }
        self.peer(s);
        (self.una, self.phase, self.ack_due) = (self.nxt, Phase::Open, true);
        (self.deadline, self.tries) = (None, 0);
        (self.readable, self.writable) = (true, true);
        self.work(wire, now)
    }

    /// What an acknowledgement between `una` and `max`, or an old one, means.
    fn acknowledged(&mut self, wire: &mut Wire, s: &TcpRepr, ack: u32, now: Instant) {
        if before(ack, self.una) {
            return;
        }
        let window = u32::from(s.window_len) << self.scale.unwrap_or(0);
        // Any answer shows that the guest lives, even if its window stays shut.
        self.tries = 0;
        if ack != self.una {
            (self.una, self.repeated) = (ack, 0);
            if before(self.nxt, ack) {
                self.nxt = ack;
            }
            while let Some((at, data)) = self.down.front()
                && !before(ack, at.wrapping_add(data.len() as u32))
            {
                self.down.pop_front();
            }
            match self.una == self.max {
                true => self.deadline = None,
                false => self.again_at(now),
            }
        } else if s.payload.is_empty() && window == self.window && self.nxt != self.una && s.control != TcpControl::Fin {
            self.repeated += 1;
            if self.repeated == 3 {
                // One segment is lost: the guest had no memory for it.
                let at = std::mem::replace(&mut self.nxt, self.una);
                self.send_one(wire, now);
                if before(self.nxt, at) {
                    self.nxt = at;
                }
            }
        }
        self.window = window;
    }

    /// Data of the guest's, and its end.
    fn data(&mut self, wire: &mut Wire, payload: &[u8], seq: u32, fin: bool) -> Result<(), After> {
        if payload.is_empty() && !fin {
            return Ok(());
        }
        self.ack_due = true;
        let old = ahead(seq, self.rcv_nxt) as usize;
        if before(self.rcv_nxt, seq) || old > payload.len() || self.guest_fin {
            return Ok(());
        }
        let new = &payload[old..];
        let room = ahead(self.rcv_nxt, self.edge) as usize;
        let taken = &new[..new.len().min(room)];
        self.rcv_nxt = self.rcv_nxt.wrapping_add(taken.len() as u32);
        if let Err(()) = self.up(taken) {
            self.abort(wire);
            return Err(After::Gone);
        }
        if fin && taken.len() == new.len() {
            self.guest_fin = true;
            self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
        }
        Ok(())
    }

    /// Sends to the host what it takes now, and keeps the rest.
    fn up(&mut self, mut data: &[u8]) -> Result<(), ()> {
        while self.up.is_empty() && self.writable && !data.is_empty() {
            match rustix::net::send(&self.fd, data, SendFlags::NOSIGNAL) {
                Ok(n) => data = &data[n..],
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => return Err(()),
            }
        }
        self.up_bytes += data.len() as u32;
        match self.up.back_mut() {
            _ if data.is_empty() => {}
            Some((last, _)) if last.len() + data.len() <= PIECE => last.extend_from_slice(data),
            _ => self.up.push_back((data.to_vec(), 0)),
        }
        Ok(())
    }

    /// Sends to the host what has waited; then the guest's end.
    fn flush(&mut self, share: u32) -> Result<(), ()> {
        while self.writable
            && let Some((data, at)) = self.up.front_mut()
        {
            match rustix::net::send(&self.fd, &data[*at..], SendFlags::NOSIGNAL) {
                Ok(n) => {
                    (*at, self.up_bytes) = (*at + n, self.up_bytes - n as u32);
                    if *at == data.len() {
                        self.up.pop_front();
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                Err(_) => return Err(()),
            }
        }
        if self.guest_fin && self.up.is_empty() && !self.host_shut {
            self.host_shut = true;
            let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
        }
        // A window that was nearly shut has opened.
        let (told, free) = (ahead(self.rcv_nxt, self.edge), share.saturating_sub(self.up_bytes));
        let wide = if self.scale.is_some() { share } else { 0xffff };
        self.ack_due |= !self.guest_fin && told < wide / 2 && free.min(wide) >= told + wide / 4;
        Ok(())
    }

    /// Reads from the host as far as the guest keeps up.
    fn pull(&mut self, wire: &Wire) -> Result<After, ()> {
        for _ in 0..READS {
            let (all, unsent) = (ahead(self.una, self.end), ahead(self.nxt, self.end));
            if !self.readable
                || self.host_eof
                || all >= wire.share().min(self.window.max(MSS.into()) * 2)
                || unsent >= SUPER as u32
            {
                return Ok(After::Wait);
            }
            if wire.crowded() {
                return Ok(After::Again);
            }
            let mut data = Vec::with_capacity(SUPER);
            match rustix::net::recv(&self.fd, spare_capacity(&mut data), RecvFlags::empty()) {
                Ok(_) if data.is_empty() => self.host_eof = true,
                Ok(_) => {
                    if data.len() < SUPER / 4 {
                        data.shrink_to_fit();
                    }
                    let at = self.end;
                    self.end = at.wrapping_add(data.len() as u32);
                    self.down.push_back((at, shared(data)));
                    return Ok(After::Again);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.readable = false,
                Err(_) => return Err(()),
            }
        }
        Ok(After::Again)
    }

    /// Sends one segment from `nxt` on, if there is one and the window lets it; `false`: no.
    fn send_one(&mut self, wire: &mut Wire, now: Instant) -> bool {
        let sent = self.nxt.wrapping_sub(self.una);
        let (allowed, pending) = (self.window.saturating_sub(sent), ahead(self.nxt, self.end));
        if pending == 0 && self.host_eof && self.nxt == self.end {
            let seq = self.nxt;
            self.emit(wire, TcpControl::Fin, seq, None);
            self.advance(1, now);
            return true;
        }
        let i = self.down.partition_point(|(at, data)| !before(self.nxt, at.wrapping_add(data.len() as u32)));
        let Some((at, data)) = self.down.get(i).filter(|_| pending > 0 && allowed > 0) else { return false };
        let from = self.nxt.wrapping_sub(*at) as usize;
        let n = (data.len() - from).min(allowed as usize).min(wire.largest(self.mss));
        // Not in small pieces as the window opens (RFC 9293 §3.8.6.2).
        if n == allowed as usize && n < self.mss.into() && sent > 0 {
            return false;
        }
        let (body, seq) = (Body::new(data.clone(), from, n), self.nxt);
        let control = if from + n == data.len() { TcpControl::Psh } else { TcpControl::None };
        self.emit(wire, control, seq, Some(body));
        self.advance(n as u32, now);
        true
    }

    fn advance(&mut self, n: u32, now: Instant) {
        self.nxt = self.nxt.wrapping_add(n);
        if before(self.max, self.nxt) {
            self.max = self.nxt;
        }
        if self.deadline.is_none() {
            self.again_at(now);
        }
    }

    /// Moves whatever can be moved.
    pub fn work(&mut self, wire: &mut Wire, now: Instant) -> After {
        if self.phase != Phase::Open {
            return After::Wait;
        }
        let mut after = After::Wait;
        for _ in 0..READS {
            let pulled = self.flush(wire.share()).and_then(|()| self.pull(wire));
            let Ok(pulled) = pulled else {
                self.abort(wire);
                return After::Gone;
            };
            while !wire.crowded() && self.send_one(wire, now) {}
            after = pulled;
            if pulled == After::Wait || wire.crowded() {
                break;
            }
        }
        let unsent = ahead(self.nxt, self.end) > 0;
        if unsent && self.window > self.nxt.wrapping_sub(self.una) && wire.crowded() {
            after = After::Again;
        }
        if unsent && self.deadline.is_none() {
            // The window is shut: ask again later.
            self.again_at(now);
        }
        self.last = if after == After::Again { now } else { self.last };
        if self.host_shut && self.host_eof && self.una == self.end.wrapping_add(1) {
            self.settle(wire);
            return After::Gone;
        }
        after
    }

    /// Acknowledges what has not been acknowledged with other segments; at the end of a turn.
    pub fn settle(&mut self, wire: &mut Wire) {
        if std::mem::take(&mut self.ack_due) {
            let seq = self.nxt;
            self.emit(wire, TcpControl::None, seq, None);
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, wire: &mut Wire, now: Instant) -> After {
        let half = self.guest_fin || self.host_eof;
        let idle = now.saturating_duration_since(self.last);
        if idle > IDLE || half && idle > HALF_OPEN {
            self.abort(wire);
            return After::Gone;
        }
        if self.deadline.is_none_or(|d| now < d) {
            return After::Wait;
        }
        self.tries += 1;
        if self.tries > TRIES || self.phase == Phase::Connecting {
            self.abort(wire);
            return After::Gone;
        }
        self.again_at(now);
        if self.phase != Phase::Open {
            self.greet(wire, now);
            return After::Wait;
        }
        self.nxt = self.una;
        if self.window == 0 && ahead(self.nxt, self.end) > 0 {
            // A byte that the guest has to answer.
            self.window = 1;
            self.send_one(wire, now);
            self.window = 0;
            return After::Wait;
        }
        self.work(wire, now)
    }
}
