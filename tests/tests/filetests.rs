//! Runs every file under `filetests/`.

use rhea_tests::filetest::{Mode, run_all};

#[test]
fn filetests() {
    let report = run_all(Mode::Check);
    for s in &report.skipped {
        eprintln!("skipped: {s}");
    }
    eprintln!("{} cases, {} skips of one engine each", report.cases, report.skipped.len());
    assert!(report.cases > 0, "no filetests found");
    assert!(
        report.failures.is_empty(),
        "{} of {} cases failed\n\n{}",
        report.failures.len(),
        report.cases,
        report.failures.join("\n\n")
    );
}
