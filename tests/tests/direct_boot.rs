//! What a kernel started without firmware finds: registers as PC firmware would have left them.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use rhea_tests::boot::{ENTRY, file, pvh_elf, run};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const DEBUG_EXIT: u32 = 0x501;

/// Runs 32-bit code that leaves a byte in AL; returns the low 7 bits of it.
fn result_of(name: &str, body: fn(&mut CodeAssembler) -> Result<(), IcedError>) -> i32 {
    let assemble = || {
        let mut a = CodeAssembler::new(32)?;
        a.cli()?;
        body(&mut a)?;
        a.mov(edx, DEBUG_EXIT)?;
        a.and(eax, 0x7f)?;
        a.out(dx, al)?;
        a.hlt()?;
        a.assemble(u64::from(ENTRY))
    };
    let elf = file(&format!("{name}.elf"), &pvh_elf(&assemble().expect("the guest assembles")));
    let args = ["-accel", "interp", "-m", "16M", "-nographic", "-device", "isa-debug-exit", "-kernel", &elf];
    let out = run(name, &args, LIMIT);
    out.status.code().unwrap_or_else(|| panic!("{name} ended with {}", out.status)) >> 1
}

/// IA32_MTRR_DEF_TYPE (SDM 4, MSR 2FFh): write-back, fixed ranges (bit 10) and MTRRs (bit 11) enabled. Linux turns PAT
/// off without them.
#[test]
fn mtrrs_are_enabled() {
    let got = result_of("mtrr-default", |a| {
        a.mov(ecx, 0x2ff)?;
        a.rdmsr()?;
        a.mov(ecx, eax)?;
        a.shr(ecx, 4)?;
        a.and(ecx, 0xc0)?;
        a.shr(ecx, 1)?;
        a.and(eax, 0x1f)?;
        a.or(eax, ecx)
    });
    assert_eq!(got, 0x60 | 6);
}

/// The first variable range (SDM 4, MSR 200h) makes the top GiB below 4 GiB uncached.
#[test]
fn devices_below_4_gib_are_uncached() {
    let base = result_of("mtrr-base", |a| {
        a.mov(ecx, 0x200)?;
        a.rdmsr()?;
        a.mov(ecx, eax)?;
        a.shr(ecx, 28)?;
        a.and(eax, 7)?;
        a.shl(eax, 4)?;
        a.or(eax, ecx)
    });
    assert_eq!(base, 0x0c);
}
