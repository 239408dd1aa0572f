//! Rewrites the golden parts of all filetests: `cargo run -p rhea-tests --bin bless`.

use std::process::ExitCode;

use rhea_tests::filetest::{Mode, run_all};

fn main() -> ExitCode {
    let report = run_all(Mode::Bless);
    for f in &report.failures {
        eprintln!("{f}");
    }
    println!("{} cases, {} files rewritten, {} failures", report.cases, report.rewritten, report.failures.len());
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
