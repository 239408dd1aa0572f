//! Tables that a front end supplies: state slots and helpers.

use crate::block::{Block, Inst};
use crate::fp::RunFp;
use crate::ops::{Effects, Op};
use crate::tri::RunTri;
use crate::types::Ty;
use crate::x87::X87Layout;

/// Index into `StateLayout::slots`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(pub u16);

/// Index into the front end's helper table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HelperId(pub u16);

/// One named piece of guest state. Slots do not overlap.
#[derive(Clone, Copy, Debug)]
pub struct SlotDesc {
    pub name: &'static str,
    /// Byte offset in the guest CPU's state struct; aligned to `size`.
    pub offset: u32,
    /// Bytes: 1, 2, 4, 8 or 16.
    pub size: u32,
}

/// Where things lie in the guest CPU's `#[repr(C)]` state.
#[derive(Clone, Debug)]
pub struct StateLayout {
    pub slots: Vec<SlotDesc>,
    /// Size of the whole state struct, bytes.
    pub size: u32,
    /// Slot (8 bytes) of the program counter. Engines write it when a block is left.
    pub pc: SlotId,
    /// Slot (8 bytes) that engines keep at the program counter of the current page's first byte (see `Op::PcRel`).
    pub pc_page: SlotId,
    /// Slot (4 bytes) whose value where a block begins is nearly always the same: see `CodeFetch::guess`.
    pub guessed: SlotId,
    /// Slots whose content means nothing while `guessed` holds this value: stores to them may be left out.
    pub unused: fn(guessed: u32) -> &'static [SlotId],
    /// Slot (4 bytes) that exception flags of floating-point ops go to, and what runs these.
    pub fp_flags: SlotId,
    pub run_fp: RunFp,
    /// Runs ops on three vectors.
    pub run_tri: RunTri,
    /// Where the guest has its x87, if it has one.
    pub x87: Option<X87Layout>,
    /// Mask of program counters in `mode`; engines apply it when they write `pc`.
    pub pc_mask: fn(mode: u64) -> u64,
}

impl StateLayout {
    pub fn slot(&self, id: SlotId) -> &SlotDesc {
        &self.slots[usize::from(id.0)]
    }

    /// Slots whose content means nothing once an op has been done: it sets `guessed` to the value of `v`, which is a constant.
    pub fn unused_after(&self, i: &Inst, block: &Block) -> &'static [SlotId] {
        let sets = i.op == Op::Set && i.slot() == self.guessed && i.ty == Ty::I32;
        sets.then(|| block.as_const(i.a)).flatten().map_or(&[], |v| (self.unused)(v as u32))
    }

    pub fn find(&self, name: &str) -> Option<SlotId> {
        self.slots.iter().position(|s| s.name == name).map(|i| SlotId(i as u16))
    }
}

/// What passes and engines must know of a helper. Its code is handed to the engine separately.
#[derive(Clone, Copy, Debug)]
pub struct HelperDesc {
    pub name: &'static str,
    /// Number of operands, 0..=3.
    pub args: u8,
    /// READS_STATE, WRITES_STATE (any slot), READS_MEM, WRITES_MEM; MAY_LEAVE: it may raise a guest exception, and needs
    /// the program counter in the state. Empty: a pure function of its operands, which may be removed or merged.
    pub effects: Effects,
}
