//! Every block the translator makes is well formed, whatever the bytes; and the shape of typical blocks.

use super::*;
use crate::testing::{CodePage, FlatMemory};
use ir::verify::verify;
use ir::{Changing, Interp, Op, Outcome, Path};
use vm_core::Fault;
use vm_core::testing::Rng;

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
        wide | Mode::AVX | Mode::IO_OK,
        wide | Mode::AVX | Mode::XM | 3,
        flat | Mode::AVX | Mode::OSFXSR,
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
        panic!(
            "{e:?} in mode {mode:#x}: {text} {:02x?}\n{}",
            &code.0[start as usize..][..16.min(PAGE - start as usize)],
            b.display(&x.layout, &x.helpers)
        );
    }
    b
}

#[test]
fn any_bytes_give_a_well_formed_block() {
    let mut rng = Rng(1);
    for features in [ALL_FEATURES, [0; 16]] {
        let x = X86::new(features);
        for _ in 0..40 {
            let mut p = page(&[]);
            p.0.iter_mut().for_each(|b| *b = rng.next_u64() as u8);
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
                for modrm in
                    [0x00u8, 0xc0, 0x08, 0xc8, 0x10, 0xd1, 0x18, 0xd9, 0x20, 0xe1, 0x28, 0xe9, 0x30, 0xf1, 0x3a, 0xfb, 0x44]
                {
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
fn every_vex_opcode_gives_a_well_formed_block() {
    let x = X86::new(ALL_FEATURES);
    let mut p = page(&[]);
    for (map, third) in (1..4u8).flat_map(|m| (0..16u8).map(move |t| (m, (t & 8) << 4 | t & 7))) {
        for (v, modrm) in [(0xfu8, 0x04u8), (0xf, 0xc1), (0xd, 0x1c), (0xd, 0xd9), (0x8, 0xca), (0x8, 0x0b)] {
            for op in 0..=255u8 {
                let code = [0xc4, 0xe0 | map, third | v << 3, op, modrm, 0x0c, 0x11, 0x22, 0x33, 0x44];
                p.0[..code.len()].copy_from_slice(&code);
                for mode in modes() {
                    check(&x, mode, 0, 1, &mut p);
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

/// Runs code on the reference interpreter with memory at 0..64 KiB, from `start`, until it has left through `Exit*` or a
/// computed jump; gives the program counter.
fn run(mode: u64, code: &[u8], setup: impl Fn(&mut Vec<u8>, &StateLayout)) -> (Vec<u8>, Vec<u8>, u64) {
    struct Flat(Vec<u8>);
    impl ir::Memory for Flat {
        type Fault = ();
        fn load(&mut self, addr: u64, ty: ir::Ty, _: u16) -> Result<u128, ()> {
            let b = self.0.get(addr as usize..addr as usize + ty.bytes() as usize).ok_or(())?;
            Ok(b.iter().rev().fold(0, |v, b| v << 8 | u128::from(*b)))
        }
        fn store(&mut self, addr: u64, ty: ir::Ty, value: u128, _: u16) -> Result<(), ()> {
            let n = ty.bytes() as usize;
            self.0.get_mut(addr as usize..addr as usize + n).ok_or(())?.copy_from_slice(&value.to_le_bytes()[..n]);
            Ok(())
        }
        fn rmw(&mut self, _: u64, _: ir::Ty, _: ir::Rmw, _: u64, _: u16) -> Result<u64, ()> {
            Err(())
        }
        fn cas(&mut self, _: u64, _: ir::Ty, _: u64, _: u64, _: u16) -> Result<u64, ()> {
            Err(())
        }
        fn probe(&mut self, addr: u64, len: u32, _: u16) -> Result<(), ()> {
            if addr + u64::from(len) <= self.0.len() as u64 { Ok(()) } else { Err(()) }
        }
    }
    let x = X86::new(ALL_FEATURES);
    let mut p = page(code);
    let mut state = vec![0; x.layout.size as usize];
    set(&mut state, &x.layout, "cs_limit", 0xffff);
    setup(&mut state, &x.layout);
    let mut mem = Flat(vec![0; 0x10000]);
    let b = check(&x, mode, 0, 8, &mut p);
    let interp = ir::Interp { layout: &x.layout, helpers: &x.helpers, mode };
    let end = interp.run(&b, &mut state, &mut mem, &mut |_, _, _, args| Ok(args[1]));
    let pc = match end {
        ir::Outcome::Indirect { pc, .. } => pc,
        ir::Outcome::Jump { to } | ir::Outcome::ExitNext { to } => to as u64,
        other => panic!("{other:?}"),
    };
    (state, mem.0, pc)
}

fn set(state: &mut [u8], l: &StateLayout, name: &str, v: u64) {
    let s = l.slot(l.find(name).expect("a slot's name"));
    let n = (s.size as usize).min(8);
    state[s.offset as usize..][..n].copy_from_slice(&v.to_le_bytes()[..n]);
}

fn get(state: &[u8], name: &str) -> u64 {
    let l = layout::layout();
    let s = l.slot(l.find(name).expect("a slot's name"));
    state[s.offset as usize..][..8].iter().rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

#[test]
fn absolute_displacements_are_sign_extended_in_64_bit_code() {
    // mov gs:[-8], rax
    let (s, m, _) = run(modes()[6], &[0x65, 0x48, 0x89, 0x04, 0x25, 0xf8, 0xff, 0xff, 0xff], |s, l| {
        set(s, l, "gs_base", 0x1008);
        set(s, l, "rax", 0x1122_3344_5566_7788);
    });
    assert_eq!((&m[0x1000..0x1008], get(&s, "rax")), (&0x1122_3344_5566_7788u64.to_le_bytes()[..], 0x1122_3344_5566_7788));
}

#[test]
fn sixteen_bit_calls_push_two_bytes_and_wrap_in_ip() {
    // call +100h in real mode at page offset 0 of IP F000h
    let (s, m, pc) = run(modes()[0], &[0xe8, 0x00, 0x01], |s, l| {
        set(s, l, "rsp", 0xffff_1000);
        set(s, l, "pc_page", 0xf000);
    });
    assert_eq!((get(&s, "rsp"), &m[0xffe..0x1000], pc), (0xffff_0ffe, &[0x03, 0xf0][..], 0x103));
}

#[test]
fn thirty_two_bit_frames() {
    // push ebp; mov ebp, esp; pop [esp+4]; leave; ret 8
    let code = [0x55, 0x89, 0xe5, 0x8f, 0x44, 0x24, 0x04, 0xc9, 0xc2, 0x08, 0x00];
    let (s, m, pc) = run(modes()[4], &code, |s, l| {
        set(s, l, "rsp", 0x1000);
        set(s, l, "rbp", 0x7777_8888);
    });
    // The POP stores what was pushed 8 above its own slot; LEAVE reads the saved EBP again.
    assert_eq!((get(&s, "rsp"), get(&s, "rbp")), (0x1000 + 12, 0x7777_8888));
    assert_eq!((&m[0x1004..0x1008], pc), (&0x7777_8888u32.to_le_bytes()[..], 0));
}

#[test]
fn far_return_addresses_and_relative_branches_of_16_bits_in_32_bit_code() {
    // 66h jmp rel16 cuts EIP to 16 bits
    let (_, _, pc) = run(modes()[4], &[0x66, 0xe9, 0x10, 0x00], |s, l| set(s, l, "pc_page", 0x1234_f000));
    assert_eq!(pc, 0xf014);
}

#[test]
fn carry_of_earlier_blocks_is_what_the_lazy_form_means() {
    use arch_x86::flags::{Cc, bit, over};
    let values = [0u64, 1, 2, 0x7f, !0x7f, 0x7fff, 0x7fff_ffff, !0x7fff_ffff, i64::MAX as u64, 1 << 63, !0, 0x841];
    for op in (0..48).flat_map(|k| [k, k | over::HAS_CF, k | over::HAS_CF | over::CF, k | over::HAS_OF]) {
        // Operands lie there zero-extended from their size.
        let extend = |v: u64| v & (u64::MAX >> (64 - (8 << (op & 3))));
        let pairs = values.iter().flat_map(|a| values.iter().map(move |b| (extend(*a), extend(*b))));
        for (dst, src) in pairs {
            for aux in 0..2 {
                let cc = Cc { op, dst, src, aux };
                // setb al; jmp the next
                let (s, _, _) = run(modes()[6], &[0x0f, 0x92, 0xc0, 0xeb, 0], |s, l| {
                    for (name, v) in [("cc_op", op.into()), ("cc_dst", dst), ("cc_src", src), ("cc_aux", aux)] {
                        set(s, l, name, v);
                    }
                });
                assert_eq!(get(&s, "rax") & 0xff, cc.eflags() & bit::CF, "{cc:x?}");
            }
        }
    }
}

/// Interrupts that wait are taken behind the instruction after STI; nothing looks at them between the two.
#[test]
fn sti_ends_a_block_only_where_the_next_instruction_is_not_in_it() {
    let x = X86::new(ALL_FEATURES);
    let mode = modes().into_iter().find(|m| Mode(*m).is_64() && Mode(*m).has(Mode::IO_OK)).expect("there is one");
    let mut code = page(&[0xfb, 0xc3]);
    let pair = check(&x, mode, 0, 64, &mut code);
    let sets = |b: &Block| b.insts.iter().filter(|i| i.op == Op::Set && i.aux == layout::SHADOW.0).count();
    assert_eq!((pair.guest_insns, sets(&pair)), (2, 0));
    let alone = check(&x, mode, 0, 1, &mut code);
    assert_eq!((alone.guest_insns, sets(&alone), alone.insts.last().map(|i| i.op)), (1, 1, Some(Op::ExitNext)));
    let mut last = page(&[]);
    last.0[PAGE - 1] = 0xfb;
    let last = check(&x, mode, PAGE as u32 - 1, 64, &mut last);
    assert_eq!(last.insts.last().map(|i| i.op), Some(Op::ExitNext));
}

struct Going(Page, Path);

impl CodeFetch for Going {
    type Fault = ();
    fn page(&self) -> &[u8; PAGE] {
        self.0.page()
    }
    fn next_page(&mut self) -> Result<&[u8; PAGE], ()> {
        Err(())
    }
    fn path(&self) -> Path {
        self.1
    }
}

/// Sides of a block (target, page offset of the branch), its last op, and where it ends.
fn sides(mode: u64, code: &[u8], ways: &[(u32, u32)], max: u32) -> (Vec<(i64, i64)>, ir::Inst, i64) {
    let (x, mut b, mut path) = (X86::new(ALL_FEATURES), Block::default(), Path::default());
    ways.iter().for_each(|(at, to)| assert!(path.push(*at, *to)));
    x.translate(mode, 0, max, &mut Going(page(code), path), &mut b).expect("within the page");
    verify(&b, &x.layout, &x.helpers).expect("well formed");
    let mut at = 0;
    let mut found = Vec::new();
    for i in &b.insts {
        match i.op {
            Op::Insn => at = i.imm,
            Op::Side => found.push((i.imm, at)),
            _ => {}
        }
    }
    (found, *b.terminator().expect("a block ends"), b.next)
}

#[test]
fn blocks_go_on_behind_branches() {
    // 0 cmp eax, 1; 3 je 8; 5 inc ebx; 7 nop; 8 jmp 12; 10 ud2; 12 jne 30; 14 hlt; ... 30 nop; ...
    let mut code = [0x90; 64];
    code[..15].copy_from_slice(&[0x83, 0xf8, 1, 0x74, 3, 0xff, 0xc3, 0x90, 0xeb, 2, 0x0f, 0x0b, 0x75, 16, 0xf4]);
    let wide = modes()[6];
    let ways = [(3, 5), (8, 12), (12, 30)];
    let (found, end, next) = sides(wide, &code, &ways, 8);
    assert_eq!((found, end.op, end.imm, next), (vec![(8, 3), (14, 12)], Op::Jump, 32, 32));
    // As many as it is told, and no others.
    let (found, end, next) = sides(wide, &code, &ways[..1], 8);
    assert_eq!((found, end.op, end.imm, next), (vec![(8, 3)], Op::Jump, 12, 10));
    // What leads elsewhere than the path says is no part of it; nor is a step.
    let (found, end, _) = sides(wide, &code, &[(3, 6)], 8);
    assert_eq!((found.len(), end.op, end.imm), (0, Op::Br, 8));
    let (found, end, _) = sides(wide | Mode::STEP, &code, &ways, 8);
    assert_eq!((found.len(), end.op), (0, Op::ExitNext));
    // Branches out of the page end a block whatever is said.
    let (found, end, _) = sides(wide, &[0x0f, 0x84, 0, 0x20, 0, 0], &[(0, 6)], 8);
    assert_eq!((found.len(), end.op, end.imm), (0, Op::Br, 0x2006));
}

struct Rewritten(CodePage, Changing);

impl CodeFetch for Rewritten {
    type Fault = ();
    fn page(&self) -> &[u8; PAGE] {
        self.0.page()
    }
    fn next_page(&mut self) -> Result<&[u8; PAGE], ()> {
        Err(())
    }
    fn changing(&self) -> Changing {
        self.1
    }
}

/// A block with an instruction's last `n` bytes loose means the same as one with constants, of whatever bytes are there then.
#[test]
fn immediates_are_read_when_the_block_runs() {
    let (x, mut rng) = (X86::new(ALL_FEATURES), Rng(1));
    let wide = 2 << Mode::CODE_SHIFT | Mode::FLAT | Mode::PE | Mode::LMA | 3;
    // Bytes, those of which are an immediate (at the end).
    let forms: &[(&[u8], usize)] = &[
        (&[0xb0, 0], 1),
        (&[0xb8, 0, 0, 0, 0], 4),
        (&[0x66, 0xb9, 0, 0], 2),
        (&[0x48, 0xb9, 0, 0, 0, 0, 0, 0, 0, 0], 8),
        (&[0x48, 0xc7, 0xc2, 0, 0, 0, 0], 4),
        (&[0xc7, 0x46, 8, 0, 0, 0, 0], 4),
        (&[0x83, 0xc0, 0], 1),
        (&[0x48, 0x83, 0xe8, 0], 1),
        (&[0x66, 0x83, 0xf0, 0], 1),
        (&[0x80, 0x66, 8, 0], 1),
        (&[0x48, 0x81, 0x46, 8, 0, 0, 0, 0], 4),
        (&[0x48, 0x3d, 0, 0, 0, 0], 4),
        (&[0xa8, 0], 1),
        (&[0xf7, 0xc1, 0, 0, 0, 0], 4),
        (&[0x6b, 0xc0, 0], 1),
        (&[0x48, 0x69, 0xc9, 0, 0, 0, 0], 4),
        (&[0x6a, 0], 1),
        (&[0x68, 0, 0, 0, 0], 4),
        (&[0x48, 0x0f, 0xba, 0xe0, 0], 1),
    ];
    for &(form, n) in forms {
        let mut changing = Changing::default();
        assert!(changing.add((form.len() - 1) as u16, form.len() as u16));
        let loose = |fetch: Changing, bytes: &[u8]| {
            let mut b = Block::default();
            x.translate(wide, 0, 1, &mut Rewritten(CodePage::new(bytes), fetch), &mut b).expect("within the page");
            verify(&b, &x.layout, &x.helpers).expect("well formed");
            b
        };
        let once = loose(changing, form);
        assert_eq!(once.loose, [((form.len() - n) as u16, form.len() as u16)], "{form:x?}");
        for _ in 0..50 {
            let mut bytes = form.to_vec();
            let imm = rng.next_u64().to_le_bytes();
            bytes[form.len() - n..].copy_from_slice(&imm[..n]);
            let state: Vec<u8> = (0..x.layout.size).map(|_| rng.next_u64() as u8).collect();
            let plain = loose(Changing::default(), &bytes);
            assert!(plain.loose.is_empty());
            assert_eq!(outcome(&x, wide, &once, &bytes, &state), outcome(&x, wide, &plain, &bytes, &state), "{bytes:x?}");
        }
    }
}

/// State and memory behind a block, whose source lies at 1000h, and rsi and rsp behind it.
fn outcome(x: &X86, mode: u64, block: &Block, source: &[u8], state: &[u8]) -> (Vec<u8>, Vec<u8>, Outcome<Fault>) {
    let (l, mut state) = (&x.layout, state.to_vec());
    let mut memory = FlatMemory { base: 0x1000, bytes: vec![0x5a; 2 * PAGE] };
    memory.bytes[..source.len()].copy_from_slice(source);
    for (slot, v) in [(l.pc_page, 0x1000u64), (layout::gpr(6), 0x2000), (layout::gpr(4), 0x2800)] {
        state[l.slot(slot).offset as usize..][..8].copy_from_slice(&v.to_le_bytes());
    }
    let mut helper = |_: &mut [u8], _: &mut FlatMemory, _, [a, b, c]: [u64; 3]| Ok(a ^ b.rotate_left(7) ^ c.rotate_left(13));
    let end = Interp { layout: l, helpers: &x.helpers, mode }.run(block, &mut state, &mut memory, &mut helper);
    (state, memory.bytes, end)
}

/// What is asked for of bytes that are no immediate, or lie in two pages, is not done.
#[test]
fn other_bytes_are_no_immediates() {
    let x = X86::new(ALL_FEATURES);
    let wide = 2 << Mode::CODE_SHIFT | Mode::FLAT | Mode::PE | Mode::LMA | 3;
    let mut all = Changing::default();
    assert!(all.add(0, PAGE as u16));
    // lea eax, [rcx + 5]; jmp +0; rol eax, 1; ret
    for code in [&[0x8d, 0x41, 5][..], &[0xeb, 0], &[0xd1, 0xc0], &[0xc3], &[0x8b, 0x04, 0x25, 0, 0x20, 0, 0]] {
        let mut b = Block::default();
        x.translate(wide, 0, 1, &mut Rewritten(CodePage::new(code), all), &mut b).expect("within the page");
        assert!(b.loose.is_empty(), "{code:x?}");
    }
}
