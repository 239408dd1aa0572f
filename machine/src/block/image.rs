//! One open image: reading, writing and the rest, between guest memory and imago.

use super::file::HostFile as Storage;
use super::lease::Leased;
use crate::options::{DriveConfig, ImageFormat};
use devices::block::{Geometry, Op, SECTOR, Segment};
use imago::FormatAccess;
use imago::format::PreallocateMode;
use parking_lot::RwLock;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that are moved at once: what a request needs of the host's memory, however long it is.
const CHUNK: usize = 1 << 20;
/// How the header of a qcow2 image starts.
const FORMAT_MAGIC: &[u8; 4] = b"QFI\xfb";

const CUT_OFF: &str = "the image is shorter than it was: somebody has cut it off";

/// See the module. Any number of threads may use it.
pub struct Image {
    /// Written to by who changes where data lies (discard), as imago wants it.
    access: RwLock<FormatAccess<Storage>>,
    /// But for the size, which may change.
    geometry: Geometry,
    bytes: AtomicU64,
    pub format: ImageFormat,
    pub backing: Option<PathBuf>,
    discard: bool,
    no_flush: bool,
    /// Bytes that a qcow2 image's file had when it was longest: its tables may lie at the end.
    longest: AtomicU64,
    /// The disk is its first file: what is cut off from that is an error, not zeroes.
    plain: bool,
    /// The format was not given: the guest may not make the image look like another one.
    guard: bool,
    /// Descriptors that hold the locks, the image's own first.
    held: Vec<File>,
}

/// Walks along the buffers of a request.
struct Cursor<'a> {
    list: &'a [Segment],
    used: u32,
}

impl<'a> Cursor<'a> {
    fn new(list: &'a [Segment]) -> Self {
        Self { list, used: 0 }
    }

    /// Calls `f` with address and range of `buf` for each part of the next `len` bytes.
    fn next(&mut self, len: usize, mut f: impl FnMut(u64, std::ops::Range<usize>)) {
        let mut at = 0;
        while at < len
            && let Some(s) = self.list.first()
        {
            let n = (len - at).min((s.len - self.used) as usize);
            f(s.pa.wrapping_add(self.used.into()), at..at + n);
            at += n;
            self.used += n as u32;
            if self.used == s.len {
                (self.list, self.used) = (&self.list[1..], 0);
            }
        }
    }
}

impl Image {
    pub(super) fn new(
        access: FormatAccess<Storage>,
        format: ImageFormat,
        c: &DriveConfig,
        guard: bool,
        backing: Option<PathBuf>,
        held: Vec<File>,
    ) -> Self {
        let bytes = access.size() / SECTOR * SECTOR;
        let geometry = Geometry { bytes, read_only: c.read_only, discard: true, write_back: c.cache.write_back };
        let (discard, no_flush) = (c.discard, c.cache.no_flush);
        let (access, bytes) = (RwLock::new(access), AtomicU64::new(bytes));
        let regular = held.first().and_then(|f| f.metadata().ok()).is_some_and(|m| m.is_file());
        let plain = regular && format == ImageFormat::Raw && !c.snapshot;
        let longest = AtomicU64::new(0);
        Self { access, geometry, bytes, longest, format, backing, discard, no_flush, plain, guard, held }
    }

    pub fn geometry(&self) -> Geometry {
        Geometry { bytes: self.bytes.load(Ordering::Relaxed), ..self.geometry.clone() }
    }

    /// Gives the disk another size, in whole sectors.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        if self.geometry.read_only {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the disk is read-only"));
        }
        let mut access = self.access.write();
        access.resize(bytes, PreallocateMode::None)?;
        self.bytes.store(access.size() / SECTOR * SECTOR, Ordering::Relaxed);
        access.flush()
    }

    /// Jobs wait while the guard lives.
    #[cfg(test)]
    pub fn hold(&self) -> impl Drop + '_ {
        self.access.write()
    }

    /// Does what a job asks for. `buf` is the calling thread's.
    pub fn perform(&self, op: &Op, memory: &Leased, buf: &mut Vec<u8>) -> io::Result<()> {
        self.whole()?;
        match op {
            Op::Read { at, to } => self.read(*at, op.len(), to, memory, buf),
            Op::Write { at, from, through } => {
                self.write(*at, op.len(), from, memory, buf)?;
                if *through { self.flush() } else { Ok(()) }
            }
            Op::Flush => self.flush(),
            Op::Discard { at, len } => self.discard(*at, *len),
            Op::Trim(list) => list.iter().try_for_each(|(at, len)| self.discard(*at, *len)),
            Op::Zero { at, len, unmap, through } => {
                self.zero(*at, *len, *unmap)?;
                if *through { self.flush() } else { Ok(()) }
            }
        }
    }

    /// Fails if somebody has cut a qcow2 image off: imago would take what it does not find for zeroes, and tables of zeroes for
    /// free space.
    fn whole(&self) -> io::Result<()> {
        let Some(file) = self.held.first().filter(|_| self.format == ImageFormat::Qcow2) else { return Ok(()) };
        let len = file.metadata()?.len();
        if len < self.longest.fetch_max(len, Ordering::Relaxed) {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, CUT_OFF));
        }
        Ok(())
    }

    fn read(&self, at: u64, len: u64, to: &[Segment], memory: &Leased, buf: &mut Vec<u8>) -> io::Result<()> {
        if self.plain
            && let Some(f) = self.held.first()
            && f.metadata()?.len() < at.saturating_add(len)
        {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, CUT_OFF));
        }
        let mut cursor = Cursor::new(to);
        for (at, n) in chunks(at, len) {
            buf.resize(n, 0);
            self.access.read().read(&mut buf[..], at)?;
            memory.with(|m| cursor.next(n, |pa, range| m.write(pa, &buf[range])))?;
        }
        Ok(())
    }

    fn write(&self, at: u64, len: u64, from: &[Segment], memory: &Leased, buf: &mut Vec<u8>) -> io::Result<()> {
        let mut cursor = Cursor::new(from);
        for (at, n) in chunks(at, len) {
            buf.resize(n, 0);
            memory.with(|m| cursor.next(n, |pa, range| m.read(pa, &mut buf[range])))?;
            if self.guard && at == 0 && buf.starts_with(FORMAT_MAGIC) {
                // Opened without format= another time, it would be another image, with a backing file of the guest's choice.
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a format's header on a disk without format="));
            }
            self.access.read().write(&buf[..], at)?;
        }
        Ok(())
    }

    /// Everything written so far is on disk afterwards.
    pub fn flush(&self) -> io::Result<()> {
        if self.geometry.read_only {
            return Ok(());
        }
        let access = self.access.read();
        access.flush()?;
        if self.no_flush { Ok(()) } else { access.sync() }
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        if !self.discard || len == 0 {
            return Ok(());
        }
        match self.access.write().discard_to_any(at, len) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            r => r,
        }
    }

    fn zero(&self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        if unmap && self.discard {
            match self.access.write().discard_to_zero(at, len) {
                Err(e) if e.kind() == io::ErrorKind::Unsupported => {}
                r => return r,
            }
        }
        match self.access.read().write_zeroes(at, len) {
            Err(e) if e.kind() == io::ErrorKind::Unsupported => self.write_zero_bytes(at, len),
            r => r,
        }
    }

    /// The slow way, where the format or the host's file system has no other.
    fn write_zero_bytes(&self, at: u64, len: u64) -> io::Result<()> {
        let zeroes = vec![0; CHUNK.min(usize::try_from(len).unwrap_or(CHUNK))];
        chunks(at, len).try_for_each(|(at, n)| self.access.read().write(&zeroes[..n], at))
    }
}

/// Pieces of a range that fit `CHUNK`.
fn chunks(at: u64, len: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..len.div_ceil(CHUNK as u64)).map(move |i| {
        let from = i * CHUNK as u64;
        (at + from, (len - from).min(CHUNK as u64) as usize)
    })
}
