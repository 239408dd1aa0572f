//! CMPXCHG16B (SDM 2 "CMPXCHG8B/CMPXCHG16B") PAUSE and MFENCE.

use super::{ANY, BARRIER, Env, Res};
use arch_x86::fault;
use arch_x86::flags::{Cc, bit};
use vm_core::Va;

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;

rows! {
    topic atomic;
    /// (linear address).
    CMPXCHG16B = cmpxchg16b(1) ANY;
    /// Another CPU is waited for.
    PAUSE = pause(0) BARRIER;
    FENCE = fence(0) BARRIER;
}

fn cmpxchg16b<E: Env>(env: &mut E, va: u64, _: u64, _: u64) -> Res {
    if va & 15 != 0 {
        return Err(fault::gp(0));
    }
    let (g, ctx) = (env.cpu_ref().gpr, env.cpu_ref().mode().ctx());
    let pair = |low: u64, high: u64| u128::from(low) | u128::from(high) << 64;
    let expected = pair(g[RAX], g[RDX]);
    let old = env.cas_128(Va(va), expected, pair(g[RBX], g[RCX]), ctx)?;
    let (cpu, same) = (env.cpu(), old == expected);
    if !same {
        (cpu.gpr[RAX], cpu.gpr[RDX]) = (old as u64, (old >> 64) as u64);
    }
    let f = cpu.cc().eflags() & !bit::ZF;
    cpu.set_cc(Cc::bits(if same { f | bit::ZF } else { f }));
    Ok(0)
}

fn pause<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    env.relax();
    Ok(0)
}

fn fence<E: Env>(_: &mut E, _: u64, _: u64, _: u64) -> Res {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(0)
}
