//! A bookworm system on a disk of its own: to `login:` through systemd, a tree of 10,000 files, power-off; the file system and
//! the image are whole. Takes debootstrap, root and minutes, so it is ignored; `RHEA_DEBIAN` names a folder that
//! tests/recipes/debian-root has filled (default: one beside the first command's cache, filled when it is not there).

use rhea_tests::boot::{Guest, scratch};
use rhea_tests::disks::qemu_img;
use rhea_tests::workspace::root;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(1800);
const FILES: usize = 10_000;

fn system() -> PathBuf {
    let cache = || {
        let home = std::env::var_os("HOME").expect("somebody's home");
        PathBuf::from(home).join(".cache/rhea/debian-root")
    };
    let dir = std::env::var_os("RHEA_DEBIAN").map_or_else(cache, PathBuf::from);
    // One test fills it, the others wait.
    static FILLING: Mutex<()> = Mutex::new(());
    let _filling = FILLING.lock().unwrap_or_else(PoisonError::into_inner);
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

/// How the kernel comes to be in memory.
#[derive(Clone, Copy, PartialEq)]
enum Boot {
    /// `-kernel`, and a disk that is one file system.
    Direct,
    /// SeaBIOS and GRUB, from the disk.
    Grub,
}

/// A system on one kind of controller, from a raw image and then from a qcow2 over a backing file.
fn on(boot: Boot, controller: &str) {
    let dir = system();
    let (base, offset, way) = match boot {
        Boot::Direct => ("root.img", "", "direct"),
        Boot::Grub => ("disk.img", "?offset=1048576", "grub"),
    };
    let base = text(dir.join(base));
    let (machine, interface) = match controller {
        "virtio" => ("pc", "virtio"),
        "ide" => ("pc", "ide"),
        _ => ("q35", "ide"),
    };
    let (kernel, initrd) = (text(dir.join("vmlinuz")), text(dir.join("initrd.img")));
    // On a busy host devices come later than systemd's 90 s, and without its terminal there is no login.
    let append = "root=LABEL=root rw console=ttyS0 systemd.default_timeout_start_sec=1800";
    let direct = ["-kernel", &kernel, "-initrd", &initrd, "-append", append];
    for format in ["raw", "qcow2"] {
        let name = format!("debian-{way}-{controller}-{format}");
        let (image, flat) = (text(scratch().join(&name)), text(scratch().join(format!("{name}.flat"))));
        let _ = std::fs::remove_file(&image);
        if format == "raw" {
            done("cp", &["--sparse=always", &base, &image]);
        } else {
            qemu_img(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &image]).expect("qemu-img is there");
        }
        let drive = format!("file={image},format={format},if={interface},discard=unmap");
        let cpus: &[&str] = if format == "qcow2" { &["-smp", "2"] } else { &[] };
        work(&name, &[&["-M", machine, "-drive", &drive][..], cpus, if boot == Boot::Direct { &direct } else { &[] }].concat());
        if format == "raw" {
            check(&format!("{image}{offset}"));
        } else {
            qemu_img(&["check", "-f", "qcow2", &image]);
            qemu_img(&["convert", "-O", "raw", &image, &flat]);
            check(&format!("{flat}{offset}"));
            std::fs::remove_file(flat).unwrap();
            // What was written is in the overlay alone.
            done("e2fsck", &["-fn", &format!("{base}{offset}")]);
        }
        std::fs::remove_file(image).unwrap();
    }
}

#[test]
#[ignore = "takes debootstrap and minutes"]
fn directly_on_virtio() {
    on(Boot::Direct, "virtio");
}

#[test]
#[ignore = "takes debootstrap and minutes"]
fn directly_on_ide() {
    on(Boot::Direct, "ide");
}

#[test]
#[ignore = "takes debootstrap and minutes"]
fn directly_on_ahci() {
    on(Boot::Direct, "ahci");
}

#[test]
#[ignore = "takes debootstrap and minutes"]
fn by_grub_on_virtio() {
    on(Boot::Grub, "virtio");
}

#[test]
#[ignore = "takes debootstrap and minutes"]
fn by_grub_on_ide() {
    on(Boot::Grub, "ide");
}

#[test]
#[ignore = "takes debootstrap and minutes"]
fn by_grub_on_ahci() {
    on(Boot::Grub, "ahci");
}

/// What a guest does with a shared folder: files, links, names, a tree, its own files seen by the host and the other way round.
const SHARE: &str = "mount -t 9p -o trans=virtio,version=9p2000.L host /mnt && cd /mnt && cat from-host && \
    for d in $(seq 10); do mkdir d$d; for f in $(seq 50); do echo file $d $f > d$d/$f; done; done; \
    ln -s ../../etc/passwd out; ln d1/1 hard; mv d2 moved; rm -r d3; chmod 640 d1/2; truncate -s 5 d1/3; \
    dd if=/dev/urandom of=big bs=1M count=8 2>/dev/null; md5sum big > sum; cp -r d4 copy; sync; \
    cd /root; umount /mnt; mount -t 9p -o trans=virtio host /mnt; (cd /mnt && md5sum -c sum); \
    cat /mnt/../mnt/moved/7; cmp /mnt/out /etc/passwd && echo the link is the guest\"\"s; \
    find /mnt -type f | wc -l; touch /mnt/late; sync; umount /mnt; echo shar''ed";

#[test]
#[ignore = "takes debootstrap and minutes"]
fn a_debian_system_uses_a_shared_folder() {
    share("pc");
}

#[test]
#[ignore = "takes debootstrap and minutes"]
fn a_debian_system_uses_a_shared_folder_of_a_microvm() {
    share("microvm");
}

/// A folder of the host's, by the 9p file system of Debian's kernel; the disk stays as it is.
fn share(machine: &str) {
    let name = format!("debian-share-{machine}");
    let (dir, folder) = (system(), scratch().join(&name));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("from-host"), "from the host\n").unwrap();
    let (kernel, initrd) = (text(dir.join("vmlinuz")), text(dir.join("initrd.img")));
    let (drive, share) = (
        format!("file={},format=raw,if=virtio,snapshot=on", text(dir.join("root.img"))),
        format!("local,path={},mount_tag=host,security_model=none", text(folder.clone())),
    );
    let append = "root=/dev/vda rw console=ttyS0 init=/bin/bash";
    let disk = ["-M", machine, "-m", "1G", "-nographic", "-no-reboot", "-kernel", &kernel, "-initrd", &initrd, "-append", append];
    let mut g = Guest::start(&name, &[&disk[..], &["-drive", &drive, "-virtfs", &share]].concat());
    g.wait_for("# ", LIMIT);
    g.type_line("export PS1='# '; mount -t proc proc /proc; modprobe 9pnet_virtio; modprobe 9p");
    g.wait_for("# ", LIMIT);
    g.type_line(SHARE);
    let said = g.wait_for("shared", LIMIT);
    for want in ["from the host", "big: OK", "file 2 7", "the link is the guests"] {
        assert!(said.contains(want), "{want}: {said}");
    }
    g.kill();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(
        (read("d1/50"), read("moved/1"), read("copy/9")),
        ("file 1 50\n".into(), "file 2 1\n".into(), "file 4 9\n".into())
    );
    assert_eq!((read("d1/3"), read("hard"), read("late")), ("file ".into(), "file 1 1\n".into(), String::new()));
    assert_eq!(std::fs::read_link(folder.join("out")).unwrap(), PathBuf::from("../../etc/passwd"));
    assert!(!folder.join("d3").exists() && !folder.join("d2").exists());
    std::fs::remove_dir_all(folder).unwrap();
}
