//! The commonest x87 operations right on the guest's registers, under the control word that nearly everybody has: all
//! exceptions masked, 64 bits of precision, rounding to nearest. Exception flags stay set in the host's status word as long as the
//! guest's has them too, since clearing costs more than the operation; where there might be a new one it is done again from clear.

use super::x87::{FCW_DEFAULT, X87Op};
use arch_x86::F80;

/// Does `control` ask for what is done here?
pub fn serves(control: u16) -> bool {
    control == FCW_DEFAULT
}

/// Exception flags in the status word.
const FLAGS: u16 = 0x3f;

/// `$load`s, `$op` and `$store`, once or twice; gives the status word.
macro_rules! once_or_twice {
    ($guest:expr, [$($load:literal),*], $op:literal, [$($store:literal),*], [$($drop:literal),*], $($operand:tt)*) => {{
        let status: u16;
        // SAFETY: reads and writes the operands only; the x87 stack is empty before and after, the control word the default.
        unsafe {
            std::arch::asm!(
                $($load,)* $op, "fnstsw ax", "test eax, {new:e}", "jz 2f",
                $($drop,)* "fnclex", $($load,)* $op, "fnstsw ax",
                "2:", $($store,)*
                new = in(reg) u32::from(!$guest & FLAGS), out("ax") status, $($operand)*
                out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _,
                out("st(6)") _, out("st(7)") _, options(nostack),
            );
        }
        status
    }};
}

/// `dst` = `dst` op `src`. `guest`: the guest's status word. Gives the host's, of which the exception flags and C1 count; `None`:
/// not one of the operations here.
pub fn arith(op: X87Op, dst: &mut F80, src: &F80, guest: u16) -> Option<u16> {
    macro_rules! run {
        ($asm:literal) => {
            once_or_twice!(guest, ["fld tbyte ptr [{s}]", "fld tbyte ptr [{d}]"], $asm, ["fstp tbyte ptr [{d}]", "fstp st(0)"],
                ["fstp st(0)", "fstp st(0)"], d = in(reg) &raw mut *dst, s = in(reg) &raw const *src,)
        };
    }
    Some(match op {
        X87Op::Add => run!("fadd st, st(1)"),
        X87Op::Mul => run!("fmul st, st(1)"),
        X87Op::Sub => run!("fsub st, st(1)"),
        X87Op::SubR => run!("fsubr st, st(1)"),
        X87Op::Div => run!("fdiv st, st(1)"),
        X87Op::DivR => run!("fdivr st, st(1)"),
        _ => return None,
    })
}

/// `dst` = `dst` op `mem`, or the function of `dst`.
pub fn arith_mem(op: X87Op, dst: &mut F80, mem: u64, guest: u16) -> Option<u16> {
    macro_rules! run {
        ($asm:literal) => {
            once_or_twice!(guest, ["fld tbyte ptr [{d}]"], $asm, ["fstp tbyte ptr [{d}]"], ["fstp st(0)"],
                d = in(reg) &raw mut *dst, m = in(reg) &raw const mem,)
        };
    }
    Some(match op {
        X87Op::Add32 => run!("fadd dword ptr [{m}]"),
        X87Op::Mul32 => run!("fmul dword ptr [{m}]"),
        X87Op::Sub32 => run!("fsub dword ptr [{m}]"),
        X87Op::SubR32 => run!("fsubr dword ptr [{m}]"),
        X87Op::Div32 => run!("fdiv dword ptr [{m}]"),
        X87Op::DivR32 => run!("fdivr dword ptr [{m}]"),
        X87Op::Add64 => run!("fadd qword ptr [{m}]"),
        X87Op::Mul64 => run!("fmul qword ptr [{m}]"),
        X87Op::Sub64 => run!("fsub qword ptr [{m}]"),
        X87Op::SubR64 => run!("fsubr qword ptr [{m}]"),
        X87Op::Div64 => run!("fdiv qword ptr [{m}]"),
        X87Op::DivR64 => run!("fdivr qword ptr [{m}]"),
        X87Op::Chs => {
            dst.sexp ^= 0x8000;
            0
        }
        X87Op::Abs => {
            dst.sexp &= 0x7fff;
            0
        }
        X87Op::Sqrt => once_or_twice!(guest, ["fld tbyte ptr [{d}]"], "fsqrt", ["fstp tbyte ptr [{d}]"], ["fstp st(0)"],
            d = in(reg) &raw mut *dst,),
        _ => return None,
    })
}

/// `dst` = `mem`, converted.
pub fn load(op: X87Op, dst: &mut F80, mem: u64, guest: u16) -> Option<u16> {
    macro_rules! run {
        ($asm:literal) => {
            once_or_twice!(guest, [], $asm, ["fstp tbyte ptr [{d}]"], ["fstp st(0)"], d = in(reg) &raw mut *dst,
                m = in(reg) &raw const mem,)
        };
    }
    Some(match op {
        X87Op::Ld32 => run!("fld dword ptr [{m}]"),
        X87Op::Ld64 => run!("fld qword ptr [{m}]"),
        X87Op::Ild16 => run!("fild word ptr [{m}]"),
        X87Op::Ild32 => run!("fild dword ptr [{m}]"),
        X87Op::Ild64 => run!("fild qword ptr [{m}]"),
        X87Op::Ld1 => run!("fld1 /* {m} */"),
        X87Op::Ldz => run!("fldz /* {m} */"),
        _ => return None,
    })
}

/// `src` converted, and the status word.
pub fn store(op: X87Op, src: &F80, guest: u16) -> Option<(u64, u16)> {
    let mut mem = 0u64;
    macro_rules! run {
        ($asm:literal) => {
            once_or_twice!(guest, ["fld tbyte ptr [{s}]"], $asm, ["fstp st(0)"], ["fstp st(0)"], s = in(reg) &raw const *src,
                m = in(reg) &raw mut mem,)
        };
    }
    let status = match op {
        X87Op::St32 => run!("fst dword ptr [{m}]"),
        X87Op::St64 => run!("fst qword ptr [{m}]"),
        X87Op::Ist16 => run!("fist word ptr [{m}]"),
        X87Op::Ist32 => run!("fist dword ptr [{m}]"),
        _ => return None,
    };
    Some((mem, status))
}
