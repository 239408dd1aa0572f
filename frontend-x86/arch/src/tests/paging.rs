//! Page walks: permissions, error codes, reserved bits, accessed and dirty bits.

use super::{Env, at};
use crate::fault::{gp, page, pf};
use crate::mode::ctx;
use crate::paging::{pte, walk};
use crate::state::{cr0, cr4, efer};
use vm_core::guest::Mapping;
use vm_core::{Access, Fault, Pa, Va};

const DATA: u64 = 0x8000;

/// One page at linear 0 with `flags`, mapped through tables that allow everything, in each paging format.
fn mapped(format: usize, flags: u64) -> (Env, u64) {
    let mut e = Env::protected(0);
    e.cpu.cr0 |= cr0::PG;
    e.cpu.cr3 = at::CR3;
    let t = |i: u64| at::CR3 + i * 0x1000;
    let leaf = match format {
        0 => {
            e.poke(t(0), 4, t(1) | 7);
            e.poke(t(1), 4, DATA | flags & 0xfff);
            t(1)
        }
        1 => {
            e.cpu.cr4 |= cr4::PAE;
            e.cpu.pdpte[0] = t(1) | 1;
            e.poke(t(1), 8, t(2) | 7);
            e.poke(t(2), 8, DATA | flags);
            t(2)
        }
        _ => {
            e.cpu.cr4 |= cr4::PAE;
            e.cpu.efer |= efer::LME | efer::LMA;
            for i in 0..3 {
                e.poke(t(i), 8, t(i + 1) | 7);
            }
            e.poke(t(3), 8, DATA | flags);
            t(3)
        }
    };
    e.cpu.efer |= efer::NXE;
    (e, leaf)
}

fn try_walk(e: &Env, va: u64, access: Access, c: usize) -> Result<Mapping, Fault> {
    walk(&e.cpu, Va(va), access, c, &e.io)
}

/// SDM 3A §4.6.1 "Determination of Access Rights", said row by row.
fn manual(user: bool, write: bool, nx: bool, wp: bool, smep: bool, access: Access, c: usize) -> bool {
    match (c, access) {
        (ctx::USER, Access::Read) => user,
        (ctx::USER, Access::Write) => user && write,
        (ctx::USER, Access::Execute) => user && !nx,
        (_, Access::Execute) => !(nx || user && smep),
        (ctx::KERNEL_SMAP, _) if user => false,
        (_, Access::Read) => true,
        (_, Access::Write) => write || !wp,
    }
}

#[test]
fn permissions_follow_the_manual_in_every_combination() {
    for bits in 0..32u32 {
        let on = |i: u32| bits >> i & 1 == 1;
        let (user, write, nx, wp, smep) = (on(0), on(1), on(2), on(3), on(4));
        for format in 0..3 {
            if format == 0 && nx {
                continue;
            }
            let f = |c: bool, b: u64| if c { b } else { 0 };
            let flags = pte::P | f(user, pte::U) | f(write, pte::W) | f(nx, pte::NX);
            for c in [ctx::KERNEL, ctx::USER, ctx::KERNEL_SMAP] {
                for access in [Access::Read, Access::Write, Access::Execute] {
                    let (mut e, leaf) = mapped(format, flags);
                    e.cpu.cr0 = e.cpu.cr0 & !cr0::WP | f(wp, cr0::WP);
                    e.cpu.cr4 |= f(smep, cr4::SMEP) | f(c == ctx::KERNEL_SMAP, cr4::SMAP);
                    let got = try_walk(&e, 0x123, access, c);
                    let what = format!("{bits:05b} format {format} ctx {c} {access:?}");
                    if manual(user, write, nx, wp, smep, access, c) {
                        let m = got.expect(&what);
                        assert_eq!(m.page, Pa(DATA), "{what}");
                        let (r, w, x) = (
                            manual(user, write, nx, wp, smep, Access::Read, c),
                            manual(user, write, nx, wp, smep, Access::Write, c),
                            manual(user, write, nx, wp, smep, Access::Execute, c),
                        );
                        assert_eq!((m.read, m.exec), (r, x), "{what}");
                        assert_eq!(m.write, w && access == Access::Write, "a clean page is not writable: {what}");
                        let dirty = if access == Access::Write { pte::D } else { 0 };
                        assert_eq!(e.peek(leaf, 4) & (pte::A | pte::D), pte::A | dirty, "{what}");
                    } else {
                        let mut code = pf::P | if c == ctx::USER { pf::U } else { 0 };
                        code |= if access == Access::Write { pf::W } else { 0 };
                        let fetch_told = smep || format != 0;
                        code |= if access == Access::Execute && fetch_told { pf::I } else { 0 };
                        assert_eq!(got, Err(page(0x123, code)), "{what}");
                        assert_eq!(e.peek(leaf, 4) & (pte::A | pte::D), 0, "a fault leaves the entry alone: {what}");
                    }
                }
            }
        }
    }
}

#[test]
fn rights_are_those_of_the_strictest_level() {
    for level in 0..3u64 {
        for drop in [pte::U, pte::W] {
            let (e, _) = mapped(2, 7);
            let at = at::CR3 + level * 0x1000;
            e.poke(at, 8, e.peek(at, 8) & !drop);
            let want = pf::P | pf::W | pf::U;
            assert_eq!(try_walk(&e, 0, Access::Write, ctx::USER), Err(page(0, want)));
        }
    }
}

#[test]
fn missing_and_reserved_entries_have_their_error_codes() {
    let (e, leaf) = mapped(2, 7);
    e.poke(leaf, 8, 0xdead_0000_0000_0000);
    assert_eq!(try_walk(&e, 5, Access::Write, ctx::USER), Err(page(5, pf::W | pf::U)));
    // (entry index, bit): bits above the physical width, PS in a PML4E, PS without 1 GiB pages.
    for (level, bit) in [(3, 40), (3, 51), (0, 7), (1, 7), (2, 45)] {
        let (e, _) = mapped(2, 7);
        let at = at::CR3 + level * 0x1000;
        e.poke(at, 8, e.peek(at, 8) | 1 << bit);
        assert_eq!(try_walk(&e, 0, Access::Read, ctx::KERNEL), Err(page(0, pf::P | pf::RSVD)), "{level} {bit}");
    }
    // Bits 62:52 are ignored in 4-level entries and reserved in PAE ones.
    let (e, leaf) = mapped(2, 7 | 1 << 55);
    assert!(try_walk(&e, 0, Access::Read, ctx::KERNEL).is_ok());
    let (e2, _) = mapped(1, 7 | 1 << 55);
    assert_eq!(try_walk(&e2, 0, Access::Read, ctx::KERNEL), Err(page(0, pf::P | pf::RSVD)));
    // XD is reserved without EFER.NXE, and the fetch bit is then not reported.
    let mut e = e;
    e.poke(leaf, 8, DATA | 7 | pte::NX);
    e.cpu.efer &= !efer::NXE;
    assert_eq!(try_walk(&e, 0, Access::Execute, ctx::KERNEL), Err(page(0, pf::P | pf::RSVD)));
}

#[test]
fn large_pages_and_pse36() {
    let (mut e, _) = mapped(0, 7);
    // 4 MiB page at 12_4040_0000h: bits 39:32 of the address lie in bits 20:13 of the entry.
    e.poke(at::CR3 + 4, 4, 0x4040_0000 | 0x12 << 13 | 0x87);
    e.cpu.cr4 |= cr4::PSE;
    let m = try_walk(&e, 0x0045_6789, Access::Read, ctx::KERNEL).unwrap();
    assert_eq!(m.page, Pa(0x12_4045_6000));
    e.poke(at::CR3 + 4, 4, 0x4040_0000 | 1 << 21 | 0x87);
    assert_eq!(try_walk(&e, 0x40_0000, Access::Read, ctx::KERNEL), Err(page(0x40_0000, pf::P | pf::RSVD)));
    let (e, _) = mapped(2, 7);
    e.poke(at::CR3 + 0x2000 + 8, 8, 0x60_0000 | 0x87 | pte::G);
    let m = try_walk(&e, 0x21_2345, Access::Write, ctx::KERNEL).unwrap();
    assert_eq!((m.page, m.write, m.global), (Pa(0x61_2000), true, false));
    e.poke(at::CR3 + 0x2000 + 8, 8, 0x60_2000 | 0x87);
    assert!(try_walk(&e, 0x21_2345, Access::Read, ctx::KERNEL).is_err());
}

#[test]
fn global_needs_pge_and_dirty_pages_stay_writable() {
    let (mut e, _) = mapped(2, 7 | pte::G | pte::D);
    assert!(!try_walk(&e, 0, Access::Read, ctx::KERNEL).unwrap().global);
    e.cpu.cr4 |= cr4::PGE;
    let m = try_walk(&e, 0, Access::Read, ctx::KERNEL).unwrap();
    assert!(m.global && m.write);
}

#[test]
fn non_canonical_addresses_and_debug_walks() {
    let (e, leaf) = mapped(2, 7);
    assert_eq!(try_walk(&e, 1 << 47, Access::Read, ctx::KERNEL), Err(Fault { addr: 1 << 47, ..gp(0) }));
    assert_eq!(crate::paging::debug_walk(&e.cpu, Va(0x123), &e.io), Some(Pa(DATA + 0x123)));
    assert_eq!(e.peek(leaf, 8) & pte::A, 0);
    assert_eq!(crate::paging::debug_walk(&e.cpu, Va(0x5000), &e.io), None);
}

#[test]
fn a20_masks_physical_addresses() {
    let mut e = Env::real();
    e.cpu.a20_masked = true;
    assert_eq!(try_walk(&e, 0x10_5123, Access::Read, ctx::KERNEL).unwrap().page, Pa(0x5000));
}

#[test]
fn the_list_of_mappings_is_bounded() {
    let (e, _) = mapped(2, 7);
    // Every table points at itself: 512^4 mappings.
    for i in 0..512 {
        e.poke(at::CR3 + i * 8, 8, at::CR3 | 7);
    }
    let text = crate::paging::dump_mappings(&e.cpu, &e.io);
    assert!(text.lines().count() < 5000);
    let (e, _) = mapped(2, 7);
    let text = crate::paging::dump_mappings(&e.cpu, &e.io);
    assert_eq!(text, "0000000000000000: 0000000000008000 -------UW\n");
}

#[test]
fn the_list_of_mappings_has_sizes_and_what_all_levels_allow() {
    let (mut e, _) = mapped(2, 7);
    // A second PDPT entry with a page of 1 GiB that may be written, below a PML4 entry that forbids it and execution.
    let pml4e = e.peek(at::CR3, 8);
    let pdpt = pml4e & 0x000f_ffff_ffff_f000;
    e.cpu.efer |= efer::NXE;
    let (word, bit) = crate::cpuid::feature::PDPE1GB;
    e.cpu.features[word as usize] |= 1 << bit;
    e.poke(at::CR3, 8, pml4e & !2 | 1 << 63);
    e.poke(pdpt + 8, 8, 0x4000_0000 | 0x87);
    let text = crate::paging::dump_mappings(&e.cpu, &e.io);
    let wanted = "0000000000000000: 0000000000008000 X------U-\n0000000040000000: 0000000040000000 X-P----U- 1G\n";
    assert_eq!(text, wanted);
}

/// A page of 1 GiB exists with PDPE1GB; without it, and with address bits below bit 30, its entry is reserved.
#[test]
fn pages_of_a_gibibyte() {
    const G: u64 = 1 << 30;
    let (mut e, _) = mapped(2, 0);
    let pdpte = at::CR3 + 0x1008;
    e.poke(pdpte, 8, (3 * G) | pte::PS | 3);
    let bit = |e: &mut Env, on: bool| {
        let (word, bit) = crate::cpuid::feature::PDPE1GB;
        let w = &mut e.cpu.features[word as usize];
        *w = if on { *w | 1 << bit } else { *w & !(1 << bit) };
    };
    bit(&mut e, true);
    let m = try_walk(&e, G + 0x1234_5678, Access::Read, ctx::KERNEL).unwrap();
    assert_eq!(m.page, Pa(3 * G + 0x1234_5000));
    assert_eq!(e.peek(pdpte, 8) & pte::A, pte::A);
    bit(&mut e, false);
    let reserved = |e: &Env| try_walk(e, G, Access::Read, ctx::KERNEL).map(|m| m.page);
    assert_eq!(reserved(&e), Err(page(G, pf::P | pf::RSVD)));
    bit(&mut e, true);
    e.poke(pdpte, 8, (3 * G) | pte::PS | 1 << 29 | 3);
    assert_eq!(reserved(&e), Err(page(G, pf::P | pf::RSVD)));
}

#[test]
fn five_levels() {
    let (mut e, leaf) = mapped(2, 7);
    // The level above: entry 1 of a new root.
    let root = at::CR3 + 0x8000;
    e.poke(root + 8, 8, at::CR3 | 7);
    e.cpu.cr3 = root;
    e.cpu.cr4 |= cr4::LA57;
    let va = 1 << 48;
    assert_eq!(try_walk(&e, va | 0x123, Access::Write, ctx::USER).unwrap().page, Pa(DATA));
    assert_eq!((e.peek(root + 8, 8) & pte::A, e.peek(leaf, 8) & pte::D), (pte::A, pte::D));
    // 57 bits of linear address.
    assert_eq!(try_walk(&e, 1 << 56, Access::Read, ctx::KERNEL), Err(Fault { addr: 1 << 56, ..gp(0) }));
    assert_eq!(try_walk(&e, 1 << 55, Access::Read, ctx::KERNEL), Err(page(1 << 55, 0)));
    // An entry of the root is never a page.
    e.poke(root + 8, 8, at::CR3 | pte::PS | 7);
    assert_eq!(try_walk(&e, va, Access::Read, ctx::KERNEL), Err(page(va, pf::P | pf::RSVD)));
    e.cpu.cr4 &= !cr4::LA57;
    assert_eq!(try_walk(&e, va, Access::Read, ctx::KERNEL), Err(Fault { addr: va, ..gp(0) }));
}

#[test]
fn protection_keys_guard_data_of_user_pages() {
    let (mut e, leaf) = mapped(2, pte::P | pte::W | pte::U | pte::D | 5 << pte::KEY_SHIFT);
    for (rights, wp, c) in (0..4u32).flat_map(|r| [false, true].map(|wp| (r, wp))).flat_map(|(r, wp)| [0, 1].map(|c| (r, wp, c)))
    {
        e.cpu.cr0 = e.cpu.cr0 & !cr0::WP | if wp { cr0::WP } else { 0 };
        e.cpu.pkru = rights << 10;
        let no_access = rights & 1 != 0;
        let no_write = no_access || rights & 2 != 0 && (c == ctx::USER || wp);
        for (pke, access) in
            [false, true].into_iter().flat_map(|p| [Access::Read, Access::Write, Access::Execute].map(|a| (p, a)))
        {
            e.cpu.cr4 = e.cpu.cr4 & !cr4::PKE | if pke { cr4::PKE } else { 0 };
            let bad = pke
                && match access {
                    Access::Read => no_access,
                    Access::Write => no_write,
                    Access::Execute => false,
                };
            let w = if access == Access::Write { pf::W } else { 0 } | if c == ctx::USER { pf::U } else { 0 };
            let got = try_walk(&e, 0, access, c);
            let what = format!("{rights} {wp} {c} {pke} {access:?}");
            assert_eq!(got.err(), bad.then_some(page(0, pf::P | pf::PK | w)), "{what}");
            if let Ok(m) = got {
                assert_eq!((m.read, m.write), (!(pke && no_access), !(pke && no_write)), "{what}: the TLB's entry");
            }
        }
    }
    // Supervisor pages have no key, nor has 32-bit paging.
    (e.cpu.pkru, e.cpu.cr4) = (!0, e.cpu.cr4 | cr4::PKE);
    e.poke(leaf, 8, DATA | pte::P | pte::W | 5 << pte::KEY_SHIFT);
    assert!(try_walk(&e, 0, Access::Write, ctx::KERNEL).is_ok());
    let (mut e, _) = mapped(0, pte::P | pte::W | pte::U);
    (e.cpu.pkru, e.cpu.cr4) = (!0, e.cpu.cr4 | cr4::PKE);
    assert!(try_walk(&e, 0, Access::Write, ctx::USER).is_ok());
}
