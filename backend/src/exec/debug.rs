//! Steps for the debugger, one instruction at a time.

use super::Driver;
use crate::vblock::VcpuBlock;
use ir::Frontend;
use vm_core::Events;
use vm_core::debug::DebugEvent;
use vm_core::guest::{GuestCpu, Shutdown};

impl<F: Frontend, C: GuestCpu> Driver<F, C> {
    /// Whether events wait for the end of a step. A halted CPU goes on only by them.
    pub(super) fn events_wait(&self, b: &VcpuBlock<C>, pending: Events) -> bool {
        let masked = b.stepping().is_some_and(|(_, masked)| masked);
        masked && !b.cpu.halted() && !pending.intersects(Events::INIT | Events::SIPI)
    }

    /// One instruction, of which the step may be done.
    pub(super) fn debug_step(&mut self, b: &mut VcpuBlock<C>) -> Result<(), Shutdown> {
        let (shadow, trap) = (b.cpu.in_shadow(), b.cpu.single_step());
        self.step_watched(b, shadow, trap)?;
        if let Some((range, _)) = b.stepping() {
            let at = b.cpu.linear(b.cpu.pc());
            if !range.contains(&at.0) {
                b.debug_stop(DebugEvent::Step);
            } else {
                b.at_break();
            }
        }
        Ok(())
    }
}
