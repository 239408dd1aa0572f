//! The DSDT: \_S5, processors, the PCI root bridge with its windows and routing, and the ISA devices
//! (ACPI 6.5 §6 "Device Configuration", §7.4 "OEM-Supplied System-Level Control Methods"; PCI Firmware 3.3 "_OSC").

use super::acpi::{self, AcpiConfig, bytes_of};
use crate::pci::{intx_gsi, intx_isa};
use crate::timer::pm::SLP_TYP_S5;
use acpi_tables::aml::*;
use acpi_tables::{Aml, AmlSink};

/// Already encoded AML.
pub(super) struct Raw(pub Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// Small IRQ descriptor without flags: edge, active high, exclusive (ACPI 6.5 §6.4.2.1).
struct IsaIrq(u8);

impl Aml for IsaIrq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << self.0);
    }
}

pub(super) fn ports(base: u16, len: u8) -> IO {
    IO::new(base, base, 1, len)
}

pub(super) fn refs<T: Aml>(v: &[T]) -> Vec<&dyn Aml> {
    v.iter().map(|x| x as &dyn Aml).collect()
}

/// The whole table.
pub(super) fn build(cfg: &AcpiConfig) -> Vec<u8> {
    let mut body = bytes_of(&Name::new("_S5_".into(), &Package::new(vec![&SLP_TYP_S5, &SLP_TYP_S5, &0u8, &0u8])));
    body.extend(interrupt_model());
    let mut devices: Vec<Raw> = (0..cfg.apic_ids.len() as u8).map(processor).collect();
    devices.push(pci_root(cfg));
    devices.push(board_resources(cfg));
    if cfg.hpet {
        devices.push(hpet());
    }
    body.extend(bytes_of(&Scope::new("_SB_".into(), refs(&devices))));
    acpi::table(*b"DSDT", 2, &body)
}

pub(super) fn processor(n: u8) -> Raw {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &n);
    let path = format!("C{n:03X}");
    Raw(bytes_of(&Device::new(path.as_str().into(), vec![&hid, &uid])))
}

/// A device with an EISA id, a unique id and resources.
fn device(name: &str, hid: &str, uid: u8, resources: Vec<&dyn Aml>) -> Raw {
    let hid = Name::new("_HID".into(), &EISAName::new(hid));
    let uid = Name::new("_UID".into(), &uid);
    let crs = Name::new("_CRS".into(), &ResourceTemplate::new(resources));
    Raw(bytes_of(&Device::new(name.into(), vec![&hid, &uid, &crs])))
}

/// Ports and memory of the board that no other device claims; the ECAM window must be here for Linux to use it.
fn board_resources(cfg: &AcpiConfig) -> Raw {
    let pm = ports(acpi::PM1A_EVT, (acpi::GPE0 - acpi::PM1A_EVT) as u8 + acpi::GPE0_LEN);
    let (elcr, port92) = (ports(0x4d0, 2), ports(0x92, 1));
    let mut r: Vec<&dyn Aml> = vec![&port92, &elcr, &pm];
    let ecam = cfg.ecam.map(|pa| Memory32Fixed::new(true, pa.0 as u32, 0x1000_0000));
    if let Some(e) = &ecam {
        r.push(e);
    }
    device("BRD0", "PNP0C02", 0, r)
}

fn hpet() -> Raw {
    device("HPET", "PNP0103", 0, vec![&Memory32Fixed::new(false, acpi::HPET_BASE, 0x400)])
}

fn pci_root(cfg: &AcpiConfig) -> Raw {
    let isa = isa_bridge(cfg);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let uid = Name::new("_UID".into(), &0u8);
    let bbn = Name::new("_BBN".into(), &0u8);
    let seg = Name::new("_SEG".into(), &0u8);
    let (crs, prt, osc) = (root_resources(cfg), routing(), operating_system_capabilities());
    Raw(bytes_of(&Device::new("PCI0".into(), vec![&hid, &cid, &uid, &bbn, &seg, &crs, &prt, &osc, &isa])))
}

/// Bus numbers, and the windows through which the root bridge passes accesses on.
fn root_resources(cfg: &AcpiConfig) -> Raw {
    let buses = AddressSpace::<u16>::new_bus_number(0, 255);
    let config = ports(0xcf8, 8);
    let io_low = AddressSpace::<u16>::new_io(0, 0xcf7, None);
    let io_high = AddressSpace::<u16>::new_io(0xd00, 0xffff, None);
    let vga = AddressSpace::<u32>::new_memory(AddressSpaceCacheable::Cacheable, true, 0xa0000, 0xbffff, None);
    let (low, high) = (*cfg.pci_mmio32.start(), *cfg.pci_mmio32.end());
    let mmio32 = AddressSpace::<u32>::new_memory(AddressSpaceCacheable::NotCacheable, true, low, high, None);
    let mut r: Vec<&dyn Aml> = vec![&buses, &config, &io_low, &io_high, &vga, &mmio32];
    let mmio64 = cfg
        .pci_mmio64
        .as_ref()
        .map(|m| AddressSpace::<u64>::new_memory(AddressSpaceCacheable::Cacheable, true, *m.start(), *m.end(), None));
    if let Some(m) = &mmio64 {
        r.push(m);
    }
    Raw(bytes_of(&Name::new("_CRS".into(), &ResourceTemplate::new(r))))
}

/// Says what _PRT returns: the system tells by \_PIC whether it uses the 8259s (0) or the I/O APIC.
const MODEL: &str = "PICM";

fn interrupt_model() -> Vec<u8> {
    let mut out = bytes_of(&Name::new(MODEL.into(), &0u8));
    let (name, arg): (Path, Arg) = (MODEL.into(), Arg(0));
    out.extend(bytes_of(&Method::new("_PIC".into(), 1, false, vec![&Store::new(&name, &arg)])));
    out
}

/// The interrupt of every pin of every device, all of them hardwired.
fn table_of_pins(interrupt: impl Fn(u8, u8) -> u32) -> PackageBuilder {
    let mut all = PackageBuilder::new();
    for dev in 0..32u8 {
        for pin in 0..4u8 {
            let address = u32::from(dev) << 16 | 0xffff;
            let n = interrupt(dev, pin);
            all.add_element(&Package::new(vec![&address, &pin, &ZERO, &n]));
        }
    }
    all
}

/// _PRT: with the I/O APIC every pin has a global system interrupt; with the 8259s they share two.
fn routing() -> Raw {
    let (apic, pic) = (table_of_pins(intx_gsi), table_of_pins(|d, p| intx_isa(d, p).into()));
    let mut out = bytes_of(&Name::new("PRTA".into(), &apic));
    out.extend(bytes_of(&Name::new("PRTP".into(), &pic)));
    let (model, with_apic, with_pic): (Path, Path, Path) = (format!("\\{MODEL}").as_str().into(), "PRTA".into(), "PRTP".into());
    let apic = Return::new(&with_apic);
    let if_apic = If::new(&model, vec![&apic]);
    let otherwise = Return::new(&with_pic);
    out.extend(bytes_of(&Method::new("_PRT".into(), 0, false, vec![&if_apic, &otherwise])));
    Raw(out)
}

/// UUID of the PCI host bridge's capabilities.
const PCI_OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";

/// _OSC(uuid, revision, count, capabilities): the guest may control all PCI Express features it asks for; an unknown
/// UUID is answered with bit 2 of the first doubleword.
fn operating_system_capabilities() -> Raw {
    let (caps, cdw1, cdw3): (Arg, Path, Path) = (Arg(3), "CDW1".into(), "CDW3".into());
    let first = CreateDWordField::new(&cdw1, &caps, &0u8);
    let uuid = Uuid::new(PCI_OSC_UUID);
    let is_pci = Equal::new(&Arg(0), &uuid);
    let third = CreateDWordField::new(&cdw3, &caps, &8u8);
    let grant = And::new(&cdw3, &cdw3, &0x1fu8);
    let accept = If::new(&is_pci, vec![&third, &grant]);
    let unknown = Or::new(&cdw1, &cdw1, &4u8);
    let refuse = Else::new(vec![&unknown]);
    let answer = Return::new(&caps);
    Raw(bytes_of(&Method::new("_OSC".into(), 4, true, vec![&first, &accept, &refuse, &answer])))
}

/// First port and interrupt of COM1..COM4.
pub(super) const COM: [(u16, u8); 4] = [(0x3f8, 4), (0x2f8, 3), (0x3e8, 4), (0x2e8, 3)];

/// The ISA bridge with the port devices.
fn isa_bridge(cfg: &AcpiConfig) -> Raw {
    let mut devices = vec![
        device("RTC0", "PNP0B00", 0, vec![&ports(0x70, 2), &IsaIrq(8)]),
        device("TMR0", "PNP0100", 0, vec![&ports(0x40, 4), &IsaIrq(0)]),
    ];
    if cfg.i8042 {
        devices.push(device("KBD0", "PNP0303", 0, vec![&ports(0x60, 1), &ports(0x64, 1), &IsaIrq(1)]));
        devices.push(device("MOU0", "PNP0F13", 0, vec![&IsaIrq(12)]));
    }
    for (n, (base, irq)) in COM.iter().enumerate().take(cfg.com_ports.into()) {
        let n = n as u8 + 1;
        devices.push(device(&format!("COM{n}"), "PNP0501", n, vec![&ports(*base, 8), &IsaIrq(*irq)]));
    }
    let adr = Name::new("_ADR".into(), &(u32::from(cfg.isa_bridge) << 16));
    let mut children: Vec<&dyn Aml> = vec![&adr];
    children.extend(refs(&devices));
    Raw(bytes_of(&Device::new("ISA_".into(), children)))
}
