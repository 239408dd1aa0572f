//! Every block the translator makes is well formed, whatever the bytes; and the shape of typical blocks.

use super::*;
use ir::verify::verify;

struct Page(Box<[u8; PAGE]>);

impl CodeFetch for Page {
    type Fault = ();
    fn page(&self) -> &[u8; PAGE] {
        &self.0
    }
    fn next_page(&mut self) -> Result<&[u8; PAGE], ()> {
        Ok(&self.0)
    }
}

/// Code at offset 0, then no-ops.
fn page(code: &[u8]) -> Page {
    let mut p = Box::new([0x90u8; PAGE]);
    p[..code.len()].copy_from_slice(code);
    Page(p)
}

const ALL_FEATURES: [u32; 16] = [!0; 16];

/// Mode words of real, 16-bit and 32-bit protected (segmented and flat) and 64-bit code at several levels.
fn modes() -> Vec<u64> {
    let wide = 2 << Mode::CODE_SHIFT | Mode::FLAT | Mode::PE | Mode::LMA | Mode::OSFXSR;
    let flat = 1 << Mode::CODE_SHIFT | Mode::STACK32 | Mode::FLAT | Mode::PE;
    vec![
        Mode::IO_OK,
        Mode::PE | Mode::VM | 3,
        Mode::PE | 3,
        1 << Mode::CODE_SHIFT | Mode::STACK32 | Mode::PE | Mode::IO_OK,
        flat | Mode::IO_OK,
        flat | 3 | Mode::ALIGN | Mode::OSFXSR,
        wide | Mode::IO_OK,
        wide | 3 | Mode::XM,
        wide | 3 | Mode::STEP,
        wide | Mode::IO_OK | Mode::SMAP,
    ]
}

fn translate(x: &X86, mode: u64, start: u32, max: u32, code: &mut Page) -> Block {
    let mut b = Block::default();
    x.translate(mode, start, max, code, &mut b).expect("the page can be fetched");
    b
}

fn check(x: &X86, mode: u64, start: u32, max: u32, code: &mut Page) -> Block {
    let b = translate(x, mode, start, max, code);
    if let Err(e) = verify(&b, &x.layout, &x.helpers) {
        let (text, _) = x.disassemble(mode, 0, &code.0[start as usize..]);
        panic!("{e:?} in mode {mode:#x}: {text} {:02x?}\n{}", &code.0[start as usize..][..16.min(PAGE - start as usize)], b.display(&x.layout, &x.helpers));
    }
    b
}

#[test]
fn any_bytes_give_a_well_formed_block() {
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    for features in [ALL_FEATURES, [0; 16]] {
        let x = X86::new(features);
        for _ in 0..40 {
            let mut p = page(&[]);
            p.0.iter_mut().for_each(|b| *b = next() as u8);
            for mode in modes() {
                let mut at = 0;
                while at < PAGE as u32 {
                    let b = check(&x, mode, at, 1, &mut p);
                    at = (b.next as u32).max(at + 1);
                }
            }
        }
    }
}

#[test]
fn every_opcode_gives_a_well_formed_block() {
    let x = X86::new(ALL_FEATURES);
    let mut p = page(&[]);
    for prefix in [&[][..], &[0x66], &[0xf0], &[0xf2], &[0xf3], &[0x48], &[0x67]] {
        for escape in [&[][..], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]] {
            for op in 0..=255u8 {
                for modrm in [0x00u8, 0xc0, 0x08, 0xc8, 0x10, 0xd1, 0x18, 0xd9, 0x20, 0xe1, 0x28, 0xe9, 0x30, 0xf1, 0x3a, 0xfb, 0x44] {
                    let code = [prefix, escape, &[op, modrm, 0x24, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66]].concat();
                    p.0[..code.len()].copy_from_slice(&code);
                    for mode in modes() {
                        check(&x, mode, 0, 1, &mut p);
                    }
                }
            }
        }
    }
}

#[test]
fn an_instruction_across_the_boundary_is_alone() {
    let x = X86::new(ALL_FEATURES);
    let mode = modes()[6];
    let mut p = page(&[0x11, 0x22, 0x33, 0x44]);
    p.0[PAGE - 2] = 0x90;
    p.0[PAGE - 1] = 0xb8; // mov eax, 44332211h
    let b = check(&x, mode, PAGE as u32 - 1, 32, &mut p);
    assert!(b.straddles && b.guest_insns == 1 && b.next == PAGE as i64 + 4);
    // Coming from the instruction before, the block ends ahead of it.
    let b = check(&x, mode, PAGE as u32 - 2, 32, &mut p);
    assert!(!b.straddles && b.guest_insns == 1 && b.next == PAGE as i64 - 1);
}

#[test]
fn too_long_is_a_protection_fault_and_unknown_bytes_are_not() {
    let x = X86::new(ALL_FEATURES);
    let mut long = page(&[0x66; 20]);
    let raises = |b: &Block| b.insts.iter().find(|i| i.op == ir::Op::RaiseIf).map(|i| (i.aux, i.imm));
    assert_eq!(raises(&check(&x, modes()[6], 0, 1, &mut long)), Some((13, 0)));
    let mut bad = page(&[0x06]); // PUSH ES does not exist in 64-bit code
    assert_eq!(raises(&check(&x, modes()[6], 0, 1, &mut bad)), Some((6, -1)));
}

#[test]
fn compare_and_branch_needs_no_helper() {
    let x = X86::new(ALL_FEATURES);
    let mut p = page(&[0x48, 0x39, 0xd8, 0x7c, 0x10]); // cmp rax, rbx; jl +10h
    let b = check(&x, modes()[6], 0, 32, &mut p);
    assert!(b.insts.iter().all(|i| i.op != ir::Op::Call));
    let end = b.terminator().expect("the block is verified");
    assert_eq!((end.op, end.imm, b.next), (ir::Op::Br, 0x15, 5));
    assert_eq!(b.insts[end.a.index()].cond(), ir::Cond::Slt);
}
