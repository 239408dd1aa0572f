//! Firmware: SeaBIOS from the reset vector to its end without a disk, and to boot sectors on disks of all kinds, which read more
//! through the BIOS and talk through it; saved and loaded machines; the text screen.

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use rhea_tests::boot::{Guest, file, kvm_is_there, run, scratch};
use std::time::{Duration, Instant};
use vm_core::testing::left_out;

const LIMIT: Duration = Duration::from_secs(120);
/// A KVM on a host without VT runs real mode by its emulator.
const LIMIT_KVM: Duration = Duration::from_secs(900);
const ENGINES: [&str; 2] = ["interp", "jit"];
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

/// Whether Debian's SeaBIOS is here; says so if not.
fn seabios() -> bool {
    let there = std::path::Path::new(SEABIOS).exists();
    if !there {
        left_out("firmware is not tried: SeaBIOS is not there (Debian: seabios)");
    }
    there
}

/// Prints the zero-terminated text at SI by the BIOS.
fn print(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut next, mut end) = (a.create_label(), a.create_label());
    a.set_label(&mut next)?;
    a.lodsb()?;
    a.test(al, al)?;
    a.je(end)?;
    a.mov(ah, 0xe)?;
    a.mov(bx, 7)?;
    a.int(0x10)?;
    a.jmp(next)?;
    a.set_label(&mut end)?;
    // What follows may have a label of its own.
    a.nop()
}

/// A boot sector, which reads a block of the drive that it comes from to 8000h and prints what stands there; then it says each key
/// twice. `block` is the number of the block; its size is the drive's.
fn boot_sector(block: u32) -> Vec<u8> {
    const PACKET: u32 = 0x7e00;
    let assemble = || {
        let mut a = CodeAssembler::new(16)?;
        let (mut key, mut failed) = (a.create_label(), a.create_label());
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.mov(ss, ax)?;
        a.mov(sp, 0x7c00)?;
        a.cld()?;
        // Enhanced disk drive services: size of the packet, blocks, address, first block.
        for (at, v) in [(0, 16), (2, 1), (4, 0x8000), (6, 0), (8, block & 0xffff), (10, block >> 16), (12, 0), (14, 0)] {
            a.mov(word_ptr(PACKET + at), v as i32)?;
        }
        a.mov(si, PACKET as i32)?;
        a.mov(ah, 0x42)?;
        a.int(0x13)?;
        a.jc(failed)?;
        a.mov(si, 0x8000)?;
        print(&mut a)?;
        a.set_label(&mut key)?;
        a.xor(ah, ah)?;
        a.int(0x16)?;
        for _ in 0..2 {
            a.mov(ah, 0xe)?;
            a.mov(bx, 7)?;
            a.int(0x10)?;
        }
        a.jmp(key)?;
        a.set_label(&mut failed)?;
        a.mov(ax, 0xe00 + i32::from(b'!'))?;
        a.mov(bx, 7)?;
        a.int(0x10)?;
        a.jmp(key)?;
        a.assemble(0x7c00)
    };
    let mut sector: Vec<u8> = assemble().expect("the sector assembles");
    assert!(sector.len() < 510);
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector
}

const TEXT: &str = "read by the BIOS";
const DISC_TEXT: &str = "read from the disc";

/// A disk of a few MiB with the boot sector, and the text in sector `1000`.
fn disk(name: &str) -> String {
    let mut image = boot_sector(1000);
    image.resize(4 << 20, 0);
    image[1000 * 512..][..TEXT.len()].copy_from_slice(TEXT.as_bytes());
    file(name, &image)
}

#[test]
fn seabios_says_that_there_is_nothing_to_boot() {
    if !seabios() {
        return;
    }
    for engine in ENGINES {
        let start = Instant::now();
        let mut g = Guest::start(&format!("seabios-{engine}"), &["-accel", engine, "-nographic"]);
        g.wait_for("SeaBIOS (version ", LIMIT);
        let first = start.elapsed();
        g.wait_for("No bootable device.", LIMIT);
        eprintln!("{engine}: SeaBIOS speaks after {first:.2?}, gives up after {:.2?}", start.elapsed());
        g.send("\x01cxp /2xw 0xffffff8\n");
        g.wait_for("(rhea)", LIMIT);
        // Its own copy in RAM, and the ROM that it came from, where the reset vector is.
        g.send("xp /1xb 0xffff0\nxp /1xb 0xfffffff0\n");
        g.wait_for("0xea", LIMIT);
        g.wait_for("0xea", LIMIT);
        g.send("system_reset\ncont\n\x01c");
        g.wait_for("No bootable device.", LIMIT);
        g.send("\x01x");
        g.expect_exit(0, LIMIT);
    }
}

/// Boots the sector from a drive, which says `text`, then types.
fn boots(name: &str, engine: &str, more: &[&str], text: &str) -> Guest {
    let args = ["-accel", engine, "-nographic", "-m", "64M"];
    let start = Instant::now();
    let mut g = Guest::start(name, &[&args, more].concat());
    g.wait_for(text, if engine.starts_with("kvm") { LIMIT_KVM } else { LIMIT });
    eprintln!("{name}, {engine}: boot sector after {:.2?}", start.elapsed());
    g.send("k");
    g.wait_for("kk", LIMIT);
    g
}

#[test]
fn a_boot_sector_on_virtio_and_a_machine_that_is_saved_under_firmware() {
    if !seabios() {
        return;
    }
    let image = disk("boot-virtio.raw");
    let drive = format!("file={image},format=raw,if=virtio");
    let state = scratch().join("firmware.state");
    for engine in ENGINES {
        let mut g = boots("boot-virtio", engine, &["-drive", &drive], TEXT);
        g.send(&format!("\x01csavevm {}\nsystem_reset\n\x01c", state.display()));
        g.wait_for(TEXT, LIMIT);
        g.send(&format!("\x01cloadvm {}\n", state.display()));
        // The next prompt comes when the machine is loaded: what is typed before would go with the old one.
        g.wait_for("loadvm", LIMIT);
        g.wait_for("(rhea)", LIMIT);
        g.send("\x01cz");
        g.wait_for("zz", LIMIT);
        // The screen has what was said; on the line before the letters stands the text.
        g.send("\x01cscreendump /dev/null\nxp /8xb 0xb8000\n");
        g.wait_for("00000000000b8000:", LIMIT);
        g.send("\x01x");
    }
    std::fs::remove_file(state).unwrap();
}

/// A CD that is booted without emulation of a disk (El Torito 1.0), with the text in block 30.
fn disc(name: &str) -> String {
    const BLOCK: usize = 2048;
    let mut image = vec![0; 64 * BLOCK];
    let mut put = |block: usize, at: usize, bytes: &[u8]| image[block * BLOCK + at..][..bytes.len()].copy_from_slice(bytes);
    // Volume descriptors: primary, boot record, end.
    for (block, kind) in [(16, 1), (17, 0), (18, 255)] {
        put(block, 0, &[kind]);
        put(block, 1, b"CD001\x01");
    }
    put(17, 7, b"EL TORITO SPECIFICATION");
    put(17, 0x47, &19u32.to_le_bytes());
    // Catalogue: validation entry, whose words add up to 0; the default entry loads four sectors of 512 bytes from block 20.
    put(19, 0, &[1, 0, 0, 0]);
    put(19, 0x1c, &[0xaa, 0x55, 0x55, 0xaa]);
    put(19, 0x20, &[0x88, 0, 0, 0, 0, 0, 4, 0, 20, 0, 0, 0]);
    put(20, 0, &boot_sector(30));
    put(30, 0, DISC_TEXT.as_bytes());
    file(name, &image)
}

#[test]
fn boot_sectors_on_ide_and_ahci() {
    if !seabios() {
        return;
    }
    let (disk, disc) = (disk("boot-ide.raw"), disc("boot.iso"));
    for machine in ["pc", "q35"] {
        let drive = format!("file={disk},format=raw,index=1,snapshot=on");
        boots(&format!("boot-disk-{machine}"), "jit", &["-M", machine, "-drive", &drive], TEXT);
        boots(&format!("boot-cd-{machine}"), "jit", &["-M", machine, "-cdrom", &disc], DISC_TEXT);
        // The CD is asked for although there is a disk that could be booted: by letter, and by its boot index.
        let both = ["-M", machine, "-hda", &disk, "-snapshot", "-d", "guest_errors"];
        boots(
            &format!("boot-order-{machine}"),
            "interp",
            &[&both[..], &["-cdrom", &disc, "-boot", "once=d"]].concat(),
            DISC_TEXT,
        );
        let index = format!("file={disc},if=none,id=cd,media=cdrom");
        let cd = ["-drive", &index, "-device", "ide-cd,drive=cd,bootindex=0", "-boot", "strict=on"];
        boots(&format!("boot-index-{machine}"), "jit", &[&both[..], &cd].concat(), DISC_TEXT);
    }
}

const IRQCHIPS: [&str; 3] = ["off", "split", "on"];

/// The same sectors on KVM with some kind of interrupt controllers, from drive number `drive` (0 to 2).
fn boots_on_kvm(irqchip: &str, drive: usize) {
    let (disk, disc) = (disk(&format!("boot-kvm-{irqchip}.raw")), disc(&format!("boot-kvm-{irqchip}.iso")));
    let (virtio, ide) = (format!("file={disk},format=raw,if=virtio,snapshot=on"), format!("file={disk},format=raw,snapshot=on"));
    let drives: [(&str, &[&str], &str); 3] = [
        ("virtio", &["-drive", &virtio], TEXT),
        ("ide", &["-drive", &ide], TEXT),
        ("ahci-cd", &["-M", "q35", "-cdrom", &disc], DISC_TEXT),
    ];
    let (name, args, text) = drives[drive];
    let engine = format!("kvm,self-test=off,kernel-irqchip={irqchip}");
    boots(&format!("boot-kvm-{irqchip}-{name}"), &engine, args, text);
}

/// A drive with each kind; seconds, as they run beside each other.
#[test]
fn boot_sectors_on_kvm() {
    if !seabios() || !kvm_is_there() {
        return;
    }
    std::thread::scope(|s| {
        for (n, irqchip) in IRQCHIPS.into_iter().enumerate() {
            s.spawn(move || boots_on_kvm(irqchip, n));
        }
    });
}

#[test]
#[ignore = "slow"]
fn all_boot_sectors_on_kvm() {
    if !seabios() || !kvm_is_there() {
        return;
    }
    for irqchip in IRQCHIPS {
        (0..3).for_each(|drive| boots_on_kvm(irqchip, drive));
    }
}

#[test]
fn firmware_that_is_none() {
    let odd = file("odd.rom", &[0xf4; 1000]);
    let refused = |name: &str, args: &[&str], words: &str| {
        let out = run(name, args, LIMIT);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!((out.status.code(), said.lines().count()), (Some(1), 1), "{said}");
        assert!(said.contains(words), "{said}");
    };
    refused("odd-rom", &["-nographic", "-vga", "none", "-bios", &odd], "64 KiB");
    refused("no-rom", &["-nographic", "-bios", "/nonexistent/bios"], "-bios /nonexistent/bios: No such file");
    refused("rom-and-kernel", &["-nographic", "-bios", &odd, "-kernel", &odd], "-bios and -kernel");
}
