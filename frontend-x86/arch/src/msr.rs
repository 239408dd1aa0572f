//! Model-specific registers (SDM 4; AMD APM volume 2 appendix A).

use crate::control::write_efer;
use crate::cpuid::{feature, is_amd};
use crate::debug::debugctl;
use crate::fault::gp;
use crate::paging::{PHYS_BITS, canonical};
use crate::pvclock;
use crate::state::{CpuState, SegReg};
use vm_core::guest::{Flush, GuestEnv};
use vm_core::{Fault, dlog};

/// MSR numbers, named as in SDM 4.
pub mod index {
    pub const P5_MC_ADDR: u32 = 0;
    pub const P5_MC_TYPE: u32 = 1;
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1b;
    pub const TSC_ADJUST: u32 = 0x3b;
    pub const BIOS_SIGN_ID: u32 = 0x8b;
    pub const MTRRCAP: u32 = 0xfe;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17a;
    pub const PERF_STATUS: u32 = 0x198;
    pub const MISC_ENABLE: u32 = 0x1a0;
    pub const DEBUGCTL: u32 = 0x1d9;
    /// From and to of the last branch, and of the last before an interrupt or exception.
    pub const LAST_BRANCH_FROM: u32 = 0x1db;
    pub const LAST_INT_TO: u32 = 0x1de;
    pub const MTRR_PHYS_BASE0: u32 = 0x200;
    pub const MTRR_FIX64K: u32 = 0x250;
    pub const MTRR_FIX16K: u32 = 0x258;
    pub const MTRR_FIX4K: u32 = 0x268;
    pub const PAT: u32 = 0x277;
    pub const MTRR_DEF_TYPE: u32 = 0x2ff;
    pub const TSC_DEADLINE: u32 = 0x6e0;
    pub const X2APIC: u32 = 0x800;
    pub const XSS: u32 = 0xda0;
    pub const EFER: u32 = 0xc000_0080;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const FS_BASE: u32 = 0xc000_0100;
    pub const GS_BASE: u32 = 0xc000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub const TSC_AUX: u32 = 0xc000_0103;
}

/// IA32_APIC_BASE: x2APIC mode.
const APIC_BASE_EXTD: u64 = 1 << 10;
/// Variable MTRR pairs.
const VARIABLE: u32 = 8;
/// MTRRCAP: eight variable pairs, fixed ranges, write-combining.
const MTRRCAP: u64 = VARIABLE as u64 | 1 << 8 | 1 << 10;

/// AMD registers of family 0Fh that system software reads or sets and that mean nothing here: performance counters,
/// SYSCFG, HWCR, IORRs, TOP_MEM, NB_CFG, interrupt pending, MMIO configuration, OSVW, and the DE, LS, IC, DC configuration.
/// They read as zero; writes are dropped.
const AMD_IGNORED: &[(u32, u32)] = &[
    (0xc001_0000, 0xc001_0007),
    (0xc001_0010, 0xc001_0010),
    (0xc001_0015, 0xc001_001a),
    (0xc001_001d, 0xc001_001d),
    (0xc001_001f, 0xc001_001f),
    (0xc001_0055, 0xc001_0056),
    (0xc001_0058, 0xc001_0058),
    (0xc001_0140, 0xc001_0141),
    (0xc001_1020, 0xc001_102f),
];

fn ignored(cpu: &CpuState, msr: u32) -> bool {
    is_amd(cpu) && AMD_IGNORED.iter().any(|&(a, b)| (a..=b).contains(&msr))
}

/// Registers that live in the machine: `CpuIo::msr_read`.
fn of_machine(msr: u32) -> bool {
    matches!(msr, index::APIC_BASE | index::TSC_DEADLINE) || (index::X2APIC..index::X2APIC + 0x100).contains(&msr)
}

/// Position in `mtrr_fixed` of a fixed-range MTRR.
fn fixed(msr: u32) -> Option<usize> {
    match msr {
        index::MTRR_FIX64K => Some(0),
        0x258..=0x259 => Some((msr - index::MTRR_FIX16K) as usize + 1),
        0x268..=0x26f => Some((msr - index::MTRR_FIX4K) as usize + 3),
        _ => None,
    }
}

/// Position in `mtrr_var` of a variable-range base or mask.
fn variable(msr: u32) -> Option<usize> {
    let n = msr.wrapping_sub(index::MTRR_PHYS_BASE0);
    (n < VARIABLE * 2).then_some(n as usize)
}

/// Whether `t` is a memory type: UC, WC, WT, WP, WB; in the PAT also UC-.
fn memory_type(t: u64, pat: bool) -> bool {
    matches!(t, 0 | 1 | 4 | 5 | 6) || pat && t == 7
}

fn all_types(v: u64, pat: bool) -> bool {
    v.to_le_bytes().iter().all(|&t| memory_type(t.into(), pat))
}

fn missing(msr: u32, what: &str) -> Fault {
    dlog!(UNIMP, "{what} of unknown MSR {msr:#x}");
    gp(0)
}

/// RDMSR. Errors: #GP(0).
pub fn rdmsr<E: GuestEnv<Cpu = CpuState>>(env: &mut E, msr: u32) -> Result<u64, Fault> {
    let cpu = env.cpu_ref();
    if cpu.cpl != 0 {
        return Err(gp(0));
    }
    if of_machine(msr) {
        let v = env.io().msr_read(msr).ok_or_else(|| missing(msr, "read"))?;
        return Ok(if msr == index::TSC_DEADLINE { shifted(v, cpu.tsc_offset) } else { v });
    }
    Ok(match msr {
        index::P5_MC_ADDR | index::P5_MC_TYPE | index::PLATFORM_ID => 0,
        index::TSC => env.io().tsc().wrapping_add(cpu.tsc_offset),
        // The microcode revision, in the upper half where Intel has it.
        index::BIOS_SIGN_ID => {
            if is_amd(cpu) {
                0x0100_0065
            } else {
                1 << 32
            }
        }
        index::MTRRCAP => MTRRCAP,
        index::SYSENTER_CS => cpu.sysenter_cs,
        index::SYSENTER_ESP => cpu.sysenter_esp,
        index::SYSENTER_EIP => cpu.sysenter_eip,
        // No machine-check banks.
        index::MCG_CAP | index::MCG_STATUS => 0,
        // Fixed multiplier of a bus clock, as system software expects to find one.
        index::PERF_STATUS => 1000 | 4 << 40,
        index::MISC_ENABLE => cpu.misc_enable,
        index::DEBUGCTL => cpu.debugctl,
        index::LAST_BRANCH_FROM..=index::LAST_INT_TO => cpu.lbr[(msr - index::LAST_BRANCH_FROM) as usize],
        index::PAT => cpu.pat,
        index::MTRR_DEF_TYPE => cpu.mtrr_def,
        index::EFER => cpu.efer,
        index::STAR => cpu.star,
        index::LSTAR => cpu.lstar,
        index::CSTAR => cpu.cstar,
        index::FMASK => cpu.sfmask,
        index::FS_BASE => cpu.seg(SegReg::Fs).base,
        index::GS_BASE => cpu.seg(SegReg::Gs).base,
        index::KERNEL_GS_BASE => cpu.kernel_gs_base,
        index::TSC_AUX if has_tsc_aux(cpu) => cpu.tsc_aux,
        // No supervisor state components.
        index::XSS if cpu.has(feature::XSAVES) => 0,
        _ => {
            if pvclock::is_known(cpu, msr) {
                pvclock::read(cpu, msr)
            } else if let Some(i) = fixed(msr) {
                cpu.mtrr_fixed[i]
            } else if let Some(i) = variable(msr) {
                cpu.mtrr_var[i]
            } else if ignored(cpu, msr) {
                0
            } else {
                return Err(missing(msr, "read"));
            }
        }
    })
}

/// A TSC deadline of the machine's in the guest's ticks; 0 is none, and none becomes 0.
fn shifted(deadline: u64, by: u64) -> u64 {
    if deadline == 0 { 0 } else { deadline.wrapping_add(by).max(1) }
}

/// A TSC deadline of the guest's in the machine's ticks, `now` being the machine's, and the guest's that and `offset`.
fn deadline(guest: u64, now: u64, offset: u64) -> u64 {
    if guest == 0 { 0 } else { now.saturating_add(guest.saturating_sub(now.wrapping_add(offset))).max(1) }
}

fn has_tsc_aux(cpu: &CpuState) -> bool {
    cpu.has(feature::RDTSCP) || cpu.has(feature::RDPID)
}

/// WRMSR. Errors: #GP(0); nothing has changed then.
pub fn wrmsr<E: GuestEnv<Cpu = CpuState>>(env: &mut E, msr: u32, value: u64) -> Result<(), Fault> {
    if env.cpu_ref().cpl != 0 {
        return Err(gp(0));
    }
    if msr == index::APIC_BASE && value & APIC_BASE_EXTD != 0 && !env.cpu_ref().has(feature::X2APIC) {
        return Err(missing(msr, "x2APIC mode by write"));
    }
    if of_machine(msr) {
        let off = env.cpu_ref().tsc_offset;
        let value = if msr == index::TSC_DEADLINE { deadline(value, env.io().tsc(), off) } else { value };
        let ok = env.io().msr_write(msr, value);
        return if ok { Ok(()) } else { Err(missing(msr, "write")) };
    }
    if msr == index::EFER {
        return write_efer(env, value);
    }
    if fixed(msr).is_some() || variable(msr).is_some() || matches!(msr, index::PAT | index::MTRR_DEF_TYPE) {
        return write_memory_type(env, msr, value);
    }
    if msr == index::TSC {
        let (now, old) = (env.io().tsc(), env.cpu_ref().tsc_offset);
        let new = value.wrapping_sub(now);
        env.cpu().tsc_offset = new;
        // A deadline is in the guest's ticks: by the machine's it moves.
        if let Some(d) = env.io().msr_read(index::TSC_DEADLINE).filter(|d| *d != 0) {
            env.io().msr_write(index::TSC_DEADLINE, deadline(shifted(d, old), now, new));
        }
        pvclock::tell(env.cpu_ref(), env.io());
        return Ok(());
    }
    if pvclock::is_known(env.cpu_ref(), msr) {
        pvclock::set(env.cpu(), msr, value);
        pvclock::written(env.cpu_ref(), env.io(), msr);
        return Ok(());
    }
    write_plain(env.cpu(), msr, value)
}

/// Registers without side effects beyond their value.
fn write_plain(cpu: &mut CpuState, msr: u32, value: u64) -> Result<(), Fault> {
    let address = matches!(
        msr,
        index::LSTAR
            | index::CSTAR
            | index::FS_BASE
            | index::GS_BASE
            | index::KERNEL_GS_BASE
            | index::SYSENTER_ESP
            | index::SYSENTER_EIP
    );
    if address && !canonical(cpu, value) {
        return Err(gp(0));
    }
    match msr {
        index::SYSENTER_CS => cpu.sysenter_cs = value & 0xffff,
        index::SYSENTER_ESP => cpu.sysenter_esp = value,
        index::SYSENTER_EIP => cpu.sysenter_eip = value,
        index::MISC_ENABLE => cpu.misc_enable = value,
        index::STAR => cpu.star = value,
        index::LSTAR => cpu.lstar = value,
        index::CSTAR => cpu.cstar = value,
        index::FMASK if value >> 32 == 0 => cpu.sfmask = value,
        index::FS_BASE => cpu.seg_mut(SegReg::Fs).base = value,
        index::GS_BASE => cpu.seg_mut(SegReg::Gs).base = value,
        index::KERNEL_GS_BASE => cpu.kernel_gs_base = value,
        index::TSC_AUX if has_tsc_aux(cpu) && value >> 32 == 0 => cpu.tsc_aux = value,
        // A write of 0 before CPUID makes Intel CPUs report the revision; no update is ever loaded.
        index::BIOS_SIGN_ID | index::P5_MC_ADDR | index::P5_MC_TYPE => {}
        index::MCG_STATUS if value == 0 => {}
        index::XSS if cpu.has(feature::XSAVES) && value == 0 => {}
        index::DEBUGCTL if value & !debugctl::known(cpu) == 0 => {
            cpu.debugctl = value;
            cpu.update_mode();
        }
        _ if ignored(cpu, msr) => {}
        _ => return Err(missing(msr, "write")),
    }
    Ok(())
}

/// PAT and MTRRs. They are kept and checked but have no effect: emulated memory is always coherent.
fn write_memory_type<E: GuestEnv<Cpu = CpuState>>(env: &mut E, msr: u32, value: u64) -> Result<(), Fault> {
    let cpu = env.cpu();
    let address = (1u64 << PHYS_BITS) - 0x1000;
    if msr == index::PAT {
        if !all_types(value, true) {
            return Err(gp(0));
        }
        cpu.pat = value;
        env.flush(Flush::All);
    } else if msr == index::MTRR_DEF_TYPE {
        if value & !0xcff != 0 || !memory_type(value & 0xff, false) {
            return Err(gp(0));
        }
        cpu.mtrr_def = value;
    } else if let Some(i) = fixed(msr) {
        if !all_types(value, false) {
            return Err(gp(0));
        }
        cpu.mtrr_fixed[i] = value;
    } else if let Some(i) = variable(msr) {
        // Even: base and type. Odd: mask and valid bit.
        let ok = if i % 2 == 0 {
            value & !(address | 0xff) == 0 && memory_type(value & 0xff, false)
        } else {
            value & !(address | 1 << 11) == 0
        };
        if !ok {
            return Err(gp(0));
        }
        cpu.mtrr_var[i] = value;
    }
    Ok(())
}
