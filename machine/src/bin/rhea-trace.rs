//! The binary `rhea-trace`: a trace made with `rhea -trace FILE`, as text.

use machine::trace::reader::{Symbols, show};
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "usage: rhea-trace TRACE [SYMBOLS]   (SYMBOLS: an ELF file, System.map or a copy of /proc/kallsyms)";

fn run(args: &[String]) -> Result<(), String> {
    let (trace, symbols) = match args {
        [trace] => (trace, Symbols::default()),
        [trace, file] => (trace, Symbols::open(Path::new(file))?),
        _ => return Err(USAGE.into()),
    };
    let file = File::open(trace).map_err(|e| format!("{trace}: {e}"))?;
    match show(BufReader::new(file), &symbols, &mut BufWriter::new(io::stdout().lock())) {
        // A reader that has gone away (`rhea-trace … | head`) is no error.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.map_err(|e| format!("{trace}: {e}")),
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            machine::say!("{e}");
            ExitCode::from(1)
        }
    }
}
