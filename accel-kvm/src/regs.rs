//! `CpuState` to and from KVM's registers (api.rst: KVM_GET_REGS, KVM_GET_SREGS, KVM_GET_DEBUGREGS, KVM_GET_VCPU_EVENTS).

use arch_x86::CpuState;
use arch_x86::flags::bit;
use arch_x86::state::{DescTable, PendingEvent, SegReg, Segment, cr0, shadow};
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI,
    kvm_debugregs, kvm_dtable, kvm_mp_state, kvm_regs, kvm_segment, kvm_sregs, kvm_vcpu_events,
};

/// Vectors below are the processor's own.
const EXTERNAL: u8 = 32;
const NMI: u8 = 2;

pub fn regs(cpu: &CpuState) -> kvm_regs {
    let g = &cpu.gpr;
    kvm_regs {
        rax: g[0],
        rcx: g[1],
        rdx: g[2],
        rbx: g[3],
        rsp: g[4],
        rbp: g[5],
        rsi: g[6],
        rdi: g[7],
        r8: g[8],
        r9: g[9],
        r10: g[10],
        r11: g[11],
        r12: g[12],
        r13: g[13],
        r14: g[14],
        r15: g[15],
        rip: cpu.rip,
        rflags: cpu.rflags(),
    }
}

/// The mode must be updated after it, once the rest is there.
pub fn set_regs(cpu: &mut CpuState, r: &kvm_regs) {
    cpu.gpr = [r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15];
    cpu.rip = r.rip;
    cpu.set_rflags(r.rflags);
}

fn segment(s: &Segment) -> kvm_segment {
    let bit = |b: u32| u8::from(s.attr & b != 0);
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: (s.attr >> 8 & 15) as u8,
        present: bit(Segment::P),
        dpl: s.dpl(),
        db: bit(Segment::DB),
        s: bit(Segment::S),
        l: bit(Segment::L),
        g: bit(Segment::G),
        avl: bit(Segment::AVL),
        unusable: u8::from(!s.usable()),
        padding: 0,
    }
}

fn from_segment(k: &kvm_segment) -> Segment {
    let on = |v: u8, b: u32| if v != 0 { b } else { 0 };
    let attr = if k.unusable != 0 {
        Segment::UNUSABLE
    } else {
        u32::from(k.type_ & 15) << 8
            | u32::from(k.dpl & 3) << Segment::DPL_SHIFT
            | on(k.present, Segment::P)
            | on(k.db, Segment::DB)
            | on(k.s, Segment::S)
            | on(k.l, Segment::L)
            | on(k.g, Segment::G)
            | on(k.avl, Segment::AVL)
    };
    Segment { base: k.base, limit: k.limit, attr, selector: k.selector }
}

/// `cr8`, `apic_base`: the local APIC's.
pub fn sregs(cpu: &CpuState, cr8: u8, apic_base: u64) -> kvm_sregs {
    let table = |t: &DescTable| kvm_dtable { base: t.base, limit: t.limit, padding: [0; 3] };
    let seg = |s| segment(cpu.seg(s));
    // KVM takes the privilege level from SS.
    let ss = kvm_segment { dpl: cpu.cpl, ..seg(SegReg::Ss) };
    kvm_sregs {
        cs: seg(SegReg::Cs),
        ds: seg(SegReg::Ds),
        es: seg(SegReg::Es),
        fs: seg(SegReg::Fs),
        gs: seg(SegReg::Gs),
        ss,
        tr: segment(&cpu.tr),
        ldt: segment(&cpu.ldt),
        gdt: table(&cpu.gdt),
        idt: table(&cpu.idt),
        cr0: cpu.cr0,
        cr2: cpu.cr2,
        cr3: cpu.cr3,
        cr4: cpu.cr4,
        cr8: cr8.into(),
        efer: cpu.efer,
        apic_base,
        interrupt_bitmap: [0; 4],
    }
}

/// After `set_regs`.
pub fn set_sregs(cpu: &mut CpuState, k: &kvm_sregs) {
    for (s, from) in [
        (SegReg::Cs, &k.cs),
        (SegReg::Ds, &k.ds),
        (SegReg::Es, &k.es),
        (SegReg::Fs, &k.fs),
        (SegReg::Gs, &k.gs),
        (SegReg::Ss, &k.ss),
    ] {
        *cpu.seg_mut(s) = from_segment(from);
    }
    (cpu.tr, cpu.ldt) = (from_segment(&k.tr), from_segment(&k.ldt));
    cpu.gdt = DescTable { base: k.gdt.base, limit: k.gdt.limit };
    cpu.idt = DescTable { base: k.idt.base, limit: k.idt.limit };
    (cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4, cpu.efer) = (k.cr0, k.cr2, k.cr3, k.cr4, k.efer);
    cpu.cpl = match (k.cr0 & cr0::PE != 0, cpu.eflags & bit::VM != 0) {
        (false, _) => 0,
        (true, true) => 3,
        (true, false) => k.ss.dpl & 3,
    };
}

pub fn debug_registers(cpu: &CpuState) -> kvm_debugregs {
    let d = &cpu.dr;
    kvm_debugregs { db: [d[0], d[1], d[2], d[3]], dr6: d[6], dr7: d[7], ..Default::default() }
}

pub fn set_debug_registers(cpu: &mut CpuState, k: &kvm_debugregs) {
    cpu.dr[..4].copy_from_slice(&k.db);
    (cpu.dr[6], cpu.dr[7]) = (k.dr6, k.dr7);
}

pub fn events(cpu: &CpuState) -> kvm_vcpu_events {
    let mut e = kvm_vcpu_events { flags: KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING, ..Default::default() };
    e.nmi.masked = cpu.nmi_blocked.into();
    e.interrupt.shadow = match cpu.shadow {
        shadow::STI => KVM_X86_SHADOW_INT_STI as u8,
        shadow::MOV_SS => KVM_X86_SHADOW_INT_MOV_SS as u8,
        _ => 0,
    };
    let p = &cpu.pending;
    if p.valid && p.vector == NMI {
        e.nmi.injected = 1;
    } else if p.valid && p.vector >= EXTERNAL {
        (e.interrupt.injected, e.interrupt.nr) = (1, p.vector);
    } else if p.valid {
        (e.exception.injected, e.exception.nr) = (1, p.vector);
        (e.exception.has_error_code, e.exception.error_code) = (p.has_error.into(), p.error);
    }
    e
}

/// Adds an external interrupt to what a vCPU that can take one has. What others may change meanwhile (an NMI that waits) stays.
pub fn begin_interrupt(e: &mut kvm_vcpu_events, vector: u8) {
    e.flags = 0;
    (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft) = (1, vector, 0);
}

/// What was recognised and not yet delivered; an NMI that waits for the guest is the caller's. `dr6`, `cr2`: what came with it
/// is there already.
pub fn set_events(cpu: &mut CpuState, e: &kvm_vcpu_events) {
    cpu.nmi_blocked = e.nmi.masked != 0;
    cpu.shadow = match u32::from(e.interrupt.shadow) {
        s if s & KVM_X86_SHADOW_INT_MOV_SS != 0 => shadow::MOV_SS,
        s if s & KVM_X86_SHADOW_INT_STI != 0 => shadow::STI,
        _ => shadow::NONE,
    };
    let x = &e.exception;
    cpu.pending = if x.injected != 0 || x.pending != 0 {
        let payload = match x.nr {
            14 => cpu.cr2,
            _ => 0,
        };
        let (has_error, error) = (x.has_error_code != 0, x.error_code);
        PendingEvent { valid: true, vector: x.nr, has_error, error, payload }
    } else if e.interrupt.injected != 0 {
        PendingEvent { valid: true, vector: e.interrupt.nr, ..Default::default() }
    } else if e.nmi.injected != 0 {
        PendingEvent { valid: true, vector: NMI, ..Default::default() }
    } else {
        PendingEvent::default()
    };
}

/// Whether it runs, where KVM has the local APIC.
pub fn mp_state(cpu: &CpuState) -> kvm_mp_state {
    let mp_state = match (cpu.wait_sipi, cpu.halted) {
        (true, _) => KVM_MP_STATE_INIT_RECEIVED,
        (_, true) => KVM_MP_STATE_HALTED,
        _ => KVM_MP_STATE_RUNNABLE,
    };
    kvm_mp_state { mp_state }
}

pub fn set_mp_state(cpu: &mut CpuState, s: kvm_mp_state) {
    cpu.wait_sipi = matches!(s.mp_state, KVM_MP_STATE_INIT_RECEIVED | KVM_MP_STATE_UNINITIALIZED);
    cpu.halted = s.mp_state == KVM_MP_STATE_HALTED;
}
