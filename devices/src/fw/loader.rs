//! ACPI tables for firmware that places them itself: the tables as one file, and the commands by which SeaBIOS and OVMF put
//! addresses and checksums in (QEMU's bios-linker-loader; files etc/acpi/tables, etc/acpi/rsdp and etc/table-loader of fw_cfg).

use super::acpi::{AcpiConfig, build};
use vm_core::Pa;

/// Names of the files.
pub const TABLES: &str = "etc/acpi/tables";
pub const RSDP: &str = "etc/acpi/rsdp";
pub const LOADER: &str = "etc/table-loader";

const COMMAND_LEN: usize = 128;
const NAME: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
const ZONE_HIGH: u8 = 1;
/// Where software looks for the RSDP.
const ZONE_FSEG: u8 = 2;
/// Alignment of the tables: the FACS wants it.
const ALIGN: u64 = 64;
const CHECKSUM: usize = 9;
const HEADER: usize = 36;

/// The three files.
pub struct Files {
    pub tables: Vec<u8>,
    pub rsdp: Vec<u8>,
    pub loader: Vec<u8>,
}

#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn command(&mut self, number: u32, names: &[&str], rest: &[u8]) {
        let start = self.0.len();
        self.0.extend(number.to_le_bytes());
        for name in names {
            let end = self.0.len() + NAME;
            self.0.extend(name.bytes());
            self.0.resize(end, 0);
        }
        self.0.extend(rest);
        self.0.resize(start + COMMAND_LEN, 0);
    }

    fn allocate(&mut self, file: &str, align: u32, zone: u8) {
        let mut rest = align.to_le_bytes().to_vec();
        rest.push(zone);
        self.command(ALLOCATE, &[file], &rest);
    }

    /// Adds the place of the tables to `size` bytes of `file`.
    fn pointer(&mut self, file: &str, offset: usize, size: u8) {
        let mut rest = (offset as u32).to_le_bytes().to_vec();
        rest.push(size);
        self.command(ADD_POINTER, &[file, TABLES], &rest);
    }

    fn checksum(&mut self, file: &str, at: usize, start: usize, len: usize) {
        let rest: Vec<u8> = [at, start, len].iter().flat_map(|n| (*n as u32).to_le_bytes()).collect();
        self.command(ADD_CHECKSUM, &[file], &rest);
    }
}

/// Offset and size of each pointer in a table.
fn pointers(table: &[u8]) -> Vec<(usize, u8)> {
    match table.get(..4) {
        // FIRMWARE_CTRL, DSDT, X_FIRMWARE_CTRL, X_DSDT (ACPI 6.5 §5.2.9); those that are not used are 0.
        Some(b"FACP") => [(36, 4), (40, 4), (132, 8), (140, 8)]
            .into_iter()
            .filter(|(at, size)| table[*at..at + usize::from(*size)].iter().any(|b| *b != 0))
            .collect(),
        Some(b"RSDT") => (HEADER..table.len()).step_by(4).map(|at| (at, 4)).collect(),
        Some(b"XSDT") => (HEADER..table.len()).step_by(8).map(|at| (at, 8)).collect(),
        _ => Vec::new(),
    }
}

/// Makes a pointer count from the first table.
fn rebase(bytes: &mut [u8], at: usize, size: u8, base: u64) {
    let part = &mut bytes[at..at + usize::from(size)];
    let old = part.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
    part.copy_from_slice(&(old - base).to_le_bytes()[..usize::from(size)]);
}

/// The files for a board.
pub fn files(cfg: &AcpiConfig) -> Files {
    let built = build(cfg, Pa(0));
    let mut blobs = built.blobs.into_iter();
    let mut rsdp = blobs.next().map(|(_, b)| b).unwrap_or_default();
    // The tables lie behind the RSDP's room.
    let base = (rsdp.len() as u64).next_multiple_of(ALIGN);
    let (mut tables, mut script) = (Vec::new(), Script::default());
    script.allocate(RSDP, 16, ZONE_FSEG);
    script.allocate(TABLES, ALIGN as u32, ZONE_HIGH);
    for (pa, mut bytes) in blobs {
        let start = (pa.0 - base) as usize;
        let list = pointers(&bytes);
        for (at, size) in &list {
            rebase(&mut bytes, *at, *size, base);
            script.pointer(TABLES, start + at, *size);
        }
        if !list.is_empty() {
            script.checksum(TABLES, start + CHECKSUM, start, bytes.len());
        }
        tables.resize(start, 0);
        tables.extend(bytes);
    }
    for (at, size) in [(16, 4), (24, 8)] {
        rebase(&mut rsdp, at, size, base);
        script.pointer(RSDP, at, size);
    }
    // The first one covers what revision 0 had.
    script.checksum(RSDP, 8, 0, 20);
    script.checksum(RSDP, 32, 0, rsdp.len());
    Files { tables, rsdp, loader: script.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Does what firmware does, with the tables at `base`.
    fn run(f: &mut Files, base: u64) {
        let script = f.loader.clone();
        for c in script.chunks(COMMAND_LEN) {
            let word = |at: usize| u32::from_le_bytes(c[at..at + 4].try_into().unwrap());
            let file = if c[4..].starts_with(RSDP.as_bytes()) { &mut f.rsdp } else { &mut f.tables };
            match word(0) {
                ALLOCATE => {}
                ADD_POINTER => {
                    assert!(c[4 + NAME..].starts_with(TABLES.as_bytes()));
                    let (at, size) = (word(4 + 2 * NAME) as usize, usize::from(c[8 + 2 * NAME]));
                    let old = file[at..at + size].iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
                    file[at..at + size].copy_from_slice(&(old + base).to_le_bytes()[..size]);
                }
                ADD_CHECKSUM => {
                    let (at, start, len) = (word(60) as usize, word(64) as usize, word(68) as usize);
                    let sum = file[start..start + len].iter().fold(0u8, |s, b| s.wrapping_add(*b));
                    file[at] = file[at].wrapping_sub(sum);
                }
                other => panic!("command {other}"),
            }
        }
    }

    #[test]
    fn what_firmware_makes_is_what_direct_boot_places() {
        let cfg = AcpiConfig { apic_ids: vec![0, 1, 2], com_ports: 2, ..AcpiConfig::default() };
        let mut f = files(&cfg);
        assert!(f.loader.len().is_multiple_of(COMMAND_LEN));
        let base = 0xbff0_0000;
        run(&mut f, base);
        let direct = build(&cfg, Pa(base - ALIGN));
        assert_eq!(f.rsdp, direct.blobs[0].1);
        for (pa, bytes) in &direct.blobs[1..] {
            let at = (pa.0 - base) as usize;
            assert_eq!(&f.tables[at..at + bytes.len()], bytes, "{:?}", String::from_utf8_lossy(&bytes[..4]));
        }
    }
}
