//! The x87 register stack, status word and exceptions (SDM 1 "x87 FPU Execution Environment").

use arch_x86::{CpuState, F80};

/// Status word bits; the low six are also the masks in the control word.
pub mod sw {
    pub const IE: u16 = 1 << 0;
    pub const DE: u16 = 1 << 1;
    pub const ZE: u16 = 1 << 2;
    pub const FLAGS: u16 = 0x3f;
    pub const SF: u16 = 1 << 6;
    pub const ES: u16 = 1 << 7;
    pub const C0: u16 = 1 << 8;
    pub const C1: u16 = 1 << 9;
    pub const C2: u16 = 1 << 10;
    pub const C3: u16 = 1 << 14;
    pub const B: u16 = 1 << 15;
    pub const CC: u16 = C0 | C1 | C2 | C3;
    pub const TOP_SHIFT: u32 = 11;
    pub const TOP: u16 = 7 << TOP_SHIFT;
}

/// The QNaN that masked invalid operations give.
pub const INDEFINITE: F80 = F80 { mant: 0xc000_0000_0000_0000, sexp: 0xffff };

/// Index of the physical register that is ST(i).
pub fn physical(cpu: &CpuState, i: u8) -> usize {
    usize::from((cpu.fsw >> sw::TOP_SHIFT).wrapping_add(i.into()) & 7)
}

pub fn to_bytes(v: F80) -> [u8; 16] {
    let mut b = [0; 16];
    b[..8].copy_from_slice(&v.mant.to_le_bytes());
    b[8..10].copy_from_slice(&v.sexp.to_le_bytes());
    b
}

/// From at least ten bytes (missing ones count as 0).
pub fn from_bytes(b: &[u8]) -> F80 {
    let mut v = [0; 10];
    let n = b.len().min(10);
    v[..n].copy_from_slice(&b[..n]);
    let [m @ .., s, t] = v;
    F80 { mant: u64::from_le_bytes(m), sexp: u16::from_le_bytes([s, t]) }
}

/// The CPU's x87 part.
pub struct Fpu<'a>(pub &'a mut CpuState);

impl Fpu<'_> {
    pub fn control(&self) -> u16 {
        self.0.fcw
    }

    /// Loads the control word; ES follows the new masks (SDM 2 "FLDCW").
    pub fn set_control(&mut self, v: u16) {
        self.0.fcw = v & 0x1f3f | 0x40;
        update_summary(self.0);
    }

    pub fn empty(&self, i: u8) -> bool {
        self.0.ftw >> physical(self.0, i) & 1 == 0
    }

    pub fn get(&self, i: u8) -> F80 {
        self.0.fpr[physical(self.0, i)]
    }

    /// Writes ST(i) and tags it valid.
    pub fn set(&mut self, i: u8, v: F80) {
        let p = physical(self.0, i);
        self.0.fpr[p] = v;
        self.0.ftw |= 1 << p;
    }

    pub fn free(&mut self, i: u8) {
        self.0.ftw &= !(1 << physical(self.0, i));
    }

    pub fn rotate(&mut self, by: u8) {
        let top = (self.0.fsw >> sw::TOP_SHIFT).wrapping_add(by.into()) & 7;
        self.0.fsw = self.0.fsw & !sw::TOP | top << sw::TOP_SHIFT;
    }

    pub fn pop(&mut self, n: u8) {
        for _ in 0..n {
            self.free(0);
            self.rotate(1);
        }
    }

    pub fn push(&mut self, v: F80) {
        self.rotate(7);
        self.set(0, v);
    }

    /// Sets exception flags, and the condition codes in `mask` from `status`.
    pub fn status(&mut self, status: u16, mask: u16) {
        self.0.fsw = self.0.fsw & !mask | status & (sw::FLAGS | mask);
        update_summary(self.0);
    }

    /// Stack overflow or underflow. `true`: masked, the default response follows.
    pub fn stack_fault(&mut self, overflow: bool) -> bool {
        self.0.fsw |= sw::SF;
        self.status(sw::IE | if overflow { sw::C1 } else { 0 }, sw::C1);
        self.0.fcw & sw::IE != 0
    }

    /// Does one of these exceptions (of those in `which`) keep the result from being written?
    pub fn blocks(&self, status: u16, which: u16) -> bool {
        status & which & !self.0.fcw & sw::FLAGS != 0
    }
}

/// ES and B tell whether an unmasked exception is pending.
pub fn update_summary(cpu: &mut CpuState) {
    let pending = cpu.fsw & !cpu.fcw & sw::FLAGS != 0;
    cpu.fsw = cpu.fsw & !(sw::ES | sw::B) | if pending { sw::ES | sw::B } else { 0 };
}
