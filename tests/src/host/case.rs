//! Register and memory contents for an instruction: its addresses lead to data memory, the rest is edges and random bits.

use super::draw::{Drawn, data_address};
use super::{DATA_SIZE, State, at, place};
use arch_x86::F80;
use iced_x86::{CpuidFeature as F, Mnemonic as M, OpKind, Register};
use vm_core::testing::Rng;

/// Start state, and bytes of data memory (offset in `Memory`) that differ from the background.
#[derive(Clone, Debug)]
pub struct Case {
    pub state: State,
    pub patch: (usize, [u8; 64]),
}

/// Small numbers, edges and random bits.
pub fn value(r: &mut Rng) -> u64 {
    let x = r.next_u64();
    match x >> 61 {
        0 => x & 0xff,
        1 => (x as i8) as u64,
        2 => 1u64 << (x & 63),
        3 => (1u64 << (x & 63)).wrapping_sub(1),
        4 => (x as i32) as u64,
        _ => r.next_u64(),
    }
}

/// Numbers of single precision where arithmetic has its edges.
const F32: [u32; 16] = [
    0,
    0x8000_0000,
    1,
    0x8000_0001,
    0x007f_ffff,
    0x0080_0000,
    0x7f7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0x3f80_0000,
    0xbf80_0000,
    0x4f00_0000,
    0x3f00_0000,
    0xffc0_1234,
];
const F64: [u64; 16] = [
    0,
    1 << 63,
    1,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
    0x7ff0_0000_0000_0001,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x41e0_0000_0000_0000,
    0x43e0_0000_0000_0000,
    0x3fe0_0000_0000_0000,
    0x3810_0000_0000_0000,
];

fn quad(r: &mut Rng) -> u64 {
    let x = r.next_u64();
    match x >> 61 {
        0 => F64[(x & 15) as usize],
        1 => u64::from(F32[(x & 15) as usize]) | u64::from(F32[(x >> 4 & 15) as usize]) << 32,
        // Numbers near each other, so that sums cancel and products stay in range.
        2 => 0x3fd0_0000_0000_0000 | (x & 0x803f_ffff_ffff_ffff),
        3 => (x & 0x83ff_ffff_83ff_ffff) | 0x3e00_0000_3e00_0000,
        4 => x & 0x00ff_00ff_00ff_00ff,
        5 => 0,
        _ => r.next_u64(),
    }
}

pub fn vector(r: &mut Rng) -> u128 {
    u128::from(quad(r)) | u128::from(quad(r)) << 64
}

/// An x87 register: all classes, unsupported ones too.
fn st(r: &mut Rng) -> F80 {
    let x = r.next_u64();
    let sign = (x as u16) & 0x8000;
    let mant = quad(r);
    let whole = mant | 1 << 63;
    let (mant, exp) = match x >> 16 & 15 {
        0 => (0, 0),
        1 => (1 << 63, 0x7fff),
        2 => (whole, 0x7fff),
        3 => (mant & !(1 << 63), 0),
        4 => (1 << 63, 0x3fff),
        5 => (whole, 1),
        6 => (whole, 0x7ffe),
        7 => (mant, (x >> 32) as u16 & 0x7fff),
        8 => (3 << 62, 0x7fff),
        9 | 10 => (whole, 0x3fff + (x >> 32) as u16 % 70),
        _ => (whole, 0x3fc0 + (x >> 32) as u16 % 128),
    };
    F80 { mant, sexp: sign | exp }
}

/// A state for `d`.
pub fn case(r: &mut Rng, d: &Drawn) -> Case {
    let mut s = State::new();
    s.rip = d.ip;
    let wide = d.bits == super::Bits::B64;
    s.gpr.iter_mut().for_each(|g| *g = value(r));
    if !wide {
        s.gpr.iter_mut().for_each(|g| *g &= 0xffff_ffff);
        s.gpr[8..].fill(0);
    }
    flags(r, &mut s);
    let op = d.insn.mnemonic();
    registers(r, d, &mut s);
    if r.one_in(2) {
        fpu(r, &mut s);
    }
    if r.one_in(3) {
        s.ftw = r.next_u64() as u8;
    } else {
        s.ftw = 0xff;
    }
    let target = pointers(r, d, &mut s);
    if !wide {
        s.gpr.iter_mut().for_each(|g| *g &= 0xffff_ffff);
    }
    let at = place(target).unwrap_or(0).saturating_sub(8).min(DATA_SIZE - 4096 - 64);
    let mut bytes = [0; 64];
    bytes.chunks_mut(8).for_each(|c| c.copy_from_slice(&quad(r).to_le_bytes()));
    if d.insn.is_vsib() {
        // Both manuals name #AC, the host checks no alignment there.
        s.flags &= !0x4_0000;
    }
    let off = place(target).unwrap_or(0) - at;
    let control = match op {
        M::Ldmxcsr | M::Vldmxcsr => off,
        M::Fxrstor | M::Fxrstor64 => off + 24,
        _ => 64,
    };
    if control <= 60 {
        // MXCSR.MM is a feature of AMD's that ours has not; the other reserved bits seldom.
        bytes[control + 2] &= if r.one_in(4) { !2 } else { 0 };
        bytes[control + 3] &= if r.one_in(4) { !0 } else { 0 };
    }
    Case { state: s, patch: (at, bytes) }
}

/// Vector and x87 registers: numbers that matter in those that the instruction names, anything in the others.
fn registers(r: &mut Rng, d: &Drawn, s: &mut State) {
    let (mut bits, step) = (vector(r), u128::from(r.next_u64()) << 40 | 1);
    for x in s.xmm.iter_mut().chain(&mut s.ymmh) {
        bits = bits.wrapping_mul(0x2545_f491_4f6c_dd1d_9e37_79b9_7f4a_7c15).wrapping_add(step);
        *x = bits;
    }
    let mut x87 = d.insn.cpuid_features().iter().any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX | F::FXSR));
    // XMM0 is an operand of some that do not name it.
    (s.xmm[0], s.ymmh[0]) = (vector(r), vector(r));
    for k in 0..d.insn.op_count() {
        let reg = d.insn.op_register(k);
        x87 |= reg.is_mm();
        if reg.is_xmm() || reg.is_ymm() {
            (s.xmm[reg.number()], s.ymmh[reg.number()]) = (vector(r), vector(r));
        }
    }
    for (n, x) in s.st.iter_mut().enumerate() {
        *x = if x87 || n == 0 { st(r) } else { F80 { mant: bits as u64, sexp: (bits >> (64 + n)) as u16 } };
    }
}

fn flags(r: &mut Rng, s: &mut State) {
    let x = r.next_u64();
    s.flags |= x & 0x8d5;
    if x >> 60 == 0 {
        s.flags |= 0x400;
    }
    if x >> 50 & 63 == 0 {
        s.flags |= 0x4_0000;
    }
    if x >> 40 & 127 == 0 {
        s.flags |= 0x100;
    }
}

/// Control and status of SSE and x87.
fn fpu(r: &mut Rng, s: &mut State) {
    let x = r.next_u64();
    s.mxcsr = x as u32 & 0xffff;
    if x >> 16 & 1 == 0 {
        s.mxcsr |= 0x1f80;
    }
    s.fcw = (x >> 32) as u16 & 0x0f3f | 0x40;
    if x >> 17 & 1 == 0 {
        s.fcw |= 0x3f;
    }
    s.fsw = (x >> 48) as u16 & 0x7f7f;
    if x >> 18 & 3 != 0 {
        s.fsw &= !0x3f;
    }
    s.summarise();
}

/// Makes the registers that instruction addresses use lead to data memory. Gives the operand's address.
fn pointers(r: &mut Rng, d: &Drawn, s: &mut State) -> u64 {
    let i = &d.insn;
    let target = super::draw::operand_address(r, i);
    let string = i.is_string_instruction();
    for reg in [3, 5, 6, 7] {
        if string || r.one_in(3) || i.mnemonic() == M::Xlatb {
            s.gpr[reg] = data_address(r, 8);
        }
    }
    if string || i.has_rep_prefix() || i.has_repne_prefix() {
        s.gpr[1] = if r.one_in(32) { value(r) } else { r.below(48) };
        if d.bits == super::Bits::B32 {
            s.gpr[1] &= 0xffff_ffff;
        }
    }
    s.gpr[4] = if r.one_in(16) { data_address(r, 8) } else { (data_address(r, 64) & !7).max(at::DATA) };
    if i.mnemonic() == M::Enter {
        s.gpr[5] = s.gpr[4].wrapping_add(r.below(64) * 8);
    }
    if matches!(i.mnemonic(), M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu) {
        s.gpr[7] = target;
    }
    bit_offset(r, d, s);
    if !(0..i.op_count()).any(|k| i.op_kind(k) == OpKind::Memory) {
        return if string { s.gpr[6] } else { s.gpr[4] };
    }
    address(r, d, s, target)
}

/// BT and its kin reach memory far from their address.
fn bit_offset(r: &mut Rng, d: &Drawn, s: &mut State) {
    let far = matches!(d.insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc) && d.insn.op1_kind() == OpKind::Register;
    if far && d.insn.op0_kind() == OpKind::Memory && !r.one_in(16) {
        let v = (r.next_u64() as i16 >> 3) as u64;
        set(s, d, d.insn.op1_register(), v);
    }
}

fn number(reg: Register) -> Option<usize> {
    (reg.is_gpr32() || reg.is_gpr64() || reg.is_gpr16()).then(|| reg.number())
}

fn set(s: &mut State, d: &Drawn, reg: Register, v: u64) {
    if let Some(n) = number(reg) {
        s.gpr[n] = if d.bits == super::Bits::B32 { v & 0xffff_ffff } else { v };
    }
}

/// Solves base + index * scale + displacement = target.
pub(super) fn address(r: &mut Rng, d: &Drawn, s: &mut State, target: u64) -> u64 {
    let i = &d.insn;
    let (base, index, scale) = (i.memory_base(), i.memory_index(), u64::from(i.memory_index_scale()));
    let disp = i.memory_displacement64();
    if i.is_ip_rel_memory_operand() || base == Register::None && index == Register::None {
        return disp;
    }
    if i.is_vsib() {
        return vsib(r, d, s, target);
    }
    let want = target.wrapping_sub(disp);
    match (number(base), number(index)) {
        (Some(b), Some(x)) if b == x => set(s, d, base, want / (scale + 1)),
        (Some(4), Some(x)) if x != 4 && scale == 1 => set(s, d, index, want.wrapping_sub(s.gpr[4])),
        (Some(_), Some(_)) => {
            let v = if r.one_in(4) { s.gpr[number(index).unwrap_or(0)] } else { r.below(9).wrapping_sub(2) };
            set(s, d, index, v);
            set(s, d, base, want.wrapping_sub(s.gpr[number(index).unwrap_or(0)].wrapping_mul(scale)));
        }
        (Some(_), None) => set(s, d, base, want),
        (None, Some(_)) => set(s, d, index, want / scale),
        (None, None) => {}
    }
    // The upper half of a 32-bit address register is not looked at.
    if d.bits == super::Bits::B64 && base.is_gpr32() && base.number() != 4 && r.one_in(2) {
        s.gpr[base.number()] |= r.next_u64() << 32;
    }
    // With a scale it may be a few bytes off.
    super::bench::operand_address(d, s)
}

/// A base in the middle of data, and indices around it.
fn vsib(r: &mut Rng, d: &Drawn, s: &mut State, target: u64) -> u64 {
    let i = &d.insn;
    let (n, reach) = (i.memory_index().number(), if r.one_in(8) { 0x1fff } else { 0x1ff });
    let wide = matches!(i.mnemonic(), M::Vpgatherqd | M::Vpgatherqq | M::Vgatherqps | M::Vgatherqpd);
    let lanes = |r: &mut Rng| {
        let q = |r: &mut Rng| (r.next_u64() as i64 % reach) as u64;
        if wide {
            return u128::from(q(r)) | u128::from(q(r)) << 64;
        }
        (0..4).fold(0u128, |v, _| v << 32 | u128::from(q(r) as u32))
    };
    (s.xmm[n], s.ymmh[n]) = (lanes(r), lanes(r));
    set(s, d, i.memory_base(), target.wrapping_sub(i.memory_displacement64()));
    target
}
