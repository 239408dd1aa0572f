//! ACPI fixed hardware: PM1a event and control blocks, the PM timer and GPE block 0 (ACPI 6.5 "ACPI Hardware
//! Specification": PM1 Event Grouping, PM1 Control Grouping, Power Management Timer, General-Purpose Event Registers).

use crate::power::PowerSink;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vm_core::clock::Ns;
use vm_core::{Clock, Device, IrqLine, LoadError, PortIo, Section, Timer, dlog};

/// Region of the block at 600h: PM1a_EVT, PM1a_CNT, PM_TMR.
pub const REGION_PM1: u32 = 0;
pub const REGION_PM1_LEN: u16 = 12;
/// Region of GPE0 at 620h: eight bytes of status, eight of enables.
pub const REGION_GPE0: u32 = 1;
pub const REGION_GPE0_LEN: u16 = 16;

/// Frequency of the PM timer in Hz.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// SLP_TYP of soft off, as \_S5 in the DSDT gives it.
pub const SLP_TYP_S5: u16 = 5;

const STATE_VERSION: u32 = 1;

bitflags::bitflags! {
    /// PM1_STS and PM1_EN; BM and WAK have no enable.
    #[derive(Clone, Copy, PartialEq, Eq)]
    struct Pm1: u16 {
        const TMR = 1 << 0;
        const BM = 1 << 4;
        const GBL = 1 << 5;
        const PWRBTN = 1 << 8;
        const SLPBTN = 1 << 9;
        const RTC = 1 << 10;
        const WAK = 1 << 15;
    }
}

const PM1_ENABLES: Pm1 = Pm1::TMR.union(Pm1::GBL).union(Pm1::PWRBTN).union(Pm1::SLPBTN).union(Pm1::RTC);

/// PM1_CNT: ACPI mode. There is no SMI_CMD, so it is always on.
const PM1_CNT_SCI_EN: u16 = 1 << 0;
const PM1_CNT_BM_RLD: u16 = 1 << 1;
const PM1_CNT_SLP_TYP: u16 = 7 << 10;
const PM1_CNT_SLP_EN: u16 = 1 << 13;

/// The fixed-feature registers. The SCI is a level: high while an enabled status bit is set.
pub struct Pm {
    sci: IrqLine,
    power: Arc<dyn PowerSink>,
    timer: Timer,
    state: PmState,
}

#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct PmState {
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u64,
    gpe_enable: u64,
    /// Half periods of the PM timer (toggles of bit 31) that TMR_STS has shown.
    toggles: u64,
}

fn ticks(ns: Ns) -> u64 {
    (u128::from(ns) * u128::from(PM_TIMER_HZ) / 1_000_000_000) as u64
}

impl Pm {
    /// Registers whose timer is not bound: TMR_STS is only seen by polling. See `new_shared`.
    pub fn new(sci: IrqLine, power: Arc<dyn PowerSink>, clock: Clock) -> Self {
        let mut pm = Self { sci, power, timer: clock.timer("acpi-pm"), state: PmState::default() };
        pm.state.toggles = ticks(pm.timer.now()) >> 31;
        pm
    }

    /// The registers, raising `sci` (ISA 9) when the PM timer's bit 31 toggles and TMR_EN is set.
    pub fn new_shared(sci: IrqLine, power: Arc<dyn PowerSink>, clock: Clock) -> Arc<Mutex<Self>> {
        let pm = Arc::new(Mutex::new(Self::new(sci, power, clock)));
        let weak = Arc::downgrade(&pm);
        pm.lock().timer.bind(move |_| {
            if let Some(p) = weak.upgrade() {
                p.lock().update();
            }
        });
        pm
    }

    /// The user presses the power button: the guest is asked to shut down.
    pub fn press_power_button(&mut self) {
        self.state.status |= Pm1::PWRBTN.bits();
        self.update();
    }

    /// Raises general-purpose event `n` (0..=63); others are ignored.
    pub fn raise_gpe(&mut self, n: u32) {
        self.state.gpe_status |= 1u64.checked_shl(n).unwrap_or(0);
        self.update();
    }

    /// Value of PM_TMR.
    fn counter(&self) -> u32 {
        ticks(self.timer.now()) as u32
    }

    /// Brings TMR_STS, the SCI and the timer up to date.
    fn update(&mut self) {
        let toggles = ticks(self.timer.now()) >> 31;
        if toggles > self.state.toggles {
            self.state.toggles = toggles;
            self.state.status |= Pm1::TMR.bits();
        }
        let s = &self.state;
        self.sci.set(s.status & s.enable & PM1_ENABLES.bits() != 0 || s.gpe_status & s.gpe_enable != 0);
        if s.enable & Pm1::TMR.bits() != 0 {
            let next = (u128::from(toggles) + 1) << 31;
            let ns = (next * 1_000_000_000).div_ceil(u128::from(PM_TIMER_HZ));
            self.timer.arm(u64::try_from(ns).unwrap_or(u64::MAX));
        } else {
            self.timer.cancel();
        }
    }

    fn write_control(&mut self, v: u16) {
        self.state.control = v & (PM1_CNT_BM_RLD | PM1_CNT_SLP_TYP);
        if v & PM1_CNT_SLP_EN == 0 {
            return;
        }
        match (v & PM1_CNT_SLP_TYP) >> 10 {
            SLP_TYP_S5 => self.power.power_off(),
            t => dlog!(UNIMP, "acpi: sleep type {t} (only S5, type {SLP_TYP_S5}, is there)"),
        }
    }

    fn read_byte(&mut self, region: u32, offset: u16) -> u8 {
        let i = usize::from(offset);
        let s = &self.state;
        match (region, offset) {
            (REGION_PM1, 0..=1) => s.status.to_le_bytes()[i],
            (REGION_PM1, 2..=3) => s.enable.to_le_bytes()[i - 2],
            (REGION_PM1, 4..=5) => (s.control | PM1_CNT_SCI_EN).to_le_bytes()[i - 4],
            (REGION_PM1, 6..=7) => 0,
            (REGION_GPE0, 0..=7) => s.gpe_status.to_le_bytes()[i],
            (REGION_GPE0, 8..=15) => s.gpe_enable.to_le_bytes()[i - 8],
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, region: u32, offset: u16, v: u8) {
        let i = u32::from(offset);
        let s = &mut self.state;
        match (region, offset) {
            (REGION_PM1, 0..=1) => s.status &= !(u16::from(v) << (8 * i)),
            (REGION_PM1, 2..=3) => {
                let shift = 8 * (i - 2);
                s.enable = (s.enable & !(0xff << shift) | u16::from(v) << shift) & PM1_ENABLES.bits();
            }
            // SLP_TYP and SLP_EN share the upper byte, so that a byte write of it is complete.
            (REGION_PM1, 4) => s.control = s.control & 0xff00 | u16::from(v) & PM1_CNT_BM_RLD,
            (REGION_PM1, 5) => {
                let low = s.control & 0xff;
                self.write_control(u16::from(v) << 8 | low);
            }
            (REGION_GPE0, 0..=7) => s.gpe_status &= !(u64::from(v) << (8 * i)),
            (REGION_GPE0, 8..=15) => {
                let shift = 8 * (i - 8);
                s.gpe_enable = s.gpe_enable & !(0xff << shift) | u64::from(v) << shift;
            }
            _ => dlog!(GUEST_ERRORS, "acpi: write of {v:#x} to region {region} offset {offset:#x}"),
        }
    }
}

impl Device for Pm {
    fn name(&self) -> &'static str {
        "acpi-pm"
    }

    fn reset(&mut self) {
        self.state = PmState { toggles: ticks(self.timer.now()) >> 31, ..PmState::default() };
        self.update();
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), STATE_VERSION, &self.state)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        self.state = s.unpack(STATE_VERSION)?;
        self.update();
        Ok(())
    }

    fn ports(&mut self) -> Option<&mut dyn PortIo> {
        Some(self)
    }
}

impl PortIo for Pm {
    fn read(&mut self, region: u32, offset: u16, size: u8) -> u32 {
        self.update();
        // One sample for all bytes of the timer, so that a wide read is never torn.
        let counter = self.counter().to_le_bytes();
        (0..size.min(4)).fold(0, |v, i| {
            let off = offset.wrapping_add(i.into());
            let byte = match (region, off) {
                (REGION_PM1, 8..=11) => counter[usize::from(off - 8)],
                _ => self.read_byte(region, off),
            };
            v | u32::from(byte) << (8 * i)
        })
    }

    fn write(&mut self, region: u32, offset: u16, size: u8, value: u32) {
        self.update();
        for i in 0..size.min(4) {
            self.write_byte(region, offset.wrapping_add(i.into()), (value >> (8 * i)) as u8);
        }
        self.update();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::power::testkit::Asked;
    use crate::timer::testkit::{Probe, at};

    fn pm() -> (Clock, Arc<Probe>, Arc<Asked>, Arc<Mutex<Pm>>) {
        let (clock, asked) = (Clock::new(), Asked::new());
        let (probe, sci) = Probe::wire();
        let pm = Pm::new_shared(sci, asked.clone(), clock.clone());
        (clock, probe, asked, pm)
    }

    #[test]
    fn saved_state_contract() {
        vm_core::testing::contract(|| Pm::new(IrqLine::unconnected(), Asked::new(), Clock::new()), 3, 18);
    }

    #[test]
    fn power_button_raises_the_sci_until_it_is_acknowledged() {
        let (_, sci, _, pm) = pm();
        pm.lock().press_power_button();
        assert!(!sci.level(), "not enabled yet");
        pm.lock().write(REGION_PM1, 2, 2, Pm1::PWRBTN.bits().into());
        assert!(sci.level());
        assert_eq!(pm.lock().read(REGION_PM1, 0, 2), 0x100);
        pm.lock().write(REGION_PM1, 0, 2, 0x100);
        assert!(!sci.level());
    }

    #[test]
    fn soft_off_is_requested_by_type_5_only() {
        let (_, _, asked, pm) = pm();
        assert_eq!(pm.lock().read(REGION_PM1, 4, 2), 1, "ACPI mode is on");
        pm.lock().write(REGION_PM1, 4, 2, 5 << 10 | 1);
        pm.lock().write(REGION_PM1, 4, 2, 1 << 10 | 1 << 13);
        assert!(asked.take().is_empty());
        pm.lock().write(REGION_PM1, 4, 2, 5 << 10 | 1 << 13 | 1);
        assert_eq!(asked.take(), ["power off"]);
    }

    #[test]
    fn timer_runs_at_its_rate_and_signals_bit_31() {
        let (clock, sci, _, pm) = pm();
        clock.set(1_000_000_000);
        assert_eq!(pm.lock().read(REGION_PM1, 8, 4), 3_579_545);
        pm.lock().write(REGION_PM1, 2, 2, 1);
        at(&clock, 599_000_000_000);
        assert!(!sci.level());
        at(&clock, 600_000_000_000);
        assert!(sci.level());
        pm.lock().write(REGION_PM1, 0, 2, 1);
        assert!(!sci.level());
        at(&clock, 1_200_000_000_000);
        assert!(sci.level());
    }

    #[test]
    fn general_purpose_events() {
        let (_, sci, _, pm) = pm();
        pm.lock().write(REGION_GPE0, 8, 1, 0x02);
        pm.lock().raise_gpe(0);
        pm.lock().raise_gpe(99);
        assert!(!sci.level());
        pm.lock().raise_gpe(1);
        assert!(sci.level());
        pm.lock().write(REGION_GPE0, 0, 1, 0x02);
        assert!(!sci.level());
        assert_eq!(pm.lock().read(REGION_GPE0, 0, 4), 1);
    }
}
