//! Effective and linear addresses (SDM 1 "Memory Operands", SDM 3A "Segment Limit Checks").

use super::Tr;
use crate::helpers::segment::{ALIGNED, SEG_ADDR};
use crate::layout;
use arch_x86::fault::vector;
use arch_x86::{Mode, SegReg};
use iced_x86::Register;
use ir::{Cond, Op, Ty, Val};

impl Tr<'_> {
    /// Type in which the memory operand's offset is computed: the address size.
    pub fn addr_ty(&self) -> Ty {
        let of = |r: Register| Self::gpr_of(r).map(|(_, _, ty)| ty);
        match self.insn.memory_base() {
            Register::RIP => return Ty::I64,
            Register::EIP => return Ty::I32,
            _ => {}
        }
        of(self.insn.memory_base())
            .or_else(|| of(self.insn.memory_index()))
            .unwrap_or_else(|| Ty::int(self.insn.memory_displ_size().max(2)))
    }

    /// Offset of the memory operand in its segment, in 64 bits, and a constant still to be added (0 unless the address
    /// size is 64).
    pub fn offset(&mut self) -> (Val, i64) {
        let (base, index) = (self.insn.memory_base(), self.insn.memory_index());
        let disp = self.insn.memory_displacement64();
        let ty = self.addr_ty();
        if matches!(base, Register::RIP | Register::EIP) {
            // The decoder's address counts from the page's start, as `pcrel` does.
            let v = self.b.pcrel(disp as i64);
            let v = if base == Register::EIP { self.b.bin_imm(Op::And, v, 0xffff_ffff) } else { v };
            return (v, 0);
        }
        let v = self.base_and_index(base, index);
        match v {
            None => (self.i64(disp & ty.mask()), 0),
            Some(v) if ty == Ty::I64 => (v, i64::from(disp as i32)),
            Some(v) => {
                let v = if disp & ty.mask() != 0 { self.b.bin_imm(Op::Add, v, disp) } else { v };
                (self.b.zext(Ty::I64, v), 0)
            }
        }
    }

    /// The low 32 bits of the offset, where it has 64 and does not count from the program counter.
    pub fn low_offset(&mut self) -> Option<Val> {
        let (base, index) = (self.insn.memory_base(), self.insn.memory_index());
        if self.addr_ty() != Ty::I64 || base == Register::RIP {
            return None;
        }
        let disp = u64::from(self.insn.memory_displacement64() as u32);
        let v = self.base_and_index(base.full_register32(), index.full_register32())?;
        Some(if disp != 0 { self.b.bin_imm(Op::Add, v, disp) } else { v })
    }

    /// A register plus a scaled one, of the same size; either may be missing.
    fn base_and_index(&mut self, base: Register, index: Register) -> Option<Val> {
        let base = if base == Register::None { None } else { Some(self.reg(base)) };
        if index == Register::None {
            return base;
        }
        let mut i = self.reg(index);
        let scale = self.insn.memory_index_scale();
        if scale > 1 {
            i = self.b.bin_imm(Op::Shl, i, scale.trailing_zeros().into());
        }
        Some(match base {
            Some(b) => self.b.bin(Op::Add, b, i),
            None => i,
        })
    }

    /// Linear address of the memory operand, as a value and a displacement. `bytes` will be accessed there.
    pub fn mem(&mut self, bytes: u32, write: bool) -> (Val, i64) {
        let (off, disp) = self.offset();
        let seg = Self::seg_of(self.insn.memory_segment()).unwrap_or(SegReg::Ds);
        self.linear(seg, off, disp, bytes, write)
    }

    /// As `mem`, with nothing left to add.
    pub fn mem_addr(&mut self, bytes: u32, write: bool) -> Val {
        let (a, disp) = self.mem(bytes, write);
        if disp == 0 { a } else { self.b.bin_imm(Op::Add, a, disp as u64) }
    }

    /// As `mem` for two values of `bytes`, one behind the other.
    pub fn mem_pair(&mut self, bytes: u32) -> (Val, i64) {
        let (off, disp) = self.offset();
        let seg = Self::seg_of(self.insn.memory_segment()).unwrap_or(SegReg::Ds);
        let (a, disp) = self.linear_any(seg, off, disp, 2 * bytes, false);
        self.alignment(a, disp, bytes, bytes);
        (a, disp)
    }

    /// Linear address of `bytes` at an offset (already of the address size, plus `disp`) in a segment.
    pub fn linear(&mut self, seg: SegReg, off: Val, disp: i64, bytes: u32, write: bool) -> (Val, i64) {
        let (a, disp) = self.linear_any(seg, off, disp, bytes, write);
        if matches!(bytes, 2 | 4 | 8) {
            self.alignment(a, disp, bytes, bytes);
        }
        (a, disp)
    }

    /// The same, aligned or not.
    fn linear_any(&mut self, seg: SegReg, off: Val, disp: i64, bytes: u32, write: bool) -> (Val, i64) {
        let fs_gs = matches!(seg, SegReg::Fs | SegReg::Gs);
        if self.is_64() {
            if fs_gs {
                let base = self.b.get(Ty::I64, layout::seg_base(seg), 0);
                (self.b.bin(Op::Add, base, off), disp)
            } else {
                (off, disp)
            }
        } else if self.mode.has(Mode::FLAT) && !fs_gs && !(seg == SegReg::Cs && write) {
            (off, disp)
        } else {
            let how = u64::from(bytes) | u64::from(write) << 8;
            let (s, how) = (self.i64(seg as u64), self.i64(how));
            (self.call(SEG_ADDR, &[s, off, how]), disp)
        }
    }

    /// Is the code segment's limit to be checked? Not where it cannot be exceeded.
    pub(super) fn code_limited(&self) -> bool {
        !self.is_64() && !self.mode.has(Mode::FLAT)
    }

    /// #GP(0) unless program counter `pc` lies in the code segment (SDM 3A §5.3), or `c` is 0.
    pub(super) fn in_code_limit(&mut self, pc: Val, c: Option<Val>) {
        let limit = self.b.get(Ty::I32, layout::CS_LIMIT, 0);
        let limit = self.b.zext(Ty::I64, limit);
        let mut bad = self.b.cmp(Cond::Ugt, pc, limit);
        if let Some(c) = c {
            bad = self.b.bin(Op::And, bad, c);
        }
        self.b.raise_if(bad, vector::GP, Some(0));
    }

    /// #AC(0) unless the address of `size` bytes is a multiple of `by`, a power of two, if it is checked (SDM 3A "Alignment Check Exception").
    pub(super) fn alignment(&mut self, a: Val, disp: i64, by: u32, size: u32) {
        if self.mode.has(Mode::ALIGN) {
            let a = self.b.bin_imm(Op::Add, a, disp as u64);
            let (by, size) = (self.i64(by.into()), self.i64(size.into()));
            self.call(ALIGNED, &[a, by, size]);
        }
    }
}
