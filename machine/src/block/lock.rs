//! Image locks: byte ranges of open file descriptions, where QEMU has them, so that neither program opens what the other
//! writes to.
//!
//! Byte `USES + p` is locked by who uses permission p, byte `UNSHARED + p` by who lets nobody else use it; all for reading, and
//! who comes looks whether a lock for writing would be possible.

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::File;
use std::io;

const USES: i64 = 100;
const UNSHARED: i64 = 200;

/// Permissions, by number: consistent reading, writing, and changing the size.
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub write: bool,
    /// The file's size follows the image's content (qcow2), or must stay because another image lies over it.
    pub size: bool,
    /// Others may write as well (`share-rw=on`).
    pub share: bool,
}

impl Claim {
    fn uses(self) -> Vec<i64> {
        let mut list = vec![READ];
        if self.write {
            list.push(WRITE);
        }
        if self.write && self.size {
            list.push(RESIZE);
        }
        list
    }

    fn unshared(self) -> Vec<i64> {
        let mut list = Vec::new();
        if !self.share {
            list.push(WRITE);
        }
        if self.size {
            list.push(RESIZE);
        }
        list
    }
}

fn flock(kind: i32, byte: i64) -> libc::flock {
    libc::flock { l_type: kind as i16, l_whence: libc::SEEK_SET as i16, l_start: byte, l_len: 1, l_pid: 0 }
}

/// Locks `file` until it is closed. Errors of kind `WouldBlock`: somebody else has it. File systems without locks have none.
pub fn lock(file: &File, claim: Claim) -> io::Result<()> {
    let bytes = claim.uses().into_iter().map(|p| USES + p).chain(claim.unshared().into_iter().map(|p| UNSHARED + p));
    for byte in bytes {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(libc::F_RDLCK, byte))) {
            Ok(_) => {}
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(nix::Error::EINVAL | nix::Error::ENOTSUP | nix::Error::ENOLCK) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
    let foreign = claim.uses().into_iter().map(|p| UNSHARED + p).chain(claim.unshared().into_iter().map(|p| USES + p));
    for byte in foreign {
        let mut other = flock(libc::F_WRLCK, byte);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut other))?;
        if i32::from(other.l_type) != libc::F_UNLCK {
            return Err(io::ErrorKind::WouldBlock.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn path() -> PathBuf {
        std::env::temp_dir().join(format!("rhea-lock-{}", std::process::id()))
    }

    #[test]
    fn one_writer_or_many_readers() {
        let p = path();
        std::fs::write(&p, b"image").unwrap();
        let open = || File::options().read(true).write(true).open(&p).unwrap();
        let claim = |write, size| Claim { write, size, share: false };
        let locked = |f: &File, c| lock(f, c).map_err(|e| e.kind());
        let (a, b, c) = (open(), open(), open());
        assert_eq!(locked(&a, claim(true, true)), Ok(()));
        assert_eq!(locked(&b, claim(true, true)), Err(io::ErrorKind::WouldBlock));
        assert_eq!(locked(&c, claim(false, false)), Err(io::ErrorKind::WouldBlock));
        drop((a, b, c));
        let (a, b, c, d) = (open(), open(), open(), open());
        assert_eq!(locked(&a, claim(false, true)), Ok(()));
        assert_eq!(locked(&b, claim(false, false)), Ok(()));
        assert_eq!(locked(&c, claim(true, false)), Err(io::ErrorKind::WouldBlock));
        drop((a, b, c));
        let share = Claim { write: true, size: false, share: true };
        let e = open();
        assert_eq!((locked(&d, share), locked(&e, share)), (Ok(()), Ok(())));
        assert_eq!(locked(&open(), claim(true, false)), Err(io::ErrorKind::WouldBlock));
        std::fs::remove_file(&p).unwrap();
    }
}
