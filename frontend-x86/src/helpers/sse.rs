//! Helpers of MMX, SSE, SSE2 and SSE3 instructions (SDM 1 chapters 9-12). Operands come as two 64-bit lanes, so that a
//! memory operand needs no detour through the state.

use super::{ANY, Env, PURE, Res, STATE};
use crate::hostfp::sse::{MXCSR_DEFAULT, MXCSR_FLAGS, SseOp};
use arch_x86::state::cr4;
use arch_x86::fault;
use ir::{Effects, VecOp};

rows! {
    topic sse;
    /// (`SseOp` | destination << 16 | `KEEP_DST`, source lanes): floating point, all exceptions masked. Gives the low half
    /// of the result.
    FP = sse_fp(3) STATE;
    /// The same if MXCSR unmasks an exception: #XM, or #UD without CR4.OSXMMEXCPT.
    FP_XM = sse_fp(3) STATE.or(Effects::MAY_LEAVE);
    /// (`IntOp` | destination << 16, source lanes): integer.
    INT = sse_int(3) STATE;
    /// (`mmx_code`, a, b): integer op on 64 bits.
    MMX_INT = mmx_int(3) PURE;
    /// Writes MXCSR (reserved bits checked before).
    LDMXCSR = ldmxcsr(1) STATE;
    /// (linear address, data, mask): stores the bytes whose mask byte has its top bit set.
    MASKMOVQ = maskmovq(3) ANY;
    /// (linear address, data register | mask register << 8).
    MASKMOVDQU = maskmovdqu(2) ANY;
}

/// In the first operand of `FP`: the destination register stays (the result is a general register or flags).
pub const KEEP_DST: u64 = 1 << 24;

/// Packed integer operations without an IR op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum IntOp {
    MulHiS16,
    MulHiU16,
    MulAdd16,
    MulU32,
    SadU8,
    /// Shifts of all lanes by the count in the source's low 64 bits.
    Shl16,
    Shl32,
    Shl64,
    Shr16,
    Shr32,
    Shr64,
    Sar16,
    Sar32,
}

impl IntOp {
    pub const ALL: [IntOp; 13] = [
        IntOp::MulHiS16, IntOp::MulHiU16, IntOp::MulAdd16, IntOp::MulU32, IntOp::SadU8, IntOp::Shl16, IntOp::Shl32, IntOp::Shl64,
        IntOp::Shr16, IntOp::Shr32, IntOp::Shr64, IntOp::Sar16, IntOp::Sar32,
    ];

    pub fn eval(self, a: u128, b: u128) -> u128 {
        let n = b as u64;
        match self {
            IntOp::MulHiS16 => lanes::<16>(a, b, |x, y| ((x as i16 as i32 * y as i16 as i32) >> 16) as u64),
            IntOp::MulHiU16 => lanes::<16>(a, b, |x, y| (x * y) >> 16),
            IntOp::MulAdd16 => lanes::<32>(a, b, |x, y| {
                let product = |s: u32| (x >> s) as i16 as i32 * (y >> s) as i16 as i32;
                product(0).wrapping_add(product(16)) as u64
            }),
            IntOp::MulU32 => lanes::<64>(a, b, |x, y| (x & 0xffff_ffff) * (y & 0xffff_ffff)),
            IntOp::SadU8 => lanes::<64>(a, b, |x, y| {
                x.to_le_bytes().iter().zip(y.to_le_bytes()).map(|(x, y)| u64::from(x.abs_diff(y))).sum()
            }),
            IntOp::Shl16 => lanes::<16>(a, 0, |x, _| if n > 15 { 0 } else { x << n }),
            IntOp::Shl32 => lanes::<32>(a, 0, |x, _| if n > 31 { 0 } else { x << n }),
            IntOp::Shl64 => lanes::<64>(a, 0, |x, _| if n > 63 { 0 } else { x << n }),
            IntOp::Shr16 => lanes::<16>(a, 0, |x, _| if n > 15 { 0 } else { x >> n }),
            IntOp::Shr32 => lanes::<32>(a, 0, |x, _| if n > 31 { 0 } else { x >> n }),
            IntOp::Shr64 => lanes::<64>(a, 0, |x, _| if n > 63 { 0 } else { x >> n }),
            IntOp::Sar16 => lanes::<16>(a, 0, |x, _| (x as i16 >> n.min(15)) as u64),
            IntOp::Sar32 => lanes::<32>(a, 0, |x, _| (x as i32 >> n.min(31)) as u64),
        }
    }
}

fn lanes<const W: u32>(a: u128, b: u128, f: impl Fn(u64, u64) -> u64) -> u128 {
    let mask = u64::MAX >> (64 - W);
    (0..128 / W).fold(0, |r, i| {
        let (x, y) = ((a >> (i * W)) as u64 & mask, (b >> (i * W)) as u64 & mask);
        r | u128::from(f(x, y) & mask) << (i * W)
    })
}

fn vector(lo: u64, hi: u64) -> u128 {
    u128::from(hi) << 64 | u128::from(lo)
}

fn sse_fp<E: Env>(env: &mut E, code: u64, lo: u64, hi: u64) -> Res {
    let Some(op) = SseOp::from_index(code as u16) else { return Ok(0) };
    let cpu = env.cpu();
    let dst = (code >> 16 & 15) as usize;
    let mut r = cpu.xmm[dst];
    let flags = op.run(&mut r, lo, hi, cpu.mxcsr);
    cpu.mxcsr |= flags;
    if flags & !(cpu.mxcsr >> 7) & MXCSR_FLAGS != 0 {
        return Err(if cpu.cr4 & cr4::OSXMMEXCPT != 0 { fault::xm() } else { fault::ud() });
    }
    if code & KEEP_DST == 0 {
        cpu.xmm[dst] = r;
    }
    Ok(r as u64)
}

fn sse_int<E: Env>(env: &mut E, code: u64, lo: u64, hi: u64) -> Res {
    if let Some(op) = IntOp::ALL.get(usize::from(code as u16)) {
        let x = &mut env.cpu().xmm[(code >> 16 & 15) as usize];
        *x = op.eval(*x, vector(lo, hi));
    }
    Ok(0)
}

/// Operand of `MMX_INT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MmxOp {
    Vec(VecOp),
    Int(IntOp),
    /// PSHUFW with this immediate.
    Shuffle(u8),
}

impl MmxOp {
    pub fn code(self) -> u64 {
        match self {
            MmxOp::Vec(v) => v as u64,
            MmxOp::Int(i) => i as u64 | 1 << 16,
            MmxOp::Shuffle(imm) => u64::from(imm) | 2 << 16,
        }
    }

    fn from_code(c: u64) -> Option<MmxOp> {
        match c >> 16 {
            0 => VecOp::from_index(c as u16).map(MmxOp::Vec),
            1 => IntOp::ALL.get(usize::from(c as u16)).copied().map(MmxOp::Int),
            _ => Some(MmxOp::Shuffle(c as u8)),
        }
    }

    /// The operation on 64-bit vectors, from that on 128-bit ones.
    pub fn eval(self, a: u64, b: u64) -> u64 {
        let (x, y) = (u128::from(a), u128::from(b));
        match self {
            MmxOp::Vec(v @ (VecOp::PackS16 | VecOp::PackS32 | VecOp::PackU16)) => v.eval(vector(a, b), 0) as u64,
            MmxOp::Vec(VecOp::UnpkHi8) => (VecOp::UnpkLo8.eval(x, y) >> 64) as u64,
            MmxOp::Vec(VecOp::UnpkHi16) => (VecOp::UnpkLo16.eval(x, y) >> 64) as u64,
            MmxOp::Vec(VecOp::UnpkHi32) => (VecOp::UnpkLo32.eval(x, y) >> 64) as u64,
            MmxOp::Vec(v) => v.eval(x, y) as u64,
            MmxOp::Int(i) => i.eval(x, y) as u64,
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
    for i in (0..n).filter(selected) {
        env.probe(vm_core::Va(va.wrapping_add(i.into())), 1, vm_core::guest::Access::Write, ctx)?;
    }
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
