//! Instructions whose memory accesses generated code takes to lie in one page with others near them (`tier1::share`), and that were
//! found not to.

use rustc_hash::FxHashMap;

/// Times after which code is made anew without that.
const PATIENCE: u8 = 3;
/// Instructions remembered at most: beyond, all are forgotten.
const MOST: usize = 1 << 14;

#[derive(Default)]
pub struct Apart {
    /// By RAM page: offset in it, and how often.
    pages: FxHashMap<u64, Vec<(u32, u8)>>,
    len: usize,
}

impl Apart {
    /// The instruction at a RAM offset crossed. Whether code with it should be dropped.
    pub fn crossed(&mut self, offset: u64) -> bool {
        if self.len >= MOST {
            *self = Self::default();
        }
        let (page, at) = (self.pages.entry(offset >> 12).or_default(), (offset & 0xfff) as u32);
        match page.iter_mut().find(|(a, _)| *a == at) {
            Some((_, n)) => {
                *n = n.saturating_add(1);
                *n == PATIENCE
            }
            None => {
                page.push((at, 1));
                self.len += 1;
                false
            }
        }
    }

    /// Page offsets of those to be left alone.
    pub fn in_page(&self, page: u64) -> Vec<u32> {
        let all = self.pages.get(&page).into_iter().flatten();
        all.filter(|(_, n)| *n >= PATIENCE).map(|(at, _)| *at).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_once() {
        let mut a = Apart::default();
        assert_eq!([0; 4].map(|_| a.crossed(0x1008)), [false, false, true, false]);
        assert!(!a.crossed(0x2008));
        assert_eq!((a.in_page(1), a.in_page(2)), (vec![8], vec![]));
    }

    #[test]
    fn memory_is_bounded() {
        let mut a = Apart::default();
        for k in 0..4 * MOST as u64 {
            a.crossed(k << 4);
        }
        assert!(a.len <= MOST && a.pages.values().map(Vec::len).sum::<usize>() <= MOST);
    }
}
