//! IN and OUT (SDM 2); string forms are in `string`.

use super::Tr;
use crate::helpers::io::{IN, IO_CHECK, OUT};
use crate::layout::{RAX, RDX};
use arch_x86::Mode;
use iced_x86::{Mnemonic, OpKind};
use ir::{Ty, Val};

pub fn translate(tr: &mut Tr<'_>) -> bool {
    match tr.insn.mnemonic() {
        Mnemonic::In => input(tr),
        Mnemonic::Out => output(tr),
        _ => return false,
    }
    // The device may have raised an interrupt or reset the machine.
    tr.exit_next();
    true
}

/// Port number of operand `i`, permission checked.
fn port(tr: &mut Tr<'_>, i: u32, bytes: Val) -> Val {
    let p = if tr.insn.op_kind(i) == OpKind::Register {
        let dx = tr.get(Ty::I16, RDX);
        tr.b.zext(Ty::I64, dx)
    } else {
        let n = tr.imm(i) & 0xff;
        tr.i64(n)
    };
    if !tr.mode.has(Mode::IO_OK) {
        tr.call(IO_CHECK, &[p, bytes]);
    }
    p
}

fn input(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(0);
    let bytes = tr.i64(ty.bytes().into());
    let p = port(tr, 1, bytes);
    let v = tr.call(IN, &[p, bytes]);
    let v = tr.b.zext(ty, v);
    tr.put(RAX, v);
}

fn output(tr: &mut Tr<'_>) {
    let ty = tr.op_ty(1);
    let bytes = tr.i64(ty.bytes().into());
    let p = port(tr, 0, bytes);
    let v = tr.get(ty, RAX);
    let v = tr.b.zext(Ty::I64, v);
    tr.call(OUT, &[p, bytes, v]);
}
