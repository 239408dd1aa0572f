//! Vector ops to Cranelift IR; values are I8X16. What has no short form calls the interpreter's function.

use super::lower::Lower;
use super::vector_special as special;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::types::{I8X16, I16X8, I32, I32X4, I64, I64X2};
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value};
use ir::vec::VecShift;
use ir::{Inst, Op, VecOp};

const CAST: MemFlagsData = MemFlagsData::new().with_endianness(Endianness::Little);

impl Lower<'_, '_> {
    pub(super) fn cast(&mut self, ty: Type, v: Value) -> Value {
        if self.b.func.dfg.value_type(v) == ty { v } else { self.b.ins().bitcast(ty, CAST, v) }
    }

    pub(super) fn shuffle(&mut self, x: Value, y: Value, mask: [u8; 16]) -> Value {
        let imm = self.b.func.dfg.immediates.push(mask.as_slice().into());
        self.b.ins().shuffle(x, y, imm)
    }
}

pub fn lower(l: &mut Lower<'_, '_>, i: &Inst, x: Value, y: Value) -> Value {
    match i.op {
        Op::VLane => {
            let v = l.cast(I64X2, x);
            l.b.ins().extractlane(v, i.aux as u8)
        }
        Op::VSetLane => {
            let v = l.cast(I64X2, x);
            let v = l.b.ins().insertlane(v, y, i.aux as u8);
            l.cast(I8X16, v)
        }
        Op::VShuffle => l.shuffle(x, y, i.shuffle_mask()),
        Op::VMask => {
            let ty = match i.aux {
                8 => I8X16,
                16 => I16X8,
                32 => I32X4,
                _ => I64X2,
            };
            let v = l.cast(ty, x);
            let bits = l.b.ins().vhigh_bits(I32, v);
            l.b.ins().uextend(I64, bits)
        }
        Op::VShift => shift(l, i, x),
        _ => lanes(l, i.vec_op(), x, y),
    }
}

fn shift(l: &mut Lower<'_, '_>, i: &Inst, x: Value) -> Value {
    let Some(kind) = VecShift::from_index(i.aux) else { return x };
    let ty = match kind.width() {
        16 => I16X8,
        32 => I32X4,
        _ => I64X2,
    };
    let v = l.cast(ty, x);
    let n = l.iconst(I32, i.imm);
    let v = match kind {
        VecShift::Shl16 | VecShift::Shl32 | VecShift::Shl64 => l.b.ins().ishl(v, n),
        VecShift::Shr16 | VecShift::Shr32 | VecShift::Shr64 => l.b.ins().ushr(v, n),
        VecShift::Sar16 | VecShift::Sar32 => l.b.ins().sshr(v, n),
    };
    l.cast(I8X16, v)
}

/// Interleaves lanes of `width` bytes, of the low or high halves.
fn interleave(width: u8, high: bool) -> [u8; 16] {
    std::array::from_fn(|i| {
        let i = i as u8;
        let (lane, byte) = (i / width, i % width);
        let from = lane / 2 * width + byte + if high { 8 } else { 0 };
        if lane.is_multiple_of(2) { from } else { from + 16 }
    })
}

fn lanes(l: &mut Lower<'_, '_>, op: VecOp, x: Value, y: Value) -> Value {
    use VecOp::*;
    let ty = match op {
        CmpEq64 | CmpGtS64 => I64X2,
        MinS32 | MaxS32 | MinU32 | MaxU32 | Mul32 | PackU32 | HAdd32 | Abs32 | Sign32 => I32X4,
        MinU16 | MaxU16 | HAdd16 | MulRoundS16 | Abs16 | Sign16 => I16X8,
        Add16 | Sub16 | CmpEq16 | CmpGtS16 | MinS16 | MaxS16 | Mul16 | AvgU16 | AddSatS16 | AddSatU16 | SubSatS16 | SubSatU16
        | PackS16 | PackU16 => I16X8,
        Add32 | Sub32 | CmpEq32 | CmpGtS32 | PackS32 => I32X4,
        Add64 | Sub64 => I64X2,
        _ => I8X16,
    };
    let (a, b) = (l.cast(ty, x), l.cast(ty, y));
    let unpack = |w, high| interleave(w, high);
    let mask = match op {
        UnpkLo8 => Some(unpack(1, false)),
        UnpkLo16 => Some(unpack(2, false)),
        UnpkLo32 => Some(unpack(4, false)),
        UnpkLo64 => Some(unpack(8, false)),
        UnpkHi8 => Some(unpack(1, true)),
        UnpkHi16 => Some(unpack(2, true)),
        UnpkHi32 => Some(unpack(4, true)),
        UnpkHi64 => Some(unpack(8, true)),
        _ => None,
    };
    if let Some(mask) = mask {
        return l.shuffle(a, b, mask);
    }
    let ins = l.b.ins();
    let v = match op {
        And => ins.band(a, b),
        Or => ins.bor(a, b),
        Xor => ins.bxor(a, b),
        AndNot => ins.band_not(b, a),
        Add8 | Add16 | Add32 | Add64 => ins.iadd(a, b),
        Sub8 | Sub16 | Sub32 | Sub64 => ins.isub(a, b),
        CmpEq8 | CmpEq16 | CmpEq32 | CmpEq64 => ins.icmp(IntCC::Equal, a, b),
        CmpGtS8 | CmpGtS16 | CmpGtS32 | CmpGtS64 => ins.icmp(IntCC::SignedGreaterThan, a, b),
        MinU8 | MinU16 | MinU32 => ins.umin(a, b),
        MaxU8 | MaxU16 | MaxU32 => ins.umax(a, b),
        MinS8 | MinS16 | MinS32 => ins.smin(a, b),
        MaxS8 | MaxS16 | MaxS32 => ins.smax(a, b),
        Mul16 | Mul32 => ins.imul(a, b),
        HAdd16 | HAdd32 => ins.iadd_pairwise(a, b),
        Abs8 | Abs16 | Abs32 => ins.iabs(b),
        Permute8 if ssse3() => ins.x86_pshufb(a, b),
        MulRoundS16 if ssse3() => ins.x86_pmulhrsw(a, b),
        AvgU8 | AvgU16 => ins.avg_round(a, b),
        AddSatS8 | AddSatS16 => ins.sadd_sat(a, b),
        AddSatU8 | AddSatU16 => ins.uadd_sat(a, b),
        SubSatS8 | SubSatS16 => ins.ssub_sat(a, b),
        SubSatU8 | SubSatU16 => ins.usub_sat(a, b),
        PackS16 | PackS32 => ins.snarrow(a, b),
        PackU16 | PackU32 => ins.unarrow(a, b),
        _ => match special::lower(l, op, a, b) {
            Some(v) => v,
            None => return l.vec_slow(op as u16, x, y),
        },
    };
    l.cast(I8X16, v)
}

/// Has the host the shuffles and multiplications that Cranelift has no other form of?
#[cfg(target_arch = "x86_64")]
pub(super) fn ssse3() -> bool {
    std::is_x86_feature_detected!("ssse3")
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn ssse3() -> bool {
    false
}
