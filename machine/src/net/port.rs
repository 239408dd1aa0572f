//! Where a network device and the thread of its back end meet: frames both ways, and whose turn it is.

use super::dump::Dump;
use devices::net::{Frame, NetBackend, Takes};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use serde_json::Value;
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Frames that wait for the device, or for the back end; beyond them they are dropped, or stay where they are.
pub const MOST: usize = 256;

/// What the back end has to say about moves of the machine.
pub trait Moves: Send + Sync {
    fn save(&self) -> Value;
    fn load(&self, saved: &Value);
}

#[derive(Default)]
struct Frames {
    from_guest: VecDeque<Frame>,
    to_guest: VecDeque<Frame>,
    takes: Takes,
}

/// See the module.
pub struct Port {
    offloads: bool,
    frames: Mutex<Frames>,
    /// The device has asked for a turn.
    kicked: AtomicBool,
    turn: AtomicBool,
    /// The machine runs.
    running: AtomicBool,
    link: AtomicBool,
    closed: AtomicBool,
    waker: OwnedFd,
    device: OnceLock<Box<dyn Fn() + Send + Sync>>,
    moves: OnceLock<Arc<dyn Moves>>,
    dumps: Mutex<Vec<Dump>>,
}

impl Port {
    /// `offloads`: frames may come with checksums and segments to be done.
    pub fn new(offloads: bool) -> io::Result<Self> {
        let waker = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let (frames, kicked, turn, closed, device, moves, dumps) = Default::default();
        // Until it is said that the machine runs.
        let (running, link) = (AtomicBool::new(false), AtomicBool::new(true));
        Ok(Self { offloads, frames, kicked, turn, running, link, closed, waker, device, moves, dumps })
    }

    pub fn set_moves(&self, moves: Arc<dyn Moves>) {
        let _ = self.moves.set(moves);
    }

    pub fn add_dump(&self, dump: Dump) {
        self.dumps.lock().push(dump);
    }

    /// Becomes readable when the thread has something to do.
    pub fn waker(&self) -> &OwnedFd {
        &self.waker
    }

    /// Wakes the thread.
    pub fn wake(&self) {
        let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
    }

    /// Forgets wakes; for the thread, before it looks what there is to do.
    pub fn quiet(&self) {
        let mut b = [0; 8];
        let _ = rustix::io::read(&self.waker, &mut b);
    }

    /// The thread is to end.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.wake();
    }

    pub fn closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether frames may move: the thread must not touch a machine that stands still.
    pub fn set_running(&self, on: bool) {
        self.running.store(on, Ordering::SeqCst);
        if on {
            self.kick();
        }
    }

    pub fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Whether the guest's frames wait for the back end.
    pub fn has_frames(&self) -> bool {
        !self.frames.lock().from_guest.is_empty()
    }

    pub fn set_link(&self, up: bool) {
        self.link.store(up, Ordering::SeqCst);
    }

    pub fn takes(&self) -> Takes {
        self.frames.lock().takes
    }

    /// Gives the device its turn if it wants one, or must have one because there is something new for it.
    pub fn serve(&self, new: bool) {
        let asked = self.kicked.swap(false, Ordering::SeqCst);
        if (asked || new)
            && self.running.load(Ordering::SeqCst)
            && let Some(device) = self.device.get()
        {
            self.turn.store(true, Ordering::SeqCst);
            device();
        }
    }

    /// Frames of the guest's.
    pub fn take(&self) -> VecDeque<Frame> {
        std::mem::take(&mut self.frames.lock().from_guest)
    }

    /// Frames that may be given before some are dropped.
    pub fn room(&self) -> usize {
        MOST.saturating_sub(self.frames.lock().to_guest.len())
    }

    /// Frames for the guest.
    pub fn give(&self, list: &mut VecDeque<Frame>) {
        let up = self.link.load(Ordering::SeqCst);
        let mut dumps = self.dumps.lock();
        if !up {
            return list.clear();
        }
        list.iter().for_each(|f| dumps.iter_mut().for_each(|d| d.put(f)));
        let mut frames = self.frames.lock();
        // What is not a connection's own business to bound is bounded here.
        while frames.to_guest.len() < 4 * MOST
            && let Some(f) = list.pop_front()
        {
            frames.to_guest.push_back(f);
        }
        list.clear();
    }
}

impl NetBackend for Port {
    fn offloads(&self) -> bool {
        self.offloads
    }

    fn link(&self) -> bool {
        self.link.load(Ordering::SeqCst)
    }

    fn driver_takes(&self, what: Takes) {
        self.frames.lock().takes = what;
    }

    fn kick(&self) {
        if !self.kicked.swap(true, Ordering::SeqCst) {
            self.wake();
        }
    }

    fn turn(&self) -> bool {
        self.turn.swap(false, Ordering::SeqCst) && self.running.load(Ordering::SeqCst)
    }

    fn full(&self) -> bool {
        self.frames.lock().from_guest.len() >= MOST
    }

    fn send(&self, frame: Frame) {
        self.dumps.lock().iter_mut().for_each(|d| d.put(&frame));
        if self.link() {
            self.frames.lock().from_guest.push_back(frame);
        }
    }

    fn next(&self) -> Option<Frame> {
        self.frames.lock().to_guest.pop_front()
    }

    fn put_back(&self, frame: Frame) {
        self.frames.lock().to_guest.push_front(frame);
    }

    fn attach(&self, device: Box<dyn Fn() + Send + Sync>) {
        let _ = self.device.set(device);
    }

    fn reset(&self) {
        let mut f = self.frames.lock();
        f.from_guest.clear();
        f.to_guest.clear();
    }

    fn save(&self) -> Value {
        self.moves.get().map_or(Value::Null, |m| m.save())
    }

    fn load(&self, saved: &Value) {
        if let Some(m) = self.moves.get() {
            m.load(saved);
        }
    }
}
