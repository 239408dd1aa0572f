//! Which instructions a trace has: `filter=` of `-trace`, words joined by `+`. All kinds of words that are given must fit.

use arch_x86::{CodeSize, CpuState};
use std::ops::Range;

/// What is wanted; empty lists want everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Linear addresses: `START..END`, `START+LENGTH`, or a symbol of `symbols=`.
    pub ranges: Vec<Range<u64>>,
    pub modes: Vec<Mode>,
}

/// Modes by their words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Real,
    Bits16,
    Bits32,
    Bits64,
    Kernel,
    User,
}

const WORDS: [(&str, Mode); 6] = [
    ("real", Mode::Real),
    ("16", Mode::Bits16),
    ("32", Mode::Bits32),
    ("64", Mode::Bits64),
    ("kernel", Mode::Kernel),
    ("user", Mode::User),
];

impl Mode {
    fn fits(self, cpu: &CpuState) -> bool {
        let mode = cpu.mode();
        match self {
            Self::Real => !cpu.protected(),
            Self::Bits16 => mode.code_size() == CodeSize::Bits16,
            Self::Bits32 => mode.code_size() == CodeSize::Bits32,
            Self::Bits64 => mode.code_size() == CodeSize::Bits64,
            Self::Kernel => mode.cpl() < 3,
            Self::User => mode.cpl() == 3,
        }
    }
}

fn range(word: &str) -> Option<Range<u64>> {
    let number = |t: &str| match t.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => t.parse().ok(),
    };
    let (from, to) = word.split_once("..")?;
    let (from, to) = (number(from)?, number(to)?);
    (from < to).then_some(from..to)
}

impl Filter {
    /// Reads words; `symbol` finds the range of a name. Errors name the word.
    pub fn parse(text: &str, symbol: impl Fn(&str) -> Option<Range<u64>>) -> Result<Self, String> {
        let mut f = Self::default();
        for word in text.split('+').filter(|w| !w.is_empty()) {
            if let Some((_, m)) = WORDS.iter().find(|(w, _)| *w == word) {
                f.modes.push(*m);
            } else if let Some(r) = range(word).or_else(|| symbol(word)) {
                f.ranges.push(r);
            } else {
                let known: Vec<_> = WORDS.iter().map(|(w, _)| *w).collect();
                return Err(format!("'{word}' is neither START..END, a symbol of symbols=FILE, nor one of {}", known.join(", ")));
            }
        }
        Ok(f)
    }

    pub fn takes(&self, va: u64, cpu: &CpuState) -> bool {
        let here = self.ranges.is_empty() || self.ranges.iter().any(|r| r.contains(&va));
        here && (self.modes.is_empty() || self.modes.iter().any(|m| m.fits(cpu)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch_x86::models;

    #[test]
    fn words_of_each_kind_must_fit() {
        let symbol = |n: &str| (n == "main").then_some(0x1000..0x1010);
        let f = Filter::parse("real+main+0x20..0x30", symbol).unwrap();
        let cpu = CpuState::new(&models::configure("qemu64", &[]).unwrap(), 0);
        assert!(f.takes(0x100f, &cpu) && f.takes(0x20, &cpu) && !f.takes(0x30, &cpu));
        let f = Filter::parse("user", symbol).unwrap();
        assert!(!f.takes(0x20, &cpu));
        assert!(Filter::parse("nobody", symbol).is_err() && Filter::parse("9..1", symbol).is_err());
        assert_eq!(Filter::parse("", symbol), Ok(Filter::default()));
    }
}
