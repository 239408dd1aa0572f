//! The shared folder itself. Every path is walked from its root, component by component, never through a symbolic link, so that a
//! guest stays inside whatever it makes there and whenever it does.

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RawDir, SeekFrom, Stat, StatFs, Timestamps, Uid};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A file's place: names from the root on.
pub type Names = Vec<Vec<u8>>;

/// Bytes of a path at most, as Linux has it.
const PATH_MAX: usize = 4096;
const NAME_MAX: usize = 255;
/// Directories below each other at most.
const MAX_DEPTH: usize = 128;
/// Bytes of directory entries read at once.
const ENTRIES: usize = 16 << 10;

/// One entry of a directory.
pub struct Entry {
    pub name: Vec<u8>,
    pub ino: u64,
    pub kind: FileType,
    /// Where the next one is.
    pub next: u64,
}

/// What of a file changes.
#[derive(Default)]
pub struct Change {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub times: Option<Timestamps>,
}

pub struct Folder {
    root: OwnedFd,
    device: u64,
    pub read_only: bool,
    /// Owners are set as the guest says, and an error of that is one; else they are if the host allows it.
    pub passthrough: bool,
}

/// The directory that a name is in.
enum Dir<'a> {
    Root(BorrowedFd<'a>),
    Open(OwnedFd),
}

impl AsFd for Dir<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Open(fd) => fd.as_fd(),
        }
    }
}

fn os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

/// A name of one component that is no step elsewhere.
pub fn check_name(name: &[u8]) -> Result<(), Errno> {
    match name {
        b"" | b"." | b".." => Err(Errno::INVAL),
        n if n.contains(&b'/') || n.contains(&0) => Err(Errno::INVAL),
        n if n.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
        _ => Ok(()),
    }
}

/// `path` with one more name.
pub fn child(path: &[Vec<u8>], name: &[u8]) -> Result<Names, Errno> {
    check_name(name)?;
    if path.len() >= MAX_DEPTH || path.iter().map(|n| n.len() + 1).sum::<usize>() + name.len() + 1 > PATH_MAX {
        return Err(Errno::NAMETOOLONG);
    }
    Ok([path, &[name.to_vec()]].concat())
}

fn is_plain(s: &Stat) -> bool {
    matches!(FileType::from_raw_mode(s.st_mode), FileType::RegularFile | FileType::Directory)
}

impl Folder {
    pub fn open(path: &Path, read_only: bool, passthrough: bool) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let device = rustix::fs::fstat(&root)?.st_dev;
        Ok(Self { root, device, read_only, passthrough })
    }

    fn writable(&self) -> Result<(), Errno> {
        if self.read_only { Err(Errno::ROFS) } else { Ok(()) }
    }

    /// Opens the directory `path` by steps, as a place only.
    fn dir(&self, path: &[Vec<u8>]) -> Result<Dir<'_>, Errno> {
        let mut at = Dir::Root(self.root.as_fd());
        for name in path {
            check_name(name)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            at = Dir::Open(rustix::fs::openat(&at, os(name), flags, Mode::empty())?);
        }
        Ok(at)
    }

    /// The directory that has `path`'s last name, and that name; the root has none.
    fn parent<'a>(&self, path: &'a [Vec<u8>]) -> Result<Option<(Dir<'_>, &'a OsStr)>, Errno> {
        let Some((name, above)) = path.split_last() else { return Ok(None) };
        check_name(name)?;
        Ok(Some((self.dir(above)?, os(name))))
    }

    /// As `parent`, for what the root cannot be.
    fn place<'a>(&self, path: &'a [Vec<u8>]) -> Result<(Dir<'_>, &'a OsStr), Errno> {
        self.parent(path)?.ok_or(Errno::BUSY)
    }

    pub fn stat(&self, path: &[Vec<u8>]) -> Result<Stat, Errno> {
        match self.parent(path)? {
            Some((dir, name)) => rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW),
            None => rustix::fs::fstat(&self.root),
        }
    }

    pub fn statfs(&self, path: &[Vec<u8>]) -> Result<StatFs, Errno> {
        match self.parent(path)? {
            Some((dir, name)) => rustix::fs::fstatfs(self.handle(&dir, name)?),
            None => rustix::fs::fstatfs(&self.root),
        }
    }

    /// A file as a place only; of a symbolic link, the link.
    fn handle(&self, dir: &Dir, name: &OsStr) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }

    /// A number for a file that no other has: what differs between file systems below the folder is mixed in.
    pub fn unique(&self, device: u64, ino: u64) -> u64 {
        if device == self.device { ino } else { ino ^ device.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32) }
    }

    /// The number of an entry of a directory of the folder's own file system.
    pub fn unique_here(&self, ino: u64) -> u64 {
        self.unique(self.device, ino)
    }

    /// Opens a file or a directory that is there. Devices, sockets and pipes are the guest's own affair.
    pub fn open_file(&self, path: &[Vec<u8>], flags: OFlags) -> Result<OwnedFd, Errno> {
        if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC) {
            self.writable()?;
        }
        let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let Some((dir, name)) = self.parent(path)? else {
            return rustix::fs::openat(&self.root, ".", flags, Mode::empty());
        };
        // Asked before, as opening alone may do something, and after, as it may be another file by then.
        if !is_plain(&rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?) {
            return Err(Errno::NXIO);
        }
        let fd = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
        if is_plain(&rustix::fs::fstat(&fd)?) { Ok(fd) } else { Err(Errno::NXIO) }
    }

    /// Makes a file, which must not be there, and opens it.
    pub fn create(&self, path: &[Vec<u8>], flags: OFlags, mode: u32, owner: (u32, u32)) -> Result<OwnedFd, Errno> {
        self.writable()?;
        let (dir, name) = self.place(path)?;
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600))?;
        self.adorn(&dir, name, Some(mode), owner)?;
        Ok(fd)
    }

    pub fn make_dir(&self, path: &[Vec<u8>], mode: u32, owner: (u32, u32)) -> Result<(), Errno> {
        self.writable()?;
        let (dir, name) = self.place(path)?;
        rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o700))?;
        self.adorn(&dir, name, Some(mode), owner)
    }

    pub fn make_link(&self, path: &[Vec<u8>], target: &[u8], owner: (u32, u32)) -> Result<(), Errno> {
        self.writable()?;
        let (dir, name) = self.place(path)?;
        rustix::fs::symlinkat(os(target), &dir, name)?;
        self.adorn(&dir, name, None, owner)
    }

    /// Makes a file, a pipe or a socket's name. Devices would be the host's.
    pub fn make_node(&self, path: &[Vec<u8>], mode: u32, owner: (u32, u32)) -> Result<(), Errno> {
        self.writable()?;
        let kind = match FileType::from_raw_mode(mode) {
            k @ (FileType::RegularFile | FileType::Fifo | FileType::Socket) => k,
            FileType::Unknown => FileType::RegularFile,
            _ => return Err(Errno::PERM),
        };
        let (dir, name) = self.place(path)?;
        rustix::fs::mknodat(&dir, name, kind, Mode::from_raw_mode(0o600), 0)?;
        self.adorn(&dir, name, Some(mode), owner)
    }

    /// Owner and mode of what has just been made.
    fn adorn(&self, dir: &Dir, name: &OsStr, mode: Option<u32>, (uid, gid): (u32, u32)) -> Result<(), Errno> {
        let owned = self.own(dir, name, Some(uid), Some(gid));
        if self.passthrough {
            owned?;
        }
        mode.map_or(Ok(()), |m| self.set_mode(dir, name, m))
    }

    fn own(&self, dir: &Dir, name: &OsStr, uid: Option<u32>, gid: Option<u32>) -> Result<(), Errno> {
        // All ones: leave it as it is.
        let (uid, gid) = (uid.filter(|v| *v != !0), gid.filter(|v| *v != !0));
        rustix::fs::chownat(dir, name, uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn set_mode(&self, dir: &Dir, name: &OsStr, mode: u32) -> Result<(), Errno> {
        // Programs of the host's that would run with another's rights are made only where the user wants owners to be real.
        let mode = mode & if self.passthrough { 0o7777 } else { 0o1777 };
        let file = self.handle(dir, name)?;
        // The host follows this to the very file, and refuses a symbolic link.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::chmodat(rustix::fs::CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())
    }

    /// Changes a file; `open` is it if the guest has it open for writing.
    pub fn change(&self, path: &[Vec<u8>], c: &Change, open: Option<BorrowedFd>) -> Result<(), Errno> {
        self.writable()?;
        let held;
        let (dir, name) = match self.parent(path)? {
            Some(p) => p,
            None => {
                held = (Dir::Root(self.root.as_fd()), OsStr::new("."));
                held
            }
        };
        if let Some(mode) = c.mode {
            self.set_mode(&dir, name, mode)?;
        }
        if c.uid.is_some() || c.gid.is_some() {
            let done = self.own(&dir, name, c.uid, c.gid);
            if self.passthrough {
                done?;
            }
        }
        if let Some(size) = c.size {
            match open {
                Some(fd) => rustix::fs::ftruncate(fd, size)?,
                None => rustix::fs::ftruncate(self.open_file(path, OFlags::WRONLY)?, size)?,
            }
        }
        if let Some(times) = &c.times {
            rustix::fs::utimensat(&dir, name, times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    pub fn read_link(&self, path: &[Vec<u8>]) -> Result<Vec<u8>, Errno> {
        let (dir, name) = self.parent(path)?.ok_or(Errno::INVAL)?;
        rustix::fs::readlinkat(dir, name, Vec::new()).map(|s| s.into_bytes())
    }

    pub fn rename(&self, from: &[Vec<u8>], to: &[Vec<u8>]) -> Result<(), Errno> {
        self.writable()?;
        let ((a, old), (b, new)) = (self.place(from)?, self.place(to)?);
        rustix::fs::renameat(a, old, b, new)
    }

    /// Another name for a file.
    pub fn link(&self, file: &[Vec<u8>], to: &[Vec<u8>]) -> Result<(), Errno> {
        self.writable()?;
        let ((a, old), (b, new)) = (self.place(file)?, self.place(to)?);
        rustix::fs::linkat(a, old, b, new, AtFlags::empty())
    }

    pub fn remove(&self, path: &[Vec<u8>], directory: bool) -> Result<(), Errno> {
        self.writable()?;
        let (dir, name) = self.place(path)?;
        rustix::fs::unlinkat(dir, name, if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() })
    }

    /// Entries of an open directory from `offset` on, as long as `take` takes them.
    pub fn entries(&self, fd: &OwnedFd, offset: u64, take: &mut dyn FnMut(Entry) -> bool) -> Result<(), Errno> {
        rustix::fs::seek(fd, SeekFrom::Start(offset))?;
        let mut buf = [MaybeUninit::uninit(); ENTRIES];
        let mut dir = RawDir::new(fd, &mut buf);
        while let Some(e) = dir.next() {
            let e = e?;
            let (name, ino) = (e.file_name().to_bytes().to_vec(), e.ino());
            if !take(Entry { name, ino, kind: e.file_type(), next: e.next_entry_cookie() }) {
                break;
            }
        }
        Ok(())
    }
}
