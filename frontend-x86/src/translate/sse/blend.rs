//! Blends, extensions, tests and INSERTPS of SSE4.1 and AVX (SDM 1 "SSE4.1 Instruction Set").

use super::super::Tr;
use arch_x86::flags::bit;
use iced_x86::Mnemonic;
use ir::{Cond, Op, Ty, Val, VecOp, VecShift};

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic as M;
    let run: fn(&mut Tr<'_>) = match tr.name() {
        M::Blendps => |tr| by_imm(tr, 4, 4),
        M::Blendpd => |tr| by_imm(tr, 8, 2),
        M::Pblendw => |tr| by_imm(tr, 2, 0),
        M::Vpblendd => |tr| by_imm(tr, 4, 4),
        M::Blendvps => |tr| by_sign(tr, 32),
        M::Blendvpd => |tr| by_sign(tr, 64),
        M::Pblendvb => |tr| by_sign(tr, 8),
        M::Pmovzxbw => |tr| extend(tr, 1, 2, false),
        M::Pmovzxbd => |tr| extend(tr, 1, 4, false),
        M::Pmovzxbq => |tr| extend(tr, 1, 8, false),
        M::Pmovzxwd => |tr| extend(tr, 2, 4, false),
        M::Pmovzxwq => |tr| extend(tr, 2, 8, false),
        M::Pmovzxdq => |tr| extend(tr, 4, 8, false),
        M::Pmovsxbw => |tr| extend(tr, 1, 2, true),
        M::Pmovsxbd => |tr| extend(tr, 1, 4, true),
        M::Pmovsxbq => |tr| extend(tr, 1, 8, true),
        M::Pmovsxwd => |tr| extend(tr, 2, 4, true),
        M::Pmovsxwq => |tr| extend(tr, 2, 8, true),
        M::Pmovsxdq => |tr| extend(tr, 4, 8, true),
        M::Ptest => |tr| test(tr, None),
        M::Vtestps => |tr| test(tr, Some(32)),
        M::Vtestpd => |tr| test(tr, Some(64)),
        M::Insertps => insertps,
        _ => return false,
    };
    if tr.sse_enabled() {
        run(tr);
    }
    true
}

/// Bit n of the immediate takes element n (of `bytes`) from the second source. The high half uses the bits from `used` on.
fn by_imm(tr: &mut Tr<'_>, bytes: u8, used: u8) {
    let imm = tr.imm8();
    tr.both_by_half(|tr, half, a, b| {
        let bits = imm >> (half * used);
        tr.b.vshuffle(a, b, std::array::from_fn(|i| i as u8 + (bits >> (i as u8 / bytes) & 1) * 16))
    });
}

/// All ones in the lanes whose top bit is set.
fn sign_mask(tr: &mut Tr<'_>, width: u32, v: Val) -> Val {
    let z = tr.vzero();
    match width {
        8 => tr.vec(VecOp::CmpGtS8, z, v),
        32 => tr.b.vshift(VecShift::Sar32, v, 31),
        _ => tr.vec(VecOp::CmpGtS64, z, v),
    }
}

/// Elements of the second source where the mask's top bits are set. Legacy forms have their mask in XMM0.
fn by_sign(tr: &mut Tr<'_>, width: u32) {
    let (i, j) = tr.sources();
    let b = tr.halves(j);
    let a = tr.halves(i);
    let masks = if tr.is_vex() { tr.halves(3) } else { [tr.b.get(Ty::V128, crate::layout::xmm(0), 0), Val::NONE] };
    let mut r = [Val::NONE; 2];
    for k in (0..2).filter(|k| b[*k] != Val::NONE) {
        let m = sign_mask(tr, width, masks[k]);
        let (yes, no) = (tr.vec(VecOp::And, m, b[k]), tr.vec(VecOp::AndNot, m, a[k]));
        r[k] = tr.vec(VecOp::Or, yes, no);
    }
    tr.vset(0, r);
}

/// The `bytes` low bytes of vector operand `i`, the rest anything.
fn low_part(tr: &mut Tr<'_>, i: u32, bytes: u32) -> Val {
    if !tr.is_mem(i) {
        return tr.xget(i);
    }
    if bytes == 16 {
        return tr.vload(Ty::V128, false);
    }
    let v = tr.vload(Ty::int(bytes), false);
    let v = tr.b.zext(Ty::I64, v);
    let z = tr.vzero();
    tr.b.vset_lane(z, 0, v)
}

/// Widens elements of `from` bytes to `to` bytes.
fn extend(tr: &mut Tr<'_>, from: u8, to: u8, signed: bool) {
    let parts = if tr.is_wide() { 2 } else { 1 };
    let n = 16 / to;
    let v = low_part(tr, 1, u32::from(parts * n * from));
    let z = tr.vzero();
    let mut r = [Val::NONE; 2];
    for half in 0..parts {
        // Byte k of element e goes to the place of byte k + `up`; elsewhere there are zeroes.
        let up = if signed { to.min(4) - from } else { 0 };
        let mask = std::array::from_fn(|i| {
            let (e, k) = (half * n + i as u8 / to, i as u8 % to);
            if (up..up + from).contains(&k) { e * from + k - up } else { 16 }
        });
        let x = tr.b.vshuffle(v, z, mask);
        r[usize::from(half)] = match (signed, to) {
            (false, _) => x,
            (true, 2) => tr.b.vshift(VecShift::Sar16, x, 8),
            (true, 4) => tr.b.vshift(VecShift::Sar32, x, 8 * u32::from(up)),
            _ => {
                let low = if up == 0 { x } else { tr.b.vshift(VecShift::Sar32, x, 8 * u32::from(up)) };
                let sign = tr.b.vshift(VecShift::Sar32, low, 31);
                tr.b.vshuffle(low, sign, std::array::from_fn(|i| if i % 8 < 4 { i as u8 } else { 16 + i as u8 - 4 }))
            }
        };
    }
    tr.vset(0, r);
}

/// I8: are the bits of all of `v` 0, or the top bits of its lanes of `width`?
fn all_zero(tr: &mut Tr<'_>, v: [Val; 2], width: Option<u16>) -> Val {
    let mut any = tr.i64(0);
    for v in v.into_iter().filter(|v| *v != Val::NONE) {
        let bits = match width {
            Some(w) => tr.b.vmask(v, w),
            None => {
                let (lo, hi) = (tr.b.vlane(v, 0), tr.b.vlane(v, 1));
                tr.b.bin(Op::Or, lo, hi)
            }
        };
        any = tr.b.bin(Op::Or, any, bits);
    }
    tr.b.cmp_imm(Cond::Eq, any, 0)
}

/// ZF: both AND is 0. CF: second AND NOT first is 0. The other flags are cleared (SDM 2 "PTEST").
fn test(tr: &mut Tr<'_>, width: Option<u16>) {
    let b = tr.halves(1);
    let a = tr.halves(0);
    let combine = |tr: &mut Tr<'_>, op: VecOp| {
        let low = tr.vec(op, a[0], b[0]);
        [low, if b[1] == Val::NONE { Val::NONE } else { tr.vec(op, a[1], b[1]) }]
    };
    let (both, rest) = (combine(tr, VecOp::And), combine(tr, VecOp::AndNot));
    let (zf, cf) = (all_zero(tr, both, width), all_zero(tr, rest, width));
    let (zf, cf) = (tr.b.zext(Ty::I64, zf), tr.b.zext(Ty::I64, cf));
    let zf = tr.b.bin_imm(Op::Shl, zf, bit::ZF.trailing_zeros().into());
    let bits = tr.b.bin(Op::Or, zf, cf);
    tr.flags_bits(bits);
}

fn insertps(tr: &mut Tr<'_>) {
    let imm = tr.imm8();
    let (i, j) = tr.sources();
    // Of a register the immediate selects the element.
    let from = if tr.is_mem(j) { 0 } else { imm >> 6 };
    let v = low_part(tr, j, 4);
    let first = tr.xget(i);
    let to = imm >> 4 & 3;
    let mask = std::array::from_fn(|i| {
        let i = i as u8;
        if i / 4 == to { 16 + from * 4 + i % 4 } else { i }
    });
    let r = tr.b.vshuffle(first, v, mask);
    let z = tr.vzero();
    let r = tr.b.vshuffle(r, z, std::array::from_fn(|i| if imm >> (i / 4) & 1 == 1 { 16 } else { i as u8 }));
    tr.xset(0, r);
}
