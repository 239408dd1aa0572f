//! State after power-on, RESET and INIT (SDM 3A table 9-1 "IA-32 and Intel 64 Processor States").

use crate::cpuid::CpuConfigured;
use crate::flags::bit;
use crate::state::{CpuState, DescTable, F80, PendingEvent, SegReg, Segment, cr0};

/// PAT after power-on: WB, WT, UC-, UC, twice (SDM 3A §11.12.4).
pub const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// IA32_MISC_ENABLE: fast strings (SDM 4, MSR 1A0h).
const MISC_ENABLE_RESET: u64 = 1;
const DATA: u32 = Segment::P | Segment::S | Segment::RW | Segment::ACCESSED;

fn real_segment(selector: u16, base: u64, attr: u32) -> Segment {
    Segment { base, limit: 0xffff, attr, selector }
}

impl CpuState {
    /// A CPU of the given model as it is after power-on. Application processors (`apic_id` not 0) wait for a SIPI.
    pub fn new(config: &CpuConfigured, apic_id: u32) -> CpuState {
        let mut cpu = CpuState {
            gpr: [0; 16],
            rip: 0,
            pc_page: 0,
            cc_dst: 0,
            cc_src: 0,
            cc_aux: 0,
            cc_op: 0,
            reserved: 0,
            eflags: bit::ONE,
            seg: [Segment::default(); 6],
            ldt: Segment::default(),
            tr: Segment::default(),
            gdt: DescTable::default(),
            idt: DescTable::default(),
            mode: 0,
            xmm: [0; 16],
            ymmh: [0; 16],
            vtmp: [0; 2],
            fpr: [F80::default(); 8],
            mxcsr: 0,
            fcw: 0,
            fsw: 0,
            ftw: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            fcs: 0,
            fds: 0,
            cpl: 0,
            halted: false,
            shadow: 0,
            nmi_blocked: false,
            smm: false,
            wait_sipi: false,
            a20_masked: false,
            cr0: 0,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 1,
            pkru: 0,
            efer: 0,
            pdpte: [0; 4],
            dr: [0; 8],
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: PAT_RESET,
            tsc_aux: 0,
            tsc_offset: 0,
            pv_time: 0,
            pv_wall: 0,
            misc_enable: MISC_ENABLE_RESET,
            debugctl: 0,
            lbr: [0; 4],
            branch: None,
            mtrr_def: 0,
            mtrr_fixed: [0; 11],
            mtrr_var: [0; 16],
            smbase: 0x3_0000,
            pending: PendingEvent::default(),
            features: config.features,
            model: config.model,
            apic_id,
            topology: config.topology,
            monitor: None,
        };
        cpu.reset();
        cpu
    }

    /// Power-on or RESET: everything but the model and the APIC ID.
    pub fn reset(&mut self) {
        self.init();
        self.cr0 = cr0::CD | cr0::NW | cr0::ET;
        self.xmm = [0; 16];
        self.ymmh = [0; 16];
        self.fpr = [F80::default(); 8];
        (self.mxcsr, self.fcw, self.fsw, self.ftw) = (0x1f80, 0x40, 0, 0xff);
        (self.fop, self.fip, self.fdp, self.fcs, self.fds) = (0, 0, 0, 0, 0);
        (self.xcr0, self.pkru, self.tsc_aux, self.tsc_offset) = (1, 0, 0, 0);
        (self.pv_time, self.pv_wall) = (0, 0);
        (self.star, self.lstar, self.cstar, self.sfmask, self.kernel_gs_base) = (0, 0, 0, 0, 0);
        (self.sysenter_cs, self.sysenter_esp, self.sysenter_eip) = (0, 0, 0);
        self.pat = PAT_RESET;
        self.misc_enable = MISC_ENABLE_RESET;
        (self.mtrr_def, self.mtrr_fixed, self.mtrr_var) = (0, [0; 11], [0; 16]);
        self.smbase = 0x3_0000;
        self.a20_masked = false;
        self.update_mode();
    }

    /// INIT: caches, FPU, SSE and most MSRs keep their values, CR0.CD and CR0.NW too.
    pub fn init(&mut self) {
        self.gpr = [0; 16];
        // EDX: family, model and stepping.
        self.gpr[2] = crate::cpuid::signature(self).into();
        self.seg = [real_segment(0, 0, DATA); 6];
        *self.seg_mut(SegReg::Cs) = real_segment(0xf000, 0xffff_0000, DATA | Segment::CODE);
        self.ldt = real_segment(0, 0, Segment::P | 2 << 8);
        self.tr = real_segment(0, 0, Segment::P | 11 << 8);
        self.gdt = DescTable { base: 0, limit: 0xffff };
        self.idt = DescTable { base: 0, limit: 0xffff };
        self.rip = 0xfff0;
        self.cr0 = self.cr0 & (cr0::CD | cr0::NW) | cr0::ET;
        (self.cr2, self.cr3, self.cr4, self.efer) = (0, 0, 0, 0);
        self.pdpte = [0; 4];
        self.dr = [0, 0, 0, 0, 0, 0, 0xffff_0ff0, 0x400];
        (self.cpl, self.shadow) = (0, 0);
        (self.halted, self.nmi_blocked, self.smm) = (false, false, false);
        self.pending = PendingEvent::default();
        self.wait_sipi = self.apic_id != 0;
        self.set_rflags(bit::ONE);
    }

    /// Start-up IPI: real mode at page `vector` of the first MiB.
    pub fn start_up(&mut self, vector: u8) {
        let cs = self.seg_mut(SegReg::Cs);
        (cs.selector, cs.base) = (u16::from(vector) << 8, u64::from(vector) << 12);
        self.rip = 0;
        self.wait_sipi = false;
        self.halted = false;
        self.update_mode();
    }

    /// MTRRs as PC firmware leaves them, for machines that start a kernel without firmware: everything write-back but
    /// the video window and `hole` (first address, length; a power of two), where devices lie. Linux turns PAT off when
    /// it finds MTRRs disabled.
    pub fn firmware_mtrrs(&mut self, hole: (u64, u64)) {
        const WB: u64 = 0x0606_0606_0606_0606;
        self.mtrr_fixed = [WB; 11];
        // A0000h-BFFFFh: uncached.
        self.mtrr_fixed[2] = 0;
        self.mtrr_def = 0xc06;
        let (base, len) = hole;
        let mask = (1u64 << crate::paging::PHYS_BITS) - 0x1000;
        self.mtrr_var = [0; 16];
        self.mtrr_var[0] = base & mask;
        self.mtrr_var[1] = len.wrapping_neg() & mask | 1 << 11;
    }
}
