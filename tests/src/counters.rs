//! Counters of the translating engine, as its `info_jit` prints them.

/// The number in the line that begins with `name`; `None` without such a line.
pub fn counter(info: &str, name: &str) -> Option<u64> {
    let rest = info.lines().find_map(|l| l.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Blocks of tier 1 and regions of tier 2 that were made; 0 if there is no compiler.
pub fn compiled(info: &str) -> u64 {
    ["blocks emitted", "regions compiled"].iter().filter_map(|name| counter(info, name)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_name() {
        let info =
            "blocks               7\nblocks emitted       4\nregions compiled     12\ncode bytes           90 (64 in use)\n";
        assert_eq!((compiled(info), counter(info, "code bytes"), counter(info, "faults")), (16, Some(90), None));
        assert_eq!(compiled("compiler             off\n"), 0);
    }
}
