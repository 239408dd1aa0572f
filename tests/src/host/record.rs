//! Makes filetests of the host's results: for each form one case that completes, and one for each memory operand, which faults.

use super::bench::Bench;
use super::case::{self, Case};
use super::draw::{Drawn, draw};
use super::forms::{self, Form};
use super::{Bits, State, at, print};
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind, Register, UsedMemory};
use std::collections::{BTreeMap, BTreeSet};
use vm_core::testing::Rng;

/// Attempts for each case.
const TRIES: usize = 300;
/// Cases of a file.
const PER_FILE: usize = 75;

/// Files by name.
pub type Files = BTreeMap<String, String>;

/// What a filetest is about: a form (iced's `Code`), and which of its memory operands faults.
pub type Subject = (u32, Option<usize>);

/// Cases for those subjects that `have` does not hold. `check` runs a case on our engines.
pub fn record(
    seed: u64,
    have: &BTreeSet<Subject>,
    check: &dyn Fn(&str) -> Result<(), String>,
) -> Result<(Files, Vec<String>), String> {
    let mut bench = Bench::new(&[])?;
    let mut r = Rng(seed);
    let (mut groups, mut problems) = (BTreeMap::<String, Vec<String>>::new(), Vec::new());
    let mut seen = have.clone();
    for bits in [Bits::B64, Bits::B32] {
        for (n, f) in forms::all(bits).iter().enumerate() {
            for faults in subjects(bits, f).into_iter().filter(|s| seen.insert((f.code as u32, *s))) {
                match one(&mut bench, &mut r, bits, f, n, faults, check) {
                    Ok(text) => groups.entry(group(f)).or_default().push(text),
                    Err(why) => problems.push(format!(
                        "{:?} ({} bits{}): {why}",
                        f.code,
                        bits.count(),
                        faults.map_or(String::new(), |k| format!(", fault of operand {k}"))
                    )),
                }
            }
        }
    }
    let mut files = Files::new();
    for (name, cases) in groups {
        for (k, part) in cases.chunks(PER_FILE).enumerate() {
            let intro = format!(
                "; Results of a processor (AMD Zen 3), one case for each form and one for its memory operand: {name}.\n; Made by `cargo run -p rhea-tests --bin record`.\n\n"
            );
            let file = if cases.len() > PER_FILE { format!("{name}_{}.x86", k + 1) } else { format!("{name}.x86") };
            files.insert(file, intro + &part.join("\n"));
        }
    }
    Ok((files, problems))
}

/// The case that completes, and each memory operand that can fault, of a wanted form.
pub fn subjects(bits: Bits, f: &Form) -> Vec<Option<usize>> {
    if !wanted(f) {
        return Vec::new();
    }
    let mut r = Rng(f.code as u64);
    let operands = (0..60).filter_map(|_| draw(&mut r, bits, f, 0, at::CODE + 0x1000)).map(|d| operands(&d.insn).len()).max();
    std::iter::once(None).chain((0..operands.unwrap_or(0)).map(Some)).collect()
}

/// Memory that an instruction accesses, as (base register, what is added to it), operand by operand: not the many elements of PUSHA
/// or of state areas.
fn operands(i: &Instruction) -> Vec<UsedMemory> {
    let m = i.mnemonic();
    if matches!(m, M::Lea | M::Nop | M::Reservednop | M::Clflush | M::Clflushopt | M::Clwb)
        || format!("{m:?}").starts_with("Prefetch")
    {
        return Vec::new();
    }
    let mut info = InstructionInfoFactory::new();
    let mut out: Vec<UsedMemory> = Vec::new();
    for u in info.info(i).used_memory() {
        if u.access() != OpAccess::NoMemAccess && !out.iter().any(|o| (o.base(), o.index()) == (u.base(), u.index())) {
            out.push(*u);
        }
    }
    out
}

/// Forms that filetests are about: what user mode can execute and complete.
pub fn wanted(f: &Form) -> bool {
    let branch = f.code.flow_control() != iced_x86::FlowControl::Next;
    // User mode only gets #GP from these.
    let privileged = !f.code.op_code().cpl3()
        || matches!(
            f.code.mnemonic(),
            M::Cli | M::Sti | M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd | M::Hlt
        );
    // What they store is the system's: tests/filetests/x86/system_values.x86 has them by hand.
    f.left_out.is_none() && !branch && !privileged
}

fn memory(f: &Form) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    let o = f.code.op_code();
    (0..o.op_count()).any(|k| format!("{:?}", o.op_kind(k)).contains("mem"))
        && !matches!(f.code.mnemonic(), M::Lea | M::Nop)
        && o.op_kind(0) != K::None
}

fn group(f: &Form) -> String {
    let name = format!("{:?}", f.code);
    let feature = format!("{:?}", f.code.cpuid_features().first()).to_lowercase();
    let feature = feature.trim_start_matches("some(").trim_end_matches(')').to_string();
    let feature = match feature.as_str() {
        "intel8086" | "intel186" | "intel286" | "intel386" | "intel486" | "x64" => "integer".into(),
        "fpu" | "fpu287" | "fpu387" => "x87".into(),
        f => f.to_string(),
    };
    if name.starts_with("VEX_") && !feature.contains("avx") && !feature.contains("fma") {
        format!("vex_{feature}")
    } else {
        feature
    }
}

/// Registers and vectors that the instruction does not use are zero.
fn plain(c: &mut Case, d: &Drawn) {
    let mut info = InstructionInfoFactory::new();
    let used: BTreeSet<Register> = info.info(&d.insn).used_registers().iter().map(|u| u.register().full_register()).collect();
    let s = &mut c.state;
    for i in 0..16u32 {
        if !used.contains(&(Register::RAX + i)) && !(used.contains(&(Register::EAX + i))) {
            s.gpr[i as usize] = 0;
        }
        if ![Register::XMM0, Register::YMM0, Register::ZMM0].iter().any(|r| used.contains(&(*r + i))) {
            (s.xmm[i as usize], s.ymmh[i as usize]) = (0, 0);
        } else if format!("{:?}", d.insn.code()).contains("xmm")
            && !format!("{:?}", d.insn.code()).contains("ymm")
            && !format!("{:?}", d.insn.code()).starts_with("VEX")
        {
            s.ymmh[i as usize] = 0;
        }
    }
    s.flags &= !(0x4_0000 | 0x100);
    let fpu = d.insn.cpuid_features().iter().any(|f| format!("{f:?}").contains("FPU") || format!("{f:?}") == "MMX");
    let mmx = (0..d.insn.op_count()).any(|k| d.insn.op_kind(k) == OpKind::Register && d.insn.op_register(k).is_mm());
    if !fpu && !mmx {
        s.st = State::new().st;
        (s.fcw, s.fsw, s.ftw) = (0x37f, 0, 0);
    } else if s.ftw == 0 || mmx {
        s.ftw = 0xff;
    }
    if mmx || !fpu {
        (s.fcw, s.fsw) = (0x37f, 0);
    }
    if fpu {
        (s.fcw, s.fsw) = (s.fcw | 0x3f, s.fsw & !0x80ff);
    }
    s.mxcsr |= 0x1f80;
    exact(c, d);
}

/// Operands for which what processors approximate in their own ways is exact.
fn exact(c: &mut Case, d: &Drawn) {
    let s = &mut c.state;
    let one = arch_x86::F80 { mant: 1 << 63, sexp: 0x3fff };
    let zero = arch_x86::F80::default();
    match d.insn.mnemonic() {
        M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::F2xm1 | M::Fyl2xp1 => (s.st[0], s.st[1], s.ftw) = (zero, one, 0x3f),
        M::Fyl2x => (s.st[0], s.st[1]) = (one, one),
        M::Fpatan => (s.st[0], s.st[1]) = (one, zero),
        M::Rcpps | M::Rcpss | M::Rsqrtps | M::Rsqrtss | M::Vrcpps | M::Vrcpss | M::Vrsqrtps | M::Vrsqrtss => {
            let inf = u128::from_le_bytes([0, 0, 0x80, 0x7f].repeat(4).try_into().unwrap_or_default());
            (s.xmm, s.ymmh) = ([inf; 16], [inf; 16]);
            let shift = (4 - (c.patch.0 % 4)) % 4;
            for (k, b) in c.patch.1.iter_mut().enumerate() {
                *b = [0, 0, 0x80, 0x7f][(k + 4 - shift) % 4];
            }
        }
        M::Fsave | M::Fnsave => s.st = [zero; 8],
        _ => {}
    }
    if matches!(d.insn.mnemonic(), M::Fsin | M::Fcos | M::Fsincos | M::Fptan | M::F2xm1 | M::Fyl2xp1) {
        // Registers 0 and 1 of the stack, a free one before them.
        (s.fsw, s.ftw) = (s.fsw & !0x3800, 0x3f);
    }
    let bt = matches!(d.insn.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc);
    if bt && d.insn.op0_kind() == OpKind::Memory && d.insn.op1_kind() == OpKind::Register {
        s.gpr[d.insn.op1_register().number()] &= 0xf;
    }
    if d.insn.has_rep_prefix() || d.insn.has_repne_prefix() {
        s.gpr[1] = 1;
    }
}

fn one(
    b: &mut Bench,
    r: &mut Rng,
    bits: Bits,
    f: &Form,
    n: usize,
    faults: Option<usize>,
    check: &dyn Fn(&str) -> Result<(), String>,
) -> Result<String, String> {
    let mut last = "no case found".to_string();
    for k in 0..TRIES {
        let Some(d) = draw(r, bits, f, n, at::CODE + 0x1000) else { continue };
        // The first attempts without needless prefixes.
        let needless = d.bytes.iter().take(2).any(|x| matches!(x, 0x26 | 0x2e | 0x36 | 0x3e | 0x65 | 0x67)) || d.bytes[0] == 0xf0;
        if k < TRIES / 2 && needless {
            continue;
        }
        let is_memory = (0..d.insn.op_count()).any(|i| d.insn.op_kind(i) == OpKind::Memory);
        let wants_memory = faults.is_some_and(|_| memory(f)) || memory(f) && k < TRIES / 3;
        if wants_memory && !is_memory {
            continue;
        }
        let mut c = case::case(r, &d);
        plain(&mut c, &d);
        if let Some(k) = faults {
            let Some(m) = operands(&d.insn).get(k).copied() else { continue };
            let target = at::ABSENT + 0x40 * (1 + r.below(50));
            let named = |m: &UsedMemory| is_memory && (m.base(), m.index()) == (d.insn.memory_base(), d.insn.memory_index());
            // The others must not.
            for o in operands(&d.insn).iter().filter(|o| o.base().is_gpr() && o.base() != m.base() && !named(o)) {
                c.state.gpr[o.base().number()] = at::DATA + 0x1800;
            }
            if named(&m) {
                case::address(r, &d, &mut c.state, target);
            } else if m.base().is_gpr() {
                c.state.gpr[m.base().number()] = target;
            }
        }
        if d.insn.has_rep_prefix() && k < TRIES / 2 {
            continue;
        }
        b.set_code(std::slice::from_ref(&d));
        let host = b.host(&d, &c);
        let absent = host.1.vector == 14 && (at::ABSENT..at::DATA2).contains(&host.1.addr);
        let fits = if faults.is_some() { absent } else { host.1.vector == 3 };
        let text = print::filetest(&d, &c, &host, b.native.memory(), &b.background);
        b.restore(&c, true);
        if !fits {
            continue;
        }
        match text {
            Err(why) => last = why,
            Ok(text) => match check(&text) {
                Ok(()) => return Ok(text),
                Err(why) => last = format!("{why}\n{text}"),
            },
        }
    }
    Err(last)
}

/// Subjects of all cases in a text of filetests.
pub fn subjects_of(text: &str) -> Vec<Subject> {
    let mut out = Vec::new();
    for case in text.split("\ntest ") {
        let line = |name: &str| case.lines().find_map(|l| l.strip_prefix(name)).map(|l| l.split(';').next().unwrap_or("").trim());
        let bits = line("mode:").and_then(|m| m.parse().ok()).unwrap_or(64);
        let bytes: Vec<u8> =
            line("bytes:").unwrap_or("").split_whitespace().filter_map(|b| u8::from_str_radix(b, 16).ok()).collect();
        let fault = line("out:").unwrap_or("").split_whitespace().any(|w| w.starts_with("fault=e"));
        let state = gprs(line("in:").unwrap_or(""));
        for i in iced_x86::Decoder::with_ip(bits, &bytes, crate::x86::CODE, iced_x86::DecoderOptions::NONE) {
            out.push((i.code() as u32, None));
            let absent = |m: &UsedMemory| {
                let a = m.virtual_address(0, |r, _, _| register(&state, r));
                // Elements of a gather lie around their base.
                m.index().is_vector_register() || a.is_some_and(|a| crate::x86::ABSENT.contains(&(a & 0xffff_ffff)))
            };
            if fault {
                out.extend(operands(&i).iter().position(absent).map(|k| (i.code() as u32, Some(k))));
            }
        }
    }
    out
}

fn gprs(words: &str) -> [u64; 16] {
    let names = super::print::GPR;
    let mut g = [0; 16];
    for (name, v) in words.split_whitespace().filter_map(|w| w.split_once('=')) {
        if let Some(i) = names.iter().position(|n| *n == name) {
            g[i] = u64::from_str_radix(v, 16).unwrap_or(0);
        }
    }
    g
}

fn register(g: &[u64; 16], r: Register) -> Option<u64> {
    match r.size() {
        _ if r.is_segment_register() => Some(0),
        8 if r.is_gpr() => Some(g[r.number()]),
        4 if r.is_gpr() => Some(g[r.number()] & 0xffff_ffff),
        2 if r.is_gpr() => Some(g[r.number()] & 0xffff),
        1 if r == Register::AL => Some(g[0] & 0xff),
        _ => None,
    }
}
