//! Rotates through carry (SDM 2 "RCL/RCR").

use super::{Env, PURE, Res};
use arch_x86::flags::bit;

rows! {
    topic shift;
    /// (value, CF, count | bits << 8): the value rotated.
    RCL = rcl(3) PURE;
    /// The same: CF and OF after it, at their EFLAGS positions.
    RCL_FLAGS = rcl_flags(3) PURE;
    RCR = rcr(3) PURE;
    RCR_FLAGS = rcr_flags(3) PURE;
}

/// Rotates CF:value left; gives value and CF.
fn left(value: u64, cf: u64, count: u64, bits: u64) -> (u64, u64) {
    let bits = bits.clamp(8, 64);
    let width = bits + 1;
    let all = (u128::from(cf & 1) << bits | u128::from(value)) & ((1u128 << width) - 1);
    let n = count % width;
    let r = (all << n | all >> (width - n)) & ((1u128 << width) - 1);
    ((r & ((1u128 << bits) - 1)) as u64, (r >> bits) as u64 & 1)
}

fn run(value: u64, cf: u64, how: u64, is_left: bool) -> (u64, u64) {
    let (count, bits) = (how & 63, how >> 8 & 0xff);
    let width = bits + 1;
    let count = count % width.max(1);
    left(value, cf, if is_left { count } else { width - count }, bits)
}

fn flags(value: u64, cf: u64, how: u64, is_left: bool) -> u64 {
    let bits = (how >> 8 & 0xff).clamp(8, 64);
    let (r, c) = run(value, cf, how, is_left);
    let (top, second) = (r >> (bits - 1) & 1, r >> (bits - 2) & 1);
    let of = if is_left { top ^ c } else { top ^ second };
    c | of << bit::OF.trailing_zeros()
}

fn rcl<E: Env>(_: &mut E, v: u64, cf: u64, how: u64) -> Res {
    Ok(run(v, cf, how, true).0)
}

fn rcl_flags<E: Env>(_: &mut E, v: u64, cf: u64, how: u64) -> Res {
    Ok(flags(v, cf, how, true))
}

fn rcr<E: Env>(_: &mut E, v: u64, cf: u64, how: u64) -> Res {
    Ok(run(v, cf, how, false).0)
}

fn rcr_flags<E: Env>(_: &mut E, v: u64, cf: u64, how: u64) -> Res {
    Ok(flags(v, cf, how, false))
}
