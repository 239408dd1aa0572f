//! The board's controllers of IDE drives: the PIIX3's function beside the ISA bridge of the machine pc, the ICH9's AHCI of q35. They
//! are there if they have a drive.

use super::pci::{Added, Slots};
use super::{BoardError, Builder, Outside};
use crate::options::{DeviceSpec, MachineKind};
use devices::block::ahci::{self, Ahci};
use devices::block::ata::{Drive, Medium};
use devices::block::ide::{self, Ide};
use vm_core::Device;

/// Where they are: as in QEMU.
const PIIX_IDE: (u8, u8) = (1, 1);
const ICH9_AHCI: (u8, u8) = (0x1f, 2);

/// Open Firmware path of a PCI function.
pub fn path(name: &str, device: u8, function: u8) -> String {
    match function {
        0 => format!("/pci@i0cf8/{name}@{device:x}"),
        f => format!("/pci@i0cf8/{name}@{device:x},{f:x}"),
    }
}

/// All drives by their places, of which there are `N`.
fn drives<const N: usize>(out: &Outside) -> Result<[Option<Drive>; N], BoardError> {
    let mut all: [Option<Drive>; N] = std::array::from_fn(|_| None);
    let ide = out.devices.iter().filter_map(|(spec, _)| match spec {
        DeviceSpec::Ide { cd, drive, serial, place, .. } => Some((*cd, drive, serial, *place)),
        _ => None,
    });
    for (cd, drive, serial, place) in ide {
        let find = |id: &String| out.disks.get(id).cloned().ok_or_else(|| BoardError::NoDrive(id.clone()));
        let disk = drive.as_ref().map(find).transpose()?;
        let medium = match (cd, disk) {
            (true, disk) => Medium::Cd(disk),
            (false, Some(disk)) => Medium::Disk(disk),
            (false, None) => return Err(BoardError::NoDrive(String::new())),
        };
        if let Some(free) = all.get_mut(place) {
            *free = Some(Drive::new(medium, serial, place));
        }
    }
    Ok(all)
}

/// Adds the controller, if it has a drive; gives boot indexes and paths.
pub fn add_ide(
    b: &mut Builder,
    kind: MachineKind,
    out: &Outside,
    slots: &Slots,
    added: &mut Added,
) -> Result<Vec<(u32, String)>, BoardError> {
    let specs = || out.devices.iter().filter(|(d, _)| matches!(d, DeviceSpec::Ide { .. }));
    if specs().next().is_none() {
        return Ok(Vec::new());
    }
    match kind {
        MachineKind::Pc => {
            let irqs = ide::IRQS.map(|n| slots.isa(n));
            let cell = Ide::new_shared(drives(out)?, irqs, slots.wires(PIIX_IDE.0));
            let ports: Vec<_> = (0..).zip(ide::PORTS).map(|(region, (first, len))| (first, len, region)).collect();
            b.ports(&cell, &ports)?;
            slots.bus.add(PIIX_IDE.0, PIIX_IDE.1, cell.clone());
            added.storage.push(Box::new(move || cell.lock().service()));
        }
        MachineKind::Q35 | MachineKind::Microvm => {
            let cell = Ahci::new_shared(drives(out)?, slots.wires(ICH9_AHCI.0));
            slots.bus.add(ICH9_AHCI.0, ICH9_AHCI.1, cell.clone());
            debug_assert!(cell.lock().name() == "ich9-ahci" && ahci::PORTS == 6, "as the options count them");
            b.devices.push(cell.clone());
            added.storage.push(Box::new(move || cell.lock().service()));
        }
    }
    let order = specs().filter_map(|(d, _)| match d {
        DeviceSpec::Ide { place, boot_index: Some(n), .. } => {
            let (device, function) = if kind == MachineKind::Pc { PIIX_IDE } else { ICH9_AHCI };
            Some((
                *n,
                match kind {
                    MachineKind::Pc => format!("{}/drive@{}/disk@{}", path("ide", device, function), place / 2, place % 2),
                    MachineKind::Q35 | MachineKind::Microvm => {
                        format!("{}/drive@{place}/disk@0", path("pci8086,2922", device, function))
                    }
                },
            ))
        }
        _ => None,
    });
    Ok(order.collect())
}
