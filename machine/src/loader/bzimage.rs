//! Linux bzImages: boot protocol 2.06 and later, 64-bit or 32-bit entry (Documentation/arch/x86/boot.rst).

use super::entry::{EntryState, place};
use super::{BoardInfo, Guest, Images, LoadError};

/// Offsets in the file's first sectors, and of the same fields in `boot_params`.
mod field {
    /// `screen_info`: video mode, columns, EGA memory, lines, "is VGA", lines of a character.
    pub const VIDEO_MODE: usize = 0x006;
    pub const VIDEO_COLUMNS: usize = 0x007;
    pub const VIDEO_EGA: usize = 0x00a;
    pub const VIDEO_LINES: usize = 0x00e;
    pub const VIDEO_IS_VGA: usize = 0x00f;
    pub const VIDEO_POINTS: usize = 0x010;
    pub const ACPI_RSDP_ADDR: usize = 0x070;
    pub const E820_ENTRIES: usize = 0x1e8;
    pub const SETUP_SECTS: usize = 0x1f1;
    pub const SYSSIZE: usize = 0x1f4;
    pub const BOOT_FLAG: usize = 0x1fe;
    /// Second byte of the jump at 200h: the setup header ends 202h bytes plus this after the file's start.
    pub const JUMP_OFFSET: usize = 0x201;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const TYPE_OF_LOADER: usize = 0x210;
    pub const LOADFLAGS: usize = 0x211;
    pub const RAMDISK_IMAGE: usize = 0x218;
    pub const RAMDISK_SIZE: usize = 0x21c;
    pub const CMD_LINE_PTR: usize = 0x228;
    pub const INITRD_ADDR_MAX: usize = 0x22c;
    pub const KERNEL_ALIGNMENT: usize = 0x230;
    pub const RELOCATABLE: usize = 0x234;
    pub const XLOADFLAGS: usize = 0x236;
    pub const CMDLINE_SIZE: usize = 0x238;
    pub const PREF_ADDRESS: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    pub const HEADER_END: usize = 0x268;
    pub const E820_TABLE: usize = 0x2d0;
}

const LOADED_HIGH: u64 = 1;
const XLF_KERNEL_64: u64 = 1;
/// A boot loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
const HIGH_START: u64 = 0x10_0000;
const ENTRY_64: u64 = 0x200;
const MAX_E820: usize = 128;

/// Whether the file has Linux's setup header.
pub fn is(file: &[u8]) -> bool {
    file.get(field::MAGIC..field::MAGIC + 4) == Some(b"HdrS")
}

struct Header {
    setup_len: u64,
    version: u16,
    kernel_64: bool,
    initrd_max: u64,
    cmdline_max: u64,
    load: u64,
    /// First byte above all that the kernel uses before it reads the memory map.
    end: u64,
}

fn get(file: &[u8], at: usize, size: usize) -> u64 {
    let mut b = [0; 8];
    if let Some(s) = file.get(at..at + size) {
        b[..size].copy_from_slice(s);
    }
    u64::from_le_bytes(b)
}

fn put(page: &mut [u8], at: usize, size: usize, v: u64) {
    page[at..at + size].copy_from_slice(&v.to_le_bytes()[..size]);
}

impl Header {
    /// `file` is the start of one of `have` bytes.
    fn read(file: &[u8], have: u64) -> Result<Self, LoadError> {
        if file.len() < field::HEADER_END {
            return Err(LoadError::CutOff { have, need: field::HEADER_END as u64 });
        }
        if get(file, field::BOOT_FLAG, 2) != 0xaa55 {
            return Err(LoadError::Header("no boot flag 55AAh"));
        }
        let version = get(file, field::VERSION, 2) as u16;
        if version < 0x206 {
            return Err(LoadError::OldProtocol(version));
        }
        if get(file, field::LOADFLAGS, 1) & LOADED_HIGH == 0 {
            return Err(LoadError::Header("a zImage, which loads below 1 MiB; only bzImages are loaded"));
        }
        let sectors = match get(file, field::SETUP_SECTS, 1) {
            0 => 4,
            n => n,
        };
        let setup_len = (sectors + 1) * 512;
        let code_len = get(file, field::SYSSIZE, 4) * 16;
        // The last paragraph need not be filled.
        if code_len == 0 || have + 15 < setup_len + code_len {
            return Err(LoadError::CutOff { have, need: setup_len + code_len.max(16) });
        }
        let kernel_64 = version >= 0x20c && get(file, field::XLOADFLAGS, 2) & XLF_KERNEL_64 != 0;
        if kernel_64 && code_len <= ENTRY_64 {
            return Err(LoadError::Header("shorter than its 64-bit entry"));
        }
        let (load, end) = Self::placement(file, version, code_len)?;
        Ok(Self {
            setup_len,
            version,
            kernel_64,
            initrd_max: get(file, field::INITRD_ADDR_MAX, 4),
            cmdline_max: get(file, field::CMDLINE_SIZE, 4),
            load,
            end,
        })
    }

    /// Load address, and the end of what the kernel needs from there.
    fn placement(file: &[u8], version: u16, code_len: u64) -> Result<(u64, u64), LoadError> {
        if version < 0x20a {
            return Ok((HIGH_START, HIGH_START + code_len));
        }
        let load = get(file, field::PREF_ADDRESS, 8);
        let align = get(file, field::KERNEL_ALIGNMENT, 4);
        let aligned = align.is_power_of_two() && load.is_multiple_of(align);
        if get(file, field::RELOCATABLE, 1) != 0 && !aligned {
            return Err(LoadError::Header("the preferred address is not aligned"));
        }
        if !(HIGH_START..1 << 32).contains(&load) {
            return Err(LoadError::Header("the preferred address is not between 1 MiB and 4 GiB"));
        }
        Ok((load, load + get(file, field::INIT_SIZE, 4).max(code_len)))
    }
}

/// Loads the kernel and its zero page.
pub fn load(guest: &Guest<'_>, images: &Images, board: BoardInfo<'_>) -> Result<EntryState, LoadError> {
    let file = images.kernel.head();
    let h = Header::read(file, images.kernel.len())?;
    let top = guest.top_below_4g();
    if h.end > top {
        return Err(LoadError::KernelTooLarge { need: h.end.div_ceil(1 << 20), have: top >> 20 });
    }
    guest.load("kernel", h.load, &images.kernel, h.setup_len)?;
    let cmdline = write_cmdline(guest, images, &h)?;
    let mut page = zero_page(file, guest, board);
    put(&mut page, field::CMD_LINE_PTR, 4, cmdline);
    if let Some(data) = images.initrd.as_ref().filter(|d| !d.is_empty()) {
        // A file longer than `syssize` says (a signature) is loaded too and must not be overlaid.
        let floor = h.end.max(h.load + images.kernel.len().saturating_sub(h.setup_len));
        let at = super::write_initrd(guest, data, floor, h.initrd_max)?;
        put(&mut page, field::RAMDISK_IMAGE, 4, at);
        put(&mut page, field::RAMDISK_SIZE, 4, data.len());
    }
    guest.write_low(place::ZERO_PAGE, &page);
    Ok(if h.kernel_64 {
        EntryState::long64(guest, h.load + ENTRY_64, place::ZERO_PAGE)
    } else {
        // `placement` keeps the address below 4 GiB.
        EntryState::prot32(guest, h.load as u32, place::ZERO_PAGE, 0)
    })
}

fn write_cmdline(guest: &Guest<'_>, images: &Images, h: &Header) -> Result<u64, LoadError> {
    let max = if h.version >= 0x206 && h.cmdline_max != 0 { h.cmdline_max } else { 255 };
    super::write_cmdline(guest, &images.cmdline, max)
}

/// `boot_params` with the file's setup header, memory map and RSDP.
fn zero_page(file: &[u8], guest: &Guest<'_>, board: BoardInfo<'_>) -> [u8; 4096] {
    let mut page = [0; 4096];
    let header_end = (0x202 + get(file, field::JUMP_OFFSET, 1) as usize).clamp(field::HEADER_END, field::E820_TABLE);
    if let Some(header) = file.get(field::SETUP_SECTS..header_end) {
        page[field::SETUP_SECTS..header_end].copy_from_slice(header);
    }
    page[field::TYPE_OF_LOADER] = LOADER_UNDEFINED;
    put(&mut page, field::RAMDISK_IMAGE, 8, 0);
    put(&mut page, field::ACPI_RSDP_ADDR, 8, board.rsdp.map_or(0, |a| a.0));
    if board.text_screen {
        for (at, v) in [
            (field::VIDEO_MODE, 3),
            (field::VIDEO_COLUMNS, 80),
            (field::VIDEO_EGA, 3),
            (field::VIDEO_LINES, 25),
            (field::VIDEO_IS_VGA, 1),
            (field::VIDEO_POINTS, 16),
        ] {
            page[at] = v;
        }
    }
    let map = guest.e820(board.reserved);
    let count = map.len().min(MAX_E820);
    page[field::E820_ENTRIES] = count as u8;
    for (i, e) in map.iter().take(count).enumerate() {
        let at = field::E820_TABLE + i * 20;
        put(&mut page, at, 8, e.start);
        put(&mut page, at + 8, 8, e.len);
        put(&mut page, at + 16, 4, e.kind as u64);
    }
    page
}
