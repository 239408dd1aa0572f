//! Copies between `CpuState` and the byte image that the reference interpreter works on, slot by slot.

use arch_x86::{CpuState, F80, SegReg};
use frontend_x86::layout::*;
use ir::{SlotId, StateLayout};

/// A field of the state as a number.
trait Field {
    fn get(&self) -> u128;
    fn set(&mut self, v: u128);
}

macro_rules! integers {
    ($($t:ty)*) => {
        $(impl Field for $t {
            fn get(&self) -> u128 {
                (*self).into()
            }
            fn set(&mut self, v: u128) {
                *self = v as $t;
            }
        })*
    };
}
integers! { u8 u16 u32 u64 u128 }

impl Field for bool {
    fn get(&self) -> u128 {
        u128::from(*self)
    }
    fn set(&mut self, v: u128) {
        *self = v != 0;
    }
}

impl Field for F80 {
    fn get(&self) -> u128 {
        u128::from(self.sexp) << 64 | u128::from(self.mant)
    }
    fn set(&mut self, v: u128) {
        (self.mant, self.sexp) = (v as u64, (v >> 64) as u16);
    }
}

/// Every slot with its field.
fn visit(cpu: &mut CpuState, mut f: impl FnMut(SlotId, &mut dyn Field)) {
    for i in 0..16 {
        let n = i as usize;
        f(gpr(i), &mut cpu.gpr[n]);
        f(xmm(i), &mut cpu.xmm[n]);
        f(ymmh(i), &mut cpu.ymmh[n]);
    }
    for i in 0..8 {
        f(fpr(i), &mut cpu.fpr[i as usize]);
    }
    for s in SegReg::ALL {
        f(seg_base(s), &mut cpu.seg_mut(s).base);
        f(seg_sel(s), &mut cpu.seg_mut(s).selector);
    }
    f(CS_LIMIT, &mut cpu.seg_mut(SegReg::Cs).limit);
    let [v0, v1] = &mut cpu.vtmp;
    let fields: [(SlotId, &mut dyn Field); 25] = [
        (RIP, &mut cpu.rip),
        (PC_PAGE, &mut cpu.pc_page),
        (CC_DST, &mut cpu.cc_dst),
        (CC_SRC, &mut cpu.cc_src),
        (CC_AUX, &mut cpu.cc_aux),
        (CC_OP, &mut cpu.cc_op),
        (EFLAGS, &mut cpu.eflags),
        (VTMP0, v0),
        (VTMP1, v1),
        (MXCSR, &mut cpu.mxcsr),
        (FCW, &mut cpu.fcw),
        (FSW, &mut cpu.fsw),
        (FTW, &mut cpu.ftw),
        (CPL, &mut cpu.cpl),
        (HALTED, &mut cpu.halted),
        (SHADOW, &mut cpu.shadow),
        (CR0, &mut cpu.cr0),
        (CR2, &mut cpu.cr2),
        (CR4, &mut cpu.cr4),
        (LDT_SEL, &mut cpu.ldt.selector),
        (TR_SEL, &mut cpu.tr.selector),
        (GDT_BASE, &mut cpu.gdt.base),
        (GDT_LIMIT, &mut cpu.gdt.limit),
        (IDT_BASE, &mut cpu.idt.base),
        (IDT_LIMIT, &mut cpu.idt.limit),
    ];
    for (id, field) in fields {
        f(id, field);
    }
}

/// Writes all slots of `cpu` into `image`.
pub fn store(cpu: &mut CpuState, layout: &StateLayout, image: &mut [u8]) {
    visit(cpu, |id, field| {
        let s = layout.slot(id);
        let n = s.size as usize;
        image[s.offset as usize..][..n].copy_from_slice(&field.get().to_le_bytes()[..n]);
    });
}

/// Reads all slots of `cpu` from `image`.
pub fn load(cpu: &mut CpuState, layout: &StateLayout, image: &[u8]) {
    visit(cpu, |id, field| {
        let s = layout.slot(id);
        let mut b = [0; 16];
        b[..s.size as usize].copy_from_slice(&image[s.offset as usize..][..s.size as usize]);
        field.set(u128::from_le_bytes(b));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_slot_is_visited() {
        let mut seen = BTreeSet::new();
        let mut g = crate::x86::Guest::new(64).unwrap();
        visit(&mut g.cpu, |id, _| assert!(seen.insert(id)));
        assert_eq!(seen.len(), layout().slots.len());
    }
}
