//! The I/O APIC's state as another model of it (KVM's) goes on with it, and back (82093AA data sheet).

use super::ioapic::{IoApic, PINS, rte};
use std::sync::Arc;
use vm_core::IrqSink;

/// Registers, and the inputs that ask by level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoApicImage {
    /// 0..=15.
    pub id: u8,
    /// IOREGSEL.
    pub select: u8,
    /// Level-triggered inputs that are asserted. An edge is sent when it comes, or lost.
    pub asserted: u32,
    /// The redirection table.
    pub rte: [u64; PINS],
}

impl IoApic {
    /// Gives the state to another model by `give`, which goes on with it until `take_back`. Meanwhile changes of the inputs go to `to`. On an
    /// error nothing has changed.
    pub fn hand_over<E>(&mut self, to: Arc<dyn IrqSink>, give: impl FnOnce(&IoApicImage) -> Result<(), E>) -> Result<(), E> {
        let by_level = (0..PINS).filter(|pin| self.level_pin(*pin)).fold(0, |v, pin| v | 1 << pin);
        let s = &self.s;
        give(&IoApicImage { id: s.id, select: s.select, asserted: s.lines & by_level, rte: s.rte })?;
        self.away = Some(to);
        Ok(())
    }

    /// Takes the state back, if it was given; the inputs' levels are known here. Where `take` has an error, it goes on as it was when it was
    /// given.
    pub fn take_back<E>(&mut self, take: impl FnOnce() -> Result<IoApicImage, E>) -> Result<(), E> {
        if self.away.take().is_none() {
            return Ok(());
        }
        let outcome = take().map(|i| {
            (self.s.id, self.s.select) = (i.id & 15, i.select);
            for (own, e) in self.s.rte.iter_mut().zip(i.rte) {
                let pending = if e & rte::LEVEL != 0 { rte::REMOTE_IRR } else { 0 };
                *own = e & (rte::WRITABLE | pending);
            }
        });
        self.tell_all();
        (0..PINS).for_each(|pin| self.service_level(pin));
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use vm_core::{Mmio, MsiSink};

    #[derive(Default)]
    struct Log(Mutex<Vec<(u64, u32)>>, Mutex<Vec<(u32, bool)>>);

    impl MsiSink for Log {
        fn send_msi(&self, addr: u64, data: u32) {
            self.0.lock().push((addr, data));
        }
    }

    impl IrqSink for Log {
        fn set_irq(&self, line: u32, level: bool) {
            self.1.lock().push((line, level));
        }
    }

    fn write(a: &mut IoApic, reg: u64, v: u64) {
        a.write(0, 0, 4, reg);
        a.write(0, 0x10, 4, v);
    }

    #[test]
    fn a_level_that_came_meanwhile_is_sent_when_it_is_back() {
        let log = Arc::<Log>::default();
        let mut a = IoApic::new(log.clone());
        write(&mut a, 0x10 + 2 * 17, 0x8041);
        write(&mut a, 0x10 + 2 * 3, 0x33);
        a.set_input(3, true);
        a.set_input(5, true);
        assert_eq!(log.0.lock().len(), 1, "an edge");
        let mut given = IoApicImage::default();
        a.hand_over(log.clone(), |i| {
            given = *i;
            Ok::<(), ()>(())
        })
        .expect("given");
        assert_eq!((given.asserted, given.rte[17], given.rte[3]), (0, 0x8041, 0x33));
        a.set_input(3, true);
        a.set_input(17, true);
        a.set_input(3, false);
        assert_eq!((log.0.lock().len(), log.1.lock().as_slice()), (1, &[(17, true), (3, false)][..]));
        // The other model has not sent it.
        a.take_back(|| Ok::<_, ()>(given)).expect("taken");
        assert_eq!(log.0.lock().len(), 2);
        a.hand_over(log.clone(), |i| {
            given = *i;
            Ok::<(), ()>(())
        })
        .expect("given");
        assert_eq!((given.asserted, given.rte[17]), (1 << 17, 0xc041), "it waits for its end");
        a.take_back(|| Ok::<_, ()>(given)).expect("taken");
        assert_eq!(log.0.lock().len(), 2, "once");
        // Reserved bits of a forged one are dropped; after an error it is as it was.
        a.hand_over(log.clone(), |_| Ok::<(), ()>(())).expect("given");
        a.take_back(|| Ok::<_, ()>(IoApicImage { id: 0xff, select: 0xff, asserted: !0, rte: [!0; PINS] })).expect("taken");
        a.hand_over(log.clone(), |i| {
            assert_eq!((i.id, i.rte[0]), (15, rte::WRITABLE | rte::REMOTE_IRR));
            Err(())
        })
        .expect_err("not taken");
        a.set_input(9, true);
        assert_eq!(log.1.lock().len(), 2, "it is here");
    }
}
