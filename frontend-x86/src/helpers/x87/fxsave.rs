//! FXSAVE and FXRSTOR (SDM 1 "Operation of FXSAVE", "FXSAVE Area").

use super::env::selectors;
use super::stack::{from_bytes, physical, to_bytes, update_summary};
use crate::helpers::sse::MXCSR_WRITABLE;
use arch_x86::cpuid::feature;
use arch_x86::fault::vector;
use arch_x86::state::efer;
use arch_x86::CpuState;
use vm_core::Fault;

/// Where the XMM registers begin.
const XMM: usize = 160;

/// Number of XMM registers saved: 16 in 64-bit mode, none with the fast form of AMD (EFER.FFXSR, CPL 0, 64-bit mode).
fn xmm_count(cpu: &CpuState) -> usize {
    match (cpu.mode().is_64(), cpu.efer & efer::FFXSR != 0 && cpu.cpl == 0) {
        (true, true) => 0,
        (true, false) => 16,
        _ => 8,
    }
}

/// Contents of the area and how many of its bytes FXSAVE writes.
pub fn save(cpu: &CpuState, wide: bool) -> ([u8; 512], usize) {
    image(cpu, wide, xmm_count(cpu))
}

/// The same with `n` XMM registers.
pub fn image(cpu: &CpuState, wide: bool, n: usize) -> ([u8; 512], usize) {
    let mut m = [0u8; 512];
    let mut put = |at: usize, b: &[u8]| m[at..at + b.len()].copy_from_slice(b);
    put(0, &cpu.fcw.to_le_bytes());
    put(2, &cpu.fsw.to_le_bytes());
    put(4, &[cpu.ftw]);
    put(6, &cpu.fop.to_le_bytes());
    if wide {
        put(8, &cpu.fip.to_le_bytes());
        put(16, &cpu.fdp.to_le_bytes());
    } else {
        let (fcs, fds) = selectors(cpu);
        put(8, &(cpu.fip as u32).to_le_bytes());
        put(12, &fcs.to_le_bytes());
        put(16, &(cpu.fdp as u32).to_le_bytes());
        put(20, &fds.to_le_bytes());
    }
    put(24, &cpu.mxcsr.to_le_bytes());
    put(28, &MXCSR_WRITABLE.to_le_bytes());
    for i in 0..8u8 {
        put(32 + 16 * usize::from(i), &to_bytes(cpu.fpr[physical(cpu, i)]));
    }
    for (i, x) in cpu.xmm.iter().take(n).enumerate() {
        put(XMM + 16 * i, &x.to_le_bytes());
    }
    (m, XMM + 16 * n)
}

fn word(m: &[u8; 512], at: usize) -> u16 {
    u16::from_le_bytes([m[at], m[at + 1]])
}

fn dword(m: &[u8; 512], at: usize) -> u32 {
    u32::from(word(m, at)) | u32::from(word(m, at + 2)) << 16
}

fn qword(m: &[u8; 512], at: usize) -> u64 {
    u64::from(dword(m, at)) | u64::from(dword(m, at + 4)) << 32
}

/// #GP(0) for reserved bits in MXCSR.
pub fn restore(cpu: &mut CpuState, m: &[u8; 512], wide: bool) -> Result<(), Fault> {
    let mxcsr = mxcsr(m)?;
    cpu.mxcsr = mxcsr;
    restore_x87(cpu, m, wide);
    restore_xmm(cpu, m, xmm_count(cpu));
    cpu.update_mode();
    Ok(())
}

/// MXCSR of the area. Errors: #GP(0) for reserved bits.
pub fn mxcsr(m: &[u8; 512]) -> Result<u32, Fault> {
    let v = dword(m, 24);
    if v & !MXCSR_WRITABLE != 0 {
        return Err(Fault { vector: vector::GP, error: Some(0), addr: 0 });
    }
    Ok(v)
}

/// The pointers have as many bits as linear addresses (SDM 1 "x87 State", XRSTOR).
fn canonical(cpu: &CpuState, v: u64) -> u64 {
    let unused = if cpu.has(feature::LA57) { 64 - 57 } else { 64 - 48 };
    ((v << unused) as i64 >> unused) as u64
}

pub fn restore_x87(cpu: &mut CpuState, m: &[u8; 512], wide: bool) {
    cpu.fcw = word(m, 0) & 0x1f3f | 0x40;
    cpu.fsw = word(m, 2);
    cpu.ftw = m[4];
    cpu.fop = word(m, 6) & 0x7ff;
    if wide {
        (cpu.fip, cpu.fdp) = (canonical(cpu, qword(m, 8)), canonical(cpu, qword(m, 16)));
    } else {
        (cpu.fip, cpu.fcs) = (dword(m, 8).into(), word(m, 12));
        (cpu.fdp, cpu.fds) = (dword(m, 16).into(), word(m, 20));
    }
    for i in 0..8u8 {
        let at = 32 + 16 * usize::from(i);
        cpu.fpr[physical(cpu, i)] = from_bytes(&m[at..at + 10]);
    }
    update_summary(cpu);
}

/// The first `n` XMM registers.
pub fn restore_xmm(cpu: &mut CpuState, m: &[u8; 512], n: usize) {
    for (i, x) in cpu.xmm.iter_mut().enumerate().take(n) {
        let at = XMM + 16 * i;
        *x = u128::from(qword(m, at)) | u128::from(qword(m, at + 8)) << 64;
    }
}
