//! Packets of the GDB remote serial protocol (GDB manual, appendix "Remote Protocol", "Overview"): bytes to frames and back.

/// Longest packet, both ways, without its frame; told to the client as `PacketSize`.
pub const MAX_PACKET: usize = 0x4000;
/// Ctrl-C outside a packet.
const INTERRUPT: u8 = 3;

/// What comes from a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// The payload, unescaped.
    Packet(Vec<u8>),
    Interrupt,
    /// The client wants the last reply again.
    Nack,
    /// A packet that was damaged or is too long.
    Damaged,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Between,
    Inside,
    Escaped,
    /// One digit of the sum is still to come if it holds the first.
    Sum(Option<u8>),
}

/// Takes frames out of a stream of bytes. It holds `MAX_PACKET` bytes at most.
#[derive(Default)]
pub struct Framer {
    state: State,
    payload: Vec<u8>,
    sum: u8,
    too_long: bool,
}

impl Framer {
    pub fn push(&mut self, byte: u8) -> Option<Frame> {
        match (self.state, byte) {
            (State::Between, b'$') => {
                *self = Self { state: State::Inside, ..Self::default() };
                None
            }
            (State::Between, INTERRUPT) => Some(Frame::Interrupt),
            (State::Between, b'-') => Some(Frame::Nack),
            // Acknowledgements, and noise on the line.
            (State::Between, _) => None,
            (State::Inside, b'#') => self.turn(State::Sum(None)),
            (State::Inside, b'$') => {
                // The rest of a packet was lost.
                *self = Self { state: State::Inside, ..Self::default() };
                None
            }
            (State::Inside, b'}') => {
                self.sum = self.sum.wrapping_add(byte);
                self.turn(State::Escaped)
            }
            (State::Inside, _) => self.keep(byte, byte),
            (State::Escaped, _) => {
                self.state = State::Inside;
                self.keep(byte ^ 0x20, byte)
            }
            (State::Sum(first), _) => self.check(first, byte),
        }
    }

    fn turn(&mut self, state: State) -> Option<Frame> {
        self.state = state;
        None
    }

    fn keep(&mut self, byte: u8, sent: u8) -> Option<Frame> {
        self.sum = self.sum.wrapping_add(sent);
        if self.payload.len() < MAX_PACKET {
            self.payload.push(byte);
        } else {
            self.too_long = true;
        }
        None
    }

    fn check(&mut self, first: Option<u8>, byte: u8) -> Option<Frame> {
        let digit = char::from(byte).to_digit(16);
        match (first, digit) {
            (None, Some(d)) => self.turn(State::Sum(Some(d as u8))),
            (Some(high), Some(low)) if high << 4 | low as u8 == self.sum && !self.too_long => {
                self.state = State::Between;
                Some(Frame::Packet(std::mem::take(&mut self.payload)))
            }
            _ => {
                *self = Self::default();
                Some(Frame::Damaged)
            }
        }
    }
}

/// A packet with its frame.
pub fn frame(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(payload.len() + 4);
    out.push(b'$');
    for &b in payload {
        // "*" would begin a run (run-length encoding).
        if matches!(b, b'#' | b'$' | b'}' | b'*') {
            out.extend([b'}', b ^ 0x20]);
        } else {
            out.push(b);
        }
    }
    let sum = out[1..].iter().fold(0u8, |s, b| s.wrapping_add(*b));
    out.extend(format!("#{sum:02x}").bytes());
    out
}

/// Bytes as pairs of hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |d: u8| char::from(b"0123456789abcdef"[usize::from(d & 15)]);
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(*b)]).collect()
}

/// The reverse of `hex`.
pub fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).map(|d| d as u8);
    let pair = |p: &[u8]| Some(digit(p[0])? << 4 | digit(p[1])?);
    if text.len().is_multiple_of(2) { text.chunks_exact(2).map(pair).collect() } else { None }
}

/// A hexadecimal number: one digit at least, 64 bits at most.
pub fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_hexdigit);
    digits.then(|| u64::from_str_radix(std::str::from_utf8(text).ok()?, 16).ok())?
}

/// Splits at the first `at`; the second part is empty if there is none.
pub fn split(text: &[u8], at: u8) -> (&[u8], &[u8]) {
    match text.iter().position(|b| *b == at) {
        Some(i) => (&text[..i], &text[i + 1..]),
        None => (text, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut f = Framer::default();
        bytes.iter().filter_map(|b| f.push(*b)).collect()
    }

    #[test]
    fn packets_come_back_from_their_frames() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(frames(&frame(&all)), [Frame::Packet(all)]);
        assert_eq!(frame(b"OK"), b"$OK#9a");
        assert_eq!(frames(b"+$OK#9a-\x03noise"), [Frame::Packet(b"OK".to_vec()), Frame::Nack, Frame::Interrupt]);
    }

    #[test]
    fn damage_is_told_and_survived() {
        let ok = || Frame::Packet(b"OK".to_vec());
        assert_eq!(frames(b"$OK#9b$OK#9a"), [Frame::Damaged, ok()]);
        assert_eq!(frames(b"$OK#x$OK#9a"), [Frame::Damaged, ok()]);
        assert_eq!(frames(b"$lost$OK#9a"), [ok()]);
        let mut long = frame(&vec![b'a'; MAX_PACKET + 1]);
        long.extend(b"$OK#9a");
        assert_eq!(frames(&long), [Frame::Damaged, ok()]);
    }

    #[test]
    fn numbers_are_bounded() {
        assert_eq!((number(b"ffffffffffffffff"), number(b"10000000000000000")), (Some(u64::MAX), None));
        assert_eq!((number(b""), number(b"+1"), number(b"1g")), (None, None, None));
        assert_eq!((unhex(b"0aFF"), unhex(b"0"), unhex(b"zz")), (Some(vec![10, 255]), None, None));
    }
}
