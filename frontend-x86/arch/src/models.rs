//! CPU models and `-cpu` (names of models and features as in QEMU).

use crate::cpuid::{CpuConfigured, WORDS, Word};

/// What identifies a model; features come from `features`, masked by `IMPLEMENTED`.
#[derive(Debug)]
pub struct Model {
    pub name: &'static str,
    pub help: &'static str,
    pub vendor: [u8; 12],
    pub family: u32,
    pub model: u32,
    pub stepping: u32,
    /// Highest basic and extended leaf.
    pub level: u32,
    pub xlevel: u32,
    pub brand: &'static str,
    pub features: [u32; WORDS],
}

impl Model {
    pub fn amd(&self) -> bool {
        &self.vendor == b"AuthenticAMD"
    }
}

const BRAND: &str = "QEMU Virtual CPU version 2.5+";

/// Features that the translator and this crate implement today, in `Word` order. A feature is added here, and nowhere
/// else, when its instructions and state work.
pub const IMPLEMENTED: [u32; WORDS] = [
    // fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 ht
    0x178b_fbfd,
    // pni cx16 movbe popcnt hypervisor
    0x80c0_2001,
    // the copies of 1.EDX, syscall nx rdtscp lm
    0x2993_fbfd,
    // lahf_lm cmp_legacy abm 3dnowprefetch
    0x0000_0123,
    // clflushopt clwb
    0x0180_0000,
    // rdpid
    0x0040_0000,
    0,
    0,
    0,
    0,
    0,
];

pub const MODELS: &[Model] = &[
    Model {
        name: "qemu64",
        help: "QEMU Virtual CPU version 2.5+",
        vendor: *b"AuthenticAMD",
        family: 15,
        model: 107,
        stepping: 1,
        level: 0xd,
        xlevel: 0x8000_000a,
        brand: BRAND,
        features: [0x078b_fbfd, 0x8000_2001, 0x2193_fbfd, 0x5, 0, 0, 0, 0, 0, 0, 0],
    },
    Model {
        name: "max",
        help: "Enables all features supported by the accelerator",
        vendor: *b"AuthenticAMD",
        family: 15,
        model: 107,
        stepping: 1,
        level: 0xd,
        xlevel: 0x8000_000a,
        brand: "rhea virtual CPU",
        features: [0x078b_fbfd, !(1 << 27), 0x2193_fbfd | 0x2c10_0000, !(1 << 1), !0, !0, !0, !0, !0, !0, !0],
    },
];

/// One feature name of `-cpu NAME,+feature`.
struct Name(&'static str, Word, u32);

const fn n(name: &'static str, word: Word, bit: u32) -> Name {
    Name(name, word, bit)
}

const NAMES: &[Name] = &[
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
    n("3dnowprefetch", Word::ExtEcx, 8),
    n("fsgsbase", Word::L7Ebx, 0),
    n("tsc-adjust", Word::L7Ebx, 1),
    n("bmi1", Word::L7Ebx, 3),
    n("avx2", Word::L7Ebx, 5),
    n("smep", Word::L7Ebx, 7),
    n("bmi2", Word::L7Ebx, 8),
    n("erms", Word::L7Ebx, 9),
    n("invpcid", Word::L7Ebx, 10),
    n("rdseed", Word::L7Ebx, 18),
    n("adx", Word::L7Ebx, 19),
    n("smap", Word::L7Ebx, 20),
    n("clflushopt", Word::L7Ebx, 23),
    n("clwb", Word::L7Ebx, 24),
    n("sha-ni", Word::L7Ebx, 29),
    n("umip", Word::L7Ecx, 2),
    n("pku", Word::L7Ecx, 3),
    n("vaes", Word::L7Ecx, 9),
    n("vpclmulqdq", Word::L7Ecx, 10),
    n("la57", Word::L7Ecx, 16),
    n("rdpid", Word::L7Ecx, 22),
    n("fsrm", Word::L7Edx, 4),
    n("xsaveopt", Word::XsaveEax, 0),
    n("xsavec", Word::XsaveEax, 1),
    n("xgetbv1", Word::XsaveEax, 2),
    n("xsaves", Word::XsaveEax, 3),
    n("arat", Word::L6Eax, 2),
    n("invtsc", Word::ApmEdx, 8),
    n("clzero", Word::Ext8Ebx, 0),
    n("wbnoinvd", Word::Ext8Ebx, 9),
];

/// Model names and help, for `-cpu help`.
pub fn model_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    MODELS.iter().map(|m| (m.name, m.help))
}

/// Feature names, for `-cpu help`.
pub fn feature_names() -> impl Iterator<Item = &'static str> {
    NAMES.iter().map(|n| n.0)
}

/// QEMU's name of a feature bit, the first where it has several.
pub fn feature_name(word: Word, bit: u32) -> Option<&'static str> {
    NAMES.iter().find(|n| n.1 == word && n.2 == bit).map(|n| n.0)
}

/// Applies `-cpu model,+feature,-feature`; `tweaks` holds (on, name), with `_` and `-` the same. A feature that is not
/// implemented is dropped and named in the result. Errors: an unknown model or feature.
pub fn configure(model: &str, tweaks: &[(bool, String)]) -> Result<CpuConfigured, String> {
    let index = MODELS.iter().position(|m| m.name == model);
    let index = index.ok_or_else(|| format!("unable to find CPU model '{model}'"))?;
    let mut words = [0; 16];
    for (i, w) in words.iter_mut().take(WORDS).enumerate() {
        *w = MODELS[index].features[i] & IMPLEMENTED[i];
    }
    let mut dropped = Vec::new();
    for (on, name) in tweaks {
        let wanted = name.replace('_', "-");
        let same = |n: &&Name| n.0 == wanted || n.0.replace('.', "-") == wanted;
        let Some(&Name(_, word, bit)) = NAMES.iter().find(same) else {
            return Err(format!("CPU feature '{name}' is not known"));
        };
        let (i, mask) = (word as usize, 1 << bit);
        match on {
            false => words[i] &= !mask,
            true if IMPLEMENTED[i] & mask == 0 => dropped.push(name.clone()),
            true => words[i] |= mask,
        }
    }
    Ok(CpuConfigured { model: index as u32, features: words, cpus: 1, dropped })
}
