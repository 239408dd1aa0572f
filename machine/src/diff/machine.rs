//! A machine of the comparison: runs to an instruction count and stands there.

use crate::board::{Board, Outside};
use crate::control::{Control, RunState};
use crate::firmware::Start;
use crate::icount;
use crate::options::{Config, DeviceSpec, IcountConfig};
use crate::run::{RunError, rtc_base};
use crate::runner::{Policy, Runner};
use crate::state::hash::{Hashes, RamHash, hashes};
use crate::vcpu_thread::Engine;
use devices::chr::{CharSink, NullSink};
use std::io::Write;
use std::sync::Arc;
use vm_core::{Clock, CpuIo, Events, GuestCpu, InsnCounter, StopReason, VcpuSignals};

/// Makes an engine whose CPU is at power-on.
pub type MakeEngine = Box<dyn Fn(backend::Settings, &Arc<VcpuSignals>) -> Result<Engine, RunError>>;

/// Serial output to the program's own.
struct Stdout;

impl CharSink for Stdout {
    fn write(&self, bytes: &[u8]) {
        // Whoever reads it may have gone away.
        let _ = std::io::stdout().write_all(bytes);
    }

    fn input_wanted(&self) {}
}

/// Why a machine does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was reset or powered off and is to end then.
    Over,
    /// It is halted, and nothing will wake it.
    Asleep,
}

/// Where time follows instructions, so that two of these with equal configurations run alike.
pub struct Machine {
    pub runner: Runner,
    pub ram: RamHash,
    counter: Arc<InsnCounter>,
    clock: Clock,
    /// Count of the run less that of the engine.
    bias: u64,
}

/// A saved machine, and its count.
pub struct Saved {
    pub at: u64,
    file: Vec<u8>,
}

impl Machine {
    /// `told`: what the guest writes to the first serial port is shown.
    pub fn new(
        config: &Config,
        time: &IcountConfig,
        settings: backend::Settings,
        make: &MakeEngine,
        told: bool,
    ) -> Result<Self, RunError> {
        let start = Start::of(config)?;
        let counter = Arc::<InsnCounter>::default();
        let clock = icount::clock(time, counter.clone());
        let signals = Arc::<VcpuSignals>::default();
        let control = Control::new(vec![signals.clone()], RunState::Running);
        let engine = make(backend::Settings { counter: Some(counter.clone()), ..settings }, &signals)?;
        let (a20, remap, null): (_, _, Arc<dyn CharSink>) = (control.clone(), control.clone(), Arc::new(NullSink));
        let mut serials = config.serials.each_ref().map(|s| s.as_ref().map(|_| null.clone()));
        if told && let Some(first) = &mut serials[0] {
            *first = Arc::new(Stdout);
        }
        let outside = Outside {
            clock: clock.clone(),
            cpus: vec![(0, signals.clone())],
            power: Arc::new(control.clone()),
            a20: Arc::new(move |on| a20.set_a20(on)),
            remap: Arc::new(move || remap.remap()),
            firmware: start.firmware(),
            serials,
            // What comes from a network or a folder comes at any time: machines that are compared have none.
            devices: config
                .devices
                .iter()
                .filter(|d| !matches!(d, DeviceSpec::VirtioNet { .. } | DeviceSpec::Virtio9p { .. }))
                .map(|d| (d.clone(), Some(null.clone())))
                .collect(),
            disks: Default::default(),
            nets: Default::default(),
            virtio: Default::default(),
            unix_seconds: rtc_base(&Config { icount: Some(*time), ..config.clone() })?,
        };
        let board = Arc::new(Board::new(config.machine, config.mem_bytes, outside)?);
        board.ram.add_listener(signals.clone());
        clock.on_earlier(Box::new(move || signals.raise(Events::TIMER)));
        let policy = Policy { reset_ends: config.no_reboot, power_off_pauses: false, rtc_follows_host: false };
        let mut runner = Runner::new(vec![engine], board.clone(), start, control, policy)?;
        runner.set_state(RunState::Running);
        let mut this = Self { runner, ram: RamHash::new(&board.ram), counter, clock, bias: 0 };
        // The log of written pages has begun.
        this.runner.cpus_changed();
        Ok(this)
    }

    pub fn count(&self) -> u64 {
        self.counter.executed().wrapping_add(self.bias)
    }

    /// Runs to count `at`, and stands before what is due there.
    pub fn run_to(&mut self, at: u64) -> Result<(), End> {
        let at = at.wrapping_sub(self.bias);
        while self.counter.executed() < at {
            let cpu = &mut self.runner.cpus[0];
            cpu.io.signals().clear(Events::TIMER);
            self.clock.run_expired();
            let next = self.clock.insns_to_deadline().unwrap_or(u64::MAX).min(at - self.counter.executed());
            self.counter.set_limit(self.counter.executed() + next);
            match cpu.engine.run(&cpu.io) {
                StopReason::Limit => {}
                StopReason::Halted => self.clock.skip(self.clock.ns_to_deadline().ok_or(End::Asleep)?),
                // There is no debugger.
                StopReason::Stopped | StopReason::Debug(_) => self.runner.serve(),
                StopReason::TripleFault => self.runner.reset(crate::control::Cause::GuestReset),
            }
            if self.runner.ended() {
                return Err(End::Over);
            }
        }
        Ok(())
    }

    pub fn hashes(&mut self) -> Hashes {
        hashes(&mut self.runner.cpus[0], &mut self.ram)
    }

    pub fn save(&mut self) -> Result<Saved, RunError> {
        let mut file = Vec::new();
        self.runner.save_to(&mut file).map_err(|e| RunError::State("memory".into(), e))?;
        Ok(Saved { at: self.count(), file })
    }

    /// Goes back, or on, to where a machine was saved.
    pub fn load(&mut self, from: &Saved) -> Result<(), RunError> {
        self.runner.load_from(&from.file).map_err(|e| RunError::State("memory".into(), e))?;
        self.bias = from.at.wrapping_sub(self.counter.executed());
        Ok(())
    }

    /// Program counter, and the bytes of the instruction there as far as they are mapped.
    pub fn code(&mut self) -> (u64, Vec<u8>) {
        let cpu = &mut self.runner.cpus[0];
        let state = cpu.engine.cpu();
        let (pc, va) = (state.pc(), state.linear(state.pc()));
        let byte = |i: u64| {
            let pa = cpu.engine.debug_translate(&cpu.io, vm_core::Va(va.0.wrapping_add(i)))?;
            match cpu.io.target(pa) {
                vm_core::Target::Ram { offset, .. } => Some(cpu.io.ram().read_uint(offset, 1) as u8),
                vm_core::Target::Mmio => None,
            }
        };
        (pc, (0..15).map_while(byte).collect())
    }
}
