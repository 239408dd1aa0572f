//! XSAVE, XSAVEOPT, XSAVEC, XSAVES and XRSTOR, XRSTORS (SDM 1 chapter 13): x87, SSE, AVX and PKRU state. There are no supervisor
//! components: IA32_XSS is 0.

use super::{Env, env, fxsave};
use arch_x86::state::{cr0, cr4};
use arch_x86::{CpuState, F80, control, fault};
use vm_core::{Access, Fault, Va};

/// State components.
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
const PKRU: u64 = 1 << 9;
/// XCOMP_BV: the compacted format.
const COMPACTED: u64 = 1 << 63;
const MXCSR_INIT: u32 = 0x1f80;
/// Header and AVX component, which both formats have at the same place, and the PKRU component in the standard one.
const HEADER: u64 = 512;
const UPPER: u64 = 576;
const KEYS: u64 = 2688;

/// Where the PKRU component is: `format` is XCOMP_BV.
fn keys_at(format: u64) -> u64 {
    if format & COMPACTED == 0 {
        KEYS
    } else {
        UPPER + if format & AVX != 0 { 256 } else { 0 }
    }
}

/// Beside the kind of an instruction: it has REX.W.
pub const WIDE: u64 = 1 << 8;
/// It is XSAVES or XRSTORS.
pub const SUPERVISOR: u64 = 1 << 9;

/// What kind of XSAVE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Plain,
    /// Leaves out components in their initial state.
    Optimised,
    /// The same, in the compacted format.
    Compacted,
}

/// What all of them raise first (SDM 2 "XSAVE", "Protected Mode Exceptions").
fn check<E: Env>(env: &E, addr: u64, how: u64) -> Result<(), Fault> {
    let cpu = env.cpu_ref();
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(fault::ud());
    }
    if cpu.cr0 & cr0::TS != 0 {
        return Err(fault::nm());
    }
    if addr & 63 == 0 && (how & SUPERVISOR == 0 || cpu.cpl == 0) { Ok(()) } else { Err(fault::gp(0)) }
}

/// Components that are not in their initial state (XINUSE). XMM8 and up count outside 64-bit mode too.
fn in_use(cpu: &CpuState) -> u64 {
    let regs = cpu.fpr.iter().any(|r| *r != F80::default());
    let control = (cpu.fcw, cpu.fsw, cpu.ftw, cpu.fop) != (0x37f, 0, 0, 0) || (cpu.fip, cpu.fdp) != (0, 0);
    let bit = |on: bool, b: u64| if on { b } else { 0 };
    bit(regs || control, X87)
        | bit(cpu.xmm != [0; 16], SSE)
        | bit(cpu.ymmh != [0; 16], AVX)
        | bit(cpu.pkru != 0, PKRU)
}

fn registers(cpu: &CpuState) -> usize {
    if cpu.mode().is_64() { 16 } else { 8 }
}

/// Pieces of the area that are written: offset and bytes.
struct Pieces(Vec<(u64, Vec<u8>)>);

impl Pieces {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0.push((at, bytes.to_vec()));
    }

    /// Writes all or nothing.
    fn store<E: Env>(&self, env: &mut E, addr: u64) -> Result<(), Fault> {
        let ctx = env.cpu_ref().mode().ctx();
        for (at, bytes) in &self.0 {
            env.probe(Va(addr.wrapping_add(*at)), bytes.len() as u64, Access::Write, ctx)?;
        }
        for (at, bytes) in &self.0 {
            super::store(env, addr.wrapping_add(*at), bytes)?;
        }
        Ok(())
    }
}

/// `asked`: EDX:EAX. `how`: `WIDE` and `SUPERVISOR`.
pub fn save<E: Env>(env: &mut E, addr: u64, asked: u64, kind: Kind, how: u64) -> Result<(), Fault> {
    check(env, addr, how)?;
    let mut header = [0; 8];
    super::load(env, addr.wrapping_add(HEADER), &mut header)?;
    let cpu = env.cpu_ref();
    let mask = asked & cpu.xcr0;
    let mut used = in_use(cpu) & mask;
    if kind == Kind::Compacted && mask & SSE != 0 && cpu.mxcsr != MXCSR_INIT {
        used |= SSE;
    }
    let written = if kind == Kind::Plain { mask } else { used };
    let (image, _) = fxsave::image(cpu, how & WIDE != 0, registers(cpu));
    let mut p = Pieces(Vec::new());
    if written & X87 != 0 {
        p.put(0, &image[..24]);
        p.put(32, &image[32..160]);
    }
    let control = if kind == Kind::Compacted { written & SSE } else { mask & (SSE | AVX) };
    if control != 0 {
        p.put(24, &image[24..32]);
    }
    if written & SSE != 0 {
        p.put(160, &image[160..160 + 16 * registers(cpu)]);
    }
    if written & AVX != 0 {
        let upper: Vec<u8> = cpu.ymmh.iter().take(registers(cpu)).flat_map(|y| y.to_le_bytes()).collect();
        p.put(UPPER, &upper);
    }
    if written & PKRU != 0 {
        let format = if kind == Kind::Compacted { mask | COMPACTED } else { 0 };
        p.put(keys_at(format), &u64::from(cpu.pkru).to_le_bytes());
    }
    if kind == Kind::Compacted {
        p.put(HEADER, &used.to_le_bytes());
        p.put(HEADER + 8, &(mask | COMPACTED).to_le_bytes());
    } else {
        let old = u64::from_le_bytes(header);
        p.put(HEADER, &(old & !mask | used).to_le_bytes());
    }
    p.store(env, addr)
}

/// `asked`: EDX:EAX. Errors: #UD, #NM, #GP(0), page faults; nothing has changed then.
pub fn restore<E: Env>(env: &mut E, addr: u64, asked: u64, how: u64) -> Result<(), Fault> {
    check(env, addr, how)?;
    let mut header = [0; 64];
    super::load(env, addr.wrapping_add(HEADER), &mut header)?;
    let word = |n: usize| header[8 * n..8 * n + 8].iter().rev().fold(0u64, |v, b| v << 8 | u64::from(*b));
    let (there, format) = (word(0), word(1));
    let cpu = env.cpu_ref();
    let compacted = format & COMPACTED != 0;
    let allowed = if compacted { format & !COMPACTED & cpu.xcr0 } else { cpu.xcr0 };
    let bad_format = if compacted { format & !COMPACTED & !cpu.xcr0 != 0 || !has_compaction(cpu) } else { format != 0 };
    let bad_format = bad_format || how & SUPERVISOR != 0 && !compacted;
    let reserved = if compacted { &header[16..] } else { &header[16..24] };
    if bad_format || there & !allowed != 0 || reserved.iter().any(|b| *b != 0) {
        return Err(fault::gp(0));
    }
    let (mask, n) = (asked & cpu.xcr0, registers(cpu));
    let mut image = [0; 512];
    super::load(env, addr, &mut image)?;
    let mut upper = [0; 256];
    if mask & there & AVX != 0 {
        super::load(env, addr.wrapping_add(UPPER), &mut upper[..16 * n])?;
    }
    let mut keys = [0; 8];
    if mask & there & PKRU != 0 {
        super::load(env, addr.wrapping_add(keys_at(format)), &mut keys)?;
    }
    let with_control = if compacted { mask & there & SSE } else { mask & (SSE | AVX) };
    let mxcsr = if with_control != 0 { Some(fxsave::mxcsr(&image)?) } else { None };
    let cpu = env.cpu();
    if let Some(v) = mxcsr.or((compacted && mask & SSE != 0).then_some(MXCSR_INIT)) {
        cpu.mxcsr = v;
    }
    if mask & X87 != 0 {
        if there & X87 != 0 {
            fxsave::restore_x87(cpu, &image, how & WIDE != 0);
        } else {
            env::init(cpu);
            cpu.fpr = [F80::default(); 8];
        }
    }
    if mask & SSE != 0 {
        // The registers of a component in its initial state are zeroes.
        let zeroes = [0; 512];
        fxsave::restore_xmm(cpu, if there & SSE != 0 { &image } else { &zeroes }, n);
    }
    if mask & AVX != 0 {
        for (y, b) in cpu.ymmh.iter_mut().zip(upper.as_chunks::<16>().0).take(n) {
            *y = u128::from_le_bytes(*b);
        }
    }
    cpu.update_mode();
    if mask & PKRU != 0 {
        control::set_pkru(env, u64::from_le_bytes(keys) as u32);
    }
    super::settle(env);
    Ok(())
}

fn has_compaction(cpu: &CpuState) -> bool {
    cpu.has((arch_x86::cpuid::Word::XsaveEax, 1))
}

/// XGETBV with ECX = 1: the components of XCR0 that are in use.
pub fn used_of_enabled(cpu: &CpuState) -> u64 {
    in_use(cpu) & cpu.xcr0
}
