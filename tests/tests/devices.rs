//! Devices driven by a small guest of our own (`tests/kvm/devices`), alike on every engine, KVM with each kind of interrupt controllers
//! among them: disks, network, random numbers, console and balloon, with MSI and MSI-X, pins by the I/O APIC, and pins by the 8259s.

use rhea_tests::boot::{Guest, engines, run, scratch};
use rhea_tests::qmp::Client;
use rhea_tests::small::{self, FREESTANDING};
use serde_json::json;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
/// `isa-debug-exit` got 16.
const RIGHT: i32 = 33;
const MACHINE: [&str; 8] =
    ["-m", "16", "-display", "none", "-nodefaults", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"];
/// What the guest is told of interrupts.
const WAYS: [&str; 3] = ["msi", "intx", "pic"];
const BLOCK: usize = 512;

fn guest() -> Option<&'static str> {
    static BUILT: OnceLock<Option<String>> = OnceLock::new();
    BUILT.get_or_init(build).as_deref()
}

fn build() -> Option<String> {
    let sources = ["start.S", "main.c", "interrupts.c", "pci.c", "virtio.c", "blk.c", "net.c", "others.c", "ata.c", "ahci.c"];
    let flags = [&["-m32", "-march=i386", "-Os"], FREESTANDING].concat();
    Some(small::build("devices", "tests/kvm/devices", "../guest.ld", &flags, &sources)?.display().to_string())
}

/// Blocks that the guest knows nothing of.
fn content() -> Vec<u8> {
    let known = (0..8 * BLOCK).map(|i| (i * 7 + 3 + (i >> 9)) as u8);
    known.chain(std::iter::repeat_n(0, 60 * BLOCK)).collect()
}

/// What the guest's `sum` gives.
fn sum(data: &[u8]) -> u32 {
    let word = |w: &[u8]| u32::from_le_bytes([w[0], w[1], w[2], w[3]]);
    data.chunks(4).fold(0, |s: u32, w| s.rotate_left(5).wrapping_mul(0x9e37_79b1).wrapping_add(word(w)))
}

fn inverted(data: &[u8]) -> Vec<u8> {
    data.iter().map(|b| !b).collect()
}

/// A new disk, and its path.
fn disk(name: &str) -> (PathBuf, String) {
    let path = scratch().join(format!("devices-{name}.img"));
    std::fs::write(&path, content()).expect("a disk");
    let text = path.display().to_string();
    (path, text)
}

/// What the disk must have when blocks from `to` on were written with `data`.
fn has(path: &PathBuf, to: usize, data: &[u8]) {
    let (mut wanted, got) = (content(), std::fs::read(path).expect("the disk"));
    wanted[to * BLOCK..][..data.len()].copy_from_slice(data);
    let differ = wanted.iter().zip(&got).position(|(a, b)| a != b);
    assert_eq!((got.len(), differ), (wanted.len(), None));
}

/// Runs the guest on each engine; `check` looks at what it leaves behind.
fn on_every_engine(name: &str, args: &[&str], said: &str, mut prepare: impl FnMut(), check: impl Fn()) {
    let Some(kernel) = guest() else { return };
    for (engine, accel) in engines() {
        prepare();
        let args = [accel, &MACHINE, &["-serial", "stdio", "-kernel", kernel], args].concat();
        let out = run(&format!("devices-{name}-{engine}"), &args, LIMIT);
        let (text, errors) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!((out.status.code(), &*text), (Some(RIGHT), &*format!("{said}end\n")), "{name} {engine}: {errors}");
        assert!(!errors.contains("goes on without it"), "{name} {engine}: {errors}");
        check();
    }
}

/// What the guest says of a virtio disk.
fn of_virtio(transport: &str) -> String {
    let (known, other) = (&content()[..8 * BLOCK], inverted(&content()[..8 * BLOCK]));
    let both = sum(&[known, &other].concat());
    format!(
        "{transport} virtio-blk: 68 blocks, read {:x}, abc, beyond its end 1, 133 interrupts, 16 at once {both:x}\n",
        sum(known)
    )
}

#[test]
fn virtio_disks() {
    let written = inverted(&content()[..8 * BLOCK]);
    for (transport, option) in [("modern", ""), ("legacy", ",disable-modern=on")] {
        for way in WAYS {
            let (path, file) = disk("virtio");
            let drive = format!("file={file},if=none,id=d,format=raw");
            let device = format!("virtio-blk-pci,drive=d,serial=abc{option}");
            let args = ["-append", way, "-drive", &drive, "-device", &device];
            let name = format!("blk-{transport}-{way}");
            on_every_engine(&name, &args, &of_virtio(transport), || drop(disk("virtio")), || has(&path, 8, &written));
        }
    }
}

#[test]
fn virtio_disks_in_memory() {
    let written = inverted(&content()[..8 * BLOCK]);
    for (machine, way) in [("microvm", "intx"), ("microvm,acpi=off", "pic")] {
        let (path, file) = disk("micro");
        let drive = format!("file={file},if=none,id=d,format=raw");
        let devices = ["-drive", &drive, "-device", "virtio-blk-device,drive=d,serial=abc", "-device", "virtio-rng-device"];
        let args =
            [&["-M", machine, "-append", way, "-netdev", "user,id=n"][..], &devices, &["-device", "virtio-net-device,netdev=n"]]
                .concat();
        let said =
            [of_virtio("memory-mapped"), RNG.replace("modern", "memory-mapped"), NET.replace("modern", "memory-mapped")].concat();
        on_every_engine(way, &args, &said, || drop(disk("micro")), || has(&path, 8, &written));
    }
}

#[test]
fn ide_by_programmed_io_and_by_dma() {
    let (known, other) = (&content()[..4 * BLOCK], inverted(&content()[..4 * BLOCK]));
    let all = [&content()[..8 * BLOCK]].concat();
    let said = format!("ide: 68 blocks, read {:x}, by dma {:x}, 12 interrupts\n", sum(known), sum(&all));
    let written = [other, inverted(&all[4 * BLOCK..])].concat();
    for way in ["intx", "pic"] {
        let (path, file) = disk("ide");
        let drive = format!("file={file},if=ide,format=raw");
        on_every_engine(
            &format!("ide-{way}"),
            &["-append", way, "-drive", &drive],
            &said,
            || drop(disk("ide")),
            || has(&path, 8, &written),
        );
    }
}

#[test]
fn ahci() {
    let known = content()[..8 * BLOCK].to_vec();
    let said = format!("ahci: 68 blocks, read {:x}, 4 interrupts\n", sum(&known));
    for way in WAYS {
        let (path, file) = disk("ahci");
        let drive = format!("file={file},if=ide,format=raw");
        let args = ["-M", "q35", "-append", way, "-drive", &drive];
        on_every_engine(&format!("ahci-{way}"), &args, &said, || drop(disk("ahci")), || has(&path, 8, &inverted(&known)));
    }
}

const NET: &str = "modern virtio-net: 10.0.2.2 is at 52:55:a:0:2:2, offered 10.0.2.15\n";
const RNG: &str = "modern virtio-rng: 256 bytes, random\n";

/// By the user-mode network's ARP and DHCP.
#[test]
fn a_network_card_and_random_numbers() {
    for (transport, option) in [("modern", ""), ("legacy", ",disable-modern=on")] {
        for way in WAYS {
            let (card, rng) = (format!("virtio-net-pci,netdev=n{option}"), format!("virtio-rng-pci{option}"));
            let args = ["-append", way, "-netdev", "user,id=n", "-device", &card, "-device", &rng];
            let said = [NET, RNG].concat().replace("modern", transport);
            on_every_engine(&format!("net-{transport}-{way}"), &args, &said, || {}, || {});
        }
    }
}

/// The console's characters go both ways; the balloon takes what QMP asks for, and gives it back empty.
#[test]
fn a_console_and_a_balloon() {
    let Some(kernel) = guest() else { return };
    for ((engine, accel), way) in engines().into_iter().zip(WAYS.into_iter().cycle()) {
        let (qmp, log) = (scratch().join(format!("devices-{engine}.qmp")), scratch().join(format!("devices-{engine}.log")));
        let _ = std::fs::remove_file(&qmp);
        let (server, serial) = (format!("unix:{},server=on,wait=off", qmp.display()), format!("file:{}", log.display()));
        let console = ["-chardev", "stdio,id=c", "-device", "virtio-serial-pci", "-device", "virtconsole,chardev=c"];
        let rest = ["-device", "virtio-balloon-pci", "-serial", &serial, "-qmp", &server, "-kernel", kernel, "-append", way];
        let mut g = Guest::start(&format!("devices-console-{engine}"), &[accel, &MACHINE, &console, &rest].concat());
        let mut c = Client::new(&qmp);
        g.wait_for("what is typed?\n", LIMIT);
        g.send("some words\n");
        g.wait_for("SOME WORDS\n", LIMIT);
        for mib in [12u64, 16] {
            assert_eq!(c.ask(json!({ "execute": "balloon", "arguments": { "value": mib << 20 } })), json!({ "return": {} }));
            c.event("BALLOON_CHANGE");
            if mib == 12 {
                assert_eq!(c.run("query-balloon"), json!({ "actual": mib << 20 }));
            }
        }
        g.expect_exit(RIGHT, LIMIT);
        let said = "modern virtio-console: 11 characters\nmodern virtio-balloon: waits\nvirtio-balloon: 1024 pages lent\n\
                    virtio-balloon: 524800 before, 0 after\nend\n";
        assert_eq!(std::fs::read_to_string(&log).expect("the serial line's file"), said, "{engine}");
        assert!(!g.errors().contains("goes on without it"), "{engine}: {}", g.errors());
    }
}
