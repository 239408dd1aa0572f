//! Host character back ends: what a serial port or the monitor talks to outside the guest.
//!
//! Output: each back end buffers at most `output::BUFFER` bytes. When that is full the writer (a vCPU) waits up to
//! `output::STALL_LIMIT` for the peer; after one such stall output is dropped, and counted, until the peer reads again.
//! Without a peer output is dropped. Input: no more is read than the front end has room for.

mod backend;
pub mod mux;
mod open;
mod output;
mod spec;
pub mod term;

pub use backend::{Chardev, OpenError};
pub use mux::{Mux, MuxPort};
pub use spec::Kind;

use devices::chr::CharInput;
use parking_lot::Mutex;
use std::sync::{Arc, Weak};

/// What happens on a back end beside data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer has connected, or the mux turned to this front end.
    Opened,
    Closed,
    Break,
    /// The peer has taken output that had to wait.
    Drained,
}

/// Who gets the input of a back end. Runs on the event loop's thread, with no lock of the back end held.
pub trait Front: Send + Sync {
    /// Bytes that `receive` would take now.
    fn room(&self) -> usize;
    /// Takes bytes from the front of `bytes`, returns how many.
    fn receive(&self, bytes: &[u8]) -> usize;
    fn event(&self, event: Event);
    /// Passes on what it holds for others; called before every wait of the event loop.
    fn pump(&self);
}

/// A device as front end.
pub struct DeviceFront<D>(Weak<Mutex<D>>);

impl<D: CharInput> DeviceFront<D> {
    pub fn new(cell: &Arc<Mutex<D>>) -> Arc<Self> {
        Arc::new(Self(Arc::downgrade(cell)))
    }
}

impl<D: CharInput> Front for DeviceFront<D> {
    fn room(&self) -> usize {
        self.0.upgrade().map_or(0, |d| d.lock().room())
    }

    fn receive(&self, bytes: &[u8]) -> usize {
        self.0.upgrade().map_or(0, |d| d.lock().receive(bytes))
    }

    fn event(&self, event: Event) {
        if let (Event::Break, Some(d)) = (event, self.0.upgrade()) {
            d.lock().receive_break();
        }
    }

    fn pump(&self) {}
}

#[cfg(test)]
mod tests;
