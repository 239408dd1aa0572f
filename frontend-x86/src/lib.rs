//! x86 front end.
pub mod hostfp;
