//! Disks in trouble: a host that is full, an image that shrinks, one that gets another size, images that cannot be opened. What
//! happens is told, and nothing that was written is lost.

use machine::firstrun;
use machine::options::{Request, parse};
use rhea_tests::boot::{Guest, file, program, pvh_elf, run, scratch};
use rhea_tests::disks::{Linux, qemu_img};
use rhea_tests::qmp::Client;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use vm_core::testing::left_out;

const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3000 } else { 300 });
const MIB: usize = 1 << 20;

/// More than the host has room for, on disk before it is said.
const FILL: &str = r#"sh /disk/load
echo "filling $(cat /sys/block/vdb/size)"
i=0
while [ $i -lt 24 ]; do
    yes "piece $i of the guest" | dd of=/dev/vdb bs=1M seek=$i count=1 iflag=fullblock conv=notrunc,fsync 2>/dev/null || echo "failed $i"
    echo "written $i"
    i=$((i+1))
done
echo 3 > /proc/sys/vm/drop_caches
echo "sum=$(dd if=/dev/vdb bs=1M count=24 2>/dev/null | md5sum | cut -c 1-32)"
"#;

/// Reads a disk past the cache: what is there, and what was cut off.
const CUT: &str = r#"dd if=/dev/vda of=/dev/null bs=1M count=4 iflag=direct 2>/dev/null && echo "front reads"
dd if=/dev/vda of=/dev/null bs=1M skip=12 count=1 iflag=direct 2>/dev/null || echo "back fails"
dd if=/disk/fill of=/dev/vda bs=4096 seek=1 count=1 conv=notrunc,sync,fsync 2>/dev/null && echo "front writes"
"#;

fn linux() -> Option<Linux> {
    let Ok(Request::FirstRun(c)) = parse([]) else { panic!("no arguments mean the first run") };
    let c = firstrun::prepare(*c).expect("some guest can always be made");
    Linux::make(&c.initrd?, "trouble", &[("fill", FILL), ("cut", CUT)])
}

fn text(p: PathBuf) -> String {
    p.into_os_string().into_string().expect("the target folder's path is UTF-8")
}

fn md5(data: &[u8]) -> String {
    use std::io::Write;
    let mut c = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("md5sum is there");
    c.stdin.take().unwrap().write_all(data).unwrap();
    String::from_utf8(c.wait_with_output().unwrap().stdout).unwrap()[..32].to_owned()
}

/// A shell's line that runs its arguments with a file system of 32 MiB of their own at its `$0`: half is used already, and an
/// empty qcow2 image lies there.
const SMALL: &str = "mount -t tmpfs -o size=32m small \"$0\" && head -c 16M /dev/zero > \"$0/ballast\" \
    && qemu-img create -q -f qcow2 \"$0/full.qcow2\" 64M && exec \"$@\"";

/// What somebody may do to the image while it is used, and who else may use it.
fn others_meet_the_lock(raw: &str) {
    let out = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", raw]).output();
    if let Ok(out) = out {
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success() && said.contains("lock"), "{said}");
    }
    let out = run("trouble-second", &["-display", "none", "-drive", &format!("file={raw},format=raw,if=virtio")], LIMIT);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && said.contains("in use") && said.lines().count() == 1, "{said}");
}

fn wait_until(what: &str, mut f: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !f() {
        assert!(Instant::now() < end, "{what}: does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_full_host_an_image_that_shrinks_and_one_that_grows() {
    let (Some(linux), Some(_)) = (linux(), qemu_img(&["--version"])) else {
        return left_out("trouble: Debian's kernel cannot be fetched, or qemu-img is not there");
    };
    let small = scratch().join("trouble-small");
    std::fs::create_dir_all(&small).unwrap();
    let possible = Command::new("unshare").args(["-Urm", "mount", "-t", "tmpfs", "small"]).arg(&small).status();
    if !possible.is_ok_and(|s| s.success()) {
        return left_out("trouble: unshare cannot mount a file system");
    }
    let (raw, socket) = (text(scratch().join("trouble.raw")), scratch().join("trouble.qmp"));
    std::fs::write(&raw, vec![7; 16 * MIB]).unwrap();
    let _ = std::fs::remove_file(&socket);
    let drives = [format!("file={raw},format=raw,if=virtio"), format!("file={},if=virtio", text(small.join("full.qcow2")))];
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let mut command = Command::new("unshare");
    command.args(["-Urm", "sh", "-c", SMALL]).arg(&small).arg(program());
    command.args(["-accel", "jit", "-m", "256M", "-nographic", "-no-reboot", "-kernel", &linux.kernel, "-initrd", &linux.initrd]);
    command.args(["-append", "console=ttyS0 quiet no_timer_check", "-qmp", &qmp, "-drive", &drives[0], "-drive", &drives[1]]);
    let mut g = Guest::spawn("trouble", &mut command);
    g.wait_for("# ", LIMIT);
    let mut c = Client::new(&socket);
    others_meet_the_lock(&raw);
    g.type_line("sh /disk/fill");
    g.wait_for("filling 131072\r\n", LIMIT);
    // The machine stops when the host is full, and says so; the guest has seen no error.
    wait_until("the machine stops", || c.run("query-status")["status"] == "io-error");
    let said = g.errors();
    assert!(said.contains("No space left on device") && said.contains("'cont' tries again"), "{said}");
    let process = g.process();
    let inside = |name: &str| PathBuf::from(format!("/proc/{process}/root{}", text(small.join(name))));
    std::fs::remove_file(inside("ballast")).unwrap();
    c.run("cont");
    let said = g.wait_for("written 23\r\n", LIMIT);
    // It may have stopped again only if there was still no room: there was.
    assert!(!said.contains("failed"), "{said}");
    let disk: Vec<u8> = (0..24)
        .flat_map(|i| format!("piece {i} of the guest\n").into_bytes().into_iter().cycle().take(MIB).collect::<Vec<_>>())
        .collect();
    g.wait_for(&format!("sum={}\r\n", md5(&disk)), LIMIT);

    // A disk grows while it is used.
    assert_eq!(c.human("block_resize virtio1 96"), "");
    g.type_line("echo \"now $(cat /sys/block/vdb/size)\"");
    g.wait_for("now 196608\r\n", LIMIT);
    let e = c.human("block_resize nobody 1G");
    assert!(e.contains("Cannot find device='nobody'"), "{e}");

    // Another program cuts an image off.
    std::fs::File::options().write(true).open(&raw).unwrap().set_len(8 * MIB as u64).unwrap();
    g.type_line("sh /disk/cut");
    g.wait_for("front reads\r\n", LIMIT);
    g.wait_for("back fails\r\n", LIMIT);
    g.wait_for("front writes\r\n", LIMIT);
    assert!(g.errors().contains("the image is shorter than it was"), "{}", g.errors());

    g.type_line("sync; echo in'side'");
    g.wait_for("inside", LIMIT);
    c.run("stop");
    let copy = text(scratch().join("trouble-copy.qcow2"));
    std::fs::copy(inside("full.qcow2"), &copy).unwrap();
    c.run("quit");
    g.expect_exit(0, LIMIT);
    qemu_img(&["check", "-f", "qcow2", &copy]);
    let flat = text(scratch().join("trouble-flat.raw"));
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", &copy, &flat]);
    let got = std::fs::read(&flat).unwrap();
    assert!(got.len() == 96 * MIB && got[..24 * MIB] == disk[..], "the image is not what the guest wrote");
    assert_eq!(&std::fs::read(&raw).unwrap()[4096..4113], b"sh /disk/load\nech");
    for f in [raw, copy, flat] {
        std::fs::remove_file(f).unwrap();
    }
}

/// Images that cannot be used: one line each, and nothing of them changes.
#[test]
fn images_that_cannot_be_used_are_told_in_one_line() {
    if qemu_img(&["--version"]).is_none() {
        return left_out("trouble: qemu-img is not there");
    }
    let kernel = file("trouble.elf", &pvh_elf(&[0xf4]));
    let path = |name: &str| text(scratch().join(name));
    let create = |name: &str| {
        let p = path(name);
        let _ = std::fs::remove_file(&p);
        qemu_img(&["create", "-q", "-f", "qcow2", &p, "16M"]);
        p
    };
    let (gone, top) = (create("trouble-gone.qcow2"), path("trouble-top.qcow2"));
    let _ = std::fs::remove_file(&top);
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &gone, "-F", "qcow2", &top]);
    std::fs::remove_file(&gone).unwrap();
    let damage = |name: &str, at: usize, v: u8| {
        let p = create(name);
        let mut b = std::fs::read(&p).unwrap();
        b[at] = v;
        std::fs::write(&p, b).unwrap();
        p
    };
    let version = damage("trouble-version.qcow2", 7, 9);
    let clusters = damage("trouble-clusters.qcow2", 23, 60);
    let features = damage("trouble-features.qcow2", 79, 0x40);
    let counts = damage("trouble-counts.qcow2", 0x2_0001, 0);
    let magic = damage("trouble-magic.qcow2", 0, 0);
    let cases = [
        (&top, "trouble-gone.qcow2"),
        (&version, "version"),
        (&clusters, "cluster"),
        (&features, "feature"),
        (&counts, "qemu-img check -r all"),
        (&magic, "trouble-magic.qcow2"),
    ];
    for (image, want) in cases {
        let before = std::fs::read(image).unwrap();
        let drive = format!("file={image},format=qcow2,if=virtio");
        let out = run("trouble-open", &["-display", "none", "-kernel", &kernel, "-drive", &drive], LIMIT);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(1) && said.lines().count() == 1, "{image}: {said}");
        assert!(said.to_lowercase().contains(want), "{image}: {said}");
        assert!(std::fs::read(image).unwrap() == before, "{image} has changed");
        std::fs::remove_file(image).unwrap();
    }
    assert!(!Path::new(&gone).exists());
}
