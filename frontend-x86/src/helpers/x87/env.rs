//! The x87 environment in memory: FNSTENV, FLDENV, FNSAVE, FRSTOR, FNINIT (SDM 1 "Saving the x87 FPU's State").

use super::stack::update_summary;
use arch_x86::CpuState;
use arch_x86::cpuid::feature;

/// Size of the 32-bit format.
pub const LONG: usize = 28;
const SHORT: usize = 14;

pub fn size(short: bool) -> usize {
    if short { SHORT } else { LONG }
}

/// FNINIT.
pub fn init(cpu: &mut CpuState) {
    (cpu.fcw, cpu.fsw, cpu.ftw, cpu.fop) = (0x37f, 0, 0, 0);
    (cpu.fip, cpu.fdp, cpu.fcs, cpu.fds) = (0, 0, 0, 0);
}

/// The tag word with two bits a register: 0 valid, 1 zero, 2 special, 3 empty (SDM 1 "x87 FPU Tag Word").
fn full_tags(cpu: &CpuState) -> u16 {
    (0..8).fold(0, |tags, i| {
        let r = cpu.fpr[i];
        let tag = match (cpu.ftw >> i & 1, r.sexp & 0x7fff, r.mant) {
            (0, _, _) => 3,
            (_, 0, 0) => 1,
            (_, 0 | 0x7fff, _) => 2,
            (_, _, m) if m >> 63 == 0 => 2,
            _ => 0,
        };
        tags | tag << (2 * i)
    })
}

/// The selectors of the pointers, as they are saved.
pub fn selectors(cpu: &CpuState) -> (u16, u16) {
    if cpu.has(feature::ZERO_FCS_FDS) { (0, 0) } else { (cpu.fcs, cpu.fds) }
}

/// The fields of either format, in order.
fn fields(cpu: &CpuState) -> [u32; 7] {
    let (cw, sw, tw) = (u32::from(cpu.fcw), u32::from(cpu.fsw), u32::from(full_tags(cpu)));
    let fop = u32::from(cpu.fop & 0x7ff);
    if cpu.mode().protected() {
        let (fcs, fds) = selectors(cpu);
        return [cw, sw, tw, cpu.fip as u32, u32::from(fcs) | fop << 16, cpu.fdp as u32, fds.into()];
    }
    // Real mode: linear addresses.
    let linear = |seg: u16, off: u64| (u32::from(seg) << 4).wrapping_add(off as u32);
    let (ip, dp) = (linear(cpu.fcs, cpu.fip), linear(cpu.fds, cpu.fdp));
    [cw, sw, tw, ip & 0xffff, ip >> 16 << 12 | fop, dp & 0xffff, dp >> 16 << 12]
}

/// Bytes of the environment. Reserved upper halves read as ones.
pub fn environment(cpu: &CpuState, short: bool) -> Vec<u8> {
    let protected = cpu.mode().protected();
    let mut out = Vec::with_capacity(LONG + 80);
    for (i, v) in fields(cpu).into_iter().enumerate() {
        if short {
            out.extend_from_slice(&(v as u16).to_le_bytes());
        } else {
            let reserved = matches!(i, 0..=2) || i == 6 && protected || matches!(i, 3 | 5) && !protected;
            out.extend_from_slice(&(v | if reserved { 0xffff_0000 } else { 0 }).to_le_bytes());
        }
    }
    out
}

/// Loads what `environment` stored; the format is told by the length.
pub fn load_environment(cpu: &mut CpuState, bytes: &[u8]) {
    let short = bytes.len() < LONG;
    let step = if short { 2 } else { 4 };
    let mut f = [0u32; 7];
    for (f, b) in f.iter_mut().zip(bytes.chunks_exact(step)) {
        let mut v = [0; 4];
        v[..step].copy_from_slice(b);
        *f = u32::from_le_bytes(v);
    }
    cpu.fcw = f[0] as u16 & 0x1f3f | 0x40;
    cpu.fsw = f[1] as u16;
    cpu.ftw = (0..8).fold(0, |t, i| if f[2] >> (2 * i) & 3 == 3 { t } else { t | 1 << i });
    if cpu.mode().protected() {
        (cpu.fip, cpu.fcs) = (f[3].into(), f[4] as u16);
        (cpu.fdp, cpu.fds) = (f[5].into(), f[6] as u16);
        cpu.fop = if short { 0 } else { (f[4] >> 16) as u16 & 0x7ff };
    } else {
        (cpu.fip, cpu.fcs) = (u64::from(f[3] & 0xffff | f[4] >> 12 << 16), 0);
        (cpu.fdp, cpu.fds) = (u64::from(f[5] & 0xffff | f[6] >> 12 << 16), 0);
        cpu.fop = f[4] as u16 & 0x7ff;
    }
    update_summary(cpu);
}
