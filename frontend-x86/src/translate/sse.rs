//! Translation of sse instructions.

use super::Tr;

/// Translates the current instruction if it belongs here.
pub fn translate(_tr: &mut Tr<'_>) -> bool {
    false
}
