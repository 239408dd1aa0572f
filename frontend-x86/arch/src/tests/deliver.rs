//! Frames of exceptions and interrupts in every mode, privilege checks, double and triple faults.

use super::{Env, at, sel};
use crate::deliver::{Source, software_int};
use crate::fault::{gp, np, page, vector};
use crate::flags::bit;
use crate::segment::v86_segment;
use crate::state::{CpuState, PendingEvent, SegReg, shadow};
use std::sync::atomic::Ordering;
use vm_core::guest::{GuestCpu, Shutdown};
use vm_core::{Events, Fault};

const INT: u64 = 14;
const TRAP: u64 = 15;

fn ud() -> Fault {
    crate::fault::ud()
}

#[test]
fn real_mode_pushes_three_words() {
    let mut e = Env::real();
    e.poke(4 * 0x21, 4, 0x1234_5678);
    e.cpu.set_rflags(bit::IF | bit::TF | bit::CF);
    software_int(&mut e, 0x21, 0x456, Source::SoftInt).unwrap();
    assert_eq!((e.cpu.seg(SegReg::Cs).base, e.cpu.rip), (0x12340, 0x5678));
    assert_eq!(e.sp(), 0x7ffa);
    assert_eq!([e.stack(2, 0), e.stack(2, 1), e.stack(2, 2)], [0x456, 0xf000, 0x0303]);
    assert_eq!(e.cpu.rflags(), bit::CF | bit::ONE);
}

#[test]
fn protected_mode_same_level_and_error_code() {
    let mut e = Env::protected(0);
    e.gate(13, INT, 0, sel::CODE0, 0x0012_3456, 0);
    let (before, sp) = (e.cpu.rflags(), e.sp());
    CpuState::deliver_fault(&mut e, gp(0x48)).unwrap();
    assert_eq!((e.cpu.rip, sp - e.sp()), (0x0012_3456, 16));
    let frame: Vec<u64> = (0..4).map(|i| e.stack(4, i)).collect();
    assert_eq!(frame, [0x48, 0x1234, sel::CODE0.into(), before | bit::RF]);
    assert_eq!(e.cpu.eflags & bit::IF, 0);
}

#[test]
fn protected_mode_switches_stacks_and_trap_gates_keep_if() {
    let mut e = Env::protected(3);
    e.gate(0x80, TRAP, 3, sel::CODE0, 0x4000, 0);
    let f = e.cpu.rflags();
    software_int(&mut e, 0x80, 0x1236, Source::SoftInt).unwrap();
    assert_eq!((e.cpu.cpl, e.sp(), e.cpu.rip), (0, 0x7000 - 20, 0x4000));
    let frame: Vec<u64> = (0..5).map(|i| e.stack(4, i)).collect();
    assert_eq!(frame, [0x1236, sel::CODE3.into(), f, 0x9000, sel::DATA3.into()]);
    assert_eq!(e.cpu.seg(SegReg::Ss).selector, sel::DATA0);
    assert_ne!(e.cpu.eflags & bit::IF, 0);
}

#[test]
fn sixteen_bit_gates_push_words() {
    let mut e = Env::protected(0);
    e.gate(0x30, 6, 0, sel::CODE0, 0xffff_4000, 0);
    software_int(&mut e, 0x30, 0x1236, Source::SoftInt).unwrap();
    assert_eq!((e.cpu.rip, e.sp()), (0x4000, 0x9000 - 6));
}

#[test]
fn v86_mode_saves_the_segments_and_clears_them() {
    let mut e = Env::protected(3);
    e.gate(13, INT, 0, sel::CODE0, 0x4000, 0);
    for (s, v) in SegReg::ALL.into_iter().zip([0x11, 0x22, 0x33, 0x44, 0x55, 0x66]) {
        *e.cpu.seg_mut(s) = v86_segment(v);
    }
    e.cpu.set_rflags(bit::VM | bit::IF);
    assert_eq!(software_int(&mut e, 0x21, 2, Source::SoftInt), Err(gp(0)), "IOPL is 0");
    CpuState::deliver_fault(&mut e, gp(0)).unwrap();
    let frame: Vec<u64> = (0..10).map(|i| e.stack(4, i)).collect();
    let flags = bit::VM | bit::IF | bit::RF | bit::ONE;
    assert_eq!(frame, [0, 0x1234, 0x22, flags, 0x9000, 0x33, 0x11, 0x44, 0x55, 0x66]);
    assert!(!e.cpu.v86() && !e.cpu.seg(SegReg::Ds).usable());
    // And back.
    e.cpu.gpr[4] += 4;
    crate::far::iret(&mut e, 4, 0x1236).unwrap();
    assert!(e.cpu.v86());
    assert_eq!((e.cpu.cpl, e.sp(), e.cpu.rip), (3, 0x9000, 0x1234));
    assert_eq!(e.cpu.seg(SegReg::Gs).base, 0x660);
}

#[test]
fn long_mode_frames_are_aligned_and_ist_works() {
    for (cpl, ist, top) in [(0u8, 0, 0x8ff0u64), (3, 0, 0x7000), (0, 1, 0x6000), (3, 1, 0x6000)] {
        let mut e = Env::long(cpl);
        e.cpu.gpr[4] = 0x8ff8;
        e.gate(14, INT, 0, sel::CODE0, 0xffff_8000_0000_4000, ist);
        let (f, ss, cs) = (e.cpu.rflags(), e.cpu.seg(SegReg::Ss).selector, e.cpu.seg(SegReg::Cs).selector);
        CpuState::deliver_fault(&mut e, page(0xdead_b000, 6)).unwrap();
        assert_eq!((e.cpu.rip, e.cpu.cr2, e.sp()), (0xffff_8000_0000_4000, 0xdead_b000, top - 48), "{cpl} {ist}");
        let frame: Vec<u64> = (0..6).map(|i| e.stack(8, i)).collect();
        assert_eq!(frame, [6, 0x1234, cs.into(), f | bit::RF, 0x8ff8, ss.into()]);
        let new_ss = if cpl == 3 { 0 } else { sel::DATA0 };
        assert_eq!((e.cpu.cpl, e.cpu.seg(SegReg::Ss).selector), (0, new_ss));
        // And back: IRETQ restores everything.
        e.cpu.gpr[4] += 8;
        crate::far::iret(&mut e, 8, 0x1236).unwrap();
        assert_eq!((e.cpu.cpl, e.sp(), e.cpu.rip, e.cpu.rflags()), (cpl, 0x8ff8, 0x1234, f), "RF means nothing here");
        assert_eq!(e.cpu.seg(SegReg::Ss).selector, ss);
    }
}

#[test]
fn gate_checks_name_the_vector() {
    for long in [false, true] {
        let mut e = if long { Env::long(3) } else { Env::protected(3) };
        // DPL 0 gate from CPL 3.
        e.gate(0x40, INT, 0, sel::CODE0, 0, 0);
        let before = e.cpu.clone();
        assert_eq!(software_int(&mut e, 0x40, 0, Source::SoftInt), Err(gp(0x40 * 8 + 2)));
        // Not a gate at all.
        assert_eq!(software_int(&mut e, 0x41, 0, Source::SoftInt), Err(gp(0x41 * 8 + 2)));
        // Not present.
        e.gate(0x42, INT, 3, sel::CODE0, 0, 0);
        let at = at::IDT + 0x42 * if long { 16 } else { 8 } + 5;
        e.poke(at, 1, e.peek(at, 1) & 0x7f);
        assert_eq!(software_int(&mut e, 0x42, 0, Source::SoftInt), Err(np(0x42 * 8 + 2)));
        // A data segment as target.
        e.gate(0x43, INT, 3, sel::DATA0, 0, 0);
        assert_eq!(software_int(&mut e, 0x43, 0, Source::SoftInt), Err(gp(sel::DATA0.into())));
        e.cpu.idt.limit = 0x40;
        assert_eq!(software_int(&mut e, 0x50, 0, Source::SoftInt), Err(gp(0x50 * 8 + 2)));
        e.cpu.idt.limit = before.idt.limit;
        assert_eq!(e.cpu, before, "refused interrupts change nothing");
    }
}

#[test]
fn a_stack_that_faults_leaves_the_state_and_doubles() {
    let mut e = Env::long(3);
    e.gate(14, INT, 0, sel::CODE0, 0x4000, 0);
    e.gate(8, INT, 0, sel::CODE0, 0x5000, 1);
    // RSP0 lies where nothing is mapped: the second page fault makes a double fault, on its IST stack.
    e.poke(at::TSS + 4, 8, 0x4000_0000);
    CpuState::deliver_fault(&mut e, page(0x1000, 4)).unwrap();
    assert_eq!((e.cpu.rip, e.cpu.cr2), (0x5000, 0x4000_0000 - 8));
    assert_eq!((e.stack(8, 0), e.stack(8, 1)), (0, 0x1234));
}

#[test]
fn double_and_triple_faults_follow_table_6_5() {
    // (first, present handlers, expected vector or shutdown). The IDT holds only those handlers.
    let rows: [(Fault, &[u8], Option<u8>); 6] = [
        (gp(0), &[8], Some(8)),
        (ud(), &[13], Some(13)),
        (page(0, 0), &[8], Some(8)),
        (gp(0), &[], None),
        (ud(), &[8], Some(8)),
        (page(0, 0), &[], None),
    ];
    for (first, handlers, want) in rows {
        let mut e = Env::protected(0);
        for &h in handlers {
            e.gate(h, INT, 0, sel::CODE0, 0x10_0000 + u64::from(h), 0);
        }
        let got = CpuState::deliver_fault(&mut e, first);
        match want {
            Some(v) => assert_eq!((got, e.cpu.rip), (Ok(()), 0x10_0000 + u64::from(v)), "{first:?}"),
            None => assert_eq!(got, Err(Shutdown), "{first:?}"),
        }
    }
}

#[test]
fn events_wait_for_if_and_shadow_and_wake_the_cpu() {
    let mut e = Env::long(0);
    e.gate(0x55, INT, 0, sel::CODE0, 0x4000, 0);
    e.gate(2, INT, 0, sel::CODE0, 0x5000, 0);
    e.io.vector.store(0x55, Ordering::Relaxed);
    e.io.signals.raise(Events::INTR);
    e.cpu.set_rflags(0);
    assert_eq!(CpuState::deliver_event(&mut e), Ok(false));
    e.cpu.set_rflags(bit::IF);
    e.cpu.shadow = shadow::STI;
    assert_eq!(CpuState::deliver_event(&mut e), Ok(false));
    e.cpu.shadow = shadow::NONE;
    e.cpu.halted = true;
    assert_eq!(CpuState::deliver_event(&mut e), Ok(true));
    assert_eq!((e.cpu.rip, e.cpu.halted), (0x4000, false));
    assert_eq!(e.stack(8, 2) & bit::RF, 0, "interrupts do not set RF");
    // NMIs do not nest until IRET.
    e.io.signals.raise(Events::NMI);
    assert_eq!(CpuState::deliver_event(&mut e), Ok(true));
    assert_eq!(e.cpu.rip, 0x5000);
    e.io.signals.raise(Events::NMI);
    assert_eq!(CpuState::deliver_event(&mut e), Ok(false));
    crate::far::iret(&mut e, 8, 0x1236).unwrap();
    assert_eq!(CpuState::deliver_event(&mut e), Ok(true));
}

#[test]
fn single_steps_trap_with_bs() {
    let mut e = Env::long(0);
    e.gate(vector::DB, INT, 0, sel::CODE0, 0x4000, 0);
    e.cpu.set_rflags(bit::TF);
    assert!(e.cpu.single_step());
    assert_eq!(CpuState::before_insn(&mut e), Ok(false));
    // The instruction was POPF, say.
    e.cpu.set_rflags(0);
    CpuState::after_insn(&mut e).unwrap();
    assert_eq!((e.cpu.rip, e.cpu.dr[6] & 1 << 14, e.stack(8, 2) & bit::TF), (0x4000, 1 << 14, 0));
    // INT n and faults are no steps.
    let mut e = Env::long(0);
    e.gate(vector::DB, INT, 0, sel::CODE0, 0x4000, 0);
    e.gate(0x30, INT, 0, sel::CODE0, 0x5000, 0);
    e.cpu.set_rflags(bit::TF);
    assert_eq!(CpuState::before_insn(&mut e), Ok(false));
    software_int(&mut e, 0x30, 0x1236, Source::SoftInt).unwrap();
    CpuState::after_insn(&mut e).unwrap();
    assert_eq!(e.cpu.rip, 0x5000);
    let mut e = Env::long(0);
    e.gate(vector::DB, INT, 0, sel::CODE0, 0x4000, 0);
    e.cpu.set_rflags(bit::TF);
    assert_eq!(CpuState::before_insn(&mut e), Ok(false));
    CpuState::after_insn(&mut e).unwrap();
    assert_eq!((e.cpu.rip, e.cpu.dr[6] & 1 << 14), (0x4000, 1 << 14));
    assert_eq!((e.cpu.rip, e.cpu.dr[6] & 1 << 14), (0x4000, 1 << 14));
    assert_eq!(e.stack(8, 2) & (bit::TF | bit::RF), bit::TF);
}

#[test]
fn init_and_sipi_start_an_application_processor() {
    let mut e = Env::long(0);
    e.cpu.apic_id = 1;
    e.io.signals.raise(Events::INIT);
    assert_eq!(CpuState::deliver_event(&mut e), Ok(true));
    assert!(e.cpu.wait_sipi && e.cpu.halted() && !e.cpu.protected());
    assert_eq!(CpuState::deliver_event(&mut e), Ok(false));
    e.io.signals.raise(Events::SIPI);
    assert_eq!(CpuState::deliver_event(&mut e), Ok(true));
    assert!(!GuestCpu::halted(&e.cpu) && e.cpu.rip == 0);
}

#[test]
fn an_event_another_engine_left_pending_comes_first() {
    let mut e = Env::long(0);
    e.gate(14, INT, 0, sel::CODE0, 0x4000, 0);
    e.gate(0x55, INT, 0, sel::CODE0, 0x5000, 0);
    e.io.vector.store(0x55, Ordering::Relaxed);
    e.io.signals.raise(Events::INTR);
    e.cpu.pending = PendingEvent { valid: true, vector: 14, has_error: true, error: 2, payload: 0xabc0 };
    assert_eq!(CpuState::deliver_event(&mut e), Ok(true));
    assert_eq!((e.cpu.rip, e.cpu.cr2, e.stack(8, 0)), (0x4000, 0xabc0, 2));
    assert_eq!(e.cpu.pending, PendingEvent::default());
    assert_eq!(CpuState::deliver_event(&mut e), Ok(false), "the interrupt gate cleared IF");
}

#[test]
fn smap_guards_frames_on_user_pages() {
    // The 2 MiB mapping is a user page: with SMAP and AC clear the kernel may not push to it.
    let mut e = Env::long(0);
    e.gate(6, INT, 0, sel::CODE0, 0x4000, 0);
    e.cpu.cr4 |= crate::state::cr4::SMAP;
    e.cpu.update_mode();
    assert_eq!(CpuState::deliver_fault(&mut e, ud()), Err(Shutdown), "the IDT itself lies there");
    e.poke(at::CR3 + 0x2000, 8, 0x83);
    assert_eq!(CpuState::deliver_fault(&mut e, ud()), Ok(()));
    assert_eq!(e.cpu.rip, 0x4000);
}
