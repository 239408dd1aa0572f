//! All interrupt controllers in KVM (`kernel-irqchip=on`): 8259s, I/O APIC and 8254 of the board go to KVM's models and come back, beside the
//! local APICs.

use crate::board::Board;
use accel_kvm::{ChannelRegs, HPET_LEGACY, Input, IoApicRegs, KvmError, PicRegs, PitRegs, SPEAKER, Vm};
use devices::irq::{ChipImage, IoApicImage};
use devices::timer::{ChannelImage, PitImage};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_core::{IrqSink, dlog};

/// Inputs whose trigger mode software may choose (82371SB ELCR), of master and slave.
const ELCR: [u8; 2] = [0xf8, 0xde];
/// KVM's 8254 has a channel 0 that does nothing by a mode that there is not, as at power-on.
const NO_MODE: u8 = 0xff;
/// KVM's numbers for the bytes of a count that are transferred next (its high byte as the second of two).
const SECOND_BYTE: u8 = 4;
const HIGH_BYTE: u8 = 2;

/// The board's interrupt controllers and KVM's.
pub struct Whole {
    vm: Arc<Vm>,
    board: Arc<Board>,
    state: Arc<Given>,
}

/// What the wires must know.
#[derive(Default)]
struct Given {
    /// KVM has the 8254.
    pit: AtomicBool,
    /// The 8254 comes back: its level is no news to KVM.
    quiet: AtomicBool,
}

/// The board's wires, while KVM has what they lead to.
struct Wire {
    vm: Arc<Vm>,
    input: fn(u32) -> Input,
    state: Arc<Given>,
}

impl IrqSink for Wire {
    fn set_irq(&self, line: u32, level: bool) {
        if !self.state.quiet.load(Ordering::SeqCst) {
            self.vm.set_input((self.input)(line), level);
        }
    }
}

impl Whole {
    pub fn new(vm: &Arc<Vm>, board: &Arc<Board>) -> Result<Self, KvmError> {
        let state = Arc::<Given>::default();
        board.ioapic.lock().without_eoi_register();
        if board.pit.is_some() {
            vm.create_pit()?;
        }
        if let Some(hpet) = &board.hpet {
            let (vm, state) = (vm.clone(), state.clone());
            hpet.lock().on_legacy(move |on| {
                if state.pit.load(Ordering::SeqCst)
                    && let Err(e) = cut(&vm, on)
                {
                    dlog!(UNIMP, "{e}");
                }
            });
        }
        Ok(Self { vm: vm.clone(), board: board.clone(), state })
    }

    fn wire(&self, input: fn(u32) -> Input) -> Arc<Wire> {
        Arc::new(Wire { vm: self.vm.clone(), input, state: self.state.clone() })
    }

    /// Before the local APICs: the 8259s do not ask the board's any more.
    pub fn give_pic(&self) -> Result<(), KvmError> {
        let Some(pic) = &self.board.pic else { return Ok(()) };
        let give = |i: &[ChipImage; 2]| self.vm.set_pics([pic_regs(&i[0], ELCR[0]), pic_regs(&i[1], ELCR[1])]);
        pic.lock().hand_over(self.wire(Input::Pic), give)
    }

    /// After the local APICs, which they tell at once.
    pub fn give_rest(&self) -> Result<(), KvmError> {
        let give = |i: &IoApicImage| {
            let (id, select) = (i.id.into(), i.select.into());
            self.vm.set_ioapic(&IoApicRegs { id, select, asserted: i.asserted, rte: i.rte })
        };
        self.board.ioapic.lock().hand_over(self.wire(Input::IoApic), give)?;
        let Some(pit) = &self.board.pit else { return Ok(()) };
        // The board's leaves its wire low before KVM's begins.
        pit.lock().hand_over(|i| self.vm.set_pit(&pit_regs(i, monotonic())))?;
        self.state.pit.store(true, Ordering::SeqCst);
        Ok(())
    }

    /// Before the local APICs come back: what the I/O APIC asks for then reaches KVM's.
    pub fn take_first(&self) -> Result<(), KvmError> {
        let timer = self.take_pit();
        let ioapic = self.board.ioapic.lock().take_back(|| {
            let r = self.vm.ioapic()?;
            Ok::<_, KvmError>(IoApicImage { id: r.id as u8, select: r.select as u8, asserted: r.asserted, rte: r.rte })
        });
        timer.and(ioapic)
    }

    fn take_pit(&self) -> Result<(), KvmError> {
        let Some(pit) = &self.board.pit else { return Ok(()) };
        self.state.pit.store(false, Ordering::SeqCst);
        self.state.quiet.store(true, Ordering::SeqCst);
        let outcome = pit.lock().take_back(|| {
            let regs = self.vm.pit()?;
            // Nobody is to hear of KVM's any more.
            self.vm.set_pit(&silent(&regs))?;
            Ok::<_, KvmError>(pit_image(&regs, monotonic()))
        });
        self.state.quiet.store(false, Ordering::SeqCst);
        outcome
    }

    /// After the local APICs have come back.
    pub fn take_pic(&self) -> Result<(), KvmError> {
        let Some(pic) = &self.board.pic else { return Ok(()) };
        pic.lock().take_back(|| Ok(self.vm.pics()?.map(|r| chip_image(&r))))
    }
}

/// ns.
fn monotonic() -> i64 {
    let t = clock_gettime(ClockId::Monotonic);
    t.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(t.tv_nsec)
}

/// Cuts channel 0 of KVM's 8254 off from its interrupt, or connects it again.
fn cut(vm: &Vm, on: bool) -> Result<(), KvmError> {
    let mut regs = vm.pit()?;
    regs.flags = regs.flags & !HPET_LEGACY | if on { HPET_LEGACY } else { 0 };
    vm.set_pit(&regs)
}

fn silent(regs: &PitRegs) -> PitRegs {
    let mut regs = *regs;
    regs.channels[0].mode = NO_MODE;
    regs
}

fn pic_regs(i: &ChipImage, elcr_mask: u8) -> PicRegs {
    PicRegs {
        last_irr: i.lines,
        irr: i.irr,
        imr: i.imr,
        isr: i.isr,
        priority_add: i.top,
        irq_base: i.vectors,
        read_reg_select: i.read_isr.into(),
        poll: i.poll.into(),
        special_mask: i.special_mask.into(),
        init_state: i.expect,
        auto_eoi: i.auto_eoi.into(),
        rotate_on_auto_eoi: i.rotate_aeoi.into(),
        special_fully_nested_mode: i.nested.into(),
        init4: i.icw4.into(),
        elcr: i.elcr,
        elcr_mask,
    }
}

fn chip_image(r: &PicRegs) -> ChipImage {
    ChipImage {
        lines: r.last_irr,
        irr: r.irr,
        imr: r.imr,
        isr: r.isr,
        top: r.priority_add & 7,
        vectors: r.irq_base,
        read_isr: r.read_reg_select != 0,
        poll: r.poll != 0,
        special_mask: r.special_mask != 0,
        expect: r.init_state & 3,
        auto_eoi: r.auto_eoi != 0,
        rotate_aeoi: r.rotate_on_auto_eoi != 0,
        nested: r.special_fully_nested_mode != 0,
        icw4: r.init4 != 0,
        elcr: r.elcr,
    }
}

fn pit_regs(i: &PitImage, now: i64) -> PitRegs {
    let flags = if i.speaker { SPEAKER } else { 0 } | if i.cut { HPET_LEGACY } else { 0 };
    PitRegs { channels: i.channels.each_ref().map(|c| channel_regs(c, now)), flags, ..PitRegs::default() }
}

fn channel_regs(c: &ChannelImage, now: i64) -> ChannelRegs {
    let both = c.rw == 3;
    let reading_high = both && c.read_high;
    ChannelRegs {
        count: c.count,
        latched_count: c.latched.unwrap_or(0),
        count_latched: match c.latched {
            None => 0,
            Some(_) if reading_high => HIGH_BYTE,
            Some(_) => c.rw,
        },
        status_latched: c.latched_status.is_some().into(),
        status: c.latched_status.unwrap_or(0),
        read_state: if reading_high && c.latched.is_none() { SECOND_BYTE } else { c.rw },
        write_state: if both && c.half.is_some() { SECOND_BYTE } else { c.rw },
        write_latch: c.half.unwrap_or(0),
        rw_mode: c.rw,
        mode: c.mode.unwrap_or(NO_MODE),
        bcd: c.bcd.into(),
        gate: c.gate.into(),
        count_load_time: now.wrapping_sub(c.elapsed.min(i64::MAX as u64) as i64),
    }
}

fn pit_image(r: &PitRegs, now: i64) -> PitImage {
    let channels = r.channels.each_ref().map(|c| channel_image(c, now));
    PitImage { channels, speaker: r.flags & SPEAKER != 0, cut: r.flags & HPET_LEGACY != 0 }
}

fn channel_image(c: &ChannelRegs, now: i64) -> ChannelImage {
    let latched = (c.count_latched != 0).then_some(c.latched_count);
    let second = match latched {
        Some(_) => c.rw_mode == 3 && c.count_latched == HIGH_BYTE,
        None => c.read_state == SECOND_BYTE,
    };
    ChannelImage {
        mode: (c.mode <= 5).then_some(c.mode),
        count: c.count,
        elapsed: now.saturating_sub(c.count_load_time).max(0) as u64,
        bcd: c.bcd != 0,
        rw: c.rw_mode,
        gate: c.gate != 0,
        half: (c.write_state == SECOND_BYTE).then_some(c.write_latch),
        read_high: second,
        latched,
        latched_status: (c.status_latched != 0).then_some(c.status),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_core::testing::Rng;

    #[test]
    fn images_come_back_from_kvms_form_as_they_went() {
        let mut r = Rng(5);
        for round in 0..500 {
            let mut b = || r.below(256) as u8;
            let chip = ChipImage {
                lines: b(),
                irr: b(),
                imr: b(),
                isr: b(),
                top: b() & 7,
                vectors: b() & 0xf8,
                read_isr: b() > 99,
                poll: b() > 99,
                special_mask: b() > 99,
                expect: b() & 3,
                auto_eoi: b() > 99,
                rotate_aeoi: b() > 99,
                nested: b() > 99,
                icw4: b() > 99,
                elcr: b(),
            };
            assert_eq!(chip_image(&pic_regs(&chip, 0xf8)), chip);
            let rw = 1 + b() % 3;
            let channel = ChannelImage {
                mode: Some(b() % 6).filter(|_| round % 7 != 0),
                count: 1 + u32::from(b()) * 257,
                elapsed: u64::from(b()) * 1_000_000,
                bcd: b() > 99,
                rw,
                gate: b() > 99,
                half: Some(b()).filter(|v| rw == 3 && *v > 99),
                read_high: rw == 3 && b() > 99,
                latched: Some(u16::from(b()) << 3).filter(|v| *v > 99),
                latched_status: Some(b()).filter(|v| *v > 99),
            };
            let pit = PitImage { channels: [channel; 3], speaker: b() > 99, cut: b() > 99 };
            assert_eq!(pit_image(&pit_regs(&pit, 1 << 40), 1 << 40), pit, "round {round}");
        }
        assert_eq!(silent(&pit_regs(&PitImage::default(), 0)).channels[0].mode, NO_MODE);
    }
}
