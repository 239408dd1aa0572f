//! The file's format, in streams: RAM is never held a second time.

use super::{Head, StateError};
use crc32fast::Hasher;
use std::io::{self, ErrorKind, Read, Write};
use vm_core::Ram;
use vm_core::addr::PAGE_SIZE;

const MAGIC: &[u8; 8] = b"rheaVM\r\n";
pub const VERSION: u32 = 1;
/// Longest head: a few hundred bytes for each device, some thousand for a CPU.
const MAX_HEAD: u32 = 4 << 20;
/// Pages in a run at most, and read from RAM at once.
const RUN: u64 = 256;
const CHUNK: usize = (RUN * PAGE_SIZE) as usize;
const END: u64 = u64::MAX;
const ZERO: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Length of the file.
    pub bytes: u64,
    /// Pages with content, and pages of zeroes, which are left out.
    pub pages: u64,
    pub zero_pages: u64,
}

/// Collects output into large pieces and keeps the checksum.
struct Output<W> {
    to: W,
    crc: Hasher,
    buf: Vec<u8>,
    written: u64,
}

impl<W: Write> Output<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.buf.len() + bytes.len() > CHUNK {
            self.flush()?;
        }
        self.buf.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.crc.update(&self.buf);
        self.to.write_all(&self.buf)?;
        self.written += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }

    fn run_head(&mut self, page: u64, count: u32) -> io::Result<()> {
        self.put(&page.to_le_bytes())?;
        self.put(&u64::from(count).to_le_bytes())
    }
}

/// Writes a machine. Nothing may write to `ram` meanwhile.
pub fn write(to: impl Write, head: &Head, ram: &Ram) -> io::Result<Stats> {
    let json = serde_json::to_vec(head)?;
    let len = u32::try_from(json.len()).ok().filter(|n| *n <= MAX_HEAD);
    let len = len.ok_or_else(|| io::Error::new(ErrorKind::FileTooLarge, "too much device state"))?;
    let mut out = Output { to, crc: Hasher::new(), buf: Vec::with_capacity(2 * CHUNK), written: 0 };
    out.put(MAGIC)?;
    for word in [VERSION, len, crc32fast::hash(&json)] {
        out.put(&word.to_le_bytes())?;
    }
    out.put(&json)?;
    let mut stats = Stats::default();
    let mut chunk = vec![0; CHUNK];
    for start in (0..ram.size()).step_by(CHUNK) {
        let chunk = &mut chunk[..(ram.size() - start).min(CHUNK as u64) as usize];
        ram.read(start, chunk);
        runs(chunk, |page, bytes| {
            let count = (bytes.len() / ZERO.len()) as u32;
            stats.pages += u64::from(count);
            out.run_head(start / PAGE_SIZE + page, count)?;
            out.put(bytes)
        })?;
    }
    stats.zero_pages = ram.size() / PAGE_SIZE - stats.pages;
    out.run_head(END, 0)?;
    out.flush()?;
    let crc = out.crc.finalize();
    out.to.write_all(&crc.to_le_bytes())?;
    stats.bytes = out.written + 4;
    Ok(stats)
}

/// Calls `each` for the runs of pages that are not zero, with the number of the first.
fn runs(chunk: &[u8], mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let is_zero = |i: usize| chunk[i * ZERO.len()..][..ZERO.len()] == ZERO;
    let pages = chunk.len() / ZERO.len();
    let mut at = 0;
    while at < pages {
        let zero = is_zero(at);
        let end = (at + 1..pages).find(|i| is_zero(*i) != zero).unwrap_or(pages);
        if !zero {
            each(at as u64, &chunk[at * ZERO.len()..end * ZERO.len()])?;
        }
        at = end;
    }
    Ok(())
}

/// Reads a machine: `open`, then `ram`, which also tells whether the file was whole.
pub struct Reader<R> {
    from: R,
    crc: Hasher,
    buf: Vec<u8>,
}

fn damaged(what: impl Into<String>) -> StateError {
    StateError::Damaged(what.into())
}

impl<R: Read> Reader<R> {
    /// Reads up to the end of the head.
    pub fn open(from: R) -> Result<(Self, Head), StateError> {
        let mut r = Self { from, crc: Hasher::new(), buf: Vec::new() };
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

    /// Reads RAM of `size` bytes: calls `run` with the offset and content of each run, and `gap` with offset and length of the
    /// zeroes between them. What they were called for counts only if the result is `Ok`.
    pub fn ram(mut self, size: u64, mut run: impl FnMut(u64, &[u8]), mut gap: impl FnMut(u64, u64)) -> Result<(), StateError> {
        let pages = size / PAGE_SIZE;
        let mut next = 0;
        self.buf.resize(CHUNK, 0);
        loop {
            let (page, count) = (self.long()?, self.long()?);
            let end = page == END && count == 0;
            let first = if end { pages } else { page };
            let fits = first >= next && first.checked_add(count).is_some_and(|e| e <= pages);
            if !fits || !end && !(1..=RUN).contains(&count) {
                return Err(damaged("a run of pages is out of place"));
            }
            if first > next {
                gap(next * PAGE_SIZE, (first - next) * PAGE_SIZE);
            }
            if end {
                break;
            }
            let mut buf = std::mem::take(&mut self.buf);
            let bytes = &mut buf[..(count * PAGE_SIZE) as usize];
            self.bytes(bytes)?;
            run(first * PAGE_SIZE, bytes);
            self.buf = buf;
            next = first + count;
        }
        self.end()
    }

    fn end(mut self) -> Result<(), StateError> {
        let want = self.crc.clone().finalize();
        if self.word()? != want {
            return Err(damaged("the checksum differs"));
        }
        match self.bytes(&mut [0]) {
            Err(StateError::Cut) => Ok(()),
            Ok(()) => Err(damaged("there is something after the end")),
            Err(e) => Err(e),
        }
    }

    fn bytes(&mut self, buf: &mut [u8]) -> Result<(), StateError> {
        self.from.read_exact(buf).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => StateError::Cut,
            _ => StateError::Io(e),
        })?;
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
