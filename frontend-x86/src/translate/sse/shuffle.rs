//! SSE shuffles, byte shifts and element moves by an immediate (SDM 1 "SSE Shuffle and Unpack Instructions").

use super::super::Tr;
use iced_x86::Mnemonic;
use ir::Ty;

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic as M;
    let run: fn(&mut Tr<'_>) = match tr.insn.mnemonic() {
        M::Pshufd => |tr| from_source(tr, |imm, i| lane4(imm, i / 4) * 4 + i % 4),
        M::Pshuflw => |tr| from_source(tr, |imm, i| if i < 8 { lane4(imm, i / 2) * 2 + i % 2 } else { i }),
        M::Pshufhw => |tr| from_source(tr, |imm, i| if i >= 8 { 8 + lane4(imm, i / 2 - 4) * 2 + i % 2 } else { i }),
        M::Movsldup => |tr| from_source(tr, |_, i| i & !4),
        M::Movshdup => |tr| from_source(tr, |_, i| i | 4),
        M::Movddup => movddup,
        M::Shufps => |tr| two_sources(tr, |imm, i| lane4(imm, i / 4) * 4 + i % 4 + (i & 8) * 2),
        M::Shufpd => |tr| two_sources(tr, |imm, i| (imm >> (i / 8) & 1) * 8 + i % 8 + (i & 8) * 2),
        M::Psrldq => |tr| with_zero(tr, |imm, i| if i + imm.min(16) < 16 { i + imm } else { 16 }),
        M::Pslldq => |tr| with_zero(tr, |imm, i| if i >= imm { i - imm } else { 16 }),
        M::Pinsrw => pinsrw,
        M::Pextrw => pextrw,
        _ => return false,
    };
    if tr.sse_enabled() {
        run(tr);
    }
    true
}

/// Two-bit field `n` of an immediate.
fn lane4(imm: u8, n: u8) -> u8 {
    imm >> (2 * (n & 3)) & 3
}

fn bytes(f: impl Fn(u8) -> u8) -> [u8; 16] {
    std::array::from_fn(|i| f(i as u8))
}

/// Byte i of the destination is byte `f(imm, i)` of the source.
fn from_source(tr: &mut Tr<'_>, f: fn(u8, u8) -> u8) {
    let imm = tr.imm8(2);
    let v = tr.vsrc(1);
    let r = tr.b.vshuffle(v, v, bytes(|i| f(imm, i)));
    tr.xset(0, r);
}

/// Byte i of the destination is byte `f(imm, i)` of destination and source (16..=31) together.
fn two_sources(tr: &mut Tr<'_>, f: fn(u8, u8) -> u8) {
    let imm = tr.imm8(2);
    let v = tr.vsrc(1);
    let a = tr.xget(0);
    let r = tr.b.vshuffle(a, v, bytes(|i| f(imm, i)));
    tr.xset(0, r);
}

/// Byte i of the destination is its byte `f(imm, i)`, 0 if that is 16.
fn with_zero(tr: &mut Tr<'_>, f: fn(u8, u8) -> u8) {
    let imm = tr.imm8(1);
    let a = tr.xget(0);
    let z = tr.vzero();
    let r = tr.b.vshuffle(a, z, bytes(|i| f(imm, i)));
    tr.xset(0, r);
}

fn movddup(tr: &mut Tr<'_>) {
    let (lo, _) = tr.vsrc_lanes(1, 8);
    let z = tr.vzero();
    let r = tr.b.vset_lane(z, 0, lo);
    let r = tr.b.vset_lane(r, 1, lo);
    tr.xset(0, r);
}

fn pinsrw(tr: &mut Tr<'_>) {
    let at = u32::from(tr.imm8(2) & 7) * 2;
    let v = if tr.is_mem(1) { tr.vload(Ty::I16, false) } else { tr.src(1, Ty::I16) };
    let dst = tr.xslot(0);
    tr.b.set(Ty::I16, dst, at, v);
}

fn pextrw(tr: &mut Tr<'_>) {
    let at = u32::from(tr.imm8(2) & 7) * 2;
    let src = tr.xslot(1);
    let v = tr.b.get(Ty::I16, src, at);
    let v = tr.b.zext(Ty::I32, v);
    let r = tr.insn.op_register(0).full_register32();
    tr.set_reg(r, v);
}
