//! Messages for the user on standard error. That may be closed, or a pipe whose reader has gone: no reason to end the machine.

use std::fmt::Arguments;
use std::io::Write;

/// Writes one line; what cannot be written is lost.
pub fn line(text: Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "rhea: {text}");
}

/// As `eprintln!`, with the program's name, but never panics.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}
