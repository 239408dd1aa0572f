//! Tests of the virtio network device, through its PCI registers: frames both ways, offloads, filters, hostile drivers, saved state.

use super::*;
use crate::net::testkit::MemoryNet;
use crate::net::{Body, Offload, checksum};
use crate::virtio::testkit::{Driver, RAM, SIZE};
use crate::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, PciOptions};
use std::sync::atomic::Ordering;
use vm_core::Device;
use vm_core::testing::Rng;

const MAC: Mac = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const AT: u64 = 0x1_0000;
const ROOM: u64 = 0x2_0000;

fn config() -> NetConfig {
    NetConfig { mac: MAC, rx_queue: 256, tx_queue: 256 }
}

fn driver(features: u64) -> (Driver<Net>, Arc<MemoryNet>) {
    driver_of(config(), features)
}

fn driver_of(config: NetConfig, features: u64) -> (Driver<Net>, Arc<MemoryNet>) {
    let net = MemoryNet::new(true);
    let mut d = Driver::modern(Net::new(net.clone(), config));
    d.start(features);
    (d, net)
}

/// As the back end's thread.
fn turn(d: &mut Driver<Net>, net: &MemoryNet) {
    net.turn.store(true, Ordering::SeqCst);
    d.device.service();
}

fn frame(to: Mac, len: usize) -> Vec<u8> {
    let mut f = to.to_vec();
    f.extend((6..len).map(|i| (i * 13) as u8));
    f
}

/// Sends what is at `AT`, in two buffers after a header.
fn send(d: &mut Driver<Net>, header: &[u8], bytes: &[u8]) {
    d.ram.write(AT, header);
    d.ram.write(AT + 0x100, bytes);
    let half = bytes.len() as u32 / 2;
    d.add(TX, &[(AT, header.len() as u32), (AT + 0x100, half), (AT + 0x100 + u64::from(half), bytes.len() as u32 - half)], &[]);
    d.notify(TX as u64);
}

#[test]
fn saved_state_contract() {
    Driver::contract(|| Net::new(MemoryNet::new(true), config()));
}

#[test]
fn frames_go_out_in_the_back_ends_turn() {
    let (mut d, net) = driver(F_CSUM | F_HOST_TSO4);
    let f = frame([1; 6], 61);
    send(&mut d, &[0; 12], &f);
    assert_eq!((net.take_sent(), d.used(TX)), (vec![], vec![]), "not on the driver's thread");
    assert_ne!(net.kicks.load(Ordering::SeqCst), 0);
    turn(&mut d, &net);
    assert_eq!((net.take_sent(), d.used(TX)), (vec![Frame::plain(f.clone())], vec![(0, 0)]));
    let header = header::emit(&Offload { checksum: Some((34, 16)), segments: Some((Family::V4, 7)), ecn: false, headers: 54 }, 0);
    send(&mut d, &header, &f);
    turn(&mut d, &net);
    let sent = net.take_sent();
    assert_eq!((sent[0].offload.segments, sent[0].offload.checksum, &sent[0].head), (Some((Family::V4, 7)), Some((34, 16)), &f));
    // No room in the back end: the driver waits.
    net.full.store(true, Ordering::SeqCst);
    send(&mut d, &[0; 12], &f);
    turn(&mut d, &net);
    assert_eq!((net.take_sent(), d.used(TX).len()), (vec![], 1));
    net.full.store(false, Ordering::SeqCst);
    turn(&mut d, &net);
    assert_eq!((net.take_sent().len(), d.used(TX).len()), (1, 1));
}

#[test]
fn what_cannot_be_sent_is_dropped_and_given_back() {
    let (mut d, net) = driver(F_CSUM);
    let mut bad_kind = [0; 12];
    bad_kind[1] = 3;
    send(&mut d, &bad_kind, &frame(MAC, 60));
    turn(&mut d, &net);
    send(&mut d, &[0; 12], &frame(MAC, 8));
    turn(&mut d, &net);
    d.add(TX, &[(AT, 12), (0, 0x1_0000), (0, 0x1_0000)], &[]);
    turn(&mut d, &net);
    assert_eq!((net.take_sent().len(), d.used(TX).len(), d.status()), (0, 3, 0xf));
    d.add(TX, &[(AT, 9)], &[]);
    turn(&mut d, &net);
    assert_eq!(d.status(), 0x4f, "a frame without header");
}

#[test]
fn frames_come_in_whole_buffers_or_are_spread() {
    let f = frame(MAC, 300);
    let (mut d, net) = driver(F_MRG_RXBUF);
    net.waiting
        .lock()
        .push_back(Frame { body: Some(Body::new(Arc::new(f[100..].to_vec()), 0, 200)), ..Frame::plain(f[..100].to_vec()) });
    d.add(RX, &[], &[(ROOM, 100)]);
    d.add(RX, &[], &[(ROOM + 0x200, 50), (ROOM + 0x300, 50)]);
    turn(&mut d, &net);
    assert_eq!((d.used(RX), net.waiting.lock().len()), (vec![], 1), "too few buffers: the frame waits, and so do they");
    d.add(RX, &[], &[(ROOM + 0x400, 200)]);
    turn(&mut d, &net);
    assert_eq!(d.used(RX), [(0, 100), (1, 100), (3, 112)]);
    let got = [d.bytes(ROOM, 100), d.bytes(ROOM + 0x200, 50), d.bytes(ROOM + 0x300, 50), d.bytes(ROOM + 0x400, 112)].concat();
    assert_eq!((&got[..12], &got[12..]), (&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0][..], &f[..]));

    let (mut d, net) = driver(0);
    net.waiting.lock().extend([Frame::plain(f.clone()), Frame::plain(frame(MAC, 60))]);
    d.add(RX, &[], &[(ROOM, 200)]);
    turn(&mut d, &net);
    assert_eq!(d.used(RX), [(0, 72)], "the first has no room, and never will");
}

/// Linux adds buffers to a queue that is less than half full, and not before: who waits for more then waits for ever.
#[test]
fn a_frame_that_half_a_queue_cannot_hold_is_not_waited_for() {
    let (mut d, net) = driver_of(NetConfig { rx_queue: 4, ..config() }, F_MRG_RXBUF);
    net.waiting.lock().extend([Frame::plain(frame(MAC, 300)), Frame::plain(frame(MAC, 60))]);
    d.add(RX, &[], &[(ROOM, 100)]);
    turn(&mut d, &net);
    assert_eq!((d.used(RX), net.waiting.lock().len()), (vec![], 2), "less than half: more will come");
    d.add(RX, &[], &[(ROOM + 0x200, 100)]);
    turn(&mut d, &net);
    assert_eq!(d.used(RX), [(0, 72)]);
    assert!(net.waiting.lock().is_empty());
}

#[test]
fn legacy_headers_are_shorter() {
    let net = MemoryNet::new(true);
    let mut d = Driver::with(Net::new(net.clone(), config()), PciOptions::default(), true);
    d.start(0);
    let f = frame(MAC, 60);
    send(&mut d, &[0; 10], &f);
    net.waiting.lock().push_back(Frame::plain(f.clone()));
    d.add(RX, &[], &[(ROOM, 70)]);
    turn(&mut d, &net);
    assert_eq!((net.take_sent(), d.used(RX), d.bytes(ROOM + 10, 60)), (vec![Frame::plain(f.clone())], vec![(0, 70)], f));
    d.device.bar_write(0, 20, 1, 0x66);
    assert_eq!(d.device.model().mac()[0], 0x66);
}

use crate::pci::PciFunction;

#[test]
fn checksums_and_segments_only_go_to_drivers_that_take_them() {
    let partial = || Frame { offload: Offload { checksum: Some((14, 2)), ..Offload::default() }, ..Frame::plain(frame(MAC, 60)) };
    for features in [0, F_GUEST_CSUM] {
        let (mut d, net) = driver(features);
        assert_eq!(net.takes.lock().checksum, features != 0);
        net.waiting.lock().push_back(partial());
        d.add(RX, &[], &[(ROOM, 100)]);
        turn(&mut d, &net);
        let got = d.bytes(ROOM, 72);
        assert_eq!(got[0], u8::from(features != 0));
        let mut want = partial();
        if features == 0 {
            assert!(want.finish_checksum());
            assert_eq!(checksum::finish(checksum::sum(&got[26..])).to_be_bytes(), partial().head[16..18]);
        }
        assert_eq!(got[12..], want.head);
    }
    let large = || Frame { offload: Offload { segments: Some((Family::V4, 10)), ..partial().offload }, ..partial() };
    for (features, n) in [(F_GUEST_CSUM, 0), (F_GUEST_CSUM | F_GUEST_TSO6, 0), (F_GUEST_CSUM | F_GUEST_TSO4, 1)] {
        let (mut d, net) = driver(features);
        net.waiting.lock().push_back(large());
        d.add(RX, &[], &[(ROOM, 100)]);
        turn(&mut d, &net);
        assert_eq!(d.used(RX).len(), n, "{features:#x}");
    }
    // Without offloads in the back end none are offered, nor taken.
    let net = MemoryNet::new(false);
    let mut d = Driver::modern(Net::new(net.clone(), config()));
    d.start(0);
    assert_eq!(d.device.bar_read(4, 4, 4) & (F_CSUM | F_HOST_TSO4 | GUEST_OFFLOADS), 0);
    send(&mut d, &header::emit(&partial().offload, 0), &frame(MAC, 60));
    turn(&mut d, &net);
    assert_eq!((net.take_sent(), d.used(TX).len()), (vec![], 1));
}

/// A command to the control queue; the answer.
fn command(d: &mut Driver<Net>, bytes: &[u8]) -> u8 {
    d.ram.write(AT, bytes);
    d.ram.write(AT + 0x8000, &[0xee]);
    d.add(CTRL, &[(AT, bytes.len() as u32)], &[(AT + 0x8000, 1)]);
    d.notify(CTRL as u64);
    d.bytes(AT + 0x8000, 1)[0]
}

#[test]
fn drivers_say_which_frames_they_want() {
    let (mut d, net) = driver(F_CTRL_VQ | F_CTRL_RX | F_CTRL_VLAN | F_GUEST_CSUM | F_GUEST_TSO4);
    let wanted = |d: &mut Driver<Net>, f: Vec<u8>| {
        net.waiting.lock().push_back(Frame::plain(f));
        d.add(RX, &[], &[(ROOM, 200)]);
        turn(d, &net);
        // A buffer that is left over is used up.
        if d.used(RX).is_empty() {
            net.waiting.lock().push_back(Frame::plain(frame(d.device.model().mac(), 60)));
            turn(d, &net);
            assert_eq!(d.used(RX).len(), 1);
            return false;
        }
        true
    };
    let other = [2, 0, 0, 0, 0, 9];
    assert!(wanted(&mut d, frame(other, 60)));
    assert_eq!(command(&mut d, &[0, 0, 0]), OK);
    assert!(!wanted(&mut d, frame(other, 60)) && wanted(&mut d, frame(MAC, 60)) && wanted(&mut d, frame([0xff; 6], 60)));
    assert_eq!(command(&mut d, &[1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0]), OK);
    assert!(wanted(&mut d, frame(other, 60)) && !wanted(&mut d, frame([0x33; 6], 60)));
    assert_eq!(command(&mut d, &[0, 1, 1]), OK);
    assert!(wanted(&mut d, frame([0x33; 6], 60)));
    assert_eq!(command(&mut d, &[0, 5, 1]), OK);
    assert!(!wanted(&mut d, frame([0xff; 6], 60)));
    assert_eq!(command(&mut d, &[1, 1, 2, 0, 0, 0, 0, 8]), OK);
    assert_eq!(d.device.model().mac(), [2, 0, 0, 0, 0, 8]);
    assert!(!wanted(&mut d, frame(MAC, 60)));
    let tagged = [&[2, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0x81, 0, 0x20, 5][..], &[0; 50]].concat();
    assert!(!wanted(&mut d, tagged.clone()));
    assert_eq!(command(&mut d, &[2, 0, 5, 0]), OK);
    assert!(wanted(&mut d, tagged));
    assert_eq!(command(&mut d, &[5, 0, 2, 0, 0, 0, 0, 0, 0, 0]), OK);
    assert_eq!(*net.takes.lock(), Takes { checksum: true, tso4: false, tso6: false });
    for bad in [&[0, 0][..], &[9, 9, 9], &[1, 1, 0], &[1, 0, 255, 255, 255, 255], &[2, 0, 0, 0x10], &[], &[5, 0, 1]] {
        assert_eq!(command(&mut d, bad), ERR, "{bad:?}");
    }
    // All of it moves along.
    let takes = *net.takes.lock();
    let second = MemoryNet::new(true);
    let e = d.moved_to(Net::new(second.clone(), config()));
    assert_eq!((e.device.model().mac(), *second.takes.lock()), ([2, 0, 0, 0, 0, 8], takes));
}

#[test]
fn forged_states_are_refused() {
    let (mut d, _) = driver(F_CTRL_VQ);
    let good = d.device.save();
    for (path, v) in [
        ("/virtio/model/filter/mac", vec![0; 5].into()),
        ("/virtio/model/filter/vlans", vec![4096].into()),
        ("/virtio/model/filter/unicast", vec![vec![0; 6]; 65].into()),
        ("/virtio/model/offloads", (!0u64).into()),
        ("/virtio/model", serde_json::Value::Null),
    ] {
        let mut s = good.clone();
        *s.data.pointer_mut(path).expect(path) = v;
        assert!(d.device.load(&s).is_err(), "{path}");
    }
    assert!(d.device.load(&good).is_ok());
}

/// Rings and descriptors of random content, in memory that the driver changes as it likes.
#[test]
fn random_rings_do_no_harm() {
    for seed in 0..60 {
        let mut r = Rng(seed);
        let some =
            r.next_u64() & (F_MRG_RXBUF | F_GUEST_CSUM | F_GUEST_TSO4 | F_CTRL_VQ | F_EVENT_IDX | F_INDIRECT_DESC | F_CSUM);
        let (mut d, mut net) = driver(some);
        for _ in 0..300 {
            let pa = |r: &mut Rng| if r.one_in(8) { r.next_u64() } else { r.below(RAM) };
            let (queue, index) = (r.below(3), r.below(SIZE.into()) as u16);
            let len = if r.one_in(10) { r.next_u64() as u32 } else { r.pick(&[16, 1, 12, 0, 1500, 70_000]) };
            let (at, flags, next) = (pa(&mut r), r.below(8) as u16, r.below(SIZE as u64 + 1) as u16);
            d.descriptor(queue as usize, index, at, len, flags, next);
            if r.one_in(4) {
                let bytes = r.next_u64().to_le_bytes();
                d.ram.write(r.below(RAM - 8), &bytes);
            }
            if r.one_in(5) {
                let f = frame(MAC, 1 + r.below(3000) as usize);
                let checksum = r.one_in(2).then(|| (r.next_u64() as u16, r.below(40) as u16));
                net.waiting.lock().push_back(Frame { offload: Offload { checksum, ..Offload::default() }, ..Frame::plain(f) });
            }
            if r.one_in(3) {
                d.offer(queue as usize, index);
                d.notify(queue);
                turn(&mut d, &net);
            }
            assert!(net.take_sent().iter().all(|f| f.len() <= MAX_FRAME));
            if d.status() & 0x40 != 0 {
                d.common(0x14, 1, 0);
                (d, net) = driver(some);
            }
        }
    }
}
