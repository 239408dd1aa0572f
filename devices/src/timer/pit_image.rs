//! The 8254's state as another model of it (KVM's) goes on with it, and back (Intel 82C54 data sheet). The other model's counts
//! begin anew when they are given: so an interrupt comes late rather than early.

use super::pit::{PORT_B_DATA, PORT_B_GATE2, Pit, ns_of, pulse_of};
use super::pit_counter::{Counter, RW_BOTH, RW_LSB, RW_MSB};
use std::sync::atomic::Ordering;
use vm_core::clock::Ns;

/// One channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelImage {
    /// 0..=5; `None`: it has not been programmed, or has counted down for once, and does nothing.
    pub mode: Option<u8>,
    /// 1..=65536.
    pub count: u32,
    /// How long it has been counting.
    pub elapsed: Ns,
    pub bcd: bool,
    /// Bytes of the count that are transferred: 1, 2, or 3 for both.
    pub rw: u8,
    pub gate: bool,
    /// The low byte of a count whose high byte is missing.
    pub half: Option<u8>,
    /// The next read of the count gives its high byte.
    pub read_high: bool,
    pub latched: Option<u16>,
    pub latched_status: Option<u8>,
}

/// The timer, and port 61h's part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PitImage {
    pub channels: [ChannelImage; 3],
    /// Speaker data, bit 1 of port 61h.
    pub speaker: bool,
    /// Channel 0 is cut off from its interrupt (HPET LEG_RT_CNF).
    pub cut: bool,
}

/// What was given, and when.
pub(super) struct Away {
    image: PitImage,
    /// Pulse.
    since: u64,
}

impl Counter {
    fn image(&mut self, now: u64) -> ChannelImage {
        let fresh = *self == Self::new(self.gate);
        let elapsed = if self.running { self.elapsed(now) } else { 0 };
        let once = !matches!(self.mode, 2 | 3);
        let over = once && self.running && elapsed >= u64::from(self.n);
        // What is left of a single count is a count like any other.
        let left = u64::from(self.n).saturating_sub(elapsed).max(1) as u32;
        let (count, elapsed) = match (self.next, once && self.running && !over) {
            (Some(t), _) => (t.n, 0),
            (None, true) => (left, 0),
            (None, false) => (if self.running { self.n } else { self.reload }, elapsed),
        };
        ChannelImage {
            mode: (!fresh && !over).then_some(self.mode),
            count,
            elapsed: ns_of(elapsed),
            bcd: self.bcd,
            rw: self.rw,
            gate: self.gate,
            half: self.half,
            read_high: self.read_msb,
            latched: self.latched,
            latched_status: self.latched_status,
        }
    }

    /// Takes an image over. One that does nothing stays what it is, but for what is latched.
    fn set_image(&mut self, i: &ChannelImage, now: u64) {
        if let Some(mode) = i.mode {
            let n = i.count.clamp(1, 0x10000);
            let elapsed = pulse_of(i.elapsed).min(1 << 40);
            let stopped = !i.gate && !matches!(mode, 1 | 5);
            *self = Self {
                mode: mode.min(5),
                bcd: i.bcd,
                rw: if matches!(i.rw, RW_LSB | RW_MSB) { i.rw } else { RW_BOTH },
                reload: n,
                written: true,
                running: true,
                n,
                start: now as i64 - elapsed as i64,
                held: stopped.then_some(elapsed),
                ..Self::new(i.gate)
            };
        }
        self.half = i.half.filter(|_| self.rw == RW_BOTH);
        self.read_msb = i.read_high && self.rw == RW_BOTH;
        (self.latched, self.latched_status) = (i.latched, i.latched_status);
    }
}

impl Pit {
    /// Gives the state to another model by `give`, which goes on with it until `take_back`; here it stands still. On an error nothing has
    /// changed.
    pub fn hand_over<E>(&mut self, give: impl FnOnce(&PitImage) -> Result<(), E>) -> Result<(), E> {
        let now = self.now();
        self.catch_up(now);
        let cut = self.cut.as_ref().is_some_and(|c| c.load(Ordering::SeqCst));
        let speaker = self.state.port_b & PORT_B_DATA != 0;
        let channels = self.state.counters.each_mut().map(|c| c.image(now));
        let image = PitImage { channels, speaker, cut };
        give(&image)?;
        self.drive(false);
        self.timer.cancel();
        self.away = Some(Away { image, since: now });
        Ok(())
    }

    /// Takes the state back, if it was given. Where `take` has an error, it goes on as it was when it was given.
    pub fn take_back<E>(&mut self, take: impl FnOnce() -> Result<PitImage, E>) -> Result<(), E> {
        let Some(Away { image: given, since }) = self.away.take() else { return Ok(()) };
        let now = self.now();
        let outcome = take().map(|mut image| {
            for (c, (i, was)) in image.channels.iter_mut().zip(&given.channels).enumerate() {
                // Nothing else tells how far channel 0 has come: as it was given, since then; programmed by the guest, it begins anew.
                if c == 0 {
                    i.elapsed = 0;
                    let same = *i == ChannelImage { elapsed: 0, ..*was };
                    i.elapsed = if same { ns_of(now.saturating_sub(since)) } else { 0 };
                }
                self.state.counters[c].set_image(i, now);
            }
            let gate = if image.channels[2].gate { PORT_B_GATE2 } else { 0 };
            let data = if image.speaker { PORT_B_DATA } else { 0 };
            self.state.port_b = self.state.port_b & !(PORT_B_GATE2 | PORT_B_DATA) | gate | data;
        });
        // What rose meanwhile was the other model's to tell.
        self.state.seen = now;
        let level = self.state.counters[0].out(now);
        self.drive(level);
        self.arm(0);
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timer::testkit::Probe;
    use vm_core::{Clock, PortIo};

    fn pit() -> (Pit, Clock) {
        let clock = Clock::new();
        clock.stop();
        (Pit::new(Probe::wire().1, clock.clone()), clock)
    }

    fn program(p: &mut Pit, control: u32, count: u32) {
        let port = (control >> 6) as u16;
        p.write(0, 3, 1, control);
        p.write(0, port, 1, count & 0xff);
        p.write(0, port, 1, count >> 8);
    }

    fn read(p: &mut Pit, channel: u16) -> u32 {
        p.read(0, channel, 1) | p.read(0, channel, 1) << 8
    }

    fn given(p: &mut Pit) -> PitImage {
        let mut image = PitImage::default();
        p.hand_over(|i| {
            image = *i;
            Ok::<(), ()>(())
        })
        .expect("given");
        image
    }

    #[test]
    fn what_the_guest_left_alone_goes_on() {
        let (mut p, clock) = pit();
        assert_eq!(given(&mut p).channels[0].mode, None, "it has not been programmed");
        p.take_back(|| Ok::<_, ()>(PitImage::default())).expect("taken");
        program(&mut p, 0x34, 1193);
        program(&mut p, 0xb6, 5000);
        p.write(1, 0, 1, 3);
        clock.set(2_300_000);
        let (first, speaker) = (read(&mut p, 0), read(&mut p, 2));
        let mut image = given(&mut p);
        let c = image.channels;
        assert_eq!((c[0].mode, c[0].count, c[2].mode, c[2].count, image.speaker), (Some(2), 1193, Some(3), 5000, true));
        // The other model begins channel 0 anew, and knows of channel 2 when it began.
        clock.set(2_400_000);
        image.channels[2].elapsed += 100_000;
        p.take_back(|| Ok::<_, ()>(image)).expect("taken");
        assert_eq!(p.read(1, 0, 1) & 3, 3);
        let (then, passed) = (read(&mut p, 0), pulse_of(100_000) as u32);
        assert!((1193 - then).abs_diff(passed) <= 2, "{first} {then}");
        assert!(read(&mut p, 2).abs_diff(speaker - 2 * passed) <= 6, "{speaker}");
    }

    #[test]
    fn a_single_count_is_given_by_what_is_left_of_it_and_once() {
        let (mut p, clock) = pit();
        program(&mut p, 0x30, 10_000);
        clock.set(1_000_000);
        let image = given(&mut p);
        assert!(image.channels[0].count.abs_diff(10_000 - 1193) <= 2 && image.channels[0].elapsed == 0);
        clock.set(2_000_000);
        p.take_back(|| Ok::<_, ()>(image)).expect("taken");
        assert!(read(&mut p, 0).abs_diff(10_000 - 2386) <= 4);
        clock.set(20_000_000);
        assert_eq!(given(&mut p).channels[0].mode, None, "it has told");
        p.take_back(|| Err(())).expect_err("as it was");
        let forged = ChannelImage { mode: Some(99), count: !0, elapsed: !0, rw: 99, ..ChannelImage::default() };
        given(&mut p);
        p.take_back(|| Ok::<_, ()>(PitImage { channels: [forged; 3], ..PitImage::default() })).expect("taken");
        assert!(p.state.counters.iter().all(Counter::valid));
        assert_eq!((p.take_back(|| Err(1)), read(&mut p, 0) >> 16), (Ok(()), 0));
    }
}
