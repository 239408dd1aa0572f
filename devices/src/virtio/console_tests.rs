//! Tests of the virtio console device: ports as drivers find them, data both ways, flow control, hostile drivers, saved state.

use super::*;
use crate::pci::PciFunction;
use crate::virtio::PciOptions;
use crate::virtio::testkit::{Driver, SIZE};
use parking_lot::Mutex;

const BUFFER: u64 = 0x8000;
const OUT: u64 = 0x2_0000;

/// Takes up to `room` bytes.
struct Peer {
    got: Mutex<Vec<u8>>,
    room: Mutex<usize>,
    wanted: Mutex<u32>,
}

impl Peer {
    fn new(room: usize) -> Arc<Self> {
        Arc::new(Self { got: Mutex::default(), room: Mutex::new(room), wanted: Mutex::default() })
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.got.lock())
    }
}

impl CharSink for Peer {
    fn write(&self, bytes: &[u8]) {
        let mut room = self.room.lock();
        assert!(bytes.len() <= *room, "more than there was room for");
        *room -= bytes.len();
        self.got.lock().extend(bytes);
    }

    fn room(&self) -> usize {
        *self.room.lock()
    }

    fn input_wanted(&self) {
        *self.wanted.lock() += 1;
    }
}

fn console(peers: &[Arc<Peer>; 2]) -> Console {
    let port =
        |nr: u32, name: &str| PortConfig { nr, console: nr == 0, name: name.into(), sink: Some(peers[nr as usize].clone()) };
    Console::new(3, vec![port(1, "org.test"), port(0, "")])
}

struct Guest {
    d: Driver<Console>,
    peers: [Arc<Peer>; 2],
}

fn guest(features: u64) -> Guest {
    let peers = [Peer::new(usize::MAX), Peer::new(usize::MAX)];
    let mut d = Driver::modern(console(&peers));
    d.start(features);
    Guest { d, peers }
}

impl Guest {
    /// The driver says something by the control queue.
    fn say(&mut self, id: u32, event: u16, value: u16) {
        self.d.ram.write_uint(0x1000, 8, u64::from(id) | u64::from(event) << 32 | u64::from(value) << 48);
        self.d.add(CONTROL_TX, &[(0x1000, 8)], &[]);
        self.d.notify(CONTROL_TX as u64);
    }

    /// Gives the control queue a buffer and reads what comes: id, event, value, name.
    fn hear(&mut self) -> Option<(u64, u64, u64, String)> {
        self.d.add(CONTROL_RX, &[], &[(BUFFER, 64)]);
        self.d.notify(CONTROL_RX as u64);
        let (_, len) = *self.d.used(CONTROL_RX).first()?;
        let m = self.d.ram.read_uint(BUFFER, 8);
        let name = String::from_utf8(self.d.bytes(BUFFER + 8, len as usize - 8)).unwrap();
        Some((m & 0xffff_ffff, m >> 32 & 0xffff, m >> 48, name))
    }

    fn output(&mut self, queue: usize, bytes: &[u8]) {
        self.d.ram.write(OUT, bytes);
        self.d.add(queue, &[(OUT, bytes.len() as u32)], &[]);
        self.d.notify(queue as u64);
    }

    fn give(&mut self, nr: u32, bytes: &[u8]) -> usize {
        self.d.device.with(|c, q| c.receive(nr, bytes, q))
    }

    fn room(&mut self, nr: u32) -> usize {
        self.d.device.with(|c, _| c.room(nr))
    }

    /// Brings both ports up.
    fn up(&mut self) {
        self.say(!0, control::DEVICE_READY, 1);
        for nr in [0, 1] {
            self.say(nr, control::PORT_READY, 1);
            self.say(nr, control::PORT_OPEN, 1);
        }
        while self.hear().is_some() {}
    }
}

#[test]
fn saved_state_contract() {
    let peers = [Peer::new(usize::MAX), Peer::new(0)];
    Driver::contract(|| console(&peers));
}

#[test]
fn ports_are_announced_with_what_they_are() {
    let mut g = guest(F_MULTIPORT);
    assert_eq!(g.d.device.bar_read(4, 0x2004, 4), 3, "max_nr_ports");
    g.say(!0, control::DEVICE_READY, 1);
    assert_eq!(g.hear(), Some((0, 1, 1, String::new())));
    assert_eq!(g.hear(), Some((1, 1, 1, String::new())));
    g.say(1, control::PORT_READY, 1);
    g.say(0, control::PORT_READY, 1);
    // The last buffer is still there: it has the first message.
    g.d.device.service();
    let rest: Vec<_> = std::iter::from_fn(|| g.hear()).take(8).collect();
    assert!(rest.contains(&(1, 7, 1, "org.test".into())), "{rest:?}");
    assert!(rest.contains(&(0, 6, 1, String::new())), "a console is open: {rest:?}");
    g.d.device.with(|c, q| c.set_open(1, true, q));
    assert_eq!(g.hear(), Some((1, 6, 1, String::new())));
    g.d.device.with(|c, q| c.set_open(1, true, q));
    g.d.device.with(|c, q| c.set_open(1, false, q));
    let told: Vec<_> = std::iter::from_fn(|| g.hear()).take(8).collect();
    assert_eq!(told, [(1, 6, 0, String::new())]);
}

#[test]
fn one_port_without_multiport() {
    let mut g = guest(0);
    assert_eq!((g.room(0), g.room(1)), (4096, 0));
    g.output(1, b"hello");
    assert_eq!((g.peers[0].take(), g.d.used(1)), (b"hello".to_vec(), vec![(0, 0)]));
    assert_eq!(g.give(0, b"back"), 4);
    g.d.add(0, &[], &[(BUFFER, 2), (BUFFER + 0x100, 8)]);
    g.d.notify(0);
    assert_eq!((g.d.used(0), g.d.bytes(BUFFER, 2), g.d.bytes(BUFFER + 0x100, 2)), (vec![(0, 4)], b"ba".to_vec(), b"ck".to_vec()));
    g.say(0, control::DEVICE_READY, 1);
    assert_eq!(g.d.used(CONTROL_TX), [], "there is no control queue");
    g.d.device.bar_write(4, 0x2008, 4, u64::from(b'!'));
    assert_eq!(g.peers[0].take(), b"!");
}

#[test]
fn input_waits_for_a_program_that_has_the_port_open() {
    let mut g = guest(F_MULTIPORT);
    assert_eq!(g.give(1, b"early"), 0);
    g.up();
    assert_eq!((g.room(1), g.give(1, &[7; 5000])), (4096, 4096));
    assert_eq!(g.room(1), 0);
    let before = *g.peers[1].wanted.lock();
    g.d.add(4, &[], &[(BUFFER, 1000)]);
    g.d.notify(4);
    assert_eq!((g.d.used(4), g.room(1)), (vec![(0, 1000)], 1000));
    assert_eq!(*g.peers[1].wanted.lock(), before + 1);
    g.say(1, control::PORT_OPEN, 0);
    assert_eq!(g.room(1), 0);
    g.say(1, control::PORT_OPEN, 1);
    assert_eq!(g.room(1), 4096, "what nobody has read is gone");
}

#[test]
fn output_waits_for_the_peer_and_nothing_is_lost() {
    let mut g = guest(F_MULTIPORT);
    g.up();
    *g.peers[1].room.lock() = 1000;
    let data: Vec<u8> = (0..6000u32).map(|i| i as u8).collect();
    g.output(5, &data);
    assert_eq!((g.d.used(5), g.peers[1].got.lock().len()), (vec![], 1000));
    // Saved in the middle of it.
    let Guest { d, peers } = g;
    let mut g = Guest { d: d.moved_to(console(&peers)), peers };
    *g.peers[1].room.lock() = usize::MAX;
    g.d.device.service();
    assert_eq!((g.d.used(5), g.peers[1].take()), (vec![(0, 0)], data));
}

#[test]
fn much_output_goes_in_turns() {
    let mut g = guest(F_MULTIPORT);
    g.up();
    let before = *g.peers[1].wanted.lock();
    // Gibibytes, most of them not in RAM.
    g.d.add(5, &[(OUT, 200_000), (OUT, 1 << 31)], &[]);
    g.d.notify(5);
    assert_eq!(g.d.used(5), []);
    let one = g.peers[1].take().len();
    assert!(one > 0 && one <= 2 * 65536, "{one}");
    assert!(*g.peers[1].wanted.lock() > before, "the event loop is to go on with it");
    g.d.device.service();
    assert_eq!(g.peers[1].take().len(), 65536);
}

#[test]
fn a_port_that_is_saved_has_the_name_it_had() {
    let peers = [Peer::new(0), Peer::new(0)];
    let d = Driver::modern(console(&peers));
    let saved = vm_core::Device::save(&d.device);
    let other = Console::new(3, vec![PortConfig { nr: 0, console: true, name: "else".into(), sink: None }]);
    let mut e = Driver::with(other, PciOptions::default(), false);
    assert!(vm_core::Device::load(&mut e.device, &saved).is_err());
}

#[test]
fn hostile_control_messages_are_ignored() {
    let mut g = guest(F_MULTIPORT);
    for (id, event, value) in [(7, 3, 1), (!0, 6, 1), (0, 99, 0), (1, 5, 5)] {
        g.say(id, event, value);
    }
    for _ in 0..50 {
        g.say(0, control::DEVICE_READY, 1);
    }
    g.d.add(CONTROL_TX, &[(0x1000, 3)], &[]);
    g.d.notify(CONTROL_TX as u64);
    // Announced once, however often it was asked for.
    let told: Vec<_> = std::iter::from_fn(|| g.hear()).take(usize::from(SIZE)).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    // A buffer that is too small for a message gets its front.
    g.say(0, control::DEVICE_READY, 1);
    g.d.add(CONTROL_RX, &[], &[(BUFFER, 3)]);
    g.d.notify(CONTROL_RX as u64);
    assert_eq!(g.d.status() & 0x40, 0);
}
