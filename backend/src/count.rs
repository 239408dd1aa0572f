//! Counting instructions (`-icount`): a block takes its number of instructions from `Engine::budget` when it starts, and
//! leaves if there are not so many; the dispatcher then runs them one by one. What a block does not execute, as it faults or
//! leaves, it gives back. So the count is exact wherever the dispatcher, a helper or a device sees it, whatever the engine.

use crate::vblock::VcpuBlock;
use std::sync::Arc;
use vm_core::InsnCounter;
use vm_core::guest::GuestCpu;

/// What counts the instructions of a vCPU.
pub struct Count {
    shared: Arc<InsnCounter>,
    /// The count when the budget is used up.
    limit: u64,
    /// How many instructions of the block that runs are not complete although its start took them from the budget.
    rest: u64,
}

impl Count {
    pub fn new(shared: Arc<InsnCounter>) -> Self {
        Self { limit: shared.executed(), shared, rest: 0 }
    }
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Sets the budget so that the limit that was asked for will be met. Between two instructions.
    pub fn take_limit(&mut self) {
        if let Some(c) = &mut self.count {
            let executed = c.limit - self.eng.budget;
            c.limit = c.shared.limit().max(executed);
            self.eng.budget = c.limit - executed;
        }
    }

    /// Whether the limit is reached.
    pub fn out_of_budget(&self) -> bool {
        self.eng.budget == 0 && self.count.is_some()
    }

    /// Tells how many instructions have been executed.
    pub fn publish_count(&self) {
        if let Some(c) = &self.count {
            c.shared.publish(c.limit - self.eng.budget - c.rest);
        }
    }

    /// `rest` instructions of the block, from the one that runs, are not complete; 0 between blocks.
    pub fn set_rest(&mut self, rest: u64) {
        if let Some(c) = &mut self.count {
            c.rest = rest;
        }
    }

    /// `rest` instructions of the block were not executed after all.
    pub fn give_back(&mut self, rest: u64) {
        if self.count.is_some() {
            self.eng.budget += rest;
        }
    }

    /// A fault counts as an instruction, or a handler that faults at once would make time stand still.
    pub fn count_fault(&mut self) {
        if self.count.is_some() {
            self.eng.budget = self.eng.budget.saturating_sub(1);
        }
    }
}
