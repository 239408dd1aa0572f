//! The vCPUs' threads: each owns its CPU while the machine runs, sleeps while the guest's CPU is halted, and gives the CPU
//! back when it is asked to stop.

use crate::board::BoardIo;
use crate::control::Control;
use crate::icount::Pace;
use arch_x86::CpuState;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io;
use std::time::Duration;
use vm_core::debug::DebugEvent;
use vm_core::{CpuIo, Events, StopReason, Vcpu};

/// A halted vCPU looks around this often even if nothing wakes it.
pub const NAP: Duration = Duration::from_secs(1);
/// A guest that has run for so long has started.
const SETTLED: Duration = Duration::from_millis(50);
const IF: u64 = 1 << 9;

pub type Engine = Box<dyn Vcpu<Cpu = CpuState>>;

/// A vCPU and its way to the board.
pub struct Cpu {
    pub engine: Engine,
    pub io: BoardIo,
    /// Where time follows the instructions executed.
    pub pace: Option<Pace>,
    /// The debugger lets it stand still while others run.
    pub held: bool,
}

/// What a thread gives back.
pub enum Back {
    Stopped(Cpu),
    /// The machine must be reset (SDM 3A "Interrupt 8").
    TripleFault(Cpu),
    Debug(Cpu, DebugEvent),
    Panicked,
}

/// Threads for all vCPUs of a machine. They end when this is dropped.
pub struct Threads {
    to: Vec<Sender<Cpu>>,
    back: Receiver<(usize, Back)>,
}

/// What came of a run.
pub struct Outcome {
    pub cpus: Vec<Cpu>,
    /// The machine must be reset (SDM 3A "Interrupt 8").
    pub triple_fault: bool,
    /// A CPU stopped for the debugger.
    pub debug: Option<(usize, DebugEvent)>,
}

/// A vCPU's thread has panicked.
#[derive(Debug)]
pub struct Panicked;

/// Says so if the thread unwinds.
struct Alarm(usize, Sender<(usize, Back)>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.1.send((self.0, Back::Panicked));
        }
    }
}

impl Threads {
    /// Starts `n` threads, which wait for their CPUs.
    pub fn start(n: usize, control: &Control) -> io::Result<Self> {
        let (tell, back) = bounded(n);
        let mut to = Vec::new();
        let mut ids = Vec::new();
        for i in 0..n {
            let (send, get) = bounded::<Cpu>(1);
            let (named, id) = bounded(1);
            let alarm = Alarm(i, tell.clone());
            std::thread::Builder::new().name(format!("vcpu{i}")).spawn(move || {
                let _ = named.send(rustix::thread::gettid().as_raw_nonzero().get());
                while let Ok(cpu) = get.recv() {
                    if alarm.1.send((alarm.0, run(cpu))).is_err() {
                        return;
                    }
                }
            })?;
            ids.extend(id.recv());
            to.push(send);
        }
        control.set_threads(ids);
        Ok(Self { to, back })
    }

    /// Runs all CPUs until one of them stops for whatever reason, then stops the others. Gives them back. `meanwhile` is called
    /// when they have run for a moment.
    pub fn run(&self, cpus: Vec<Cpu>, control: &Control, meanwhile: Option<fn()>) -> Result<Outcome, Panicked> {
        let mut home: Vec<Option<Cpu>> = cpus.iter().map(|_| None).collect();
        for (to, cpu) in self.to.iter().zip(cpus) {
            to.send(cpu).map_err(|_| Panicked)?;
        }
        let mut first = None;
        if let Some(meanwhile) = meanwhile {
            match self.back.recv_timeout(SETTLED) {
                Ok(back) => first = Some(back),
                Err(_) => meanwhile(),
            }
        }
        let (mut triple_fault, mut debug) = (false, None);
        for n in 0..home.len() {
            let (i, back) = first.take().map_or_else(|| self.back.recv(), Ok).map_err(|_| Panicked)?;
            home[i] = Some(match back {
                Back::Stopped(cpu) => cpu,
                Back::TripleFault(cpu) => {
                    triple_fault = true;
                    cpu
                }
                Back::Debug(cpu, event) => {
                    debug = worth_more(debug, (i, event));
                    cpu
                }
                Back::Panicked => return Err(Panicked),
            });
            if n == 0 {
                control.stop_all();
            }
        }
        Ok(Outcome { cpus: home.into_iter().flatten().collect(), triple_fault, debug })
    }
}

/// One event of several at once: an access that was watched cannot be seen again, a breakpoint will be met again.
fn worth_more(a: Option<(usize, DebugEvent)>, b: (usize, DebugEvent)) -> Option<(usize, DebugEvent)> {
    let rank = |e: &DebugEvent| match e {
        DebugEvent::Watch { .. } => 2,
        DebugEvent::Step => 1,
        DebugEvent::Break { .. } => 0,
    };
    Some(a.filter(|a| rank(&a.1) >= rank(&b.1)).unwrap_or(b))
}

/// Runs a CPU until it is asked to stop or cannot go on.
fn run(mut cpu: Cpu) -> Back {
    if cpu.held {
        while !cpu.io.signals().pending().contains(Events::STOP) {
            cpu.io.signals().wait(Events::STOP, NAP);
        }
        return Back::Stopped(cpu);
    }
    loop {
        match cpu.engine.run(&cpu.io) {
            StopReason::Stopped => return Back::Stopped(cpu),
            StopReason::TripleFault => return Back::TripleFault(cpu),
            StopReason::Debug(event) => return Back::Debug(cpu, event),
            StopReason::Halted => match cpu.pace.take() {
                None => sleep(&mut cpu),
                Some(mut pace) => {
                    pace.halted(&mut cpu);
                    cpu.pace = Some(pace);
                }
            },
            StopReason::Limit => {
                if let Some(mut pace) = cpu.pace.take() {
                    pace.at_limit(&mut cpu);
                    cpu.pace = Some(pace);
                }
            }
        }
    }
}

/// Sleeps until an event comes that ends HLT (SDM 2A "HLT"), or something to be done that the engine sees to.
fn sleep(cpu: &mut Cpu) {
    let mask = wake_mask(cpu.engine.cpu());
    cpu.io.signals().wait(mask, NAP);
}

/// Events that end the sleep of a CPU.
pub fn wake_mask(state: &CpuState) -> Events {
    let mut mask = Events::all() - Events::INTR - Events::NMI - Events::SIPI;
    if state.smm {
        mask -= Events::SMI | Events::INIT;
    }
    if state.wait_sipi {
        mask |= Events::SIPI;
    } else {
        mask.set(Events::INTR, state.eflags & IF != 0);
        mask.set(Events::NMI, !state.nmi_blocked);
    }
    mask
}
