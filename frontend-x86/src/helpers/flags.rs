//! Lazy flags, and EFLAGS as a whole (SDM 1 "EFLAGS Register").

use super::{Env, PURE, Res};
use arch_x86::flags::Cc;

rows! {
    topic flags;
    /// (cc_op | cc_aux << 32, cc_dst, cc_src): the six arithmetic flags at their EFLAGS positions.
    FLAGS = eflags_of(3) PURE;
}

fn eflags_of<E: Env>(_: &mut E, op_aux: u64, dst: u64, src: u64) -> Res {
    Ok(Cc { op: op_aux as u32, dst, src, aux: op_aux >> 32 }.eflags())
}
