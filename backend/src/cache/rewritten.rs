//! Code that the guest rewrites with the same instructions and other immediates, in pages that it writes again and again: which bytes
//! change, so that the next translation reads them when it runs (`ir::Op::Source`) and outlives the next change.

use ir::{BlockKey, Changing};
use rustc_hash::FxHashMap;

/// Rewritten so often with other bytes, a block is made with loose bytes.
const AGAIN: u32 = 4;
/// And so often at most: further bytes change, or such that are no immediate.
const TRIES: u32 = 16;
/// Source bytes of a block that is looked at, at most; blocks remembered at most: beyond, all are forgotten.
const LONGEST: usize = 256;
const MOST: usize = 1 << 12;

/// A block as it was last.
struct Past {
    bytes: Box<[u8]>,
    changing: Changing,
    /// How often it was found rewritten, and made with loose bytes.
    times: u32,
    tries: u32,
}

#[derive(Default)]
pub struct Rewritten {
    blocks: FxHashMap<BlockKey, Past>,
}

impl Rewritten {
    /// A block is about to be made again from its page: which of its bytes had better be loose.
    pub fn again(&mut self, key: BlockKey, page: &[u8; 4096]) -> Changing {
        let Some(past) = self.blocks.get_mut(&key) else { return Changing::default() };
        let start = (key.phys & 0xfff) as usize;
        let now = &page[start..start + past.bytes.len()];
        if past.bytes[..] != *now {
            past.times = past.times.saturating_add(1);
            for (k, _) in past.bytes.iter().zip(now).enumerate().filter(|(_, (then, now))| then != now) {
                if !past.changing.add((start + k) as u16, (start + k + 1) as u16) {
                    past.tries = TRIES;
                }
            }
            past.bytes.copy_from_slice(now);
        }
        if past.times >= AGAIN && past.tries < TRIES { past.changing } else { Changing::default() }
    }

    /// It has been made from the bytes up to a page offset, with loose bytes if `asked`. `false`: others have changed too, so that it
    /// should be made without.
    pub fn made(&mut self, key: BlockKey, page: &[u8; 4096], end: u32, asked: bool, loose: &[(u16, u16)]) -> bool {
        let start = (key.phys & 0xfff) as usize;
        let Some(bytes) = page.get(start..end as usize).filter(|b| b.len() <= LONGEST) else {
            self.blocks.remove(&key);
            return !asked;
        };
        match self.blocks.get_mut(&key) {
            Some(past) if past.bytes.len() == bytes.len() => {
                let inside = |(from, to): &(u16, u16)| {
                    let mut all = Changing::default();
                    loose.iter().all(|(f, t)| all.add(*f, *t)) && all.ranges().iter().any(|(f, t)| f <= from && to <= t)
                };
                let serves = past.changing.ranges().iter().all(inside);
                past.tries += u32::from(asked);
                if asked && !serves {
                    // Perhaps an instruction that changed once.
                    (past.changing, past.times) = (Changing::default(), 0);
                }
                serves || !asked
            }
            _ => {
                if self.blocks.len() >= MOST {
                    self.blocks = FxHashMap::default();
                }
                self.blocks.insert(key, Past { bytes: bytes.into(), changing: Changing::default(), times: 0, tries: 0 });
                !asked
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: BlockKey = BlockKey { phys: 0x5100, mode: 1 };
    const END: u32 = 0x110;

    /// Rewrites the block `n` times, bytes `from..to` with others each time; gives what is asked for at last.
    fn rewrite(r: &mut Rewritten, n: u8, from: usize, to: usize, loose: &[(u16, u16)]) -> (Changing, bool) {
        let (mut page, mut last) = ([0; 4096], (Changing::default(), true));
        for k in 0..n {
            page[from..to].fill(k);
            let asked = r.again(KEY, &page);
            last = (asked, r.made(KEY, &page, END, !asked.is_empty(), loose));
        }
        last
    }

    #[test]
    fn bytes_that_change_are_asked_for_until_it_is_in_vain() {
        let mut r = Rewritten::default();
        let loose = [(0x102, 0x106)];
        assert!(rewrite(&mut r, AGAIN as u8, 0x102, 0x104, &loose).0.is_empty());
        let (asked, serves) = rewrite(&mut r, 2, 0x102, 0x104, &loose);
        assert_eq!((asked.ranges(), serves), (&[(0x102, 0x104)][..], true));
        // It was made anew for nothing each time.
        rewrite(&mut r, TRIES as u8 + 2, 0x102, 0x104, &loose);
        assert!(r.again(KEY, &[7; 4096]).is_empty());
    }

    #[test]
    fn other_bytes_make_it_useless() {
        let mut r = Rewritten::default();
        let (asked, serves) = rewrite(&mut r, AGAIN as u8 + 1, 0x101, 0x104, &[(0x102, 0x106)]);
        assert!(!asked.is_empty() && !serves);
        for _ in 0..TRIES {
            assert!(!rewrite(&mut r, 2 * AGAIN as u8, 0x101, 0x104, &[(0x102, 0x106)]).1 || r.blocks[&KEY].tries <= TRIES);
        }
        assert!(rewrite(&mut r, 2 * AGAIN as u8, 0x101, 0x104, &[]).0.is_empty());
    }

    #[test]
    fn an_instruction_that_changes_once_is_forgotten() {
        let (mut r, loose) = (Rewritten::default(), [(0x102, 0x106)]);
        assert!(!rewrite(&mut r, AGAIN as u8 + 1, 0x101, 0x104, &loose).1);
        let (asked, serves) = rewrite(&mut r, 3 * AGAIN as u8, 0x102, 0x104, &loose);
        assert_eq!((asked.ranges(), serves), (&[(0x102, 0x104)][..], true));
    }

    #[test]
    fn a_block_of_another_length_is_another() {
        let mut r = Rewritten::default();
        rewrite(&mut r, AGAIN as u8, 0x102, 0x104, &[]);
        r.made(KEY, &[0; 4096], END + 1, false, &[]);
        assert!(r.again(KEY, &[1; 4096]).is_empty());
        assert!(!r.made(KEY, &[0; 4096], 0x1100, true, &[]) && r.blocks.is_empty());
    }

    #[test]
    fn memory_is_bounded() {
        let mut r = Rewritten::default();
        for n in 0..2 * MOST as u64 {
            r.made(BlockKey { phys: n << 12, mode: 1 }, &[0; 4096], 8, false, &[]);
        }
        assert!(r.blocks.len() <= MOST);
    }
}
