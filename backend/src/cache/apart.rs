//! Instructions whose memory accesses generated code takes to lie in one page with others near them (`tier1::share`), and that were
//! found not to.

use rustc_hash::FxHashMap;

/// Times after which code is made anew with a way to go on where they do not, at most. Leaving costs about a microsecond, making it
/// anew thirty.
const PATIENCE: u32 = 16;
/// Instructions remembered at most: beyond, all are forgotten.
const MOST: usize = 1 << 14;

pub struct Apart {
    patience: u32,
    /// By RAM page: offset in it, and how often.
    pages: FxHashMap<u64, Vec<(u32, u32)>>,
    len: usize,
}

impl Apart {
    /// `threshold`: runs after which a block is compiled. Who does not wait for that does not wait here.
    pub fn new(threshold: u32) -> Self {
        Self { patience: threshold.clamp(1, PATIENCE), pages: FxHashMap::default(), len: 0 }
    }

    /// The instruction at a RAM offset crossed. Whether code with it should be dropped.
    pub fn crossed(&mut self, offset: u64) -> bool {
        if self.len >= MOST {
            (self.pages, self.len) = (FxHashMap::default(), 0);
        }
        let (page, at) = (self.pages.entry(offset >> 12).or_default(), (offset & 0xfff) as u32);
        let known = page.iter().position(|(a, _)| *a == at).unwrap_or_else(|| {
            page.push((at, 0));
            self.len += 1;
            page.len() - 1
        });
        page[known].1 = page[known].1.saturating_add(1);
        page[known].1 == self.patience
    }

    /// Page offsets of those that did so often.
    pub fn in_page(&self, page: u64) -> Vec<u32> {
        let all = self.pages.get(&page).into_iter().flatten();
        all.filter(|(_, n)| *n >= self.patience).map(|(at, _)| *at).collect()
    }
}

impl Default for Apart {
    fn default() -> Self {
        Self::new(PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_once() {
        let mut a = Apart::default();
        let dropped: Vec<u32> = (0..=PATIENCE).filter(|_| a.crossed(0x1008)).collect();
        assert_eq!(dropped, [PATIENCE - 1]);
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
