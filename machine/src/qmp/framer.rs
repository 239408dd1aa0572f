//! Finds the messages in a stream of JSON text, byte by byte, with bounded memory. What is in them is `serde_json`'s.

/// Longest message in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// One piece of the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// An object or array with its brackets closed, or what stood between two of them.
    Message(Vec<u8>),
    /// A message had more than `MAX_MESSAGE` bytes; the rest of its line is skipped.
    TooLong,
}

#[derive(Clone, Copy, Debug, Default)]
enum At {
    /// Between messages.
    #[default]
    Gap,
    /// In brackets, that many deep.
    Nested { depth: usize, string: bool, escaped: bool },
    /// In something that begins with neither bracket: it ends at white space.
    Word,
    /// After `TooLong`.
    Skip,
}

/// The state between two bytes.
#[derive(Debug, Default)]
pub struct Framer {
    at: At,
    bytes: Vec<u8>,
}

impl Framer {
    /// Takes one byte; gives the message that it ends.
    pub fn push(&mut self, b: u8) -> Option<Frame> {
        let done = match (&mut self.at, b) {
            (At::Gap, _) if b.is_ascii_whitespace() => return None,
            (At::Gap, b'{' | b'[') => {
                self.at = At::Nested { depth: 1, string: false, escaped: false };
                false
            }
            (At::Gap, _) => {
                self.at = At::Word;
                false
            }
            (At::Word, _) => b.is_ascii_whitespace(),
            (At::Skip, _) => {
                if b == b'\n' {
                    self.at = At::Gap;
                }
                return None;
            }
            (At::Nested { escaped, .. }, _) if *escaped => {
                *escaped = false;
                false
            }
            (At::Nested { string: true, escaped, .. }, b'\\') => {
                *escaped = true;
                false
            }
            (At::Nested { string, .. }, b'"') => {
                *string = !*string;
                false
            }
            (At::Nested { depth, string: false, .. }, b'{' | b'[') => {
                *depth += 1;
                false
            }
            (At::Nested { depth, string: false, .. }, b'}' | b']') => {
                *depth -= 1;
                *depth == 0
            }
            (At::Nested { .. }, _) => false,
        };
        self.bytes.push(b);
        if done {
            self.at = At::Gap;
            return Some(Frame::Message(std::mem::take(&mut self.bytes)));
        }
        if self.bytes.len() >= MAX_MESSAGE {
            self.at = if b == b'\n' { At::Gap } else { At::Skip };
            self.bytes = Vec::new();
            return Some(Frame::TooLong);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(text: &str) -> Vec<String> {
        let mut f = Framer::default();
        let show = |f| match f {
            Frame::Message(b) => String::from_utf8(b).unwrap(),
            Frame::TooLong => "too long".into(),
        };
        text.bytes().filter_map(|b| f.push(b)).map(show).collect()
    }

    #[test]
    fn messages_need_no_line_ends() {
        assert_eq!(frames(r#"{"a":1}{"b":[2]}  [3] {"#), [r#"{"a":1}"#, r#"{"b":[2]}"#, "[3]"]);
        assert_eq!(frames("{\n\"a\":\r\n1}\n"), ["{\n\"a\":\r\n1}"]);
    }

    #[test]
    fn brackets_in_strings_do_not_count() {
        assert_eq!(frames(r#"{"a":"}\"}\\"}{"b":"["}"#), [r#"{"a":"}\"}\\"}"#, r#"{"b":"["}"#]);
    }

    #[test]
    fn what_is_no_object_ends_at_white_space() {
        assert_eq!(frames("quit\n}{ {} "), ["quit\n", "}{ ", "{}"]);
    }

    #[test]
    fn too_long_messages_are_given_up_and_the_next_line_counts() {
        let deep = "[".repeat(3 * MAX_MESSAGE);
        assert_eq!(frames(&format!("{deep}]\n{{}}")), ["too long", "{}"]);
        let text = format!("{{\"{}\n{{}}", "x".repeat(MAX_MESSAGE));
        assert_eq!(frames(&text), ["too long", "{}"]);
    }
}
