//! SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS (SDM 2B; AMD APM volume 2 §6.1).

use crate::cpuid::feature;
use crate::fault::{gp, ud};
use crate::flags::bit;
use crate::paging::canonical;
use crate::state::{CpuState, SegReg, Segment, efer};
use vm_core::Fault;

const CODE: u32 = Segment::P | Segment::S | Segment::CODE | Segment::RW | Segment::ACCESSED | Segment::G;
const DATA: u32 = Segment::P | Segment::S | Segment::RW | Segment::ACCESSED | Segment::G | Segment::DB;

/// A flat segment with fixed contents: these instructions read no descriptor.
fn flat(selector: u16, attr: u32, dpl: u8) -> Segment {
    Segment { base: 0, limit: u32::MAX, attr: attr | u32::from(dpl) << Segment::DPL_SHIFT, selector }
}

fn set_segments(cpu: &mut CpuState, cs: u16, ss: u16, code: u32, cpl: u8) {
    *cpu.seg_mut(SegReg::Cs) = flat(cs, CODE | code, cpl);
    *cpu.seg_mut(SegReg::Ss) = flat(ss, DATA, cpl);
    cpu.cpl = cpl;
}

fn syscall_enabled(cpu: &CpuState) -> Result<(), Fault> {
    let ok = cpu.efer & efer::SCE != 0 && cpu.has(feature::SYSCALL) && cpu.protected() && !cpu.v86();
    if ok { Ok(()) } else { Err(ud()) }
}

/// SYSCALL; `next_rip` is the return address. Errors: #UD.
pub fn syscall(cpu: &mut CpuState, next_rip: u64) -> Result<(), Fault> {
    syscall_enabled(cpu)?;
    let selector = (cpu.star >> 32) as u16 & !3;
    let flags = cpu.rflags();
    cpu.gpr[1] = next_rip;
    if cpu.long_mode() {
        cpu.gpr[11] = flags & !bit::RF;
        cpu.rip = if cpu.mode().is_64() { cpu.lstar } else { cpu.cstar };
        set_segments(cpu, selector, selector.wrapping_add(8), Segment::L, 0);
        cpu.set_rflags(flags & !cpu.sfmask & !bit::RF);
        // Unlike other instructions it is stepped over by what TF is then.
        if cpu.eflags & bit::TF == 0 {
            cpu.no_step();
        }
    } else {
        cpu.rip = cpu.star & 0xffff_ffff;
        cpu.gpr[1] &= 0xffff_ffff;
        set_segments(cpu, selector, selector.wrapping_add(8), Segment::DB, 0);
        cpu.set_rflags(flags & !(bit::IF | bit::VM | bit::RF));
    }
    Ok(())
}

/// SYSRET; `wide`: REX.W, return to 64-bit code. Errors: #UD, #GP(0).
pub fn sysret(cpu: &mut CpuState, wide: bool) -> Result<(), Fault> {
    syscall_enabled(cpu)?;
    // Intel faults here for a non-canonical RCX, AMD after the change of level; the safe one is ours.
    if cpu.cpl != 0 || wide && !canonical(cpu, cpu.gpr[1]) {
        return Err(gp(0));
    }
    let base = (cpu.star >> 48) as u16;
    let (cs, ss) = (if wide { base.wrapping_add(16) } else { base }, base.wrapping_add(8));
    let code = if wide { Segment::L } else { Segment::DB };
    cpu.rip = if wide { cpu.gpr[1] } else { cpu.gpr[1] & 0xffff_ffff };
    let flags = if cpu.long_mode() { cpu.gpr[11] & !(bit::RF | bit::VM) & 0x3f_7fd7 } else { cpu.rflags() | bit::IF };
    set_segments(cpu, cs | 3, ss | 3, code, 3);
    cpu.set_rflags(flags);
    Ok(())
}

/// AMD CPUs have SYSENTER and SYSEXIT only outside long mode (APM 3 "SYSENTER"): #UD.
fn sysenter_exists(cpu: &CpuState) -> Result<(), Fault> {
    if cpu.long_mode() && crate::cpuid::is_amd(cpu) { Err(ud()) } else { Ok(()) }
}

/// SYSENTER. Errors: #UD, #GP(0).
pub fn sysenter(cpu: &mut CpuState) -> Result<(), Fault> {
    sysenter_exists(cpu)?;
    let selector = cpu.sysenter_cs as u16 & !3;
    if !cpu.protected() || selector == 0 {
        return Err(gp(0));
    }
    let long = cpu.long_mode();
    cpu.rip = if long { cpu.sysenter_eip } else { cpu.sysenter_eip & 0xffff_ffff };
    cpu.gpr[4] = if long { cpu.sysenter_esp } else { cpu.sysenter_esp & 0xffff_ffff };
    let code = if long { Segment::L } else { Segment::DB };
    set_segments(cpu, selector, selector.wrapping_add(8), code, 0);
    let flags = cpu.rflags() & !(bit::VM | bit::IF | bit::RF);
    cpu.set_rflags(flags);
    Ok(())
}

/// SYSEXIT; `wide`: REX.W. Errors: #UD, #GP(0).
pub fn sysexit(cpu: &mut CpuState, wide: bool) -> Result<(), Fault> {
    sysenter_exists(cpu)?;
    let base = cpu.sysenter_cs as u16 & !3;
    if !cpu.protected() || base == 0 || cpu.cpl != 0 {
        return Err(gp(0));
    }
    let (rip, rsp) = (cpu.gpr[2], cpu.gpr[1]);
    if wide && !(canonical(cpu, rip) && canonical(cpu, rsp)) {
        return Err(gp(0));
    }
    let (first, code) = if wide { (32, Segment::L) } else { (16, Segment::DB) };
    cpu.rip = if wide { rip } else { rip & 0xffff_ffff };
    cpu.gpr[4] = if wide { rsp } else { rsp & 0xffff_ffff };
    let cs = base.wrapping_add(first);
    set_segments(cpu, cs | 3, cs.wrapping_add(8) | 3, code, 3);
    cpu.update_mode();
    Ok(())
}

/// SWAPGS. Errors: #UD outside 64-bit code, #GP(0) above CPL 0.
pub fn swapgs(cpu: &mut CpuState) -> Result<(), Fault> {
    if !cpu.mode().is_64() {
        return Err(ud());
    }
    if cpu.cpl != 0 {
        return Err(gp(0));
    }
    let old = cpu.seg(SegReg::Gs).base;
    cpu.seg_mut(SegReg::Gs).base = cpu.kernel_gs_base;
    cpu.kernel_gs_base = old;
    Ok(())
}
