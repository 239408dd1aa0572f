//! Small guests of our own in C and assembly, built by the C compiler that the workspace needs anyway.

use crate::boot::scratch;
use crate::workspace::root;
use std::path::PathBuf;
use std::process::Command;
use vm_core::testing::left_out;

/// C without anything of the host's, and without vector registers.
pub const FREESTANDING: &[&str] = &[
    "-std=gnu11",
    "-ffreestanding",
    "-fno-pic",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-fno-strict-aliasing",
    "-fno-delete-null-pointer-checks",
    "-fno-tree-loop-distribute-patterns",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-main",
];

/// Builds NAME.elf in the scratch folder from sources in a folder of the repository; the script for the linker lies there, too. `None`,
/// said on standard error, where there is no C compiler and `RHEA_TEST_ALL` does not ask for one.
///
/// # Panics
/// If it does not compile.
pub fn build(name: &str, folder: &str, script: &str, flags: &[&str], sources: &[&str]) -> Option<PathBuf> {
    let (elf, part) = (scratch().join(format!("{name}.elf")), scratch().join(format!("{name}.{}.part", std::process::id())));
    let mut cc = Command::new("cc");
    cc.current_dir(root().join(folder)).args(["-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"]);
    cc.arg(format!("-Wl,-T,{script}")).args(flags).args(sources).arg("-o").arg(&part);
    let Ok(out) = cc.output() else {
        left_out("there is no C compiler (cc)");
        return None;
    };
    assert!(out.status.success(), "{name} does not compile:\n{}", String::from_utf8_lossy(&out.stderr));
    std::fs::rename(&part, &elf).unwrap_or_else(|e| panic!("{}: {e}", elf.display()));
    Some(elf)
}

/// As `build`, of a guest in `tests/kvm` of one source in assembly, with preprocessor names; its path as an argument.
pub fn guest_of(source: &str, name: &str, defines: &[&str]) -> Option<String> {
    let defines: Vec<_> = defines.iter().map(|d| format!("-D{d}")).collect();
    let flags: Vec<&str> = std::iter::once("-m32").chain(defines.iter().map(String::as_str)).collect();
    let elf = build(&format!("kvm-{name}"), "tests/kvm", "guest.ld", &flags, &[source])?;
    Some(elf.display().to_string())
}
