//! Ethernet frames on their way between guest and host, with what is left to be done to them (virtio 1.2 §5.1.6).

use super::checksum;
use std::sync::Arc;

/// IP version of a frame that is several TCP segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// What the sender has left to whoever puts the frame on a wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum to fill in: first byte that it covers, and place of the field from there. The field holds the sum of the
    /// pseudo header.
    pub checksum: Option<(u16, u16)>,
    /// TCP segments with this many bytes of payload each, but the last.
    pub segments: Option<(Family, u16)>,
    /// The first segment has CWR set.
    pub ecn: bool,
    /// Bytes of all headers, where `segments` is there.
    pub headers: u16,
}

/// Part of a buffer that frames share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    data: Arc<Vec<u8>>,
    from: usize,
    len: usize,
}

impl Body {
    /// `len` bytes from `from` on; less where there is less.
    pub fn new(data: Arc<Vec<u8>>, from: usize, len: usize) -> Self {
        let from = from.min(data.len());
        let len = len.min(data.len() - from);
        Self { data, from, len }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.data[self.from..self.from + self.len]
    }
}

/// A frame: `head`, then `body`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    pub offload: Offload,
    pub head: Vec<u8>,
    pub body: Option<Body>,
}

impl Frame {
    /// A frame with nothing left to do.
    pub fn plain(bytes: Vec<u8>) -> Self {
        Self { offload: Offload::default(), head: bytes, body: None }
    }

    pub fn len(&self) -> usize {
        self.head.len() + self.tail().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What follows `head`.
    pub fn tail(&self) -> &[u8] {
        self.body.as_ref().map_or(&[], Body::bytes)
    }

    /// All bytes, as they are.
    pub fn into_bytes(mut self) -> Vec<u8> {
        if let Some(b) = self.body.take() {
            self.head.extend(b.bytes());
        }
        self.head
    }

    /// Fills in the checksum. `false`: the frame does not reach as far as its field.
    pub fn finish_checksum(&mut self) -> bool {
        let Some((start, offset)) = self.offload.checksum.take() else { return true };
        let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
        let odd_body = self.head.len().saturating_sub(start) % 2 == 1 && !self.tail().is_empty();
        if odd_body || at + 2 > self.head.len() {
            let whole = std::mem::take(self);
            let offload = whole.offload;
            *self = Self { offload, ..Self::plain(whole.into_bytes()) };
        }
        if at + 2 > self.head.len() {
            return false;
        }
        let sum = checksum::add(checksum::sum(&self.head[start..]), checksum::sum(self.tail()));
        // All ones stand for zero, which says that there is none in UDP.
        let value = match checksum::finish(sum) {
            0 => 0xffff,
            v => v,
        };
        self.head[at..at + 2].copy_from_slice(&value.to_be_bytes());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_filled_in_wherever_the_body_begins() {
        let bytes: Vec<u8> = (0..41u8).map(|i| i.wrapping_mul(7)).collect();
        let whole = {
            let mut f =
                Frame { offload: Offload { checksum: Some((4, 6)), ..Offload::default() }, ..Frame::plain(bytes.clone()) };
            assert!(f.finish_checksum());
            assert_eq!(f.offload, Offload::default());
            f.into_bytes()
        };
        assert_eq!(checksum::finish(checksum::sum(&whole[4..])).to_be_bytes(), bytes[10..12], "only the field changed");
        for cut in 0..=41 {
            let body = Body::new(Arc::new(bytes.clone()), cut, 100);
            let mut f = Frame {
                offload: Offload { checksum: Some((4, 6)), ..Offload::default() },
                head: bytes[..cut].to_vec(),
                body: Some(body),
            };
            assert!(f.finish_checksum(), "{cut}");
            assert_eq!(f.into_bytes(), whole, "{cut}");
        }
        let mut f = Frame { offload: Offload { checksum: Some((40, 0)), ..Offload::default() }, ..Frame::plain(bytes) };
        assert!(!f.finish_checksum());
        let mut f = Frame { offload: Offload { checksum: Some((0xffff, 0xffff)), ..Offload::default() }, ..Frame::default() };
        assert!(!f.finish_checksum());
    }
}
