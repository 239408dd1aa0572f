//! Saved state of a CPU: a section with every register; what the model decides (CPUID) is not part of it.

use crate::control::{CR0_KNOWN, cr4_known, efer_known, xcr0_known};
use crate::cpuid::Word;
use crate::debug;
use crate::features;
use crate::flags::{self, bit};
use crate::paging::{PHYS_BITS, canonical};
use crate::state::{CpuState, DescTable, F80, PendingEvent, SegReg, Segment, cr0, cr4, efer, shadow};
use serde::{Deserialize, Serialize};
use vm_core::{LoadError, Section};

const VERSION: u32 = 1;
/// A 128-bit register as two numbers, low half first: JSON's numbers have 64 bits here.
type Wide = [u64; 2];

#[derive(Serialize, Deserialize)]
struct Saved {
    gpr: [u64; 16],
    rip: u64,
    /// All flags, the arithmetic ones computed.
    rflags: u64,
    seg: [Segment; 6],
    ldt: Segment,
    tr: Segment,
    gdt: DescTable,
    idt: DescTable,
    xmm: [Wide; 16],
    ymmh: [Wide; 16],
    fpr: [F80; 8],
    mxcsr: u32,
    fcw: u16,
    fsw: u16,
    ftw: u8,
    fop: u16,
    fip: u64,
    fdp: u64,
    fcs: u16,
    fds: u16,
    cpl: u8,
    halted: bool,
    shadow: u8,
    nmi_blocked: bool,
    smm: bool,
    wait_sipi: bool,
    a20_masked: bool,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    xcr0: u64,
    #[serde(default)]
    pkru: u32,
    efer: u64,
    pdpte: [u64; 4],
    dr: [u64; 8],
    star: u64,
    lstar: u64,
    cstar: u64,
    sfmask: u64,
    kernel_gs_base: u64,
    sysenter_cs: u64,
    sysenter_esp: u64,
    sysenter_eip: u64,
    pat: u64,
    tsc_aux: u64,
    tsc_offset: u64,
    misc_enable: u64,
    /// Added later: 0 in older files.
    #[serde(default)]
    pv_time: u64,
    #[serde(default)]
    pv_wall: u64,
    /// What the guest was shown of KVM, and goes on to see: features of leaf 4000_0001h.
    #[serde(default)]
    kvm: u32,
    #[serde(default)]
    debugctl: u64,
    #[serde(default)]
    lbr: [u64; 4],
    mtrr_def: u64,
    mtrr_fixed: [u64; 11],
    mtrr_var: [u64; 16],
    smbase: u64,
    pending: PendingEvent,
}

fn halves(v: u128) -> Wide {
    [v as u64, (v >> 64) as u64]
}

fn whole([low, high]: Wide) -> u128 {
    u128::from(low) | u128::from(high) << 64
}

/// Moves every field of `Saved` that has the same name and type in `CpuState`.
macro_rules! same {
    ($from:ident, $($field:ident),*) => { Saved {
        rflags: $from.rflags(),
        kvm: $from.features[Word::KvmEax as usize],
        xmm: $from.xmm.map(halves),
        ymmh: $from.ymmh.map(halves),
        $($field: $from.$field,)*
    } };
}

impl CpuState {
    /// The section of CPU number `n` (0..=9 keep their order by name).
    pub fn save(&self, n: usize) -> Section {
        // Without `..`, so that a new field must be thought of here: it is saved, derived, scratch, or the model's.
        #[rustfmt::skip]
        let CpuState {
            gpr: _, rip: _, seg: _, ldt: _, tr: _, gdt: _, idt: _, xmm: _, ymmh: _, fpr: _, mxcsr: _, fcw: _, fsw: _, ftw: _,
            fop: _, fip: _, fdp: _, fcs: _, fds: _, cpl: _, halted: _, shadow: _, nmi_blocked: _, smm: _, wait_sipi: _,
            a20_masked: _, cr0: _, cr2: _, cr3: _, cr4: _, xcr0: _, pkru: _, efer: _, pdpte: _, dr: _, star: _, lstar: _, cstar: _,
            sfmask: _, kernel_gs_base: _, sysenter_cs: _, sysenter_esp: _, sysenter_eip: _, pat: _, tsc_aux: _,
            tsc_offset: _, pv_time: _, pv_wall: _, misc_enable: _, debugctl: _, lbr: _, mtrr_def: _, mtrr_fixed: _, mtrr_var: _, smbase: _, pending: _,
            // In `rflags`.
            eflags: _, cc_dst: _, cc_src: _, cc_aux: _, cc_op: _,
            // Derived from the rest, or scratch of an engine within an instruction.
            mode: _, pc_page: _, reserved: _, vtmp: _,
            // The model's; but for those of KVM's.
            features: _, model: _, apic_id: _, topology: _,
            // Need not survive.
            monitor: _, branch: _,
        } = self;
        #[rustfmt::skip]
        let saved = same!(
            self, gpr, rip, seg, ldt, tr, gdt, idt, fpr, mxcsr, fcw, fsw, ftw, fop, fip, fdp, fcs, fds, cpl, halted, shadow,
            nmi_blocked, smm, wait_sipi, a20_masked, cr0, cr2, cr3, cr4, xcr0, pkru, efer, pdpte, dr, star, lstar, cstar, sfmask,
            kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip, pat, tsc_aux, tsc_offset, pv_time, pv_wall, misc_enable, debugctl, lbr,
            mtrr_def, mtrr_fixed, mtrr_var, smbase, pending
        );
        Section::pack(&format!("cpu{n}"), VERSION, &saved)
    }

    /// Replaces the state, of the same model. On error it is unchanged. The engine must be told (`Vcpu::cpu_changed`).
    pub fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        let saved: Saved = s.unpack(VERSION)?;
        let rflags = saved.rflags;
        let mut new = self.clone();
        saved.put(&mut new);
        new.plausible(rflags).map_err(|what| s.bad(format!("{what} cannot be so on this CPU")))?;
        new.set_rflags(rflags);
        *self = new;
        Ok(())
    }

    /// What no sequence of instructions can lead to is refused: the rest of this crate relies on it.
    pub(crate) fn plausible(&self, rflags: u64) -> Result<(), &'static str> {
        let has = |w: u64, b: u64| w & b != 0;
        let that = |ok: bool, what| if ok { Ok(()) } else { Err(what) };
        let (pe, pg, lma) = (has(self.cr0, cr0::PE), has(self.cr0, cr0::PG), has(self.efer, efer::LMA));
        let vm = has(rflags, bit::VM);
        that(self.cr0 & !CR0_KNOWN == 0 && (!pg || pe) && (!has(self.cr0, cr0::NW) || has(self.cr0, cr0::CD)), "CR0")?;
        that(self.cr4 & !cr4_known(self) == 0, "CR4")?;
        that(self.efer & !efer_known(self) == 0 && lma == (has(self.efer, efer::LME) && pg), "EFER")?;
        that(!lma || has(self.cr4, cr4::PAE), "CR4.PAE")?;
        that(self.cr3 >> if lma { PHYS_BITS } else { 32 } == 0, "CR3")?;
        that(rflags & !flags::KNOWN == 0 && rflags & bit::ONE != 0 && (!vm || pe && !lma), "RFLAGS")?;
        that(self.cpl <= 3 && (pe || self.cpl == 0) && (!vm || self.cpl == 3), "CPL")?;
        let long_code = lma && self.seg(SegReg::Cs).attr & Segment::L != 0;
        that(if long_code { canonical(self, self.rip) } else { self.rip >> 32 == 0 }, "RIP")?;
        that(self.xcr0 & 1 == 1 && self.xcr0 & !xcr0_known(self) == 0, "XCR0")?;
        that(self.mxcsr >> 16 == 0, "MXCSR")?;
        that(matches!(self.shadow, shadow::NONE | shadow::STI | shadow::MOV_SS), "the interrupt shadow")?;
        that(self.smbase >> 32 == 0, "SMBASE")?;
        that(self.debugctl & !debug::debugctl::known(self) == 0, "DEBUGCTL")?;
        that(self.dr[6] >> 32 == 0 && self.dr[7] >> 32 == 0, "DR6 or DR7")?;
        let addresses = [self.lstar, self.cstar, self.kernel_gs_base, self.sysenter_esp, self.sysenter_eip];
        that(addresses.iter().all(|a| canonical(self, *a)), "an address in an MSR")
    }
}

impl Saved {
    fn put(self, cpu: &mut CpuState) {
        cpu.xmm = self.xmm.map(whole);
        cpu.ymmh = self.ymmh.map(whole);
        macro_rules! put {
            ($($field:ident),*) => { $(cpu.$field = self.$field;)* };
        }
        #[rustfmt::skip]
        put!(
            gpr, rip, seg, ldt, tr, gdt, idt, fpr, mxcsr, fcw, fsw, ftw, fop, fip, fdp, fcs, fds, cpl, halted, shadow,
            nmi_blocked, smm, wait_sipi, a20_masked, cr0, cr2, cr3, cr4, xcr0, pkru, efer, pdpte, dr, star, lstar, cstar, sfmask,
            kernel_gs_base, sysenter_cs, sysenter_esp, sysenter_eip, pat, tsc_aux, tsc_offset, pv_time, pv_wall, misc_enable, debugctl, lbr,
            mtrr_def, mtrr_fixed, mtrr_var, smbase, pending
        );
        cpu.features[Word::KvmEax as usize] |= self.kvm & features::implemented()[Word::KvmEax as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{Cc, CcKind};
    use crate::models;
    use vm_core::testing::Rng;

    fn cpu() -> CpuState {
        CpuState::new(&models::configure("qemu64", &[]).unwrap(), 0)
    }

    /// A CPU in 64-bit mode with something in every register.
    fn busy() -> CpuState {
        let mut c = cpu();
        let mut r = Rng(1);
        c.gpr = std::array::from_fn(|_| r.next_u64());
        c.xmm = std::array::from_fn(|_| u128::from(r.next_u64()) << 64 | u128::from(r.next_u64()));
        c.fpr = std::array::from_fn(|_| F80 { mant: r.next_u64(), sexp: r.next_u64() as u16 });
        (c.cr0, c.cr4, c.efer) = (0x8005_0033, cr4::PAE | cr4::OSFXSR, efer::LME | efer::LMA | efer::SCE);
        (c.cr2, c.cr3, c.rip, c.lstar) = (r.next_u64(), 0x1000, 0xffff_ffff_8100_0000, 0xffff_ffff_8200_0000);
        c.seg_mut(SegReg::Cs).attr |= Segment::L;
        (c.fsw, c.ftw, c.mxcsr, c.tsc_offset) = (0x3821, 0x5a, 0x9fc0, u64::MAX);
        c.set_rflags(bit::ONE | bit::IF | bit::CF | bit::OF);
        c
    }

    #[test]
    fn a_saved_cpu_is_the_same_after_loading() {
        let c = busy();
        let text = serde_json::to_string(&c.save(0)).unwrap();
        let mut d = cpu();
        d.load(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(d, c);
        assert_eq!(d.save(0), c.save(0));
    }

    #[test]
    fn lazy_flags_are_saved_as_what_they_mean() {
        let mut c = busy();
        // cmp of two equal 32-bit values.
        c.set_cc(Cc { op: CcKind::Sub.op(4), dst: 5, src: 5, aux: 0 });
        assert_eq!(c.rflags() & bit::ARITH, bit::ZF | bit::PF);
        let mut d = cpu();
        d.load(&c.save(0)).unwrap();
        assert_eq!((d.rflags(), d.cc_op), (c.rflags(), CcKind::Bits.op(1)));
    }

    #[test]
    fn impossible_states_are_refused_and_change_nothing() {
        let bad: [fn(&mut CpuState); 12] = [
            |c| c.cr0 &= !cr0::PE,
            |c| c.cr0 |= 1 << 40,
            |c| c.cr4 |= cr4::LA57,
            |c| c.cr4 &= !cr4::PAE,
            |c| c.efer &= !efer::LME,
            |c| c.cr3 = u64::MAX,
            |c| c.cpl = 4,
            |c| c.rip = 1 << 60,
            |c| c.shadow = 7,
            |c| c.mxcsr = u32::MAX,
            |c| c.eflags |= bit::VM,
            |c| c.lstar = 1 << 63,
        ];
        for (i, change) in bad.iter().enumerate() {
            let mut c = busy();
            change(&mut c);
            let mut d = busy();
            assert!(d.load(&c.save(0)).is_err(), "number {i}");
            assert_eq!(d, busy(), "number {i}");
        }
        let mut newer = busy().save(0);
        newer.version += 1;
        assert!(cpu().load(&newer).unwrap_err().to_string().contains("newer"));
    }
}
