//! ACPI tables of the board (ACPI 6.5 §5.2 "ACPI System Description Tables"; HPET specification 1.0a §3.2.4; PCI
//! Firmware 3.3 "MCFG"). A pure function from the board's description to bytes.

use super::dsdt;
use super::reduced::{self, Reduced};
use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::sdt::Sdt;
use std::ops::RangeInclusive;
use vm_core::Pa;

pub(super) const OEM_ID: [u8; 6] = *b"RHEA  ";
pub(super) const OEM_TABLE: [u8; 8] = *b"RHEAPC  ";
pub(super) const OEM_REVISION: u32 = 1;

/// Ports and wires that the FADT names; `timer::pm` is wired to match.
pub const PM1A_EVT: u16 = 0x600;
pub const PM1A_CNT: u16 = 0x604;
pub const PM_TMR: u16 = 0x608;
pub const GPE0: u16 = 0x620;
pub const GPE0_LEN: u8 = 16;
pub const SCI_IRQ: u8 = 9;
const RESET_PORT: u16 = 0xcf9;
/// RST_CNT: SYS_RST and RST_CPU.
const RESET_VALUE: u8 = 6;
const CMOS_CENTURY: u8 = 0x32;

pub const LAPIC_BASE: u32 = 0xfee0_0000;
pub const IO_APIC_BASE: u32 = 0xfec0_0000;
pub const HPET_BASE: u32 = 0xfed0_0000;
/// HPET general capabilities, low half: revision 1, 3 comparators, 64-bit counter, legacy replacement, vendor 8086h.
pub const HPET_BLOCK_ID: u32 = 0x8086_a201;

/// The board as its tables describe it.
#[derive(Clone, Debug)]
pub struct AcpiConfig {
    /// Local APIC ids of the processors, 1..=255 of them, each below 255.
    pub apic_ids: Vec<u8>,
    pub io_apic_id: u8,
    /// COM1.. that exist, 0..=4.
    pub com_ports: u8,
    pub hpet: bool,
    pub i8042: bool,
    /// Number of the PCI device that is the ISA bridge.
    pub isa_bridge: u8,
    /// A VGA-compatible display exists (otherwise the guest is told not to probe for one).
    pub vga: bool,
    /// ECAM window of 256 buses, 256 MiB-aligned and below 4 GiB; `None`: no MCFG.
    pub ecam: Option<Pa>,
    /// Memory below 4 GiB for PCI devices.
    pub pci_mmio32: RangeInclusive<u32>,
    /// Memory above 4 GiB for PCI devices; must be above RAM.
    pub pci_mmio64: Option<RangeInclusive<u64>>,
    /// A machine without fixed hardware, 8259s, PCI and ISA: of the rest above only processors, I/O APIC and serial ports count.
    pub reduced: Option<Reduced>,
}

impl Default for AcpiConfig {
    fn default() -> Self {
        Self {
            apic_ids: vec![0],
            io_apic_id: 0,
            com_ports: 1,
            hpet: true,
            i8042: true,
            isa_bridge: 1,
            vga: false,
            ecam: Some(Pa(0xb000_0000)),
            pci_mmio32: 0xc000_0000..=0xfebf_ffff,
            pci_mmio64: None,
            reduced: None,
        }
    }
}

/// Tables placed in memory.
pub struct AcpiTables {
    /// Where the RSDP lies (the first blob).
    pub rsdp: Pa,
    /// Address and content; they do not overlap and ascend.
    pub blobs: Vec<(Pa, Vec<u8>)>,
}

impl AcpiTables {
    /// Bytes from the first blob's start to the last one's end.
    pub fn span(&self) -> u64 {
        self.blobs.last().map_or(0, |(pa, b)| pa.0 + b.len() as u64 - self.rsdp.0)
    }
}

/// Next free address, and what was placed.
struct Placer {
    next: u64,
    blobs: Vec<(Pa, Vec<u8>)>,
}

impl Placer {
    fn place(&mut self, align: u64, bytes: Vec<u8>) -> u32 {
        let at = self.next.next_multiple_of(align);
        self.next = at + bytes.len() as u64;
        self.blobs.push((Pa(at), bytes));
        at as u32
    }
}

/// Builds all tables from `base` (64-byte aligned, below 4 GiB with room above it) upwards.
pub fn build(cfg: &AcpiConfig, base: Pa) -> AcpiTables {
    assert!(base.0.is_multiple_of(64) && base.0 < 0xffff_0000, "tables at {base:?}");
    assert!(cfg.ecam.is_none_or(|e| e.0 < 1 << 32 && e.0.is_multiple_of(1 << 28)), "ECAM at {:?}", cfg.ecam);
    let mut p = Placer { next: base.0, blobs: Vec::new() };
    // The RSDP names tables that are placed after it: its room is taken first.
    p.place(64, vec![0; RSDP_LEN]);
    let facs = p.place(64, facs());
    let dsdt = p.place(16, cfg.reduced.as_ref().map_or_else(|| dsdt::build(cfg), |r| reduced::dsdt(cfg, r)));
    let fadt = cfg.reduced.as_ref().map_or_else(|| fadt(cfg, facs, dsdt), |r| reduced::fadt(r, dsdt));
    let mut tables = vec![p.place(16, fadt), p.place(16, madt(cfg))];
    if cfg.hpet && cfg.reduced.is_none() {
        tables.push(p.place(16, hpet()));
    }
    if let Some(ecam) = cfg.ecam.filter(|_| cfg.reduced.is_none()) {
        tables.push(p.place(16, mcfg(ecam)));
    }
    let rsdt = p.place(16, root(*b"RSDT", tables.iter().map(|t| t.to_le_bytes())));
    let xsdt = p.place(16, root(*b"XSDT", tables.iter().map(|t| u64::from(*t).to_le_bytes())));
    p.blobs[0].1 = rsdp(rsdt, xsdt);
    AcpiTables { rsdp: base, blobs: p.blobs }
}

/// A table with the common header; `body` follows it.
pub(super) fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut t = Sdt::new(signature, 36, revision, OEM_ID, OEM_TABLE, OEM_REVISION);
    t.append_slice(body);
    t.update_checksum();
    t.as_slice().to_vec()
}

const RSDP_LEN: usize = 36;

/// Root System Description Pointer, revision 2: the first checksum covers what revision 0 had.
fn rsdp(rsdt: u32, xsdt: u32) -> Vec<u8> {
    let mut r = b"RSD PTR \0".to_vec();
    r.extend(OEM_ID);
    r.push(2);
    r.extend(rsdt.to_le_bytes());
    r.extend((RSDP_LEN as u32).to_le_bytes());
    r.extend(u64::from(xsdt).to_le_bytes());
    r.extend([0; 4]);
    r[8] = checksum(&r[..20]);
    r[32] = checksum(&r);
    r
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |s, b| s.wrapping_sub(*b))
}

fn root<const N: usize>(signature: [u8; 4], tables: impl Iterator<Item = [u8; N]>) -> Vec<u8> {
    table(signature, 1, &tables.flatten().collect::<Vec<u8>>())
}

/// Firmware ACPI Control Structure, version 2 (with the 64-bit waking vector; we never wake).
fn facs() -> Vec<u8> {
    let mut f = acpi_tables::facs::FACS::new();
    f.version = 2;
    bytes_of(&f)
}

pub(super) fn bytes_of(aml: &dyn Aml) -> Vec<u8> {
    let mut v = Vec::new();
    aml.to_aml_bytes(&mut v);
    v
}

fn io(port: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}

/// IA-PC boot architecture flags.
const BOOT_LEGACY_DEVICES: u16 = 1 << 0;
const BOOT_8042: u16 = 1 << 1;
pub(super) const BOOT_NO_VGA: u16 = 1 << 2;

/// Fixed ACPI Description Table. No SMI_CMD: the board is always in ACPI mode.
fn fadt(cfg: &AcpiConfig, facs: u32, dsdt: u32) -> Vec<u8> {
    // PWR_BUTTON clear: there is a fixed power button. SLP_BUTTON and FIX_RTC set: neither is in the fixed registers.
    let mut f = FADTBuilder::new(OEM_ID, OEM_TABLE, OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup)
        .preferred_pm_profile(PmProfile::Desktop)
        .gpe_info(GPE0.into(), 0, GPE0_LEN, 0, 0);
    // Both pairs are given, alike: older systems read only the 32-bit ones.
    f.firmware_ctrl = facs.into();
    f.dsdt = dsdt.into();
    f.x_dsdt = u64::from(dsdt).into();
    f.sci_int = u16::from(SCI_IRQ).into();
    f.pm1a_evt_blk = u32::from(PM1A_EVT).into();
    f.pm1a_cnt_blk = u32::from(PM1A_CNT).into();
    f.pm_tmr_blk = u32::from(PM_TMR).into();
    (f.pm1_evt_len, f.pm1_cnt_len, f.pm_tmr_len) = (4, 2, 4);
    // Latencies above 100 and 1000 µs: no C2, no C3.
    f.p_lvl2_lat = 0xfff.into();
    f.p_lvl3_lat = 0xfff.into();
    f.century = CMOS_CENTURY;
    let no_vga = if cfg.vga { 0 } else { BOOT_NO_VGA };
    let kbc = if cfg.i8042 { BOOT_8042 } else { 0 };
    f.iapc_boot_arch = (BOOT_LEGACY_DEVICES | kbc | no_vga).into();
    f.reset_reg = io(RESET_PORT, 8, AccessSize::ByteAccess);
    f.reset_value = RESET_VALUE;
    f.x_pm1a_evt_blk = io(PM1A_EVT, 32, AccessSize::WordAccess);
    f.x_pm1a_cnt_blk = io(PM1A_CNT, 16, AccessSize::WordAccess);
    f.x_pm_tmr_blk = io(PM_TMR, 32, AccessSize::DwordAccess);
    f.x_gpe0_blk = io(GPE0, GPE0_LEN * 8, AccessSize::ByteAccess);
    bytes_of(&f.finalize())
}

/// MPS INTI flags of an interrupt override.
const INTI_CONFORMING: u16 = 0;
const INTI_LEVEL_HIGH: u16 = 0x000d;
/// All processors, in a local APIC NMI entry.
const UID_ALL: u8 = 0xff;

/// Multiple APIC Description Table.
fn madt(cfg: &AcpiConfig) -> Vec<u8> {
    let mut b = LAPIC_BASE.to_le_bytes().to_vec();
    // PCAT_COMPAT: there are 8259s too.
    b.extend(u32::from(cfg.reduced.is_none()).to_le_bytes());
    for (uid, id) in (0..=u8::MAX).zip(&cfg.apic_ids) {
        b.extend([0, 8, uid, *id, 1, 0, 0, 0]);
    }
    b.extend([1, 12, cfg.io_apic_id, 0]);
    b.extend(IO_APIC_BASE.to_le_bytes());
    b.extend(0u32.to_le_bytes());
    let isa = [(0u8, 2u32, INTI_CONFORMING), (SCI_IRQ, SCI_IRQ.into(), INTI_LEVEL_HIGH)];
    for (irq, gsi, flags) in isa.into_iter().filter(|_| cfg.reduced.is_none()) {
        b.extend([2, 10, 0, irq]);
        b.extend(gsi.to_le_bytes());
        b.extend(flags.to_le_bytes());
    }
    // NMI on LINT1 of every processor.
    b.extend([4, 6, UID_ALL, 0, 0, 1]);
    table(*b"APIC", 3, &b)
}

fn hpet() -> Vec<u8> {
    let mut b = HPET_BLOCK_ID.to_le_bytes().to_vec();
    b.extend([0, 64, 0, 0]);
    b.extend(u64::from(HPET_BASE).to_le_bytes());
    // HPET number 0; least period of 128 ticks that loses no interrupt; no page protection.
    b.extend([0, 128, 0, 0]);
    table(*b"HPET", 1, &b)
}

fn mcfg(ecam: Pa) -> Vec<u8> {
    let mut b = vec![0; 8];
    b.extend(ecam.0.to_le_bytes());
    // Segment 0, buses 0..=255.
    b.extend([0, 0, 0, 255, 0, 0, 0, 0]);
    table(*b"MCFG", 1, &b)
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
