//! Segment loads, far transfers, software interrupts, fast system calls (SDM 2, SDM 3A chapter 5).

use super::Tr;
use crate::helpers::segment::{FAR_CALL, FAR_JUMP, FAR_RET, INT, INTO, IRET, LOAD_SEG};
use crate::helpers::system::{SWAPGS, SYSCALL, SYSENTER, SYSEXIT, SYSRET};
use arch_x86::SegReg;
use arch_x86::fault::vector;
use iced_x86::{Code, Mnemonic, OpKind};
use ir::{Op, Ty, Val};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic::*;
    match tr.insn.mnemonic() {
        Mov if tr.is_reg(0) && Tr::seg_of(tr.insn.op0_register()).is_some() => mov_seg(tr),
        Pop if tr.is_reg(0) && Tr::seg_of(tr.insn.op0_register()).is_some() => pop_seg(tr),
        Les => load_far_pointer(tr, SegReg::Es),
        Lds => load_far_pointer(tr, SegReg::Ds),
        Lss => load_far_pointer(tr, SegReg::Ss),
        Lfs => load_far_pointer(tr, SegReg::Fs),
        Lgs => load_far_pointer(tr, SegReg::Gs),
        Jmp => far(tr, false),
        Call => far(tr, true),
        Retf => retf(tr),
        Iret => iret(tr, 2),
        Iretd => iret(tr, 4),
        Iretq => iret(tr, 8),
        Int => int(tr, u64::from(tr.insn.immediate8())),
        Int3 => int(tr, u64::from(vector::BP) | 1 << 8),
        Int1 => int(tr, u64::from(vector::DB) | 2 << 8),
        Into => into(tr),
        Syscall => {
            let next = tr.pc_value(tr.next);
            tr.call(SYSCALL, &[next]);
            tr.exit();
        }
        Sysret | Sysretq => {
            tr.call_imm(SYSRET, &[(tr.insn.code() == Code::Sysretq).into()]);
            tr.exit();
        }
        Sysenter => {
            tr.call_imm(SYSENTER, &[]);
            tr.exit();
        }
        Sysexit | Sysexitq => {
            tr.call_imm(SYSEXIT, &[(tr.insn.code() == Code::Sysexitq).into()]);
            tr.exit();
        }
        Swapgs => {
            tr.call_imm(SWAPGS, &[]);
        }
        _ => return false,
    }
    true
}

/// Calls the loader; the block ends if the mode may have changed or events are held.
fn load(tr: &mut Tr<'_>, seg: SegReg, selector: Val) {
    let selector = tr.b.zext(Ty::I64, selector);
    let s = tr.i64(seg as u64);
    tr.call(LOAD_SEG, &[s, selector]);
}

fn end_if_needed(tr: &mut Tr<'_>, seg: SegReg) {
    let mode_stays = matches!(seg, SegReg::Fs | SegReg::Gs) || tr.is_64() && seg != SegReg::Ss;
    if !mode_stays {
        tr.exit_next();
    }
}

fn mov_seg(tr: &mut Tr<'_>) {
    let seg = Tr::seg_of(tr.insn.op0_register()).unwrap_or(SegReg::Cs);
    if seg == SegReg::Cs {
        return tr.ud();
    }
    let v = tr.src(1, Ty::I16);
    load(tr, seg, v);
    end_if_needed(tr, seg);
}

fn pop_seg(tr: &mut Tr<'_>) {
    let seg = Tr::seg_of(tr.insn.op0_register()).unwrap_or(SegReg::Ss);
    let ty = tr.stack_ty();
    let v = tr.pop_value(ty);
    let v = tr.b.zext(Ty::I16, v);
    // The pointer moves by the size that the old stack segment gave it.
    let sp_ty = tr.sp_ty();
    let sp = tr.get(sp_ty, crate::layout::RSP);
    let sp = tr.b.bin_imm(Op::Add, sp, ty.bytes().into());
    load(tr, seg, v);
    tr.put(crate::layout::RSP, sp);
    end_if_needed(tr, seg);
}

/// Offset and selector of a far pointer in memory.
fn far_pointer(tr: &mut Tr<'_>, i: u32, ty: Ty) -> (Val, Val) {
    debug_assert!(tr.is_mem(i));
    let (a, disp) = tr.mem(ty.bytes() + 2, false);
    // As the offset is aligned (SDM 3A table 6-7).
    tr.alignment(a, disp, ty.bytes(), ty.bytes() + 2);
    let ctx = tr.ctx();
    let offset = tr.b.load(ty, a, disp, ctx);
    let selector = tr.b.load(Ty::I16, a, disp + i64::from(ty.bytes()), ctx);
    (offset, selector)
}

fn load_far_pointer(tr: &mut Tr<'_>, seg: SegReg) {
    let ty = tr.op_ty(0);
    let (offset, selector) = far_pointer(tr, 1, ty);
    load(tr, seg, selector);
    tr.dst(0, offset);
    end_if_needed(tr, seg);
}

fn far(tr: &mut Tr<'_>, call: bool) {
    let (offset, selector, bytes) = match tr.insn.op0_kind() {
        OpKind::FarBranch16 | OpKind::FarBranch32 => {
            let wide = tr.insn.op0_kind() == OpKind::FarBranch32;
            let off = if wide { tr.insn.far_branch32() } else { tr.insn.far_branch16().into() };
            let s = tr.insn.far_branch_selector();
            (tr.i64(off.into()), tr.i64(s.into()), if wide { 4 } else { 2 })
        }
        _ => {
            let ty = match tr.insn.memory_size().size() {
                4 => Ty::I16,
                6 => Ty::I32,
                _ => Ty::I64,
            };
            let (o, s) = far_pointer(tr, 0, ty);
            (tr.b.zext(Ty::I64, o), tr.b.zext(Ty::I64, s), ty.bytes())
        }
    };
    let target = tr.b.bin_imm(Op::Or, selector, u64::from(bytes) << 16);
    let next = tr.pc_value(tr.next);
    tr.call(if call { FAR_CALL } else { FAR_JUMP }, &[target, offset, next]);
    tr.exit();
}

fn retf(tr: &mut Tr<'_>) {
    let release = tr.release() as u64;
    let bytes = match tr.insn.code() {
        Code::Retfw | Code::Retfw_imm16 => 2,
        Code::Retfd | Code::Retfd_imm16 => 4,
        _ => 8,
    };
    tr.call_imm(FAR_RET, &[bytes, release]);
    tr.exit();
}

fn iret(tr: &mut Tr<'_>, bytes: u64) {
    let bytes = tr.i64(bytes);
    let next = tr.pc_value(tr.next);
    tr.call(IRET, &[bytes, next]);
    tr.exit();
}

fn int(tr: &mut Tr<'_>, vector: u64) {
    let v = tr.i64(vector);
    let next = tr.pc_value(tr.next);
    tr.call(INT, &[v, next]);
    tr.exit();
}

fn into(tr: &mut Tr<'_>) {
    let of = tr.cond(0);
    let of = tr.b.zext(Ty::I64, of);
    let next = tr.pc_value(tr.next);
    tr.call(INTO, &[of, next]);
    tr.exit();
}
