//! Text of `info registers` and `-d cpu`.

use crate::desc::system;
use crate::flags::bit;
use crate::state::{CpuState, DescTable, Segment};
use std::fmt::Write;

const NAMES64: [&str; 16] =
    ["RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8 ", "R9 ", "R10", "R11", "R12", "R13", "R14", "R15"];
const NAMES32: [&str; 8] = ["EAX", "ECX", "EDX", "EBX", "ESP", "EBP", "ESI", "EDI"];
/// Order in which the first eight are shown.
const SHOWN: [usize; 8] = [0, 3, 1, 2, 6, 7, 5, 4];

/// The registers, in the layout of QEMU's `info registers`.
pub fn dump(cpu: &CpuState) -> String {
    let mut s = String::new();
    // Writing to a String cannot fail.
    let _ = general(cpu, &mut s).and_then(|()| segments(cpu, &mut s)).and_then(|()| control(cpu, &mut s));
    let _ = floating(cpu, &mut s);
    s
}

fn general(cpu: &CpuState, s: &mut String) -> std::fmt::Result {
    let wide = cpu.mode().is_64();
    let end = |i: usize| if i % 4 == 3 { '\n' } else { ' ' };
    for (i, &r) in SHOWN.iter().enumerate() {
        if wide {
            write!(s, "{}={:016x}{}", NAMES64[r], cpu.gpr[r], end(i))?;
        } else {
            write!(s, "{}={:08x}{}", NAMES32[r], cpu.gpr[r] as u32, end(i))?;
        }
    }
    if wide {
        for (r, name) in NAMES64.iter().enumerate().skip(8) {
            write!(s, "{name}={:016x}{}", cpu.gpr[r], end(r))?;
        }
        write!(s, "RIP={:016x} RFL=", cpu.rip)?;
    } else {
        write!(s, "EIP={:08x} EFL=", cpu.rip as u32)?;
    }
    let f = cpu.rflags();
    let letters =
        [(bit::DF, 'D'), (bit::OF, 'O'), (bit::SF, 'S'), (bit::ZF, 'Z'), (bit::AF, 'A'), (bit::PF, 'P'), (bit::CF, 'C')];
    let letters: String = letters.iter().map(|&(b, c)| if f & b != 0 { c } else { '-' }).collect();
    let (a20, smm, hlt) = (!cpu.a20_masked as u8, cpu.smm as u8, cpu.halted as u8);
    writeln!(s, "{f:08x} [{letters}] CPL={} II={} A20={a20} SMM={smm} HLT={hlt}", cpu.cpl, cpu.shadow)
}

fn segments(cpu: &CpuState, s: &mut String) -> std::fmt::Result {
    for (name, seg) in ["ES ", "CS ", "SS ", "DS ", "FS ", "GS "].iter().zip(&cpu.seg) {
        segment(cpu, s, name, seg)?;
    }
    segment(cpu, s, "LDT", &cpu.ldt)?;
    segment(cpu, s, "TR ", &cpu.tr)?;
    for (name, t) in [("GDT", &cpu.gdt), ("IDT", &cpu.idt)] {
        let DescTable { base, limit } = *t;
        if cpu.long_mode() {
            writeln!(s, "{name}=     {base:016x} {limit:08x}")?;
        } else {
            writeln!(s, "{name}=     {base:08x} {limit:08x}")?;
        }
    }
    Ok(())
}

fn segment(cpu: &CpuState, s: &mut String, name: &str, seg: &Segment) -> std::fmt::Result {
    // As in a descriptor's second dword, so bits 19:16 of the limit belong to it.
    let raw_limit = if seg.attr & Segment::G != 0 { seg.limit >> 12 } else { seg.limit };
    let attr = seg.attr & 0x00f0_ff00 | raw_limit & 0xf_0000;
    if cpu.long_mode() {
        write!(s, "{name}={:04x} {:016x} {:08x} {attr:08x}", seg.selector, seg.base, seg.limit)?;
    } else {
        write!(s, "{name}={:04x} {:08x} {:08x} {attr:08x}", seg.selector, seg.base as u32, seg.limit)?;
    }
    if !cpu.protected() || !seg.usable() || attr & Segment::P == 0 {
        return writeln!(s);
    }
    write!(s, " DPL={} ", seg.dpl())?;
    let on = |b: u32, c: char| if attr & b != 0 { c } else { '-' };
    if attr & Segment::S == 0 {
        return writeln!(s, "{}", system_name(cpu.long_mode(), (attr >> 8 & 0xf) as u8));
    }
    let big = attr & Segment::DB != 0;
    let kind = match (attr & Segment::CODE != 0, attr & Segment::L != 0 && cpu.long_mode(), big) {
        (true, true, _) => "CS64",
        (true, false, true) => "CS32",
        (true, false, false) => "CS16",
        (false, _, true) => "DS  ",
        (false, _, false) => "DS16",
    };
    let (dc, rw) = if attr & Segment::CODE != 0 { ('C', 'R') } else { ('E', 'W') };
    writeln!(s, "{kind} [{}{}{}]", on(Segment::DC, dc), on(Segment::RW, rw), on(Segment::ACCESSED, 'A'))
}

fn system_name(long: bool, kind: u8) -> &'static str {
    match (long, kind) {
        (_, system::LDT) => "LDT",
        (true, system::TSS32) => "TSS64-avl",
        (true, system::TSS32_BUSY) => "TSS64-busy",
        (false, system::TSS32) => "TSS32-avl",
        (false, system::TSS32_BUSY) => "TSS32-busy",
        (false, system::TSS16) => "TSS16-avl",
        (false, system::TSS16_BUSY) => "TSS16-busy",
        _ => "Reserved",
    }
}

fn control(cpu: &CpuState, s: &mut String) -> std::fmt::Result {
    let wide = cpu.long_mode();
    if wide {
        writeln!(s, "CR0={:08x} CR2={:016x} CR3={:016x} CR4={:08x}", cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4)?;
    } else {
        writeln!(s, "CR0={:08x} CR2={:08x} CR3={:08x} CR4={:08x}", cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4)?;
    }
    for i in 0..4 {
        let end = if i == 3 { " \n" } else { " " };
        if wide { write!(s, "DR{i}={:016x}{end}", cpu.dr[i])? } else { write!(s, "DR{i}={:08x}{end}", cpu.dr[i])? }
    }
    if wide {
        writeln!(s, "DR6={:016x} DR7={:016x}", cpu.dr[6], cpu.dr[7])?;
    } else {
        writeln!(s, "DR6={:08x} DR7={:08x}", cpu.dr[6], cpu.dr[7])?;
    }
    writeln!(s, "EFER={:016x}", cpu.efer)
}

fn floating(cpu: &CpuState, s: &mut String) -> std::fmt::Result {
    let (top, full) = (cpu.fsw >> 11 & 7, cpu.ftw);
    writeln!(s, "FCW={:04x} FSW={:04x} [ST={top}] FTW={full:02x} MXCSR={:08x}", cpu.fcw, cpu.fsw, cpu.mxcsr)?;
    for (i, r) in cpu.fpr.iter().enumerate() {
        write!(s, "FPR{i}={:016x} {:04x}{}", r.mant, r.sexp, if i % 2 == 1 { '\n' } else { ' ' })?;
    }
    let count = if cpu.mode().is_64() { 16 } else { 8 };
    for (i, x) in cpu.xmm.iter().take(count).enumerate() {
        write!(s, "XMM{i:02}={x:032x}{}", if i % 2 == 1 { '\n' } else { ' ' })?;
    }
    Ok(())
}
