//! Small kernels made here, whole and broken.

use super::entry::place;
use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

/// A board with `mib` MiB of RAM (at most 2048): the hole at 640 KiB, tables at C0000h.
pub(super) fn board(mib: u64) -> (Ram, MemMap) {
    let ram = Ram::new(mib * MIB).unwrap();
    let mut map = MemMap::default();
    map.map_ram(Pa(0), 0xa0000, 0, true);
    map.map_ram(Pa(0xc0000), 0x40000, 0xc0000, true);
    map.map_ram(Pa(MIB), (mib - 1) * MIB, MIB, true);
    (ram, map)
}

fn put(b: &mut [u8], at: usize, v: &[u8]) {
    b[at..at + v.len()].copy_from_slice(v);
}

/// A bzImage of protocol 2.15 with one setup sector, 4 KiB of code, loaded at 16 MiB.
fn bzimage() -> Vec<u8> {
    let mut b = vec![0u8; 1024 + 4096];
    b[0x1f1] = 1;
    put(&mut b, 0x1f4, &256u32.to_le_bytes());
    put(&mut b, 0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(&mut b, 0x202, b"HdrS");
    put(&mut b, 0x206, &0x20fu16.to_le_bytes());
    b[0x211] = 1;
    put(&mut b, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut b, 0x230, &0x20_0000u32.to_le_bytes());
    b[0x234] = 1;
    put(&mut b, 0x236, &1u16.to_le_bytes());
    put(&mut b, 0x238, &2047u32.to_le_bytes());
    put(&mut b, 0x258, &(16 * MIB).to_le_bytes());
    put(&mut b, 0x260, &(4 * MIB as u32).to_le_bytes());
    for (i, x) in b[1024..].iter_mut().enumerate() {
        *x = i as u8 ^ 0x5a;
    }
    b
}

/// An ELF64 with a PVH note (entry 100010h) and one segment at 1 MiB: 64 bytes in the file, 8 KiB in memory.
fn elf() -> Vec<u8> {
    let mut b = vec![0u8; 0x140];
    put(&mut b, 0, b"\x7fELF\x02\x01\x01");
    put(&mut b, 16, &[2, 0, 62, 0, 1]);
    put(&mut b, 32, &64u64.to_le_bytes());
    put(&mut b, 52, &[64, 0, 56, 0, 2]);
    let mut segment = |at: usize, kind: u32, offset: u64, paddr: u64, filesz: u64, memsz: u64| {
        put(&mut b, at, &kind.to_le_bytes());
        for (i, v) in [offset, paddr, paddr, filesz, memsz, 4].iter().enumerate() {
            put(&mut b, at + 8 + i * 8, &v.to_le_bytes());
        }
    };
    segment(64, 1, 0x100, MIB, 64, 8192);
    segment(120, 4, 0xc0, 0, 20, 20);
    put(&mut b, 0xc0, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0]);
    put(&mut b, 0xd0, &0x10_0010u32.to_le_bytes());
    put(&mut b, 0x100, &[0x77; 64]);
    b
}

fn images(kernel: Vec<u8>) -> Images {
    Images { kernel: kernel.into(), cmdline: "console=ttyS0".into(), ..Images::default() }
}

fn load_in(mib: u64, i: &Images) -> Result<(Ram, EntryState), LoadError> {
    let (ram, map) = board(mib);
    let reserved = [E820Entry { start: 0xb000_0000, len: 256 * MIB, kind: E820Kind::Reserved }];
    let state = load(&ram, &map, i, BoardInfo { rsdp: Some(Pa(0xe0000)), reserved: &reserved, text_screen: true })?;
    Ok((ram, state))
}

fn fails(mib: u64, i: &Images) -> String {
    let text = load_in(mib, i).err().expect("loaded a bad file").to_string();
    assert!(!text.contains('\n'));
    text
}

fn bytes(ram: &Ram, at: u64, len: usize) -> Vec<u8> {
    let mut b = vec![0; len];
    ram.read(at, &mut b);
    b
}

#[test]
fn bzimage_is_entered_in_64_bit_mode_with_a_zero_page() {
    let mut i = images(bzimage());
    i.initrd = Some(vec![0xab; 5000].into());
    let (ram, s) = load_in(64, &i).unwrap();
    assert_eq!((s.mode, s.rip, s.rsi), (EntryMode::Long64, 16 * MIB + 0x200, place::ZERO_PAGE));
    assert_eq!((s.cr0, s.cr4, s.efer, s.cs.rights, s.cs.selector), (0x8000_0011, 0x20, 0x500, 0xa09b, 0x10));
    assert_eq!(bytes(&ram, 16 * MIB, 4096), i.kernel.head()[1024..]);
    let page = |at: u64, size| ram.read_uint(place::ZERO_PAGE + at, size);
    assert_eq!((page(0x202, 4), page(0x210, 1), page(0x70, 8)), (0x5372_6448, 0xff, 0xe0000));
    let (initrd, len) = (page(0x218, 4), page(0x21c, 4));
    assert_eq!((initrd, len), (64 * MIB - 0x2000, 5000));
    assert_eq!(bytes(&ram, initrd, 5000), vec![0xab; 5000]);
    assert_eq!(bytes(&ram, page(0x228, 4), 14), b"console=ttyS0\0");
    let e820: Vec<_> =
        (0..page(0x1e8, 1)).map(|n| 0x2d0 + n * 20).map(|at| (page(at, 8), page(at + 8, 8), page(at + 16, 4))).collect();
    let ecam = (0xb000_0000, 256 * MIB, 2);
    assert_eq!(e820, [(0, 0x9fc00, 1), (0x9fc00, 0x400, 2), (0xe0000, 0x20000, 2), (MIB, 63 * MIB, 1), ecam]);
}

#[test]
fn page_tables_and_gdt_map_4_gib_flat() {
    let (ram, s) = load_in(64, &images(bzimage())).unwrap();
    for pa in [0, 0x123_4567, 0xfee0_0000, 0xffff_ffffu64] {
        let pml4e = ram.read_uint(s.cr3, 8);
        let pdpte = ram.read_uint((pml4e & !0xfff) + (pa >> 30) * 8, 8);
        let pde = ram.read_uint((pdpte & !0xfff) + (pa >> 21 & 511) * 8, 8);
        assert_eq!((pml4e & 3, pdpte & 0x83, pde & 0x83), (3, 3, 0x83));
        assert_eq!((pde & !0x1f_ffff) | (pa & 0x1f_ffff), pa);
    }
    assert_eq!(s.gdt.limit, 47);
    assert_eq!(ram.read_uint(s.gdt.base + 0x10, 8), 0x00af_9b00_0000_ffff);
    assert_eq!(ram.read_uint(s.gdt.base + 0x18, 8), 0x00cf_9300_0000_ffff);
    assert_eq!(ram.read_uint(s.gdt.base + 0x20, 8), 0x0000_8900_0000_0067);
}

#[test]
fn kernels_without_a_64_bit_entry_start_in_protected_mode() {
    let mut b = bzimage();
    b[0x236] = 0;
    let (_, s) = load_in(64, &images(b)).unwrap();
    assert_eq!((s.mode, s.rip, s.rsi, s.cr0, s.efer), (EntryMode::Prot32, 16 * MIB, place::ZERO_PAGE, 0x11, 0));
}

#[test]
fn elf_is_entered_by_pvh() {
    let mut i = images(elf());
    i.initrd = Some(vec![7; 100].into());
    let (ram, s) = load_in(16, &i).unwrap();
    assert_eq!((s.mode, s.rip, s.rbx), (EntryMode::Prot32, 0x10_0010, place::START_INFO));
    assert_eq!((s.cs.rights, s.tr.rights, s.tr.limit, s.cr3), (0xc09b, 0x8b, 0x67, 0));
    assert_eq!(bytes(&ram, MIB, 65), [vec![0x77; 64], vec![0]].concat());
    let info = |at: u64, size| ram.read_uint(place::START_INFO + at, size);
    assert_eq!((info(0, 4), info(4, 4), info(12, 4), info(32, 8)), (0x336e_c578, 1, 1, 0xe0000));
    let module = info(16, 8);
    assert_eq!((ram.read_uint(module, 8), ram.read_uint(module + 8, 8)), (16 * MIB - 0x1000, 100));
    assert_eq!(bytes(&ram, info(24, 8), 14), b"console=ttyS0\0");
    let map = info(40, 8);
    assert_eq!(info(48, 4), 5);
    assert_eq!((ram.read_uint(map, 8), ram.read_uint(map + 8, 8), ram.read_uint(map + 16, 4)), (0, 0x9fc00, 1));
}

#[test]
fn zeroes_behind_a_segment_replace_what_was_there() {
    let (ram, map) = board(16);
    ram.write(MIB + 100, &[1; 100]);
    load(&ram, &map, &images(elf()), BoardInfo::default()).unwrap();
    assert_eq!(bytes(&ram, MIB + 100, 100), [0; 100]);
}

#[test]
fn bad_files_are_refused_in_one_line() {
    assert_eq!(fails(64, &images(vec![])), "the kernel file is empty");
    assert!(fails(64, &images(vec![0x90; 9999])).contains("neither"));
    assert!(fails(64, &images(b"\x7fELF".to_vec())).starts_with("ELF file"));
    let whole = bzimage();
    assert!(fails(64, &images(whole[..whole.len() / 2].to_vec())).contains("cut off: 2560 bytes of 5120"));
    assert!(fails(64, &images(whole[..0x240].to_vec())).contains("cut off"));
    assert!(fails(16, &images(whole)).contains("needs RAM up to 20 MiB, the guest has 16 MiB"));
    let elf = elf();
    assert!(fails(64, &images(elf[..0x120].to_vec())).contains("cut off"));
    assert!(fails(64, &images(elf[..0x50].to_vec())).contains("cut off"));
    let with = |at, v: &[u8], mut b: Vec<u8>| {
        put(&mut b, at, v);
        fails(64, &images(b))
    };
    assert!(with(0xc8, &[17], elf.clone()).contains("no PVH entry"));
    assert!(with(18, &[183], elf.clone()).contains("not for an x86"));
    assert!(with(0xd0, &[0; 4], elf.clone()).contains("outside the loaded segments"));
    assert!(with(88, &[0; 8], elf.clone()).contains("is not in the guest's RAM"));
    assert!(with(108, &[1], elf).contains("is not in the guest's RAM"));
    assert!(with(0x206, &[5, 2], bzimage()).contains("2.05"));
    assert!(with(0x211, &[0], bzimage()).contains("zImage"));
    assert!(with(0x258, &[1], bzimage()).contains("aligned"));
}

#[test]
fn what_comes_with_the_kernel_has_limits() {
    let mut i = images(bzimage());
    i.initrd = Some(vec![0; 45 * MIB as usize].into());
    assert_eq!(fails(64, &i), "the initial RAM disk has 47185920 bytes, and 46137344 bytes are free for it");
    i.initrd = Some(vec![1; 44 * MIB as usize].into());
    load_in(64, &i).unwrap();
    i.cmdline = "x".repeat(2048);
    assert_eq!(fails(64, &i), "the kernel command line has 2048 bytes, more than the 2047 the kernel takes");
    i.cmdline = "a\0b".into();
    assert!(fails(64, &i).contains("zero byte"));
    // initrd_addr_max below the end of RAM.
    let mut b = bzimage();
    put(&mut b, 0x22c, &(32 * MIB as u32 - 1).to_le_bytes());
    let (ram, _) = load_in(64, &Images { initrd: Some(vec![1; 4096].into()), ..images(b) }).unwrap();
    assert_eq!(ram.read_uint(place::ZERO_PAGE + 0x218, 4), 32 * MIB - 4096);
}

#[test]
fn reserved_ranges_are_taken_out_of_ram() {
    let (ram, map) = board(64);
    let tables = E820Entry { start: 32 * MIB, len: MIB, kind: E820Kind::AcpiTables };
    let list = Guest::new(&ram, &map).unwrap().e820(&[tables]);
    let ram_at = |start, len| E820Entry { start, len, kind: E820Kind::Ram };
    assert_eq!(list[3..], [ram_at(MIB, 31 * MIB), tables, ram_at(33 * MIB, 31 * MIB)]);
}

#[test]
fn files_are_read_again_each_time() {
    let path = std::env::temp_dir().join(format!("rhea-image-{}", std::process::id()));
    let mut kernel = bzimage();
    put(&mut kernel, 0x1f4, &2048u32.to_le_bytes());
    kernel.resize(1024 + 32768, 0x33);
    std::fs::write(&path, &kernel).unwrap();
    let i = Images::read(&path, Some(&path), "", 64 * MIB).unwrap();
    let (ram, map) = board(64);
    for round in 0..2 {
        load(&ram, &map, &i, BoardInfo::default()).unwrap();
        assert_eq!(bytes(&ram, 16 * MIB, 32768), kernel[1024..], "round {round}");
        let initrd = ram.read_uint(place::ZERO_PAGE + 0x218, 4);
        assert_eq!(bytes(&ram, initrd, kernel.len() + 1), [kernel.as_slice(), &[0]].concat(), "round {round}");
        ram.write(0, &vec![0; 64 * MIB as usize]);
    }
    assert_eq!(i.kernel.whole().unwrap(), kernel);
    // Somebody has cut it off since: no panic, and a line that names it.
    std::fs::write(&path, &kernel[..5000]).unwrap();
    let e = load(&ram, &map, &i, BoardInfo::default()).expect_err("loaded what is not there").to_string();
    assert!(e.starts_with(path.to_str().unwrap()) && !e.contains('\n'), "{e}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn files_larger_than_ram_are_not_read_whole() {
    let e = Images::read(Path::new("/dev/zero"), None, "", MIB).unwrap_err();
    assert_eq!(e.to_string(), "/dev/zero: larger than the guest's RAM");
    assert!(Images::read(Path::new("/nonexistent/k"), None, "", MIB).unwrap_err().to_string().starts_with("/nonexistent/k: "));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn changed_headers_never_panic(
        is_elf in any::<bool>(),
        changes in prop::collection::vec((0usize..0x280, prop_oneof![any::<u8>(), Just(0), Just(0xff)]), 1..6),
        cut in prop::option::of(0usize..6000),
        initrd in prop::option::of(0usize..100_000),
    ) {
        let mut b = if is_elf { elf() } else { bzimage() };
        for (at, v) in changes {
            if let Some(x) = b.get_mut(at) {
                *x = v;
            }
        }
        b.truncate(cut.unwrap_or(usize::MAX));
        let i = Images { initrd: initrd.map(|n| vec![1; n].into()), ..images(b) };
        if let Err(e) = load_in(24, &i) {
            prop_assert!(!e.to_string().contains('\n'));
        }
    }

    #[test]
    fn changed_words_never_panic(is_elf in any::<bool>(), at in 0usize..0x270, v in any::<u64>(), shift in 0u32..64) {
        let mut b = if is_elf { elf() } else { bzimage() };
        let bytes = (v >> shift).to_le_bytes();
        if at + 8 <= b.len() {
            put(&mut b, at, &bytes);
        }
        let _ = load_in(24, &images(b));
    }
}
