//! Runs every file under `filetests/`.

use rhea_tests::filetest::{Mode, run_all};

#[test]
fn filetests() {
    let report = run_all(Mode::Check);
    for s in &report.skipped {
        eprintln!("skipped: {s}");
    }
    eprintln!("{} cases, {} skips of one engine each", report.cases, report.skipped.len());
    for kind in ["ir", "x86"] {
        assert!(report.kinds.get(kind).is_some_and(|n| *n >= 100), "cases found: {:?}", report.kinds);
    }
    assert!(report.skipped.len() * 20 <= report.cases, "so many skips that an engine is hardly tested");
    assert!(
        report.failures.is_empty(),
        "{} of {} cases failed\n\n{}",
        report.failures.len(),
        report.cases,
        report.failures.join("\n\n")
    );
}
