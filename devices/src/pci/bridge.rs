//! The two functions that every board has: host bridge and ISA bridge.
//!
//! The identities are those of Intel's Q35 memory controller, of the PIIX4's and of the ICH9's ISA bridge: firmware and operating
//! systems need no registers of them beyond those here.

use super::bus::PciFunction;
use super::config::{ConfigSpace, HEADER_TYPE, MULTIFUNCTION};
use std::sync::Arc;
use vm_core::{Device, LoadError, Pa, Section, Shadow, Smram, SmramParts, dlog};

const STATE_VERSION: u32 = 1;

/// Q35 MCH: enhanced configuration base; bit 0 enables, bits 2:1 = 0 mean 256 buses.
const PCIEXBAR: u16 = 0x60;
/// Q35 MCH: programmable attribute map. PAM0 has F0000h in its upper half; each of the others two areas of 16 KiB from C0000h on.
const PAM0: u16 = 0x90;
const PAM_COUNT: u16 = 7;
/// Reads go to RAM, writes go to RAM.
const PAM_READ_WRITE: u32 = 3;
const PAM_WRITE_ONLY: u32 = 2;
/// What of PAM0 and of the others can be written.
const PAM_WRITABLE: [u8; PAM_COUNT as usize] = [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33];

/// Q35 MCH: system management RAM control. What there is shows from A0000h on.
const SMRAM: u16 = 0x9d;
mod smram {
    pub const BASE: u8 = 0b010;
    pub const ENABLE: u8 = 1 << 3;
    /// Until reset nothing of both registers changes any more.
    pub const LOCK: u8 = 1 << 4;
    /// Data accesses of system management mode go to video memory.
    pub const CLOSED: u8 = 1 << 5;
    pub const OPEN: u8 = 1 << 6;
    pub const WRITABLE: u8 = ENABLE | LOCK | CLOSED | OPEN;
}
/// Q35 MCH: extended system management RAM control; the caches it speaks of are on. The high segment is missing.
const ESMRAMC: u16 = 0x9e;
mod esmramc {
    pub const TSEG: u8 = 1 << 0;
    pub const SIZE: u8 = 3 << 1;
    pub const CACHED: u8 = 7 << 3;
    /// An access from outside was made; a written 1 clears it. It is never set.
    pub const WRITABLE: u8 = TSEG | SIZE;
}

/// ISA bridges: routes of PCI interrupts, which the board has wired once and for all.
const PIRQ_A: u16 = 0x60;
const PIRQ_E: u16 = 0x68;
/// ICH9: ACPI base address (bit 0: ports), ACPI control (bit 7: enabled; interrupt 9).
const PMBASE: u16 = 0x40;
const ACPI_CNTL: u16 = 0x44;
const ACPI_EN: u8 = 1 << 7;

/// What the attribute map acts on.
pub struct Pam {
    pub shadow: Arc<Shadow>,
    /// Called after each change, with the bridge's lock held.
    pub changed: Arc<dyn Fn() + Send + Sync>,
}

/// What the registers of system management RAM act on.
pub struct Smm {
    pub smram: Arc<Smram>,
    /// End of RAM below 4 GiB, where the segment at its top ends.
    pub end: u64,
    /// As that of `Pam`.
    pub changed: Arc<dyn Fn() + Send + Sync>,
}

/// A bridge without behaviour of its own but the attribute map and system management RAM.
pub struct Bridge {
    name: &'static str,
    config: ConfigSpace,
    pam: Option<Pam>,
    smm: Option<Smm>,
}

impl Bridge {
    /// Host bridge. `ecam` is where the ECAM window lies, shown in PCIEXBAR. Without `pam` all of the memory below 1 MiB is RAM.
    /// Without `smm` there is no memory for system management mode.
    pub fn host(ecam: Option<Pa>, pam: Option<Pam>, smm: Option<Smm>) -> Self {
        let mut config = ConfigSpace::new(0x8086, 0x29c0, 0x06_00_00, 0x02);
        config.set_subsystem();
        config.set(PCIEXBAR, &ecam.map_or(0, |pa| pa.0 | 1).to_le_bytes());
        if pam.is_some() {
            config.allow(PAM0, &PAM_WRITABLE);
        } else {
            config.set(PAM0, &PAM_WRITABLE);
        }
        config.set(SMRAM, &[smram::BASE, esmramc::CACHED]);
        if smm.is_some() {
            config.allow(SMRAM, &[smram::WRITABLE, esmramc::WRITABLE]);
        }
        let this = Self { name: "pci-host-bridge", config, pam, smm };
        this.follow();
        this
    }

    /// The PIIX4's ISA bridge: behind it are the board's port devices. There may be more functions beside it.
    pub fn piix() -> Self {
        Self::isa(ConfigSpace::new(0x8086, 0x7110, 0x06_01_00, 0x02))
    }

    /// The ICH9's ISA bridge. `pm` is the first port of power management.
    pub fn ich9(pm: u16) -> Self {
        let mut config = ConfigSpace::new(0x8086, 0x2918, 0x06_01_00, 0x02);
        config.set(PMBASE, &u32::from(pm | 1).to_le_bytes());
        config.set(ACPI_CNTL, &[ACPI_EN]);
        config.allow(PIRQ_E, &[0x8f; 4]);
        Self::isa(config)
    }

    fn isa(mut config: ConfigSpace) -> Self {
        config.set_subsystem();
        config.set(HEADER_TYPE, &[MULTIFUNCTION]);
        config.allow(PIRQ_A, &[0x8f; 4]);
        Self { name: "pci-isa-bridge", config, pam: None, smm: None }
    }

    /// Areas as `Shadow::set` takes them.
    fn areas(&self) -> u32 {
        let register = |n: u16| self.config.read(PAM0 + n, 1);
        let low = (0..12u16).fold(0, |v, area| {
            let bits = register(1 + area / 2) >> (4 * (area % 2)) & PAM_READ_WRITE;
            v | bits << (2 * area)
        });
        low | (register(0) >> 4 & PAM_READ_WRITE) << 24
    }

    fn smram_parts(&self, end: u64) -> SmramParts {
        let (control, extended) = (self.config.read(SMRAM, 1) as u8, self.config.read(ESMRAMC, 1) as u8);
        if control & smram::ENABLE == 0 {
            return SmramParts::default();
        }
        // The fourth size is reserved.
        let count = [1, 2, 8, 0][usize::from(extended >> 1 & 3)];
        let first =
            (end >> 20).checked_sub(count.into()).filter(|first| extended & esmramc::TSEG != 0 && (1..0x1000).contains(first));
        let open = control & (smram::OPEN | smram::LOCK) == smram::OPEN;
        SmramParts { low: true, open, top: first.map_or((0, 0), |first| (first as u16, count)) }
    }

    /// Lets memory follow the registers.
    fn follow(&self) {
        self.follow_attributes();
        let Some(smm) = &self.smm else { return };
        let parts = self.smram_parts(smm.end);
        if smm.smram.get() != parts {
            smm.smram.set(parts);
            (smm.changed)();
        }
    }

    fn follow_attributes(&self) {
        let Some(pam) = &self.pam else { return };
        let areas = self.areas();
        if pam.shadow.get() != areas {
            if (0..Shadow::AREAS).any(|n| areas >> (2 * n) & PAM_READ_WRITE == PAM_WRITE_ONLY) {
                dlog!(UNIMP, "pci-host-bridge: memory that is written and reads as ROM; writes are dropped");
            }
            pam.shadow.set(areas);
            (pam.changed)();
        }
    }
}

impl PciFunction for Bridge {
    fn config_read(&mut self, offset: u16, size: u8) -> u32 {
        self.config.read(offset, size)
    }

    fn config_write(&mut self, offset: u16, size: u8, value: u32) {
        let before = self.config.read(SMRAM, 2);
        self.config.write(offset, size, value);
        let [old, extended] = [before as u8, (before >> 8) as u8];
        let new = self.config.read(SMRAM, 1) as u8;
        if old & smram::LOCK != 0 {
            // The choice of who sees data is not locked.
            self.config.put(SMRAM, &[old & !smram::CLOSED | new & smram::CLOSED, extended]);
        } else if new & smram::LOCK != 0 {
            self.config.put(SMRAM, &[new & !smram::OPEN]);
        }
        if new & !old & smram::CLOSED != 0 && self.smm.is_some() {
            dlog!(UNIMP, "pci-host-bridge: data accesses of system management mode stay in its memory (D_CLS)");
        }
        self.follow();
    }
}

impl Device for Bridge {
    fn name(&self) -> &'static str {
        self.name
    }

    fn reset(&mut self) {
        self.config.reset();
        self.follow();
    }

    fn save(&self) -> Section {
        Section::pack(self.name, STATE_VERSION, &self.config.bytes())
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let bytes: Vec<u8> = s.unpack(STATE_VERSION)?;
        if !self.config.restore(&bytes) {
            return Err(s.bad("configuration space of the wrong size"));
        }
        self.follow();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn pam() -> (Pam, Arc<AtomicU32>) {
        let told = Arc::new(AtomicU32::new(0));
        let count = told.clone();
        let changed = Arc::new(move || {
            count.fetch_add(1, Ordering::SeqCst);
        });
        (Pam { shadow: Arc::default(), changed }, told)
    }

    fn smm() -> (Smm, Arc<Smram>) {
        let smram = Arc::<Smram>::default();
        (Smm { smram: smram.clone(), end: 64 << 20, changed: Arc::new(|| {}) }, smram)
    }

    #[test]
    fn system_management_ram_opens_closes_and_locks() {
        let (smm, smram) = smm();
        let mut b = Bridge::host(None, None, Some(smm));
        assert_eq!((b.config_read(0x9d, 2), smram.get()), (0x3802, SmramParts::default()));
        b.config_write(0x9d, 1, 0x4a);
        assert_eq!(smram.get(), SmramParts { low: true, open: true, top: (0, 0) });
        for (size, top) in [(0, (63, 1)), (1, (62, 2)), (2, (56, 8)), (3, (64, 0))] {
            b.config_write(0x9e, 1, 1 | size << 1);
            assert_eq!(smram.get(), SmramParts { low: true, open: true, top }, "size {size}");
        }
        b.config_write(0x9e, 1, 3);
        b.config_write(0x9d, 1, 0x5a);
        // Locked, and closed by that.
        assert_eq!((b.config_read(0x9d, 2), smram.get()), (0x3b1a, SmramParts { low: true, open: false, top: (62, 2) }));
        b.config_write(0x9d, 2, 0x0042);
        assert_eq!(b.config_read(0x9d, 2), 0x3b1a);
        let saved = b.save();
        b.reset();
        assert_eq!((b.config_read(0x9d, 2), smram.get()), (0x3802, SmramParts::default()));
        b.load(&saved).unwrap();
        assert_eq!((b.config_read(0x9d, 2), smram.get()), (0x3b1a, SmramParts { low: true, open: false, top: (62, 2) }));
        // Without such memory nothing can be switched on.
        let mut b = Bridge::host(None, None, None);
        b.config_write(0x9d, 2, 0xffff);
        assert_eq!(b.config_read(0x9d, 2), 0x3802);
    }

    #[test]
    fn the_attribute_map_opens_and_closes_memory() {
        let (pam, told) = pam();
        let shadow = pam.shadow.clone();
        let mut b = Bridge::host(None, Some(pam), None);
        b.config_write(0x90, 1, 0x30);
        assert_eq!((shadow.get(), told.load(Ordering::SeqCst)), (3 << 24, 1));
        // C0000h to be read, C4000h to be read and written; C8000h and CC000h as well.
        b.config_write(0x91, 2, 0x3331);
        assert_eq!(shadow.get(), 3 << 24 | 0xfd);
        let saved = b.save();
        b.config_write(0x94, 4, !0);
        assert_eq!(b.config_read(0x94, 4), 0x0033_3333);
        b.load(&saved).unwrap();
        assert_eq!(shadow.get(), 3 << 24 | 0xfd);
        b.reset();
        assert_eq!((shadow.get(), told.load(Ordering::SeqCst)), (0, 5));
        assert_eq!(Bridge::host(None, None, None).areas(), Shadow::OPEN);
    }

    #[test]
    fn saved_state_contract() {
        vm_core::testing::contract(|| Bridge::host(Some(Pa(0xb000_0000)), None, None), 1, 256);
        vm_core::testing::contract(|| Bridge::host(None, Some(pam().0), Some(smm().0)), 1, 256);
        vm_core::testing::contract(Bridge::piix, 1, 256);
        vm_core::testing::contract(|| Bridge::ich9(0x600), 1, 256);
    }

    #[test]
    fn state_survives_and_reset_restores() {
        let mut b = Bridge::host(Some(Pa(0xb000_0000)), None, None);
        let fresh = b.save();
        for off in 0..=255 {
            b.config_write(off, 1, 0xff);
        }
        assert_eq!((b.config_read(4, 2), b.config_read(0x60, 4)), (0x547, 0xb000_0001));
        let saved = b.save();
        let mut c = Bridge::host(Some(Pa(0xb000_0000)), None, None);
        c.load(&saved).unwrap();
        assert_eq!(c.save(), saved);
        b.reset();
        assert_eq!(b.save(), fresh);
        assert!(b.load(&Section::pack("pci-host-bridge", 1, &vec![0u8; 3])).is_err());
    }
}
