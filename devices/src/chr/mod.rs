//! Character devices, and the two traits through which they meet a host character back end.

pub mod debugcon;
pub mod uart16550;

/// Output side of a host back end. Called with the device's lock held: it must not call back into the device.
pub trait CharSink: Send + Sync {
    /// Takes all of `bytes`. Buffers a bounded amount; what happens beyond it (loss, a short wait) is the sink's matter.
    fn write(&self, bytes: &[u8]);
    /// Bytes that `write` takes now without a wait and without loss. After less than were wanted the device is told when there is more.
    fn room(&self) -> usize {
        usize::MAX
    }
    /// The device has room for input again after `CharInput::room` was 0.
    fn input_wanted(&self);
}

/// Input side of a device, driven by the machine's event loop with the device locked.
pub trait CharInput: Send {
    /// Bytes that `receive` would take now.
    fn room(&self) -> usize {
        usize::MAX
    }
    /// Takes bytes from the front of `bytes` and returns how many; the rest is the caller's to offer again.
    fn receive(&mut self, bytes: &[u8]) -> usize;
    /// A break condition on the line.
    fn receive_break(&mut self);
}

/// A sink that drops everything (`null`, a device without a back end).
pub struct NullSink;

impl CharSink for NullSink {
    fn write(&self, _: &[u8]) {}
    fn input_wanted(&self) {}
}
