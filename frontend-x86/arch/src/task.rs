//! Hardware task switches through TSS descriptors and task gates (SDM 3A chapter 8 "Task Management"; SDM 2 "CALL", "JMP",
//! "IRET", "INT n": SWITCH-TASKS).

use crate::debug::{db, dr6, dr7};
use crate::desc::{self, Desc, code, is_null, set_type_bits, system, system_va};
use crate::fault::{gp, np, ss, ts};
use crate::flags::bit;
use crate::paging::load_pdptes;
use crate::segment::{null_segment, v86_segment};
use crate::stack::{Stack, in_limit, system_ctx};
use crate::state::{CpuState, PendingEvent, SegReg, Segment, cr0, cr4};
use crate::tss;
use vm_core::guest::{Flush, GuestEnv};
use vm_core::{Access, Fault, Pa, Va};

/// Type bit of TSS descriptors: busy.
const BUSY: u64 = 2;

/// What starts a task switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Jump,
    /// CALL, interrupts and exceptions: the new task is nested in the old one.
    Nest,
    /// IRET with NT set.
    Return,
}

/// A task that may be switched to: its TSS descriptor was checked for type and presence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Task {
    desc: Desc,
    selector: u16,
}

/// What is left behind: where the old task goes on, its flags; and what goes into error codes and onto the new stack.
pub(crate) struct Leaving {
    pub rip: u64,
    pub flags: u64,
    /// EXT bit of error codes.
    pub ext: u32,
    /// Error code of an exception, pushed onto the new task's stack.
    pub error: Option<u32>,
}

/// Where the fields of a TSS lie (SDM 3A §8.2.1, §8.6).
struct Layout {
    /// Bytes of a register.
    width: u8,
    /// Least limit.
    last: u32,
    ip: u32,
    gpr: u32,
    seg: u32,
    segs: u32,
    ldt: u32,
}

const TSS16: Layout = Layout { width: 2, last: 0x2b, ip: 0x0e, gpr: 0x12, seg: 0x22, segs: 4, ldt: 0x2a };
const TSS32: Layout = Layout { width: 4, last: 0x67, ip: 0x20, gpr: 0x28, seg: 0x48, segs: 6, ldt: 0x60 };
/// Of a 32-bit TSS: CR3, and the word whose bit 0 is T.
const CR3: u32 = 0x1c;
const T: u32 = 0x64;

fn layout(kind: u32) -> &'static Layout {
    if kind & 8 != 0 { &TSS32 } else { &TSS16 }
}

/// A task's state as its TSS holds it.
struct Image {
    cr3: Option<u64>,
    rip: u64,
    flags: u64,
    gpr: [u64; 8],
    sel: [u16; 6],
    ldt: u16,
    trap: bool,
}

/// The task of an available TSS descriptor. Errors: #GP, #NP with the selector.
pub(crate) fn available(desc: Desc, selector: u16, ext: u32) -> Result<Task, Fault> {
    let kind = matches!(desc.kind(), system::TSS16 | system::TSS32);
    // TSS descriptors lie in the GDT only.
    if !desc.is_system() || !kind || selector & 4 != 0 {
        return Err(gp(code(selector) | ext));
    }
    if desc.present() { Ok(Task { desc, selector }) } else { Err(np(code(selector) | ext)) }
}

/// The task that a task gate names. Errors: as `available`, and page faults.
pub(crate) fn behind_gate<E: GuestEnv<Cpu = CpuState>>(env: &mut E, gate: &Desc, ext: u32) -> Result<Task, Fault> {
    let selector = gate.gate_selector();
    let bad = || gp(code(selector) | ext);
    if selector & 4 != 0 {
        return Err(bad());
    }
    let d = desc::fetch(env, selector)?.ok_or_else(bad)?;
    available(d, selector, ext)
}

/// The task that IRET returns to from a nested one. Errors: #TS, #NP, page faults.
pub(crate) fn previous<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<Task, Fault> {
    let selector = tss::read(env, 0, 2, 0)? as u16;
    let bad = || ts(code(selector));
    if selector & 4 != 0 {
        return Err(bad());
    }
    let desc = desc::fetch(env, selector)?.ok_or_else(bad)?;
    if !desc.is_system() || !matches!(desc.kind(), system::TSS16_BUSY | system::TSS32_BUSY) {
        return Err(bad());
    }
    if desc.present() { Ok(Task { desc, selector }) } else { Err(np(code(selector))) }
}

/// Holds a fault of an instruction that has already changed the state (and RIP) until before the next instruction.
pub(crate) fn pend<E: GuestEnv<Cpu = CpuState>>(env: &mut E, f: Fault) {
    let (has_error, error) = (f.error.is_some(), f.error.unwrap_or(0));
    env.cpu().pending = PendingEvent { valid: true, vector: f.vector, has_error, error, payload: f.addr };
}

/// Switches to `task`. `Err`: the fault is the old task's, and nothing has changed. `Ok(Some)`: the switch is done, and the
/// fault is the new task's, before its first instruction.
pub(crate) fn switch<E: GuestEnv<Cpu = CpuState>>(
    env: &mut E,
    task: Task,
    cause: Cause,
    old: &Leaving,
) -> Result<Option<Fault>, Fault> {
    // Segments are loaded in the state of the new task, where an engine could not leave the instruction.
    env.alone()?;
    let (selector, kind) = (task.selector, u32::from(task.desc.kind()));
    let fields = layout(kind);
    if task.desc.limit() < fields.last {
        return Err(ts(code(selector) | old.ext));
    }
    let image = read_image(env, task.desc.base(), fields)?;
    let pdptes = new_pdptes(env, image.cr3)?;
    let writes = writes(env, &task, cause, old)?;
    let ctx = system_ctx(env.cpu_ref());
    for &(va, size, _) in &writes {
        env.probe(Va(va), size.into(), Access::Write, ctx)?;
    }
    for &(va, size, v) in &writes {
        env.store(Va(va), size, v, ctx)?;
    }
    commit(env.cpu(), &task, &image, cause);
    if let (true, Some(cr3)) = (env.cpu_ref().paging(), image.cr3) {
        let cpu = env.cpu();
        cpu.cr3 = cr3;
        cpu.pdpte = pdptes.unwrap_or(cpu.pdpte);
        env.flush(Flush::NonGlobal);
    }
    let arrived = load_segments(env, &image, old.ext).and_then(|()| arrive(env, fields, old));
    if let Err(f) = arrived {
        return Ok(Some(f));
    }
    if image.trap {
        pend(env, db(dr6::BT));
    }
    Ok(None)
}

fn read_image<E: GuestEnv<Cpu = CpuState>>(env: &mut E, base: u64, f: &Layout) -> Result<Image, Fault> {
    let ctx = system_ctx(env.cpu_ref());
    let mut get = |at: u32, size: u8| {
        let va = system_va(env.cpu_ref(), base, at.into());
        env.load(Va(va), size, ctx)
    };
    let (w, wide) = (u32::from(f.width), f.width == 4);
    // The upper halves of registers are not in a 16-bit TSS; processors fill them with ones.
    let upper = if wide { 0 } else { 0xffff_0000 };
    let mut gpr = [0; 8];
    for (i, r) in (0..).zip(&mut gpr) {
        *r = get(f.gpr + i * w, f.width)? | upper;
    }
    let mut sel = [0; 6];
    for (i, s) in (0..f.segs).zip(&mut sel) {
        *s = get(f.seg + i * w, 2)? as u16;
    }
    Ok(Image {
        cr3: if wide { Some(get(CR3, 4)?) } else { None },
        rip: get(f.ip, f.width)?,
        flags: get(f.ip + w, f.width)?,
        gpr,
        sel,
        ldt: get(f.ldt, 2)? as u16,
        trap: wide && get(T, 2)? & 1 != 0,
    })
}

/// The PDPTE registers that a new CR3 brings with PAE paging; #GP(0) if one has reserved bits set.
fn new_pdptes<E: GuestEnv<Cpu = CpuState>>(env: &mut E, cr3: Option<u64>) -> Result<Option<[u64; 4]>, Fault> {
    let cpu = env.cpu_ref();
    let (true, Some(cr3)) = (cpu.paging() && cpu.cr4 & cr4::PAE != 0, cr3) else { return Ok(None) };
    let mask = crate::paging::a20_mask(cpu);
    let io = env.io();
    load_pdptes(cr3, |pa| io.mmio_read(Pa(pa & mask), 8)).map(Some).ok_or(gp(0))
}

/// Everything the switch writes to memory: (linear address, bytes, value).
fn writes<E: GuestEnv<Cpu = CpuState>>(
    env: &mut E,
    task: &Task,
    cause: Cause,
    old: &Leaving,
) -> Result<Vec<(u64, u8, u64)>, Fault> {
    let cpu = env.cpu_ref();
    let tr = cpu.tr;
    let f = layout(tr.attr >> 8);
    if !tr.usable() || tr.limit < f.last {
        return Err(ts(code(tr.selector) | old.ext));
    }
    let at = |offset: u32| system_va(cpu, tr.base, offset.into());
    let w = u32::from(f.width);
    // A task that returns is no longer nested.
    let flags = if cause == Cause::Return { old.flags & !bit::NT } else { old.flags };
    let mut out = vec![(at(f.ip), f.width, old.rip), (at(f.ip + w), f.width, flags)];
    out.extend((0..8).zip(&cpu.gpr).map(|(i, &r)| (at(f.gpr + i * w), f.width, r)));
    out.extend((0..f.segs).zip(&cpu.seg).map(|(i, s)| (at(f.seg + i * w), 2, s.selector.into())));
    if cause == Cause::Nest {
        out.push((system_va(cpu, task.desc.base(), 0), 2, tr.selector.into()));
    } else if !is_null(tr.selector) {
        let (va, ctx) = (system_va(cpu, cpu.gdt.base, u64::from(tr.selector & !7) + 5), system_ctx(cpu));
        let v = env.load(Va(va), 1, ctx)?;
        out.push((va, 1, v & !BUSY));
    }
    if cause != Cause::Return {
        let va = system_va(env.cpu_ref(), task.desc.va, 5);
        out.push((va, 1, task.desc.raw >> 40 & 0xff | BUSY));
    }
    Ok(out)
}

/// Registers of the new task. Of the segments only the selectors are there.
fn commit(cpu: &mut CpuState, task: &Task, image: &Image, cause: Cause) {
    cpu.tr = task.desc.segment(task.selector);
    cpu.tr.attr |= (BUSY as u32) << 8;
    cpu.cr0 |= cr0::TS;
    cpu.dr[7] &= !dr7::LOCAL;
    cpu.gpr[..8].copy_from_slice(&image.gpr);
    cpu.rip = image.rip;
    for (s, &sel) in SegReg::ALL.into_iter().zip(&image.sel) {
        *cpu.seg_mut(s) = null_segment(sel);
    }
    cpu.ldt = null_segment(image.ldt);
    let nested = if cause == Cause::Nest { bit::NT } else { 0 };
    let flags = cpu.keep_rf(image.flags & crate::flags::KNOWN | nested);
    cpu.cpl = if flags & bit::VM != 0 { 3 } else { (image.sel[SegReg::Cs as usize] & 3) as u8 };
    (cpu.halted, cpu.shadow) = (false, crate::state::shadow::NONE);
    if cause == Cause::Return {
        cpu.nmi_blocked = false;
    }
    cpu.no_step();
    cpu.set_rflags(flags);
}

/// Loads LDTR and the segment registers in the context of the new task (SDM 3A table 8-1).
fn load_segments<E: GuestEnv<Cpu = CpuState>>(env: &mut E, image: &Image, ext: u32) -> Result<(), Fault> {
    load_ldt(env, image.ldt, ext)?;
    if env.cpu_ref().v86() {
        for (s, &sel) in SegReg::ALL.into_iter().zip(&image.sel) {
            *env.cpu().seg_mut(s) = v86_segment(sel);
        }
        env.cpu().update_mode();
        return Ok(());
    }
    for s in [SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs] {
        let sel = image.sel[s as usize];
        let data = !matches!(s, SegReg::Cs | SegReg::Ss);
        if data && is_null(sel) {
            continue;
        }
        let bad = ts(code(sel) | ext);
        let mut d = desc::fetch(env, sel)?.ok_or(bad)?;
        if !suits(&d, s, (sel & 3) as u8, env.cpu_ref().cpl) {
            return Err(bad);
        }
        if !d.present() {
            let e = code(sel) | ext;
            return Err(if s == SegReg::Ss { ss(e) } else { np(e) });
        }
        set_type_bits(env, &mut d, 1)?;
        *env.cpu().seg_mut(s) = d.segment(sel);
        env.cpu().update_mode();
    }
    Ok(())
}

/// Type and privilege of a segment for its register; CPL is CS's RPL by now.
fn suits(d: &Desc, s: SegReg, rpl: u8, cpl: u8) -> bool {
    match s {
        SegReg::Cs => d.is_code() && if d.conforming() { d.dpl() <= rpl } else { d.dpl() == rpl },
        SegReg::Ss => d.writable_data() && d.dpl() == cpl && rpl == cpl,
        _ => d.readable() && (d.is_code() && d.conforming() || d.dpl() >= rpl.max(cpl)),
    }
}

fn load_ldt<E: GuestEnv<Cpu = CpuState>>(env: &mut E, sel: u16, ext: u32) -> Result<(), Fault> {
    if is_null(sel) {
        return Ok(());
    }
    let bad = ts(code(sel) | ext);
    if sel & 4 != 0 {
        return Err(bad);
    }
    let d = desc::fetch(env, sel)?.ok_or(bad)?;
    if !d.is_system() || d.kind() != system::LDT || !d.present() {
        return Err(bad);
    }
    env.cpu().ldt = d.segment(sel);
    Ok(())
}

/// Pushes the error code of an exception and checks EIP against the new code segment.
fn arrive<E: GuestEnv<Cpu = CpuState>>(env: &mut E, fields: &Layout, old: &Leaving) -> Result<(), Fault> {
    if let Some(e) = old.error {
        let mut stack = Stack::current(env.cpu_ref(), old.ext);
        stack.push(env.cpu_ref(), fields.width, e.into())?;
        stack.store(env)?;
        env.cpu().gpr[4] = stack.sp;
    }
    let cpu = env.cpu_ref();
    let cs: &Segment = cpu.seg(SegReg::Cs);
    if in_limit(cs, cpu.rip, 1) { Ok(()) } else { Err(gp(old.ext)) }
}
