//! What the machine does between two instructions: starts over, pauses, serves requests. Its vCPUs run on threads of
//! their own and come back for it.

use crate::block::Drives;
use crate::board::{Board, BoardIo};
use crate::boot;
use crate::control::{Cause, Control, Notice, RunState};
use crate::firmware::Start;
use crate::gdb::Action;
use crate::loader::LoadError;
use crate::net::Nets;
use crate::run::RunError;
use crate::say;
use crate::vcpu_thread::{Cpu, Engine, NAP, Panicked, Threads};
use arch_x86::CpuState;
use std::sync::Arc;
use vm_core::debug::{Go, SharedPlan};
use vm_core::{Events, dlog};

/// What happens on reset and power-off (`-no-reboot`, `-no-shutdown`).
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    pub reset_ends: bool,
    pub power_off_pauses: bool,
    /// A loaded machine's time of day is the host's (`-rtc clock=host`), not that of saving.
    pub rtc_follows_host: bool,
}

/// The vCPUs, and what it takes to start over.
pub struct Runner {
    /// All of them, while the machine stands still.
    pub cpus: Vec<Cpu>,
    pub board: Arc<Board>,
    start: Start,
    /// Nothing has been reset yet.
    first: bool,
    control: Control,
    policy: Policy,
    /// Whether the observers believe that the guest runs.
    running: bool,
    /// Set when the program is to end.
    end: Option<u8>,
    /// A board to try saved states on.
    pub(crate) trial: Option<Board>,
    pub drives: Arc<Drives>,
    pub nets: Arc<Nets>,
    /// To be done when the guest has started.
    pub meanwhile: Option<fn()>,
}

impl Runner {
    /// vCPUs in order, the first where `start` begins.
    pub fn new(
        engines: Vec<Engine>,
        board: Arc<Board>,
        start: Start,
        control: Control,
        policy: Policy,
    ) -> Result<Self, LoadError> {
        let with_io = |(n, engine)| Cpu { engine, io: BoardIo(board.clone(), n), pace: None, held: false };
        let cpus = engines.into_iter().enumerate().map(with_io).collect();
        let mut r = Self {
            cpus,
            board,
            start,
            first: true,
            control,
            policy,
            running: false,
            end: None,
            trial: None,
            drives: Arc::default(),
            nets: Arc::default(),
            meanwhile: None,
        };
        r.start_over()?;
        Ok(r)
    }

    /// Devices and CPUs as after power-on; the kernel, if there is one, loaded anew.
    fn start_over(&mut self) -> Result<(), LoadError> {
        self.board.set_boot_order(std::mem::take(&mut self.first));
        self.board.reset();
        self.cpus.iter_mut().for_each(|c| c.engine.cpu().reset());
        let loaded = match &self.start {
            Start::Kernel(images) => {
                let loaded = boot::start(&self.board, images, self.cpus[0].engine.cpu());
                // Firmware brings up all processors, and leaves them waiting again.
                self.cpus.iter_mut().for_each(|c| c.engine.cpu().firmware_mtrrs(self.board.device_window()));
                loaded
            }
            Start::Firmware(_) => {
                self.board.load_firmware();
                Ok(())
            }
        };
        self.cpus_changed();
        loaded
    }

    /// Registers or the way addresses go have changed: engines drop what they derived from it.
    pub(crate) fn cpus_changed(&mut self) {
        self.cpus.iter_mut().for_each(|c| c.engine.cpu_changed());
    }

    /// Reset of the machine; with `-no-reboot` the end of the program. A machine that does not run waits for `cont` then.
    pub fn reset(&mut self, cause: Cause) {
        if self.policy.reset_ends {
            return self.shut_down(cause);
        }
        if let Err(e) = self.start_over() {
            say!("cannot load the kernel again: {e}");
            self.end = self.end.or(Some(1));
            return;
        }
        self.control.tell(Notice::Reset(cause));
        if self.control.state() != RunState::Running {
            self.set_state(RunState::Prelaunch);
        }
    }

    /// Power-off; with `-no-shutdown` the machine only stops.
    fn shut_down(&mut self, cause: Cause) {
        self.control.tell(Notice::Shutdown(cause));
        match self.policy.power_off_pauses {
            true => self.set_state(RunState::Shutdown),
            false => self.end = self.end.or(Some(0)),
        }
    }

    /// Pauses a running guest; one that has not started, or has ended, stays as it is.
    pub fn pause(&mut self) {
        if self.control.state() == RunState::Running {
            self.set_state(RunState::Paused);
        }
    }

    /// Lets the guest run, or go on. `Err`: it has ended; the text is for the user.
    pub fn cont(&mut self) -> Result<(), String> {
        match self.control.state() {
            RunState::Shutdown | RunState::InternalError => Err("Resetting the Virtual Machine is required".into()),
            RunState::InMigrate => Err("The machine waits for 'migrate_incoming'".into()),
            RunState::Running => Ok(()),
            RunState::Prelaunch | RunState::Paused | RunState::Debug | RunState::PostMigrate | RunState::IoError => {
                self.cpus.iter_mut().for_each(|c| {
                    c.held = false;
                    c.engine.go(Go::On);
                });
                self.set_state(RunState::Running);
                Ok(())
            }
        }
    }

    /// A guest that runs stands still for a debugger.
    pub fn pause_for_debugger(&mut self) {
        if self.control.state() == RunState::Running {
            self.set_state(RunState::Debug);
        }
    }

    /// Lets each CPU do what the debugger says. `still`: guest time stands still while all that move make steps.
    pub fn go_for_debugger(
        &mut self,
        plan: Option<SharedPlan<CpuState>>,
        actions: Vec<Action>,
        still: bool,
    ) -> Result<(), String> {
        let halted = |c: &mut Cpu| vm_core::GuestCpu::halted(c.engine.cpu());
        let mut steps = still && !self.board.clock.counts();
        for (cpu, action) in self.cpus.iter_mut().zip(&actions) {
            // A halted CPU waits for time to pass.
            steps &= match action {
                Some(Go::On) => false,
                Some(_) => !halted(cpu),
                None => true,
            };
        }
        self.cont()?;
        for (cpu, action) in self.cpus.iter_mut().zip(actions) {
            cpu.held = action.is_none();
            cpu.engine.debug(plan.clone());
            cpu.engine.go(action.unwrap_or_default());
        }
        if steps {
            self.board.clock.stop();
        }
        Ok(())
    }

    /// The debugger has gone. A machine that stood still for it runs; with `start` also one that had not begun.
    pub fn detach_debugger(&mut self, start: bool) {
        for c in &mut self.cpus {
            c.held = false;
            c.engine.debug(None);
            c.engine.go(Go::On);
        }
        let state = self.control.state();
        if state == RunState::Debug || start && state == RunState::Prelaunch {
            self.set_state(RunState::Running);
        }
        if state == RunState::Running {
            self.board.clock.start();
        }
    }

    pub(crate) fn state(&self) -> RunState {
        self.control.state()
    }

    #[cfg(test)]
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    pub(crate) fn forget_a20(&self) {
        self.control.forget_a20();
    }

    pub(crate) fn rtc_follows_host(&self) -> bool {
        self.policy.rtc_follows_host
    }

    /// Lets the guest and its time stand still, or go on.
    pub fn set_state(&mut self, state: RunState) {
        let clock = &self.board.clock;
        let run = state == RunState::Running;
        if run {
            self.control.forget_io_error();
            self.drives.resume();
            self.nets.set_running(true);
            clock.start()
        } else {
            clock.stop();
            self.nets.set_running(false);
            self.board.quiesce();
        }
        self.control.set_state(state);
        if std::mem::replace(&mut self.running, run) != run {
            self.control.tell(if run { Notice::Resume } else { Notice::Stop });
        }
    }

    /// Runs on a thread for each CPU until the program is to end; gives its exit status.
    pub fn run(mut self, threads: &Threads) -> Result<u8, RunError> {
        self.set_state(self.control.state());
        loop {
            if let Some(status) = self.end {
                self.board.clock.stop();
                self.control.tell(Notice::End(status));
                self.control.close();
                // Engines live on in those who may kick them; traces end here.
                self.cpus.iter_mut().for_each(|c| drop(c.engine.observe(None)));
                self.drives.drain();
                self.drives.flush();
                return Ok(status);
            }
            if self.control.state() != RunState::Running {
                self.control.signals().wait(Events::STOP, NAP);
                self.serve();
                continue;
            }
            let cpus = std::mem::take(&mut self.cpus);
            let meanwhile = self.meanwhile.take();
            let out = threads.run(cpus, &self.control, meanwhile).map_err(|Panicked| RunError::Panicked)?;
            self.cpus = out.cpus;
            if let Some((cpu, event)) = out.debug {
                self.control.tell(Notice::Debug(cpu, event));
                self.set_state(RunState::Debug);
            }
            if out.triple_fault {
                self.cpus.iter_mut().for_each(|c| dlog!(INT, "triple fault\n{}", vm_core::GuestCpu::dump(c.engine.cpu())));
                self.reset(Cause::GuestReset);
            }
            self.serve();
        }
    }

    /// Whether the program is to end.
    pub(crate) fn ended(&self) -> bool {
        self.end.is_some()
    }

    /// Does what was asked for.
    pub(crate) fn serve(&mut self) {
        let mut asked = self.control.take();
        if let Some(on) = asked.a20 {
            self.cpus.iter_mut().for_each(|c| c.engine.cpu().a20_masked = !on);
        }
        if asked.a20.is_some() || asked.remap {
            self.cpus_changed();
        }
        if let Some((status, cause)) = asked.end {
            cause.into_iter().for_each(|c| self.control.tell(Notice::Shutdown(c)));
            self.end = self.end.or(Some(status));
        }
        if self.end.is_none() && asked.power_off {
            self.shut_down(Cause::GuestShutdown);
        }
        if asked.io_error && self.control.state() == RunState::Running {
            self.set_state(RunState::IoError);
        }
        if let (None, Some(cause)) = (self.end, asked.reset) {
            self.reset(cause);
        }
        // Last, so that a job never sees the machine between the guest's asking for a reset and the reset.
        for job in asked.jobs.drain(..) {
            job(self);
        }
    }
}
