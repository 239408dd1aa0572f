//! Files and block devices of the host's as imago wants them: its own, but for flushes, which hold up nobody else, and for
//! `aio=io_uring`. Each thread of a drive then has a ring of its own (io_uring(7)).
#![allow(unsafe_code)]

use imago::file::File as Inner;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{Storage, StorageCreateOptions, StorageOpenOptions};
use io_uring::{IoUring, Probe, opcode, squeue::Entry, types::Fd};
use nix::libc;
use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

/// See the module.
#[derive(Debug)]
pub struct HostFile {
    inner: Inner,
    /// The same open file.
    file: File,
    ring: bool,
}

impl std::fmt::Display for HostFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl HostFile {
    /// Opens a file; with `ring` reads and writes go by io_uring.
    pub fn open_with(opts: StorageOpenOptions, ring: bool) -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let direct = if opts.get_direct() { libc::O_DIRECT } else { 0 };
        let path = opts.get_filename().unwrap_or(Path::new("")).to_owned();
        let file = File::options().read(true).write(opts.get_writable()).custom_flags(direct).open(path)?;
        Ok(Self { inner: Inner::from_open_file(file.try_clone()?, opts)?, file, ring })
    }
}

impl TryFrom<File> for HostFile {
    type Error = io::Error;

    fn try_from(file: File) -> io::Result<Self> {
        Ok(Self { inner: Inner::try_from(file.try_clone()?)?, file, ring: false })
    }
}

// SAFETY (of the `unsafe fn`s below): their callers promise alignment and that no others write there, which is handed on.
impl Storage for HostFile {
    fn open(opts: StorageOpenOptions) -> io::Result<Self> {
        Self::open_with(opts, false)
    }

    fn create_open(opts: StorageCreateOptions) -> io::Result<Self> {
        let opened = opts.clone().get_open_options().write(true);
        drop(Inner::create_open(opts)?);
        Self::open_with(opened, false)
    }

    fn mem_align(&self) -> usize {
        self.inner.mem_align()
    }

    fn req_align(&self) -> usize {
        self.inner.req_align()
    }

    fn zero_align(&self) -> usize {
        self.inner.zero_align()
    }

    fn discard_align(&self) -> usize {
        self.inner.discard_align()
    }

    fn size(&self) -> io::Result<u64> {
        let m = self.file.metadata()?;
        if m.is_file() { Ok(m.len()) } else { self.inner.size() }
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        self.inner.resolve_relative_path(relative)
    }

    fn get_filename(&self) -> Option<PathBuf> {
        self.inner.get_filename()
    }

    unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        if !self.ring {
            // SAFETY: as above.
            return unsafe { self.inner.pure_readv(bufv, offset) };
        }
        while !bufv.is_empty() {
            // SAFETY: the list is used while the buffers are borrowed.
            let n = move_data(self.file.as_raw_fd(), unsafe { bufv.as_iovec() }, offset, false)?;
            if n == 0 {
                bufv.fill(0);
                break;
            }
            bufv = bufv.split_tail_at(n);
            offset = offset.saturating_add(n);
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, mut bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        if !self.ring {
            // SAFETY: as above.
            return unsafe { self.inner.pure_writev(bufv, offset) };
        }
        while !bufv.is_empty() {
            // SAFETY: the list is used while the buffers are borrowed; they are read only.
            let n = move_data(self.file.as_raw_fd(), unsafe { bufv.as_iovec() }, offset, true)?;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            bufv = bufv.split_tail_at(n);
            offset = offset.saturating_add(n);
        }
        Ok(())
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.pure_write_zeroes(offset, length) }
    }

    unsafe fn pure_write_allocated_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.pure_write_allocated_zeroes(offset, length) }
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        // SAFETY: as above.
        unsafe { self.inner.pure_discard(offset, length) }
    }

    /// There are no buffers of this program's.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    /// The data, and what is needed to find them: fdatasync(2).
    fn sync(&self) -> io::Result<()> {
        if !self.ring {
            return self.file.sync_data();
        }
        let fsync = opcode::Fsync::new(Fd(self.file.as_raw_fd())).flags(io_uring::types::FsyncFlags::DATASYNC);
        // SAFETY: it has no memory.
        unsafe { perform(fsync.build()) }.map(|_| ())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        self.inner.get_storage_helper()
    }

    fn resize(&self, new_size: u64, mode: PreallocateMode) -> io::Result<()> {
        self.inner.resize(new_size, mode)
    }
}

thread_local! {
    static RING: RefCell<Option<IoUring>> = const { RefCell::new(None) };
}

/// Whether the kernel has io_uring, and lets this program use it.
pub fn ring_works() -> bool {
    let Ok(ring) = IoUring::new(2) else { return false };
    let mut probe = Probe::new();
    let codes = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];
    ring.submitter().register_probe(&mut probe).is_ok() && codes.iter().all(|c| probe.is_supported(*c))
}

/// Moves bytes between buffers and a file; how many.
fn move_data(fd: RawFd, list: &[libc::iovec], offset: u64, write: bool) -> io::Result<u64> {
    const MOST: usize = 1024;
    let (at, len) = (list.as_ptr(), list.len().min(MOST) as u32);
    let entry = match write {
        true => opcode::Writev::new(Fd(fd), at.cast(), len).offset(offset).build(),
        false => opcode::Readv::new(Fd(fd), at.cast(), len).offset(offset).build(),
    };
    loop {
        // SAFETY: the list and its buffers are borrowed until it has returned.
        match unsafe { perform(entry.clone()) } {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {}
            r => return r.map(u64::from),
        }
    }
}

/// Does one operation on this thread's ring and waits for its end.
///
/// # Safety
/// Memory that the operation names must be valid until this has returned: it returns only when the kernel has no more to do with it.
unsafe fn perform(entry: Entry) -> io::Result<u32> {
    RING.with_borrow_mut(|slot| {
        let ring = match slot {
            Some(ring) => ring,
            None => slot.insert(IoUring::new(2)?),
        };
        // SAFETY: as the caller promises.
        unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
        loop {
            let waited = ring.submit_and_wait(1);
            if let Some(done) = ring.completion().next() {
                let n = done.result();
                return u32::try_from(n).map_err(|_| io::Error::from_raw_os_error(n.wrapping_neg()));
            }
            match waited {
                // The kernel has not taken it: nothing is under way.
                Err(e) if !ring.submission().is_empty() && e.raw_os_error() != Some(libc::EINTR) => {
                    *slot = None;
                    return Err(e);
                }
                _ => {}
            }
        }
    })
}
