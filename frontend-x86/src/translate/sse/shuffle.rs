//! SSE and AVX shuffles, byte shifts and element moves by an immediate (SDM 1 "SSE Shuffle and Unpack Instructions").

use super::super::Tr;
use iced_x86::Mnemonic;
use ir::Ty;

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic as M;
    let run: fn(&mut Tr<'_>) = match tr.name() {
        M::Pshufd => |tr| from_source(tr, |imm, i| lane4(imm, i / 4) * 4 + i % 4),
        M::Pshuflw => |tr| from_source(tr, |imm, i| if i < 8 { lane4(imm, i / 2) * 2 + i % 2 } else { i }),
        M::Pshufhw => |tr| from_source(tr, |imm, i| if i >= 8 { 8 + lane4(imm, i / 2 - 4) * 2 + i % 2 } else { i }),
        M::Movsldup => |tr| from_source(tr, |_, i| i & !4),
        M::Movshdup => |tr| from_source(tr, |_, i| i | 4),
        M::Movddup => movddup,
        M::Shufps => |tr| two_sources(tr, 0, |imm, i| lane4(imm, i / 4) * 4 + i % 4 + (i & 8) * 2),
        M::Shufpd => |tr| two_sources(tr, 2, |imm, i| (imm >> (i / 8) & 1) * 8 + i % 8 + (i & 8) * 2),
        M::Palignr => palignr,
        M::Psrldq => |tr| with_zero(tr, |imm, i| if i + imm.min(16) < 16 { i + imm } else { 16 }),
        M::Pslldq => |tr| with_zero(tr, |imm, i| if i >= imm { i - imm } else { 16 }),
        M::Pinsrb => |tr| insert(tr, Ty::I8),
        M::Pinsrw => |tr| insert(tr, Ty::I16),
        M::Pinsrd => |tr| insert(tr, Ty::I32),
        M::Pinsrq => |tr| insert(tr, Ty::I64),
        M::Pextrb => |tr| extract(tr, Ty::I8),
        M::Pextrw => |tr| extract(tr, Ty::I16),
        M::Pextrd | M::Extractps => |tr| extract(tr, Ty::I32),
        M::Pextrq => |tr| extract(tr, Ty::I64),
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
    let imm = tr.imm8();
    tr.each(1, |tr, v| tr.b.vshuffle(v, v, bytes(|i| f(imm, i))));
}

/// Byte i of the destination is byte `f(imm, i)` of both sources, the second at 16..=31. `used`: how many bits of the
/// immediate are for the low half alone, 0 if both halves use all.
fn two_sources(tr: &mut Tr<'_>, used: u8, f: fn(u8, u8) -> u8) {
    let imm = tr.imm8();
    tr.both_by_half(|tr, half, a, b| tr.b.vshuffle(a, b, bytes(|i| f(imm >> (half * used), i))));
}

/// Byte i of the destination is the source's byte `f(imm, i)`, 0 if that is 16.
fn with_zero(tr: &mut Tr<'_>, f: fn(u8, u8) -> u8) {
    let imm = tr.imm8();
    let source = tr.sources().0;
    let z = tr.vzero();
    tr.each(source, |tr, v| tr.b.vshuffle(v, z, bytes(|i| f(imm, i))));
}

/// The bytes from `imm` on of first:second source.
fn palignr(tr: &mut Tr<'_>) {
    let n = tr.imm8();
    let z = tr.vzero();
    tr.both(|tr, a, b| match n {
        0..16 => tr.b.vshuffle(b, a, bytes(|i| i + n)),
        16..32 => tr.b.vshuffle(a, z, bytes(|i| i + n - 16)),
        _ => z,
    });
}

fn movddup(tr: &mut Tr<'_>) {
    if tr.is_wide() {
        return from_source(tr, |_, i| i & 7);
    }
    let (lo, _) = tr.vsrc_lanes(1, 8);
    let r = tr.pack(lo, lo);
    tr.xset(0, r);
}

/// Byte offset of the element of type `ty` that the immediate selects.
fn element(tr: &Tr<'_>, ty: Ty) -> u32 {
    (u32::from(tr.imm8()) * ty.bytes()) & 15
}

fn insert(tr: &mut Tr<'_>, ty: Ty) {
    let at = element(tr, ty);
    let (i, j) = tr.sources();
    let v = tr.src(j, ty);
    if tr.is_vex() {
        let first = tr.xget(i);
        tr.xset(0, first);
    }
    let dst = tr.xslot(0);
    tr.b.set(ty, dst, at, v);
}

/// Memory gets the element; a general register its zero-extension.
fn extract(tr: &mut Tr<'_>, ty: Ty) {
    let at = element(tr, ty);
    let src = tr.xslot(1);
    let v = tr.b.get(ty, src, at);
    if tr.is_mem(0) {
        return tr.dst(0, v);
    }
    let v = if ty == Ty::I64 { v } else { tr.b.zext(Ty::I32, v) };
    let r = tr.insn.op_register(0);
    tr.set_reg(if ty == Ty::I64 { r } else { r.full_register32() }, v);
}
