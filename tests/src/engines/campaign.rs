//! Runs programs on all engines, compares, shrinks what differs and prints it.

use super::machine::{Image, Machine, Outcome, engines};
use super::program::Program;
use arch_x86::CpuState;
use frontend_x86::X86;
use ir::Frontend;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use vm_core::{Events, StopReason, VcpuSignals};

/// Milliseconds that a program may take. One that the reference does not end in time is not compared; the other engines,
/// which compile, have long enough that only a hang makes them late.
const REFERENCE_LIMIT: u64 = 250;
const LIMIT: u64 = 60_000;

/// The engines, and a thread that stops programs that do not end.
pub struct Campaign {
    machines: Vec<(&'static str, Machine)>,
    begun: Instant,
    /// When the run that is on is stopped, milliseconds after `begun`.
    deadline: Arc<AtomicU64>,
    quit: Arc<AtomicBool>,
}

/// What a campaign did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub cases: u64,
    /// Programs that did not end and were not compared.
    pub endless: u64,
    pub faults: u64,
}

impl Campaign {
    pub fn new() -> std::io::Result<Campaign> {
        let mut machines = Vec::new();
        for (name, settings) in engines() {
            machines.push((name, Machine::new(settings)?));
        }
        let (begun, deadline, quit) = (Instant::now(), Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicBool::new(false)));
        watch(machines.iter().map(|m| m.1.signals()).collect(), begun, deadline.clone(), quit.clone());
        Ok(Campaign { machines, begun, deadline, quit })
    }

    fn outcome(&mut self, engine: usize, image: &Image) -> Outcome {
        let limit = if engine == 0 { REFERENCE_LIMIT } else { LIMIT };
        let m = &mut self.machines[engine].1;
        self.deadline.store(self.begun.elapsed().as_millis() as u64 + limit, Ordering::SeqCst);
        m.signals().clear(Events::STOP);
        let outcome = m.outcome(image);
        self.deadline.store(u64::MAX, Ordering::SeqCst);
        outcome
    }

    /// Runs one program everywhere. `Some`: the engine that differs from the first, and both outcomes.
    pub fn compare(&mut self, p: &Program, s: &mut Summary) -> Option<(&'static str, Outcome, Outcome)> {
        let image = p.image();
        let want = self.outcome(0, &image);
        s.cases += 1;
        if want.stop == StopReason::Stopped {
            s.endless += 1;
            return None;
        }
        s.faults += u64::from(want.cpu.rip < 0x10_0000);
        for e in 1..self.machines.len() {
            let again = if self.machines[e].0 == "jit2-bg" { 3 } else { 1 };
            for _ in 0..again {
                let got = self.outcome(e, &image);
                if got != want {
                    return Some((self.machines[e].0, want, got));
                }
            }
        }
        None
    }

    /// Regions compiled so far, by engine.
    pub fn compiled(&mut self) -> Vec<u64> {
        self.machines.iter_mut().map(|m| m.1.compiled()).collect()
    }

    /// Programs `seed..seed + cases`. `Err`: a report of the first that differs.
    pub fn run(&mut self, seed: u64, cases: u64) -> Result<Summary, String> {
        let mut s = Summary::default();
        for n in seed..seed.saturating_add(cases) {
            let p = Program::random(n);
            if let Some(d) = self.compare(&p, &mut s) {
                return Err(report(n, &p, d));
            }
        }
        Ok(s)
    }
}

impl Drop for Campaign {
    fn drop(&mut self) {
        self.quit.store(true, Ordering::SeqCst);
    }
}

/// Raises STOP on every machine while the deadline has passed.
fn watch(signals: Vec<Arc<VcpuSignals>>, begun: Instant, deadline: Arc<AtomicU64>, quit: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        while !quit.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(20));
            if begun.elapsed().as_millis() as u64 > deadline.load(Ordering::SeqCst) {
                signals.iter().for_each(|s| s.raise(Events::STOP));
            }
        }
    });
}

/// Drops items as long as fresh engines still differ.
fn shrink(p: &Program) -> Option<(Program, (&'static str, Outcome, Outcome))> {
    let differs = |p: &Program| Campaign::new().ok()?.compare(p, &mut Summary::default());
    let mut best = (p.clone(), differs(p)?);
    loop {
        let smaller = (0..p.len()).rev().filter_map(|i| best.0.without(i)).find_map(|q| differs(&q).map(|d| (q, d)));
        match smaller {
            Some(s) => best = s,
            None => return Some(best),
        }
    }
}

fn report(seed: u64, p: &Program, first: (&'static str, Outcome, Outcome)) -> String {
    let (p, (engine, want, got), note) = match shrink(p) {
        Some((q, d)) => (q, d, ""),
        None => (p.clone(), first, " (not on fresh engines: it depends on the programs before)"),
    };
    let mut t = format!("seed {seed}, {:?}: {engine} differs from interp{note}\n", p.world);
    let image = p.image();
    let fe = X86::new(image.cpu.features);
    let (mut pc, code) = p.code();
    let mut rest = &code[..code.len() - 31];
    while !rest.is_empty() {
        let (text, len) = fe.disassemble(image.cpu.mode, pc, rest);
        let len = len.clamp(1, rest.len());
        let bytes: String = rest[..len].iter().map(|b| format!("{b:02x}")).collect();
        let _ = writeln!(t, "{pc:#x}: {bytes:24} {text}");
        pc += len as u64;
        rest = &rest[len..];
    }
    let _ = writeln!(t, "stop: {:?} and {:?}", want.stop, got.stop);
    cpu_lines(&mut t, &image.cpu, &want.cpu, &got.cpu);
    for ((page, a), (_, b)) in want.pages.iter().zip(&got.pages) {
        for i in (0..4096).filter(|i| a[*i] != b[*i]).take(8) {
            let _ = writeln!(t, "RAM {:#x}: {:02x} and {:02x}", page * 4096 + i as u64, a[i], b[i]);
        }
    }
    if want.mmio != got.mmio {
        let _ = writeln!(t, "device writes: {:x?} and {:x?}", want.mmio, got.mmio);
    }
    t
}

fn cpu_lines(t: &mut String, start: &CpuState, a: &CpuState, b: &CpuState) {
    let mut row = |name: String, s: u128, x: u128, y: u128| {
        let mark = if x == y { "" } else { "   <--" };
        if s != x || s != y {
            let _ = writeln!(t, "{name:6} from {s:#x}: {x:#x} and {y:#x}{mark}");
        }
    };
    for i in 0..16 {
        row(format!("gpr{i}"), start.gpr[i].into(), a.gpr[i].into(), b.gpr[i].into());
    }
    row("rip".into(), start.rip.into(), a.rip.into(), b.rip.into());
    row("flags".into(), start.rflags().into(), a.rflags().into(), b.rflags().into());
    row("cr2".into(), start.cr2.into(), a.cr2.into(), b.cr2.into());
    row("mxcsr".into(), start.mxcsr.into(), a.mxcsr.into(), b.mxcsr.into());
    for i in 0..16 {
        row(format!("xmm{i}"), start.xmm[i], a.xmm[i], b.xmm[i]);
    }
    if a != b {
        t.push_str("the CPU states differ\n");
    }
}
