//! Segment loads, far transfers, system calls.

use super::{Env, at, sel};
use crate::far::{far_call, far_jump, far_ret, iret};
use crate::fault::{gp, np, ss, ud};
use crate::flags::bit;
use crate::segment::{lar, load_ldt, load_seg, load_tr, lsl, seg_addr, verify};
use crate::state::{SegReg, Segment};
use crate::{CodeSize, syscall};
use vm_core::Fault;

#[test]
fn segment_loads_raise_what_the_manual_says() {
    let rows: [(u8, SegReg, u16, Result<(), Fault>); 13] = [
        (0, SegReg::Ds, sel::DATA0, Ok(())),
        (0, SegReg::Ds, sel::DATA3, Ok(())),
        (3, SegReg::Ds, sel::DATA0, Err(gp(sel::DATA0.into()))),
        (0, SegReg::Ds, sel::DATA0 | 3, Err(gp(sel::DATA0.into()))),
        (0, SegReg::Ds, 0, Ok(())),
        (0, SegReg::Ds, sel::ABSENT_DATA, Err(np(sel::ABSENT_DATA.into()))),
        (0, SegReg::Ds, 0x1000, Err(gp(0x1000))),
        (0, SegReg::Ds, 0x14, Err(gp(0x14))),
        (0, SegReg::Ss, sel::ABSENT_DATA, Err(ss(sel::ABSENT_DATA.into()))),
        (0, SegReg::Ss, sel::READ_ONLY, Err(gp(sel::READ_ONLY.into()))),
        (0, SegReg::Ss, sel::DATA3, Err(gp(u32::from(sel::DATA3 & !3)))),
        (0, SegReg::Ss, sel::CODE0, Err(gp(sel::CODE0.into()))),
        (0, SegReg::Cs, sel::CODE0, Err(ud())),
    ];
    for (cpl, reg, selector, want) in rows {
        let mut e = Env::protected(cpl);
        // LDTR is null: selectors with TI set name nothing.
        e.cpu.ldt.attr = Segment::UNUSABLE;
        let before = e.cpu.clone();
        assert_eq!(load_seg(&mut e, reg, selector), want, "{cpl} {reg:?} {selector:#x}");
        if want.is_err() {
            assert_eq!(e.cpu, before);
        } else {
            assert_eq!(e.cpu.seg(reg).selector, selector);
        }
    }
    assert_eq!(load_seg(&mut Env::protected(0), SegReg::Ss, 0), Err(gp(0)));
    assert_eq!(load_seg(&mut Env::long(0), SegReg::Ss, 0), Ok(()));
    assert_eq!(load_seg(&mut Env::long(3), SegReg::Ss, 3), Err(gp(0)));
}

#[test]
fn loading_sets_the_accessed_bit() {
    let mut e = Env::protected(0);
    e.desc(sel::DATA0, 0x00cf_9200_0000_ffff);
    load_seg(&mut e, SegReg::Fs, sel::DATA0).unwrap();
    assert_eq!(e.peek(at::GDT + 0x10, 8), 0x00cf_9300_0000_ffff);
}

#[test]
fn real_mode_loads_keep_limit_and_attributes() {
    let mut e = Env::real();
    e.cpu.seg_mut(SegReg::Ds).limit = u32::MAX;
    load_seg(&mut e, SegReg::Ds, 0x1234).unwrap();
    let s = *e.cpu.seg(SegReg::Ds);
    assert_eq!((s.base, s.limit, s.selector), (0x12340, u32::MAX, 0x1234));
}

#[test]
fn address_checks() {
    let mut e = Env::protected(0);
    e.cpu.seg_mut(SegReg::Ds).limit = 0xfff;
    e.cpu.seg_mut(SegReg::Ds).base = 0x1_0000;
    e.cpu.update_mode();
    let a = |e: &Env, s, o, n, w| seg_addr(&e.cpu, s, o, n, w);
    assert_eq!(a(&e, SegReg::Ds, 0xffc, 4, true), Ok(0x1_0ffc));
    assert_eq!(a(&e, SegReg::Ds, 0xffd, 4, false), Err(gp(0)));
    assert_eq!(a(&e, SegReg::Ds, u64::MAX, 4, false), Err(gp(0)));
    assert_eq!(a(&e, SegReg::Cs, 0, 4, true), Err(gp(0)), "code is not writable");
    // Expand-down: valid above the limit.
    e.cpu.seg_mut(SegReg::Ss).attr |= Segment::DC;
    e.cpu.seg_mut(SegReg::Ss).limit = 0xfff;
    assert_eq!(a(&e, SegReg::Ss, 0xfff, 1, true), Err(ss(0)));
    assert_eq!(a(&e, SegReg::Ss, 0x1000, 4, true), Ok(0x1000));
    load_seg(&mut e, SegReg::Es, 0).unwrap();
    assert_eq!(a(&e, SegReg::Es, 0, 1, false), Err(gp(0)));
    let e = Env::long(0);
    assert_eq!(a(&e, SegReg::Ds, 0x7fff_ffff_fff8, 8, false), Ok(0x7fff_ffff_fff8));
    assert_eq!(a(&e, SegReg::Ds, 0x7fff_ffff_fff9, 8, false), Err(gp(0)));
    assert_eq!(a(&e, SegReg::Ss, 1 << 63, 1, false), Err(ss(0)));
}

#[test]
fn entering_protected_and_long_code_by_far_jumps() {
    let mut e = Env::long(0);
    far_jump(&mut e, sel::COMPAT0, 0x5000, 4, 0x1236).unwrap();
    assert_eq!((e.cpu.mode().code_size(), e.cpu.rip), (CodeSize::Bits32, 0x5000));
    far_jump(&mut e, sel::CODE0, 0x6000, 4, 0x1236).unwrap();
    assert_eq!((e.cpu.mode().code_size(), e.cpu.rip), (CodeSize::Bits64, 0x6000));
    for (s, want) in [(0, gp(0)), (sel::DATA0, gp(0x10)), (sel::CODE3, gp(0x18)), (0x7000, gp(0x7000))] {
        let before = e.cpu.clone();
        assert_eq!(far_jump(&mut e, s, 0, 4, 0x1236), Err(want));
        assert_eq!(e.cpu, before);
    }
    let mut e = Env::protected(3);
    far_jump(&mut e, sel::CONFORMING, 0x10, 4, 0x1236).unwrap();
    assert_eq!((e.cpu.cpl, e.cpu.seg(SegReg::Cs).selector), (3, sel::CONFORMING | 3));
}

#[test]
fn calls_and_returns_at_the_same_level() {
    for (mut e, size) in [(Env::real(), 2), (Env::protected(0), 4), (Env::long(0), 8)] {
        let cs = e.cpu.seg(SegReg::Cs).selector;
        let (target, before) = (if size == 2 { 0x2000 } else { sel::CODE0 }, e.cpu.clone());
        far_call(&mut e, target, 0x40, size, 0x1239).unwrap();
        assert_eq!((e.cpu.rip, e.sp()), (0x40, before.gpr[4] - 2 * u64::from(size)));
        assert_eq!((e.stack(size, 0), e.stack(size, 1)), (0x1239, cs.into()));
        far_ret(&mut e, size, 6).unwrap();
        assert_eq!((e.cpu.rip, e.sp()), (0x1239, before.gpr[4] + 6));
        assert_eq!(e.cpu.seg(SegReg::Cs).selector, cs);
    }
}

#[test]
fn call_gates_switch_stacks_and_copy_parameters() {
    let mut e = Env::protected(3);
    e.desc(sel::GATE, 0x4000 | u64::from(sel::CODE0) << 16 | 2 << 32 | 0xec << 40);
    e.poke(0x9000, 8, 0x2222_2222_1111_1111);
    far_call(&mut e, sel::GATE | 3, 0xbad, 4, 0x1239).unwrap();
    let frame: Vec<u64> = (0..6).map(|i| e.stack(4, i)).collect();
    assert_eq!(frame, [0x1239, sel::CODE3.into(), 0x1111_1111, 0x2222_2222, 0x9000, sel::DATA3.into()]);
    assert_eq!((e.cpu.cpl, e.cpu.rip, e.sp()), (0, 0x4000, 0x7000 - 24));
    load_seg(&mut e, SegReg::Ds, sel::DATA0).unwrap();
    far_ret(&mut e, 4, 8).unwrap();
    assert_eq!((e.cpu.cpl, e.cpu.rip, e.sp()), (3, 0x1239, 0x9008));
    assert!(!e.cpu.seg(SegReg::Ds).usable(), "a privileged segment does not survive the return");
    // Long mode: the gate has 16 bytes and leads to 64-bit code.
    let mut e = Env::long(3);
    e.desc(sel::GATE, 0x4000 | u64::from(sel::CODE0) << 16 | 0xec << 40);
    e.desc(sel::GATE + 8, 0xffff_8000);
    far_call(&mut e, sel::GATE | 3, 0, 8, 0x1239).unwrap();
    assert_eq!((e.cpu.cpl, e.cpu.rip, e.sp()), (0, 0xffff_8000_0000_4000, 0x7000 - 32));
    assert_eq!((e.stack(8, 2), e.stack(8, 3)), (0x9000, sel::DATA3.into()));
}

#[test]
fn iret_checks_before_it_changes_anything() {
    let mut e = Env::long(0);
    let push = |e: &Env, v: [u64; 5]| v.iter().enumerate().for_each(|(i, &v)| e.poke(0x9000 + i as u64 * 8, 8, v));
    for (frame, want) in [
        ([1 << 50, sel::CODE0.into(), 2, 0x8000, 0], gp(0)),
        ([0x10, 0, 2, 0x8000, 0], gp(0)),
        ([0x10, sel::DATA0.into(), 2, 0x8000, 0], gp(sel::DATA0.into())),
        ([0x10, sel::CODE3.into(), 2, 0x8000, 0], gp(0)),
        ([0x10, sel::CODE3.into(), 2, 0x8000, sel::DATA0.into()], gp(sel::DATA0.into())),
    ] {
        push(&e, frame);
        let before = e.cpu.clone();
        assert_eq!(iret(&mut e, 8, 0x1236), Err(want), "{frame:x?}");
        assert_eq!(e.cpu, before);
    }
    push(&e, [0x10, sel::COMPAT3.into(), 0x202 | bit::IOPL, 0x1_8000, sel::DATA3.into()]);
    iret(&mut e, 8, 0x1236).unwrap();
    assert_eq!((e.cpu.cpl, e.cpu.mode().code_size(), e.sp()), (3, CodeSize::Bits32, 0x1_8000));
    assert_eq!(e.cpu.rflags(), 0x3202);
}

#[test]
fn iret_at_cpl_3_cannot_raise_iopl_or_if() {
    let mut e = Env::protected(3);
    e.cpu.set_rflags(0);
    for (i, v) in [0x10u64, sel::CODE3.into(), 0x3_7fd7].into_iter().enumerate() {
        e.poke(0x9000 + i as u64 * 4, 4, v & !bit::VM & !bit::NT);
    }
    iret(&mut e, 4, 0x1236).unwrap();
    assert_eq!(e.cpu.rflags() & (bit::IOPL | bit::IF), 0);
    assert_ne!(e.cpu.rflags() & bit::CF, 0);
}

#[test]
fn syscall_and_sysret() {
    let mut e = Env::long(3);
    let c = &mut e.cpu;
    (c.star, c.lstar, c.sfmask) = (0x0013_0008 << 32, 0xffff_8000_0000_0000, bit::IF);
    let f = c.rflags();
    syscall::syscall(c, 0x1236).unwrap();
    assert_eq!((c.cpl, c.rip, c.gpr[1], c.gpr[11]), (0, 0xffff_8000_0000_0000, 0x1236, f));
    assert_eq!(c.eflags & bit::IF, 0);
    assert_eq!((c.seg(SegReg::Cs).selector, c.seg(SegReg::Ss).selector), (8, 16));
    syscall::sysret(c, true).unwrap();
    assert_eq!((c.cpl, c.rip, c.rflags()), (3, 0x1236, f));
    assert_eq!((c.seg(SegReg::Cs).selector, c.seg(SegReg::Ss).selector), (0x23, 0x1b));
    assert_eq!(syscall::sysret(c, true), Err(gp(0)), "CPL 3");
    assert_eq!(syscall::sysenter(c), Err(ud()), "AMD has no SYSENTER in long mode");
    assert_eq!(syscall::swapgs(c), Err(gp(0)));
}

#[test]
fn task_and_local_tables() {
    let mut e = Env::long(0);
    e.desc(sel::TSS + 8, 0xffff_8000);
    load_tr(&mut e, sel::TSS).unwrap();
    assert_eq!(e.cpu.tr.base, 0xffff_8000_0000_3000);
    assert_eq!(load_tr(&mut e, sel::TSS), Err(gp(sel::TSS.into())), "busy");
    assert_eq!(load_tr(&mut e, sel::DATA0), Err(gp(sel::DATA0.into())));
    load_ldt(&mut e, 0).unwrap();
    assert!(!e.cpu.ldt.usable());
    assert_eq!(load_ldt(&mut e, sel::DATA0), Err(gp(sel::DATA0.into())));
    assert_eq!(load_tr(&mut Env::real(), sel::TSS), Err(ud()));
}

#[test]
fn looking_at_descriptors() {
    let mut e = Env::protected(3);
    assert_eq!(lar(&mut e, sel::DATA3), Ok(Some(0x00cf_f300)));
    assert_eq!(lar(&mut e, sel::DATA0), Ok(None));
    assert_eq!(lsl(&mut e, sel::DATA3), Ok(Some(u32::MAX)));
    assert_eq!(verify(&mut e, sel::CODE3, true), Ok(false));
    assert_eq!(verify(&mut e, sel::CODE3, false), Ok(true));
    assert_eq!(lar(&mut Env::real(), 8), Err(ud()));
}
