//! Fields of the task-state segment: inner stacks, IST, I/O permission bitmap (SDM 3A §7.2.1, §7.7; SDM 1 "I/O Permission
//! Bit Map").

use crate::desc::{self, Desc, code, is_null, system_va};
use crate::fault::{gp, ss, ts};
use crate::stack::system_ctx;
use crate::state::{CpuState, Segment};
use vm_core::guest::GuestEnv;
use vm_core::{Fault, Va};

/// Reads `size` bytes at `offset` of the current TSS; #TS(TSS selector) beyond its limit.
pub(crate) fn read<E: GuestEnv<Cpu = CpuState>>(env: &mut E, offset: u32, size: u8, ext: u32) -> Result<u64, Fault> {
    let cpu = env.cpu_ref();
    if !cpu.tr.usable() || offset + u32::from(size) - 1 > cpu.tr.limit {
        return Err(ts(code(cpu.tr.selector) | ext));
    }
    let (va, ctx) = (system_va(cpu, cpu.tr.base, offset.into()), system_ctx(cpu));
    env.load(Va(va), size, ctx)
}

/// Whether the TSS has the 32-bit layout (also answers for 64-bit TSSs, which have type codes 9 and 11).
fn is_32(cpu: &CpuState) -> bool {
    cpu.tr.attr >> 8 & 8 != 0
}

/// SS descriptor, selector and stack pointer for entering privilege level `cpl` < 3 outside long mode, all checked.
/// `ext` goes into the error codes.
pub(crate) fn inner_stack<E: GuestEnv<Cpu = CpuState>>(env: &mut E, cpl: u8, ext: u32) -> Result<(Desc, u16, u64), Fault> {
    let cpl32 = u32::from(cpl);
    let (sp, sel) = if is_32(env.cpu_ref()) {
        // The two fields are one unit for the limit check.
        let sel = read(env, cpl32 * 8 + 8, 2, ext)?;
        (read(env, cpl32 * 8 + 4, 4, ext)?, sel)
    } else {
        let sel = read(env, cpl32 * 4 + 4, 2, ext)?;
        (read(env, cpl32 * 4 + 2, 2, ext)?, sel)
    };
    let sel = sel as u16;
    let bad = || ts(code(sel) | ext);
    if is_null(sel) {
        return Err(ts(ext));
    }
    let d = desc::fetch(env, sel)?.ok_or_else(bad)?;
    if (sel & 3) as u8 != cpl || d.dpl() != cpl || !d.writable_data() {
        return Err(bad());
    }
    if !d.present() {
        return Err(ss(code(sel) | ext));
    }
    Ok((d, sel, sp))
}

/// RSP for privilege level `cpl` in long mode.
pub(crate) fn rsp<E: GuestEnv<Cpu = CpuState>>(env: &mut E, cpl: u8, ext: u32) -> Result<u64, Fault> {
    let sp = read(env, 4 + 8 * u32::from(cpl), 8, ext)?;
    canonical_stack(env.cpu_ref(), sp, ext)
}

/// Interrupt stack table pointer 1..=7 in long mode.
pub(crate) fn ist<E: GuestEnv<Cpu = CpuState>>(env: &mut E, index: u8, ext: u32) -> Result<u64, Fault> {
    let sp = read(env, 0x1c + 8 * u32::from(index & 7), 8, ext)?;
    canonical_stack(env.cpu_ref(), sp, ext)
}

fn canonical_stack(cpu: &CpuState, sp: u64, ext: u32) -> Result<u64, Fault> {
    if crate::paging::canonical(cpu, sp) { Ok(sp) } else { Err(ss(ext)) }
}

/// The stack segment of long mode after a change to privilege level `cpl`: null, RPL = `cpl`.
pub(crate) fn null_ss(cpl: u8) -> Segment {
    let attr = Segment::UNUSABLE | u32::from(cpl) << Segment::DPL_SHIFT;
    Segment { base: 0, limit: 0, attr, selector: cpl.into() }
}

/// Whether the I/O permission bitmap lets the guest use `size` ports at `port`; asked when CPL > IOPL or in v86 mode.
/// Errors: #GP(0), page faults.
pub fn io_allowed<E: GuestEnv<Cpu = CpuState>>(env: &mut E, port: u16, size: u8) -> Result<(), Fault> {
    if !env.cpu_ref().tr.usable() || !is_32(env.cpu_ref()) || env.cpu_ref().tr.limit < 0x67 {
        return Err(gp(0));
    }
    let map = read(env, 0x66, 2, 0)? as u32;
    // The CPU always reads two bytes (SDM 1 §19.5.2), so the byte after the last one must lie inside the limit too.
    let at = map + u32::from(port >> 3);
    if at + 1 > env.cpu_ref().tr.limit {
        return Err(gp(0));
    }
    let bits = read(env, at, 2, 0)? >> (port & 7);
    let mask = (1u64 << size.min(8)) - 1;
    if bits & mask == 0 { Ok(()) } else { Err(gp(0)) }
}
