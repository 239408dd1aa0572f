//! Random tables, selectors and register values: nothing may panic, and refused operations change no register.

use super::{Env, RAM_SIZE, at};
use crate::deliver::{Source, software_int};
use crate::far::{far_call, far_jump, far_ret, iret};
use crate::fault::{gp, page};
use crate::mode::ctx;
use crate::segment::{lar, load_ldt, load_seg, load_tr, lsl, seg_addr, verify};
use crate::state::{CpuState, SegReg};
use crate::{control, cpuid, msr, paging, syscall, tss};
use vm_core::guest::GuestCpu;
use vm_core::testing::Rng;
use vm_core::{Access, Fault, Va};

fn interesting(r: &mut Rng) -> u64 {
    let n = r.next_u64();
    match n & 7 {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << (n >> 8 & 63),
        3 => n >> 48,
        4 => n >> 32,
        5 => 0xffff_8000_0000_0000 | n >> 40,
        _ => n,
    }
}

fn scramble_tables(e: &Env, r: &mut Rng) {
    for base in [at::IDT, at::GDT, at::TSS, 0x8000] {
        for i in 0..64 {
            e.poke(base + i * 8, 8, interesting(r));
        }
        for _ in 0..12 {
            // Present gates and segments with small selectors are likelier to get far.
            let v = r.next_u64() & 0x00ff_ff00_0078_ffff | 1 << 47;
            e.poke(base + r.below(64) * 8, 8, v);
        }
    }
}

fn one(e: &mut Env, r: &mut Rng) -> Result<(), Fault> {
    let (selector, v) = (r.next_u64() as u16 & if r.below(2) == 0 { 0x7f } else { 0xffff }, interesting(r));
    let size = [2, 4, 8][r.below(3) as usize];
    let seg = SegReg::ALL[r.below(6) as usize];
    match r.below(20) {
        0 => software_int(e, v as u8, v, Source::SoftInt),
        1 => software_int(e, 3, v, Source::SoftException),
        2 => far_jump(e, selector, v, size, 0x1236),
        3 => far_call(e, selector, v, size, v),
        4 => far_ret(e, size, v & 0xffff),
        5 => iret(e, size, 0x1236),
        6 => load_seg(e, seg, selector),
        7 => load_ldt(e, selector),
        8 => load_tr(e, selector),
        9 => lar(e, selector).map(|_| ()),
        10 => lsl(e, selector).map(|_| ()),
        11 => verify(e, selector, size == 2).map(|_| ()),
        12 => seg_addr(&e.cpu, seg, v, r.below(64), size == 4).map(|_| ()),
        13 => control::write_cr(e, r.below(16) as u8, v),
        14 => msr::wrmsr(e, [v as u32, 0x200 + r.below(0x100) as u32][r.below(2) as usize], r.next_u64()),
        15 => msr::rdmsr(e, v as u32).map(|_| ()),
        16 => tss::io_allowed(e, v as u16, size),
        17 => syscall::syscall(&mut e.cpu, v),
        18 => syscall::sysret(&mut e.cpu, size == 8),
        _ => control::lmsw(e, v as u16),
    }
}

#[test]
fn random_tables_never_panic_and_faults_change_nothing() {
    let mut r = Rng(1);
    for round in 0..6000 {
        let cpl = if r.below(2) == 0 { 0 } else { 3 };
        let mut e = match round % 4 {
            0 => Env::real(),
            1 => Env::protected(cpl),
            _ => Env::long(cpl),
        };
        scramble_tables(&e, &mut r);
        e.cpu.gpr[4] = [0x8000, 1, interesting(&mut r)][r.below(3) as usize];
        if r.below(4) == 0 {
            e.cpu.tr.limit = r.below(0x100) as u32;
            e.cpu.gdt.limit = r.next_u64() as u16;
            e.cpu.gdt.base = interesting(&mut r);
        }
        for _ in 0..4 {
            let before = e.cpu.clone();
            if one(&mut e, &mut r).is_err() {
                assert_eq!(e.cpu, before, "round {round}");
            }
        }
        let fault = if r.below(2) == 0 { gp(r.next_u64() as u32) } else { page(r.next_u64(), 7) };
        let _ = CpuState::deliver_fault(&mut e, fault);
        let _ = (e.cpu.dump(), e.cpu.linear(interesting(&mut r)));
    }
}

#[test]
fn random_page_tables_never_panic() {
    let mut r = Rng(2);
    for round in 0..300 {
        let mut e = Env::long(0);
        for i in 0..2048u64 {
            let v = r.next_u64() & 0x8000_0000_001f_ffff | if r.below(8) == 0 { r.next_u64() } else { 1 };
            e.poke(at::CR3 + i * 8, 8, v);
        }
        match round % 3 {
            0 => e.cpu.efer = 0,
            1 => (e.cpu.efer, e.cpu.cr4) = (0, 0x10),
            _ => e.cpu.cr4 |= if round % 2 == 0 { 0x1000 } else { 0 },
        }
        e.cpu.pdpte = [at::CR3 | 1, r.next_u64(), 0, r.next_u64() & RAM_SIZE | 1];
        for _ in 0..64 {
            let access = [Access::Read, Access::Write, Access::Execute][r.below(3) as usize];
            let va = Va(interesting(&mut r));
            let _ = e.cpu.walk(va, access, r.below(3) as usize, &e.io);
            let _ = e.cpu.debug_walk(va, &e.io);
        }
        if round % 50 == 0 {
            let _ = paging::dump_mappings(&e.cpu, &e.io);
        }
    }
    let e = Env::long(0);
    assert!(e.cpu.walk(Va(0), Access::Read, ctx::KERNEL, &e.io).is_ok());
}

#[test]
fn random_cpuid_leaves_never_panic() {
    let mut r = Rng(3);
    let e = Env::long(0);
    for _ in 0..2000 {
        cpuid::cpuid(&e.cpu, interesting(&mut r) as u32, r.next_u64() as u32);
    }
    for leaf in (0..32).chain(0x8000_0000..0x8000_0040) {
        (0..8).for_each(|s| {
            cpuid::cpuid(&e.cpu, leaf, s);
        });
    }
}
