//! Where system management interrupts come from: the APM ports of ICH9 and its SMI enable and status registers (Intel I/O
//! Controller Hub 9 datasheet, "APM_CNT", "APM_STS", "SMI_EN", "SMI_STS").

use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::{Device, LoadError, PortIo, Section, VcpuSignals};
use vm_core::{Events, dlog};

/// APM_CNT and APM_STS: two ports, at B2h.
pub const REGION_APM: u32 = 0;
/// SMI_EN and SMI_STS: eight ports, 30h behind the power management registers.
pub const REGION_SMI: u32 = 1;

/// SMI_EN.
mod en {
    pub const GBL_SMI: u32 = 1 << 0;
    /// End of SMI: written as 1 to let the next one come; here they always may.
    pub const EOS: u32 = 1 << 1;
    pub const APMC: u32 = 1 << 5;
    pub const KEPT: u32 = GBL_SMI | EOS | APMC;
}
/// SMI_STS: a write to APM_CNT was the cause.
const STS_APM: u32 = 1 << 5;
const VERSION: u32 = 1;

#[derive(Clone, Default, Serialize, Deserialize)]
struct State {
    cnt: u8,
    sts: u8,
    enable: u32,
    status: u32,
}

/// The ports, and the processors that an interrupt goes to.
pub struct Smi {
    cpus: Vec<Arc<VcpuSignals>>,
    state: State,
    /// SMI_EN after a reset.
    fresh: u32,
}

impl Smi {
    /// A controller at power-on: no source is enabled.
    pub fn new(cpus: Vec<Arc<VcpuSignals>>) -> Self {
        Self { cpus, state: State::default(), fresh: 0 }
    }

    /// As `new`, on a board without memory for system management mode: the enabled source tells firmware that somebody else has
    /// taken that mode.
    pub fn taken(cpus: Vec<Arc<VcpuSignals>>) -> Self {
        let mut this = Self { fresh: en::APMC, ..Self::new(cpus) };
        this.reset();
        this
    }

    fn apm_write(&mut self, offset: u16, value: u8) {
        if offset != 0 {
            self.state.sts = value;
            return;
        }
        self.state.cnt = value;
        if self.state.enable & en::APMC == 0 {
            return;
        }
        self.state.status |= STS_APM;
        if self.state.enable & en::GBL_SMI != 0 {
            self.cpus.iter().for_each(|c| c.raise(Events::SMI));
        }
    }

    /// SMI_EN, then SMI_STS.
    fn bytes(&self) -> [u8; 8] {
        (u64::from(self.state.enable) | u64::from(self.state.status) << 32).to_le_bytes()
    }
}

impl PortIo for Smi {
    fn read(&mut self, region: u32, offset: u16, size: u8) -> u32 {
        let all = if region == REGION_APM {
            u64::from_le_bytes([self.state.cnt, self.state.sts, 0, 0, 0, 0, 0, 0])
        } else {
            u64::from_le_bytes(self.bytes())
        };
        let v = all >> (8 * u32::from(offset & 7));
        if size >= 4 { v as u32 } else { v as u32 & ((1 << (8 * u32::from(size))) - 1) }
    }

    fn write(&mut self, region: u32, offset: u16, size: u8, value: u32) {
        for i in 0..u16::from(size.min(4)) {
            let (at, byte) = (offset.wrapping_add(i) & 7, value.to_le_bytes()[usize::from(i)]);
            match (region, at) {
                (REGION_APM, _) => self.apm_write(at, byte),
                (_, 0..4) => {
                    let shift = 8 * u32::from(at);
                    self.state.enable = (self.state.enable & !(0xff << shift) | u32::from(byte) << shift) & en::KEPT;
                    let asked = u32::from(byte) << shift & !en::KEPT;
                    if asked != 0 {
                        dlog!(UNIMP, "SMI_EN: sources {asked:#x} are not there");
                    }
                }
                // Written ones clear.
                _ => self.state.status &= !(u32::from(byte) << (8 * u32::from(at & 3))),
            }
        }
    }
}

impl Device for Smi {
    fn name(&self) -> &'static str {
        "smi"
    }

    fn reset(&mut self) {
        self.state = State { enable: self.fresh, ..State::default() };
    }

    fn save(&self) -> Section {
        Section::pack("smi", VERSION, &self.state)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let state: State = s.unpack(VERSION)?;
        if state.enable & !en::KEPT != 0 || state.status & !STS_APM != 0 {
            return Err(s.bad("a reserved bit is set"));
        }
        self.state = state;
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_state_contract() {
        vm_core::testing::contract(|| Smi::new(vec![Arc::default()]), 2, 8);
        vm_core::testing::contract(|| Smi::taken(vec![Arc::default()]), 2, 8);
    }

    #[test]
    fn a_write_to_apm_cnt_interrupts_where_it_is_enabled() {
        let cpus: Vec<Arc<VcpuSignals>> = vec![Arc::default(), Arc::default()];
        let mut d = Smi::new(cpus.clone());
        let came = || cpus.iter().map(|c| c.pending().contains(Events::SMI)).collect::<Vec<_>>();
        d.write(REGION_APM, 0, 1, 0x12);
        assert_eq!((d.read(REGION_APM, 0, 1), d.read(REGION_SMI, 4, 4)), (0x12, 0));
        d.write(REGION_SMI, 0, 4, 0x20);
        d.write(REGION_APM, 0, 1, 0x13);
        assert_eq!((came(), d.read(REGION_SMI, 4, 4)), (vec![false, false], 0x20));
        d.write(REGION_SMI, 4, 4, 0x20);
        d.write(REGION_SMI, 0, 1, 0x21);
        d.write(REGION_APM, 1, 1, 0x55);
        assert_eq!((came(), d.read(REGION_SMI, 4, 4)), (vec![false, false], 0));
        d.write(REGION_APM, 0, 1, 0x14);
        assert_eq!((came(), d.read(REGION_APM, 0, 2)), (vec![true, true], 0x5514));
    }
}
