//! Where the guest state lies: the slots of `CpuState` that generated code touches.

use arch_x86::flags::{CcKind, over};
use arch_x86::{CpuState, DescTable, F80, Mode, SegReg, Segment};
use ir::{SlotDesc, SlotId, StateLayout, X87Layout};
use std::mem::{offset_of, size_of};

macro_rules! slots {
    ($($name:ident = $text:expr, $size:expr, $off:expr;)*) => {
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[repr(u16)]
        enum Named { $($name,)* COUNT }
        $(pub const $name: SlotId = SlotId(NAMED + Named::$name as u16);)*
        const fn named() -> [SlotDesc; Named::COUNT as usize] {
            [$(SlotDesc { name: $text, offset: $off as u32, size: $size },)*]
        }
    };
}

const GPR: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
const XMM: [&str; 16] = [
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
    "xmm15",
];
const YMMH: [&str; 16] = [
    "ymmh0", "ymmh1", "ymmh2", "ymmh3", "ymmh4", "ymmh5", "ymmh6", "ymmh7", "ymmh8", "ymmh9", "ymmh10", "ymmh11", "ymmh12",
    "ymmh13", "ymmh14", "ymmh15",
];
const FPR: [&str; 8] = ["fpr0", "fpr1", "fpr2", "fpr3", "fpr4", "fpr5", "fpr6", "fpr7"];
const SEG_BASE: [&str; 6] = ["es_base", "cs_base", "ss_base", "ds_base", "fs_base", "gs_base"];
const SEG_SEL: [&str; 6] = ["es", "cs", "ss", "ds", "fs", "gs"];

const XMM0: u16 = 16;
const YMMH0: u16 = XMM0 + 16;
const FPR0: u16 = YMMH0 + 16;
const BASE0: u16 = FPR0 + 8;
const SEL0: u16 = BASE0 + 6;
const NAMED: u16 = SEL0 + 6;

slots! {
    RIP = "rip", 8, offset_of!(CpuState, rip);
    PC_PAGE = "pc_page", 8, offset_of!(CpuState, pc_page);
    CC_DST = "cc_dst", 8, offset_of!(CpuState, cc_dst);
    CC_SRC = "cc_src", 8, offset_of!(CpuState, cc_src);
    CC_AUX = "cc_aux", 8, offset_of!(CpuState, cc_aux);
    CC_OP = "cc_op", 4, offset_of!(CpuState, cc_op);
    EFLAGS = "eflags", 8, offset_of!(CpuState, eflags);
    VTMP0 = "vtmp0", 16, offset_of!(CpuState, vtmp);
    VTMP1 = "vtmp1", 16, offset_of!(CpuState, vtmp) + 16;
    MXCSR = "mxcsr", 4, offset_of!(CpuState, mxcsr);
    FCW = "fcw", 2, offset_of!(CpuState, fcw);
    FSW = "fsw", 2, offset_of!(CpuState, fsw);
    FTW = "ftw", 1, offset_of!(CpuState, ftw);
    CPL = "cpl", 1, offset_of!(CpuState, cpl);
    HALTED = "halted", 1, offset_of!(CpuState, halted);
    SHADOW = "shadow", 1, offset_of!(CpuState, shadow);
    CR0 = "cr0", 8, offset_of!(CpuState, cr0);
    CR2 = "cr2", 8, offset_of!(CpuState, cr2);
    CR4 = "cr4", 8, offset_of!(CpuState, cr4);
    CS_LIMIT = "cs_limit", 4, offset_of!(CpuState, seg) + size_of::<Segment>() * SegReg::Cs as usize + offset_of!(Segment, limit);
    LDT_SEL = "ldt", 2, offset_of!(CpuState, ldt) + offset_of!(Segment, selector);
    TR_SEL = "tr", 2, offset_of!(CpuState, tr) + offset_of!(Segment, selector);
    GDT_BASE = "gdt_base", 8, offset_of!(CpuState, gdt) + offset_of!(DescTable, base);
    GDT_LIMIT = "gdt_limit", 2, offset_of!(CpuState, gdt) + offset_of!(DescTable, limit);
    IDT_BASE = "idt_base", 8, offset_of!(CpuState, idt) + offset_of!(DescTable, base);
    IDT_LIMIT = "idt_limit", 2, offset_of!(CpuState, idt) + offset_of!(DescTable, limit);
}

/// General register in the encoding's order, 0..=15 (8 bytes).
pub const fn gpr(i: u32) -> SlotId {
    SlotId((i & 15) as u16)
}

/// XMM0..=15 (16 bytes).
pub const fn xmm(i: u32) -> SlotId {
    SlotId(XMM0 + (i & 15) as u16)
}

/// Upper half of YMM0..=15 (16 bytes).
pub const fn ymmh(i: u32) -> SlotId {
    SlotId(YMMH0 + (i & 15) as u16)
}

/// Physical x87 register R0..=7 (16 bytes: significand at 0, sign and exponent at 8); MMi is the significand of Ri.
pub const fn fpr(i: u32) -> SlotId {
    SlotId(FPR0 + (i & 7) as u16)
}

/// Base of a segment register (8 bytes).
pub const fn seg_base(s: SegReg) -> SlotId {
    SlotId(BASE0 + s as u16)
}

/// Selector in a segment register (2 bytes).
pub const fn seg_sel(s: SegReg) -> SlotId {
    SlotId(SEL0 + s as u16)
}

pub const RAX: SlotId = gpr(0);
pub const RCX: SlotId = gpr(1);
pub const RDX: SlotId = gpr(2);
pub const RBX: SlotId = gpr(3);
pub const RSP: SlotId = gpr(4);
pub const RBP: SlotId = gpr(5);
pub const RSI: SlotId = gpr(6);
pub const RDI: SlotId = gpr(7);
pub const R11: SlotId = gpr(11);

fn x87() -> X87Layout {
    let selectors = offset_of!(CpuState, seg) + offset_of!(Segment, selector);
    X87Layout {
        helper: crate::helpers::x87::X87,
        wait: crate::helpers::x87::X87_WAIT,
        status: crate::helpers::x87::FNSTSW,
        start: offset_of!(CpuState, fpr) as u32,
        end: (offset_of!(CpuState, fds) + size_of::<u16>()) as u32,
        fcw: offset_of!(CpuState, fcw) as u32,
        fsw: offset_of!(CpuState, fsw) as u32,
        fip: offset_of!(CpuState, fip) as u32,
        fdp: offset_of!(CpuState, fdp) as u32,
        fcs: offset_of!(CpuState, fcs) as u32,
        fds: offset_of!(CpuState, fds) as u32,
        selectors: selectors as u32,
        selector_step: size_of::<Segment>() as u32,
        cs: SegReg::Cs as u32,
    }
}

/// What no flag is computed from while `cc_op` holds this.
fn unused(cc_op: u32) -> &'static [SlotId] {
    // Flags given apart are no matter.
    match CcKind::of(cc_op & (over::CF - 1)).map(|(kind, _)| kind) {
        Some(CcKind::Bits) => &[CC_DST, CC_AUX],
        Some(CcKind::Logic) => &[CC_SRC, CC_AUX],
        Some(CcKind::Adc | CcKind::Sbb) | None => &[],
        Some(_) => &[CC_AUX],
    }
}

/// The slots of `CpuState`.
pub fn layout() -> StateLayout {
    let mut slots = Vec::with_capacity(usize::from(NAMED) + Named::COUNT as usize);
    let mut array = |names: &[&'static str], at: usize, step: usize, size: u32| {
        slots.extend(names.iter().enumerate().map(|(i, name)| SlotDesc { name, offset: (at + i * step) as u32, size }));
    };
    let seg = offset_of!(CpuState, seg);
    array(&GPR, offset_of!(CpuState, gpr), 8, 8);
    array(&XMM, offset_of!(CpuState, xmm), 16, 16);
    array(&YMMH, offset_of!(CpuState, ymmh), 16, 16);
    array(&FPR, offset_of!(CpuState, fpr), size_of::<F80>(), 16);
    array(&SEG_BASE, seg + offset_of!(Segment, base), size_of::<Segment>(), 8);
    array(&SEG_SEL, seg + offset_of!(Segment, selector), size_of::<Segment>(), 2);
    slots.extend(named());
    StateLayout {
        slots,
        size: size_of::<CpuState>() as u32,
        pc: RIP,
        pc_page: PC_PAGE,
        guessed: CC_OP,
        unused,
        fp_flags: MXCSR,
        run_fp: crate::fp::run,
        run_tri: crate::tri::run,
        x87: Some(x87()),
        pc_mask: |mode| Mode(mode).pc_mask(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arch_x86::flags::Cc;

    #[test]
    fn what_is_unused_changes_no_flag() {
        for op in (0..64).flat_map(|op| [op, op | over::HAS_CF | over::CF]) {
            let unused = unused(op);
            let all = Cc { op, dst: 0x8123_4567_89ab_cdef, src: 0x7654_3210_fedc_ba99, aux: 1 };
            let other = |slot, v: u64| if unused.contains(&slot) { v ^ 0xffff_ffff_ffff_ffff } else { v };
            let changed = Cc { op, dst: other(CC_DST, all.dst), src: other(CC_SRC, all.src), aux: other(CC_AUX, all.aux) };
            assert_eq!(changed.eflags(), all.eflags(), "{op:#x}");
        }
        assert_eq!(unused(CcKind::Logic.op(8)), [CC_SRC, CC_AUX]);
    }

    #[test]
    fn slots_are_where_the_constants_say_and_do_not_overlap() {
        let l = layout();
        for (id, name) in [
            (RSP, "rsp"),
            (xmm(15), "xmm15"),
            (fpr(7), "fpr7"),
            (seg_base(SegReg::Gs), "gs_base"),
            (RIP, "rip"),
            (IDT_LIMIT, "idt_limit"),
        ] {
            assert_eq!(l.slot(id).name, name);
        }
        let mut s = l.slots.clone();
        s.sort_by_key(|s| s.offset);
        assert!(s.iter().all(|s| s.offset % s.size == 0 && s.offset + s.size <= l.size));
        assert!(s.windows(2).all(|w| w[0].offset + w[0].size <= w[1].offset));
    }
}
