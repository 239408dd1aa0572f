//! Far JMP, CALL, RET and IRET in all modes (SDM 2A "JMP", "CALL", SDM 2B "RET", SDM 2A "IRET"; SDM 3A §5.8).
//!
//! Every function is all or nothing: registers change after the last access that can fault.

use crate::desc::{self, Desc, code, is_null, set_type_bits, system};
use crate::fault::{gp, np, ss};
use crate::flags::bit;
use crate::paging::canonical;
use crate::segment::{null_segment, real_load, v86_segment};
use crate::stack::{Stack, in_limit, system_ctx};
use crate::state::{CpuState, SegReg, Segment};
use crate::task::{self, Cause, Leaving, Task};
use crate::tss;
use crate::vme;
use vm_core::guest::GuestEnv;
use vm_core::{Fault, Va};

/// A checked code segment and the address in it.
struct Target {
    cs: Segment,
    rip: u64,
    cpl: u8,
}

fn real_or_v86(cpu: &CpuState) -> bool {
    !cpu.protected() || cpu.v86()
}

fn mask(size: u8) -> u64 {
    u64::MAX >> (64 - 8 * u32::from(size.clamp(1, 8)))
}

/// CS for a far transfer in real or virtual-8086 mode. #GP(0) beyond the limit.
fn real_target(cpu: &CpuState, selector: u16, rip: u64) -> Result<Target, Fault> {
    let old = cpu.seg(SegReg::Cs);
    if rip > u64::from(old.limit) {
        return Err(gp(0));
    }
    let cs = if cpu.v86() { v86_segment(selector) } else { real_load(old, selector) };
    Ok(Target { cs, rip, cpl: cpu.cpl })
}

/// Checks RIP against the new code segment: canonical in 64-bit code, inside the limit elsewhere. #GP(0).
fn rip_ok(cpu: &CpuState, cs: &Segment, rip: u64) -> Result<(), Fault> {
    let long = cpu.long_mode() && cs.attr & Segment::L != 0;
    let ok = if long { canonical(cpu, rip) } else { in_limit(cs, rip, 1) };
    if ok { Ok(()) } else { Err(gp(0)) }
}

/// L and D together are reserved in long mode.
fn size_bits_ok(cpu: &CpuState, d: &Desc) -> bool {
    !(cpu.long_mode() && d.long() && d.big())
}

fn fetch_or_gp<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16) -> Result<Desc, Fault> {
    if is_null(selector) {
        return Err(gp(0));
    }
    desc::fetch(env, selector)?.ok_or_else(|| gp(code(selector)))
}

/// What a far pointer of JMP or CALL names in protected mode.
enum Named {
    Code(Target),
    Gate(Desc),
    Task(Task),
}

fn name<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16, offset: u64) -> Result<Named, Fault> {
    let mut d = fetch_or_gp(env, selector)?;
    let cpu = env.cpu_ref();
    let (cpl, rpl) = (cpu.cpl, (selector & 3) as u8);
    let bad = || gp(code(selector));
    if d.is_system() {
        return gate_or_task(env, d, selector);
    }
    let allowed = if d.conforming() { d.dpl() <= cpl } else { rpl <= cpl && d.dpl() == cpl };
    if !d.is_code() || !allowed || !size_bits_ok(cpu, &d) {
        return Err(bad());
    }
    if !d.present() {
        return Err(np(code(selector)));
    }
    rip_ok(cpu, &d.segment(selector), offset)?;
    set_type_bits(env, &mut d, 1)?;
    let cs = d.segment(selector & !3 | u16::from(cpl));
    Ok(Named::Code(Target { cs, rip: offset, cpl }))
}

fn gate_or_task<E: GuestEnv<Cpu = CpuState>>(env: &mut E, d: Desc, selector: u16) -> Result<Named, Fault> {
    let cpu = env.cpu_ref();
    let long = cpu.long_mode();
    let (cpl, rpl) = (cpu.cpl, (selector & 3) as u8);
    let known = match d.kind() {
        system::CALL32 => true,
        system::CALL16 | system::TASK | system::TSS16 | system::TSS32 => !long,
        _ => false,
    };
    if !known || d.dpl() < cpl.max(rpl) {
        return Err(gp(code(selector)));
    }
    if !d.present() {
        return Err(np(code(selector)));
    }
    Ok(match d.kind() {
        system::TASK => Named::Task(task::behind_gate(env, &d, 0)?),
        system::TSS16 | system::TSS32 => Named::Task(task::available(d, selector, 0)?),
        _ => Named::Gate(d),
    })
}

/// The code segment behind the call gate that selector `name` leads to. CALL may go to a more privileged level, JMP may not.
fn through_gate<E: GuestEnv<Cpu = CpuState>>(env: &mut E, gate: &Desc, name: u16, call: bool) -> Result<Target, Fault> {
    let selector = gate.gate_selector();
    let (long, cpl) = (env.cpu_ref().long_mode(), env.cpu_ref().cpl);
    let mut rip = gate.gate_offset();
    if long {
        let ctx = system_ctx(env.cpu_ref());
        let high = env.load(Va(gate.va.wrapping_add(8)), 8, ctx)?;
        if high >> 40 & 0x1f != 0 {
            return Err(gp(code(name)));
        }
        rip |= high << 32;
    } else if gate.kind() == system::CALL16 {
        rip &= 0xffff;
    }
    let mut d = fetch_or_gp(env, selector)?;
    let bad = || gp(code(selector));
    let level = if call || d.conforming() { d.dpl() <= cpl } else { d.dpl() == cpl };
    if !d.is_code() || !level || long && (!d.long() || d.big()) {
        return Err(bad());
    }
    if !d.present() {
        return Err(np(code(selector)));
    }
    let new_cpl = if d.conforming() { cpl } else { d.dpl() };
    let cs = d.segment(selector & !3 | u16::from(new_cpl));
    rip_ok(env.cpu_ref(), &cs, rip)?;
    set_type_bits(env, &mut d, 1)?;
    Ok(Target { cs, rip, cpl: new_cpl })
}

fn arrive(cpu: &mut CpuState, t: &Target) {
    *cpu.seg_mut(SegReg::Cs) = t.cs;
    cpu.cpl = t.cpl;
    cpu.rip = t.rip;
    cpu.update_mode();
}

/// Switches tasks for an instruction that is followed by the one at `next_rip`.
fn to_task<E: GuestEnv<Cpu = CpuState>>(env: &mut E, task: Task, cause: Cause, next_rip: u64) -> Result<(), Fault> {
    let flags = env.cpu_ref().rflags();
    let old = Leaving { rip: next_rip, flags, ext: 0, error: None };
    if let Some(f) = task::switch(env, task, cause, &old)? {
        task::pend(env, f);
    }
    Ok(())
}

/// Far JMP to `selector:offset`; `size` is the operand size in bytes (2, 4, 8). `next_rip`: where a task that is left by the
/// jump goes on.
pub fn far_jump<E: GuestEnv<Cpu = CpuState>>(
    env: &mut E,
    selector: u16,
    offset: u64,
    size: u8,
    next_rip: u64,
) -> Result<(), Fault> {
    let offset = offset & mask(size);
    let t = if real_or_v86(env.cpu_ref()) {
        real_target(env.cpu_ref(), selector, offset)?
    } else {
        match name(env, selector, offset)? {
            Named::Code(t) => t,
            Named::Gate(g) => through_gate(env, &g, selector, false)?,
            Named::Task(t) => return to_task(env, t, Cause::Jump, next_rip),
        }
    };
    arrive(env.cpu(), &t);
    Ok(())
}

/// Far CALL to `selector:offset`, returning to `next_rip`; `size` is the operand size in bytes (2, 4, 8).
pub fn far_call<E: GuestEnv<Cpu = CpuState>>(
    env: &mut E,
    selector: u16,
    offset: u64,
    size: u8,
    next_rip: u64,
) -> Result<(), Fault> {
    let offset = offset & mask(size);
    let t = if real_or_v86(env.cpu_ref()) {
        real_target(env.cpu_ref(), selector, offset)?
    } else {
        match name(env, selector, offset)? {
            Named::Code(t) => t,
            Named::Gate(g) => return call_gate(env, &g, selector, next_rip),
            Named::Task(t) => return to_task(env, t, Cause::Nest, next_rip),
        }
    };
    let cpu = env.cpu_ref();
    let mut stack = Stack::current(cpu, 0);
    stack.push(cpu, size, cpu.seg(SegReg::Cs).selector.into())?;
    stack.push(cpu, size, next_rip & mask(size))?;
    stack.store(env)?;
    env.cpu().gpr[4] = stack.sp;
    arrive(env.cpu(), &t);
    Ok(())
}

fn call_gate<E: GuestEnv<Cpu = CpuState>>(env: &mut E, gate: &Desc, name: u16, next_rip: u64) -> Result<(), Fault> {
    let t = through_gate(env, gate, name, true)?;
    let long = env.cpu_ref().long_mode();
    let size = match (long, gate.kind()) {
        (true, _) => 8,
        (false, system::CALL16) => 2,
        _ => 4,
    };
    let inner = t.cpl < env.cpu_ref().cpl;
    let (mut stack, new_ss) = match (inner, long) {
        (false, _) => (Stack::current(env.cpu_ref(), 0), None),
        (true, true) => {
            let sp = tss::rsp(env, t.cpl, 0)?;
            let seg = tss::null_ss(t.cpl);
            (Stack::new(env.cpu_ref(), seg, sp, true, t.cpl, 0), Some(seg))
        }
        (true, false) => {
            let (mut d, sel, sp) = tss::inner_stack(env, t.cpl, 0)?;
            set_type_bits(env, &mut d, 1)?;
            let seg = d.segment(sel);
            (Stack::new(env.cpu_ref(), seg, sp, false, t.cpl, code(sel)), Some(seg))
        }
    };
    if inner {
        let (ss_sel, sp) = (env.cpu_ref().seg(SegReg::Ss).selector, env.cpu_ref().gpr[4]);
        stack.push(env.cpu_ref(), size, ss_sel.into())?;
        stack.push(env.cpu_ref(), size, sp & mask(size))?;
        // The parameters move from the caller's stack; 64-bit gates have none.
        let count = if long { 0 } else { gate.raw >> 32 & 31 };
        let old = Stack::current(env.cpu_ref(), 0);
        for i in (0..count).rev() {
            let v = old.peek(env, size, i)?;
            stack.push(env.cpu_ref(), size, v)?;
        }
    }
    let cpu = env.cpu_ref();
    stack.push(cpu, size, cpu.seg(SegReg::Cs).selector.into())?;
    stack.push(cpu, size, next_rip & mask(size))?;
    stack.store(env)?;
    let cpu = env.cpu();
    if let Some(seg) = new_ss {
        *cpu.seg_mut(SegReg::Ss) = seg;
    }
    cpu.gpr[4] = stack.sp;
    arrive(cpu, &t);
    Ok(())
}

/// The code segment a far RET or IRET returns to, at the selector's RPL.
fn return_target<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16, rip: u64) -> Result<Target, Fault> {
    let mut d = fetch_or_gp(env, selector)?;
    let (cpu, rpl) = (env.cpu_ref(), (selector & 3) as u8);
    let level = if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl };
    if !d.is_code() || rpl < cpu.cpl || !level || !size_bits_ok(cpu, &d) {
        return Err(gp(code(selector)));
    }
    if !d.present() {
        return Err(np(code(selector)));
    }
    let cs = d.segment(selector);
    rip_ok(cpu, &cs, rip)?;
    set_type_bits(env, &mut d, 1)?;
    Ok(Target { cs, rip, cpl: rpl })
}

/// SS popped by a return to privilege level `cpl`, code segment `cs`.
fn return_ss<E: GuestEnv<Cpu = CpuState>>(env: &mut E, selector: u16, t: &Target) -> Result<Segment, Fault> {
    let rpl = (selector & 3) as u8;
    if is_null(selector) {
        let long = env.cpu_ref().long_mode() && t.cs.attr & Segment::L != 0;
        let ok = long && t.cpl < 3 && rpl == t.cpl;
        return if ok { Ok(tss::null_ss(t.cpl)) } else { Err(gp(0)) };
    }
    let mut d = fetch_or_gp(env, selector)?;
    if rpl != t.cpl || !d.writable_data() || d.dpl() != t.cpl {
        return Err(gp(code(selector)));
    }
    if !d.present() {
        return Err(ss(code(selector)));
    }
    set_type_bits(env, &mut d, 1)?;
    Ok(d.segment(selector))
}

/// Data segments that the outer level may not use become null (SDM 2B "RET": RETURN-TO-OUTER-PRIVILEGE-LEVEL).
fn drop_privileged(cpu: &mut CpuState) {
    let cpl = cpu.cpl;
    for s in [SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
        let seg = cpu.seg_mut(s);
        let conforming = seg.attr & (Segment::CODE | Segment::DC) == Segment::CODE | Segment::DC;
        if seg.usable() && !is_null(seg.selector) && !conforming && seg.dpl() < cpl {
            // The base stays: 64-bit code goes on using those of FS and GS.
            *seg = Segment { base: seg.base, ..null_segment(0) };
        }
    }
}

/// Sets the stack pointer with the width that the new SS and code segment give.
fn set_sp(cpu: &mut CpuState, sp: u64) {
    let wide = cpu.mode().is_64();
    let big = cpu.seg(SegReg::Ss).attr & Segment::DB != 0;
    cpu.gpr[4] = match (wide, big) {
        (true, _) => sp,
        (false, true) => sp & 0xffff_ffff,
        (false, false) => cpu.gpr[4] & !0xffff | sp & 0xffff,
    };
}

fn add_sp(cpu: &mut CpuState, by: u64) {
    let sp = cpu.gpr[4].wrapping_add(by);
    set_sp(cpu, sp);
}

/// Far RET releasing `release` further bytes; `size` is the operand size in bytes (2, 4, 8).
pub fn far_ret<E: GuestEnv<Cpu = CpuState>>(env: &mut E, size: u8, release: u64) -> Result<(), Fault> {
    let mut stack = Stack::current(env.cpu_ref(), 0);
    let rip = stack.pop(env, size)?;
    let selector = stack.pop(env, size)? as u16;
    if real_or_v86(env.cpu_ref()) {
        let t = real_target(env.cpu_ref(), selector, rip)?;
        env.cpu().gpr[4] = stack.moved(release);
        arrive(env.cpu(), &t);
        return Ok(());
    }
    let t = return_target(env, selector, rip)?;
    if t.cpl == env.cpu_ref().cpl {
        env.cpu().gpr[4] = stack.moved(release);
        arrive(env.cpu(), &t);
        return Ok(());
    }
    stack.sp = stack.moved(release);
    let sp = stack.pop(env, size)?;
    let ss_sel = stack.pop(env, size)? as u16;
    let new_ss = return_ss(env, ss_sel, &t)?;
    let cpu = env.cpu();
    *cpu.seg_mut(SegReg::Ss) = new_ss;
    arrive(cpu, &t);
    set_sp(cpu, sp);
    add_sp(cpu, release);
    drop_privileged(cpu);
    cpu.update_mode();
    Ok(())
}

/// Flags that IRET may change at privilege level `cpl`.
fn iret_flags(cpu: &CpuState, size: u8) -> u64 {
    let mut m = bit::ARITH | bit::TF | bit::DF | bit::NT | bit::RF | bit::AC | bit::ID;
    if cpu.cpl == 0 {
        m |= bit::IOPL | bit::VIF | bit::VIP;
    }
    if cpu.cpl <= cpu.iopl() {
        m |= bit::IF;
    }
    if size == 2 { m & 0xffff } else { m }
}

/// IRET, IRETD, IRETQ; `size` is the operand size in bytes (2, 4, 8). `next_rip`: where a nested task that is left by it
/// goes on.
pub fn iret<E: GuestEnv<Cpu = CpuState>>(env: &mut E, size: u8, next_rip: u64) -> Result<(), Fault> {
    if real_or_v86(env.cpu_ref()) {
        return iret_real(env, size);
    }
    let (long, nested) = (env.cpu_ref().long_mode(), env.cpu_ref().eflags & bit::NT != 0);
    if nested && long {
        return Err(gp(0));
    }
    if nested {
        let task = task::previous(env)?;
        return to_task(env, task, Cause::Return, next_rip);
    }
    let mut stack = Stack::current(env.cpu_ref(), 0);
    let rip = stack.pop(env, size)?;
    let selector = stack.pop(env, size)? as u16;
    let flags = stack.pop(env, size)?;
    if flags & bit::VM != 0 && size == 4 && env.cpu_ref().cpl == 0 && !long {
        return iret_v86(env, stack, rip, selector, flags);
    }
    let t = return_target(env, selector, rip)?;
    let outer = t.cpl != env.cpu_ref().cpl;
    let mut new = None;
    // 64-bit IRET pops SS:RSP always.
    if outer || env.cpu_ref().mode().is_64() {
        let sp = stack.pop(env, size)?;
        let ss_sel = stack.pop(env, size)? as u16;
        new = Some((return_ss(env, ss_sel, &t)?, sp));
    }
    let cpu = env.cpu();
    let m = iret_flags(cpu, size);
    let rflags = cpu.rflags() & !m | flags & m;
    match new {
        Some((seg, sp)) => {
            *cpu.seg_mut(SegReg::Ss) = seg;
            arrive(cpu, &t);
            set_sp(cpu, sp);
        }
        None => {
            cpu.gpr[4] = stack.sp;
            arrive(cpu, &t);
        }
    }
    if outer {
        drop_privileged(cpu);
    }
    cpu.nmi_blocked = false;
    cpu.set_rflags(cpu.keep_rf(rflags));
    Ok(())
}

fn iret_real<E: GuestEnv<Cpu = CpuState>>(env: &mut E, size: u8) -> Result<(), Fault> {
    let v86 = env.cpu_ref().v86();
    let by_vif = size == 2 && vme::virtual_if(env.cpu_ref());
    if v86 && env.cpu_ref().iopl() < 3 && !by_vif {
        return Err(gp(0));
    }
    let mut stack = Stack::current(env.cpu_ref(), 0);
    let rip = stack.pop(env, size)?;
    let selector = stack.pop(env, size)? as u16;
    let flags = stack.pop(env, size)?;
    let t = real_target(env.cpu_ref(), selector, rip)?;
    let virtual_flags = if by_vif { Some(vme::loaded(env.cpu_ref(), flags)?) } else { None };
    let cpu = env.cpu();
    let mut m = bit::ARITH | bit::TF | bit::IF | bit::DF | bit::NT | bit::RF | bit::AC | bit::ID;
    if !v86 {
        m |= bit::IOPL;
    }
    if size == 2 {
        m &= 0xffff;
    }
    let rflags = virtual_flags.unwrap_or(cpu.rflags() & !m | flags & m);
    cpu.gpr[4] = stack.sp;
    arrive(cpu, &t);
    cpu.nmi_blocked = false;
    cpu.set_rflags(cpu.keep_rf(rflags));
    Ok(())
}

/// Return from CPL 0 to virtual-8086 mode (SDM 3A §20.2.2).
fn iret_v86<E: GuestEnv<Cpu = CpuState>>(env: &mut E, mut stack: Stack, rip: u64, cs: u16, flags: u64) -> Result<(), Fault> {
    let sp = stack.pop(env, 4)?;
    let mut selectors = [0u16; 5];
    for s in &mut selectors {
        *s = stack.pop(env, 4)? as u16;
    }
    let cpu = env.cpu();
    for (reg, sel) in [SegReg::Ss, SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs].into_iter().zip(selectors) {
        *cpu.seg_mut(reg) = v86_segment(sel);
    }
    *cpu.seg_mut(SegReg::Cs) = v86_segment(cs);
    cpu.rip = rip & 0xffff;
    cpu.gpr[4] = sp;
    cpu.cpl = 3;
    cpu.nmi_blocked = false;
    let all = bit::ARITH | bit::TF | bit::IF | bit::DF | bit::IOPL | bit::NT | bit::RF | bit::VM | bit::AC;
    cpu.set_rflags(cpu.keep_rf(flags & (all | bit::VIF | bit::VIP | bit::ID)));
    Ok(())
}
