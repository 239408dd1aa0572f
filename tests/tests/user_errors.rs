//! Mistakes on the command line and in files: one line on standard error, status 1, no panic.

use machine::firstrun;
use rhea_tests::boot::{Guest, file, pvh_elf, run, scratch};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);

/// Runs `rhea` and expects one line with all of `words`.
fn refused(name: &str, args: &[&str], words: &[&str]) {
    let out = run(name, args, LIMIT);
    let (stderr, stdout) = (String::from_utf8_lossy(&out.stderr), String::from_utf8_lossy(&out.stdout));
    let told = format!("{name}: {args:?}\n{}\n--- standard error\n{stderr}\n--- standard output\n{stdout}", out.status);
    assert_eq!(out.status.code(), Some(1), "{told}");
    assert_eq!(stderr.lines().count(), 1, "{told}");
    assert!(stderr.starts_with("rhea: ") && !stderr.contains("panicked"), "{told}");
    for w in words {
        assert!(stderr.contains(w), "no {w:?}: {told}");
    }
    assert_eq!(stdout, "", "{told}");
}

#[test]
fn an_unknown_option() {
    refused("unknown-option", &["-frobnicate"], &["-frobnicate", "unknown option"]);
    refused("misspelt-option", &["-kernal", "x"], &["did you mean '-kernel'"]);
}

#[test]
fn a_missing_kernel() {
    let path = scratch().join("there-is-no-such-kernel");
    refused("missing-kernel", &["-nographic", "-kernel", path.to_str().unwrap()], &["there-is-no-such-kernel", "No such file"]);
}

#[test]
fn a_missing_initial_ram_disk() {
    let elf = file("missing-initrd.elf", &pvh_elf(&[0xf4]));
    let path = scratch().join("there-is-no-such-initrd");
    let args = ["-nographic", "-kernel", &elf, "-initrd", path.to_str().unwrap()];
    refused("missing-initrd", &args, &["there-is-no-such-initrd", "No such file"]);
}

/// At many places, so that headers, segments and what lies between are cut.
#[test]
fn a_kernel_cut_off() {
    let whole = pvh_elf(&[0xf4; 4096]);
    for len in [0, 1, 20, 60, 100, 140, 0x800, 0x1000, whole.len() / 2, whole.len() - 1] {
        let cut = file("cut.elf", &whole[..len]);
        refused(&format!("cut-{len}"), &["-nographic", "-kernel", &cut], &[]);
    }
}

#[test]
fn a_file_that_is_no_kernel() {
    let text = file("text.elf", b"not a kernel at all\n");
    refused(
        "no-kernel",
        &["-nographic", "-kernel", &text],
        &["neither a Linux bzImage, nor an x86 ELF file, nor a Multiboot kernel"],
    );
}

#[test]
fn an_initial_ram_disk_larger_than_ram() {
    let elf = file("large-initrd.elf", &pvh_elf(&[0xf4]));
    let path = scratch().join("large.initrd");
    // Sparse: takes no space.
    std::fs::File::create(&path).and_then(|f| f.set_len(200 << 20)).unwrap();
    let args = ["-nographic", "-m", "64M", "-kernel", &elf, "-initrd", path.to_str().unwrap()];
    refused("large-initrd", &args, &["large.initrd", "larger than the guest's RAM"]);
    // Smaller than RAM, and still without room beside what else is there.
    std::fs::File::create(&path).and_then(|f| f.set_len((64 << 20) - 4096)).unwrap();
    refused("tight-initrd", &args, &["initial RAM disk"]);
    std::fs::remove_file(&path).unwrap();
}

/// More RAM than any test machine has: refused in one line, or given as address space that costs nothing until touched.
#[test]
fn a_terabyte_of_ram() {
    let elf = file("terabyte.elf", &firstrun::built_in().unwrap());
    let args = ["-nographic", "-m", "1T", "-kernel", &elf];
    let mut g = Guest::start("terabyte", &args);
    if g.wait_for_or_end("rhea's built-in guest", LIMIT) {
        g.send("\x01x");
        g.expect_exit(0, LIMIT);
    } else {
        refused("terabyte", &args, &[]);
    }
}

#[test]
fn more_ram_than_addresses() {
    refused("too-much-ram", &["-nographic", "-m", "100000000T", "-kernel", "x"], &["-m"]);
    refused("no-ram", &["-nographic", "-m", "0", "-kernel", "x"], &["-m"]);
}

#[test]
fn a_drive_that_cannot_be_used() {
    let elf = file("drive.elf", &pvh_elf(&[0xf4]));
    let drive = |name: &str, value: &str, words: &[&str]| {
        refused(name, &["-nographic", "-kernel", &elf, "-drive", value], words);
    };
    let path = scratch().join("there-is-no-such-disk");
    drive("missing-disk", &format!("file={},if=virtio", path.display()), &["there-is-no-such-disk", "No such file"]);
    let cut = file("cut.qcow2", b"QFI\xfb\0\0\0\x03 and no more");
    drive("corrupt-disk", &format!("file={cut},if=virtio"), &["cut.qcow2"]);
    let raw = file("disk.raw", &[0; 4096]);
    drive("ide-disk", &format!("file={raw},readonly=on"), &["IDE", "read-only", "if=virtio"]);
    drive("raw-as-qcow2", &format!("file={raw},format=qcow2,if=virtio"), &["disk.raw"]);
    drive("format", &format!("file={raw},format=vhd,if=virtio"), &["format", "there is raw, qcow2"]);
    let twice = format!("file={raw},format=raw,if=virtio");
    refused("locked-disk", &["-nographic", "-kernel", &elf, "-drive", &twice, "-drive", &twice], &["disk.raw", "in use"]);
    let args = ["-nographic", "-kernel", &elf, "-icount", "1", "-drive", &twice];
    refused("counted-disk", &args, &["-icount", "not built yet"]);
    let args = ["-nographic", "-kernel", &elf, "-device", "virtio-blk-pci,drive=none"];
    refused("no-drive", &args, &["virtio-blk-pci: drive", "'none'"]);
}
