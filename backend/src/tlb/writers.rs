//! Which entries may serve writes to a host page: those that must not any more once code has been translated from it.

use super::{CTX_COUNT, ENTRIES, Entry, Fills, Tables, beside, empty_tag, index};

/// What may serve writes to host pages of one hash: up to four of them, or 0s, or any (`ANY` first).
pub type Writers = [u64; 4];
pub const ANY: u64 = u64::MAX;

/// Entries that may serve writes to a host page: those of this context at this index and beside it.
#[derive(Clone, Copy)]
struct Writer {
    host: u64,
    ctx: u8,
    index: u16,
}

impl Writer {
    const HOST: u32 = 28;
    const CTX: u32 = 16;

    /// As one word, not 0: host addresses have 47 bits, and 0 is none.
    fn pack(self) -> u64 {
        self.host >> 12 << Self::HOST | u64::from(self.ctx) << Self::CTX | u64::from(self.index)
    }

    fn unpack(w: u64) -> Self {
        Self { host: w >> Self::HOST << 12, ctx: (w >> Self::CTX) as u8, index: w as u16 }
    }

    /// The places of entries that do serve such writes.
    fn places(self, t: &Tables) -> impl Iterator<Item = usize> + use<> {
        let table = &t.0[usize::from(self.ctx) % CTX_COUNT];
        let i = usize::from(self.index) % ENTRIES;
        let serves = [i, beside(i)].map(|i| table[i].write.wrapping_add(table[i].addend) == self.host);
        [i, beside(i)].into_iter().zip(serves).filter_map(|(i, serves)| serves.then_some(i))
    }
}

/// log2 of the hashes of host pages.
pub const WRITERS: u32 = 12;

pub const fn writers_of(host: u64) -> usize {
    (host >> 12) as usize & ((1 << WRITERS) - 1)
}

impl Fills {
    /// Notes an entry that serves writes.
    pub(super) fn note_writer(&mut self, t: &Tables, e: &Entry, ctx: u8) {
        let host = e.write.wrapping_add(e.addend);
        let new = Writer { host, ctx, index: index(e.write) as u16 }.pack();
        let known = &mut self.writers[writers_of(host)];
        if known[0] == ANY || known.contains(&new) {
            return;
        }
        let free = |w: &&mut u64| **w == 0 || Writer::unpack(**w).places(t).next().is_none();
        match known.iter_mut().find(free) {
            Some(w) => *w = new,
            None => known[0] = ANY,
        }
    }

    /// Drops the write permission of all entries that map the host page at `host`: what pages of code need again and again.
    pub fn revoke_writes(&mut self, t: &mut Tables, host: u64) {
        let Some(known) = self.writers.get_mut(writers_of(host)).filter(|w| w[0] != ANY) else {
            self.revoke_host_page(t, host, false);
            return self.find_writers(t);
        };
        for w in known.iter_mut().filter(|w| Writer::unpack(**w).host == host) {
            let writer = Writer::unpack(std::mem::take(w));
            for i in writer.places(t) {
                t.0[usize::from(writer.ctx)][i].write = empty_tag(i);
            }
        }
        self.forget_displaced();
    }

    /// Notes anew who may write where.
    fn find_writers(&mut self, t: &Tables) {
        self.writers.clear();
        self.writers.resize(1 << WRITERS, [0; 4]);
        let listed = (std::mem::take(&mut self.local), std::mem::take(&mut self.global));
        for &(ctx, i) in listed.0.iter().chain(&listed.1) {
            let e = t.0[usize::from(ctx)][usize::from(i)];
            if e.write != empty_tag(usize::from(i)) {
                self.note_writer(t, &e, ctx);
            }
        }
        (self.local, self.global) = listed;
    }
}
