//! x86 front end: decodes guest instructions (iced-x86) and translates them to our IR; slow instructions are helpers.

mod fp;
pub mod helpers;
pub mod hostfp;
pub mod layout;
pub mod testing;
pub mod translate;
mod tri;

pub use helpers::{Env, Helper};
pub use translate::X86;
