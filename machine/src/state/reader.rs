//! Reading the file: its structure first, then its pages, on several threads, each with the checksum of its part.

use super::format::{END, MAGIC, MAX_HEAD, RUN, VERSION};
use super::{Head, StateError};
use crc32fast::Hasher;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use vm_core::addr::PAGE_SIZE;

/// What a machine is read from, by any thread.
pub trait Source: Sync {
    /// Fills `buf` from position `at`; `UnexpectedEof` if there is less.
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;
}

impl Source for File {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buf, at)
    }
}

impl Source for Vec<u8> {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(at).unwrap_or(usize::MAX).min(self.len());
        let bytes = self[from..].get(..buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }
}

impl<S: Source> Source for &S {
    fn read_at(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        (*self).read_at(at, buf)
    }
}

/// Threads at most, and pages that are worth one more.
const THREADS: u64 = 4;
const PAGES_EACH: u64 = 4096;
/// Bytes read at once: they stay in the host processor's second-level cache until they have been looked at and copied.
const PIECE: usize = 256 << 10;
const RUN_HEAD: u64 = 16;

/// A run of pages and where its content lies in the file.
#[derive(Clone, Copy)]
struct Run {
    page: u64,
    count: u64,
    at: u64,
}

impl Run {
    fn head(&self) -> [u8; RUN_HEAD as usize] {
        let mut b = [0; RUN_HEAD as usize];
        b[..8].copy_from_slice(&self.page.to_le_bytes());
        b[8..].copy_from_slice(&self.count.to_le_bytes());
        b
    }
}

fn damaged(what: impl Into<String>) -> StateError {
    StateError::Damaged(what.into())
}

/// Reads a machine: `open`, then `plan`, then `Pages::read`, which also tells whether the file was whole.
pub struct Reader<S> {
    from: S,
    at: u64,
    crc: Hasher,
}

impl<S: Source> Reader<S> {
    /// Reads up to the end of the head.
    pub fn open(from: S) -> Result<(Self, Head), StateError> {
        let mut r = Self { from, at: 0, crc: Hasher::new() };
        let mut magic = [0; 8];
        match r.bytes(&mut magic) {
            Err(StateError::Cut) => return Err(StateError::Magic),
            other => other?,
        }
        if magic != *MAGIC {
            return Err(StateError::Magic);
        }
        let version = r.word()?;
        if version > VERSION {
            return Err(StateError::Newer(version));
        }
        let (len, crc) = (r.word()?, r.word()?);
        if version == 0 || len > MAX_HEAD {
            return Err(damaged("the first bytes make no sense"));
        }
        let mut json = vec![0; len as usize];
        r.bytes(&mut json)?;
        if crc32fast::hash(&json) != crc {
            return Err(damaged("the checksum of the head differs"));
        }
        let head = serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
        Ok((r, head))
    }

    /// Finds the runs of pages of a RAM of `size` bytes. Their content is not looked at.
    pub fn plan(mut self, size: u64) -> Result<Pages<S>, StateError> {
        let pages = size / PAGE_SIZE;
        let (mut runs, mut next) = (Vec::new(), 0);
        let crc = self.crc.clone();
        loop {
            let (page, count) = (self.long()?, self.long()?);
            if page == END && count == 0 {
                break;
            }
            let fits = page >= next && (1..=RUN).contains(&count) && page.checked_add(count).is_some_and(|e| e <= pages);
            if !fits {
                return Err(damaged("a run of pages is out of place"));
            }
            runs.push(Run { page, count, at: self.at });
            self.at += count * PAGE_SIZE;
            next = page + count;
        }
        let stored = self.word()?;
        match self.bytes(&mut [0]) {
            Err(StateError::Cut) => Ok(Pages { from: self.from, runs, pages, crc, stored }),
            Ok(()) => Err(damaged("there is something after the end")),
            Err(e) => Err(e),
        }
    }

    fn bytes(&mut self, buf: &mut [u8]) -> Result<(), StateError> {
        read(&self.from, self.at, buf)?;
        self.at += buf.len() as u64;
        self.crc.update(buf);
        Ok(())
    }

    fn word(&mut self) -> Result<u32, StateError> {
        let mut b = [0; 4];
        self.bytes(&mut b)?;
        Ok(u32::from_le_bytes(b))
    }

    fn long(&mut self) -> Result<u64, StateError> {
        let mut b = [0; 8];
        self.bytes(&mut b)?;
        Ok(u64::from_le_bytes(b))
    }
}

fn read(from: &impl Source, at: u64, buf: &mut [u8]) -> Result<(), StateError> {
    from.read_at(at, buf).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => StateError::Cut,
        _ => StateError::Io(e),
    })
}

/// The pages of a file whose structure is right.
pub struct Pages<S> {
    from: S,
    runs: Vec<Run>,
    /// Of the whole RAM.
    pages: u64,
    /// Of all before the runs, and what the file says of all.
    crc: Hasher,
    stored: u32,
}

impl<S: Source> Pages<S> {
    /// Offset and length of each stretch of RAM that has content, or of each that has none.
    pub fn stretches(&self, content: bool) -> Vec<(u64, u64)> {
        let (mut found, mut next) = (Vec::new(), 0);
        let mut full: Vec<(u64, u64)> = Vec::new();
        for r in &self.runs {
            match full.last_mut() {
                Some((page, count)) if *page + *count == r.page => *count += r.count,
                _ => full.push((r.page, r.count)),
            }
        }
        if content {
            found = full;
        } else {
            for (page, count) in full.into_iter().chain([(self.pages, 0)]) {
                if page > next {
                    found.push((next, page - next));
                }
                next = page + count;
            }
        }
        found.into_iter().map(|(page, count)| (page * PAGE_SIZE, count * PAGE_SIZE)).collect()
    }

    /// Reads all pages: calls `put` with offset and content of pieces of RAM, in any order. What it was called for counts
    /// only if the result is `Ok`.
    pub fn read(&self, put: impl Fn(u64, &[u8]) + Sync) -> Result<(), StateError> {
        let host = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        self.read_on((self.content() / PAGES_EACH).clamp(1, host.min(THREADS)), put)
    }

    /// Number of pages with content.
    fn content(&self) -> u64 {
        self.runs.iter().map(|r| r.count).sum()
    }

    /// `read` on about so many threads.
    pub(super) fn read_on(&self, threads: u64, put: impl Fn(u64, &[u8]) + Sync) -> Result<(), StateError> {
        let total = self.content();
        let parts = self.parts(total.div_ceil(threads));
        let put = &put;
        let sums: Vec<Result<Hasher, StateError>> = std::thread::scope(|s| {
            let (first, others) = parts.split_first().expect("there is a part");
            let others: Vec<_> = others.iter().map(|p| s.spawn(move || self.part(p, put))).collect();
            let first = self.part(first, put);
            let join = |h: std::thread::ScopedJoinHandle<'_, _>| h.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            std::iter::once(first).chain(others.into_iter().map(join)).collect()
        });
        let mut crc = self.crc.clone();
        for sum in sums {
            crc.combine(&sum?);
        }
        crc.update(&Run { page: END, count: 0, at: 0 }.head());
        if crc.finalize() == self.stored { Ok(()) } else { Err(damaged("the checksum differs")) }
    }

    /// The runs in parts of about so many pages; one part if there are none.
    fn parts(&self, pages: u64) -> Vec<&[Run]> {
        let (mut parts, mut from, mut have) = (Vec::new(), 0, 0);
        for (i, r) in self.runs.iter().enumerate() {
            have += r.count;
            if have >= pages {
                parts.push(&self.runs[from..=i]);
                (from, have) = (i + 1, 0);
            }
        }
        if from < self.runs.len() || parts.is_empty() {
            parts.push(&self.runs[from..]);
        }
        parts
    }

    /// Reads some runs; the checksum of what is in the file from the head of the first to the end of the last.
    fn part(&self, runs: &[Run], put: &impl Fn(u64, &[u8])) -> Result<Hasher, StateError> {
        let mut crc = Hasher::new();
        let mut buf = vec![0; PIECE];
        for r in runs {
            let head = &mut buf[..RUN_HEAD as usize];
            read(&self.from, r.at - RUN_HEAD, head)?;
            if *head != r.head() {
                return Err(damaged("it changes while it is read"));
            }
            crc.update(head);
            let len = r.count * PAGE_SIZE;
            for from in (0..len).step_by(PIECE) {
                let piece = &mut buf[..(len - from).min(PIECE as u64) as usize];
                read(&self.from, r.at + from, piece)?;
                crc.update(piece);
                put(r.page * PAGE_SIZE + from, piece);
            }
        }
        Ok(crc)
    }
}
