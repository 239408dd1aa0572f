//! CPUID leaves (SDM 2A "CPUID"; AMD APM volume 3 appendix E for the 8000_xxxx leaves).

use crate::models::{self, Model};
use crate::paging::PHYS_BITS;
use crate::state::{CpuState, cr4};
use crate::topology::Topology;

/// Index of a feature word in `CpuState::features`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    L1Edx = 0,
    L1Ecx = 1,
    /// Leaf 8000_0001h.
    ExtEdx = 2,
    ExtEcx = 3,
    L7Ebx = 4,
    L7Ecx = 5,
    L7Edx = 6,
    /// Leaf 0Dh, subleaf 1.
    XsaveEax = 7,
    L6Eax = 8,
    /// Leaf 8000_0007h.
    ApmEdx = 9,
    /// Leaf 8000_0008h.
    Ext8Ebx = 10,
    /// Leaf 4000_0001h, of guests that may run on KVM.
    KvmEax = 11,
}

/// Number of words in use.
pub const WORDS: usize = 12;

/// Single features that the emulation itself asks about: word and bit.
pub mod feature {
    use super::Word;
    pub const VME: (Word, u32) = (Word::L1Edx, 1);
    pub const DE: (Word, u32) = (Word::L1Edx, 2);
    pub const PSE: (Word, u32) = (Word::L1Edx, 3);
    pub const PAE: (Word, u32) = (Word::L1Edx, 6);
    pub const MCE: (Word, u32) = (Word::L1Edx, 7);
    pub const PGE: (Word, u32) = (Word::L1Edx, 13);
    pub const HTT: (Word, u32) = (Word::L1Edx, 28);
    pub const FXSR: (Word, u32) = (Word::L1Edx, 24);
    pub const SSE: (Word, u32) = (Word::L1Edx, 25);
    pub const PCID: (Word, u32) = (Word::L1Ecx, 17);
    pub const X2APIC: (Word, u32) = (Word::L1Ecx, 21);
    pub const XSAVE: (Word, u32) = (Word::L1Ecx, 26);
    pub const XSAVES: (Word, u32) = (Word::XsaveEax, 3);
    pub const OSXSAVE: (Word, u32) = (Word::L1Ecx, 27);
    pub const AVX: (Word, u32) = (Word::L1Ecx, 28);
    pub const SYSCALL: (Word, u32) = (Word::ExtEdx, 11);
    pub const NX: (Word, u32) = (Word::ExtEdx, 20);
    pub const FFXSR: (Word, u32) = (Word::ExtEdx, 25);
    pub const PDPE1GB: (Word, u32) = (Word::ExtEdx, 26);
    pub const RDTSCP: (Word, u32) = (Word::ExtEdx, 27);
    pub const LM: (Word, u32) = (Word::ExtEdx, 29);
    pub const CMP_LEGACY: (Word, u32) = (Word::ExtEcx, 1);
    pub const SVM: (Word, u32) = (Word::ExtEcx, 2);
    pub const FSGSBASE: (Word, u32) = (Word::L7Ebx, 0);
    pub const SMEP: (Word, u32) = (Word::L7Ebx, 7);
    /// The selectors of the x87 pointers are saved as 0 (SDM 1 "x87 FPU Instruction and Data (Operand) Pointers").
    pub const ZERO_FCS_FDS: (Word, u32) = (Word::L7Ebx, 13);
    pub const SMAP: (Word, u32) = (Word::L7Ebx, 20);
    pub const UMIP: (Word, u32) = (Word::L7Ecx, 2);
    pub const PKU: (Word, u32) = (Word::L7Ecx, 3);
    pub const LA57: (Word, u32) = (Word::L7Ecx, 16);
    pub const RDPID: (Word, u32) = (Word::L7Ecx, 22);
    pub const KVM_CLOCK: (Word, u32) = (Word::KvmEax, 3);
}

/// A CPU as `-cpu` describes it, after masking by what is implemented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuConfigured {
    /// Index into `models::MODELS`.
    pub model: u32,
    pub features: [u32; 16],
    pub topology: Topology,
    /// Asked-for features that were left off, as `features::Feature::describe` shows them.
    pub dropped: Vec<String>,
}

impl CpuState {
    pub fn has(&self, (word, bit): (Word, u32)) -> bool {
        self.features[word as usize] >> bit & 1 == 1
    }
}

pub(crate) fn has_1g_pages(cpu: &CpuState) -> bool {
    cpu.has(feature::PDPE1GB)
}

pub(crate) fn is_amd(cpu: &CpuState) -> bool {
    model(cpu).amd()
}

fn model(cpu: &CpuState) -> &'static Model {
    models::MODELS.get(cpu.model as usize).unwrap_or(&models::MODELS[0])
}

/// CPUID.1:EAX, family, model and stepping: also EDX after reset.
pub fn signature(cpu: &CpuState) -> u32 {
    let m = model(cpu);
    let (base, ext) = if m.family > 15 { (15, m.family - 15) } else { (m.family, 0) };
    ext << 20 | (m.model >> 4) << 16 | base << 8 | (m.model & 15) << 4 | m.stepping
}

/// EAX, EBX, ECX, EDX of a leaf. Leaves beyond the model's highest ones read as zeros, as on AMD (Intel, and QEMU for all
/// models, answer with the highest basic leaf; for qemu64 that one is zeros too).
pub fn cpuid(cpu: &CpuState, leaf: u32, subleaf: u32) -> [u32; 4] {
    let m = model(cpu);
    let f = &cpu.features;
    // Hypervisor leaves, as those of QEMU's TCG, so that guests recognise the kind of machine.
    if leaf >> 4 == 0x400_0000 && f[Word::L1Ecx as usize] >> 31 == 1 {
        let v = |b: &[u8; 4]| u32::from_le_bytes(*b);
        let kvm = f[Word::KvmEax as usize];
        // Of guests that may run on KVM: KVM's.
        match leaf {
            0x4000_0000 if kvm != 0 => return [0x4000_0001, v(b"KVMK"), v(b"VMKV"), v(b"M\0\0\0")],
            0x4000_0001 => return [kvm | kvm >> 3 & 1, 0, 0, 0],
            0x4000_0000 => {}
            _ => return [0; 4],
        }
        return [0x4000_0001, v(b"TCGT"), v(b"CGTC"), v(b"GTCG")];
    }
    let inside = match leaf >> 28 {
        0 => leaf <= m.level,
        8 => leaf <= m.xlevel,
        _ => false,
    };
    if !inside {
        return [0; 4];
    }
    match leaf {
        0 => vendor(m, m.level),
        1 => leaf_1(cpu),
        4 => cache_leaf(cpu, m, subleaf),
        // MONITOR/MWAIT: line sizes 0, extensions enumerated as QEMU does.
        5 => [0, 0, 3, 0],
        6 => [f[Word::L6Eax as usize], 0, 0, 0],
        7 if subleaf == 0 => [0, f[Word::L7Ebx as usize], leaf_7_ecx(cpu), f[Word::L7Edx as usize]],
        0xb => topology(cpu, subleaf),
        0xd => xsave_leaf(cpu, subleaf),
        0x8000_0000 => vendor(m, m.xlevel),
        0x8000_0001 => extended_1(cpu),
        0x8000_0002..=0x8000_0004 => brand(m, leaf - 0x8000_0002),
        0x8000_0005..=0x8000_0006 => legacy_caches(leaf),
        0x8000_0007 => [0, 0, 0, f[Word::ApmEdx as usize]],
        0x8000_0008 => sizes(cpu),
        _ => [0; 4],
    }
}

fn vendor(m: &Model, level: u32) -> [u32; 4] {
    let v = |i: usize| u32::from_le_bytes([m.vendor[i], m.vendor[i + 1], m.vendor[i + 2], m.vendor[i + 3]]);
    [level, v(0), v(8), v(4)]
}

fn leaf_1(cpu: &CpuState) -> [u32; 4] {
    let package = cpu.topology.package();
    let logical = if package > 1 { package.min(255) << 16 } else { 0 };
    let mut edx = cpu.features[Word::L1Edx as usize];
    if package > 1 {
        edx |= 1 << feature::HTT.1;
    }
    let mut ecx = cpu.features[Word::L1Ecx as usize];
    if cpu.cr4 & cr4::OSXSAVE != 0 {
        ecx |= 1 << feature::OSXSAVE.1;
    }
    // EBX: initial APIC ID, CLFLUSH line of 8 quadwords.
    [signature(cpu), cpu.apic_id << 24 | logical | 8 << 8, ecx, edx]
}

fn leaf_7_ecx(cpu: &CpuState) -> u32 {
    // OSPKE mirrors CR4.PKE.
    cpu.features[Word::L7Ecx as usize] | if cpu.cr4 & cr4::PKE != 0 { 1 << 4 } else { 0 }
}

fn extended_1(cpu: &CpuState) -> [u32; 4] {
    let mut ecx = cpu.features[Word::ExtEcx as usize];
    if cpu.topology.package() > 1 && model(cpu).amd() {
        ecx |= 1 << feature::CMP_LEGACY.1;
    }
    [signature(cpu), 0, ecx, cpu.features[Word::ExtEdx as usize]]
}

fn brand(m: &Model, part: u32) -> [u32; 4] {
    let at = |i: u32| {
        let b = |k: u32| m.brand.as_bytes().get((part * 16 + i * 4 + k) as usize).copied().unwrap_or(0);
        u32::from_le_bytes([b(0), b(1), b(2), b(3)])
    };
    [at(0), at(1), at(2), at(3)]
}

/// Deterministic cache parameters; AMD processors without TOPOEXT have none here.
fn cache_leaf(cpu: &CpuState, m: &Model, subleaf: u32) -> [u32; 4] {
    if m.amd() {
        return [0; 4];
    }
    let t = cpu.topology;
    let cores = (t.cores - 1).min(63) << 26;
    let share = t.threads - 1;
    // Type (1 data, 2 code, 3 unified), level, ways, sets; lines of 64 bytes. A core's threads share its caches.
    let (kind, level, ways, sets) = match subleaf {
        0 => (1, 1, 8, 64),
        1 => (2, 1, 8, 64),
        2 => (3, 2, 16, 4096),
        _ => return [0; 4],
    };
    [cores | share << 14 | 1 << 8 | level << 5 | kind, (ways - 1) << 22 | 63, sets - 1, 1]
}

/// Extended topology: bits to shift out for the next level, processors at this level; level types 1 thread, 2 core.
fn topology(cpu: &CpuState, subleaf: u32) -> [u32; 4] {
    let (level, t) = (subleaf & 0xff, cpu.topology);
    match subleaf {
        0 => [t.thread_bits(), t.threads, level | 1 << 8, cpu.apic_id],
        1 => [t.package_bits(), t.package(), level | 2 << 8, cpu.apic_id],
        _ => [0, 0, level, cpu.apic_id],
    }
}

/// Components of XSAVE areas behind the legacy region and header: number, feature, bytes, offset in the standard format
/// (SDM 1 §13.4). The compacted format has those that are there in the same order without gaps.
pub const XSAVE_COMPONENTS: [(u32, (Word, u32), u32, u32); 2] = [(2, feature::AVX, 256, 576), (9, feature::PKU, 8, 2688)];

/// Bytes of an area for the components in `mask`.
fn xsave_size(mask: u64, compacted: bool) -> u32 {
    XSAVE_COMPONENTS.iter().filter(|c| mask >> c.0 & 1 == 1).fold(576, |end, &(_, _, size, at)| {
        let at = if compacted { end } else { at };
        at + size
    })
}

fn xsave_leaf(cpu: &CpuState, subleaf: u32) -> [u32; 4] {
    if !cpu.has(feature::XSAVE) {
        return [0; 4];
    }
    let known = crate::control::xcr0_known(cpu);
    match subleaf {
        0 => [known as u32, xsave_size(cpu.xcr0, false), xsave_size(known, false), 0],
        1 => {
            let eax = cpu.features[Word::XsaveEax as usize];
            // The area of XSAVEC and XSAVES for what XCR0 enables.
            [eax, if eax & 2 != 0 { xsave_size(cpu.xcr0, true) } else { 0 }, 0, 0]
        }
        n => {
            let there = XSAVE_COMPONENTS.iter().find(|c| c.0 == n && cpu.has(c.1));
            there.map_or([0; 4], |&(_, _, size, at)| [size, at, 0, 0])
        }
    }
}

/// Caches and TLBs in AMD's form: 64 KiB two-way L1, 512 KiB 16-way L2, 16 MiB L3, 64-byte lines.
fn legacy_caches(leaf: u32) -> [u32; 4] {
    if leaf == 0x8000_0005 {
        [0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140]
    } else {
        [0, 0x4200_4200, 0x0200_8140, 0x0080_8140]
    }
}

fn sizes(cpu: &CpuState) -> [u32; 4] {
    let linear = if cpu.has(feature::LA57) { 57 } else { 48 };
    let t = cpu.topology;
    let cores = if t.package() > 1 { t.package_bits() << 12 | (t.package() - 1).min(255) } else { 0 };
    [linear << 8 | PHYS_BITS, cpu.features[Word::Ext8Ebx as usize], cores, 0]
}
