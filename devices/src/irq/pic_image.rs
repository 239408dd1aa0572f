//! The 8259 pair's state as another model of it (KVM's) goes on with it, and back (8259A data sheet).

use super::pic::{CASCADE, Pic};
use std::sync::Arc;
use vm_core::IrqSink;

/// One chip: its registers and latches, and how far its initialisation has come. ICW3 is the PC's wiring, and single mode has none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChipImage {
    /// Levels of the inputs.
    pub lines: u8,
    pub irr: u8,
    pub imr: u8,
    pub isr: u8,
    /// The input of highest priority, 0..=7.
    pub top: u8,
    /// Vector of input 0.
    pub vectors: u8,
    /// A read gives ISR, not IRR.
    pub read_isr: bool,
    pub poll: bool,
    pub special_mask: bool,
    /// The word that is expected next: 0 for OCW1, 1..=3 for ICW2 to ICW4.
    pub expect: u8,
    pub auto_eoi: bool,
    pub rotate_aeoi: bool,
    /// Special fully nested mode.
    pub nested: bool,
    /// ICW1 has announced ICW4.
    pub icw4: bool,
    /// Inputs that work by level.
    pub elcr: u8,
}

impl Pic {
    /// Gives the state to another model by `give`, which goes on with it until `take_back`. Meanwhile changes of the inputs go to `to`, and
    /// INT is low. On an error nothing has changed.
    pub fn hand_over<E>(&mut self, to: Arc<dyn IrqSink>, give: impl FnOnce(&[ChipImage; 2]) -> Result<(), E>) -> Result<(), E> {
        give(&self.chips.each_ref().map(|c| c.image()))?;
        self.away = Some(to);
        self.out.set(false);
        Ok(())
    }

    /// Takes the state back, if it was given. Where `take` has an error, it goes on as it was when it was given.
    pub fn take_back<E>(&mut self, take: impl FnOnce() -> Result<[ChipImage; 2], E>) -> Result<(), E> {
        if self.away.take().is_none() {
            return Ok(());
        }
        let outcome = take().map(|images| {
            self.chips.iter_mut().zip(&images).for_each(|(c, i)| c.set_image(i));
            let wiring = [1 << CASCADE, CASCADE];
            self.chips.iter_mut().zip(wiring).for_each(|(c, w)| c.wired(w));
            // Another request of the slave's is an edge again.
            self.chips[0].set_line(CASCADE, false);
        });
        self.update();
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};
    use vm_core::testing::Rng;
    use vm_core::{IrqLine, PortIo};

    #[derive(Default)]
    struct Seen {
        out: AtomicBool,
        changes: Mutex<Vec<(u32, bool)>>,
    }

    impl IrqSink for Seen {
        fn set_irq(&self, line: u32, level: bool) {
            if line == u32::MAX {
                self.out.store(level, Ordering::SeqCst);
            } else {
                self.changes.lock().push((line, level));
            }
        }
    }

    fn pic() -> (Pic, Arc<Seen>) {
        let seen = Arc::<Seen>::default();
        (Pic::new(IrqLine::new(seen.clone(), u32::MAX)), seen)
    }

    fn set_up(p: &mut Pic) {
        for (region, words) in [(0, [0x11, 0x20, 4, 1]), (1, [0x11, 0x28, 2, 1])] {
            p.write(region, 0, 1, words[0]);
            words[1..].iter().for_each(|w| p.write(region, 1, 1, *w));
            p.write(region, 1, 1, 0);
        }
    }

    #[test]
    fn what_was_given_and_taken_back_interrupts_alike() {
        let mut r = Rng(3);
        for round in 0..300 {
            let ((mut a, out_a), (mut b, out_b)) = (pic(), pic());
            for p in [&mut a, &mut b] {
                set_up(p);
            }
            for step in 0..r.below(60) {
                let (line, on, ack, eoi) = (r.below(16) as u32, r.one_in(2), r.one_in(5), r.one_in(5));
                let word = if r.one_in(4) { r.below(256) as u32 } else { 0 };
                for p in [&mut a, &mut b] {
                    p.set_input(if line == 2 { 3 } else { line }, on);
                    if ack {
                        p.ack();
                    }
                    if eoi {
                        p.write(0, 0, 1, 0x20);
                        p.write(1, 0, 1, 0x20);
                    }
                    if word != 0 {
                        p.write(2, 0, 1, word);
                    }
                }
                assert_eq!(out_a.out.load(Ordering::SeqCst), out_b.out.load(Ordering::SeqCst), "round {round}, step {step}");
            }
            let mut images = [ChipImage::default(); 2];
            b.hand_over(out_b.clone(), |i| {
                images = *i;
                Ok::<(), ()>(())
            })
            .expect("given");
            assert!(!out_b.out.load(Ordering::SeqCst), "INT is the other model's");
            b.take_back(|| Ok::<_, ()>(images)).expect("taken");
            for _ in 0..20 {
                assert_eq!(out_a.out.load(Ordering::SeqCst), out_b.out.load(Ordering::SeqCst), "round {round}");
                assert_eq!((a.ack(), a.intr()), (b.ack(), b.intr()), "round {round}");
                for p in [&mut a, &mut b] {
                    p.write(1, 0, 1, 0x20);
                    p.write(0, 0, 1, 0x20);
                }
            }
        }
    }

    #[test]
    fn inputs_change_the_other_model_meanwhile() {
        let (mut p, seen) = pic();
        set_up(&mut p);
        p.set_input(4, true);
        p.hand_over(seen.clone(), |i| {
            assert_eq!((i[0].lines, i[0].irr, i[0].vectors), (0x10, 0x10, 0x20));
            Ok::<(), ()>(())
        })
        .expect("given");
        for (line, level) in [(4, true), (4, false), (9, true), (9, true), (2, true), (99, true)] {
            p.set_input(line, level);
        }
        assert_eq!(*seen.changes.lock(), [(4, false), (9, true)], "changes only");
        // An error: as it was, with the levels of now.
        assert_eq!(p.take_back(|| Err("gone")), Err("gone"));
        assert!(seen.out.load(Ordering::SeqCst));
        assert_eq!(p.take_back(|| Err("not asked")), Ok(()), "it is here");
        // A forged image does no harm.
        p.hand_over(seen.clone(), |_| Ok::<(), ()>(())).expect("given");
        let all = ChipImage {
            lines: 0xff,
            irr: 0xff,
            isr: 0xff,
            top: 0xff,
            vectors: 0xff,
            expect: 0xff,
            elcr: 0xff,
            ..ChipImage::default()
        };
        p.take_back(|| Ok::<_, ()>([all; 2])).expect("taken");
        p.ack();
    }
}
