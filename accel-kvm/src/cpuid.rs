//! The guest's CPUID leaves, from the same model that the other engines have.

use arch_x86::CpuState;
use arch_x86::cpuid::cpuid;
use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaves whose answer depends on ECX, and how many subleaves they have at most.
const WITH_SUBLEAVES: &[(u32, u32)] = &[(4, 4), (7, 1), (0xb, 3), (0xd, 10)];

/// All leaves that are not zeros.
pub fn entries(cpu: &CpuState) -> Vec<kvm_cpuid_entry2> {
    let mut list = Vec::new();
    for first in [0, 0x4000_0000, 0x8000_0000] {
        let last = cpuid(cpu, first, 0)[0].clamp(first, first + 0x40);
        for leaf in first..=last {
            let subleaves = WITH_SUBLEAVES.iter().find(|(l, _)| *l == leaf).map(|(_, n)| *n);
            for index in 0..subleaves.unwrap_or(1) {
                let [eax, ebx, ecx, edx] = cpuid(cpu, leaf, index);
                if index > 0 && (eax, ebx, edx) == (0, 0, 0) {
                    continue;
                }
                let flags = if subleaves.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
                list.push(kvm_cpuid_entry2 { function: leaf, index, flags, eax, ebx, ecx, edx, padding: [0; 3] });
            }
        }
    }
    // Without the hypervisor bit the model has no such leaves.
    list.retain(|e| e.function != 0x4000_0000 || e.eax != 0);
    list
}

/// As KVM wants them.
pub fn for_kvm(cpu: &CpuState) -> Option<CpuId> {
    CpuId::from_entries(&entries(cpu)).ok()
}
