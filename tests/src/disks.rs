//! What tests of disks share: a Linux guest with the modules for virtio, and images.

use crate::boot::scratch;
use cpio::newc::{Builder, ModeFileType, trailer};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Modules of Debian's kernel, in the order in which they need each other. Those that are built in are left out.
const MODULES: [&str; 8] = [
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci",
    "drivers/virtio/virtio_mmio",
    "drivers/block/virtio_blk",
    "drivers/char/hw_random/virtio-rng",
];

/// Those for virtio-net, which are loaded by themselves.
const NET_MODULES: [&str; 3] = ["net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net"];

/// Those for consoles and the balloon, which are loaded by themselves.
const MORE_MODULES: [&str; 2] = ["drivers/char/virtio_console", "drivers/virtio/virtio_balloon"];

/// A kernel and an initial RAM disk with a shell, `/disk/load`, `/disk/load-net` and `/disk/load-more` (which load modules) and more
/// files.
pub struct Linux {
    pub kernel: String,
    pub initrd: String,
}

impl Linux {
    /// From Debian's packages and the initial RAM disk `base`; `None` where they cannot be had.
    pub fn make(base: &Path, name: &str, files: &[(&str, &str)]) -> Option<Self> {
        let files: Vec<_> = files.iter().map(|(name, text)| (*name, text.as_bytes())).collect();
        Self::with(base, name, &files)
    }

    /// The same with files of any bytes.
    pub fn with(base: &Path, name: &str, files: &[(&str, &[u8])]) -> Option<Self> {
        let root = kernel_package()?;
        let kernel = first(&root.join("boot"), "vmlinuz-")?;
        let modules = first(&root.join("lib/modules"), "").or_else(|| first(&root.join("usr/lib/modules"), ""))?;
        let mut list = Vec::new();
        let mut script = |start: &str, wanted: &[&str]| {
            let mut load = String::from(start);
            for m in wanted {
                if let Ok(data) = std::fs::read(modules.join("kernel").join(format!("{m}.ko"))) {
                    let short = m.rsplit('/').next().unwrap_or(m);
                    load += &format!("insmod /disk/{short}.ko\n");
                    list.push((format!("disk/{short}.ko"), data));
                }
            }
            load.into_bytes()
        };
        let (load, load_net) = (script("mkdir -p /tmp\n", &MODULES), script("", &NET_MODULES));
        let load_more = script("", &MORE_MODULES);
        list.extend([("load", load), ("load-net", load_net), ("load-more", load_more)].map(|(n, s)| (format!("disk/{n}"), s)));
        list.extend(files.iter().map(|(name, data)| (format!("disk/{name}"), data.to_vec())));
        let mut all = std::fs::read(base).ok()?;
        // Archives may follow each other (Documentation/driver-api/early-userspace/buffer-format.rst).
        all.resize(all.len().next_multiple_of(512), 0);
        all.extend(archive(&list));
        let initrd = crate::boot::file(&format!("{name}.cpio"), &all);
        Some(Self { kernel: kernel.into_os_string().into_string().ok()?, initrd })
    }
}

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    let folder = ("disk".to_owned(), Vec::new());
    let all = std::iter::once((&folder, ModeFileType::Directory)).chain(files.iter().map(|f| (f, ModeFileType::Regular)));
    for (ino, ((name, data), kind)) in (2000..).zip(all) {
        let mut w = Builder::new(name).ino(ino).mode(0o755).set_mode_file_type(kind).write(&mut out, data.len() as u32);
        w.write_all(data).and_then(|()| w.finish()).expect("memory takes all");
    }
    trailer(&mut out).expect("memory takes all");
    out
}

/// The first entry of a folder whose name starts like this.
fn first(dir: &Path, start: &str) -> Option<PathBuf> {
    let named = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(start));
    let mut list: Vec<PathBuf> = std::fs::read_dir(dir).ok()?.flatten().map(|e| e.path()).filter(named).collect();
    list.sort();
    list.into_iter().next()
}

/// Debian's kernel for virtual machines, unpacked. Tests that run at the same time fetch it once.
fn kernel_package() -> Option<PathBuf> {
    static FETCHED: OnceLock<Option<PathBuf>> = OnceLock::new();
    let make = || {
        let dir = scratch().join("kernel-package");
        let root = dir.join("root");
        if !root.exists() && !fetch(&dir) {
            let _ = std::fs::remove_dir_all(&dir);
            return None;
        }
        Some(root)
    };
    FETCHED.get_or_init(make).clone()
}

fn fetch(dir: &Path) -> bool {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir(dir).expect("the target folder can be written");
    let run = |c: &mut Command| c.current_dir(dir).output().ok().filter(|o| o.status.success());
    let Some(out) = run(Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"])) else { return false };
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let mut names = text.lines().filter_map(|l| l.trim().strip_prefix("Depends: "));
    let Some(name) = names.rfind(|n| n.starts_with("linux-image-")) else { return false };
    if run(Command::new("apt-get").args(["-qq", "download", name])).is_none() {
        return false;
    }
    let Some(deb) = first(dir, "linux-image-") else { return false };
    run(Command::new("dpkg-deb").arg("-x").arg(deb).arg("unpacked")).is_some()
        && std::fs::rename(dir.join("unpacked"), dir.join("root")).is_ok()
}

/// Runs `qemu-img`; `None` if it is not there.
///
/// # Panics
/// If it fails.
pub fn qemu_img(args: &[&str]) -> Option<String> {
    let out = Command::new("qemu-img").args(args).output().ok()?;
    let told = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "qemu-img {args:?}: {told}");
    Some(told)
}
