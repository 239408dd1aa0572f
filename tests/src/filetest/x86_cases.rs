//! `.x86` files: guest bytes, state before and after, on every engine.

use arch_x86::F80;
use arch_x86::flags::bit;
use frontend_x86::X86;
use ir::Frontend;
use vm_core::Fault;

use super::{Case, Verdict};
use crate::x86::{CODE, ENGINES, Engine, Guest, Stop};

const GPR: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
const GPR32: [&str; 8] = ["eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi"];
const FLAGS: [(&str, u64); 7] =
    [("cf", bit::CF), ("pf", bit::PF), ("af", bit::AF), ("zf", bit::ZF), ("sf", bit::SF), ("df", bit::DF), ("of", bit::OF)];

pub(super) fn run(c: &Case) -> Verdict {
    let words: Vec<&str> = c.command.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run"] => match execute(c, &engines(c)) {
            Ok(skipped) if skipped.is_empty() => Verdict::Pass,
            Ok(skipped) => Verdict::Partial(skipped),
            Err(why) => Verdict::Fail(why),
        },
        _ => Verdict::Fail(format!("no command `{}`", c.command.join(" "))),
    }
}

/// The engines that a case runs on.
fn engines(c: &Case) -> Vec<&'static dyn Engine> {
    if !c.few {
        return ENGINES.to_vec();
    }
    vec![ENGINES[0], ENGINES[1 + c.line / 7 % (ENGINES.len() - 1)]]
}

/// Runs a case on the reference engine alone.
pub(super) fn check(c: &Case) -> Result<(), String> {
    match execute(c, &ENGINES[..1]) {
        Ok(skipped) if skipped.is_empty() => Ok(()),
        Ok(skipped) => Err(skipped.join(", ")),
        Err(why) => Err(why),
    }
}

/// What a run must give.
struct Want {
    guest: Guest,
    fault: Option<String>,
    /// Flags that the manual leaves undefined here.
    undefined: u64,
}

fn start(c: &Case) -> Result<(Guest, usize), String> {
    let bits = c.field("mode").map_or(Ok(64), |m| m.parse()).map_err(|e| format!("mode: {e}"))?;
    let mut g = Guest::with(c.field("cpu").as_deref().unwrap_or("max"), bits)?;
    let text = c.field("bytes").ok_or("no `bytes:` line")?;
    let bytes: Result<Vec<u8>, _> = text.split_whitespace().map(|b| u8::from_str_radix(b, 16)).collect();
    let bytes = bytes.map_err(|e| format!("bytes: {e}"))?;
    if bytes.is_empty() || bytes.len() > 4000 {
        return Err("`bytes:` must hold 1 to 4000 bytes".into());
    }
    g.memory.extend((CODE..).zip(bytes.iter().copied()));
    check_asm(c, &g, &bytes)?;
    (g.cpu.fcw, g.cpu.fsw, g.cpu.ftw) = (0x37f, 0, 0);
    for w in c.field("in").unwrap_or_default().split_whitespace() {
        let (k, v) = w.split_once('=').ok_or_else(|| format!("`{w}` is no key=value"))?;
        set(&mut g, k, v)?;
    }
    Ok((g, bytes.len()))
}

/// `asm:` is what the disassembler says, instructions separated by `;` written as ` / `.
fn check_asm(c: &Case, g: &Guest, bytes: &[u8]) -> Result<(), String> {
    let Some(want) = c.field("asm") else { return Ok(()) };
    let front = X86::new(g.cpu.features);
    let (mut at, mut lines) = (0, Vec::new());
    while at < bytes.len() {
        let (text, len) = front.disassemble(g.cpu.mode, CODE + at as u64, &bytes[at..]);
        lines.push(text);
        at += len.max(1);
    }
    let got = lines.join(" / ");
    if got == want { Ok(()) } else { Err(format!("asm: {got}")) }
}

fn set(g: &mut Guest, key: &str, value: &str) -> Result<(), String> {
    if let Some(addr) = key.strip_prefix('[').and_then(|k| k.strip_suffix(']')) {
        let addr = u64::from_str_radix(addr, 16).map_err(|e| format!("{key}: {e}"))?;
        let list = super::values::bytes(value)?;
        g.memory.extend(list.into_iter().enumerate().map(|(k, b)| (addr.wrapping_add(k as u64), b)));
        return Ok(());
    }
    let n = u128::from_str_radix(value, 16).map_err(|e| format!("{key}={value}: {e}"))?;
    let narrow = u64::try_from(n).map_err(|_| format!("{key}={value} is too large"));
    if let Some(i) = GPR.iter().position(|r| *r == key).or_else(|| GPR32.iter().position(|r| *r == key)) {
        g.cpu.gpr[i] = narrow?;
    } else if let Some(i) = key.strip_prefix("xmm").and_then(|i| i.parse::<usize>().ok()).filter(|i| *i < 16) {
        g.cpu.xmm[i] = n;
    } else if let Some((_, b)) = FLAGS.iter().find(|(f, _)| *f == key) {
        let old = g.cpu.rflags() & !b;
        g.cpu.set_rflags(if n != 0 { old | b } else { old });
    } else if let Some(i) = key.strip_prefix("ymmh").and_then(|i| i.parse::<usize>().ok()).filter(|i| *i < 16) {
        g.cpu.ymmh[i] = n;
    } else if let Some(i) = key.strip_prefix("st").and_then(|i| i.parse::<usize>().ok()).filter(|i| *i < 8) {
        // Relative to the TOP of the start, so `fsw` comes first.
        let top = usize::from(g.cpu.fsw >> 11);
        g.cpu.fpr[(top + i) & 7] = F80 { mant: n as u64, sexp: (n >> 64) as u16 };
    } else if let Some(word) = x87_word(g, key) {
        *word = narrow? as u16;
    } else if key == "ftw" {
        g.cpu.ftw = narrow? as u8;
    } else if key == "rip" {
        g.cpu.rip = narrow?;
    } else if let Some(r) = control(g, key) {
        *r = narrow?;
        g.cpu.update_mode();
    } else if key == "mxcsr" {
        g.cpu.mxcsr = narrow? as u32;
        g.cpu.update_mode();
    } else {
        return Err(format!("no register `{key}`"));
    }
    Ok(())
}

fn x87_word<'a>(g: &'a mut Guest, key: &str) -> Option<&'a mut u16> {
    match key {
        "fcw" => Some(&mut g.cpu.fcw),
        "fsw" => Some(&mut g.cpu.fsw),
        _ => None,
    }
}

/// Control registers of the start state, and what they hold afterwards.
fn control<'a>(g: &'a mut Guest, key: &str) -> Option<&'a mut u64> {
    Some(match key {
        "cr0" => &mut g.cpu.cr0,
        "cr4" => &mut g.cpu.cr4,
        "xcr0" => &mut g.cpu.xcr0,
        _ => return None,
    })
}

fn wanted(c: &Case) -> Result<Want, String> {
    let (mut guest, len) = start(c)?;
    let (mut fault, mut undefined) = (None, 0);
    guest.cpu.rip = CODE + len as u64;
    for w in c.field("out").ok_or("no `out:` line")?.split_whitespace() {
        let (k, v) = w.split_once('=').ok_or_else(|| format!("`{w}` is no key=value"))?;
        let flag = FLAGS.iter().find(|(f, _)| *f == k);
        match (k, v, flag) {
            ("fault", v, _) => {
                fault = Some(v.to_string());
                guest.cpu.rip = CODE;
            }
            (_, "?", Some((_, b))) => undefined |= b,
            _ => set(&mut guest, k, v)?,
        }
    }
    Ok(Want { guest, fault, undefined })
}

/// Runs the case on these engines. Gives engine and reason for each engine that cannot hold it.
fn execute(c: &Case, engines: &[&dyn Engine]) -> Result<Vec<String>, String> {
    let want = wanted(c)?;
    let (mut skipped, mut wrong) = (Vec::new(), Vec::new());
    for e in engines {
        let (mut g, len) = start(c)?;
        let diff = match e.run(&mut g, len) {
            Ok(Stop::Unfit(why)) => {
                skipped.push(format!("{}: {why}", e.name()));
                continue;
            }
            Ok(Stop::Left) => differences(&want, &g, None),
            Ok(Stop::Fault(f)) => differences(&want, &g, Some(f)),
            Err(why) => vec![why],
        };
        if !diff.is_empty() {
            wrong.push(format!("{}: {}", e.name(), diff.join(", ")));
        }
    }
    if wrong.is_empty() { Ok(skipped) } else { Err(wrong.join("\n")) }
}

fn differences(want: &Want, got: &Guest, fault: Option<Fault>) -> Vec<String> {
    let mut out = Vec::new();
    let mut note = |name: &str, want: String, got: String| {
        if want != got {
            out.push(format!("{name} is {got}, not {want}"));
        }
    };
    let fault = fault.map(|f| f.error.map_or(format!("{:x}", f.vector), |e| format!("{:x}:{e:x}", f.vector)));
    note("fault", format!("{:?}", want.fault), format!("{fault:?}"));
    let (w, g) = (&want.guest.cpu, &got.cpu);
    for (i, name) in GPR.iter().enumerate() {
        note(name, format!("{:x}", w.gpr[i]), format!("{:x}", g.gpr[i]));
        note(&format!("xmm{i}"), format!("{:x}", w.xmm[i]), format!("{:x}", g.xmm[i]));
        note(&format!("ymmh{i}"), format!("{:x}", w.ymmh[i]), format!("{:x}", g.ymmh[i]));
    }
    for (i, (w, g)) in w.fpr.iter().zip(&g.fpr).enumerate() {
        note(&format!("R{i}"), format!("{:x}:{:x}", w.sexp, w.mant), format!("{:x}:{:x}", g.sexp, g.mant));
    }
    note("fcw", format!("{:x}", w.fcw), format!("{:x}", g.fcw));
    note("fsw", format!("{:x}", w.fsw), format!("{:x}", g.fsw));
    note("ftw", format!("{:x}", w.ftw), format!("{:x}", g.ftw));
    note("mxcsr", format!("{:x}", w.mxcsr), format!("{:x}", g.mxcsr));
    note("xcr0", format!("{:x}", w.xcr0), format!("{:x}", g.xcr0));
    note("rip", format!("{:x}", w.rip), format!("{:x}", g.rip));
    for (name, b) in FLAGS.iter().filter(|(_, b)| want.undefined & b == 0) {
        note(name, u8::from(w.rflags() & b != 0).to_string(), u8::from(g.rflags() & b != 0).to_string());
    }
    let (wm, gm) = (&want.guest.memory, &got.memory);
    for a in wm.keys().chain(gm.keys().filter(|a| !wm.contains_key(a))) {
        let byte = |m: &std::collections::BTreeMap<u64, u8>| format!("{:02x}", m.get(a).copied().unwrap_or(0));
        note(&format!("[{a:x}]"), byte(wm), byte(gm));
    }
    out
}
