//! Multiboot kernels made here, whole and broken.

use super::entry::place;
use super::multiboot::{self, Module};
use super::tests::board;
use super::*;
use vm_core::testing::Rng;

const MIB: u64 = 1 << 20;
const MAGIC: u32 = 0x1bad_b002;

/// A flat kernel: header at byte 16, then 64 bytes of code; loaded at 1 MiB with a page of bss, entered behind the header.
fn flat(flags: u32) -> Vec<u8> {
    let mut b = vec![0x90; 16];
    let words = [MAGIC, flags, 0u32.wrapping_sub(MAGIC).wrapping_sub(flags), 0x10_0010, 0x10_0000, 0, 0x10_2000, 0x10_0030];
    b.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    b.extend([0x77; 64]);
    b
}

/// A 32-bit ELF file linked at C0000000h and loaded at 2 MiB, entered at its fourth byte.
fn elf() -> Vec<u8> {
    let mut b = vec![0u8; 0x100];
    b[..7].copy_from_slice(b"\x7fELF\x01\x01\x01");
    let mut put = |at: usize, v: &[u32]| {
        for (i, w) in v.iter().enumerate() {
            b[at + i * 4..at + i * 4 + 4].copy_from_slice(&w.to_le_bytes());
        }
    };
    put(16, &[2 | 3 << 16, 1, 0xc000_0004, 52, 0, 0, 52 | 32 << 16, 1]);
    put(52, &[1, 0x80, 0xc000_0000, 0x20_0000, 0x80, 0x3000, 7, 0x1000]);
    put(0x80, &[MAGIC, 3, 0u32.wrapping_sub(MAGIC).wrapping_sub(3)]);
    b
}

fn images(kernel: Vec<u8>) -> Images {
    let modules = vec![
        Module { data: vec![1; 5000].into(), text: "one.bin first=1".into() },
        Module { data: vec![2; 10].into(), text: "two.bin".into() },
    ];
    Images { kernel: kernel.into(), name: "k.bin".into(), cmdline: "root=hd0".into(), modules, initrd: None }
}

fn load_in(mib: u64, i: &Images) -> Result<(Ram, EntryState), LoadError> {
    let (ram, map) = board(mib);
    let state = load(&ram, &map, i, BoardInfo::default())?;
    Ok((ram, state))
}

fn word(ram: &Ram, at: u64) -> u64 {
    ram.read_uint(at, 4)
}

fn text(ram: &Ram, at: u64) -> String {
    (at..).map(|a| ram.read_uint(a, 1) as u8 as char).take_while(|c| *c != '\0').collect()
}

#[test]
fn a_flat_kernel_is_placed_by_its_addresses() {
    let (ram, s) = load_in(16, &images(flat(1 << 16))).unwrap();
    assert_eq!((s.mode, s.rip, s.rax, s.rbx), (EntryMode::Prot32, 0x10_0030, 0x2bad_b002, place::START_INFO));
    assert_eq!((word(&ram, MIB + 16), word(&ram, 0x10_0030)), (MAGIC.into(), 0x7777_7777));
    let i = s.rbx;
    assert_eq!(word(&ram, i), 1 | 4 | 8 | 64 | 512);
    assert_eq!((word(&ram, i + 4), word(&ram, i + 8)), (639, 15 * 1024));
    assert_eq!((text(&ram, word(&ram, i + 16)), text(&ram, word(&ram, i + 64))), ("k.bin root=hd0".into(), "rhea".into()));
    // Modules behind the bss, at pages.
    let mods = word(&ram, i + 24);
    let module = |n: u64| (word(&ram, mods + n * 16), word(&ram, mods + n * 16 + 4), text(&ram, word(&ram, mods + n * 16 + 8)));
    assert_eq!(word(&ram, i + 20), 2);
    assert_eq!(
        (module(0), module(1)),
        ((0x10_2000, 0x10_3388, "one.bin first=1".into()), (0x10_4000, 0x10_400a, "two.bin".into()))
    );
    assert_eq!((ram.read_uint(0x10_3387, 1), ram.read_uint(0x10_3388, 1), ram.read_uint(0x10_4009, 1)), (1, 0, 2));
    // The memory map: its first range is conventional memory.
    let map = word(&ram, i + 48);
    assert_eq!(
        (word(&ram, map), ram.read_uint(map + 4, 8), ram.read_uint(map + 12, 8), word(&ram, map + 20)),
        (20, 0, 0x9_fc00, 1)
    );
    assert_eq!(word(&ram, i + 44) % 24, 0);
}

#[test]
fn an_elf_kernel_is_entered_at_the_physical_address() {
    let (ram, s) = load_in(16, &images(elf())).unwrap();
    assert_eq!((s.rip, word(&ram, 0x20_0000)), (0x20_0004, MAGIC.into()));
    assert_eq!(word(&ram, word(&ram, s.rbx + 24)), 0x20_3000, "the first module lies behind the bss");
}

#[test]
fn what_cannot_be_is_said_in_a_line() {
    let wrong = |i: &Images| load_in(16, i).err().expect("loaded a bad file").to_string();
    let field = |n: usize, v: u32| {
        let mut k = flat(1 << 16);
        k[16 + n * 4..20 + n * 4].copy_from_slice(&v.to_le_bytes());
        images(k)
    };
    assert!(wrong(&images(flat(1 << 16 | 8))).contains("features"));
    assert!(wrong(&images(flat(3))).contains("32-bit ELF"));
    assert!(wrong(&field(4, 0x9_0000)).contains("load address"));
    assert!(wrong(&field(5, 0x20_0000)).contains("cut off"));
    assert!(wrong(&field(5, 1)).contains("ends before"));
    assert!(wrong(&field(6, 0xffff_0000)).contains("is not in the guest's RAM"));
    assert!(wrong(&field(7, 0x30_0000)).contains("entry"));
    let mut many = images(flat(1 << 16));
    many.modules = vec![Module::default(); multiboot::MAX_MODULES + 1];
    assert!(wrong(&many).contains("64 modules"));
    many.modules = vec![Module { data: vec![0; 16 << 20].into(), text: String::new() }];
    assert!(wrong(&many).contains("are free for it"));
    many.modules = vec![Module { data: vec![].into(), text: "x".repeat(70_000) }];
    assert!(wrong(&many).contains("command line"));
    // A header beyond the first 8 KiB, or with a wrong sum, is none.
    assert!(!multiboot::is(&[vec![0; 8192], flat(0)].concat()));
    let mut k = flat(0);
    k[24] ^= 1;
    assert!(!multiboot::is(&k));
}

#[test]
fn damaged_kernels_never_panic() {
    let mut r = Rng(5);
    for round in 0..4000 {
        let mut k = if round % 2 == 0 { flat(1 << 16) } else { elf() };
        for _ in 0..r.below(4) {
            let at = r.below(k.len() as u64) as usize;
            k[at] = r.pick(&[0, 1, 0x7f, 0x80, 0xff, r.0 as u8]);
        }
        if r.one_in(3) {
            k.truncate(r.below(k.len() as u64) as usize);
        }
        let i = images(k);
        let (ram, map) = board(4);
        let guest = Guest::new(&ram, &map).unwrap();
        let _ = multiboot::load(&guest, &i, BoardInfo::default());
    }
}

#[test]
fn modules_are_listed_with_their_words() {
    let dir = std::env::temp_dir().join(format!("rhea-multiboot-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = |n: &str| dir.join(n).display().to_string();
    std::fs::write(path("k"), flat(1 << 16)).unwrap();
    std::fs::write(path("m"), b"abc").unwrap();
    let list = format!("{} a=1 b,{}", path("m"), path("m"));
    let i = Images::read(Path::new(&path("k")), Some(Path::new(&list)), "x", 1 << 20).unwrap();
    assert_eq!((i.modules.len(), i.initrd.is_none(), i.name), (2, true, path("k")));
    assert_eq!((i.modules[0].text.as_str(), i.modules[1].data.head()), (format!("{} a=1 b", path("m")).as_str(), &b"abc"[..]));
    assert!(Images::read(Path::new(&path("k")), Some(Path::new("/nowhere/x")), "", 1 << 20).is_err());
    std::fs::remove_dir_all(&dir).unwrap();
}
