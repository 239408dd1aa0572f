//! Model-specific registers: which of them KVM keeps, and which ones come to the machine (SDM 4).

use crate::{KvmError, at};
use arch_x86::cpuid::feature;
use arch_x86::msr::index;
use arch_x86::{CpuState, pvclock};
use kvm_bindings::{
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN, Msrs, kvm_enable_cap, kvm_msr_entry,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_core::dlog;

/// Accesses that KVM does not know, or refuses, end a run: so the local APIC's MSRs reach the machine.
pub fn to_user_space(vm: &VmFd) -> Result<(), KvmError> {
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_USER_SPACE_MSR, ..Default::default() };
    cap.args[0] = u64::from(KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN);
    vm.enable_cap(&cap).map_err(at("KVM_ENABLE_CAP(X86_USER_SPACE_MSR)"))
}

type Field = fn(&mut CpuState) -> &mut u64;

/// MSRs that are fields of `CpuState` and that KVM keeps.
const FIELDS: &[(u32, Field)] = &[
    (index::SYSENTER_CS, |c| &mut c.sysenter_cs),
    (index::SYSENTER_ESP, |c| &mut c.sysenter_esp),
    (index::SYSENTER_EIP, |c| &mut c.sysenter_eip),
    (index::STAR, |c| &mut c.star),
    (index::LSTAR, |c| &mut c.lstar),
    (index::CSTAR, |c| &mut c.cstar),
    (index::FMASK, |c| &mut c.sfmask),
    (index::KERNEL_GS_BASE, |c| &mut c.kernel_gs_base),
    (index::PAT, |c| &mut c.pat),
    (index::TSC_AUX, |c| &mut c.tsc_aux),
    (index::MISC_ENABLE, |c| &mut c.misc_enable),
    (index::MTRR_DEF_TYPE, |c| &mut c.mtrr_def),
];

/// Fixed-range MTRRs in the order of `CpuState::mtrr_fixed`.
const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];

/// (MSR, value) of everything that is kept in both places.
fn values(cpu: &mut CpuState) -> Vec<(u32, u64)> {
    let mut list: Vec<(u32, u64)> = FIELDS.iter().map(|(i, f)| (*i, *f(cpu))).collect();
    list.extend(FIXED.into_iter().zip(cpu.mtrr_fixed));
    list.extend((index::MTRR_PHYS_BASE0..).zip(cpu.mtrr_var));
    if cpu.has(feature::KVM_CLOCK) {
        list.push((pvclock::SYSTEM_TIME, cpu.pv_time));
    }
    list
}

/// Writes them one after the other: those that this KVM refuses are left out, and logged.
pub fn push(vcpu: &VcpuFd, cpu: &mut CpuState) {
    write(vcpu, &values(cpu));
}

/// Sets the TSC that the guest sees.
pub fn push_tsc(vcpu: &VcpuFd, tsc: u64) {
    write(vcpu, &[(index::TSC, tsc)]);
}

fn write(vcpu: &VcpuFd, list: &[(u32, u64)]) {
    let mut rest = list;
    while !rest.is_empty() {
        let entries: Vec<_> = rest.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let Ok(msrs) = Msrs::from_entries(&entries) else { return };
        let done = vcpu.set_msrs(&msrs).unwrap_or(0).min(rest.len());
        if let Some((i, v)) = rest.get(done) {
            dlog!(UNIMP, "KVM does not take {v:#x} for MSR {i:#x}");
        }
        rest = rest.get(done + 1..).unwrap_or(&[]);
    }
}

/// Reads them; those that this KVM does not have stay as they were.
pub fn pull(vcpu: &VcpuFd, cpu: &mut CpuState) {
    let mut indexes: Vec<u32> = values(cpu).into_iter().map(|(i, _)| i).collect();
    if cpu.has(feature::KVM_CLOCK) {
        // Writing it would have KVM write to the guest's memory.
        indexes.push(pvclock::WALL_CLOCK);
    }
    let mut rest = &indexes[..];
    while !rest.is_empty() {
        let entries: Vec<_> = rest.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let Ok(mut msrs) = Msrs::from_entries(&entries) else { return };
        let done = vcpu.get_msrs(&mut msrs).unwrap_or(0).min(rest.len());
        for e in msrs.as_slice().iter().take(done) {
            store(cpu, e.index, e.data);
        }
        rest = rest.get(done + 1..).unwrap_or(&[]);
    }
}

fn store(cpu: &mut CpuState, msr: u32, v: u64) {
    if let Some((_, field)) = FIELDS.iter().find(|(i, _)| *i == msr) {
        *field(cpu) = v;
    } else if msr == pvclock::SYSTEM_TIME {
        cpu.pv_time = v;
    } else if msr == pvclock::WALL_CLOCK {
        cpu.pv_wall = v;
    } else if let Some(n) = FIXED.iter().position(|i| *i == msr) {
        cpu.mtrr_fixed[n] = v;
    } else if let Some(slot) = cpu.mtrr_var.get_mut(msr.wrapping_sub(index::MTRR_PHYS_BASE0) as usize) {
        *slot = v;
    }
}

/// The TSC that KVM has for the guest.
pub fn tsc(vcpu: &VcpuFd) -> Option<u64> {
    let mut msrs = Msrs::from_entries(&[kvm_msr_entry { index: index::TSC, ..Default::default() }]).ok()?;
    (vcpu.get_msrs(&mut msrs).ok()? == 1).then(|| msrs.as_slice().first().map(|e| e.data))?
}
