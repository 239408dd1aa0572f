//! The Internet checksum (RFC 1071).

/// Sum of 16-bit words, not yet folded; an odd byte at the end counts as the high half of a word.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(4);
    let mut s: u64 = 0;
    for w in &mut words {
        s += u64::from(u32::from_be_bytes([w[0], w[1], w[2], w[3]]));
    }
    let mut last = [0; 4];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    fold(s) + fold(u64::from(u32::from_be_bytes(last)))
}

fn fold(mut s: u64) -> u64 {
    while s >> 16 != 0 {
        s = (s & 0xffff) + (s >> 16);
    }
    s
}

/// The sum of two sums.
pub fn add(a: u64, b: u64) -> u64 {
    fold(fold(a) + fold(b))
}

/// The checksum of what has this sum.
pub fn finish(s: u64) -> u16 {
    !(fold(s) as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let b = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&b)), 0xddf2);
        assert_eq!(finish(sum(&b)), !0xddf2);
        assert_eq!(fold(sum(&b[..3])), 0xf201);
        assert_eq!(finish(sum(&[])), 0xffff);
        let long = vec![0xff; 70000];
        assert_eq!(finish(sum(&long)), 0);
    }
}
