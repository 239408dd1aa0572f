//! Processors of before 64 bits were common, and AMD's before Zen, as models (vendors' data sheets; names and identification as
//! QEMU gives them).

use super::named::{Ident, List, P6, intel};
use super::{AMD, Model, Set, V1};

const FIRST: List = &["fpu", "vme", "pse", "hypervisor"];
const PENTIUM: List = &["de", "tsc", "msr", "mce", "cx8", "mmx"];
const PENTIUM2: List = &["pae", "sep", "mtrr", "pge", "mca", "cmov", "pat", "pse36", "fxsr"];
const PENTIUM3: List = &["sse"];
const K7: List = &["mmxext", "3dnow", "3dnowext", "vme", "mtrr", "mca", "pse36"];
const CORE: List = &["vme", "mtrr", "clflush", "mca", "monitor", "nx"];
const ATOM: List = &["vme", "mtrr", "clflush", "mca", "monitor", "nx", "ssse3", "movbe", "lahf-lm"];
const K10: List = &["cx16", "popcnt", "mmxext", "fxsr-opt", "pdpe1gb", "rdtscp", "lahf-lm", "svm", "abm", "sse4a", "monitor"];
const THREED_NOW: List = &["3dnow", "3dnowext"];
const OPTERON_G1: List = &["vme", "pni"];
const OPTERON_G2: List = &["cx16", "lahf-lm", "svm"];
const OPTERON_G3: List = &["popcnt", "monitor", "misalignsse", "sse4a", "abm", "rdtscp"];
const OPTERON_G4: List =
    &["avx", "xsave", "aes", "sse4.2", "sse4.1", "ssse3", "pclmulqdq", "pdpe1gb", "fma4", "xop", "3dnowprefetch"];
const OPTERON_G5: List = &["f16c", "fma", "tbm"];

/// A model with no extended leaves.
const fn plain(name: &'static str, help: &'static str, id: Ident, level: u32, sets: &'static [List]) -> Model {
    Model { xlevel: 0, ..intel(name, help, id, level, sets) }
}

const fn amd(name: &'static str, help: &'static str, id: Ident, level: u32, xlevel: u32, sets: &'static [List]) -> Model {
    Model { vendor: AMD, xlevel, features: Set::Lists(sets), ..intel(name, help, id, level, sets) }
}

pub(super) const I486: Model = plain("486", "Intel 486", (4, 8, 0), 1, &[FIRST]);
pub(super) const PENTIUM_MODEL: Model = plain("pentium", "Intel Pentium", (5, 4, 3), 1, &[FIRST, PENTIUM]);
pub(super) const PENTIUM2_MODEL: Model = plain("pentium2", "Intel Pentium II", (6, 5, 2), 2, &[FIRST, PENTIUM, PENTIUM2]);
pub(super) const PENTIUM3_MODEL: Model =
    plain("pentium3", "Intel Pentium III", (6, 7, 3), 3, &[FIRST, PENTIUM, PENTIUM2, PENTIUM3]);
pub(super) const ATHLON: Model = amd("athlon", "QEMU Virtual CPU version 2.5+", (6, 2, 3), 2, 0x8000_0008, &[P6, K7]);
pub(super) const COREDUO: Model =
    intel("coreduo", "Genuine Intel(R) CPU           T2600  @ 2.16GHz", (6, 14, 8), 10, &[P6, CORE]);
pub(super) const N270: Model = intel("n270", "Intel(R) Atom(TM) CPU N270   @ 1.60GHz", (6, 28, 2), 10, &[P6, ATOM]);
pub(super) const CONROE: Model =
    intel("Conroe", "Intel Celeron_4x0 (Conroe/Merom Class Core 2)", (6, 15, 3), 10, &[V1, &["vme", "pni", "ssse3", "lahf-lm"]]);
pub(super) const PHENOM: Model =
    amd("phenom", "AMD Phenom(tm) 9550 Quad-Core Processor", (16, 2, 3), 5, 0x8000_001a, &[V1, OPTERON_G1, K10, THREED_NOW]);
pub(super) const OPTERON_G1_MODEL: Model =
    amd("Opteron_G1", "AMD Opteron 240 (Gen 1 Class Opteron)", (15, 6, 1), 5, 0x8000_0008, &[V1, OPTERON_G1]);
pub(super) const OPTERON_G2_MODEL: Model =
    amd("Opteron_G2", "AMD Opteron 22xx (Gen 2 Class Opteron)", (15, 6, 1), 5, 0x8000_0008, &[V1, OPTERON_G1, OPTERON_G2]);
pub(super) const OPTERON_G3_MODEL: Model = amd(
    "Opteron_G3",
    "AMD Opteron 23xx (Gen 3 Class Opteron)",
    (16, 2, 3),
    5,
    0x8000_0008,
    &[V1, OPTERON_G1, OPTERON_G2, OPTERON_G3],
);
pub(super) const OPTERON_G4_MODEL: Model = amd(
    "Opteron_G4",
    "AMD Opteron 62xx class CPU",
    (21, 1, 2),
    0xd,
    0x8000_001a,
    &[V1, OPTERON_G1, OPTERON_G2, OPTERON_G3, OPTERON_G4],
);
pub(super) const OPTERON_G5_MODEL: Model = amd(
    "Opteron_G5",
    "AMD Opteron 63xx class CPU",
    (21, 2, 0),
    0xd,
    0x8000_001a,
    &[V1, OPTERON_G1, OPTERON_G2, OPTERON_G3, OPTERON_G4, OPTERON_G5],
);
