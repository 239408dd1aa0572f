//! Random sequences of vector instructions on every engine: the JIT's forms of vector ops against the reference.

use iced_x86::{CpuidFeature as F, Decoder, DecoderOptions, Instruction, Mnemonic as M, OpKind};
use rhea_tests::x86::{CODE, ENGINES, Guest, Stop};
use vm_core::testing::Rng;

/// Where the memory operand, [RSI], lies.
const DATA: u64 = 0x3000;
const PROGRAMS: usize = 120;
const LENGTH: usize = 24;

/// Lanes of small numbers, edges and random bits.
fn vector(r: &mut Rng) -> u128 {
    const EDGES: [u64; 6] = [0, !0, 1 << 63, 0x8080_8080_8080_8080, 0x7fff_8000_7fff_8000, 0x8000_0000_7fff_ffff];
    let mut word = || match r.below(4) {
        0 => r.next_u64() & 0x0f1f_071f_003f_0007,
        1 => r.pick(&EDGES),
        _ => r.next_u64(),
    };
    u128::from(word()) << 64 | u128::from(word())
}

/// An integer vector instruction on registers or [RSI], legacy or VEX.
fn instruction(r: &mut Rng) -> Option<Vec<u8>> {
    let (x, imm) = (r.next_u64(), r.next_u64() as u8);
    let byte = |n: u32| (x >> (8 * n)) as u8;
    let modrm = if x >> 62 == 0 { byte(0) & 0x38 | 6 } else { byte(0) | 0xc0 };
    let map = byte(1) % 3;
    let head = if x >> 61 & 1 == 0 {
        let escape: &[u8] = [&[0x0f][..], &[0x0f, 0x38], &[0x0f, 0x3a]][usize::from(map)];
        [&[0x66][..], escape].concat()
    } else {
        // W = 0, pp = 66.
        vec![0xc4, 0xe1 + map, byte(2) & 0x7c | 1]
    };
    let bytes = [&head[..], &[byte(3), modrm, imm]].concat();
    let i = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
    usable(&i).then(|| bytes[..i.len()].to_vec())
}

fn usable(i: &Instruction) -> bool {
    let known = |f: &F| {
        matches!(
            f,
            F::SSE2 | F::SSSE3 | F::SSE4_1 | F::SSE4_2 | F::AVX | F::AVX2 | F::AES | F::PCLMULQDQ | F::VAES | F::VPCLMULQDQ
        )
    };
    let vectors_only = (0..i.op_count()).all(|k| i.op_kind(k) != OpKind::Register || i.op_register(k).is_vector_register());
    // Their addresses come from other registers.
    let elsewhere = matches!(i.mnemonic(), M::Maskmovdqu | M::Vmaskmovdqu) || i.memory_index().is_vector_register();
    !i.is_invalid() && vectors_only && !elsewhere && i.cpuid_features().iter().all(known)
}

fn text(code: &[u8]) -> String {
    Decoder::with_ip(64, code, CODE, DecoderOptions::NONE).iter().map(|i| format!("{i}\n")).collect()
}

fn start(code: &[u8], r: &mut Rng) -> Guest {
    let mut g = Guest::new(64).expect("64-bit mode");
    g.memory.extend((CODE..).zip(code.iter().copied()));
    let data = [vector(r), vector(r)].map(u128::to_le_bytes).concat();
    g.memory.extend((DATA..).zip(data));
    g.cpu.gpr[6] = DATA;
    g.cpu.xmm.iter_mut().for_each(|x| *x = vector(r));
    g.cpu.ymmh.iter_mut().for_each(|x| *x = vector(r));
    g
}

#[test]
fn engines_agree_on_vector_instructions() {
    let mut r = Rng(0x9e37_79b9_7f4a_7c15);
    let mut kinds = std::collections::BTreeSet::new();
    for _ in 0..PROGRAMS {
        let mut code = Vec::new();
        for _ in 0..LENGTH {
            let i = std::iter::repeat_with(|| instruction(&mut r)).flatten().next().expect("random bytes hold some");
            kinds.insert(Decoder::new(64, &i, DecoderOptions::NONE).decode().mnemonic() as u32);
            code.extend(i);
        }
        let seed = r.next_u64();
        let mut reference = start(&code, &mut Rng(seed));
        assert_eq!(ENGINES[0].run(&mut reference, code.len()), Ok(Stop::Left), "{}", text(&code));
        for e in &ENGINES[1..] {
            let mut g = start(&code, &mut Rng(seed));
            assert_eq!(e.run(&mut g, code.len()), Ok(Stop::Left), "{}: {}", e.name(), text(&code));
            let wrong = (0..16).find(|i| g.cpu.xmm[*i] != reference.cpu.xmm[*i] || g.cpu.ymmh[*i] != reference.cpu.ymmh[*i]);
            assert_eq!(wrong, None, "{}: that register differs after\n{}", e.name(), text(&code));
            assert_eq!((g.cpu.rflags(), &g.memory), (reference.cpu.rflags(), &reference.memory), "{}: {}", e.name(), text(&code));
        }
    }
    assert!(kinds.len() > 150, "only {} instructions were tried", kinds.len());
}

/// Instructions of the later opcode maps with any bytes, registers and control state: some outcome, no panic.
#[test]
fn any_bytes_of_the_later_maps_have_an_outcome() {
    let mut r = Rng(17);
    let mut left = 0;
    for _ in 0..40_000 {
        let x = r.next_u64().to_le_bytes();
        let head: &[u8] = match r.below(6) {
            0 => &[0xc4, 0xe1 + x[0] % 3, x[1]],
            1 => &[0xc5, x[1]],
            2 => &[0x66, 0x0f, 0x38],
            3 => &[0x66, 0x0f, 0x3a],
            4 => &[r.pick(&[0xf2, 0xf3, 0x48]), 0x0f, 0x38],
            _ => &[0x0f, r.pick(&[0xae, 0xc7, 0x01])],
        };
        let code = [head, &x[2..], &[0; 4]].concat();
        let mut g = start(&code, &mut r);
        g.cpu.gpr = std::array::from_fn(|_| if r.one_in(2) { r.next_u64() } else { DATA + r.below(64) });
        g.cpu.mxcsr = r.next_u64() as u32 & 0xffff;
        g.cpu.cr0 |= r.pick(&[0, 0, 0, 8]);
        g.cpu.update_mode();
        let stop = ENGINES[0].run(&mut g, code.len() - 4).map(|s| s == Stop::Left);
        left += u32::from(stop == Ok(true));
    }
    assert!(left > 1000, "only {left} ran to their end");
}
