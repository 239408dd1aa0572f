//! Ops of blocks that tell an observer (`crate::observe`).
//!
//! UNSAFE: as `ops`.
#![allow(unsafe_code)]

use super::form::COp;
use crate::vblock::VcpuBlock;
use vm_core::guest::GuestCpu;

/// After the block's start.
pub unsafe extern "C" fn block<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note; `cur` is the block that runs.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        let (start, insns) = ((*b.eng.cur).start, (*b.eng.cur).insns);
        b.set_pc_in_page(start.into());
        b.observed_block(b.cpu.pc(), insns);
        op.add(1)
    }
}

/// Before an instruction at page offset `x`, of `d` bytes.
pub unsafe extern "C" fn insn<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: as `block`.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        let (offset, len) = ((*op).x, usize::from((*op).d).min(16));
        b.set_pc_in_page(offset.into());
        let (key, second) = ((*b.eng.cur).key, (*b.eng.cur).second);
        let mut bytes = [0; 16];
        let ram = b.machine().ram();
        // Code outside RAM has a key that is beyond it.
        if key.phys < ram.size() {
            let (head, tail) = bytes[..len].split_at_mut((4096 - offset as usize).min(len));
            ram.read(key.phys & !0xfff | u64::from(offset), head);
            second.into_iter().for_each(|page| ram.read(page << 12, tail));
            b.observed_insn(&bytes[..len]);
        } else {
            b.observed_insn(&[]);
        }
        op.add(1)
    }
}
