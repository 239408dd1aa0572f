//! Fuzzing in process with a stable compiler: inputs are mutated, and those that make a target behave in a new way are kept and
//! mutated further. A target tells of its behaviour by numbers. Seeds are in `tests/fuzz/TARGET.hex`, one input a line.

pub mod disks;
pub mod image;
pub mod mmio;
pub mod pci;
pub mod share;
pub mod virtio;

use crate::workspace::root;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use vm_core::testing::Rng;

/// Bytes of an input.
const MAX_LEN: usize = 1024;
/// Time on the processor that one input may take.
const SLOW: Duration = Duration::from_secs(1);
/// Inputs kept as seeds after a long campaign.
const KEPT: usize = 64;

/// What a run has done, in numbers without meaning: equal ones mean like behaviour.
#[derive(Default)]
pub struct Behaviour(pub HashSet<u64>);

impl Behaviour {
    pub fn saw(&mut self, what: impl Hash) {
        let mut h = DefaultHasher::new();
        what.hash(&mut h);
        self.0.insert(h.finish());
    }

    /// A saved state, of which numbers count by their magnitude.
    pub fn state(&mut self, v: &serde_json::Value) {
        self.walk(0, v);
    }

    fn walk(&mut self, place: u64, v: &serde_json::Value) {
        use serde_json::Value;
        let below = |name: u64| place.wrapping_mul(31).wrapping_add(name);
        match v {
            Value::Object(o) => o.values().enumerate().for_each(|(i, v)| self.walk(below(i as u64 + 1), v)),
            // Long lists are memory: their length counts.
            Value::Array(a) if a.len() > 40 => self.saw((place, a.len().ilog2())),
            Value::Array(a) => a.iter().for_each(|v| self.walk(below(99), v)),
            Value::Number(n) => self.saw((place, n.as_u64().map_or(65, |n| 64 - n.leading_zeros()))),
            Value::Bool(b) => self.saw((place, b)),
            Value::String(s) => self.saw((place, s)),
            Value::Null => {}
        }
    }
}

/// Reads an input; zeroes at its end.
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        let Some((b, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *b
    }

    pub fn u16(&mut self) -> u16 {
        u16::from(self.u8()) | u16::from(self.u8()) << 8
    }

    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    pub fn take(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.u8()).collect()
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|s| s.parse().unwrap_or_else(|_| panic!("{name} is to be a number")))
}

fn file(target: &str) -> PathBuf {
    root().join("tests/fuzz").join(format!("{target}.hex"))
}

/// Inputs of a target's file.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(file(target)).unwrap_or_default();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    text.lines().map(|l| l.trim().as_bytes().chunks(2).filter_map(byte).collect()).collect()
}

/// Adds inputs to a target's file.
fn add(target: &str, inputs: &[Vec<u8>]) -> std::io::Result<()> {
    let path = file(target);
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    let mut f = std::fs::File::options().create(true).append(true).open(path)?;
    for i in inputs {
        let line: String = i.iter().map(|b| format!("{b:02x}")).collect();
        writeln!(f, "{line}")?;
    }
    Ok(())
}

fn time_used() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

/// A change of an input, of the usual kinds.
fn mutate(r: &mut Rng, corpus: &[Vec<u8>], from: &[u8]) -> Vec<u8> {
    const ODD: [u64; 12] = [0, 1, 4, 7, 8, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0xffff, u64::MAX];
    let mut v = from.to_vec();
    for _ in 0..=r.below(6) {
        let at = r.below(v.len() as u64 + 1) as usize;
        let n = (1 << r.below(5)).min(v.len() - at);
        match r.below(8) {
            0 if n > 0 => v[at] ^= 1 << r.below(8),
            1 if n > 0 => v[at] = r.next_u64() as u8,
            2 => drop(v.drain(at..at + n)),
            3 => drop(v.splice(at..at, (0..1 << r.below(4)).map(|_| r.below(256) as u8))),
            4 if n > 0 => {
                let bytes = r.pick(&ODD).to_le_bytes();
                let n = n.min(8);
                v[at..at + n].copy_from_slice(&bytes[..n]);
            }
            5 => {
                let part = v[at..at + n].to_vec();
                let to = r.below(v.len() as u64 + 1) as usize;
                drop(v.splice(to..to, part));
            }
            _ => {
                // A piece of another input.
                let Some(other) = corpus.get(r.below(corpus.len() as u64) as usize) else { continue };
                let a = r.below(other.len() as u64 + 1) as usize;
                let b = a + r.below((other.len() - a) as u64 + 1).min(64) as usize;
                drop(v.splice(at..at, other[a..b].iter().copied()));
            }
        }
    }
    v.truncate(MAX_LEN);
    v
}

/// Panics of all threads: a device's thread may catch its own, and the released program would end by it.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.fetch_add(1, Ordering::Relaxed);
            before(info);
        }));
    });
}

/// Runs one input; what it did.
///
/// # Panics
/// If it panics or takes too long. The input is then in the target's file.
fn run(target: &str, input: &[u8], f: &dyn Fn(&[u8], &mut Behaviour)) -> Behaviour {
    count_panics();
    let (mut seen, start, before) = (Behaviour::default(), time_used(), PANICS.load(Ordering::Relaxed));
    let ran = catch_unwind(AssertUnwindSafe(|| f(input, &mut seen)));
    let took = time_used() - start;
    let panicked = ran.is_err() || PANICS.load(Ordering::Relaxed) != before;
    if panicked || took > SLOW {
        let kept = add(target, &[input.to_vec()]);
        panic!(
            "{target}: {} after {took:?}; the last line of its seeds: {kept:?}",
            if panicked { "a panic" } else { "too slow" }
        );
    }
    seen
}

/// A campaign: all seeds, then mutations for `RHEA_FUZZ_SECONDS` (1). `RHEA_FUZZ_SEED` begins another one; with `RHEA_FUZZ_KEEP`
/// set, inputs of new behaviour are added to the target's file at the end.
///
/// # Panics
/// If an input panics or takes too long.
pub fn campaign(target: &str, first: &[Vec<u8>], f: &dyn Fn(&[u8], &mut Behaviour)) {
    let end = Instant::now() + Duration::from_secs(number("RHEA_FUZZ_SECONDS").unwrap_or(1));
    let seed = number("RHEA_FUZZ_SEED").unwrap_or(1);
    let mut r = Rng(seed);
    let mut known: HashSet<u64> = HashSet::new();
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    let mut found: Vec<(usize, Vec<u8>)> = Vec::new();
    let given = seeds(target);
    for input in given.iter().chain(first) {
        known.extend(run(target, input, f).0);
        corpus.push(input.clone());
    }
    let mut runs = corpus.len() as u64;
    while Instant::now() < end {
        let base = corpus.get(r.below(corpus.len() as u64) as usize).cloned().unwrap_or_default();
        let input = mutate(&mut r, &corpus, &base);
        let seen = run(target, &input, f);
        runs += 1;
        let fresh = seen.0.difference(&known).count();
        if fresh > 0 {
            known.extend(&seen.0);
            corpus.push(input.clone());
            found.push((fresh, input));
        }
    }
    eprintln!("{target}: {runs} inputs, {} behaviours, {} inputs kept, seed {seed}", known.len(), corpus.len());
    if number("RHEA_FUZZ_KEEP").is_some() {
        keep(target, found);
    }
}

/// Writes the inputs that found most.
fn keep(target: &str, mut found: Vec<(usize, Vec<u8>)>) {
    found.sort_by_key(|(fresh, _)| std::cmp::Reverse(*fresh));
    found.truncate(KEPT);
    let list: Vec<_> = found.into_iter().map(|(_, input)| input).collect();
    add(target, &list).expect("the workspace can be written");
}
