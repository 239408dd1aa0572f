//! Registers and priority logic of one local APIC, without its wires (SDM 3A "Handling Interrupts").

use super::lapic_regs::{DIVIDE_WRITABLE, ERROR, LINT0, LVTS, TIMER, base, esr, lvt, svr};
use super::lapic_timer::{Mode, TimerState};
use super::message::{Delivery, Dest};
use serde::{Deserialize, Serialize};
use vm_core::clock::Ns;

/// A set of vectors: ISR, TMR or IRR.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
pub struct Vectors([u32; 8]);

impl Vectors {
    pub fn get(&self, v: u8) -> bool {
        self.0[usize::from(v >> 5)] >> (v & 31) & 1 != 0
    }

    pub fn put(&mut self, v: u8, on: bool) {
        let bit = 1 << (v & 31);
        let word = &mut self.0[usize::from(v >> 5)];
        *word = if on { *word | bit } else { *word & !bit };
    }

    pub fn highest(&self) -> Option<u8> {
        let i = self.0.iter().rposition(|w| *w != 0)?;
        Some((i * 32) as u8 + self.0[i].ilog2() as u8)
    }

    pub fn from_words(words: [u32; 8]) -> Self {
        Self(words)
    }

    /// Word `i` (modulo 8).
    pub fn word(&self, i: u16) -> u32 {
        self.0[usize::from(i & 7)]
    }
}

/// All state of a local APIC; also its saved form.
#[derive(Clone, Serialize, Deserialize)]
pub struct Core {
    /// IA32_APIC_BASE.
    pub base: u64,
    pub id: u32,
    pub tpr: u8,
    pub ldr: u32,
    pub dfr: u32,
    pub svr: u32,
    pub isr: Vectors,
    pub tmr: Vectors,
    pub irr: Vectors,
    /// As software reads it; `errors` is what the next write to ESR moves there.
    pub esr: u32,
    pub errors: u32,
    pub icr: u64,
    pub lvt: [u32; LVTS],
    pub timer: TimerState,
    /// Levels of the pins LINT0 and LINT1.
    pub lint: [bool; 2],
    /// An ExtINT message has come and was not yet acknowledged.
    pub extint: bool,
    /// The processor waits for a start-up IPI.
    pub wait_sipi: bool,
    pub sipi_vector: u8,
}

impl Core {
    /// Power-on state: enabled in IA32_APIC_BASE, software-disabled.
    pub fn power_on(id: u32, bsp: bool) -> Self {
        let bsp_bit = if bsp { base::BSP } else { 0 };
        Self {
            base: base::DEFAULT | base::EN | bsp_bit,
            id,
            tpr: 0,
            ldr: 0,
            dfr: !0,
            svr: svr::RESET,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [lvt::MASKED; LVTS],
            timer: TimerState::default(),
            lint: [false; 2],
            extint: false,
            wait_sipi: !bsp,
            sipi_vector: 0,
        }
    }

    /// SDM 3A "Local APIC State After an INIT Reset": all but the APIC ID and IA32_APIC_BASE; the pins keep their level.
    pub fn init_reset(&mut self) {
        let bsp = self.base & base::BSP != 0;
        let (base, id, ldr) = (self.base, self.id, self.ldr);
        let fresh = Self::power_on(id, bsp);
        *self = Self { base, lint: self.lint, sipi_vector: self.sipi_vector, ..fresh };
        if self.x2apic() {
            self.ldr = ldr;
        }
    }

    pub fn hw_enabled(&self) -> bool {
        self.base & base::EN != 0
    }

    pub fn x2apic(&self) -> bool {
        self.base & (base::EN | base::EXTD) == base::EN | base::EXTD
    }

    pub fn sw_enabled(&self) -> bool {
        self.hw_enabled() && self.svr & svr::ENABLE != 0
    }

    /// Derives ID and LDR on entering x2APIC mode (SDM 3A "Logical Destination Mode in x2APIC Mode").
    pub fn enter_x2apic(&mut self, id: u32) {
        self.id = id;
        self.ldr = (id >> 4) << 16 | 1 << (id & 15);
    }

    /// SDM 3A "Task and Processor Priorities".
    pub fn ppr(&self) -> u8 {
        let service = self.isr.highest().unwrap_or(0) & 0xf0;
        if self.tpr & 0xf0 >= service { self.tpr } else { service }
    }

    /// The fixed interrupt that goes to the processor next. What was accepted before a software disable stays.
    pub fn deliverable(&self) -> Option<u8> {
        let v = self.irr.highest()?;
        (self.hw_enabled() && v & 0xf0 > self.ppr() & 0xf0).then_some(v)
    }

    /// Whether the external controller asks: through LINT0 as ExtINT, or as the plain INTR pin when the APIC is disabled.
    pub fn extint_pending(&self) -> bool {
        let wired = !self.hw_enabled() || self.lint_mode(0) == Some(Delivery::ExtInt);
        (self.lint[0] && wired) || self.extint
    }

    /// Delivery mode of an unmasked LINT pin (0 or 1).
    pub fn lint_mode(&self, n: usize) -> Option<Delivery> {
        let e = self.lvt[LINT0 + (n & 1)];
        (e & lvt::MASKED == 0).then(|| Delivery::from_bits(e >> lvt::MODE_SHIFT))?
    }

    /// Accepts a fixed interrupt, if enabled; vectors below 16 are errors.
    pub fn accept_fixed(&mut self, vector: u8, level: bool) {
        if !self.sw_enabled() {
            return;
        }
        if vector < 16 {
            self.error(esr::RECEIVE_VECTOR);
            return;
        }
        self.irr.put(vector, true);
        self.tmr.put(vector, level);
    }

    /// Notes an error; a new one raises the error interrupt.
    pub fn error(&mut self, bit: u32) {
        if self.errors & bit != 0 {
            return;
        }
        self.errors |= bit;
        let e = self.lvt[ERROR];
        if e & lvt::MASKED == 0 {
            // Ends after one turn: an illegal vector here finds its own bit set the second time.
            self.accept_fixed(e as u8, false);
        }
    }

    /// Moves the next interrupt into service.
    pub fn ack(&mut self) -> Option<u8> {
        let v = self.deliverable()?;
        self.irr.put(v, false);
        self.isr.put(v, true);
        Some(v)
    }

    /// Ends the interrupt in service; returns a level-triggered vector whose EOI is to be broadcast.
    pub fn eoi(&mut self) -> Option<u8> {
        let v = self.isr.highest()?;
        self.isr.put(v, false);
        let e = self.lvt[LINT0];
        if e & lvt::REMOTE_IRR != 0 && e as u8 == v {
            self.lvt[LINT0] &= !lvt::REMOTE_IRR;
            self.service_lint0();
        }
        (self.tmr.get(v) && self.svr & svr::SUPPRESS_EOI == 0).then_some(v)
    }

    /// LINT0 as a level-triggered fixed interrupt: repeats after EOI while the pin is high.
    pub fn service_lint0(&mut self) {
        let e = self.lvt[LINT0];
        let idle = e & (lvt::LEVEL | lvt::REMOTE_IRR) == lvt::LEVEL;
        if self.lint[0] && idle && self.lint_mode(0) == Some(Delivery::Fixed) && self.sw_enabled() {
            if e as u8 >= 16 {
                self.lvt[LINT0] |= lvt::REMOTE_IRR;
            }
            self.accept_fixed(e as u8, true);
        }
    }

    pub fn timer_mode(&self) -> Mode {
        Mode::from_bits(self.lvt[TIMER] >> lvt::TIMER_MODE_SHIFT)
    }

    /// Takes the timer's expiries up to `now`; true if there was one.
    pub fn sync_timer(&mut self, now: Ns) -> bool {
        let expired = self.timer.expire(self.timer_mode(), now);
        let e = self.lvt[TIMER];
        if expired && e & lvt::MASKED == 0 {
            self.accept_fixed(e as u8, false);
        }
        expired
    }

    /// The spurious-vector register. A software disable masks the whole vector table.
    pub fn set_svr(&mut self, v: u32) {
        self.svr = v & svr::WRITABLE;
        if !self.sw_enabled() {
            self.lvt.iter_mut().for_each(|e| *e |= lvt::MASKED);
        }
    }

    /// Entry `i` of the local vector table (other indices are ignored); the timer must have been synchronised.
    pub fn set_lvt(&mut self, i: usize, v: u32) {
        let Some(&writable) = lvt::WRITABLE.get(i) else { return };
        let old_mode = self.timer_mode();
        let mut e = self.lvt[i] & lvt::REMOTE_IRR | v & writable;
        if e & lvt::LEVEL == 0 {
            e &= !lvt::REMOTE_IRR;
        }
        if !self.sw_enabled() {
            e |= lvt::MASKED;
        }
        self.lvt[i] = e;
        if i == TIMER {
            self.timer.change_mode(old_mode, self.timer_mode());
        }
        self.service_lint0();
    }

    /// Whether a message to `d` is for this APIC (SDM 3A "Determining IPI Destination").
    pub fn is_addressed(&self, d: &Dest) -> bool {
        if !self.hw_enabled() {
            return false;
        }
        match *d {
            Dest::All => true,
            Dest::Physical(id) => id == self.id,
            Dest::Logical(mask) if self.x2apic() => self.ldr >> 16 == 0 && self.ldr & u32::from(mask) != 0,
            Dest::Logical(mask) => {
                let own = (self.ldr >> 24) as u8;
                match self.dfr >> 28 {
                    0xf => own & mask != 0,
                    0 => own & 0xf0 == mask & 0xf0 && own & mask & 0x0f != 0,
                    _ => false,
                }
            }
            Dest::LogicalX2(id) => self.x2apic() && self.ldr >> 16 == id >> 16 && self.ldr & id & 0xffff != 0,
            Dest::This(_) | Dest::Others(_) => false,
        }
    }

    /// Whether a loaded state is one that this APIC can be in.
    pub fn is_valid(&self, base_reserved: u64) -> bool {
        let lvts = self.lvt.iter().zip(lvt::WRITABLE).all(|(e, w)| e & !(w | lvt::REMOTE_IRR) == 0);
        let base = self.base & base_reserved == 0;
        lvts && base && self.svr & !svr::WRITABLE == 0 && self.timer.divide & !DIVIDE_WRITABLE == 0
    }
}
