//! Processors of the market as models, each as its generation and what it added (vendors' data sheets; names and identification
//! as QEMU gives them).

use super::{Model, Set, V1};

const INTEL: [u8; 12] = *b"GenuineIntel";
const AMD: [u8; 12] = *b"AuthenticAMD";

pub(super) type List = &'static [&'static str];

/// The 32-bit baseline, without long mode, NX and SYSCALL.
pub(super) const P6: List = &[
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
    "pge",
    "cmov",
    "pat",
    "mmx",
    "fxsr",
    "sse",
    "sse2",
    "pni",
    "hypervisor",
];
/// What 32-bit virtual CPUs of KVM have beyond.
const KVM32: List = &["mtrr", "clflush", "mca", "pse36"];
const CORE2: List = &["vme", "pni", "ssse3", "cx16", "lahf-lm"];
const PENRYN: List = &["sse4.1"];
const NEHALEM: List = &["sse4.2", "popcnt"];
const WESTMERE: List = &["aes", "pclmulqdq", "arat"];
const SANDY_BRIDGE: List = &["avx", "xsave", "xsaveopt", "tsc-deadline", "x2apic", "rdtscp"];
const IVY_BRIDGE: List = &["f16c", "rdrand", "smep", "fsgsbase", "erms"];
const HASWELL: List = &["avx2", "bmi1", "bmi2", "fma", "movbe", "pcid", "invpcid", "abm"];
const TSX: List = &["hle", "rtm"];
const BROADWELL: List = &["rdseed", "adx", "smap", "3dnowprefetch"];
const SKYLAKE: List = &["xsavec", "xgetbv1"];
const SKYLAKE_SERVER: List = &["clwb", "pdpe1gb", "pku", "avx512f", "avx512dq", "avx512bw", "avx512cd", "avx512vl"];
const CASCADE_LAKE: List = &["avx512vnni"];
const ICE_LAKE: List =
    &["avx512vbmi", "avx512vbmi2", "avx512bitalg", "avx512-vpopcntdq", "umip", "gfni", "vaes", "vpclmulqdq", "la57", "wbnoinvd"];
/// AMD's first Zen, without what `V1` has.
const ZEN: List = &[
    "vme",
    "pni",
    "pclmulqdq",
    "ssse3",
    "fma",
    "cx16",
    "sse4.1",
    "sse4.2",
    "movbe",
    "popcnt",
    "aes",
    "xsave",
    "avx",
    "f16c",
    "rdrand",
    "mmxext",
    "fxsr-opt",
    "pdpe1gb",
    "rdtscp",
    "lahf-lm",
    "cr8legacy",
    "abm",
    "sse4a",
    "misalignsse",
    "3dnowprefetch",
    "osvw",
    "topoext",
    "fsgsbase",
    "bmi1",
    "avx2",
    "smep",
    "bmi2",
    "rdseed",
    "adx",
    "smap",
    "clflushopt",
    "sha-ni",
    "xsaveopt",
    "xsavec",
    "xgetbv1",
    "arat",
];
const ZEN2: List = &["clwb", "umip", "rdpid", "wbnoinvd", "clzero", "xsaveerptr", "perfctr-core"];
const ZEN3: List = &["pcid", "invpcid", "pku", "vaes", "vpclmulqdq", "erms", "fsrm", "xsaves"];

/// Intel's servers and clients, each with all that came before.
const INTEL_SETS: [List; 14] = [
    V1,
    CORE2,
    PENRYN,
    NEHALEM,
    WESTMERE,
    SANDY_BRIDGE,
    IVY_BRIDGE,
    HASWELL,
    TSX,
    BROADWELL,
    SKYLAKE,
    SKYLAKE_SERVER,
    CASCADE_LAKE,
    ICE_LAKE,
];

/// How many of the sets a generation has.
#[derive(Clone, Copy)]
enum Intel {
    Core2 = 2,
    Penryn,
    Nehalem,
    Westmere,
    SandyBridge,
    IvyBridge,
    HaswellNoTsx,
    Haswell,
    Broadwell,
    Skylake,
    SkylakeServer,
    CascadeLake,
    IceLake,
}

const fn up_to(generation: Intel) -> &'static [List] {
    const SETS: &[List] = &INTEL_SETS;
    SETS.split_at(generation as usize).0
}

/// Family, model, stepping.
pub(super) type Ident = (u32, u32, u32);

pub(super) const fn intel(name: &'static str, help: &'static str, id: Ident, level: u32, sets: &'static [List]) -> Model {
    let (family, model, stepping) = id;
    let (vendor, xlevel, brand) = (INTEL, 0x8000_0008, help);
    Model { name, help, vendor, family, model, stepping, level, xlevel, brand, features: Set::Lists(sets) }
}

const fn zen(name: &'static str, help: &'static str, id: Ident, sets: &'static [List]) -> Model {
    let (family, model, stepping) = id;
    let (vendor, level, xlevel, brand) = (AMD, 0xd, 0x8000_001e, help);
    Model { name, help, vendor, family, model, stepping, level, xlevel, brand, features: Set::Lists(sets) }
}

const KVM_BRAND: &str = "Common KVM processor";

pub(super) const QEMU32: Model =
    Model { xlevel: 0x8000_0004, ..intel("qemu32", "QEMU Virtual CPU version 2.5+", (6, 6, 3), 4, &[P6]) };
pub(super) const KVM32_MODEL: Model = intel("kvm32", "Common 32-bit KVM processor", (15, 6, 1), 5, &[P6, KVM32]);
pub(super) const KVM64: Model = intel("kvm64", KVM_BRAND, (15, 6, 1), 0xd, &[V1, &["pni", "cx16"]]);
pub(super) const CORE2DUO: Model =
    intel("core2duo", "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz", (6, 15, 11), 10, up_to(Intel::Core2));
pub(super) const PENRYN_MODEL: Model =
    intel("Penryn", "Intel Core 2 Duo P9xxx (Penryn Class Core 2)", (6, 23, 3), 10, up_to(Intel::Penryn));
pub(super) const NEHALEM_MODEL: Model =
    intel("Nehalem", "Intel Core i7 9xx (Nehalem Class Core i7)", (6, 26, 3), 11, up_to(Intel::Nehalem));
pub(super) const WESTMERE_MODEL: Model =
    intel("Westmere", "Westmere E56xx/L56xx/X56xx (Nehalem-C)", (6, 44, 1), 11, up_to(Intel::Westmere));
pub(super) const SANDY_BRIDGE_MODEL: Model =
    intel("SandyBridge", "Intel Xeon E312xx (Sandy Bridge)", (6, 42, 1), 0xd, up_to(Intel::SandyBridge));
pub(super) const IVY_BRIDGE_MODEL: Model =
    intel("IvyBridge", "Intel Xeon E3-12xx v2 (Ivy Bridge)", (6, 58, 9), 0xd, up_to(Intel::IvyBridge));
pub(super) const HASWELL_MODEL: Model =
    intel("Haswell", "Intel Core Processor (Haswell)", (6, 60, 4), 0xd, up_to(Intel::Haswell));
pub(super) const HASWELL_NO_TSX: Model =
    intel("Haswell-noTSX", "Intel Core Processor (Haswell, no TSX)", (6, 60, 1), 0xd, up_to(Intel::HaswellNoTsx));
pub(super) const BROADWELL_MODEL: Model =
    intel("Broadwell", "Intel Core Processor (Broadwell)", (6, 61, 2), 0xd, up_to(Intel::Broadwell));
pub(super) const SKYLAKE_CLIENT: Model =
    intel("Skylake-Client", "Intel Core Processor (Skylake)", (6, 94, 3), 0xd, up_to(Intel::Skylake));
pub(super) const SKYLAKE_SERVER_MODEL: Model =
    intel("Skylake-Server", "Intel Xeon Processor (Skylake)", (6, 85, 4), 0xd, up_to(Intel::SkylakeServer));
pub(super) const CASCADELAKE: Model =
    intel("Cascadelake-Server", "Intel Xeon Processor (Cascadelake)", (6, 85, 6), 0xd, up_to(Intel::CascadeLake));
pub(super) const ICELAKE: Model =
    intel("Icelake-Server", "Intel Xeon Processor (Icelake)", (6, 106, 0), 0xd, up_to(Intel::IceLake));
pub(super) const EPYC: Model = zen("EPYC", "AMD EPYC Processor", (23, 1, 2), &[V1, ZEN]);
pub(super) const EPYC_ROME: Model = zen("EPYC-Rome", "AMD EPYC-Rome Processor", (23, 49, 0), &[V1, ZEN, ZEN2]);
pub(super) const EPYC_MILAN: Model = zen("EPYC-Milan", "AMD EPYC-Milan Processor", (25, 1, 1), &[V1, ZEN, ZEN2, ZEN3]);
