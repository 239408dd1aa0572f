//! x87 (SDM 1 chapter 8), FXSAVE and FXRSTOR: every instruction is a call of one helper with a description of it.

use super::Tr;
use crate::helpers::x87::{Code, FLDENV, FNCLEX, FNINIT, FNSAVE, FNSTENV, FNSTSW, FRSTOR, FXRSTOR, FXSAVE, Form, X87, X87_WAIT};
use crate::hostfp::x87::X87Op as O;
use crate::layout::FCW;
use arch_x86::fault::vector;
use arch_x86::{Mode, SegReg};
use iced_x86::{CpuidFeature, MemorySize, Mnemonic as M, Register};
use ir::{HelperId, Op, Ty, Val, X87Insn, X87Kind};

/// Translates the current instruction if it belongs here.
pub fn translate(tr: &mut Tr<'_>) -> bool {
    use CpuidFeature as F;
    let fpu = |f: &F| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::FXSR | F::FPU387SL_ONLY);
    let x87 = tr.insn.is_fpu_like() || tr.insn.cpuid_features().iter().any(fpu);
    x87 && (control(tr) || compute(tr))
}

trait FpuLike {
    fn is_fpu_like(&self) -> bool;
}

impl FpuLike for iced_x86::Instruction {
    fn is_fpu_like(&self) -> bool {
        matches!(self.mnemonic(), M::Wait | M::Fisttp) || (0..self.op_count()).any(|i| self.op_register(i).is_st())
    }
}

impl Tr<'_> {
    /// Raises #NM or #UD if x87 instructions may not run. `false`: it did.
    fn fpu_enabled(&mut self) -> bool {
        if !self.has_features() {
            self.ud();
        } else if self.mode.has(Mode::EM) || self.mode.has(Mode::TS) {
            self.raise(vector::NM, None);
        } else {
            return true;
        }
        false
    }

    /// #MF if an unmasked x87 exception is pending.
    pub(super) fn x87_wait(&mut self) {
        self.call(X87_WAIT, &[]);
    }
}

/// Instructions on control, status and whole state.
fn control(tr: &mut Tr<'_>) -> bool {
    let m = tr.insn.mnemonic();
    if m == M::Wait {
        if tr.mode.has(Mode::TS) && tr.mode.has(Mode::MP) {
            tr.raise(vector::NM, None);
        } else {
            tr.x87_wait();
        }
        return true;
    }
    let run: fn(&mut Tr<'_>) = match m {
        M::Fldcw => |tr| {
            tr.x87_wait();
            let v = tr.src(0, Ty::I16);
            let v = tr.b.zext(Ty::I64, v);
            let mut code = Code::new(Form::Control, O::Chs);
            code.host.kind = X87Kind::Control;
            let (code, zero) = (tr.i64(code.pack()), tr.i64(0));
            tr.call(X87, &[code, v, zero]);
        },
        M::Fnstcw | M::Fstcw => |tr| {
            let v = tr.b.get(Ty::I16, FCW, 0);
            tr.dst(0, v);
        },
        M::Fnstsw | M::Fstsw => |tr| {
            let v = tr.call(FNSTSW, &[]);
            let v = tr.b.zext(Ty::I16, v);
            tr.dst(0, v);
        },
        M::Fnclex | M::Fclex => |tr| {
            tr.call(FNCLEX, &[]);
        },
        M::Fninit | M::Finit => |tr| {
            tr.call(FNINIT, &[]);
        },
        M::Fnstenv | M::Fstenv => |tr| area(tr, FNSTENV, true),
        M::Fnsave | M::Fsave => |tr| area(tr, FNSAVE, true),
        M::Fldenv => |tr| area(tr, FLDENV, false),
        M::Frstor => |tr| area(tr, FRSTOR, false),
        M::Fxsave | M::Fxsave64 => |tr| area(tr, FXSAVE, true),
        // MXCSR may unmask exceptions, which is part of the mode.
        M::Fxrstor | M::Fxrstor64 => |tr| {
            area(tr, FXRSTOR, false);
            tr.exit_next();
        },
        M::Fndisi | M::Fneni | M::Fnsetpm | M::Fdisi | M::Feni | M::Fsetpm => |_| (),
        _ => return false,
    };
    if tr.fpu_enabled() {
        run(tr);
    }
    true
}

/// A helper on an area in memory; its second operand tells the format.
fn area(tr: &mut Tr<'_>, h: HelperId, write: bool) {
    let (bytes, format) = match tr.insn.memory_size() {
        MemorySize::FpuEnv14 => (14, 1),
        MemorySize::FpuState94 => (94, 1),
        MemorySize::FpuEnv28 => (28, 0),
        MemorySize::FpuState108 => (108, 0),
        _ => (512, u64::from(matches!(tr.insn.mnemonic(), M::Fxsave64 | M::Fxrstor64))),
    };
    // A pending exception counts before faults of the operand.
    if matches!(tr.insn.mnemonic(), M::Fldenv | M::Frstor) {
        tr.x87_wait();
    }
    let a = tr.mem_addr(bytes, write);
    // Of an environment its fields; FXSAVE has a rule of its own.
    if bytes < 512 {
        let part = if format == 1 { 2 } else { 4 };
        tr.alignment(a, 0, part, part);
    } else {
        tr.alignment(a, 0, 16, 16);
    }
    let format = tr.i64(format);
    tr.call(h, &[a, format]);
}

/// Everything that goes through the `X87` helper.
fn compute(tr: &mut Tr<'_>) -> bool {
    let Some(mut code) = describe(tr) else { return false };
    if !tr.fpu_enabled() {
        return true;
    }
    code.host = on_host(tr, code.form);
    let (mut addr, mut ptr) = (tr.i64(0), tr.i64(0));
    if tr.insn.op_count() > 0 && tr.is_mem(0) {
        code.host.bytes = tr.insn.memory_size().size() as u8;
        code.host.seg = Tr::seg_of(tr.insn.memory_segment()).unwrap_or(SegReg::Ds) as u8;
        let write = matches!(code.form, Form::Store | Form::StoreF80);
        // A pending exception counts before faults of the operand.
        if !tr.mode.has(Mode::FLAT) || tr.mode.has(Mode::ALIGN) || !tr.is_64() && tr.insn.has_segment_prefix() {
            tr.x87_wait();
        }
        addr = tr.mem_addr(code.host.bytes.into(), write);
        if code.host.bytes == 10 {
            tr.alignment(addr, 0, 8, 8);
        }
        let (off, disp) = tr.offset();
        ptr = tr.b.bin_imm(Op::Add, off, disp as u64);
    } else if code.form == Form::Move {
        addr = move_condition(tr);
    }
    let packed = tr.i64(code.pack());
    let r = tr.call(X87, &[packed, addr, ptr]);
    if code.form == Form::CompareFlags {
        tr.flags_bits(r);
    }
    true
}

/// The instruction as one of the host's.
fn on_host(tr: &Tr<'_>, form: Form) -> X87Insn {
    // Nothing but prefixes comes before it.
    let opcode = tr.bytes.iter().position(|b| (0xd8..=0xdf).contains(b));
    let kind = match form {
        _ if opcode.is_none() => X87Kind::Call,
        Form::ArithMem | Form::CompareMem | Form::Load | Form::LoadF80 => X87Kind::Load,
        Form::Store | Form::StoreF80 => X87Kind::Store,
        Form::CompareFlags => X87Kind::Flags,
        Form::Move => X87Kind::Move,
        _ => X87Kind::Plain,
    };
    let at = |i: usize| tr.bytes.get(opcode.unwrap_or(0) + i).copied().unwrap_or(0);
    X87Insn { kind, bytes: 0, seg: 0, ctx: tr.ctx() as u8, opcode: at(0), modrm: at(1) }
}

fn move_condition(tr: &mut Tr<'_>) -> Val {
    let cc = match tr.insn.mnemonic() {
        M::Fcmovb => 2,
        M::Fcmovnb => 3,
        M::Fcmove => 4,
        M::Fcmovne => 5,
        M::Fcmovbe => 6,
        M::Fcmovnbe => 7,
        M::Fcmovu => 10,
        _ => 11,
    };
    let c = tr.cond(cc);
    tr.b.zext(Ty::I64, c)
}

fn describe(tr: &Tr<'_>) -> Option<Code> {
    let m = tr.insn.mnemonic();
    let simple = |form, op| Some(Code::new(form, op));
    arithmetic(tr).or_else(|| compare(tr)).or_else(|| transfer(tr)).or_else(|| match m {
        M::Fchs => simple(Form::Unary, O::Chs),
        M::Fabs => simple(Form::Unary, O::Abs),
        M::Fsqrt => simple(Form::Unary, O::Sqrt),
        M::Frndint => simple(Form::Unary, O::RndInt),
        M::F2xm1 => simple(Form::Unary, O::F2xm1),
        M::Fsin => simple(Form::Unary, O::Sin),
        M::Fcos => simple(Form::Unary, O::Cos),
        M::Fscale => simple(Form::Binary, O::Scale),
        M::Fprem => simple(Form::Binary, O::Prem),
        M::Fprem1 => simple(Form::Binary, O::Prem1),
        M::Ftst => simple(Form::Examine, O::Tst),
        M::Fxam => simple(Form::Examine, O::Xam),
        M::Fyl2x => simple(Form::BinaryPop, O::Yl2x),
        M::Fyl2xp1 => simple(Form::BinaryPop, O::Yl2xp1),
        M::Fpatan => simple(Form::BinaryPop, O::PAtan),
        M::Fptan => simple(Form::UnaryPush, O::PTan),
        M::Fsincos => simple(Form::UnaryPush, O::SinCos),
        M::Fxtract => simple(Form::UnaryPush, O::XTract),
        M::Fld1 => simple(Form::Constant, O::Ld1),
        M::Fldl2t => simple(Form::Constant, O::Ldl2t),
        M::Fldl2e => simple(Form::Constant, O::Ldl2e),
        M::Fldpi => simple(Form::Constant, O::LdPi),
        M::Fldlg2 => simple(Form::Constant, O::Ldlg2),
        M::Fldln2 => simple(Form::Constant, O::Ldln2),
        M::Fldz => simple(Form::Constant, O::Ldz),
        M::Fincstp => simple(Form::IncTop, O::Chs),
        M::Fdecstp => simple(Form::DecTop, O::Chs),
        M::Fnop => simple(Form::Nop, O::Chs),
        _ => None,
    })
}

/// Number of ST(i) operand `i`, 0 if it is none.
fn st(tr: &Tr<'_>, i: u32) -> u8 {
    let r = tr.insn.op_register(i);
    if tr.insn.op_count() > i && tr.is_reg(i) && r.is_st() { (r as u32 - Register::ST0 as u32) as u8 } else { 0 }
}

fn arithmetic(tr: &Tr<'_>) -> Option<Code> {
    // Register, m32, m64, integer m32 and m16 forms.
    let (ops, pops) = match tr.insn.mnemonic() {
        M::Fadd => ([O::Add, O::Add32, O::Add64], 0),
        M::Faddp => ([O::Add; 3], 1),
        M::Fmul => ([O::Mul, O::Mul32, O::Mul64], 0),
        M::Fmulp => ([O::Mul; 3], 1),
        M::Fsub => ([O::Sub, O::Sub32, O::Sub64], 0),
        M::Fsubp => ([O::Sub; 3], 1),
        M::Fsubr => ([O::SubR, O::SubR32, O::SubR64], 0),
        M::Fsubrp => ([O::SubR; 3], 1),
        M::Fdiv => ([O::Div, O::Div32, O::Div64], 0),
        M::Fdivp => ([O::Div; 3], 1),
        M::Fdivr => ([O::DivR, O::DivR32, O::DivR64], 0),
        M::Fdivrp => ([O::DivR; 3], 1),
        M::Fiadd => ([O::IAdd16, O::IAdd32, O::IAdd32], 0),
        M::Fimul => ([O::IMul16, O::IMul32, O::IMul32], 0),
        M::Fisub => ([O::ISub16, O::ISub32, O::ISub32], 0),
        M::Fisubr => ([O::ISubR16, O::ISubR32, O::ISubR32], 0),
        M::Fidiv => ([O::IDiv16, O::IDiv32, O::IDiv32], 0),
        M::Fidivr => ([O::IDivR16, O::IDivR32, O::IDivR32], 0),
        _ => return None,
    };
    if tr.is_mem(0) {
        return Some(Code::new(Form::ArithMem, by_size(tr, ops)));
    }
    let to_st0 = pops == 0 && st(tr, 0) == 0;
    let (form, i) = if to_st0 { (Form::ArithSt0, st(tr, 1)) } else { (Form::ArithSti, st(tr, 0)) };
    Some(Code { i, pops, ..Code::new(form, ops[0]) })
}

/// Of [register or m16, m32, m64] that for the memory operand.
fn by_size(tr: &Tr<'_>, ops: [O; 3]) -> O {
    match tr.insn.memory_size().size() {
        4 => ops[1],
        8 => ops[2],
        _ => ops[0],
    }
}

fn compare(tr: &Tr<'_>) -> Option<Code> {
    let (form, ops, pops) = match tr.insn.mnemonic() {
        M::Fcom => (Form::Compare, [O::Com, O::Com32, O::Com64], 0),
        M::Fcomp => (Form::Compare, [O::Com, O::Com32, O::Com64], 1),
        M::Fcompp => return Some(Code { i: 1, pops: 2, ..Code::new(Form::Compare, O::Com) }),
        M::Fucompp => return Some(Code { i: 1, pops: 2, ..Code::new(Form::Compare, O::Ucom) }),
        M::Ficom => (Form::Compare, [O::ICom16, O::ICom32, O::ICom32], 0),
        M::Ficomp => (Form::Compare, [O::ICom16, O::ICom32, O::ICom32], 1),
        M::Fucom => (Form::Compare, [O::Ucom; 3], 0),
        M::Fucomp => (Form::Compare, [O::Ucom; 3], 1),
        M::Fcomi => (Form::CompareFlags, [O::Com; 3], 0),
        M::Fcomip => (Form::CompareFlags, [O::Com; 3], 1),
        M::Fucomi => (Form::CompareFlags, [O::Ucom; 3], 0),
        M::Fucomip => (Form::CompareFlags, [O::Ucom; 3], 1),
        _ => return None,
    };
    if tr.is_mem(0) {
        return Some(Code { pops, ..Code::new(Form::CompareMem, by_size(tr, ops)) });
    }
    Some(Code { i: st(tr, 1), pops, ..Code::new(form, ops[0]) })
}

/// Loads, stores and register moves.
fn transfer(tr: &Tr<'_>) -> Option<Code> {
    let mem = tr.insn.op_count() > 0 && tr.is_mem(0);
    let size = if mem { tr.insn.memory_size().size() } else { 0 };
    let m = tr.insn.mnemonic();
    let code = |form, op, pops| Some(Code { pops, ..Code::new(form, op) });
    let reg = |form, i, pops| Some(Code { i: st(tr, i), pops, ..Code::new(form, O::Chs) });
    match m {
        M::Fld if size == 10 => code(Form::LoadF80, O::Chs, 0),
        M::Fld if mem => code(Form::Load, by_size(tr, [O::Ld32, O::Ld32, O::Ld64]), 0),
        M::Fld => reg(Form::LoadReg, 0, 0),
        M::Fild => code(Form::Load, by_size(tr, [O::Ild16, O::Ild32, O::Ild64]), 0),
        M::Fbld => code(Form::Load, O::Bld, 0),
        M::Fst if mem => code(Form::Store, by_size(tr, [O::St32, O::St32, O::St64]), 0),
        M::Fstp if size == 10 => code(Form::StoreF80, O::Chs, 1),
        M::Fstp if mem => code(Form::Store, by_size(tr, [O::St32, O::St32, O::St64]), 1),
        M::Fst => reg(Form::StoreReg, 0, 0),
        M::Fstp => reg(Form::StoreReg, 0, 1),
        M::Fstpnce => Some(Code { i: st(tr, 0), pops: 1, ..Code::new(Form::StoreReg, O::Xam) }),
        M::Fist => code(Form::Store, by_size(tr, [O::Ist16, O::Ist32, O::Ist32]), 0),
        M::Fistp => code(Form::Store, by_size(tr, [O::Ist16, O::Ist32, O::Istp64]), 1),
        M::Fisttp => code(Form::Store, by_size(tr, [O::Isttp16, O::Isttp32, O::Isttp64]), 1),
        M::Fbstp => code(Form::Store, O::Bstp, 1),
        M::Fxch => reg(Form::Exchange, 1, 0),
        M::Ffree => reg(Form::Free, 0, 0),
        M::Ffreep => reg(Form::Free, 0, 1),
        M::Fcmovb | M::Fcmovnb | M::Fcmove | M::Fcmovne | M::Fcmovbe | M::Fcmovnbe | M::Fcmovu | M::Fcmovnu => {
            reg(Form::Move, 1, 0)
        }
        _ => None,
    }
}
