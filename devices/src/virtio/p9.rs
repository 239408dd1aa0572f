//! Virtio 9P transport device: requests of the 9P protocol, which a back end answers (virtio 1.2 §5.12 reserves the id; layout as Linux
//! and QEMU have it: one queue, a mount tag in the configuration).

use super::{Kind, Model, Queues};
use crate::block::Segment;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use vm_core::Pa;

const F_MOUNT_TAG: u64 = 1 << 0;
const QUEUE: u16 = 128;
/// Size, type and tag of each message.
const HEADER: usize = 7;
/// Bytes of a message at most, either way.
pub const MAX_MESSAGE: usize = 512 << 10;
/// Rlerror, of 9P2000.L, with Linux's EIO: what became of a request is not known.
const RLERROR: u8 = 7;
const EIO: u32 = 5;

/// A request for the back end.
pub struct Request {
    pub id: u64,
    /// The whole message: `HEADER` bytes at least.
    pub message: Vec<u8>,
    /// Bytes that the answer may have.
    pub room: usize,
    pub done: Arc<Answers>,
}

/// A shared folder of the host's. Works on threads of its own, request after request.
pub trait Share: Send + Sync {
    fn submit(&self, request: Request);
    /// Drops what waits, and all that the guest has open. What is at work is finished first.
    fn abandon(&self);
    /// Waits until nothing is at work.
    fn drain(&self);
    /// What the guest has open. Nothing is at work.
    fn save(&self) -> Value;
    /// Takes what was saved; nothing has changed on an error.
    fn load(&self, saved: &Value) -> Result<(), String>;
}

/// Where the back end leaves its answers.
#[derive(Default)]
pub struct Answers {
    list: Mutex<Vec<(u64, Vec<u8>)>>,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Answers {
    /// Notes an answer. `kick` follows, without any lock that `Share`'s methods take.
    pub fn put(&self, id: u64, message: Vec<u8>) {
        self.list.lock().push((id, message));
    }

    /// Takes all answers, with the requests' numbers.
    pub fn take(&self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut *self.list.lock())
    }

    pub fn kick(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }
}

/// A request that the back end has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    head: u16,
    tag: u16,
    to: Vec<Segment>,
}

#[derive(Serialize, Deserialize)]
struct State {
    pending: Vec<Pending>,
    share: Value,
}

/// The device.
pub struct P9 {
    tag: Vec<u8>,
    share: Arc<dyn Share>,
    answers: Arc<Answers>,
    pending: BTreeMap<u64, Pending>,
    next_id: u64,
    /// From a saved state, to be answered with an error.
    lost: Vec<Pending>,
}

impl P9 {
    /// `tag` names the share for the guest's mount; at most 65,535 bytes of it are told.
    pub fn new(tag: &str, share: Arc<dyn Share>) -> Self {
        let tag = tag.bytes().take(u16::MAX.into()).collect();
        let (answers, pending, lost) = Default::default();
        Self { tag, share, answers, pending, next_id: 0, lost }
    }

    /// Begins the request of a chain. `false`: it is none.
    fn begin(&mut self, chain: super::Chain, queues: &Queues) -> bool {
        let total = |list: &[Segment]| list.iter().map(|s| s.len as usize).fold(0, usize::saturating_add);
        let (have, room) = (total(&chain.readable), total(&chain.writable).min(MAX_MESSAGE));
        let mut message = vec![0; have.min(HEADER)];
        gather(queues, &chain.readable, &mut message);
        let [a, b, c, d, _, t, u] = *message.as_slice() else { return false };
        let size = u32::from_le_bytes([a, b, c, d]) as usize;
        if !(HEADER..=MAX_MESSAGE.min(have)).contains(&size) || room < HEADER {
            return false;
        }
        message.resize(size, 0);
        gather(queues, &chain.readable, &mut message);
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        self.pending.insert(id, Pending { head: chain.head, tag: u16::from_le_bytes([t, u]), to: chain.writable });
        self.share.submit(Request { id, message, room, done: self.answers.clone() });
        true
    }
}

/// Reads the front of a list of buffers.
fn gather(queues: &Queues, list: &[Segment], bytes: &mut [u8]) {
    let mut at = 0;
    for s in list {
        let n = (bytes.len() - at).min(s.len as usize);
        queues.master().read(Pa(s.pa), &mut bytes[at..at + n]);
        at += n;
    }
}

fn answer(queues: &mut Queues, p: &Pending, message: &[u8]) {
    let mut left = message;
    for s in &p.to {
        let (now, later) = left.split_at(left.len().min(s.len as usize));
        queues.master().write(Pa(s.pa), now);
        left = later;
    }
    queues.push(0, p.head, (message.len() - left.len()) as u32);
}

impl Model for P9 {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-9p", id: 9, transitional: 0x1009, class: 0x00_02_00 }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE]
    }

    fn features(&self) -> u64 {
        F_MOUNT_TAG
    }

    /// Length of the tag, and the tag.
    fn config(&self) -> Vec<u8> {
        [&(self.tag.len() as u16).to_le_bytes()[..], &self.tag].concat()
    }

    fn kick(&mut self, index: usize, queues: &mut Queues) {
        // No more than the queue has places can be under way, so this ends.
        loop {
            while let Some(chain) = queues.pop(index) {
                if !self.begin(chain, queues) {
                    return queues.give_up("a request that is no 9P message, or has no room for an answer");
                }
            }
            if !queues.rearm(index) {
                return;
            }
        }
    }

    fn service(&mut self, queues: &mut Queues) {
        let list = self.answers.take();
        for (id, message) in list {
            if let Some(p) = self.pending.remove(&id) {
                answer(queues, &p, &message);
            }
        }
    }

    fn reset(&mut self) {
        self.share.abandon();
        self.answers.list.lock().clear();
        self.pending.clear();
        self.lost.clear();
    }

    fn save(&self) -> Value {
        let pending = self.pending.values().chain(&self.lost).cloned().collect();
        serde_json::to_value(State { pending, share: self.share.save() }).expect("plain data with string keys")
    }

    fn load(&mut self, saved: &Value) -> Result<(), String> {
        let s = State::deserialize(saved).map_err(|e| e.to_string())?;
        if s.pending.len() > QUEUE.into() || s.pending.iter().any(|p| p.head >= QUEUE || p.to.len() > super::queue::MAX_CHAIN) {
            return Err("a request under way is none".into());
        }
        self.share.load(&s.share)?;
        self.lost = s.pending;
        Ok(())
    }

    fn resume(&mut self, queues: &mut Queues) {
        for p in std::mem::take(&mut self.lost) {
            let mut m = 11u32.to_le_bytes().to_vec();
            m.push(RLERROR);
            m.extend(p.tag.to_le_bytes());
            m.extend(EIO.to_le_bytes());
            answer(queues, &p, &m);
        }
    }

    fn set_wake(&mut self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.answers.wake.set(wake);
    }
}

#[cfg(test)]
mod tests {
    use super::super::testkit::Driver;
    use super::*;
    use crate::pci::PciFunction;

    /// Answers with the message and an "!" when told to.
    #[derive(Default)]
    struct Echo {
        waiting: Mutex<Vec<Request>>,
        state: Mutex<u64>,
    }

    impl Share for Echo {
        fn submit(&self, request: Request) {
            self.waiting.lock().push(request);
        }
        fn abandon(&self) {
            self.waiting.lock().clear();
            *self.state.lock() = 0;
        }
        fn drain(&self) {}
        fn save(&self) -> Value {
            (*self.state.lock()).into()
        }
        fn load(&self, saved: &Value) -> Result<(), String> {
            *self.state.lock() = saved.as_u64().ok_or("no number")?;
            Ok(())
        }
    }

    impl Echo {
        fn run(&self) -> usize {
            let list = std::mem::take(&mut *self.waiting.lock());
            let n = list.len();
            for mut r in list {
                r.message.push(b'!');
                r.message.truncate(r.room);
                r.done.put(r.id, r.message);
            }
            n
        }
    }

    fn driver() -> (Driver<P9>, Arc<Echo>) {
        let echo = Arc::new(Echo::default());
        let mut d = Driver::modern(P9::new("folder", echo.clone()));
        d.start(0);
        (d, echo)
    }

    /// A message of `size` bytes at 8000h, its front in another buffer.
    fn message(d: &mut Driver<P9>, size: u32, room: &[(u64, u32)]) {
        d.ram.write_uint(0x8000, 4, size.into());
        d.ram.write(0x8004, &[100, 0x34, 0x12, 7, 8, 9]);
        d.add(0, &[(0x8000, 5), (0x8005, 5)], room);
        d.notify(0);
    }

    #[test]
    fn saved_state_contract() {
        Driver::contract(|| P9::new("folder", Arc::new(Echo::default())));
    }

    #[test]
    fn requests_are_answered_when_the_back_end_is_done() {
        let (mut d, echo) = driver();
        assert_eq!(
            (d.device.bar_read(4, 0x2000, 2), d.device.bar_read(4, 0x2002, 4)),
            (6, u64::from(u32::from_le_bytes(*b"fold")))
        );
        message(&mut d, 9, &[(0x9000, 4), (0xa000, 100)]);
        assert_eq!((d.used(0), echo.run()), (vec![], 1));
        d.device.service();
        assert_eq!(
            (d.used(0), d.bytes(0x9000, 4), d.bytes(0xa000, 6)),
            (vec![(0, 10)], vec![9, 0, 0, 0], vec![100, 0x34, 0x12, 7, 8, b'!'])
        );
        message(&mut d, 10, &[(0x9000, 8)]);
        echo.run();
        d.device.service();
        assert_eq!(d.used(0)[0].1, 8, "no more than there is room for");
    }

    #[test]
    fn messages_that_are_none_need_a_reset() {
        for size in [0, 6, 11, u32::MAX] {
            let (mut d, echo) = driver();
            message(&mut d, size, &[(0x9000, 100)]);
            assert_eq!((d.status() & 0x40, echo.run()), (0x40, 0), "{size}");
        }
        let (mut d, _) = driver();
        message(&mut d, 10, &[(0x9000, 6)]);
        assert_eq!(d.status() & 0x40, 0x40, "no room for an answer");
    }

    #[test]
    fn a_reset_forgets_requests_and_a_saved_one_fails() {
        let (mut d, echo) = driver();
        message(&mut d, 10, &[(0x9000, 100)]);
        *echo.state.lock() = 5;
        let other = Arc::new(Echo::default());
        let mut d = d.moved_to(P9::new("folder", other.clone()));
        assert_eq!((*other.state.lock(), d.used(0)), (5, vec![(0, 11)]));
        assert_eq!(d.bytes(0x9000, 11), [11, 0, 0, 0, 7, 0x34, 0x12, 5, 0, 0, 0]);
        message(&mut d, 10, &[(0x9000, 100)]);
        d.common(0x14, 1, 0);
        assert_eq!((other.run(), *other.state.lock()), (0, 0));
    }
}
