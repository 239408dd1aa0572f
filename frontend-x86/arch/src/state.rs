//! The architectural state of one x86 CPU. Generated code reads and writes it by offset, so it is `#[repr(C)]` and holds
//! no host pointer. Everything KVM can report has a place here.

use crate::flags::{Cc, bit};
use crate::mode::Mode;
use crate::topology::Topology;
use serde::{Deserialize, Serialize};

/// An x87 register: 64-bit significand, then sign and exponent (SDM 1 "Double Extended-Precision"). MMX registers are the
/// significands.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct F80 {
    pub mant: u64,
    pub sexp: u16,
}

/// Index of a segment register, in the encoding's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SegReg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

impl SegReg {
    pub const ALL: [SegReg; 6] = [SegReg::Es, SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Fs, SegReg::Gs];

    pub fn from_index(i: u64) -> Option<SegReg> {
        Self::ALL.get(i as usize).copied()
    }
}

/// A segment register with its hidden part.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    pub base: u64,
    /// Byte-granular limit (G already applied).
    pub limit: u32,
    /// Access rights as in a descriptor's second dword, bits 8..=23 (type, S, DPL, P, AVL, L, D/B, G), plus `UNUSABLE`.
    pub attr: u32,
    pub selector: u16,
}

impl Segment {
    pub const TYPE: u32 = 0xf << 8;
    /// Type bit: accessed.
    pub const ACCESSED: u32 = 1 << 8;
    /// Type bit: data writable, code readable.
    pub const RW: u32 = 1 << 9;
    /// Type bit: data expands down, code is conforming.
    pub const DC: u32 = 1 << 10;
    pub const CODE: u32 = 1 << 11;
    pub const S: u32 = 1 << 12;
    pub const DPL_SHIFT: u32 = 13;
    pub const P: u32 = 1 << 15;
    pub const AVL: u32 = 1 << 20;
    pub const L: u32 = 1 << 21;
    pub const DB: u32 = 1 << 22;
    pub const G: u32 = 1 << 23;
    /// A null selector was loaded (KVM: `unusable`).
    pub const UNUSABLE: u32 = 1 << 31;

    pub const fn dpl(&self) -> u8 {
        (self.attr >> Self::DPL_SHIFT & 3) as u8
    }

    pub const fn usable(&self) -> bool {
        self.attr & Self::UNUSABLE == 0
    }

    /// Base 0, limit 4 GiB, present and usable, expand-up or code.
    pub const fn flat(&self) -> bool {
        let expand_down = self.attr & (Self::CODE | Self::DC) == Self::DC;
        self.base == 0 && self.limit == u32::MAX && self.usable() && self.attr & Self::P != 0 && !expand_down
    }
}

/// GDTR, IDTR.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescTable {
    pub base: u64,
    pub limit: u16,
}

/// Control register bits (SDM 3A "Control Registers").
pub mod cr0 {
    pub const PE: u64 = 1 << 0;
    pub const MP: u64 = 1 << 1;
    pub const EM: u64 = 1 << 2;
    pub const TS: u64 = 1 << 3;
    pub const ET: u64 = 1 << 4;
    pub const NE: u64 = 1 << 5;
    pub const WP: u64 = 1 << 16;
    pub const AM: u64 = 1 << 18;
    pub const NW: u64 = 1 << 29;
    pub const CD: u64 = 1 << 30;
    pub const PG: u64 = 1 << 31;
}
pub mod cr4 {
    pub const VME: u64 = 1 << 0;
    pub const PVI: u64 = 1 << 1;
    pub const TSD: u64 = 1 << 2;
    pub const DE: u64 = 1 << 3;
    pub const PSE: u64 = 1 << 4;
    pub const PAE: u64 = 1 << 5;
    pub const MCE: u64 = 1 << 6;
    pub const PGE: u64 = 1 << 7;
    pub const PCE: u64 = 1 << 8;
    pub const OSFXSR: u64 = 1 << 9;
    pub const OSXMMEXCPT: u64 = 1 << 10;
    pub const UMIP: u64 = 1 << 11;
    pub const LA57: u64 = 1 << 12;
    pub const FSGSBASE: u64 = 1 << 16;
    pub const PCIDE: u64 = 1 << 17;
    pub const OSXSAVE: u64 = 1 << 18;
    pub const SMEP: u64 = 1 << 20;
    pub const SMAP: u64 = 1 << 21;
    pub const PKE: u64 = 1 << 22;
}
pub mod efer {
    pub const SCE: u64 = 1 << 0;
    pub const LME: u64 = 1 << 8;
    pub const LMA: u64 = 1 << 10;
    pub const NXE: u64 = 1 << 11;
    pub const FFXSR: u64 = 1 << 14;
}

/// An exception or interrupt that was recognised but whose delivery is not complete (KVM_VCPU_EVENTS).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingEvent {
    pub valid: bool,
    pub vector: u8,
    pub has_error: bool,
    pub error: u32,
    pub payload: u64,
}

/// Events held for one instruction (SDM 3A "Masking Exceptions and Interrupts When Switching Stacks", STI).
pub mod shadow {
    pub const NONE: u8 = 0;
    pub const STI: u8 = 1;
    pub const MOV_SS: u8 = 2;
}

/// The whole state. Field order puts what generated code touches most first.
#[repr(C, align(16))]
#[derive(Clone, Debug, PartialEq)]
pub struct CpuState {
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8..R15, in the encoding's order.
    pub gpr: [u64; 16],
    pub rip: u64,
    /// RIP of the first byte of the page that runs; an engine's scratch (`ir::StateLayout::pc_page`).
    pub pc_page: u64,
    /// Lazy arithmetic flags: see `flags::Cc`.
    pub cc_dst: u64,
    pub cc_src: u64,
    pub cc_aux: u64,
    pub cc_op: u32,
    /// DF as 1 or -1 is not kept: string helpers read `eflags`.
    pub reserved: u32,
    /// RFLAGS without the six arithmetic flags (those bits are 0), bit 1 set.
    pub eflags: u64,
    /// ES CS SS DS FS GS.
    pub seg: [Segment; 6],
    pub ldt: Segment,
    pub tr: Segment,
    pub gdt: DescTable,
    pub idt: DescTable,
    /// Mode word, kept by `update_mode`.
    pub mode: u64,
    pub xmm: [u128; 16],
    /// Upper halves of YMM0..15.
    pub ymmh: [u128; 16],
    /// Operands of vector helpers that come from memory or are results on their way.
    pub vtmp: [u128; 2],
    /// Physical x87 registers R0..R7; ST(i) is R((TOP + i) mod 8).
    pub fpr: [F80; 8],
    pub mxcsr: u32,
    pub fcw: u16,
    /// Status word, TOP (bits 13:11) included.
    pub fsw: u16,
    /// Abridged tag word, bit i for Ri: 1 = not empty (as FXSAVE).
    pub ftw: u8,
    pub fop: u16,
    pub fip: u64,
    pub fdp: u64,
    pub fcs: u16,
    pub fds: u16,
    pub cpl: u8,
    pub halted: bool,
    /// See `shadow`.
    pub shadow: u8,
    pub nmi_blocked: bool,
    pub smm: bool,
    /// Waits for a start-up IPI (application processors after INIT).
    pub wait_sipi: bool,
    pub a20_masked: bool,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub xcr0: u64,
    /// Protection-key rights: for key i bit 2i denies access, bit 2i + 1 writes (SDM 3A §4.6.2).
    pub pkru: u32,
    pub efer: u64,
    pub pdpte: [u64; 4],
    pub dr: [u64; 8],
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub tsc_aux: u64,
    /// Guest TSC = `CpuIo::tsc()` + this.
    pub tsc_offset: u64,
    /// Where KVM's clock is told, and whether: MSR_KVM_SYSTEM_TIME_NEW (`pvclock`); and MSR_KVM_WALL_CLOCK_NEW.
    pub pv_time: u64,
    pub pv_wall: u64,
    pub misc_enable: u64,
    /// IA32_DEBUGCTL: `debug::debugctl`.
    pub debugctl: u64,
    /// Last branch, from and to; the last before an interrupt or exception, from and to (`debug::record`).
    pub lbr: [u64; 4],
    /// RIP of the instruction that runs, if it branches and branches are recorded (need not survive the instruction).
    pub branch: Option<u64>,
    pub mtrr_def: u64,
    pub mtrr_fixed: [u64; 11],
    /// Base and mask of variable MTRRs 0..8.
    pub mtrr_var: [u64; 16],
    pub smbase: u64,
    pub pending: PendingEvent,
    /// CPUID feature words after `-cpu` (`cpuid::Word` order); decide what exists.
    pub features: [u32; 16],
    /// Index into the CPU model table.
    pub model: u32,
    pub apic_id: u32,
    pub topology: Topology,
    /// What MONITOR watches, until MWAIT: linear address and what lay there. (Need not survive anything: MWAIT may end at once.)
    pub monitor: Option<(u64, u64)>,
}

impl CpuState {
    pub fn mode(&self) -> Mode {
        Mode(self.mode)
    }

    /// All RFLAGS bits, lazy ones computed.
    pub fn rflags(&self) -> u64 {
        self.eflags & !bit::ARITH | self.cc().eflags() | bit::ONE
    }

    /// Sets RFLAGS whole (no permission checks) and the mode bits that follow.
    pub fn set_rflags(&mut self, v: u64) {
        self.set_cc(Cc::bits(v));
        self.eflags = v & !bit::ARITH | bit::ONE;
        self.update_mode();
    }

    pub fn cc(&self) -> Cc {
        Cc { op: self.cc_op, dst: self.cc_dst, src: self.cc_src, aux: self.cc_aux }
    }

    pub fn set_cc(&mut self, cc: Cc) {
        (self.cc_op, self.cc_dst, self.cc_src, self.cc_aux) = (cc.op, cc.dst, cc.src, cc.aux);
    }

    pub fn seg(&self, s: SegReg) -> &Segment {
        &self.seg[s as usize]
    }

    pub fn seg_mut(&mut self, s: SegReg) -> &mut Segment {
        &mut self.seg[s as usize]
    }

    pub fn paging(&self) -> bool {
        self.cr0 & cr0::PG != 0
    }

    pub fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    pub fn v86(&self) -> bool {
        self.eflags & bit::VM != 0
    }

    pub fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    pub fn iopl(&self) -> u8 {
        (self.eflags >> 12 & 3) as u8
    }

    /// Recomputes `mode`. Called after any change of CR0, CR4, EFER, XCR0, CS, SS, DS, ES, CPL, MXCSR masks, DR7, DEBUGCTL or the
    /// TF, VM, AC, IOPL flags.
    pub fn update_mode(&mut self) {
        let has = |w: u64, b: u64| w & b != 0;
        let cs = self.seg(SegReg::Cs);
        let long = self.long_mode() && self.protected() && !self.v86();
        let code = match (long && cs.attr & Segment::L != 0, cs.attr & Segment::DB != 0) {
            (true, _) => 2u64,
            (false, true) => 1,
            (false, false) => 0,
        };
        let rw = |s: SegReg| self.seg(s).flat() && self.seg(s).attr & (Segment::CODE | Segment::RW) == Segment::RW;
        let flat = code == 2 || cs.flat() && cs.attr & Segment::RW != 0 && rw(SegReg::Ds) && rw(SegReg::Es) && rw(SegReg::Ss);
        let avx = has(self.cr4, cr4::OSXSAVE) && self.xcr0 & 6 == 6;
        let ac = has(self.eflags, bit::AC);
        // Without branches: done by each SYSCALL and SYSRET.
        let on = |on: bool, bit: u64| u64::from(on) * bit;
        self.mode = u64::from(self.cpl)
            | code << Mode::CODE_SHIFT
            | on(code != 2 && self.seg(SegReg::Ss).attr & Segment::DB != 0, Mode::STACK32)
            | on(flat, Mode::FLAT)
            | on(self.protected(), Mode::PE)
            | on(self.v86(), Mode::VM)
            | on(self.long_mode(), Mode::LMA)
            | on(has(self.cr0, cr0::TS), Mode::TS)
            | on(has(self.cr0, cr0::EM), Mode::EM)
            | on(has(self.cr0, cr0::MP), Mode::MP)
            | on(has(self.cr4, cr4::OSFXSR), Mode::OSFXSR)
            | on(avx, Mode::AVX)
            | on(has(self.eflags, bit::TF) || self.breakpoints() || self.records_branches(), Mode::STEP)
            | on(has(self.cr4, cr4::SMAP) && !ac && self.cpl < 3, Mode::SMAP)
            | on(has(self.cr0, cr0::AM) && ac && self.cpl == 3, Mode::ALIGN)
            | on(!self.protected() || self.cpl <= self.iopl() && !self.v86(), Mode::IO_OK)
            | on(self.mxcsr & !0x3f != 0x1f80, Mode::XM)
            | on(self.long_mode() && has(self.cr4, cr4::LA57), Mode::LA57);
    }
}
