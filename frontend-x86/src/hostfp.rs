//! Guest floating point by the host's own instructions: SSE under the guest's MXCSR, x87 under the guest's FCW
//! (SDM 1 chapters 8, 10, 11). The only module of this crate with `unsafe`.
//!
//! Each operation is one `asm!` block, so that no Rust code runs under a foreign rounding mode or control word: a block
//! starts and ends with the host's default control bits (MXCSR 1F80h, FCW 37Fh, empty x87 stack).
#![allow(unsafe_code)]

pub mod crypto;
pub mod fma;
pub mod sse;
pub mod strings;
mod unmasked;
pub mod x87;
#[cfg(target_arch = "x86_64")]
pub mod x87fast;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests;

/// Whether this host can do the guest's floating point; `Err` says in one line what is missing. To be asked before a
/// guest is started.
pub fn supported() -> Result<(), &'static str> {
    if cfg!(target_arch = "x86_64") {
        Ok(())
    } else {
        Err("guest floating point needs an x86-64 host: arithmetic in software is not built yet")
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn unsupported() -> ! {
    unreachable!("`supported` refuses this host")
}
