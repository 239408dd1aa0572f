//! The test kernel (`tests/kernel`): system software of our own that checks, row by row, what only system software sees, and
//! says on the serial line which rows failed. Built by the C compiler that the workspace needs anyway.

use crate::small::{self, FREESTANDING};
use crate::workspace::root;
use std::path::PathBuf;

/// Exit status of `rhea` after `isa-debug-exit` got 0: every row passed.
pub const STATUS_PASS: i32 = 1;

/// Which of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// 64-bit and compatibility mode, with 4 and 5 levels of paging; entered by PVH.
    Bits64,
    /// 16- and 32-bit protected mode and virtual-8086 mode, with 32-bit and PAE paging; entered by Multiboot.
    Bits32,
}

impl Kernel {
    fn name(self) -> &'static str {
        match self {
            Self::Bits64 => "kernel64",
            Self::Bits32 => "kernel32",
        }
    }

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Bits64 => &["-m64", "-mno-red-zone"],
            Self::Bits32 => &["-m32", "-march=i686"],
        }
    }

    fn sources(self) -> &'static [&'static str] {
        match self {
            Self::Bits64 => &[
                "start64.S",
                "setup64.c",
                "console.c",
                "paging.c",
                "faults64.c",
                "memory64.c",
                "remap64.c",
                "apic64.c",
                "debug64.c",
                "timers64.c",
                "coprocessor64.c",
                "features64.c",
                "smm64.c",
                "main64.c",
            ],
            Self::Bits32 => &[
                "start32.S",
                "setup32.c",
                "console.c",
                "paging.c",
                "faults32.c",
                "segments32.c",
                "tasks32.c",
                "vme32.c",
                "real32.c",
                "realmode32.S",
                "main32.c",
            ],
        }
    }
}

/// With debugging information, for debuggers that are tested on it.
const FLAGS: &[&str] = &["-O1", "-g"];

/// Builds a kernel into the scratch folder and returns its path; `defines` are preprocessor names that change it. `None`, said on
/// standard error, where there is no C compiler and `RHEA_TEST_ALL` does not ask for one.
///
/// # Panics
/// If it does not compile.
pub fn build(kernel: Kernel, defines: &[&str]) -> Option<PathBuf> {
    let mut name = kernel.name().to_owned();
    defines.iter().for_each(|d| name = format!("{name}-{}", d.to_lowercase()));
    compile(kernel, &name, defines)
}

/// The 64-bit kernel without what a KVM on a host whose processor cannot virtualise does not run: `tests/kernel/kvm.txt`.
///
/// # Panics
/// As `build`.
pub fn build_for_kvm() -> Option<PathBuf> {
    let list = std::fs::read_to_string(root().join("tests/kernel/kvm.txt")).expect("the list is there");
    let texts = list.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).map(|l| {
        let (text, why) = l.split_once(" | ").unwrap_or_else(|| panic!("{l}: no reason"));
        assert!(!why.is_empty() && !text.contains(['"', '\\']), "{l}");
        format!("\"{text}\",")
    });
    let left_out = format!("LEFT_OUT={}", texts.collect::<String>());
    compile(Kernel::Bits64, "kernel64-kvm", &["DIVIDES", &left_out])
}

fn compile(kernel: Kernel, name: &str, defines: &[&str]) -> Option<PathBuf> {
    let defines: Vec<_> = defines.iter().map(|d| format!("-D{d}")).collect();
    let more = defines.iter().map(String::as_str);
    let flags: Vec<&str> = FREESTANDING.iter().chain(FLAGS).chain(kernel.flags()).copied().chain(more).collect();
    small::build(name, "tests/kernel", "kernel.ld", &flags, kernel.sources())
}
