//! A profile of the guest: where its processors are, asked two hundred times a second (`profile on`, `info profile`). It works on
//! every engine. What runs compiled is seen at the starts of its blocks.

use crate::control::{Control, RunState};
use crate::trace::reader::Symbols;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use vm_core::guest::GuestCpu;

/// Time between samples.
const PERIOD: Duration = Duration::from_millis(5);
/// Addresses that are told apart; further ones are counted together.
const MOST: usize = 1 << 16;
/// Lines that `info profile` shows.
const LINES: usize = 40;
/// What a function is at most, in bytes: addresses further behind a symbol belong to none.
const FUNCTION: u64 = 1 << 20;

#[derive(Default)]
struct Samples {
    /// By linear address of the instruction.
    at: HashMap<u64, u64>,
    halted: u64,
    others: u64,
}

/// A profile that is being made, or was.
#[derive(Default)]
pub struct Profile {
    samples: Arc<Mutex<Samples>>,
    symbols: Mutex<Symbols>,
    on: Mutex<Option<Arc<AtomicBool>>>,
}

impl Profile {
    /// Starts anew. `symbols`: an ELF file or a System.map, or empty. `Err`: it cannot be read, or there is no thread to be had.
    pub fn start(&self, control: &Control, symbols: &str) -> Result<(), String> {
        let found = if symbols.is_empty() { Symbols::default() } else { Symbols::open(Path::new(symbols))? };
        self.stop();
        *self.symbols.lock() = found;
        *self.samples.lock() = Samples::default();
        let on = Arc::new(AtomicBool::new(true));
        let (samples, going, control) = (self.samples.clone(), on.clone(), control.clone());
        let thread = std::thread::Builder::new().name("profile".into());
        thread.spawn(move || sample(&control, &samples, &going)).map_err(|e| format!("profile: {e}"))?;
        *self.on.lock() = Some(on);
        Ok(())
    }

    /// No more samples; what there is stays.
    pub fn stop(&self) {
        if let Some(on) = self.on.lock().take() {
            on.store(false, Ordering::Relaxed);
        }
    }

    /// The functions, or without symbols the addresses, that were met most.
    pub fn text(&self) -> String {
        let (samples, symbols) = (self.samples.lock(), self.symbols.lock());
        let mut by_name: HashMap<String, u64> = HashMap::new();
        for (at, n) in &samples.at {
            let name = match symbols.name(*at).filter(|(_, off)| *off < FUNCTION) {
                Some((name, _)) => name.to_owned(),
                None => format!("{at:#x}"),
            };
            *by_name.entry(name).or_default() += n;
        }
        let mut list: Vec<(u64, String)> = by_name.into_iter().map(|(name, n)| (n, name)).collect();
        list.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let busy = list.iter().map(|(n, _)| n).sum::<u64>() + samples.others;
        let mut text = format!("{} samples, {} of them halted\n", busy + samples.halted, samples.halted);
        for (n, name) in list.iter().take(LINES) {
            let _ = writeln!(text, "{:5.1}% {n:>8} {name}", *n as f64 * 100.0 / busy as f64);
        }
        if samples.others != 0 {
            let _ =
                writeln!(text, "{:5.1}% {:>8} (further addresses)", samples.others as f64 * 100.0 / busy as f64, samples.others);
        }
        text
    }
}

fn sample(control: &Control, samples: &Mutex<Samples>, on: &AtomicBool) {
    while on.load(Ordering::Relaxed) {
        std::thread::sleep(PERIOD);
        if control.state() != RunState::Running {
            continue;
        }
        let places = control.with_runner(|r| {
            let place = |cpu: &mut arch_x86::CpuState| (!cpu.halted()).then(|| cpu.linear(cpu.pc()).0);
            r.cpus.iter_mut().map(|c| place(c.engine.cpu())).collect::<Vec<_>>()
        });
        // The machine ends, or somebody keeps it busy.
        let Some(places) = places else { continue };
        let mut s = samples.lock();
        for place in places {
            s.count(place);
        }
    }
}

impl Samples {
    /// `None`: the processor was halted.
    fn count(&mut self, place: Option<u64>) {
        let Some(at) = place else {
            self.halted += 1;
            return;
        };
        if self.at.len() < MOST || self.at.contains_key(&at) {
            *self.at.entry(at).or_default() += 1;
        } else {
            self.others += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_named_and_counted_together() {
        let p = Profile::default();
        *p.symbols.lock() = Symbols::read(b"0000000000001000 T first\n0000000000002000 t second\n").unwrap();
        for at in [Some(0x2001), Some(0x1004), Some(0x2fff), None, Some(0x10)] {
            p.samples.lock().count(at);
        }
        assert_eq!(
            p.text(),
            "5 samples, 1 of them halted\n 50.0%        2 second\n 25.0%        1 0x10\n 25.0%        1 first\n"
        );
    }

    #[test]
    fn a_guest_that_is_everywhere_takes_no_more_memory() {
        let mut s = Samples::default();
        (0..MOST as u64 + 10).for_each(|at| s.count(Some(at)));
        s.count(Some(3));
        assert_eq!((s.at.len(), s.others, s.at[&3]), (MOST, 10, 2));
    }
}
