//! A back end in memory for tests, and one that is not there.

use super::{Frame, NetBackend, Takes};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Keeps what the guest sends, and has what the test puts into it.
pub struct MemoryNet {
    pub offloads: bool,
    pub sent: Mutex<Vec<Frame>>,
    pub waiting: Mutex<VecDeque<Frame>>,
    pub takes: Mutex<Takes>,
    pub kicks: AtomicUsize,
    pub turn: AtomicBool,
    pub full: AtomicBool,
}

impl MemoryNet {
    pub fn new(offloads: bool) -> Arc<Self> {
        let (sent, waiting, takes, kicks, turn, full) = Default::default();
        Arc::new(Self { offloads, sent, waiting, takes, kicks, turn, full })
    }

    pub fn take_sent(&self) -> Vec<Frame> {
        std::mem::take(&mut self.sent.lock())
    }
}

impl NetBackend for MemoryNet {
    fn offloads(&self) -> bool {
        self.offloads
    }
    fn link(&self) -> bool {
        true
    }
    fn driver_takes(&self, what: Takes) {
        *self.takes.lock() = what;
    }
    fn kick(&self) {
        self.kicks.fetch_add(1, Ordering::SeqCst);
    }
    fn turn(&self) -> bool {
        self.turn.swap(false, Ordering::SeqCst)
    }
    fn full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }
    fn send(&self, frame: Frame) {
        self.sent.lock().push(frame);
    }
    fn next(&self) -> Option<Frame> {
        self.waiting.lock().pop_front()
    }
    fn put_back(&self, frame: Frame) {
        self.waiting.lock().push_front(frame);
    }
    fn attach(&self, _: Box<dyn Fn() + Send + Sync>) {}
    fn reset(&self) {}
    fn save(&self) -> Value {
        json!(null)
    }
    fn load(&self, _: &Value) {}
}
