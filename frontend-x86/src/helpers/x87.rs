//! Helpers of x87 instructions (SDM 1 chapter 8): operands, stack faults, exceptions; arithmetic is `hostfp::x87`.

mod env;
mod exec;
#[cfg(target_arch = "x86_64")]
mod fast;
mod fxsave;
mod stack;
pub mod xsave;

use super::{ANY, CHECKS, Env, READS, Res, STATE};
use crate::hostfp::x87::X87Op;
use arch_x86::fault;
#[cfg(test)]
pub(crate) use fxsave::{restore, save};
use ir::{X87Insn, X87Kind};
use stack::{Fpu, sw};
use vm_core::{Fault, Va, guest::Access};

rows! {
    topic x87;
    /// (`Code`; linear address of the memory operand, FCMOV's condition or FLDCW's control word; offset of the memory operand in
    /// its segment): one instruction. FCOMI gives ZF PF CF.
    X87 = x87(3) ANY;
    /// #MF if an exception is pending.
    X87_WAIT = wait(0) CHECKS;
    /// The status word.
    FNSTSW = fnstsw(0) READS;
    /// FNCLEX, FNINIT.
    FNCLEX = fnclex(0) STATE;
    FNINIT = fninit(0) STATE;
    /// (linear address, 1 = 16-bit format)
    FNSTENV = fnstenv(2) ANY;
    FLDENV = fldenv(2) ANY;
    FNSAVE = fnsave(2) ANY;
    FRSTOR = frstor(2) ANY;
    /// (linear address, 1 = with REX.W)
    FXSAVE = fxsave_helper(2) ANY;
    FXRSTOR = fxrstor_helper(2) ANY;
    /// (linear address, `xsave::Kind` | `xsave::WIDE` | `xsave::SUPERVISOR`)
    XSAVE = xsave_helper(2) ANY;
    XRSTOR = xrstor_helper(2) ANY;
}

/// What an instruction does with its operands. "ST(i)" is `Code::i`, "op" is `Code::op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Form {
    /// ST(0) = ST(0) op ST(i).
    ArithSt0,
    /// ST(i) = ST(i) op ST(0).
    ArithSti,
    /// ST(0) = ST(0) op memory.
    ArithMem,
    /// Compare ST(0) with ST(i): C3 C2 C0.
    Compare,
    CompareMem,
    /// Compare ST(0) with ST(i): ZF PF CF.
    CompareFlags,
    /// ST(0) = op ST(0).
    Unary,
    /// FPREM, FPREM1, FSCALE: ST(0) = ST(0) op ST(1).
    Binary,
    /// FTST, FXAM.
    Examine,
    /// ST(1) = op, then pop.
    BinaryPop,
    /// ST(0) = op, then push.
    UnaryPush,
    /// Push a constant.
    Constant,
    /// Push memory, converted.
    Load,
    /// Push memory of ten bytes.
    LoadF80,
    /// Push ST(i).
    LoadReg,
    /// Memory = ST(0), converted.
    Store,
    StoreF80,
    /// ST(i) = ST(0).
    StoreReg,
    Exchange,
    /// ST(0) = ST(i) if the condition holds.
    Move,
    Free,
    IncTop,
    DecTop,
    Nop,
    /// FLDCW.
    Control,
}

const FORMS: [Form; 25] = [
    Form::ArithSt0, Form::ArithSti, Form::ArithMem, Form::Compare, Form::CompareMem, Form::CompareFlags, Form::Unary, Form::Binary,
    Form::Examine, Form::BinaryPop, Form::UnaryPush, Form::Constant, Form::Load, Form::LoadF80, Form::LoadReg, Form::Store,
    Form::StoreF80, Form::StoreReg, Form::Exchange, Form::Move, Form::Free, Form::IncTop, Form::DecTop, Form::Nop,
    Form::Control,
];

/// First operand of `X87`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code {
    pub form: Form,
    pub op: X87Op,
    /// Register number 0..=7.
    pub i: u8,
    /// Registers popped afterwards, 0..=2.
    pub pops: u8,
    /// The memory operand, and what engines may make of the instruction.
    pub host: X87Insn,
}

impl Code {
    pub fn new(form: Form, op: X87Op) -> Code {
        let host = X87Insn { kind: X87Kind::Call, bytes: 0, seg: 0, ctx: 0, opcode: 0, modrm: 0 };
        Code { form, op, i: 0, pops: 0, host }
    }

    pub fn pack(self) -> u64 {
        self.host.pack() | u64::from_le_bytes([self.form as u8, self.op as u8, self.i | self.pops << 4, 0, 0, 0, 0, 0])
    }

    fn unpack(c: u64) -> Option<Code> {
        let [form, op, i, ..] = c.to_le_bytes();
        let form = *FORMS.get(usize::from(form))?;
        let mut host = X87Insn::unpack(c);
        host.bytes = host.bytes.min(16);
        Some(Code { form, op: X87Op::from_index(op.into())?, i: i & 7, pops: (i >> 4).min(2), host })
    }

    fn bytes(self) -> u8 {
        self.host.bytes
    }
}

const _: () = assert!(X87Op::ALL.len() < 256);

/// #MF if an unmasked exception is pending, which with CR0.NE clear is FERR#'s business (`arch_x86::ferr`).
fn check_pending<E: Env>(env: &E) -> Result<(), Fault> {
    if env.cpu_ref().fsw & sw::ES == 0 || arch_x86::ferr::ignored(env) { Ok(()) } else { Err(fault::mf()) }
}

/// After what may have ended a pending exception.
fn settle<E: Env>(env: &E) {
    if env.cpu_ref().fsw & sw::ES == 0 {
        arch_x86::ferr::end(env);
    }
}

fn x87<E: Env>(env: &mut E, code: u64, addr: u64, ptr: u64) -> Res {
    let Some(code) = Code::unpack(code) else { return Ok(0) };
    check_pending(env)?;
    if code.form == Form::Control {
        // The pointers of the last instruction stay.
        Fpu(env.cpu()).set_control(addr as u16);
        settle(env);
        return Ok(0);
    }
    // What is pending and ignored would be pending in the host's FPU.
    #[cfg(target_arch = "x86_64")]
    if env.cpu_ref().fsw & sw::ES == 0 && fast::run(env, code, addr)? {
        pointers(env, code, ptr);
        return Ok(0);
    }
    let stores = matches!(code.form, Form::Store | Form::StoreF80);
    let mut mem = [0u8; 16];
    if code.bytes() != 0 && !stores {
        load(env, addr, &mut mem[..usize::from(code.bytes())])?;
    }
    if stores {
        let cpu = env.cpu();
        let before = (cpu.fsw, cpu.ftw);
        let stored = match exec::store(&mut Fpu(cpu), code) {
            Some(bytes) => store(env, addr, &bytes[..usize::from(code.bytes())]),
            // Nothing is stored, but it must be possible.
            None => {
                let ctx = env.cpu_ref().mode().ctx();
                env.probe(Va(addr), code.bytes().into(), Access::Write, ctx)
            }
        };
        if let Err(fault) = stored {
            let cpu = env.cpu();
            (cpu.fsw, cpu.ftw) = before;
            return Err(fault);
        }
        pointers(env, code, ptr);
        return Ok(0);
    }
    let r = exec::run(&mut Fpu(env.cpu()), code, mem, addr);
    pointers(env, code, ptr);
    Ok(r)
}

fn wait<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    check_pending(env).map(|()| 0)
}

fn fnstsw<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    Ok(env.cpu_ref().fsw.into())
}

/// Last instruction and operand, and the opcode of the last that had an unmasked exception (SDM 1 "x87 FPU Instruction and
/// Data (Operand) Pointers", "Last Instruction Opcode").
fn pointers<E: Env>(env: &mut E, code: Code, ptr: u64) {
    let cpu = env.cpu();
    cpu.fip = cpu.rip;
    cpu.fcs = cpu.seg[1].selector;
    if cpu.fsw & sw::ES != 0 {
        cpu.fop = u16::from(code.host.opcode & 7) << 8 | u16::from(code.host.modrm);
    }
    if code.bytes() != 0 {
        cpu.fdp = ptr;
        cpu.fds = cpu.seg.get(usize::from(code.host.seg)).map_or(0, |s| s.selector);
    }
}

/// Loads `buf.len()` bytes; nothing is changed if it faults.
fn load<E: Env>(env: &mut E, addr: u64, buf: &mut [u8]) -> Result<(), Fault> {
    let ctx = env.cpu_ref().mode().ctx();
    if buf.len() > 8 && env.load_block(Va(addr), buf, ctx) {
        return Ok(());
    }
    let mut at = addr;
    let mut rest = buf;
    while !rest.is_empty() {
        let n = chunk(rest.len());
        let v = env.load(Va(at), n as u8, ctx)?;
        let (now, later) = rest.split_at_mut(n);
        now.copy_from_slice(&v.to_le_bytes()[..n]);
        (rest, at) = (later, at.wrapping_add(n as u64));
    }
    Ok(())
}

/// Stores all of `buf` or nothing.
fn store<E: Env>(env: &mut E, addr: u64, buf: &[u8]) -> Result<(), Fault> {
    let ctx = env.cpu_ref().mode().ctx();
    if buf.len() > 8 && env.store_block(Va(addr), buf, ctx) {
        return Ok(());
    }
    if buf.len() > 8 || !buf.len().is_power_of_two() {
        env.probe(Va(addr), buf.len() as u64, Access::Write, ctx)?;
    }
    let (mut at, mut rest) = (addr, buf);
    while !rest.is_empty() {
        let n = chunk(rest.len());
        let mut v = [0; 8];
        v[..n].copy_from_slice(&rest[..n]);
        env.store(Va(at), n as u8, u64::from_le_bytes(v), ctx)?;
        (rest, at) = (&rest[n..], at.wrapping_add(n as u64));
    }
    Ok(())
}

/// Largest access of at most `left` bytes.
fn chunk(left: usize) -> usize {
    1 << left.ilog2().min(3)
}

fn fnclex<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    env.cpu().fsw &= !(sw::B | sw::ES | sw::SF | sw::FLAGS);
    settle(env);
    Ok(0)
}

fn fninit<E: Env>(env: &mut E, _: u64, _: u64, _: u64) -> Res {
    env::init(env.cpu());
    settle(env);
    Ok(0)
}

fn fnstenv<E: Env>(env: &mut E, addr: u64, short: u64, _: u64) -> Res {
    let bytes = env::environment(env.cpu_ref(), short != 0);
    store(env, addr, &bytes)?;
    let fcw = env.cpu_ref().fcw | sw::FLAGS;
    Fpu(env.cpu()).set_control(fcw);
    settle(env);
    Ok(0)
}

fn fldenv<E: Env>(env: &mut E, addr: u64, short: u64, _: u64) -> Res {
    check_pending(env)?;
    let mut buf = [0; env::LONG];
    let n = env::size(short != 0);
    load(env, addr, &mut buf[..n])?;
    env::load_environment(env.cpu(), &buf[..n]);
    settle(env);
    Ok(0)
}

fn fnsave<E: Env>(env: &mut E, addr: u64, short: u64, _: u64) -> Res {
    let mut bytes = env::environment(env.cpu_ref(), short != 0);
    let cpu = env.cpu_ref();
    for i in 0..8 {
        bytes.extend_from_slice(&stack::to_bytes(cpu.fpr[stack::physical(cpu, i)])[..10]);
    }
    store(env, addr, &bytes)?;
    env::init(env.cpu());
    settle(env);
    Ok(0)
}

fn frstor<E: Env>(env: &mut E, addr: u64, short: u64, _: u64) -> Res {
    check_pending(env)?;
    let mut buf = [0; env::LONG + 80];
    let n = env::size(short != 0);
    load(env, addr, &mut buf[..n + 80])?;
    let cpu = env.cpu();
    env::load_environment(cpu, &buf[..n]);
    for (i, r) in buf[n..n + 80].as_chunks::<10>().0.iter().enumerate() {
        cpu.fpr[stack::physical(cpu, i as u8)] = stack::from_bytes(r);
    }
    settle(env);
    Ok(0)
}

/// #GP(0) unless the area is aligned to 16 bytes.
fn check_aligned(addr: u64) -> Result<(), Fault> {
    if addr & 15 == 0 { Ok(()) } else { Err(Fault { vector: fault::vector::GP, error: Some(0), addr: 0 }) }
}

fn fxsave_helper<E: Env>(env: &mut E, addr: u64, wide: u64, _: u64) -> Res {
    check_aligned(addr)?;
    let (bytes, len) = fxsave::save(env.cpu_ref(), wide != 0);
    // The part that is not written must be writable, too.
    let ctx = env.cpu_ref().mode().ctx();
    env.probe(Va(addr), 512, Access::Write, ctx)?;
    store(env, addr, &bytes[..len])?;
    Ok(0)
}

fn fxrstor_helper<E: Env>(env: &mut E, addr: u64, wide: u64, _: u64) -> Res {
    check_aligned(addr)?;
    let mut buf = [0; 512];
    load(env, addr, &mut buf)?;
    fxsave::restore(env.cpu(), &buf, wide != 0)?;
    settle(env);
    Ok(0)
}

/// EDX:EAX.
fn asked<E: Env>(env: &E) -> u64 {
    let g = &env.cpu_ref().gpr;
    g[2] << 32 | g[0] & 0xffff_ffff
}

fn xsave_helper<E: Env>(env: &mut E, addr: u64, how: u64, _: u64) -> Res {
    let kind = match how & 0xff {
        0 => xsave::Kind::Plain,
        1 => xsave::Kind::Optimised,
        _ => xsave::Kind::Compacted,
    };
    let asked = asked(env);
    xsave::save(env, addr, asked, kind, how).map(|()| 0)
}

fn xrstor_helper<E: Env>(env: &mut E, addr: u64, how: u64, _: u64) -> Res {
    let asked = asked(env);
    xsave::restore(env, addr, asked, how).map(|()| 0)
}
