//! Opening images: format, locks, backing files, temporary overlays. Nothing of an image changes before all is well.

use super::check::check;
use super::file::{HostFile as Storage, ring_works};
use super::image::Image;
use super::lock::{Claim, lock};
use crate::options::{DriveConfig, ImageFormat};
use crate::say;
use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::{Qcow2, Qcow2CreateBuilder, Qcow2OpenBuilder};
use imago::raw::Raw;
use imago::{FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Storage as _, StorageOpenOptions};
use parking_lot::Mutex;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Backing files in a row: a chain that is longer is a circle.
const MAX_CHAIN: usize = 200;
const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// Why a drive's image cannot be used; one line.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("-drive {id}: {path}: {why}", path = .path.display())]
    Image { id: String, path: PathBuf, why: String },
}

impl OpenError {
    fn new(c: &DriveConfig, why: impl ToString) -> Self {
        // One line, whatever a library says.
        let why = why.to_string().replace(['\n', '\r'], " ");
        Self::Image { id: c.id.clone(), path: c.file.clone(), why }
    }

    pub fn thread(c: &DriveConfig, e: io::Error) -> Self {
        Self::new(c, format!("cannot start a thread: {e}"))
    }
}

/// Opens what an image refers to: the backing files, which are locked and never written to.
#[derive(Clone)]
struct Gate {
    depth: usize,
    direct: bool,
    /// By io_uring.
    ring: bool,
    /// Files opened, which keep their locks.
    held: Arc<Mutex<Vec<File>>>,
    names: Arc<Mutex<Vec<PathBuf>>>,
}

impl Gate {
    /// Opens a file under a lock. The locks last as long as the image.
    fn file(&self, path: &Path, claim: Claim) -> io::Result<Storage> {
        let own = open_file(path, claim.write)?;
        lock(&own, claim).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => io::Error::other("is in use by another program (its lock is held)"),
            _ => e,
        })?;
        self.held.lock().push(own);
        Storage::open_with(StorageOpenOptions::new().filename(path).write(claim.write).direct(self.direct), self.ring)
    }
}

/// A regular file or a block device: others would hold the program up.
fn open_file(path: &Path, write: bool) -> io::Result<File> {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::other("neither a regular file nor a block device"));
    }
    File::options().read(true).write(write).open(path)
}

impl ImplicitOpenGate<Storage> for Gate {
    fn open_format<F: FormatDriverBuilder<Storage>>(&mut self, builder: F) -> io::Result<FormatAccess<Storage>> {
        if self.depth >= MAX_CHAIN {
            return Err(io::Error::other("backing files lead in a circle"));
        }
        let path = builder.get_image_path().unwrap_or_default();
        self.names.lock().push(path.clone());
        let next = Self { depth: self.depth + 1, ..self.clone() };
        let opened = builder.write(false).open(next);
        opened.map(FormatAccess::new).map_err(|e| io::Error::other(format!("backing file {}: {}", path.display(), e)))
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<Storage> {
        let path = options.get_filename().unwrap_or(Path::new("")).to_owned();
        self.file(&path, Claim { write: false, size: true, share: false })
    }
}

/// Which format an image has whose user does not say.
fn probe(path: &Path) -> io::Result<ImageFormat> {
    let mut magic = [0; 4];
    let n = open_file(path, false)?.read(&mut magic)?;
    Ok(if n == 4 && &magic == QCOW2_MAGIC { ImageFormat::Qcow2 } else { ImageFormat::Raw })
}

/// Opens the image of a drive.
pub fn open(c: &DriveConfig) -> Result<Image, OpenError> {
    let fail = |e: io::Error| OpenError::new(c, e);
    let (format, probed) = match c.format {
        Some(f) => (f, false),
        None => (probe(&c.file).map_err(fail)?, true),
    };
    let write = !c.read_only && !c.snapshot;
    let ring = c.io_uring && ring_works();
    if c.io_uring && !ring {
        say!("-drive {}: the kernel has no io_uring for this program; aio=threads is used", c.id);
    }
    let gate = Gate { depth: 0, direct: c.cache.direct, ring, held: Arc::default(), names: Arc::default() };
    let size = format == ImageFormat::Qcow2 || c.snapshot;
    let storage = gate.file(&c.file, Claim { write, size, share: c.share }).map_err(fail)?;
    let access = match format {
        ImageFormat::Raw => {
            let len = storage.size().map_err(fail)?;
            if !len.is_multiple_of(devices::block::SECTOR) && write {
                return Err(OpenError::new(c, format!("{len} bytes are not whole sectors of 512 bytes")));
            }
            FormatAccess::new(Raw::builder(storage).write(write).open(gate.clone()).map_err(fail)?)
        }
        ImageFormat::Qcow2 => {
            if write {
                open_file(&c.file, false).and_then(|f| check(&f)).map_err(fail)?;
            }
            qcow2(storage, write, &gate).map_err(fail)?
        }
    };
    let access =
        if c.snapshot { overlay(access, &gate).map_err(|e| OpenError::new(c, format!("-snapshot: {e}")))? } else { access };
    let backing = gate.names.lock().first().cloned();
    let held = std::mem::take(&mut *gate.held.lock());
    Ok(Image::new(access, format, c, probed && format == ImageFormat::Raw, backing, held))
}

fn qcow2(storage: Storage, write: bool, gate: &Gate) -> io::Result<FormatAccess<Storage>> {
    let builder: Qcow2OpenBuilder<Storage> = Qcow2::builder(storage);
    Ok(FormatAccess::new(builder.write(write).open(gate.clone())?))
}

/// A temporary image over another one: a file without a name, which is gone with the program.
fn overlay(base: FormatAccess<Storage>, gate: &Gate) -> io::Result<FormatAccess<Storage>> {
    let dir = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    let path = dir.join(format!("rhea-overlay-{}-{:x}", std::process::id(), Arc::as_ptr(&gate.held) as usize));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    let (size, storage) = (base.size(), Storage::try_from(file)?);
    let create: Qcow2CreateBuilder<Storage> = Qcow2::create_builder(storage);
    let opened = create.size(size).create_open(gate.clone(), |s| Ok(Qcow2::builder(s).write(true).backing(Some(base))))?;
    Ok(FormatAccess::new(opened))
}
