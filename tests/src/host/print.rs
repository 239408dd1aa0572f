//! A case as a filetest, with the host's result as what is expected.

use super::case::Case;
use super::draw::Drawn;
use super::{Bits, Memory, State, Trap, address};
use crate::x86::CODE;
use arch_x86::flags::bit;
use frontend_x86::X86;
use ir::Frontend;
use std::fmt::Write;

pub(super) const GPR: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
const FLAGS: [(&str, u64); 7] =
    [("cf", bit::CF), ("pf", bit::PF), ("af", bit::AF), ("zf", bit::ZF), ("sf", bit::SF), ("df", bit::DF), ("of", bit::OF)];

/// The bytes at the address that filetests run at: an operand relative to RIP stays where it is.
pub fn moved(d: &Drawn) -> Vec<u8> {
    let mut bytes = d.bytes.clone();
    if d.insn.is_ip_rel_memory_operand() {
        let o = d.offsets();
        let (off, n) = (o.displacement_offset(), o.displacement_size());
        let disp = d.insn.memory_displacement64().wrapping_sub(CODE + bytes.len() as u64);
        bytes[off..off + n].copy_from_slice(&disp.to_le_bytes()[..n]);
    }
    bytes
}

/// `Err`: why a filetest cannot hold the case.
pub fn filetest(
    d: &Drawn,
    c: &Case,
    host: &(State, Trap),
    memory: [&[u8; 0x2000]; 2],
    before: &Memory,
) -> Result<String, String> {
    let bytes = moved(d);
    let (s, t) = (&host.0, host.1);
    let done = t.vector == 3 && s.rip == d.ip + d.bytes.len() as u64 + 1;
    if !done && t.vector == 3 {
        return Err("a branch".into());
    }
    if c.state.flags & (bit::AC | 0x100) != 0 || s.flags & 0x100 != 0 {
        return Err("user mode's alignment check, or single step".into());
    }
    let mut out = format!("test run   ; {:?}\n", d.insn.code());
    if d.bits == Bits::B32 {
        out += "mode: 32\n";
    }
    let hex: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let _ = writeln!(out, "bytes: {}", hex.join(" "));
    let _ = writeln!(out, "asm: {}", disassemble(d.bits, &bytes));
    let zero = State { mxcsr: 0x1f80, ..State::new() };
    let mut start = words(&zero, &c.state);
    let Some(touched) = touched(d, c, memory, before) else { return Err("it reads read-only memory".into()) };
    let mut mem = Vec::new();
    let held = |i: usize| if (c.patch.0..c.patch.0 + 64).contains(&i) { c.patch.1[i - c.patch.0] } else { before[i] };
    let now = |i: usize| if i < 0x2000 { memory[0][i] } else { memory[1][i - 0x2000] };
    bytes_of(&touched, &mut start, held);
    let changed: Vec<usize> = touched.iter().copied().filter(|i| now(*i) != held(*i)).collect();
    bytes_of(&changed, &mut mem, now);
    let _ = writeln!(out, "in:  {}", start.join(" "));
    let mut end = words(&c.state, s);
    end.retain(|w| !w.starts_with("rip="));
    let m = super::masks::Mask::new(d, &c.state, super::bench::operand_address(d, &c.state), t);
    end.extend(FLAGS.iter().filter(|f| m.flags & f.1 == 0).map(|f| format!("{}=?", f.0)));
    // A page fault that changed nothing is none of the results that a mask is about.
    let clean =
        t.vector == 14 && (s.gpr, s.xmm, s.fsw, s.ftw) == (c.state.gpr, c.state.xmm, c.state.fsw, c.state.ftw) && mem.is_empty();
    let open = m.gpr.is_some() || m.xmm_high.is_some() || !m.memory.is_empty() || m.tags || m.registers || m.class;
    if open && !clean {
        return Err("a result that is undefined".into());
    }
    if !done {
        let has_error = matches!(t.vector, 8 | 10..=14 | 17);
        // At CPL 0 a page fault's error code has no user bit.
        let error = if t.vector == 14 { t.error & !4 } else { t.error };
        end.push(format!("fault={:x}{}", t.vector, if has_error { format!(":{error:x}") } else { String::new() }));
    }
    let _ = writeln!(out, "out: {}", [end, mem].concat().join(" "));
    Ok(out)
}

pub fn disassemble(bits: Bits, bytes: &[u8]) -> String {
    let g = crate::x86::Guest::new(bits.count()).expect("a mode that exists");
    X86::new(g.cpu.features).disassemble(g.cpu.mode, CODE, bytes).0
}

/// What differs from `a` in `b`.
fn words(a: &State, b: &State) -> Vec<String> {
    let mut out = Vec::new();
    for i in (0..16).filter(|i| a.gpr[*i] != b.gpr[*i]) {
        out.push(format!("{}={:x}", GPR[i], b.gpr[i]));
    }
    for (name, x, y) in [("xmm", &a.xmm, &b.xmm), ("ymmh", &a.ymmh, &b.ymmh)] {
        for i in (0..16).filter(|i| x[*i] != y[*i]) {
            out.push(format!("{name}{i}={:x}", y[i]));
        }
    }
    for (name, x, y) in [
        ("mxcsr", a.mxcsr, b.mxcsr),
        ("fcw", a.fcw.into(), b.fcw.into()),
        ("fsw", a.fsw.into(), b.fsw.into()),
        ("ftw", a.ftw.into(), b.ftw.into()),
    ] {
        if x != y {
            out.push(format!("{name}={y:x}"));
        }
    }
    // By physical register: `fsw` of the side they are on stands before them.
    let (ta, tb) = (usize::from(a.fsw >> 11 & 7), usize::from(b.fsw >> 11 & 7));
    for i in (0..8).filter(|i| a.st[(i + tb + 8 - ta) & 7] != b.st[*i]) {
        out.push(format!("st{i}={:x}", u128::from(b.st[i].sexp) << 64 | u128::from(b.st[i].mant)));
    }
    for (name, f) in FLAGS.iter().filter(|f| (a.flags ^ b.flags) & f.1 != 0) {
        out.push(format!("{name}={}", u8::from(b.flags & f != 0)));
    }
    out
}

/// Bytes of memory that matter, if they can be written, too: the operand's, those around the stack pointer and string pointers, and what changed.
fn touched(d: &Drawn, c: &Case, memory: [&[u8; 0x2000]; 2], before: &Memory) -> Option<Vec<usize>> {
    let now = |i: usize| if i < 0x2000 { memory[0][i] } else { memory[1][i - 0x2000] };
    let held = |i: usize| if (c.patch.0..c.patch.0 + 64).contains(&i) { c.patch.1[i - c.patch.0] } else { before[i] };
    let mut all: Vec<usize> = (0..0x4000).filter(|i| now(*i) != held(*i)).collect();
    let target = super::bench::operand_address(d, &c.state);
    let size = d.insn.memory_size().size().max(1) as u64;
    let mut reads: Vec<(u64, u64)> = vec![(target, size)];
    let mut info = iced_x86::InstructionInfoFactory::new();
    for m in info.info(&d.insn).used_memory() {
        for element in 0..if d.insn.is_vsib() { 8 } else { 1 } {
            let at = m.virtual_address(element, |r, e, n| register(&c.state, r, e, n));
            reads.extend(at.map(|a| (a, m.memory_size().size().max(1) as u64)));
        }
    }
    for (a, n) in reads {
        all.extend((a..a.saturating_add(n)).filter_map(super::place));
    }
    all.sort_unstable();
    all.dedup();
    all.iter().all(|p| *p < 0x4000).then_some(all)
}

/// `[address]=bytes` for each run of neighbours.
fn bytes_of(places: &[usize], out: &mut Vec<String>, byte: impl Fn(usize) -> u8) {
    let mut next = None;
    for p in places {
        let a = address(*p);
        match out.last_mut() {
            Some(w) if next == Some(a) => w.push_str(&format!("{:02x}", byte(*p))),
            _ => out.push(format!("[{a:x}]={:02x}", byte(*p))),
        }
        next = Some(a + 1);
    }
}

/// Value of a register in an address; of a vector register that of an element of `n` bytes, sign-extended.
fn register(s: &State, r: iced_x86::Register, element: usize, n: usize) -> Option<u64> {
    if r.is_segment_register() {
        return Some(0);
    }
    if r.is_vector_register() {
        let bits = 8 * n.clamp(4, 8);
        let (low, high) = (s.xmm[r.number() & 15], s.ymmh[r.number() & 15]);
        let at = element * bits;
        let v = if at < 128 {
            low >> at
        } else if at < 256 {
            high >> (at - 128)
        } else {
            0
        } as u64;
        return Some(if bits == 32 { v as i32 as u64 } else { v });
    }
    let v = *s.gpr.get(r.number())?;
    Some(match r.size() {
        8 => v,
        4 => v & 0xffff_ffff,
        2 => v & 0xffff,
        _ => v & 0xff,
    })
}
