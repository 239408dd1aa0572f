//! Loads a kernel and its initial RAM disk into guest RAM: Linux bzImages by the boot protocol, ELF files by PVH, and what has
//! a Multiboot header by that.
//!
//! Files are untrusted: every length is checked against the file and against RAM before anything is written.

mod bzimage;
mod elf;
pub mod entry;
mod image;
pub mod mem;
pub mod multiboot;
#[cfg(test)]
mod multiboot_tests;
#[cfg(test)]
mod tests;

pub use entry::{EntryMode, EntryState, FlatSegment, TableRegister};
pub use image::Image;
pub use mem::{E820Entry, E820Kind, Guest};

use std::path::{Path, PathBuf};
use vm_core::{MemMap, Pa, Ram};

/// Why a kernel cannot be loaded; one line each.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path}: {source}", path = .0.display(), source = .1)]
    Read(PathBuf, #[source] std::io::Error),
    #[error("{}: larger than the guest's RAM", .0.display())]
    FileLargerThanRam(PathBuf),
    #[error("the kernel file is empty")]
    Empty,
    #[error("the kernel file is neither a Linux bzImage, nor an x86 ELF file, nor a Multiboot kernel")]
    Unknown,
    #[error("the kernel file is cut off: {have} bytes of {need}")]
    CutOff { have: u64, need: u64 },
    #[error("the kernel's header is wrong: {0}")]
    Header(&'static str),
    #[error("this kernel uses boot protocol {}.{:02}, older than the 2.06 that is needed", .0 >> 8, .0 & 0xff)]
    OldProtocol(u16),
    #[error("ELF file: {0}")]
    Elf(String),
    #[error("the ELF file has no PVH entry note (Linux: CONFIG_PVH); nothing says where to enter it")]
    NoPvhNote,
    #[error("the kernel command line has {len} bytes, more than the {max} the kernel takes")]
    CommandLine { len: u64, max: u64 },
    #[error("the kernel command line has a zero byte")]
    CommandLineZero,
    #[error("the kernel needs RAM up to {need} MiB, the guest has {have} MiB there")]
    KernelTooLarge { need: u64, have: u64 },
    #[error("the initial RAM disk has {len} bytes, and {room} bytes are free for it")]
    InitrdTooLarge { len: u64, room: u64 },
    #[error("{what} at {start:#x}, {len} bytes long, is not in the guest's RAM")]
    OutsideRam { what: &'static str, start: u64, len: u64 },
    #[error("the guest has no conventional memory below 640 KiB")]
    NoLowRam,
}

/// What to load.
#[derive(Debug, Clone, Default)]
pub struct Images {
    pub kernel: Image,
    pub initrd: Option<Image>,
    pub cmdline: String,
    /// The kernel's file name, which Multiboot kernels are told.
    pub name: String,
    /// Files beside a Multiboot kernel, which has no initial RAM disk.
    pub modules: Vec<multiboot::Module>,
}

impl Images {
    /// Opens the files; none may be larger than `ram_bytes`. Beside a Multiboot kernel `initrd` is a list of modules: `FILE
    /// TEXT,FILE TEXT,…`.
    pub fn read(kernel: &Path, initrd: Option<&Path>, cmdline: &str, ram_bytes: u64) -> Result<Self, LoadError> {
        let name = kernel.display().to_string();
        let kernel = Image::open(kernel, ram_bytes)?;
        let mut images = Self { kernel, name, cmdline: cmdline.to_owned(), ..Self::default() };
        match initrd {
            Some(list) if is_multiboot(&images.kernel) => images.modules = modules(list, ram_bytes)?,
            Some(file) => images.initrd = Some(Image::open(file, ram_bytes)?),
            None => {}
        }
        Ok(images)
    }
}

fn is_multiboot(kernel: &Image) -> bool {
    !bzimage::is(kernel.head()) && multiboot::is(kernel.head())
}

/// Modules as `-initrd` lists them. Each is announced by its file name and the words behind it.
fn modules(list: &Path, ram_bytes: u64) -> Result<Vec<multiboot::Module>, LoadError> {
    let list = list.to_string_lossy();
    let one = |text: &str| {
        let file = text.split_once(' ').map_or(text, |(file, _)| file);
        Ok(multiboot::Module { data: Image::open(Path::new(file), ram_bytes)?, text: text.to_owned() })
    };
    list.split(',').filter(|m| !m.is_empty()).map(one).collect()
}

/// What the kernel is told about the board.
#[derive(Debug, Clone, Copy, Default)]
pub struct BoardInfo<'a> {
    /// Address of ACPI's RSDP, if there are tables.
    pub rsdp: Option<Pa>,
    /// Ranges that are not the kernel's to use: ECAM, ACPI tables outside the BIOS area, …
    pub reserved: &'a [E820Entry],
    /// There is a VGA in text mode.
    pub text_screen: bool,
}

/// Loads `images` and says how to enter the kernel. RAM may be partly written when it fails.
pub fn load(ram: &Ram, map: &MemMap, images: &Images, board: BoardInfo<'_>) -> Result<EntryState, LoadError> {
    let guest = Guest::new(ram, map)?;
    if images.cmdline.contains('\0') {
        return Err(LoadError::CommandLineZero);
    }
    if images.kernel.is_empty() {
        Err(LoadError::Empty)
    } else if is_multiboot(&images.kernel) {
        multiboot::load(&guest, images, board)
    } else if images.kernel.head().starts_with(b"\x7fELF") {
        elf::load(&guest, images, board)
    } else if bzimage::is(images.kernel.head()) {
        bzimage::load(&guest, images, board)
    } else {
        Err(LoadError::Unknown)
    }
}

/// Puts the command line with its zero at its place. `max` is what the kernel takes, without the zero.
fn write_cmdline(guest: &Guest<'_>, cmdline: &str, max: u64) -> Result<u64, LoadError> {
    let (len, max) = (cmdline.len() as u64, max.min(entry::place::CMDLINE_ROOM - 1));
    if len > max {
        return Err(LoadError::CommandLine { len, max });
    }
    guest.write("command line", entry::place::CMDLINE, cmdline.as_bytes(), len + 1)?;
    Ok(entry::place::CMDLINE)
}

/// Puts the initial RAM disk page-aligned as high as RAM and `max` (its last possible byte) allow, above `floor`.
fn write_initrd(guest: &Guest<'_>, image: &Image, floor: u64, max: u64) -> Result<u64, LoadError> {
    let len = image.len();
    let top = guest.top_below_4g().min(max.saturating_add(1));
    let floor = floor.div_ceil(4096).saturating_mul(4096);
    match top.checked_sub(len).map(|start| start & !0xfff) {
        Some(start) if start >= floor => {
            guest.load("initial RAM disk", start, image, 0)?;
            Ok(start)
        }
        _ => Err(LoadError::InitrdTooLarge { len, room: top.saturating_sub(floor) }),
    }
}
