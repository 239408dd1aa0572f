//! The extended state in XSAVE's standard format (SDM 1 §13.4), as KVM hands it over.

use arch_x86::CpuState;
use arch_x86::state::F80;
use kvm_bindings::kvm_xsave;

/// Offsets: x87 and SSE registers, XSTATE_BV, upper halves of YMM, PKRU.
const ST: usize = 32;
const XMM: usize = 160;
const XSTATE_BV: usize = 512;
const YMM: usize = 576;
const PKRU: usize = 2688;
const X87_SSE: u64 = 3;
const AVX: u64 = 1 << 2;
const PK: u64 = 1 << 9;
/// Bits of MXCSR that exist.
const MXCSR_MASK: u32 = 0xffff;

struct Area([u8; 4096]);

impl Area {
    fn of(x: &kvm_xsave) -> Self {
        let mut b = [0; 4096];
        b.chunks_exact_mut(4).zip(&x.region).for_each(|(to, w)| to.copy_from_slice(&w.to_le_bytes()));
        Self(b)
    }

    fn into_kvm(self) -> kvm_xsave {
        let mut x = kvm_xsave::default();
        x.region.iter_mut().zip(self.0.chunks_exact(4)).for_each(|(w, b)| *w = u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        x
    }

    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut b = [0; N];
        b.copy_from_slice(&self.0[at..at + N]);
        b
    }

    fn put(&mut self, at: usize, b: &[u8]) {
        self.0[at..at + b.len()].copy_from_slice(b);
    }
}

/// The state as an area with all components that `xcr0` may name.
pub fn pack(cpu: &CpuState, components: u64) -> kvm_xsave {
    let mut a = Area([0; 4096]);
    a.put(0, &cpu.fcw.to_le_bytes());
    a.put(2, &cpu.fsw.to_le_bytes());
    a.put(4, &[cpu.ftw, 0]);
    a.put(6, &cpu.fop.to_le_bytes());
    a.put(8, &cpu.fip.to_le_bytes());
    a.put(16, &cpu.fdp.to_le_bytes());
    a.put(24, &(cpu.mxcsr & MXCSR_MASK).to_le_bytes());
    a.put(28, &MXCSR_MASK.to_le_bytes());
    for i in 0..8 {
        // In the area ST(0) comes first.
        let r = cpu.fpr[(i + usize::from(cpu.fsw >> 11)) & 7];
        a.put(ST + 16 * i, &r.mant.to_le_bytes());
        a.put(ST + 16 * i + 8, &r.sexp.to_le_bytes());
    }
    for i in 0..16 {
        a.put(XMM + 16 * i, &cpu.xmm[i].to_le_bytes());
        a.put(YMM + 16 * i, &cpu.ymmh[i].to_le_bytes());
    }
    a.put(PKRU, &cpu.pkru.to_le_bytes());
    a.put(XSTATE_BV, &(components & (X87_SSE | AVX | PK) | X87_SSE).to_le_bytes());
    if components & PK == 0 {
        a.put(PKRU, &[0; 4]);
    }
    if components & AVX == 0 {
        a.put(YMM, &[0; 256]);
    }
    a.into_kvm()
}

/// Takes the state out of an area. Components that are not in it have their initial values.
pub fn unpack(cpu: &mut CpuState, x: &kvm_xsave) {
    let a = Area::of(x);
    let bv = u64::from_le_bytes(a.get(XSTATE_BV));
    let (x87, sse) = (bv & 1 != 0, bv & 2 != 0);
    cpu.fcw = if x87 { u16::from_le_bytes(a.get(0)) } else { 0x37f };
    cpu.fsw = if x87 { u16::from_le_bytes(a.get(2)) } else { 0 };
    cpu.ftw = if x87 { a.0[4] } else { 0 };
    cpu.fop = if x87 { u16::from_le_bytes(a.get(6)) & 0x7ff } else { 0 };
    cpu.fip = if x87 { u64::from_le_bytes(a.get(8)) } else { 0 };
    cpu.fdp = if x87 { u64::from_le_bytes(a.get(16)) } else { 0 };
    cpu.mxcsr = u32::from_le_bytes(a.get(24)) & MXCSR_MASK;
    for i in 0..8 {
        let at = ST + 16 * i;
        let r = F80 { mant: u64::from_le_bytes(a.get(at)), sexp: u16::from_le_bytes(a.get(at + 8)) };
        cpu.fpr[(i + usize::from(cpu.fsw >> 11)) & 7] = if x87 { r } else { F80::default() };
    }
    for i in 0..16 {
        cpu.xmm[i] = if sse { u128::from_le_bytes(a.get(XMM + 16 * i)) } else { 0 };
        cpu.ymmh[i] = if bv & AVX != 0 { u128::from_le_bytes(a.get(YMM + 16 * i)) } else { 0 };
    }
    cpu.pkru = if bv & PK != 0 { u32::from_le_bytes(a.get(PKRU)) } else { 0 };
}
