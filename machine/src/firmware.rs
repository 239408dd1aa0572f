//! What runs at power-on: a kernel, or firmware, and where firmware's files are: where Debian's package `seabios` puts them, or in
//! the user's cache, fetched from that package.

use crate::board::Firmware;
use crate::firstrun::{self, FirstRunError};
use crate::loader::{Images, LoadError};
use crate::options::Config;
use crate::say;
use std::io;
use std::path::Path;
use std::sync::Arc;

/// Where packages put firmware.
const FOLDERS: [&str; 2] = ["/usr/share/seabios", "/usr/share/qemu"];
/// SeaBIOS, and its BIOS for the VGA.
pub const BIOS: &str = "bios-256k.bin";
pub const VGA_BIOS: &str = "vgabios-stdvga.bin";
const PACKAGE: &str = "seabios";
/// No firmware is as large.
const MOST: u64 = 64 << 20;

/// Why there is nothing to run; one line each.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    #[error("-bios {name}: {source}")]
    Bios { name: String, source: io::Error },
    #[error(
        "no firmware: {BIOS} is not in {folder} (Debian: package seabios), and cannot be fetched: {why}; -bios FILE names one, \
         -kernel FILE a kernel",
        folder = FOLDERS[0]
    )]
    Nowhere { why: FirstRunError },
    #[error(transparent)]
    Kernel(#[from] LoadError),
}

/// What the first CPU begins with.
pub enum Start {
    Kernel(Images),
    Firmware(Arc<Firmware>),
}

impl Start {
    /// Reads the files that a configuration names.
    pub fn of(config: &Config) -> Result<Self, FirmwareError> {
        match &config.kernel {
            Some(kernel) => Ok(Self::Kernel(Images::read(kernel, config.initrd.as_deref(), &config.append, config.mem_bytes)?)),
            None => firmware(config).map(|f| Self::Firmware(Arc::new(f))),
        }
    }

    pub fn firmware(&self) -> Option<Arc<Firmware>> {
        match self {
            Self::Kernel(_) => None,
            Self::Firmware(f) => Some(f.clone()),
        }
    }
}

fn firmware(config: &Config) -> Result<Firmware, FirmwareError> {
    let rom = match &config.bios {
        Some(name) => named(name).map_err(|source| FirmwareError::Bios { name: name.clone(), source })?,
        None => installed(BIOS).map_or_else(|| fetched(BIOS), Ok).map_err(|why| FirmwareError::Nowhere { why })?,
    };
    let vga_rom = match config.machine.vga {
        true => installed(VGA_BIOS).or_else(|| cached(VGA_BIOS)),
        false => None,
    };
    if config.machine.vga && vga_rom.is_none() {
        say!("warning: {VGA_BIOS} is not there (Debian: package seabios): the screen stays empty");
    }
    let (nographic, boot) = (config.nographic, config.boot.clone());
    Ok(Firmware { rom, vga_rom, nographic, boot })
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let meta = std::fs::metadata(path)?;
    match meta.len() {
        n if n > MOST => Err(io::Error::other("too large for firmware")),
        _ => std::fs::read(path),
    }
}

/// A file of the user's, or one of a package's by its name alone.
fn named(name: &str) -> io::Result<Vec<u8>> {
    let own = read(Path::new(name));
    match own {
        Err(e) if e.kind() == io::ErrorKind::NotFound && !name.contains('/') => installed(name).ok_or(e),
        other => other,
    }
}

fn installed(name: &str) -> Option<Vec<u8>> {
    FOLDERS.iter().find_map(|dir| read(&Path::new(dir).join(name)).ok())
}

fn cached(name: &str) -> Option<Vec<u8>> {
    let dir = firstrun::cache_folder().ok()?;
    read(&dir.join(PACKAGE).join(name)).ok()
}

/// From the cache, which is filled if it has to be.
fn fetched(name: &str) -> Result<Vec<u8>, FirstRunError> {
    if let Some(data) = cached(name) {
        return Ok(data);
    }
    let into = firstrun::cache_folder()?.join(PACKAGE);
    let from = |root: &Path| [BIOS, VGA_BIOS].map(|f| root.join(&FOLDERS[0][1..]).join(f)).to_vec();
    firstrun::fetch_files(PACKAGE, &into, from, Path::new("apt-get"))?;
    cached(name).ok_or(FirstRunError::Package { package: PACKAGE.into(), what: BIOS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_is_looked_for_where_packages_put_firmware() {
        let there = installed(BIOS).is_some();
        assert_eq!(named(BIOS).is_ok(), there);
        assert!(named("there-is-no-such-bios.bin").is_err());
        assert_eq!(named("/dev").unwrap_err().kind(), read(Path::new("/dev")).unwrap_err().kind());
        let nowhere = FirmwareError::Nowhere { why: FirstRunError::NoTool("apt-get") }.to_string();
        assert!(nowhere.contains("package seabios") && nowhere.contains("-bios FILE") && !nowhere.contains('\n'));
    }
}
