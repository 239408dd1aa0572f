//! The op table: name, operands, result and effects of every IR op, and what it means. Passes, verifier, printer, parser
//! and engines are driven by it.

/// What an op does beside computing its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effects(pub u8);

impl Effects {
    pub const NONE: Effects = Effects(0);
    pub const READS_STATE: Effects = Effects(1);
    pub const WRITES_STATE: Effects = Effects(2);
    pub const READS_MEM: Effects = Effects(4);
    pub const WRITES_MEM: Effects = Effects(8);
    /// May leave the block before the current guest instruction; the state must then be as it was before it.
    pub const MAY_LEAVE: Effects = Effects(16);
    pub const TERMINATOR: Effects = Effects(32);
    /// Must not be removed although its result is unused.
    pub const KEEP: Effects = Effects(64);
    /// May set floating-point exception flags of the guest: state that nothing but the end of the instruction orders.
    pub const FP_FLAGS: Effects = Effects(128);
    /// What makes a helper call more than a function of operands, state and memory.
    pub const SIDE: Effects = Effects(2 | 8 | 16 | 64);

    pub const fn or(self, o: Effects) -> Effects {
        Effects(self.0 | o.0)
    }

    pub const fn has(self, o: Effects) -> bool {
        self.0 & o.0 != 0
    }
}

/// Result of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Res {
    /// None; `Inst::ty` is the type of the value operated on.
    None,
    /// A value of type `Inst::ty`.
    Ty,
    /// A value of this type; `Inst::ty` is the operands' type.
    Fixed(super::Ty),
}

macro_rules! ops {
    ($($(#[doc = $doc:expr])* $name:ident = $text:expr, $args:expr, $res:expr, $eff:expr;)*) => {
        /// Every IR op. Fields of `Inst` that an op uses: operands a, b, c (in this order), `ty`, and where the text says
        /// so `aux` and `imm`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Op { $($(#[doc = $doc])* $name,)* }
        impl Op {
            pub const ALL: &'static [Op] = &[$(Op::$name,)*];
            pub const fn name(self) -> &'static str { match self { $(Op::$name => $text,)* } }
            /// Number of value operands.
            #[inline]
            pub const fn args(self) -> u32 {
                const TABLE: &[u32] = &[$($args,)*];
                TABLE[self as usize]
            }
            #[inline]
            pub const fn result(self) -> Res {
                const TABLE: &[Res] = &[$($res,)*];
                TABLE[self as usize]
            }
            /// Effects; those of `Call` are joined with its helper's.
            #[inline]
            pub const fn effects(self) -> Effects {
                const TABLE: &[Effects] = &[$($eff,)*];
                TABLE[self as usize]
            }
        }
    };
}

use super::Ty;
const PURE: Effects = Effects::NONE;
const LOADS: Effects = Effects::READS_MEM.or(Effects::MAY_LEAVE).or(Effects::KEEP);
const STORES: Effects = Effects::WRITES_MEM.or(Effects::MAY_LEAVE).or(Effects::KEEP);
const ATOMIC: Effects = LOADS.or(STORES);
const FP: Effects = Effects::FP_FLAGS.or(Effects::KEEP);
const END: Effects = Effects::TERMINATOR.or(Effects::KEEP);

ops! {
    /// Start of a guest instruction: `imm` = offset of its first byte from the page's start, `aux` = length in bytes.
    Insn = "insn", 0, Res::None, Effects::KEEP;
    /// `imm`, truncated to `ty`; for V128 zero-extended from 64 bits.
    Const = "const", 0, Res::Ty, PURE;
    /// Program counter of the page's first byte (a value known at block entry) plus `imm`; always I64, not masked.
    PcRel = "pcrel", 0, Res::Ty, PURE;
    /// Value of type `ty` at byte `imm` of state slot `aux`.
    Get = "get", 0, Res::Ty, Effects::READS_STATE;
    /// Stores a at byte `imm` of state slot `aux`.
    Set = "set", 1, Res::None, Effects::WRITES_STATE.or(Effects::KEEP);

    /// a + b, wrapping. Operands and results of integer ops have type `ty` unless said otherwise.
    Add = "add", 2, Res::Ty, PURE;
    Sub = "sub", 2, Res::Ty, PURE;
    Mul = "mul", 2, Res::Ty, PURE;
    /// Upper half of the unsigned product.
    MulHiU = "mulhi_u", 2, Res::Ty, PURE;
    /// Upper half of the signed product.
    MulHiS = "mulhi_s", 2, Res::Ty, PURE;
    /// Unsigned quotient; I32 and I64 only. b must not be 0: a `RaiseIf` before it makes sure.
    DivU = "div_u", 2, Res::Ty, PURE;
    RemU = "rem_u", 2, Res::Ty, PURE;
    /// Signed quotient, truncated; b not 0 and not the overflowing pair (MIN, -1).
    DivS = "div_s", 2, Res::Ty, PURE;
    RemS = "rem_s", 2, Res::Ty, PURE;
    And = "and", 2, Res::Ty, PURE;
    Or = "or", 2, Res::Ty, PURE;
    Xor = "xor", 2, Res::Ty, PURE;
    /// Shifts and rotates take b modulo the width of `ty`.
    Shl = "shl", 2, Res::Ty, PURE;
    Shr = "shr", 2, Res::Ty, PURE;
    Sar = "sar", 2, Res::Ty, PURE;
    Rotl = "rotl", 2, Res::Ty, PURE;
    Rotr = "rotr", 2, Res::Ty, PURE;
    Neg = "neg", 1, Res::Ty, PURE;
    Not = "not", 1, Res::Ty, PURE;
    /// Leading zeroes; the width for 0.
    Clz = "clz", 1, Res::Ty, PURE;
    /// Trailing zeroes; the width for 0.
    Ctz = "ctz", 1, Res::Ty, PURE;
    Popcnt = "popcnt", 1, Res::Ty, PURE;
    /// Byte swap; not for I8.
    Bswap = "bswap", 1, Res::Ty, PURE;
    /// To the wider integer type `ty`.
    ZExt = "zext", 1, Res::Ty, PURE;
    SExt = "sext", 1, Res::Ty, PURE;
    /// To the narrower integer type `ty`.
    Trunc = "trunc", 1, Res::Ty, PURE;
    /// 1 if a `aux`(Cond) b, else 0; operands of type `ty`, result I8.
    Cmp = "cmp", 2, Res::Fixed(Ty::I8), PURE;
    /// a (I8) not 0: b, else c.
    Select = "select", 3, Res::Ty, PURE;

    /// Value of type `ty` at byte `imm` of the page that the block came from, as it is there when the op is done. It lies in
    /// `Block::loose`.
    Source = "source", 0, Res::Ty, Effects::READS_MEM;
    /// Loads `ty` from linear address a (I64) + `imm`; any alignment. `aux` = access context.
    Load = "load", 1, Res::Ty, LOADS;
    /// Stores b to a + `imm`.
    Store = "store", 2, Res::None, STORES;
    /// Leaves if a write of `aux >> 2` bytes at a + `imm` would; `aux & 3` = access context. Never touches memory.
    ProbeW = "probe_w", 1, Res::None, Effects::MAY_LEAVE.or(Effects::KEEP);
    /// Atomic old = [a + imm]; [a + imm] = old `aux >> 2`(Rmw) b; gives old. `aux & 3` = access context.
    AtomicRmw = "rmw", 2, Res::Ty, ATOMIC;
    /// Atomic compare-and-swap at a + `imm`: expected b, new c; gives old. `aux` = access context. Not V128.
    AtomicCas = "cas", 3, Res::Ty, ATOMIC;

    /// Lane-wise op `aux`(VecOp) of two vectors.
    Vec = "vec", 2, Res::Ty, PURE;
    /// I64 lane `aux` (0, 1) of a vector.
    VLane = "vlane", 1, Res::Fixed(Ty::I64), PURE;
    /// a (V128) with I64 lane `aux` replaced by b.
    VSetLane = "vsetlane", 2, Res::Fixed(Ty::V128), PURE;
    /// Lanes of a shifted by `imm` as `aux`(VecShift) says; `imm` is less than the lane width.
    VShift = "vshift", 1, Res::Ty, PURE;
    /// Byte i is byte m of b:a, m = bits 5i+4..5i of the 80-bit number `aux`:`imm` (`Inst::shuffle_mask`).
    VShuffle = "vshuffle", 2, Res::Ty, PURE;
    /// The top bit of each lane of `aux` (8, 16, 32, 64) bits, lane 0 in bit 0.
    VMask = "vmask", 1, Res::Fixed(Ty::I64), PURE;

    /// Floating-point op `aux`(FpOp) of two vectors. Its exception flags join `StateLayout::fp_flags` at the latest before
    /// anything else than the block's own ops looks at them: `Get` and `Set` of that slot do not go with it.
    VFp = "vfp", 2, Res::Ty, FP;
    /// The same with an I64 as result.
    FpGet = "fp_get", 2, Res::Fixed(Ty::I64), FP;
    /// The same with an I64 as b.
    FpSet = "fp_set", 2, Res::Fixed(Ty::V128), FP;

    /// Op `aux`(TriOp) of three vectors; exception flags of those that are floating point as `VFp`.
    VTri = "vtri", 3, Res::Ty, FP;

    /// Calls helper `aux` with operands a, b, c (I64; `imm` of them are used, in order); gives I64.
    Call = "call", 3, Res::Fixed(Ty::I64), Effects::KEEP;
    /// Raises guest exception `aux` (error code `imm` if not negative) if a (I8) is not 0. Compiled code leaves instead,
    /// and the interpreter raises it.
    RaiseIf = "raise_if", 1, Res::None, Effects::MAY_LEAVE.or(Effects::KEEP);
    /// Leaves the block if a (I8) is not 0: a guess (`CodeFetch::guess`) was wrong. The instruction, of which nothing is done yet, is
    /// then run alone, from a translation without it.
    LeaveIf = "leave_if", 1, Res::None, Effects::MAY_LEAVE.or(Effects::KEEP);

    /// a (I8) not 0: continue at page offset `imm`, which lies in the page; else with the next instruction, which need not be the one behind. Nothing
    /// of the instruction has been done, so engines may as well leave and have it run alone.
    Side = "side", 1, Res::None, Effects::MAY_LEAVE.or(Effects::KEEP);

    /// Ends the block: continue at page offset `imm` (it may lie outside the page). `aux`: 0 jump, 1 call, which is expected to return
    /// to the block's `next`, for prediction.
    Jump = "jump", 0, Res::None, END;
    /// a (I8) not 0: continue at page offset `imm`; else at the block's `next`.
    Br = "br", 1, Res::None, END;
    /// Continue at program counter a (I64). `aux`: 0 jump, 1 call, 2 return, for prediction.
    JumpInd = "jump_ind", 1, Res::None, END;
    /// Back to the dispatcher; the program counter in the state is already right. After what may change the mode.
    Exit = "exit", 0, Res::None, END;
    /// Back to the dispatcher, continuing at the block's `next`.
    ExitNext = "exit_next", 0, Res::None, END;
}

impl Op {
    pub const fn is_terminator(self) -> bool {
        self.effects().has(Effects::TERMINATOR)
    }
}
