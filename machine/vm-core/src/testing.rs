//! What tests of several crates share: the contract that every device passes, and a random number generator.

use crate::device::Device;
use std::io::Write;

/// Says, past the test harness that keeps what tests print, that a test did not do its work and why.
///
/// # Panics
/// If `RHEA_TEST_ALL` is set, as in continuous integration, where nothing may be left out.
pub fn left_out(why: &str) {
    assert!(std::env::var_os("RHEA_TEST_ALL").is_none(), "{why}");
    let _ = writeln!(std::io::stderr(), "LEFT OUT: {why}");
}

/// A small deterministic generator for tests (splitmix64).
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0..n
    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n.max(1)
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// # Panics
    /// If there is nothing to pick from.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Random port and MMIO traffic in regions 0..`regions`, offsets below `span`: what a hostile guest may do.
pub fn traffic(d: &mut dyn Device, regions: u32, span: u64, rounds: u32, seed: u64) {
    let mut r = Rng(seed);
    for _ in 0..rounds {
        let (region, off, v) = (r.below(regions.into()) as u32, r.below(span), r.next_u64());
        let size = 1u8 << r.below(4);
        let write = r.below(2) == 1;
        if let Some(p) = d.ports() {
            let size = size.min(4);
            if write {
                p.write(region, off as u16, size, v as u32)
            } else {
                let _ = p.read(region, off as u16, size);
            }
        }
        if let Some(m) = d.mmio() {
            if write {
                m.write(region, off, size, v)
            } else {
                let _ = m.read(region, off, size);
            }
        }
    }
}

/// Reset equals fresh; save, load, save gives the same; a hostile guest cannot panic it; what hostile traffic left can
/// be saved and loaded into a fresh device.
pub fn contract<D: Device>(make: impl Fn() -> D, regions: u32, span: u64) {
    let fresh = make().save();
    for seed in 0..8 {
        let mut d = make();
        traffic(&mut d, regions, span, 20_000, seed);
        let saved = d.save();
        let mut e = make();
        e.load(&saved).expect("own state loads");
        assert_eq!(e.save(), saved, "save, load, save differs");
        d.reset();
        assert_eq!(d.save(), fresh, "reset differs from a fresh device");
        let mut newer = saved.clone();
        newer.version += 1000;
        assert!(e.load(&newer).is_err(), "a newer version must be refused");
        assert_eq!(e.save(), saved, "a refused load must change nothing");
    }
}
