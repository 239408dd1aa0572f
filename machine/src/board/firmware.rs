//! The board's side of firmware: its ROM, and what it is told through fw_cfg.

use super::{Board, BoardError};
use crate::options::BootConfig;
use devices::fw::fw_cfg::{self, FwCfg, Items, key};
use devices::fw::loader;
use parking_lot::Mutex;
use std::sync::Arc;
use vm_core::{Dma, PortBus, Target};

/// Type of RAM in etc/e820 (ACPI 6.5 "Address Range Types").
const E820_RAM: u32 = 1;
/// CMOS: boot devices, a nibble each (first and second; third, and bit 0 for not looking at floppies' signatures).
const CMOS_BOOT_1_2: u8 = 0x3d;
const CMOS_BOOT_3: u8 = 0x38;
/// CMOS: how the BIOS counts cylinders of each of the four first disks, two bits each: 1, by LBA.
const CMOS_TRANSLATION: u8 = 0x39;
const BY_LBA: u8 = 0x55;
/// CMOS: processors less one.
const CMOS_CPUS: u8 = 0x5f;

/// Firmware and what goes with it.
#[derive(Debug, Default)]
pub struct Firmware {
    /// The last byte lies below 4 GiB.
    pub rom: Vec<u8>,
    /// BIOS of the VGA.
    pub vga_rom: Option<Vec<u8>>,
    /// There is nothing to see a screen with: messages go to the serial port.
    pub nographic: bool,
    pub boot: BootConfig,
}

/// Numbers of boot devices in CMOS.
fn cmos_boot(order: &str) -> (u8, u8) {
    let number = |letter| match letter {
        'a' | 'b' => 1,
        'c' => 2,
        'd' => 3,
        'n'..='p' => 4,
        _ => 0,
    };
    let mut list = order.chars().map(number).filter(|n| *n != 0).chain(std::iter::repeat(0));
    let mut next = || list.next().unwrap_or(0);
    let (first, second, third) = (next(), next(), next());
    // There are no floppies to look at.
    (second << 4 | first, third << 4 | 1)
}

impl Board {
    /// Adds what firmware needs beyond what kernels do. `bootorder`: Open Firmware paths of what is to be booted first. The ROM's content comes with `load_firmware`.
    pub(super) fn with_firmware(mut self, firmware: Arc<Firmware>, bootorder: &[String], dma: Dma) -> Result<Self, BoardError> {
        let cell = Arc::new(Mutex::new(FwCfg::new(self.items(&firmware, bootorder), dma)));
        let mut ports = std::mem::take(&mut self.ports);
        add(&mut ports, cell.clone())?;
        self.ports = ports;
        self.devices.push(cell);
        if let Some(rtc) = &self.rtc {
            rtc.lock().set_cmos(CMOS_CPUS, (self.apic_ids.len() - 1) as u8);
            rtc.lock().set_cmos(CMOS_TRANSLATION, BY_LBA);
        }
        self.firmware = Some(firmware);
        self.set_boot_order(true);
        Ok(self)
    }

    /// Tells firmware what to boot from; `first`: after power-on, not after a reset.
    pub fn set_boot_order(&self, first: bool) {
        let (Some(f), Some(rtc)) = (&self.firmware, &self.rtc) else { return };
        let once = f.boot.once.as_ref().filter(|_| first);
        let (a, b) = cmos_boot(once.unwrap_or(&f.boot.order));
        let mut rtc = rtc.lock();
        rtc.set_cmos(CMOS_BOOT_1_2, a);
        rtc.set_cmos(CMOS_BOOT_3, b);
    }

    /// Fills the ROM, if the board has one.
    pub fn load_firmware(&self) {
        let Some(f) = &self.firmware else { return };
        let start = (1u64 << 32) - f.rom.len() as u64;
        if let Target::Ram { offset, .. } = self.map.target(vm_core::Pa(start)) {
            self.ram.write(offset, &f.rom);
        }
    }

    fn items(&self, f: &Firmware, bootorder: &[String]) -> Items {
        let cpus = self.apic_ids.len() as u16;
        // Room for local APIC ids, which may have gaps.
        let ids = self.apic_ids.iter().max().map_or(1, |id| *id as u16 + 1);
        let (below, above) = super::memory::sizes(&self.map);
        let mut items = Items::new();
        items.set(key::UUID, &[0; 16]);
        items.set(key::RAM_SIZE, &(below + above).to_le_bytes());
        items.set(key::NOGRAPHIC, &u16::from(f.nographic).to_le_bytes());
        items.set(key::CPUS, &cpus.to_le_bytes());
        items.set(key::MAX_CPUS, &ids.to_le_bytes());
        items.set(key::NUMA, &vec![0; 8 * (1 + usize::from(ids))]);
        items.set(key::BOOT_MENU, &u16::from(f.boot.menu).to_le_bytes());
        items.set(key::IRQ0_OVERRIDE, &1u32.to_le_bytes());
        let entry = |start: u64, len: u64| {
            start.to_le_bytes().into_iter().chain(len.to_le_bytes()).chain(E820_RAM.to_le_bytes()).collect::<Vec<u8>>()
        };
        let mut e820 = entry(0, below);
        if above > 0 {
            e820.extend(entry(1 << 32, above));
        }
        items.file("etc/e820", e820);
        if let Some(cfg) = self.acpi_config() {
            let files = loader::files(&cfg);
            items.file(loader::TABLES, files.tables);
            items.file(loader::RSDP, files.rsdp);
            items.file(loader::LOADER, files.loader);
        }
        let mut order = bootorder.join("\n");
        if f.boot.strict {
            order += if order.is_empty() { "HALT" } else { "\nHALT" };
        }
        if !order.is_empty() {
            items.file("bootorder", [order.as_bytes(), b"\0"].concat());
        }
        if let Some(ms) = f.boot.splash_ms {
            items.file("etc/boot-menu-wait", ms.to_le_bytes().to_vec());
        }
        items.file("etc/boot-fail-wait", f.boot.reboot_ms.to_le_bytes().to_vec());
        if let Some(rom) = f.vga_rom.as_ref().filter(|_| self.vga.is_some()) {
            items.file("vgaroms/vgabios.bin", rom.clone());
        }
        items
    }
}

fn add(ports: &mut PortBus, cell: Arc<Mutex<FwCfg>>) -> Result<(), BoardError> {
    let clash = ports
        .ranges()
        .find(|(start, len, _)| *start < u64::from(fw_cfg::PORT + fw_cfg::PORTS) && start + len > fw_cfg::PORT.into());
    if clash.is_some() {
        return Err(BoardError::PortClash { new: "fw_cfg", old: "a device", port: fw_cfg::PORT });
    }
    ports.add(fw_cfg::PORT, fw_cfg::PORTS, 0, cell);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_order_in_cmos() {
        assert_eq!(cmos_boot("cad"), (0x12, 0x31));
        assert_eq!(cmos_boot("d"), (0x03, 0x01));
        assert_eq!(cmos_boot("nc"), (0x24, 0x01));
        assert_eq!(cmos_boot(""), (0, 1));
    }
}
