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

/// Takes vendor, signature and name from the host's leaves.
fn rename(list: &mut [kvm_cpuid_entry2], host: &kvm_cpuid_entry2) {
    let Some(e) = list.iter_mut().find(|e| (e.function, e.index) == (host.function, host.index)) else { return };
    match host.function {
        0 | 0x8000_0000 => (e.ebx, e.ecx, e.edx) = (host.ebx, host.ecx, host.edx),
        1 | 0x8000_0001 => e.eax = host.eax,
        0x8000_0002..=0x8000_0004 => (e.eax, e.ebx, e.ecx, e.edx) = (host.eax, host.ebx, host.ecx, host.edx),
        _ => {}
    }
}

/// As KVM wants them.
pub fn for_kvm<'a>(cpu: &CpuState, names: impl Iterator<Item = &'a kvm_cpuid_entry2>) -> Option<CpuId> {
    let mut list = entries(cpu);
    names.for_each(|host| rename(&mut list, host));
    CpuId::from_entries(&list).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch_x86::models;

    #[test]
    fn the_hosts_name_comes_with_the_models_features() {
        let cpu = CpuState::new(&models::configure("max", &[]).expect("a model"), 0);
        let host = |function| kvm_cpuid_entry2 { function, eax: 1, ebx: 2, ecx: 3, edx: 4, ..Default::default() };
        let names = [host(0), host(1), host(7), host(0x8000_0003)];
        let (with, without) = (for_kvm(&cpu, names.iter()).expect("room"), for_kvm(&cpu, [].iter()).expect("room"));
        let leaf = |l: &CpuId, f| l.as_slice().iter().find(|e| e.function == f).map(|e| (e.eax, e.ebx, e.ecx, e.edx));
        let (level, signature) = (leaf(&without, 0).expect("leaf 0").0, leaf(&without, 1).expect("leaf 1"));
        assert_eq!(leaf(&with, 0), Some((level, 2, 3, 4)));
        assert_eq!(leaf(&with, 1), Some((1, signature.1, signature.2, signature.3)));
        assert_eq!((leaf(&with, 7), leaf(&with, 0x8000_0003)), (leaf(&without, 7), Some((1, 2, 3, 4))));
    }
}
