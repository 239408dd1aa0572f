//! Masked moves and gathers of AVX (SDM 2 "VMASKMOV", "VPGATHERDD"): elements that the mask leaves out are not accessed.

use super::segment::linear;
use super::vector::half;
use super::{ANY, Env, Res};
use arch_x86::flags::bit;
use arch_x86::{Mode, SegReg};
use vm_core::{Access, Fault, Va};

rows! {
    topic masked;
    /// (`code`, offset, segment | bits of an offset << 8): elements left out become 0.
    MASKED_LOAD = masked_load(3) ANY;
    MASKED_STORE = masked_store(3) ANY;
    /// (`Gather::pack`, offset, segment): 1 if a trap is due before the rest can be done.
    GATHER = gather(3) ANY;
}

/// Elements of `bytes` (4, 8) in vectors of `width` (16, 32) bytes: data register and mask register.
pub fn code(bytes: u32, width: u32, data: u32, mask: u32) -> u64 {
    u64::from(bytes) | u64::from(width) << 8 | u64::from(data) << 16 | u64::from(mask) << 24
}

/// A vector register of 256 bits as bytes.
fn register<E: Env>(env: &E, n: usize) -> [u8; 32] {
    let cpu = env.cpu_ref();
    let mut b = [0; 32];
    b[..16].copy_from_slice(&cpu.xmm[n & 15].to_le_bytes());
    b[16..].copy_from_slice(&cpu.ymmh[n & 15].to_le_bytes());
    b
}

fn set_register<E: Env>(env: &mut E, n: usize, b: &[u8; 32]) {
    let part = |at: usize| b[at..at + 16].iter().rev().fold(0u128, |v, b| v << 8 | u128::from(*b));
    let cpu = env.cpu();
    *half(cpu, n & 15) = part(0);
    *half(cpu, n & 15 | 16) = part(16);
}

/// Fields of `code`: bytes, width, data, mask.
fn unpack(code: u64) -> (usize, usize, usize, usize) {
    let [bytes, width, data, mask, ..] = code.to_le_bytes();
    (if bytes == 8 { 8 } else { 4 }, usize::from(width.min(32)), data.into(), mask.into())
}

/// Offsets of the elements whose mask has its top bit set.
fn selected(mask: &[u8; 32], bytes: usize, width: usize) -> impl Iterator<Item = usize> {
    let mask = *mask;
    (0..width).step_by(bytes).filter(move |at| mask[at + bytes - 1] & 0x80 != 0)
}

/// Linear address of the element at `at`, checked by itself: those left out cannot fault.
fn element<E: Env>(env: &E, offset: u64, at: usize, how: u64, bytes: usize, write: bool) -> Result<Va, Fault> {
    let seg = SegReg::from_index(how & 0xff).unwrap_or(SegReg::Ds);
    let offset = offset.wrapping_add(at as u64) & (u64::MAX >> (64 - (how >> 8 & 0x7f).clamp(16, 64)));
    linear(env.cpu_ref(), seg, offset, bytes as u64, write).map(Va)
}

fn masked_load<E: Env>(env: &mut E, code: u64, offset: u64, how: u64) -> Res {
    let (bytes, width, data, mask) = unpack(code);
    let (mask, ctx) = (register(env, mask), env.cpu_ref().mode().ctx());
    let mut r = [0; 32];
    for at in selected(&mask, bytes, width) {
        let va = element(env, offset, at, how, bytes, false)?;
        let v = env.load(va, bytes as u8, ctx)?;
        r[at..at + bytes].copy_from_slice(&v.to_le_bytes()[..bytes]);
    }
    set_register(env, data, &r);
    Ok(0)
}

fn masked_store<E: Env>(env: &mut E, code: u64, offset: u64, how: u64) -> Res {
    let (bytes, width, data, mask) = unpack(code);
    let (data, mask, ctx) = (register(env, data), register(env, mask), env.cpu_ref().mode().ctx());
    for at in selected(&mask, bytes, width) {
        let va = element(env, offset, at, how, bytes, true)?;
        env.probe(va, bytes as u64, Access::Write, ctx)?;
    }
    for at in selected(&mask, bytes, width) {
        let mut v = [0; 8];
        v[..bytes].copy_from_slice(&data[at..at + bytes]);
        let va = element(env, offset, at, how, bytes, true)?;
        env.store(va, bytes as u8, u64::from_le_bytes(v), ctx)?;
    }
    Ok(0)
}

/// A gather: element and index size in bytes, number of elements, registers, scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gather {
    pub bytes: u32,
    pub index_bytes: u32,
    pub n: u32,
    pub dst: u32,
    pub mask: u32,
    pub index: u32,
    pub scale: u32,
    /// Offsets have 32 bits.
    pub narrow: bool,
}

impl Gather {
    pub fn pack(self) -> u64 {
        let b = |v: u32| v as u8;
        u64::from_le_bytes([
            b(self.bytes),
            b(self.index_bytes),
            b(self.n),
            b(self.dst),
            b(self.mask),
            b(self.index),
            b(self.scale),
            self.narrow.into(),
        ])
    }
}

/// Loads an element, with the checks of its address.
fn one<E: Env>(env: &mut E, seg: SegReg, offset: u64, bytes: usize) -> Result<u64, Fault> {
    let mode = env.cpu_ref().mode();
    let offset = if mode.is_64() { offset } else { offset & 0xffff_ffff };
    let va = linear(env.cpu_ref(), seg, offset, bytes as u64, false)?;
    if mode.has(Mode::ALIGN) {
        arch_x86::segment::aligned(env.cpu_ref(), va, bytes as u64, bytes as u64)?;
    }
    env.load(Va(va), bytes as u8, mode.ctx())
}

/// Little-endian number, sign-extended.
fn signed(b: &[u8]) -> u64 {
    if b.len() == 4 { i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as u64 } else { b.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b)) }
}

/// Elements are gathered in order. A fault leaves those before it in the destination, the masks up to it cleared, and the masks of the
/// others as they were; a trap that is due by then comes in its place, with RF set (SDM 2 "VPGATHERDD").
fn gather<E: Env>(env: &mut E, code: u64, offset: u64, seg: u64) -> Res {
    let [bytes, index_bytes, n, dst, mask, index, scale, narrow] = code.to_le_bytes();
    let (bytes, index_bytes) = (usize::from(bytes).clamp(4, 8), usize::from(index_bytes).clamp(4, 8));
    let n = usize::from(n).min(32 / bytes.max(index_bytes));
    let seg = SegReg::from_index(seg).unwrap_or(SegReg::Ds);
    let (index, mut masks) = (register(env, index.into()), register(env, mask.into()));
    let (mut r, mut some) = (register(env, dst.into()), false);
    for i in 0..n {
        if masks[(i + 1) * bytes - 1] & 0x80 == 0 {
            masks[i * bytes..][..bytes].fill(0);
            continue;
        }
        let at = signed(&index[i * index_bytes..][..index_bytes]).wrapping_mul(scale.into()).wrapping_add(offset);
        let at = if narrow != 0 { at & 0xffff_ffff } else { at };
        match one(env, seg, at, bytes) {
            Ok(v) => r[i * bytes..][..bytes].copy_from_slice(&v.to_le_bytes()[..bytes]),
            Err(f) => {
                set_register(env, dst.into(), &r);
                set_register(env, mask.into(), &masks);
                if !(some && f.vector < 32 && env.cpu_ref().trap_due()) {
                    return Err(f);
                }
                env.cpu().eflags |= bit::RF;
                return Ok(1);
            }
        }
        some = true;
        masks[i * bytes..][..bytes].fill(0);
    }
    // What lies above the last element is cleared, and the mask wholly.
    r[n * bytes..].fill(0);
    set_register(env, dst.into(), &r);
    set_register(env, mask.into(), &[0; 32]);
    Ok(0)
}

