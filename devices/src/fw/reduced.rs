//! ACPI tables of a machine without fixed hardware, PCI or ISA (ACPI 6.5 §4.1 "Hardware-Reduced ACPI"): processors, serial ports and
//! virtio devices in memory.

use super::acpi::{self, AcpiConfig, bytes_of};
use super::dsdt::{COM, Raw, ports, processor, refs};
use crate::power::sleep;
use acpi_tables::aml::*;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};

/// What is there instead of fixed hardware.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reduced {
    /// Address of the sleep and reset registers.
    pub sleep: u32,
    /// Address, length in bytes and global system interrupt (level-triggered) of each virtio device.
    pub virtio: Vec<(u32, u32, u32)>,
}

/// Fixed ACPI Description Table.
pub(super) fn fadt(r: &Reduced, dsdt: u32) -> Vec<u8> {
    let register = |offset: u64| GAS::new(Space::SystemMemory, 8, 0, AccessSize::ByteAccess, u64::from(r.sleep) + offset);
    let mut f = FADTBuilder::new(acpi::OEM_ID, acpi::OEM_TABLE, acpi::OEM_REVISION)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi)
        .preferred_pm_profile(PmProfile::EnterpriseServer);
    f.dsdt = dsdt.into();
    f.x_dsdt = u64::from(dsdt).into();
    f.iapc_boot_arch = acpi::BOOT_NO_VGA.into();
    f.reset_reg = register(sleep::RESET);
    f.reset_value = sleep::RESET_VALUE;
    f.sleep_control_reg = register(sleep::CONTROL);
    f.sleep_status_reg = register(sleep::STATUS);
    bytes_of(&f.finalize())
}

/// The DSDT.
pub(super) fn dsdt(cfg: &AcpiConfig, r: &Reduced) -> Vec<u8> {
    let s5 = sleep::SLP_TYP_S5;
    let mut body = bytes_of(&Name::new("_S5_".into(), &Package::new(vec![&s5, &s5, &0u8, &0u8])));
    let mut devices: Vec<Raw> = (0..cfg.apic_ids.len() as u8).map(processor).collect();
    devices.extend((1..).zip(COM).take(cfg.com_ports.into()).map(|(n, (base, irq))| serial(n, base, irq)));
    devices.extend((0..).zip(&r.virtio).map(|(n, (base, len, gsi))| virtio(n, *base, *len, *gsi)));
    body.extend(bytes_of(&Scope::new("_SB_".into(), refs(&devices))));
    acpi::table(*b"DSDT", 2, &body)
}

fn serial(n: u8, base: u16, irq: u8) -> Raw {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &n);
    // Without 8259s there are no ISA interrupts: it is the I/O APIC's input, by edges.
    let (io, line) = (ports(base, 8), Interrupt::new(true, true, false, true, irq.into()));
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&io, &line]));
    Raw(bytes_of(&Device::new(format!("COM{n}").as_str().into(), vec![&hid, &uid, &crs])))
}

fn virtio(n: u8, base: u32, len: u32, gsi: u32) -> Raw {
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &n);
    let coherent = Name::new("_CCA".into(), &ONE);
    let (memory, line) = (Memory32Fixed::new(true, base, len), Interrupt::new(true, false, false, false, gsi));
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&memory, &line]));
    Raw(bytes_of(&Device::new(format!("VR{n:02X}").as_str().into(), vec![&hid, &uid, &coherent, &crs])))
}
