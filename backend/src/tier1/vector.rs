//! Vector ops: SSE2 to SSE4.1 instructions of the host; what has none calls the reference function.

use super::emit::Emit;
use super::regs::{Loc, RAX};
use super::{asm, st};
use crate::jit::runtime::func;
use crate::vblock::Engine;
use ir::vec::VecShift;
use ir::{Inst, Op, Ty, Val, VecOp};
use std::mem::offset_of;

/// A host instruction of two operands, the first of which it overwrites; all with prefix 66.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// 0F xx.
    Short(u8),
    /// 0F 38 xx: SSSE3 and SSE4.
    Long(u8),
    /// VEX.128 of 0F 38 xx with this W: AVX and AVX2.
    Vex(u8, bool),
}

/// The instruction that is the op, if the host has one.
pub fn opcode(op: VecOp) -> Option<Host> {
    short(op).map(Host::Short).or_else(|| long(op).map(Host::Long)).or_else(|| vex(op))
}

/// What tier 1 takes for granted has SSE4.1.
fn long(op: VecOp) -> Option<u8> {
    use VecOp::*;
    Some(match op {
        Permute8 => 0x00,
        HAdd16 => 0x01,
        HAdd32 => 0x02,
        HAddSatS16 => 0x03,
        MulAddUS8 => 0x04,
        HSub16 => 0x05,
        HSub32 => 0x06,
        HSubSatS16 => 0x07,
        Sign8 => 0x08,
        Sign16 => 0x09,
        Sign32 => 0x0a,
        MulRoundS16 => 0x0b,
        Abs8 => 0x1c,
        Abs16 => 0x1d,
        Abs32 => 0x1e,
        MulS32 => 0x28,
        CmpEq64 => 0x29,
        PackU32 => 0x2b,
        CmpGtS64 if std::is_x86_feature_detected!("sse4.2") => 0x37,
        MinS8 => 0x38,
        MinS32 => 0x39,
        MinU16 => 0x3a,
        MinU32 => 0x3b,
        MaxS8 => 0x3c,
        MaxS32 => 0x3d,
        MaxU16 => 0x3e,
        MaxU32 => 0x3f,
        Mul32 => 0x40,
        MinPosU16 => 0x41,
        _ => return None,
    })
}

fn vex(op: VecOp) -> Option<Host> {
    use VecOp::*;
    use std::is_x86_feature_detected as has;
    let (code, w, there) = match op {
        Permute32 => (0x0c, false, has!("avx")),
        Permute64 => (0x0d, false, has!("avx")),
        ShrBy32 => (0x45, false, has!("avx2")),
        ShrBy64 => (0x45, true, has!("avx2")),
        SarBy32 => (0x46, false, has!("avx2")),
        ShlBy32 => (0x47, false, has!("avx2")),
        ShlBy64 => (0x47, true, has!("avx2")),
        _ => return None,
    };
    there.then_some(Host::Vex(code, w))
}

/// SSE2.
fn short(op: VecOp) -> Option<u8> {
    use VecOp::*;
    Some(match op {
        And => 0xdb,
        Or => 0xeb,
        Xor => 0xef,
        AndNot => 0xdf,
        Add8 => 0xfc,
        Add16 => 0xfd,
        Add32 => 0xfe,
        Add64 => 0xd4,
        Sub8 => 0xf8,
        Sub16 => 0xf9,
        Sub32 => 0xfa,
        Sub64 => 0xfb,
        CmpEq8 => 0x74,
        CmpEq16 => 0x75,
        CmpEq32 => 0x76,
        CmpGtS8 => 0x64,
        CmpGtS16 => 0x65,
        CmpGtS32 => 0x66,
        MinU8 => 0xda,
        MaxU8 => 0xde,
        MinS16 => 0xea,
        MaxS16 => 0xee,
        Mul16 => 0xd5,
        UnpkLo8 => 0x60,
        UnpkLo16 => 0x61,
        UnpkLo32 => 0x62,
        UnpkLo64 => 0x6c,
        UnpkHi8 => 0x68,
        UnpkHi16 => 0x69,
        UnpkHi32 => 0x6a,
        UnpkHi64 => 0x6d,
        AvgU8 => 0xe0,
        AvgU16 => 0xe3,
        AddSatS8 => 0xec,
        AddSatS16 => 0xed,
        AddSatU8 => 0xdc,
        AddSatU16 => 0xdd,
        SubSatS8 => 0xe8,
        SubSatS16 => 0xe9,
        SubSatU8 => 0xd8,
        SubSatU16 => 0xd9,
        PackS16 => 0x63,
        PackS32 => 0x6b,
        PackU16 => 0x67,
        ShrAll16 => 0xd1,
        ShrAll32 => 0xd2,
        ShrAll64 => 0xd3,
        SarAll16 => 0xe1,
        SarAll32 => 0xe2,
        MulHiU16 => 0xe4,
        MulHiS16 => 0xe5,
        ShlAll16 => 0xf1,
        ShlAll32 => 0xf2,
        ShlAll64 => 0xf3,
        MulU32 => 0xf4,
        MulAddS16 => 0xf5,
        SadU8 => 0xf6,
        _ => return None,
    })
}

impl Emit<'_> {
    pub fn vector(&mut self, i: &Inst) {
        match i.op {
            Op::Vec => match opcode(i.vec_op()) {
                Some(n) => {
                    let b = self.xmm(i.b);
                    let d = self.dest_from_xmm(i.a);
                    self.host(n, d, b);
                }
                None => self.vec_slow(i, i.aux),
            },
            Op::VLane => self.lane(i),
            Op::VSetLane => {
                let x = self.gpr(i.b);
                if i.aux == 0 && self.loc(i.a) == Loc::Const(0) {
                    let d = self.dest_xmm();
                    return asm!(self; movq Rx(d), Rq(x));
                }
                let d = self.dest_from_xmm(i.a);
                asm!(self; pinsrq Rx(d), Rq(x), BYTE i.aux as i8);
            }
            Op::VShift => self.vshift(i),
            Op::VMask => self.mask(i),
            _ => self.shuffle(i),
        }
    }

    /// Vectors beside each other that the current op and those behind it set to zero, as VZEROUPPER does: two by two, in registers of
    /// twice their size. Whether they were enough for that to be worth it.
    pub(super) fn set_zeros(&mut self, i: &Inst, off: i32) -> bool {
        const LEAST: usize = 4;
        let zero = |e: &Self, v| matches!(e.loc(v), Loc::Const(0));
        if !zero(self, i.a) || !std::is_x86_feature_detected!("avx") {
            return false;
        }
        let behind = self.block.insts[self.at as usize..].iter().zip(0..);
        let run = behind.take_while(|(b, k)| {
            let at = off + 16 * k;
            let same = b.op == Op::Set && b.ty == Ty::V128 && b.a == i.a && self.slot_off(b) == at;
            same && self.r.pins.find(at).is_none()
        });
        let run = run.count() & !1;
        if run < LEAST {
            return false;
        }
        (0..run as i32).for_each(|k| self.save_aliased(Some((off + 16 * k, 16))));
        asm!(self; vpxor xmm0, xmm0, xmm0);
        for at in (off..).step_by(32).take(run / 2) {
            st!(self, at; [vmovdqu] [, ymm0]);
        }
        // Upper halves that are not zero would slow the host's SSE instructions (SDM optimization manual, "Mixing AVX and SSE").
        asm!(self; vzeroupper);
        (1..run as u32).for_each(|k| self.r.late.sink(Val(self.at + k)));
        true
    }

    /// The instruction on registers `d`, which is the destination too, and `b`.
    fn host(&mut self, h: Host, d: u8, b: u8) {
        let rex = 0x40 | d >> 3 << 2 | b >> 3;
        let modrm = 0xc0 | (d & 7) << 3 | b & 7;
        match h {
            Host::Short(op) => self.code.extend([0x66, rex, 0x0f, op, modrm]),
            Host::Long(op) => self.code.extend([0x66, rex, 0x0f, 0x38, op, modrm]),
            Host::Vex(op, w) => {
                // R, X, B and vvvv are inverted.
                let second = (d >> 3 ^ 1) << 7 | 0x40 | (b >> 3 ^ 1) << 5 | 2;
                self.code.extend([0xc4, second, u8::from(w) << 7 | (!d & 15) << 3 | 1, op, modrm]);
            }
        }
    }

    /// Has the runtime do the op that it knows by the number `op`.
    pub fn vec_slow(&mut self, i: &Inst, op: u16) {
        let va = self.eng(offset_of!(Engine, vec_a));
        let places = [va, self.eng(offset_of!(Engine, vec_b)), self.eng(offset_of!(Engine, vec_c))];
        for (v, place) in i.operands().zip(places) {
            let x = self.xmm(v);
            st!(self, place; [movdqu] [, Rx(x)]);
        }
        self.spill_for_call();
        self.write_back();
        asm!(self; mov esi, DWORD op.into());
        self.call_with_pins(func::VEC, false);
        let d = self.dest_xmm();
        st!(self, va; [movdqu Rx(d),] []);
    }

    fn lane(&mut self, i: &Inst) {
        if let Loc::State(off) | Loc::Spill(off) = self.loc(i.a)
            && !self.is_pinned(off)
        {
            let d = self.dest();
            return st!(self, off + 8 * i32::from(i.aux); [mov Rq(d),] []);
        }
        let (s, d) = (self.xmm(i.a), self.dest());
        if i.aux == 0 {
            asm!(self; movq Rq(d), Rx(s));
        } else {
            asm!(self; pextrq Rq(d), Rx(s), BYTE 1);
        }
    }

    fn vshift(&mut self, i: &Inst) {
        let n = i.imm as i8;
        let d = self.dest_from_xmm(i.a);
        match i.vec_shift() {
            VecShift::Shl16 => asm!(self; psllw Rx(d), BYTE n),
            VecShift::Shl32 => asm!(self; pslld Rx(d), BYTE n),
            VecShift::Shl64 => asm!(self; psllq Rx(d), BYTE n),
            VecShift::Shr16 => asm!(self; psrlw Rx(d), BYTE n),
            VecShift::Shr32 => asm!(self; psrld Rx(d), BYTE n),
            VecShift::Shr64 => asm!(self; psrlq Rx(d), BYTE n),
            VecShift::Sar16 => asm!(self; psraw Rx(d), BYTE n),
            VecShift::Sar32 => asm!(self; psrad Rx(d), BYTE n),
        }
    }

    fn mask(&mut self, i: &Inst) {
        let (s, d) = (self.xmm(i.a), self.dest());
        match i.aux {
            8 => asm!(self; pmovmskb Rd(d), Rx(s)),
            16 => asm!(self; movdqa xmm0, Rx(s); packsswb xmm0, xmm0; pmovmskb Rd(d), xmm0; movzx Rd(d), Rb(d)),
            32 => asm!(self; movmskps Rd(d), Rx(s)),
            _ => asm!(self; movmskpd Rd(d), Rx(s)),
        }
    }

    fn shuffle(&mut self, i: &Inst) {
        let mask = i.shuffle_mask();
        let (a, b) = (self.xmm(i.a), self.xmm(i.b));
        if let Some((from_b, order)) = by_dwords(mask) {
            let (s, d) = (if from_b { b } else { a }, self.dest_xmm());
            return asm!(self; pshufd Rx(d), Rx(s), BYTE order as i8);
        }
        if let Some(s) = one_insn(mask) {
            return self.shuffle_by(s, i);
        }
        // PSHUFB gives 0 where the top bit of the index is set.
        asm!(self; movdqa xmm0, Rx(a));
        self.mask_constant(mask.map(|m| if m & 16 == 0 { m } else { 0x80 }));
        asm!(self; pshufb xmm0, xmm1);
        let d = self.dest_xmm();
        if mask.iter().any(|m| m & 16 != 0) {
            self.mask_constant(mask.map(|m| if m & 16 == 0 { 0x80 } else { m & 15 }));
            asm!(self; movdqa Rx(d), Rx(b); pshufb Rx(d), xmm1; por Rx(d), xmm0);
        } else {
            asm!(self; movdqa Rx(d), xmm0);
        }
    }

    fn shuffle_by(&mut self, s: Short, i: &Inst) {
        let ((a, b), n) = match s {
            Short::Shufps { from_b, order } => ((if from_b.0 { i.b } else { i.a }, if from_b.1 { i.b } else { i.a }), order),
            Short::Blend(n) => ((i.a, i.b), n),
            Short::Align(n) => ((i.b, i.a), n),
            Short::Words { from_b, order, .. } => (if from_b { (i.b, i.b) } else { (i.a, i.a) }, order),
        };
        let b = self.xmm(b);
        let n = n as i8;
        if let Short::Words { high, .. } = s {
            let d = self.dest_xmm();
            return if high { asm!(self; pshufhw Rx(d), Rx(b), BYTE n) } else { asm!(self; pshuflw Rx(d), Rx(b), BYTE n) };
        }
        let d = self.dest_from_xmm(a);
        match s {
            Short::Shufps { .. } => asm!(self; shufps Rx(d), Rx(b), BYTE n),
            Short::Blend(_) => asm!(self; pblendw Rx(d), Rx(b), BYTE n),
            _ => asm!(self; palignr Rx(d), Rx(b), BYTE n),
        }
    }

    /// A constant in xmm1.
    fn mask_constant(&mut self, m: [u8; 16]) {
        let m = u128::from_le_bytes(m);
        self.mov_imm(RAX, m as u64);
        asm!(self; movq xmm1, rax);
        self.mov_imm(RAX, (m >> 64) as u64);
        asm!(self; pinsrq xmm1, rax, BYTE 1);
    }
}

/// The shuffle as PSHUFD of one operand: (of the second, order).
fn by_dwords(mask: [u8; 16]) -> Option<(bool, u8)> {
    let from_b = mask[0] & 16 != 0;
    let mut order = 0;
    for (i, group) in mask.chunks_exact(4).enumerate() {
        let first = group[0];
        let whole = first % 4 == 0 && group.iter().enumerate().all(|(k, m)| *m == first + k as u8);
        if !whole || (first & 16 != 0) != from_b {
            return None;
        }
        order |= (first >> 2 & 3) << (2 * i);
    }
    Some((from_b, order))
}

/// Shuffles that one instruction does.
#[derive(Clone, Copy)]
enum Short {
    /// Two lanes of 32 bits of one operand, then two of one.
    Shufps { from_b: (bool, bool), order: u8 },
    /// Words of the first and of the second operand, in their places.
    Blend(u8),
    /// 16 bytes out of the two operands next to each other.
    Align(u8),
    /// Words of one half of one operand in another order.
    Words { from_b: bool, high: bool, order: u8 },
}

fn one_insn(mask: [u8; 16]) -> Option<Short> {
    if mask.windows(2).all(|w| w[1] == w[0] + 1) && mask[0] <= 16 {
        return Some(Short::Align(mask[0]));
    }
    // In words: number of the word, 8 and more for the second operand.
    let words: Vec<u8> = mask.chunks_exact(2).filter(|w| w[0] % 2 == 0 && w[1] == w[0] + 1).map(|w| w[0] / 2).collect();
    let words: [u8; 8] = words.try_into().ok()?;
    if words.iter().enumerate().all(|(i, w)| usize::from(w & 7) == i) {
        return Some(Short::Blend(words.iter().enumerate().fold(0, |n, (i, w)| n | (w >> 3) << i)));
    }
    let stays = |part: &[u8], at: u8, b: u8| part.iter().enumerate().all(|(i, w)| *w == b + at + i as u8);
    let order = |part: &[u8]| part.iter().enumerate().fold(0, |n, (i, w)| n | (w & 3) << (2 * i));
    let b = words[0] & 8;
    let within = |part: &[u8], at: u8| part.iter().all(|w| w & !3 == b + at);
    let (low, high) = words.split_at(4);
    if within(low, 0) && stays(high, 4, b) {
        return Some(Short::Words { from_b: b != 0, high: false, order: order(low) });
    }
    if within(high, 4) && stays(low, 0, b) {
        return Some(Short::Words { from_b: b != 0, high: true, order: order(high) });
    }
    let dwords: Vec<u8> = words.chunks_exact(2).filter(|w| w[0] % 2 == 0 && w[1] == w[0] + 1).map(|w| w[0] / 2).collect();
    let d: [u8; 4] = dwords.try_into().ok()?;
    let from_b = (d[0] & 4 != 0, d[2] & 4 != 0);
    let order = d.iter().enumerate().fold(0, |n, (i, w)| n | (w & 3) << (2 * i));
    ((d[1] & 4 != 0) == from_b.0 && (d[3] & 4 != 0) == from_b.1).then_some(Short::Shufps { from_b, order })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the instruction does, in bytes of b:a.
    fn bytes(s: Short) -> [u8; 16] {
        let word = |n: u8, k: usize| 2 * n + (k % 2) as u8;
        std::array::from_fn(|i| match s {
            Short::Align(n) => n + i as u8,
            Short::Blend(n) => i as u8 + if n >> (i / 2) & 1 != 0 { 16 } else { 0 },
            Short::Words { from_b, high, order } => {
                let base = if from_b { 16 } else { 0 };
                let (w, at) = (i / 2, if high { 4 } else { 0 });
                base + if (w >= 4) == high { word((order >> (2 * (w % 4)) & 3) + at, i) } else { i as u8 }
            }
            Short::Shufps { from_b, order } => {
                let lane = order >> (2 * (i / 4)) & 3;
                let second = if i < 8 { from_b.0 } else { from_b.1 };
                let base = if second { 16 } else { 0 };
                base + 4 * lane + (i % 4) as u8
            }
        })
    }

    #[test]
    fn short_shuffles_are_what_the_mask_says() {
        let mut seen = [0; 4];
        let mut x = 1u64;
        let mut next = |n: u8| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 33) as u8 % n
        };
        for _ in 0..200_000 {
            let mask: [u8; 16] = match next(4) {
                0 => {
                    let n = next(17);
                    std::array::from_fn(|i| n + i as u8)
                }
                1 => {
                    let n = next(255);
                    bytes(Short::Blend(n))
                }
                2 => bytes(Short::Words { from_b: next(2) != 0, high: next(2) != 0, order: next(255) }),
                _ => {
                    let d: [u8; 4] = std::array::from_fn(|_| next(8));
                    std::array::from_fn(|i| 4 * d[i / 4] + (i % 4) as u8)
                }
            };
            if let Some(s) = one_insn(mask) {
                assert_eq!(bytes(s), mask);
                seen[match s {
                    Short::Shufps { .. } => 0,
                    Short::Blend(_) => 1,
                    Short::Align(_) => 2,
                    Short::Words { .. } => 3,
                }] += 1;
            }
        }
        assert!(seen.iter().all(|n| *n > 100), "{seen:?}");
    }
}
