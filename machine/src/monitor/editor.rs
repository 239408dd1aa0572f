//! Line editing for the monitor: characters in, echo or a finished line out.

use std::collections::VecDeque;

/// Longest line; more is not taken.
pub const MAX_LINE: usize = 1024;
/// Lines remembered.
const MAX_HISTORY: usize = 64;

const BELL: &str = "\x07";

/// What a character led to.
#[derive(Debug, PartialEq, Eq)]
pub enum Edit {
    /// To be shown; may be empty.
    Echo(String),
    Line(String),
}

/// Progress in an escape sequence (ESC [ A and the like).
#[derive(Default, PartialEq)]
enum Sequence {
    #[default]
    None,
    Escape,
    Bracket,
}

/// A line of printable ASCII, edited at its end, with history on the arrow keys and ^P, ^N.
#[derive(Default)]
pub struct Editor {
    line: String,
    history: VecDeque<String>,
    /// Place in the history, counted back from its end; 0 is the line being typed.
    back: usize,
    sequence: Sequence,
    /// The last byte was a carriage return: a newline after it belongs to it.
    after_cr: bool,
}

impl Editor {
    pub fn clear(&mut self) {
        self.line.clear();
        self.back = 0;
        self.sequence = Sequence::None;
    }

    pub fn byte(&mut self, b: u8) -> Edit {
        let after_cr = std::mem::replace(&mut self.after_cr, b == b'\r');
        match (std::mem::take(&mut self.sequence), b) {
            (Sequence::Escape, b'[' | b'O') => {
                self.sequence = Sequence::Bracket;
                Edit::Echo(String::new())
            }
            (Sequence::Bracket, b'A') => self.recall(self.back + 1),
            (Sequence::Bracket, b'B') => self.recall(self.back.saturating_sub(1)),
            // Parameters of sequences that are not ours.
            (Sequence::Bracket, b'0'..=b'9' | b';') => {
                self.sequence = Sequence::Bracket;
                Edit::Echo(String::new())
            }
            (Sequence::Bracket, _) => Edit::Echo(String::new()),
            (_, b'\n') if after_cr => Edit::Echo(String::new()),
            (_, b) => self.plain(b),
        }
    }

    fn plain(&mut self, b: u8) -> Edit {
        match b {
            b'\r' | b'\n' => return self.finish(),
            0x1b => self.sequence = Sequence::Escape,
            0x08 | 0x7f => return Edit::Echo(self.line.pop().map_or(String::new(), |_| rub_out(1))),
            0x03 | 0x15 => return self.replace(String::new()),
            0x17 => {
                let kept = self.line.trim_end().rfind(' ').map_or(0, |i| i + 1);
                return self.replace(self.line[..kept].to_string());
            }
            0x10 => return self.recall(self.back + 1),
            0x0e => return self.recall(self.back.saturating_sub(1)),
            0x20..=0x7e if self.line.len() < MAX_LINE => {
                self.line.push(b.into());
                return Edit::Echo(char::from(b).to_string());
            }
            0x20..=0x7e => return Edit::Echo(BELL.into()),
            _ => {}
        }
        Edit::Echo(String::new())
    }

    fn finish(&mut self) -> Edit {
        let line = std::mem::take(&mut self.line);
        self.back = 0;
        if !line.trim().is_empty() && self.history.back() != Some(&line) {
            self.history.push_back(line.clone());
            if self.history.len() > MAX_HISTORY {
                self.history.pop_front();
            }
        }
        Edit::Line(line)
    }

    fn recall(&mut self, back: usize) -> Edit {
        let found = match back {
            0 => Some(String::new()),
            _ => self.history.len().checked_sub(back).and_then(|i| self.history.get(i).cloned()),
        };
        match found {
            Some(line) => {
                self.back = back;
                self.replace(line)
            }
            None => Edit::Echo(BELL.into()),
        }
    }

    fn replace(&mut self, line: String) -> Edit {
        let echo = rub_out(self.line.len()) + &line;
        self.line = line;
        Edit::Echo(echo)
    }
}

/// Takes `n` characters off the screen.
fn rub_out(n: usize) -> String {
    "\x08 \x08".repeat(n)
}
