//! Exceptions, access checks and whole-state instructions, which the comparison of single results does not reach.

use super::Area;
use super::guest::Guest;
use super::native::Runner;
use ir::interp::Outcome;
use vm_core::testing::Rng;

/// Runs `bytes` in the guest on `a`.
fn guest(g: &mut Guest, bytes: &[u8], a: &mut Area) -> Outcome<vm_core::Fault> {
    g.cpu.mxcsr = u32::from_le_bytes([a.fx[24], a.fx[25], a.fx[26], a.fx[27]]);
    g.cpu.update_mode();
    g.translate(bytes);
    g.run(a)
}

fn set_mxcsr(a: &mut Area, v: u32) {
    a.fx[24..28].copy_from_slice(&v.to_le_bytes());
}

#[test]
fn unmasked_sse_exceptions_fault_before_the_result_is_written() {
    const ADDSD: &[u8] = &[0xf2, 0x0f, 0x58, 0xca]; // addsd xmm1, xmm2
    const DIVSD: &[u8] = &[0xf2, 0x0f, 0x5e, 0xca];
    let denormal = 1u64.to_le_bytes();
    // Instruction, operands, mask bit cleared, flags that follow.
    type Case = (&'static [u8], [u8; 8], [u8; 8], u32, u32);
    let cases: [Case; 5] = [
        (DIVSD, 1f64.to_le_bytes(), 0f64.to_le_bytes(), 1 << 9, 1 << 2),
        (DIVSD, 1f64.to_le_bytes(), 3f64.to_le_bytes(), 1 << 12, 1 << 5),
        (ADDSD, f64::INFINITY.to_le_bytes(), f64::NEG_INFINITY.to_le_bytes(), 1 << 7, 1),
        // The denormal is found before the sum turns out inexact.
        (ADDSD, 1f64.to_le_bytes(), denormal, 1 << 8, 1 << 1),
        // Tiny and exact: signalled because underflow is unmasked. DE is masked but set.
        (ADDSD, denormal, 0f64.to_le_bytes(), 1 << 11, 1 << 4 | 1 << 1),
    ];
    let mut g = Guest::new();
    for (bytes, x, y, unmask, flags) in cases {
        let mut a = Area::zeroed();
        a.randomize(&mut Rng(7), false);
        a.fx[176..184].copy_from_slice(&x);
        a.fx[192..200].copy_from_slice(&y);
        set_mxcsr(&mut a, 0x1f80 & !unmask);
        let outcome = guest(&mut g, bytes, &mut a);
        assert_eq!(outcome, Outcome::Fault { at: 0, fault: arch_x86::fault::xm() });
        assert_eq!(a.fx[176..184], x);
        assert_eq!(u32::from_le_bytes([a.fx[24], a.fx[25], a.fx[26], a.fx[27]]), 0x1f80 & !unmask | flags);
        g.cpu.cr4 &= !arch_x86::state::cr4::OSXMMEXCPT;
        assert_eq!(guest(&mut g, bytes, &mut a), Outcome::Fault { at: 0, fault: arch_x86::fault::ud() });
        g.cpu.cr4 |= arch_x86::state::cr4::OSXMMEXCPT;
    }
}

#[test]
fn nothing_runs_when_the_control_registers_forbid_it() {
    use arch_x86::fault::vector::{MF, NM, UD};
    use arch_x86::state::{cr0, cr4};
    const PXOR_XMM: &[u8] = &[0x66, 0x0f, 0xef, 0xca];
    const PXOR_MM: &[u8] = &[0x0f, 0xef, 0xca];
    const FADD: &[u8] = &[0xd8, 0xc1];
    const WAIT: &[u8] = &[0x9b];
    let raise = |bytes: &[u8], cr0_on: u64, cr4_off: u64, es: bool| {
        let mut g = Guest::new();
        g.cpu.cr0 |= cr0_on;
        g.cpu.cr4 &= !cr4_off;
        g.cpu.update_mode();
        let mut a = Area::zeroed();
        set_mxcsr(&mut a, 0x1f80);
        if es {
            (a.fx[0], a.fx[2]) = (0x7e, 0x81);
        }
        match guest(&mut g, bytes, &mut a) {
            Outcome::Raise { vector, .. } => Some(vector),
            Outcome::Fault { fault, .. } => Some(fault.vector),
            _ => None,
        }
    };
    for (bytes, em, ts, no_osfxsr) in [(PXOR_XMM, UD, NM, Some(UD)), (PXOR_MM, UD, NM, None), (FADD, NM, NM, None)] {
        assert_eq!(raise(bytes, 0, 0, false), None, "{bytes:02x?}");
        assert_eq!(raise(bytes, cr0::EM, 0, false), Some(em), "{bytes:02x?}");
        assert_eq!(raise(bytes, cr0::TS, 0, false), Some(ts), "{bytes:02x?}");
        assert_eq!(raise(bytes, 0, cr4::OSFXSR, false), no_osfxsr, "{bytes:02x?}");
    }
    assert_eq!(raise(WAIT, cr0::TS, 0, false), None);
    assert_eq!(raise(WAIT, cr0::TS | cr0::MP, 0, false), Some(NM));
    for bytes in [FADD, PXOR_MM, WAIT] {
        assert_eq!(raise(bytes, 0, 0, true), Some(MF), "{bytes:02x?}");
    }
    assert_eq!(raise(PXOR_XMM, 0, 0, true), None);
}

#[test]
fn aligned_operands_and_reserved_mxcsr_bits_are_checked() {
    use arch_x86::fault::vector::GP;
    let gp = Outcome::Raise { at: 0, vector: GP, error: Some(0) };
    let mut g = Guest::new();
    let mut a = Area::zeroed();
    set_mxcsr(&mut a, 0x1f80);
    assert_eq!(guest(&mut g, &[0x0f, 0x28, 0x4e, 0x08], &mut a), gp); // movaps xmm1, [rsi+8]
    assert!(matches!(guest(&mut g, &[0x0f, 0x10, 0x4e, 0x08], &mut a), Outcome::Jump { .. })); // movups
    a.mem[2] = 1;
    assert_eq!(guest(&mut g, &[0x0f, 0xae, 0x16], &mut a), gp); // ldmxcsr [rsi]
    a.mem[..4].copy_from_slice(&0x9fc0u32.to_le_bytes());
    assert!(matches!(guest(&mut g, &[0x0f, 0xae, 0x16], &mut a), Outcome::ExitNext { .. }));
    assert_eq!(a.fx[24..28], 0x9fc0u32.to_le_bytes());
}

/// Where alignment is checked (CPL 3, EFLAGS.AC, CR0.AM): to how many bytes each form must be aligned, as AMD's processors have
/// it, and the exception.
#[test]
fn alignment_is_checked_to_the_size_of_elements() {
    use arch_x86::fault::vector::{AC, GP};
    let rows: [(&[u8], i8, u8); 20] = [
        (&[0x0f, 0x10, 0x4e], 16, AC),             // movups xmm1, [rsi+d]
        (&[0xf3, 0x0f, 0x7f, 0x4e], 16, AC),       // movdqu [rsi+d], xmm1
        (&[0x0f, 0x28, 0x4e], 16, GP),             // movaps
        (&[0x0f, 0x58, 0x4e], 16, GP),             // addps
        (&[0xc5, 0xf0, 0x58, 0x4e], 16, AC),       // vaddps xmm1, xmm1, [rsi+d]
        (&[0xc5, 0xfc, 0x10, 0x4e], 16, AC),       // vmovups ymm1
        (&[0xc5, 0xfc, 0x11, 0x4e], 16, AC),       // vmovups [rsi+d], ymm1
        (&[0xc5, 0xf4, 0x58, 0x4e], 16, AC),       // vaddps ymm1
        (&[0xc5, 0xfc, 0x28, 0x4e], 32, GP),       // vmovaps ymm1
        (&[0xc4, 0xe2, 0x7d, 0x30, 0x4e], 16, AC), // vpmovzxbw ymm1, [rsi+d]
        (&[0x66, 0x0f, 0x38, 0x30, 0x4e], 8, AC),  // pmovzxbw xmm1
        (&[0xf3, 0x0f, 0x10, 0x4e], 4, AC),        // movss
        (&[0x0f, 0x16, 0x4e], 8, AC),              // movhps
        (&[0xc4, 0xe2, 0x71, 0x2c, 0x4e], 1, AC),  // vmaskmovps xmm1, xmm1, [rsi+d]
        (&[0xdb, 0x6e], 8, AC),                    // fld tbyte [rsi+d]
        (&[0xdd, 0x46], 8, AC),                    // fld qword
        (&[0xd9, 0x76], 4, AC),                    // fnstenv
        (&[0x66, 0xd9, 0x76], 2, AC),              // fnstenv of 14 bytes
        (&[0xdd, 0x76], 4, AC),                    // fnsave
        (&[0x0f, 0x6f, 0x4e], 8, AC),              // movq mm1
    ];
    let mut g = Guest::new();
    g.cpu.cr0 |= arch_x86::state::cr0::AM;
    g.cpu.cpl = 3;
    for (bytes, align, vector) in rows {
        for d in 0..33i8 {
            let mut a = Area::zeroed();
            set_mxcsr(&mut a, 0x1f80);
            a.gpr[3] = arch_x86::flags::bit::AC;
            g.cpu.set_rflags(a.gpr[3]);
            let outcome = guest(&mut g, &[bytes, &[d as u8]].concat(), &mut a);
            let raised = match outcome {
                Outcome::Raise { vector, .. } => Some(vector),
                Outcome::Fault { fault, .. } => Some(fault.vector),
                _ => None,
            };
            assert_eq!(raised, (d % align != 0).then_some(vector), "{bytes:02x?} at {d}");
        }
    }
    // With AC clear nothing is checked.
    g.cpu.set_rflags(0);
    let mut a = Area::zeroed();
    set_mxcsr(&mut a, 0x1f80);
    assert!(matches!(guest(&mut g, &[0x0f, 0x10, 0x4e, 1], &mut a), Outcome::Jump { .. }));
    // Elements of gathers: vpgatherdd xmm0, [rsi+xmm1+1], xmm2.
    let mut a = Area::zeroed();
    set_mxcsr(&mut a, 0x1f80);
    a.gpr[3] = arch_x86::flags::bit::AC;
    a.fx[192..208].fill(0xff);
    g.cpu.set_rflags(a.gpr[3]);
    let outcome = guest(&mut g, &[0xc4, 0xe2, 0x69, 0x90, 0x44, 0x0e, 0x01], &mut a);
    assert_eq!(outcome, Outcome::Fault { at: 0, fault: arch_x86::fault::ac() });
}

/// Zeroes what the CPU models differ in: FOP, instruction and data pointers, MXCSR_MASK.
fn mask_pointers(image: &mut [u8]) {
    image[5..24].fill(0);
    image[28..32].fill(0);
}

#[test]
fn fxsave_and_fxrstor_match_the_host() {
    let (mut g, mut r) = (Guest::new(), Rng(3));
    for bytes in [&[0x0f, 0xae, 0x06][..], &[0x48, 0x0f, 0xae, 0x06], &[0x0f, 0xae, 0x0e], &[0x48, 0x0f, 0xae, 0x0e]] {
        let runner = Runner::new(bytes);
        for n in 0..200 {
            let mut a = Area::zeroed();
            let mut other = Area::zeroed();
            other.randomize(&mut r, true);
            a.randomize(&mut r, n % 2 == 0);
            a.mem[..512].copy_from_slice(&other.fx);
            let mut host = a.clone();
            let outcome = guest(&mut g, bytes, &mut a);
            runner.run(&mut host);
            for x in [&mut a, &mut host] {
                mask_pointers(&mut x.fx);
                mask_pointers(&mut x.mem);
            }
            assert!(matches!(outcome, Outcome::Jump { .. } | Outcome::ExitNext { .. }));
            assert!(a.fx[..416] == host.fx[..416] && a.mem == host.mem, "{bytes:02x?}, case {n}");
        }
    }
    let mut a = Area::zeroed();
    set_mxcsr(&mut a, 0x1f80);
    a.mem[26] = 1;
    assert!(matches!(guest(&mut g, &[0x0f, 0xae, 0x0e], &mut a), Outcome::Fault { fault, .. } if fault.vector == 13));
    assert!(matches!(guest(&mut g, &[0x0f, 0xae, 0x46, 0x08], &mut a), Outcome::Fault { fault, .. } if fault.vector == 13));
}

#[test]
fn masked_moves_store_selected_bytes() {
    let mut g = Guest::new();
    for (bytes, n) in [(&[0x66, 0x0f, 0xf7, 0xca][..], 16), (&[0x0f, 0xf7, 0xca], 8)] {
        let mut a = Area::zeroed();
        a.randomize(&mut Rng(11), false);
        (a.fx[2], a.fx[3]) = (0, 0);
        let start = a.clone();
        guest(&mut g, bytes, &mut a);
        let reg = |i: usize| if n == 16 { 160 + 16 * i } else { 32 + 16 * i };
        for k in 0..n {
            let selected = start.fx[reg(2) + k] & 0x80 != 0;
            assert_eq!(a.mem[k], if selected { start.fx[reg(1) + k] } else { start.mem[k] }, "byte {k} of {n}");
        }
        assert_eq!(a.mem[n..], start.mem[n..]);
    }
}

/// FNSTENV in its four formats after an FLD at a known place.
#[test]
fn environments_have_the_format_of_the_mode() {
    use arch_x86::state::{Segment, cr0, efer};
    let run = |mode_bits: u16, real: bool, prefix: &[u8]| {
        let mut g = Guest::new();
        g.cpu.efer &= !(efer::LMA | efer::LME);
        g.cpu.cr0 &= !cr0::PG;
        if real {
            g.cpu.cr0 &= !cr0::PE;
        }
        for s in &mut g.cpu.seg {
            s.attr = Segment::P | Segment::S | Segment::RW | if mode_bits == 32 { Segment::DB } else { 0 };
            s.limit = u32::MAX;
        }
        g.cpu.seg[1].attr |= Segment::CODE;
        g.cpu.update_mode();
        let mut a = Area::zeroed();
        set_mxcsr(&mut a, 0x1f80);
        (a.fx[0], a.fx[1], a.fx[2], a.fx[4]) = (0x7f, 3, 0, 1);
        a.fx[8..12].copy_from_slice(&0x0001_2345u32.to_le_bytes());
        a.fx[16..20].copy_from_slice(&0x0006_789au32.to_le_bytes());
        // 32-bit addressing of [esi] in either code size.
        let address: &[u8] = if mode_bits == 16 { &[0x67] } else { &[] };
        let bytes = [prefix, address, &[0xd9, 0x36]].concat();
        assert!(matches!(guest(&mut g, &bytes, &mut a), Outcome::Jump { .. }), "{}", g.text());
        a.mem
    };
    let words = |m: &[u8], at: &[usize]| at.iter().map(|i| u16::from_le_bytes([m[*i], m[*i + 1]])).collect::<Vec<_>>();
    // R0 holds 0.0 with a valid tag: tag 1; the others are empty.
    let tags = 0xfffd;
    let m = run(32, false, &[]);
    assert_eq!(words(&m, &[0, 4, 8, 12, 14, 20, 22]), [0x37f, 0, tags, 0x2345, 1, 0x789a, 6]);
    let m = run(32, false, &[0x66]);
    assert_eq!(words(&m, &[0, 2, 4, 6, 10]), [0x37f, 0, tags, 0x2345, 0x789a]);
    let m = run(16, true, &[]);
    assert_eq!(words(&m, &[0, 2, 4, 6, 8, 10, 12]), [0x37f, 0, tags, 0x2345, 0x1000, 0x789a, 0x6000]);
    let m = run(16, true, &[0x66]);
    assert_eq!(words(&m, &[0, 4, 8, 12, 16, 20, 24]), [0x37f, 0, tags, 0x2345, 0x1000, 0x789a, 0x6000]);
}
