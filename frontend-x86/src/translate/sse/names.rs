//! VEX mnemonics and those of the legacy instructions that they stand for.

use iced_x86::Mnemonic;
use std::collections::HashMap;
use std::sync::LazyLock;

/// Legacy mnemonic by number of the VEX one: the name without its V.
static LEGACY: LazyLock<Vec<Mnemonic>> = LazyLock::new(|| {
    let name = |m: Mnemonic| format!("{m:?}").to_lowercase();
    let by_name: HashMap<String, Mnemonic> = Mnemonic::values().map(|m| (name(m), m)).collect();
    let legacy = |m: Mnemonic| name(m).strip_prefix('v').and_then(|n| by_name.get(n).copied()).unwrap_or(m);
    Mnemonic::values().map(legacy).collect()
});

/// The legacy mnemonic of a VEX instruction, or its own if there is no legacy form.
pub(super) fn legacy(m: Mnemonic) -> Mnemonic {
    LEGACY.get(m as usize).copied().unwrap_or(m)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_v() {
        assert_eq!(legacy(Mnemonic::Vpaddd), Mnemonic::Paddd);
        assert_eq!(legacy(Mnemonic::Vmovsd), Mnemonic::Movsd);
        assert_eq!(legacy(Mnemonic::Vpermq), Mnemonic::Vpermq);
    }
}
