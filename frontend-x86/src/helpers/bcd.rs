//! Decimal adjustments (SDM 2 "AAA", "AAS", "DAA", "DAS").

use super::{Env, PURE, Res};
use arch_x86::flags::bit;

rows! {
    topic bcd;
    /// (AX, CF and AF as bits, which): new AX | new flags << 32. Undefined flags are given a fixed value.
    BCD = bcd(3) PURE;
}

pub const AAA: u64 = 0;
pub const AAS: u64 = 1;
pub const DAA: u64 = 2;
pub const DAS: u64 = 3;

fn bcd<E: Env>(_: &mut E, ax: u64, flags: u64, which: u64) -> Res {
    let (ax, flags) = if which < DAA { ascii(ax as u16, flags, which == AAS) } else { packed(ax as u16, flags, which == DAS) };
    Ok(u64::from(ax) | flags << 32)
}

fn ascii(ax: u16, flags: u64, sub: bool) -> (u16, u64) {
    let adjust = ax & 0xf > 9 || flags & bit::AF != 0;
    let r = match (adjust, sub) {
        (true, false) => ax.wrapping_add(0x106),
        (true, true) => ax.wrapping_sub(6).wrapping_sub(0x100),
        _ => ax,
    };
    (r & 0xff0f, if adjust { bit::CF | bit::AF } else { 0 })
}

fn packed(ax: u16, flags: u64, sub: bool) -> (u16, u64) {
    let old = ax as u8;
    let (mut al, mut f) = (old, 0);
    let by = |al: u8, n: u8| if sub { al.wrapping_sub(n) } else { al.wrapping_add(n) };
    if old & 0xf > 9 || flags & bit::AF != 0 {
        let carry = if sub { old < 6 } else { old > 0xff - 6 };
        al = by(al, 6);
        f = bit::AF | if carry { bit::CF } else { 0 } | flags & bit::CF;
    }
    if old > 0x99 || flags & bit::CF != 0 {
        al = by(al, 0x60);
        f |= bit::CF;
    } else if !sub {
        f &= !bit::CF;
    }
    f |= if al == 0 { bit::ZF } else { 0 } | if al & 0x80 != 0 { bit::SF } else { 0 };
    f |= if al.count_ones().is_multiple_of(2) { bit::PF } else { 0 };
    (ax & 0xff00 | u16::from(al), f)
}
