//! Guest floating point by the host's own instructions: SSE under the guest's MXCSR, x87 under the guest's FCW
//! (SDM 1 chapters 8, 10, 11). The only module of this crate with `unsafe`.
//!
//! Each operation is one `asm!` block, so that no Rust code runs under a foreign rounding mode or control word: a block
//! starts and ends with the host's default control bits (MXCSR 1F80h, FCW 37Fh, empty x87 stack).
#![allow(unsafe_code)]

pub mod sse;
pub mod x87;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

/// Hosts without x86 floating point have no arithmetic yet.
#[cfg(not(target_arch = "x86_64"))]
fn unsupported() -> ! {
    panic!("guest floating point needs an x86-64 host: software arithmetic is not written yet");
}
