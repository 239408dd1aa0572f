//! Segment registers: loads with all checks, LDTR, TR, address checks, LAR, LSL, VERR, VERW (SDM 3A chapters 3 and 5).

use crate::desc::{self, Desc, code, is_null, set_type_bits, system};
use crate::fault::{ac, gp, np, ss, ud};
use crate::paging::{canonical, unmappable};
use crate::stack::{in_limit, system_ctx};
use crate::state::{CpuState, DescTable, SegReg, Segment};
use vm_core::guest::GuestEnv;
use vm_core::{Fault, Va};

const DATA_RW: u32 = Segment::P | Segment::S | Segment::RW | Segment::ACCESSED;

/// Attributes of every segment in virtual-8086 mode: present, writable data, DPL 3.
pub(crate) fn v86_segment(selector: u16) -> Segment {
    let attr = DATA_RW | 3 << Segment::DPL_SHIFT;
    Segment { base: u64::from(selector) << 4, limit: 0xffff, attr, selector }
}

/// A null selector loaded into a data segment register.
pub(crate) fn null_segment(selector: u16) -> Segment {
    Segment { base: 0, limit: 0, attr: Segment::UNUSABLE, selector }
}

/// Real-mode load: base and selector change; limit and attributes stay, as on hardware ("unreal" mode).
pub(crate) fn real_load(old: &Segment, selector: u16) -> Segment {
    let base = u64::from(selector) << 4;
    if old.usable() { Segment { base, selector, ..*old } } else { Segment { base, selector, limit: 0xffff, attr: DATA_RW } }
}

/// Linear address of `size` bytes at `offset` in `seg`, checked for limit, type and canonical form.
/// Errors: #SS(0) for SS, else #GP(0).
pub fn seg_addr(cpu: &CpuState, seg: SegReg, offset: u64, size: u64, write: bool) -> Result<u64, Fault> {
    let s = cpu.seg(seg);
    let fail = || if seg == SegReg::Ss { ss(0) } else { gp(0) };
    let mode = cpu.mode();
    if mode.is_64() {
        let base = if matches!(seg, SegReg::Fs | SegReg::Gs) { s.base } else { 0 };
        let va = base.wrapping_add(offset);
        let last = va.wrapping_add(size.max(1) - 1);
        return if canonical(cpu, va) && canonical(cpu, last) { Ok(va) } else { Err(fail()) };
    }
    if mode.protected() && !access_ok(s, write) || !in_limit(s, offset, size) {
        return Err(fail());
    }
    Ok(s.base.wrapping_add(offset) & 0xffff_ffff)
}

/// #AC(0) unless linear address `va` of `size` bytes is a multiple of `by`, a power of two. Errors: that, or #GP(0) of an address that is not
/// canonical or of an access beyond the last, which count before it.
pub fn aligned(cpu: &CpuState, va: u64, by: u64, size: u64) -> Result<(), Fault> {
    if va & (by - 1) == 0 {
        return Ok(());
    }
    let last = va.wrapping_add(size - 1);
    if !cpu.mode().is_64() && last >> 32 != 0 {
        return Err(Fault { addr: va, ..gp(0) });
    }
    Err([va, last].into_iter().find_map(|a| unmappable(cpu, Va(a))).unwrap_or(ac()))
}

/// Type checks of protected mode: code is never writable and may be unreadable.
fn access_ok(s: &Segment, write: bool) -> bool {
    if !s.usable() {
        return false;
    }
    match (s.attr & Segment::CODE != 0, s.attr & Segment::RW != 0) {
        (true, rw) => !write && rw,
        (false, rw) => !write || rw,
    }
}

/// MOV or POP to a segment register, LES, LDS, LSS, LFS, LGS. CS: #UD.
/// Errors: #UD, #GP, #NP, #SS (all with the selector), page faults; nothing has changed then.
pub fn load_seg<E: GuestEnv<Cpu = CpuState>>(env: &mut E, reg: SegReg, selector: u16) -> Result<(), Fault> {
    if reg == SegReg::Cs {
        return Err(ud());
    }
    let cpu = env.cpu_ref();
    let new = if !cpu.protected() {
        real_load(cpu.seg(reg), selector)
    } else if cpu.v86() {
        v86_segment(selector)
    } else if reg == SegReg::Ss {
        let cpl = cpu.cpl;
        stack_segment(env, selector, cpl)?
    } else {
        data_segment(env, selector)?
    };
    let cpu = env.cpu();
    *cpu.seg_mut(reg) = new;
    cpu.update_mode();
    Ok(())
}

fn stack_segment<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16, cpl: u8) -> Result<Segment, Fault> {
    let rpl = (selector & 3) as u8;
    if is_null(selector) {
        let ok = env.cpu_ref().mode().is_64() && cpl < 3 && rpl == cpl;
        return if ok { Ok(crate::tss::null_ss(cpl)) } else { Err(gp(0)) };
    }
    let bad = || gp(code(selector));
    let mut d = desc::fetch(env, selector)?.ok_or_else(bad)?;
    if rpl != cpl || !d.writable_data() || d.dpl() != cpl {
        return Err(bad());
    }
    if !d.present() {
        return Err(ss(code(selector)));
    }
    set_type_bits(env, &mut d, 1)?;
    Ok(d.segment(selector))
}

fn data_segment<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16) -> Result<Segment, Fault> {
    if is_null(selector) {
        return Ok(null_segment(selector));
    }
    let bad = || gp(code(selector));
    let mut d = desc::fetch(env, selector)?.ok_or_else(bad)?;
    let (rpl, cpl) = ((selector & 3) as u8, env.cpu_ref().cpl);
    let conforming = d.is_code() && d.conforming();
    if !d.readable() || !conforming && d.dpl() < rpl.max(cpl) {
        return Err(bad());
    }
    if !d.present() {
        return Err(np(code(selector)));
    }
    set_type_bits(env, &mut d, 1)?;
    Ok(d.segment(selector))
}

/// LLDT and LTR exist only in protected mode and at CPL 0.
fn system_load_allowed(cpu: &CpuState) -> Result<(), Fault> {
    if !cpu.mode().protected() {
        return Err(ud());
    }
    if cpu.cpl != 0 { Err(gp(0)) } else { Ok(()) }
}

/// A system descriptor as a segment register: 64-bit base in long mode.
fn system_segment<E: GuestEnv<Cpu = CpuState>>(env: &mut E, d: &Desc, selector: u16) -> Result<Segment, Fault> {
    let mut seg = d.segment(selector);
    if env.cpu_ref().long_mode() {
        let ctx = system_ctx(env.cpu_ref());
        let high = env.load(Va(d.va.wrapping_add(8)), 8, ctx)?;
        seg.base |= high << 32;
        // The upper type field must be 0 and the base canonical.
        if high >> 40 & 0x1f != 0 || !canonical(env.cpu_ref(), seg.base) {
            return Err(gp(code(selector)));
        }
    }
    Ok(seg)
}

/// LLDT.
pub fn load_ldt<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16) -> Result<(), Fault> {
    system_load_allowed(env.cpu_ref())?;
    if is_null(selector) {
        env.cpu().ldt = null_segment(selector);
        return Ok(());
    }
    let bad = || gp(code(selector));
    if selector & 4 != 0 {
        return Err(bad());
    }
    let size = if env.cpu_ref().long_mode() { 16 } else { 8 };
    let d = desc::fetch_sized(env, selector, size)?.ok_or_else(bad)?;
    if !d.is_system() || d.kind() != system::LDT {
        return Err(bad());
    }
    if !d.present() {
        return Err(np(code(selector)));
    }
    let seg = system_segment(env, &d, selector)?;
    env.cpu().ldt = seg;
    Ok(())
}

/// LTR: marks the TSS busy.
pub fn load_tr<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16) -> Result<(), Fault> {
    system_load_allowed(env.cpu_ref())?;
    if is_null(selector) {
        return Err(gp(0));
    }
    let bad = || gp(code(selector));
    if selector & 4 != 0 {
        return Err(bad());
    }
    let long = env.cpu_ref().long_mode();
    let mut d = desc::fetch_sized(env, selector, if long { 16 } else { 8 })?.ok_or_else(bad)?;
    let available = d.kind() == system::TSS32 || d.kind() == system::TSS16 && !long;
    if !d.is_system() || !available {
        return Err(bad());
    }
    if !d.present() {
        return Err(np(code(selector)));
    }
    let mut seg = system_segment(env, &d, selector)?;
    set_type_bits(env, &mut d, 2)?;
    seg.attr |= 2 << 8;
    env.cpu().tr = seg;
    Ok(())
}

/// LGDT, LIDT. `limit` and `base` as read from memory, `base` already cut to 24 bits for 16-bit operands.
pub fn load_table<E: GuestEnv<Cpu = CpuState>>(env: &mut E, idt: bool, limit: u16, base: u64) -> Result<(), Fault> {
    let cpu = env.cpu();
    if cpu.cpl != 0 || cpu.mode().is_64() && !canonical(cpu, base) {
        return Err(gp(0));
    }
    let table = DescTable { base: if cpu.mode().is_64() { base } else { base & 0xffff_ffff }, limit };
    if idt {
        cpu.idt = table
    } else {
        cpu.gdt = table
    }
    Ok(())
}

/// The descriptor that LAR, LSL, VERR, VERW look at, if it can be seen from here. They exist only in protected mode: #UD.
fn visible<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16) -> Result<Option<Desc>, Fault> {
    if !env.cpu_ref().mode().protected() {
        return Err(ud());
    }
    let Some(d) = desc::fetch(env, selector)? else {
        return Ok(None);
    };
    let (rpl, cpl) = ((selector & 3) as u8, env.cpu_ref().cpl);
    let conforming = d.is_code() && d.conforming();
    Ok((conforming || d.dpl() >= rpl.max(cpl)).then_some(d))
}

/// LAR: the access rights, `None` clears ZF.
pub fn lar<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16) -> Result<Option<u32>, Fault> {
    let long = env.cpu_ref().long_mode();
    let Some(d) = visible(env, selector)? else {
        return Ok(None);
    };
    let ok = !d.is_system()
        || match d.kind() {
            system::LDT | system::TSS32 | system::TSS32_BUSY | system::CALL32 => true,
            system::TSS16 | system::TSS16_BUSY | system::CALL16 | system::TASK => !long,
            _ => false,
        };
    Ok(ok.then_some((d.raw >> 32) as u32 & 0x00ff_ff00))
}

/// LSL: the limit in bytes, `None` clears ZF.
pub fn lsl<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16) -> Result<Option<u32>, Fault> {
    let long = env.cpu_ref().long_mode();
    let Some(d) = visible(env, selector)? else {
        return Ok(None);
    };
    let ok = !d.is_system()
        || match d.kind() {
            system::LDT | system::TSS32 | system::TSS32_BUSY => true,
            system::TSS16 | system::TSS16_BUSY => !long,
            _ => false,
        };
    Ok(ok.then(|| d.limit()))
}

/// VERR (`write` false) and VERW: the new ZF.
pub fn verify<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16, write: bool) -> Result<bool, Fault> {
    let d = visible(env, selector)?;
    Ok(d.is_some_and(|d| if write { d.writable_data() } else { d.readable() }))
}

/// SLDT, STR: the selectors; SGDT, SIDT: the tables. With CR4.UMIP they fault outside CPL 0.
pub fn store_allowed(cpu: &CpuState) -> Result<(), Fault> {
    let umip = cpu.cr4 & crate::state::cr4::UMIP != 0 && cpu.cpl != 0;
    if umip { Err(gp(0)) } else { Ok(()) }
}
