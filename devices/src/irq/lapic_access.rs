//! Register reads and writes of the local APIC, common to MMIO and MSRs (SDM 3A "Local APIC Register Address Map").

use super::lapic_core::Core;
use super::lapic_regs::{DIVIDE_WRITABLE, VERSION, esr, icr, lvt, reg, svr};
use super::message::{Delivery, Dest, Message};
use vm_core::clock::Ns;
use vm_core::dlog;

/// What a register write asks for outside this APIC, to be done once its lock is released.
#[derive(Default)]
pub struct Effect {
    /// A level-triggered vector ended.
    pub eoi: Option<u8>,
    pub ipi: Option<Message>,
}

impl Core {
    /// Register `r` in the mode the APIC is in; `None` if there is none, or it cannot be read.
    pub fn read_reg(&mut self, r: u16, now: Ns) -> Option<u32> {
        let x2 = self.x2apic();
        Some(match r {
            reg::ID if x2 => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr.into(),
            reg::PPR => self.ppr().into(),
            // Not in x2APIC mode; EOI is write-only, the other two are always 0 since the Pentium 4.
            reg::APR | reg::EOI | reg::RRD if !x2 => 0,
            reg::LDR => self.ldr,
            reg::DFR if !x2 => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..reg::TMR => self.isr.word(r),
            reg::TMR..reg::IRR => self.tmr.word(r),
            reg::IRR..reg::ESR => self.irr.word(r),
            reg::ESR => self.esr,
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH if !x2 => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt[usize::from(r - reg::LVT_TIMER)],
            reg::INITIAL_COUNT => self.timer.initial,
            reg::CURRENT_COUNT => {
                self.sync_timer(now);
                self.timer.current(self.timer_mode(), now)
            }
            reg::DIVIDE => self.timer.divide,
            _ => return None,
        })
    }

    /// Writes register `r`; `None` if there is none, or it cannot be written. Reserved bits are dropped. `index` is
    /// this APIC's place on the bus.
    pub fn write_reg(&mut self, r: u16, v: u32, now: Ns, index: usize) -> Option<Effect> {
        let x2 = self.x2apic();
        let mut effect = Effect::default();
        match r {
            reg::ID if !x2 => self.id = v >> 24,
            reg::TPR => self.tpr = v as u8,
            reg::EOI => effect.eoi = self.eoi(),
            reg::LDR if !x2 => self.ldr = v & 0xff00_0000,
            reg::DFR if !x2 => self.dfr = v | 0x0fff_ffff,
            reg::SVR => self.set_svr(v),
            reg::ESR => self.esr = std::mem::take(&mut self.errors),
            reg::ICR => {
                self.icr = self.icr & !0xffff_ffff | u64::from(v & icr::WRITABLE);
                effect.ipi = self.ipi(index);
            }
            reg::ICR_HIGH if !x2 => self.icr = self.icr & 0xffff_ffff | u64::from(v & 0xff00_0000) << 32,
            reg::SELF_IPI if x2 => effect.ipi = self.fixed_ipi(Delivery::Fixed, v as u8, Dest::This(index)),
            reg::LVT_TIMER..=reg::LVT_ERROR | reg::INITIAL_COUNT | reg::DIVIDE => self.write_timer_or_lvt(r, v, now),
            _ => return None,
        }
        Some(effect)
    }

    /// The timer is synchronised before, so that an expiry is judged by the old settings, and after, for a new count
    /// that ends at once.
    fn write_timer_or_lvt(&mut self, r: u16, v: u32, now: Ns) {
        self.sync_timer(now);
        let mode = self.timer_mode();
        match r {
            reg::INITIAL_COUNT => self.timer.set_initial(mode, v, now),
            reg::DIVIDE => self.timer.set_divide(mode, v & DIVIDE_WRITABLE, now),
            _ => self.set_lvt(usize::from(r - reg::LVT_TIMER), v),
        }
        self.sync_timer(now);
    }

    /// The message that ICR describes (SDM 3A "Interrupt Command Register").
    fn ipi(&mut self, index: usize) -> Option<Message> {
        let low = self.icr as u32;
        let high = (self.icr >> 32) as u32;
        let logical = low & icr::LOGICAL != 0;
        let dest = match low >> icr::SHORTHAND_SHIFT & 3 {
            0 if self.x2apic() => Dest::wide(logical, high),
            0 => Dest::narrow(logical, (high >> 24) as u8),
            1 => Dest::This(index),
            2 => Dest::All,
            _ => Dest::Others(index),
        };
        if low & (icr::LEVEL | icr::ASSERT) == icr::LEVEL {
            // INIT level de-assert and its like: nothing since the Pentium 4.
            return None;
        }
        match Delivery::from_bits(low >> lvt::MODE_SHIFT) {
            None | Some(Delivery::ExtInt) => {
                dlog!(GUEST_ERRORS, "lapic: ICR {low:#x} has a reserved delivery mode");
                None
            }
            Some(d @ (Delivery::Fixed | Delivery::LowestPriority)) => self.fixed_ipi(d, low as u8, dest),
            Some(delivery) => Some(Message { dest, delivery, vector: low as u8, level: false }),
        }
    }

    /// IPIs are edge triggered, whatever the trigger bit says.
    fn fixed_ipi(&mut self, delivery: Delivery, vector: u8, dest: Dest) -> Option<Message> {
        if vector < 16 {
            self.error(esr::SEND_VECTOR);
            return None;
        }
        Some(Message { dest, delivery, vector, level: false })
    }

    /// x2APIC: RDMSR of register `r`.
    pub fn read_x2apic(&mut self, r: u16, now: Ns) -> Option<u64> {
        match r {
            reg::ICR => Some(self.icr),
            _ => self.read_reg(r, now).map(u64::from),
        }
    }

    /// x2APIC: WRMSR of register `r`. `None`, that is #GP, for reserved bits and registers that cannot be written.
    pub fn write_x2apic(&mut self, r: u16, v: u64, now: Ns, index: usize) -> Option<Effect> {
        let allowed: u64 = match r {
            reg::ICR => 0xffff_ffff_0000_0000 | u64::from(icr::WRITABLE | icr::READ_ONLY),
            reg::TPR | reg::SELF_IPI => 0xff,
            reg::SVR => svr::WRITABLE.into(),
            reg::EOI | reg::ESR => 0,
            reg::INITIAL_COUNT => 0xffff_ffff,
            reg::DIVIDE => DIVIDE_WRITABLE.into(),
            reg::LVT_TIMER..=reg::LVT_ERROR => {
                let n = usize::from(r - reg::LVT_TIMER);
                (lvt::WRITABLE[n] | lvt::READ_ONLY[n]).into()
            }
            _ => return None,
        };
        if v & !allowed != 0 {
            return None;
        }
        if r == reg::ICR {
            self.icr = v & 0xffff_ffff_0000_0000;
        }
        self.write_reg(r, v as u32, now, index)
    }
}
