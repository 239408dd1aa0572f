//! AMD's SSE4A (APM 4 "EXTRQ", "INSERTQ", "MOVNTSD", "MOVNTSS"). The upper halves of bit-field results are undefined: they stay.

use super::super::Tr;
use crate::helpers::bmi::{EXTRACT_FIELD, INSERT_FIELD};
use iced_x86::Mnemonic as M;
use ir::{Op, Ty, Val};

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    let run: fn(&mut Tr<'_>) = match tr.insn.mnemonic() {
        M::Extrq => extract,
        M::Insertq => insert,
        M::Movntss => |tr| store(tr, Ty::I32),
        M::Movntsd => |tr| store(tr, Ty::I64),
        _ => return false,
    };
    if tr.sse_enabled() {
        run(tr);
    }
    true
}

/// Length and index of the field: two immediates from operand `i` on, or the fields of `reg`.
fn field(tr: &mut Tr<'_>, i: u32, reg: Val) -> Val {
    if tr.insn.op_count() > i + 1 {
        let (len, index) = (tr.imm(i) & 63, tr.imm(i + 1) & 63);
        return tr.i64(len | index << 8);
    }
    tr.b.bin_imm(Op::And, reg, 0x3f3f)
}

fn extract(tr: &mut Tr<'_>) {
    let dst = tr.xget(0);
    let low = tr.b.vlane(dst, 0);
    let by_register = tr.insn.op_count() == 2;
    let reg = if by_register {
        let v = tr.xget(1);
        tr.b.vlane(v, 0)
    } else {
        low
    };
    let how = field(tr, 1, reg);
    let r = tr.call(EXTRACT_FIELD, &[low, how]);
    set_low(tr, r);
}

fn insert(tr: &mut Tr<'_>) {
    let (dst, src) = (tr.xget(0), tr.xget(1));
    let (low, value) = (tr.b.vlane(dst, 0), tr.b.vlane(src, 0));
    let reg = tr.b.vlane(src, 1);
    let how = field(tr, 2, reg);
    let r = tr.call(INSERT_FIELD, &[low, value, how]);
    set_low(tr, r);
}

fn set_low(tr: &mut Tr<'_>, v: Val) {
    let slot = tr.xslot(0);
    tr.b.set(Ty::I64, slot, 0, v);
}

/// A non-temporal store of the lowest element.
fn store(tr: &mut Tr<'_>, ty: Ty) {
    let v = tr.xget(1);
    let v = tr.b.vlane(v, 0);
    let v = tr.b.zext(ty, v);
    tr.dst(0, v);
}
