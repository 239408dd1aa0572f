//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM 1 "Operation of the string comparison instructions", SDM 2 §4.1).

use crate::hostfp::strings as host;
use arch_x86::flags::bit;

/// Outcome of a comparison.
pub struct Compared {
    /// IntRes2, one bit an element.
    bits: u32,
    /// Elements of a vector: 8 or 16.
    n: u32,
    imm: u8,
    pub flags: u64,
}

impl Compared {
    /// Number of the lowest or highest element found, n if there is none.
    pub fn index(&self) -> u32 {
        match (self.bits, self.imm & 0x40 != 0) {
            (0, _) => self.n,
            (b, true) => 31 - b.leading_zeros(),
            (b, false) => b.trailing_zeros(),
        }
    }

    /// The bits, or elements of ones and zeroes.
    pub fn mask(&self) -> u128 {
        if self.imm & 0x40 == 0 {
            return self.bits.into();
        }
        let width = 128 / self.n;
        let ones = u128::MAX >> (128 - width);
        (0..self.n).filter(|i| self.bits >> i & 1 == 1).fold(0, |r, i| r | ones << (i * width))
    }
}

/// A vector as elements of the immediate's type, and how many are valid.
struct Elements {
    v: [i32; 16],
    valid: u32,
}

impl Elements {
    fn new(v: u128, imm: u8, length: Option<i64>) -> Elements {
        let n = count(imm);
        let e: [i32; 16] = std::array::from_fn(|i| match imm & 3 {
            0 => (v >> (8 * i)) as u8 as i32,
            1 => (v >> (16 * (i & 7))) as u16 as i32,
            2 => (v >> (8 * i)) as i8 as i32,
            _ => (v >> (16 * (i & 7))) as i16 as i32,
        });
        let valid = match length {
            Some(l) => l.unsigned_abs().min(n.into()) as u32,
            None => (0..n).find(|i| e[*i as usize] == 0).unwrap_or(n),
        };
        Elements { v: e, valid }
    }

    /// Element `i` if it is valid.
    fn at(&self, i: u32) -> Option<i32> {
        (i < self.valid).then(|| self.v[(i & 15) as usize])
    }
}

fn count(imm: u8) -> u32 {
    if imm & 1 == 0 { 16 } else { 8 }
}

/// IntRes1: has element `j` of the second operand what is looked for?
fn found(a: &Elements, b: &Elements, n: u32, imm: u8, j: u32) -> bool {
    match imm >> 2 & 3 {
        0 => b.at(j).is_some_and(|x| (0..a.valid).any(|i| a.at(i) == Some(x))),
        1 => b.at(j).is_some_and(|x| {
            (0..n).step_by(2).any(|i| a.at(i).zip(a.at(i + 1)).is_some_and(|(low, high)| (low..=high).contains(&x)))
        }),
        2 => a.at(j) == b.at(j),
        _ => (0..n - j).all(|i| a.at(i).is_none_or(|x| b.at(i + j) == Some(x))),
    }
}

/// `lengths`: those of the explicit forms; else the strings end before their first 0.
pub fn compare(a: u128, b: u128, lengths: Option<(i64, i64)>, imm: u8) -> Compared {
    let (bits, flags) = host::compare(a, b, lengths, imm).unwrap_or_else(|| portable(a, b, lengths, imm));
    Compared { bits, n: count(imm), imm, flags }
}

/// IntRes2 and the flags.
fn portable(a: u128, b: u128, lengths: Option<(i64, i64)>, imm: u8) -> host::Outcome {
    let n = count(imm);
    let a = Elements::new(a, imm, lengths.map(|l| l.0));
    let b = Elements::new(b, imm, lengths.map(|l| l.1));
    let first = (0..n).filter(|j| found(&a, &b, n, imm, *j)).fold(0u32, |r, j| r | 1 << j);
    let all = |k: u32| (1u32 << k) - 1;
    let bits = match imm >> 4 & 3 {
        1 => first ^ all(n),
        3 => first ^ all(b.valid),
        _ => first,
    };
    let flag = |on: bool, f: u64| if on { f } else { 0 };
    (bits, flag(bits != 0, bit::CF) | flag(b.valid < n, bit::ZF) | flag(a.valid < n, bit::SF) | flag(bits & 1 == 1, bit::OF))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_core::testing::Rng;

    /// Strings of few letters, so that much is equal, that end anywhere.
    fn string(r: &mut Rng) -> u128 {
        let letters = r.next_u64();
        let bytes = std::array::from_fn(|_| if r.next_u64().is_multiple_of(12) { 0 } else { (letters >> (8 * (r.next_u64() & 3))) as u8 });
        u128::from_le_bytes(bytes)
    }

    #[test]
    fn the_portable_comparison_agrees_with_the_host() {
        let mut r = Rng(5);
        let mut compared = 0;
        for imm in 0..=255u8 {
            for _ in 0..200 {
                let (a, b) = (string(&mut r), string(&mut r));
                let length = |r: &mut Rng| match r.next_u64() % 8 {
                    0 => r.next_u64() as i64,
                    1 => i64::MIN,
                    2 => -((r.next_u64() % 20) as i64),
                    _ => (r.next_u64() % 20) as i64,
                };
                for lengths in [None, Some((length(&mut r), length(&mut r)))] {
                    if let Some(host) = host::compare(a, b, lengths, imm) {
                        assert_eq!(portable(a, b, lengths, imm), host, "{a:#x}, {b:#x}, {lengths:?}, {imm:#x}");
                        compared += 1;
                    }
                }
            }
        }
        if compared == 0 {
            vm_core::testing::left_out("string comparisons: the host has no SSE4.2");
        }
    }
}
