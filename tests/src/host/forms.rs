//! All instruction forms (iced's `Code`) of a mode with the encodings that give them, found by decoding every opcode; and which
//! of them the host can run for us.

use super::Bits;
use arch_x86::cpuid::Word;
use arch_x86::features;
use iced_x86::{Code, CpuidFeature as F, Decoder, DecoderOptions, Instruction, Mnemonic as M};
use std::collections::BTreeMap;

/// How an instruction's bytes are made up, without what `draw` chooses.
#[derive(Clone, Copy, Debug)]
pub struct Template {
    /// Opcode map: 0 to 3 legacy (one byte, 0F, 0F 38, 0F 3A), 5 to 7 the latter three by VEX.
    pub map: u8,
    /// 66, F2, F3 in front, or as VEX.pp; 0 for none.
    pub prefix: u8,
    pub w: bool,
    pub l: bool,
    pub opcode: u8,
    pub modrm: u8,
    /// VEX.vvvv must be 1111b.
    pub no_v: bool,
}

/// A form, where it comes from, and what stands against running it on this host.
#[derive(Clone, Debug)]
pub struct Form {
    pub code: Code,
    pub templates: Vec<Template>,
    /// Why it is not compared, and what tests it instead.
    pub left_out: Option<(&'static str, &'static str)>,
}

const TEMPLATES: usize = 12;

impl Template {
    /// The bytes without optional prefixes, with the VEX register or REX bits given: (REX.RXB or VEX.RXB, vvvv).
    pub fn bytes(&self, bits: Bits, rxb: u8, vvvv: u8, modrm: u8) -> Vec<u8> {
        let mut b = Vec::with_capacity(16);
        if self.map >= 5 {
            let pp = match self.prefix {
                0x66 => 1,
                0xf3 => 2,
                0xf2 => 3,
                _ => 0,
            };
            let rxb = if bits == Bits::B64 { rxb } else { 0 };
            let v = if self.no_v { 0 } else { vvvv & if bits == Bits::B64 { 15 } else { 7 } };
            let last = (!v & 15) << 3 | u8::from(self.l) << 2 | pp;
            if self.map == 5 && !self.w && rxb & 3 == 0 && modrm & 1 == 0 {
                b.extend([0xc5, (!rxb & 4) << 5 | last]);
            } else {
                b.extend([0xc4, (!rxb & 7) << 5 | (self.map - 4), u8::from(self.w) << 7 | last]);
            }
        } else {
            if self.prefix != 0 {
                b.push(self.prefix);
            }
            let rex = u8::from(self.w) << 3 | rxb & 7;
            if bits == Bits::B64 && rex != 0 {
                b.push(0x40 | rex);
            }
            b.extend_from_slice([&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]][usize::from(self.map)]);
        }
        b.extend([self.opcode, modrm]);
        b
    }
}

/// Decodes one instruction as the campaign's processors should.
pub fn decode(bits: Bits, ip: u64, bytes: &[u8]) -> Instruction {
    Decoder::with_ip(bits.count(), bytes, ip, DecoderOptions::NONE).decode()
}

/// Every form that the decoder knows in this mode.
pub fn all(bits: Bits) -> Vec<Form> {
    let mut found: BTreeMap<u32, (Code, Vec<Template>)> = BTreeMap::new();
    let mut try_one = |t: Template| {
        let mut bytes = t.bytes(bits, 0, 1, t.modrm);
        bytes.extend([1, 1, 0, 0, 0, 0, 0, 0, 0]);
        let i = decode(bits, 0, &bytes);
        if !i.is_invalid() {
            let entry = found.entry(i.code() as u32).or_insert_with(|| (i.code(), Vec::new()));
            if entry.1.len() < TEMPLATES {
                entry.1.push(t);
            }
        }
    };
    for map in [0, 1, 2, 3, 5, 6, 7] {
        for rest in 0..1 << 14 {
            let opcode = rest as u8;
            if map == 0 && prefix_or_escape(bits, opcode) || map == 1 && matches!(opcode, 0x38 | 0x3a | 0x0f) {
                continue;
            }
            let (prefix, w, l, no_v) =
                ([0, 0x66, 0xf3, 0xf2][rest >> 8 & 3], rest >> 10 & 1 == 1, rest >> 11 & 1 == 1, rest >> 12 & 1 == 1);
            if map < 5 && (l || no_v || rest >> 13 != 0) || w && bits == Bits::B32 && map < 5 {
                continue;
            }
            if map >= 5 && rest >> 13 != 0 {
                continue;
            }
            // First few of each ModRM byte's parts, so that the templates differ in them.
            let modrm = |k: usize| {
                if map == 0 || map == 1 { k as u8 } else { [0x06, 0xc1, 0x04, 0x46][k & 3] | ((k >> 2 & 7) as u8 * 8) }
            };
            for k in 0..if map <= 1 { 256 } else { 32 } {
                try_one(Template { map, prefix, w, l, opcode, modrm: modrm(k), no_v });
            }
        }
    }
    found.into_values().map(|(code, templates)| Form { code, templates, left_out: left_out(code) }).collect()
}

fn prefix_or_escape(bits: Bits, opcode: u8) -> bool {
    let rex = bits == Bits::B64 && (0x40..0x50).contains(&opcode);
    // In 64-bit code C4, C5, 62 always begin VEX and EVEX; in 32-bit code with memory operands they are LDS, LES, BOUND.
    let vex = bits == Bits::B64 && matches!(opcode, 0x62 | 0xc4 | 0xc5);
    rex || vex || matches!(opcode, 0x0f | 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 | 0x9b)
}

const SYSTEM: &str = "tests/kernel and the unit tests of arch-x86, by the manual";
/// Where forms are tested that the host cannot run but in user mode could be.
pub const FILES: &str = "tests/filetests/x86, by the manual";

/// Instructions that cannot be compared: what they are, what tests them instead.
fn left_out(code: Code) -> Option<(&'static str, &'static str)> {
    let missing = code.cpuid_features().iter().find_map(|f| missing(*f));
    // These are told apart before the host is asked.
    let kernels = matches!(code.mnemonic(), M::Monitor | M::Mwait);
    missing.filter(|(why, _)| !kernels || *why == NOT_OURS).or(match code.mnemonic() {
        M::Syscall | M::Sysenter | M::Int => Some(("enters the host's kernel", SYSTEM)),
        M::Iret | M::Iretd | M::Iretq | M::Retf | M::Sysexit | M::Sysexitq | M::Sysret | M::Sysretq => {
            Some(("loads CS, which the host's kernel owns", SYSTEM))
        }
        M::Lfs | M::Lgs | M::Lss | M::Lds | M::Les => Some(("loads a segment register from the host's tables", SYSTEM)),
        M::Lar | M::Lsl | M::Verr | M::Verw => Some(("reads the host's descriptor tables", SYSTEM)),
        M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw => Some(("the host's kernel emulates it for user mode", SYSTEM)),
        M::Rdfsbase | M::Wrfsbase | M::Rdgsbase | M::Wrgsbase => Some(("touches our thread's own segment bases", FILES)),
        M::Monitor | M::Mwait => Some(("for the kernel alone, with rules of their own", SYSTEM)),
        M::Int1 => Some(("a virtual host's own return address differs", SYSTEM)),
        M::Reservednop if format!("{code:?}").ends_with("0F0D") => Some(("a no-op on Intel's, #UD on AMD's processors", FILES)),
        M::Cpuid | M::Xgetbv => Some(("tells of the machine", "the unit tests of arch-x86")),
        M::Rdtsc | M::Rdtscp | M::Rdpmc | M::Rdpid | M::Rdrand | M::Rdseed => Some(("no two runs give the same", FILES)),
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 | M::Xrstor | M::Xrstor64 => {
            Some(("what it writes depends on the history of the host's registers", "frontend-x86/src/hostfp/tests/avx_state.rs"))
        }
        _ if matches!(code.op_code().op_code_string(), s if s.contains("FF /3") || s.contains("FF /5")) => {
            Some(("loads CS, which the host's kernel owns", SYSTEM))
        }
        _ if code.is_jmp_far() || code.is_call_far() => Some(("loads CS, which the host's kernel owns", SYSTEM)),
        M::Mov | M::Pop if (0..code.op_code().op_count()).take(1).any(|k| is_sreg(code, k)) => {
            Some(("loads a segment register from the host's tables", SYSTEM))
        }
        _ => None,
    })
}

fn is_sreg(code: Code, op: u32) -> bool {
    use iced_x86::OpCodeOperandKind as K;
    matches!(code.op_code().op_kind(op), K::seg_reg | K::es | K::cs | K::ss | K::ds | K::fs | K::gs)
}

/// Features and `-cpu`'s names of them.
const FEATURES: &[(F, &str)] = &[
    (F::MMX, "mmx"),
    (F::SSE, "sse"),
    (F::SSE2, "sse2"),
    (F::SSE3, "pni"),
    (F::SSSE3, "ssse3"),
    (F::SSE4_1, "sse4.1"),
    (F::SSE4_2, "sse4.2"),
    (F::SSE4A, "sse4a"),
    (F::AES, "aes"),
    (F::PCLMULQDQ, "pclmulqdq"),
    (F::SHA, "sha-ni"),
    (F::AVX, "avx"),
    (F::AVX2, "avx2"),
    (F::FMA, "fma"),
    (F::F16C, "f16c"),
    (F::VAES, "vaes"),
    (F::VPCLMULQDQ, "vpclmulqdq"),
    (F::GFNI, "gfni"),
    (F::BMI1, "bmi1"),
    (F::BMI2, "bmi2"),
    (F::LZCNT, "abm"),
    (F::POPCNT, "popcnt"),
    (F::MOVBE, "movbe"),
    (F::ADX, "adx"),
    (F::CX8, "cx8"),
    (F::CMPXCHG16B, "cx16"),
    (F::CMOV, "cmov"),
    (F::FXSR, "fxsr"),
    (F::XSAVE, "xsave"),
    (F::XSAVEOPT, "xsaveopt"),
    (F::XSAVEC, "xsavec"),
    (F::XSAVES, "xsaves"),
    (F::RDRAND, "rdrand"),
    (F::RDSEED, "rdseed"),
    (F::RDTSCP, "rdtscp"),
    (F::RDPID, "rdpid"),
    (F::FSGSBASE, "fsgsbase"),
    (F::MONITOR, "monitor"),
    (F::CLFSH, "clflush"),
    (F::CLFLUSHOPT, "clflushopt"),
    (F::CLWB, "clwb"),
    (F::PKU, "pku"),
    (F::SMAP, "smap"),
    (F::INVPCID, "invpcid"),
    (F::PREFETCHW, "3dnowprefetch"),
    (F::SYSCALL, "syscall"),
    (F::SEP, "sep"),
    (F::TSC, "tsc"),
    (F::MSR, "msr"),
    (F::FPU, "fpu"),
];

/// What every x86-64 processor has.
const BASE: &[F] = &[
    F::INTEL8086,
    F::INTEL8086_ONLY,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::FPU287,
    F::FPU387,
    F::CPUID,
    F::MULTIBYTENOP,
    F::PAUSE,
];

/// What is missing for a feature: it is not implemented, or the host has none.
fn missing(f: F) -> Option<(&'static str, &'static str)> {
    if BASE.contains(&f) {
        return None;
    }
    let name = FEATURES.iter().find(|(g, _)| *g == f).map(|(_, n)| *n);
    match name.and_then(features::find) {
        Some(g) if g.is_in(&features::implemented()) => {
            (!g.is_in(&host_words())).then_some(("the host has no such instructions", FILES))
        }
        _ => Some((NOT_OURS, "")),
    }
}

/// Why a form is none of ours.
pub const NOT_OURS: &str = "not implemented: #UD";

/// The host's feature words in the order of `Word`.
pub fn host_words() -> [u32; 8] {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let (l1, ext, l7, xs) = (__cpuid(1), __cpuid(0x8000_0001), __cpuid_count(7, 0), __cpuid_count(0xd, 1));
    let mut w = [0; 8];
    for (word, v) in [
        (Word::L1Edx, l1.edx),
        (Word::L1Ecx, l1.ecx),
        (Word::ExtEdx, ext.edx),
        (Word::ExtEcx, ext.ecx),
        (Word::L7Ebx, l7.ebx),
        (Word::L7Ecx, l7.ecx),
        (Word::L7Edx, l7.edx),
        (Word::XsaveEax, xs.eax),
    ] {
        w[word as usize] = v;
    }
    w
}
