//! Command-line errors: each is one line that names the option, and the closest known word where there is one.

/// What is wrong with the command line. `Display` is always a single printable line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("{0}: unknown option{1}")]
    UnknownOption(Quoted, Hint),
    #[error("-{0}: needs a value ({1})")]
    MissingValue(&'static str, &'static str),
    #[error("{0}: unknown property {1}{2}")]
    UnknownProperty(String, Quoted, Hint),
    #[error("{0}: property {1} is missing")]
    MissingProperty(String, &'static str),
    #[error("{0}: unknown value {1}{2}")]
    UnknownValue(String, Quoted, Hint),
    #[error("{0}: {1}: {2}")]
    BadValue(String, Quoted, String),
    #[error("{0} is not built yet: {1}")]
    NotBuilt(String, String),
    #[error("{0}")]
    Conflict(String),
}

/// Text of the user's, printed quoted, on one line, and cut when very long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quoted(String);

impl From<&str> for Quoted {
    fn from(s: &str) -> Self {
        Self(s.to_owned())
    }
}

impl std::fmt::Display for Quoted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const MAX: usize = 100;
        let cut: String = self.0.chars().take(MAX).flat_map(char::escape_debug).collect();
        let more = if self.0.chars().nth(MAX).is_some() { "…" } else { "" };
        write!(f, "'{cut}{more}'")
    }
}

/// 0 to 1; letters changed places count as one change.
fn likeness(a: &str, b: &str) -> f64 {
    strsim::normalized_damerau_levenshtein(a, b)
}

/// The end of an "unknown" message: what is close, or else what there is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hint(String);

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl Hint {
    /// The closest of `known` to `word`, or the list itself if it is short.
    pub fn for_word<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Self {
        let known: Vec<&str> = known.into_iter().collect();
        // Long words cost quadratic time and are close to nothing.
        let near = (word.len() <= 64)
            .then(|| {
                known.iter().map(|k| (likeness(word, k), *k)).filter(|(score, _)| *score > 0.6).max_by(|a, b| a.0.total_cmp(&b.0))
            })
            .flatten();
        match near {
            Some((_, k)) => Self(format!("; did you mean '{k}'?")),
            None if known.len() <= 12 && !known.is_empty() => Self(format!("; there is {}", known.join(", "))),
            None => Self::default(),
        }
    }

    /// As `for_word`, ending with how to list all.
    pub fn with_help<'a>(word: &str, known: impl IntoIterator<Item = &'a str>, help: &str) -> Self {
        match Self::for_word(word, known) {
            Self(s) if s.is_empty() => Self(format!("; try '{help}'")),
            hint => hint,
        }
    }
}

impl Hint {
    /// Puts the user's own dashes before the suggested option.
    pub fn with_dashes(self, dashes: &str) -> Self {
        Self(self.0.replace("did you mean '", &format!("did you mean '{dashes}")))
    }
}
