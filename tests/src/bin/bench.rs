//! Times workloads in a Linux guest on rhea and on other emulators, side by side: `bench [--runs N] [--rows a,b] [--cpu NAME] [--qemu
//! PROGRAM]… [--history FILE]`. Needs gcc and Debian's package tools. CPU seconds of the whole emulator, best of the runs; a ratio
//! below 1 means that rhea takes less. What was measured before is in the history, a JSON object a line.

use rhea_tests::bench::{Emulator, Guest, ROWS, Table, native};
use std::path::PathBuf;
use std::process::ExitCode;

struct Args {
    runs: usize,
    rows: Vec<&'static str>,
    cpu: String,
    qemus: Vec<String>,
    history: PathBuf,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let history = rhea_tests::boot::scratch().join("bench-history.jsonl");
    let mut a = Args { runs: 2, rows: ROWS.to_vec(), cpu: "max".into(), qemus: Vec::new(), history };
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
        match word.as_str() {
            "--runs" => a.runs = value.parse().ok().filter(|n| *n > 0).ok_or("--runs needs a number from 1 on")?,
            "--rows" => {
                let known =
                    |r: &str| ROWS.iter().copied().find(|k| *k == r).ok_or(format!("there is no row {r}; there are {ROWS:?}"));
                a.rows = value.split(',').map(known).collect::<Result<_, _>>()?;
            }
            "--cpu" => a.cpu = value,
            "--qemu" => a.qemus.push(value),
            "--history" => a.history = value.into(),
            _ => return Err(format!("{word} is none of --runs, --rows, --cpu, --qemu, --history")),
        }
    }
    if a.qemus.is_empty() {
        a.qemus.push("qemu-system-x86_64".into());
    }
    Ok(a)
}

fn bench(a: &Args) -> Result<(), String> {
    let guest = Guest::build()?;
    let ours = rhea_tests::boot::program().display().to_string();
    let mut emulators = vec![Emulator::new("rhea", &ours)];
    for q in &a.qemus {
        match Emulator::version(q) {
            Some(version) => emulators.push(Emulator::new(&version, q)),
            None => eprintln!("{q} cannot be run: left out"),
        }
    }
    let mut table = Table::new(&emulators, &a.rows);
    table.native(native(&guest, &a.rows)?);
    for run in 1..=a.runs {
        for (n, e) in emulators.iter().enumerate() {
            eprintln!("run {run} of {}: {}", a.runs, e.name());
            table.add(n, e.run(&guest, &a.cpu, &a.rows)?)?;
        }
    }
    println!("{}", table.text());
    table.remember(&a.history, &a.cpu)
}

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)).and_then(|a| bench(&a)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("bench: {why}");
            ExitCode::FAILURE
        }
    }
}
