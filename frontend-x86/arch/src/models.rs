//! CPU models and `-cpu` (names of models and features as in QEMU).

mod named;
mod older;

use crate::cpuid::{CpuConfigured, WORDS, Word};
use crate::features::{self, Feature, find};
use crate::topology::Topology;

/// What a model has.
#[derive(Debug)]
pub enum Set {
    /// All features of these lists.
    Lists(&'static [&'static [&'static str]]),
    /// Everything that is implemented.
    All,
}

/// What identifies a model, and its features.
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
    pub features: Set,
}

impl Model {
    pub fn amd(&self) -> bool {
        &self.vendor == b"AuthenticAMD"
    }
}

/// What every 64-bit CPU has and operating systems expect (x86-64-v1 of the psABI, "Micro-Architecture Levels").
const V1: &[&str] = &[
    "fpu",
    "de",
    "pse",
    "tsc",
    "msr",
    "pae",
    "mce",
    "cx8",
    "apic",
    "sep",
    "mtrr",
    "pge",
    "mca",
    "cmov",
    "pat",
    "pse36",
    "clflush",
    "mmx",
    "fxsr",
    "sse",
    "sse2",
    "syscall",
    "nx",
    "lm",
    "hypervisor",
];
/// What QEMU's basic model has beyond.
const QEMU64: &[&str] = &["pni", "cx16", "lahf-lm"];
/// What x86-64-v2 and v3 add to the level below.
const V2: &[&str] = &["pni", "cx16", "lahf-lm", "popcnt", "ssse3", "sse4.1", "sse4.2"];
const V3: &[&str] = &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"];
/// Bits that `max` leaves to `-smp`: they tell of more than one logical processor.
const OF_SMP: &[&str] = &["ht", "cmp-legacy"];

const AMD: [u8; 12] = *b"AuthenticAMD";
const BRAND: &str = "QEMU Virtual CPU version 2.5+";

const fn virtual_cpu(name: &'static str, help: &'static str, brand: &'static str, features: Set) -> Model {
    Model { name, help, vendor: AMD, family: 15, model: 107, stepping: 1, level: 0xd, xlevel: 0x8000_000a, brand, features }
}

/// The models; the first is the default.
pub const MODELS: &[Model] = &[
    virtual_cpu("qemu64", "64-bit CPU with SSE2 and SSE3, as QEMU's of that name (default)", BRAND, Set::Lists(&[V1, QEMU64])),
    virtual_cpu("x86-64-v1", "baseline of the x86-64 psABI", BRAND, Set::Lists(&[V1])),
    virtual_cpu("x86-64-v2", "with SSE4.2 and POPCNT", BRAND, Set::Lists(&[V1, V2])),
    virtual_cpu("x86-64-v3", "with AVX2, BMI2 and FMA", BRAND, Set::Lists(&[V1, V2, V3])),
    virtual_cpu("max", "everything the engine can do", "rhea virtual CPU", Set::All),
    named::QEMU32,
    named::KVM32_MODEL,
    named::KVM64,
    named::CORE2DUO,
    named::PENRYN_MODEL,
    named::NEHALEM_MODEL,
    named::WESTMERE_MODEL,
    named::SANDY_BRIDGE_MODEL,
    named::IVY_BRIDGE_MODEL,
    named::HASWELL_MODEL,
    named::HASWELL_NO_TSX,
    named::BROADWELL_MODEL,
    named::SKYLAKE_CLIENT,
    named::SKYLAKE_SERVER_MODEL,
    named::EPYC,
    named::EPYC_ROME,
    named::EPYC_MILAN,
    named::CASCADELAKE,
    named::ICELAKE,
    older::I486,
    older::PENTIUM_MODEL,
    older::PENTIUM2_MODEL,
    older::PENTIUM3_MODEL,
    older::ATHLON,
    older::COREDUO,
    older::N270,
    older::CONROE,
    older::PHENOM,
    older::OPTERON_G1_MODEL,
    older::OPTERON_G2_MODEL,
    older::OPTERON_G3_MODEL,
    older::OPTERON_G4_MODEL,
    older::OPTERON_G5_MODEL,
];

/// Model names and help, for `-cpu help`.
pub fn model_names() -> impl Iterator<Item = (&'static str, &'static str)> {
    MODELS.iter().map(|m| (m.name, m.help))
}

/// Applies `-cpu model,+feature,-feature`; `tweaks` holds (on, name), with `_` and `-` the same. A feature that is not
/// implemented, or needs one that is not there, is left off. The result names it, but a model's feature that went with one
/// that the caller took away. Errors: an unknown model or feature.
pub fn configure(model: &str, tweaks: &[(bool, String)]) -> Result<CpuConfigured, String> {
    let index = MODELS.iter().position(|m| m.name == model);
    let index = index.ok_or_else(|| format!("unable to find CPU model '{model}'"))?;
    let there = features::implemented();
    let mut asked = model_words(&MODELS[index], &there);
    for (on, name) in tweaks {
        let f = find(name).ok_or_else(|| format!("CPU feature '{name}' is not known"))?;
        set(&mut asked, f, *on);
    }
    copy_amd_bits(&mut asked, MODELS[index].amd());
    let mut words = [0; 16];
    for (w, (a, t)) in words.iter_mut().zip(asked.iter().zip(&there)) {
        *w = a & t;
    }
    features::drop_dependents(&mut words);
    let by_name = |f: &Feature| tweaks.iter().any(|(on, n)| *on && find(n).is_some_and(|x| (x.word, x.bit) == (f.word, f.bit)));
    let missing = |f: &&Feature| shown(f) && f.is_in(&asked) && !f.is_in(&words) && (!f.is_in(&there) || by_name(f));
    let dropped = features::FEATURES.iter().filter(missing).map(Feature::describe).collect();
    Ok(CpuConfigured { model: index as u32, features: words, topology: Topology::SINGLE, dropped })
}

/// Is this the name by which its bit goes?
fn shown(f: &Feature) -> bool {
    features::feature_name(f.word, f.bit) == Some(f.name)
}

fn set(words: &mut [u32; WORDS], f: &Feature, on: bool) {
    let (w, bit) = (&mut words[f.word as usize], 1 << f.bit);
    *w = if on { *w | bit } else { *w & !bit };
}

fn model_words(m: &Model, there: &[u32; WORDS]) -> [u32; WORDS] {
    let mut words = [0; WORDS];
    match m.features {
        Set::All => {
            words = *there;
            // What makes the guest one of KVM's is no feature of a model.
            words[Word::KvmEax as usize] = 0;
            OF_SMP.iter().filter_map(|n| find(n)).for_each(|f| set(&mut words, f, false));
        }
        Set::Lists(lists) => {
            lists.iter().copied().flatten().filter_map(|n| find(n)).for_each(|f| set(&mut words, f, true));
        }
    }
    words
}

/// AMD's leaf 8000_0001h repeats bits of leaf 1's EDX (AMD APM 3 appendix E).
fn copy_amd_bits(words: &mut [u32; WORDS], amd: bool) {
    const COPIED: u32 = 0x0183_f3ff;
    let own = words[2] & !COPIED;
    words[2] = own | if amd { words[0] & COPIED } else { 0 };
}
