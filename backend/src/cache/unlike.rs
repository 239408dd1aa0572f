//! Instructions that were found unlike what their code was made for: whose memory accesses were taken to lie in one page with others
//! near them (`tier1::share`), or whose flags were guessed (`ir::CodeFetch::guess`).

use rustc_hash::FxHashMap;

/// Times after which code is made anew, at most: with a way to go on where accesses are not in one page, with another guess. After as
/// many more nothing is guessed. Leaving costs about a microsecond, making code anew thirty.
const PATIENCE: u32 = 16;
/// Instructions remembered at most: beyond, all are forgotten.
const MOST: usize = 1 << 14;

pub struct Unlike {
    patience: u32,
    /// By RAM page: offset in it, and how often.
    pages: FxHashMap<u64, Vec<(u32, u32)>>,
    len: usize,
}

impl Unlike {
    /// `threshold`: runs after which a block is compiled. Who does not wait for that does not wait here.
    pub fn new(threshold: u32) -> Self {
        Self { patience: threshold.clamp(1, PATIENCE), pages: FxHashMap::default(), len: 0 }
    }

    /// The instruction at a RAM offset was. Whether code with it should be dropped.
    pub fn met(&mut self, offset: u64) -> bool {
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
        [1, 2].map(|n| n * self.patience).contains(&page[known].1)
    }

    /// Whether something else should be guessed for the instruction at a RAM offset than nothing.
    pub fn may_guess(&self, offset: u64) -> bool {
        let all = self.pages.get(&(offset >> 12)).into_iter().flatten();
        !all.into_iter().any(|(at, n)| u64::from(*at) == offset & 0xfff && *n >= 2 * self.patience)
    }

    /// Page offsets of those that did so often.
    pub fn in_page(&self, page: u64) -> Vec<u32> {
        let all = self.pages.get(&page).into_iter().flatten();
        all.filter(|(_, n)| *n >= self.patience).map(|(at, _)| *at).collect()
    }
}

impl Default for Unlike {
    fn default() -> Self {
        Self::new(PATIENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_twice() {
        let mut a = Unlike::default();
        let dropped: Vec<u32> = (0..PATIENCE + 4).filter(|_| a.met(0x1008)).collect();
        assert_eq!(dropped, [PATIENCE - 1]);
        assert!(!a.met(0x2008));
        assert_eq!((a.in_page(1), a.in_page(2)), (vec![8], vec![]));
        assert!(a.may_guess(0x1008));
        assert_eq!((0..4 * PATIENCE).filter(|_| a.met(0x1008)).count(), 1);
        assert!(!a.may_guess(0x1008) && a.may_guess(0x1009) && a.may_guess(0x2008));
    }

    #[test]
    fn memory_is_bounded() {
        let mut a = Unlike::default();
        for k in 0..4 * MOST as u64 {
            a.met(k << 4);
        }
        assert!(a.len <= MOST && a.pages.values().map(Vec::len).sum::<usize>() <= MOST);
    }
}
