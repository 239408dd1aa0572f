//! Disks: a Linux guest reads and writes images by virtio-blk, and the host looks what became of them.

use machine::firstrun;
use machine::options::{Request, parse};
use rhea_tests::boot::{Guest, scratch};
use rhea_tests::disks::{Linux, qemu_img};
use rhea_tests::qmp::Client;
use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use vm_core::testing::{Rng, left_out};

const LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 3000 } else { 300 });
const MIB: usize = 1 << 20;

/// Reads both disks, writes to both, reads again what was written past the guest's cache. A third one is for reading only.
const JOB: &str = r#"sh /disk/load
echo "sizes $(cat /sys/block/vda/size) $(cat /sys/block/vdb/size)"
echo "serial $(cat /sys/block/vda/serial)"
echo "caches $(cat /sys/block/vda/queue/write_cache), $(cat /sys/block/vdb/queue/write_cache)"
echo "third $(cat /sys/block/vdc/ro) $(md5sum < /dev/vdc | cut -c 1-32)"
dd if=/disk/job of=/dev/vdc conv=notrunc,fsync 2>/dev/null || echo "not written"
echo "first $(md5sum < /dev/vda | cut -c 1-32) $(md5sum < /dev/vdb | cut -c 1-32)"
dd if=/dev/hwrng of=/tmp/random bs=4096 count=1 2>/dev/null
echo "random $(wc -c < /tmp/random)"
awk 'BEGIN { for (i = 0; i < 60000; i++) printf "%07d line of the guest\n", i }' > /tmp/data
for d in vda vdb; do
    dd if=/tmp/data of=/dev/$d bs=100000 seek=3 conv=notrunc 2>/dev/null
    dd if=/dev/zero of=/dev/$d bs=65536 seek=100 count=3 conv=notrunc 2>/dev/null
done
sync
echo 3 > /proc/sys/vm/drop_caches
echo "second $(md5sum < /dev/vda | cut -c 1-32) $(md5sum < /dev/vdb | cut -c 1-32)"
grep -E "virtio|ACPI.*IRQ" /proc/interrupts
poweroff -f
"#;

/// Writes block after block, each on disk before its number is said.
const WRITER: &str = r#"sh /disk/load
i=0
while :; do
    printf "block %08d of the writer" $i | dd of=/dev/vda bs=4096 seek=$((i * 37 % 3001)) conv=sync,notrunc,fsync 2>/dev/null
    echo "acked $i"
    i=$((i+1))
done
"#;

/// Writes blocks from several processes at once, and reads them past the guest's cache; all the while it listens to a port of the
/// host's, and calls again when the connection ends.
const STEADY: &str = r#"sh /disk/load
sh /disk/load-net
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
(while :; do nc 10.0.2.2 $1 < /dev/null > /dev/null; sleep 0.2; done) &
for p in 0 1 2 3; do
    (i=$p; while [ $i -lt 400 ]; do
        printf "block %08d of process %d" $i $p | dd of=/dev/vda bs=4096 seek=$i conv=sync,notrunc,fsync 2>/dev/null
        echo "at $i"
        i=$((i+4))
    done) &
    pids="$pids $!"
done
wait $pids
echo 3 > /proc/sys/vm/drop_caches
echo "sum=$(dd if=/dev/vda bs=4096 count=400 2>/dev/null | md5sum | cut -c 1-32)"
"#;

fn linux() -> Option<&'static Linux> {
    static MADE: OnceLock<Option<Linux>> = OnceLock::new();
    let make = || {
        let Ok(Request::FirstRun(c)) = parse([]) else { panic!("no arguments mean the first run") };
        let c = firstrun::prepare(*c).expect("some guest can always be made");
        Linux::make(&c.initrd?, "disk", &[("job", JOB), ("writer", WRITER), ("steady", STEADY)])
    };
    MADE.get_or_init(make).as_ref()
}

fn image(name: &str) -> String {
    scratch().join(name).into_os_string().into_string().expect("the target folder's path is UTF-8")
}

fn data(seed: u64, len: usize) -> Vec<u8> {
    let mut r = Rng(seed);
    (0..len / 8).flat_map(|_| r.next_u64().to_le_bytes()).collect()
}

/// What the guest's job makes of a disk.
fn changed(mut disk: Vec<u8>) -> Vec<u8> {
    let text: String = (0..60000).map(|i| format!("{i:07} line of the guest\n")).collect();
    disk[300_000..300_000 + text.len()].copy_from_slice(text.as_bytes());
    disk[100 * 65536..103 * 65536].fill(0);
    disk
}

struct Case<'a> {
    name: &'a str,
    engine: &'a str,
    /// More of both `-device virtio-blk-pci`.
    device: &'a str,
    append: &'a str,
    more: &'a [&'a str],
}

/// Raw and qcow2 over a backing file, both read and written.
fn read_and_write(case: &Case) {
    let (Some(linux), Some(_)) = (linux(), qemu_img(&["--version"])) else {
        return left_out("disk: Debian's kernel cannot be fetched, or qemu-img is not there");
    };
    let n = case.name;
    let (raw, base, top) = (image(&format!("{n}.raw")), image(&format!("{n}-base.qcow2")), image(&format!("{n}.qcow2")));
    let before = [data(1, 16 * MIB), data(2, 12 * MIB)];
    std::fs::write(&raw, &before[0]).unwrap();
    let plain = image(&format!("{n}.tmp"));
    std::fs::write(&plain, &before[1]).unwrap();
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &plain, &base]);
    let _ = std::fs::remove_file(&top);
    let base_name = PathBuf::from(&base).file_name().unwrap().to_string_lossy().into_owned();
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", &base_name, "-F", "qcow2", &top]);
    let base_before = std::fs::read(&base).unwrap();
    let (third, kept) = (image(&format!("{n}-third.raw")), data(3, MIB));
    std::fs::write(&third, &kept).unwrap();

    let (a, b) = (format!("file={raw},format=raw,if=none,id=a"), format!("file={top},format=qcow2,if=none,id=b"));
    let devices = ["a,serial=one,write-cache=off", "b"].map(|d| format!("virtio-blk-pci,drive={d}{}", case.device));
    let args = [
        &["-accel", case.engine, "-m", "256M", "-nographic", "-no-reboot", "-kernel", &linux.kernel, "-initrd", &linux.initrd][..],
        &["-append", &format!("console=ttyS0 quiet {}", case.append), "-drive", &a, "-drive", &b],
        &["-device", &devices[0], "-device", &devices[1], "-device", "virtio-rng-pci"],
        &["-drive", &format!("file={third},format=raw,if=virtio,readonly=on")],
        case.more,
    ];
    let mut g = Guest::start(n, &args.concat());
    g.wait_for("# ", LIMIT);
    g.type_line("sh /disk/job");
    let sum = |d: &[u8]| md5(d);
    g.wait_for("sizes 32768 24576\r\n", LIMIT);
    g.wait_for("serial one\r\n", LIMIT);
    g.wait_for("caches write through, write back\r\n", LIMIT);
    g.wait_for(&format!("third 1 {}\r\nnot written\r\n", sum(&kept)), LIMIT);
    g.wait_for(&format!("first {} {}\r\n", sum(&before[0]), sum(&before[1])), LIMIT);
    g.wait_for("random 4096\r\n", LIMIT);
    let after = before.map(changed);
    g.wait_for(&format!("second {} {}\r\n", sum(&after[0]), sum(&after[1])), LIMIT);
    g.expect_exit(0, LIMIT);

    assert!(std::fs::read(&raw).unwrap() == after[0], "the raw image is not what the guest wrote");
    assert!(std::fs::read(&base).unwrap() == base_before, "the backing file has changed");
    assert!(std::fs::read(&third).unwrap() == kept, "the disk for reading only has changed");
    qemu_img(&["check", "-f", "qcow2", &top]);
    qemu_img(&["convert", "-O", "raw", &top, &plain]);
    assert!(std::fs::read(&plain).unwrap() == after[1], "the qcow2 image is not what the guest wrote");
    for f in [raw, base, top, plain, third] {
        std::fs::remove_file(f).unwrap();
    }
}

/// By the host's tool.
fn md5(data: &[u8]) -> String {
    use std::process::{Command, Stdio};
    let mut c = Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("md5sum is there");
    c.stdin.take().unwrap().write_all(data).unwrap();
    String::from_utf8(c.wait_with_output().unwrap().stdout).unwrap()[..32].to_owned()
}

#[test]
fn a_guest_uses_modern_devices_with_msi_x() {
    read_and_write(&Case { name: "disk-modern", engine: "jit", device: "", append: "", more: &[] });
}

#[test]
fn a_guest_uses_legacy_devices_with_the_8259s() {
    let device = ",disable-modern=on";
    read_and_write(&Case { name: "disk-legacy", engine: "jit", device, append: "pci=nomsi noapic", more: &[] });
}

#[test]
fn two_cpus_use_queues_of_their_own() {
    let device = ",disable-legacy=on";
    read_and_write(&Case { name: "disk-smp", engine: "jit", device, append: "pci=nomsi", more: &["-smp", "2"] });
}

/// The program is killed while the guest writes to qcow2: the image is whole but for leaks, and all that was acknowledged is there.
fn killed(times: u64, seed: u64) {
    let (Some(linux), Some(_)) = (linux(), qemu_img(&["--version"])) else {
        return left_out("disk: Debian's kernel cannot be fetched, or qemu-img is not there");
    };
    let (base, top, flat) = (image("killed-base.raw"), image("killed.qcow2"), image("killed.raw"));
    std::fs::write(&base, data(9, 16 * MIB)).unwrap();
    let drive = format!("file={top},format=qcow2,if=virtio");
    let machine = ["-m", "256M", "-kernel", &linux.kernel, "-initrd", &linux.initrd, "-append", "console=ttyS0 quiet"];
    let fresh = || {
        let _ = std::fs::remove_file(&top);
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &top]);
    };
    // Started once, and gone on with from its shell in each case.
    let (state, socket) = (scratch().join("killed.vm"), scratch().join("killed.qmp"));
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let _ = std::fs::remove_file(&socket);
    fresh();
    let host = ["-display", "none", "-serial", "stdio", "-drive", &drive];
    let mut g = Guest::start("disk-killed", &[&machine[..], &host, &["-qmp", &qmp]].concat());
    g.wait_for("# ", LIMIT);
    let mut c = Client::new(&socket);
    assert_eq!(c.migrate(&state)["status"], "completed");
    c.run("quit");
    g.expect_exit(0, LIMIT);
    for case in 0..times {
        let mut r = Rng(seed + case);
        fresh();
        let mut g = Guest::start("disk-killed", &[&machine[..], &host, &["-loadvm", state.to_str().unwrap()]].concat());
        g.type_line("sh /disk/writer");
        g.wait_for(&format!("acked {}\r\n", r.below(60)), LIMIT);
        std::thread::sleep(Duration::from_micros(r.below(200_000)));
        g.kill();
        let said = g.serial_to_end();
        // The last line may be cut off.
        let acked = said.rsplit_once("\r\n").map_or(0, |(whole, _)| whole.matches("\r\nacked ").count());
        drop(g);
        let checked = std::process::Command::new("qemu-img").args(["check", "-f", "qcow2", &top]).output().unwrap();
        let told = String::from_utf8_lossy(&checked.stdout);
        // 0: nothing found; 3: leaked clusters only.
        assert!(matches!(checked.status.code(), Some(0 | 3)), "case {}: {told}", seed + case);
        qemu_img(&["convert", "-O", "raw", &top, &flat]);
        let flat = std::fs::read(&flat).unwrap();
        for i in 0..acked {
            let at = i * 37 % 3001 * 4096;
            let want = format!("block {i:08} of the writer");
            assert_eq!(String::from_utf8_lossy(&flat[at..at + want.len()]), want, "case {}: block {i} of {acked}", seed + case);
        }
        eprintln!("case {}: {acked} blocks", seed + case);
    }
    for f in [PathBuf::from(base), top.into(), flat.into(), state] {
        std::fs::remove_file(f).unwrap();
    }
}

#[test]
fn a_killed_program_leaves_a_whole_image() {
    killed(2, 1);
}

/// 50 times unless told otherwise.
#[test]
#[ignore = "takes minutes"]
fn a_killed_program_leaves_a_whole_image_again_and_again() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |s| s.parse().expect("it is a number"));
    killed(number("RHEA_KILL_CASES", 50), number("RHEA_KILL_SEED", 1000));
}

/// A port that says something to all who call, for as long as they listen; how many have called.
fn speaker() -> (u16, Arc<AtomicUsize>) {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, calls) = (l.local_addr().unwrap().port(), Arc::<AtomicUsize>::default());
    let count = calls.clone();
    std::thread::spawn(move || {
        for mut s in l.incoming().map_while(Result::ok) {
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                while s.write_all(&[7; 4096]).is_ok() {
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
        }
    });
    (port, calls)
}

/// A busy machine with a connection open is saved, goes on in another process, and goes back to an earlier moment there, again and
/// again; what it wrote is whole, and its connections can be made anew.
fn saved_while_busy(name: &str, seed: u64, handovers: u64) {
    let (Some(linux), Some(_)) = (linux(), qemu_img(&["--version"])) else {
        return left_out("disk: Debian's kernel cannot be fetched, or qemu-img is not there");
    };
    let (top, flat) = (image(&format!("{name}.qcow2")), image(&format!("{name}.raw")));
    let (state, socket) = (scratch().join(format!("{name}.vm")), scratch().join(format!("{name}.qmp")));
    let _ = std::fs::remove_file(&top);
    qemu_img(&["create", "-q", "-f", "qcow2", &top, "16M"]);
    let drive = format!("file={top},format=qcow2,if=virtio");
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let start = |more: &[&str]| {
        let _ = std::fs::remove_file(&socket);
        let machine = ["-m", "256M", "-display", "none", "-kernel", &linux.kernel, "-initrd", &linux.initrd, "-drive", &drive];
        let host = ["-append", "console=ttyS0 quiet", "-serial", "stdio", "-qmp", &qmp, "-nic", "user"];
        let g = Guest::start(name, &[&machine[..], &host, more].concat());
        (g, Client::new(&socket))
    };
    let (mut r, mut said) = (Rng(seed), String::new());
    let (mut g, mut c) = start(&[]);
    let shown = c.run("query-block");
    assert_eq!((&shown[0]["device"], &shown[0]["inserted"]["image"]["virtual-size"]), (&"virtio0".into(), &(16 * MIB).into()));
    assert!(c.human("info block").starts_with(&format!("virtio0: {top} (qcow2)")), "{shown}");
    g.wait_for("# ", LIMIT);
    let (port, calls) = speaker();
    let called_after = |before: usize| {
        let end = Instant::now() + LIMIT;
        while calls.load(Ordering::SeqCst) <= before {
            assert!(Instant::now() < end, "the guest does not call again");
            std::thread::sleep(Duration::from_millis(5));
        }
        calls.load(Ordering::SeqCst)
    };
    g.type_line(&format!("sh /disk/steady {port}"));
    for n in 0..handovers {
        g.wait_for("at ", LIMIT);
        let before = called_after(0);
        std::thread::sleep(Duration::from_millis(r.below(300)));
        let done = c.migrate(&state);
        assert_eq!(done["status"], "completed", "{done}");
        c.run("quit");
        g.expect_exit(0, LIMIT);
        said += &g.serial_to_end();
        (g, c) = start(&["-loadvm", state.to_str().unwrap(), "-accel", if n % 2 == 0 { "interp" } else { "jit" }]);
        let before = called_after(before);
        assert_eq!(c.human(&format!("savevm {}", state.display())), "");
        std::thread::sleep(Duration::from_millis(r.below(300)));
        assert_eq!(c.human(&format!("loadvm {}", state.display())), "");
        called_after(before);
        if said.contains("sum=") {
            break;
        }
    }
    let mut disk = vec![0; 400 * 4096];
    for i in 0..400 {
        let text = format!("block {i:08} of process {}", i % 4);
        disk[i * 4096..i * 4096 + text.len()].copy_from_slice(text.as_bytes());
    }
    let want = format!("sum={}", md5(&disk));
    if !said.contains(&want) {
        g.wait_for(&want, LIMIT);
    }
    c.run("quit");
    g.expect_exit(0, LIMIT);
    qemu_img(&["check", "-f", "qcow2", &top]);
    qemu_img(&["convert", "-O", "raw", &top, &flat]);
    assert!(std::fs::read(&flat).unwrap()[..disk.len()] == disk[..], "the image is not what the guest wrote");
    for f in [PathBuf::from(top), flat.into(), state] {
        std::fs::remove_file(f).unwrap();
    }
}

#[test]
fn a_machine_with_a_disk_is_saved_while_busy() {
    saved_while_busy("disk-saved", 5, 2);
}

/// 50 hand-overs unless told otherwise.
#[test]
#[ignore = "takes minutes"]
fn a_machine_with_a_disk_is_saved_while_busy_again_and_again() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |s| s.parse().expect("it is a number"));
    let cases = number("RHEA_SAVE_CASES", 50) / 5;
    (0..cases).for_each(|i| saved_while_busy("disk-saved-long", number("RHEA_SAVE_SEED", 2000) + i, 5));
}

/// Operations a second and MiB a second, by mix, on a raw and on a qcow2 disk of an emulator.
fn mixes(program: &std::path::Path, linux: &Linux, format: &str, seconds: f64) -> Vec<(String, f64)> {
    let disk = image(&format!("mixes.{format}"));
    let _ = std::fs::remove_file(&disk);
    qemu_img(&["create", "-q", "-f", format, &disk, "512M"]);
    let drive = format!("file={disk},format={format},if=virtio");
    let mut c = std::process::Command::new(program);
    let accel = if program.ends_with("qemu-system-x86_64") { "tcg" } else { "jit" };
    c.args(["-accel", accel, "-m", "256M", "-nographic", "-no-reboot", "-nic", "none"]);
    c.args(["-kernel", &linux.kernel, "-initrd", &linux.initrd, "-append", "console=ttyS0 quiet no_timer_check"]);
    let mut g = Guest::spawn("disk-mixes", c.args(["-drive", &drive]));
    g.wait_for("# ", LIMIT);
    // Every part of it has been written to before the clock starts.
    g.type_line("sh /disk/load; dd if=/dev/zero of=/dev/vda bs=1M conv=fsync 2>/dev/null; echo fil'led'");
    g.wait_for("filled", LIMIT);
    g.type_line(&format!("/disk/mixes /dev/vda {seconds}"));
    let said = g.wait_for("mixes done", LIMIT);
    g.type_line("poweroff -f");
    g.expect_exit(0, LIMIT);
    std::fs::remove_file(disk).unwrap();
    assert!(!said.contains("failed"), "{said}");
    let line = |l: &str| {
        let mut words = l.trim().strip_prefix("mix ")?.split(' ');
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    said.lines().filter_map(line).collect()
}

/// Side by side with QEMU's TCG: medians of `RHEA_MIX_RUNS` (3) turns of `RHEA_MIX_SECONDS` (2) for each mix.
#[test]
#[ignore = "takes minutes, QEMU, and a quiet host"]
fn mixes_beside_qemu() {
    let built = std::process::Command::new("gcc")
        .args(["-O2", "-static", "-o", &image("mixes.bin")])
        .arg(rhea_tests::workspace::root().join("tests/bench/mixes.c"))
        .status();
    assert!(built.is_ok_and(|s| s.success()), "gcc compiles tests/bench/mixes.c");
    let Ok(Request::FirstRun(c)) = parse([]) else { panic!("no arguments mean the first run") };
    let c = firstrun::prepare(*c).expect("some guest can always be made");
    let binary = std::fs::read(image("mixes.bin")).unwrap();
    let linux = Linux::with(&c.initrd.expect("it has one"), "mixes", &[("mixes", &binary)]).expect("Debian's kernel is there");
    let number = |name: &str, default: f64| std::env::var(name).map_or(default, |s| s.parse().expect("it is a number"));
    let (runs, seconds) = (number("RHEA_MIX_RUNS", 3.0) as usize, number("RHEA_MIX_SECONDS", 2.0));
    let (ours, theirs) = (rhea_tests::boot::program(), std::path::Path::new("qemu-system-x86_64"));
    let mut slower = Vec::new();
    for format in ["raw", "qcow2"] {
        let all: Vec<_> = (0..runs).map(|_| [ours, theirs].map(|p| mixes(p, &linux, format, seconds))).collect();
        eprintln!("{format}: operations a second, rhea and QEMU");
        for (i, (name, _)) in all[0][0].iter().enumerate() {
            let median = |who: usize| {
                let mut list: Vec<f64> = all.iter().map(|run| run[who][i].1).collect();
                list.sort_by(f64::total_cmp);
                list[list.len() / 2]
            };
            let (a, b) = (median(0), median(1));
            eprintln!("  {name:12} {a:8.0} {b:8.0}  {:.2}", a / b);
            if a < b {
                slower.push(format!("{format} {name} {:.2}", a / b));
            }
        }
    }
    assert!(slower.is_empty(), "slower than QEMU: {slower:?}");
}
