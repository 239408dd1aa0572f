//! Virtio network device (virtio 1.2 §5.1): checksum and TSO offloads, mergeable buffers, control queue, on a host back end.

mod filter;
mod header;

use super::{Chain, F_VERSION_1, Kind, Model, Queues};
use crate::block::Segment;
use crate::net::{Family, Frame, MAX_FRAME, Mac, NetBackend, Takes};
use crate::pci::BusMaster;
use filter::Filter;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use vm_core::{Pa, dlog};

const F_CSUM: u64 = 1 << 0;
const F_GUEST_CSUM: u64 = 1 << 1;
const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
const F_MAC: u64 = 1 << 5;
const F_GUEST_TSO4: u64 = 1 << 7;
const F_GUEST_TSO6: u64 = 1 << 8;
const F_GUEST_ECN: u64 = 1 << 9;
const F_HOST_TSO4: u64 = 1 << 11;
const F_HOST_TSO6: u64 = 1 << 12;
const F_HOST_ECN: u64 = 1 << 13;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_STATUS: u64 = 1 << 16;
const F_CTRL_VQ: u64 = 1 << 17;
const F_CTRL_RX: u64 = 1 << 18;
const F_CTRL_VLAN: u64 = 1 << 19;
const F_CTRL_RX_EXTRA: u64 = 1 << 20;
const F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// What the driver takes in frames that it is given, and may change later.
const GUEST_OFFLOADS: u64 = F_GUEST_CSUM | F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN;

const RX: usize = 0;
const TX: usize = 1;
const CTRL: usize = 2;
const CTRL_QUEUE: u16 = 64;
/// Frames that are taken from the driver in one turn, so that the device's lock is free again soon.
const TURN: usize = 64;
/// status: VIRTIO_NET_S_LINK_UP.
const LINK_UP: u16 = 1;
/// Answers of the control queue.
const OK: u8 = 0;
const ERR: u8 = 1;

/// Size of a queue at most.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// How the device shows itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConfig {
    pub mac: Mac,
    /// Powers of two, 2..=`MAX_QUEUE_SIZE`.
    pub rx_queue: u16,
    pub tx_queue: u16,
}

#[derive(Serialize, Deserialize)]
struct State {
    filter: Filter,
    /// Bits of `GUEST_OFFLOADS`.
    offloads: u64,
    backend: Value,
}

/// The device.
pub struct Net {
    backend: Arc<dyn NetBackend>,
    config: NetConfig,
    filter: Filter,
    /// Features accepted; none before the driver is ready.
    features: u64,
    offloads: u64,
    /// Of a saved state, until `start` has been.
    loaded: Option<u64>,
}

/// What became of a frame for the driver.
enum Delivery {
    /// The driver has it, or never will.
    Done,
    /// More buffers have come meanwhile.
    Again,
    /// The driver will tell when it has more buffers.
    Later,
}

/// Bytes at the front of a list of buffers; fewer if there are fewer. `skip` bytes are left out.
fn gather(master: &BusMaster, list: &[Segment], skip: usize, most: usize) -> Vec<u8> {
    let total = list.iter().map(|s| s.len as usize).sum::<usize>();
    let mut bytes = vec![0; total.saturating_sub(skip).min(most)];
    let (mut skip, mut at) = (skip, 0);
    for s in list {
        let before = skip.min(s.len as usize);
        skip -= before;
        let n = (s.len as usize - before).min(bytes.len() - at);
        master.read(Pa(s.pa.wrapping_add(before as u64)), &mut bytes[at..at + n]);
        at += n;
    }
    bytes
}

fn total(list: &[Segment]) -> usize {
    list.iter().map(|s| s.len as usize).sum()
}

/// Writes pieces, one after the other, into a list of buffers from its byte `at` on.
struct Scatter<'a> {
    master: &'a BusMaster,
    list: std::slice::Iter<'a, Segment>,
    pa: u64,
    left: usize,
}

impl<'a> Scatter<'a> {
    fn new(master: &'a BusMaster, list: &'a [Segment]) -> Self {
        Self { master, list: list.iter(), pa: 0, left: 0 }
    }

    /// As much of `bytes` as fits; how much that was.
    fn put(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() {
            if self.left == 0 {
                let Some(s) = self.list.next() else { break };
                (self.pa, self.left) = (s.pa, s.len as usize);
                continue;
            }
            let n = self.left.min(bytes.len() - at);
            self.master.write(Pa(self.pa), &bytes[at..at + n]);
            (self.pa, self.left, at) = (self.pa.wrapping_add(n as u64), self.left - n, at + n);
        }
        at
    }
}

impl Net {
    pub fn new(backend: Arc<dyn NetBackend>, config: NetConfig) -> Self {
        let filter = Filter::new(config.mac);
        Self { backend, config, filter, features: 0, offloads: 0, loaded: None }
    }

    pub fn backend(&self) -> &Arc<dyn NetBackend> {
        &self.backend
    }

    /// The address that frames are filtered by now.
    pub fn mac(&self) -> Mac {
        self.filter.mac
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn header_len(&self) -> usize {
        if self.has(F_MRG_RXBUF | F_VERSION_1) { header::LONG } else { header::SHORT }
    }

    fn set_offloads(&mut self, offloads: u64) {
        self.offloads = offloads & GUEST_OFFLOADS & self.features;
        let has = |f| self.offloads & f != 0;
        let checksum = has(F_GUEST_CSUM);
        let takes = Takes { checksum, tso4: checksum && has(F_GUEST_TSO4), tso6: checksum && has(F_GUEST_TSO6) };
        self.backend.driver_takes(takes);
    }

    /// Frames of the driver's, as many as one turn takes and the back end has room for.
    fn transmit(&mut self, queues: &mut Queues) {
        let mut done = Vec::new();
        loop {
            if done.len() == TURN || self.backend.full() {
                // The rest another time.
                if !self.backend.full() {
                    self.backend.kick();
                }
                break;
            }
            let Some(chain) = queues.pop(TX) else {
                if queues.rearm(TX) {
                    continue;
                }
                break;
            };
            match self.frame(queues.master(), &chain) {
                Ok(Some(frame)) => self.backend.send(frame),
                Ok(None) => dlog!(GUEST_ERRORS, "virtio-net: a frame that cannot be sent"),
                Err(why) => return queues.give_up(why),
            }
            done.push((chain.head, 0));
        }
        queues.push_all(TX, &done);
    }

    /// The frame of a request; `None` if it is none that can be sent.
    fn frame(&self, master: &BusMaster, chain: &Chain) -> Result<Option<Frame>, &'static str> {
        let header = gather(master, &chain.readable, 0, header::SHORT);
        let Ok(header) = <&[u8; header::SHORT]>::try_from(&header[..]) else { return Err("a frame without header") };
        let len = total(&chain.readable).saturating_sub(self.header_len());
        if !(crate::net::ETH_HEADER..=MAX_FRAME).contains(&len) {
            return Ok(None);
        }
        let Some(offload) = header::parse(header) else { return Ok(None) };
        if !self.backend.offloads() && (offload.checksum.is_some() || offload.segments.is_some()) {
            return Ok(None);
        }
        let head = gather(master, &chain.readable, self.header_len(), MAX_FRAME);
        Ok(Some(Frame { offload, head, body: None }))
    }

    /// Frames for the driver, as long as it has room.
    fn receive(&mut self, queues: &mut Queues) {
        if !queues.works() {
            return;
        }
        while let Some(mut frame) = self.backend.next() {
            if !self.prepare(&mut frame) {
                continue;
            }
            match self.deliver(&frame, queues) {
                Delivery::Done => {}
                Delivery::Again => self.backend.put_back(frame),
                Delivery::Later => return self.backend.put_back(frame),
            }
        }
    }

    /// Brings a frame into a form that the driver takes; `false` if it does not want it.
    fn prepare(&self, frame: &mut Frame) -> bool {
        if frame.head.len() < 16 {
            *frame = Frame { offload: frame.offload, ..Frame::plain(std::mem::take(frame).into_bytes()) };
        }
        let tso = match frame.offload.segments {
            Some((Family::V4, _)) => self.offloads & F_GUEST_TSO4 != 0,
            Some((Family::V6, _)) => self.offloads & F_GUEST_TSO6 != 0,
            None => true,
        };
        let checksum = self.offloads & F_GUEST_CSUM != 0 || frame.finish_checksum();
        frame.offload.ecn &= self.offloads & F_GUEST_ECN != 0;
        tso && checksum && self.filter.wants(&frame.head, self.has(F_CTRL_VLAN))
    }

    /// Puts a frame into the driver's buffers.
    fn deliver(&self, frame: &Frame, queues: &mut Queues) -> Delivery {
        let need = self.header_len() + frame.len();
        let mut chains = Vec::new();
        let mut room = 0;
        while room < need && (chains.is_empty() || self.has(F_MRG_RXBUF)) {
            let Some(c) = queues.pop(RX) else { break };
            room += total(&c.writable);
            chains.push(c);
        }
        if room < need {
            // A driver need not add to a queue that is half full, as Linux does not.
            let hopeless = 2 * chains.len() >= queues.size(RX) || !chains.is_empty() && !self.has(F_MRG_RXBUF);
            // Told of what comes after those that were not enough.
            let more = queues.rearm(RX);
            queues.put_back(RX, chains.len());
            if hopeless {
                dlog!(GUEST_ERRORS, "virtio-net: no buffers for a frame of {} bytes", frame.len());
                return Delivery::Done;
            }
            return if more { Delivery::Again } else { Delivery::Later };
        }
        let header = header::emit(&frame.offload, chains.len() as u16);
        let pieces = [&header[..self.header_len()], &frame.head, frame.tail()];
        let (mut piece, mut at) = (0, 0);
        let mut done = Vec::new();
        let master = queues.master().clone();
        for c in &chains {
            let mut to = Scatter::new(&master, &c.writable);
            let mut written = 0;
            while piece < pieces.len() {
                let n = to.put(&pieces[piece][at..]);
                (written, at) = (written + n, at + n);
                if at < pieces[piece].len() {
                    break;
                }
                (piece, at) = (piece + 1, 0);
            }
            done.push((c.head, written as u32));
        }
        queues.push_all(RX, &done);
        Delivery::Done
    }

    fn control(&mut self, queues: &mut Queues) {
        // As many as the queue has places.
        for _ in 0..CTRL_QUEUE {
            let Some(chain) = queues.pop(CTRL) else {
                if queues.rearm(CTRL) {
                    continue;
                }
                return;
            };
            let command = gather(queues.master(), &chain.readable, 0, filter::MAX_COMMAND);
            let mut offloads = None;
            let done = self.filter.command(&command, &mut offloads);
            if let Some(o) = offloads {
                self.set_offloads(o);
            }
            let master = queues.master().clone();
            let answered = Scatter::new(&master, &chain.writable).put(&[if done { OK } else { ERR }]);
            if answered == 0 {
                return queues.give_up("a command without room for the answer");
            }
            queues.push(CTRL, chain.head, 1);
        }
        queues.rearm(CTRL);
    }
}

impl Model for Net {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-net", id: 1, transitional: 0x1000, class: 0x02_00_00 }
    }

    fn queues(&self) -> Vec<u16> {
        vec![self.config.rx_queue, self.config.tx_queue, CTRL_QUEUE]
    }

    fn features(&self) -> u64 {
        let always = F_MAC | F_MRG_RXBUF | F_STATUS | F_CTRL_VQ | F_CTRL_RX | F_CTRL_VLAN | F_CTRL_RX_EXTRA | F_CTRL_MAC_ADDR;
        let offloads = F_CSUM | F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN | F_CTRL_GUEST_OFFLOADS | GUEST_OFFLOADS;
        if self.backend.offloads() { always | offloads } else { always }
    }

    fn start(&mut self, features: u64) {
        self.features = features;
        let offloads = self.loaded.take().unwrap_or(GUEST_OFFLOADS);
        self.set_offloads(offloads);
    }

    /// struct virtio_net_config (§5.1.4): address, status, and one pair of queues.
    fn config(&self) -> Vec<u8> {
        let status = if self.backend.link() { LINK_UP } else { 0 };
        let mut c = self.filter.mac.to_vec();
        c.extend(status.to_le_bytes());
        c.extend(1u16.to_le_bytes());
        c
    }

    /// Legacy drivers set the address here (§5.1.4 "Legacy Interface").
    fn config_write(&mut self, offset: u64, data: &[u8]) {
        if self.has(F_VERSION_1) {
            return;
        }
        for (i, b) in (offset..).zip(data) {
            if let Some(m) = usize::try_from(i).ok().and_then(|i| self.filter.mac.get_mut(i)) {
                *m = *b;
            }
        }
    }

    fn kick(&mut self, index: usize, queues: &mut Queues) {
        match index {
            CTRL => self.control(queues),
            _ => self.backend.kick(),
        }
    }

    fn service(&mut self, queues: &mut Queues) {
        if self.backend.turn() {
            self.transmit(queues);
            self.receive(queues);
        }
    }

    fn reset(&mut self) {
        self.backend.reset();
        self.filter = Filter::new(self.config.mac);
        self.features = 0;
        self.loaded = None;
        self.set_offloads(0);
    }

    fn save(&self) -> Value {
        let state = State { filter: self.filter.clone(), offloads: self.offloads, backend: self.backend.save() };
        serde_json::to_value(state).expect("plain data with string keys")
    }

    fn load(&mut self, saved: &Value) -> Result<(), String> {
        let s = State::deserialize(saved).map_err(|e| e.to_string())?;
        if !s.filter.is_sound() || s.offloads & !GUEST_OFFLOADS != 0 {
            return Err("the filter or the offloads are none".into());
        }
        self.filter = s.filter;
        self.loaded = Some(s.offloads);
        self.backend.load(&s.backend);
        Ok(())
    }

    fn resume(&mut self, _: &mut Queues) {
        // A device that is not live has no offloads to come back to.
        self.loaded = None;
        self.backend.kick();
    }

    fn set_wake(&mut self, wake: Box<dyn Fn() + Send + Sync>) {
        self.backend.attach(wake);
    }
}

#[cfg(test)]
mod tests;
