//! The cache folder: kernel and busybox with their SHA-256 sums beside them, in the notation of `sha256sum`.

use super::FirstRunError;
use crate::say;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub const KERNEL: &str = "vmlinuz";
const BUSYBOX: &str = "busybox";
const SUMS: &str = "SHA256SUMS";

/// What is taken from Debian's packages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    pub kernel: Vec<u8>,
    pub busybox: Vec<u8>,
}

/// The user's cache folder for this program, created if it is not there.
pub fn directory() -> Result<PathBuf, FirstRunError> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let wanted = base.map(|b| b.join("rhea"));
    match wanted.map(|d| create(&d).map(|()| d)) {
        Some(Ok(d)) => Ok(d),
        // No home, or one that cannot be written: a folder of this user's own among the temporary files.
        _ => {
            let d = std::env::temp_dir().join(format!("rhea-{}", rustix::process::getuid().as_raw()));
            create(&d)?;
            Ok(d)
        }
    }
}

/// Creates a folder for this user alone, and refuses one that belongs to somebody else.
fn create(dir: &Path) -> Result<(), FirstRunError> {
    use std::os::unix::fs::MetadataExt;
    let fail = FirstRunError::file;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(fail(dir))?;
    let owner = fs::metadata(dir).map_err(fail(dir))?.uid();
    if owner != rustix::process::getuid().as_raw() {
        return Err(fail(dir)(std::io::Error::other("belongs to another user")));
    }
    let probe = dir.join(format!(".probe-{}", std::process::id()));
    fs::write(&probe, b"").map_err(fail(dir))?;
    fs::remove_file(&probe).map_err(fail(dir))
}

/// Writes a file so that others see it whole or not at all.
pub fn write(path: &Path, data: &[u8]) -> Result<(), FirstRunError> {
    let part = path.with_extension(format!("part-{}", std::process::id()));
    let done = fs::write(&part, data).and_then(|()| fs::rename(&part, path));
    if done.is_err() {
        let _ = fs::remove_file(&part);
    }
    done.map_err(FirstRunError::file(path))
}

fn hex_sum(data: &[u8]) -> String {
    Sha256::digest(data).iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}

fn sums(files: &Files) -> String {
    format!("{}  {KERNEL}\n{}  {BUSYBOX}\n", hex_sum(&files.kernel), hex_sum(&files.busybox))
}

/// Stores files; the sums come last, so that an interrupted store does not verify.
pub fn store(dir: &Path, files: &Files) -> Result<(), FirstRunError> {
    write(&dir.join(KERNEL), &files.kernel)?;
    write(&dir.join(BUSYBOX), &files.busybox)?;
    write(&dir.join(SUMS), sums(files).as_bytes())
}

/// The cached files if they are whole; says so on standard error if they are there and are not.
pub fn verified(dir: &Path) -> Option<Files> {
    let expected = fs::read_to_string(dir.join(SUMS)).ok()?;
    let files = fs::read(dir.join(KERNEL)).ok().zip(fs::read(dir.join(BUSYBOX)).ok());
    match files.map(|(kernel, busybox)| Files { kernel, busybox }) {
        Some(f) if sums(&f) == expected => Some(f),
        _ => {
            say!("{}: the cached guest does not match its checksums, fetching it again", dir.display());
            None
        }
    }
}
