//! A vCPU that KVM runs natively, and the translating engine where KVM cannot: after a failure, for a debugger or a trace, or
//! when the monitor says so. All vCPUs of a machine are on the same engine, as only one of them sees all writes to code.

use crate::control::Control;
use crate::say;
use crate::vcpu_thread::Engine;
use accel_kvm::KvmCpu;
use arch_x86::CpuState;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use vm_core::debug::{Go, SharedPlan};
use vm_core::observe::Observer;
use vm_core::{CpuIo, Events, Pa, Ram, StopReason, Va, Vcpu};

/// Gives KVM the memory map as it is now.
type Remap = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What the vCPUs of a machine agree on.
pub struct Shared {
    /// KVM is not to run, for whatever reason.
    leave: AtomicBool,
    /// Asked for by the monitor, or KVM has failed.
    translate: AtomicBool,
    /// vCPUs that a debugger or an observer wants something of.
    wanted: AtomicUsize,
    /// vCPUs in KVM.
    inside: Mutex<usize>,
    outside: Condvar,
    kicks: Mutex<Vec<Box<dyn Fn() + Send + Sync>>>,
    /// Another engine may go on when KVM fails.
    fallback: bool,
    ram: Mutex<Option<Arc<Ram>>>,
    remap: Mutex<Option<Remap>>,
    control: Control,
}

impl Shared {
    pub fn new(fallback: bool, control: Control) -> Arc<Self> {
        Arc::new(Self {
            leave: false.into(),
            translate: false.into(),
            wanted: 0.into(),
            inside: Mutex::new(0),
            outside: Condvar::new(),
            kicks: Mutex::default(),
            fallback,
            ram: Mutex::default(),
            remap: Mutex::default(),
            control,
        })
    }

    /// The machine's RAM, before any vCPU runs.
    pub fn set_ram(&self, ram: &Arc<Ram>) {
        *self.ram.lock() = Some(ram.clone());
    }

    /// What to do when the memory map has changed (the chipset's shadow RAM).
    pub fn on_remap(&self, f: impl Fn() -> Result<(), String> + Send + Sync + 'static) {
        *self.remap.lock() = Some(Box::new(f));
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
        let enters = !self.leave.load(Ordering::SeqCst);
        *inside += usize::from(enters);
        enters
    }

    fn exit(&self) {
        *self.inside.lock() -= 1;
        self.outside.notify_all();
    }

    /// Waits until no vCPU is in KVM: from then on all writes to code are seen.
    fn wait_until_outside(&self) {
        let mut inside = self.inside.lock();
        while *inside > 0 {
            self.kicks.lock().iter().for_each(|k| k());
            self.outside.wait_for(&mut inside, std::time::Duration::from_millis(1));
        }
    }

    /// What the guest wrote natively may have been code.
    fn forget_code(&self) {
        if let Some(ram) = &*self.ram.lock() {
            ram.all_written();
        }
    }
}

/// One vCPU.
pub struct Switch {
    kvm: KvmCpu,
    jit: Engine,
    /// Which of them has the state.
    native: bool,
    shared: Arc<Shared>,
    planned: bool,
    stepping: bool,
    observed: bool,
    counted: bool,
}

impl Switch {
    pub fn new(kvm: KvmCpu, jit: Engine, shared: &Arc<Shared>) -> Self {
        shared.kicks.lock().push(Box::new(kvm.kick()));
        let shared = shared.clone();
        Self { kvm, jit, native: true, shared, planned: false, stepping: false, observed: false, counted: false }
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

    /// The other engine takes over.
    fn change(&mut self, native: bool) {
        if native == std::mem::replace(&mut self.native, native) {
            return;
        }
        if native {
            self.kvm.cpu().clone_from(self.jit.cpu());
        } else {
            self.shared.forget_code();
            self.jit.cpu().clone_from(self.kvm.cpu());
            self.jit.cpu_changed();
        }
    }

    /// KVM's part of a run. `None`: the other engine goes on.
    fn run_native(&mut self, io: &dyn CpuIo) -> Option<StopReason> {
        self.change(true);
        let outcome = self.kvm.run(io, &self.shared.leave);
        self.shared.exit();
        match outcome {
            Ok(StopReason::Stopped) if !io.signals().pending().contains(Events::STOP) => None,
            Ok(why) => Some(why),
            Err(failure) if self.shared.fallback => {
                if !self.shared.translate.swap(true, Ordering::SeqCst) {
                    say!("KVM: {failure}; the guest goes on without it");
                }
                self.shared.decide();
                None
            }
            Err(failure) => {
                say!("-accel kvm: {failure}; with -accel kvm:jit the guest would go on");
                self.shared.control.end(1, None);
                Some(StopReason::Stopped)
            }
        }
    }

    /// The translating engine has the state too.
    fn tell_jit(&mut self) {
        if self.native {
            self.jit.cpu().clone_from(self.kvm.cpu());
        }
    }
}

impl Vcpu for Switch {
    type Cpu = CpuState;

    fn run(&mut self, io: &dyn CpuIo) -> StopReason {
        loop {
            if self.shared.enter() {
                match self.run_native(io) {
                    Some(why) => return why,
                    None => continue,
                }
            }
            self.shared.wait_until_outside();
            self.change(false);
            return self.jit.run(io);
        }
    }

    fn cpu(&mut self) -> &mut CpuState {
        if self.native { self.kvm.cpu() } else { self.jit.cpu() }
    }

    fn cpu_changed(&mut self) {
        if let Some(Err(e)) = self.shared.remap.lock().as_ref().map(|f| f()) {
            say!("KVM does not take the memory map: {e}");
        }
        self.jit.cpu_changed();
    }

    fn observe(&mut self, observer: Option<Box<dyn Observer<CpuState>>>) -> Option<Box<dyn Observer<CpuState>>> {
        self.observed = observer.is_some();
        self.wishes();
        self.jit.observe(observer)
    }

    fn debug(&mut self, plan: Option<SharedPlan<CpuState>>) {
        let stops = |p: &SharedPlan<CpuState>| !p.stops.breakpoints().is_empty() || !p.stops.watchpoints().is_empty();
        self.planned = plan.as_ref().is_some_and(stops);
        self.wishes();
        self.jit.debug(plan);
    }

    fn go(&mut self, go: Go) {
        self.stepping = go != Go::On;
        self.wishes();
        self.jit.go(go);
    }

    fn info_jit(&mut self) -> String {
        let who = if self.native { "KVM" } else { "this engine" };
        format!("runs the guest       {who}\nexits from KVM       {}\n{}", self.kvm.exits(), self.jit.info_jit())
    }

    fn info_tlb(&mut self, io: &dyn CpuIo) -> String {
        self.tell_jit();
        self.jit.info_tlb(io)
    }

    fn debug_translate(&mut self, io: &dyn CpuIo, va: Va) -> Option<Pa> {
        self.tell_jit();
        self.jit.debug_translate(io, va)
    }
}
