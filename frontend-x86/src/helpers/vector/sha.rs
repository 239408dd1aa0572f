//! Steps of SHA-1 and SHA-256 (FIPS 180-4) as the SHA extensions divide them. Words are numbered from the low end.

fn words(v: u128) -> [u32; 4] {
    std::array::from_fn(|i| (v >> (32 * i)) as u32)
}

fn vector(w: [u32; 4]) -> u128 {
    w.iter().rev().fold(0, |r, w| r << 32 | u128::from(*w))
}

fn choose(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ !x & z
}

fn majority(x: u32, y: u32, z: u32) -> u32 {
    x & y ^ x & z ^ y & z
}

/// SHA1RNDS4: state A to D in `a` (A on top), the four words with E added to the first in `b`; `kind` selects function and
/// constant.
pub fn sha1_rounds(a: u128, b: u128, kind: u8) -> u128 {
    const K: [u32; 4] = [0x5a82_7999, 0x6ed9_eba1, 0x8f1b_bcdc, 0xca62_c1d6];
    let [mut d, mut c, mut b_, mut a_] = words(a);
    let w = words(b);
    let mut e = 0u32;
    for i in 0..4 {
        let f = match kind & 3 {
            0 => choose(b_, c, d),
            2 => majority(b_, c, d),
            _ => b_ ^ c ^ d,
        };
        let next = f
            .wrapping_add(a_.rotate_left(5))
            .wrapping_add(w[3 - i])
            .wrapping_add(e)
            .wrapping_add(K[usize::from(kind & 3)]);
        (e, d, c, b_, a_) = (d, c, b_.rotate_left(30), a_, next);
    }
    vector([d, c, b_, a_])
}

pub fn sha1_next_e(a: u128, b: u128) -> u128 {
    let (a, mut b) = (words(a), words(b));
    b[3] = b[3].wrapping_add(a[3].rotate_left(30));
    vector(b)
}

pub fn sha1_message1(a: u128, b: u128) -> u128 {
    let (x, y) = (words(a), words(b));
    vector([y[2] ^ x[0], y[3] ^ x[1], x[0] ^ x[2], x[1] ^ x[3]])
}

pub fn sha1_message2(a: u128, b: u128) -> u128 {
    let (x, y) = (words(a), words(b));
    let w16 = (x[3] ^ y[2]).rotate_left(1);
    vector([(x[0] ^ w16).rotate_left(1), (x[1] ^ y[0]).rotate_left(1), (x[2] ^ y[1]).rotate_left(1), w16])
}

/// SHA256RNDS2: state C D G H in `a`, A B E F in `b`, words with constants added in the low half of `k`.
pub fn sha256_rounds(a: u128, b: u128, k: u128) -> u128 {
    let ([mut h, mut g, mut d, mut c], [mut f, mut e, mut b_, mut a_]) = (words(a), words(b));
    for w in &words(k)[..2] {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let s0 = a_.rotate_right(2) ^ a_.rotate_right(13) ^ a_.rotate_right(22);
        let t = choose(e, f, g).wrapping_add(s1).wrapping_add(*w).wrapping_add(h);
        let next = t.wrapping_add(majority(a_, b_, c)).wrapping_add(s0);
        (h, g, f, e, d, c, b_, a_) = (g, f, e, t.wrapping_add(d), c, b_, a_, next);
    }
    vector([f, e, b_, a_])
}

pub fn sha256_message1(a: u128, b: u128) -> u128 {
    let (x, y) = (words(a), words(b));
    let s0 = |w: u32| w.rotate_right(7) ^ w.rotate_right(18) ^ w >> 3;
    let next = [x[1], x[2], x[3], y[0]];
    vector(std::array::from_fn(|i| x[i].wrapping_add(s0(next[i]))))
}

pub fn sha256_message2(a: u128, b: u128) -> u128 {
    let (x, y) = (words(a), words(b));
    let s1 = |w: u32| w.rotate_right(17) ^ w.rotate_right(19) ^ w >> 10;
    let w16 = x[0].wrapping_add(s1(y[2]));
    let w17 = x[1].wrapping_add(s1(y[3]));
    vector([w16, w17, x[2].wrapping_add(s1(w16)), x[3].wrapping_add(s1(w17))])
}
