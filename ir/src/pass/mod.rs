//! Optimisation passes over one block: their table, their order and the buffers they share. All are linear; they run in
//! the compile thread.

mod const_fold;
mod copy_prop;
mod dce;
mod dead_state;
mod rewrite;
mod state_forward;
mod whole_sets;

use crate::block::Block;
use crate::layout::{HelperDesc, StateLayout};

/// What passes know beside the block.
#[derive(Clone, Copy)]
pub struct Tables<'a> {
    pub layout: &'a StateLayout,
    pub helpers: &'a [HelperDesc],
}

/// One pass. Its law: state, order and values of memory accesses, and outcome stay the same, and so does the state
/// wherever the block may leave.
pub struct Pass {
    pub name: &'static str,
    /// What it does, for `--help` and the docs.
    pub about: &'static str,
    run: fn(&mut Passes, &mut Block, Tables),
}

/// Every pass, in the order in which `optimize` runs them.
pub const PASSES: &[Pass] = &[
    Pass {
        name: "state_forward",
        about: "a get takes the value that an earlier set or get of the slot had",
        run: state_forward::run,
    },
    Pass {
        name: "const_fold",
        about: "constants, algebraic identities, chains of conversions and comparisons",
        run: const_fold::run,
    },
    Pass {
        name: "copy_prop",
        about: "an op equal to one of its operands or to an earlier op is replaced by it",
        run: copy_prop::run,
    },
    Pass { name: "dead_flags", about: "sets that are overwritten before anything can see them go", run: dead_state::run },
    Pass { name: "dce", about: "ops without effects whose results nobody uses go", run: dce::run },
];

/// Bytes of each slot, as bit masks by slot number.
pub type SlotBytes = [u16];

/// Runs passes; keeps their buffers from block to block.
#[derive(Default)]
pub struct Passes {
    rewrite: rewrite::Rewrite,
    forward: state_forward::Scratch,
    dead: dead_state::Scratch,
    copies: copy_prop::Scratch,
    keep: Vec<bool>,
    /// By slot: gets and sets, and whether one of them is not of its first bytes.
    touched: Vec<(u32, bool)>,
}

impl Passes {
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs all passes on a verified block.
    pub fn optimize(&mut self, block: &mut Block, layout: &StateLayout, helpers: &[HelperDesc]) {
        for p in PASSES {
            self.run(p, block, layout, helpers);
        }
    }

    /// Runs one pass.
    pub fn run(&mut self, pass: &Pass, block: &mut Block, layout: &StateLayout, helpers: &[HelperDesc]) {
        (pass.run)(self, block, Tables { layout, helpers });
        debug_assert_eq!(crate::verify(block, layout, helpers), Ok(()), "after {}", pass.name);
    }

    /// As `optimize`, for code that keeps values in registers: sets of low bytes of registers become sets of whole ones where that
    /// spares loads or stores.
    pub fn optimize_for_registers(&mut self, block: &mut Block, layout: &StateLayout, helpers: &[HelperDesc]) {
        self.optimize(block, layout, helpers);
        if whole_sets::run(self, block, Tables { layout, helpers }) {
            debug_assert_eq!(crate::verify(block, layout, helpers), Ok(()), "after whole_sets");
            self.optimize(block, layout, helpers);
        }
    }

    /// `dead_flags` for a block inside a region. `dead_out`: bytes that every successor overwrites before it can leave or
    /// read them; empty if unknown. Returns the same for this block's entry. Run `dce` afterwards.
    pub fn dead_state_at_edges(
        &mut self,
        block: &mut Block,
        layout: &StateLayout,
        helpers: &[HelperDesc],
        dead_out: &SlotBytes,
    ) -> &SlotBytes {
        dead_state::with_edges(self, block, Tables { layout, helpers }, dead_out);
        self.dead.entry(layout)
    }
}

/// The pass of this name.
pub fn find(name: &str) -> Option<&'static Pass> {
    PASSES.iter().find(|p| p.name == name)
}

/// Runs all passes once, with fresh buffers. Keep a `Passes` where many blocks are compiled.
pub fn optimize(block: &mut Block, layout: &StateLayout, helpers: &[HelperDesc]) {
    Passes::new().optimize(block, layout, helpers);
}
