//! Every MMX, SSE and x87 instruction against the host CPU: the same bytes run natively and through translator, reference
//! interpreter and helpers, on random states, and all registers are compared.

mod avx_state;
mod guest;
mod native;
mod state;
mod x87_sse;

use vm_core::testing::Rng;

/// Architectural state on both sides, as FXSAVE lays it out.
#[repr(C, align(64))]
#[derive(Clone, PartialEq)]
pub struct Area {
    /// FXSAVE image.
    pub fx: [u8; 512],
    /// RAX RCX RDX, then RFLAGS.
    pub gpr: [u64; 4],
    /// What RSI points at.
    pub mem: [u8; 1024],
    /// Upper halves of YMM0 to 15.
    pub upper: [u8; 256],
    /// The host's own state while the guest's is loaded.
    host: [u8; 576],
}

/// Random operands.
pub trait Patterns {
    fn f32(&mut self) -> u64;
    fn f64(&mut self) -> u64;
    /// Eight bytes: one or two numbers, or any bits.
    fn lane(&mut self) -> u64;
    fn f80(&mut self) -> [u8; 10];
}

impl Patterns for Rng {
    /// A single-precision pattern: numbers near 1, of any size, denormals, zeroes, infinities, NaNs; integers too.
    fn f32(&mut self) -> u64 {
        let sign = self.below(2) << 31;
        let frac = self.next_u64() & 0x7f_ffff;
        sign | match self.below(8) {
            0 => self.pick(&[0, 0x7f80_0000, 0x7fc0_0001, 0x7f80_0001, 1, 0x7f_ffff, 0x80_0000, 0x7f7f_ffff]),
            1 => frac,
            2 => 0x7f80_0000 | frac,
            3 => self.next_u64() & 0x7fff_ffff,
            4 => (self.next_u64() & 0x1ff) << 18 | 0x4000_0000,
            _ => (120 + self.below(16)) << 23 | frac,
        }
    }

    fn f64(&mut self) -> u64 {
        let sign = self.below(2) << 63;
        let frac = self.next_u64() >> 12;
        let specials = [0, 0x7ff << 52, 0x7ff8 << 48 | 1, 0x7ff << 52 | 1, 1, (1 << 52) - 1, 1 << 52, 0x7fef_ffff_ffff_ffff];
        sign | match self.below(8) {
            0 => self.pick(&specials),
            1 => frac,
            2 => 0x7ff << 52 | frac,
            3 => self.next_u64() >> 1,
            4 => 0x400 << 52 | frac >> 45 << 45,
            5 => (1023 + self.below(70)) << 52 | frac,
            _ => (1015 + self.below(16)) << 52 | frac,
        }
    }

    fn lane(&mut self) -> u64 {
        match self.below(5) {
            0 | 1 => self.f64(),
            2 | 3 => self.f32() | self.f32() << 32,
            _ => self.next_u64(),
        }
    }

    /// An 80-bit pattern, unnormal and pseudo-denormal ones included.
    fn f80(&mut self) -> [u8; 10] {
        let sign = self.below(2) << 15;
        let int = 1 << 63;
        let m = self.next_u64();
        let (mant, exp) = match self.below(10) {
            0 if m & 1 == 0 => (0, 0),
            0 => (int, 0x7fff),
            1 => (m & !int, 0),
            2 => (m | int, 0x7fff),
            3 => (m, self.next_u64() & 0x7fff),
            4 => (m | int, self.next_u64() & 0x7fff),
            5 => (m >> 50 << 50 | int, 0x3fff + self.below(3)),
            6 => (m | int, 0x3fff + self.below(70)),
            7 => (m | int, 0x3fff + 1020 + self.below(10)),
            _ => (m | int, 0x3ff8 + self.below(14)),
        };
        let mut b = [0; 10];
        b[..8].copy_from_slice(&mant.to_le_bytes());
        b[8..].copy_from_slice(&((exp | sign) as u16).to_le_bytes());
        b
    }
}

impl Area {
    pub fn zeroed() -> Box<Area> {
        Box::new(Area { fx: [0; 512], gpr: [0; 4], mem: [0; 1024], upper: [0; 256], host: [0; 576] })
    }

    /// Fills everything; SSE exceptions masked, x87 ones only if `unmask`.
    pub fn randomize(&mut self, r: &mut Rng, unmask: bool) {
        let fcw = r.next_u64() as u16 & 0x0f00 | 0x40 | if unmask { r.next_u64() as u16 & 0x3f } else { 0x3f };
        // A pending exception would fault natively.
        let fsw = r.next_u64() as u16 & 0x7f00 | if unmask { 0 } else { r.next_u64() as u16 & 0x7f };
        self.fx[0..2].copy_from_slice(&fcw.to_le_bytes());
        self.fx[2..4].copy_from_slice(&fsw.to_le_bytes());
        self.fx[4] = if r.below(4) == 0 { r.next_u64() as u8 } else { [0xff, 0x7f, 0xfe, 0x3f][r.below(4) as usize] };
        if r.below(2) == 0 {
            // The register that a push takes is empty.
            let top = u32::from(fsw >> 11 & 7);
            self.fx[4] = !(1u8 << ((top + 7) & 7));
        }
        let control = if r.below(2) == 0 { 0 } else { r.next_u64() as u32 & 0xe040 };
        let mxcsr = 0x1f80 | control | [0, 0x20, r.next_u64() as u32 & 0x3f][r.below(3) as usize];
        self.fx[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        for i in 0..8 {
            self.fx[32 + 16 * i..][..10].copy_from_slice(&r.f80());
        }
        for i in 0..32 {
            self.fx[160 + 8 * i..][..8].copy_from_slice(&r.lane().to_le_bytes());
        }
        for b in self.mem[..544].chunks_exact_mut(8) {
            b.copy_from_slice(&r.lane().to_le_bytes());
        }
        for b in self.upper.chunks_exact_mut(8) {
            b.copy_from_slice(&r.lane().to_le_bytes());
        }
        if r.below(3) == 0 {
            self.mem[..10].copy_from_slice(&r.f80());
        }
        for g in &mut self.gpr[..3] {
            *g = r.lane();
        }
        self.gpr[3] = r.next_u64() & 0x8d5 | 0x202;
    }
}
