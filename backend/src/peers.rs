//! What the engines of one machine share. Each vCPU has a TLB and a translation cache of its own (ADR 0006); here they agree
//! on pages that hold code, tell each other of stores to it, and let one of them be alone.
//!
//! The order that makes stores and translations meet: a translator *claims* a page (`coders`, then `PageBits::CODE`) before it
//! reads a byte; a vCPU notes that it may write a page (`writers`) before it looks at `CODE`. So either the writer sees `CODE`
//! and gets no write entry, or the translator sees the writer, asks it to drop its entry, and keeps nothing until it has.
//! Stores that go the slow way look at `granules` after they have happened; a translator sets them, then reads the source
//! bytes again. All of it is `SeqCst`.

use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::sync::{Arc, OnceLock};
use vm_core::{Events, PageBits, Ram, VcpuSignals};

/// vCPUs of a machine at most: a set of them is a u64.
pub const MAX_CPUS: usize = 64;
/// Messages that may wait for a vCPU; beyond them it drops all translations and write entries.
const MAX_NOTES: usize = 4096;
/// Pages described together: their description is made at first use.
const CHUNK: usize = 512;
const SHARDS: usize = 64;

/// What vCPUs know of one page of RAM: sets of vCPUs, and of 64-byte granules.
#[derive(Default)]
struct Sharing {
    /// May have a TLB entry that serves writes.
    writers: AtomicU64,
    /// Have, or are making, translations of code in the page.
    coders: AtomicU64,
    /// Granules that hold source bytes of a coder.
    granules: AtomicU64,
}

type Chunk = OnceLock<Box<[Sharing]>>;

/// A message from one vCPU to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// Code at this RAM offset was written.
    Written { offset: u64, len: u64 },
    /// The page, by its number, is to hold code: drop write entries for it.
    Revoke { page: u64 },
}

#[derive(Default)]
struct Inbox {
    notes: Vec<Note>,
    overflow: bool,
}

struct Peer {
    signals: Arc<VcpuSignals>,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Alone {
    owner: Option<usize>,
    /// vCPUs that run guest code.
    running: u64,
}

/// All vCPUs of a machine.
pub struct Peers {
    cpus: Vec<Peer>,
    chunks: OnceLock<Box<[Chunk]>>,
    shards: [Mutex<()>; SHARDS],
    alone: Mutex<Alone>,
    changed: Condvar,
}

/// One vCPU among its peers.
#[derive(Clone)]
pub struct Member {
    peers: Arc<Peers>,
    index: usize,
}

/// What a vCPU was sent.
pub enum Mail {
    Notes(Vec<Note>),
    /// More than fits: everything may have changed.
    Everything,
}

/// Granules of the bytes `from..to` (not empty) of one page.
pub fn granules(from: u64, to: u64) -> u64 {
    let (a, b) = ((from & 0xfff) >> 6, ((to - 1) & 0xfff) >> 6);
    (u64::MAX >> (63 - (b - a))) << a
}

impl Peers {
    /// One vCPU for each of `signals`, in the order of their numbers; at most `MAX_CPUS`.
    pub fn new(signals: &[Arc<VcpuSignals>]) -> Arc<Self> {
        assert!(signals.len() <= MAX_CPUS, "sets of vCPUs have 64 bits");
        Arc::new(Self {
            cpus: signals.iter().map(|s| Peer { signals: s.clone(), inbox: Mutex::default() }).collect(),
            chunks: OnceLock::new(),
            shards: std::array::from_fn(|_| Mutex::new(())),
            alone: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// vCPU number `index`; a machine with one has no peers to agree with.
    pub fn member(self: &Arc<Self>, index: usize) -> Option<Member> {
        (self.cpus.len() > 1).then(|| Member { peers: self.clone(), index })
    }

    fn sharing(&self, ram: &Ram, page: u64) -> &Sharing {
        let chunks = self.chunks.get_or_init(|| {
            let pages = (ram.size() >> 12) as usize;
            (0..pages.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect()
        });
        let chunk = chunks[page as usize / CHUNK].get_or_init(|| (0..CHUNK).map(|_| Sharing::default()).collect());
        &chunk[page as usize % CHUNK]
    }

    fn post(&self, to: u64, note: Note) {
        for (i, cpu) in self.cpus.iter().enumerate() {
            if to >> i & 1 != 0 {
                let mut inbox = cpu.inbox.lock();
                if inbox.notes.len() >= MAX_NOTES {
                    inbox.overflow = true;
                } else if inbox.notes.last() != Some(&note) {
                    inbox.notes.push(note);
                }
                drop(inbox);
                cpu.signals.raise(Events::CODE);
            }
        }
    }
}

impl Member {
    fn me(&self) -> u64 {
        1 << self.index
    }

    // --- writers

    /// Before a TLB entry that serves writes is made for a page without page bits. `false`: it has become code meanwhile.
    pub fn may_write(&self, ram: &Ram, page: u64) -> bool {
        let s = self.peers.sharing(ram, page);
        let had = s.writers.load(Ordering::Relaxed) & self.me() != 0;
        if !had {
            s.writers.fetch_or(self.me(), Ordering::SeqCst);
        }
        if !ram.page_bits(page).contains(PageBits::CODE) {
            return true;
        }
        if !had {
            s.writers.fetch_and(!self.me(), Ordering::SeqCst);
        }
        false
    }

    /// No TLB entry of ours serves writes to the page any more.
    pub fn stopped_writing(&self, ram: &Ram, page: u64) {
        self.peers.sharing(ram, page).writers.fetch_and(!self.me(), Ordering::SeqCst);
    }

    /// None of our TLB entries serves writes any more. Pages that nobody has asked about stay undescribed.
    pub fn stopped_writing_all(&self) {
        let described = self.peers.chunks.get().into_iter().flatten().filter_map(OnceLock::get);
        for s in described.flatten() {
            s.writers.fetch_and(!self.me(), Ordering::SeqCst);
        }
    }

    /// After a store that went the slow way: tells those who have translated bytes near it.
    pub fn wrote(&self, ram: &Ram, offset: u64, len: u64) {
        fence(Ordering::SeqCst);
        let page = offset >> 12;
        if !ram.page_bits(page).contains(PageBits::CODE) {
            return;
        }
        let s = self.peers.sharing(ram, page);
        let others = s.coders.load(Ordering::SeqCst) & !self.me();
        if others != 0 && s.granules.load(Ordering::SeqCst) & granules(offset, offset + len) != 0 {
            ram.bump_version(page);
            self.peers.post(others, Note::Written { offset, len });
        }
    }

    // --- coders

    /// Before bytes of a page are decoded for keeping. `true`: it is new to us, and our own write entries must go.
    pub fn claim(&self, ram: &Ram, page: u64) -> bool {
        let s = self.peers.sharing(ram, page);
        if s.coders.load(Ordering::Relaxed) & self.me() != 0 {
            return false;
        }
        let _guard = self.shard(page).lock();
        s.coders.fetch_or(self.me(), Ordering::SeqCst);
        if !ram.page_bits(page).contains(PageBits::CODE) {
            ram.set_page_bits(page, PageBits::CODE);
            self.peers.post(s.writers.load(Ordering::SeqCst) & !self.me(), Note::Revoke { page });
        }
        true
    }

    /// Whether a claimed page has no writers left, so that translations of it may be kept.
    pub fn is_ours(&self, ram: &Ram, page: u64) -> bool {
        self.peers.sharing(ram, page).writers.load(Ordering::SeqCst) & !self.me() == 0
    }

    /// Source bytes were decoded from here. The caller reads them again afterwards.
    pub fn note_source(&self, ram: &Ram, from: u64, to: u64) {
        let bits = granules(from, to);
        let s = self.peers.sharing(ram, from >> 12);
        if s.granules.load(Ordering::Relaxed) & bits != bits {
            s.granules.fetch_or(bits, Ordering::SeqCst);
        }
        fence(Ordering::SeqCst);
    }

    /// We have no translation of code in the page any more.
    pub fn forget_page(&self, ram: &Ram, page: u64) {
        let s = self.peers.sharing(ram, page);
        let _guard = self.shard(page).lock();
        if s.coders.fetch_and(!self.me(), Ordering::SeqCst) & !self.me() == 0 {
            s.granules.store(0, Ordering::SeqCst);
            ram.clear_page_bits(page, PageBits::CODE);
        }
    }

    fn shard(&self, page: u64) -> &Mutex<()> {
        &self.peers.shards[page as usize % SHARDS]
    }

    /// What others have sent since the last look.
    pub fn mail(&self) -> Mail {
        let inbox = std::mem::take(&mut *self.peers.cpus[self.index].inbox.lock());
        if inbox.overflow { Mail::Everything } else { Mail::Notes(inbox.notes) }
    }

    // --- one alone

    /// Before guest code runs: waits while another vCPU is alone.
    pub fn enter(&self) {
        let mut a = self.peers.alone.lock();
        while a.owner.is_some() {
            self.peers.changed.wait(&mut a);
        }
        a.running |= self.me();
    }

    /// After guest code has run.
    pub fn leave(&self) {
        self.peers.alone.lock().running &= !self.me();
        self.peers.changed.notify_all();
    }

    /// At an instruction boundary, when `Events::EXCLUSIVE` is pending: lets whoever wants it be alone.
    pub fn give_way(&self) {
        self.peers.cpus[self.index].signals.clear(Events::EXCLUSIVE);
        self.leave();
        self.enter();
    }

    /// Runs `f` while all other vCPUs stand at instruction boundaries. Called by a vCPU within an instruction that has not yet
    /// done anything, with no lock held.
    pub fn alone<R>(&self, f: impl FnOnce() -> R) -> R {
        let peers = &self.peers;
        let mut a = peers.alone.lock();
        // While it waits for its turn it stands still itself.
        a.running &= !self.me();
        peers.changed.notify_all();
        while a.owner.is_some() {
            peers.changed.wait(&mut a);
        }
        a.owner = Some(self.index);
        for (i, cpu) in peers.cpus.iter().enumerate() {
            if a.running >> i & 1 != 0 {
                cpu.signals.raise(Events::EXCLUSIVE);
            }
        }
        while a.running != 0 {
            peers.changed.wait(&mut a);
        }
        drop(a);
        let result = f();
        let mut a = peers.alone.lock();
        a.owner = None;
        a.running |= self.me();
        drop(a);
        peers.changed.notify_all();
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> (Ram, Member, Member, Vec<Arc<VcpuSignals>>) {
        let signals: Vec<Arc<VcpuSignals>> = (0..2).map(|_| Arc::default()).collect();
        let peers = Peers::new(&signals);
        (Ram::new(16 << 12).unwrap(), peers.member(0).unwrap(), peers.member(1).unwrap(), signals)
    }

    fn notes(m: &Member) -> Vec<Note> {
        match m.mail() {
            Mail::Notes(n) => n,
            Mail::Everything => panic!("overflow"),
        }
    }

    #[test]
    fn a_page_with_a_writer_is_claimed_once_the_writer_has_let_go() {
        let (ram, a, b, signals) = two();
        assert!(a.may_write(&ram, 3));
        assert!(b.claim(&ram, 3) && !b.is_ours(&ram, 3));
        assert_eq!(signals[0].pending(), Events::CODE);
        assert_eq!(notes(&a), [Note::Revoke { page: 3 }]);
        a.stopped_writing(&ram, 3);
        assert!(b.is_ours(&ram, 3) && !a.may_write(&ram, 3) && b.is_ours(&ram, 3));
        assert!(!b.claim(&ram, 3), "claimed already");
    }

    #[test]
    fn stores_near_source_bytes_are_told_to_those_who_have_them() {
        let (ram, a, b, _) = two();
        assert!(b.claim(&ram, 1));
        a.wrote(&ram, 0x1010, 4);
        assert_eq!(notes(&b), []);
        b.note_source(&ram, 0x1000, 0x1020);
        let version = ram.version(1);
        a.wrote(&ram, 0x103e, 4);
        a.wrote(&ram, 0x1040, 4);
        assert_eq!((notes(&b), ram.version(1)), (vec![Note::Written { offset: 0x103e, len: 4 }], version + 1));
        assert_eq!(notes(&a), []);
    }

    #[test]
    fn the_last_coder_gives_the_page_back() {
        let (ram, a, b, _) = two();
        assert!(a.claim(&ram, 2) && b.claim(&ram, 2));
        a.forget_page(&ram, 2);
        assert!(!a.may_write(&ram, 2));
        b.forget_page(&ram, 2);
        assert!(a.may_write(&ram, 2));
    }

    #[test]
    fn mail_is_bounded() {
        let (_, a, b, _) = two();
        for page in 0..=MAX_NOTES as u64 {
            a.peers.post(2, Note::Revoke { page });
        }
        assert!(matches!(b.mail(), Mail::Everything));
        assert!(matches!(b.mail(), Mail::Notes(n) if n.is_empty()));
    }

    #[test]
    fn all_pages_are_let_go_at_once() {
        let (ram, a, b, _) = two();
        assert!((1..4).all(|page| a.may_write(&ram, page)) && b.may_write(&ram, 2));
        a.stopped_writing_all();
        assert!(b.claim(&ram, 1) && b.is_ours(&ram, 1) && b.is_ours(&ram, 3));
        assert!(a.claim(&ram, 2) && !a.is_ours(&ram, 2), "the other's entry stays");
    }

    #[test]
    fn one_is_alone_while_others_wait_at_a_boundary() {
        const ROUNDS: u64 = 20_000;
        let signals: Vec<Arc<VcpuSignals>> = (0..3).map(|_| Arc::default()).collect();
        let peers = Peers::new(&signals);
        // Added to without atomicity, by whoever is alone.
        let sum = AtomicU64::new(0);
        std::thread::scope(|s| {
            for (i, signal) in signals.iter().enumerate() {
                let (m, sum) = (peers.member(i).unwrap(), &sum);
                s.spawn(move || {
                    m.enter();
                    for _ in 0..ROUNDS {
                        if signal.pending().contains(Events::EXCLUSIVE) {
                            m.give_way();
                        }
                        m.alone(|| sum.store(sum.load(Ordering::Relaxed) + 1, Ordering::Relaxed));
                    }
                    m.leave();
                });
            }
        });
        assert_eq!(sum.load(Ordering::Relaxed), 3 * ROUNDS);
    }
}
