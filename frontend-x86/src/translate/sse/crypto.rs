//! AES, PCLMULQDQ and SHA: IR ops; GFNI, AESKEYGENASSIST, string comparisons and MPSADBW: calls of helpers (SDM 2 of each).

use super::super::Tr;
use super::number;
use crate::helpers::vector::{BLOCK, BlockOp, STRINGS, pack};
use crate::layout::xmm;
use crate::tri::of_crypto;
use iced_x86::Mnemonic;
use ir::Val;

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic as M;
    let op = match tr.name() {
        M::Aesenc => BlockOp::AesEnc,
        M::Aesenclast => BlockOp::AesEncLast,
        M::Aesdec => BlockOp::AesDec,
        M::Aesdeclast => BlockOp::AesDecLast,
        M::Aesimc => BlockOp::AesImc,
        M::Aeskeygenassist => BlockOp::AesKeygen,
        M::Pclmulqdq => BlockOp::Clmul,
        M::Mpsadbw => BlockOp::Mpsadbw,
        M::Sha1rnds4 => BlockOp::Sha1Rnds4,
        M::Sha1nexte => BlockOp::Sha1Nexte,
        M::Sha1msg1 => BlockOp::Sha1Msg1,
        M::Sha1msg2 => BlockOp::Sha1Msg2,
        M::Sha256rnds2 => BlockOp::Sha256Rnds2,
        M::Sha256msg1 => BlockOp::Sha256Msg1,
        M::Sha256msg2 => BlockOp::Sha256Msg2,
        M::Gf2p8mulb => BlockOp::Gf2p8Mul,
        M::Gf2p8affineqb => BlockOp::Gf2p8Affine,
        M::Gf2p8affineinvqb => BlockOp::Gf2p8AffineInv,
        M::Pcmpestrm | M::Pcmpestri | M::Pcmpestrm64 | M::Pcmpestri64 | M::Pcmpistrm | M::Pcmpistri => {
            if tr.sse_enabled() {
                strings(tr);
            }
            return true;
        }
        _ => return false,
    };
    if tr.sse_enabled() {
        block(tr, op);
    }
    true
}

/// Each half by itself; MPSADBW has bits 5:3 of the immediate for the high one.
fn block(tr: &mut Tr<'_>, op: BlockOp) {
    let imm = tr.imm8();
    let unary = matches!(op, BlockOp::AesImc | BlockOp::AesKeygen);
    let (i, j) = if unary { (0, 1) } else { tr.sources() };
    let (dst, first) = (number(tr.insn.op_register(0)), number(tr.insn.op_register(i)));
    let b = tr.halves(j);
    if let Some(host) = op.host(imm) {
        let a = tr.halves(i);
        // Round constants of SHA256RNDS2.
        let third = tr.b.get(ir::Ty::V128, xmm(0), 0);
        let r =
            [0, 1].map(|half| if b[half] == Val::NONE { Val::NONE } else { tr.b.tri(of_crypto(host), a[half], b[half], third) });
        return tr.vset(0, r);
    }
    let lanes = b.map(|v| if v == Val::NONE { None } else { Some((tr.b.vlane(v, 0), tr.b.vlane(v, 1))) });
    for (half, (lo, hi)) in lanes.into_iter().flatten().enumerate() {
        let imm = if op == BlockOp::Mpsadbw { imm >> (3 * half) & 7 } else { imm };
        let upper = 16 * half as u32;
        let code = tr.i64(pack(op as u16, dst + upper, first + upper, imm));
        tr.call(BLOCK, &[code, lo, hi]);
    }
    if b[1] == Val::NONE {
        tr.clear_upper(0);
    }
}

/// PCMPESTRM and its like; memory need not be aligned.
fn strings(tr: &mut Tr<'_>) {
    let imm = tr.imm8();
    let m = tr.name();
    use Mnemonic as M;
    let explicit = !matches!(m, M::Pcmpistrm | M::Pcmpistri);
    let mask = matches!(m, M::Pcmpestrm | M::Pcmpestrm64 | M::Pcmpistrm);
    let wide = matches!(m, M::Pcmpestrm64 | M::Pcmpestri64);
    let v = if tr.is_mem(1) { tr.vload(ir::Ty::V128, false) } else { tr.xget(1) };
    let (lo, hi) = (tr.b.vlane(v, 0), tr.b.vlane(v, 1));
    let how = u16::from(explicit) | u16::from(mask) << 1 | u16::from(wide) << 2;
    let code = tr.i64(pack(how, 0, number(tr.insn.op_register(0)), imm));
    let flags = tr.call(STRINGS, &[code, lo, hi]);
    tr.flags_bits(flags);
    if mask && tr.is_vex() {
        let z = tr.vzero();
        tr.b.set(ir::Ty::V128, crate::layout::ymmh(0), 0, z);
    }
}
