//! The binary `rhea`: command line in, exit status out.

use machine::options::{self, Request};
use std::io::Write;
use std::process::ExitCode;

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    start().unwrap_or_else(|message| {
        machine::say!("{message}");
        ExitCode::from(1)
    })
}

fn start() -> Result<ExitCode, String> {
    let args = std::env::args_os().skip(1).map(|a| a.into_string().map_err(|a| format!("{a:?}: not valid UTF-8")));
    let args: Vec<String> = args.collect::<Result<_, _>>()?;
    match options::parse(args).map_err(|e| e.to_string())? {
        Request::Print(text) => {
            // A reader that has gone away (`rhea -help | head`) is no error.
            let _ = std::io::stdout().lock().write_all(text.as_bytes());
            Ok(ExitCode::SUCCESS)
        }
        Request::Run(config) => machine::run::run(*config).map_err(|e| e.to_string()),
        Request::FirstRun(config) => {
            let config = machine::firstrun::prepare(*config).map_err(|e| e.to_string())?;
            machine::run::run(config).map_err(|e| e.to_string())
        }
    }
}
