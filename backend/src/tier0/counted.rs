//! Handlers in place of those of `ops` where instructions are counted (`crate::count`).
//!
//! UNSAFE: as `ops`.
#![allow(unsafe_code)]

use super::form::COp;
use super::ops;
use crate::vblock::{VcpuBlock, Why};
use std::sync::atomic::Ordering;
use vm_core::guest::GuestCpu;

/// As `ops::start`; takes the block's instructions from the budget.
pub unsafe extern "C" fn start<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note; the record owns this code and is live while it runs.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        let rec = (*op).record_here();
        let (start, insns) = ((*rec).start, u64::from((*rec).insns));
        if b.eng.exit.load(Ordering::Relaxed) == 0 && (*rec).runs.wrapping_add(1) != (*rec).threshold && b.eng.budget < insns {
            b.eng.cur = rec;
            return ops::leave_block::<C>(b, start.into(), Why::Budget);
        }
        let next = ops::start::<C>(s, op);
        if !next.is_null() {
            b.eng.budget -= insns;
        }
        next
    }
}

/// As `ops::start_alone`. The dispatcher has seen that there is budget for the instruction.
pub unsafe extern "C" fn start_alone<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        b.eng.budget = b.eng.budget.saturating_sub(1);
        b.set_rest(1);
        ops::start_alone::<C>(s, op)
    }
}

/// As `ops::call`; `d` of the slot after it: instructions of the block from this one on.
pub unsafe extern "C" fn call<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let b = VcpuBlock::<C>::from_seam(s);
        b.set_rest((*op.add(1)).d.into());
        let next = ops::call::<C>(s, op);
        b.set_rest(b.eng.single.into());
        next
    }
}
