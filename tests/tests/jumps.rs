//! Jumps, calls and returns on all settings of the translating engine: where they lead, and that they stop when asked to.

use iced_x86::code_asm::*;
use rhea_tests::counters::counter;
use rhea_tests::engines::machine::{Machine, World, assembled, at, engines, image, on_all};
use std::time::{Duration, Instant};
use vm_core::{Events, StopReason, Vcpu};

const ROUNDS: u32 = 5000;

#[test]
fn endless_loops_stop_when_asked_to() {
    // f0: call f1; call f1; ret; f1: call f2; call f2; ret; …: no edge leads back, and they take 2^60 calls.
    let tree: Vec<u8> = [0xfa].into_iter().chain([0xe8, 6, 0, 0, 0, 0xe8, 1, 0, 0, 0, 0xc3].repeat(60)).chain([0xc3]).collect();
    // The same by lea rax, [next]; call rax
    let calls = [0x48, 0x8d, 5, 12, 0, 0, 0, 0xff, 0xd0, 0x48, 0x8d, 5, 3, 0, 0, 0, 0xff, 0xd0, 0xc3];
    let indirect: Vec<u8> = [0xfa].into_iter().chain(calls.repeat(60)).chain([0xc3]).collect();
    // cli; mov esi, DATA; L: what is given; jmp L
    let around = |body: &[u8]| {
        let back = -(body.len() as i8) - 2;
        [&[0xfa, 0xbe, 0, 0, 0x30, 0], body, &[0xeb, back as u8]].concat()
    };
    // mov eax, [rsi]; then mov [rsi], ecx; then add eax, [rsi + 8]; mov [rsi + 16], eax
    let (load, store) = (around(&[0x8b, 6]), around(&[0x89, 0x0e]));
    let group = around(&[0x8b, 6, 3, 0x46, 8, 0x89, 0x46, 16]);
    // lock inc dword [rsi]; and push rcx; pop rcx
    let (locked, stack) = (around(&[0xf0, 0xff, 6]), around(&[0x51, 0x59]));
    // test esi, esi; jne over; mov eax, [rsi]; over:
    let branch = around(&[0x85, 0xf6, 0x75, 2, 0x8b, 6]);
    let loops: [(&str, &[u8], &[u8]); 14] = [
        ("loads", &load, &[]),
        ("stores", &store, &[]),
        ("accesses near each other", &group, &[]),
        ("a locked access", &locked, &[]),
        ("the stack", &stack, &[]),
        ("an access that is not made", &branch, &[]),
        ("a tree of calls", &tree, &[]),
        ("a tree of indirect calls", &indirect, &[]),
        ("jump to itself", &[0xfa, 0xeb, 0xfe], &[]),
        // cli; L: inc eax; test eax, 1; jz M; nop; M: jmp L
        ("two blocks", &[0xfa, 0xff, 0xc0, 0xa9, 1, 0, 0, 0, 0x74, 1, 0x90, 0xeb, 0xf4], &[]),
        // cli; mov eax, CODE + 1; jmp rax
        ("indirect", &[0xfa, 0xb8, 1, 0, 0x20, 0, 0xff, 0xe0], &[]),
        // cli; jmp CODE + 1000h, where there is a jump back to CODE + 1
        ("two pages", &[0xfa, 0xe9, 0xfa, 0x0f, 0, 0], &[0xe9, 0xfc, 0xef, 0xff, 0xff]),
        // cli; L: call M; jmp L; M: ret
        ("calls", &[0xfa, 0xe8, 2, 0, 0, 0, 0xeb, 0xf9, 0xc3], &[]),
        // cli; L: stac; clac; jmp L
        ("ends of blocks", &[0xfa, 0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca, 0xeb, 0xf8], &[]),
    ];
    on_all(|name, m| {
        for (what, code, second) in loops {
            let mut i = image(World::Long, 0, code);
            i.put(at::CODE + 0x1000, second);
            m.load(&i);
            let signals = m.signals();
            let asked = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                signals.raise(Events::STOP);
                Instant::now()
            });
            assert_eq!(m.run(), StopReason::Stopped, "{name}: {what}");
            let late = asked.join().unwrap().elapsed();
            // Asked for are 100 ms; the rest is for hosts that run other tests at the same time.
            assert!(late < Duration::from_millis(400), "{name}: {what}: {late:?}");
            m.signals().clear(Events::STOP);
        }
    });
}

/// STAC and CLAC change the mode, which ends their blocks.
#[test]
fn generated_code_goes_on_where_blocks_end() {
    let code = assembled(|a| {
        let mut top = a.create_label();
        a.mov(ecx, ROUNDS)?;
        a.set_label(&mut top)?;
        a.stac()?;
        a.inc(eax)?;
        a.clac()?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.hlt()
    });
    for (name, settings) in engines() {
        let compiles = settings.jit && !settings.background;
        let mut m = Machine::new(settings).unwrap();
        let mut i = image(World::Long, 0, &code);
        (i.cpu.gpr[0], i.cpu.cr4) = (0, i.cpu.cr4 | arch_x86::state::cr4::SMAP);
        i.cpu.update_mode();
        m.load(&i);
        assert_eq!((m.run(), m.engine.cpu().gpr[0]), (StopReason::Halted, ROUNDS.into()), "{name}");
        let info = m.engine.info_jit();
        let [visits, spared] = ["dispatcher visits", "  spared"].map(|n| counter(&info, n).unwrap());
        assert!(!compiles || visits < 200 && spared > u64::from(2 * ROUNDS) - 200, "{name}: {visits} visits, {spared} spared");
    }
}

/// More calls than the host's stack takes, returns to elsewhere, and stacks that are left behind.
#[test]
fn calls_and_returns_that_do_not_pair() {
    let code = assembled(|a| {
        let mut l: [_; 9] = std::array::from_fn(|_| a.create_label());
        let [again, many, dropped, target, jump, leave, over, resume, deep] = &mut l;
        a.set_label(again)?;
        // Frames that no return takes.
        a.mov(ecx, 5000)?;
        a.set_label(many)?;
        a.call(*dropped)?;
        a.ud2()?;
        a.set_label(dropped)?;
        a.add(rsp, 8)?;
        a.inc(ebx)?;
        a.dec(ecx)?;
        a.jne(*many)?;
        // A return address that is overwritten.
        a.lea(rax, ptr(*target))?;
        a.call(*jump)?;
        a.ud2()?;
        a.set_label(target)?;
        a.inc(edi)?;
        // Out of three levels at once.
        a.mov(r8, rsp)?;
        a.lea(r9, ptr(*resume))?;
        a.mov(ecx, 3)?;
        a.call(*leave)?;
        a.ud2()?;
        a.set_label(resume)?;
        a.mov(ecx, 60)?;
        a.call(*deep)?;
        a.dec(edx)?;
        a.jne(*again)?;
        a.hlt()?;

        a.set_label(jump)?;
        a.mov(qword_ptr(rsp), rax)?;
        a.ret()?;

        a.set_label(leave)?;
        a.dec(ecx)?;
        a.je(*over)?;
        a.call(*leave)?;
        a.ud2()?;
        a.set_label(over)?;
        a.mov(rsp, r8)?;
        a.jmp(r9)?;

        // As deep as it goes, and back.
        a.set_label(deep)?;
        a.inc(esi)?;
        a.dec(ecx)?;
        let mut bottom = a.create_label();
        a.je(bottom)?;
        a.call(*deep)?;
        a.inc(esi)?;
        a.set_label(&mut bottom)?;
        a.ret()
    });
    on_all(|name, m| {
        let mut i = image(World::Long, 0, &code);
        for (register, value) in [(0, 0), (1, 0), (2, 40), (3, 0), (6, 0), (7, 0), (4, at::DATA + 0x1000)] {
            i.cpu.gpr[register] = value;
        }
        let o = m.outcome(&i);
        assert_eq!(o.stop, StopReason::Halted, "{name}");
        let g = &o.cpu.gpr;
        let want = (40 * 5000, 40, 40 * 119, at::DATA + 0x1000);
        assert_eq!((g[3], g[7], g[6], g[4]), want, "{name}: RBX, RDI, RSI, RSP");
    });
}

/// A function that is called by its address and returns to where it begins until it has run four times.
#[test]
fn returns_to_where_the_callee_begins() {
    let code = assembled(|a| {
        let [mut top, mut f, mut done] = std::array::from_fn(|_| a.create_label());
        a.set_label(&mut top)?;
        a.lea(rax, ptr(f))?;
        // What a call returns to is in one of the host's registers or another, by what else there is.
        a.mov(qword_ptr(r8), rax)?;
        a.call(rax)?;
        a.call(rax)?;
        a.call(qword_ptr(r8))?;
        a.mov(rcx, r8)?;
        a.call(qword_ptr(rcx))?;
        a.inc(qword_ptr(r8 + 8))?;
        a.call(qword_ptr(r8))?;
        a.push(rdx)?;
        a.call(qword_ptr(r8))?;
        a.pop(rdx)?;
        a.inc(ebx)?;
        a.dec(edx)?;
        a.jne(top)?;
        a.hlt()?;
        a.set_label(&mut f)?;
        a.inc(esi)?;
        a.test(esi, 3)?;
        a.je(done)?;
        a.lea(r9, ptr(f))?;
        a.push(r9)?;
        a.ret()?;
        a.set_label(&mut done)?;
        a.ret()
    });
    on_all(|name, m| {
        let mut i = image(World::Long, 0, &code);
        for (register, value) in [(2, 1000), (3, 0), (6, 0), (8, at::DATA), (4, at::DATA + 0x1000)] {
            i.cpu.gpr[register] = value;
        }
        let o = m.outcome(&i);
        assert_eq!((o.stop, o.cpu.gpr[3], o.cpu.gpr[6]), (StopReason::Halted, 1000, 24000), "{name}: RBX, RSI");
    });
}

/// Branches that nearly always go one way, over code that then seldom runs: with flags and registers that only those who take the other
/// way see, and code behind a branch that is changed from before it.
#[test]
fn branches_that_mostly_go_one_way() {
    const STEPS: u64 = 3000;
    let code = assembled(|a| {
        let mut l: [_; 8] = std::array::from_fn(|_| a.create_label());
        let [top, seldom, over, on, past, last, odd, imm] = &mut l;
        a.set_label(top)?;
        a.inc(eax)?;
        a.mov(r9d, r8d)?;
        a.mov(r8d, eax)?;
        // Seldom taken, forward; the flags of TEST are asked for there.
        a.test(edx, 0x3f)?;
        a.je(*seldom)?;
        a.add(ebx, 3)?;
        a.mov(dword_ptr(rsi + 16), ebx)?;
        // Nearly always taken, forward.
        a.cmp(dl, 0x80)?;
        a.jne(*over)?;
        a.lahf()?;
        a.movzx(ecx, ah)?;
        a.add(r11, rcx)?;
        a.add(r11, r8)?;
        a.mov(eax, r8d)?;
        a.set_label(over)?;
        a.adc(edi, 1)?;
        a.jmp(*on)?;
        a.set_label(last)?;
        a.hlt()?;
        a.set_label(on)?;
        // Its operand is written below, and by the step before.
        a.mov(r12d, 0x1234_5678)?;
        a.set_label(imm)?;
        a.add(r13, r12)?;
        a.test(edx, 0x1ff)?;
        a.je(*odd)?;
        a.set_label(past)?;
        a.dec(edx)?;
        a.je(*last)?;
        a.jmp(*top)?;

        a.set_label(seldom)?;
        a.pushfq()?;
        a.pop(r10)?;
        a.add(r11, r10)?;
        a.add(r11, r9)?;
        a.jmp(*over)?;
        a.set_label(odd)?;
        a.lea(rcx, ptr(*imm))?;
        a.mov(dword_ptr(rcx - 4), edx)?;
        a.jmp(*past)
    });
    let run = |m: &mut Machine| {
        let mut i = image(World::Long, 0, &code);
        for (register, value) in [(0, 0), (2, STEPS), (3, 0), (4, at::DATA + 0x1000), (6, at::DATA), (7, 0)] {
            i.cpu.gpr[register] = value;
        }
        i.cpu.gpr[8..14].fill(0);
        let o = m.outcome(&i);
        assert_eq!(o.stop, StopReason::Halted);
        let g = &o.cpu.gpr;
        ([g[0], g[3], g[7], g[11], g[12], g[13]], g[8], o.cpu.rflags() & 0x8d5)
    };
    let wanted = std::cell::OnceCell::new();
    on_all(|name, m| {
        for round in 0..3 {
            let got = run(m);
            let want = wanted.get_or_init(|| got);
            assert_eq!(&got, want, "{name}, round {round}");
        }
    });
    let (registers, ..) = wanted.into_inner().unwrap();
    let (mut imm, mut sum) = (0x1234_5678, 0);
    for step in (1..=STEPS).rev() {
        sum += imm;
        imm = if step & 0x1ff == 0 { step } else { imm };
    }
    let left = STEPS / 64;
    assert_eq!((registers[1], registers[4], registers[5]), (3 * (STEPS - left), imm, sum), "RBX, R12, R13");
}

/// Two functions whose program counters have one place in the jump cache are called in turn, and one is changed then.
#[test]
fn jumps_to_program_counters_of_one_place() {
    const STEPS: u64 = 3000;
    // As `backend::jumps` spreads them.
    let place = |pc: u64| (pc as u32).wrapping_mul(0x9e37_79b1) >> 17;
    let first = at::CODE + 0x1100;
    let elsewhere = (0x32_0000..0x40_0000).find(|pc| pc & 0xfff >= 0x200 && place(*pc) == place(first)).unwrap();
    let offset = elsewhere & 0xfff;
    let code = assembled(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.mov(rax, first)?;
        a.call(rax)?;
        a.mov(rdx, elsewhere)?;
        a.call(rdx)?;
        a.dec(ecx)?;
        a.jnz(top)?;
        // INC becomes DEC.
        a.mov(byte_ptr(at::CODE + 0x1001 + offset), 0xcf)?;
        a.mov(ecx, STEPS as u32)?;
        a.inc(esi)?;
        a.cmp(esi, 2)?;
        a.jne(top)?;
        a.hlt()
    });
    on_all(|name, m| {
        let mut i = image(World::Long, 0, &code);
        i.put(first, &[0xff, 0xc3, 0xc3]);
        i.put(at::CODE + 0x1000 + offset, &[0xff, 0xc7, 0xc3]);
        i.put(at::TABLES + 0x4000 + 8 * (elsewhere >> 12 & 511), &((at::CODE + 0x1000) | 0x63).to_le_bytes());
        for (register, value) in [(1, STEPS), (3, 0), (4, at::DATA + 0x1000), (6, 0), (7, 0)] {
            i.cpu.gpr[register] = value;
        }
        for round in 0..3 {
            let o = m.outcome(&i);
            assert_eq!((o.stop, o.cpu.gpr[3], o.cpu.gpr[7]), (StopReason::Halted, 2 * STEPS, 0), "{name}, round {round}");
        }
    });
}

/// A function that returns by what was pushed, twice to where it was called from and then nowhere: the fault has the stack as it was
/// before the return, though the instructions before it have changed RSP, too.
#[test]
fn returns_to_addresses_that_are_not_canonical_have_done_nothing() {
    type Before = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let before: [(&str, u64, Before); 4] = [
        ("ret", 0, |_| Ok(())),
        ("pop; ret", 8, |a| a.pop(r10)),
        ("leave; ret", 8, |a| a.leave()),
        ("add rsp; pop; ret", 24, |a| a.add(rsp, 16).and_then(|()| a.pop(rbx))),
    ];
    for (what, taken, before) in before {
        let code = assembled(|a| {
            let [mut top, mut f] = std::array::from_fn(|_| a.create_label());
            a.set_label(&mut top)?;
            a.lea(rbp, ptr(rsp - 16))?;
            a.call(f)?;
            a.inc(ecx)?;
            a.jmp(top)?;
            a.set_label(&mut f)?;
            a.cmp(ecx, 100)?;
            a.sbb(rax, rax)?;
            a.not(rax)?;
            a.shl(rax, 62)?;
            // 0 the first hundred times.
            a.or(qword_ptr(rsp), rax)?;
            a.sub(rsp, taken as i32)?;
            before(a)?;
            a.ret()
        });
        on_all(|name, m| {
            let mut i = image(World::Long, 0, &code);
            (i.cpu.gpr[1], i.cpu.gpr[4]) = (0, at::DATA + 0x1000);
            let o = m.outcome(&i);
            let page = o.pages.iter().find(|(page, _)| *page == (at::FAULT_STACK >> 12) - 1).map(|p| &p.1[0xff0..0xff8]);
            let (then, expected) = (page.map(|b| u64::from_le_bytes(b.try_into().unwrap())), at::DATA + 0xff8);
            assert_eq!((o.stop, o.cpu.gpr[1], then), (StopReason::Halted, 100, Some(expected)), "{what}, {name}: RCX, RSP");
        });
    }
}
