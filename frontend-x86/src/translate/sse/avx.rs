//! What only AVX and AVX2 have: broadcasts, permutations across halves, masked moves, gathers, VZEROUPPER (SDM 1 chapter 14).

use super::super::Tr;
use super::{Halves, number};
use crate::helpers::masked::{self, GATHER, MASKED_LOAD, MASKED_STORE};
use crate::layout;
use arch_x86::{Mode, SegReg};
use iced_x86::Mnemonic;
use ir::{Op, Ty, Val, VecOp, VecShift};

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic as M;
    let run: fn(&mut Tr<'_>) = match tr.insn.mnemonic() {
        M::Vpbroadcastb => |tr| broadcast(tr, 1),
        M::Vpbroadcastw => |tr| broadcast(tr, 2),
        M::Vpbroadcastd | M::Vbroadcastss => |tr| broadcast(tr, 4),
        M::Vpbroadcastq | M::Vbroadcastsd => |tr| broadcast(tr, 8),
        M::Vbroadcastf128 | M::Vbroadcasti128 => |tr| broadcast(tr, 16),
        M::Vinsertf128 | M::Vinserti128 => insert_half,
        M::Vextractf128 | M::Vextracti128 => extract_half,
        M::Vperm2f128 | M::Vperm2i128 => permute_halves,
        M::Vpermq | M::Vpermpd => permute_lanes,
        M::Vpermd | M::Vpermps => permute_by_register,
        M::Vpermilps => |tr| permute_in_half(tr, VecOp::Permute32),
        M::Vpermilpd => |tr| permute_in_half(tr, VecOp::Permute64),
        M::Vmaskmovps | M::Vpmaskmovd => |tr| masked_move(tr, 4),
        M::Vmaskmovpd | M::Vpmaskmovq => |tr| masked_move(tr, 8),
        M::Vpgatherdd | M::Vgatherdps => |tr| gather(tr, 4, 4),
        M::Vpgatherdq | M::Vgatherdpd => |tr| gather(tr, 4, 8),
        M::Vpgatherqd | M::Vgatherqps => |tr| gather(tr, 8, 4),
        M::Vpgatherqq | M::Vgatherqpd => |tr| gather(tr, 8, 8),
        M::Vzeroupper => |tr| zero(tr, false),
        M::Vzeroall => |tr| zero(tr, true),
        _ => return false,
    };
    if tr.sse_enabled() {
        run(tr);
    }
    true
}

/// Repeats the source's lowest `bytes`.
fn broadcast(tr: &mut Tr<'_>, bytes: u32) {
    let v = if !tr.is_mem(1) {
        tr.xget(1)
    } else if bytes == 16 {
        tr.vload(Ty::V128, false)
    } else {
        let v = tr.vload(Ty::int(bytes), false);
        let v = tr.b.zext(Ty::I64, v);
        let z = tr.vzero();
        tr.b.vset_lane(z, 0, v)
    };
    let r = if bytes == 16 { v } else { tr.b.vshuffle(v, v, std::array::from_fn(|i| i as u8 % bytes as u8)) };
    let high = if tr.is_wide() { r } else { Val::NONE };
    tr.vset(0, [r, high]);
}

fn insert_half(tr: &mut Tr<'_>) {
    let upper = tr.imm8() & 1 == 1;
    let v = if tr.is_mem(2) { tr.vload(Ty::V128, false) } else { tr.xget(2) };
    let r = if upper { [tr.xget(1), v] } else { [v, tr.yget(1)] };
    tr.vset(0, r);
}

fn extract_half(tr: &mut Tr<'_>) {
    let v = if tr.imm8() & 1 == 1 { tr.yget(1) } else { tr.xget(1) };
    if tr.is_mem(0) { tr.vstore(v, false) } else { tr.xset(0, v) }
}

fn permute_halves(tr: &mut Tr<'_>) {
    let imm = tr.imm8();
    let b = tr.halves(2);
    let a = tr.halves(1);
    let z = tr.vzero();
    let pick = |n: u8| if n & 8 != 0 { z } else { [a[0], a[1], b[0], b[1]][usize::from(n & 3)] };
    tr.vset(0, [pick(imm), pick(imm >> 4)]);
}

fn permute_lanes(tr: &mut Tr<'_>) {
    let imm = tr.imm8();
    let v = tr.halves(1);
    let r = [0u8, 4].map(|shift| {
        let lanes = [imm >> shift & 3, imm >> (shift + 2) & 3];
        tr.b.vshuffle(v[0], v[1], std::array::from_fn(|i| lanes[i / 8] * 8 + i as u8 % 8))
    });
    tr.vset(0, r);
}

/// VPERMD: each dword of the result is the one of all eight whose number the first source has.
fn permute_by_register(tr: &mut Tr<'_>) {
    let v = tr.halves(2);
    let index = tr.halves(1);
    let r = index.map(|n| {
        let (low, high) = (tr.vec(VecOp::Permute32, v[0], n), tr.vec(VecOp::Permute32, v[1], n));
        let top = tr.b.vshift(VecShift::Shl32, n, 29);
        let m = tr.b.vshift(VecShift::Sar32, top, 31);
        let (yes, no) = (tr.vec(VecOp::And, m, high), tr.vec(VecOp::AndNot, m, low));
        tr.vec(VecOp::Or, yes, no)
    });
    tr.vset(0, r);
}

/// VPERMILPS, VPERMILPD by register or immediate.
fn permute_in_half(tr: &mut Tr<'_>, op: VecOp) {
    if tr.is_reg(2) || tr.is_mem(2) {
        return tr.both(|tr, a, b| tr.vec(op, a, b));
    }
    let imm = tr.imm8();
    let v = tr.halves(1);
    let mut r: Halves = [Val::NONE; 2];
    for k in (0..2usize).filter(|k| v[*k] != Val::NONE) {
        r[k] = tr.b.vshuffle(
            v[k],
            v[k],
            std::array::from_fn(|i| {
                let i = i as u8;
                if op == VecOp::Permute32 {
                    (imm >> (i / 4 * 2) & 3) * 4 + i % 4
                } else {
                    (imm >> (2 * k as u8 + i / 8) & 1) * 8 + i % 8
                }
            }),
        );
    }
    tr.vset(0, r);
}

/// Elements of `bytes` whose mask has its top bit set; nothing else is touched in memory.
fn masked_move(tr: &mut Tr<'_>, bytes: u32) {
    let width = if tr.is_wide() { 32 } else { 16 };
    let mask = number(tr.insn.op_register(1));
    let store = tr.is_mem(0);
    let other = number(tr.insn.op_register(if store { 2 } else { 0 }));
    let (offset, disp) = tr.offset();
    let offset = tr.b.bin_imm(Op::Add, offset, disp as u64);
    let seg = element_segment(tr) as u64;
    let how = tr.i64(seg | u64::from(8 * tr.addr_ty().bytes()) << 8);
    let code = tr.i64(masked::code(bytes, width, other, mask));
    tr.call(if store { MASKED_STORE } else { MASKED_LOAD }, &[code, offset, how]);
}

/// Segment of elements that are checked one by one. In 64-bit code prefixes other than FS and GS do nothing.
fn element_segment(tr: &Tr<'_>) -> SegReg {
    use iced_x86::Register as R;
    match Tr::seg_of(tr.insn.memory_segment()).unwrap_or(SegReg::Ds) {
        seg @ (SegReg::Fs | SegReg::Gs) => seg,
        _ if tr.is_64() && matches!(tr.insn.memory_base(), R::RSP | R::ESP | R::RBP | R::EBP) => SegReg::Ss,
        _ if tr.is_64() => SegReg::Ds,
        seg => seg,
    }
}

/// Elements of `bytes` at indices of `index_bytes`.
fn gather(tr: &mut Tr<'_>, index_bytes: u32, bytes: u32) {
    let (dst, mask) = (tr.insn.op_register(0), tr.insn.op_register(2));
    let index = tr.insn.memory_index();
    if number(dst) == number(mask) || number(dst) == number(index) || number(mask) == number(index) {
        return tr.ud();
    }
    // As many elements as the wider of index and data has.
    let full = if index.is_ymm() || dst.is_ymm() { 32 } else { 16 };
    let n = full / index_bytes.max(bytes);
    let base = tr.insn.memory_base();
    let narrow = tr.addr_ty() != Ty::I64;
    let base = if Tr::gpr_of(base).is_some() {
        let b = tr.reg(base);
        tr.b.zext(Ty::I64, b)
    } else {
        tr.i64(0)
    };
    let offset = tr.b.bin_imm(Op::Add, base, tr.insn.memory_displacement64());
    let seg = element_segment(tr);
    let how = masked::Gather {
        bytes,
        index_bytes,
        n,
        dst: number(dst),
        mask: number(mask),
        index: number(index),
        scale: tr.insn.memory_index_scale(),
        narrow,
    };
    let code = tr.i64(how.pack());
    let seg = tr.i64(seg as u64);
    let again = tr.call(GATHER, &[code, offset, seg]);
    if tr.mode.has(Mode::STEP) {
        tr.retry = Some(tr.b.zext(Ty::I8, again));
    }
}

fn zero(tr: &mut Tr<'_>, all: bool) {
    let z = tr.vzero();
    for i in 0..if tr.is_64() { 16 } else { 8 } {
        tr.b.set(Ty::V128, layout::ymmh(i), 0, z);
        if all {
            tr.b.set(Ty::V128, layout::xmm(i), 0, z);
        }
    }
}
