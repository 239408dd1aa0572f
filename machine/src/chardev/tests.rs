//! Tests of the back ends over pipes and sockets: flow control, dead peers, reconnecting, the mux.

use super::output::{BUFFER, Output, STALL_LIMIT};
use super::*;
use crate::event_loop::EventLoop;
use crate::options::SocketAddress;
use devices::chr::CharSink;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vm_core::Clock;

/// A front end with a settable amount of room.
#[derive(Default)]
struct Taker {
    room: AtomicUsize,
    got: Mutex<Vec<u8>>,
    events: Mutex<Vec<Event>>,
}

impl Taker {
    fn with_room(n: usize) -> Arc<Self> {
        Arc::new(Self { room: AtomicUsize::new(n), ..Self::default() })
    }
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.got.lock()).into_owned()
    }
}

impl Front for Taker {
    fn room(&self) -> usize {
        self.room.load(Ordering::SeqCst)
    }
    fn receive(&self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.room());
        self.room.fetch_sub(n, Ordering::SeqCst);
        self.got.lock().extend_from_slice(&bytes[..n]);
        n
    }
    fn event(&self, event: Event) {
        self.events.lock().push(event);
    }
    fn pump(&self) {}
}

fn until(what: &str, done: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn events() -> EventLoop {
    EventLoop::start(Clock::new()).unwrap()
}

fn pair() -> (UnixStream, OwnedFd) {
    let (a, b) = UnixStream::pair().unwrap();
    b.set_nonblocking(true).unwrap();
    a.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (a, b.into())
}

fn read_n(s: &mut UnixStream, n: usize) -> String {
    let mut buf = vec![0; n];
    s.read_exact(&mut buf).unwrap();
    String::from_utf8(buf).unwrap()
}

#[test]
fn input_waits_for_room_and_eof_is_no_error() {
    let ev = events();
    let (mut peer, fd) = pair();
    let out = fd.try_clone().unwrap();
    let dev = Chardev::from_fds(Some(fd), Some(out), "t", &ev.waker());
    let front = Taker::with_room(3);
    dev.set_front(front.clone());
    peer.write_all(b"abcdef").unwrap();
    until("three bytes", || front.text() == "abc");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(front.text(), "abc");
    front.room.store(100, Ordering::SeqCst);
    dev.input_wanted();
    until("the rest", || front.text() == "abcdef");
    peer.shutdown(std::net::Shutdown::Write).unwrap();
    until("end of input", || front.events.lock().contains(&Event::Closed));
    dev.write(b"still here");
    assert_eq!(read_n(&mut peer, 10), "still here");
}

#[test]
fn a_peer_that_never_reads_costs_a_fixed_amount() {
    let (mut peer, fd) = pair();
    let mut out = Output::nonblocking(Arc::new(fd));
    let start = Instant::now();
    let total = 4 << 20;
    (0..total / 4096).for_each(|_| out.write(&[b'x'; 4096]));
    assert!(out.dropped > 0, "the socket cannot have taken it all");
    let dropped = out.dropped;
    assert!(start.elapsed() < STALL_LIMIT * 10, "waits once, not for every write");
    let mut left = total - dropped as usize;
    assert!(left >= BUFFER);
    let mut buf = vec![0; 1 << 16];
    while left > 0 {
        left -= peer.read(&mut buf).unwrap();
        out.flush();
    }
    out.write(b"again");
    assert_eq!(read_n(&mut peer, 5), "again");
    assert_eq!(out.dropped, dropped, "a peer that reads again loses nothing more");
}

#[test]
fn pending_output_is_written_by_the_loop() {
    let ev = events();
    let (mut peer, fd) = pair();
    let dev = Chardev::from_fds(None, Some(fd), "t", &ev.waker());
    let reader = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(30));
        read_n(&mut peer, 60_000).len()
    });
    (0..600).for_each(|_| dev.write(&[b'y'; 100]));
    assert_eq!(reader.join().unwrap(), 60_000, "what fits the buffer is not lost");
    assert!(!dev.info().contains("lost"), "{}", dev.info());
}

fn temp_path(name: &str) -> std::path::PathBuf {
    std::env::temp_dir().join(format!("rhea-test-{}-{name}", std::process::id()))
}

#[test]
fn unix_server_serves_one_client_after_another() {
    let ev = events();
    let path = temp_path("server");
    let kind = Kind::Server { address: SocketAddress::Unix(path.clone()), wait: false };
    let dev = Chardev::open(&kind, "s", &ev.waker()).unwrap();
    let front = Taker::with_room(1000);
    dev.set_front(front.clone());
    dev.write(b"to nobody");
    for text in ["first", "second"] {
        let mut c = UnixStream::connect(&path).unwrap();
        c.write_all(text.as_bytes()).unwrap();
        until("input", || front.text().ends_with(text));
        dev.write(b"hello");
        assert_eq!(read_n(&mut c, 5), "hello");
    }
    until("both left", || front.events.lock().iter().filter(|e| **e == Event::Closed).count() == 2);
    assert!(dev.info().contains("9 bytes lost"), "{}", dev.info());
    std::fs::remove_file(path).unwrap();
}

#[test]
fn client_connects_again() {
    let ev = events();
    let path = temp_path("client");
    let address = SocketAddress::Unix(path.clone());
    let kind = Kind::Client { address, reconnect: Some(Duration::from_millis(200)) };
    let dev = Chardev::open(&kind, "c", &ev.waker()).unwrap();
    let front = Taker::with_room(1000);
    dev.set_front(front.clone());
    let server = std::os::unix::net::UnixListener::bind(&path).unwrap();
    for text in ["one", "two"] {
        let (mut s, _) = server.accept().unwrap();
        s.write_all(text.as_bytes()).unwrap();
        until("input", || front.text().ends_with(text));
    }
    std::fs::remove_file(path).unwrap();
}

#[test]
fn tcp_both_ways() {
    let ev = events();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = SocketAddress::Tcp { host: "127.0.0.1".into(), port: listener.local_addr().unwrap().port() };
    let kind = Kind::Client { address, reconnect: None };
    let dev = Chardev::open(&kind, "t", &ev.waker()).unwrap();
    let front = Taker::with_room(10);
    dev.set_front(front.clone());
    let (mut s, _) = listener.accept().unwrap();
    s.write_all(b"in").unwrap();
    until("input", || front.text() == "in");
    dev.write(b"out");
    let mut buf = [0; 3];
    s.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"out");
    drop((s, listener));
    assert!(Chardev::open(&kind, "t", &ev.waker()).is_err(), "nobody listens");
}

#[test]
fn file_takes_output_only() {
    let ev = events();
    let path = temp_path("file");
    let dev = Chardev::open(&Kind::File { path: path.clone(), append: false }, "f", &ev.waker()).unwrap();
    dev.write(b"line\n");
    assert_eq!(std::fs::read(&path).unwrap(), b"line\n");
    std::fs::remove_file(path).unwrap();
}

#[test]
fn pty_passes_bytes_both_ways() {
    let ev = events();
    let dev = Chardev::open(&Kind::Pty, "p", &ev.waker()).unwrap();
    let front = Taker::with_room(10);
    dev.set_front(front.clone());
    let info = dev.info();
    let path = info.split_whitespace().find(|w| w.starts_with("/dev/")).unwrap();
    let mut far = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    far.write_all(b"a\r\x03").unwrap();
    until("input", || front.text() == "a\r\x03");
    dev.write(b"b\n");
    let mut buf = [0; 2];
    far.read_exact(&mut buf).unwrap();
    assert_eq!(&buf, b"b\n", "the line discipline is raw");
}

#[test]
fn mux_escapes() {
    let ev = events();
    let (mut peer, fd) = pair();
    let out = fd.try_clone().unwrap();
    let quits = Arc::new(AtomicUsize::new(0));
    let q = quits.clone();
    let mux = Mux::new(Chardev::from_fds(Some(fd), Some(out), "m", &ev.waker()), move || {
        q.fetch_add(1, Ordering::SeqCst);
    });
    let (serial, monitor) = (mux.port(), mux.port());
    let (a, b) = (Taker::with_room(1000), Taker::with_room(1000));
    serial.set_front(a.clone());
    monitor.set_front(b.clone());
    mux.start();
    peer.write_all(b"ab\x01\x01\x01zc\x01b\x01cinfo\x01cd\x01x").unwrap();
    until("quit", || quits.load(Ordering::SeqCst) == 1);
    until("text", || a.text() == "ab\x01cd" && b.text() == "info");
    assert_eq!(*a.events.lock(), [Event::Opened, Event::Break, Event::Opened]);
    assert_eq!(*b.events.lock(), [Event::Opened]);
    peer.write_all(b"\x01h").unwrap();
    assert!(read_n(&mut peer, 80).contains("C-a x"));
    serial.write(b"done");
}

#[test]
fn mux_holds_a_bounded_amount_and_escapes_pass_it() {
    let ev = events();
    let (mut peer, fd) = pair();
    let quits = Arc::new(AtomicUsize::new(0));
    let q = quits.clone();
    let mux = Mux::new(Chardev::from_fds(Some(fd), None, "m", &ev.waker()), move || {
        q.fetch_add(1, Ordering::SeqCst);
    });
    let port = mux.port();
    let guest = Taker::with_room(0);
    port.set_front(guest.clone());
    mux.start();
    peer.write_all(&[b'k'; 4000]).unwrap();
    peer.write_all(b"\x01x").unwrap();
    until("quit past a guest that does not read", || quits.load(Ordering::SeqCst) == 1);
    peer.write_all(&[b'k'; 4000]).unwrap();
    guest.room.store(8000, Ordering::SeqCst);
    port.input_wanted();
    until("nothing is lost", || guest.got.lock().len() == 8000);
}

/// A receiver of 16 characters from which the guest reads some whenever nobody looks. It tells of room only after it was full.
struct Fifo {
    free: AtomicUsize,
    got: AtomicUsize,
}

impl Front for Fifo {
    fn room(&self) -> usize {
        let free = self.free.load(Ordering::SeqCst);
        self.free.store((free + 4).min(16), Ordering::SeqCst);
        free
    }
    fn receive(&self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.free.load(Ordering::SeqCst));
        self.free.fetch_sub(n, Ordering::SeqCst);
        self.got.fetch_add(n, Ordering::SeqCst);
        n
    }
    fn event(&self, _: Event) {}
    fn pump(&self) {}
}

/// A line that was typed ahead got stuck when the guest read while it was passed on.
#[test]
fn mux_passes_all_to_a_guest_that_reads_meanwhile() {
    let ev = events();
    let (mut peer, fd) = pair();
    let mux = Mux::new(Chardev::from_fds(Some(fd), None, "m", &ev.waker()), || {});
    let port = mux.port();
    let guest = Arc::new(Fifo { free: AtomicUsize::new(5), got: AtomicUsize::new(0) });
    port.set_front(guest.clone());
    mux.start();
    peer.write_all(&[b'k'; 500]).unwrap();
    until("all of the line", || guest.got.load(Ordering::SeqCst) == 500);
}
