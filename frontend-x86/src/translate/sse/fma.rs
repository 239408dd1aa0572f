//! Fused multiply-add (SDM 1 "Fused-Multiply-ADD (FMA)"): helpers that run the host's instruction.

use super::super::Tr;
use super::fp::{lanes, wide_operand};
use super::number;
use crate::helpers::sse::{FMA, FMA_WIDE_XM, FMA_XM, Shape, wide};
use crate::helpers::vector::pack;
use crate::hostfp::fma::FmaOp;
use arch_x86::Mode;
use iced_x86::{CpuidFeature, Mnemonic};
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
    let (dst, src) = (number(tr.insn.op_register(0)), number(tr.insn.op_register(1)));
    let code = pack(op as u16, dst, src, 0);
    let unmasked = tr.mode.has(Mode::XM);
    if !tr.is_wide() {
        let (n, width) = op.lanes();
        let (lo, hi) = tr.vsrc_lanes(2, n * width / 8);
        let code = tr.i64(code);
        tr.call(if unmasked { FMA_XM } else { FMA }, &[code, lo, hi]);
        return tr.clear_upper(0);
    }
    if unmasked {
        let (source, at) = wide_operand(tr, 2, 32);
        let code = tr.i64(code | wide(source, Shape::Same));
        tr.call(FMA_WIDE_XM, &[code, at]);
        return;
    }
    let c = tr.halves(2);
    let [low, high] = lanes(tr, c);
    for (upper, (lo, hi)) in [(0, low), (16, high)] {
        let code = tr.i64(pack(op as u16, dst + upper, src + upper, 0));
        tr.call(FMA, &[code, lo, hi]);
    }
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
