//! Control, debug and extended control registers with their checks and side effects (SDM 3A §2.5, §9.8; SDM 2B "MOV").

use crate::cpuid::feature;
use crate::fault::{gp, ud};
use crate::flags::bit;
use crate::paging::{PHYS_BITS, load_pdptes};
use crate::state::{CpuState, SegReg, Segment, cr0, cr4, efer};
use crate::vme;
use vm_core::guest::{Flush, GuestEnv};
use vm_core::{Fault, Pa, Va};

pub(crate) const CR0_KNOWN: u64 =
    cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
/// CR4 bits whose change makes translations stale.
const CR4_PAGING: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP | cr4::LA57 | cr4::PKE;

fn privileged(cpu: &CpuState) -> Result<(), Fault> {
    if cpu.cpl == 0 { Ok(()) } else { Err(gp(0)) }
}

fn check(ok: bool) -> Result<(), Fault> {
    if ok { Ok(()) } else { Err(gp(0)) }
}

/// MOV from CRn. Errors: #UD for a register that does not exist, #GP(0) above CPL 0.
pub fn read_cr<E: GuestEnv<Cpu = CpuState>>(env: &mut E, n: u8) -> Result<u64, Fault> {
    let cpu = env.cpu_ref();
    if !matches!(n, 0 | 2 | 3 | 4 | 8) {
        return Err(ud());
    }
    privileged(cpu)?;
    Ok(match n {
        0 => cpu.cr0,
        2 => cpu.cr2,
        3 => cpu.cr3,
        4 => cpu.cr4,
        _ => env.io().cr8().into(),
    })
}

/// MOV to CRn. Errors: #UD, #GP(0), and page faults of nothing else; nothing has changed then.
pub fn write_cr<E: GuestEnv<Cpu = CpuState>>(env: &mut E, n: u8, value: u64) -> Result<(), Fault> {
    if !matches!(n, 0 | 2 | 3 | 4 | 8) {
        return Err(ud());
    }
    privileged(env.cpu_ref())?;
    match n {
        0 => write_cr0(env, value),
        2 => {
            env.cpu().cr2 = value;
            Ok(())
        }
        3 => write_cr3(env, value),
        4 => write_cr4(env, value),
        _ => {
            check(value <= 15)?;
            env.io().set_cr8(value as u8);
            Ok(())
        }
    }
}

/// The PDPTE registers for the given control registers, read if that paging mode is (or comes) on; #GP(0) if bad.
fn pdptes<E: GuestEnv<Cpu = CpuState>>(env: &mut E, cr0v: u64, cr3: u64, cr4v: u64) -> Result<Option<[u64; 4]>, Fault> {
    let long = env.cpu_ref().efer & efer::LME != 0;
    if cr0v & cr0::PG == 0 || cr4v & cr4::PAE == 0 || long {
        return Ok(None);
    }
    let io = env.io();
    let mask = crate::paging::a20_mask(env.cpu_ref());
    match load_pdptes(cr3, |pa| io.mmio_read(Pa(pa & mask), 8)) {
        Some(p) => Ok(Some(p)),
        None => Err(gp(0)),
    }
}

fn write_cr0<E: GuestEnv<Cpu = CpuState>>(env: &mut E, value: u64) -> Result<(), Fault> {
    let cpu = env.cpu_ref();
    let has = |b: u64| value & b != 0;
    check(value >> 32 == 0)?;
    check(!has(cr0::PG) || has(cr0::PE))?;
    check(!has(cr0::NW) || has(cr0::CD))?;
    let new = value & CR0_KNOWN | cr0::ET;
    let changed = new ^ cpu.cr0;
    let mut new_efer = cpu.efer;
    if changed & cr0::PG != 0 {
        new_efer = paging_switch(cpu, has(cr0::PG))?;
    }
    let reload = changed & (cr0::PG | cr0::CD | cr0::NW) != 0;
    let p = if reload { pdptes(env, new, env.cpu_ref().cr3, env.cpu_ref().cr4)? } else { None };
    let cpu = env.cpu();
    cpu.pdpte = p.unwrap_or(cpu.pdpte);
    (cpu.cr0, cpu.efer) = (new, new_efer);
    cpu.update_mode();
    if changed & new & cr0::NE != 0 {
        env.io().ferr(false);
    }
    if changed & (cr0::PG | cr0::WP | cr0::PE) != 0 {
        env.flush(Flush::All);
    }
    Ok(())
}

/// EFER after CR0.PG changes (SDM 3A §9.8.5 "Initializing IA-32e Mode").
fn paging_switch(cpu: &CpuState, on: bool) -> Result<u64, Fault> {
    let cs_long = cpu.seg(SegReg::Cs).attr & Segment::L != 0;
    if on && cpu.efer & efer::LME != 0 {
        check(cpu.cr4 & cr4::PAE != 0 && !cs_long)?;
        // A 16-bit TSS cannot be used in long mode.
        check(cpu.tr.attr >> 8 & 8 != 0)?;
        return Ok(cpu.efer | efer::LMA);
    }
    if !on {
        check(!cpu.mode().is_64() && cpu.cr4 & cr4::PCIDE == 0)?;
        return Ok(cpu.efer & !efer::LMA);
    }
    Ok(cpu.efer)
}

/// Where CR3 holds the process-context identifier with CR4.PCIDE.
const PCID: u64 = 0xfff;

fn write_cr3<E: GuestEnv<Cpu = CpuState>>(env: &mut E, value: u64) -> Result<(), Fault> {
    let (cr0v, cr4v, long) = (env.cpu_ref().cr0, env.cpu_ref().cr4, env.cpu_ref().long_mode());
    let mut value = value;
    let mut keep = false;
    if long {
        if cr4v & cr4::PCIDE != 0 {
            keep = value >> 63 == 1;
            value &= !(1 << 63);
        }
        check(value >> PHYS_BITS == 0)?;
    } else {
        value &= 0xffff_ffff;
    }
    let p = pdptes(env, cr0v, value, cr4v)?;
    let cpu = env.cpu();
    cpu.pdpte = p.unwrap_or(cpu.pdpte);
    let old = std::mem::replace(&mut cpu.cr3, value);
    let (from, to) = (old & PCID, value & PCID);
    if cr4v & cr4::PCIDE != 0 && from != to {
        env.flush(Flush::Switch { from, to, keep });
    } else if !(keep && old == value) {
        env.flush(Flush::NonGlobal);
    }
    Ok(())
}

/// CR4 bits that this CPU model has.
pub(crate) fn cr4_known(cpu: &CpuState) -> u64 {
    let fxsr = if cpu.has(feature::FXSR) { cr4::OSFXSR } else { 0 };
    let table = [
        (feature::VME, cr4::VME | cr4::PVI),
        (feature::DE, cr4::DE),
        (feature::PSE, cr4::PSE),
        (feature::PAE, cr4::PAE),
        (feature::MCE, cr4::MCE),
        (feature::PGE, cr4::PGE),
        (feature::SSE, cr4::OSXMMEXCPT),
        (feature::UMIP, cr4::UMIP),
        (feature::LA57, cr4::LA57),
        (feature::FSGSBASE, cr4::FSGSBASE),
        (feature::PCID, cr4::PCIDE),
        (feature::XSAVE, cr4::OSXSAVE),
        (feature::SMEP, cr4::SMEP),
        (feature::SMAP, cr4::SMAP),
        (feature::PKU, cr4::PKE),
    ];
    table.iter().filter(|(f, _)| cpu.has(*f)).fold(cr4::TSD | cr4::PCE | fxsr, |m, (_, b)| m | b)
}

fn write_cr4<E: GuestEnv<Cpu = CpuState>>(env: &mut E, value: u64) -> Result<(), Fault> {
    let cpu = env.cpu_ref();
    let changed = value ^ cpu.cr4;
    check(value & !cr4_known(cpu) == 0)?;
    if cpu.long_mode() {
        check(value & cr4::PAE != 0 && changed & cr4::LA57 == 0)?;
    }
    if changed & value & cr4::PCIDE != 0 {
        check(cpu.long_mode() && cpu.cr3 & 0xfff == 0)?;
    }
    let reload = changed & (cr4::PAE | cr4::PGE | cr4::PSE | cr4::SMEP) != 0;
    let p = if reload { pdptes(env, env.cpu_ref().cr0, env.cpu_ref().cr3, value)? } else { None };
    let cpu = env.cpu();
    cpu.pdpte = p.unwrap_or(cpu.pdpte);
    cpu.cr4 = value;
    cpu.update_mode();
    if changed & CR4_PAGING != 0 {
        env.flush(Flush::All);
    }
    Ok(())
}

/// LMSW: the low four bits of CR0; PE can be set but not cleared.
pub fn lmsw<E: GuestEnv<Cpu = CpuState>>(env: &mut E, value: u16) -> Result<(), Fault> {
    privileged(env.cpu_ref())?;
    let old = env.cpu_ref().cr0;
    let new = old & !0xe | u64::from(value & 0xf);
    write_cr0(env, new)
}

/// SMSW.
pub fn smsw(cpu: &CpuState) -> Result<u64, Fault> {
    crate::segment::store_allowed(cpu)?;
    Ok(cpu.cr0)
}

/// CLTS.
pub fn clts(cpu: &mut CpuState) -> Result<(), Fault> {
    privileged(cpu)?;
    cpu.cr0 &= !cr0::TS;
    cpu.update_mode();
    Ok(())
}

/// INVLPG of the page at linear address `va`.
pub fn invlpg<E: GuestEnv<Cpu = CpuState>>(env: &mut E, va: u64) -> Result<(), Fault> {
    privileged(env.cpu_ref())?;
    // A non-canonical address is a no-op.
    if !env.cpu_ref().long_mode() || crate::paging::canonical(env.cpu_ref(), va) {
        env.flush(Flush::Page(Va(va & !0xfff)));
    }
    Ok(())
}

/// INVPCID of type `kind` with its descriptor: PCID in the low half, linear address in the high one (SDM 2 "INVPCID").
pub fn invpcid<E: GuestEnv<Cpu = CpuState>>(env: &mut E, kind: u64, pcid: u64, va: u64) -> Result<(), Fault> {
    let cpu = env.cpu_ref();
    privileged(cpu)?;
    check(pcid >> 12 == 0 && (pcid == 0 || kind > 1 || cpu.cr4 & cr4::PCIDE != 0))?;
    let current = if cpu.cr4 & cr4::PCIDE != 0 { cpu.cr3 & PCID } else { 0 };
    match kind {
        0 | 1 => {
            check(kind == 1 || !cpu.long_mode() || crate::paging::canonical(cpu, va))?;
            env.flush(match kind {
                _ if pcid != current => Flush::Left(pcid),
                0 => Flush::Page(Va(va & !0xfff)),
                _ => Flush::NonGlobal,
            });
        }
        // Of all identifiers; that global ones go too with 3 is allowed.
        2 | 3 => env.flush(Flush::All),
        _ => return Err(gp(0)),
    }
    Ok(())
}

/// State components that XCR0 may enable on this model.
pub(crate) fn xcr0_known(cpu: &CpuState) -> u64 {
    let component = |f, bit: u64| if cpu.has(f) { 1 << bit } else { 0 };
    3 | component(feature::AVX, 2) | component(feature::PKU, 9)
}

/// XSETBV. Errors: #UD without CR4.OSXSAVE, #GP(0).
pub fn xsetbv(cpu: &mut CpuState, index: u32, value: u64) -> Result<(), Fault> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(ud());
    }
    privileged(cpu)?;
    check(index == 0 && value & 1 == 1 && value & !xcr0_known(cpu) == 0)?;
    // AVX state needs SSE state.
    check(value & 4 == 0 || value & 2 != 0)?;
    cpu.xcr0 = value;
    cpu.update_mode();
    Ok(())
}

/// XGETBV. Errors: #UD, #GP(0).
pub fn xgetbv(cpu: &CpuState, index: u32) -> Result<u64, Fault> {
    if cpu.cr4 & cr4::OSXSAVE == 0 {
        return Err(ud());
    }
    check(index == 0)?;
    Ok(cpu.xcr0)
}

/// RDPKRU. Errors: #UD without CR4.PKE, #GP(0) unless ECX is 0.
pub fn rdpkru(cpu: &CpuState) -> Result<u64, Fault> {
    if cpu.cr4 & cr4::PKE == 0 {
        return Err(ud());
    }
    check(cpu.gpr[1] as u32 == 0)?;
    Ok(cpu.pkru.into())
}

/// WRPKRU of EAX. Errors: as RDPKRU, and #GP(0) unless EDX is 0.
pub fn wrpkru<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<(), Fault> {
    let cpu = env.cpu_ref();
    rdpkru(cpu)?;
    check(cpu.gpr[2] as u32 == 0)?;
    let v = cpu.gpr[0] as u32;
    set_pkru(env, v);
    Ok(())
}

/// Sets PKRU; translations hold what it allowed.
pub fn set_pkru<E: GuestEnv<Cpu = CpuState>>(env: &mut E, v: u32) {
    if env.cpu_ref().pkru != v {
        env.cpu().pkru = v;
        if env.cpu_ref().cr4 & cr4::PKE != 0 {
            env.flush(Flush::All);
        }
    }
}

/// RDTSC and RDTSCP: allowed above CPL 0 unless CR4.TSD.
pub fn rdtsc<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<u64, Fault> {
    let cpu = env.cpu_ref();
    check(cpu.cr4 & cr4::TSD == 0 || cpu.cpl == 0)?;
    Ok(env.io().tsc().wrapping_add(cpu.tsc_offset))
}

/// HLT: halts until an event. Errors: #GP(0).
pub fn hlt(cpu: &mut CpuState) -> Result<(), Fault> {
    privileged(cpu)?;
    cpu.halted = true;
    Ok(())
}

/// CLI and STI (`on`) where IOPL decides, or VIF stands for IF; STI holds interrupts for one instruction if IF was clear. Errors: #GP(0).
pub fn set_if(cpu: &mut CpuState, on: bool) -> Result<(), Fault> {
    if cpu.protected() && cpu.cpl > cpu.iopl() {
        return vme::set_vif(cpu, on);
    }
    if on && cpu.eflags & bit::IF == 0 {
        cpu.shadow = crate::state::shadow::STI;
    }
    cpu.eflags = if on { cpu.eflags | bit::IF } else { cpu.eflags & !bit::IF };
    Ok(())
}

/// The image that PUSHF with an operand of `size` bytes stores: VM and RF read as 0. Errors: #GP(0) in v86 mode with IOPL < 3.
pub fn pushf(cpu: &CpuState, size: u8) -> Result<u64, Fault> {
    if size == 2 && vme::virtual_if(cpu) {
        return Ok(vme::image(cpu));
    }
    check(!cpu.v86() || cpu.iopl() == 3)?;
    Ok(cpu.rflags() & !(bit::VM | bit::RF))
}

/// POPF with an operand of `size` bytes. Errors: #GP(0) in v86 mode with IOPL < 3.
pub fn popf(cpu: &mut CpuState, value: u64, size: u8) -> Result<(), Fault> {
    if size == 2 && vme::virtual_if(cpu) {
        let new = vme::loaded(cpu, value)?;
        cpu.set_rflags(new);
        return Ok(());
    }
    check(!cpu.v86() || cpu.iopl() == 3)?;
    let mut m = bit::ARITH | bit::TF | bit::DF | bit::NT | bit::AC | bit::ID;
    if cpu.cpl == 0 {
        m |= bit::IOPL;
    }
    if !cpu.protected() || cpu.cpl <= cpu.iopl() {
        m |= bit::IF;
    }
    if size == 2 {
        m &= 0xffff;
    }
    // RF is cleared whatever the image holds.
    let new = (cpu.rflags() & !m | value & m) & !bit::RF;
    cpu.set_rflags(new);
    Ok(())
}

/// EFER bits that this CPU model has.
pub(crate) fn efer_known(cpu: &CpuState) -> u64 {
    let table = [
        (feature::SYSCALL, efer::SCE),
        (feature::LM, efer::LME | efer::LMA),
        (feature::NX, efer::NXE),
        (feature::FFXSR, efer::FFXSR),
    ];
    table.iter().filter(|(f, _)| cpu.has(*f)).fold(0, |m, (_, b)| m | b)
}

/// WRMSR to IA32_EFER (SDM 4; AMD APM 2 §3.1.7). LMA cannot be written.
pub(crate) fn write_efer<E: GuestEnv<Cpu = CpuState>>(env: &mut E, value: u64) -> Result<(), Fault> {
    let cpu = env.cpu();
    check(value & !efer_known(cpu) == 0)?;
    let new = value & !efer::LMA | cpu.efer & efer::LMA;
    let changed = new ^ cpu.efer;
    // LME cannot change while paging is on.
    check(changed & efer::LME == 0 || !cpu.paging())?;
    cpu.efer = new;
    cpu.update_mode();
    if changed & efer::NXE != 0 {
        env.flush(Flush::All);
    }
    Ok(())
}
