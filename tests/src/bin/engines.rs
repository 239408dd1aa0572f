//! The long form of the engines' differential test: `engines --cases N --seed S`.

use rhea_tests::engines::campaign::Campaign;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |name: &str, default: u64| {
        let at = args.iter().position(|a| a == name);
        at.and_then(|i| args.get(i + 1)).and_then(|v| v.parse().ok()).unwrap_or(default)
    };
    let (cases, seed) = (number("--cases", 10_000), number("--seed", 1));
    let t = Instant::now();
    let mut c = match Campaign::new() {
        Ok(c) => c,
        Err(e) => {
            eprintln!("engines: {e}");
            std::process::exit(1);
        }
    };
    let (mut done, mut endless, mut faults) = (0, 0, 0);
    while done < cases {
        let n = (cases - done).min(200);
        match c.run(seed + done, n) {
            Ok(s) => (endless, faults) = (endless + s.endless, faults + s.faults),
            Err(text) => {
                eprintln!("{text}");
                std::process::exit(1);
            }
        }
        done += n;
        eprintln!("{done} programs, {faults} ended in a fault, {endless} did not end, {:.0} s", t.elapsed().as_secs_f64());
    }
}
