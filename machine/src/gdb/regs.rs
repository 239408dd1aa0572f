//! Registers as gdb sees them: their values, and how they are changed. `layout` has their order.
//!
//! `rip` is a linear address: CS base and instruction pointer. So breakpoints, `x/i $pc` and stepping work in real mode too.

use arch_x86::state::F80;
use arch_x86::{CpuState, SegReg, Segment};
use vm_core::GuestCpu;

/// A register. Names are gdb's where gdb knows the register ("Standard Target Features", "i386 Features").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Id {
    Gpr(u8),
    Pc,
    Flags,
    Selector(SegReg),
    /// Relative to TOP.
    St(u8),
    /// FCTRL FSTAT FTAG FISEG FIOFF FOSEG FOOFF FOP.
    Fpu(u8),
    Xmm(u8),
    Mxcsr,
    YmmHigh(u8),
    Base(SegReg),
    Limit(SegReg),
    Attr(SegReg),
    KernelGs,
    Cr(u8),
    Efer,
    Xcr0,
    Dr(u8),
    /// GDTR (0) and IDTR (1).
    TableBase(u8),
    TableLimit(u8),
    /// LDTR (0) and TR (1): selector, base, limit, access.
    System(u8, u8),
    Mm(u8),
    /// Offset in the code segment.
    Ip,
    Cpl,
}

fn st(cpu: &CpuState, i: u8) -> usize {
    usize::from((cpu.fsw >> 11) as u8 + i) & 7
}

/// x87 tag word from the abridged one (SDM 1 "x87 FPU Tag Word").
fn tags(cpu: &CpuState) -> u16 {
    let tag = |r: &F80| match r.sexp & 0x7fff {
        0 if r.mant == 0 => 1,
        0 | 0x7fff => 2,
        _ if r.mant >> 63 == 0 => 2,
        _ => 0,
    };
    let of = |i: usize| if cpu.ftw >> i & 1 == 0 { 3 } else { tag(&cpu.fpr[i]) };
    (0..8).fold(0, |w, i| w | of(i) << (2 * i))
}

fn fpu(cpu: &CpuState, i: u8) -> u64 {
    match i {
        0 => cpu.fcw.into(),
        1 => cpu.fsw.into(),
        2 => tags(cpu).into(),
        3 => cpu.fcs.into(),
        4 => cpu.fip & 0xffff_ffff,
        5 => cpu.fds.into(),
        6 => cpu.fdp & 0xffff_ffff,
        _ => cpu.fop.into(),
    }
}

/// Value of a register, zero-extended.
pub fn read(cpu: &CpuState, cr8: u8, id: Id) -> u128 {
    let seg = |s: SegReg| cpu.seg(s);
    let v: u64 = match id {
        Id::Gpr(i) => cpu.gpr[usize::from(i & 15)],
        Id::Pc => cpu.linear(cpu.rip).0,
        Id::Flags => cpu.rflags(),
        Id::Selector(s) => seg(s).selector.into(),
        Id::St(i) => {
            let r = &cpu.fpr[st(cpu, i)];
            return u128::from(r.mant) | u128::from(r.sexp) << 64;
        }
        Id::Fpu(i) => fpu(cpu, i),
        Id::Xmm(i) => return cpu.xmm[usize::from(i & 15)],
        Id::Mxcsr => cpu.mxcsr.into(),
        Id::YmmHigh(i) => return cpu.ymmh[usize::from(i & 15)],
        Id::Base(s) => seg(s).base,
        Id::Limit(s) => seg(s).limit.into(),
        Id::Attr(s) => seg(s).attr.into(),
        Id::KernelGs => cpu.kernel_gs_base,
        Id::Cr(0) => cpu.cr0,
        Id::Cr(2) => cpu.cr2,
        Id::Cr(3) => cpu.cr3,
        Id::Cr(4) => cpu.cr4,
        Id::Cr(_) => cr8.into(),
        Id::Efer => cpu.efer,
        Id::Xcr0 => cpu.xcr0,
        Id::Dr(i) => cpu.dr[usize::from(i & 7)],
        Id::TableBase(i) => table(cpu, i).base,
        Id::TableLimit(i) => table(cpu, i).limit.into(),
        Id::System(i, part) => {
            let s = if i == 0 { &cpu.ldt } else { &cpu.tr };
            match part {
                0 => s.selector.into(),
                1 => s.base,
                2 => s.limit.into(),
                _ => s.attr.into(),
            }
        }
        Id::Mm(i) => cpu.fpr[usize::from(i & 7)].mant,
        Id::Ip => cpu.rip,
        Id::Cpl => cpu.cpl.into(),
    };
    v.into()
}

fn table(cpu: &CpuState, i: u8) -> &arch_x86::state::DescTable {
    if i == 0 { &cpu.gdt } else { &cpu.idt }
}

/// The instruction pointer at which the next instruction would lie at a linear address.
fn offset_of(cpu: &CpuState, linear: u64) -> Option<u64> {
    let ip = if GuestCpu::code_base(cpu) == 0 { linear } else { linear.wrapping_sub(cpu.code_base()) & 0xffff_ffff };
    (ip & !cpu.mode().pc_mask() == 0).then_some(ip)
}

/// Changes a register. `None`: it cannot have this value. What the CPU as a whole cannot be is not looked at.
fn put(cpu: &mut CpuState, id: Id, value: u128) -> Option<()> {
    let v = value as u64;
    match id {
        Id::Gpr(i) => cpu.gpr[usize::from(i & 15)] = v,
        Id::Pc => cpu.rip = offset_of(cpu, v)?,
        Id::Flags => cpu.set_rflags(v),
        Id::Selector(s) => {
            // SDM 3A "Segment Registers": in real and virtual-8086 mode the base follows; else this is the visible part.
            let real = !cpu.protected() || cpu.v86();
            let seg = cpu.seg_mut(s);
            let changed = seg.selector != v as u16;
            seg.selector = v as u16;
            if real && changed {
                seg.base = u64::from(seg.selector) << 4;
            }
        }
        Id::St(i) => {
            let at = st(cpu, i);
            cpu.fpr[at] = F80 { mant: v, sexp: (value >> 64) as u16 };
        }
        Id::Fpu(i) => match i {
            0 => cpu.fcw = v as u16,
            1 => cpu.fsw = v as u16,
            2 => cpu.ftw = (0..8).fold(0, |w, i| w | u8::from(v >> (2 * i) & 3 != 3) << i),
            3 => cpu.fcs = v as u16,
            4 => cpu.fip = cpu.fip >> 32 << 32 | v & 0xffff_ffff,
            5 => cpu.fds = v as u16,
            6 => cpu.fdp = cpu.fdp >> 32 << 32 | v & 0xffff_ffff,
            _ => cpu.fop = v as u16 & 0x7ff,
        },
        Id::Xmm(i) => cpu.xmm[usize::from(i & 15)] = value,
        Id::Mxcsr => cpu.mxcsr = v as u32,
        Id::YmmHigh(i) => cpu.ymmh[usize::from(i & 15)] = value,
        Id::Base(s) => cpu.seg_mut(s).base = v,
        Id::Limit(s) => cpu.seg_mut(s).limit = v as u32,
        Id::Attr(s) => cpu.seg_mut(s).attr = v as u32 & (0x00ff_ff00 | Segment::UNUSABLE),
        Id::KernelGs => cpu.kernel_gs_base = v,
        Id::Cr(0) => cpu.cr0 = v,
        Id::Cr(2) => cpu.cr2 = v,
        Id::Cr(3) => cpu.cr3 = v,
        Id::Cr(4) => cpu.cr4 = v,
        // Of the local APIC.
        Id::Cr(_) => {}
        Id::Efer => cpu.efer = v,
        Id::Xcr0 => cpu.xcr0 = v,
        Id::Dr(i) => cpu.dr[usize::from(i & 7)] = v,
        Id::TableBase(i) => table_mut(cpu, i).base = v,
        Id::TableLimit(i) => table_mut(cpu, i).limit = v as u16,
        Id::System(i, part) => {
            let s = if i == 0 { &mut cpu.ldt } else { &mut cpu.tr };
            match part {
                0 => s.selector = v as u16,
                1 => s.base = v,
                2 => s.limit = v as u32,
                _ => s.attr = v as u32 & (0x00ff_ff00 | Segment::UNUSABLE),
            }
        }
        Id::Mm(i) => cpu.fpr[usize::from(i & 7)].mant = v,
        Id::Ip => cpu.rip = v,
        Id::Cpl => cpu.cpl = v as u8,
    }
    Some(())
}

fn table_mut(cpu: &mut CpuState, i: u8) -> &mut arch_x86::state::DescTable {
    if i == 0 { &mut cpu.gdt } else { &mut cpu.idt }
}

/// Changes registers, all or none. `false`: no CPU of this model can be so. The engine must be told (`Vcpu::cpu_changed`).
pub fn write(cpu: &mut CpuState, changes: &[(Id, u128)]) -> bool {
    let mut new = cpu.clone();
    // What decides about the meaning of others goes first.
    let (pc, others): (Vec<_>, Vec<_>) = changes.iter().copied().partition(|(id, _)| matches!(id, Id::Pc | Id::Ip));
    let changed = |c: &CpuState, id, v| read(c, 0, id) != v;
    for (id, v) in others {
        if changed(&new, id, v) && put(&mut new, id, v).is_none() {
            return false;
        }
    }
    new.update_mode();
    for (id, v) in pc {
        if changed(&new, id, v) && put(&mut new, id, v).is_none() {
            return false;
        }
    }
    // As saved state is looked at that comes from outside.
    let saved = new.save(0);
    cpu.load(&saved).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gdb::layout::Arch;
    use arch_x86::models;

    fn cpu() -> CpuState {
        CpuState::new(&models::configure("max", &[]).unwrap(), 0)
    }

    #[test]
    fn the_program_counter_is_linear() {
        let mut c = cpu();
        assert_eq!(read(&c, 0, Id::Pc), 0xffff_fff0);
        assert!(write(&mut c, &[(Id::Selector(SegReg::Cs), 0x1000), (Id::Pc, 0x10005)]));
        assert_eq!((c.rip, c.seg(SegReg::Cs).base, read(&c, 0, Id::Pc)), (5, 0x10000, 0x10005));
        assert!(!write(&mut c, &[(Id::Pc, 0x7c00)]), "not in the segment");
        assert_eq!(c.rip, 5);
    }

    #[test]
    fn values_stay_and_impossible_ones_are_refused() {
        let all = Arch::X64.regs().to_vec();
        let mut c = cpu();
        let before = c.clone();
        let same: Vec<_> = all.iter().map(|r| (r.id, read(&c, 0, r.id))).collect();
        assert!(write(&mut c, &same));
        assert_eq!(c, before);
        assert!(!write(&mut c, &[(Id::Cr(0), 1 << 31)]), "paging without protection");
        assert!(!write(&mut c, &[(Id::Efer, 1 << 10)]), "long mode that is active and not enabled");
        assert_eq!(c, before);
        assert!(write(&mut c, &[(Id::St(0), 0x3fff_8000_0000_0000_0000), (Id::Fpu(2), 0x3fff)]));
        assert_eq!((c.fpr[0].sexp, c.ftw, read(&c, 0, Id::Fpu(2))), (0x3fff, 0x80, 0x7fff));
    }
}
