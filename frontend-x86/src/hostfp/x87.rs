//! x87 operations (SDM 1 chapter 8) in the host's own 80-bit arithmetic under the guest's control word.
//!
//! The guest's exception masks are in force too: an unmasked exception only sets ES, is seen in the status word and cleared
//! before the next waiting instruction, and the host computes exactly what the guest's CPU would (scaled results too).

use arch_x86::F80;

/// FCW after FNINIT, the host's, and that of most guests' programs.
pub const FCW_DEFAULT: u16 = 0x37f;
static HOST_FCW: u16 = FCW_DEFAULT;

/// Operands and results of one operation.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct X87Io {
    /// ST(0) and ST(1) before; afterwards the two topmost registers (what a push or pop leaves on top comes first).
    pub st: [F80; 2],
    /// Memory operand, or what was stored.
    pub mem: [u8; 16],
    /// Control word.
    pub fcw: u16,
    /// Status word after the operation.
    pub fsw: u16,
}

#[cfg(target_arch = "x86_64")]
macro_rules! body {
    ($asm:literal, $io:ident) => {
        // SAFETY: rdi points at `io`, whose fields at offsets 0, 16, 32, 48, 50 (repr(C)) are all that is accessed; the x87
        // stack is empty and FCW the default before and after; every x87 register is declared clobbered.
        unsafe {
            std::arch::asm!(
                "fnclex", "fldcw [rdi + 48]", "fld tbyte ptr [rdi + 16]", "fld tbyte ptr [rdi]", $asm, "fnstsw [rdi + 50]", "fnclex",
                "fldcw [rsi]", "fstp tbyte ptr [rdi]", "fstp tbyte ptr [rdi + 16]", "fninit",
                in("rdi") &raw mut *$io, in("rsi") &raw const HOST_FCW, out("st(0)") _, out("st(1)") _, out("st(2)") _,
                out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _, options(nostack),
            );
        }
    };
}

/// The same under the default control word for an instruction that leaves as many registers as `$drop` and the two stores before
/// it take off: the control word stays, exceptions are cleared only if there are any, and the stack need not be reset.
#[cfg(target_arch = "x86_64")]
macro_rules! quick {
    ($asm:literal, $second:literal, $drop:literal, $io:ident) => {
        // SAFETY: as above; no exception is pending and none is unmasked.
        unsafe {
            std::arch::asm!(
                "fnstsw ax", "test al, 0x7f", "jz 3f", "fnclex", "3:",
                "fld tbyte ptr [rdi + 16]", "fld tbyte ptr [rdi]", $asm, "fnstsw ax", "fstp tbyte ptr [rdi]", $second, $drop,
                "mov [rdi + 50], ax", "test al, 0x7f", "jz 2f", "fnclex", "2:",
                in("rdi") &raw mut *$io, out("ax") _, out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
                out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _, options(nostack),
            );
        }
    };
}

#[cfg(not(target_arch = "x86_64"))]
macro_rules! quick {
    ($asm:literal, $second:literal, $drop:literal, $io:ident) => {{
        let _ = ($asm, $second, $drop, $io);
        super::unsupported()
    }};
}

/// One operation; the word tells how many registers it leaves of two.
macro_rules! one {
    (two $asm:literal $io:ident) => {
        if $io.fcw == FCW_DEFAULT { quick!($asm, "fstp tbyte ptr [rdi + 16]", "", $io) } else { body!($asm, $io) }
    };
    (one $asm:literal $io:ident) => {
        if $io.fcw == FCW_DEFAULT { quick!($asm, "", "", $io) } else { body!($asm, $io) }
    };
    (three $asm:literal $io:ident) => {
        if $io.fcw == FCW_DEFAULT { quick!($asm, "fstp tbyte ptr [rdi + 16]", "fstp st(0)", $io) } else { body!($asm, $io) }
    };
    (any $asm:literal $io:ident) => {
        body!($asm, $io)
    };
}

#[cfg(not(target_arch = "x86_64"))]
macro_rules! body {
    ($asm:literal, $io:ident) => {{
        let _ = ($asm, $io, HOST_FCW);
        super::unsupported()
    }};
}

macro_rules! ops {
    ($($left:ident { $($name:ident = $asm:literal;)* })*) => {
        /// An operation on ST(0), ST(1) and a memory operand; see the table for its instruction.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum X87Op { $($($name,)*)* }

        impl X87Op {
            pub const ALL: &'static [X87Op] = &[$($(X87Op::$name,)*)*];
            const CODE: &'static [fn(&mut X87Io)] = &[$($({ fn run(io: &mut X87Io) { one!($left $asm io) } run },)*)*];
        }
    };
}

ops! {
    two {
    // ST(0) = ST(0) op ST(1); the R forms exchange the operands.
    Add = "fadd st, st(1)"; Mul = "fmul st, st(1)"; Com = "fcom st(1)"; Ucom = "fucom st(1)";
    Sub = "fsub st, st(1)"; SubR = "fsubr st, st(1)"; Div = "fdiv st, st(1)"; DivR = "fdivr st, st(1)";
    Add32 = "fadd dword ptr [rdi + 32]"; Mul32 = "fmul dword ptr [rdi + 32]"; Com32 = "fcom dword ptr [rdi + 32]";
    Sub32 = "fsub dword ptr [rdi + 32]"; SubR32 = "fsubr dword ptr [rdi + 32]"; Div32 = "fdiv dword ptr [rdi + 32]";
    DivR32 = "fdivr dword ptr [rdi + 32]";
    Add64 = "fadd qword ptr [rdi + 32]"; Mul64 = "fmul qword ptr [rdi + 32]"; Com64 = "fcom qword ptr [rdi + 32]";
    Sub64 = "fsub qword ptr [rdi + 32]"; SubR64 = "fsubr qword ptr [rdi + 32]"; Div64 = "fdiv qword ptr [rdi + 32]";
    DivR64 = "fdivr qword ptr [rdi + 32]";
    IAdd32 = "fiadd dword ptr [rdi + 32]"; IMul32 = "fimul dword ptr [rdi + 32]"; ICom32 = "ficom dword ptr [rdi + 32]";
    ISub32 = "fisub dword ptr [rdi + 32]"; ISubR32 = "fisubr dword ptr [rdi + 32]"; IDiv32 = "fidiv dword ptr [rdi + 32]";
    IDivR32 = "fidivr dword ptr [rdi + 32]";
    IAdd16 = "fiadd word ptr [rdi + 32]"; IMul16 = "fimul word ptr [rdi + 32]"; ICom16 = "ficom word ptr [rdi + 32]";
    ISub16 = "fisub word ptr [rdi + 32]"; ISubR16 = "fisubr word ptr [rdi + 32]"; IDiv16 = "fidiv word ptr [rdi + 32]";
    IDivR16 = "fidivr word ptr [rdi + 32]";
    // Replace ST(0).
    Chs = "fchs"; Abs = "fabs"; Tst = "ftst"; Xam = "fxam"; Sqrt = "fsqrt"; RndInt = "frndint"; Scale = "fscale";
    F2xm1 = "f2xm1"; Sin = "fsin"; Cos = "fcos"; Prem = "fprem"; Prem1 = "fprem1";
    }
    one {
    // Replace ST(1) and pop.
    Yl2x = "fyl2x"; Yl2xp1 = "fyl2xp1"; PAtan = "fpatan";
    }
    any {
    // Replace ST(0) and push (FSIN's and FPTAN's C2: nothing done).
    PTan = "fptan"; SinCos = "fsincos"; XTract = "fxtract";
    }
    three {
    // Push.
    Ld1 = "fld1"; Ldl2t = "fldl2t"; Ldl2e = "fldl2e"; LdPi = "fldpi"; Ldlg2 = "fldlg2"; Ldln2 = "fldln2"; Ldz = "fldz";
    Ld32 = "fld dword ptr [rdi + 32]"; Ld64 = "fld qword ptr [rdi + 32]"; Bld = "fbld tbyte ptr [rdi + 32]";
    Ild16 = "fild word ptr [rdi + 32]"; Ild32 = "fild dword ptr [rdi + 32]"; Ild64 = "fild qword ptr [rdi + 32]";
    }
    two {
    // Store ST(0) to memory. The popping forms are used where there is no other.
    St32 = "fst dword ptr [rdi + 32]"; St64 = "fst qword ptr [rdi + 32]";
    Ist16 = "fist word ptr [rdi + 32]"; Ist32 = "fist dword ptr [rdi + 32]";
    }
    one {
    Bstp = "fbstp tbyte ptr [rdi + 32]"; Istp64 = "fistp qword ptr [rdi + 32]";
    Isttp16 = "fisttp word ptr [rdi + 32]"; Isttp32 = "fisttp dword ptr [rdi + 32]"; Isttp64 = "fisttp qword ptr [rdi + 32]";
    }
}

impl X87Op {
    pub fn from_index(i: u16) -> Option<X87Op> {
        Self::ALL.get(usize::from(i)).copied()
    }

    pub fn run(self, io: &mut X87Io) {
        Self::CODE[self as usize](io);
    }
}
