//! The local APIC's state as its register page shows it, for another model of the same chip (KVM's) that goes on with it, and back
//! (SDM 3A "Local APIC Register Address Map").

use super::lapic_core::{Core, Vectors};
use super::lapic_regs::{DIVIDE_WRITABLE, LVTS, VERSION, lvt, reg, svr};
use super::lapic_timer::Mode;
use vm_core::clock::Ns;

/// All registers that software can see, and what it cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LapicImage {
    /// By register number (offset in the page / 16).
    pub regs: [u32; 64],
    /// IA32_APIC_BASE.
    pub base: u64,
    /// The processor waits for a start-up IPI.
    pub wait_sipi: bool,
}

const TIMER_LVT: usize = 0;

impl Core {
    pub(super) fn image(&mut self, now: Ns) -> LapicImage {
        self.sync_timer(now);
        let mut regs = [0; 64];
        let mut put = |r: u16, v: u32| regs[usize::from(r)] = v;
        put(reg::ID, if self.x2apic() { self.id } else { self.id << 24 });
        put(reg::VERSION, VERSION);
        put(reg::TPR, self.tpr.into());
        put(reg::PPR, self.ppr().into());
        put(reg::LDR, self.ldr);
        put(reg::DFR, self.dfr);
        put(reg::SVR, self.svr);
        put(reg::ESR, self.esr);
        put(reg::ICR, self.icr as u32);
        put(reg::ICR_HIGH, (self.icr >> 32) as u32);
        put(reg::INITIAL_COUNT, self.timer.initial);
        put(reg::CURRENT_COUNT, self.timer.current(self.timer_mode(), now));
        put(reg::DIVIDE, self.timer.divide);
        for i in 0..8 {
            put(reg::ISR + i, self.isr.word(i));
            put(reg::TMR + i, self.tmr.word(i));
            put(reg::IRR + i, self.irr.word(i));
        }
        (0..).zip(self.lvt).for_each(|(i, e)| put(reg::LVT_TIMER + i, e));
        LapicImage { regs, base: self.base, wait_sipi: self.wait_sipi }
    }

    /// Takes all that an image has; bits that do not exist here are dropped. `base_reserved`: those of IA32_APIC_BASE.
    pub(super) fn set_image(&mut self, i: &LapicImage, base_reserved: u64, now: Ns) {
        let get = |r: u16| i.regs[usize::from(r)];
        self.base = i.base & !base_reserved;
        self.id = if self.x2apic() { get(reg::ID) } else { get(reg::ID) >> 24 };
        self.tpr = get(reg::TPR) as u8;
        (self.ldr, self.dfr) = (get(reg::LDR), get(reg::DFR) | 0x0fff_ffff);
        self.svr = get(reg::SVR) & svr::WRITABLE;
        (self.esr, self.errors) = (get(reg::ESR), 0);
        self.icr = u64::from(get(reg::ICR)) | u64::from(get(reg::ICR_HIGH)) << 32;
        let vectors = |first: u16| Vectors::from_words(std::array::from_fn(|n| get(first + n as u16)));
        (self.isr, self.tmr, self.irr) = (vectors(reg::ISR), vectors(reg::TMR), vectors(reg::IRR));
        for n in 0..LVTS {
            self.lvt[n] = get(reg::LVT_TIMER + n as u16) & (lvt::WRITABLE[n] | lvt::REMOTE_IRR);
        }
        (self.timer.initial, self.timer.divide) = (get(reg::INITIAL_COUNT), get(reg::DIVIDE) & DIVIDE_WRITABLE);
        let mode = Mode::from_bits(self.lvt[TIMER_LVT] >> lvt::TIMER_MODE_SHIFT);
        self.timer.go_on(mode, get(reg::CURRENT_COUNT), now);
        self.wait_sipi = i.wait_sipi;
        self.extint = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_core::testing::Rng;

    /// A state that software could have made, by random writes.
    fn random(r: &mut Rng, x2apic: bool) -> Core {
        let mut c = Core::power_on(3, false);
        if x2apic {
            c.base |= 1 << 10;
            c.enter_x2apic(3);
        }
        let mut now = 1000;
        for _ in 0..200 {
            now += r.below(5000);
            let _ = c.write_reg(r.below(0x40) as u16, r.next_u64() as u32, now, 0);
            c.accept_fixed(r.next_u64() as u8, r.one_in(2));
            let _ = c.ack();
        }
        c.svr |= svr::ENABLE;
        c
    }

    #[test]
    fn an_image_is_taken_back_as_it_was_given() {
        let mut r = Rng(7);
        for round in 0..200 {
            let mut c = random(&mut r, round % 2 == 1);
            let now = 10_000_000;
            let image = c.image(now);
            let mut d = Core::power_on(3, false);
            d.set_image(&image, !0xffff_ffff_ffff, now);
            let periodic = c.timer_mode() == Mode::Periodic;
            if periodic && image.regs[usize::from(reg::CURRENT_COUNT)] == 0 {
                // Another model's may be at 0 for a moment: it begins anew.
                continue;
            }
            assert_eq!(d.image(now), image, "round {round}");
            assert_eq!((d.deliverable(), d.ppr(), d.base), (c.deliverable(), c.ppr(), c.base));
            // The timer goes on: both expire, or do not, at the same time, to a tick.
            let left = c.timer.current(c.timer_mode(), now + 5000).abs_diff(d.timer.current(d.timer_mode(), now + 5000));
            assert!(left <= 1, "round {round}: {left}");
        }
    }

    #[test]
    fn a_forged_image_is_masked() {
        let mut c = Core::power_on(0, true);
        let image = LapicImage { regs: [!0; 64], base: !0, wait_sipi: false };
        c.set_image(&image, !0x0f_ffff_fd00, 0);
        assert!(c.is_valid(!0x0f_ffff_fd00));
        let _ = c.image(u64::MAX);
    }
}
