//! What MXCSR tells of arithmetic while an exception is not masked (SDM 1 "SSE, SSE2, and SSE3 Exception Conditions"). The host
//! computes with all of them masked; where that shows less, it is found here: the precision exception of a result that is too
//! small or too large counts digits as if exponents had no bounds, and dot products stop after the step that raises.

use super::sse::{MXCSR_FLAGS, SseOp};

const UE: u32 = 1 << 4;
const OE: u32 = 1 << 3;
const PE: u32 = 1 << 5;
const DAZ: u32 = 1 << 6;

/// Exceptions that `mxcsr` does not mask.
pub(super) fn unmasked(mxcsr: u32) -> u32 {
    !(mxcsr >> 7) & MXCSR_FLAGS
}

/// A finite number's magnitude: an odd factor, 0 for zero, and a power of two.
#[derive(Clone, Copy)]
struct Odd {
    factor: u128,
    exp: i32,
}

impl Odd {
    fn new(factor: u128, exp: i32) -> Odd {
        let zeros = if factor == 0 { 0 } else { factor.trailing_zeros() };
        Odd { factor: factor >> zeros, exp: exp + zeros as i32 }
    }

    /// Of `width` bits (32, 64); denormals are zero with `daz`.
    fn of(x: u64, width: u32, daz: bool) -> Odd {
        let (bits, bias) = if width == 32 { (23, 127) } else { (52, 1023) };
        let frac = x & ((1 << bits) - 1);
        let e = (x >> bits & (2 * bias as u64 + 1)) as i32;
        let (m, e) = match e {
            0 if daz => (0, 1),
            0 => (frac, 1),
            _ => (frac | 1 << bits, e),
        };
        Odd::new(m.into(), e - bias - bits)
    }

    /// Does it have more digits than a format of that many?
    fn exceeds(self, digits: u32) -> bool {
        128 - self.factor.leading_zeros() > digits
    }

    /// The product of two numbers of at most 64 digits.
    fn times(self, y: Odd) -> Odd {
        Odd { factor: self.factor * y.factor, exp: self.exp + y.exp }
    }

    /// Does the sum, or difference, have more digits? Of a product and a number of at most 53 digits.
    fn sum_exceeds(self, y: Odd, differ: bool, digits: u32) -> bool {
        if self.factor == 0 || y.factor == 0 {
            return (if self.factor == 0 { y } else { self }).exceeds(digits);
        }
        let (high, low) = if self.exp > y.exp { (self, y) } else { (y, self) };
        let shift = (high.exp - low.exp) as u32;
        if shift + 128 - high.factor.leading_zeros() > 126 {
            // The lowest digit is that of `low`, and the highest lies above 2^53 times it.
            return true;
        }
        let high = high.factor << shift;
        let sum = if differ { high.abs_diff(low.factor) } else { high + low.factor };
        Odd::new(sum, 0).exceeds(digits)
    }
}

fn digits(width: u32) -> u32 {
    match width {
        16 => 11,
        32 => 24,
        _ => 53,
    }
}

/// Has `a * b + c` (`minus`: `a * b - c`) more digits than `width` bits hold?
pub(super) fn fused_inexact([a, b, c]: [u64; 3], minus: bool, width: u32, mxcsr: u32) -> bool {
    let of = |x| Odd::of(x, width, mxcsr & DAZ != 0);
    let sign = |x: u64| x >> (width - 1) & 1 == 1;
    let differ = sign(a) ^ sign(b) ^ sign(c) ^ minus;
    of(a).times(of(b)).sum_exceeds(of(c), differ, digits(width))
}

/// One number of a result: the scalar operation that gives it, its operands, and the widths of operands and result.
struct Part {
    op: SseOp,
    x: u64,
    y: u64,
    from: u32,
    to: u32,
}

impl Part {
    fn inexact(&self, mxcsr: u32) -> bool {
        use SseOp::*;
        let of = |x| Odd::of(x, self.from, mxcsr & DAZ != 0);
        let (x, y, digits) = (of(self.x), of(self.y), digits(self.to));
        match self.op {
            Mulss | Mulsd => x.times(y).exceeds(digits),
            // Exact only if the division comes out even.
            Divss | Divsd => y.factor != 0 && x.factor % y.factor != 0,
            Addss | Addsd | Subss | Subsd => {
                let one = if self.from == 32 { 0x3f80_0000 } else { 0x3ff << 52 };
                fused_inexact([self.x, one, self.y], matches!(self.op, Subss | Subsd), self.from, mxcsr)
            }
            _ => y.exceeds(digits),
        }
    }

    /// The flags of this number.
    fn flags(&self, control: u32, mxcsr: u32) -> u32 {
        let mut r = u128::from(self.x);
        let mut flags = self.op.run_masked(&mut r, self.y, 0, control);
        let unmasked = unmasked(mxcsr);
        let tiny = unmasked & UE != 0 && (flags & UE != 0 || super::sse::has_tiny((1, self.to), r));
        if tiny {
            flags |= UE;
        }
        if tiny || flags & unmasked & OE != 0 {
            flags = flags & !PE | if self.inexact(mxcsr) { PE } else { 0 };
        }
        flags
    }
}

fn lane(v: u128, i: u32, width: u32) -> u64 {
    (v >> (i * width)) as u64 & (u64::MAX >> (64 - width))
}

/// Part `i` of an arithmetic operation or conversion on `a` and `b`; `None` behind the last, and of other operations.
fn part(op: SseOp, i: u32, a: u128, b: u128) -> Option<Part> {
    use SseOp::*;
    const SCALARS: [[SseOp; 2]; 4] = [[Addss, Addsd], [Subss, Subsd], [Mulss, Mulsd], [Divss, Divsd]];
    let sum = |minus: bool, n: u32, width: u32, x: u64, y: u64| {
        (i < n).then(|| Part { op: SCALARS[usize::from(minus)][usize::from(width == 64)], x, y, from: width, to: width })
    };
    let pair = |width: u32| {
        let n = 64 / width;
        let (v, at) = if i < n { (a, 2 * i) } else { (b, (2 * i.wrapping_sub(n)) & 3) };
        (lane(v, at, width), lane(v, at + 1, width))
    };
    match op {
        Addsubps => sum(i & 1 == 0, 4, 32, lane(a, i & 3, 32), lane(b, i & 3, 32)),
        Addsubpd => sum(i & 1 == 0, 2, 64, lane(a, i & 1, 64), lane(b, i & 1, 64)),
        Haddps | Hsubps => sum(op == Hsubps, 4, 32, pair(32).0, pair(32).1),
        Haddpd | Hsubpd if i < 2 => sum(op == Hsubpd, 2, 64, pair(64).0, pair(64).1),
        Cvtpd2ps | Cvtsd2ss => {
            let n = if op == Cvtpd2ps { 2 } else { 1 };
            (i < n).then(|| Part { op: Cvtsd2ss, x: 0, y: lane(b, i, 64), from: 64, to: 32 })
        }
        Cvtps2ph => (i < 4).then(|| Part { op, x: 0, y: lane(b, i, 32), from: 32, to: 16 }),
        _ => {
            let k = op as usize;
            let (width, n) = [(32, 4), (64, 2), (32, 1), (64, 1)][k & 3];
            let op = SCALARS.get(k / 4)?[k & 1];
            (i < n).then(|| Part { op, x: lane(a, i, width), y: lane(b, i, width), from: width, to: width })
        }
    }
}

/// Flags of an operation of which some number is too small or too large, by its numbers. `control`: MXCSR that it is run under.
pub(super) fn by_parts(op: SseOp, a: u128, b: u128, control: u32, mxcsr: u32) -> u32 {
    (0..4).map_while(|i| part(op, i, a, b)).fold(0, |f, p| f | p.flags(control, mxcsr))
}

/// Flags of DPPS and DPPD on operands of one or two halves: of the products, of the sums of two, of the last sum, up to the step
/// that raises an exception.
pub(super) fn dot<const N: usize>(op: SseOp, halves: [(u128, u128); N], mxcsr: u32) -> u32 {
    let (mul, add) = if op == SseOp::Dpps { (SseOp::Mulps, SseOp::Addps) } else { (SseOp::Mulpd, SseOp::Addpd) };
    // Sums of neighbours in the even lanes, zeros in the others.
    const EVEN: u128 = 0x0000_0000_ffff_ffff_0000_0000_ffff_ffff;
    let steps: &[(u32, u128)] = if op == SseOp::Dpps { &[(32, EVEN), (64, u128::MAX >> 64)] } else { &[(64, u128::MAX >> 64)] };
    let step = |op: SseOp, v: [(u128, u128); N]| {
        let mut flags = 0;
        let v = v.map(|(mut x, y)| {
            flags |= op.run(&mut x, y as u64, (y >> 64) as u64, mxcsr);
            x
        });
        (v, if flags & unmasked(mxcsr) & 7 != 0 { flags & 7 } else { flags })
    };
    let (mut v, mut flags) = step(mul, halves);
    for &(by, keep) in steps {
        if flags & unmasked(mxcsr) != 0 {
            break;
        }
        let (sums, f) = step(add, v.map(|v| (v & keep, v >> by & keep)));
        (v, flags) = (sums, flags | f);
    }
    flags
}
