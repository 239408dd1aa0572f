//! CMPXCHG16B (SDM 2 "CMPXCHG8B/CMPXCHG16B").

use super::{ANY, Env, Res};
use arch_x86::fault;
use arch_x86::flags::{Cc, bit};
use vm_core::{Access, Va};

rows! {
    topic atomic;
    /// (linear address). Not atomic towards other CPUs: two 64-bit halves.
    CMPXCHG16B = cmpxchg16b(1) ANY;
}

fn cmpxchg16b<E: Env>(env: &mut E, va: u64, _: u64, _: u64) -> Res {
    if va & 15 != 0 {
        return Err(fault::gp(0));
    }
    let ctx = env.cpu_ref().mode().ctx();
    env.probe(Va(va), 16, Access::Write, ctx)?;
    let (low, high) = (env.load(Va(va), 8, ctx)?, env.load(Va(va + 8), 8, ctx)?);
    let g = env.cpu_ref().gpr;
    let same = (low, high) == (g[0], g[2]);
    let (new_low, new_high) = if same { (g[3], g[1]) } else { (low, high) };
    env.store(Va(va), 8, new_low, ctx)?;
    env.store(Va(va + 8), 8, new_high, ctx)?;
    let cpu = env.cpu();
    if !same {
        (cpu.gpr[0], cpu.gpr[2]) = (low, high);
    }
    let f = cpu.cc().eflags() & !bit::ZF;
    cpu.set_cc(Cc::bits(if same { f | bit::ZF } else { f }));
    Ok(0)
}
