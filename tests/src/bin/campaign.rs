//! Long runs against the host processor: `campaign instructions|sequences|bytes [--seed N] [--cases N] [--minutes N] [--states N]
//! [--processes N] [--engines interp:1,tier1:8,tier2:128] [--only FORM] [--report FILE] [--summary FILE]`. Says what differs, as
//! filetests, and ends with 1. More processes share the cases, each with seeds of its own.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(target_arch = "x86_64")]
fn main() {
    std::process::exit(long::main());
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    eprintln!("campaign: the host is the oracle, and is no x86-64 processor");
}

#[cfg(target_arch = "x86_64")]
mod long {
    use rhea_tests::anybytes::{AnyBytes, BATCH, Ends, MODES, Mode};
    use rhea_tests::host::Bits;
    use rhea_tests::host::bench::Bench;
    use rhea_tests::host::campaign::{Plan, Report, engines, run};
    use rhea_tests::host::sequence::{self, Summary};
    use serde_json::{Value, json};
    use std::process::Command;
    use std::time::{Duration, Instant};

    /// Distance of the seeds of processes that share a campaign.
    const SEEDS: u64 = 1 << 32;

    #[derive(Clone)]
    struct Args(Vec<String>);

    impl Args {
        fn text(&self, name: &str, default: &str) -> String {
            let at = self.0.iter().rposition(|a| a == name);
            at.and_then(|i| self.0.get(i + 1)).map_or(default, String::as_str).to_string()
        }

        fn number(&self, name: &str, default: u64) -> u64 {
            let t = self.text(name, "");
            if t.is_empty() { default } else { t.parse().unwrap_or_else(|_| panic!("{name} {t}: no number")) }
        }

        fn time(&self) -> Duration {
            Duration::from_secs(60 * self.number("--minutes", 10))
        }

        /// The same with another value.
        fn with(mut self, name: &str, value: impl ToString) -> Args {
            self.0.extend([name.to_string(), value.to_string()]);
            self
        }

        /// Says how it goes, each half minute.
        fn progress(last: &mut u64, elapsed: Duration, what: impl FnOnce() -> String) {
            if elapsed.as_secs() / 30 > *last {
                *last = elapsed.as_secs() / 30;
                eprintln!("{}, {:.0} s", what(), elapsed.as_secs_f64());
            }
        }

        /// Runs `--processes` other processes on shares of the cases, and gives what each found (`--part`). `None`: this is the only one.
        fn parts(&self, cases: u64) -> Result<Option<Vec<Value>>, String> {
            let n = self.number("--processes", 1);
            if n < 2 {
                return Ok(None);
            }
            let program = std::env::current_exe().map_err(|e| e.to_string())?;
            let mut started = Vec::new();
            for k in 0..n {
                let file = std::env::temp_dir().join(format!("rhea-campaign-{}-{k}", std::process::id()));
                let seed = self.number("--seed", 1).wrapping_add(k * SEEDS);
                let share = self.clone().with("--processes", 1).with("--seed", seed).with("--cases", cases.div_ceil(n));
                let share = share.with("--part", file.display());
                let child = Command::new(&program).args(&share.0[1..]).spawn().map_err(|e| e.to_string())?;
                started.push((child, file));
            }
            let mut out = Vec::new();
            for (mut child, file) in started {
                let status = child.wait().map_err(|e| e.to_string())?;
                let text = std::fs::read_to_string(&file).map_err(|e| format!("a process ended with {status}: {e}"))?;
                std::fs::remove_file(&file).map_err(|e| e.to_string())?;
                out.push(serde_json::from_str(&text).map_err(|e| e.to_string())?);
            }
            Ok(Some(out))
        }

        /// Hands a share's result to the process that started this one. Whether there is one.
        fn hand_over(&self, result: impl FnOnce() -> Value) -> Result<bool, String> {
            let file = self.text("--part", "");
            if !file.is_empty() {
                std::fs::write(&file, result().to_string()).map_err(|e| format!("{file}: {e}"))?;
            }
            Ok(!file.is_empty())
        }
    }

    pub fn main() -> i32 {
        let a = Args(std::env::args().collect());
        let done = match a.0.get(1).map(String::as_str) {
            Some("instructions") => instructions(&a),
            Some("sequences") => sequences(&a),
            Some("bytes") => bytes(&a),
            _ => Err("name a campaign: instructions, sequences, bytes".into()),
        };
        match done {
            Ok(()) => 0,
            Err(why) => {
                eprintln!("{why}");
                1
            }
        }
    }

    fn instructions(a: &Args) -> Result<(), String> {
        let mut plan = Plan {
            seed: a.number("--seed", 1),
            cases: a.number("--cases", 10_000_000),
            time: a.time(),
            states: a.number("--states", 64),
            engines: engines(&a.text("--engines", "interp:1,tier1:8,tier2:128"))?,
            only: a.text("--only", ""),
        };
        let parts = a.parts(plan.cases)?;
        if parts.is_some() {
            plan.cases = 0;
        }
        let mut last = 0;
        let mut progress = |r: &Report| {
            let what = || format!("{} cases, {} encodings, {} mismatches", r.cases, r.encodings(), r.mismatches());
            Args::progress(&mut last, r.elapsed, what);
        };
        let mut report = run(&plan, &mut progress)?;
        for part in parts.iter().flatten() {
            report.add(part).ok_or("a process left something else than a report")?;
        }
        if a.hand_over(|| report.to_json())? {
            return Ok(());
        }
        for (option, text) in [("--report", report.coverage()), ("--summary", report.summary())] {
            let file = a.text(option, "");
            if !file.is_empty() {
                std::fs::write(&file, text).map_err(|e| format!("{file}: {e}"))?;
            }
        }
        eprintln!("{}", report.coverage().split("\n\n").next().unwrap_or_default());
        if report.mismatches() == 0 { Ok(()) } else { Err(report.failures()) }
    }

    /// Programs, and what differed.
    #[derive(Default)]
    struct Programs {
        sum: Summary,
        failed: u64,
        /// The first of them.
        bad: String,
        compiled: String,
    }

    impl Programs {
        fn text(&self) -> String {
            let s = &self.sum;
            format!("{} programs, {} faults, {} exits, {} differ", s.programs, s.faults, s.exits, self.failed)
        }

        fn to_json(&self) -> Value {
            let s = &self.sum;
            json!([s.programs, s.faults, s.exits, self.failed, self.bad, self.compiled])
        }

        fn add(&mut self, v: &Value) -> Option<()> {
            let counts = [&mut self.sum.programs, &mut self.sum.faults, &mut self.sum.exits, &mut self.failed];
            for (i, n) in counts.into_iter().enumerate() {
                *n += v[i].as_u64()?;
            }
            self.bad += v[4].as_str()?;
            self.compiled += v[5].as_str()?;
            Some(())
        }
    }

    fn sequences(a: &Args) -> Result<(), String> {
        let (seed, cases) = (a.number("--seed", 1), a.number("--cases", 1_000_000));
        let (mut p, begun) = (Programs::default(), Instant::now());
        match a.parts(cases)? {
            Some(parts) => {
                for part in parts {
                    p.add(&part).ok_or("a process left something else than its counts")?;
                }
            }
            None => programs(a, seed, cases, &mut p)?,
        }
        if a.hand_over(|| p.to_json())? {
            return Ok(());
        }
        eprintln!("{}, {:.0} s\n{}", p.text(), begun.elapsed().as_secs_f64(), p.compiled);
        if p.failed == 0 { Ok(()) } else { Err(p.bad) }
    }

    fn programs(a: &Args, seed: u64, cases: u64, p: &mut Programs) -> Result<(), String> {
        let mut bench = Bench::new(&engines(&a.text("--engines", "interp,tier1,region"))?)?;
        let forms = [Bits::B32, Bits::B64].map(sequence::usable);
        let (begun, mut last) = (Instant::now(), 0);
        while p.sum.programs < cases && begun.elapsed() < a.time() {
            if let Err(why) = sequence::run(&mut bench, seed + p.sum.programs, 1, &forms, &mut p.sum) {
                p.failed += 1;
                if p.failed <= 20 {
                    p.bad += &format!("{why}\n");
                }
            }
            Args::progress(&mut last, begun.elapsed(), || p.text());
        }
        p.compiled = bench.compiled();
        Ok(())
    }

    /// `--cases` strings in each mode: real, virtual-8086, 16, 32 and 64 bits, the latter of CPL 0 and 3 in turn.
    fn bytes(a: &Args) -> Result<(), String> {
        let (seed, cases) = (a.number("--seed", 1), a.number("--cases", 100_000_000));
        let begun = Instant::now();
        let ends = match a.parts(cases)? {
            Some(parts) => {
                let mut sum = Ends::default();
                for part in &parts {
                    sum.add(&ends_of(part).ok_or("a process panicked; see above")?);
                }
                sum
            }
            None => strings(a, seed, cases)?,
        };
        if !a.hand_over(|| json!([ends.runs, ends.limit, ends.halted, ends.triple]))? {
            eprintln!("{ends}, {:.0} s", begun.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn ends_of(v: &Value) -> Option<Ends> {
        let mut e = Ends { limit: v[1].as_u64()?, halted: v[2].as_u64()?, triple: v[3].as_u64()?, ..Ends::default() };
        for (i, n) in e.runs.iter_mut().enumerate() {
            *n = v[0][i].as_u64()?;
        }
        Some(e)
    }

    fn strings(a: &Args, seed: u64, cases: u64) -> Result<Ends, String> {
        let mut m = AnyBytes::new(a.text("--engines", "interp") != "interp").map_err(|e| e.to_string())?;
        let (mut ends, begun, mut last, only) = (Ends::default(), Instant::now(), 0, a.text("--only", ""));
        for batch in 0..cases.div_ceil(BATCH) {
            let seed = seed.wrapping_add(batch.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            for mode in MODES.into_iter().filter(|m| format!("{m:?}").starts_with(&only)) {
                if only.is_empty() && matches!(mode, Mode::Long | Mode::LongUser) && (mode == Mode::LongUser) != (batch % 2 == 1)
                {
                    continue;
                }
                let run = std::panic::AssertUnwindSafe(|| m.batch(mode, seed, &mut ends));
                std::panic::catch_unwind(run).map_err(|_| {
                    let at = ends.runs[mode as usize] % BATCH;
                    format!("string {at} of the batch of seed {seed:#x} in mode {mode:?} panicked")
                })?;
            }
            Args::progress(&mut last, begun.elapsed(), || ends.to_string());
            if begun.elapsed() > a.time() {
                break;
            }
        }
        Ok(ends)
    }
}
