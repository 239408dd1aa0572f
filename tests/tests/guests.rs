//! Kernels that others made: Debian's 32-bit Linux, with and without PAE, GNU Mach by Multiboot, memtest86+ by its own image; and
//! what Linux says of a processor with everything. The long forms fetch their packages and are asked for by `-- --ignored`.

use cpio::newc::{Builder, ModeFileType, trailer};
use rhea_tests::boot::{Guest, file};
use rhea_tests::complaints::complaints;
use rhea_tests::packages::{Packages, file_in};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const SLOW: u32 = if cfg!(debug_assertions) { 10 } else { 1 };
const LIMIT: Duration = Duration::from_secs(600 * SLOW as u64);

/// An initial RAM disk with 32-bit busybox and a shell on the serial line.
fn initrd(busybox: &Path, name: &str) -> String {
    const INIT: &str = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nmount -t proc proc /proc\n\
        mount -t devtmpfs dev /dev\necho in rhea: $(uname -m) >/dev/ttyS0\nexec setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'\n";
    let program = std::fs::read(busybox).expect("busybox can be read");
    let mut out = Vec::new();
    let mut add = |name: &str, kind: ModeFileType, data: &[u8]| {
        let b = Builder::new(name).mode(0o755).set_mode_file_type(kind);
        let mut w = b.write(&mut out, u32::try_from(data.len()).expect("busybox is small"));
        w.write_all(data).and_then(|()| w.finish().map(|_| ())).expect("a vector takes everything");
    };
    add("bin", ModeFileType::Directory, b"");
    add("dev", ModeFileType::Directory, b"");
    add("proc", ModeFileType::Directory, b"");
    add("bin/busybox", ModeFileType::Regular, &program);
    add("init", ModeFileType::Regular, INIT.as_bytes());
    trailer(&mut out).expect("a vector takes everything");
    file(name, &out)
}

fn linux_32(name: &str, meta: &str, cpu: &str, accel: &str) {
    let fetched = Packages::of("i386").and_then(|p| {
        let kernel = file_in(&p.unpack(meta, "linux-image-")?.join("boot"), "vmlinuz")?;
        Ok((kernel, p.unpack("busybox-static", "")?.join("bin/busybox")))
    });
    let (kernel, busybox) = fetched.unwrap_or_else(|e| panic!("{name}: {e}"));
    let initrd = initrd(&busybox, &format!("{name}.cpio"));
    let machine = ["-m", "256M", "-nographic", "-no-reboot", "-cpu", cpu, "-accel", accel];
    let mut g =
        Guest::start(name, &[&machine[..], &["-kernel", &kernel, "-initrd", &initrd, "-append", "console=ttyS0"]].concat());
    let said = g.wait_for("in rhea: i686", LIMIT);
    assert_eq!(complaints(&said), Vec::<&str>::new(), "{name}");
    g.wait_for("# ", LIMIT);
    g.type_line("echo 6*7=$((6*7))");
    g.wait_for("6*7=42", LIMIT);
    g.type_line("poweroff -f");
    g.expect_exit(0, LIMIT);
}

#[test]
#[ignore = "fetches 100 MB of packages"]
fn linux_686_without_pae() {
    linux_32("linux-686", "linux-image-686", "qemu32", "jit");
    linux_32("linux-686-interp", "linux-image-686", "pentium3", "interp");
}

#[test]
#[ignore = "fetches 100 MB of packages"]
fn linux_686_with_pae() {
    linux_32("linux-686-pae", "linux-image-686-pae", "qemu32", "jit");
    linux_32("linux-686-pae-max", "linux-image-686-pae", "max", "jit");
}

#[test]
#[ignore = "fetches a package"]
fn gnu_mach_to_its_first_messages() {
    let boot =
        Packages::of("i386").and_then(|p| p.unpack("gnumach-image-1.8-486", "")).unwrap_or_else(|e| panic!("{e}")).join("boot");
    let packed = file_in(&boot, "gnumach").unwrap_or_else(|e| panic!("{e}"));
    let out = Command::new("gzip").args(["-dc", &packed]).output().expect("gzip runs");
    let kernel = file("gnumach", &out.stdout);
    for accel in ["interp", "jit", "jit,threshold=0"] {
        let name = format!("gnumach-{}", accel.replace([',', '='], "-"));
        let args = ["-accel", accel, "-m", "64M", "-nographic", "-kernel", &kernel, "-append", "console=com0"];
        let mut g = Guest::start(&name, &args);
        g.wait_for("GNU Mach 1.8", LIMIT);
        g.wait_for("vm_page: DMA: pages: 4080", LIMIT);
        g.wait_for("No bootstrap code loaded with the kernel!", LIMIT);
    }
}

/// The text screen, read through the monitor.
fn screen(g: &mut Guest) -> Vec<String> {
    g.type_line("xp /4000bx 0xb8000");
    let mut bytes = Vec::new();
    while bytes.len() < 4000 {
        g.wait_for(": ", LIMIT);
        let line = g.wait_for("\n", LIMIT);
        bytes.extend(line.split_whitespace().filter_map(|b| u8::from_str_radix(b.strip_prefix("0x")?, 16).ok()));
    }
    let text: Vec<u8> = bytes.iter().step_by(2).map(|b| if b.is_ascii_graphic() { *b } else { b' ' }).collect();
    text.chunks(80).map(|l| String::from_utf8_lossy(l).into_owned()).collect()
}

#[test]
#[ignore = "fetches a package, and tests memory for minutes"]
fn memtest86_passes() {
    let boot = Packages::of("amd64").and_then(|p| p.unpack("memtest86+", "")).unwrap_or_else(|e| panic!("{e}")).join("boot");
    for image in ["memtest86+x64.bin", "memtest86+ia32.bin"] {
        let kernel = file_in(&boot, image).unwrap_or_else(|e| panic!("{e}"));
        let args = ["-m", "24M", "-display", "none", "-serial", "none", "-monitor", "stdio", "-kernel", &kernel];
        let mut g = Guest::start(image, &args);
        let began = Instant::now();
        loop {
            std::thread::sleep(Duration::from_secs(5));
            let lines = screen(&mut g);
            assert!(lines[0].contains("Memtest86+ v6"), "{lines:#?}");
            // Passes that are complete, and errors, by the names of their fields.
            let field =
                |name: &str| lines.iter().find_map(|l| l.split_once(name)?.1.split_whitespace().next()?.parse::<u64>().ok());
            let (passes, errors) = (field("Pass:"), field("Errors:"));
            assert!(errors.unwrap_or(0) == 0, "{lines:#?}");
            if passes.is_some_and(|n| n >= 1) {
                eprintln!("{image}: one pass in {:.0} s", began.elapsed().as_secs_f64());
                assert_eq!(errors, Some(0), "{lines:#?}");
                break;
            }
            assert!(began.elapsed() < 6 * LIMIT, "{lines:#?}");
        }
    }
}

/// Debian's kernel for virtual machines on the processor with everything, one and two of them.
#[test]
fn linux_has_no_complaint_about_max() {
    use machine::firstrun;
    use machine::options::{Request, parse};
    let Ok(Request::FirstRun(c)) = parse([]) else { panic!("no arguments mean a first run") };
    let config = firstrun::prepare(*c).expect("some guest can always be made");
    let (Some(kernel), Some(initrd)) = (config.kernel, config.initrd) else {
        return vm_core::testing::left_out("complaints about -cpu max: Debian's kernel cannot be fetched");
    };
    let text = |p: &Path| p.to_str().expect("the cache folder's path is UTF-8").to_owned();
    let (kernel, initrd) = (text(&kernel), text(&initrd));
    for cpu in ["max", "Haswell", "EPYC"] {
        let machine = ["-m", "512M", "-nographic", "-no-reboot", "-cpu", cpu, "-accel", "jit"];
        let name = format!("complaints-{cpu}");
        let mut g =
            Guest::start(&name, &[&machine[..], &["-kernel", &kernel, "-initrd", &initrd, "-append", "console=ttyS0"]].concat());
        let said = g.wait_for("in rhea", LIMIT);
        assert_eq!(complaints(&said), Vec::<&str>::new(), "{cpu}");
    }
}
