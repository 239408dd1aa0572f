//! Tests of the tables: checksums, placement, and the fields that must agree with the devices.

use super::*;

fn full() -> AcpiConfig {
    AcpiConfig { cpus: 255, com_ports: 4, vga: true, pci_mmio64: Some(0x80_0000_0000..=0xff_ffff_ffff), ..AcpiConfig::default() }
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
    for cfg in [AcpiConfig::default(), full()] {
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

/// For a check by hand with ACPICA's tools: writes each table to the folder that RHEA_ACPI_DUMP names.
#[test]
#[ignore = "writes files for iasl; run by hand"]
fn dump() {
    let dir = std::env::var("RHEA_ACPI_DUMP").expect("RHEA_ACPI_DUMP names a folder");
    for (pa, b) in build(&full(), Pa(0xe0000)).blobs {
        let name = String::from_utf8_lossy(&b[..4]).trim().to_lowercase();
        std::fs::write(format!("{dir}/{name}.aml"), &b).unwrap_or_else(|e| panic!("{pa:?}: {e}"));
    }
}
