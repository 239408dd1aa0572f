//! System instructions: control and debug registers, descriptor tables, MSRs, CPUID, system calls (SDM 2; the rules are in
//! `arch_x86`).

use super::{ANY, CHECKS, Env, Res, STATE};
use arch_x86::flags::bit;
use arch_x86::state::{cr4, shadow};
use arch_x86::{SegReg, control, cpuid, debug, fault, msr, segment, syscall};
use vm_core::{Fault, dlog};

rows! {
    topic system;
    /// (mnemonic, first bytes of the instruction): logs an instruction that is not implemented and raises #UD.
    UNIMP = unimp(2) CHECKS;
    READ_CR = read_cr(1) CHECKS;
    /// (number, value)
    WRITE_CR = write_cr(2) ANY;
    READ_DR = read_dr(1) CHECKS;
    WRITE_DR = write_dr(2) ANY;
    LMSW = lmsw(1) ANY;
    CLTS = clts(0) ANY;
    /// (linear address)
    INVLPG = invlpg(1) ANY;
    /// (type, PCID half and address half of the descriptor)
    INVPCID = invpcid(3) ANY;
    RDMSR = rdmsr(1) ANY;
    /// (index, value)
    WRMSR = wrmsr(2) ANY;
    CPUID = cpuid_regs(0) STATE;
    /// (1 for LIDT, limit, base)
    LOAD_TABLE = load_table(3) ANY;
    LLDT = lldt(1) ANY;
    LTR = ltr(1) ANY;
    /// The UMIP check of SGDT, SIDT, SLDT, STR and SMSW.
    STORE_ALLOWED = store_allowed(0) CHECKS;
    /// (selector): the access rights, or bit 63 if there are none to give.
    LAR = lar(1) ANY;
    LSL = lsl(1) ANY;
    /// (selector, 1 for VERW): ZF.
    VERIFY = verify(2) ANY;
    HLT = hlt(0) ANY;
    /// (1 for STI) where IOPL decides.
    SET_IF = set_if(1) ANY;
    /// Leaves, unless it runs alone, if an event waits.
    NOTHING_WAITS = nothing_waits(0) CHECKS;
    /// (linear address)
    MONITOR = monitor(1) ANY;
    MWAIT = mwait(0) ANY;
    /// #GP(0) above CPL 0.
    PRIVILEGED = privileged(0) CHECKS;
    /// (return address)
    SYSCALL = enter_syscall(1) ANY;
    /// (1 with REX.W)
    SYSRET = leave_syscall(1) ANY;
    SYSENTER = enter_sysenter(0) ANY;
    SYSEXIT = leave_sysenter(1) ANY;
    SWAPGS = swapgs(0) ANY;
    RSM = rsm(0) ANY;
    XGETBV = xgetbv(1) CHECKS;
    XSETBV = xsetbv(2) ANY;
    RDPKRU = rdpkru(0) CHECKS;
    WRPKRU = wrpkru(0) ANY;
    /// (1 for STAC): EFLAGS.AC.
    SET_AC = set_ac(1) ANY;
    /// (segment): base, if CR4.FSGSBASE.
    READ_BASE = read_base(1) CHECKS;
    WRITE_BASE = write_base(2) ANY;
}

fn unimp<E: Env>(env: &mut E, mnemonic: u64, bytes: u64, _: u64) -> Res {
    let cpu = env.cpu_ref();
    let m = iced_x86::Mnemonic::values().nth(mnemonic as usize);
    dlog!(UNIMP, "instruction {m:?} at {:x}:{:x} (bytes {:02x?})", cpu.seg[1].selector, cpu.rip, bytes.to_le_bytes());
    Err(fault::ud())
}

fn nothing_waits<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    if env.io().signals().pending().is_empty() { Ok(0) } else { done(env.alone()) }
}

/// Result of a helper that gives none.
fn done(r: Result<(), Fault>) -> Res {
    r.map(|()| 0)
}

fn rsm<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    done(arch_x86::smm::rsm(env))
}

fn read_cr<E: Env>(env: &mut E, n: u64, _: u64, _: u64) -> Res {
    control::read_cr(env, n as u8)
}

fn write_cr<E: Env>(env: &mut E, n: u64, v: u64, _: u64) -> Res {
    done(control::write_cr(env, n as u8, v))
}

fn read_dr<E: Env>(env: &mut E, n: u64, _: u64, _: u64) -> Res {
    debug::read_dr(env.cpu_ref(), n as u8)
}

fn write_dr<E: Env>(env: &mut E, n: u64, v: u64, _: u64) -> Res {
    done(debug::write_dr(env, n as u8, v))
}

fn lmsw<E: Env>(env: &mut E, v: u64, _: u64, _: u64) -> Res {
    done(control::lmsw(env, v as u16))
}

fn clts<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    done(control::clts(env.cpu()))
}

fn invlpg<E: Env>(env: &mut E, va: u64, _: u64, _: u64) -> Res {
    done(control::invlpg(env, va))
}

fn invpcid<E: Env>(env: &mut E, kind: u64, pcid: u64, va: u64) -> Res {
    done(control::invpcid(env, kind, pcid, va))
}

fn rdmsr<E: Env>(env: &mut E, index: u64, _: u64, _: u64) -> Res {
    msr::rdmsr(env, index as u32)
}

fn wrmsr<E: Env>(env: &mut E, index: u64, v: u64, _: u64) -> Res {
    done(msr::wrmsr(env, index as u32, v))
}

fn cpuid_regs<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    let g = env.cpu_ref().gpr;
    let [a, b, c, d] = cpuid::cpuid(env.cpu_ref(), g[0] as u32, g[1] as u32);
    let g = &mut env.cpu().gpr;
    (g[0], g[3], g[1], g[2]) = (a.into(), b.into(), c.into(), d.into());
    Ok(0)
}

fn load_table<E: Env>(env: &mut E, idt: u64, limit: u64, base: u64) -> Res {
    done(segment::load_table(env, idt != 0, limit as u16, base))
}

fn lldt<E: Env>(env: &mut E, selector: u64, _: u64, _: u64) -> Res {
    done(segment::load_ldt(env, selector as u16))
}

fn ltr<E: Env>(env: &mut E, selector: u64, _: u64, _: u64) -> Res {
    done(segment::load_tr(env, selector as u16))
}

fn store_allowed<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    done(segment::store_allowed(env.cpu_ref()))
}

/// What LAR and LSL give, `NOT_VISIBLE` for nothing.
pub const NOT_VISIBLE: u64 = 1 << 63;

fn lar<E: Env>(env: &mut E, selector: u64, _: u64, _: u64) -> Res {
    Ok(segment::lar(env, selector as u16)?.map_or(NOT_VISIBLE, u64::from))
}

fn lsl<E: Env>(env: &mut E, selector: u64, _: u64, _: u64) -> Res {
    Ok(segment::lsl(env, selector as u16)?.map_or(NOT_VISIBLE, u64::from))
}

fn verify<E: Env>(env: &mut E, selector: u64, write: u64, _: u64) -> Res {
    segment::verify(env, selector as u16, write != 0).map(u64::from)
}

fn hlt<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    done(control::hlt(env.cpu()))
}

fn set_if<E: Env>(env: &mut E, on: u64, _: u64, _: u64) -> Res {
    done(control::set_if(env.cpu(), on != 0))
}

fn monitor<E: Env>(env: &mut E, va: u64, _: u64, _: u64) -> Res {
    done(arch_x86::monitor::monitor(env, va))
}

fn mwait<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    done(arch_x86::monitor::mwait(env))
}

fn privileged<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    if env.cpu_ref().cpl == 0 { Ok(0) } else { Err(fault::gp(0)) }
}

fn enter_syscall<E: Env>(env: &mut E, next: u64, _: u64, _: u64) -> Res {
    done(syscall::syscall(env.cpu(), next))
}

fn leave_syscall<E: Env>(env: &mut E, wide: u64, _: u64, _: u64) -> Res {
    done(syscall::sysret(env.cpu(), wide != 0))
}

fn enter_sysenter<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    done(syscall::sysenter(env.cpu()))
}

fn leave_sysenter<E: Env>(env: &mut E, wide: u64, _: u64, _: u64) -> Res {
    done(syscall::sysexit(env.cpu(), wide != 0))
}

fn swapgs<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    done(syscall::swapgs(env.cpu()))
}

fn xgetbv<E: Env>(env: &mut E, index: u64, _: u64, _: u64) -> Res {
    let cpu = env.cpu_ref();
    if index as u32 == 1 && cpu.cr4 & cr4::OSXSAVE != 0 && cpu.has(crate::translate::feature::XGETBV1) {
        return Ok(super::x87::xsave::used_of_enabled(cpu));
    }
    control::xgetbv(cpu, index as u32)
}

fn xsetbv<E: Env>(env: &mut E, index: u64, v: u64, _: u64) -> Res {
    done(control::xsetbv(env.cpu(), index as u32, v))
}

fn rdpkru<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    control::rdpkru(env.cpu_ref())
}

fn wrpkru<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    done(control::wrpkru(env))
}

fn set_ac<E: Env>(env: &mut E, on: u64, _: u64, _: u64) -> Res {
    let cpu = env.cpu();
    if cpu.cpl != 0 {
        return Err(fault::ud());
    }
    cpu.eflags = if on != 0 { cpu.eflags | bit::AC } else { cpu.eflags & !bit::AC };
    cpu.update_mode();
    Ok(0)
}

/// RDFSBASE and its like exist in 64-bit code with CR4.FSGSBASE (SDM 2 "RDFSBASE").
fn base_allowed<E: Env>(env: &E) -> Result<(), Fault> {
    let cpu = env.cpu_ref();
    if cpu.mode().is_64() && cpu.cr4 & cr4::FSGSBASE != 0 { Ok(()) } else { Err(fault::ud()) }
}

fn read_base<E: Env>(env: &mut E, seg: u64, _: u64, _: u64) -> Res {
    base_allowed(env)?;
    Ok(env.cpu_ref().seg(SegReg::from_index(seg).unwrap_or(SegReg::Fs)).base)
}

fn write_base<E: Env>(env: &mut E, seg: u64, v: u64, _: u64) -> Res {
    base_allowed(env)?;
    let bits = if env.cpu_ref().cr4 & cr4::LA57 != 0 { 7 } else { 16 };
    if ((v << bits) as i64 >> bits) as u64 != v {
        return Err(fault::gp(0));
    }
    env.cpu().seg_mut(SegReg::from_index(seg).unwrap_or(SegReg::Fs)).base = v;
    Ok(0)
}

/// Holds events for one instruction after a load of SS.
pub(super) fn shadow_ss<E: Env>(env: &mut E) {
    env.cpu().shadow = shadow::MOV_SS;
}
