//! Lazy flags as IR: the last producer in this block is known as SSA values, so conditions become direct compares; at the
//! start of a block they come from the state (`arch_x86::flags::Cc`, whose formulas these are).

use super::Tr;
use crate::helpers::flags::FLAGS;
use crate::layout::{CC_AUX, CC_DST, CC_OP, CC_SRC};
use arch_x86::flags::{CcKind, bit, over};
use ir::{Cond, Op, SlotId, Ty, Val};

/// The last producer of flags. Operands and result have type `ty` (not yet extended).
#[derive(Clone, Copy)]
pub struct Lazy {
    /// `None`: only the state knows.
    kind: Option<CcKind>,
    ty: Ty,
    a: Val,
    b: Val,
    res: Val,
    /// Carry in (I8, 0 or 1); for Inc and Dec the carry kept.
    pub aux: Val,
    /// The bits, once computed (I64): of all flags but those given apart.
    pub bits: Val,
    /// CF and OF where they are given apart (I8, 0 or 1).
    cf: Val,
    of: Val,
    /// All six bits, once computed (I64).
    pub all: Val,
}

impl Lazy {
    pub const UNKNOWN: Lazy = Lazy {
        kind: None,
        ty: Ty::I64,
        a: Val::NONE,
        b: Val::NONE,
        res: Val::NONE,
        aux: Val::NONE,
        bits: Val::NONE,
        cf: Val::NONE,
        of: Val::NONE,
        all: Val::NONE,
    };

    pub fn made(kind: CcKind, ty: Ty, [a, b, res]: [Val; 3]) -> Lazy {
        Lazy { kind: Some(kind), ty, a, b, res, ..Lazy::UNKNOWN }
    }

    fn is_unknown(&self) -> bool {
        self.kind.is_none() && self.all == Val::NONE && !self.given_apart()
    }

    fn given_apart(&self) -> bool {
        self.cf != Val::NONE || self.of != Val::NONE
    }
}

/// A condition before it becomes a value.
#[derive(Clone, Copy)]
enum Test {
    Cmp(Cond, Val, Val),
    /// I8, 0 or 1.
    Bool(Val),
}

impl Tr<'_> {
    fn store_cc(&mut self, kind: CcKind, ty: Ty, dst: Option<Val>, src: Option<Val>) {
        let op = self.b.iconst(Ty::I32, kind.op(ty.bytes()).into());
        self.set_cc(Ty::I32, CC_OP, op);
        if let Some(d) = dst {
            let d = self.b.zext(Ty::I64, d);
            self.set_cc(Ty::I64, CC_DST, d);
        }
        if let Some(s) = src {
            let s = self.b.zext(Ty::I64, s);
            self.set_cc(Ty::I64, CC_SRC, s);
        }
    }

    fn set_cc(&mut self, ty: Ty, slot: SlotId, v: Val) {
        self.guess = None;
        let v = match self.retry {
            Some(again) => {
                let old = self.b.get(ty, slot, 0);
                self.b.select(again, old, v)
            }
            None => v,
        };
        self.b.set(ty, slot, 0, v);
    }

    /// The state's flags changed behind our back (a helper wrote them).
    pub fn flags_unknown(&mut self) {
        self.guess = None;
        self.lazy = Lazy::UNKNOWN;
    }

    pub fn flags_add(&mut self, a: Val, b: Val, res: Val) {
        let ty = self.b.ty(res);
        self.store_cc(CcKind::Add, ty, Some(res), Some(b));
        self.lazy = Lazy::made(CcKind::Add, ty, [a, b, res]);
    }

    pub fn flags_sub(&mut self, a: Val, b: Val, res: Val) {
        let ty = self.b.ty(res);
        self.store_cc(CcKind::Sub, ty, Some(a), Some(b));
        self.lazy = Lazy::made(CcKind::Sub, ty, [a, b, res]);
    }

    pub fn flags_logic(&mut self, res: Val) {
        let ty = self.b.ty(res);
        self.store_cc(CcKind::Logic, ty, Some(res), None);
        self.lazy = Lazy { kind: Some(CcKind::Logic), ty, res, ..Lazy::UNKNOWN };
    }

    /// INC or DEC; `cf` (I8) is the carry before.
    pub fn flags_incdec(&mut self, kind: CcKind, res: Val, cf: Val) {
        let ty = self.b.ty(res);
        let cf64 = self.b.zext(Ty::I64, cf);
        self.store_cc(kind, ty, Some(res), Some(cf64));
        self.lazy = Lazy { kind: Some(kind), ty, res, aux: cf, ..Lazy::UNKNOWN };
    }

    /// ADC (`kind` Adc: `a + b + carry = res`) or SBB; `carry` is I8.
    pub fn flags_carry(&mut self, kind: CcKind, a: Val, b: Val, res: Val, carry: Val) {
        let ty = self.b.ty(res);
        let c64 = self.b.zext(Ty::I64, carry);
        self.store_cc(kind, ty, Some(if kind == CcKind::Adc { res } else { a }), Some(b));
        self.set_cc(Ty::I64, CC_AUX, c64);
        self.lazy = Lazy { kind: Some(kind), ty, a, b, res, aux: carry, ..Lazy::UNKNOWN };
    }

    /// SF ZF PF of `res`; CF and OF at their places in `bits` (I64).
    pub fn flags_cfof(&mut self, res: Val, bits: Val) {
        let ty = self.b.ty(res);
        self.store_cc(CcKind::CfOf, ty, Some(res), Some(bits));
        self.lazy = Lazy { kind: Some(CcKind::CfOf), ty, res, b: bits, ..Lazy::UNKNOWN };
    }

    /// A shift by an immediate; `last` as `CcKind` says.
    pub fn flags_shift(&mut self, kind: CcKind, res: Val, last: Val) {
        let ty = self.b.ty(res);
        self.store_cc(kind, ty, Some(res), Some(last));
        self.lazy = Lazy::made(kind, ty, [Val::NONE, last, res]);
    }

    /// All six as bits (I64; other bits must be clear).
    pub fn flags_bits(&mut self, bits: Val) {
        self.store_cc(CcKind::Bits, Ty::I8, None, Some(bits));
        self.lazy = Lazy { kind: Some(CcKind::Bits), bits, all: bits, ..Lazy::UNKNOWN };
    }

    /// CF and OF (I8, 0 or 1) replaced, the others kept; if `keep` (I8) is not 0, all are.
    pub fn flags_apart(&mut self, cf: Option<Val>, of: Option<Val>, keep: Option<Val>) {
        let old = self.b.get(Ty::I32, CC_OP, 0);
        let mut op = old;
        for (v, flag, has) in [(cf, over::CF, over::HAS_CF), (of, over::OF, over::HAS_OF)] {
            if let Some(v) = v {
                let v = self.b.zext(Ty::I32, v);
                let v = self.b.bin_imm(Op::Shl, v, flag.trailing_zeros().into());
                op = self.b.bin_imm(Op::And, op, (!flag).into());
                op = self.b.bin_imm(Op::Or, op, has.into());
                op = self.b.bin(Op::Or, op, v);
            }
        }
        if let Some(keep) = keep {
            op = self.b.select(keep, old, op);
        }
        self.set_cc(Ty::I32, CC_OP, op);
        if keep.is_some() {
            return self.flags_unknown();
        }
        let l = &mut self.lazy;
        if l.all != Val::NONE {
            (l.bits, l.all) = (l.all, Val::NONE);
        }
        (l.cf, l.of) = (cf.unwrap_or(l.cf), of.unwrap_or(l.of));
    }

    /// Sets the flags as `CfOf` says if `keep` (I8) is 0, else leaves them (shifts by a count of 0).
    pub fn flags_cfof_unless(&mut self, keep: Val, res: Val, bits: Val) {
        let ty = self.b.ty(res);
        let res = self.b.zext(Ty::I64, res);
        let op = self.b.iconst(Ty::I32, CcKind::CfOf.op(ty.bytes()).into());
        for (ty, slot, new) in [(Ty::I32, CC_OP, op), (Ty::I64, CC_DST, res), (Ty::I64, CC_SRC, bits)] {
            let old = self.b.get(ty, slot, 0);
            let v = self.b.select(keep, old, new);
            self.b.set(ty, slot, 0, v);
        }
        self.flags_unknown();
    }

    /// The six arithmetic flags at their EFLAGS positions (I64).
    pub fn flag_bits(&mut self) -> Val {
        if self.lazy.all == Val::NONE {
            let op = self.b.get(Ty::I32, CC_OP, 0);
            let op = self.b.zext(Ty::I64, op);
            let aux = self.b.get(Ty::I64, CC_AUX, 0);
            let aux = self.b.bin_imm(Op::Shl, aux, 32);
            let op = self.b.bin(Op::Or, op, aux);
            let (dst, src) = (self.b.get(Ty::I64, CC_DST, 0), self.b.get(Ty::I64, CC_SRC, 0));
            self.lazy.all = self.call(FLAGS, &[op, dst, src]);
        }
        self.lazy.all
    }

    fn bit_test(&mut self, bits: Val, mask: u64) -> Test {
        let v = self.b.bin_imm(Op::And, bits, mask);
        let zero = self.i64(0);
        Test::Cmp(Cond::Ne, v, zero)
    }

    /// Of flags that are not given apart.
    fn flag_bit(&mut self, mask: u64) -> Test {
        let bits = if self.lazy.bits == Val::NONE { self.flag_bits() } else { self.lazy.bits };
        self.bit_test(bits, mask)
    }

    fn zero(&mut self) -> Val {
        self.b.iconst(self.lazy.ty, 0)
    }

    fn test_cf(&mut self) -> Test {
        let l = self.lazy;
        if l.cf != Val::NONE {
            return Test::Bool(l.cf);
        }
        match l.kind {
            Some(CcKind::Sub) => Test::Cmp(Cond::Ult, l.a, l.b),
            Some(CcKind::Add) => Test::Cmp(Cond::Ult, l.res, l.b),
            Some(CcKind::Logic) => Test::Bool(self.i8(0)),
            Some(CcKind::Inc | CcKind::Dec) => Test::Bool(l.aux),
            Some(CcKind::CfOf) => self.bit_test(l.b, bit::CF),
            Some(CcKind::Shl | CcKind::Shr | CcKind::Sar) => {
                let low = self.b.zext(Ty::I8, l.b);
                Test::Bool(self.b.bin_imm(Op::And, low, 1))
            }
            Some(k @ (CcKind::Adc | CcKind::Sbb)) => {
                let x = if k == CcKind::Adc { l.res } else { l.a };
                let lt = self.b.cmp(Cond::Ult, x, l.b);
                let eq = self.b.cmp(Cond::Eq, x, l.b);
                let eq = self.b.bin(Op::And, eq, l.aux);
                Test::Bool(self.b.bin(Op::Or, lt, eq))
            }
            None if self.lazy.all == Val::NONE && self.lazy.bits == Val::NONE => Test::Bool(self.cf_of_state()),
            _ => self.flag_bit(bit::CF),
        }
    }

    /// CF as only the state knows it: INC and DEC keep it, and in a loop they would call `FLAGS` for it each turn. Bit k of
    /// a table is for kind k of `CcKind`; kinds that do not exist count as `Bits`.
    fn cf_of_state(&mut self) -> Val {
        /// A comparison says it; with a carry in, equality too; bit 0 of the second operand; nobody: it is 0.
        const COMPARED: u64 = 1 << CcKind::Add as u32 | 1 << CcKind::Sub as u32 | WITH_CARRY;
        const WITH_CARRY: u64 = 1 << CcKind::Adc as u32 | 1 << CcKind::Sbb as u32;
        const BIT_0: u64 = !(COMPARED | 1 << CcKind::Logic as u32);
        let op = self.b.get(Ty::I32, CC_OP, 0);
        let (dst, src) = (self.b.get(Ty::I64, CC_DST, 0), self.b.get(Ty::I64, CC_SRC, 0));
        let aux = self.b.get(Ty::I64, CC_AUX, 0);
        let op = self.b.zext(Ty::I64, op);
        let kind = self.b.bin_imm(Op::Shr, op, 2);
        let in_table = |tr: &mut Self, table: u64, v: Val| {
            let table = tr.i64(table);
            let t = tr.b.bin(Op::Shr, table, kind);
            let t = tr.b.bin_imm(Op::And, t, 1);
            tr.b.bin(Op::And, t, v)
        };
        let compared = |tr: &mut Self, c: Cond| {
            let v = tr.b.cmp(c, dst, src);
            tr.b.zext(Ty::I64, v)
        };
        let (less, equal) = (compared(self, Cond::Ult), compared(self, Cond::Eq));
        let equal = self.b.bin(Op::And, equal, aux);
        let (less, equal) = (in_table(self, COMPARED, less), in_table(self, WITH_CARRY, equal));
        let low = in_table(self, BIT_0, src);
        let cf = self.b.bin(Op::Or, less, equal);
        let cf = self.b.bin(Op::Or, cf, low);
        let given = self.b.bin_imm(Op::Shr, op, over::SHIFT.into());
        let apart = self.b.bin_imm(Op::And, op, over::HAS_CF.into());
        let zero = self.i64(0);
        let apart = self.b.cmp(Cond::Ne, apart, zero);
        let cf = self.b.select(apart, given, cf);
        let cf = self.b.zext(Ty::I8, cf);
        self.b.bin_imm(Op::And, cf, 1)
    }

    fn test_zf(&mut self) -> Test {
        let l = self.lazy;
        match l.kind {
            None | Some(CcKind::Bits) => self.flag_bit(bit::ZF),
            Some(CcKind::Sub) => Test::Cmp(Cond::Eq, l.a, l.b),
            _ => {
                let z = self.zero();
                Test::Cmp(Cond::Eq, l.res, z)
            }
        }
    }

    fn test_sf(&mut self) -> Test {
        match self.lazy.kind {
            None | Some(CcKind::Bits) => self.flag_bit(bit::SF),
            _ => {
                let z = self.zero();
                Test::Cmp(Cond::Slt, self.lazy.res, z)
            }
        }
    }

    fn test_pf(&mut self) -> Test {
        match self.lazy.kind {
            None | Some(CcKind::Bits) => self.flag_bit(bit::PF),
            _ => {
                let low = self.b.zext(Ty::I8, self.lazy.res);
                let n = self.b.unary(Op::Popcnt, low);
                let odd = self.b.bin_imm(Op::And, n, 1);
                let z = self.i8(0);
                Test::Cmp(Cond::Eq, odd, z)
            }
        }
    }

    fn test_of(&mut self) -> Test {
        let l = self.lazy;
        if l.of != Val::NONE {
            return Test::Bool(l.of);
        }
        let (x, y) = match l.kind {
            None | Some(CcKind::Bits) => return self.flag_bit(bit::OF),
            Some(CcKind::CfOf) => return self.bit_test(l.b, bit::OF),
            Some(CcKind::Logic | CcKind::Sar) => return Test::Bool(self.i8(0)),
            Some(CcKind::Shr) => {
                let z = self.zero();
                return Test::Cmp(Cond::Slt, l.b, z);
            }
            Some(CcKind::Shl) => {
                let (s, c) = (self.test_sf(), self.test_cf());
                let (s, c) = (self.value(s, false), self.value(c, false));
                return Test::Bool(self.b.bin(Op::Xor, s, c));
            }
            Some(k @ (CcKind::Inc | CcKind::Dec)) => {
                let min = 1u64 << (l.ty.bits() - 1);
                let edge = self.b.iconst(l.ty, if k == CcKind::Inc { min } else { min - 1 });
                return Test::Cmp(Cond::Eq, l.res, edge);
            }
            // Operands of like sign, result of the other.
            Some(CcKind::Add | CcKind::Adc) => (self.b.bin(Op::Xor, l.a, l.res), self.b.bin(Op::Xor, l.b, l.res)),
            // Operands of unlike sign, result unlike the first.
            Some(CcKind::Sub | CcKind::Sbb) => (self.b.bin(Op::Xor, l.a, l.b), self.b.bin(Op::Xor, l.a, l.res)),
        };
        let v = self.b.bin(Op::And, x, y);
        let z = self.zero();
        Test::Cmp(Cond::Slt, v, z)
    }

    /// SF != OF.
    fn test_lt(&mut self) -> Test {
        let l = self.lazy;
        match l.kind {
            Some(CcKind::Sub) if !l.given_apart() => Test::Cmp(Cond::Slt, l.a, l.b),
            Some(CcKind::Logic) if !l.given_apart() => self.test_sf(),
            _ => {
                let (s, o) = (self.test_sf(), self.test_of());
                let (s, o) = (self.value(s, false), self.value(o, false));
                Test::Cmp(Cond::Ne, s, o)
            }
        }
    }

    fn either(&mut self, x: Test, y: Test) -> Test {
        let (x, y) = (self.value(x, false), self.value(y, false));
        Test::Bool(self.b.bin(Op::Or, x, y))
    }

    /// CF or ZF.
    fn test_be(&mut self) -> Test {
        let l = self.lazy;
        match l.kind {
            _ if l.given_apart() => {
                let (c, z) = (self.test_cf(), self.test_zf());
                self.either(c, z)
            }
            Some(CcKind::Sub) => Test::Cmp(Cond::Ule, l.a, l.b),
            Some(CcKind::Logic) => self.test_zf(),
            None | Some(CcKind::Bits) => self.flag_bit(bit::CF | bit::ZF),
            _ => {
                let (c, z) = (self.test_cf(), self.test_zf());
                self.either(c, z)
            }
        }
    }

    fn test_le(&mut self) -> Test {
        let l = self.lazy;
        match l.kind {
            Some(CcKind::Sub) if !l.given_apart() => Test::Cmp(Cond::Sle, l.a, l.b),
            Some(CcKind::Logic) if !l.given_apart() => {
                let z = self.zero();
                Test::Cmp(Cond::Sle, l.res, z)
            }
            _ => {
                let (lt, z) = (self.test_lt(), self.test_zf());
                self.either(lt, z)
            }
        }
    }

    fn value(&mut self, t: Test, negate: bool) -> Val {
        match t {
            Test::Cmp(c, a, b) => self.b.cmp(if negate { c.negate() } else { c }, a, b),
            Test::Bool(v) if negate => self.b.bin_imm(Op::Xor, v, 1),
            Test::Bool(v) => v,
        }
    }

    /// Condition code `cc` (low nibble of Jcc, SDM 2 appendix B.1) as I8, 0 or 1.
    pub fn cond(&mut self, cc: u8) -> Val {
        if self.lazy.is_unknown() {
            self.guess_flags();
        }
        let t = match cc >> 1 & 7 {
            0 => self.test_of(),
            1 => self.test_cf(),
            2 => self.test_zf(),
            3 => self.test_be(),
            4 => self.test_sf(),
            5 => self.test_pf(),
            6 => self.test_lt(),
            _ => self.test_le(),
        };
        self.value(t, cc & 1 == 1)
    }

    /// CF as I8, 0 or 1.
    pub fn cf(&mut self) -> Val {
        self.cond(2)
    }

    /// CF replaced by `cf` (I8, 0 or 1), the other five kept. Bit tests too: they leave ZF alone, and the four that the
    /// manual calls undefined stay as they were on all processors.
    pub fn set_cf_only(&mut self, cf: Val) {
        self.flags_apart(Some(cf), None, None);
    }
}
