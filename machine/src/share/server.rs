//! A 9P2000.L server: requests of a guest's v9fs, answered from a folder. Errors are Linux's numbers (Rlerror).

use super::fids::{Fids, Open, Saved};
use super::folder::{self, Change, Folder, Names};
use super::wire::{HEADER, Reader, Writer, message};
use devices::virtio::p9::MAX_MESSAGE;
use rustix::fs::{FileType, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

const RLERROR: u8 = 7;
const VERSION: &[u8] = b"9P2000.L";
/// Smallest message size that a guest may ask for.
const MIN_MESSAGE: usize = 4096;
/// Names of one Twalk (P9_MAXWELEM).
const MAX_WALK: usize = 16;
/// Bytes of an answer of Tread and Treaddir beside the data.
const DATA_HEADER: usize = HEADER + 4;

const QT_DIR: u8 = 0x80;
const QT_SYMLINK: u8 = 0x02;

// Tgetattr: everything but birth time, generation and data version. Tsetattr's bits.
const GETATTR_BASIC: u64 = 0x7ff;
const SET_MODE: u32 = 1;
const SET_UID: u32 = 2;
const SET_GID: u32 = 4;
const SET_SIZE: u32 = 8;
const SET_ATIME: u32 = 0x10;
const SET_MTIME: u32 = 0x20;
const SET_ATIME_TO: u32 = 0x80;
const SET_MTIME_TO: u32 = 0x100;
/// Tunlinkat's flag AT_REMOVEDIR.
const REMOVE_DIR: u32 = 0x200;
/// Tlock: granted; Tgetlock: nobody holds it.
const LOCK_SUCCESS: u8 = 0;
const LOCK_UNLOCKED: u8 = 2;

/// Folder and what the guest has in hand of it.
pub struct Server {
    folder: Folder,
    fids: Fids,
    msize: usize,
}

#[derive(Serialize, Deserialize)]
pub struct State {
    msize: usize,
    fids: Vec<Saved>,
}

type Answer = Result<(), Errno>;

/// What is missing from a message.
fn short<T>(v: Option<T>) -> Result<T, Errno> {
    v.ok_or(Errno::BADMSG)
}

/// Flags of Tlopen that are the guest's to choose. They have the numbers of Linux on x86.
pub fn open_flags(bits: u32) -> OFlags {
    let access = match bits & 3 {
        1 => OFlags::WRONLY,
        2 => OFlags::RDWR,
        _ => OFlags::RDONLY,
    };
    let known = [
        (0o200, OFlags::EXCL),
        (0o1000, OFlags::TRUNC),
        (0o2000, OFlags::APPEND),
        (0o10000, OFlags::DSYNC),
        (0o200_000, OFlags::DIRECTORY),
        (0o4_000_000, OFlags::SYNC),
    ];
    known.iter().filter(|(bit, _)| bits & bit != 0).fold(access, |all, (_, flag)| all | *flag)
}

impl Server {
    pub fn new(folder: Folder) -> Self {
        Self { folder, fids: Fids::default(), msize: MIN_MESSAGE }
    }

    /// Forgets all that the guest had in hand.
    pub fn reset(&mut self) {
        self.fids.clear();
        self.msize = MIN_MESSAGE;
    }

    pub fn save(&self) -> State {
        State { msize: self.msize, fids: self.fids.save() }
    }

    pub fn load(&mut self, s: State) {
        self.msize = s.msize.clamp(MIN_MESSAGE, MAX_MESSAGE);
        self.fids = Fids::load(&self.folder, s.fids);
    }

    /// Answers a request, in `room` bytes at most.
    pub fn answer(&mut self, request: &[u8], room: usize) -> Vec<u8> {
        let mut r = Reader(request);
        let (_, kind, tag) = (r.u32(), r.u8().unwrap_or(0), r.u16().unwrap_or(!0));
        let mut w = Writer::default();
        let room = room.min(self.msize.max(MIN_MESSAGE));
        let done = self.dispatch(kind, &mut r, &mut w, room.saturating_sub(DATA_HEADER));
        match done {
            Ok(()) if HEADER + w.0.len() <= room => message(kind.wrapping_add(1), tag, &w.0),
            Ok(()) => message(RLERROR, tag, &(Errno::MSGSIZE.raw_os_error() as u32).to_le_bytes()),
            Err(e) => message(RLERROR, tag, &(e.raw_os_error() as u32).to_le_bytes()),
        }
    }

    fn dispatch(&mut self, kind: u8, r: &mut Reader, w: &mut Writer, most: usize) -> Answer {
        match kind {
            100 => self.version(r, w),
            104 => self.attach(r, w),
            // Requests are answered in their order: those before it are done.
            108 => Ok(()),
            110 => self.walk(r, w),
            116 => self.read(r, w, most),
            118 => self.write(r, w),
            120 => self.fids.remove(short(r.u32())?).map(drop),
            122 => self.remove(r),
            8 => self.statfs(r, w),
            12 => self.open(r, w),
            14 => self.create(r, w),
            16 => self.symlink(r, w),
            18 => self.mknod(r, w),
            20 => self.rename(r),
            22 => self.readlink(r, w),
            24 => self.getattr(r, w),
            26 => self.setattr(r),
            40 => self.readdir(r, w, most),
            50 => self.fsync(r),
            // The folder is this guest's as far as locks go: its own kernel keeps them.
            52 => {
                self.fids.file(short(r.u32())?)?;
                w.u8(LOCK_SUCCESS);
                Ok(())
            }
            54 => self.getlock(r, w),
            70 => self.link(r),
            72 => self.mkdir(r, w),
            74 => self.renameat(r),
            76 => self.unlinkat(r),
            // Tauth, extended attributes.
            _ => {
                vm_core::dlog!(UNIMP, "9p: request {kind}");
                Err(Errno::OPNOTSUPP)
            }
        }
    }

    fn qid(&self, s: &Stat, w: &mut Writer) {
        let kind = match FileType::from_raw_mode(s.st_mode) {
            FileType::Directory => QT_DIR,
            FileType::Symlink => QT_SYMLINK,
            _ => 0,
        };
        let version = (s.st_mtime as u32) ^ (s.st_mtime_nsec as u32) ^ (s.st_size as u32) << 8;
        w.u8(kind).u32(version).u64(self.folder.unique(s.st_dev, s.st_ino));
    }

    fn qid_of(&self, path: &Names, w: &mut Writer) -> Answer {
        self.qid(&self.folder.stat(path)?, w);
        Ok(())
    }

    fn version(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let (msize, version) = (short(r.u32())? as usize, short(r.text())?);
        if msize < MIN_MESSAGE {
            return Err(Errno::MSGSIZE);
        }
        self.fids.clear();
        self.msize = msize.min(MAX_MESSAGE);
        w.u32(self.msize as u32).text(if version == VERSION { VERSION } else { b"unknown" });
        Ok(())
    }

    fn attach(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let (fid, _, _, _) = (short(r.u32())?, r.u32(), r.text(), r.text());
        let uid = r.u32().unwrap_or(!0);
        if self.fids.has(fid) {
            return Err(Errno::INVAL);
        }
        self.qid_of(&Vec::new(), w)?;
        self.fids.insert(fid, Vec::new(), uid)
    }

    fn walk(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let (fid, new, n) = (short(r.u32())?, short(r.u32())?, usize::from(short(r.u16())?));
        let from = self.fids.get(fid)?;
        if n > MAX_WALK || (new == fid && from.open.is_some()) || (new != fid && self.fids.has(new)) {
            return Err(Errno::INVAL);
        }
        let (mut path, uid) = (from.path.clone(), from.uid);
        let mut qids = Writer::default();
        let mut found = 0;
        for _ in 0..n {
            let name = short(r.text())?;
            let next = match name {
                // Up from the root is the root.
                b".." => Ok(path[..path.len().saturating_sub(1)].to_vec()),
                name => folder::child(&path, name),
            };
            match next.and_then(|p| self.qid_of(&p, &mut qids).map(|()| p)) {
                Ok(p) => path = p,
                Err(e) if found == 0 => return Err(e),
                Err(_) => break,
            }
            found += 1;
        }
        w.u16(found as u16).bytes(&qids.0);
        if found == n { self.fids.insert(new, path, uid) } else { Ok(()) }
    }

    fn open(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let (fid, flags) = (short(r.u32())?, open_flags(short(r.u32())?));
        self.fids.may_open()?;
        let f = self.fids.get(fid)?;
        if f.open.is_some() {
            return Err(Errno::BUSY);
        }
        let file = self.folder.open_file(&f.path, flags)?;
        self.qid(&rustix::fs::fstat(&file)?, w);
        w.u32(0);
        self.fids.get_mut(fid)?.open = Some(Open { file: Some(file), flags });
        Ok(())
    }

    fn create(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let (fid, name, flags) = (short(r.u32())?, short(r.text())?, open_flags(short(r.u32())?));
        let (mode, gid) = (short(r.u32())?, short(r.u32())?);
        self.fids.may_open()?;
        let f = self.fids.get(fid)?;
        if f.open.is_some() {
            return Err(Errno::BUSY);
        }
        let path = folder::child(&f.path, name)?;
        let file = match self.folder.create(&path, flags, mode, (f.uid, gid)) {
            // It has come to be since the guest looked; then it is opened, unless it must not be there.
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => self.folder.open_file(&path, flags)?,
            other => other?,
        };
        self.qid(&rustix::fs::fstat(&file)?, w);
        w.u32(0);
        let f = self.fids.get_mut(fid)?;
        f.path = path;
        f.open = Some(Open { file: Some(file), flags: flags - OFlags::EXCL });
        Ok(())
    }

    /// Place below a directory's fid, and the owner of what is made there.
    fn place(&self, fid: u32, name: &[u8]) -> Result<(Names, u32), Errno> {
        let f = self.fids.get(fid)?;
        Ok((folder::child(&f.path, name)?, f.uid))
    }

    fn symlink(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let (fid, name, target, gid) = (short(r.u32())?, short(r.text())?, short(r.text())?, short(r.u32())?);
        let (path, uid) = self.place(fid, name)?;
        if target.contains(&0) {
            return Err(Errno::INVAL);
        }
        self.folder.make_link(&path, target, (uid, gid))?;
        self.qid_of(&path, w)
    }

    fn mknod(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let (fid, name, mode) = (short(r.u32())?, short(r.text())?, short(r.u32())?);
        let (_, _, gid) = (short(r.u32())?, short(r.u32())?, short(r.u32())?);
        let (path, uid) = self.place(fid, name)?;
        self.folder.make_node(&path, mode, (uid, gid))?;
        self.qid_of(&path, w)
    }

    fn mkdir(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let (fid, name, mode, gid) = (short(r.u32())?, short(r.text())?, short(r.u32())?, short(r.u32())?);
        let (path, uid) = self.place(fid, name)?;
        self.folder.make_dir(&path, mode, (uid, gid))?;
        self.qid_of(&path, w)
    }

    fn link(&mut self, r: &mut Reader) -> Answer {
        let (dir, fid, name) = (short(r.u32())?, short(r.u32())?, short(r.text())?);
        let (to, _) = self.place(dir, name)?;
        self.folder.link(&self.fids.get(fid)?.path, &to)
    }

    fn moved(&mut self, from: Names, to: Names) -> Answer {
        // A directory does not go into itself; the host says so as well.
        self.folder.rename(&from, &to)?;
        self.fids.renamed(&from, &to);
        Ok(())
    }

    fn rename(&mut self, r: &mut Reader) -> Answer {
        let (fid, dir, name) = (short(r.u32())?, short(r.u32())?, short(r.text())?);
        let (from, to) = (self.fids.get(fid)?.path.clone(), self.place(dir, name)?.0);
        self.moved(from, to)
    }

    fn renameat(&mut self, r: &mut Reader) -> Answer {
        let (dir, name) = (short(r.u32())?, short(r.text())?);
        let (to_dir, to_name) = (short(r.u32())?, short(r.text())?);
        let (from, to) = (self.place(dir, name)?.0, self.place(to_dir, to_name)?.0);
        self.moved(from, to)
    }

    fn unlinkat(&mut self, r: &mut Reader) -> Answer {
        let (fid, name, flags) = (short(r.u32())?, short(r.text())?, short(r.u32())?);
        let (path, _) = self.place(fid, name)?;
        self.folder.remove(&path, flags & REMOVE_DIR != 0)
    }

    /// Removes a file; its fid is gone in any case.
    fn remove(&mut self, r: &mut Reader) -> Answer {
        let f = self.fids.remove(short(r.u32())?)?;
        let s = self.folder.stat(&f.path)?;
        self.folder.remove(&f.path, FileType::from_raw_mode(s.st_mode) == FileType::Directory)
    }

    fn readlink(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let target = self.folder.read_link(&self.fids.get(short(r.u32())?)?.path)?;
        w.text(&target);
        Ok(())
    }

    fn read(&mut self, r: &mut Reader, w: &mut Writer, most: usize) -> Answer {
        let (fid, offset, count) = (short(r.u32())?, short(r.u64())?, short(r.u32())? as usize);
        let file = self.fids.file(fid)?;
        let mut buf = vec![0; count.min(most)];
        let n = rustix::io::pread(file, &mut buf, offset)?;
        w.u32(n as u32).bytes(&buf[..n]);
        Ok(())
    }

    fn write(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let (fid, offset, count) = (short(r.u32())?, short(r.u64())?, short(r.u32())? as usize);
        let data = short(r.bytes(count))?;
        let n = rustix::io::pwrite(self.fids.file(fid)?, data, offset)?;
        w.u32(n as u32);
        Ok(())
    }

    fn readdir(&mut self, r: &mut Reader, w: &mut Writer, most: usize) -> Answer {
        let (fid, offset, count) = (short(r.u32())?, short(r.u64())?, short(r.u32())? as usize);
        let most = count.min(most);
        let mut list = Writer::default();
        self.folder.entries(self.fids.file(fid)?, offset, &mut |e| {
            // qid, offset, type, name.
            let fits = list.0.len() + 13 + 8 + 1 + 2 + e.name.len() <= most;
            if fits {
                let (qid, kind) = match e.kind {
                    FileType::Directory => (QT_DIR, 4),
                    FileType::Symlink => (QT_SYMLINK, 10),
                    FileType::RegularFile => (0, 8),
                    FileType::Fifo => (0, 1),
                    FileType::CharacterDevice => (0, 2),
                    FileType::BlockDevice => (0, 6),
                    FileType::Socket => (0, 12),
                    FileType::Unknown => (0, 0),
                };
                list.u8(qid).u32(0).u64(self.folder.unique_here(e.ino)).u64(e.next).u8(kind).text(&e.name);
            }
            fits
        })?;
        w.u32(list.0.len() as u32).bytes(&list.0);
        Ok(())
    }

    fn fsync(&mut self, r: &mut Reader) -> Answer {
        let (file, data) = (self.fids.file(short(r.u32())?)?, r.u32().unwrap_or(0));
        if data != 0 { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) }
    }

    fn getlock(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let (fid, _, start, length) = (short(r.u32())?, short(r.u8())?, short(r.u64())?, short(r.u64())?);
        let (process, client) = (short(r.u32())?, short(r.text())?);
        self.fids.file(fid)?;
        w.u8(LOCK_UNLOCKED).u64(start).u64(length).u32(process).text(client);
        Ok(())
    }

    fn getattr(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        let f = self.fids.get(short(r.u32())?)?;
        let s = match f.open.as_ref().and_then(|o| o.file.as_ref()) {
            // It may have lost its name.
            Some(file) => rustix::fs::fstat(file)?,
            None => self.folder.stat(&f.path)?,
        };
        w.u64(GETATTR_BASIC);
        self.qid(&s, w);
        w.u32(s.st_mode).u32(s.st_uid).u32(s.st_gid).u64(s.st_nlink).u64(s.st_rdev).u64(s.st_size as u64);
        w.u64(s.st_blksize as u64).u64(s.st_blocks as u64);
        for (seconds, nanoseconds) in
            [(s.st_atime, s.st_atime_nsec), (s.st_mtime, s.st_mtime_nsec), (s.st_ctime, s.st_ctime_nsec)]
        {
            w.u64(seconds as u64).u64(nanoseconds);
        }
        // Birth time, generation, data version.
        w.u64(0).u64(0).u64(0).u64(0);
        Ok(())
    }

    fn setattr(&mut self, r: &mut Reader) -> Answer {
        let (fid, valid) = (short(r.u32())?, short(r.u32())?);
        let (mode, uid, gid, size) = (short(r.u32())?, short(r.u32())?, short(r.u32())?, short(r.u64())?);
        let mut time = |now: u32, to: u32| -> Result<Timespec, Errno> {
            let (tv_sec, tv_nsec) = (short(r.u64())? as i64, short(r.u64())? as i64);
            Ok(match (valid & now != 0, valid & to != 0) {
                (false, _) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
                (true, false) => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
                (true, true) => Timespec { tv_sec, tv_nsec: tv_nsec.clamp(0, 999_999_999) },
            })
        };
        let times = Timestamps { last_access: time(SET_ATIME, SET_ATIME_TO)?, last_modification: time(SET_MTIME, SET_MTIME_TO)? };
        let has = |bit: u32| valid & bit != 0;
        let change = Change {
            mode: has(SET_MODE).then_some(mode),
            uid: has(SET_UID).then_some(uid),
            gid: has(SET_GID).then_some(gid),
            size: has(SET_SIZE).then_some(size),
            times: has(SET_ATIME | SET_MTIME).then_some(times),
        };
        let f = self.fids.get(fid)?;
        let writes = |o: &&Open| o.flags.intersects(OFlags::WRONLY | OFlags::RDWR);
        let open = f.open.as_ref().filter(writes).and_then(|o| o.file.as_ref());
        self.folder.change(&f.path, &change, open.map(std::os::fd::AsFd::as_fd))
    }

    fn statfs(&mut self, r: &mut Reader, w: &mut Writer) -> Answer {
        /// V9FS_MAGIC.
        const MAGIC: u32 = 0x0102_1997;
        let s = self.folder.statfs(&self.fids.get(short(r.u32())?)?.path)?;
        w.u32(MAGIC).u32(s.f_bsize as u32).u64(s.f_blocks).u64(s.f_bfree).u64(s.f_bavail).u64(s.f_files).u64(s.f_ffree);
        // No number of the file system's own.
        w.u64(0).u32(s.f_namelen as u32);
        Ok(())
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
