//! Fused multiply-add (SDM 1 "Fused-Multiply-ADD (FMA)"): IR ops where MXCSR's control bits are what they are after reset, helpers
//! that run the host's instruction elsewhere.

use super::super::Tr;
use super::fp::{vector_source, wide_operand};
use super::number;
use crate::helpers::sse::{FMA_WIDE_XM, FMA_XM, Shape, wide};
use crate::helpers::vector::pack;
use crate::hostfp::fma::FmaOp;
use crate::tri::of_fused;
use arch_x86::Mode;
use iced_x86::{CpuidFeature, Mnemonic};
use ir::Val;
use std::sync::LazyLock;

/// Operation by mnemonic.
static OPS: LazyLock<Vec<Option<FmaOp>>> =
    LazyLock::new(|| Mnemonic::values().map(|m| FmaOp::by_name(&capital(format!("{m:?}").strip_prefix('V')?))).collect());

/// The name with its first letter, a small one after the V, as a capital.
fn capital(name: &str) -> String {
    name.chars().enumerate().map(|(i, c)| if i == 0 { c.to_ascii_uppercase() } else { c }).collect()
}

pub(super) fn translate(tr: &mut Tr<'_>) -> bool {
    if !tr.insn.cpuid_features().contains(&CpuidFeature::FMA) {
        return false;
    }
    let Some(op) = OPS.get(tr.insn.mnemonic() as usize).copied().flatten() else { return false };
    if tr.sse_enabled() {
        multiply_add(tr, op);
    }
    true
}

fn multiply_add(tr: &mut Tr<'_>, op: FmaOp) {
    if tr.mode.has(Mode::XM) {
        return by_helper(tr, op);
    }
    let (n, width) = op.lanes();
    let c = if tr.is_wide() { tr.halves(2) } else { [vector_source(tr, 2, n * width / 8), Val::NONE] };
    let (a, b, op) = (tr.halves(0), tr.halves(1), of_fused(op));
    let r = [0, 1].map(|half| if c[half] == Val::NONE { Val::NONE } else { tr.b.tri(op, a[half], b[half], c[half]) });
    tr.vset(0, r);
}

fn by_helper(tr: &mut Tr<'_>, op: FmaOp) {
    let (dst, src) = (number(tr.insn.op_register(0)), number(tr.insn.op_register(1)));
    let code = pack(op as u16, dst, src, 0);
    if tr.is_wide() {
        let (source, at) = wide_operand(tr, 2, 32);
        let code = tr.i64(code | wide(source, Shape::Same));
        tr.call(FMA_WIDE_XM, &[code, at]);
        return;
    }
    let (n, width) = op.lanes();
    let (lo, hi) = tr.vsrc_lanes(2, n * width / 8);
    let code = tr.i64(code);
    tr.call(FMA_XM, &[code, lo, hi]);
    tr.clear_upper(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_has_a_mnemonic() {
        let found = FmaOp::ALL.iter().filter(|op| OPS.contains(&Some(**op))).count();
        assert_eq!(found, FmaOp::ALL.len());
    }
}
