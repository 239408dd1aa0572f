//! XSAVE and its like (SDM 1 chapter 13).

use super::{Tr, feature};
use crate::helpers::x87::xsave::{Kind, SUPERVISOR, WIDE};
use crate::helpers::x87::{XRSTOR, XSAVE};
use iced_x86::Mnemonic as M;

/// The feature that a form needs, and what it does: `None` restores.
pub fn translate(tr: &mut Tr<'_>) -> bool {
    let (wanted, kind) = match tr.insn.mnemonic() {
        M::Xsave | M::Xsave64 => (feature::XSAVE, Some(Kind::Plain)),
        M::Xsaveopt | M::Xsaveopt64 => (feature::XSAVEOPT, Some(Kind::Optimised)),
        M::Xsavec | M::Xsavec64 => (feature::XSAVEC, Some(Kind::Compacted)),
        M::Xrstor | M::Xrstor64 => (feature::XSAVE, None),
        M::Xsaves | M::Xsaves64 => (feature::XSAVES, Some(Kind::Compacted)),
        M::Xrstors | M::Xrstors64 => (feature::XSAVES, None),
        _ => return false,
    };
    if !tr.feature(wanted) || !tr.feature(feature::XSAVE) {
        tr.ud();
        return true;
    }
    let m = tr.insn.mnemonic();
    let wide = matches!(m, M::Xsave64 | M::Xsaveopt64 | M::Xsavec64 | M::Xrstor64 | M::Xsaves64 | M::Xrstors64);
    let supervisor = matches!(m, M::Xsaves | M::Xsaves64 | M::Xrstors | M::Xrstors64);
    let a = tr.mem_addr(576, kind.is_some());
    let how = kind.map_or(0, |k| k as u64) | if wide { WIDE } else { 0 } | if supervisor { SUPERVISOR } else { 0 };
    let how = tr.i64(how);
    match kind {
        Some(_) => {
            tr.call(XSAVE, &[a, how]);
        }
        None => {
            tr.call(XRSTOR, &[a, how]);
            // MXCSR may unmask exceptions, which is part of the mode.
            tr.exit_next();
        }
    }
    true
}
