//! Runs random instructions on the host and on engines, compares all state, counts by form, and shrinks what differs.

use super::bench::Bench;
use super::case::case;
use super::draw::{Drawn, draw};
use super::forms::{self, Form};
use super::{Bits, at};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};
use vm_core::testing::Rng;

/// How long and how much.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    /// Native cases at most.
    pub cases: u64,
    pub time: Duration,
    /// States that each drawn instruction is run from.
    pub states: u64,
    /// Engines by name (see `engines`), and of how many instructions each gets one.
    pub engines: Vec<(String, usize)>,
    /// Only forms whose name (iced's `Code`) begins so.
    pub only: String,
}

/// What was done with a form.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub cases: u64,
    pub faults: u64,
    pub mismatches: u64,
    /// The first few mismatches, shrunk, each as a filetest with a comment.
    pub found: Vec<String>,
}

/// A campaign's result.
pub struct Report {
    pub forms: Vec<(Bits, Form, Tally)>,
    pub cases: u64,
    pub engines: Vec<Share>,
    pub elapsed: Duration,
    /// Distinct encodings, and the form of each.
    seen: HashMap<u64, usize>,
}

/// An engine's share of a campaign.
pub struct Share {
    pub name: String,
    pub cases: u64,
    /// Distinct encodings.
    seen: HashSet<u64>,
}

/// Engines and of how many instructions each gets one, as `interp:1,tier1:8`.
///
/// # Errors
/// What is wrong with the text.
pub fn engines(text: &str) -> Result<Vec<(String, usize)>, String> {
    let one = |e: &str| match e.split_once(':') {
        Some((name, n)) => n.parse().map(|n| (name.to_string(), n)).map_err(|_| format!("{e}: no number after the colon")),
        None => Ok((e.to_string(), 1)),
    };
    text.split(',').map(one).collect()
}

/// Bytes of code for each instruction of a batch, and how many there are.
const SLOT: u64 = 64;
const SLOTS: u64 = at::CODE_SIZE / SLOT - 1;
/// Mismatches of a form that are shrunk and kept.
const KEPT: usize = 2;

/// Runs a plan. `progress` is called now and then.
pub fn run(plan: &Plan, progress: &mut dyn FnMut(&Report)) -> Result<Report, String> {
    let mut bench = Bench::new(&plan.engines)?;
    let mut r = Rng(plan.seed);
    let wanted = |f: &Form| f.left_out.is_none() && format!("{:?}", f.code).starts_with(&plan.only);
    let mut forms = Vec::new();
    for b in [Bits::B64, Bits::B32] {
        forms.extend(forms::all(b).into_iter().map(|f| (b, f, Tally::default())));
    }
    let usable: Vec<usize> = (0..forms.len()).filter(|i| wanted(&forms[*i].1)).collect();
    if usable.is_empty() {
        return Err(format!("no form begins with `{}`", plan.only));
    }
    let engines = plan.engines.iter().map(|e| Share { name: e.0.clone(), cases: 0, seen: HashSet::new() }).collect();
    let mut report = Report { forms, cases: 0, engines, elapsed: Duration::ZERO, seen: HashMap::new() };
    let begun = Instant::now();
    let mut serial = 0usize;
    while report.cases < plan.cases && begun.elapsed() < plan.time {
        let batch = batch(&mut r, &report.forms, &usable, serial);
        bench.fill(&mut r);
        bench.set_code(&batch);
        for d in &batch {
            serial += 1;
            let (key, before) = (d.encoding(), report.cases);
            report.seen.insert(key, d.form);
            for n in 0..plan.states {
                let c = case(&mut r, d);
                if d.vendors_differ(&c) {
                    continue;
                }
                let turn = |stride: usize| serial.is_multiple_of(stride);
                let (trap, mut wrong) = bench.once(d, &c, turn, n % 16 == 0);
                let code = at::CODE - 64..at::CODE + at::CODE_SIZE;
                // By the displacement alone, too: elements of a gather lie around it.
                let base = d.insn.memory_displacement64() & 0xffff_ffff;
                let near = code.start - 0x1_0000..code.end + 0x1_0000;
                let looks =
                    !d.falls_through() || near.contains(&base) || c.state.gpr.iter().any(|g| code.contains(&(g & 0xffff_ffff)));
                if wrong.is_some() && looks {
                    // It may have led to the code of other instructions, or read it: they end in their own ways.
                    bench.set_code(std::slice::from_ref(d));
                    wrong = bench.once(d, &c, |_| true, true).1;
                    bench.set_code(&batch);
                }
                report.cases += 1;
                let t = &mut report.forms[d.form].2;
                t.cases += 1;
                t.faults += u64::from(trap.vector != 3);
                if let Some((k, _)) = wrong {
                    t.mismatches += 1;
                    if t.found.len() < KEPT {
                        let text = bench.describe(k, d, &c);
                        report.forms[d.form].2.found.push(text);
                    }
                }
            }
            for (k, e) in report.engines.iter_mut().enumerate() {
                if serial.is_multiple_of(bench.guests[k].1) {
                    e.cases += report.cases - before;
                    e.seen.insert(key);
                }
            }
        }
        report.elapsed = begun.elapsed();
        progress(&report);
    }
    Ok(report)
}

/// Instructions for all slots; forms take turns.
fn batch(r: &mut Rng, forms: &[(Bits, Form, Tally)], usable: &[usize], serial: usize) -> Vec<Drawn> {
    let mut out = Vec::with_capacity(SLOTS as usize);
    for slot in 0..SLOTS {
        let f = usable[(serial + slot as usize) % usable.len()];
        let offset = match slot % 64 {
            // Across the end of the page, now and then.
            63 => 49 + r.below(16),
            0 => 32,
            _ => r.below(32),
        };
        let ip = at::CODE + 64 + slot * SLOT + offset;
        let (bits, form, _) = &forms[f];
        out.extend((0..40).find_map(|_| draw(r, *bits, form, f, ip)));
    }
    out
}

impl Report {
    pub fn mismatches(&self) -> u64 {
        self.forms.iter().map(|f| f.2.mismatches).sum()
    }

    pub fn encodings(&self) -> usize {
        self.seen.len()
    }

    /// For `add` in another process.
    pub fn to_json(&self) -> Value {
        let form = |t: &Tally| json!([t.cases, t.faults, t.mismatches, t.found]);
        let engine = |e: &Share| json!([e.name, e.cases, e.seen.iter().collect::<Vec<_>>()]);
        json!({
            "cases": self.cases,
            "seconds": self.elapsed.as_secs_f64(),
            "forms": self.forms.iter().map(|f| form(&f.2)).collect::<Vec<_>>(),
            "engines": self.engines.iter().map(engine).collect::<Vec<_>>(),
            "seen": self.seen.iter().collect::<Vec<_>>(),
        })
    }

    /// Adds what another process found with the same plan but for the seed, at the same time. `None`: it is no such report.
    pub fn add(&mut self, other: &Value) -> Option<()> {
        self.cases += other["cases"].as_u64()?;
        self.elapsed = self.elapsed.max(Duration::from_secs_f64(other["seconds"].as_f64()?));
        for (f, o) in self.forms.iter_mut().zip(other["forms"].as_array()?) {
            f.2.cases += o[0].as_u64()?;
            f.2.faults += o[1].as_u64()?;
            f.2.mismatches += o[2].as_u64()?;
            f.2.found.extend(o[3].as_array()?.iter().filter_map(Value::as_str).map(String::from));
        }
        for (e, o) in self.engines.iter_mut().zip(other["engines"].as_array()?) {
            e.cases += o[1].as_u64()?;
            e.seen.extend(o[2].as_array()?.iter().filter_map(Value::as_u64));
        }
        let pair = |p: &Value| Some((p[0].as_u64()?, p[1].as_u64()? as usize));
        self.seen.extend(other["seen"].as_array()?.iter().filter_map(pair));
        Some(())
    }

    /// Everything that differed, a form at a time.
    pub fn failures(&self) -> String {
        let bad = self.forms.iter().filter(|f| f.2.mismatches > 0);
        bad.map(|(b, f, t)| {
            format!("{:?} ({} bits): {} of {} cases differ\n{}\n", f.code, b.count(), t.mismatches, t.cases, t.found.join("\n"))
        })
        .collect()
    }

    /// Coverage by mnemonic in few lines: forms, cases, mismatches; then the forms that were left out, by reason.
    pub fn summary(&self) -> String {
        let mut by_name: BTreeMap<String, [u64; 3]> = BTreeMap::new();
        for (_, f, t) in self.forms.iter().filter(|f| f.1.left_out.is_none()) {
            let sum = by_name.entry(format!("{:?}", f.code.mnemonic()).to_uppercase()).or_default();
            [1, t.cases, t.mismatches].iter().zip(sum).for_each(|(n, s)| *s += n);
        }
        let mut s = self.head();
        s += &format!("\n{} mnemonics: forms/cases/mismatches\n\n", by_name.len());
        s += &wrapped(by_name.iter().map(|(name, [forms, cases, bad])| format!("{name} {forms}/{cases}/{bad}")), "; ");
        let mut by_reason: BTreeMap<(&str, &str), Vec<String>> = BTreeMap::new();
        for (b, f, _) in &self.forms {
            if let Some(why) = f.left_out.filter(|l| l.0 != forms::NOT_OURS) {
                by_reason.entry(why).or_default().push(format!("{:?} ({})", f.code, b.count()));
            }
        }
        s += "\nNot compared on this host: why; what tests them instead: the forms (bits of code)\n";
        for ((why, oracle), forms) in by_reason {
            s += &format!("\n{why}; {oracle}:\n\n{}", wrapped(forms.into_iter(), ", "));
        }
        s
    }

    fn head(&self) -> String {
        let mut s = format!(
            "{} cases of {} distinct encodings in {:.0} s, {} mismatches\n",
            self.cases,
            self.encodings(),
            self.elapsed.as_secs_f64(),
            self.mismatches()
        );
        for e in &self.engines {
            s += &format!("{}: {} cases, {} distinct encodings\n", e.name, e.cases, e.seen.len());
        }
        s
    }

    /// Coverage by mnemonic and form, and what was left out, why, and what tests that.
    pub fn coverage(&self) -> String {
        let mut s = self.head();
        s += "\nmnemonic form bits cases faults encodings mismatches\n";
        let mut encodings = vec![0; self.forms.len()];
        self.seen.values().for_each(|form| encodings[*form] += 1);
        let mut rows: Vec<_> = self.forms.iter().zip(encodings).filter(|f| f.0.1.left_out.is_none()).collect();
        rows.sort_by_key(|(f, _)| (format!("{:?}", f.1.code.mnemonic()), format!("{:?}", f.1.code), f.0));
        for ((b, f, t), encodings) in rows {
            s += &format!(
                "{:?} {:?} {} {} {} {} {}\n",
                f.code.mnemonic(),
                f.code,
                b.count(),
                t.cases,
                t.faults,
                encodings,
                t.mismatches
            );
        }
        s += "\nnot compared on this host: form, why, tested by\n";
        for (b, f, _) in &self.forms {
            if let Some((why, oracle)) = f.left_out.filter(|l| l.0 != forms::NOT_OURS) {
                s += &format!("{:?} {}: {why}; {oracle}\n", f.code, b.count());
            }
        }
        s
    }
}

/// Items with `between` them, in lines.
fn wrapped(items: impl Iterator<Item = String>, between: &str) -> String {
    let (mut out, mut column) = (String::new(), 0);
    for item in items {
        if column + item.len() > 130 {
            out += "\n";
            column = 0;
        }
        column += item.len() + between.len();
        out += &item;
        out += between;
    }
    out.truncate(out.trim_end_matches(between).len());
    // Ends of lines have no blanks.
    out.replace(" \n", "\n") + "\n"
}
