//! Value types, comparison conditions and atomic operations.

/// Type of an SSA value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Ty {
    I8,
    I16,
    I32,
    I64,
    V128,
}

impl Ty {
    pub const ALL: [Ty; 5] = [Ty::I8, Ty::I16, Ty::I32, Ty::I64, Ty::V128];

    #[inline]
    pub const fn bytes(self) -> u32 {
        1 << self as u32
    }

    pub const fn bits(self) -> u32 {
        self.bytes() * 8
    }

    /// All ones in the low `bits()` of a u64; all 64 for V128.
    pub const fn mask(self) -> u64 {
        if self.bytes() >= 8 { !0 } else { (1 << self.bits()) - 1 }
    }

    /// The integer type of `bytes` 1, 2, 4 or 8.
    pub const fn int(bytes: u32) -> Ty {
        match bytes {
            1 => Ty::I8,
            2 => Ty::I16,
            4 => Ty::I32,
            _ => Ty::I64,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Ty::I8 => "i8",
            Ty::I16 => "i16",
            Ty::I32 => "i32",
            Ty::I64 => "i64",
            Ty::V128 => "v128",
        }
    }
}

macro_rules! named {
    ($(#[$m:meta])* $name:ident { $($v:ident = $text:expr,)* }) => {
        $(#[$m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($v,)* }
        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$v,)*];
            pub const fn name(self) -> &'static str {
                match self { $($name::$v => $text,)* }
            }
            /// From the number stored in `Inst::aux`.
            pub fn from_index(i: u16) -> Option<Self> {
                Self::ALL.get(usize::from(i)).copied()
            }
        }
    };
}
pub(crate) use named;

named! {
    /// Integer comparison.
    Cond {
        Eq = "eq", Ne = "ne", Ult = "ult", Uge = "uge", Ule = "ule", Ugt = "ugt",
        Slt = "slt", Sge = "sge", Sle = "sle", Sgt = "sgt",
    }
}

impl Cond {
    pub const fn negate(self) -> Cond {
        match self {
            Cond::Eq => Cond::Ne,
            Cond::Ne => Cond::Eq,
            Cond::Ult => Cond::Uge,
            Cond::Uge => Cond::Ult,
            Cond::Ule => Cond::Ugt,
            Cond::Ugt => Cond::Ule,
            Cond::Slt => Cond::Sge,
            Cond::Sge => Cond::Slt,
            Cond::Sle => Cond::Sgt,
            Cond::Sgt => Cond::Sle,
        }
    }

    /// Compares two values of type `ty`, zero-extended in `a` and `b`.
    pub fn eval(self, ty: Ty, a: u64, b: u64) -> bool {
        let sh = 64 - ty.bits().min(64);
        let (a, b) = (a << sh, b << sh);
        let (sa, sb) = (a as i64, b as i64);
        match self {
            Cond::Eq => a == b,
            Cond::Ne => a != b,
            Cond::Ult => a < b,
            Cond::Uge => a >= b,
            Cond::Ule => a <= b,
            Cond::Ugt => a > b,
            Cond::Slt => sa < sb,
            Cond::Sge => sa >= sb,
            Cond::Sle => sa <= sb,
            Cond::Sgt => sa > sb,
        }
    }
}

named! {
    /// Atomic read-modify-write.
    Rmw { Add = "add", And = "and", Or = "or", Xor = "xor", Xchg = "xchg", }
}
