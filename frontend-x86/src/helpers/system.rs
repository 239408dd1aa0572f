//! System instructions.

use super::{CHECKS, Env, Res};
use arch_x86::fault;
use vm_core::dlog;

rows! {
    topic system;
    /// (mnemonic, first bytes of the instruction): logs an instruction that is not implemented and raises #UD.
    UNIMP = unimp(2) CHECKS;
}

fn unimp<E: Env>(env: &mut E, mnemonic: u64, bytes: u64, _: u64) -> Res {
    let cpu = env.cpu_ref();
    let m = iced_x86::Mnemonic::values().nth(mnemonic as usize);
    dlog!(UNIMP, "instruction {m:?} at {:x}:{:x} (bytes {:02x?})", cpu.seg[1].selector, cpu.rip, bytes.to_le_bytes());
    Err(fault::ud())
}
