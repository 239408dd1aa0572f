//! What a guest architecture supplies to any engine.

use crate::block::Block;
use crate::layout::{HelperDesc, StateLayout};

/// Everything that a translation depends on: where its bytes lie and the mode. The virtual address is no part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey {
    /// Offset in guest RAM of the first byte.
    pub phys: u64,
    /// `GuestCpu::mode` bits; all that a translator may read of the CPU.
    pub mode: u64,
}

/// Source bytes of a block.
pub trait CodeFetch {
    type Fault;
    /// The page that holds the first byte.
    fn page(&self) -> &[u8; 4096];
    /// The virtually next page; asked for only if the first instruction straddles the boundary.
    fn next_page(&mut self) -> Result<&[u8; 4096], Self::Fault>;
    /// What `StateLayout::guessed` will probably hold where the block begins. Translations may rely on it behind a `LeaveIf`.
    fn guess(&self) -> Option<u32> {
        None
    }
}

/// Why there is no block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslateError<F> {
    /// Fetching the second page of a straddling first instruction faulted.
    Fetch(F),
}

/// A guest architecture's translator.
pub trait Frontend: Send + Sync + 'static {
    fn layout(&self) -> &StateLayout;
    fn helpers(&self) -> &[HelperDesc];
    /// Translates from page offset `start`, at most `max_insns` instructions, within one page, into `out` (cleared first).
    /// Never fails for bytes that are no instruction: the block then raises the guest's exception.
    fn translate<C: CodeFetch>(
        &self,
        mode: u64,
        start: u32,
        max_insns: u32,
        code: &mut C,
        out: &mut Block,
    ) -> Result<(), TranslateError<C::Fault>>;
    /// One line of assembly for the instruction at the start of `bytes`, and its length (at least 1).
    fn disassemble(&self, mode: u64, pc: u64, bytes: &[u8]) -> (String, usize);
}
