//! Watching a vCPU from outside the guest: for traces, profiles, coverage.

use crate::addr::{Pa, Va};

/// A guest access to memory or to a device in memory, complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touch {
    /// Linear address.
    pub va: Va,
    /// Physical address of the first byte.
    pub pa: Pa,
    /// Bytes: 1, 2, 4, 8 or 16. They may cross a page.
    pub size: u8,
    pub write: bool,
    /// What was read, or is in memory now; zero-extended.
    pub value: u128,
}

/// Told of what a vCPU does, by its thread and in the order of execution. `C`: the CPU's state (`GuestCpu`). What it does not
/// care for it leaves as it is here.
pub trait Observer<C>: Send {
    /// A block of `insns` instructions begins at program counter `pc`. It may not be executed to its end.
    fn block(&mut self, _pc: u64, _insns: u32) {}

    /// The instruction at program counter `pc` is about to be executed, or to fault. A repeated one (x86: REP) is told
    /// again whenever it goes on after it has given way. `bytes` is empty where code lies outside RAM.
    fn insn(&mut self, _cpu: &C, _pc: u64, _bytes: &[u8]) {}

    /// An access has been done: by an instruction, element by element of a repeated one, or by the delivery of an event.
    /// Locked instructions read, then write. Page walks and instruction fetches are not told.
    fn access(&mut self, _touch: &Touch) {}
}
