//! Debug registers: breakpoints on instructions, data and ports, single steps, general detect (SDM 3B chapter 18 "Debug,
//! Branch Profile, TSC, and Intel Resource Director Technology Features").
//!
//! While DR7 enables anything, instructions run one at a time, each between `GuestCpu::before_insn` and `after_insn`.

use crate::deliver::{self, Event, Source};
use crate::fault::{gp, ud, vector};
use crate::flags::{bit, condition};
use crate::refine;
use crate::state::{CpuState, PendingEvent, cr4, shadow};
use iced_x86::{Code, FlowControl as Flow, Instruction, Mnemonic};
use vm_core::guest::{Flush, GuestCpu, GuestEnv, Shutdown};
use vm_core::{Fault, Va};

/// DR6: what happened (bits 3:0 are those of breakpoints 0 to 3).
pub mod dr6 {
    /// An access to a debug register while DR7.GD was set.
    pub const BD: u64 = 1 << 13;
    /// Single step.
    pub const BS: u64 = 1 << 14;
    /// A task switch to a task whose T flag is set.
    pub const BT: u64 = 1 << 15;
    pub const WRITABLE: u64 = 0xf | BD | BS | BT;
    /// Bits that read as ones.
    pub const ONES: u64 = 0xffff_0ff0;
}

/// DR7.
pub mod dr7 {
    /// L0, G0 to L3, G3.
    pub const ENABLES: u64 = 0xff;
    /// L0 to L3 and LE, which a task switch clears.
    pub const LOCAL: u64 = 0x155;
    pub const GD: u64 = 1 << 13;
    pub const WRITABLE: u64 = 0xffff_23ff;
    pub const ONES: u64 = 1 << 10;
}

/// IA32_DEBUGCTL.
pub mod debugctl {
    use crate::cpuid::is_amd;
    use crate::state::CpuState;

    /// Records the last branch, and the last before an interrupt or exception.
    pub const LBR: u64 = 1 << 0;
    /// TF traps only instructions that branch (SDM 3B "Single-Stepping on Branches").
    pub const BTF: u64 = 1 << 1;
    /// AMD's performance-monitoring pins, which nothing is connected to.
    pub const PINS: u64 = 0xf << 2;

    /// Bits that are not reserved: those of branch trace stores and of performance monitoring go with CPUID's features, which
    /// are off.
    pub fn known(cpu: &CpuState) -> u64 {
        LBR | BTF | if is_amd(cpu) { PINS } else { 0 }
    }
}

/// DR7.R/W of a breakpoint.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Execute,
    Write,
    Port,
    Data,
}

/// #DB with the DR6 bits that tell why.
pub(crate) const fn db(why: u64) -> Fault {
    Fault { vector: vector::DB, error: None, addr: why }
}

impl CpuState {
    /// Does DR7 enable any breakpoint?
    pub(crate) fn breakpoints(&self) -> bool {
        self.dr[7] & dr7::ENABLES != 0
    }

    /// DR6 bits of the enabled breakpoints of these kinds that `len` bytes at `addr` touch.
    fn hits(&self, addr: u64, len: u64, kind: impl Fn(Kind) -> bool) -> u64 {
        (0..4).filter(|&n| self.dr[7] >> (2 * n) & 3 != 0).fold(0, |bits, n| {
            let how = self.dr[7] >> (16 + 4 * n) & 15;
            let is = match how & 3 {
                0 => Kind::Execute,
                1 => Kind::Write,
                2 => Kind::Port,
                _ => Kind::Data,
            };
            // LEN: 1, 2, 8, 4 bytes; the address is aligned to it.
            let size: u64 = [1, 2, 8, 4][(how >> 2) as usize];
            let first = self.dr[n as usize] & !(size - 1);
            // Either begins within the other.
            let meet = addr.wrapping_sub(first) < size || first.wrapping_sub(addr) < len;
            if kind(is) && meet { bits | 1 << n } else { bits }
        })
    }

    /// IA32_DEBUGCTL.LBR: branches are recorded.
    pub(crate) fn records_branches(&self) -> bool {
        self.debugctl & debugctl::LBR != 0
    }

    /// An interrupt or exception led from `from` to RIP (SDM 3B "Last-Branch, Interrupt, and Exception Recording (P6 Family
    /// Processors)", AMD APM 2 "Control-Transfer Recording").
    pub(crate) fn record_event(&mut self, from: u64) {
        let [a, b, ..] = self.lbr;
        self.lbr = [from, self.rip, a, b];
    }

    /// Notes that a trap is due after this instruction.
    fn note(&mut self, why: u64) {
        let p = &mut self.pending;
        if why != 0 && (!p.valid || p.vector == vector::DB) {
            let payload = if p.valid { p.payload | why } else { why };
            *p = PendingEvent { valid: true, vector: vector::DB, payload, ..PendingEvent::default() };
        }
    }

    /// Is a #DB due after this instruction?
    pub fn trap_due(&self) -> bool {
        self.pending.valid && self.pending.vector == vector::DB
    }

    /// The instruction entered a handler or another task: it is no single step.
    pub(crate) fn no_step(&mut self) {
        let p = &mut self.pending;
        if p.valid && p.vector == vector::DB {
            p.payload &= !dr6::BS;
            p.valid = p.payload != 0;
        }
    }

    /// Data breakpoints: an access of `size` bytes was made.
    pub(crate) fn note_access(&mut self, va: Va, size: u8, write: bool) {
        if self.breakpoints() {
            self.note(self.hits(va.0, size.into(), |k| k == Kind::Data || k == Kind::Write && write));
        }
    }

    /// I/O breakpoints, which CR4.DE enables: a port was accessed.
    pub fn note_port(&mut self, port: u16, size: u8) {
        if self.breakpoints() && self.cr4 & cr4::DE != 0 {
            self.note(self.hits(port.into(), size.into(), |k| k == Kind::Port));
        }
    }

    /// Does a data breakpoint watch part of the page of `va`?
    pub(crate) fn watches_page(&self, va: Va) -> bool {
        self.breakpoints() && self.hits(va.0 & !0xfff, 0x1000, |k| matches!(k, Kind::Data | Kind::Write)) != 0
    }

    /// RF after an instruction that loads it: it has no meaning without breakpoints, and is dropped then.
    pub(crate) fn keep_rf(&self, rflags: u64) -> u64 {
        if self.breakpoints() { rflags } else { rflags & !bit::RF }
    }
}

/// A trap that is due, or an instruction breakpoint: the handler is entered. `false`: the instruction may run.
pub(crate) fn before_insn<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<bool, Shutdown> {
    let cpu = env.cpu();
    let held = cpu.shadow == shadow::MOV_SS;
    if cpu.pending.valid && !held {
        return take_pending(env).map(|()| true);
    }
    let entered = !held && at_instruction(env)?;
    if !entered && env.cpu_ref().records_branches() {
        env.cpu().branch = branches(env).then_some(env.cpu_ref().rip);
    }
    let cpu = env.cpu();
    // TF counts as it is before the instruction: POPF that clears it still traps.
    if !entered && cpu.eflags & bit::TF != 0 && (cpu.debugctl & debugctl::BTF == 0 || branches(env)) {
        env.cpu().note(dr6::BS);
    }
    Ok(entered)
}

/// Will the instruction at RIP branch? One that does not exist or faults will not, but then there is no trap either.
fn branches<E: GuestEnv<Cpu = CpuState>>(env: &E) -> bool {
    let cpu = env.cpu_ref();
    let Some(insn) = refine::at_rip(cpu, env.io()) else { return false };
    match insn.flow_control() {
        Flow::ConditionalBranch => taken(cpu, &insn),
        Flow::UnconditionalBranch | Flow::IndirectBranch | Flow::Return | Flow::Call | Flow::IndirectCall => true,
        _ => false,
    }
}

/// Jcc, LOOPcc, JrCXZ.
fn taken(cpu: &CpuState, insn: &Instruction) -> bool {
    use Code::*;
    let count = match insn.code() {
        Jcxz_rel8_16 | Jcxz_rel8_32 | Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX
        | Loopne_rel8_16_CX | Loopne_rel8_32_CX => cpu.gpr[1] & 0xffff,
        Jrcxz_rel8_16 | Jrcxz_rel8_64 | Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX
        | Loopne_rel8_16_RCX | Loopne_rel8_64_RCX => cpu.gpr[1],
        _ => cpu.gpr[1] & 0xffff_ffff,
    };
    let flags = cpu.rflags();
    let zero = flags & bit::ZF != 0;
    match insn.mnemonic() {
        Mnemonic::Loop => count != 1,
        Mnemonic::Loope => count != 1 && zero,
        Mnemonic::Loopne => count != 1 && !zero,
        Mnemonic::Jcxz | Mnemonic::Jecxz | Mnemonic::Jrcxz => count == 0,
        // In the order of Jcc's low nibble, from 1.
        _ => condition((insn.condition_code() as u8).wrapping_sub(1) & 15, flags),
    }
}

/// Instruction breakpoints.
fn at_instruction<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<bool, Shutdown> {
    let cpu = env.cpu();
    // RF holds breakpoints back for one instruction.
    if cpu.eflags & bit::RF != 0 {
        cpu.eflags &= !bit::RF;
        return Ok(false);
    }
    let at = cpu.linear(cpu.rip);
    let hits = cpu.hits(at.0, 1, |k| k == Kind::Execute);
    if hits == 0 {
        return Ok(false);
    }
    CpuState::deliver_fault(env, db(hits)).map(|()| true)
}

/// Traps after an instruction: single step, and breakpoints that it met.
pub(crate) fn after_insn<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<(), Shutdown> {
    let cpu = env.cpu();
    if let Some(from) = cpu.branch.take().filter(|_| cpu.records_branches()) {
        (cpu.lbr[0], cpu.lbr[1]) = (from, cpu.rip);
    }
    // MOV SS holds traps back until after the next instruction.
    if cpu.shadow == shadow::MOV_SS {
        return Ok(());
    }
    if cpu.pending.valid { take_pending(env) } else { Ok(()) }
}

/// Delivers what `CpuState::pending` holds: a trap of the last instruction, a fault of a task that was switched to, or what
/// another accelerator left.
pub(crate) fn take_pending<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<(), Shutdown> {
    let cpu = env.cpu();
    let p = std::mem::take(&mut cpu.pending);
    cpu.halted = false;
    let error = p.has_error.then_some(p.error);
    // Vectors the CPU raises itself are below 32; NMI among them.
    if p.vector >= 32 || p.vector == vector::NMI {
        return crate::guest_cpu::external(env, p.vector);
    }
    if p.vector == vector::DB {
        cpu.dr[6] |= p.payload & dr6::WRITABLE;
        let ev = Event { vector: vector::DB, error: None, source: Source::Exception, rip: cpu.rip, rf: false };
        return deliver::deliver(env, ev, 0);
    }
    CpuState::deliver_fault(env, Fault { vector: p.vector, error, addr: p.payload })
}

/// DR4 and DR5 are DR6 and DR7 unless CR4.DE is set. With DR7.GD every access is a #DB.
fn register(cpu: &CpuState, n: u8) -> Result<usize, Fault> {
    let n = usize::from(n & 7);
    if matches!(n, 4 | 5) && cpu.cr4 & cr4::DE != 0 {
        return Err(ud());
    }
    if cpu.cpl != 0 {
        return Err(gp(0));
    }
    if cpu.dr[7] & dr7::GD != 0 {
        return Err(db(dr6::BD));
    }
    Ok(if matches!(n, 4 | 5) { n + 2 } else { n })
}

/// MOV from DRn. Errors: #UD, #GP(0), #DB.
pub fn read_dr(cpu: &CpuState, n: u8) -> Result<u64, Fault> {
    Ok(cpu.dr[register(cpu, n)?])
}

/// MOV to DRn. Errors: #UD, #GP(0), #DB; nothing has changed then.
pub fn write_dr<E: GuestEnv<Cpu = CpuState>>(env: &mut E, n: u8, value: u64) -> Result<(), Fault> {
    let cpu = env.cpu();
    let i = register(cpu, n)?;
    let value = if cpu.mode().is_64() { value } else { value & 0xffff_ffff };
    if i >= 6 && value >> 32 != 0 {
        return Err(gp(0));
    }
    cpu.dr[i] = match i {
        6 => value & dr6::WRITABLE | dr6::ONES,
        7 => value & dr7::WRITABLE | dr7::ONES,
        _ => value,
    };
    cpu.update_mode();
    // Pages that are watched must not be in the TLB.
    if cpu.breakpoints() {
        env.flush(Flush::All);
    }
    Ok(())
}
