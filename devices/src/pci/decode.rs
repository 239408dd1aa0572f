//! The ranges that a function's base address registers decode at the moment, shared with the bus.

use parking_lot::RwLock;
use std::sync::Arc;

/// One base address register that is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRange {
    /// Number of the register, 0..=5.
    pub bar: u32,
    /// I/O ports, not memory.
    pub io: bool,
    pub start: u64,
    /// Bytes or ports, a power of two.
    pub len: u64,
}

/// Changes while the guest runs: the function sets it, the bus looks at every access that nobody else takes.
#[derive(Default)]
pub struct Decoder(RwLock<Vec<BarRange>>);

impl Decoder {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn set(&self, ranges: Vec<BarRange>) {
        if *self.0.read() != ranges {
            *self.0.write() = ranges;
        }
    }

    /// Register and offset in its range that an access of `size` bytes reaches; it must lie in the range whole.
    pub fn find(&self, io: bool, at: u64, size: u8) -> Option<(u32, u64)> {
        let ranges = self.0.read();
        let hit = |r: &&BarRange| r.io == io && at >= r.start && at - r.start <= r.len.saturating_sub(size.into());
        ranges.iter().find(hit).map(|r| (r.bar, at - r.start))
    }
}
