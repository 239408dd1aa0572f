//! The translating engine on all its settings: random programs, and what they do not reach.

use iced_x86::code_asm::*;
use rhea_tests::counters::counter;
use rhea_tests::engines::campaign::Campaign;
use rhea_tests::engines::machine::{Image, Machine, World, assembled, at, engines, image, on_all};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vm_core::{CpuIo, Events, StopReason, Vcpu};

/// A case is some thirty instructions and five engines; the long form is the binary `engines`.
const CASES: u64 = if cfg!(debug_assertions) { 200 } else { 1000 };

const ROUNDS: u32 = 5000;

#[test]
fn random_programs_end_alike_on_every_setting() {
    let mut c = Campaign::new().unwrap();
    let s = c.run(1, CASES).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(s.cases, CASES);
    for ((name, settings), compiled) in engines().into_iter().zip(c.compiled()) {
        assert_eq!(settings.jit, compiled > 0, "{name}: {compiled} compiled in {CASES} programs");
    }
    assert!(s.endless * 20 < CASES && s.faults * 10 < CASES * 8, "{s:?}: the programs are of little use");
}

#[test]
fn code_that_the_host_changes_is_seen() {
    on_all(|name, m| {
        // L: mov eax, 1; cmp eax, 2; jne L; hlt
        let seen = AtomicBool::new(false);
        m.load(&image(World::Long, 0x10, &[0xb8, 1, 0, 0, 0, 0x83, 0xf8, 2, 0x75, 0xf6, 0xf4]));
        std::thread::scope(|s| {
            let (board, engine, seen) = (&m.board, &mut m.engine, &seen);
            s.spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                board.ram().write(at::CODE + 0x11, &[2]);
                // The guest has a second to see it.
                (0..100).take_while(|_| !seen.load(Ordering::SeqCst)).for_each(|_| std::thread::sleep(Duration::from_millis(10)));
                board.signals().raise(Events::STOP);
            });
            let stop = vm_core::Vcpu::run(engine, board);
            seen.store(true, Ordering::SeqCst);
            assert_eq!(stop, StopReason::Halted, "{name}");
        });
    });
}

#[test]
fn the_instruction_after_sti_runs_before_an_interrupt() {
    on_all(|name, m| {
        // L: sti; inc eax; cli; dec ecx; jnz L; hlt
        let mut i = image(World::Long, 0, &[0xfb, 0xff, 0xc0, 0xfa, 0xff, 0xc9, 0x75, 0xf8, 0xf4]);
        i.cpu.gpr[1] = 100_000;
        i.cpu.gpr[0] = 0;
        // cmp dword [rsp], CODE + 3; jne bad; inc edx; iretq; bad: ud2
        let handler = [0x81, 0x3c, 0x24, 3, 0, 0x20, 0, 0x75, 4, 0xff, 0xc2, 0x48, 0xcf, 0x0f, 0x0b];
        i.put(at::CODE + 0x2000, &handler);
        i.handler(World::Long, 0x1f, at::CODE + 0x2000);
        m.board.vector.store(0x1f, Ordering::SeqCst);
        m.load(&i);
        let (signals, quit) = (m.signals(), AtomicBool::new(false));
        let stop = std::thread::scope(|s| {
            s.spawn(|| {
                while !quit.load(Ordering::SeqCst) {
                    signals.raise(Events::INTR);
                    std::thread::sleep(Duration::from_micros(20));
                }
            });
            let stop = m.run();
            quit.store(true, Ordering::SeqCst);
            stop
        });
        signals.clear(Events::INTR);
        let cpu = vm_core::Vcpu::cpu(&mut m.engine);
        assert_eq!(stop, StopReason::Halted);
        assert_eq!((cpu.rip, cpu.gpr[0]), (at::CODE + 9, 100_000), "{name}: {} interrupts", cpu.gpr[2]);
        assert!(cpu.gpr[2] > 10, "{name}: {} interrupts", cpu.gpr[2]);
    });
}

#[test]
fn a_straddling_instruction_follows_its_second_page() {
    let pte = at::TABLES + 0x3000 + 0x1000 + 8;
    on_all(|name, m| {
        // L: jmp S; T: add ebx, eax; mov qword [pte], page 202h; invlpg [CODE + 1000h]; dec ecx; jnz L; hlt
        let mut code = vec![0xe9, 0xf8, 0x0e, 0, 0, 0x01, 0xc3, 0x48, 0xc7, 0x04, 0x25];
        code.extend((pte as u32).to_le_bytes());
        code.extend([0x63, 0x20, 0x20, 0]);
        code.extend([0x0f, 0x01, 0x3c, 0x25, 0, 0x10, 0x20, 0, 0xff, 0xc9, 0x75, 0xe1, 0xf4]);
        let mut i = image(World::Long, 0x100, &code);
        // S: mov eax, imm, its last three bytes in either page; then jmp T
        i.put(at::CODE + 0xffd, &[0xb8, 0x11, 0x22]);
        for (page, byte) in [(at::CODE + 0x1000, 1), (at::CODE + 0x2000, 2)] {
            i.put(page, &[byte, 0, 0xe9, 0xfe, 0xf0, 0xff, 0xff]);
        }
        (i.cpu.gpr[1], i.cpu.gpr[3]) = (50, 0);
        let o = m.outcome(&i);
        assert_eq!((o.stop, o.cpu.rip), (StopReason::Halted, at::CODE + 0x100 + code.len() as u64), "{name}");
        assert_eq!(o.cpu.gpr[3], 0x12211 + 49 * 0x22211, "{name}");
    });
}

#[test]
fn equal_program_counters_of_two_segments_are_different_code() {
    on_all(|name, m| {
        let mut i = Image::new(World::Flat);
        let real = &mut i.cpu;
        real.cr0 &= !1;
        for s in &mut real.seg {
            (s.base, s.limit, s.attr, s.selector) = (0, 0xffff, 0x9300, 0);
        }
        // At 0:5200h and at 10h:5200h (linear 5300h): inc ax / inc bx; dec cx; jz end; jmp far to the other; end: hlt
        for (linear, inc, other) in [(0x5200, 0x40, 0x10u8), (0x5300, 0x43, 0)] {
            i.put(linear, &[inc, 0x49, 0x74, 5, 0xea, 0, 0x52, other, 0, 0xf4]);
        }
        i.cpu.gpr[..4].copy_from_slice(&[0, 101, 0, 0]);
        i.cpu.rip = 0x5200;
        i.cpu.set_rflags(2);
        let o = m.outcome(&i);
        assert_eq!(o.stop, StopReason::Halted);
        assert_eq!((o.cpu.gpr[0], o.cpu.gpr[3], o.cpu.rip), (51, 50, 0x520a), "{name}");
    });
}

/// What a POPF in code that is long compiled brings: single steps, interrupts.
#[test]
fn what_an_end_of_a_block_brings_is_seen_there() {
    for (what, last, past) in [("single step", 0x102, 1), ("interrupt", 0x202, 0), ("nothing", 0x2, 3)] {
        let code = assembled(|a| {
            let (mut top, mut go_on) = (a.create_label(), a.create_label());
            a.mov(ecx, ROUNDS)?;
            a.set_label(&mut top)?;
            a.mov(eax, 2)?;
            a.cmp(ecx, 1)?;
            a.jne(go_on)?;
            a.mov(eax, last)?;
            a.set_label(&mut go_on)?;
            a.push(rax)?;
            a.popfq()?;
            a.nop()?;
            a.dec(ecx)?;
            a.jne(top)?;
            a.hlt()
        });
        // The NOP, DEC and JNE, and HLT at the end.
        let after = [code.len() - 6, code.len() - 5, code.len() - 3, code.len()];
        on_all(|name, m| {
            let mut i = image(World::Long, 0, &code);
            i.cpu.gpr[4] = at::STACK_TOP;
            m.load(&i);
            m.board.vector.store(0x1f, Ordering::SeqCst);
            if what == "interrupt" {
                m.signals().raise(Events::INTR);
            }
            assert_eq!(m.run(), StopReason::Halted, "{name}: {what}");
            m.signals().clear(Events::INTR);
            let (at_end, stack) = (m.engine.cpu().rip, m.engine.cpu().gpr[4]);
            let came_from = if what == "nothing" { at_end } else { m.ram().read_uint(stack, 8) };
            assert_eq!(came_from, at::CODE + after[past] as u64, "{name}: {what}");
        });
    }
}

/// Registers that a region keeps in the host's are read in parts as well.
#[test]
fn parts_of_registers_in_a_loop() {
    let code = assembled(|a| {
        let (mut top, mut other) = (a.create_label(), a.create_label());
        a.set_label(&mut top)?;
        a.add(eax, 0x153)?;
        a.cmp(ah, 0x20)?;
        a.jb(other)?;
        a.inc(edx)?;
        a.set_label(&mut other)?;
        a.movsx(ebx, ah)?;
        a.add(esi, ebx)?;
        a.paddq(xmm0, xmm1)?;
        a.movq(rdi, xmm0)?;
        a.add(rsi, rdi)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    let (mut total, mut many, mut all, mut lane) = (0u32, 0u64, 0u64, 0u64);
    for _ in 0..300 {
        total = total.wrapping_add(0x153);
        let high = (total >> 8) as u8;
        many += u64::from(high >= 0x20);
        all = u64::from((all as u32).wrapping_add(i32::from(high as i8) as u32));
        lane += 77;
        all = all.wrapping_add(lane);
    }
    on_all(|name, m| {
        let mut i = image(World::Long, 0, &code);
        for (register, value) in [(0, 0), (1, 300), (2, 0), (3, 0), (6, 0), (7, 0)] {
            i.cpu.gpr[register] = value;
        }
        (i.cpu.xmm[0], i.cpu.xmm[1]) = (0, 77);
        let o = m.outcome(&i);
        assert_eq!(o.stop, StopReason::Halted, "{name}");
        assert_eq!((o.cpu.gpr[0], o.cpu.gpr[2], o.cpu.gpr[6]), (total.into(), many, all), "{name}");
    });
}

/// In the loop CF is always 0 and nothing is moved; where it is entered, CF is 1.
#[test]
fn a_loop_is_entered_with_other_flags_than_it_goes_round_with() {
    let code = assembled(|a| {
        let (mut outer, mut inner) = (a.create_label(), a.create_label());
        a.set_label(&mut outer)?;
        a.mov(ecx, 10)?;
        a.inc(rdx)?;
        a.lea(rsi, ptr(inner))?;
        a.stc()?;
        a.jmp(rsi)?;
        a.set_label(&mut inner)?;
        a.cmovb(rax, rdx)?;
        a.add(rdi, rax)?;
        a.sub(rcx, 1)?;
        a.test(rcx, rcx)?;
        a.jne(inner)?;
        a.cmp(rdx, 100)?;
        a.jne(outer)?;
        a.hlt()
    });
    on_all(|name, m| {
        let mut i = image(World::Long, 0, &code);
        (i.cpu.gpr[0], i.cpu.gpr[2], i.cpu.gpr[7]) = (0, 0, 0);
        let o = m.outcome(&i);
        assert_eq!((o.stop, o.cpu.gpr[0], o.cpu.gpr[7]), (StopReason::Halted, 100, 10 * 5050), "{name}");
    });
}

/// Code of another page that REP STOS and REP MOVS write anew before each call.
#[test]
fn code_that_string_instructions_replace() {
    const FUNCTION: u64 = at::CODE + 0x1000;
    let code = assembled(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        // 64 times NOP, then the function's end, of which there are two: both in the page of the one before.
        a.mov(rdi, FUNCTION)?;
        a.mov(al, 0x90)?;
        a.mov(ecx, 64)?;
        a.rep().stosb()?;
        a.xor(r8, 16)?;
        a.lea(rsi, qword_ptr(r8 + at::DATA as i32))?;
        a.mov(ecx, 6)?;
        a.rep().movsb()?;
        a.mov(rax, FUNCTION)?;
        a.call(rax)?;
        a.add(ebx, eax)?;
        a.dec(edx)?;
        a.jne(again)?;
        a.hlt()
    });
    on_all(|name, m| {
        let mut i = image(World::Long, 0, &code);
        for (n, value) in [(0, 1u8), (16, 3)] {
            i.put(at::DATA + n, &[0xb8, value, 0, 0, 0, 0xc3]);
        }
        for (register, value) in [(0, 0), (2, 300), (3, 0), (8, 0)] {
            i.cpu.gpr[register] = value;
        }
        let o = m.outcome(&i);
        assert_eq!((o.stop, o.cpu.gpr[3]), (StopReason::Halted, 150 * 4), "{name}");
    });
}

/// Immediates of a function in a page that is written again and again, data beside it; the function is called between. What is
/// rewritten now and then is an instruction.
#[test]
fn immediates_that_are_rewritten() {
    const FUNCTION: u64 = at::CODE + 0x1000;
    const COUNTER: i32 = 0x800;
    const CALLS: u32 = 3000;
    let code = assembled(|a| {
        let (mut again, mut plain) = (a.create_label(), a.create_label());
        a.mov(rdi, FUNCTION)?;
        a.set_label(&mut again)?;
        // mov eax, imm32; add eax, edx (or sub); imul eax, eax, imm8; mov r9, imm64; ret
        a.mov(byte_ptr(rdi), 0xb8)?;
        a.mov(dword_ptr(rdi + 1), edx)?;
        a.mov(word_ptr(rdi + 5), 0xd001)?;
        a.test(edx, 0x3ff)?;
        a.jne(plain)?;
        a.mov(byte_ptr(rdi + 5), 0x29)?;
        a.set_label(&mut plain)?;
        a.mov(word_ptr(rdi + 7), 0xc06b)?;
        a.mov(byte_ptr(rdi + 9), dl)?;
        a.mov(word_ptr(rdi + 10), 0xb949)?;
        a.mov(qword_ptr(rdi + 12), rdx)?;
        a.mov(byte_ptr(rdi + 20), 0xc3)?;
        a.call(rdi)?;
        a.add(ebx, eax)?;
        a.xor(ebx, r9d)?;
        a.inc(dword_ptr(rdi + COUNTER))?;
        a.dec(edx)?;
        a.jne(again)?;
        a.mov(eax, dword_ptr(rdi + COUNTER))?;
        a.hlt()
    });
    let called = |sum: u32, n: u32| {
        let made = if n & 0x3ff == 0 { 0 } else { n.wrapping_add(n) };
        sum.wrapping_add(made.wrapping_mul(n as i8 as u32)) ^ n
    };
    let sum = (1..=CALLS).rev().fold(0, called);
    for (name, settings) in engines() {
        let mut m = Machine::new(settings).unwrap();
        let mut i = image(World::Long, 0, &code);
        (i.cpu.gpr[2], i.cpu.gpr[3]) = (CALLS.into(), 0);
        m.load(&i);
        assert_eq!(m.run(), StopReason::Halted, "{name}");
        let cpu = m.engine.cpu();
        assert_eq!((cpu.gpr[0], cpu.gpr[3]), (CALLS.into(), sum.into()), "{name}");
        // Until the page and what changes in it are known, and whenever the instruction changes.
        let dropped = counter(&m.engine.info_jit(), "invalidations").unwrap();
        assert!(dropped < 200, "{name}: {dropped} of {CALLS}");
    }
}

/// A block that rewrites immediates of its own.
#[test]
fn immediates_of_the_running_block() {
    let code = assembled(|a| {
        let (mut again, mut first, mut second) = (a.create_label(), a.create_label(), a.create_label());
        a.lea(rsi, ptr(first))?;
        a.lea(rdi, ptr(second))?;
        a.set_label(&mut again)?;
        a.mov(dword_ptr(rsi + 1), ecx)?;
        a.mov(byte_ptr(rdi + 2), cl)?;
        a.set_label(&mut first)?;
        a.mov(eax, 0x1234_5678)?;
        a.set_label(&mut second)?;
        a.add(ebx, 5)?;
        a.add(ebx, eax)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.hlt()
    });
    let sum = (1..=2000u32).rev().fold(0u32, |sum, n| sum.wrapping_add(n).wrapping_add(n as i8 as u32));
    for (name, settings) in engines() {
        let mut i = image(World::Long, 0, &code);
        (i.cpu.gpr[1], i.cpu.gpr[3]) = (2000, 0);
        let o = Machine::new(settings).unwrap().outcome(&i);
        assert_eq!((o.stop, o.cpu.gpr[3]), (StopReason::Halted, sum.into()), "{name}");
    }
}

/// One check covers the accesses of a step; near the end of a page they lie in two, of which the second is mapped elsewhere.
#[test]
fn accesses_of_one_base_go_across_pages() {
    const STEPS: u64 = 600;
    let code = assembled(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rax, qword_ptr(rdi))?;
        a.add(rax, qword_ptr(rdi + 8))?;
        a.mov(qword_ptr(rdi + 16), rax)?;
        a.add(dword_ptr(rdi + 28), ecx)?;
        a.push(rax)?;
        a.pop(rbx)?;
        a.add(rdi, 8)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        a.hlt()
    });
    let mut expected: Vec<u64> = vec![1; STEPS as usize + 4];
    for k in 0..STEPS as usize {
        expected[k + 2] = expected[k].wrapping_add(expected[k + 1]);
        expected[k + 3] = expected[k + 3].wrapping_add((STEPS - k as u64) << 32);
    }
    let bytes: Vec<u8> = expected.iter().flat_map(|q| q.to_le_bytes()).collect();
    let (first, elsewhere) = (at::DATA + 0x800, at::STACK - 0x1000);
    let pte = at::TABLES + 0x3000 + 0x1000 + 8 * 0x101;
    on_all(|name, m| {
        let mut i = image(World::Long, 0, &code);
        i.put(pte, &(elsewhere | 0x63).to_le_bytes());
        let ones: Vec<u8> = [1u64; STEPS as usize + 4].iter().flat_map(|q| q.to_le_bytes()).collect();
        i.put(first, &ones[..0x800]);
        i.put(elsewhere, &ones[0x800..]);
        (i.cpu.gpr[1], i.cpu.gpr[7]) = (STEPS, first);
        for round in 0..8 {
            let o = m.outcome(&i);
            assert_eq!((o.stop, o.cpu.gpr[1]), (StopReason::Halted, 0), "{name}, round {round}");
            let mut now = vec![0; bytes.len()];
            m.board.ram().read(first, &mut now[..0x800]);
            m.board.ram().read(elsewhere, &mut now[0x800..]);
            assert!(now == bytes, "{name}, round {round}");
        }
        // The second page may only be read: the first store beyond faults, which is that of the upper half.
        i.put(pte, &(elsewhere | 0x61).to_le_bytes());
        i.cpu.cr0 |= 1 << 16;
        let o = m.outcome(&i);
        assert_eq!((o.cpu.cr2, o.cpu.gpr[7]), (at::DATA + 0x1004, first + 8 * 253), "{name}");
    });
}

/// Of a store of 32 bytes that faults in the second of two pages nothing is stored, also where the code was made for such stores.
#[test]
fn a_store_into_two_pages_happens_as_a_whole() {
    const STEPS: u64 = 64;
    let code = assembled(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.vmovups(ymmword_ptr(rdi), ymm1)?;
        a.inc(rdi)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        a.hlt()
    });
    let second = at::DATA + 0x1000;
    let (first, pte) = (second - 48, at::TABLES + 0x3000 + 0x1000 + 8 * 0x101);
    let pattern: [u8; 32] = std::array::from_fn(|k| k as u8 + 1);
    on_all(|name, m| {
        let mut i = image(World::Long, 0, &code);
        i.put(pte, &(second | 0x63).to_le_bytes());
        i.cpu.cr4 |= 1 << 18 | 1 << 9;
        i.cpu.xcr0 = 7;
        (i.cpu.gpr[1], i.cpu.gpr[7]) = (STEPS, first);
        let half = |n: usize| u128::from_le_bytes(std::array::from_fn(|k| pattern[n + k]));
        (i.cpu.xmm[1], i.cpu.ymmh[1]) = (half(0), half(16));
        i.cpu.update_mode();
        for round in 0..40 {
            let o = m.outcome(&i);
            assert_eq!((o.stop, o.cpu.gpr[1]), (StopReason::Halted, 0), "{name}, round {round}");
        }
        i.put(pte, &(second | 0x61).to_le_bytes());
        i.cpu.cr0 |= 1 << 16;
        let o = m.outcome(&i);
        assert_eq!((o.cpu.cr2, o.cpu.gpr[7]), (second, second - 31), "{name}");
        let mut now = [0; 32];
        m.board.ram().read(second - 32, &mut now);
        assert_eq!(now, pattern, "{name}");
    });
}

/// Loads and stores of each size, with bases of their own, at every place across two pages that are mapped apart; then with one of the
/// second pages away.
#[test]
fn single_accesses_go_across_pages() {
    const STEPS: u64 = 64;
    // Linear address of the first of two pages, and where both are.
    const FROM: (u64, [u64; 2]) = (0x32_0000, [at::DATA, at::DATA + 0x2000]);
    const TO: (u64, [u64; 2]) = (0x32_2000, [at::DATA + 0x4000, at::DATA + 0x6000]);
    let near = |pages: (u64, [u64; 2])| pages.0 + 0x1000 - STEPS / 2;
    let pte = |va: u64| at::TABLES + 0x4000 + 8 * (va >> 12 & 511);
    let source: Vec<u8> = (0..STEPS + 16).map(|k| (k * 37 + 5) as u8).collect();
    for size in [2u64, 4, 8, 16] {
        let code = assembled(|a| {
            let mut top = a.create_label();
            a.set_label(&mut top)?;
            match size {
                2 => a.movzx(eax, word_ptr(rsi)).and_then(|()| a.mov(word_ptr(rdi), ax)),
                4 => a.mov(eax, dword_ptr(rsi)).and_then(|()| a.mov(dword_ptr(rdi), eax)),
                8 => a.mov(rax, qword_ptr(rsi)).and_then(|()| a.mov(qword_ptr(rdi), rax)),
                _ => a.movups(xmm0, xmmword_ptr(rsi)).and_then(|()| a.movups(xmmword_ptr(rdi), xmm0)),
            }?;
            a.mov(word_ptr(rdi), 0x5aa5)?;
            a.inc(rsi)?;
            a.inc(rdi)?;
            a.dec(ecx)?;
            a.jnz(top)?;
            a.hlt()
        });
        // What lies in the destination: of each step the constant's first byte, and what the last left.
        let mut want = vec![0xa5; STEPS as usize];
        let last = STEPS as usize - 1;
        want.truncate(last);
        want.extend([0xa5, 0x5a]);
        want.extend(&source[last + 2..last + size as usize]);
        on_all(|name, m| {
            let mut i = image(World::Long, 0, &code);
            i.cpu.cr4 |= 1 << 9;
            (i.cpu.gpr[1], i.cpu.gpr[6], i.cpu.gpr[7]) = (STEPS, near(FROM), near(TO));
            for ((va, pages), k) in [FROM, TO].into_iter().flat_map(|p| [(p, 0), (p, 1)]) {
                i.put(pte(va + 0x1000 * k), &(pages[k as usize] | 0x63).to_le_bytes());
            }
            let (first, second) = source.split_at(STEPS as usize / 2);
            i.put(FROM.1[0] + 0x1000 - STEPS / 2, first);
            i.put(FROM.1[1], second);
            i.cpu.update_mode();
            for round in 0..8 {
                let o = m.outcome(&i);
                assert_eq!((o.stop, o.cpu.gpr[1]), (StopReason::Halted, 0), "{name}, {size} bytes, round {round}");
                let mut now = vec![0; want.len()];
                let (first, second) = now.split_at_mut(STEPS as usize / 2);
                m.board.ram().read(TO.1[0] + 0x1000 - STEPS / 2, first);
                m.board.ram().read(TO.1[1], second);
                assert!(now == want, "{name}, {size} bytes, round {round}: {now:x?}");
            }
            for away in [FROM, TO] {
                let mut i = i.clone();
                i.put(pte(away.0 + 0x1000), &0u64.to_le_bytes());
                let o = m.outcome(&i);
                let done = STEPS / 2 - size + 1;
                let registers = (o.cpu.gpr[1], o.cpu.gpr[6]);
                assert_eq!((o.cpu.cr2, registers), (away.0 + 0x1000, (STEPS - done, near(FROM) + done)), "{name}, {size} bytes");
                let mut before = [0; 16];
                m.board.ram().read(TO.1[0] + 0x1000 - size, &mut before[..size as usize]);
                let want: &[u8] = if size == 2 { &[0xa5, 0x5a] } else { &[0xa5, 0x5a, source[done as usize + 1]] };
                assert!(before.starts_with(want), "{name}, {size} bytes: {before:x?}");
            }
        });
    }
}
