//! The guest of a run without arguments: Debian's cloud kernel with busybox, or, without Debian's package tools, a small
//! guest of our own.

mod cache;
mod debian;
mod initramfs;
mod payload;
#[cfg(test)]
mod tests;

pub use debian::fetch_files;

use crate::options::Config;
use crate::say;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no guest to run; one line each.
#[derive(Debug, thiserror::Error)]
pub enum FirstRunError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{0} is not there (a Debian or Ubuntu host has it)")]
    NoTool(&'static str),
    #[error("{0} failed: {1}")]
    Tool(String, String),
    #[error("no Debian package with a kernel was found; does 'apt-get update' work?")]
    NoKernelPackage,
    #[error("{package}: {what} is not in it")]
    Package { package: String, what: &'static str },
    #[error("the small guest could not be assembled: {0}")]
    Assemble(#[from] iced_x86::IcedError),
}

impl FirstRunError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { path, source }
    }
}

/// Kernel command line of the Debian guest.
const APPEND: &str = "console=ttyS0";

/// Adds kernel, initial RAM disk and kernel command line to `config`, making them first if the cache does not have them.
///
/// Progress goes to standard error.
pub fn prepare(config: Config) -> Result<Config, FirstRunError> {
    prepare_in(&cache::directory()?, config, Path::new("apt-get"))
}

/// The built-in guest: an ELF file with a PVH entry, and a command prompt on COM1.
pub fn built_in() -> Result<Vec<u8>, FirstRunError> {
    Ok(payload::elf()?)
}

/// The user's cache folder for this program.
pub fn cache_folder() -> Result<PathBuf, FirstRunError> {
    cache::directory()
}

/// Writes a file of ours into the user's cache folder, unless it is there as it should be.
pub fn cache_file(name: &str, data: &[u8]) -> Result<PathBuf, FirstRunError> {
    let path = cache::directory()?.join(name);
    if std::fs::read(&path).ok().as_deref() != Some(data) {
        cache::write(&path, data)?;
    }
    Ok(path)
}

fn prepare_in(dir: &Path, mut config: Config, apt_get: &Path) -> Result<Config, FirstRunError> {
    match debian(dir, apt_get) {
        Ok((kernel, initrd)) => {
            config.kernel = Some(kernel);
            config.initrd = Some(initrd);
            config.append = APPEND.to_owned();
        }
        Err(why) => {
            say!("cannot get Debian's kernel: {why}");
            say!("starting the small built-in guest instead; -kernel FILE starts one of yours");
            let elf = dir.join("guest.elf");
            cache::write(&elf, &built_in()?)?;
            config.kernel = Some(elf);
            config.initrd = None;
            config.append = String::new();
        }
    }
    Ok(config)
}

/// Paths of Debian's kernel and of an initial RAM disk around its busybox.
fn debian(dir: &Path, apt_get: &Path) -> Result<(PathBuf, PathBuf), FirstRunError> {
    let files = match cache::verified(dir) {
        Some(files) => files,
        None => {
            let files = debian::fetch(dir, apt_get)?;
            cache::store(dir, &files)?;
            files
        }
    };
    let initrd = dir.join("initramfs.cpio");
    let image = initramfs::build(&files.busybox).map_err(FirstRunError::file(&initrd))?;
    if std::fs::read(&initrd).ok().as_ref() != Some(&image) {
        cache::write(&initrd, &image)?;
    }
    Ok((dir.join(cache::KERNEL), initrd))
}
