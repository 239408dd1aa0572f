//! Long runs against the host processor: `campaign instructions|sequences|bytes [--seed N] [--cases N] [--minutes N] [--states N]
//! [--engines interp:1,tier1:8,tier2:128] [--only FORM] [--report FILE] [--summary FILE]`. Says what differs, as filetests, and ends with 1.

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
    use rhea_tests::anybytes::{AnyBytes, Ends};
    use rhea_tests::host::Bits;
    use rhea_tests::host::bench::Bench;
    use rhea_tests::host::campaign::{Plan, Report, engines, run};
    use rhea_tests::host::sequence::{self, Summary};
    use std::time::{Duration, Instant};
    use vm_core::testing::Rng;

    struct Args(Vec<String>);

    impl Args {
        fn text(&self, name: &str, default: &str) -> String {
            let at = self.0.iter().position(|a| a == name);
            at.and_then(|i| self.0.get(i + 1)).map_or(default, String::as_str).to_string()
        }

        fn number(&self, name: &str, default: u64) -> u64 {
            let t = self.text(name, "");
            if t.is_empty() { default } else { t.parse().unwrap_or_else(|_| panic!("{name} {t}: no number")) }
        }

        fn time(&self) -> Duration {
            Duration::from_secs(60 * self.number("--minutes", 10))
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
        let plan = Plan {
            seed: a.number("--seed", 1),
            cases: a.number("--cases", 10_000_000),
            time: a.time(),
            states: a.number("--states", 64),
            engines: engines(&a.text("--engines", "interp:1,tier1:8,tier2:128"))?,
            only: a.text("--only", ""),
        };
        let mut last = 0;
        let mut progress = |r: &Report| {
            if r.elapsed.as_secs() / 30 > last {
                last = r.elapsed.as_secs() / 30;
                let s = r.elapsed.as_secs_f64();
                eprintln!("{} cases, {} encodings, {} mismatches, {s:.0} s", r.cases, r.encodings(), r.mismatches());
            }
        };
        let report = run(&plan, &mut progress)?;
        let file = a.text("--report", "");
        if !file.is_empty() {
            std::fs::write(&file, report.coverage()).map_err(|e| format!("{file}: {e}"))?;
        }
        let file = a.text("--summary", "");
        if !file.is_empty() {
            std::fs::write(&file, report.summary()).map_err(|e| format!("{file}: {e}"))?;
        }
        eprintln!("{}", report.coverage().split("\n\n").next().unwrap_or_default());
        if report.mismatches() == 0 { Ok(()) } else { Err(report.failures()) }
    }

    fn sequences(a: &Args) -> Result<(), String> {
        let (seed, programs) = (a.number("--seed", 1), a.number("--cases", 1_000_000));
        let mut bench = Bench::new(&engines(&a.text("--engines", "interp,tier1,tier2"))?)?;
        let forms = [Bits::B32, Bits::B64].map(sequence::usable);
        let (mut sum, begun, mut bad) = (Summary::default(), Instant::now(), String::new());
        let (mut failed, mut last) = (0, 0);
        while sum.programs < programs && begun.elapsed() < a.time() {
            if let Err(why) = sequence::run(&mut bench, seed + sum.programs, 1, &forms, &mut sum) {
                failed += 1;
                if failed <= 20 {
                    bad += &format!("{why}\n");
                }
            }
            if begun.elapsed().as_secs() / 30 > last {
                last = begun.elapsed().as_secs() / 30;
                eprintln!("{sum:?}, {failed} differ, {:.0} s", begun.elapsed().as_secs_f64());
            }
        }
        eprintln!("{sum:?}, {failed} differ, {:.0} s", begun.elapsed().as_secs_f64());
        if failed == 0 { Ok(()) } else { Err(bad) }
    }

    fn bytes(a: &Args) -> Result<(), String> {
        let jit = a.text("--engines", "interp") != "interp";
        let (seed, runs) = (a.number("--seed", 1), a.number("--cases", 100_000_000));
        let mut m = AnyBytes::new(jit).map_err(|e| e.to_string())?;
        let (mut ends, begun, mut last) = (Ends::default(), Instant::now(), 0);
        let mut batch = 0;
        while ends.runs < runs && begun.elapsed() < a.time() {
            let seed = seed.wrapping_mul(1_000_003).wrapping_add(batch);
            batch += 1;
            let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| m.run(&mut Rng(seed), 6000, &mut ends)));
            done.map_err(|_| format!("the batch of seed {seed:#x} panicked at run {}", ends.runs % 6000))?;
            if begun.elapsed().as_secs() / 30 > last {
                last = begun.elapsed().as_secs() / 30;
                eprintln!("{ends:?}, {:.0} s", begun.elapsed().as_secs_f64());
            }
        }
        eprintln!("{ends:?}, {:.0} s", begun.elapsed().as_secs_f64());
        Ok(())
    }
}
