//! 64-bit division (SDM 2 "DIV", "IDIV").

use super::{ANY, Env, Res};
use arch_x86::fault;

rows! {
    topic div;
    /// RDX:RAX by (a), into RAX and RDX. #DE on zero or overflow.
    DIV64 = div64(1) ANY;
    IDIV64 = idiv64(1) ANY;
}

fn div64<E: Env>(env: &mut E, d: u64, _: u64, _: u64) -> Res {
    let g = &mut env.cpu().gpr;
    let n = u128::from(g[2]) << 64 | u128::from(g[0]);
    if d == 0 || g[2] >= d {
        return Err(fault::de());
    }
    (g[0], g[2]) = ((n / u128::from(d)) as u64, (n % u128::from(d)) as u64);
    Ok(0)
}

fn idiv64<E: Env>(env: &mut E, d: u64, _: u64, _: u64) -> Res {
    let g = &mut env.cpu().gpr;
    let (n, d) = ((u128::from(g[2]) << 64 | u128::from(g[0])) as i128, i128::from(d as i64));
    let q = n.checked_div(d).ok_or(fault::de())?;
    let q64 = i64::try_from(q).map_err(|_| fault::de())?;
    (g[0], g[2]) = (q64 as u64, n.wrapping_rem(d) as u64);
    Ok(0)
}
