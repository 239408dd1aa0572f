//! Tier 0's handlers of vector and floating-point ops.
//!
//! UNSAFE: as `ops`.
#![allow(unsafe_code)]

use super::form::{COp, Handler};
use super::ops::{rd, wr};
use crate::vblock::VcpuBlock;
use ir::vec::VecShift;
use ir::{FpOp, Op, TriOp, VecOp};
use vm_core::guest::GuestCpu;

unsafe extern "C" fn vec_<const OP: u8>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        let v = VecOp::ALL[OP as usize].eval(rd(s, o.a), rd(s, o.b()));
        wr::<u128>(s, o.d, v);
        op.add(1)
    }
}

/// The op's number is in `c`.
unsafe extern "C" fn vec_any(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        let v = VecOp::ALL[usize::from(o.c())].eval(rd(s, o.a), rd(s, o.b()));
        wr::<u128>(s, o.d, v);
        op.add(1)
    }
}

pub fn vec(v: VecOp) -> Handler {
    match v {
        VecOp::And => vec_::<{ VecOp::And as u8 }>,
        VecOp::Or => vec_::<{ VecOp::Or as u8 }>,
        VecOp::Xor => vec_::<{ VecOp::Xor as u8 }>,
        VecOp::CmpEq8 => vec_::<{ VecOp::CmpEq8 as u8 }>,
        _ => vec_any,
    }
}

/// Lane number in `x`.
pub unsafe extern "C" fn vlane(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<u64>(s, o.d, rd::<u64>(s, o.a + 8 * o.x as u16));
        op.add(1)
    }
}

/// a with lane `c` replaced by b.
pub unsafe extern "C" fn vset_lane(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        let (v, x) = (rd::<u128>(s, o.a), u128::from(rd::<u64>(s, o.b())));
        let v = if o.c() == 0 { v >> 64 << 64 | x } else { v << 64 >> 64 | x << 64 };
        wr::<u128>(s, o.d, v);
        op.add(1)
    }
}

/// `x` = count << 16 | kind.
pub unsafe extern "C" fn vshift(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<u128>(s, o.d, VecShift::ALL[usize::from(o.b())].eval(rd(s, o.a), o.c().into()));
        op.add(1)
    }
}

/// Lane width in `x`.
pub unsafe extern "C" fn vmask(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        wr::<u64>(s, o.d, ir::vec::high_bits(rd(s, o.a), o.x as u16));
        op.add(1)
    }
}

/// The mask fills the next slot.
pub unsafe extern "C" fn vshuffle(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let (o, mask) = (*op, op.add(1).cast::<[u8; 16]>().read());
        wr::<u128>(s, o.d, ir::vec::shuffle(rd(s, o.a), rd(s, o.b()), mask));
        op.add(2)
    }
}

/// A floating-point op; its number is in `c`.
pub fn fp<C: GuestCpu>(op: Op) -> Handler {
    match op {
        Op::FpGet => fp_::<C, { Op::FpGet as u8 }>,
        Op::FpSet => fp_::<C, { Op::FpSet as u8 }>,
        _ => fp_::<C, { Op::VFp as u8 }>,
    }
}

unsafe extern "C" fn fp_<C: GuestCpu, const OP: u8>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let o = *op;
        let b = if OP == Op::FpSet as u8 { rd::<u64>(s, o.b()).into() } else { rd::<u128>(s, o.b()) };
        let v = VcpuBlock::<C>::from_seam(s).fp(FpOp::ALL[usize::from(o.c())], rd(s, o.a), b);
        if OP == Op::FpGet as u8 {
            wr::<u64>(s, o.d, v as u64);
        } else {
            wr::<u128>(s, o.d, v);
        }
        op.add(1)
    }
}

/// The op's number is in the next slot.
pub unsafe extern "C" fn tri<C: GuestCpu>(s: *mut u8, op: *mut COp) -> *mut COp {
    // SAFETY: module note.
    unsafe {
        let (o, number) = (*op, (*op.add(1)).h);
        let operands = [o.a, o.b(), o.c()].map(|v| rd(s, v));
        let v = VcpuBlock::<C>::from_seam(s).tri(TriOp::ALL[number], operands);
        wr::<u128>(s, o.d, v);
        op.add(2)
    }
}
