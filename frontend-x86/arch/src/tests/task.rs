//! Hardware task switches: what is saved and loaded, which checks fault in which task, nesting, T flag, v86 and 16-bit tasks.

use super::{Env, at, sel};
use crate::far::{far_call, far_jump, iret};
use crate::fault::{gp, np, ss, ts, vector};
use crate::flags::bit;
use crate::state::{CpuState, SegReg, Segment, cr0, cr4};
use vm_core::Fault;
use vm_core::guest::{Flush, GuestCpu};
use vm_core::testing::Rng;

/// The other task's TSS descriptor, and where its TSS lies.
const OTHER: u16 = 0x70;
const TSS2: u64 = 0x5000;
const LDT: u16 = 0x78;
const AVAILABLE: u64 = 0x0000_8900_5000_0067;
const BUSY: u64 = 2 << 40;

/// What is wrong, how it comes about, what it raises.
type Row = (&'static str, fn(&mut Env), Fault);

/// A protected-mode CPU of privilege `cpl` whose own task is busy, and another 32-bit task of DPL 3 at CPL 0.
fn two_tasks(cpl: u8) -> Env {
    let mut e = Env::protected(cpl);
    e.desc(sel::TSS, 0x0000_8b00_3000_0067);
    e.cpu.tr.limit = 0x67;
    e.desc(OTHER, AVAILABLE | 3 << 45);
    e.desc(LDT, 0x0000_8200_6000_000f);
    for (i, v) in (0..8).map(|i| (i, 0x1111_1111 * (i + 1))) {
        e.poke(TSS2 + 0x28 + i * 4, 4, v);
    }
    for (i, s) in [sel::DATA0, sel::CODE0, sel::DATA0, sel::DATA3, 0, sel::DATA0].into_iter().enumerate() {
        e.poke(TSS2 + 0x48 + i as u64 * 4, 4, s.into());
    }
    e.poke(TSS2 + 0x20, 4, 0x4567);
    e.poke(TSS2 + 0x24, 4, bit::ONE | bit::CF | bit::IOPL);
    e.poke(TSS2 + 0x1c, 4, 0x0012_3000);
    e.poke(TSS2 + 0x38, 4, 0x8800);
    e.poke(TSS2 + 0x60, 4, LDT.into());
    e.poke(TSS2 + 0x64, 4, 0);
    e
}

fn gdt(e: &Env, s: u16) -> u64 {
    e.peek(at::GDT + u64::from(s), 8)
}

/// A fault that waits for the next instruction.
fn due(e: &Env) -> Option<Fault> {
    let p = e.cpu.pending;
    let error = p.has_error.then_some(p.error);
    p.valid.then_some(Fault { vector: p.vector, error, addr: p.payload })
}

#[test]
fn jump_saves_and_loads_everything() {
    let mut e = two_tasks(0);
    e.cpu.gpr[..8].copy_from_slice(&[1, 2, 3, 4, 0x9000, 6, 7, 8]);
    e.cpu.dr[7] = 0x7ff;
    e.poke(at::TSS, 4, 0xaaaa_aaaa);
    let flags = e.cpu.rflags();
    far_jump(&mut e, OTHER, 0xbad, 4, 0x1236).unwrap();
    assert_eq!(due(&e), None);
    // The old task.
    let saved: Vec<u64> = (0..16).map(|i| e.peek(at::TSS + 0x20 + i * 4, 4)).collect();
    assert_eq!(saved[..10], [0x1236, flags, 1, 2, 3, 4, 0x9000, 6, 7, 8]);
    assert_eq!(saved[10..13], [sel::DATA0, sel::CODE0, sel::DATA0].map(u64::from));
    assert_eq!(e.peek(at::TSS, 4), 0xaaaa_aaaa, "a jump leaves no link");
    assert_eq!(gdt(&e, sel::TSS) & BUSY, 0);
    // The new one.
    assert_eq!(gdt(&e, OTHER) & BUSY, BUSY);
    let c = &e.cpu;
    assert_eq!((c.tr.selector, c.tr.base, c.tr.limit, c.tr.attr >> 8 & 0xf), (OTHER, TSS2, 0x67, 11));
    assert_eq!((c.rip, c.rflags(), c.cpl), (0x4567, bit::ONE | bit::CF | bit::IOPL, 0));
    assert_eq!((c.gpr[0], c.gpr[4], c.gpr[7]), (0x1111_1111, 0x8800, 0x8888_8888));
    assert_eq!((c.ldt.selector, c.ldt.base, c.ldt.limit), (LDT, 0x6000, 15));
    assert_eq!((c.seg(SegReg::Ds).selector, c.seg(SegReg::Ds).limit), (sel::DATA3, u32::MAX));
    assert!(!c.seg(SegReg::Fs).usable() && c.seg(SegReg::Gs).usable());
    assert_eq!((c.cr0 & cr0::TS, c.cr3, c.dr[7]), (cr0::TS, 0, 0x6aa), "without paging CR3 is not loaded");
}

#[test]
fn call_nests_and_iret_returns() {
    let mut e = two_tasks(3);
    e.cpu.seg_mut(SegReg::Gs).attr = Segment::UNUSABLE;
    e.cpu.seg_mut(SegReg::Fs).attr = Segment::UNUSABLE;
    let before = e.cpu.clone();
    far_call(&mut e, OTHER | 3, 0, 4, 0x1236).unwrap();
    assert_eq!((e.cpu.cpl, e.cpu.eflags & bit::NT, e.peek(TSS2, 2)), (0, bit::NT, sel::TSS.into()));
    assert_eq!((gdt(&e, sel::TSS) & BUSY, gdt(&e, OTHER) & BUSY), (BUSY, BUSY));
    assert_eq!(far_call(&mut e, OTHER, 0, 4, 0), Err(gp(OTHER.into())), "busy");
    assert_eq!(e.peek(at::TSS + 0x24, 4) & bit::NT, 0);
    e.cpu.gpr[0] = 0x77;
    iret(&mut e, 4, 0x4569).unwrap();
    assert_eq!((e.peek(TSS2 + 0x20, 4), e.peek(TSS2 + 0x28, 4)), (0x4569, 0x77));
    assert_eq!(e.peek(TSS2 + 0x24, 4) & bit::NT, 0, "a task that returned is not nested");
    assert_eq!((gdt(&e, sel::TSS) & BUSY, gdt(&e, OTHER) & BUSY), (BUSY, 0));
    assert_eq!((e.cpu.rip, e.cpu.cpl, e.cpu.rflags()), (0x1236, 3, before.rflags()));
    assert_eq!(e.cpu.gpr, before.gpr);
    let shape = |c: &CpuState| c.seg.map(|s| (s.selector, s.usable(), s.base));
    assert_eq!(shape(&e.cpu)[..4], shape(&before)[..4]);
}

#[test]
fn a_task_gate_serves_a_fault() {
    let mut e = two_tasks(3);
    e.gate(13, 5, 0, OTHER, 0, 0);
    e.cpu.pending.valid = false;
    CpuState::deliver_fault(&mut e, gp(0x48)).unwrap();
    assert_eq!((e.cpu.rip, e.cpu.cpl, e.sp(), e.stack(4, 0)), (0x4567, 0, 0x8800 - 4, 0x48));
    let f = e.peek(at::TSS + 0x24, 4);
    assert_eq!((e.peek(at::TSS + 0x20, 4), f & bit::RF), (0x1234, bit::RF));
    assert_eq!((e.peek(TSS2, 2), e.cpu.eflags & bit::NT), (sel::TSS.into(), bit::NT));
    // INT n needs the gate's DPL, not the task's; interrupts of the machine need none.
    let mut e = two_tasks(3);
    e.gate(0x30, 5, 0, OTHER, 0, 0);
    let soft = crate::deliver::Source::SoftInt;
    assert_eq!(crate::deliver::software_int(&mut e, 0x30, 0x1236, soft), Err(gp(0x30 * 8 + 2)));
    e.gate(0x30, 5, 3, OTHER, 0, 0);
    crate::deliver::software_int(&mut e, 0x30, 0x1236, soft).unwrap();
    assert_eq!((e.cpu.rip, e.peek(at::TSS + 0x20, 4)), (0x4567, 0x1236));
}

#[test]
fn faults_before_the_switch_are_the_old_tasks() {
    let o = u32::from(OTHER);
    let rows: [Row; 8] = [
        ("not present", |e| e.desc(OTHER, AVAILABLE & !(1 << 47)), np(o)),
        ("busy", |e| e.desc(OTHER, AVAILABLE | BUSY), gp(o)),
        ("limit", |e| e.desc(OTHER, AVAILABLE - 1), ts(o)),
        ("a gate to no TSS", |e| e.desc(OTHER, 0x0000_8500_0000_0000 | u64::from(sel::DATA0) << 16), gp(sel::DATA0.into())),
        ("a gate to nothing", |e| e.desc(OTHER, 0x0000_8500_0000_0000), gp(0)),
        ("a gate to the LDT", |e| e.desc(OTHER, 0x0000_8500_0074_0000), gp(0x74)),
        ("old limit", |e| e.cpu.tr.limit = 0x66, ts(sel::TSS.into())),
        ("gate not present", |e| e.desc(OTHER, 0x0000_0500_0000_0000), np(o)),
    ];
    for (what, change, want) in rows {
        let mut e = two_tasks(0);
        change(&mut e);
        let before = e.cpu.clone();
        assert_eq!(far_jump(&mut e, OTHER, 0, 4, 0x1236), Err(want), "{what}");
        assert_eq!(e.cpu, before, "{what}");
        assert_eq!(e.peek(at::TSS + 0x20, 4), 0, "{what}: nothing is saved");
    }
    // DPL of the descriptor.
    let mut e = two_tasks(3);
    e.desc(OTHER, AVAILABLE);
    assert_eq!(far_jump(&mut e, OTHER | 3, 0, 4, 0x1236), Err(gp(o)));
    // IRET: the link names no busy task.
    let mut e = two_tasks(0);
    e.cpu.set_rflags(bit::NT);
    e.poke(at::TSS, 2, OTHER.into());
    assert_eq!(iret(&mut e, 4, 0x1236), Err(ts(o)));
    e.desc(OTHER, AVAILABLE & !(1 << 47) | BUSY);
    assert_eq!(iret(&mut e, 4, 0x1236), Err(np(o)));
    let mut e = Env::long(0);
    e.cpu.set_rflags(bit::NT);
    assert_eq!(iret(&mut e, 8, 0x1236), Err(gp(0)));
}

#[test]
fn faults_after_the_switch_are_the_new_tasks() {
    let rows: [Row; 16] = [
        ("LDT selector in the LDT", |e| e.poke(TSS2 + 0x60, 4, 0x7c), ts(0x7c)),
        ("LDT is none", |e| e.poke(TSS2 + 0x60, 4, sel::DATA0.into()), ts(sel::DATA0.into())),
        ("LDT not present", |e| e.desc(LDT, 0x0000_0200_6000_000f), ts(LDT.into())),
        ("CS null", |e| e.poke(TSS2 + 0x4c, 4, 0), ts(0)),
        ("CS is data", |e| e.poke(TSS2 + 0x4c, 4, sel::DATA0.into()), ts(sel::DATA0.into())),
        ("CS of another level", |e| e.poke(TSS2 + 0x4c, 4, 9), ts(8)),
        ("CS outside", |e| e.poke(TSS2 + 0x4c, 4, 0x1000), ts(0x1000)),
        ("CS not present", |e| e.desc(sel::CODE0, 0x00cf_1b00_0000_ffff), np(sel::CODE0.into())),
        ("SS null", |e| e.poke(TSS2 + 0x50, 4, 0), ts(0)),
        ("SS of another level", |e| e.poke(TSS2 + 0x50, 4, sel::DATA3.into()), ts(u32::from(sel::DATA3 & !3))),
        ("SS read-only", |e| e.poke(TSS2 + 0x50, 4, sel::READ_ONLY.into()), ts(sel::READ_ONLY.into())),
        ("SS not present", |e| e.poke(TSS2 + 0x50, 4, sel::ABSENT_DATA.into()), ss(sel::ABSENT_DATA.into())),
        ("DS not present", |e| e.poke(TSS2 + 0x54, 4, sel::ABSENT_DATA.into()), np(sel::ABSENT_DATA.into())),
        ("GS is the TSS", |e| e.poke(TSS2 + 0x5c, 4, sel::TSS.into()), ts(sel::TSS.into())),
        ("DS above its level", |e| e.poke(TSS2 + 0x54, 4, u64::from(sel::DATA0 | 1)), ts(sel::DATA0.into())),
        ("EIP beyond CS", |e| e.desc(sel::CODE0, 0x0040_9b00_0000_0fff), gp(0)),
    ];
    for (what, change, want) in rows {
        let mut e = two_tasks(0);
        change(&mut e);
        far_jump(&mut e, OTHER, 0, 4, 0x1236).unwrap();
        assert_eq!(due(&e), Some(want), "{what}");
        assert_eq!((e.cpu.tr.selector, e.cpu.rip, e.peek(at::TSS + 0x20, 4)), (OTHER, 0x4567, 0x1236), "{what}");
        assert_eq!(gdt(&e, OTHER) & BUSY, BUSY, "{what}");
    }
    // It is delivered before the new task's first instruction.
    let mut e = two_tasks(0);
    e.poke(TSS2 + 0x54, 4, sel::ABSENT_DATA.into());
    e.gate(11, 14, 0, sel::CODE0, 0x7000, 0);
    far_jump(&mut e, OTHER, 0, 4, 0x1236).unwrap();
    assert!(CpuState::before_insn(&mut e).unwrap());
    assert_eq!((e.cpu.rip, e.stack(4, 0), e.stack(4, 1)), (0x7000, sel::ABSENT_DATA.into(), 0x4567));
    assert_eq!(due(&e), None);
    // A fault of the switch that an exception caused escalates: #GP, then #TS, is a double fault.
    let mut e = two_tasks(0);
    e.gate(13, 5, 0, OTHER, 0, 0);
    e.poke(TSS2 + 0x54, 4, sel::TSS.into());
    e.gate(8, 14, 0, sel::CODE0, 0x8000, 0);
    CpuState::deliver_fault(&mut e, gp(0)).unwrap();
    assert_eq!((e.cpu.rip, e.cpu.tr.selector, e.stack(4, 0), e.stack(4, 1)), (0x8000, OTHER, 0, 0x4567));
}

#[test]
fn the_t_flag_traps_before_the_first_instruction() {
    let mut e = two_tasks(0);
    e.poke(TSS2 + 0x64, 4, 1);
    e.gate(1, 14, 0, sel::CODE0, 0x7100, 0);
    far_jump(&mut e, OTHER, 0, 4, 0x1236).unwrap();
    assert!(CpuState::before_insn(&mut e).unwrap());
    assert_eq!((e.cpu.rip, e.cpu.dr[6], e.stack(4, 0)), (0x7100, 0xffff_8ff0, 0x4567));
    assert_eq!(e.stack(4, 2) & bit::RF, 0, "a trap");
}

#[test]
fn sixteen_bit_tasks() {
    let mut e = two_tasks(0);
    e.desc(OTHER, 0x0000_8100_5000_002b);
    e.poke(TSS2 + 0x0e, 2, 0x4321);
    e.poke(TSS2 + 0x10, 2, bit::CF);
    (0..8).for_each(|i| e.poke(TSS2 + 0x12 + i * 2, 2, 0x1000 + i));
    for (i, s) in [sel::DATA0, sel::CODE0, sel::DATA0, sel::DATA0].into_iter().enumerate() {
        e.poke(TSS2 + 0x22 + i as u64 * 2, 2, s.into());
    }
    e.poke(TSS2 + 0x2a, 2, 0);
    far_call(&mut e, OTHER, 0, 4, 0x1236).unwrap();
    assert_eq!(due(&e), None);
    let c = &mut e.cpu;
    assert_eq!((c.rip, c.rflags()), (0x4321, bit::ONE | bit::CF | bit::NT));
    assert_eq!((c.gpr[0], c.gpr[4]), (0xffff_1000, 0xffff_1004));
    assert!(!c.ldt.usable() && !c.seg(SegReg::Fs).usable() && !c.seg(SegReg::Gs).usable());
    c.gpr[0] = 0x5555_6666;
    iret(&mut e, 4, 0x4323).unwrap();
    assert_eq!((e.peek(TSS2 + 0x0e, 2), e.peek(TSS2 + 0x12, 2), e.peek(TSS2 + 0x14, 2)), (0x4323, 0x6666, 0x1001));
    assert_eq!(e.cpu.rip, 0x1236);
    e.desc(OTHER, 0x0000_8100_5000_002a);
    assert_eq!(far_jump(&mut e, OTHER, 0, 4, 0), Err(ts(OTHER.into())));
}

#[test]
fn virtual_8086_tasks() {
    let mut e = two_tasks(0);
    e.poke(TSS2 + 0x24, 4, bit::VM | bit::IOPL);
    for i in 0..6 {
        e.poke(TSS2 + 0x48 + i * 4, 4, 0x1000 + i);
    }
    far_jump(&mut e, OTHER, 0, 4, 0x1236).unwrap();
    assert_eq!(due(&e), None);
    assert!(e.cpu.v86() && e.cpu.cpl == 3);
    assert_eq!((e.cpu.seg(SegReg::Cs).base, e.cpu.seg(SegReg::Gs).limit), (0x1_0010, 0xffff));
    // Out again through a task gate.
    e.desc(sel::TSS, 0x0000_8900_3000_0067);
    e.gate(13, 5, 0, sel::TSS, 0, 0);
    CpuState::deliver_fault(&mut e, gp(0)).unwrap();
    assert!(!e.cpu.v86() && e.cpu.cpl == 0);
    assert_eq!((e.cpu.rip, e.peek(TSS2 + 0x24, 4) & bit::VM), (0x1236, bit::VM));
}

#[test]
fn paging_loads_cr3_and_page_faults_come_first() {
    let mut e = two_tasks(0);
    // One 4 MiB page 1:1, and tables of the new task alike.
    (e.cpu.cr4, e.cpu.cr3) = (cr4::PSE, 0x12_0000);
    e.poke(0x12_0000, 4, 0x87);
    e.poke(0x12_3000, 4, 0x87);
    e.cpu.cr0 |= cr0::PG;
    far_jump(&mut e, OTHER, 0, 4, 0x1236).unwrap();
    assert_eq!((due(&e), e.cpu.cr3, e.flushes.as_slice()), (None, 0x12_3000, [Flush::NonGlobal].as_slice()));
    // The old TSS is not writable: nothing happens. (The new TSS lies in another page.)
    let mut e = two_tasks(0);
    (e.cpu.cr4, e.cpu.cr3) = (0, 0x12_0000);
    e.cpu.cr0 |= cr0::PG | cr0::WP;
    e.poke(0x12_0000, 4, 0x12_1007);
    (0..512).for_each(|i| e.poke(0x12_1000 + i * 4, 4, i << 12 | if i == 3 { 5 } else { 7 }));
    let before = e.cpu.clone();
    assert_eq!(far_jump(&mut e, OTHER, 0, 4, 0x1236), Err(crate::fault::page(0x3020, 3)));
    assert_eq!((e.cpu == before, gdt(&e, OTHER) & BUSY), (true, 0));
}

#[test]
fn random_tasks_never_panic_and_refused_switches_change_nothing() {
    let mut r = Rng(7);
    let (mut done, mut pended) = (0, 0);
    for round in 0..20_000 {
        let mut e = two_tasks(if round % 3 == 0 { 3 } else { 0 });
        for _ in 0..r.below(4) {
            let at = [at::TSS, TSS2][r.below(2) as usize] + r.below(0x68);
            e.poke(at, 2, r.next_u64());
        }
        for _ in 0..r.below(3) {
            let s = (r.below(16) * 8) as u16;
            e.desc(s, gdt(&e, s) ^ 1 << r.below(64));
        }
        e.gate(13, 5, 0, OTHER, 0, 0);
        if r.below(4) == 0 {
            e.cpu.set_rflags(bit::NT);
            e.poke(at::TSS, 2, OTHER.into());
            e.desc(OTHER, AVAILABLE | BUSY);
        }
        let before = e.cpu.clone();
        let result = match r.below(4) {
            0 => far_jump(&mut e, OTHER | 3, 0, 4, 0x1236),
            1 => far_call(&mut e, OTHER, 0, 4, 0x1236),
            2 => iret(&mut e, 4, 0x1236),
            _ => {
                let _ = CpuState::deliver_fault(&mut e, gp(0));
                continue;
            }
        };
        match result {
            Err(_) => assert_eq!(e.cpu, before, "round {round}"),
            Ok(()) if due(&e).is_some_and(|f| f.vector != vector::DB) => {
                pended += 1;
                let _ = CpuState::before_insn(&mut e);
            }
            Ok(()) => done += 1,
        }
    }
    assert!(done > 1000 && pended > 500, "{done} {pended}");
}
