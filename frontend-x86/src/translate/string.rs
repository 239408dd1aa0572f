//! String instructions (SDM 1 "String Operations"). Without a repeat prefix inline; with one, a helper does a bounded part
//! and the block branches back to the instruction until the count is used up.

use super::Tr;
use crate::helpers::string::{self, Kind};
use crate::layout::{self, RAX, RDI, RSI};
use arch_x86::flags::bit;
use arch_x86::{Mode, SegReg};
use iced_x86::{Mnemonic, OpKind};
use ir::{Cond, Op, SlotId, Ty, Val};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    use Mnemonic::*;
    let (kind, bytes) = match tr.insn.mnemonic() {
        Movsb => (Kind::Movs, 1),
        Movsw => (Kind::Movs, 2),
        Movsd if is_string(tr) => (Kind::Movs, 4),
        Movsq => (Kind::Movs, 8),
        Stosb => (Kind::Stos, 1),
        Stosw => (Kind::Stos, 2),
        Stosd => (Kind::Stos, 4),
        Stosq => (Kind::Stos, 8),
        Lodsb => (Kind::Lods, 1),
        Lodsw => (Kind::Lods, 2),
        Lodsd => (Kind::Lods, 4),
        Lodsq => (Kind::Lods, 8),
        Scasb => (Kind::Scas, 1),
        Scasw => (Kind::Scas, 2),
        Scasd => (Kind::Scas, 4),
        Scasq => (Kind::Scas, 8),
        Cmpsb => (Kind::Cmps, 1),
        Cmpsw => (Kind::Cmps, 2),
        Cmpsd if is_string(tr) => (Kind::Cmps, 4),
        Cmpsq => (Kind::Cmps, 8),
        Insb => (Kind::Ins, 1),
        Insw => (Kind::Ins, 2),
        Insd => (Kind::Ins, 4),
        Outsb => (Kind::Outs, 1),
        Outsw => (Kind::Outs, 2),
        Outsd => (Kind::Outs, 4),
        _ => return false,
    };
    let repeats = tr.insn.has_rep_prefix() || tr.insn.has_repne_prefix();
    match kind {
        Kind::Ins | Kind::Outs => by_helper(tr, kind, bytes, repeats),
        _ if repeats => by_helper(tr, kind, bytes, true),
        _ => once(tr, kind, Ty::int(bytes)),
    }
    true
}

/// MOVSD and CMPSD are also SSE instructions.
fn is_string(tr: &Tr<'_>) -> bool {
    use iced_x86::Code;
    matches!(tr.insn.code(), Code::Movsd_m32_m32 | Code::Cmpsd_m32_m32)
}

/// Address size and source segment.
fn address(tr: &Tr<'_>) -> (Ty, SegReg) {
    use OpKind::*;
    let mut ty = Ty::I64;
    for i in 0..tr.insn.op_count() {
        match tr.insn.op_kind(i) {
            MemorySegSI | MemorySegDI | MemoryESDI => ty = Ty::I16,
            MemorySegESI | MemorySegEDI | MemoryESEDI => ty = Ty::I32,
            _ => {}
        }
    }
    (ty, Tr::seg_of(tr.insn.memory_segment()).unwrap_or(SegReg::Ds))
}

fn by_helper(tr: &mut Tr<'_>, kind: Kind, bytes: u32, repeats: bool) {
    let (addr, seg) = address(tr);
    let seg = if matches!(kind, Kind::Stos | Kind::Scas | Kind::Ins) { SegReg::Ds } else { seg };
    let how = string::How {
        kind,
        bytes,
        addr_bytes: addr.bytes(),
        seg,
        repeats,
        while_zero: !tr.insn.has_repne_prefix(),
        one: tr.mode.has(Mode::STEP),
    };
    let done = tr.call_imm(string::STRING, &[how.pack()]);
    tr.flags_unknown();
    if !repeats {
        return tr.exit_next();
    }
    let again = tr.b.cmp_imm(Cond::Eq, done, 0);
    tr.b.br(again, tr.off);
    tr.flow = super::Flow::Ended;
}

/// Linear address that an index register names.
fn at(tr: &mut Tr<'_>, addr: Ty, slot: SlotId, seg: SegReg, ty: Ty, write: bool) -> Val {
    let off = tr.get(addr, slot);
    let off = tr.b.zext(Ty::I64, off);
    tr.linear(seg, off, 0, ty.bytes(), write).0
}

/// Moves an index register by one element, down if DF is set.
fn step(tr: &mut Tr<'_>, addr: Ty, slot: SlotId, ty: Ty) {
    let f = tr.b.get(Ty::I64, layout::EFLAGS, 0);
    let df = tr.b.bin_imm(Op::And, f, bit::DF);
    let down = tr.b.cmp_imm(Cond::Ne, df, 0);
    let up = tr.b.iconst(addr, ty.bytes().into());
    let minus = tr.b.iconst(addr, u64::from(ty.bytes()).wrapping_neg());
    let by = tr.b.select(down, minus, up);
    let v = tr.get(addr, slot);
    let v = tr.b.bin(Op::Add, v, by);
    tr.put(slot, v);
}

fn once(tr: &mut Tr<'_>, kind: Kind, ty: Ty) {
    let (addr, seg) = address(tr);
    let ctx = tr.ctx();
    let source = |tr: &mut Tr<'_>| {
        let a = at(tr, addr, RSI, seg, ty, false);
        tr.b.load(ty, a, 0, ctx)
    };
    match kind {
        Kind::Movs | Kind::Stos => {
            let v = if kind == Kind::Movs { source(tr) } else { tr.get(ty, RAX) };
            let d = at(tr, addr, RDI, SegReg::Es, ty, true);
            tr.b.store(d, 0, v, ctx);
        }
        Kind::Lods => {
            let v = source(tr);
            tr.put(RAX, v);
        }
        _ => {
            let a = if kind == Kind::Cmps { source(tr) } else { tr.get(ty, RAX) };
            let d = at(tr, addr, RDI, SegReg::Es, ty, false);
            let b = tr.b.load(ty, d, 0, ctx);
            let res = tr.b.bin(Op::Sub, a, b);
            tr.flags_sub(a, b, res);
        }
    }
    if matches!(kind, Kind::Movs | Kind::Lods | Kind::Cmps) {
        step(tr, addr, RSI, ty);
    }
    if kind != Kind::Lods {
        step(tr, addr, RDI, ty);
    }
}
