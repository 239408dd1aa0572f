//! IR's ops on three vectors as operations of the host (`hostfp`), and back. Both sides list fused multiply-adds first, then what
//! ciphers and hashes need, in the same order.

use crate::helpers::vector::run_crypto;
use crate::hostfp::crypto::CryptoOp;
use crate::hostfp::fma::FmaOp;
use ir::TriOp;

const CRYPTO: u16 = TriOp::AesEnc as u16;
const _: () = assert!(FmaOp::ALL.len() == CRYPTO as usize && FmaOp::ALL.len() + CryptoOp::ALL.len() == TriOp::ALL.len());

/// The IR op that is this operation under the default control bits of MXCSR.
pub fn of_fused(op: FmaOp) -> TriOp {
    TriOp::ALL[op as usize]
}

/// The IR op that is this operation.
pub fn of_crypto(op: CryptoOp) -> TriOp {
    TriOp::ALL[usize::from(CRYPTO) + op as usize]
}

/// `ir::tri::RunTri`: `flags` is MXCSR.
pub fn run(op: TriOp, a: u128, b: u128, c: u128, flags: &mut u32) -> u128 {
    let n = op as u16;
    match (FmaOp::from_index(n), n.checked_sub(CRYPTO).and_then(|n| CryptoOp::ALL.get(usize::from(n)))) {
        (Some(op), _) => {
            let mut r = a;
            *flags |= op.run(&mut r, b, c, *flags);
            r
        }
        (_, Some(op)) => run_crypto(*op, a, b, c),
        _ => a,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// IR's name of an operation as `Debug` shows it.
    fn renamed(op: &str) -> String {
        let lanes = [("ps", "_p32"), ("pd", "_p64"), ("ss", "_s32"), ("sd", "_s64")];
        let halves = [("LowLow", "_ll"), ("HighLow", "_hl"), ("LowHigh", "_lh"), ("HighHigh", "_hh")];
        let fused = op.starts_with('F');
        let ends = if fused { &lanes } else { &halves };
        let found = ends.iter().find_map(|(end, name)| op.strip_suffix(end).map(|stem| format!("{stem}{name}")));
        found.unwrap_or(op.into()).to_lowercase()
    }

    #[test]
    fn both_lists_are_in_the_same_order() {
        for op in FmaOp::ALL {
            assert_eq!(of_fused(*op).name(), renamed(&format!("{op:?}")));
        }
        for op in CryptoOp::ALL {
            assert_eq!(of_crypto(*op).name(), renamed(&format!("{op:?}")));
        }
    }
}
