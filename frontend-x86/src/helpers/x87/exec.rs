//! What each form of x87 instruction does to the stack (SDM 2; stack faults: SDM 1 "Stack Overflow or Underflow
//! Exception").

use super::stack::{Fpu, INDEFINITE, from_bytes, sw, to_bytes};
use super::{Code, Form};
use crate::hostfp::x87::{X87Io, X87Op};
use arch_x86::F80;

/// Exceptions found before computing: an unmasked one leaves the operands as they were.
const BEFORE: u16 = sw::IE | sw::DE | sw::ZE;

/// Executes all forms but stores. `cond`: FCMOV's condition. Gives FCOMI's flags.
pub fn run(f: &mut Fpu<'_>, c: Code, mem: [u8; 16], cond: u64) -> u64 {
    match c.form {
        Form::ArithSt0 => arith(f, c, 0, c.i),
        Form::ArithSti => arith(f, c, c.i, 0),
        Form::ArithMem | Form::Unary => unary(f, c, mem, false),
        Form::Binary => unary(f, c, mem, true),
        Form::Compare | Form::CompareMem | Form::CompareFlags => return compare(f, c, mem),
        Form::Examine => examine(f, c),
        Form::BinaryPop => binary_pop(f, c),
        Form::UnaryPush => unary_push(f, c),
        Form::Constant | Form::Load => load(f, c, mem),
        Form::LoadF80 => push(f, Some(from_bytes(&mem))),
        Form::LoadReg => {
            let v = (!f.empty(c.i)).then(|| f.get(c.i));
            push(f, v);
        }
        Form::StoreReg => store_reg(f, c),
        Form::Exchange => exchange(f, c.i),
        Form::Move => conditional_move(f, c.i, cond != 0),
        Form::Free => {
            f.status(0, sw::C1);
            f.free(c.i);
            f.pop(c.pops);
        }
        Form::IncTop => rotate(f, 1),
        Form::DecTop => rotate(f, 7),
        Form::Nop | Form::Store | Form::StoreF80 | Form::Control => {}
    }
    0
}

/// Runs on the host with ST(0) = `a`, ST(1) = `b`.
fn host(f: &Fpu<'_>, op: X87Op, a: F80, b: F80, mem: [u8; 16]) -> X87Io {
    let mut io = X87Io { st: [a, b], mem, fcw: f.control(), fsw: 0 };
    op.run(&mut io);
    io
}

/// ST(dst) = ST(dst) op ST(src).
fn arith(f: &mut Fpu<'_>, c: Code, dst: u8, src: u8) {
    if f.empty(dst) || f.empty(src) {
        if f.stack_fault(false) {
            f.set(dst, INDEFINITE);
            f.pop(c.pops);
        }
        return;
    }
    let io = host(f, c.op, f.get(dst), f.get(src), [0; 16]);
    f.status(io.fsw, sw::C1);
    if !f.blocks(io.fsw, BEFORE) {
        f.set(dst, io.st[0]);
        f.pop(c.pops);
    }
}

/// ST(0) = op on ST(0), and ST(1) (`two`) or memory.
fn unary(f: &mut Fpu<'_>, c: Code, mem: [u8; 16], two: bool) {
    if f.empty(0) || two && f.empty(1) {
        if f.stack_fault(false) {
            f.set(0, INDEFINITE);
        }
        return clear_c2(f, c.op);
    }
    let io = host(f, c.op, f.get(0), f.get(1), mem);
    let codes = match c.op {
        // A NaN or a trap has no quotient: C0 and C3 stay.
        X87Op::Prem | X87Op::Prem1 if io.st[0].sexp & 0x7fff != 0x7fff && !f.blocks(io.fsw, BEFORE) => sw::CC,
        X87Op::Prem | X87Op::Prem1 | X87Op::Sin | X87Op::Cos => sw::C1 | sw::C2,
        _ => sw::C1,
    };
    f.status(io.fsw, codes);
    if !f.blocks(io.fsw, BEFORE) {
        f.set(0, io.st[0]);
    }
}

/// After a stack fault of an instruction that reports an incomplete reduction in C2: there is none.
fn clear_c2(f: &mut Fpu<'_>, op: X87Op) {
    if matches!(op, X87Op::Prem | X87Op::Prem1 | X87Op::Sin | X87Op::Cos | X87Op::PTan | X87Op::SinCos) {
        f.status(0, sw::C2);
    }
}

fn compare(f: &mut Fpu<'_>, c: Code, mem: [u8; 16]) -> u64 {
    let flags = c.form == Form::CompareFlags;
    // FCOMI and its kin leave C1 alone, as processors have it, but for a stack fault.
    let codes = if flags { 0 } else { sw::CC };
    let unordered = sw::C0 | sw::C2 | sw::C3;
    let status = if f.empty(0) || c.form != Form::CompareMem && f.empty(c.i) {
        let masked = f.stack_fault(false);
        f.status(unordered, codes);
        if masked {
            f.pop(c.pops);
        }
        unordered
    } else {
        let io = host(f, c.op, f.get(0), f.get(c.i), mem);
        f.status(io.fsw & !sw::C1, codes);
        if !f.blocks(io.fsw, BEFORE) {
            f.pop(c.pops);
        }
        io.fsw
    };
    // C0 C2 C3 lie where CF PF ZF do, one byte up.
    u64::from(status >> 8 & 0x45)
}

fn examine(f: &mut Fpu<'_>, c: Code) {
    if !f.empty(0) {
        let io = host(f, c.op, f.get(0), F80::default(), [0; 16]);
        return f.status(io.fsw, sw::CC);
    }
    if c.op == X87Op::Xam {
        // Empty: C3 C0, and the sign of what the register still holds in C1.
        let sign = if f.get(0).sexp >> 15 == 1 { sw::C1 } else { 0 };
        return f.status(sw::C3 | sw::C0 | sign, sw::CC);
    }
    f.stack_fault(false);
    f.status(sw::C0 | sw::C2 | sw::C3, sw::CC);
}

fn binary_pop(f: &mut Fpu<'_>, c: Code) {
    if f.empty(0) || f.empty(1) {
        if f.stack_fault(false) {
            f.set(1, INDEFINITE);
            f.pop(1);
        }
        return;
    }
    let io = host(f, c.op, f.get(0), f.get(1), [0; 16]);
    f.status(io.fsw, sw::C1);
    if !f.blocks(io.fsw, BEFORE) {
        f.set(1, io.st[0]);
        f.pop(1);
    }
}

fn unary_push(f: &mut Fpu<'_>, c: Code) {
    if f.empty(0) || !f.empty(7) {
        let overflow = !f.empty(0);
        if f.stack_fault(overflow) {
            f.set(0, INDEFINITE);
            f.push(INDEFINITE);
        }
        return clear_c2(f, c.op);
    }
    let io = host(f, c.op, f.get(0), F80::default(), [0; 16]);
    let trig = c.op != X87Op::XTract;
    f.status(io.fsw, if trig { sw::C1 | sw::C2 } else { sw::C1 });
    let out_of_range = trig && io.fsw & sw::C2 != 0;
    if !out_of_range && !f.blocks(io.fsw, BEFORE) {
        f.set(0, io.st[1]);
        f.push(io.st[0]);
    }
}

/// Pushes `v`; `None`: it comes from an empty register.
fn push(f: &mut Fpu<'_>, v: Option<F80>) {
    if !f.empty(7) || v.is_none() {
        // An empty source counts before a full stack.
        if f.stack_fault(v.is_some()) {
            f.push(INDEFINITE);
        }
        return;
    }
    f.status(0, sw::C1);
    if let Some(v) = v {
        f.push(v);
    }
}

fn load(f: &mut Fpu<'_>, c: Code, mem: [u8; 16]) {
    if !f.empty(7) {
        return push(f, Some(F80::default()));
    }
    let io = host(f, c.op, F80::default(), F80::default(), mem);
    f.status(io.fsw & !sw::C1, sw::C1);
    // CPUs differ in whether an unmasked denormal operand stops a load: the host's TOP tells (three registers in use).
    if io.fsw & sw::TOP == 5 << sw::TOP_SHIFT {
        f.push(io.st[0]);
    }
}

fn store_reg(f: &mut Fpu<'_>, c: Code) {
    let v = if c.op == X87Op::Xam {
        // FSTPNCE: an empty register is no fault, and nothing is copied.
        f.status(0, sw::C1);
        if f.empty(0) {
            return f.pop(c.pops);
        }
        f.get(0)
    } else if f.empty(0) {
        if !f.stack_fault(false) {
            return;
        }
        INDEFINITE
    } else {
        f.status(0, sw::C1);
        f.get(0)
    };
    f.set(c.i, v);
    f.pop(c.pops);
}

fn exchange(f: &mut Fpu<'_>, i: u8) {
    if f.empty(0) || f.empty(i) {
        if !f.stack_fault(false) {
            return;
        }
        for r in [0, i] {
            if f.empty(r) {
                f.set(r, INDEFINITE);
            }
        }
    } else {
        f.status(0, sw::C1);
    }
    let (a, b) = (f.get(0), f.get(i));
    f.set(0, b);
    f.set(i, a);
}

fn conditional_move(f: &mut Fpu<'_>, i: u8, cond: bool) {
    if f.empty(0) || f.empty(i) {
        if f.stack_fault(false) {
            f.set(0, INDEFINITE);
        }
        return;
    }
    // C1 stays, as processors have it.
    if cond {
        let v = f.get(i);
        f.set(0, v);
    }
}

fn rotate(f: &mut Fpu<'_>, by: u8) {
    f.status(0, sw::C1);
    f.rotate(by);
}

/// Executes a store to memory but for the memory: what is to be stored, `None` if an unmasked exception forbids it.
pub fn store(f: &mut Fpu<'_>, c: Code) -> Option<[u8; 16]> {
    // Overflow and underflow, when unmasked, keep memory as it is too.
    const STORE: u16 = 0x1f;
    if f.empty(0) {
        if !f.stack_fault(false) {
            return None;
        }
        let v = if c.form == Form::StoreF80 { to_bytes(INDEFINITE) } else { host_default(c.op) };
        f.pop(c.pops);
        return Some(v);
    }
    let v = if c.form == Form::StoreF80 {
        f.status(0, sw::C1);
        to_bytes(f.get(0))
    } else {
        let io = host(f, c.op, f.get(0), F80::default(), [0; 16]);
        f.status(io.fsw, sw::C1);
        if f.blocks(io.fsw, STORE) {
            return None;
        }
        io.mem
    };
    f.pop(c.pops);
    Some(v)
}

/// What a masked invalid store gives: the conversion of the indefinite value.
fn host_default(op: X87Op) -> [u8; 16] {
    let mut io = X87Io { st: [INDEFINITE, F80::default()], mem: [0; 16], fcw: 0x37f, fsw: 0 };
    op.run(&mut io);
    io.mem
}
