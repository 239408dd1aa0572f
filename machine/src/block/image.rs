//! One open image: reading, writing and the rest, between guest memory and imago.

use crate::options::{DriveConfig, ImageFormat};
use devices::block::{Geometry, Memory, Op, SECTOR, Segment};
use imago::FormatAccess;
use imago::file::File as Storage;
use parking_lot::RwLock;
use std::fs::File;
use std::io;
use std::path::PathBuf;

/// Bytes that are moved at once: what a request needs of the host's memory, however long it is.
const CHUNK: usize = 1 << 20;
/// How the header of a qcow2 image starts.
const FORMAT_MAGIC: &[u8; 4] = b"QFI\xfb";

/// See the module. Any number of threads may use it.
pub struct Image {
    /// Written to by who changes where data lies (discard), as imago wants it.
    access: RwLock<FormatAccess<Storage>>,
    pub geometry: Geometry,
    pub format: ImageFormat,
    pub backing: Option<PathBuf>,
    discard: bool,
    no_flush: bool,
    /// The format was not given: the guest may not make the image look like another one.
    guard: bool,
    /// Descriptors that hold the locks.
    _held: Vec<File>,
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
        Self { access: RwLock::new(access), geometry, format, backing, discard, no_flush, guard, _held: held }
    }

    /// Does what a job asks for. `buf` is the calling thread's.
    pub fn perform(&self, op: &Op, memory: &Memory, buf: &mut Vec<u8>) -> io::Result<()> {
        match op {
            Op::Read { at, to } => self.read(*at, op.len(), to, memory, buf),
            Op::Write { at, from, through } => {
                self.write(*at, op.len(), from, memory, buf)?;
                if *through { self.flush() } else { Ok(()) }
            }
            Op::Flush => self.flush(),
            Op::Discard { at, len } => self.discard(*at, *len),
            Op::Zero { at, len, unmap } => self.zero(*at, *len, *unmap),
        }
    }

    fn read(&self, at: u64, len: u64, to: &[Segment], memory: &Memory, buf: &mut Vec<u8>) -> io::Result<()> {
        let mut cursor = Cursor::new(to);
        for (at, n) in chunks(at, len) {
            buf.resize(n, 0);
            self.access.read().read(&mut buf[..], at)?;
            cursor.next(n, |pa, range| memory.write(pa, &buf[range]));
        }
        Ok(())
    }

    fn write(&self, at: u64, len: u64, from: &[Segment], memory: &Memory, buf: &mut Vec<u8>) -> io::Result<()> {
        let mut cursor = Cursor::new(from);
        for (at, n) in chunks(at, len) {
            buf.resize(n, 0);
            cursor.next(n, |pa, range| memory.read(pa, &mut buf[range]));
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
