//! Gathers, masked stores, XSAVE and XRSTOR against the host, and unmasked exceptions of 256-bit instructions.

use super::guest::Guest;
use super::native::Runner;
use super::{Area, Rng};
use ir::interp::Outcome;
use vm_core::testing::left_out;

fn ended(o: &Outcome<vm_core::Fault>) -> bool {
    matches!(o, Outcome::Jump { .. } | Outcome::ExitNext { .. })
}

/// Runs `bytes` on both sides from the state that `prepare` makes, and compares everything after `mask`.
fn compare(bytes: &[u8], cases: u32, prepare: impl Fn(&mut Area, &mut Rng), mask: impl Fn(&mut Area)) {
    let (mut g, mut r, runner) = (Guest::new(), Rng(9), Runner::new(bytes));
    g.translate(bytes);
    for n in 0..cases {
        let mut a = Area::zeroed();
        a.randomize(&mut r, false);
        prepare(&mut a, &mut r);
        let mut host = a.clone();
        g.cpu.mxcsr = u32::from_le_bytes([a.fx[24], a.fx[25], a.fx[26], a.fx[27]]);
        let outcome = g.run(&mut a);
        assert!(ended(&outcome), "{bytes:02x?}, case {n}: {outcome:?}");
        runner.run(&mut host);
        for x in [&mut a, &mut host] {
            x.fx[5..24].fill(0);
            x.fx[28..32].fill(0);
            x.fx[416..].fill(0);
            mask(x);
        }
        let at = (0..a.mem.len()).find(|i| a.mem[*i] != host.mem[*i]);
        assert!(a.mem == host.mem, "{bytes:02x?}, case {n}: memory differs at {at:?}");
        assert!(a.fx == host.fx && a.upper == host.upper, "{bytes:02x?}, case {n}");
    }
}

#[test]
fn gathers_match_the_host() {
    if !is_x86_feature_detected!("avx2") {
        return left_out("gathers: the host has no AVX2");
    }
    for opcode in 0x90..=0x93u8 {
        for (w, wide, scale) in (0..16u8).map(|n| (n & 1, n >> 1 & 1, n >> 2)) {
            // Destination XMM0, index XMM1, mask XMM2, base RSI.
            let bytes = [0xc4, 0xe2, w << 7 | (!2 & 15) << 3 | wide << 2 | 1, opcode, 0x04, scale << 6 | 1 << 3 | 6];
            let index_bytes = if opcode & 1 == 0 { 4 } else { 8 };
            let small = move |a: &mut Area, r: &mut Rng| {
                let at = |a: &mut Area, i: usize, v: u8| if i < 16 { a.fx[176 + i] = v } else { a.upper[i] = v };
                for i in 0..32 {
                    let v = if i % index_bytes == 0 { r.below(60) as u8 } else { 0 };
                    at(a, i, v);
                }
            };
            compare(&bytes, 40, small, |_| ());
        }
    }
}

#[test]
fn xsave_and_xrstor_match_the_host() {
    if !is_x86_feature_detected!("xsavec") || !is_x86_feature_detected!("avx") {
        return left_out("XSAVE: the host has no XSAVEC or AVX");
    }
    // The area lies at RSI + 32, a multiple of 64.
    const AT: usize = 32;
    let pointers = |a: &mut Area| {
        a.mem[AT + 5..AT + 24].fill(0);
        a.mem[AT + 28..AT + 32].fill(0);
    };
    // No component is in its initial state: whether the CPU then says so is its own affair (SDM 1 "XINUSE").
    let some_components = |a: &mut Area, r: &mut Rng| (a.gpr[0], a.gpr[2]) = (r.below(8), 0);
    let save = |a: &mut Area, r: &mut Rng| {
        some_components(a, r);
        a.mem[AT + 512..AT + 576].fill(0);
        a.mem[AT + 512] = r.below(8) as u8;
    };
    // XSAVE, XSAVE64; then XSAVEC.
    for bytes in [&[0x0f, 0xae, 0x66, 0x20][..], &[0x48, 0x0f, 0xae, 0x66, 0x20], &[0x0f, 0xc7, 0x66, 0x20]] {
        compare(bytes, 200, save, pointers);
    }
    let image = |a: &mut Area, r: &mut Rng, compacted: bool| {
        some_components(a, r);
        let mut other = Area::zeroed();
        other.randomize(r, false);
        a.mem[AT..AT + 512].copy_from_slice(&other.fx);
        a.mem[AT + 512..AT + 576].fill(0);
        a.mem[AT + 512] = r.below(8) as u8;
        a.mem[AT + 576..AT + 832].copy_from_slice(&other.upper);
        if compacted {
            a.mem[AT + 520] = 7;
            a.mem[AT + 527] = 0x80;
        }
    };
    for bytes in [&[0x0f, 0xae, 0x6e, 0x20][..], &[0x48, 0x0f, 0xae, 0x6e, 0x20]] {
        compare(bytes, 200, |a, r| image(a, r, false), |_| ());
        compare(bytes, 200, |a, r| image(a, r, true), |_| ());
    }
}

#[test]
fn unmasked_exceptions_of_either_half_fault_before_anything_is_written() {
    use arch_x86::fault;
    // vdivpd ymm0, ymm1, ymm2; vcvtpd2ps xmm0, ymm1; vfmadd231pd ymm0, ymm1, ymm2
    let cases: [(&[u8], u32); 3] =
        [(&[0xc5, 0xf5, 0x5e, 0xc2], 1 << 9), (&[0xc5, 0xfd, 0x5a, 0xc1], 1 << 12), (&[0xc4, 0xe2, 0xf5, 0xb8, 0xc2], 1 << 7)];
    for (bytes, unmask) in cases {
        let mut g = Guest::new();
        let mut a = Area::zeroed();
        a.randomize(&mut Rng(3), false);
        a.fx[24..28].copy_from_slice(&(0x1f80 & !unmask).to_le_bytes());
        // Only the highest lane is at fault: 1 / 0, 2^1000 made single, infinity times 0.
        for (reg, v) in [(1, 1f64), (2, 1f64)] {
            a.fx[160 + 16 * reg..][..16].copy_from_slice(&[v.to_le_bytes(), v.to_le_bytes()].concat());
            a.upper[16 * reg..][..16].copy_from_slice(&[v.to_le_bytes(), v.to_le_bytes()].concat());
        }
        let (x, y) = match unmask {
            0x200 => (1.0, 0.0),
            0x1000 => (1.0 + 1e-12, 1.0),
            _ => (f64::INFINITY, 0.0),
        };
        a.upper[24..32].copy_from_slice(&f64::to_le_bytes(x));
        a.upper[40..48].copy_from_slice(&f64::to_le_bytes(y));
        let before = a.clone();
        g.cpu.mxcsr = 0x1f80 & !unmask;
        g.cpu.update_mode();
        g.translate(bytes);
        assert_eq!(g.run(&mut a), Outcome::Fault { at: 0, fault: fault::xm() }, "{bytes:02x?}");
        assert!(a.fx[160..416] == before.fx[160..416] && a.upper == before.upper, "{bytes:02x?}");
    }
}
