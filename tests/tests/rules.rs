//! Rules of the code base that the compiler does not check: arrows between crates, `unsafe`, sizes, file headers.

use rhea_tests::workspace::{edges, root, rust_files};
use std::collections::{BTreeMap, BTreeSet};

const BELOW_MACHINE: &[&str] = &["ir", "vm-core", "arch-x86", "devices", "frontend-x86", "backend", "accel-kvm"];

/// What each crate may depend on (docs/ARCHITECTURE.md, "Crates"). `backend` knows no x86, `devices` no CPU.
const ALLOWED: &[(&str, &[&str])] = &[
    ("ir", &[]),
    ("vm-core", &[]),
    ("arch-x86", &["vm-core"]),
    ("devices", &["vm-core"]),
    ("frontend-x86", &["ir", "vm-core", "arch-x86"]),
    ("backend", &["ir", "vm-core"]),
    ("accel-kvm", &["vm-core", "arch-x86"]),
    ("machine", BELOW_MACHINE),
    ("rhea-tests", &["ir", "vm-core", "arch-x86", "devices", "frontend-x86", "backend", "accel-kvm", "machine"]),
];

/// The only files that may contain `allow(unsafe_code)`: guest RAM, the engine around generated code,
/// host FP by `asm!`, KVM's requests, pages of the program itself, io_uring, TAP devices, and the test harness that runs code on the host processor,
/// or has the host refuse system calls.
const UNSAFE: &[&str] = &[
    "accel-kvm/src/footprint.rs",
    "accel-kvm/src/ioctl.rs",
    "backend/src/atomic.rs",
    "backend/src/cache/mod.rs",
    "backend/src/exec/build.rs",
    "backend/src/exec/find.rs",
    "backend/src/exec/mod.rs",
    "backend/src/far.rs",
    "backend/src/jit/arena.rs",
    "backend/src/jit/asm.rs",
    "backend/src/jit/path.rs",
    "backend/src/jit/region.rs",
    "backend/src/jit/runtime.rs",
    "backend/src/jumps.rs",
    "backend/src/tier0/counted.rs",
    "backend/src/tier0/form.rs",
    "backend/src/tier0/observed.rs",
    "backend/src/tier0/ops.rs",
    "backend/src/tier0/vector.rs",
    "backend/src/vblock.rs",
    "frontend-x86/src/hostfp.rs",
    "machine/src/block/file.rs",
    "machine/src/net/tap.rs",
    "machine/vm-core/src/ram.rs",
    "tests/src/host/native.rs",
    "tests/src/refuse.rs",
];

/// Lines of a file that has no `// size-ok: why`.
const MAX_LINES: usize = 800;

fn text(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|e| panic!("{file}: {e}"))
}

/// Edges that `ALLOWED` does not have, and crates that it does not know.
fn forbidden(edges: &BTreeSet<(String, String)>) -> Vec<String> {
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.iter().copied().collect();
    let bad = |(from, to): &&(String, String)| !allowed.get(&**from).is_some_and(|l| l.contains(&&**to));
    edges.iter().filter(bad).map(|(from, to)| format!("{from} -> {to}")).collect()
}

#[test]
fn crates_depend_only_downwards() {
    let edges = edges();
    assert!(edges.contains(&("frontend-x86".into(), "ir".into())), "the edges were not found: {edges:?}");
    assert_eq!(forbidden(&edges), Vec::<String>::new(), "edges that docs/ARCHITECTURE.md forbids");
}

#[test]
fn a_forbidden_edge_would_be_found() {
    let with = |from: &str, to: &str| forbidden(&BTreeSet::from([(from.to_owned(), to.to_owned())]));
    assert_eq!(with("backend", "arch-x86"), ["backend -> arch-x86"]);
    assert_eq!(with("devices", "machine"), ["devices -> machine"]);
    assert_eq!(with("a-new-crate", "ir"), ["a-new-crate -> ir"]);
    assert_eq!(with("backend", "ir"), Vec::<String>::new());
}

#[test]
fn unsafe_code_is_in_the_listed_files_only() {
    // In two parts, so that this file is not found.
    let allowance = concat!("allow(", "unsafe_code");
    let has = |f: &String| text(f).lines().any(|l| !l.trim_start().starts_with("//") && l.contains(allowance));
    let found: Vec<String> = rust_files().into_iter().filter(has).collect();
    assert_eq!(found, UNSAFE, "a file left the list or joined it");
}

#[test]
fn files_stay_short() {
    let long = |f: &String| {
        let t = text(f);
        t.lines().count() > MAX_LINES && !t.lines().any(|l| l.trim_start().starts_with("// size-ok: "))
    };
    let found: Vec<String> = rust_files().into_iter().filter(long).collect();
    assert_eq!(found, Vec::<String>::new(), "longer than {MAX_LINES} lines; split, or say why not with '// size-ok: '");
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent = |f: &String| {
        let t = text(f);
        !t.trim().is_empty() && !t.starts_with("//! ")
    };
    let found: Vec<String> = rust_files().into_iter().filter(silent).collect();
    assert_eq!(found, Vec::<String>::new(), "files start with a '//! ' line");
}
