//! Where RAM lies: below the legacy hole, above 1 MiB up to the PCI windows, the rest above 4 GiB.

use super::BoardError;
use arch_x86::paging::PHYS_BITS;
use std::sync::Arc;
use vm_core::{MemMap, Pa, Ram, Shadow};

/// PCI's enhanced configuration window; RAM below 4 GiB ends here at the latest.
pub const ECAM: Pa = Pa(0xb000_0000);
/// Where devices lie below 4 GiB, ECAM apart: a power of two, as one pair of MTRRs covers it.
pub const DEVICES: (u64, u64) = (0xc000_0000, 0x4000_0000);
/// The ACPI tables: in the range that software searches for the RSDP (ACPI 6.5 "Finding the RSDP on IA-PC Systems").
pub const ACPI_TABLES: Pa = Pa(0xe_0000);

/// Video memory: neither RAM nor ROM, but for system management mode.
const VIDEO: Pa = Pa(0xa_0000);
const VIDEO_END: Pa = Pa(0xc_0000);
const FOUR_GIB: u64 = 1 << 32;

/// Firmware's ROM: whole units up to 16 MiB, so that it lies above the local APICs. Its end shows below 1 MiB as well.
pub const ROM_UNIT: u64 = 64 << 10;
pub const ROM_MAX: u64 = 16 << 20;

/// Reserves RAM, and behind it room for `rom` bytes of firmware (a multiple of `ROM_UNIT`, at most `ROM_MAX`, or 0), and maps them.
pub fn make(bytes: u64, rom: u64) -> Result<(Arc<Ram>, MemMap), BoardError> {
    let low = bytes.min(ECAM.0);
    let high = bytes - low;
    if high > (1 << PHYS_BITS) - FOUR_GIB {
        return Err(BoardError::TooMuchRam(bytes));
    }
    // The ROM's last 128 KiB, which show below 1 MiB, are there even if it is smaller.
    let room = if rom > 0 { rom.max(Shadow::END - Shadow::ROM) } else { 0 };
    let ram = Ram::new(bytes + room).map_err(|e| BoardError::Ram(bytes, e))?;
    let mut map = MemMap::default();
    map.map_ram(Pa(0), VIDEO.0.min(low), 0, true);
    if low > VIDEO_END.0 {
        map.map_ram(VIDEO_END, low - VIDEO_END.0, VIDEO_END.0, true);
    }
    if high > 0 {
        map.map_ram(Pa(FOUR_GIB), high, low, true);
    }
    if rom > 0 {
        map.map_ram(Pa(FOUR_GIB - rom), rom, bytes + room - rom, false);
        map.set_shadow(Arc::default(), bytes + room - (Shadow::END - Shadow::ROM));
    }
    if low > VIDEO_END.0 {
        map.set_smram(Arc::default());
    }
    Ok((Arc::new(ram), map))
}

/// Bytes of RAM address space below and above 4 GiB (the video hole counts as RAM, as firmware reports it).
pub fn sizes(map: &MemMap) -> (u64, u64) {
    let end = |below: bool| {
        map.ram_ranges()
            .filter(|(s, _, writable)| *writable && (s.0 < FOUR_GIB) == below)
            .map(|(s, len, _)| s.0 + len)
            .max()
            .unwrap_or(0)
    };
    (end(true), end(false).saturating_sub(FOUR_GIB))
}
