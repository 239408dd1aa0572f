//! Sets of the guest's pages that the engine keeps something of: which flushes of one page concern more than its TLB entry.

use rustc_hash::FxHashSet;

/// Numbers of pages: none that was added is missed; others seem to be there only where there are too many. That must be rare: a
/// kernel has code in a thousand pages, and INVLPG of data that passed for one of them would cost all links.
#[derive(Default)]
pub struct PageSet {
    pages: FxHashSet<u64>,
    too_many: bool,
}

impl PageSet {
    /// Pages that are told apart: a guest may use any number of addresses.
    const MOST: usize = 1 << 14;

    pub fn add(&mut self, number: u64) {
        if self.pages.len() < Self::MOST {
            self.pages.insert(number);
        } else {
            self.too_many |= !self.has(number);
        }
    }

    pub fn has(&self, number: u64) -> bool {
        self.too_many || self.pages.contains(&number)
    }

    pub fn clear(&mut self) {
        self.pages.clear();
        self.too_many = false;
    }
}

/// Large pages that TLB entries are parts of. INVLPG of any address in one drops all of it (SDM 3A 4.10.2.3, 4.10.4.1).
#[derive(Default)]
pub struct LargePages {
    local: PageSet,
    global: PageSet,
    /// log2 of the sizes that were added, as bits.
    sizes: u64,
    /// What was added last.
    last: Option<(u64, bool)>,
}

impl LargePages {
    /// Adds the page of 2^`shift` bytes (13 to 57) that an address is in.
    pub fn add(&mut self, va: u64, shift: u32, global: bool) {
        let number = Self::number(va, shift);
        if self.last.replace((number, global)) != Some((number, global)) {
            self.sizes |= 1 << shift;
            if global { &mut self.global } else { &mut self.local }.add(number);
        }
    }

    /// Whether an address is in such a page, and whether in a global one.
    pub fn find(&self, va: u64) -> Option<bool> {
        let is_in = |pages: &PageSet| self.shifts().any(|shift| pages.has(Self::number(va, shift)));
        if is_in(&self.global) { Some(true) } else { is_in(&self.local).then_some(false) }
    }

    /// log2 of the sizes that were added: with x86, three at most.
    fn shifts(&self) -> impl Iterator<Item = u32> {
        std::iter::successors(Some(self.sizes), |s| Some(s & (s - 1))).take_while(|s| *s != 0).map(u64::trailing_zeros)
    }

    /// Of pages of different sizes, too, the numbers differ.
    fn number(va: u64, shift: u32) -> u64 {
        va >> shift << 6 | u64::from(shift)
    }

    /// Those that are not global, before they are left with their address space.
    pub fn take_local(&mut self) -> PageSet {
        self.last = None;
        std::mem::take(&mut self.local)
    }

    /// Back in the address space that they are of.
    pub fn put_local(&mut self, pages: PageSet) {
        self.local = pages;
    }

    /// Entries that are not global were dropped.
    pub fn forget_local(&mut self) {
        self.local.clear();
        self.last = None;
    }

    /// All were dropped.
    pub fn forget(&mut self) {
        self.forget_local();
        self.global.clear();
        self.sizes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_never_missed() {
        let mut k = PageSet::default();
        assert!(!k.has(1));
        for number in [1, 0xf_ffff_f810_0000, 0x7_fff0_0000] {
            k.add(number);
            assert!(k.has(number));
        }
        assert!(!k.has(0x55));
        k.clear();
        assert!(!k.has(1));
    }

    /// As many as a kernel has, and more than are told apart.
    #[test]
    fn many_pages_are_told_from_others() {
        let mut k = PageSet::default();
        let kernel = |n: u64| 0xf_ffff_f810_0000 + n;
        (0..3000).for_each(|n| k.add(kernel(n)));
        assert!((0..3000).all(|n| k.has(kernel(n))));
        assert!(!(0..100_000u64).any(|n| k.has(0x7_f123_4567 + n)));
        (0..1 << 20).for_each(|n| k.add(n));
        assert!(k.has(5) && k.has(1 << 40) && k.pages.len() == PageSet::MOST);
        k.clear();
        assert!(!k.has(5));
    }

    #[test]
    fn large_pages_are_found_by_any_address_in_them() {
        let mut l = LargePages::default();
        assert_eq!(l.find(0x20_0000), None);
        l.add(0x20_3000, 21, false);
        l.add(0x20_3000, 21, false);
        l.add(0xffff_8880_4000_0000, 30, true);
        assert_eq!((l.find(0x20_0000), l.find(0x3f_ffff)), (Some(false), Some(false)));
        assert_eq!((l.find(0x1f_ffff), l.find(0x40_0000)), (None, None));
        assert_eq!((l.find(0xffff_8880_7fff_ffff), l.find(0xffff_8880_8000_0000)), (Some(true), None));
        l.forget_local();
        assert_eq!((l.find(0x20_0000), l.find(0xffff_8880_5000_0000)), (None, Some(true)));
        l.add(0x20_3000, 21, false);
        assert_eq!(l.find(0x20_0000), Some(false));
        l.forget();
        assert_eq!((l.find(0x20_0000), l.find(0xffff_8880_5000_0000)), (None, None));
    }
}
