//! CPUID feature bits by QEMU's names, and which of them are implemented: everything `-cpu` needs to know of a feature.

use crate::cpuid::{WORDS, Word};

/// Features that the translator and this crate implement, in `Word` order. A feature is added here, and nowhere else, when
/// its instructions and state work.
const IMPLEMENTED: [u32; WORDS] = [
    // fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht
    0x178b_fbff,
    // pni pclmulqdq monitor ssse3 fma cx16 pcid sse4.1 sse4.2 x2apic movbe popcnt tsc-deadline aes xsave avx f16c rdrand hypervisor
    0xf7fa_320b,
    // the copies of 1.EDX, syscall nx mmxext fxsr_opt pdpe1gb rdtscp lm
    0x2fd3_fbff,
    // lahf_lm cmp_legacy abm sse4a 3dnowprefetch
    0x0000_0163,
    // fsgsbase bmi1 avx2 smep bmi2 erms invpcid rdseed adx smap clflushopt clwb sha-ni, zero-fcs-fds
    0x219c_27a9,
    // umip pku gfni vaes vpclmulqdq la57 rdpid
    0x0041_070c,
    // fsrm
    0x10,
    // xsaveopt xsavec xgetbv1 xsaves
    15,
    // arat
    4,
    0,
    0,
    // kvm-nopiodelay kvmclock kvmclock-stable-bit; not part of any model
    0x0100_000a,
];

/// `IMPLEMENTED` without what only the host's own instructions compute, if it lacks them.
pub fn implemented() -> [u32; WORDS] {
    let mut words = IMPLEMENTED;
    for (there, names) in host_needs() {
        for f in names.iter().filter_map(|n| find(n)).filter(|_| !there) {
            words[f.word as usize] &= !(1 << f.bit);
        }
    }
    words
}

/// Has the host these instructions, and which features compute with them.
#[cfg(target_arch = "x86_64")]
fn host_needs() -> [(bool, &'static [&'static str]); 4] {
    use std::is_x86_feature_detected as has;
    [
        (has!("sse4.1"), &["sse4.1", "sse4.2"]),
        (has!("avx"), &["avx", "avx2", "fma", "f16c", "vaes", "vpclmulqdq"]),
        (has!("fma"), &["fma"]),
        (has!("f16c"), &["f16c"]),
    ]
}

#[cfg(not(target_arch = "x86_64"))]
fn host_needs() -> [(bool, &'static [&'static str]); 0] {
    []
}

/// A feature without which another means nothing: (feature, what it needs). QEMU drops the same ones.
const NEEDS: &[(&str, &str)] = &[
    ("sse4.1", "ssse3"),
    ("sse4.2", "sse4.1"),
    ("xsaveopt", "xsave"),
    ("xsavec", "xsave"),
    ("xgetbv1", "xsave"),
    ("xsaves", "xsave"),
    ("avx", "xsave"),
    ("avx2", "avx"),
    ("fma", "avx"),
    ("f16c", "avx"),
    ("vaes", "avx"),
    ("vpclmulqdq", "avx"),
    ("pku", "xsave"),
];

/// A feature bit and its name in `-cpu NAME,+feature`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    pub name: &'static str,
    pub word: Word,
    pub bit: u32,
}

impl Feature {
    /// Is the bit set in `words` (`Word` order)?
    pub fn is_in(&self, words: &[u32]) -> bool {
        words.get(self.word as usize).is_some_and(|w| w >> self.bit & 1 == 1)
    }

    /// Leaf, register, name and bit, as QEMU's warnings show them.
    pub fn describe(&self) -> String {
        let leaf = match self.word {
            Word::L1Edx => "01H:EDX",
            Word::L1Ecx => "01H:ECX",
            Word::ExtEdx => "80000001H:EDX",
            Word::ExtEcx => "80000001H:ECX",
            Word::L7Ebx => "07H:EBX",
            Word::L7Ecx => "07H:ECX",
            Word::L7Edx => "07H:EDX",
            Word::XsaveEax => "0DH:EAX",
            Word::L6Eax => "06H:EAX",
            Word::ApmEdx => "80000007H:EDX",
            Word::Ext8Ebx => "80000008H:EBX",
            Word::KvmEax => "40000001H:EAX",
        };
        format!("CPUID.{leaf}.{} [bit {}]", self.name, self.bit)
    }
}

const fn n(name: &'static str, word: Word, bit: u32) -> Feature {
    Feature { name, word, bit }
}

/// All features that have a name; the first of several for one bit is the one shown.
pub const FEATURES: &[Feature] = &[
    n("fpu", Word::L1Edx, 0),
    n("vme", Word::L1Edx, 1),
    n("de", Word::L1Edx, 2),
    n("pse", Word::L1Edx, 3),
    n("tsc", Word::L1Edx, 4),
    n("msr", Word::L1Edx, 5),
    n("pae", Word::L1Edx, 6),
    n("mce", Word::L1Edx, 7),
    n("cx8", Word::L1Edx, 8),
    n("apic", Word::L1Edx, 9),
    n("sep", Word::L1Edx, 11),
    n("mtrr", Word::L1Edx, 12),
    n("pge", Word::L1Edx, 13),
    n("mca", Word::L1Edx, 14),
    n("cmov", Word::L1Edx, 15),
    n("pat", Word::L1Edx, 16),
    n("pse36", Word::L1Edx, 17),
    n("clflush", Word::L1Edx, 19),
    n("acpi", Word::L1Edx, 22),
    n("mmx", Word::L1Edx, 23),
    n("fxsr", Word::L1Edx, 24),
    n("sse", Word::L1Edx, 25),
    n("sse2", Word::L1Edx, 26),
    n("ss", Word::L1Edx, 27),
    n("ht", Word::L1Edx, 28),
    n("pni", Word::L1Ecx, 0),
    n("sse3", Word::L1Ecx, 0),
    n("pclmulqdq", Word::L1Ecx, 1),
    n("monitor", Word::L1Ecx, 3),
    n("ssse3", Word::L1Ecx, 9),
    n("fma", Word::L1Ecx, 12),
    n("cx16", Word::L1Ecx, 13),
    n("pcid", Word::L1Ecx, 17),
    n("sse4.1", Word::L1Ecx, 19),
    n("sse4.2", Word::L1Ecx, 20),
    n("x2apic", Word::L1Ecx, 21),
    n("movbe", Word::L1Ecx, 22),
    n("popcnt", Word::L1Ecx, 23),
    n("tsc-deadline", Word::L1Ecx, 24),
    n("aes", Word::L1Ecx, 25),
    n("xsave", Word::L1Ecx, 26),
    n("avx", Word::L1Ecx, 28),
    n("f16c", Word::L1Ecx, 29),
    n("rdrand", Word::L1Ecx, 30),
    n("hypervisor", Word::L1Ecx, 31),
    n("syscall", Word::ExtEdx, 11),
    n("nx", Word::ExtEdx, 20),
    n("mmxext", Word::ExtEdx, 22),
    n("fxsr-opt", Word::ExtEdx, 25),
    n("pdpe1gb", Word::ExtEdx, 26),
    n("rdtscp", Word::ExtEdx, 27),
    n("lm", Word::ExtEdx, 29),
    n("3dnowext", Word::ExtEdx, 30),
    n("3dnow", Word::ExtEdx, 31),
    n("lahf-lm", Word::ExtEcx, 0),
    n("cmp-legacy", Word::ExtEcx, 1),
    n("svm", Word::ExtEcx, 2),
    n("cr8legacy", Word::ExtEcx, 4),
    n("abm", Word::ExtEcx, 5),
    n("sse4a", Word::ExtEcx, 6),
    n("misalignsse", Word::ExtEcx, 7),
    n("3dnowprefetch", Word::ExtEcx, 8),
    n("osvw", Word::ExtEcx, 9),
    n("xop", Word::ExtEcx, 11),
    n("fma4", Word::ExtEcx, 16),
    n("tbm", Word::ExtEcx, 21),
    n("topoext", Word::ExtEcx, 22),
    n("perfctr-core", Word::ExtEcx, 23),
    n("fsgsbase", Word::L7Ebx, 0),
    n("tsc-adjust", Word::L7Ebx, 1),
    n("bmi1", Word::L7Ebx, 3),
    n("hle", Word::L7Ebx, 4),
    n("avx2", Word::L7Ebx, 5),
    n("smep", Word::L7Ebx, 7),
    n("bmi2", Word::L7Ebx, 8),
    n("erms", Word::L7Ebx, 9),
    n("invpcid", Word::L7Ebx, 10),
    n("rtm", Word::L7Ebx, 11),
    n("zero-fcs-fds", Word::L7Ebx, 13),
    n("avx512f", Word::L7Ebx, 16),
    n("avx512dq", Word::L7Ebx, 17),
    n("rdseed", Word::L7Ebx, 18),
    n("adx", Word::L7Ebx, 19),
    n("smap", Word::L7Ebx, 20),
    n("clflushopt", Word::L7Ebx, 23),
    n("clwb", Word::L7Ebx, 24),
    n("avx512cd", Word::L7Ebx, 28),
    n("sha-ni", Word::L7Ebx, 29),
    n("avx512bw", Word::L7Ebx, 30),
    n("avx512vl", Word::L7Ebx, 31),
    n("umip", Word::L7Ecx, 2),
    n("pku", Word::L7Ecx, 3),
    n("gfni", Word::L7Ecx, 8),
    n("vaes", Word::L7Ecx, 9),
    n("vpclmulqdq", Word::L7Ecx, 10),
    n("la57", Word::L7Ecx, 16),
    n("avx512vbmi", Word::L7Ecx, 1),
    n("avx512vbmi2", Word::L7Ecx, 6),
    n("avx512vnni", Word::L7Ecx, 11),
    n("avx512bitalg", Word::L7Ecx, 12),
    n("avx512-vpopcntdq", Word::L7Ecx, 14),
    n("rdpid", Word::L7Ecx, 22),
    n("fsrm", Word::L7Edx, 4),
    n("xsaveopt", Word::XsaveEax, 0),
    n("xsavec", Word::XsaveEax, 1),
    n("xgetbv1", Word::XsaveEax, 2),
    n("xsaves", Word::XsaveEax, 3),
    n("arat", Word::L6Eax, 2),
    n("invtsc", Word::ApmEdx, 8),
    n("clzero", Word::Ext8Ebx, 0),
    n("xsaveerptr", Word::Ext8Ebx, 2),
    n("wbnoinvd", Word::Ext8Ebx, 9),
    n("kvm-nopiodelay", Word::KvmEax, 1),
    n("kvmclock", Word::KvmEax, 3),
    n("kvmclock-stable-bit", Word::KvmEax, 24),
];

/// The feature of a name; `_` and `-` are the same, and `.` may be left out as `-` too.
pub fn find(name: &str) -> Option<&'static Feature> {
    let wanted = name.replace('_', "-");
    FEATURES.iter().find(|f| f.name == wanted || f.name.replace('.', "-") == wanted)
}

/// QEMU's name of a feature bit, the first where it has several.
pub fn feature_name(word: Word, bit: u32) -> Option<&'static str> {
    FEATURES.iter().find(|f| f.word == word && f.bit == bit).map(|f| f.name)
}

/// Clears in `words` what needs a feature that is not there.
pub fn drop_dependents(words: &mut [u32]) {
    // The table is in such an order that one pass would do for most; a second settles chains.
    for _ in 0..2 {
        for (f, need) in NEEDS.iter().filter_map(|(f, n)| Some((find(f)?, find(n)?))) {
            if !need.is_in(words) {
                words[f.word as usize] &= !(1 << f.bit);
            }
        }
    }
}
