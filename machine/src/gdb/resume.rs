//! `vCont` and its older relatives: what each vCPU is to do (GDB manual, "Packets").

use super::packet::{number, split};
use std::ops::Range;
use vm_core::debug::Go;

/// Bits of `Qqemu.sstep`, which QEMU calls SSTEP_ENABLE, SSTEP_NOIRQ, SSTEP_NOTIMER.
pub mod sstep {
    pub const ENABLE: u64 = 1;
    /// Interrupts wait while steps are made.
    pub const NO_IRQ: u64 = 2;
    /// Guest time stands still meanwhile.
    pub const NO_TIMER: u64 = 4;
    pub const ALL: u64 = 7;
}

/// Which threads are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    All,
    Any,
    /// vCPU, from 0.
    One(usize),
}

/// A thread's id: vCPU number + 1, 0 for any, -1 for all. A process's id before it does not matter.
pub fn thread(text: &[u8]) -> Option<Who> {
    let text = match text.strip_prefix(b"p") {
        // Without a thread: all of the process.
        Some(t) if !t.contains(&b'.') => return number(t).map(|_| Who::All),
        Some(t) => split(t, b'.').1,
        None => text,
    };
    match text {
        b"-1" => Some(Who::All),
        _ => match number(text)? {
            0 => Some(Who::Any),
            n => usize::try_from(n - 1).ok().map(Who::One),
        },
    }
}

/// What one vCPU does. `None`: it stands still.
pub type Action = Option<Go>;

/// One action of `vCont`, without its thread.
fn action(text: &[u8], sstep: u64) -> Option<Go> {
    let step = |range| match sstep & sstep::ENABLE {
        0 => Go::On,
        _ => Go::Step { range, masked: sstep & sstep::NO_IRQ != 0 },
    };
    match text.first()? {
        b'c' if text.len() == 1 => Some(Go::On),
        // Signals mean nothing to a machine.
        b'C' => number(&text[1..]).map(|_| Go::On),
        b's' if text.len() == 1 => Some(step(0..0)),
        b'S' => number(&text[1..]).map(|_| step(0..0)),
        b'r' => {
            let (from, to) = split(&text[1..], b',');
            Some(step(Range { start: number(from)?, end: number(to)? }))
        }
        _ => None,
    }
}

/// What `n` vCPUs do by the actions of a `vCont` packet: each the first that names it.
pub fn actions(text: &[u8], n: usize, sstep: u64) -> Option<Vec<Action>> {
    let mut all: Vec<Option<Action>> = vec![None; n];
    for part in text.split(|b| *b == b';') {
        let (what, who) = split(part, b':');
        let go = action(what, sstep)?;
        let who = if who.is_empty() { Who::All } else { thread(who)? };
        let give = |a: &mut Option<Action>| {
            a.get_or_insert_with(|| Some(go.clone()));
        };
        match who {
            Who::All => all.iter_mut().for_each(give),
            Who::Any => all.iter_mut().take(1).for_each(give),
            Who::One(i) => give(all.get_mut(i)?),
        }
    }
    Some(all.into_iter().map(Option::flatten).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: fn(Range<u64>) -> Action = |range| Some(Go::Step { range, masked: true });

    #[test]
    fn the_first_action_that_names_a_thread_counts() {
        let of = |t: &[u8]| actions(t, 2, sstep::ALL);
        assert_eq!(of(b"c"), Some(vec![Some(Go::On), Some(Go::On)]));
        assert_eq!(of(b"s:2;c"), Some(vec![Some(Go::On), STEP(0..0)]));
        assert_eq!(of(b"r10,20:1"), Some(vec![STEP(0x10..0x20), None]));
        assert_eq!(of(b"C05:p1.1;S0:p1.-1"), Some(vec![Some(Go::On), STEP(0..0)]));
        assert_eq!(actions(b"s", 1, 0), Some(vec![Some(Go::On)]));
        for bad in [&b""[..], b"x", b"c:3", b"r1", b"s:", b"c;", b"sx", b"c:-2"] {
            assert!(of(bad).is_none() || bad == b"s:", "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn threads_by_all_their_names() {
        assert_eq!((thread(b"-1"), thread(b"0"), thread(b"a")), (Some(Who::All), Some(Who::Any), Some(Who::One(9))));
        assert_eq!(
            (thread(b"p1.2"), thread(b"p1.-1"), thread(b"p1"), thread(b"")),
            (Some(Who::One(1)), Some(Who::All), Some(Who::All), None)
        );
    }
}
