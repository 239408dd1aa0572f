//! Rounds of AES (FIPS 197) as the AES-NI instructions divide them, and the arithmetic of its field (GFNI). Byte i of a vector
//! is row i mod 4, column i / 4.

const fn times2(x: u8) -> u8 {
    x << 1 ^ if x & 0x80 != 0 { 0x1b } else { 0 }
}

const fn times(x: u8, y: u8) -> u8 {
    let (mut x, mut y, mut r) = (x, y, 0);
    while y != 0 {
        r ^= if y & 1 == 1 { x } else { 0 };
        x = times2(x);
        y >>= 1;
    }
    r
}

/// x^254, the inverse in GF(2^8); 0 for 0.
const RECIPROCAL: [u8; 256] = {
    let mut t = [0; 256];
    let mut x = 1;
    while x < 256 {
        let (mut inv, mut k) = (1u8, 0);
        while k < 254 {
            inv = times(inv, x as u8);
            k += 1;
        }
        t[x] = inv;
        x += 1;
    }
    t
};

/// The S-box: the inverse, then an affine map.
const SBOX: [u8; 256] = {
    let mut t = [0; 256];
    let mut x = 0;
    while x < 256 {
        let inv = RECIPROCAL[x];
        t[x] = inv ^ inv.rotate_left(1) ^ inv.rotate_left(2) ^ inv.rotate_left(3) ^ inv.rotate_left(4) ^ 0x63;
        x += 1;
    }
    t
};

const INVERSE: [u8; 256] = {
    let mut t = [0; 256];
    let mut i = 0;
    while i < 256 {
        t[SBOX[i] as usize] = i as u8;
        i += 1;
    }
    t
};

/// Products of all bytes with one number.
const fn multiples(y: u8) -> [u8; 256] {
    let mut t = [0; 256];
    let mut x = 0;
    while x < 256 {
        t[x] = times(x as u8, y);
        x += 1;
    }
    t
}

const X9: [u8; 256] = multiples(9);
const X11: [u8; 256] = multiples(11);
const X13: [u8; 256] = multiples(13);
const X14: [u8; 256] = multiples(14);

/// ShiftRows: row r moves left by `r * step` columns.
fn shift(s: [u8; 16], step: usize) -> [u8; 16] {
    std::array::from_fn(|i| s[(i + 4 * step * (i % 4)) % 16])
}

fn substitute(s: [u8; 16], table: &[u8; 256]) -> [u8; 16] {
    s.map(|b| table[usize::from(b)])
}

/// MixColumns.
fn mix(s: [u8; 16]) -> [u8; 16] {
    std::array::from_fn(|i| {
        let at = |k: usize| s[i / 4 * 4 + (i + k) % 4];
        times2(at(0)) ^ times2(at(1)) ^ at(1) ^ at(2) ^ at(3)
    })
}

/// InvMixColumns.
pub fn unmix(v: u128) -> u128 {
    let s = v.to_le_bytes();
    u128::from_le_bytes(std::array::from_fn(|i| {
        let at = |k: usize| usize::from(s[i / 4 * 4 + (i + k) % 4]);
        X14[at(0)] ^ X11[at(1)] ^ X13[at(2)] ^ X9[at(3)]
    }))
}

pub fn encrypt_last(v: u128) -> u128 {
    u128::from_le_bytes(substitute(shift(v.to_le_bytes(), 1), &SBOX))
}

pub fn encrypt(v: u128) -> u128 {
    u128::from_le_bytes(mix(encrypt_last(v).to_le_bytes()))
}

pub fn decrypt_last(v: u128) -> u128 {
    u128::from_le_bytes(substitute(shift(v.to_le_bytes(), 3), &INVERSE))
}

pub fn decrypt(v: u128) -> u128 {
    unmix(decrypt_last(v))
}

/// AESKEYGENASSIST: dwords 1 and 3 substituted, and the same rotated with the round constant.
pub fn keygen(v: u128, constant: u8) -> u128 {
    let word = |n: u32| u32::from_le_bytes(((v >> (32 * n)) as u32).to_le_bytes().map(|b| SBOX[usize::from(b)]));
    let (x1, x3) = (word(1), word(3));
    let rotated = |x: u32| x.rotate_right(8) ^ u32::from(constant);
    [x1, rotated(x1), x3, rotated(x3)].iter().rev().fold(0, |r, w| r << 32 | u128::from(*w))
}

/// GF2P8MULB.
pub fn multiply(a: u128, b: u128) -> u128 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    u128::from_le_bytes(std::array::from_fn(|i| times(a[i], b[i])))
}

/// GF2P8AFFINEQB: each byte of `a` times the bit matrix in the same half of `b`, plus `c`. GF2P8AFFINEINVQB (`invert`)
/// takes the byte's inverse first.
pub fn affine(a: u128, b: u128, c: u8, invert: bool) -> u128 {
    let (a, b) = (a.to_le_bytes(), b.to_le_bytes());
    u128::from_le_bytes(std::array::from_fn(|i| {
        let x = if invert { RECIPROCAL[usize::from(a[i])] } else { a[i] };
        // The matrix's first row makes the result's lowest bit and is its last byte.
        (0..8).fold(c, |r, bit| r ^ ((b[i / 8 * 8 + 7 - bit] & x).count_ones() as u8 & 1) << bit)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No host here has GFNI; the S-box, which AES-NI was compared with, is its affine map of the inverse.
    #[test]
    fn the_affine_map_of_aes_gives_its_s_box() {
        let matrix = 0xf1e3_c78f_1f3e_7cf8u64;
        let both = u128::from(matrix) << 64 | u128::from(matrix);
        for x in 0..=255u8 {
            let a = u128::from_le_bytes([x; 16]);
            assert_eq!(affine(a, both, 0x63, true).to_le_bytes(), [SBOX[usize::from(x)]; 16]);
            let product = multiply(a, u128::from_le_bytes([RECIPROCAL[usize::from(x)]; 16]));
            assert_eq!(product.to_le_bytes(), [u8::from(x != 0); 16]);
            // The identity matrix.
            assert_eq!(affine(a, 0x0102_0408_1020_4080, 0, false) as u64, a as u64);
        }
    }
}
