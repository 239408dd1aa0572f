//! The file's format, and writing it in a stream: RAM is never held a second time.

use super::Head;
use crc32fast::Hasher;
use std::io::{self, ErrorKind, Write};
use vm_core::Ram;
use vm_core::addr::PAGE_SIZE;

pub(super) const MAGIC: &[u8; 8] = b"rheaVM\r\n";
pub const VERSION: u32 = 1;
/// Longest head: a few hundred bytes for each device, some thousand for a CPU.
pub(super) const MAX_HEAD: u32 = 4 << 20;
/// Pages in a run at most, and read from RAM at once.
pub(super) const RUN: u64 = 256;
const CHUNK: usize = (RUN * PAGE_SIZE) as usize;
pub(super) const END: u64 = u64::MAX;
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
