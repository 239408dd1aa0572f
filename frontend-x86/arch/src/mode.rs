//! The mode word: every bit of CPU state that translation may read. It is part of each block's key.

/// Operand and address size of the code segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeSize {
    Bits16,
    Bits32,
    Bits64,
}

/// Packed mode bits; see the constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Mode(pub u64);

impl Mode {
    /// Bits 1:0: CPL.
    pub const CPL: u64 = 3;
    /// Bits 3:2: 0 = 16, 1 = 32, 2 = 64-bit code.
    pub const CODE_SHIFT: u32 = 2;
    /// SS.B: 32-bit stack pointer (always clear in 64-bit code, where it is 64 bits wide).
    pub const STACK32: u64 = 1 << 4;
    /// CS, DS, ES, SS have base 0, limit 4 GiB, are present, readable and (data) writable: no segment checks needed.
    /// Always set in 64-bit code.
    pub const FLAT: u64 = 1 << 5;
    /// CR0.PE.
    pub const PE: u64 = 1 << 6;
    /// EFLAGS.VM.
    pub const VM: u64 = 1 << 7;
    /// EFER.LMA.
    pub const LMA: u64 = 1 << 8;
    /// CR0.TS, CR0.EM, CR0.MP: #NM and #UD rules of FPU and SSE instructions.
    pub const TS: u64 = 1 << 9;
    pub const EM: u64 = 1 << 10;
    pub const MP: u64 = 1 << 11;
    /// CR4.OSFXSR.
    pub const OSFXSR: u64 = 1 << 12;
    /// CR4.OSXSAVE and XCR0 has AVX state: AVX instructions allowed.
    pub const AVX: u64 = 1 << 13;
    /// EFLAGS.TF, an enabled breakpoint or recording of branches: blocks of one instruction.
    pub const STEP: u64 = 1 << 14;
    /// CR4.SMAP set and EFLAGS.AC clear at CPL < 3: supervisor accesses to user pages fault.
    pub const SMAP: u64 = 1 << 15;
    /// CR0.AM and EFLAGS.AC at CPL 3: alignment checks.
    pub const ALIGN: u64 = 1 << 16;
    /// CPL <= IOPL: CLI, STI and port instructions need no further check (always in real mode).
    pub const IO_OK: u64 = 1 << 17;
    /// MXCSR's control bits are not what they are after reset: SSE arithmetic may raise #XM, round otherwise, flush to zero.
    pub const XM: u64 = 1 << 18;
    /// CR4.LA57 in long mode: canonical addresses have 57 bits.
    pub const LA57: u64 = 1 << 19;
    const _FITS: () = assert!(Self::LA57 >> vm_core::guest::MODE_BITS == 0);

    pub const fn has(self, bit: u64) -> bool {
        self.0 & bit != 0
    }

    pub const fn cpl(self) -> u8 {
        (self.0 & Self::CPL) as u8
    }

    pub const fn code_size(self) -> CodeSize {
        match self.0 >> Self::CODE_SHIFT & 3 {
            0 => CodeSize::Bits16,
            1 => CodeSize::Bits32,
            _ => CodeSize::Bits64,
        }
    }

    pub const fn is_64(self) -> bool {
        matches!(self.code_size(), CodeSize::Bits64)
    }

    /// Protected mode, not virtual-8086.
    pub const fn protected(self) -> bool {
        self.has(Self::PE) && !self.has(Self::VM)
    }

    /// Mask of the instruction pointer.
    pub const fn pc_mask(self) -> u64 {
        match self.code_size() {
            CodeSize::Bits16 => 0xffff,
            CodeSize::Bits32 => 0xffff_ffff,
            CodeSize::Bits64 => !0,
        }
    }

    /// Access context of ordinary data accesses: see `ctx`.
    pub const fn ctx(self) -> usize {
        if self.cpl() == 3 {
            ctx::USER
        } else if self.has(Self::SMAP) {
            ctx::KERNEL_SMAP
        } else {
            ctx::KERNEL
        }
    }
}

/// Access contexts (`vm_core::guest::CTX_COUNT` of them): who accesses, for page permissions.
pub mod ctx {
    /// Supervisor access that may touch user pages; also implicit accesses to descriptor tables (with SMAP on, an implicit
    /// supervisor access uses KERNEL_SMAP).
    pub const KERNEL: usize = 0;
    pub const USER: usize = 1;
    pub const KERNEL_SMAP: usize = 2;
}
