//! Debug registers: which accesses each kind and length of breakpoint meets, faults and traps, RF, DR6.

use super::{Env, sel};
use crate::debug::{db, dr6, dr7, read_dr, write_dr};
use crate::fault::gp;
use crate::flags::bit;
use crate::state::{CpuState, cr4, shadow};
use vm_core::Va;
use vm_core::guest::{Flush, GuestCpu};
use vm_core::testing::Rng;

/// A long-mode CPU whose #DB handler is at 7000h, with breakpoint 1 at `addr`: R/W and LEN in `how`.
fn with_breakpoint(addr: u64, how: u64) -> Env {
    let mut e = Env::long(0);
    e.gate(1, 14, 0, sel::CODE0, 0x7000, 0);
    write_dr(&mut e, 1, addr).unwrap();
    write_dr(&mut e, 7, how << 20 | 1 << 2).unwrap();
    e
}

#[test]
fn an_instruction_breakpoint_is_a_fault_and_rf_holds_it_back() {
    let mut e = with_breakpoint(0x1234, 0);
    assert!(e.cpu.single_step() && !e.cpu.watches(Va(0x1234)));
    assert_eq!(CpuState::before_insn(&mut e), Ok(true));
    assert_eq!((e.cpu.rip, e.stack(8, 0), e.cpu.dr[6]), (0x7000, 0x1234, dr6::ONES | 2));
    assert_eq!(e.stack(8, 2) & bit::RF, 0, "the handler sets RF");
    // The handler returns with RF set: the instruction runs once.
    e.poke(e.sp() + 16, 8, e.stack(8, 2) | bit::RF);
    crate::far::iret(&mut e, 8, 0).unwrap();
    assert_ne!(e.cpu.eflags & bit::RF, 0);
    assert_eq!(CpuState::before_insn(&mut e), Ok(false));
    assert_eq!(e.cpu.eflags & bit::RF, 0);
    assert_eq!(CpuState::before_insn(&mut e), Ok(true));
    // MOV SS holds it back too.
    let mut e = with_breakpoint(0x1234, 0);
    e.cpu.shadow = shadow::MOV_SS;
    assert_eq!(CpuState::before_insn(&mut e), Ok(false));
}

#[test]
fn data_breakpoints_meet_accesses_that_touch_them() {
    const WRITE: u64 = 1;
    const DATA: u64 = 3;
    // R/W and LEN, address, access, size, write: met?
    let rows = [
        (WRITE, 0x5000, 0x5000, 1, true, true),
        (WRITE, 0x5000, 0x5000, 1, false, false),
        (DATA, 0x5000, 0x5000, 1, false, true),
        (DATA, 0x5000, 0x5001, 1, false, false),
        (DATA | 3 << 2, 0x5002, 0x5003, 1, false, true),
        (DATA | 3 << 2, 0x5002, 0x5000, 1, true, true),
        (DATA | 3 << 2, 0x5002, 0x5004, 1, true, false),
        (DATA | 2 << 2, 0x5000, 0x5007, 1, true, true),
        (DATA | 1 << 2, 0x5001, 0x5000, 1, true, true),
        (DATA, 0x5007, 0x5000, 8, false, true),
        (DATA, 0x5008, 0x5000, 8, false, false),
        (0, 0x5000, 0x5000, 8, true, false),
        (2, 0x5000, 0x5000, 8, true, false),
    ];
    for (how, at, addr, size, write, met) in rows {
        let mut e = with_breakpoint(at, how);
        assert_eq!(e.flushes, [Flush::All], "what is watched leaves the TLB");
        assert_eq!(e.cpu.watches(Va(0x5fff)), how & 1 == 1);
        assert!(!e.cpu.watches(Va(0x6000)) && !e.cpu.watches(Va(0x4fff)));
        e.cpu.accessed(Va(addr), size, write);
        CpuState::after_insn(&mut e).unwrap();
        let want = if met { (0x7000, dr6::ONES | 2) } else { (0x1234, dr6::ONES) };
        assert_eq!((e.cpu.rip, e.cpu.dr[6]), want, "{how:x} {at:x} {addr:x} {size} {write}");
    }
}

#[test]
fn traps_of_one_instruction_are_one_exception() {
    let mut e = with_breakpoint(0x5000, 3);
    e.cpu.set_rflags(bit::TF);
    assert_eq!(CpuState::before_insn(&mut e), Ok(false));
    e.cpu.accessed(Va(0x5000), 1, true);
    // MOV SS holds them; its successor's join them.
    e.cpu.shadow = shadow::MOV_SS;
    CpuState::after_insn(&mut e).unwrap();
    assert_eq!(e.cpu.rip, 0x1234);
    e.cpu.end_shadow();
    CpuState::after_insn(&mut e).unwrap();
    assert_eq!((e.cpu.rip, e.cpu.dr[6]), (0x7000, dr6::ONES | dr6::BS | 2));
    assert_eq!(e.stack(8, 0), 0x1234);
    // An instruction that faults is run again and meets its breakpoints then.
    let mut e = with_breakpoint(0x5000, 3);
    e.gate(13, 14, 0, sel::CODE0, 0x7200, 0);
    e.cpu.accessed(Va(0x5000), 1, true);
    CpuState::deliver_fault(&mut e, gp(0)).unwrap();
    assert_eq!((e.cpu.rip, e.cpu.pending.valid), (0x7200, false));
}

#[test]
fn port_breakpoints_need_cr4_de() {
    for de in [false, true] {
        let mut e = with_breakpoint(0x3f8, 2);
        e.cpu.cr4 |= if de { cr4::DE } else { 0 };
        e.cpu.note_port(0x3f7, 1);
        e.cpu.note_port(0x3f7, 2);
        assert_eq!(e.cpu.pending.valid, de);
    }
}

#[test]
fn general_detect_faults_and_lets_the_handler_in() {
    let mut e = with_breakpoint(0, 0);
    write_dr(&mut e, 7, dr7::GD).unwrap();
    let before = e.cpu.clone();
    assert_eq!(write_dr(&mut e, 0, 1), Err(db(dr6::BD)));
    assert_eq!(read_dr(&e.cpu, 0), Err(db(dr6::BD)));
    assert_eq!(e.cpu, before);
    CpuState::deliver_fault(&mut e, db(dr6::BD)).unwrap();
    assert_eq!((e.cpu.rip, e.cpu.dr[6], e.cpu.dr[7]), (0x7000, dr6::ONES | dr6::BD, 0x400));
    assert_ne!(e.stack(8, 2) & bit::RF, 0);
    assert_eq!(read_dr(&e.cpu, 6), Ok(dr6::ONES | dr6::BD));
}

#[test]
fn random_debug_registers_never_panic() {
    let mut r = Rng(11);
    for _ in 0..3000 {
        let mut e = Env::long(0);
        e.gate(1, 14, 0, sel::CODE0, 0x7000, 0);
        for n in 0..8 {
            let v = if r.below(2) == 0 { r.next_u64() } else { u64::MAX << r.below(64) };
            let _ = write_dr(&mut e, n, if n < 6 { v } else { v & 0xffff_ffff });
        }
        let va = if r.below(2) == 0 { r.next_u64() } else { u64::MAX - r.below(16) };
        let _ = e.cpu.watches(Va(va));
        e.cpu.accessed(Va(va), [1, 2, 4, 8][r.below(4) as usize], r.below(2) == 0);
        e.cpu.note_port(va as u16, 4);
        let _ = CpuState::before_insn(&mut e);
        let _ = CpuState::after_insn(&mut e);
    }
}
