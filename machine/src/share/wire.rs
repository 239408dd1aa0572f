//! Integers and strings of 9P2000.L's messages (intro(5) of Plan 9; names of the Linux extension are those of its diod description).

/// Bytes of size, type and tag.
pub const HEADER: usize = 7;

/// What is left of a message. `None`: it is too short.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (front, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*front)
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub fn bytes(&mut self, n: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(front)
    }

    pub fn text(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.bytes(n.into())
    }
}

/// An answer in the making.
#[derive(Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    pub fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }

    pub fn u16(&mut self, v: u16) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    pub fn u32(&mut self, v: u32) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    pub fn u64(&mut self, v: u64) -> &mut Self {
        self.bytes(&v.to_le_bytes())
    }

    pub fn bytes(&mut self, v: &[u8]) -> &mut Self {
        self.0.extend(v);
        self
    }

    /// At most 65,535 bytes.
    pub fn text(&mut self, v: &[u8]) -> &mut Self {
        let v = &v[..v.len().min(u16::MAX.into())];
        self.u16(v.len() as u16).bytes(v)
    }
}

/// A whole message.
pub fn message(kind: u8, tag: u16, body: &[u8]) -> Vec<u8> {
    let mut w = Writer(Vec::with_capacity(HEADER + body.len()));
    w.u32((HEADER + body.len()) as u32).u8(kind).u16(tag).bytes(body);
    w.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut w = Writer::default();
        w.u8(1).u16(2).u32(3).u64(4).text(b"name").bytes(b"rest");
        let all = w.0.clone();
        let mut r = Reader(&all);
        assert_eq!((r.u8(), r.u16(), r.u32(), r.u64()), (Some(1), Some(2), Some(3), Some(4)));
        assert_eq!((r.text(), r.bytes(4), r.u8()), (Some(&b"name"[..]), Some(&b"rest"[..]), None));
        assert_eq!(Reader(&[9, 0, 1]).text(), None);
        assert_eq!(message(7, 0x102, b"x"), [8, 0, 0, 0, 7, 2, 1, b'x']);
    }
}
