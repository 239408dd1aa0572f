//! Delivery of exceptions and interrupts in all modes (SDM 3A chapter 6).

use crate::debug::{debugctl, dr6, dr7};
use crate::desc::{self, Desc, code, is_null, set_type_bits, system, system_va};
use crate::fault::{gp, np, vector};
use crate::flags::bit;
use crate::stack::{Stack, in_limit, system_ctx};
use crate::state::{CpuState, SegReg, Segment, cr4};
use crate::task::{self, Cause, Leaving};
use crate::tss;
use crate::vme;
use vm_core::guest::{GuestEnv, Shutdown};
use vm_core::{Fault, Va, dlog};

/// Where an event comes from; decides privilege checks and the EXT bit of error codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// An exception the hardware raised.
    Exception,
    /// NMI or external interrupt.
    External,
    /// INT n.
    SoftInt,
    /// INT3, INTO: like INT n without the IOPL check of v86 mode.
    SoftException,
}

/// An event on its way to its handler.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub vector: u8,
    pub error: Option<u32>,
    pub source: Source,
    /// RIP to return to.
    pub rip: u64,
    /// Set RF in the saved flags (SDM 3B "Resume Flag").
    pub rf: bool,
}

impl Event {
    fn soft(&self) -> bool {
        matches!(self.source, Source::SoftInt | Source::SoftException)
    }

    fn ext(&self) -> u32 {
        u32::from(!self.soft())
    }

    /// Error code that names the IDT entry.
    fn idt_code(&self) -> u32 {
        u32::from(self.vector) * 8 + 2 + self.ext()
    }

    fn flags(&self, cpu: &CpuState) -> u64 {
        let f = cpu.rflags();
        if self.rf { f | bit::RF } else { f }
    }
}

/// INT n, INT3 (`vector` 3), INTO (4), INT1 (1 as `Source::Exception`). `next_rip` is the return address.
/// Errors: the caller raises the fault at the instruction itself; nothing has changed.
pub fn software_int<E: GuestEnv<Cpu = CpuState>>(env: &mut E, vector: u8, next_rip: u64, source: Source) -> Result<(), Fault> {
    let cpu = env.cpu_ref();
    if cpu.v86() && source == Source::SoftInt {
        let (iopl, extended) = (cpu.iopl(), cpu.cr4 & cr4::VME != 0);
        if extended && vme::redirected(env, vector)? {
            let from = env.cpu_ref().rip;
            vme::interrupt(env, vector, next_rip)?;
            if env.cpu_ref().records_branches() {
                env.cpu().record_event(from);
            }
            return Ok(());
        }
        if iopl < 3 {
            return Err(gp(0));
        }
    }
    let cpu = env.cpu_ref();
    let ev = Event { vector, error: None, source, rip: next_rip, rf: false };
    log(cpu, &ev, 0);
    if let Some(f) = enter(env, &ev)? {
        task::pend(env, f);
    }
    Ok(())
}

/// Delivers `ev`, escalating faults of the delivery itself (SDM 3A table 6-5). `Err`: triple fault.
pub fn deliver<E: GuestEnv<Cpu = CpuState>>(env: &mut E, mut ev: Event, mut cr2: u64) -> Result<(), Shutdown> {
    // Each round is a more severe event or a benign one replaced; a guest cannot make more than a few.
    for _ in 0..8 {
        let exception = ev.source == Source::Exception;
        if exception && ev.vector == vector::PF {
            env.cpu().cr2 = cr2;
        }
        log(env.cpu_ref(), &ev, cr2);
        let f = match enter(env, &ev) {
            Ok(None) => return Ok(()),
            Ok(Some(f)) | Err(f) => f,
        };
        let first = if exception { class(ev.vector) } else { Class::Benign };
        ev = match escalate(first, class(f.vector)) {
            Next::Serve => {
                cr2 = f.addr;
                from_fault(env.cpu_ref(), f)
            }
            Next::Double => {
                if f.vector == vector::PF {
                    env.cpu().cr2 = f.addr;
                }
                Event { vector: vector::DF, error: Some(0), rf: false, ..from_fault(env.cpu_ref(), f) }
            }
            Next::Shutdown => break,
        };
    }
    let cpu = env.cpu_ref();
    dlog!(INT, "triple fault at cs:rip={:04x}:{:016x}", cpu.seg(SegReg::Cs).selector, cpu.rip);
    Err(Shutdown)
}

/// The event of a fault raised by the instruction at RIP.
pub fn from_fault(cpu: &CpuState, f: Fault) -> Event {
    // Of debug faults general detect sets RF, an instruction breakpoint leaves that to the handler.
    let rf = match f.vector {
        vector::DB => f.addr & dr6::BD != 0,
        vector::DF | vector::MC => false,
        _ => true,
    };
    Event { vector: f.vector, error: f.error, source: Source::Exception, rip: cpu.rip, rf }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    Page,
    Double,
}

enum Next {
    Serve,
    Double,
    Shutdown,
}

fn class(v: u8) -> Class {
    match v {
        vector::DE | vector::TS | vector::NP | vector::SS | vector::GP => Class::Contributory,
        vector::PF => Class::Page,
        vector::DF => Class::Double,
        _ => Class::Benign,
    }
}

fn escalate(first: Class, second: Class) -> Next {
    match (first, second) {
        (Class::Double, Class::Benign) => Next::Serve,
        (Class::Double, _) => Next::Shutdown,
        (Class::Contributory, Class::Contributory) => Next::Double,
        (Class::Page, Class::Contributory | Class::Page) => Next::Double,
        _ => Next::Serve,
    }
}

fn log(cpu: &CpuState, ev: &Event, cr2: u64) {
    dlog!(
        INT,
        "int: vector={:02x} error={:04x} {:?} cpl={} cs:rip={:04x}:{:016x} ss:rsp={:04x}:{:016x} cr2={:016x}",
        ev.vector,
        ev.error.unwrap_or(0),
        ev.source,
        cpu.cpl,
        cpu.seg(SegReg::Cs).selector,
        ev.rip,
        cpu.seg(SegReg::Ss).selector,
        cpu.gpr[4],
        cr2
    );
}

/// One attempt. On `Err` no register has changed; `Ok(Some)` is a fault of the task that was switched to.
fn enter<E: GuestEnv<Cpu = CpuState>>(env: &mut E, ev: &Event) -> Result<Option<Fault>, Fault> {
    let cpu = env.cpu_ref();
    let debug = ev.vector == vector::DB && ev.source == Source::Exception;
    let (from, record) = (cpu.rip, cpu.records_branches() && ev.vector != vector::DB);
    match (cpu.protected(), cpu.long_mode()) {
        (false, _) => enter_real(env, ev)?,
        (_, true) => enter_long(env, ev)?,
        _ => {
            let gate = gate(env, ev, false)?;
            if gate.kind() == system::TASK {
                let fault = enter_task(env, ev, &gate)?;
                if record {
                    env.cpu().record_event(from);
                }
                return Ok(fault);
            }
            enter_protected(env, ev, gate)?;
        }
    }
    if record {
        env.cpu().record_event(from);
    }
    if debug {
        debug_entered(env.cpu());
    }
    Ok(None)
}

/// Through a task gate (SDM 3A §6.12.2 "Interrupt Tasks").
fn enter_task<E: GuestEnv<Cpu = CpuState>>(env: &mut E, ev: &Event, gate: &Desc) -> Result<Option<Fault>, Fault> {
    let new = task::behind_gate(env, gate, ev.ext())?;
    let flags = ev.flags(env.cpu_ref());
    let fault = task::switch(env, new, Cause::Nest, &Leaving { rip: ev.rip, flags, ext: ev.ext(), error: ev.error })?;
    if ev.vector == vector::DB {
        debug_entered(env.cpu());
    }
    Ok(fault)
}

/// The handler of #DB may use the debug registers; branches are recorded and stepped no more (SDM 3B "IA32_DEBUGCTL MSR").
fn debug_entered(cpu: &mut CpuState) {
    cpu.dr[7] &= !dr7::GD;
    cpu.debugctl &= !(debugctl::BTF | debugctl::LBR);
    cpu.update_mode();
}

fn enter_real<E: GuestEnv<Cpu = CpuState>>(env: &mut E, ev: &Event) -> Result<(), Fault> {
    let cpu = env.cpu_ref();
    let at = u32::from(ev.vector) * 4;
    if at + 3 > u32::from(cpu.idt.limit) {
        return Err(gp(ev.idt_code()));
    }
    let (va, ctx) = (system_va(cpu, cpu.idt.base, at.into()), system_ctx(cpu));
    let target = env.load(Va(va), 4, ctx)?;
    let cpu = env.cpu_ref();
    let mut stack = Stack::current(cpu, 0);
    // Real mode saves no error code and 16 bits of everything (SDM 3A §20.1.4).
    for v in [ev.flags(cpu), cpu.seg(SegReg::Cs).selector.into(), ev.rip] {
        stack.push(cpu, 2, v & 0xffff)?;
    }
    stack.store(env)?;
    let cpu = env.cpu();
    cpu.gpr[4] = stack.sp;
    let selector = (target >> 16) as u16;
    let cs = cpu.seg_mut(SegReg::Cs);
    (cs.selector, cs.base) = (selector, u64::from(selector) << 4);
    cpu.rip = target & 0xffff;
    let f = cpu.rflags() & !(bit::IF | bit::TF | bit::AC | bit::RF);
    finish(cpu, f);
    Ok(())
}

fn finish(cpu: &mut CpuState, rflags: u64) {
    cpu.halted = false;
    cpu.shadow = 0;
    cpu.no_step();
    cpu.set_rflags(rflags);
}

/// A gate of the IDT after its checks, and the code segment it leads to.
struct Target {
    gate: Desc,
    selector: u16,
    cs: Desc,
    offset: u64,
    new_cpl: u8,
}

/// Reads and checks the gate for `ev`.
fn gate<E: GuestEnv<Cpu = CpuState>>(env: &mut E, ev: &Event, long: bool) -> Result<Desc, Fault> {
    let cpu = env.cpu_ref();
    let size = if long { 16 } else { 8 };
    let at = u64::from(ev.vector) * size;
    if at + size - 1 > u64::from(cpu.idt.limit) {
        return Err(gp(ev.idt_code()));
    }
    let (va, ctx, cpl) = (system_va(cpu, cpu.idt.base, at), system_ctx(cpu), cpu.cpl);
    let gate = Desc { raw: env.load(Va(va), 8, ctx)?, va };
    let right_type = match gate.kind() {
        system::INT32 | system::TRAP32 => true,
        system::INT16 | system::TRAP16 | system::TASK => !long,
        _ => false,
    };
    if !gate.is_system() || !right_type || ev.soft() && gate.dpl() < cpl {
        return Err(gp(ev.idt_code()));
    }
    if !gate.present() {
        return Err(np(ev.idt_code()));
    }
    Ok(gate)
}

/// The code segment that an interrupt or trap gate leads to.
fn target<E: GuestEnv<Cpu = CpuState>>(env: &mut E, ev: &Event, gate: Desc, long: bool) -> Result<Target, Fault> {
    let (ext, cpl, ctx) = (ev.ext(), env.cpu_ref().cpl, system_ctx(env.cpu_ref()));
    let selector = gate.gate_selector();
    let mut offset = gate.gate_offset();
    if long {
        offset |= env.load(Va(gate.va.wrapping_add(8)), 4, ctx)? << 32;
    } else if gate.kind() < 8 {
        offset &= 0xffff;
    }
    if is_null(selector) {
        return Err(gp(ext));
    }
    let bad = || gp(code(selector) | ext);
    let cs = desc::fetch(env, selector)?.ok_or_else(bad)?;
    if !cs.is_code() || cs.dpl() > cpl || long && (!cs.long() || cs.big()) {
        return Err(bad());
    }
    if !cs.present() {
        return Err(np(code(selector) | ext));
    }
    let new_cpl = if cs.conforming() { cpl } else { cs.dpl() };
    // From v86 mode only a non-conforming segment of DPL 0 will do (SDM 3A §20.3.1.1).
    if env.cpu_ref().v86() && new_cpl != 0 {
        return Err(bad());
    }
    Ok(Target { gate, selector, cs, offset, new_cpl })
}

fn enter_protected<E: GuestEnv<Cpu = CpuState>>(env: &mut E, ev: &Event, gate: Desc) -> Result<(), Fault> {
    let ext = ev.ext();
    let mut t = target(env, ev, gate, false)?;
    let size = if t.gate.kind() & 8 != 0 { 4 } else { 2 };
    let inner = t.new_cpl < env.cpu_ref().cpl;
    let mut new_ss = None;
    let mut stack = if inner {
        let (mut d, sel, sp) = tss::inner_stack(env, t.new_cpl, ext)?;
        set_type_bits(env, &mut d, 1)?;
        let seg = d.segment(sel);
        new_ss = Some(seg);
        // Of a 16-bit stack only SP is loaded; the upper half of ESP stays (as it does for 16-bit TSSs).
        Stack::new(env.cpu_ref(), seg, sp, false, t.new_cpl, code(sel) | ext)
    } else {
        Stack::current(env.cpu_ref(), ext)
    };
    set_type_bits(env, &mut t.cs, 1)?;
    let cpu = env.cpu_ref();
    if cpu.v86() {
        for s in [SegReg::Gs, SegReg::Fs, SegReg::Ds, SegReg::Es] {
            stack.push(cpu, size, cpu.seg(s).selector.into())?;
        }
    }
    if inner {
        stack.push(cpu, size, cpu.seg(SegReg::Ss).selector.into())?;
        stack.push(cpu, size, cpu.gpr[4])?;
    }
    for v in [ev.flags(cpu), cpu.seg(SegReg::Cs).selector.into(), ev.rip] {
        stack.push(cpu, size, v)?;
    }
    if let Some(e) = ev.error {
        stack.push(cpu, size, e.into())?;
    }
    let cs = t.cs.segment(t.selector & !3 | u16::from(t.new_cpl));
    if !in_limit(&cs, t.offset, 1) {
        return Err(gp(ext));
    }
    stack.store(env)?;
    commit(env.cpu(), &t, cs, new_ss, stack.sp);
    Ok(())
}

fn enter_long<E: GuestEnv<Cpu = CpuState>>(env: &mut E, ev: &Event) -> Result<(), Fault> {
    let ext = ev.ext();
    let gate = gate(env, ev, true)?;
    let mut t = target(env, ev, gate, true)?;
    let inner = t.new_cpl < env.cpu_ref().cpl;
    let ist = (t.gate.raw >> 32 & 7) as u8;
    let sp = match (ist, inner) {
        (0, false) => env.cpu_ref().gpr[4],
        (0, true) => tss::rsp(env, t.new_cpl, ext)?,
        _ => tss::ist(env, ist, ext)?,
    };
    if !crate::paging::canonical(env.cpu_ref(), t.offset) {
        return Err(gp(ext));
    }
    set_type_bits(env, &mut t.cs, 1)?;
    let cpu = env.cpu_ref();
    let new_ss = inner.then(|| tss::null_ss(t.new_cpl));
    let mut stack = Stack::new(cpu, Segment::default(), sp & !0xf, true, t.new_cpl, ext);
    let (ss_sel, cs_sel) = (cpu.seg(SegReg::Ss).selector, cpu.seg(SegReg::Cs).selector);
    for v in [ss_sel.into(), cpu.gpr[4], ev.flags(cpu), cs_sel.into(), ev.rip] {
        stack.push(cpu, 8, v)?;
    }
    if let Some(e) = ev.error {
        stack.push(cpu, 8, e.into())?;
    }
    stack.store(env)?;
    let cs = t.cs.segment(t.selector & !3 | u16::from(t.new_cpl));
    commit(env.cpu(), &t, cs, new_ss, stack.sp);
    Ok(())
}

/// The frame is in memory: changes the registers.
fn commit(cpu: &mut CpuState, t: &Target, cs: Segment, new_ss: Option<Segment>, sp: u64) {
    let mut flags = cpu.rflags() & !(bit::TF | bit::NT | bit::RF | bit::VM);
    // Even types are interrupt gates.
    if t.gate.kind() & 1 == 0 {
        flags &= !bit::IF;
    }
    if cpu.v86() {
        for s in [SegReg::Gs, SegReg::Fs, SegReg::Ds, SegReg::Es] {
            *cpu.seg_mut(s) = Segment { attr: Segment::UNUSABLE, ..Segment::default() };
        }
    }
    if let Some(seg) = new_ss {
        *cpu.seg_mut(SegReg::Ss) = seg;
    }
    *cpu.seg_mut(SegReg::Cs) = cs;
    cpu.cpl = t.new_cpl;
    cpu.gpr[4] = sp;
    cpu.rip = t.offset;
    finish(cpu, flags);
}
