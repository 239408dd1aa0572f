//! The x87 state as the host's FNSAVE and FRSTOR have it (SDM 1 "Protected Mode x87 FPU State Image in Memory, 32-Bit
//! Format"), for engines that execute the guest's x87 instructions as the host's.

use crate::state::{CpuState, F80};
use vm_core::guest::X87_IMAGE;

/// Exceptions in the control and the status word.
const EXCEPTIONS: u16 = 0x3f;
/// Summary of unmasked exceptions in the status word.
const ES: u16 = 1 << 7;
/// Where the registers begin: ST(0) first, ten bytes each.
const REGISTERS: usize = 28;

fn physical(fsw: u16, i: usize) -> usize {
    (usize::from(fsw >> 11) + i) & 7
}

/// `None` if an exception could be raised, which the host's would not be.
pub fn image(cpu: &CpuState) -> Option<[u8; X87_IMAGE]> {
    if cpu.fcw & EXCEPTIONS != EXCEPTIONS || cpu.fsw & ES != 0 {
        return None;
    }
    let mut image = [0; X87_IMAGE];
    // Of a register that is not empty the FPU finds the rest of the tag itself.
    let tags = (0..8).fold(0, |t, i| if cpu.ftw >> i & 1 == 0 { t | 3 << (2 * i) } else { t });
    for (i, word) in [cpu.fcw, cpu.fsw, tags].into_iter().enumerate() {
        image[4 * i..4 * i + 2].copy_from_slice(&word.to_le_bytes());
    }
    for (i, bytes) in image[REGISTERS..].as_chunks_mut::<10>().0.iter_mut().enumerate() {
        let r = cpu.fpr[physical(cpu.fsw, i)];
        bytes[..8].copy_from_slice(&r.mant.to_le_bytes());
        bytes[8..].copy_from_slice(&r.sexp.to_le_bytes());
    }
    Some(image)
}

/// Pointers of the last instruction stay as they are: the host's are its own.
pub fn set_image(cpu: &mut CpuState, image: &[u8; X87_IMAGE]) {
    let word = |i: usize| u16::from_le_bytes([image[4 * i], image[4 * i + 1]]);
    (cpu.fcw, cpu.fsw) = (word(0), word(1));
    let tags = word(2);
    cpu.ftw = (0..8).fold(0, |t, i| if tags >> (2 * i) & 3 == 3 { t } else { t | 1 << i });
    for (i, bytes) in image[REGISTERS..].as_chunks::<10>().0.iter().enumerate() {
        let [m @ .., s, t] = *bytes;
        cpu.fpr[physical(cpu.fsw, i)] = F80 { mant: u64::from_le_bytes(m), sexp: u16::from_le_bytes([s, t]) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh() -> CpuState {
        CpuState::new(&crate::models::configure("qemu64", &[]).unwrap(), 0)
    }

    fn state() -> CpuState {
        let mut cpu = CpuState { fcw: 0x27f, fsw: 5 << 11 | 0x4121, ftw: 0b1010_0110, fip: 7, ..fresh() };
        for (i, r) in cpu.fpr.iter_mut().enumerate() {
            *r = F80 { mant: 0x8000_0000_0000_0000 | i as u64, sexp: 0x3fff + i as u16 };
        }
        cpu
    }

    #[test]
    fn what_the_image_has_comes_back() {
        let cpu = state();
        let image = image(&cpu).expect("all exceptions are masked");
        assert_eq!(&image[28..36], &cpu.fpr[5].mant.to_le_bytes(), "ST(0) first");
        let mut other = CpuState { fip: 7, ..fresh() };
        set_image(&mut other, &image);
        assert_eq!((other.fcw, other.fsw, other.ftw, other.fip, other.fpr), (cpu.fcw, cpu.fsw, cpu.ftw, 7, cpu.fpr));
    }

    #[test]
    fn there_is_none_where_exceptions_may_be_raised() {
        assert_eq!(image(&CpuState { fcw: 0x27e, ..state() }), None);
        assert_eq!(image(&CpuState { fsw: ES, ..state() }), None);
    }
}
