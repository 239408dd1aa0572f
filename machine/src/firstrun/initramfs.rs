//! The initial RAM disk: busybox, an init script and the console's device node, as a cpio archive.

use cpio::newc::{Builder, ModeFileType, trailer};
use std::io::{self, Write};

/// The first program: mounts what a shell needs, starts one on the console, and powers off when it ends.
const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root TERM=${TERM:-linux}
/bin/busybox --install -s
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts
mount -t devpts pts /dev/pts 2>/dev/null
mount -t tmpfs tmp /tmp
hostname rhea
# Kernel messages would write over the prompt.
dmesg -n 4
echo
echo "This is Linux $(uname -r) in rhea. 'exit' powers it off; Ctrl-A X ends rhea at once."
echo
cd /root
setsid cttyhack sh -l
sync
poweroff -f
"#;

const DIRECTORIES: [&str; 11] = ["bin", "dev", "etc", "proc", "root", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin"];

/// Builds the archive. The same busybox always gives the same bytes.
pub fn build(busybox: &[u8]) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    let mut ino = 1;
    let mut entry = |name: &str, kind: ModeFileType, mode: u32, data: &[u8], rdev: (u32, u32)| -> io::Result<()> {
        let len = u32::try_from(data.len()).map_err(io::Error::other)?;
        let b = Builder::new(name).ino(ino).mode(mode).set_mode_file_type(kind).rdev_major(rdev.0).rdev_minor(rdev.1);
        ino += 1;
        let mut w = b.write(&mut out, len);
        w.write_all(data)?;
        w.finish()?;
        Ok(())
    };
    for d in DIRECTORIES {
        entry(d, ModeFileType::Directory, 0o755, b"", (0, 0))?;
    }
    entry("dev/console", ModeFileType::Char, 0o600, b"", (5, 1))?;
    entry("bin/busybox", ModeFileType::Regular, 0o755, busybox, (0, 0))?;
    entry("bin/sh", ModeFileType::Symlink, 0o777, b"busybox", (0, 0))?;
    entry("etc/passwd", ModeFileType::Regular, 0o644, b"root::0:0:root:/root:/bin/sh\n", (0, 0))?;
    entry("etc/group", ModeFileType::Regular, 0o644, b"root:x:0:\n", (0, 0))?;
    entry("init", ModeFileType::Regular, 0o755, INIT.as_bytes(), (0, 0))?;
    trailer(&mut out)?;
    Ok(out)
}
