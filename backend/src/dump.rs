//! Disassembly of host code for `-d out_asm`.

use crate::jit::arena::{COLD, HostCode};
use capstone::prelude::*;
use std::fmt::Write;

/// Host code as text, the hot part first.
pub fn parts(code: HostCode<'_>) -> String {
    format!("{}{}", host_asm(code.hot), at(code.cold, COLD as u64))
}

/// Host code as text, one instruction a line.
pub fn host_asm(code: &[u8]) -> String {
    at(code, 0)
}

fn at(code: &[u8], address: u64) -> String {
    let cs = if cfg!(target_arch = "aarch64") {
        Capstone::new().arm64().mode(arch::arm64::ArchMode::Arm).build()
    } else {
        Capstone::new().x86().mode(arch::x86::ArchMode::Mode64).build()
    };
    let mut text = String::new();
    match cs.as_ref().map(|cs| cs.disasm_all(code, address)) {
        Ok(Ok(insns)) => insns.iter().for_each(|i| {
            let _ = writeln!(text, "{i}");
        }),
        _ => text.push_str("(no disassembler for this host)\n"),
    }
    text
}
