//! Control registers, MSRs, CPUID, reset.

use super::{Env, at, sel};
use crate::control::{lmsw, popf, rdpkru, write_cr, wrpkru, xsetbv};
use crate::cpuid::{Word, cpuid};
use crate::debug::{read_dr, write_dr};
use crate::fault::{gp, ud};
use crate::features::feature_name;
use crate::flags::bit;
use crate::models::configure;
use crate::msr::{index, rdmsr, wrmsr};
use crate::state::{CpuState, SegReg, cr0, cr4, efer};
use crate::topology::Topology;
use vm_core::guest::{Flush, GuestCpu};

#[test]
fn the_way_into_long_mode() {
    let mut e = Env::protected(0);
    write_cr(&mut e, 4, cr4::PAE).unwrap();
    write_cr(&mut e, 3, at::CR3).unwrap();
    wrmsr(&mut e, index::EFER, efer::LME).unwrap();
    e.flushes.clear();
    write_cr(&mut e, 0, cr0::PE | cr0::PG).unwrap();
    assert!(e.cpu.long_mode() && e.flushes.contains(&Flush::All));
    assert_eq!(wrmsr(&mut e, index::EFER, 0), Err(gp(0)), "LME with paging on");
    assert_eq!(write_cr(&mut e, 4, 0), Err(gp(0)), "PAE in long mode");
    write_cr(&mut e, 0, cr0::PE).unwrap();
    assert!(!e.cpu.long_mode());
}

#[test]
fn bad_control_register_values_fault_and_change_nothing() {
    let rows: [(u8, u64); 9] = [
        (0, cr0::PG),
        (0, cr0::PE | cr0::NW),
        (0, 1 << 32),
        (0, cr0::PE),
        (3, 1 << 40),
        (4, cr4::PAE | 1 << 31),
        (4, cr4::PAE | cr4::PCIDE),
        (4, 0),
        (8, 16),
    ];
    for (n, v) in rows {
        let mut e = Env::long(0);
        let before = e.cpu.clone();
        assert_eq!(write_cr(&mut e, n, v), Err(gp(0)), "cr{n} {v:#x}");
        assert_eq!(e.cpu, before);
    }
    assert_eq!(write_cr(&mut Env::long(3), 3, 0), Err(gp(0)));
    assert_eq!(write_cr(&mut Env::long(0), 1, 0), Err(ud()));
}

#[test]
fn paging_needs_pae_for_long_mode_and_good_pdptes() {
    let mut e = Env::protected(0);
    e.cpu.efer |= efer::LME;
    assert_eq!(write_cr(&mut e, 0, cr0::PE | cr0::PG), Err(gp(0)));
    let mut e = Env::protected(0);
    write_cr(&mut e, 4, cr4::PAE).unwrap();
    write_cr(&mut e, 3, at::CR3).unwrap();
    e.poke(at::CR3, 8, 0x5003);
    assert_eq!(write_cr(&mut e, 0, cr0::PE | cr0::PG), Err(gp(0)), "R/W is reserved in a PDPTE");
    e.poke(at::CR3, 8, 0x5001);
    write_cr(&mut e, 0, cr0::PE | cr0::PG).unwrap();
    assert_eq!(e.cpu.pdpte, [0x5001, 0, 0, 0]);
}

#[test]
fn lmsw_debug_registers_and_xsetbv() {
    let mut e = Env::protected(0);
    lmsw(&mut e, 0).unwrap();
    assert!(e.cpu.protected());
    let mut e = Env::long(0);
    write_dr(&mut e, 7, 0).unwrap();
    assert_eq!(read_dr(&e.cpu, 5), Ok(0x400));
    assert_eq!(write_dr(&mut e, 6, 1 << 32), Err(gp(0)));
    e.cpu.cr4 |= cr4::DE;
    assert_eq!(read_dr(&e.cpu, 5), Err(ud()));
    write_dr(&mut e, 7, 1 << 13).unwrap();
    assert_eq!(read_dr(&e.cpu, 0).unwrap_err().vector, 1);
    assert_eq!(xsetbv(&mut e.cpu, 0, 3), Err(ud()));
}

#[test]
fn popf_protects_iopl_and_if() {
    let mut e = Env::long(3);
    e.cpu.set_rflags(0);
    popf(&mut e.cpu, !0, 8).unwrap();
    assert_eq!(e.cpu.rflags() & (bit::IOPL | bit::IF | bit::VM | bit::RF), 0);
    assert_ne!(e.cpu.rflags() & bit::AC, 0);
}

#[test]
fn msrs_check_their_values() {
    let ok = [
        (index::PAT, 0x0007_0106_0007_0406),
        (index::LSTAR, 0xffff_8000_0000_1000),
        (index::GS_BASE, 0x1000),
        (index::MTRR_DEF_TYPE, 0xc06),
        (index::MTRR_PHYS_BASE0 + 2, 0x8000_0006),
        (index::MTRR_PHYS_BASE0 + 3, 0xff_8000_0800),
        (index::MTRR_FIX64K, 0x0606_0606_0606_0606),
        (index::FMASK, 0x4_7700),
        (index::STAR, 0x0023_0010_0000_0000),
    ];
    let mut e = Env::long(0);
    for (i, v) in ok {
        wrmsr(&mut e, i, v).unwrap();
        assert_eq!(rdmsr(&mut e, i), Ok(v), "{i:#x}");
    }
    assert_eq!(e.cpu.seg(SegReg::Gs).base, 0x1000);
    let bad = [
        (index::PAT, 2),
        (index::LSTAR, 1 << 60),
        (index::MTRR_DEF_TYPE, 0x1000),
        (index::MTRR_PHYS_BASE0, 2),
        (index::MTRR_PHYS_BASE0 + 1, 1 << 45),
        (index::MTRR_FIX4K, 3),
        (index::EFER, 1 << 5),
        (index::MTRRCAP, 0),
        (0x4711_0000, 0),
    ];
    for (i, v) in bad {
        let before = e.cpu.clone();
        assert_eq!(wrmsr(&mut e, i, v), Err(gp(0)), "{i:#x}");
        assert_eq!(e.cpu, before);
    }
    assert_eq!(rdmsr(&mut e, 0x4711_0000), Err(gp(0)));
    assert_eq!(rdmsr(&mut e, index::BIOS_SIGN_ID), Ok(0x0100_0065));
    wrmsr(&mut e, index::TSC, 5).unwrap();
    assert_eq!(rdmsr(&mut e, index::TSC), Ok(5));
    assert_eq!(rdmsr(&mut Env::long(3), index::EFER), Err(gp(0)));
}

/// What `-cpu qemu64` shows under QEMU 7.2's TCG, but SVM, which is not implemented.
#[test]
fn qemu64_has_the_leaves_of_qemu() {
    let c = CpuState::new(&configure("qemu64", &[]).unwrap(), 0);
    assert_eq!(cpuid(&c, 0, 0), [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);
    assert_eq!(cpuid(&c, 1, 0), [0x0006_0fb1, 0x800, 0x8000_2001, 0x078b_fbfd]);
    assert_eq!(cpuid(&c, 0xb, 0), [0, 1, 0x100, 0]);
    assert_eq!(cpuid(&c, 0xb, 1), [0, 1, 0x201, 0]);
    assert_eq!(cpuid(&c, 0x8000_0001, 0), [0x0006_0fb1, 0, 1, 0x2193_fbfd]);
    assert_eq!(cpuid(&c, 0x8000_0002, 0), [0x554d_4551, 0x7269_5620, 0x6c61_7574, 0x5550_4320]);
    assert_eq!(cpuid(&c, 0x8000_0003, 0), [0x7265_7620, 0x6e6f_6973, 0x352e_3220, 0x2b]);
    assert_eq!(cpuid(&c, 0x8000_0005, 0), [0x01ff_01ff, 0x01ff_01ff, 0x4002_0140, 0x4002_0140]);
    assert_eq!(cpuid(&c, 0x8000_0006, 0), [0, 0x4200_4200, 0x0200_8140, 0x0080_8140]);
    assert_eq!(cpuid(&c, 0x8000_0008, 0), [0x3028, 0, 0, 0]);
    assert_eq!(cpuid(&c, 0x4000_0000, 0), [0x4000_0001, 0x5447_4354, 0x4354_4743, 0x4743_5447]);
    for leaf in [2, 4, 6, 7, 0xa, 0x15, 0x16, 0x8000_000a, 0x8000_001e, 0xc000_0000] {
        assert_eq!(cpuid(&c, leaf, 0), [0; 4], "{leaf:#x}");
    }
    let two = crate::cpuid::CpuConfigured {
        topology: Topology { sockets: 1, cores: 2, threads: 1 },
        ..configure("qemu64", &[]).unwrap()
    };
    let c = CpuState::new(&two, 1);
    assert_eq!(cpuid(&c, 1, 0), [0x0006_0fb1, 0x0102_0800, 0x8000_2001, 0x178b_fbfd]);
    assert_eq!(cpuid(&c, 0xb, 1), [1, 2, 0x201, 1]);
    assert_eq!(cpuid(&c, 0x8000_0008, 0), [0x3028, 0, 0x1001, 0]);
}

/// `flags` of /proc/cpuinfo under Linux 6.1 on QEMU 7.2's TCG with `-cpu qemu64`, without what Linux adds by itself
/// (rep_good nopl cpuid extd_apicid 3dnowprefetch vmmcall) and without svm. `bugs` was: fxsave_leak sysret_ss_attrs
/// null_seg swapgs_fence amd_e400 spectre_v1 spectre_v2.
const QEMU64_FLAGS: &str = "fpu de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clflush mmx fxsr sse sse2 \
    syscall nx lm pni cx16 hypervisor lahf_lm";

#[test]
fn linux_sees_the_flags_of_qemu64() {
    let config = configure("qemu64", &[]).unwrap();
    let mut seen = Vec::new();
    for word in [Word::L1Edx, Word::ExtEdx, Word::L1Ecx, Word::ExtEcx, Word::L7Ebx, Word::L7Ecx, Word::L7Edx] {
        // In the order of Linux. AMD repeats bits 0-17, 23 and 24 of leaf 1's EDX; Linux shows them once.
        let repeated = if word == Word::ExtEdx { 0x0183_ffff & !(1 << 11) } else { 0 };
        for bit in 0..32 {
            if config.features[word as usize] & !repeated & 1 << bit != 0 {
                seen.push(feature_name(word, bit).expect("every feature has a name").replace('-', "_"));
            }
        }
    }
    assert_eq!(seen.join(" "), QEMU64_FLAGS);
}

#[test]
fn firmware_mtrrs_are_values_a_guest_could_write() {
    let mut e = Env::long(0);
    e.cpu.firmware_mtrrs((0xc000_0000, 0x4000_0000));
    assert_eq!((e.cpu.mtrr_var[0], e.cpu.mtrr_var[1]), (0xc000_0000, 0xff_c000_0800));
    let before = e.cpu.clone();
    for i in [index::MTRR_DEF_TYPE, index::MTRR_PHYS_BASE0, index::MTRR_PHYS_BASE0 + 1, 0x259] {
        let v = rdmsr(&mut e, i).unwrap();
        wrmsr(&mut e, i, v).unwrap();
    }
    assert_eq!(e.cpu, before);
}

#[test]
fn cpu_options() {
    assert!(configure("z80", &[]).is_err());
    assert!(configure("max", &[(true, "nonsense".into())]).is_err());
    let c = configure("qemu64", &[(false, "nx".into()), (true, "svm".into())]).unwrap();
    assert_eq!(c.features[2] >> 20 & 1, 0);
    assert_eq!(c.dropped, ["CPUID.80000001H:ECX.svm [bit 2]"]);
    let mut e = Env::with(&c);
    assert_eq!(wrmsr(&mut e, index::EFER, efer::NXE), Err(gp(0)));
}

#[test]
fn models_are_levels_and_say_what_they_lack() {
    let words = |name: &str| configure(name, &[]).unwrap().features;
    let all = crate::features::implemented();
    let mut below = words("x86-64-v1");
    for name in ["x86-64-v2", "x86-64-v3"] {
        let w = words(name);
        assert!(below.iter().zip(&w).all(|(b, w)| b & !w == 0), "{name} has all of the level below");
        assert!(w.iter().zip(&all).all(|(w, a)| w & !a == 0), "{name} has nothing that is not implemented");
        below = w;
    }
    assert!(configure("qemu64", &[]).unwrap().dropped.is_empty() && configure("max", &[]).unwrap().dropped.is_empty());
    // A feature goes with the one that it needs, and whoever asked for it is told.
    let c = configure("max", &[(false, "xsave".into()), (true, "avx".into())]).unwrap();
    assert_eq!(c.features[Word::L1Ecx as usize] & (1 << 26 | 1 << 28 | 1 << 12), 0);
    assert_eq!(c.dropped, ["CPUID.01H:ECX.avx [bit 28]"]);
}

#[test]
fn named_models_are_what_they_say() {
    let cpu = |name: &str| CpuState::new(&configure(name, &[]).unwrap(), 0);
    let rows = [
        ("qemu32", 0x663, b"GenuineIntel"),
        ("kvm64", 0xf61, b"GenuineIntel"),
        ("Nehalem", 0x106a3, b"GenuineIntel"),
        ("SandyBridge", 0x206a1, b"GenuineIntel"),
        ("Haswell", 0x306c4, b"GenuineIntel"),
        ("Skylake-Client", 0x506e3, b"GenuineIntel"),
        ("486", 0x480, b"GenuineIntel"),
        ("pentium3", 0x673, b"GenuineIntel"),
        ("Icelake-Server", 0x606a0, b"GenuineIntel"),
        ("Opteron_G1", 0xf61, b"AuthenticAMD"),
        ("Opteron_G5", 0x0060_0f20, b"AuthenticAMD"),
        ("EPYC", 0x0080_0f12, b"AuthenticAMD"),
        ("EPYC-Milan", 0x00a0_0f11, b"AuthenticAMD"),
    ];
    for (name, signature, vendor) in rows {
        let c = cpu(name);
        let [_, b, x, d] = cpuid(&c, 0, 0);
        let text: Vec<u8> = [b, d, x].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!((cpuid(&c, 1, 0)[0], text.as_slice()), (signature, vendor.as_slice()), "{name}");
    }
    assert_eq!(cpuid(&cpu("qemu32"), 0x8000_0001, 0)[3] >> 29 & 1, 0, "no long mode");
    let has = |name: &str, f: &str| crate::features::find(f).unwrap().is_in(&cpu(name).features);
    for (name, feature, there) in [
        ("Nehalem", "sse4.2", true),
        ("Nehalem", "aes", false),
        ("SandyBridge", "avx", true),
        ("SandyBridge", "x2apic", true),
        ("SandyBridge", "f16c", false),
        ("Haswell", "avx2", true),
        ("Haswell", "adx", false),
        ("Skylake-Client", "smap", true),
        ("486", "vme", true),
        ("486", "tsc", false),
        ("pentium", "mmx", true),
        ("pentium2", "cmov", true),
        ("pentium2", "sse", false),
        ("Opteron_G1", "cx16", false),
        ("Icelake-Server", "la57", true),
        ("EPYC", "sha-ni", true),
        ("EPYC", "pku", false),
        ("EPYC-Milan", "pku", true),
    ] {
        assert_eq!(has(name, feature), there, "{name} {feature}");
    }
    // Each generation has the features of the one before; what is not implemented is told by name.
    let line =
        ["core2duo", "Penryn", "Nehalem", "Westmere", "SandyBridge", "IvyBridge", "Haswell", "Broadwell", "Skylake-Client"];
    for pair in line.windows(2) {
        let (a, b) = (cpu(pair[0]).features, cpu(pair[1]).features);
        assert!(a.iter().zip(&b).all(|(a, b)| a & !b == 0), "{pair:?}");
    }
    for line in [["486", "pentium", "pentium2", "pentium3"].as_slice(), &["Opteron_G1", "Opteron_G2", "Opteron_G3"]] {
        for pair in line.windows(2) {
            let (a, b) = (cpu(pair[0]).features, cpu(pair[1]).features);
            assert!(a.iter().zip(&b).all(|(a, b)| a & !b == 0), "{pair:?}");
        }
    }
    let dropped = |name: &str| configure(name, &[]).unwrap().dropped;
    assert_eq!(dropped("Haswell"), ["CPUID.07H:EBX.hle [bit 4]", "CPUID.07H:EBX.rtm [bit 11]"]);
    assert!(dropped("kvm64").is_empty());
    let names: std::collections::BTreeSet<_> = crate::models::model_names().map(|m| m.0).collect();
    assert_eq!(names.len(), crate::models::MODELS.len());
}

#[test]
fn pkru_instructions_and_leaves() {
    let mut e = Env::with(&configure("max", &[]).unwrap());
    assert_eq!(rdpkru(&e.cpu), Err(ud()));
    assert_eq!((cpuid(&e.cpu, 7, 0)[2] >> 3 & 3, cpuid(&e.cpu, 0xd, 9)), (1, [8, 2688, 0, 0]));
    write_cr(&mut e, 4, cr4::PKE | cr4::OSXSAVE).unwrap();
    assert_eq!(cpuid(&e.cpu, 7, 0)[2] >> 3 & 3, 3);
    e.flushes.clear();
    e.cpu.gpr[..3].copy_from_slice(&[0xffff_ffff_0000_000c, 1 << 32, 1 << 32]);
    wrpkru(&mut e).unwrap();
    assert_eq!((rdpkru(&e.cpu), e.flushes.len()), (Ok(12), 1));
    e.cpu.gpr[2] = 1;
    assert_eq!(wrpkru(&mut e), Err(gp(0)));
    e.cpu.gpr[1] = 1;
    assert_eq!(rdpkru(&e.cpu), Err(gp(0)));
    // Sizes of XSAVE areas: standard with a hole, compacted without.
    e.cpu.gpr[1] = 0;
    xsetbv(&mut e.cpu, 0, 0x203).unwrap();
    assert_eq!((cpuid(&e.cpu, 0xd, 0)[..3].to_vec(), cpuid(&e.cpu, 0xd, 1)[1]), (vec![0x207, 2696, 2696], 584));
    xsetbv(&mut e.cpu, 0, 0x207).unwrap();
    assert_eq!(cpuid(&e.cpu, 0xd, 1)[1], 840);
    assert_eq!(xsetbv(&mut Env::real().cpu, 0, 0x203), Err(ud()));
}

#[test]
fn power_on_state_is_the_manuals() {
    let c = CpuState::new(&configure("qemu64", &[]).unwrap(), 0);
    assert_eq!((c.linear(c.rip).0, c.cr0, c.rflags()), (0xffff_fff0, 0x6000_0010, 2));
    assert_eq!((c.gpr[2], c.dr[6], c.dr[7]), (0x0006_0fb1, 0xffff_0ff0, 0x400));
    assert_eq!(c.seg(SegReg::Cs).selector, 0xf000);
    let mut d = c.clone();
    d.gpr = [7; 16];
    d.cr4 = !0;
    d.lstar = 5;
    d.mxcsr = 0;
    d.reset();
    assert_eq!(c, d, "reset equals fresh");
    assert!(CpuState::new(&configure("qemu64", &[]).unwrap(), 1).wait_sipi);
}

#[test]
fn dumps_name_the_mode() {
    let e = Env::long(3);
    let text = e.cpu.dump();
    assert!(text.starts_with("RAX=0000000000000000 RBX="), "{text}");
    assert!(text.contains("CS =001b 0000000000000000 ffffffff 00affb00 DPL=3 CS64 [-RA]"), "{text}");
    assert!(text.contains(&format!("TR ={:04x}", sel::TSS)) && text.contains("TSS64-busy"), "{text}");
    assert!(Env::real().cpu.dump().starts_with("EAX=00000000 EBX="));
}

#[test]
fn invpcid_checks_its_descriptor_and_drops_what_it_names() {
    use crate::control::invpcid;
    let mut e = Env::long(0);
    e.cpu.features[Word::L1Ecx as usize] |= 1 << 17;
    let run = |e: &mut Env, kind, pcid, va| {
        e.flushes.clear();
        invpcid(e, kind, pcid, va).map(|()| std::mem::take(&mut e.flushes))
    };
    assert_eq!(run(&mut e, 0, 0, 0x5678), Ok(vec![Flush::Page(vm_core::Va(0x5000))]));
    assert_eq!(run(&mut e, 1, 0, 0), Ok(vec![Flush::NonGlobal]));
    assert_eq!(run(&mut e, 2, 0, 0), Ok(vec![Flush::All]));
    assert_eq!(run(&mut e, 3, 0, 0), Ok(vec![Flush::All]));
    // A type there is not, reserved bits, a PCID without CR4.PCIDE, an address that is not canonical.
    for (kind, pcid, va) in [(4, 0, 0), (2, 0x1000, 0), (1, 1, 0), (0, 0, 1 << 60)] {
        assert_eq!(run(&mut e, kind, pcid, va), Err(gp(0)));
    }
    write_cr(&mut e, 4, cr4::PAE | cr4::PCIDE).unwrap();
    let cr3 = e.cpu.cr3;
    write_cr(&mut e, 3, cr3 | 5).unwrap();
    assert_eq!(run(&mut e, 1, 5, 0), Ok(vec![Flush::NonGlobal]));
    assert_eq!(run(&mut e, 1, 6, 0), Ok(vec![Flush::Left(6)]));
    e.flushes.clear();
    write_cr(&mut e, 3, cr3 | 5 | 1 << 63).unwrap();
    assert!(e.flushes.is_empty(), "the same PCID, asked to keep");
    write_cr(&mut e, 3, cr3 | 6 | 1 << 63).unwrap();
    assert_eq!(e.flushes, [Flush::Switch { from: 5, to: 6, keep: true }]);
    e.flushes.clear();
    write_cr(&mut e, 3, cr3 | 0x1006).unwrap();
    assert_eq!(e.flushes, [Flush::NonGlobal], "other tables, the same PCID");
    e.flushes.clear();
    write_cr(&mut e, 3, cr3 | 5).unwrap();
    assert_eq!(e.flushes, [Flush::Switch { from: 6, to: 5, keep: false }]);
    assert_eq!(run(&mut Env::long(3), 2, 0, 0), Err(gp(0)));
}

#[test]
fn umip_keeps_table_addresses_from_programs() {
    use crate::segment::store_allowed;
    for (cpl, umip, ok) in [(0, true, true), (3, false, true), (3, true, false)] {
        let mut e = Env::long(cpl);
        e.cpu.cr4 |= if umip { cr4::UMIP } else { 0 };
        assert_eq!(store_allowed(&e.cpu), if ok { Ok(()) } else { Err(gp(0)) }, "CPL {cpl}, UMIP {umip}");
    }
}
