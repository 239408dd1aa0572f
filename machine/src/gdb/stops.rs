//! Breakpoints and watchpoints of a client: the `Z` and `z` packets, and what the engines are told of them.

use super::agent::{self, Context};
use super::layout::Arch;
use super::packet::{number, split, unhex};
use arch_x86::CpuState;
use std::sync::Arc;
use vm_core::Va;
use vm_core::debug::{Breakpoint, Judge, Plan, SharedPlan, Stops, WatchKind, Watchpoint};

/// Breakpoints and watchpoints of a client at most.
const MAX: usize = 1 << 16;
/// Conditions of one breakpoint at most.
const MAX_CONDITIONS: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stop {
    /// 0: software, 1: hardware breakpoint; 2: write, 3: read, 4: access watchpoint.
    kind: u64,
    at: u64,
    len: u64,
    physical: bool,
    /// Whose register numbers the conditions use.
    arch: Arch,
    /// It counts if one of these holds; without any, always.
    conditions: Vec<Vec<u8>>,
}

/// All of a client's.
#[derive(Default)]
pub struct List {
    stops: Vec<Stop>,
    /// What the engines were told last, unless it has changed since.
    plan: Option<Option<SharedPlan<CpuState>>>,
}

/// Why a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// No such kind: the client goes without.
    Unknown,
    Malformed,
    TooMany,
}

fn parse(args: &[u8], physical: bool, arch: Arch) -> Result<Stop, Refused> {
    let (head, tail) = split(args, b';');
    let parts: Vec<&[u8]> = head.split(|b| *b == b',').collect();
    let [kind, at, len] = parts[..] else { return Err(Refused::Malformed) };
    let read = |t| number(t).ok_or(Refused::Malformed);
    let (kind, at, len) = (read(kind)?, read(at)?, read(len)?);
    match kind {
        0 | 1 => Ok(Stop { kind, at, len, physical: false, arch, conditions: conditions(tail)? }),
        2..=4 if len == 0 || at.checked_add(len - 1).is_none() => Err(Refused::Malformed),
        2..=4 => Ok(Stop { kind, at, len, physical, arch, conditions: Vec::new() }),
        _ => Err(Refused::Unknown),
    }
}

/// `X<length>,<bytecode>`, one after another, with `;` between them or without.
fn conditions(mut text: &[u8]) -> Result<Vec<Vec<u8>>, Refused> {
    let mut list = Vec::new();
    while let Some(rest) = text.strip_prefix(b"X") {
        let (len, rest) = split(rest, b',');
        let digits = number(len).and_then(|n| usize::try_from(n).ok()?.checked_mul(2)).ok_or(Refused::Malformed)?;
        let code = rest.get(..digits).and_then(unhex).ok_or(Refused::Malformed)?;
        if list.len() == MAX_CONDITIONS {
            return Err(Refused::TooMany);
        }
        list.push(code);
        text = &rest[digits..];
        text = text.strip_prefix(b";").unwrap_or(text);
    }
    // Commands that the target would run are not offered.
    if text.is_empty() { Ok(list) } else { Err(Refused::Malformed) }
}

impl List {
    /// `Z`: adds one, in the place of the same one with other conditions.
    pub fn insert(&mut self, args: &[u8], physical: bool, arch: Arch) -> Result<(), Refused> {
        let new = parse(args, physical, arch)?;
        let same = |s: &&mut Stop| (s.kind, s.at, s.len) == (new.kind, new.at, new.len);
        let known = self.stops.len();
        match self.stops.iter_mut().find(same) {
            Some(old) if *old == new => return Ok(()),
            Some(old) => *old = new,
            None if known == MAX => return Err(Refused::TooMany),
            None => self.stops.push(new),
        }
        self.plan = None;
        Ok(())
    }

    /// `z`: takes one out, if it is there.
    pub fn remove(&mut self, args: &[u8]) -> Result<(), Refused> {
        let old = parse(split(args, b';').0, false, Arch::X64)?;
        let before = self.stops.len();
        self.stops.retain(|s| (s.kind, s.at, s.len) != (old.kind, old.at, old.len));
        if self.stops.len() != before {
            self.plan = None;
        }
        Ok(())
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// What the engines are to be told.
    pub fn plan(&mut self) -> Option<SharedPlan<CpuState>> {
        let stops = &self.stops;
        self.plan.get_or_insert_with(|| make(stops)).clone()
    }
}

fn make(all: &[Stop]) -> Option<SharedPlan<CpuState>> {
    if all.is_empty() {
        return None;
    }
    let mut breaks: Vec<&Stop> = all.iter().filter(|s| s.kind < 2).collect();
    breaks.sort_by_key(|s| s.at);
    let conditions: Vec<_> = breaks.iter().map(|s| (s.arch, s.conditions.clone())).collect();
    let breakpoint = |s: &&Stop| Breakpoint { va: s.at, hard: s.kind == 1, conditional: !s.conditions.is_empty() };
    let watch = |s: &Stop| {
        let kind = match s.kind {
            2 => WatchKind::Write,
            3 => WatchKind::Read,
            _ => WatchKind::Any,
        };
        Watchpoint { at: s.at, len: s.len, kind, physical: s.physical }
    };
    let watches = all.iter().filter(|s| s.kind >= 2).map(watch).collect();
    let stops = Stops::new(breaks.iter().map(breakpoint).collect(), watches);
    Some(Arc::new(Plan { stops, judge: Some(Box::new(Conditions(conditions))) }))
}

/// Conditions of each breakpoint, in the order of `Stops::breakpoints`.
struct Conditions(Vec<(Arch, Vec<Vec<u8>>)>);

struct Place<'a> {
    cpu: &'a CpuState,
    arch: Arch,
    read: &'a mut dyn FnMut(Va, &mut [u8]) -> bool,
}

impl Context for Place<'_> {
    fn register(&mut self, number: u16) -> Option<u64> {
        self.arch.low(self.cpu, number.into())
    }

    fn memory(&mut self, at: u64, size: u8) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.read)(Va(at), bytes.get_mut(..size.into())?).then(|| u64::from_le_bytes(bytes))
    }
}

impl Judge<CpuState> for Conditions {
    /// What cannot be evaluated here counts as true: the client has a look of its own.
    fn holds(&self, index: usize, cpu: &CpuState, read: &mut dyn FnMut(Va, &mut [u8]) -> bool) -> bool {
        let Some((arch, list)) = self.0.get(index).filter(|c| !c.1.is_empty()) else { return true };
        list.iter().any(|code| agent::evaluate(code, &mut Place { cpu, arch: *arch, read: &mut *read }).is_none_or(|v| v != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_add_replace_and_remove() {
        let mut l = List::default();
        l.insert(b"0,7c00,1", false, Arch::X64).unwrap();
        l.insert(b"0,7c00,1;X5,2622220027", false, Arch::X64).unwrap();
        l.insert(b"1,8000,1", false, Arch::X64).unwrap();
        l.insert(b"2,1000,1000", false, Arch::X64).unwrap();
        let p = l.plan().unwrap();
        assert_eq!((p.stops.breakpoints().len(), p.stops.watchpoints().len()), (2, 1));
        assert!(p.stops.breakpoints()[0].conditional && !p.stops.breakpoints()[0].hard);
        assert!(Arc::ptr_eq(&p, &l.plan().unwrap()), "the engines are told once");
        l.remove(b"0,7c00,1").unwrap();
        l.remove(b"1,8000,1").unwrap();
        l.remove(b"2,1000,1000").unwrap();
        assert!(l.plan().is_none());
    }

    #[test]
    fn broken_packets_are_refused() {
        let mut l = List::default();
        let bad: [&[u8]; 9] = [
            b"",
            b"0",
            b"0,1",
            b"0,x,1",
            b"2,0,0",
            b"2,ffffffffffffffff,2",
            b"0,0,1;X5,26",
            b"0,0,1;Xffffffffffffffff,",
            b"0,0,1;cmds:0,X1,27",
        ];
        bad.iter()
            .for_each(|p| assert_eq!(l.insert(p, false, Arch::X64), Err(Refused::Malformed), "{:?}", String::from_utf8_lossy(p)));
        assert_eq!(l.insert(b"5,0,1", false, Arch::X64), Err(Refused::Unknown));
        assert!(l.insert(b"4,fffffffffffffffe,2", false, Arch::X64).is_ok());
    }
}
