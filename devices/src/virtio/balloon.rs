//! Virtio balloon device (virtio 1.2 §5.5): memory that the guest lends goes back to the host, asked for or reported free.

use super::{Chain, Kind, Model, Queues};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use vm_core::{Pa, dlog};

const F_STATS_VQ: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_PAGE_POISON: u64 = 1 << 4;
const F_PAGE_REPORTING: u64 = 1 << 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;
const QUEUE: u16 = 128;

/// Bytes of the pages that are counted, whatever the guest's are (§5.5.2).
pub const PAGE: u64 = 4096;
/// Page numbers that one request may have.
const MAX_PFNS: usize = 1024;
/// Statistics that one request may have; each is a tag and a value.
const MAX_STATS: usize = 64;
const STAT_BYTES: usize = 10;

/// Offsets in the configuration.
const ACTUAL: u64 = 4;
const POISON_VAL: u64 = 12;

/// How the device shows itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalloonConfig {
    /// Bytes of RAM that the guest has at the start.
    pub ram: u64,
    /// The guest may take pages back when it has none left.
    pub deflate_on_oom: bool,
    /// The guest tells of pages that it does not use.
    pub reporting: bool,
}

/// Told of each change of the guest's size in bytes, with the device's lock held: must not wait.
pub type Changed = Box<dyn Fn(u64) + Send + Sync>;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    num_pages: u32,
    actual: u32,
    poison_val: u32,
    stats_head: Option<u16>,
    stats: BTreeMap<u16, u64>,
}

/// The device.
pub struct Balloon {
    config: BalloonConfig,
    changed: Changed,
    features: u64,
    state: State,
}

impl Balloon {
    pub fn new(config: BalloonConfig, changed: Changed) -> Self {
        Self { config, changed, features: 0, state: State::default() }
    }

    /// Bytes that the guest has left.
    pub fn actual(&self) -> u64 {
        self.config.ram.saturating_sub(u64::from(self.state.actual) * PAGE)
    }

    /// Asks the guest to live with `bytes` of its RAM: it gives the rest as it can.
    pub fn set_target(&mut self, bytes: u64, queues: &mut Queues) {
        let pages = self.config.ram.saturating_sub(bytes) / PAGE;
        self.state.num_pages = u32::try_from(pages).unwrap_or(u32::MAX);
        queues.change_config();
    }

    /// What the guest has told of its memory: values by tag (§5.5.6.4).
    pub fn stats(&self) -> &BTreeMap<u16, u64> {
        &self.state.stats
    }

    /// Asks the guest for new statistics, if it has left a buffer for them.
    pub fn request_stats(&mut self, queues: &mut Queues) {
        if let Some(head) = self.state.stats_head.take() {
            queues.push(STATS, head, 0);
        }
    }

    /// What queue `index` is for: those of features that were not accepted take no number.
    fn is_stats(&self, index: usize) -> bool {
        index == STATS && self.features & F_STATS_VQ != 0
    }

    fn is_reporting(&self, index: usize) -> bool {
        let with_stats = usize::from(self.features & F_STATS_VQ != 0);
        self.features & F_PAGE_REPORTING != 0 && index == STATS + with_stats
    }

    /// Gives the pages of an array of page numbers back to the host, those that follow each other at once.
    fn inflate(&self, chain: &Chain, queues: &Queues) {
        let (mut start, mut pages, mut left) = (0, 0, MAX_PFNS);
        for s in &chain.readable {
            let n = (s.len as usize / 4).min(left);
            left -= n;
            let mut bytes = vec![0; 4 * n];
            queues.master().read(Pa(s.pa), &mut bytes);
            for b in bytes.as_chunks::<4>().0 {
                let pfn = u64::from(u32::from_le_bytes(*b));
                match pfn {
                    p if pages > 0 && p == start + pages => pages += 1,
                    // Some drivers go downwards.
                    p if pages > 0 && p + 1 == start => (start, pages) = (p, pages + 1),
                    p => {
                        queues.master().discard(Pa(start * PAGE), pages * PAGE);
                        (start, pages) = (p, 1);
                    }
                }
            }
        }
        queues.master().discard(Pa(start * PAGE), pages * PAGE);
    }

    /// Gives reported ranges back, unless the guest wants to find a pattern there that is not zeroes.
    fn report(&self, chain: &Chain, queues: &Queues) {
        if self.features & F_PAGE_POISON != 0 && self.state.poison_val != 0 {
            return;
        }
        // All of RAM once is as much as a request can mean.
        let mut left = self.config.ram;
        for s in &chain.writable {
            let len = u64::from(s.len);
            if len > left {
                return dlog!(GUEST_ERRORS, "virtio-balloon: more free pages are reported than there is RAM");
            }
            left -= len;
            queues.master().discard(Pa(s.pa), len);
        }
    }

    fn take_stats(&mut self, chain: &Chain, queues: &Queues) {
        let mut bytes = vec![0; MAX_STATS * STAT_BYTES];
        let mut have = 0;
        for s in &chain.readable {
            let n = (bytes.len() - have).min(s.len as usize);
            queues.master().read(Pa(s.pa), &mut bytes[have..have + n]);
            have += n;
        }
        for [a, b, value @ ..] in bytes[..have].as_chunks::<STAT_BYTES>().0 {
            let tag = u16::from_le_bytes([*a, *b]);
            // Later versions of the specification have more; unknown ones are kept as well, up to a number.
            if self.state.stats.len() < MAX_STATS || self.state.stats.contains_key(&tag) {
                self.state.stats.insert(tag, u64::from_le_bytes(*value));
            }
        }
    }

    fn serve(&mut self, index: usize, chain: Chain, queues: &mut Queues) {
        match index {
            INFLATE => self.inflate(&chain, queues),
            // The host gives pages anew when they are touched.
            DEFLATE => {}
            i if self.is_stats(i) => {
                self.take_stats(&chain, queues);
                // The buffer stays here until new ones are wanted. A driver has one only.
                self.request_stats(queues);
                self.state.stats_head = Some(chain.head);
                return;
            }
            i if self.is_reporting(i) => self.report(&chain, queues),
            _ => {}
        }
        queues.push(index, chain.head, 0);
    }
}

impl Model for Balloon {
    fn kind(&self) -> Kind {
        Kind { name: "virtio-balloon", id: 5, transitional: 0x1002, class: 0x00_ff_00 }
    }

    fn queues(&self) -> Vec<u16> {
        vec![QUEUE; if self.config.reporting { 4 } else { 3 }]
    }

    fn features(&self) -> u64 {
        let oom = if self.config.deflate_on_oom { F_DEFLATE_ON_OOM } else { 0 };
        let reporting = if self.config.reporting { F_PAGE_REPORTING | F_PAGE_POISON } else { 0 };
        F_STATS_VQ | oom | reporting
    }

    fn start(&mut self, features: u64) {
        self.features = features;
    }

    /// struct virtio_balloon_config (§5.5.4).
    fn config(&self) -> Vec<u8> {
        let s = &self.state;
        let words = [s.num_pages, s.actual, 0, s.poison_val];
        let shown = if self.config.reporting { 4 } else { 2 };
        words[..shown].iter().flat_map(|w| w.to_le_bytes()).collect()
    }

    fn config_write(&mut self, offset: u64, data: &[u8]) {
        let Some(value) = data.first_chunk::<4>().map(|b| u32::from_le_bytes(*b)) else { return };
        match offset {
            ACTUAL if value != self.state.actual => {
                self.state.actual = value;
                (self.changed)(self.actual());
            }
            POISON_VAL => self.state.poison_val = value,
            _ => {}
        }
    }

    fn kick(&mut self, index: usize, queues: &mut Queues) {
        // A driver that adds more and more on another CPU is to tell of it again.
        for _ in 0..4 * QUEUE {
            match queues.pop(index) {
                Some(chain) => self.serve(index, chain, queues),
                None if queues.rearm(index) => {}
                None => return,
            }
        }
        queues.rearm(index);
    }

    fn reset(&mut self) {
        // What the guest had given is its own again; what was asked of it still holds.
        let num_pages = self.state.num_pages;
        self.features = 0;
        self.state = State { num_pages, ..State::default() };
    }

    fn save(&self) -> Value {
        serde_json::to_value(&self.state).expect("plain data with string keys")
    }

    fn load(&mut self, saved: &Value) -> Result<(), String> {
        let s = State::deserialize(saved).map_err(|e| e.to_string())?;
        if s.stats_head.is_some_and(|h| h >= QUEUE) || s.stats.len() > MAX_STATS {
            return Err("statistics that no guest can have told".into());
        }
        self.state = s;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testkit::{Driver, RAM};
    use super::*;
    use crate::pci::PciFunction;
    use crate::virtio::PciOptions;
    use parking_lot::Mutex;
    use std::sync::Arc;

    const LIST: u64 = 0x8000;
    const ALL: u64 = F_STATS_VQ | F_PAGE_REPORTING | F_PAGE_POISON;

    fn balloon() -> Balloon {
        Balloon::new(BalloonConfig { ram: RAM, deflate_on_oom: true, reporting: true }, Box::new(|_| {}))
    }

    fn driver(features: u64) -> Driver<Balloon> {
        let mut d = Driver::modern(balloon());
        d.start(features);
        d
    }

    fn list(d: &Driver<Balloon>, pfns: &[u32]) -> (u64, u32) {
        let bytes: Vec<u8> = pfns.iter().flat_map(|p| p.to_le_bytes()).collect();
        d.ram.write(LIST, &bytes);
        (LIST, bytes.len() as u32)
    }

    fn filled(d: &Driver<Balloon>, page: u64) -> bool {
        d.ram.read_uint(page * PAGE, 8) != 0
    }

    #[test]
    fn saved_state_contract() {
        Driver::contract(balloon);
    }

    #[test]
    fn pages_that_are_lent_are_given_back() {
        let mut d = driver(0);
        (0x80..0x90).for_each(|p| d.ram.write(p * PAGE, &[7; 4096]));
        let inflated = list(&d, &[0x82, 0x83, 0x85, 0x89, 0x88, 0x87, 0xf_ffff, !0]);
        d.add(0, &[inflated], &[]);
        d.notify(0);
        assert_eq!(d.used(0), [(0, 0)]);
        let left: Vec<u64> = (0x80..0x90).filter(|p| filled(&d, *p)).collect();
        assert_eq!(left, [0x80, 0x81, 0x84, 0x86, 0x8a, 0x8b, 0x8c, 0x8d, 0x8e, 0x8f]);
        let deflated = list(&d, &[0x82]);
        d.add(1, &[deflated], &[]);
        d.notify(1);
        assert_eq!(d.used(1), [(0, 0)]);
    }

    #[test]
    fn a_target_is_told_and_what_comes_of_it() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let config = BalloonConfig { ram: RAM, deflate_on_oom: false, reporting: false };
        let mut d = Driver::with(Balloon::new(config, Box::new(move |n| tell.lock().push(n))), PciOptions::default(), false);
        d.msix();
        d.start(0);
        let generation = d.device.bar_read(4, 0x15, 1);
        d.take_heard();
        d.device.with(|b, q| b.set_target(RAM - 3 * PAGE - 1, q));
        assert_eq!((d.device.bar_read(4, 0x2000, 4), d.device.bar_read(4, 0x2008, 4)), (3, 0));
        assert_ne!(d.device.bar_read(4, 0x15, 1), generation);
        assert_eq!(d.take_heard(), [0], "the configuration's vector");
        d.device.bar_write(4, 0x2004, 4, 2);
        d.device.bar_write(4, 0x2004, 4, 2);
        assert_eq!((d.device.model().actual(), &told.lock()[..]), (RAM - 2 * PAGE, &[RAM - 2 * PAGE][..]));
        d.device.bar_write(4, 0x2004, 4, 0xffff_ffff);
        assert_eq!(d.device.model().actual(), 0);
        // The wish outlives the driver.
        d.common(0x14, 1, 0);
        assert_eq!((d.device.bar_read(4, 0x2000, 4), d.device.model().actual()), (3, RAM));
    }

    #[test]
    fn statistics_are_kept_and_asked_for_again() {
        let mut d = driver(ALL);
        let mut bytes = [0; 25];
        bytes[2..10].copy_from_slice(&5u64.to_le_bytes());
        bytes[10] = 4;
        bytes[12..20].copy_from_slice(&99u64.to_le_bytes());
        d.ram.write(LIST, &bytes);
        d.add(2, &[(LIST, 25)], &[]);
        d.notify(2);
        assert_eq!(d.used(2), [], "the device keeps the buffer");
        assert_eq!(d.device.model().stats().iter().collect::<Vec<_>>(), [(&0, &5), (&4, &99)]);
        d.device.with(|b, q| b.request_stats(q));
        d.device.with(|b, q| b.request_stats(q));
        assert_eq!(d.used(2), [(0, 0)]);
    }

    #[test]
    fn reported_pages_are_given_back_unless_they_are_poisoned() {
        for (features, poison, queue, kept) in [(ALL, 0, 3, false), (ALL, 1, 3, true), (F_PAGE_REPORTING, 0, 2, false)] {
            let mut d = driver(features);
            d.device.bar_write(4, 0x200c, 4, poison);
            d.ram.write(0xa0 * PAGE, &[7; 8192]);
            d.add(queue, &[], &[(0xa0 * PAGE, 4096), (0xa1 * PAGE, 4096)]);
            d.notify(queue as u64);
            assert_eq!((d.used(queue).len(), filled(&d, 0xa0), filled(&d, 0xa1)), (1, kept, kept), "{features:#x} {poison}");
        }
    }

    #[test]
    fn hostile_requests_are_bounded() {
        let mut d = driver(ALL);
        // More than 4 GiB would be no chain.
        d.add(0, &[(0, 1 << 31), (0xffff_f000, 1 << 30)], &[]);
        d.add(3, &[], &[(RAM - 1, 1 << 30), (0, 1 << 31)]);
        d.notify(0);
        d.notify(3);
        d.notify(2);
        assert_eq!(d.status() & 0x40, 0);
    }
}
