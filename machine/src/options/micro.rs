//! Options of `-machine microvm`: its properties, its devices, and which devices are for which machine.

use super::config::MachineKind;
use super::drive::{PCI, VIRTIO_BLK as BLK_PCI, VIRTIO_RNG as RNG_PCI};
use super::error::OptionError;
use super::net::VIRTIO_NET as NET_PCI;
use super::schema::{Kind, PropSpec, prop};
use super::tree::Object;
use super::virtio::{BALLOON as BALLOON_PCI, P9 as P9_PCI, SERIAL as SERIAL_PCI};

const OFF: Kind = Kind::Word(&["off", "auto"]);
const ON: Kind = Kind::Word(&["on", "auto"]);

pub const MACHINE: &[PropSpec] = &[
    prop("acpi", Kind::Switch, "ACPI tables, which announce virtio devices; without them 8259s and an 8254 (on)"),
    prop("auto-kernel-cmdline", Kind::Switch, "the kernel's command line gets what it must be told (on)"),
    prop("isa-serial", ON, "accepted; -serial none leaves it out"),
    prop("pic", Kind::Word(&["auto"]), "accepted; as acpi says"),
    prop("pit", Kind::Word(&["auto"]), "accepted; as acpi says"),
    prop("rtc", OFF, "accepted"),
    prop("pcie", OFF, "accepted"),
    prop("usb", OFF, "accepted"),
    prop("ioapic2", OFF, "accepted"),
    prop("x-option-roms", Kind::Switch, "accepted"),
    prop("graphics", Kind::Switch, "accepted"),
];

/// The same without what PCI adds.
pub const VIRTIO_BLK: &[PropSpec] = BLK_PCI.split_at(PCI.len()).1;
pub const VIRTIO_RNG: &[PropSpec] = RNG_PCI.split_at(PCI.len()).1;
pub const VIRTIO_NET: &[PropSpec] = NET_PCI.split_at(PCI.len()).1;
pub const VIRTIO_SERIAL: &[PropSpec] = SERIAL_PCI.split_at(PCI.len()).1;
pub const VIRTIO_BALLOON: &[PropSpec] = BALLOON_PCI.split_at(PCI.len()).1;
pub const VIRTIO_9P: &[PropSpec] = P9_PCI.split_at(PCI.len()).1;

/// Devices of the one bus are not for machines with the other. Those that other options mean fit everywhere.
pub fn check_bus(o: &Object, kind: MachineKind) -> Result<(), OptionError> {
    if !o.origin.starts_with("-device") {
        return Ok(());
    }
    let micro = kind == MachineKind::Microvm;
    match (o.driver.strip_suffix("-pci"), o.driver.strip_suffix("-device")) {
        (Some(name), _) if micro => Err(OptionError::Conflict(format!("{}: microvm has no PCI; use {name}-device", o.origin))),
        (_, Some(name)) if !micro => {
            Err(OptionError::Conflict(format!("{}: it is for -machine microvm; use {name}-pci", o.origin)))
        }
        _ => Ok(()),
    }
}
