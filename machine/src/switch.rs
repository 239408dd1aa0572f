//! A vCPU that KVM runs natively, and the translating engine where KVM cannot: after a failure, for a debugger or a trace, or
//! when the monitor says so. All vCPUs of a machine are on the same engine, as only one of them sees all writes to code.

use crate::chips::Chips;
use crate::control::Control;
use crate::engine::EngineError;
use crate::say;
use crate::vcpu_thread::Engine;
use accel_kvm::{BREAKPOINTS, KvmCpu, KvmError, Vm, Walk};
use arch_x86::{CpuState, pvclock};
use parking_lot::{Condvar, Mutex};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use vm_core::debug::{DebugEvent, Go, SharedPlan, Stops};
use vm_core::observe::Observer;
use vm_core::{CpuIo, Events, GuestCpu, Pa, Ram, StopReason, Va, Vcpu, dlog};

/// Gives KVM the memory map as it is now.
type Remap = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

#[derive(Default)]
struct Inside {
    /// vCPUs in KVM.
    count: usize,
    /// KVM has run the guest since the other engine did.
    ran: bool,
    /// The other engine has run the guest: it may have translations.
    translated: bool,
}

/// What the vCPUs of a machine agree on.
pub struct Shared {
    /// KVM is not to run, for whatever reason.
    leave: AtomicBool,
    /// Asked for by the monitor, or KVM has failed.
    translate: AtomicBool,
    /// vCPUs that a debugger or an observer wants something of.
    wanted: AtomicUsize,
    inside: Mutex<Inside>,
    outside: Condvar,
    kicks: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
    /// Another engine may go on when KVM fails.
    fallback: bool,
    /// Why KVM cannot run this machine at all.
    unfit: OnceLock<String>,
    /// Nobody can go on.
    over: AtomicBool,
    vm: Arc<Vm>,
    ram: Mutex<Option<Arc<Ram>>>,
    chips: Mutex<Option<Chips>>,
    remap: Mutex<Option<Remap>>,
    control: Control,
}

impl Shared {
    pub fn new(vm: Arc<Vm>, fallback: bool, control: Control) -> Arc<Self> {
        Arc::new(Self {
            leave: false.into(),
            translate: false.into(),
            wanted: 0.into(),
            inside: Mutex::default(),
            outside: Condvar::new(),
            kicks: Mutex::default(),
            fallback,
            unfit: OnceLock::new(),
            over: false.into(),
            vm,
            ram: Mutex::default(),
            chips: Mutex::default(),
            remap: Mutex::default(),
            control,
        })
    }

    /// The machine's RAM, before any vCPU runs.
    pub fn set_ram(&self, ram: &Arc<Ram>) {
        *self.ram.lock() = Some(ram.clone());
    }

    /// What the machine and KVM hand to each other, before any vCPU runs.
    pub fn set_chips(&self, chips: Chips) {
        *self.chips.lock() = Some(chips);
    }

    /// What to do when the memory map has changed (the chipset's shadow RAM).
    pub fn on_remap(&self, f: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        *self.remap.lock() = Some(Box::new(f));
    }

    /// KVM refuses something of the machine, which has not run yet. An error if no other engine may run it.
    pub fn refuse(&self, why: KvmError) -> Result<(), KvmError> {
        if !self.fallback {
            return Err(why);
        }
        let why = self.unfit.get_or_init(|| why.to_string());
        self.give_up(why);
        Ok(())
    }

    /// Why the monitor cannot have KVM run the guest.
    pub fn unfit(&self) -> Option<&str> {
        self.unfit.get().map(String::as_str)
    }

    /// Has the translating engine run the guest, or KVM again. The machine stands still.
    pub fn set_translate(&self, on: bool) {
        self.translate.store(on, Ordering::SeqCst);
        self.decide();
    }

    /// Does KVM run the guest, or would if nobody debugged it?
    pub fn on_kvm(&self) -> bool {
        !self.translate.load(Ordering::SeqCst)
    }

    fn decide(&self) {
        let leave = self.translate.load(Ordering::SeqCst) || self.wanted.load(Ordering::SeqCst) > 0;
        self.leave.store(leave, Ordering::SeqCst);
    }

    /// Counts a vCPU in; `false`: KVM is not to run.
    fn enter(&self) -> bool {
        let mut inside = self.inside.lock();
        if self.leave.load(Ordering::SeqCst) {
            return false;
        }
        if inside.count == 0
            && let Err(e) = self.begin(inside.translated, inside.ran)
        {
            self.give_up(&e.to_string());
            return false;
        }
        inside.count += 1;
        inside.ran = true;
        true
    }

    /// The first vCPU enters.
    fn begin(&self, translated: bool, ran: bool) -> Result<(), KvmError> {
        // So that few translations are lost when the guest comes back to them.
        self.vm.log_writes(translated)?;
        let elsewhere = !ran;
        self.chips.lock().as_ref().map_or(Ok(()), |c| c.give(elsewhere))
    }

    fn exit(&self) {
        let mut inside = self.inside.lock();
        inside.count -= 1;
        if inside.count == 0
            && let Some(Err(e)) = self.chips.lock().as_ref().map(Chips::take)
        {
            self.lost(&e);
        }
        self.outside.notify_all();
    }

    /// Waits until no vCPU is in KVM: from then on all writes to code are seen.
    fn wait_until_outside(&self) {
        let mut inside = self.inside.lock();
        while inside.count > 0 {
            self.kicks.lock().iter().for_each(|k| k());
            self.outside.wait_for(&mut inside, std::time::Duration::from_millis(1));
        }
        inside.translated = true;
        if std::mem::take(&mut inside.ran) {
            self.forget_code();
        }
    }

    /// Gives KVM the memory map as it is now. Where it does not take it, it cannot go on. The machine stands still.
    fn map_memory(&self) {
        let Some(Err(e)) = self.remap.lock().as_ref().map(|f| f()) else { return };
        self.give_up(&format!("KVM does not take the memory map: {e}"));
    }

    /// KVM cannot go on: the other engine does, or the program ends.
    fn give_up(&self, why: &str) {
        if self.fallback {
            if !self.translate.swap(true, Ordering::SeqCst) {
                say!("KVM: {why}; the guest goes on without it");
            }
            self.decide();
        } else {
            self.end(&format!("{why}; with -accel kvm:jit the guest would go on"));
        }
    }

    /// KVM keeps registers for itself, of a CPU or of interrupt controllers: nobody can go on.
    fn lost(&self, why: &KvmError) {
        self.end(&format!("{why}; the guest's state is lost"));
    }

    /// The program is to end. What others find wrong from then on is not said.
    fn end(&self, why: &str) {
        if !self.over.swap(true, Ordering::SeqCst) {
            say!("-accel kvm: {why}");
            self.control.end(1, None);
        }
    }

    /// What the guest wrote natively may have been code.
    fn forget_code(&self) {
        let Some(ram) = self.ram.lock().clone() else { return };
        match self.vm.take_written() {
            Ok(Some(pages)) => ram.pages_written(&pages),
            Ok(None) => ram.all_written(),
            Err(e) => {
                dlog!(UNIMP, "{e}");
                ram.all_written();
            }
        }
    }
}

type Make = Box<dyn FnOnce() -> Result<Engine, EngineError> + Send>;

/// The translating engine, made when it is first needed: starts are quicker, and smaller, without it.
struct Later {
    make: Option<Make>,
    engine: Option<Engine>,
    /// What it is to be told when it is made.
    plan: Option<SharedPlan<CpuState>>,
}

impl Later {
    /// `None`: the host has no memory for it.
    fn get(&mut self, control: &Control) -> Option<&mut Engine> {
        if let Some(make) = self.make.take() {
            match make() {
                Ok(mut engine) => {
                    engine.debug(self.plan.take());
                    self.engine = Some(engine);
                }
                Err(e) => {
                    say!("{e}");
                    control.end(1, None);
                }
            }
        }
        self.engine.as_mut()
    }
}

/// One vCPU.
pub struct Switch {
    kvm: KvmCpu,
    jit: Later,
    /// Which of them has the state.
    native: bool,
    shared: Arc<Shared>,
    /// Breakpoints that the debugger calls hardware's.
    hard: Vec<u64>,
    /// Breakpoints or watchpoints are set that KVM cannot do.
    planned: bool,
    stepping: bool,
    observed: bool,
    counted: bool,
}

impl Switch {
    /// `make` makes the engine that translates.
    pub fn new(kvm: KvmCpu, make: impl FnOnce() -> Result<Engine, EngineError> + Send + 'static, shared: &Arc<Shared>) -> Self {
        shared.kicks.lock().push(Box::new(kvm.kick()));
        let jit = Later { make: Some(Box::new(make)), engine: None, plan: None };
        let shared = shared.clone();
        Self {
            kvm,
            jit,
            native: true,
            shared,
            hard: Vec::new(),
            planned: false,
            stepping: false,
            observed: false,
            counted: false,
        }
    }

    /// A wish of a debugger or an observer has come or gone.
    fn wishes(&mut self) {
        let wants = self.planned || self.stepping || self.observed;
        if wants != std::mem::replace(&mut self.counted, wants) {
            let by = if wants { 1 } else { usize::MAX };
            self.shared.wanted.fetch_add(by, Ordering::SeqCst);
            self.shared.decide();
        }
    }

    /// KVM takes over.
    fn go_native(&mut self) {
        if let (false, Some(jit)) = (std::mem::replace(&mut self.native, true), &mut self.jit.engine) {
            self.kvm.cpu().clone_from(jit.cpu());
            self.kvm.changed();
        }
    }

    /// The translating engine takes over. `None`: there is no memory for it.
    fn go_translating(&mut self, io: &dyn CpuIo) -> Option<&mut Engine> {
        let jit = self.jit.get(&self.shared.control)?;
        if std::mem::replace(&mut self.native, false) {
            // KVM passed over what was written meanwhile.
            io.signals().raise(Events::CODE);
            jit.cpu().clone_from(self.kvm.cpu());
            if let Some(why) = self.kvm.lost() {
                self.shared.lost(&why);
                return None;
            }
            jit.cpu_changed();
            pvclock::tell(jit.cpu(), io);
        }
        Some(jit)
    }

    /// KVM's part of a run. `None`: the other engine goes on.
    fn run_native(&mut self, io: &dyn CpuIo) -> Option<StopReason> {
        self.go_native();
        let outcome = self.kvm.run(io, &self.shared.leave);
        self.shared.exit();
        if let Some(why) = self.kvm.lost() {
            self.shared.lost(&why);
            return Some(StopReason::Stopped);
        }
        match outcome {
            Ok(StopReason::Stopped) if !io.signals().pending().contains(Events::STOP) => None,
            Ok(StopReason::Debug(_)) => {
                let cpu = self.kvm.cpu();
                let hard = self.hard.contains(&cpu.linear(cpu.rip).0);
                Some(StopReason::Debug(DebugEvent::Break { hard }))
            }
            Ok(why) => Some(why),
            Err(failure) => {
                self.shared.give_up(&failure.to_string());
                (!self.shared.fallback).then_some(StopReason::Stopped)
            }
        }
    }
}

/// Addresses of breakpoints, if the processor's debug registers can do all that is wanted.
fn natively(stops: &Stops) -> Option<Vec<u64>> {
    let mut addresses: Vec<u64> = stops.breakpoints().iter().map(|b| b.va).collect();
    addresses.dedup();
    let simple = stops.watchpoints().is_empty() && !stops.breakpoints().iter().any(|b| b.conditional);
    (simple && addresses.len() <= BREAKPOINTS).then_some(addresses)
}

impl Vcpu for Switch {
    type Cpu = CpuState;

    fn run(&mut self, io: &dyn CpuIo) -> StopReason {
        // Somebody has asked for them since.
        if let Some(why) = self.kvm.lost() {
            self.shared.lost(&why);
        }
        loop {
            if self.shared.over.load(Ordering::SeqCst) {
                return StopReason::Stopped;
            }
            if self.shared.enter() {
                match self.run_native(io) {
                    Some(why) => return why,
                    None => continue,
                }
            }
            if self.shared.over.load(Ordering::SeqCst) {
                continue;
            }
            self.shared.wait_until_outside();
            return self.go_translating(io).map_or(StopReason::Stopped, |jit| jit.run(io));
        }
    }

    fn cpu(&mut self) -> &mut CpuState {
        match &mut self.jit.engine {
            Some(jit) if !self.native => jit.cpu(),
            _ => self.kvm.cpu(),
        }
    }

    fn cpu_changed(&mut self) {
        self.shared.map_memory();
        if let Some(jit) = &mut self.jit.engine {
            jit.cpu_changed();
        }
    }

    fn observe(&mut self, observer: Option<Box<dyn Observer<CpuState>>>) -> Option<Box<dyn Observer<CpuState>>> {
        self.observed = observer.is_some();
        self.wishes();
        match observer {
            Some(o) => self.jit.get(&self.shared.control)?.observe(Some(o)),
            None => self.jit.engine.as_mut()?.observe(None),
        }
    }

    fn debug(&mut self, plan: Option<SharedPlan<CpuState>>) {
        let stops = plan.as_ref().map(|p| &p.stops);
        // What KVM cannot do is for the other engine.
        let native = stops.map_or_else(|| Some(Vec::new()), natively);
        let taken = native.is_some_and(|addresses| self.kvm.set_breakpoints(&addresses).is_ok());
        self.planned = !taken;
        self.hard = stops.into_iter().flat_map(Stops::breakpoints).filter(|b| b.hard).map(|b| b.va).collect();
        self.wishes();
        match &mut self.jit.engine {
            Some(jit) => jit.debug(plan),
            None => self.jit.plan = plan,
        }
    }

    fn go(&mut self, go: Go) {
        self.stepping = go != Go::On;
        self.wishes();
        let jit = if self.stepping { self.jit.get(&self.shared.control) } else { self.jit.engine.as_mut() };
        if let Some(jit) = jit {
            jit.go(go);
        }
    }

    fn info_jit(&mut self) -> String {
        let who = if self.native { "KVM" } else { "this engine" };
        let rest = self.jit.engine.as_mut().map_or_else(String::new, |jit| jit.info_jit());
        format!("runs the guest       {who}\nexits from KVM       {}\n{rest}", self.kvm.exits())
    }

    fn info_tlb(&mut self, io: &dyn CpuIo) -> String {
        self.cpu().dump_mappings(&Walk(io))
    }

    fn debug_translate(&mut self, io: &dyn CpuIo, va: Va) -> Option<Pa> {
        self.cpu().debug_walk(va, &Walk(io))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_core::debug::{Breakpoint, WatchKind, Watchpoint};

    #[test]
    fn what_debug_registers_can_do() {
        let at = |va, conditional| Breakpoint { va, hard: false, conditional };
        let some = |n: u64| (0..n).map(|va| at(va, false)).collect::<Vec<_>>();
        let watch = Watchpoint { at: 5, len: 1, kind: WatchKind::Any, physical: false };
        assert_eq!(natively(&Stops::default()), Some(vec![]));
        assert_eq!(natively(&Stops::new(some(4), vec![])), Some(vec![0, 1, 2, 3]));
        assert_eq!(natively(&Stops::new([some(4), some(2)].concat(), vec![])), Some(vec![0, 1, 2, 3]), "twice at one place");
        assert_eq!(natively(&Stops::new(some(5), vec![])), None);
        assert_eq!(natively(&Stops::new(vec![at(1, true)], vec![])), None);
        assert_eq!(natively(&Stops::new(some(1), vec![watch])), None);
    }
}
