//! The comparison with the host, over all encodings.

use super::Area;
use super::guest::Guest;
use super::native::Runner;
use iced_x86::{CpuidFeature as F, Decoder, DecoderOptions, Instruction, Mnemonic as M, OpKind};
use ir::interp::Outcome;
use std::collections::BTreeSet;
use vm_core::testing::Rng;

fn decode(bytes: &[u8]) -> Option<Instruction> {
    let i = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).decode();
    let wanted = |f: &F| {
        matches!(f, F::MMX | F::SSE | F::SSE2 | F::SSE3 | F::FPU | F::FPU287 | F::FPU387)
            || *f == F::CMOV && (0xd8..=0xdf).contains(&bytes[0])
            || later_feature(*f)
    };
    let ours = !i.is_invalid() && i.cpuid_features().iter().all(wanted);
    // General registers other than RAX, RCX, RDX hold the test's own pointers.
    let safe = (0..i.op_count())
        .all(|k| i.op_kind(k) != OpKind::Register || !i.op_register(k).is_gpr() || i.op_register(k).number() < 3);
    // Those with no random operands (LDMXCSR), another address (MASKMOV), or none of this topic.
    let skipped = matches!(
        i.mnemonic(),
        M::Ldmxcsr
            | M::Vldmxcsr
            | M::Vmaskmovdqu
            | M::Crc32
            | M::Maskmovq
            | M::Maskmovdqu
            | M::Lfence
            | M::Mfence
            | M::Sfence
            | M::Clflush
            | M::Pause
            | M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Reservednop
            | M::Nop
    );
    // Gathers compute addresses from vector registers: they have a test of their own.
    let gathers = i.memory_index().is_vector_register();
    (ours && safe && !skipped && !gathers).then_some(i)
}

/// Features after SSE3 that are compared here, their names, and whether the host has them.
fn later_features() -> [(F, &'static str, bool); 13] {
    use std::is_x86_feature_detected as has;
    [
        (F::SSSE3, "SSSE3", has!("ssse3")),
        (F::SSE4_1, "SSE4.1", has!("sse4.1")),
        (F::SSE4_2, "SSE4.2", has!("sse4.2")),
        (F::SSE4A, "SSE4A", has!("sse4a")),
        (F::AES, "AES", has!("aes")),
        (F::PCLMULQDQ, "PCLMULQDQ", has!("pclmulqdq")),
        (F::SHA, "SHA", has!("sha")),
        (F::AVX, "AVX", has!("avx")),
        (F::AVX2, "AVX2", has!("avx2")),
        (F::FMA, "FMA", has!("fma")),
        (F::F16C, "F16C", has!("f16c")),
        (F::VAES, "VAES", has!("vaes")),
        (F::VPCLMULQDQ, "VPCLMULQDQ", has!("vpclmulqdq")),
    ]
}

fn later_feature(f: F) -> bool {
    later_features().iter().any(|(g, _, there)| *g == f && *there)
}

#[test]
fn the_host_has_what_is_compared() {
    for (_, name, _) in later_features().iter().filter(|f| !f.2) {
        vm_core::testing::left_out(&format!("instructions of {name}: the host has none to compare with"));
    }
}

/// Registers and [RSI] as ModRM bytes: every reg field, two r/m registers.
fn modrms() -> impl Iterator<Item = u8> {
    (0..8u8).flat_map(|reg| [0x06 | reg << 3, 0xc2 | reg << 3, 0xc1 | reg << 3])
}

fn sse_encodings() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    for prefix in [&[][..], &[0x66], &[0xf3], &[0xf2]] {
        for rex in [&[][..], &[0x48]] {
            for opcode in (0..=255u8).filter(|o| !matches!(o, 0x38 | 0x3a)) {
                for modrm in modrms() {
                    let bytes = [prefix, rex, &[0x0f, opcode, modrm, 0x5a, 0, 0, 0, 0]].concat();
                    if let Some(i) = decode(&bytes) {
                        out.push(bytes[..i.len()].to_vec());
                    }
                }
            }
        }
    }
    out.sort();
    out.dedup();
    out
}

/// Legacy encodings of the maps 0F 38 and 0F 3A.
fn long_encodings() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut r = Rng(5);
    for prefix in [&[][..], &[0x66], &[0xf3], &[0xf2]] {
        for (rex, map) in [(&[][..], 0x38), (&[], 0x3a), (&[0x48], 0x38), (&[0x48], 0x3a)] {
            for opcode in 0..=255u8 {
                for modrm in modrms() {
                    let imms = if map == 0x3a { 6 } else { 1 };
                    for _ in 0..imms {
                        let bytes = [prefix, rex, &[0x0f, map, opcode, modrm, r.next_u64() as u8, 0, 0, 0]].concat();
                        if let Some(i) = decode(&bytes) {
                            out.push(bytes[..i.len()].to_vec());
                        }
                    }
                }
            }
        }
    }
    out.sort();
    out.dedup();
    out
}

/// VEX encodings: all maps, widths and W, destinations and sources the same or not.
fn vex_encodings() -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut r = Rng(6);
    for opcode in 0..=255u8 {
        for (map, second) in (1..4u8).flat_map(|m| (0..16u8).map(move |s| (m, s))) {
            // W, L and pp in the third byte.
            let third = (second & 8) << 4 | second & 7;
            let imms = if map == 3 || map == 1 && matches!(opcode, 0x70..=0x73 | 0xc2..=0xc6) { 12 } else { 4 };
            for _ in 0..imms {
                for memory in [true, false] {
                    let (reg, rm, v) = (r.below(8) as u8, r.below(3) as u8, r.below(4) as u8);
                    let modrm = reg << 3 | if memory { 6 } else { 0xc0 | rm };
                    for v in [v, 0] {
                        // VEX.R, X, B are inverted: register numbers below 8.
                        let bytes = [
                            0xc4,
                            0xe0 | map,
                            third | (!v & 15) << 3,
                            opcode,
                            modrm,
                            r.next_u64() as u8,
                            r.next_u64() as u8,
                            0,
                            0,
                        ];
                        if let Some(i) = decode(&bytes) {
                            out.push(bytes[..i.len()].to_vec());
                        }
                    }
                }
            }
        }
    }
    out.sort();
    out.dedup();
    out
}

fn x87_encodings() -> Vec<Vec<u8>> {
    let modrm = || (0..8u8).map(|r| r << 3 | 6).chain(0xc0..=0xff);
    (0xd8..=0xdfu8)
        .flat_map(|op| modrm().map(move |m| vec![op, m]))
        .filter(|b| decode(&[b[0], b[1], 0, 0, 0, 0, 0, 0]).is_some())
        .collect()
}

/// Puts what is undefined or not kept to 0 on both sides.
fn normalize(a: &mut Area, i: &Instruction) {
    // FOP, FIP, FDP, MXCSR_MASK, reserved parts.
    a.fx[5] = 0;
    a.fx[6..24].fill(0);
    a.fx[28..32].fill(0);
    for r in 0..8 {
        a.fx[32 + 16 * r + 10..][..6].fill(0);
    }
    a.fx[416..].fill(0);
    a.gpr[3] &= 0x8d5;
    // C1 is undefined, cleared or kept (SDM and AMD's manual differ).
    let c1_open = [M::Fcomi, M::Fcomip, M::Fucomi, M::Fucomip, M::Ffree, M::Ffreep, M::Fcmovb, M::Fcmovnb, M::Fcmove, M::Fcmovne];
    if c1_open.contains(&i.mnemonic()) || matches!(i.mnemonic(), M::Fcmovbe | M::Fcmovnbe | M::Fcmovu | M::Fcmovnu) {
        a.fx[3] &= !2;
    }
    // The upper half of a bit field's register is undefined.
    if matches!(i.mnemonic(), M::Extrq | M::Insertq) {
        let at = 160 + 16 * i.op0_register().number();
        a.fx[at + 8..at + 16].fill(0);
    }
    if matches!(i.mnemonic(), M::Fnstenv | M::Fnsave) {
        a.mem[12..28].fill(0);
    }
}

fn hex(b: &[u8]) -> String {
    b.iter().rev().map(|b| format!("{b:02x}")).collect()
}

fn difference(start: &Area, guest: &Area, host: &Area) -> String {
    let mut s = format!(
        "start fcw {} fsw {} ftw {} mxcsr {}\n",
        hex(&start.fx[..2]),
        hex(&start.fx[2..4]),
        hex(&start.fx[4..5]),
        hex(&start.fx[24..28])
    );
    let mut cmp = |name: &str, st: &[u8], g: &[u8], h: &[u8]| {
        if g != h {
            s += &format!("{name}: start {} guest {} host {}\n", hex(st), hex(g), hex(h));
        }
    };
    for (name, at, n) in [("fcw", 0, 2), ("fsw", 2, 2), ("ftw", 4, 1), ("mxcsr", 24, 4)] {
        cmp(name, &start.fx[at..at + n], &guest.fx[at..at + n], &host.fx[at..at + n]);
    }
    for i in 0..8 {
        let r = 32 + 16 * i..42 + 16 * i;
        cmp(&format!("st{i}"), &start.fx[r.clone()], &guest.fx[r.clone()], &host.fx[r]);
    }
    for i in 0..16 {
        let r = 160 + 16 * i..176 + 16 * i;
        cmp(&format!("xmm{i}"), &start.fx[r.clone()], &guest.fx[r.clone()], &host.fx[r]);
    }
    for i in 0..16 {
        let r = 16 * i..16 + 16 * i;
        cmp(&format!("ymmh{i}"), &start.upper[r.clone()], &guest.upper[r.clone()], &host.upper[r]);
    }
    for i in 0..4 {
        cmp(&format!("gpr{i}"), &start.gpr[i].to_le_bytes(), &guest.gpr[i].to_le_bytes(), &host.gpr[i].to_le_bytes());
    }
    cmp("mem", &start.mem[..32], &guest.mem[..32], &host.mem[..32]);
    for i in 0..8 {
        s += &format!("  st{i} {}\n", hex(&start.fx[32 + 16 * i..42 + 16 * i]));
    }
    for i in 1..3 {
        s += &format!("  xmm{i} {}\n", hex(&start.fx[160 + 16 * i..176 + 16 * i]));
    }
    s += &format!("  mem {}\n", hex(&start.mem[..16]));
    s
}

/// Runs `cases` random states through `bytes` on both sides.
fn compare(g: &mut Guest, r: &mut Rng, bytes: &[u8], cases: u32, failures: &mut Vec<String>) {
    let insn = decode(&[bytes, &[0; 8]].concat()).expect("filtered before");
    let runner = Runner::new(bytes);
    g.translate(bytes);
    let (mut guest, mut host) = (Area::zeroed(), Area::zeroed());
    for n in 0..cases {
        guest.randomize(r, n % 3 == 0);
        if insn.cpuid_features().iter().all(|f| !matches!(f, F::FPU | F::FPU287 | F::FPU387)) {
            // MMX instructions report pending exceptions; there are none.
            guest.fx[0] |= 0x3f;
        }
        let start = guest.clone();
        (*host).clone_from(&guest);
        let outcome = g.run(&mut guest);
        runner.run(&mut host);
        normalize(&mut guest, &insn);
        normalize(&mut host, &insn);
        let ended = matches!(outcome, Outcome::Jump { .. } | Outcome::ExitNext { .. });
        if !ended || guest.fx != host.fx || guest.gpr != host.gpr || guest.mem != host.mem || guest.upper != host.upper {
            failures.push(format!("{insn} {bytes:02x?} case {n}: {outcome:?}\n{}", difference(&start, &guest, &host)));
            return;
        }
    }
}

fn check(list: Vec<Vec<u8>>, least: usize, cases: u32) {
    let mnemonics: BTreeSet<_> =
        list.iter().filter_map(|b| decode(&[b, &[0; 8][..]].concat())).map(|i| i.mnemonic() as u32).collect();
    assert!(mnemonics.len() >= least, "only {} instructions found", mnemonics.len());
    let (mut g, mut r, mut failures) = (Guest::new(), Rng(1), Vec::new());
    for bytes in &list {
        compare(&mut g, &mut r, bytes, cases, &mut failures);
    }
    // One failure for each instruction.
    failures.sort();
    failures.dedup_by_key(|f| f.split_whitespace().next().unwrap_or_default().to_owned());
    assert!(
        failures.is_empty(),
        "{} instructions (of {} encodings) differ:\n{}",
        failures.len(),
        list.len(),
        failures[..failures.len().min(40)].join("\n")
    );
}

#[test]
fn mmx_and_sse_match_the_host() {
    check(sse_encodings(), 175, 60);
}

#[test]
fn ssse3_to_sse4_and_crypto_match_the_host() {
    check(long_encodings(), 85, 60);
}

#[test]
fn avx_matches_the_host() {
    check(vex_encodings(), 0, 24);
}

#[test]
fn x87_matches_the_host() {
    check(x87_encodings(), 80, 400);
}
