//! The binary `rhea-diff`: two engine settings side by side, to the first instruction after which they differ.

use machine::diff::{self, Diff, End, Outcome, Side};
use machine::engine;
use machine::options::{self, Config, IcountConfig, Request};
use std::process::ExitCode;

#[global_allocator]
static ALLOC: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "usage: rhea-diff --a ACCEL --b ACCEL [--every N] [--to N] OPTIONS OF RHEA
  --a, --b   the two settings, as after rhea's -accel
  --every    instructions between two comparisons (1000000)
  --to       count at which to stop (never)
The options need a -kernel; -icount is shift=3 if it is not given. Exit status: 0 alike, 2 different, 1 error.";

fn main() -> ExitCode {
    start().unwrap_or_else(|message| {
        eprintln!("rhea-diff: {message}");
        ExitCode::from(1)
    })
}

/// What comes before rhea's own options.
struct Own {
    accel: [Option<String>; 2],
    every: u64,
    to: u64,
    rest: Vec<String>,
}

fn own(args: Vec<String>) -> Result<Own, String> {
    let mut own = Own { accel: [None, None], every: 1_000_000, to: u64::MAX, rest: Vec::new() };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let number =
            |text: String| text.parse::<u64>().ok().filter(|n| *n > 0).ok_or(format!("{arg} {text}: not a number from 1"));
        let mut value = || args.next().ok_or(format!("{arg}: needs a value\n{USAGE}"));
        match &*arg {
            "--a" => own.accel[0] = Some(value()?),
            "--b" => own.accel[1] = Some(value()?),
            "--every" => own.every = number(value()?)?,
            "--to" => own.to = number(value()?)?,
            _ => own.rest.push(arg),
        }
    }
    Ok(own)
}

fn config(accel: &str, rest: &[String]) -> Result<Config, String> {
    let args = ["-accel".to_owned(), accel.to_owned()].into_iter().chain(rest.iter().cloned());
    match options::parse(args).map_err(|e| e.to_string())? {
        Request::Run(config) => Ok(*config),
        Request::FirstRun(_) | Request::Print(_) => Err(USAGE.into()),
    }
}

fn start() -> Result<ExitCode, String> {
    let args = std::env::args_os().skip(1).map(|a| a.into_string().map_err(|a| format!("{a:?}: not valid UTF-8")));
    let own = own(args.collect::<Result<_, _>>()?)?;
    let [Some(a), Some(b)] = own.accel else { return Err(USAGE.into()) };
    let side = |name: String| -> Result<(Config, Side), String> {
        let config = config(&name, &own.rest)?;
        let settings = engine::settings(&config.accel).map_err(|e| e.to_string())?;
        let cpu = config.cpu.clone();
        let make = move |settings, signals: &std::sync::Arc<vm_core::VcpuSignals>| {
            let (mut engines, _) = engine::make(&cpu, settings, std::slice::from_ref(signals))?;
            Ok(engines.remove(0))
        };
        Ok((config, Side { name, settings, make: Box::new(make) }))
    };
    let ((config, a), (_, b)) = (side(a)?, side(b)?);
    let time = config.icount.unwrap_or(IcountConfig { shift: Some(3), sleep: false });
    if time.shift.is_none() || config.cpu.topology.cpus() > 1 {
        return Err("-icount shift=auto and more than one CPU cannot be repeated exactly".into());
    }
    let diff = Diff { config, time, sides: [a, b], every: own.every, to: own.to, told: true, disassemble: diff::disassemble };
    match diff.run().map_err(|e| e.to_string())? {
        Outcome::Equal(count, end) => {
            let why = match end {
                Some(End::Over) => ", where the guest ended",
                Some(End::Asleep) => ", where the guest sleeps for good",
                None => "",
            };
            println!("no difference up to instruction {count}{why}");
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Differ(d) => {
            print!("{d}");
            Ok(ExitCode::from(2))
        }
        Outcome::Vanished(count) => {
            println!("they differed at instruction {count}, and not when they were run there again");
            Ok(ExitCode::from(2))
        }
    }
}
