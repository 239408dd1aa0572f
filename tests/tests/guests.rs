//! Kernels that others made: Debian's 32-bit Linux, with and without PAE, GNU Mach by Multiboot, memtest86+ by its own image; and
//! what Linux says of a processor with everything. The long forms fetch their packages and are asked for by `-- --ignored`.

use cpio::newc::{Builder, ModeFileType, trailer};
use rhea_tests::boot::{Guest, file};
use rhea_tests::complaints::complaints;
use rhea_tests::packages::{Packages, file_in};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SLOW: u32 = if cfg!(debug_assertions) { 10 } else { 1 };
const LIMIT: Duration = Duration::from_secs(600 * SLOW as u64);

/// An initial RAM disk with 32-bit busybox and a shell on the serial line.
fn initrd(busybox: &Path, name: &str) -> String {
    let init = INIT_SHELL;
    archive(name, init, &[("bin/busybox", busybox.to_path_buf())])
}

/// An initial RAM disk with an init and programs.
fn archive(name: &str, init: &str, programs: &[(&str, PathBuf)]) -> String {
    let mut out = Vec::new();
    let mut add = |name: &str, kind: ModeFileType, data: &[u8]| {
        let b = Builder::new(name).mode(0o755).set_mode_file_type(kind);
        let mut w = b.write(&mut out, u32::try_from(data.len()).expect("programs are small"));
        w.write_all(data).and_then(|()| w.finish().map(|_| ())).expect("a vector takes everything");
    };
    for dir in ["bin", "dev", "proc", "tmp", "lib64"] {
        add(dir, ModeFileType::Directory, b"");
    }
    for (to, from) in programs {
        let data = std::fs::read(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        add(to, ModeFileType::Regular, &data);
    }
    add("init", ModeFileType::Regular, init.as_bytes());
    trailer(&mut out).expect("a vector takes everything");
    file(name, &out)
}

const INIT_SHELL: &str = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nmount -t proc proc /proc\n\
        mount -t devtmpfs dev /dev\necho in rhea: $(uname -m) >/dev/ttyS0\nexec setsid sh -c 'exec sh </dev/ttyS0 >/dev/ttyS0 2>&1'\n";

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

/// What OpenSSL computes on the fast paths that it picks by CPUID must be what it computes without them.
const INIT_OPENSSL: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
exec >/dev/ttyS0 2>&1
export OPENSSL_CONF=/dev/null LD_LIBRARY_PATH=/lib64 HOME=/tmp RANDFILE=/tmp/rnd
openssl version
openssl info -cpusettings
seq 1 40000 >/tmp/data
same() { a=$("$@" | md5sum); b=$(OPENSSL_ia32cap=0:0 "$@" | md5sum); if [ "$a" = "$b" ]; then echo "same: $*"; else echo "differs: $*"; fi; }
for d in md5 sha1 sha224 sha256 sha384 sha512 sha3-256 blake2b512; do same openssl dgst -r -$d /tmp/data; done
K=000102030405060708090a0b0c0d0e0f
for c in aes-128-cbc aes-128-ctr aes-128-ecb aes-128-cfb aes-128-ofb camellia-128-cbc; do same openssl enc -$c -K $K -iv $K -in /tmp/data; done
for c in aes-256-cbc aes-256-ctr chacha20; do same openssl enc -$c -K $K$K -iv $K -in /tmp/data; done
for m in "HMAC -digest SHA256 -macopt hexkey:$K" "CMAC -cipher AES-128-CBC -macopt hexkey:$K" "GMAC -cipher AES-128-GCM -macopt hexkey:$K -macopt hexiv:$K" "Poly1305 -macopt hexkey:$K$K"; do same openssl mac ${m#* } -in /tmp/data ${m%% *}; done
for k in "RSA -pkeyopt rsa_keygen_bits:2048" "EC -pkeyopt ec_paramgen_curve:P-256" "EC -pkeyopt ec_paramgen_curve:P-384" ED25519; do
  openssl genpkey -algorithm $k -out /tmp/key 2>/dev/null && openssl pkey -in /tmp/key -pubout -out /tmp/pub
  openssl pkeyutl -sign -inkey /tmp/key -rawin -in /tmp/data -out /tmp/sig && OPENSSL_ia32cap=0:0 openssl pkeyutl -verify -pubin -inkey /tmp/pub -rawin -in /tmp/data -sigfile /tmp/sig
  OPENSSL_ia32cap=0:0 openssl pkeyutl -sign -inkey /tmp/key -rawin -in /tmp/data -out /tmp/sig && openssl pkeyutl -verify -pubin -inkey /tmp/pub -rawin -in /tmp/data -sigfile /tmp/sig
done
for e in aes-128-gcm aes-256-cbc chacha20-poly1305 sha1 sha256 sha512; do openssl speed -seconds 1 -bytes 1024 -evp $e || echo "speed failed: $e"; done
echo openssl is done
poweroff -f
"#;

#[test]
#[ignore = "fetches packages"]
fn openssl_is_right_on_its_fast_paths() {
    use machine::firstrun;
    use machine::options::{Request, parse};
    let unpack = |p: &Packages, name: &str| p.unpack(name, "").unwrap_or_else(|e| panic!("{name}: {e}"));
    let p = Packages::of("amd64").unwrap_or_else(|e| panic!("{e}"));
    let (ssl, crypto, libc) = (unpack(&p, "openssl"), unpack(&p, "libssl3"), unpack(&p, "libc6"));
    let lib = |root: &Path, name: &str| {
        let found = ["lib", "usr/lib"].map(|d| root.join(d).join("x86_64-linux-gnu").join(name)).into_iter().find(|f| f.exists());
        found.unwrap_or_else(|| panic!("no {name} in {}", root.display()))
    };
    let initrd = archive(
        "openssl.cpio",
        INIT_OPENSSL,
        &[
            ("bin/busybox", unpack(&p, "busybox-static").join("bin/busybox")),
            ("bin/openssl", ssl.join("usr/bin/openssl")),
            ("lib64/libssl.so.3", lib(&crypto, "libssl.so.3")),
            ("lib64/libcrypto.so.3", lib(&crypto, "libcrypto.so.3")),
            ("lib64/libc.so.6", lib(&libc, "libc.so.6")),
            ("lib64/ld-linux-x86-64.so.2", lib(&libc, "ld-linux-x86-64.so.2")),
        ],
    );
    let Ok(Request::FirstRun(c)) = parse([]) else { panic!("no arguments mean a first run") };
    let kernel = firstrun::prepare(*c).expect("some guest can always be made").kernel.expect("Debian's kernel");
    let kernel = kernel.to_str().expect("the cache folder's path is UTF-8");
    for (cpu, fast) in [("max", true), ("qemu64", false)] {
        let machine = ["-m", "512M", "-nographic", "-no-reboot", "-cpu", cpu, "-accel", "jit"];
        let boot = ["-kernel", kernel, "-initrd", &initrd, "-append", "console=ttyS0 quiet"];
        let mut g = Guest::start(&format!("openssl-{cpu}"), &[&machine[..], &boot].concat());
        let said = g.wait_for("openssl is done", LIMIT);
        let words = said.split_once("OPENSSL_ia32cap=0x").and_then(|(_, t)| t.split_whitespace().next()?.split_once(":0x"));
        let words = words.and_then(|(a, b)| Some((u64::from_str_radix(a, 16).ok()?, u64::from_str_radix(b, 16).ok()?)));
        let (leaf1, leaf7) = words.unwrap_or_else(|| panic!("{cpu}: {said}"));
        // Bits of CPUID.1.ECX in the upper half of the first word, of CPUID.7.EBX in the second.
        let (aes, avx, avx2, sha) = (leaf1 >> 57 & 1, leaf1 >> 60 & 1, leaf7 >> 5 & 1, leaf7 >> 29 & 1);
        assert_eq!([aes, avx, avx2, sha], [u64::from(fast); 4], "{cpu}: AES-NI, AVX, AVX2, SHA of {said}");
        assert_eq!(said.matches("\nsame: ").count(), 21, "{cpu}: {said}");
        assert_eq!(said.matches("Signature Verified Successfully").count(), 8, "{cpu}: {said}");
        assert!(!said.contains("differs: ") && !said.contains("failed"), "{cpu}: {said}");
    }
}
