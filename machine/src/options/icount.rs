//! `-icount` and `-d hash,every=N`.

use super::config::{Config, IcountConfig};
use super::error::OptionError;
use super::tree::{Group, Tree};

/// How the item of `-d` starts that says how often `hash` prints.
pub const EVERY: &str = "every=";
/// What `hash` does without it.
const DEFAULT_EVERY: u64 = 1_000_000;
const MAX_SHIFT: u32 = 10;

/// `-icount`; `None`: time follows the host.
pub fn icount(tree: &Tree) -> Result<Option<IcountConfig>, OptionError> {
    let Some(o) = tree.one(Group::Icount) else { return Ok(None) };
    if let Some(name) = ["rr", "rrfile", "rrsnapshot"].into_iter().find(|n| o.text(n).is_some()) {
        return Err(OptionError::NotBuilt(format!("{} {name}", o.origin), "record and replay".into()));
    }
    if o.switch("align") == Some(true) {
        return Err(OptionError::NotBuilt(format!("{} align=on", o.origin), "use sleep=on".into()));
    }
    let sleep = o.switch("sleep") != Some(false);
    let shift = match o.text("shift").unwrap_or_default() {
        "auto" if !sleep => {
            return Err(OptionError::Conflict(format!("{}: shift=auto and sleep=off do not go together", o.origin)));
        }
        "auto" => None,
        n => match n.parse() {
            Ok(shift @ 0..=MAX_SHIFT) => Some(shift),
            _ => {
                return Err(OptionError::BadValue(o.origin.clone(), n.into(), format!("shift is auto or 0 to {MAX_SHIFT}")));
            }
        },
    };
    Ok(Some(IcountConfig { shift, sleep }))
}

/// After how many instructions each `-d hash` prints.
pub fn hash_every(items: &str) -> Result<u64, OptionError> {
    let Some(n) = items.split(',').filter_map(|w| w.strip_prefix(EVERY)).next_back() else { return Ok(DEFAULT_EVERY) };
    match n.parse() {
        Ok(n @ 1..) => Ok(n),
        _ => Err(OptionError::BadValue("-d every".into(), n.into(), "a number of instructions from 1".into())),
    }
}

/// What must hold between `-icount` and other options.
pub fn check(c: &Config) -> Result<(), OptionError> {
    match (&c.icount, c.log.hash_every) {
        (None, Some(_)) => Err(OptionError::Conflict("-d hash: only of use with -icount, which counts instructions".into())),
        (Some(_), _) if c.cpu.topology.cpus() > 1 => {
            Err(OptionError::NotBuilt("-icount with -smp greater than 1".into(), "instructions of one CPU are counted".into()))
        }
        _ => Ok(()),
    }
}
