//! Small guests in assembly language, of `tests/kvm`.

use crate::boot::scratch;
use crate::workspace::root;
use std::process::Command;

/// Assembles `source` with preprocessor names; the path of its ELF file, or `None` where there is no C compiler.
///
/// # Panics
/// If it does not compile.
pub fn guest_of(source: &str, name: &str, defines: &[&str]) -> Option<String> {
    let elf = scratch().join(format!("kvm-{name}.elf"));
    let mut cc = Command::new("cc");
    cc.current_dir(root().join("tests/kvm"));
    cc.args(["-m32", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none", "-Wl,-T,guest.ld", source, "-o"]).arg(&elf);
    let Ok(out) = cc.args(defines.iter().map(|d| format!("-D{d}"))).output() else {
        vm_core::testing::left_out("there is no C compiler");
        return None;
    };
    assert!(out.status.success(), "{source} does not compile:\n{}", String::from_utf8_lossy(&out.stderr));
    Some(elf.display().to_string())
}
