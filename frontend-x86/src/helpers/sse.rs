//! Helpers of MMX, SSE and AVX instructions (SDM 1 chapters 9-15). Operands come as two 64-bit lanes, so that a
//! memory operand needs no detour through the state.

use super::vector::{Packed, half, join};
use super::{ANY, Env, PURE, Res, STATE};
use crate::hostfp::fma::FmaOp;
use crate::hostfp::sse::{MXCSR_DEFAULT, MXCSR_FLAGS, MXCSR_MASKS, SseOp};
use arch_x86::CpuState;
use arch_x86::state::cr4;
use arch_x86::fault;
use ir::{Effects, VecOp};
use vm_core::{Fault, Va};

rows! {
    topic sse;
    /// (`pack` of a `SseOp` | `KEEP_DST`, second operand): floating point on 128 bits, all exceptions masked. With `KEEP_DST`
    /// it gives the low half of the result.
    FP = sse_fp(3) STATE;
    /// The same if MXCSR unmasks an exception: #XM, or #UD without CR4.OSXMMEXCPT.
    FP_XM = sse_fp(3) STATE.or(Effects::MAY_LEAVE);
    /// (`pack` of a `SseOp` | `wide`, linear address of the second operand): 256 bits with an exception unmasked.
    FP_WIDE_XM = sse_fp_wide(2) ANY;
    /// (`pack` of CVTPS2PH | `wide`, linear address, bytes to store): its form with a destination in memory.
    STORE_HALF = store_half(3) ANY;
    /// (`pack` of a `FmaOp`, third operand): the destination is the first operand, the packed source the second.
    FMA_XM = fma(3) STATE.or(Effects::MAY_LEAVE);
    /// (`pack` of a `FmaOp` | `wide`, linear address of the third operand)
    FMA_WIDE_XM = fma_wide(2) ANY;
    /// (`mmx_code`, a, b): integer op on 64 bits.
    MMX_INT = mmx_int(3) PURE;
    /// Writes MXCSR (reserved bits checked before).
    LDMXCSR = ldmxcsr(1) STATE;
    /// MXCSR.
    STMXCSR = stmxcsr(0) Effects::READS_STATE;
    /// (linear address, data, mask): stores the bytes whose mask byte has its top bit set.
    MASKMOVQ = maskmovq(3) ANY;
    /// (linear address, data register | mask register << 8).
    MASKMOVDQU = maskmovdqu(2) ANY;
}

/// In the first operand of `FP`: the destination register stays (the result is a general register or flags).
pub const KEEP_DST: u64 = 1 << 40;

/// How a 256-bit operation goes from its source to its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Shape {
    /// Half by half.
    Same,
    /// The low and high lane of a 128-bit source make the halves.
    Widen,
    /// The halves make the low and high lane of a 128-bit result.
    Narrow,
}

/// More of the first operand of the `WIDE` helpers: the second source, `MEMORY` or the number of a register, and a shape.
pub fn wide(source: u32, shape: Shape) -> u64 {
    u64::from(source) << 48 | (shape as u64) << 56
}

/// As a source of `wide`: the operand is in memory.
pub const MEMORY: u32 = 16;

/// Sets exception flags; an unmasked one raises.
fn signal(cpu: &mut CpuState, flags: u32) -> Result<(), Fault> {
    cpu.mxcsr |= flags;
    if flags & !(cpu.mxcsr >> 7) & MXCSR_FLAGS != 0 {
        return Err(if cpu.cr4 & cr4::OSXMMEXCPT != 0 { fault::xm() } else { fault::ud() });
    }
    Ok(())
}

fn sse_fp<E: Env>(env: &mut E, code: u64, lo: u64, hi: u64) -> Res {
    let p = Packed(code);
    let Some(op) = SseOp::from_index(p.op()) else { return Ok(0) };
    let cpu = env.cpu();
    let csr = cpu.mxcsr;
    if p.src() == p.dst() && code & KEEP_DST == 0 && csr & MXCSR_MASKS == MXCSR_MASKS {
        // In place: the register is read and written as a whole, which the host forwards from one operation to the next.
        cpu.mxcsr = csr | op.run_imm(half(cpu, p.dst()), lo, hi, csr, p.imm());
        return Ok(0);
    }
    let mut r = *half(cpu, p.src());
    let flags = op.run_imm(&mut r, lo, hi, csr, p.imm());
    if flags != 0 {
        signal(cpu, flags)?;
    }
    if code & KEEP_DST == 0 {
        *half(cpu, p.dst()) = r;
    }
    Ok(r as u64)
}

/// Loads 128 bits.
fn load<E: Env>(env: &mut E, va: u64) -> Result<u128, Fault> {
    let ctx = env.cpu_ref().mode().ctx();
    let lo = env.load(Va(va), 8, ctx)?;
    Ok(join(lo, env.load(Va(va.wrapping_add(8)), 8, ctx)?))
}

/// Both halves of the operand that `wide` tells.
fn wide_operand<E: Env>(env: &mut E, code: u64, va: u64) -> Result<[u128; 2], Fault> {
    let (source, widens) = ((code >> 48 & 31) as usize, code >> 56 & 3 == Shape::Widen as u64);
    if source != MEMORY as usize {
        let cpu = env.cpu_ref();
        return Ok([cpu.xmm[source & 15], cpu.ymmh[source & 15]]);
    }
    let low = load(env, va)?;
    Ok([low, if widens { 0 } else { load(env, va.wrapping_add(16))? }])
}

fn sse_fp_wide<E: Env>(env: &mut E, code: u64, va: u64, _: u64) -> Res {
    let p = Packed(code);
    let Some(op) = SseOp::from_index(p.op()) else { return Ok(0) };
    let b = wide_operand(env, code, va)?;
    let cpu = env.cpu();
    let (n, csr, imm) = (p.src() & 15, cpu.mxcsr, p.imm());
    let mut r = [cpu.xmm[n], cpu.ymmh[n]];
    let raised = op.dot_raises([(r[0], b[0]), (r[1], b[1])], csr, imm);
    if raised != 0 {
        return signal(cpu, raised).map(|()| 0);
    }
    let mut run = |i: usize, b: u128| op.run_imm(&mut r[i], b as u64, (b >> 64) as u64, csr, imm);
    let widens = code >> 56 & 3 == Shape::Widen as u64;
    let (low, high) = if widens { (b[0] as u64 as u128, b[0] >> 64) } else { (b[0], b[1]) };
    // Exceptions that are found before computing come first, whichever half has them (SDM 1 §11.5.2).
    let flags = merge(run(0, low), run(1, high), csr);
    signal(cpu, flags)?;
    let dst = p.dst() & 15;
    if code >> 56 & 3 == Shape::Narrow as u64 {
        (cpu.xmm[dst], cpu.ymmh[dst]) = (join(r[0] as u64, r[1] as u64), 0);
    } else {
        (cpu.xmm[dst], cpu.ymmh[dst]) = (r[0], r[1]);
    }
    Ok(0)
}

fn store_half<E: Env>(env: &mut E, code: u64, va: u64, bytes: u64) -> Res {
    let p = Packed(code);
    let ctx = env.cpu_ref().mode().ctx();
    env.probe(Va(va), bytes, vm_core::guest::Access::Write, ctx)?;
    let v = wide_operand(env, code, 0)?;
    let (csr, mut flags, mut r) = (env.cpu_ref().mxcsr, 0, [0u128; 2]);
    let parts = if bytes == 16 { 2 } else { 1 };
    for (r, v) in r.iter_mut().zip(v).take(parts) {
        flags = merge(flags, SseOp::Cvtps2ph.run_imm(r, v as u64, (v >> 64) as u64, csr, p.imm()), csr);
    }
    signal(env.cpu(), flags)?;
    for (k, r) in r.iter().enumerate().take(parts) {
        env.store(Va(va.wrapping_add(8 * k as u64)), 8, *r as u64, ctx)?;
    }
    Ok(0)
}

/// Flags of two halves together: an unmasked invalid operation, denormal or division by zero in one leaves only such in all.
fn merge(low: u32, high: u32, mxcsr: u32) -> u32 {
    let flags = low | high;
    if flags & !(mxcsr >> 7) & 7 != 0 { flags & 7 } else { flags }
}

fn fma<E: Env>(env: &mut E, code: u64, lo: u64, hi: u64) -> Res {
    let p = Packed(code);
    let Some(op) = FmaOp::from_index(p.op()) else { return Ok(0) };
    let cpu = env.cpu();
    let csr = cpu.mxcsr;
    let b = *half(cpu, p.src());
    if csr & MXCSR_MASKS == MXCSR_MASKS {
        // In place, as in `sse_fp`.
        cpu.mxcsr = csr | op.run(half(cpu, p.dst()), b, join(lo, hi), csr);
        return Ok(0);
    }
    let mut a = *half(cpu, p.dst());
    let flags = op.run(&mut a, b, join(lo, hi), csr);
    signal(cpu, flags)?;
    *half(cpu, p.dst()) = a;
    Ok(0)
}

fn fma_wide<E: Env>(env: &mut E, code: u64, va: u64, _: u64) -> Res {
    let p = Packed(code);
    let Some(op) = FmaOp::from_index(p.op()) else { return Ok(0) };
    let c = wide_operand(env, code, va)?;
    let cpu = env.cpu();
    let (d, s, csr) = (p.dst() & 15, p.src() & 15, cpu.mxcsr);
    let (mut low, mut high) = (cpu.xmm[d], cpu.ymmh[d]);
    let (f0, f1) = (op.run(&mut low, cpu.xmm[s], c[0], csr), op.run(&mut high, cpu.ymmh[s], c[1], csr));
    signal(cpu, merge(f0, f1, csr))?;
    (cpu.xmm[d], cpu.ymmh[d]) = (low, high);
    Ok(0)
}

/// Operand of `MMX_INT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmxOp {
    Vec(VecOp),
    /// PSHUFW with this immediate.
    Shuffle(u8),
    /// PALIGNR with this immediate.
    Align(u8),
}

impl MmxOp {
    pub fn code(self) -> u64 {
        match self {
            MmxOp::Vec(v) => v as u64,
            MmxOp::Shuffle(imm) => u64::from(imm) | 1 << 16,
            MmxOp::Align(n) => u64::from(n) | 2 << 16,
        }
    }

    fn from_code(c: u64) -> Option<MmxOp> {
        match c >> 16 {
            0 => VecOp::from_index(c as u16).map(MmxOp::Vec),
            1 => Some(MmxOp::Shuffle(c as u8)),
            _ => Some(MmxOp::Align(c as u8)),
        }
    }

    /// The operation on 64-bit vectors, from that on 128-bit ones.
    pub fn eval(self, a: u64, b: u64) -> u64 {
        let (x, y) = (u128::from(a), u128::from(b));
        match self {
            MmxOp::Vec(v @ (VecOp::PackS16 | VecOp::PackS32 | VecOp::PackU16)) => v.eval(join(a, b), 0) as u64,
            MmxOp::Vec(
                v @ (VecOp::HAdd16 | VecOp::HAdd32 | VecOp::HAddSatS16 | VecOp::HSub16 | VecOp::HSub32 | VecOp::HSubSatS16),
            ) => v.eval(join(a, b), 0) as u64,
            // The number of a byte has three bits here.
            MmxOp::Vec(VecOp::Permute8) => VecOp::Permute8.eval(x, y & 0x8787_8787_8787_8787) as u64,
            MmxOp::Align(n) => {
                let n = 8 * u32::from(n);
                let both = u128::from(a) << 64 | u128::from(b);
                if n < 128 { (both >> n) as u64 } else { 0 }
            }
            MmxOp::Vec(VecOp::UnpkHi8) => (VecOp::UnpkLo8.eval(x, y) >> 64) as u64,
            MmxOp::Vec(VecOp::UnpkHi16) => (VecOp::UnpkLo16.eval(x, y) >> 64) as u64,
            MmxOp::Vec(VecOp::UnpkHi32) => (VecOp::UnpkLo32.eval(x, y) >> 64) as u64,
            MmxOp::Vec(v) => v.eval(x, y) as u64,
            MmxOp::Shuffle(imm) => (0..4).fold(0, |r, i| {
                let lane = u32::from(imm) >> (2 * i) & 3;
                r | (b >> (16 * lane) & 0xffff) << (16 * i)
            }),
        }
    }
}

fn mmx_int<E: Env>(_: &mut E, code: u64, a: u64, b: u64) -> Res {
    Ok(MmxOp::from_code(code).map_or(0, |op| op.eval(a, b)))
}

fn stmxcsr<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    Ok(env.cpu_ref().mxcsr.into())
}

fn ldmxcsr<E: Env>(env: &mut E, v: u64, _: u64, _: u64) -> Res {
    let cpu = env.cpu();
    cpu.mxcsr = v as u32 & MXCSR_WRITABLE;
    cpu.update_mode();
    Ok(0)
}

/// Bits of MXCSR that exist (MXCSR_MASK of FXSAVE): all but the reserved upper half.
pub const MXCSR_WRITABLE: u32 = 0xffff;

const _: () = assert!(MXCSR_DEFAULT & !MXCSR_WRITABLE == 0);

/// Stores those of `n` bytes of `data` whose byte of `mask` has its top bit set (SDM 2 "MASKMOVDQU").
fn masked_store<E: Env>(env: &mut E, va: u64, data: u128, mask: u128, n: u32) -> Res {
    let ctx = env.cpu_ref().mode().ctx();
    let selected = |i: &u32| mask >> (8 * i + 7) & 1 == 1;
    // Whether bytes that are left out can fault is the implementation's choice; on processors all do.
    env.probe(vm_core::Va(va), n.into(), vm_core::guest::Access::Write, ctx)?;
    for i in (0..n).filter(selected) {
        env.store(vm_core::Va(va.wrapping_add(i.into())), 1, (data >> (8 * i)) as u64 & 0xff, ctx)?;
    }
    Ok(0)
}

fn maskmovq<E: Env>(env: &mut E, va: u64, data: u64, mask: u64) -> Res {
    masked_store(env, va, data.into(), mask.into(), 8)
}

fn maskmovdqu<E: Env>(env: &mut E, va: u64, regs: u64, _: u64) -> Res {
    let x = env.cpu_ref().xmm;
    masked_store(env, va, x[(regs & 15) as usize], x[(regs >> 8 & 15) as usize], 16)
}
