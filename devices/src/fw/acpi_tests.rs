//! Tests of the tables: checksums, placement, and the fields that must agree with the devices.

use super::*;
use std::path::Path;
use std::process::Command;

fn full() -> AcpiConfig {
    AcpiConfig {
        apic_ids: (0..255).collect(),
        com_ports: 4,
        vga: true,
        pci_mmio64: Some(0x80_0000_0000..=0xff_ffff_ffff),
        ..AcpiConfig::default()
    }
}

fn small() -> AcpiConfig {
    let virtio = vec![(0xfeb0_0000, 0x200, 16), (0xfeb0_0200, 0x200, 17)];
    let reduced = Some(Reduced { sleep: 0xfea0_0200, virtio });
    AcpiConfig { apic_ids: vec![0, 1], reduced, ..AcpiConfig::default() }
}

fn find<'a>(t: &'a AcpiTables, signature: &[u8; 4]) -> Option<&'a (Pa, Vec<u8>)> {
    t.blobs.iter().find(|(_, b)| b.starts_with(signature))
}

fn u32_at(b: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(b[at..at + 4].try_into().unwrap())
}

fn sum(b: &[u8]) -> u8 {
    b.iter().fold(0, |s, x| s.wrapping_add(*x))
}

#[test]
fn checksums_and_lengths() {
    for cfg in [AcpiConfig::default(), full(), small()] {
        let t = build(&cfg, Pa(0xe0000));
        for (pa, b) in &t.blobs[1..] {
            let name = String::from_utf8_lossy(&b[..4]).into_owned();
            assert_eq!(u32_at(b, 4) as usize, b.len(), "{name}");
            assert!(name == "FACS" || sum(b) == 0, "{name}");
            assert!(pa.0.is_multiple_of(16));
        }
        let (_, rsdp) = &t.blobs[0];
        assert_eq!((rsdp.len(), sum(&rsdp[..20]), sum(rsdp)), (36, 0, 0));
    }
}

#[test]
fn placement_has_no_overlap() {
    let t = build(&full(), Pa(0xe0000));
    for w in t.blobs.windows(2) {
        assert!(w[0].0.0 + w[0].1.len() as u64 <= w[1].0.0);
    }
    assert_eq!((t.rsdp, t.blobs[0].0), (Pa(0xe0000), Pa(0xe0000)));
    assert!(t.span() < 0x10000, "fits below F0000h: {:#x}", t.span());
    assert!(find(&t, b"FACS").unwrap().0.0.is_multiple_of(64));
}

#[test]
fn both_roots_list_the_same_tables() {
    let t = build(&AcpiConfig::default(), Pa(0xe0000));
    let (rsdt, xsdt) = (find(&t, b"RSDT").unwrap(), find(&t, b"XSDT").unwrap());
    assert_eq!(u32_at(&t.blobs[0].1, 16), rsdt.0.0 as u32);
    assert_eq!(u32_at(&t.blobs[0].1, 24), xsdt.0.0 as u32);
    let four: Vec<u64> = rsdt.1[36..].chunks(4).map(|c| u32_at(c, 0).into()).collect();
    let eight: Vec<u64> = xsdt.1[36..].chunks(8).map(|c| u64::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(four, eight);
    let names: Vec<&[u8]> = eight.iter().map(|a| &t.blobs.iter().find(|(pa, _)| pa.0 == *a).unwrap().1[..4]).collect();
    assert_eq!(names, [b"FACP", b"APIC", b"HPET", b"MCFG"]);
}

#[test]
fn fadt_fields() {
    let t = build(&AcpiConfig::default(), Pa(0xe0000));
    let f = &find(&t, b"FACP").unwrap().1;
    assert_eq!(u32_at(f, 36) as u64, find(&t, b"FACS").unwrap().0.0);
    assert_eq!(u32_at(f, 40) as u64, find(&t, b"DSDT").unwrap().0.0);
    assert_eq!((f[46], u32_at(f, 48), f[108]), (9, 0, 0x32), "SCI, SMI_CMD, century");
    assert_eq!((u32_at(f, 56), u32_at(f, 64), u32_at(f, 76), u32_at(f, 80)), (0x600, 0x604, 0x608, 0x620));
    assert_eq!(u32_at(f, 112), 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 10);
    assert_eq!((f[116], f[117], u32_at(f, 120), f[128]), (1, 8, 0xcf9, 6), "reset register");
    assert_eq!(u16::from_le_bytes([f[109], f[110]]), 7, "legacy devices, 8042, no VGA");
}

#[test]
fn madt_lists_every_processor_and_the_overrides() {
    let t = build(&full(), Pa(0xe0000));
    let m = &find(&t, b"APIC").unwrap().1;
    let (mut at, mut kinds) = (44, [0; 5]);
    while at < m.len() {
        kinds[usize::from(m[at])] += 1;
        if m[at] == 2 {
            let gsi = u32_at(m, at + 4);
            assert!(matches!((m[at + 3], gsi, m[at + 8]), (0, 2, 0) | (9, 9, 13)));
        }
        at += usize::from(m[at + 1]);
    }
    assert_eq!((at, kinds), (m.len(), [255, 1, 2, 0, 1]));
}

#[test]
fn absent_parts_are_not_described() {
    let cfg = AcpiConfig { hpet: false, ecam: None, com_ports: 0, i8042: false, ..AcpiConfig::default() };
    let t = build(&cfg, Pa(0xe0000));
    assert!(find(&t, b"HPET").is_none() && find(&t, b"MCFG").is_none());
    let dsdt = &find(&t, b"DSDT").unwrap().1;
    let has = |n: &[u8]| dsdt.windows(n.len()).any(|w| w == n);
    assert!(has(b"PCI0") && has(b"_S5_") && has(b"C000"));
    assert!(!has(b"COM1") && !has(b"KBD0") && !has(b"HPET"));
}

#[test]
fn a_machine_without_fixed_hardware() {
    let t = build(&small(), Pa(0xe0000));
    assert!(find(&t, b"HPET").is_none() && find(&t, b"MCFG").is_none());
    let f = &find(&t, b"FACP").unwrap().1;
    assert_eq!(u32_at(f, 112) >> 20 & 1, 1, "HW_REDUCED_ACPI");
    assert_eq!((f[116], u32_at(f, 120), f[128]), (0, 0xfea0_0202, 0x42), "reset register");
    assert_eq!((u32_at(f, 248), u32_at(f, 260)), (0xfea0_0200, 0xfea0_0201), "sleep registers");
    assert_eq!((u32_at(f, 56), u32_at(f, 64), u32_at(f, 76)), (0, 0, 0), "no fixed hardware");
    let m = &find(&t, b"APIC").unwrap().1;
    assert_eq!((u32_at(m, 40), m.len()), (0, 44 + 2 * 8 + 12 + 6), "no 8259s, no overrides");
    let dsdt = &find(&t, b"DSDT").unwrap().1;
    let count = |n: &[u8]| dsdt.windows(n.len()).filter(|w| *w == n).count();
    assert_eq!((count(b"LNRO0005"), count(b"ACPI0007"), count(b"COM1"), count(b"PCI0")), (2, 2, 1, 0));
    assert_eq!(count(&[0, 2, 0xb0, 0xfe, 0, 2, 0, 0]), 1, "address and length");
}

/// Runs iasl in `dir` and returns what it says.
fn iasl(dir: &Path, args: &[&str]) -> String {
    let out = Command::new("iasl").current_dir(dir).args(args).output().unwrap();
    let text = [out.stdout, out.stderr].map(|b| String::from_utf8_lossy(&b).into_owned()).concat();
    assert!(out.status.success(), "iasl {args:?}: {}\n{text}", out.status);
    text
}

/// Writes `table` as source and makes a table of that again, which must be the same but for the compiler's own mark.
fn read_by_iasl(dir: &Path, name: &str, table: &[u8]) {
    let file = |ext: &str| format!("{name}{ext}");
    std::fs::write(dir.join(file(".aml")), table).unwrap();
    let read = iasl(dir, &["-p", name, "-d", &file(".aml")]);
    let complaint = ["error", "warning", "incorrect", "invalid"].into_iter().find(|w| read.to_lowercase().contains(w));
    assert_eq!(complaint, None, "{name}: {read}");
    let made = iasl(dir, &["-oa", "-p", &file("-again"), &file(".dsl")]);
    assert!(made.contains(" 0 Errors, 0 Warnings,"), "{name}: {made}");
    let without_mark = |mut b: Vec<u8>| {
        if !b.starts_with(b"FACS") {
            // The checksum; compiler and its version (ACPI, "System Description Table Header").
            b[9] = 0;
            b[28..36].fill(0);
        }
        b
    };
    let again = std::fs::read(dir.join(file("-again.aml"))).unwrap();
    assert!(without_mark(again) == without_mark(table.to_vec()), "{name} is another after iasl");
}

/// ACPICA's compiler finds nothing wrong in any table, and no byte that it does not understand.
#[test]
fn iasl_understands_every_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        return vm_core::testing::left_out("ACPI tables not checked by iasl, which is not there (Debian: acpica-tools)");
    }
    let dir = std::env::temp_dir().join(format!("rhea-acpi-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    for (kind, cfg) in [("default", AcpiConfig::default()), ("full", full()), ("small", small())] {
        for (_, table) in &build(&cfg, Pa(0xe0000)).blobs[1..] {
            read_by_iasl(&dir, &format!("{}-{kind}", String::from_utf8_lossy(&table[..4])), table);
        }
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
