//! Initial RAM disk, cache, the built-in guest, and a host without package tools.

use super::*;
use crate::loader::{BoardInfo, EntryMode, Images, load};
use crate::options::{Request, parse};
use iced_x86::{Decoder, DecoderOptions};
use std::io::Read;
use vm_core::{MemMap, Pa, Ram};

/// A folder of this test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let d = std::env::temp_dir().join(format!("rhea-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&d).unwrap();
        Self(d)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn config() -> Config {
    match parse([]) {
        Ok(Request::FirstRun(c)) => *c,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_initial_ram_disk_has_what_init_needs() {
    let image = initramfs::build(b"not really busybox").unwrap();
    assert_eq!(image, initramfs::build(b"not really busybox").unwrap());
    let mut rest = &image[..];
    let mut seen = Vec::new();
    loop {
        let mut r = cpio::NewcReader::new(rest).unwrap();
        if r.entry().is_trailer() {
            break;
        }
        let e = (r.entry().name().to_owned(), r.entry().mode(), r.entry().rdev_major(), r.entry().rdev_minor());
        let mut data = Vec::new();
        r.read_to_end(&mut data).unwrap();
        seen.push((e, data));
        rest = r.finish().unwrap();
    }
    let find = |name: &str| seen.iter().find(|(e, _)| e.0 == name).unwrap();
    assert_eq!(find("bin/busybox"), &(("bin/busybox".into(), 0o100_755, 0, 0), b"not really busybox".to_vec()));
    assert_eq!(find("dev/console").0, ("dev/console".into(), 0o020_600, 5, 1));
    assert_eq!(find("bin/sh").1, b"busybox");
    assert!(find("init").1.starts_with(b"#!/bin/busybox sh\n") && find("init").0.1 == 0o100_755);
}

#[test]
fn the_cache_gives_back_only_what_matches_its_sums() {
    let d = Folder::new("cache");
    let files = cache::Files { kernel: b"kernel".to_vec(), busybox: b"busybox".to_vec() };
    assert_eq!(cache::verified(&d.0), None);
    cache::store(&d.0, &files).unwrap();
    assert_eq!(cache::verified(&d.0).as_ref(), Some(&files));
    let sums = std::fs::read_to_string(d.0.join("SHA256SUMS")).unwrap();
    let kernel_sum = "6923dd1bc0460082c5d55a831908c24a282860b7f1cd6c2b79cf1bc8857c639c";
    assert!(sums.starts_with(&format!("{kernel_sum}  vmlinuz\n")));
    std::fs::write(d.0.join("vmlinuz"), b"kernal").unwrap();
    assert_eq!(cache::verified(&d.0), None);
    cache::store(&d.0, &files).unwrap();
    std::fs::remove_file(d.0.join("busybox")).unwrap();
    assert_eq!(cache::verified(&d.0), None);
}

#[test]
fn a_filled_cache_needs_no_package_tools() {
    let d = Folder::new("filled");
    cache::store(&d.0, &cache::Files { kernel: b"k".to_vec(), busybox: b"b".to_vec() }).unwrap();
    let c = prepare_in(&d.0, config(), Path::new("/nonexistent/apt-get")).unwrap();
    assert_eq!((c.kernel, c.initrd.clone()), (Some(d.0.join("vmlinuz")), Some(d.0.join("initramfs.cpio"))));
    assert_eq!(c.append, "console=ttyS0");
    assert_eq!(std::fs::read(c.initrd.unwrap()).unwrap(), initramfs::build(b"b").unwrap());
}

#[test]
fn without_package_tools_the_built_in_guest_is_started() {
    let d = Folder::new("tools");
    let e = debian::fetch(&d.0, Path::new("/nonexistent/apt-get")).unwrap_err();
    assert_eq!(e.to_string(), "apt-get is not there (a Debian or Ubuntu host has it)");
    let c = prepare_in(&d.0, config(), Path::new("/nonexistent/apt-get")).unwrap();
    assert_eq!((c.kernel.clone(), c.initrd), (Some(d.0.join("guest.elf")), None));
    assert_eq!(std::fs::read(c.kernel.unwrap()).unwrap(), payload::elf().unwrap());
    let left: Vec<_> = std::fs::read_dir(&d.0).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["guest.elf"], "scratch files were left behind");
}

#[test]
fn the_kernel_package_is_found_in_apts_words() {
    let debian = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
    assert_eq!(debian::image_dependency(debian).as_deref(), Some("linux-image-6.1.0-56-cloud-amd64"));
    let ubuntu =
        "linux-image-virtual\n  Depends: linux-image-6.8.0-45-generic\n    linux-image-unsigned\n  Recommends: grub-pc\n";
    assert_eq!(debian::image_dependency(ubuntu).as_deref(), Some("linux-image-6.8.0-45-generic"));
    assert_eq!(debian::image_dependency("x\n  Depends: linux-image-amd64\n  Depends: linux-image-6/../x\n"), None);
}

#[test]
fn the_built_in_guest_loads_and_is_all_instructions() {
    let kernel = payload::elf().unwrap();
    let ram = Ram::new(4 << 20).unwrap();
    let mut map = MemMap::default();
    map.map_ram(Pa(0), 0xa0000, 0, true);
    map.map_ram(Pa(0x10_0000), 3 << 20, 0x10_0000, true);
    let s = load(&ram, &map, &Images { kernel: kernel.clone().into(), ..Images::default() }, BoardInfo::default()).unwrap();
    assert_eq!(s.mode, EntryMode::Prot32);
    let code = &kernel[0x100 + (s.rip as usize - 0x10_0000)..];
    assert!(code.len() > 300 && kernel.len() < 0x4000);
    let mut d = Decoder::with_ip(32, code, s.rip, DecoderOptions::NONE);
    assert!(d.iter().all(|i| !i.is_invalid()));
}
