//! PDEP, PEXT, CRC32, and random numbers of the host (SDM 2 "PDEP", "CRC32", "RDRAND"), and SSE4A's bit fields (APM 4).

use super::{Env, PURE, Res, STATE};
use arch_x86::flags::{Cc, bit};
use ir::Effects;
use std::cell::RefCell;
use std::fs::File;
use std::io::Read;

rows! {
    topic bmi;
    /// (value, mask)
    PDEP = pdep(2) PURE;
    PEXT = pext(2) PURE;
    /// (value, length | index << 8): SSE4A's bit field, and (destination, source, the same) for its insertion.
    EXTRACT_FIELD = extract_field(2) PURE;
    INSERT_FIELD = insert_field(3) PURE;
    /// (checksum so far, data, bytes of data)
    CRC32 = crc32(3) PURE;
    /// (bytes): a random number; CF = 1 and the other flags 0, or all 0 and the number 0 if the host has none.
    RANDOM = random(1) STATE.or(Effects::KEEP);
}

/// Low bits of `v`, in order, to the places of the ones of `mask`.
fn deposit(v: u64, mask: u64) -> u64 {
    let (mut v, mut mask, mut r) = (v, mask, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        r |= if v & 1 == 1 { lowest } else { 0 };
        v >>= 1;
        mask ^= lowest;
    }
    r
}

/// Bits of `v` where `mask` has ones, put together.
fn extract(v: u64, mask: u64) -> u64 {
    let (mut mask, mut r, mut at) = (mask, 0, 0);
    while mask != 0 {
        r |= (v >> mask.trailing_zeros() & 1) << at;
        at += 1;
        mask &= mask - 1;
    }
    r
}

/// Mask and index of an SSE4A field: six bits each, and length 0 means 64 (APM 4 "EXTRQ").
fn field(how: u64) -> (u64, u32) {
    let (len, index) = (how & 63, how >> 8 & 63);
    (if len == 0 { !0 } else { (1 << len) - 1 }, index as u32)
}

fn extract_field<E: Env>(_: &mut E, v: u64, how: u64, _: u64) -> Res {
    let (mask, index) = field(how);
    Ok(v >> index & mask)
}

fn insert_field<E: Env>(_: &mut E, dst: u64, src: u64, how: u64) -> Res {
    let (mask, index) = field(how);
    Ok(dst & !(mask << index) | (src & mask) << index)
}

fn pdep<E: Env>(_: &mut E, v: u64, mask: u64, _: u64) -> Res {
    Ok(deposit(v, mask))
}

fn pext<E: Env>(_: &mut E, v: u64, mask: u64, _: u64) -> Res {
    Ok(extract(v, mask))
}

/// CRC-32C by byte: the polynomial 11EDC6F41h, bits reflected.
const TABLE: [u32; 256] = {
    let mut t = [0; 256];
    let mut i = 0;
    while i < 256 {
        let (mut c, mut k) = (i as u32, 0);
        while k < 8 {
            c = c >> 1 ^ if c & 1 == 1 { 0x82f6_3b78 } else { 0 };
            k += 1;
        }
        t[i] = c;
        i += 1;
    }
    t
};

fn crc32<E: Env>(_: &mut E, crc: u64, data: u64, bytes: u64) -> Res {
    let data = data.to_le_bytes();
    let crc = data.iter().take(bytes as usize).fold(crc as u32, |c, b| c >> 8 ^ TABLE[usize::from(c as u8 ^ b)]);
    Ok(crc.into())
}

/// Numbers of the host's kernel, read some at a time.
struct Source {
    file: Option<File>,
    buffer: [u8; 512],
    left: usize,
}

impl Source {
    fn next(&mut self) -> Option<u64> {
        if self.left == 0 {
            self.file.as_mut()?.read_exact(&mut self.buffer).ok()?;
            self.left = self.buffer.len();
        }
        self.left -= 8;
        let b = &mut self.buffer[self.left..self.left + 8];
        let v = b.iter().fold(0, |v, b| v << 8 | u64::from(*b));
        b.fill(0);
        Some(v)
    }
}

thread_local! {
    static SOURCE: RefCell<Source> =
        RefCell::new(Source { file: File::open("/dev/urandom").ok(), buffer: [0; 512], left: 0 });
}

fn random<E: Env>(env: &mut E, bytes: u64, _: u64, _: u64) -> Res {
    let v = env.io().determined_random().or_else(|| SOURCE.with_borrow_mut(Source::next));
    env.cpu().set_cc(Cc::bits(if v.is_some() { bit::CF } else { 0 }));
    Ok(v.unwrap_or(0) & (u64::MAX >> (64 - 8 * bytes.clamp(1, 8))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deposit_and_extract_are_inverse_under_the_mask() {
        for (v, m) in [(0x1234_5678_9abc_def0u64, 0xff00_ff00_00ff_00f1), (!0, 5), (7, 0), (0xdead_beef, !0)] {
            assert_eq!(deposit(extract(v, m), m), v & m);
        }
    }

    #[test]
    fn random_numbers_differ() {
        let next = || SOURCE.with_borrow_mut(Source::next).expect("the host has random numbers");
        let first = next();
        assert!((0..100).all(|_| next() != first));
    }
}
