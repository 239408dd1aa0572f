//! Integer ops. Bits of a register beyond the value's type are undefined, so narrow types compute in 32 bits where the low
//! bits of the result depend on the low bits of the operands only, and in their own width elsewhere.

use super::emit::{Emit, cc};
use super::regs::{Loc, RAX, RCX, RDX, Src, imm32};
use super::{asm, st};
use crate::vblock::BASE;
use ir::{Block, Cond, Inst, Op, Ty, Val};

/// A two-operand instruction on a register and whatever the source is, in 32 or 64 bits.
macro_rules! alu {
    ($e:expr, $name:ident, $wide:expr, $d:expr, $src:expr) => {
        match ($wide, $src) {
            (true, Src::Gpr(s)) => asm!($e; $name Rq($d), Rq(s)),
            (true, Src::Mem(m)) => st!($e, m; [$name Rq($d),] []),
            (true, Src::Imm(i)) if i == i32::from(i as i8) => asm!($e; $name Rq($d), BYTE i as i8),
            (true, Src::Imm(i)) => asm!($e; $name Rq($d), DWORD i),
            (false, Src::Gpr(s)) => asm!($e; $name Rd($d), Rd(s)),
            (false, Src::Mem(m)) => st!($e, m; [$name Rd($d),] []),
            (false, Src::Imm(i)) if i == i32::from(i as i8) => asm!($e; $name Rd($d), BYTE i as i8),
            (false, Src::Imm(i)) => asm!($e; $name Rd($d), DWORD i),
        }
    };
}

/// A shift or rotate in the width of the type, by an expression.
macro_rules! shift {
    ($e:expr, $name:ident, $ty:expr, $d:expr, $($by:tt)*) => {
        match $ty {
            Ty::I8 => asm!($e; $name Rb($d), $($by)*),
            Ty::I16 => asm!($e; $name Rw($d), $($by)*),
            Ty::I32 => asm!($e; $name Rd($d), $($by)*),
            _ => asm!($e; $name Rq($d), $($by)*),
        }
    };
}

impl Emit<'_> {
    pub fn integer(&mut self, i: &Inst) {
        match i.op {
            Op::Add if self.add_scaled(i) => {}
            Op::Or if self.put_low() => {}
            Op::Add | Op::And | Op::Or | Op::Xor | Op::Mul => self.commutative(i),
            Op::Sub => {
                let wide = i.ty == Ty::I64;
                let src = self.src(i.b, i.ty);
                let d = self.dest_from(i.a);
                alu!(self, sub, wide, d, src);
            }
            Op::Shl | Op::Shr | Op::Sar | Op::Rotl | Op::Rotr => self.shift(i),
            Op::MulHiU | Op::MulHiS => self.mul_high(i),
            Op::DivU | Op::RemU | Op::DivS | Op::RemS => self.divide(i),
            Op::Neg => {
                let d = self.dest_from(i.a);
                match i.ty {
                    Ty::I64 => asm!(self; neg Rq(d)),
                    _ => asm!(self; neg Rd(d)),
                }
            }
            Op::Not => {
                let d = self.dest_from(i.a);
                match i.ty {
                    Ty::I64 => asm!(self; not Rq(d)),
                    _ => asm!(self; not Rd(d)),
                }
            }
            Op::Bswap => self.bswap(i),
            Op::Clz | Op::Ctz | Op::Popcnt => self.count(i),
            Op::ZExt | Op::SExt => self.extend(i),
            Op::Trunc => self.trunc(i),
            Op::Cmp => {
                let c = self.compare(i);
                let d = self.dest();
                self.setcc(c, d);
            }
            Op::Select => self.select(i),
            _ => unreachable!("{:?} is no integer op", i.op),
        }
    }

    fn commutative(&mut self, i: &Inst) {
        let (mut a, mut b) = (i.a, i.b);
        if !self.in_place(a) && self.in_place(b) || matches!(self.loc(a), Loc::Const(_)) {
            (a, b) = (b, a);
        }
        let wide = i.ty == Ty::I64;
        if let (Op::And, Loc::Const(c)) = (i.op, self.loc(b))
            && let Some(from) = Ty::ALL.into_iter().find(|t| *t != Ty::V128 && t.bits() < i.ty.bits() && t.mask() == c)
        {
            return self.zero_extend(a, from, false);
        }
        let src = self.src(b, i.ty);
        if i.op == Op::Add && self.add_apart(a, src, wide) {
            return;
        }
        let d = self.dest_from(a);
        match i.op {
            Op::Add => alu!(self, add, wide, d, src),
            Op::And => alu!(self, and, wide, d, src),
            Op::Or => alu!(self, or, wide, d, src),
            Op::Xor => alu!(self, xor, wide, d, src),
            _ => match (wide, src) {
                (true, Src::Gpr(s)) => asm!(self; imul Rq(d), Rq(s)),
                (true, Src::Mem(m)) => st!(self, m; [imul Rq(d),] []),
                (true, Src::Imm(c)) => asm!(self; imul Rq(d), Rq(d), DWORD c),
                (false, Src::Gpr(s)) => asm!(self; imul Rd(d), Rd(s)),
                (false, Src::Mem(m)) => st!(self, m; [imul Rd(d),] []),
                (false, Src::Imm(c)) => asm!(self; imul Rd(d), Rd(d), DWORD c),
            },
        }
    }

    /// A sum that may not take the place of `a`, which is in a register. False: nothing is done.
    fn add_apart(&mut self, a: Val, src: Src, wide: bool) -> bool {
        if self.register_of(a).is_none() || self.may_become(a) {
            return false;
        }
        // Held: room for the sum may need others' registers.
        let r = self.gpr(a);
        match src {
            Src::Imm(imm) => {
                let d = self.dest();
                self.lea_of(wide, d, r, imm);
            }
            Src::Gpr(s) => {
                let d = self.dest();
                match wide {
                    true => asm!(self; lea Rq(d), [Rq(r) + Rq(s)]),
                    false => asm!(self; lea Rd(d), [Rq(r) + Rq(s)]),
                }
            }
            Src::Mem(_) => return false,
        }
        true
    }

    /// A sum with a shifted value by one instruction, if the op before is that shift and was left to this one.
    fn add_scaled(&mut self, i: &Inst) -> bool {
        let Some(p) = (self.at as usize).checked_sub(1).filter(|p| self.fuses(*p)) else { return false };
        let shift = &self.block.insts[p];
        let other = if i.a == Val(p as u32) { i.b } else { i.a };
        let (base, index) = (self.gpr(other), self.gpr(shift.a));
        let d = if self.may_become(other) { self.dest_from(other) } else { self.dest() };
        match (self.scale(shift), i.ty == Ty::I64) {
            (Some(1), true) => asm!(self; lea Rq(d), [Rq(base) + Rq(index) * 2]),
            (Some(2), true) => asm!(self; lea Rq(d), [Rq(base) + Rq(index) * 4]),
            (_, true) => asm!(self; lea Rq(d), [Rq(base) + Rq(index) * 8]),
            (Some(1), false) => asm!(self; lea Rd(d), [Rq(base) + Rq(index) * 2]),
            (Some(2), false) => asm!(self; lea Rd(d), [Rq(base) + Rq(index) * 4]),
            (_, false) => asm!(self; lea Rd(d), [Rq(base) + Rq(index) * 8]),
        }
        true
    }

    /// The count is taken modulo the width.
    fn shift(&mut self, i: &Inst) {
        let (ty, mask) = (i.ty, i.ty.bits() - 1);
        if let Loc::Const(c) = self.loc(i.b) {
            let n = (c as u32 & mask) as i8;
            let d = self.dest_from(i.a);
            match i.op {
                _ if n == 0 => {}
                Op::Shl => shift!(self, shl, ty, d, BYTE n),
                Op::Shr => shift!(self, shr, ty, d, BYTE n),
                Op::Sar => shift!(self, sar, ty, d, BYTE n),
                Op::Rotl => shift!(self, rol, ty, d, BYTE n),
                _ => shift!(self, ror, ty, d, BYTE n),
            }
            return;
        }
        self.copy_to(RCX, i.b);
        if ty.bits() < 32 {
            asm!(self; and ecx, BYTE mask as i8);
        }
        let d = self.dest_from(i.a);
        match i.op {
            Op::Shl => shift!(self, shl, ty, d, cl),
            Op::Shr => shift!(self, shr, ty, d, cl),
            Op::Sar => shift!(self, sar, ty, d, cl),
            Op::Rotl => shift!(self, rol, ty, d, cl),
            _ => shift!(self, ror, ty, d, cl),
        }
    }

    /// A value of a type in a scratch register, extended to 64 bits.
    fn widened(&mut self, r: u8, v: Val, ty: Ty, signed: bool) {
        self.copy_to(r, v);
        match (ty, signed) {
            (Ty::I8, true) => asm!(self; movsx Rq(r), Rb(r)),
            (Ty::I16, true) => asm!(self; movsx Rq(r), Rw(r)),
            (Ty::I32, true) => asm!(self; movsxd Rq(r), Rd(r)),
            (Ty::I8, false) => asm!(self; movzx Rd(r), Rb(r)),
            (Ty::I16, false) => asm!(self; movzx Rd(r), Rw(r)),
            (Ty::I32, false) => asm!(self; mov Rd(r), Rd(r)),
            _ => {}
        }
    }

    fn mul_high(&mut self, i: &Inst) {
        let signed = i.op == Op::MulHiS;
        if i.ty == Ty::I64 {
            let b = self.gpr(i.b);
            self.copy_to(RAX, i.a);
            if signed {
                asm!(self; imul Rq(b));
            } else {
                asm!(self; mul Rq(b));
            }
            let d = self.dest();
            return asm!(self; mov Rq(d), rdx);
        }
        self.widened(RAX, i.a, i.ty, signed);
        self.widened(RCX, i.b, i.ty, signed);
        let (d, bits) = (self.dest(), i.ty.bits() as i8);
        asm!(self; imul rax, rcx; shr rax, BYTE bits; mov Rq(d), rax);
    }

    /// The IR guards against zero and overflow.
    fn divide(&mut self, i: &Inst) {
        let signed = matches!(i.op, Op::DivS | Op::RemS);
        self.widened(RAX, i.a, i.ty, signed);
        self.widened(RCX, i.b, i.ty, signed);
        match (i.ty == Ty::I64, signed) {
            (true, true) => asm!(self; cqo; idiv rcx),
            (true, false) => asm!(self; xor edx, edx; div rcx),
            (false, true) => asm!(self; cdq; idiv ecx),
            (false, false) => asm!(self; xor edx, edx; div ecx),
        }
        let (d, from) = (self.dest(), if matches!(i.op, Op::DivU | Op::DivS) { RAX } else { RDX });
        asm!(self; mov Rq(d), Rq(from));
    }

    fn bswap(&mut self, i: &Inst) {
        let d = self.dest_from(i.a);
        match i.ty {
            Ty::I64 => asm!(self; bswap Rq(d)),
            Ty::I32 => asm!(self; bswap Rd(d)),
            Ty::I16 => asm!(self; rol Rw(d), BYTE 8),
            _ => {}
        }
    }

    /// Zero has as many leading and trailing zeros as the type has bits; BSF and BSR then set ZF.
    fn count(&mut self, i: &Inst) {
        let bits = i.ty.bits() as i32;
        self.widened(RAX, i.a, i.ty, false);
        let d = self.dest();
        match i.op {
            Op::Popcnt => asm!(self; popcnt Rq(d), rax),
            Op::Ctz => asm!(self; mov ecx, DWORD bits; bsf Rq(d), rax; cmovz Rd(d), ecx),
            _ => asm!(self; mov ecx, DWORD 2 * bits - 1; bsr Rq(d), rax; cmovz Rd(d), ecx; xor Rd(d), BYTE (bits - 1) as i8),
        }
    }

    fn extend(&mut self, i: &Inst) {
        let from = self.block.ty(i.a);
        if let Loc::Const(c) = self.loc(i.a) {
            let (d, sh) = (self.dest(), 64 - from.bits());
            let signed = ((c << sh) as i64 >> sh) as u64;
            return self.mov_imm(d, if i.op == Op::SExt { signed } else { c & from.mask() });
        }
        if i.op == Op::ZExt {
            return self.zero_extend(i.a, from, self.is_clean(i.a));
        }
        // The load did it.
        if i.a.index() + 1 == self.at as usize && self.is_extended(i.a.index()) {
            if !self.is_there(i.a) {
                self.dest_from(i.a);
            }
            return;
        }
        if let (Loc::State(off), true) = (self.loc(i.a), self.dies(i.a))
            && !self.is_pinned(off)
        {
            let d = self.dest();
            return match (from, i.ty) {
                (Ty::I8, Ty::I64) => st!(self, off; [movsx Rq(d), BYTE] []),
                (Ty::I8, _) => st!(self, off; [movsx Rd(d), BYTE] []),
                (Ty::I16, Ty::I64) => st!(self, off; [movsx Rq(d), WORD] []),
                (Ty::I16, _) => st!(self, off; [movsx Rd(d), WORD] []),
                _ => st!(self, off; [movsxd Rq(d), DWORD] []),
            };
        }
        let (s, d) = self.source_and_dest(i.a);
        match (from, i.ty) {
            (Ty::I8, Ty::I64) => asm!(self; movsx Rq(d), Rb(s)),
            (Ty::I8, _) => asm!(self; movsx Rd(d), Rb(s)),
            (Ty::I16, Ty::I64) => asm!(self; movsx Rq(d), Rw(s)),
            (Ty::I16, _) => asm!(self; movsx Rd(d), Rw(s)),
            _ => asm!(self; movsxd Rq(d), Rd(s)),
        }
    }

    /// The register of an operand, and that of the result, the same if the operand dies.
    fn source_and_dest(&mut self, a: Val) -> (u8, u8) {
        let s = self.gpr(a);
        (s, if self.in_place(a) && !self.goes_direct() { self.dest_from(a) } else { self.dest() })
    }

    /// The low bits of a value that is no constant, as many as `from` has; `clean`: the others are zero in its register.
    fn zero_extend(&mut self, a: Val, from: Ty, clean: bool) {
        if let (Loc::State(off), true) = (self.loc(a), self.dies(a))
            && !self.is_pinned(off)
        {
            let d = self.dest();
            return self.load_state(d, from, off);
        }
        if clean && self.is_there(a) || clean && !self.in_place(a) && self.share(a) {
            return;
        }
        let (s, d) = self.source_and_dest(a);
        match from {
            _ if clean && s == d => {}
            // The host renames this one.
            Ty::I8 | Ty::I16 | Ty::I32 if clean => asm!(self; mov Rd(d), Rd(s)),
            Ty::I8 => asm!(self; movzx Rd(d), Rb(s)),
            Ty::I16 => asm!(self; movzx Rd(d), Rw(s)),
            Ty::I32 => asm!(self; mov Rd(d), Rd(s)),
            _ if s != d => asm!(self; mov Rq(d), Rq(s)),
            _ => {}
        }
    }

    /// The result of the op, an extension of `a`, was computed in the slot where it belongs (`find_direct`).
    fn is_there(&mut self, a: Val) -> bool {
        let at = self.at as usize;
        let there = self.r.direct.get(at).copied().flatten().filter(|p| self.r.direct[a.index()] == Some(*p));
        if let Some(p) = there.filter(|p| self.loc(a) == Loc::State(p.off)) {
            self.r.alias(Val(self.at), p.off, self.block.insts[at].ty);
            return true;
        }
        false
    }

    /// Whether the bits beyond its type are zero in the register that holds a value, or in its spill slot.
    fn is_clean(&self, v: Val) -> bool {
        is_clean(self.block, v) && !matches!(self.loc(v), Loc::None | Loc::Const(_))
    }

    /// The low bytes of the same place.
    fn trunc(&mut self, i: &Inst) {
        let v = Val(self.at);
        match self.loc(i.a) {
            Loc::Const(c) => self.r.loc[v.index()] = Loc::Const(c & i.ty.mask()),
            Loc::State(off) => self.r.alias(v, off, i.ty),
            _ if !self.in_place(i.a) && self.share(i.a) => {}
            _ => {
                self.dest_from(i.a);
            }
        }
    }

    // --- comparisons

    fn setcc(&mut self, c: u8, d: u8) {
        // SETcc Rb: 0F 90+cc /0; REX makes the low byte of any register reachable.
        self.code.extend([0x40 | d >> 3, 0x0f, 0x90 | c, 0xc0 | d & 7]);
    }

    /// Emits a comparison; gives the condition code that holds if it does.
    fn compare(&mut self, i: &Inst) -> u8 {
        let cond = i.cond();
        match (self.loc(i.b), imm32(i.ty, self.const_of(i.b))) {
            (Loc::Const(_), Some(c)) => self.compare_const(i, c),
            _ => {
                let (a, b) = (self.gpr(i.a), self.gpr(i.b));
                match i.ty {
                    Ty::I8 => asm!(self; cmp Rb(a), Rb(b)),
                    Ty::I16 => asm!(self; cmp Rw(a), Rw(b)),
                    Ty::I32 => asm!(self; cmp Rd(a), Rd(b)),
                    _ => asm!(self; cmp Rq(a), Rq(b)),
                }
            }
        }
        code_of(cond)
    }

    fn const_of(&self, v: Val) -> u64 {
        match self.loc(v) {
            Loc::Const(c) => c,
            _ => 0,
        }
    }

    fn compare_const(&mut self, i: &Inst, c: i32) {
        let short = c == i32::from(c as i8);
        if let (Loc::State(m), true) = (self.loc(i.a), self.dies(i.a))
            && !self.is_pinned(m)
        {
            return match i.ty {
                Ty::I8 => st!(self, m; [cmp BYTE] [, BYTE c as i8]),
                Ty::I16 => st!(self, m; [cmp WORD] [, WORD c as i16]),
                Ty::I32 if short => self.cmp_state(false, m, c as i8),
                Ty::I32 => st!(self, m; [cmp DWORD] [, DWORD c]),
                _ if short => self.cmp_state(true, m, c as i8),
                _ => st!(self, m; [cmp QWORD] [, DWORD c]),
            };
        }
        let a = self.gpr(i.a);
        match (i.ty, c) {
            (Ty::I8, 0) => asm!(self; test Rb(a), Rb(a)),
            (Ty::I16, 0) => asm!(self; test Rw(a), Rw(a)),
            (Ty::I32, 0) => asm!(self; test Rd(a), Rd(a)),
            (_, 0) => asm!(self; test Rq(a), Rq(a)),
            (Ty::I8, _) => asm!(self; cmp Rb(a), BYTE c as i8),
            (Ty::I16, _) => asm!(self; cmp Rw(a), WORD c as i16),
            _ if short => self.cmp_short(i.ty == Ty::I64, a, c as i8),
            (Ty::I32, _) => asm!(self; cmp Rd(a), DWORD c),
            _ => asm!(self; cmp Rq(a), DWORD c),
        }
    }

    /// CMP r, imm8, for which the assembler has no form.
    fn cmp_short(&mut self, wide: bool, r: u8, c: i8) {
        self.code.extend([0x40 | u8::from(wide) << 3 | r >> 3, 0x83, 0xf8 | r & 7, c as u8]);
    }

    /// The same of four or eight bytes of the state.
    pub fn cmp_state(&mut self, wide: bool, off: i32, c: i8) {
        let (rex, off) = (0x41 | u8::from(wide) << 3, off - BASE);
        match i8::try_from(off) {
            Ok(near) => self.code.extend([rex, 0x83, 0x7f, near as u8]),
            Err(_) => {
                self.code.extend([rex, 0x83, 0xbf]);
                self.code.extend(off.to_le_bytes());
            }
        }
        self.code.extend([c as u8]);
    }

    /// Emits what tests a condition value; gives the condition code of "true".
    pub fn condition(&mut self, c: Val) -> u8 {
        let before = self.at as usize - 1;
        if c.index() == before && self.block.insts[before].op == Op::Cmp && self.fuses(before) {
            return self.compare(&self.block.insts[before]);
        }
        let r = self.gpr(c);
        asm!(self; test Rb(r), Rb(r));
        cc::NE
    }

    fn select(&mut self, i: &Inst) {
        if i.ty == Ty::V128 {
            return self.select_vector(i);
        }
        // Moves between registers and memory leave the flags alone, shifts do not.
        if self.takes_shift(i.c) {
            self.gpr(i.c);
        }
        self.clear_the_way();
        let yes = self.gpr(i.b);
        let c = self.condition(i.a);
        let d = self.dest_from(i.c);
        // CMOVcc Rq(d), Rq(yes), or of 32 bits: REX.W 0F 40+cc /r.
        let rex = if i.ty == Ty::I64 { 0x48 } else { 0x40 };
        self.code.extend([rex | d >> 3 << 2 | yes >> 3, 0x0f, 0x40 | c, 0xc0 | (d & 7) << 3 | yes & 7]);
    }

    fn select_vector(&mut self, i: &Inst) {
        self.clear_the_way();
        let yes = self.xmm(i.b);
        let c = self.condition(i.a);
        let d = self.dest_from_xmm(i.c);
        let over = self.jcc(c ^ 1);
        asm!(self; movdqa Rx(d), Rx(yes));
        let here = self.here();
        self.point(over, here);
    }
}

/// Whether an op leaves the bits of its register beyond its type zero.
pub fn is_clean(b: &Block, v: Val) -> bool {
    let i = &b.insts[v.index()];
    match i.op {
        Op::Load | Op::Source | Op::ZExt | Op::Clz | Op::Ctz | Op::Popcnt => matches!(i.ty, Ty::I8 | Ty::I16 | Ty::I32),
        Op::Add | Op::Sub | Op::And | Op::Or | Op::Xor | Op::Mul | Op::Neg | Op::Not | Op::Bswap | Op::Select | Op::SExt => {
            i.ty == Ty::I32
        }
        // Nothing is done for a count of 0.
        Op::Shl | Op::Shr | Op::Sar | Op::Rotl | Op::Rotr => i.ty == Ty::I32 && b.as_const(i.b).is_some_and(|c| c % 32 != 0),
        _ => false,
    }
}

fn code_of(c: Cond) -> u8 {
    match c {
        Cond::Eq => cc::E,
        Cond::Ne => cc::NE,
        Cond::Ult => cc::B,
        Cond::Uge => cc::AE,
        Cond::Ule => cc::BE,
        Cond::Ugt => cc::A,
        Cond::Slt => cc::L,
        Cond::Sge => cc::GE,
        Cond::Sle => cc::LE,
        Cond::Sgt => cc::G,
    }
}
