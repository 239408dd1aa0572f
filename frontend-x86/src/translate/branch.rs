//! Near jumps, calls, returns and loops (SDM 2).

use super::{PAGE, Tr};
use crate::layout;
use arch_x86::fault::vector;
use arch_x86::{CodeSize, Mode};
use iced_x86::{Mnemonic, OpKind, Register};
use ir::{Cond, Op, Ty, Val};

/// Prediction hints of `Op::JumpInd`.
const JUMP: u16 = 0;
const CALL: u16 = 1;
const RETURN: u16 = 2;

pub fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic::*;
    match tr.insn.mnemonic() {
        Jo | Jno | Jb | Jae | Je | Jne | Jbe | Ja | Js | Jns | Jp | Jnp | Jl | Jge | Jle | Jg => {
            let c = tr.cond(tr.cc());
            branch_if(tr, c);
        }
        Jmp => return jmp(tr),
        Call => return call(tr),
        Ret => ret(tr),
        Loop | Loope | Loopne => loops(tr),
        Jcxz | Jecxz | Jrcxz => {
            let ty = count_ty(tr);
            let n = tr.get(ty, layout::RCX);
            let c = tr.b.cmp_imm(Cond::Eq, n, 0);
            branch_if(tr, c);
        }
        _ => return false,
    }
    true
}

/// Where a relative branch goes.
enum Target {
    /// Page offset, and a mask of the program counter there.
    Offset(i64, u64),
    /// Not at a fixed distance from the page: a 16-bit target in wider code.
    Absolute(Val),
}

fn target(tr: &mut Tr<'_>) -> Option<Target> {
    match tr.insn.op0_kind() {
        OpKind::NearBranch64 => Some(Target::Offset(tr.insn.near_branch64() as i64, !0)),
        OpKind::NearBranch32 => Some(Target::Offset(i64::from(tr.insn.near_branch32() as i32), 0xffff_ffff)),
        OpKind::NearBranch16 => {
            let t = i64::from(tr.insn.near_branch16() as i16);
            if tr.mode.code_size() == CodeSize::Bits16 {
                return Some(Target::Offset(t, 0xffff));
            }
            let pc = tr.b.pcrel(t);
            Some(Target::Absolute(tr.b.bin_imm(Op::And, pc, 0xffff)))
        }
        _ => None,
    }
}

/// #GP(0) before the jump if its target lies outside the code segment or is not canonical (SDM 2A "JMP"); `c`: only if it is taken.
fn check_target(tr: &mut Tr<'_>, t: &Target, c: Option<Val>) {
    match *t {
        Target::Offset(off, mask) if tr.code_limited() => {
            let pc = tr.b.pcrel(off);
            let pc = tr.b.bin_imm(Op::And, pc, mask);
            tr.in_code_limit(pc, c);
        }
        Target::Absolute(pc) if tr.code_limited() => tr.in_code_limit(pc, c),
        Target::Absolute(pc) if tr.is_64() => {
            let bits = if tr.mode.has(Mode::LA57) { 56 } else { 47 };
            let top = tr.b.bin_imm(Op::Sar, pc, bits);
            let top = tr.b.bin_imm(Op::Add, top, 1);
            let bad = tr.b.cmp_imm(Cond::Ugt, top, 1);
            tr.b.raise_if(bad, vector::GP, Some(0));
        }
        _ => {}
    }
}

fn branch_if(tr: &mut Tr<'_>, c: Val) {
    let t = target(tr);
    if let Some(t) = &t {
        check_target(tr, t, Some(c));
    }
    match t {
        Some(Target::Offset(to, _)) if goes_on(tr, c, to) => {}
        _ => branch(tr, c),
    }
}

/// Whether the block goes on behind a branch to a page offset, at the target or the next instruction.
fn goes_on(tr: &mut Tr<'_>, c: Val, to: i64) -> bool {
    let in_page = |at: i64| (0..PAGE as i64).contains(&at);
    match tr.path.behind(tr.off as u32).map(i64::from) {
        Some(on) if on == tr.next && in_page(to) => tr.b.side(c, to),
        Some(on) if on == to && in_page(tr.next) => {
            let not = tr.b.cmp_imm(Cond::Eq, c, 0);
            tr.b.side(not, tr.next);
            tr.next = to;
        }
        _ => return false,
    }
    true
}

/// As `branch_if`, with the target already checked.
fn branch(tr: &mut Tr<'_>, c: Val) {
    match target(tr) {
        Some(Target::Offset(t, _)) => {
            tr.b.br(c, t);
            tr.flow = super::Flow::Ended;
        }
        Some(Target::Absolute(pc)) => {
            let next = tr.pc_value(tr.next);
            let pc = tr.b.select(c, pc, next);
            tr.jump_ind(pc, JUMP);
        }
        None => tr.ud(),
    }
}

fn go(tr: &mut Tr<'_>, t: Target, hint: u16) {
    match t {
        Target::Offset(t, _) if hint == CALL => tr.call_to(t),
        Target::Offset(t, _) if tr.path.behind(tr.off as u32).is_some_and(|on| i64::from(on) == t) => tr.next = t,
        Target::Offset(t, _) => tr.jump(t),
        Target::Absolute(pc) => tr.jump_ind(pc, hint),
    }
}

fn jmp(tr: &mut Tr<'_>) -> bool {
    if let Some(t) = target(tr) {
        check_target(tr, &t, None);
        go(tr, t, JUMP);
        return true;
    }
    if !near_indirect(tr) {
        return false;
    }
    let ty = tr.op_ty(0);
    let pc = tr.src(0, ty);
    let pc = tr.b.zext(Ty::I64, pc);
    check_target(tr, &Target::Absolute(pc), None);
    tr.jump_ind(pc, JUMP);
    true
}

/// Indirect through a register or a plain integer in memory, not a far pointer.
fn near_indirect(tr: &Tr<'_>) -> bool {
    use iced_x86::Code::*;
    matches!(tr.insn.code(), Jmp_rm16 | Jmp_rm32 | Jmp_rm64 | Call_rm16 | Call_rm32 | Call_rm64)
}

fn call(tr: &mut Tr<'_>) -> bool {
    let size = match tr.insn.op0_kind() {
        OpKind::NearBranch16 => Ty::I16,
        OpKind::NearBranch32 => Ty::I32,
        OpKind::NearBranch64 => Ty::I64,
        _ if near_indirect(tr) => tr.op_ty(0),
        _ => return false,
    };
    // The target is read before the push: it may lie relative to RSP.
    let t = match target(tr) {
        Some(t) => t,
        None => {
            let pc = tr.src(0, size);
            Target::Absolute(tr.b.zext(Ty::I64, pc))
        }
    };
    check_target(tr, &t, None);
    let ret = tr.b.pcrel(tr.next);
    let ret = tr.b.zext(size, ret);
    tr.push(ret);
    go(tr, t, CALL);
    true
}

fn ret(tr: &mut Tr<'_>) {
    let ty = match tr.insn.stack_pointer_increment() - tr.release() {
        2 => Ty::I16,
        4 => Ty::I32,
        _ => Ty::I64,
    };
    let pc = tr.pop_value(ty);
    let pc = tr.b.zext(Ty::I64, pc);
    check_target(tr, &Target::Absolute(pc), None);
    let release = tr.release();
    tr.add_sp(i64::from(ty.bytes()) + i64::from(release));
    tr.jump_ind(pc, RETURN);
}

impl Tr<'_> {
    /// Bytes of parameters that a RET releases.
    pub fn release(&self) -> i32 {
        if self.insn.op_count() == 0 { 0 } else { i32::from(self.insn.immediate16()) }
    }
}

/// Type of the count register: the address size.
fn count_ty(tr: &Tr<'_>) -> Ty {
    use iced_x86::Code::*;
    match tr.insn.code() {
        Jcxz_rel8_16 | Jcxz_rel8_32 => Ty::I16,
        Jecxz_rel8_16 | Jecxz_rel8_32 | Jecxz_rel8_64 => Ty::I32,
        Jrcxz_rel8_16 | Jrcxz_rel8_64 => Ty::I64,
        Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX | Loope_rel8_32_CX | Loopne_rel8_16_CX | Loopne_rel8_32_CX => {
            Ty::I16
        }
        Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX | Loope_rel8_64_RCX | Loopne_rel8_16_RCX | Loopne_rel8_64_RCX => {
            Ty::I64
        }
        _ => Ty::I32,
    }
}

fn loops(tr: &mut Tr<'_>) {
    let ty = count_ty(tr);
    let n = tr.get(ty, layout::RCX);
    let n = tr.b.bin_imm(Op::Sub, n, 1);
    let mut c = tr.b.cmp_imm(Cond::Ne, n, 0);
    let zf = match tr.insn.mnemonic() {
        Mnemonic::Loope => Some(4),
        Mnemonic::Loopne => Some(5),
        _ => None,
    };
    if let Some(cc) = zf {
        let z = tr.cond(cc);
        c = tr.b.bin(Op::And, c, z);
    }
    if let Some(t) = target(tr) {
        check_target(tr, &t, Some(c));
    }
    tr.put(layout::RCX, n);
    branch(tr, c);
}

/// Is this register the stack pointer?
pub(super) fn is_sp(r: Register) -> bool {
    matches!(r, Register::RSP | Register::ESP | Register::SP)
}
