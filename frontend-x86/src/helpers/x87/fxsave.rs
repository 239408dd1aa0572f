//! FXSAVE and FXRSTOR (SDM 1 "Operation of FXSAVE", "FXSAVE Area").

use super::stack::{from_bytes, physical, to_bytes, update_summary};
use crate::helpers::sse::MXCSR_WRITABLE;
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

/// Contents of the area and how many of its bytes are written.
pub fn save(cpu: &CpuState, wide: bool) -> ([u8; 512], usize) {
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
        put(8, &(cpu.fip as u32).to_le_bytes());
        put(12, &cpu.fcs.to_le_bytes());
        put(16, &(cpu.fdp as u32).to_le_bytes());
        put(20, &cpu.fds.to_le_bytes());
    }
    put(24, &cpu.mxcsr.to_le_bytes());
    put(28, &MXCSR_WRITABLE.to_le_bytes());
    for i in 0..8u8 {
        put(32 + 16 * usize::from(i), &to_bytes(cpu.fpr[physical(cpu, i)]));
    }
    let n = xmm_count(cpu);
    for (i, x) in cpu.xmm.iter().take(n).enumerate() {
        put(XMM + 16 * i, &x.to_le_bytes());
    }
    (m, XMM + 16 * n)
}

/// #GP(0) for reserved bits in MXCSR.
pub fn restore(cpu: &mut CpuState, m: &[u8; 512], wide: bool) -> Result<(), Fault> {
    let word = |at: usize| u16::from_le_bytes([m[at], m[at + 1]]);
    let dword = |at: usize| u32::from(word(at)) | u32::from(word(at + 2)) << 16;
    let qword = |at: usize| u64::from(dword(at)) | u64::from(dword(at + 4)) << 32;
    let mxcsr = dword(24);
    if mxcsr & !MXCSR_WRITABLE != 0 {
        return Err(Fault { vector: vector::GP, error: Some(0), addr: 0 });
    }
    cpu.mxcsr = mxcsr;
    cpu.fcw = word(0) & 0x1f3f | 0x40;
    cpu.fsw = word(2);
    cpu.ftw = m[4];
    cpu.fop = word(6) & 0x7ff;
    if wide {
        (cpu.fip, cpu.fdp) = (qword(8), qword(16));
    } else {
        (cpu.fip, cpu.fcs) = (dword(8).into(), word(12));
        (cpu.fdp, cpu.fds) = (dword(16).into(), word(20));
    }
    for i in 0..8u8 {
        let at = 32 + 16 * usize::from(i);
        cpu.fpr[physical(cpu, i)] = from_bytes(&m[at..at + 10]);
    }
    for i in 0..xmm_count(cpu) {
        let at = XMM + 16 * i;
        cpu.xmm[i] = u128::from(qword(at)) | u128::from(qword(at + 8)) << 64;
    }
    update_summary(cpu);
    cpu.update_mode();
    Ok(())
}
