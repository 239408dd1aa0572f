//! The header in front of each frame (struct virtio_net_hdr, virtio 1.2 §5.1.6).

use crate::net::{Family, Offload};

/// Bytes of the header: legacy drivers without mergeable buffers leave `num_buffers` out.
pub const SHORT: usize = 10;
pub const LONG: usize = 12;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

fn half(b: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([b[at], b[at + 1]])
}

/// What the driver leaves to us; `None` if it is something that was not offered, or makes no sense.
pub fn parse(b: &[u8; SHORT]) -> Option<Offload> {
    let family = match b[1] & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 => Some(Family::V4),
        GSO_TCPV6 => Some(Family::V6),
        _ => return None,
    };
    let size = half(b, 4);
    let checksum = (b[0] & NEEDS_CSUM != 0).then(|| (half(b, 6), half(b, 8)));
    if family.is_some() && (size == 0 || checksum.is_none()) {
        return None;
    }
    Some(Offload { checksum, segments: family.map(|f| (f, size)), ecn: b[1] & GSO_ECN != 0, headers: half(b, 2) })
}

/// The header of a frame for the driver that fills `buffers` buffers.
pub fn emit(o: &Offload, buffers: u16) -> [u8; LONG] {
    let (start, offset) = o.checksum.unwrap_or_default();
    let (kind, size) = match o.segments {
        None => (GSO_NONE, 0),
        Some((Family::V4, size)) => (GSO_TCPV4, size),
        Some((Family::V6, size)) => (GSO_TCPV6, size),
    };
    let mut b = [0; LONG];
    b[0] = if o.checksum.is_some() { NEEDS_CSUM } else { 0 };
    b[1] = kind | if o.ecn { GSO_ECN } else { 0 };
    for (at, v) in [(2, o.headers), (4, size), (6, start), (8, offset), (10, buffers)] {
        b[at..at + 2].copy_from_slice(&v.to_le_bytes());
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_there_and_back() {
        let o = Offload { checksum: Some((34, 16)), segments: Some((Family::V6, 1440)), ecn: true, headers: 74 };
        let b = emit(&o, 3);
        assert_eq!(b, [1, 0x84, 74, 0, 0xa0, 5, 34, 0, 16, 0, 3, 0]);
        assert_eq!(parse(b[..SHORT].try_into().unwrap()), Some(o));
        assert_eq!(parse(&[0; SHORT]), Some(Offload::default()));
        for bad in [[1, 3, 0, 0, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0, 0, 0, 0]] {
            assert_eq!(parse(&bad), None, "{bad:?}");
        }
    }
}
