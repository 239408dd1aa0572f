//! A bookworm system on a disk of its own: to `login:` through systemd, a tree of 10,000 files, power-off; the file system and
//! the image are whole. Takes debootstrap, root and minutes, so it is ignored; `RHEA_DEBIAN` names a folder that
//! tests/recipes/debian-root has filled (default: one beside the first command's cache, filled when it is not there).

use rhea_tests::boot::{Guest, scratch};
use rhea_tests::disks::qemu_img;
use rhea_tests::workspace::root;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(1800);
const FILES: usize = 10_000;

fn system() -> PathBuf {
    let cache = || {
        let home = std::env::var_os("HOME").expect("somebody's home");
        PathBuf::from(home).join(".cache/rhea/debian-root")
    };
    let dir = std::env::var_os("RHEA_DEBIAN").map_or_else(cache, PathBuf::from);
    if !dir.join("disk.img").exists() {
        let made = Command::new(root().join("tests/recipes/debian-root")).arg(&dir).status().expect("the recipe runs");
        assert!(made.success(), "the recipe fails");
    }
    dir
}

fn text(p: PathBuf) -> String {
    p.into_os_string().into_string().expect("paths here are UTF-8")
}

/// Fails unless a program succeeds.
fn done(program: &str, args: &[&str]) {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let told = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{program} {args:?}: {told}");
}

fn use_system(name: &str, dir: &Path, drive: &str, more: &[&str]) {
    let (kernel, initrd) = (text(dir.join("vmlinuz")), text(dir.join("initrd.img")));
    let args = ["-kernel", &kernel, "-initrd", &initrd, "-append", "root=/dev/vda rw console=ttyS0", "-drive", drive];
    work(name, &[&args, more].concat());
}

/// To `login:`, a tree of files, and power-off.
fn work(name: &str, args: &[&str]) {
    let start = Instant::now();
    let mut g = Guest::start(name, &[&["-m", "1G", "-nographic", "-no-reboot"], args].concat());
    g.wait_for("login: ", LIMIT);
    eprintln!("{name}: login after {:.1} s", start.elapsed().as_secs_f64());
    g.type_line("root");
    g.wait_for("# ", LIMIT);
    // Words that the echo of the line does not have.
    g.type_line("systemctl is-system-running --wait; echo st'ate' told");
    eprintln!("{name}: {}", g.wait_for("state told", LIMIT).lines().nth(1).unwrap_or_default());
    g.type_line(&format!(
        "mkdir tree; cd tree; for d in $(seq 100); do mkdir $d; for f in $(seq {}); do echo file $d $f > $d/$f; done; done; \
         find . -type f | sort | xargs cat | md5sum > ../sum; sync; echo tree do'ne' $(find . -type f | wc -l)",
        FILES / 100
    ));
    g.wait_for(&format!("tree done {FILES}"), LIMIT);
    eprintln!("{name}: tree after {:.1} s", start.elapsed().as_secs_f64());
    g.type_line("poweroff");
    g.expect_exit(0, LIMIT);
    eprintln!("{name}: off after {:.1} s", start.elapsed().as_secs_f64());
}

/// What is in the file system of a raw image.
fn check(raw: &str) {
    done("e2fsck", &["-fn", raw]);
    let out = Command::new("debugfs").args(["-R", "cat /root/tree/37/42", raw]).output().expect("debugfs is there");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "file 37 42\n");
}

/// SeaBIOS, GRUB and the system from one disk, on each kind of controller.
#[test]
#[ignore = "takes debootstrap and minutes"]
fn a_debian_system_behind_firmware_and_grub() {
    let dir = system();
    let raw = text(scratch().join("debian-grub.raw"));
    for (name, machine, interface) in [("virtio", "pc", "virtio"), ("ide", "pc", "ide"), ("ahci", "q35", "ide")] {
        done("cp", &["--sparse=always", &text(dir.join("disk.img")), &raw]);
        let drive = format!("file={raw},format=raw,if={interface}");
        work(&format!("debian-grub-{name}"), &["-M", machine, "-drive", &drive]);
        check(&format!("{raw}?offset=1048576"));
    }
    std::fs::remove_file(raw).unwrap();
}

#[test]
#[ignore = "takes debootstrap and minutes"]
fn a_debian_system_on_a_raw_disk() {
    let dir = system();
    let raw = text(scratch().join("debian.raw"));
    done("cp", &["--sparse=always", &text(dir.join("root.img")), &raw]);
    use_system("debian-raw", &dir, &format!("file={raw},format=raw,if=virtio,discard=unmap"), &[]);
    check(&raw);
    std::fs::remove_file(raw).unwrap();
}

#[test]
#[ignore = "takes debootstrap and minutes"]
fn a_debian_system_on_qcow2_over_a_backing_file() {
    let dir = system();
    let (top, raw) = (text(scratch().join("debian.qcow2")), text(scratch().join("debian-flat.raw")));
    let base = text(dir.join("root.img"));
    let _ = std::fs::remove_file(&top);
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &top]).expect("qemu-img is there");
    use_system("debian-qcow2", &dir, &format!("file={top},format=qcow2,if=virtio,discard=unmap"), &["-smp", "2"]);
    qemu_img(&["check", "-f", "qcow2", &top]);
    qemu_img(&["convert", "-O", "raw", &top, &raw]);
    check(&raw);
    // What was written is in the overlay alone.
    done("e2fsck", &["-fn", &base]);
    std::fs::remove_file(top).unwrap();
    std::fs::remove_file(raw).unwrap();
}
