//! `rhea-diff`: runs two engine settings side by side, counting instructions, and names the first instruction after which the
//! machines differ.
//!
//! Hashes of all state are compared each N instructions. Where they differ, both go back to the last saved state at which
//! they were equal, and the interval is halved until it is one instruction. Compiled code executes whole blocks, and the
//! instruction named so far ends one: the last stretch is run once more with blocks of one instruction each.

mod machine;
mod report;

pub use machine::{End, Machine, MakeEngine, Saved};
pub use report::Difference;

use crate::options::{Config, IcountConfig};
use crate::run::RunError;
use backend::Settings;
use ir::Frontend;

/// Intervals after which a state is kept to go back to.
const KEEP: u64 = 32;
/// Instructions of a block at most: as far as the culprit may be from where it shows.
const BLOCK: u64 = 64;

/// One of the two.
pub struct Side {
    /// As the user named it.
    pub name: String,
    pub settings: Settings,
    pub make: MakeEngine,
}

/// What is to be compared, and how.
pub struct Diff {
    pub config: Config,
    pub time: IcountConfig,
    pub sides: [Side; 2],
    /// Instructions between two comparisons.
    pub every: u64,
    /// Count at which to stop.
    pub to: u64,
    /// Show what the guest writes to the first serial port.
    pub told: bool,
    /// Name the instruction's text.
    pub disassemble: fn(u64, u64, &[u8]) -> String,
}

/// What came out.
pub enum Outcome {
    /// No difference up to this count, where the guest ended, or as far as was asked.
    Equal(u64, Option<End>),
    /// The first difference.
    Differ(Box<Difference>),
    /// They differed at this count, and no more when they were run there again.
    Vanished(u64),
}

type Pair = [Machine; 2];

impl Diff {
    pub fn run(&self) -> Result<Outcome, RunError> {
        let mut pair = self.pair(|s| s.clone())?;
        let first = pair[0].save()?;
        let mut kept = None;
        let mut equal = 0;
        let mut intervals = 0;
        loop {
            let at = (equal + self.every).min(self.to);
            match alike(&mut pair, at) {
                Alike::Yes => {}
                Alike::Ended(end) => return Ok(Outcome::Equal(pair[0].count(), Some(end))),
                Alike::No => return self.again(pair, [kept, Some(first)], equal, at),
            }
            equal = at;
            if equal >= self.to {
                return Ok(Outcome::Equal(equal, None));
            }
            intervals += 1;
            if intervals % KEEP == 0 {
                kept = Some(pair[0].save()?);
            }
        }
    }

    /// Looks for a difference between two counts from the first state from which it shows again.
    fn again(&self, mut pair: Pair, states: [Option<Saved>; 2], equal: u64, differ: u64) -> Result<Outcome, RunError> {
        for start in states.into_iter().flatten() {
            back(&mut pair, &start)?;
            if matches!(alike(&mut pair, differ), Alike::No) {
                return self.narrow(pair, start, equal, differ).map(|d| Outcome::Differ(Box::new(d)));
            }
        }
        Ok(Outcome::Vanished(differ))
    }

    fn pair(&self, change: impl Fn(&Settings) -> Settings) -> Result<Pair, RunError> {
        let [a, b] = &self.sides;
        let make = |s: &Side, told| Machine::new(&self.config, &self.time, change(&s.settings), &s.make, told);
        Ok([make(a, self.told)?, make(b, false)?])
    }

    /// The first difference after count `equal` and not after `differ`.
    fn narrow(&self, mut pair: Pair, start: Saved, equal: u64, differ: u64) -> Result<Difference, RunError> {
        let mut near: Option<Saved> = None;
        let (mut lo, mut hi) = (equal, differ);
        while hi - lo > 1 {
            let mid = lo + (hi - lo) / 2;
            back(&mut pair, near.as_ref().unwrap_or(&start))?;
            if matches!(alike(&mut pair, mid), Alike::Yes) {
                lo = mid;
                // Code made before a state is loaded is gone afterwards, and with it the difference, perhaps.
                let state = pair[0].save()?;
                back(&mut pair, &state)?;
                if matches!(alike(&mut pair, hi), Alike::No) {
                    near = Some(state);
                }
            } else {
                hi = mid;
            }
        }
        let from = near.unwrap_or(start);
        self.exact(pair, &from, hi)
    }

    /// The instruction to blame for a difference that shows at count `shows`.
    fn exact(&self, mut pair: Pair, from: &Saved, shows: u64) -> Result<Difference, RunError> {
        let before = shows.saturating_sub(BLOCK).max(from.at);
        back(&mut pair, from)?;
        let _ = pair[0].run_to(before);
        let start = pair[0].save()?;
        let small = |s: &Settings| Settings {
            max_insns: 1,
            threshold: if s.jit { 0 } else { s.threshold },
            single_block_regions: true,
            background: false,
            ..s.clone()
        };
        for tier1 in [true, false] {
            let mut singles = self.pair(|s| Settings { tier1: s.tier1 && tier1, ..small(s) })?;
            back(&mut singles, &start)?;
            let mut last = singles[0].save()?;
            for at in before + 1..=shows {
                if !matches!(alike(&mut singles, at), Alike::Yes) {
                    let code = here(&mut pair[0], &last)?;
                    return Ok(Difference::new(&mut singles, &self.names(), at, code, None, self.disassemble));
                }
                last = singles[0].save()?;
            }
        }
        // Only the blocks as they are differ.
        back(&mut pair, from)?;
        let _ = alike(&mut pair, shows);
        let mut stepped = Machine::new(&self.config, &self.time, self.sides[0].settings.clone(), &self.sides[0].make, false)?;
        stepped.load(&start)?;
        let mut block = Vec::new();
        for at in before..shows {
            let _ = stepped.run_to(at);
            block.push(stepped.code());
        }
        let code = block.last().cloned().unwrap_or_default();
        Ok(Difference::new(&mut pair, &self.names(), shows, code, Some(block), self.disassemble))
    }

    fn names(&self) -> [String; 2] {
        self.sides.each_ref().map(|s| s.name.clone())
    }
}

/// The instruction at a saved state.
fn here(m: &mut Machine, at: &Saved) -> Result<(u64, Vec<u8>), RunError> {
    m.load(at)?;
    Ok(m.code())
}

fn back(pair: &mut Pair, to: &Saved) -> Result<(), RunError> {
    pair.iter_mut().try_for_each(|m| m.load(to))
}

enum Alike {
    Yes,
    No,
    /// Both have ended, at the same count.
    Ended(End),
}

/// Runs both to a count and compares them.
fn alike(pair: &mut Pair, at: u64) -> Alike {
    let [a, b] = pair.each_mut().map(|m| m.run_to(at));
    let same = pair[0].count() == pair[1].count() && pair[0].hashes() == pair[1].hashes();
    match (a, b) {
        (Err(a), Err(b)) if a == b && same => Alike::Ended(a),
        (Ok(()), Ok(())) if same => Alike::Yes,
        _ => Alike::No,
    }
}

/// Text of an x86 instruction.
pub fn disassemble(mode: u64, pc: u64, bytes: &[u8]) -> String {
    frontend_x86::X86::new([0; 16]).disassemble(mode, pc, bytes).0
}
