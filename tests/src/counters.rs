//! Counters of the translating engine, as its `info_jit` prints them.

/// The number in the line that begins with `name`; `None` without such a line.
pub fn counter(info: &str, name: &str) -> Option<u64> {
    let rest = info.lines().find_map(|l| l.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Regions that the compiler has made; 0 if it is off.
pub fn regions(info: &str) -> u64 {
    counter(info, "regions compiled").unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_found_by_name() {
        let info = "blocks               7\nregions compiled     12\ncode bytes           90 (64 in use)\n";
        assert_eq!((regions(info), counter(info, "code bytes"), counter(info, "faults")), (12, Some(90), None));
        assert_eq!(regions("compiler             off\n"), 0);
    }
}
