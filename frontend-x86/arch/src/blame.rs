//! Which exception an access to a non-canonical address raises: #SS(0) through the stack segment, else #GP(0) (SDM 3A §6.15
//! "Interrupt 12—Stack Fault Exception"). Found out only when it happened, from the bytes of the instruction.

use crate::mode::ctx;
use crate::state::CpuState;
use vm_core::Va;
use vm_core::guest::GuestEnv;

/// Prefixes of an instruction, and where its opcode is.
struct Prefixes {
    fs_gs: bool,
    /// REX.B or its like: the base register is one of R8 to R15.
    b: bool,
    /// 1: one byte, 2: 0Fh, 3: 0Fh 38h and 0Fh 3Ah.
    map: u8,
    vex: bool,
    /// Position of the opcode byte.
    at: usize,
}

fn prefixes(code: &[u8; 15]) -> Option<Prefixes> {
    let mut p = Prefixes { fs_gs: false, b: false, map: 1, vex: false, at: 0 };
    while matches!(code.get(p.at)?, 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65) {
        p.fs_gs |= matches!(code[p.at], 0x64 | 0x65);
        p.at += 1;
    }
    if code.get(p.at)? & 0xf0 == 0x40 {
        p.b = code[p.at] & 1 != 0;
        p.at += 1;
    }
    match *code.get(p.at)? {
        0xc5 => (p.vex, p.map, p.at) = (true, 2, p.at + 2),
        0xc4 => {
            let second = code.get(p.at + 1)?;
            (p.vex, p.map, p.b, p.at) = (true, (second & 0x1f).clamp(2, 3), second & 0x20 == 0, p.at + 3);
        }
        0x0f if matches!(code.get(p.at + 1)?, 0x38 | 0x3a) => (p.map, p.at) = (3, p.at + 2),
        0x0f => (p.map, p.at) = (2, p.at + 1),
        _ => {}
    }
    (p.at < code.len()).then_some(p)
}

/// Does the opcode push or pop?
fn uses_stack(p: &Prefixes, op: u8, reg: u8) -> bool {
    match p.map {
        1 => match op {
            0x50..=0x5f | 0x68 | 0x6a | 0x8f | 0x9c | 0x9d | 0xc2 | 0xc3 | 0xc8..=0xcb | 0xcf | 0xe8 => true,
            0xff => matches!(reg, 2 | 3 | 6),
            _ => false,
        },
        2 => !p.vex && matches!(op, 0xa0 | 0xa1 | 0xa8 | 0xa9),
        _ => false,
    }
}

fn has_modrm(p: &Prefixes, op: u8) -> bool {
    match p.map {
        1 => match op {
            0x00..=0x3f => op & 7 < 4,
            0x62 | 0x63 | 0x69 | 0x6b | 0x80..=0x8f | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0xd8..=0xdf => true,
            0xf6 | 0xf7 | 0xfe | 0xff => true,
            _ => false,
        },
        2 if p.vex => op != 0x77,
        2 => !matches!(op, 0x05..=0x0b | 0x30..=0x37 | 0x77 | 0x80..=0x8f | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf),
        _ => true,
    }
}

/// Is the base of the memory operand RSP or RBP?
fn stack_base(p: &Prefixes, modrm: u8, sib: u8) -> bool {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if mode == 3 || p.b || p.fs_gs {
        return false;
    }
    match rm {
        4 => sib & 7 == 4 || sib & 7 == 5 && mode != 0,
        5 => mode != 0,
        _ => false,
    }
}

/// Whether the 64-bit instruction reaches `addr` through SS; `rsp` is the stack pointer before it.
fn through_stack(code: &[u8; 15], addr: u64, rsp: u64) -> bool {
    let Some(p) = prefixes(code) else { return false };
    let at = |i: usize| code.get(p.at + i).copied().unwrap_or(0);
    let (op, modrm) = (at(0), at(1));
    let operand = has_modrm(&p, op) && modrm >> 6 != 3;
    let stack = uses_stack(&p, op, modrm >> 3 & 7);
    // Of an instruction with both it is the stack's if it lies there.
    if stack && (!operand || addr.wrapping_sub(rsp).wrapping_add(64) < 128) {
        return true;
    }
    operand && stack_base(&p, modrm, at(2))
}

/// Whether the instruction at RIP, in 64-bit mode, reached the non-canonical `addr` through the stack segment.
pub(crate) fn is_stack<E: GuestEnv<Cpu = CpuState>>(env: &mut E, addr: u64) -> bool {
    if !env.cpu_ref().mode().is_64() {
        return false;
    }
    let (rip, rsp) = (env.cpu_ref().rip, env.cpu_ref().gpr[4]);
    let mut code = [0; 15];
    for (i, byte) in (0..).zip(&mut code) {
        // The instruction has been fetched; what may lie behind it need not be there.
        let Ok(v) = env.load(Va(rip.wrapping_add(i)), 1, ctx::KERNEL) else { break };
        *byte = v as u8;
    }
    through_stack(&code, addr, rsp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operands_and_pushes_are_told_apart() {
        let stack = |bytes: &[u8], addr: u64, rsp: u64| {
            let mut code = [0; 15];
            code[..bytes.len()].copy_from_slice(bytes);
            through_stack(&code, addr, rsp)
        };
        const BAD: u64 = 1 << 63;
        // mov eax, [rbp]; [rbx]; [rbp] behind FS; [r13]; [rsp]; [rip]; a register's own bytes.
        assert!(stack(&[0x8b, 0x45, 0], BAD, 0));
        assert!(!stack(&[0x8b, 0x03], BAD, 0));
        assert!(!stack(&[0x64, 0x8b, 0x45, 0], BAD, 0));
        assert!(!stack(&[0x41, 0x8b, 0x45, 0], BAD, 0));
        assert!(stack(&[0x8b, 0x04, 0x24], BAD, BAD));
        assert!(!stack(&[0x8b, 0x05, 0, 0, 0, 0], BAD, 0));
        // An ignored override changes nothing; DS: [rbp].
        assert!(stack(&[0x3e, 0x8b, 0x45, 0], BAD, 0));
        // push rax; ret; push [rax] with a bad operand, with a bad stack; pop [rax]; call [rbp].
        assert!(stack(&[0x50], BAD - 8, BAD) && stack(&[0xc3], BAD, BAD));
        assert!(!stack(&[0xff, 0x30], BAD, 0x1000) && stack(&[0xff, 0x30], BAD - 8, BAD));
        assert!(!stack(&[0x8f, 0x00], BAD, 0x1000) && stack(&[0xff, 0x55, 0], BAD, 0x1000));
        // movaps and vaddps of [rbp], of [rbx]; push fs; stosb.
        assert!(stack(&[0x0f, 0x28, 0x45, 0], BAD, 0) && !stack(&[0x0f, 0x28, 0x03], BAD, 0));
        assert!(stack(&[0xc5, 0xf8, 0x58, 0x45, 0], BAD, 0) && !stack(&[0xc4, 0xc1, 0x78, 0x58, 0x45, 0], BAD, 0));
        assert!(stack(&[0x0f, 0xa0], BAD, BAD) && !stack(&[0xaa], BAD, BAD));
        // Nothing but prefixes.
        assert!(!stack(&[0x66; 15], BAD, BAD));
    }
}
