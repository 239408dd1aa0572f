//! Observers (`vm_core::observe`): blocks made for one tell of themselves and their instructions, and have a mode bit of their
//! own in the key; while there is one the TLB serves no data access, so that each takes the slow path, which tells of it. So
//! nothing is tested where there is none.

use crate::vblock::VcpuBlock;
use vm_core::guest::GuestCpu;
use vm_core::observe::{Observer, Touch};
use vm_core::{Pa, Va};

/// An observer, and what it has been told.
pub struct Observing<C> {
    to: Box<dyn Observer<C>>,
    /// Physical address of the access that is being done.
    pa: Option<Pa>,
    /// Accesses told of the instruction, or of the iteration, that runs.
    told: u32,
    /// So many accesses have been told already: the instruction left its block and runs again.
    known: u32,
    /// The instruction itself has been, too.
    again: bool,
    /// Parts of an access that is told as one.
    quiet: bool,
}

impl<C: GuestCpu> VcpuBlock<C> {
    /// Begins and ends observing; gives the observer that there was.
    pub fn observe(&mut self, to: Option<Box<dyn Observer<C>>>) -> Option<Box<dyn Observer<C>>> {
        let new = to.map(|to| Box::new(Observing { to, pa: None, told: 0, known: 0, again: false, quiet: false }));
        let old = std::mem::replace(&mut self.observing, new).map(|o| o.to);
        self.fills.flush_all(&mut self.eng.tlb);
        self.code_moved();
        old
    }

    /// An access begins.
    pub fn access_begins(&mut self) {
        if let Some(o) = self.observing.as_mut().filter(|o| !o.quiet) {
            o.pa = None;
        }
    }

    /// Part of the access that is being done lies at `pa`.
    pub fn access_at(&mut self, pa: Pa) {
        if let Some(o) = &mut self.observing {
            o.pa.get_or_insert(pa);
        }
    }

    /// The access has been done.
    pub fn access_done(&mut self, va: u64, size: u8, write: bool, value: u128) {
        let Some(o) = self.observing.as_mut().filter(|o| !o.quiet) else { return };
        o.told += 1;
        if o.told <= o.known {
            return;
        }
        let value = if size < 16 { value & ((1 << (8 * u32::from(size))) - 1) } else { value };
        o.to.access(&Touch { va: Va(va), pa: o.pa.unwrap_or(Pa(!0)), size, write, value });
    }

    /// Whether parts of an access are to be told as one, by whoever asks: until `access_whole(false)`.
    pub fn access_whole(&mut self, on: bool) {
        if on {
            self.access_begins();
        }
        if let Some(o) = &mut self.observing {
            o.quiet = on;
        }
    }

    /// The instruction that runs is going to run again from its start, or from its present iteration.
    pub fn observed_again(&mut self) {
        if let Some(o) = &mut self.observing {
            (o.known, o.again, o.quiet) = (o.told, true, false);
        }
    }

    /// Another iteration of a repeated instruction begins.
    pub fn observed_iteration(&mut self) {
        if let Some(o) = &mut self.observing {
            (o.told, o.known) = (0, 0);
        }
    }

    /// A block begins.
    pub fn observed_block(&mut self, pc: u64, insns: u32) {
        if let Some(o) = &mut self.observing {
            o.to.block(pc, insns);
        }
    }

    /// An instruction is about to be executed; the program counter is set.
    pub fn observed_insn(&mut self, bytes: &[u8]) {
        let Some(o) = &mut self.observing else { return };
        o.told = 0;
        if !std::mem::take(&mut o.again) {
            o.known = 0;
            o.to.insn(&self.cpu, self.cpu.pc(), bytes);
        }
    }
}
