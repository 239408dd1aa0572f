//! One vCPU of KVM: its run loop, its events, its state.

use crate::ioctl::{self, Kicker, Pio};
use crate::port::CpuPort;
use crate::vm::Vm;
use crate::{KvmError, at, cpuid};
use arch_x86::CpuState;
use arch_x86::cpuid::feature;
use arch_x86::flags::bit;
use arch_x86::msr::index::APIC_BASE;
use arch_x86::state::PendingEvent;
use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_core::debug::DebugEvent;
use vm_core::guest::{GuestCpu, PhysMem};
use vm_core::{CpuIo, Events, Pa, StopReason, Va, dlog};

/// Exits that it may take to complete what an instruction has begun.
const COMPLETIONS: u32 = 1 << 16;

/// KVM cannot go on. The state is exact, before the instruction at the program counter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why} at {rip:#x} (bytes {bytes})")]
pub struct Failure {
    pub why: String,
    /// Linear address.
    pub rip: u64,
    /// What lies there, as far as it is mapped.
    pub bytes: String,
}

/// Where the registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// In `cpu`; KVM's are to be overwritten.
    Here,
    /// In both, unless `cpu` is changed: `seen` is what KVM has.
    Both,
    Kvm,
}

/// One vCPU. Not a `vm_core::Vcpu` by itself: somebody must decide what a `Failure` leads to.
pub struct KvmCpu {
    // Before `vm`, so that it goes first.
    pub(crate) fd: VcpuFd,
    pub(crate) vm: Arc<Vm>,
    kicker: Arc<Kicker>,
    pub(crate) cpu: CpuState,
    pub(crate) seen: Box<CpuState>,
    pub(crate) at: Where,
    /// An access of the guest is done, but not its instruction.
    open: bool,
    pub(crate) halted: bool,
    pub(crate) wait_sipi: bool,
    /// An NMI that KVM was given and the guest does not take yet.
    pub(crate) nmi_waits: bool,
    /// The guest's TSC is in `cpu.tsc_offset`, not in KVM.
    pub(crate) tsc_here: bool,
    exits: u64,
    /// An interrupt that was taken from the interrupt controllers, and that KVM refused.
    refused: Option<u8>,
    /// KVM did not give the registers.
    pub(crate) lost: Option<KvmError>,
    /// Where a debugger wants it to stop.
    pub(crate) breakpoints: Vec<u64>,
}

/// What came of a run of KVM.
enum Step {
    /// An access was served, or nothing happened.
    On,
    Pio,
    Halt,
    Shutdown,
    /// A breakpoint of the debugger's.
    Break,
    /// A #DB that is the guest's.
    OwnDebug,
    /// Other things are to be looked at.
    Interrupted,
    Fail(String),
}

impl KvmCpu {
    /// vCPU number `n` of a machine, in the state `cpu`, which also says what CPUID gives.
    pub fn new(vm: &Arc<Vm>, n: u32, cpu: CpuState) -> Result<Self, KvmError> {
        // Interrupts are sent to KVM's local APICs by this number.
        let mut fd = vm.vcpu(if vm.kernel_lapic() { cpu.apic_id } else { n })?;
        let leaves = cpuid::for_kvm(&cpu, vm.host_names()).ok_or(KvmError::Lacks("room for all CPUID leaves"))?;
        fd.set_cpuid2(&leaves).map_err(at("KVM_SET_CPUID2"))?;
        if vm.tsc_follows() {
            // Guest time's rate: `CpuIo::tsc`.
            fd.set_tsc_khz(1_000_000).map_err(at("KVM_SET_TSC_KHZ"))?;
        }
        if cpu.has(feature::KVM_CLOCK) {
            vm.show_clock();
        }
        let kicker = Arc::<Kicker>::default();
        kicker.set(&mut fd);
        let seen = Box::new(cpu.clone());
        let (vm, at) = (vm.clone(), Where::Here);
        Ok(Self {
            fd,
            vm,
            kicker,
            cpu,
            seen,
            at,
            open: false,
            halted: false,
            wait_sipi: false,
            nmi_waits: false,
            tsc_here: true,
            exits: 0,
            refused: None,
            lost: None,
            breakpoints: Vec::new(),
        })
    }

    /// For the machine, while the vCPU does not run.
    pub fn port(&self) -> Result<CpuPort, KvmError> {
        ioctl::duplicate(&self.fd).map(CpuPort::new).map_err(at("dup"))
    }

    /// Makes a run end soon; for any thread.
    pub fn kick(&self) -> impl Fn() + Send + Sync + 'static {
        let k = self.kicker.clone();
        move || k.kick()
    }

    /// The registers. What is changed in them holds from the next run on.
    pub fn cpu(&mut self) -> &mut CpuState {
        if self.at == Where::Kvm {
            self.fetch(None);
        }
        &mut self.cpu
    }

    /// The registers may have become others than those that KVM has, or what belongs to them has.
    pub fn changed(&mut self) {
        self.at = Where::Here;
    }

    /// Why KVM did not give the registers, if it did not: then `cpu` has older ones, and nobody can go on.
    pub fn lost(&mut self) -> Option<KvmError> {
        self.lost.take()
    }

    /// How often KVM came back.
    pub fn exits(&self) -> u64 {
        self.exits
    }

    /// Rate of the guest's TSC, if KVM says it.
    pub fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok().filter(|k| *k > 0)
    }

    /// Runs until there is a reason to stop, or KVM cannot go on. `Stopped` also when `leave` is set, and the vCPU kicked.
    pub fn run(&mut self, io: &dyn CpuIo, leave: &AtomicBool) -> Result<StopReason, Failure> {
        self.kicker.runs_here(true);
        let outcome = self.run_here(io, leave).and_then(|why| {
            if why != StopReason::Halted {
                self.complete(io)?;
                if self.vm.kernel_lapic() {
                    // Others may yet send it something: the registers are taken when all stand still.
                    self.fetch_tsc(io);
                } else {
                    self.fetch(Some(io));
                }
            }
            Ok(why)
        });
        self.kicker.runs_here(false);
        outcome.map_err(|why| self.failure(why, io))
    }

    fn run_here(&mut self, io: &dyn CpuIo, leave: &AtomicBool) -> Result<StopReason, String> {
        self.settle();
        loop {
            // From here on a kick ends the next run.
            self.kicker.immediate_exit(false);
            let pending = io.signals().pending();
            if pending.contains(Events::STOP) || leave.load(Ordering::SeqCst) {
                return Ok(StopReason::Stopped);
            }
            if pending.contains(Events::TIMER) {
                return Ok(StopReason::Limit);
            }
            if pending.contains(Events::CODE) {
                // Nothing is translated here. What was written is still there to be asked for.
                io.signals().clear(Events::CODE);
            }
            if !self.take_events(io, pending)? {
                return Ok(StopReason::Halted);
            }
            self.send(io)?;
            self.offer_interrupt(io)?;
            match self.step(io) {
                Step::On | Step::Interrupted | Step::OwnDebug => {}
                Step::Pio => self.pio(io),
                Step::Halt => self.halted = true,
                Step::Shutdown => return Ok(StopReason::TripleFault),
                Step::Break => return Ok(StopReason::Debug(DebugEvent::Break { hard: true })),
                Step::Fail(why) => return Err(why),
            }
        }
    }

    /// Looks at what was changed from outside.
    fn settle(&mut self) {
        if self.at == Where::Both && *self.seen != self.cpu {
            self.at = Where::Here;
        }
        if self.at != Where::Kvm {
            (self.halted, self.wait_sipi) = (self.cpu.halted, self.cpu.wait_sipi);
        }
    }

    /// Takes what concerns the vCPU as a whole. `false`: it is halted, and stays so.
    fn take_events(&mut self, io: &dyn CpuIo, pending: Events) -> Result<bool, String> {
        let signals = io.signals();
        if pending.contains(Events::INIT) {
            signals.clear(Events::INIT);
            self.complete(io)?;
            self.fetch(Some(io));
            self.cpu.init();
            self.at = Where::Here;
            self.settle();
        }
        if self.wait_sipi && !pending.contains(Events::SIPI) && !self.vm.kernel_lapic() {
            return Ok(false);
        }
        if self.wait_sipi && pending.contains(Events::SIPI) {
            signals.clear(Events::SIPI);
            self.fetch(Some(io));
            self.cpu.start_up(io.sipi_vector());
            self.at = Where::Here;
            self.settle();
        } else if pending.contains(Events::SIPI) {
            // Nobody waits for it.
            signals.clear(Events::SIPI);
        }
        if pending.contains(Events::SMI) {
            signals.clear(Events::SMI);
            dlog!(UNIMP, "KVM: no system management mode; the interrupt is lost");
        }
        if pending.contains(Events::NMI) {
            signals.clear(Events::NMI);
            self.halted = false;
            self.fd.nmi().map_err(|e| {
                signals.raise(Events::NMI);
                format!("KVM_NMI: {e}")
            })?;
        }
        if self.vm.kernel_lapic() {
            // KVM lets it wait.
            return Ok(true);
        }
        if self.halted {
            self.halted = !(pending.contains(Events::INTR) && self.interrupts_on());
        }
        Ok(!self.halted)
    }

    fn interrupts_on(&mut self) -> bool {
        match self.at {
            Where::Kvm => self.fd.get_kvm_run().if_flag != 0,
            _ => self.cpu.eflags & bit::IF != 0,
        }
    }

    /// Hands over an interrupt, or asks to be told when the guest can take one.
    fn offer_interrupt(&mut self, io: &dyn CpuIo) -> Result<(), String> {
        if self.vm.kernel_irqchip() {
            // KVM's 8259s ask KVM's local APICs.
            return Ok(());
        }
        let wanted = io.signals().pending().contains(Events::INTR);
        let run = self.fd.get_kvm_run();
        let ready = run.ready_for_interrupt_injection != 0 && run.if_flag != 0;
        run.request_interrupt_window = (wanted && !ready).into();
        if wanted && ready {
            // Until KVM says so again.
            run.ready_for_interrupt_injection = 0;
            if let Some(vector) = io.ack_intr() {
                self.deliver(vector).map_err(|(what, e)| {
                    self.refused = Some(vector);
                    format!("{what}: {e}")
                })?;
            }
            // Another one may wait behind it.
            run_window(&mut self.fd, io);
        }
        Ok(())
    }

    fn step(&mut self, io: &dyn CpuIo) -> Step {
        self.open = false;
        self.exits += 1;
        let cr8 = io.cr8();
        // KVM takes it only where the local APIC is not its own.
        self.fd.get_kvm_run().cr8 = cr8.into();
        let outcome = self.fd.run();
        // Before what came after them.
        self.vm.drain(|pa, data| mmio_write(io, pa, data));
        let step = match outcome {
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Step::Pio,
            Ok(VcpuExit::MmioRead(pa, data)) => {
                mmio_read(io, pa, data);
                self.open = true;
                Step::On
            }
            Ok(VcpuExit::MmioWrite(pa, data)) => {
                mmio_write(io, pa, data);
                self.open = true;
                Step::On
            }
            Ok(VcpuExit::X86Rdmsr(m)) => {
                match io.msr_read(m.index) {
                    Some(v) => (*m.error, *m.data) = (0, v),
                    None => {
                        dlog!(UNIMP, "KVM: read of unknown MSR {:#x}", m.index);
                        *m.error = 1;
                    }
                }
                self.open = true;
                Step::On
            }
            Ok(VcpuExit::X86Wrmsr(m)) => {
                let done = io.msr_write(m.index, m.data);
                if !done {
                    dlog!(UNIMP, "KVM: write of {:#x} to MSR {:#x}", m.data, m.index);
                }
                *m.error = (!done).into();
                self.open = true;
                Step::On
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                io.end_of_interrupt(vector);
                Step::On
            }
            Ok(VcpuExit::Debug(d)) if self.breakpoints.contains(&d.pc) => Step::Break,
            // The guest's own: its TF, or INT1.
            Ok(VcpuExit::Debug(_)) => Step::OwnDebug,
            Ok(VcpuExit::Hlt) => Step::Halt,
            Ok(VcpuExit::Shutdown) => Step::Shutdown,
            Ok(VcpuExit::IrqWindowOpen | VcpuExit::Intr | VcpuExit::SetTpr) => Step::Interrupted,
            Ok(VcpuExit::InternalError) => Step::Fail(String::new()),
            Ok(VcpuExit::FailEntry(reason, _)) => Step::Fail(format!("the processor refuses its state (reason {reason:#x})")),
            Ok(other) => Step::Fail(format!("KVM came back for an unknown reason ({other:?})")),
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => Step::Interrupted,
            Err(e) => Step::Fail(format!("KVM_RUN: {e}")),
        };
        self.after_run(io, cr8);
        match step {
            Step::Fail(why) if why.is_empty() => Step::Fail(self.internal_error()),
            Step::OwnDebug => self.give_back_debug(),
            other => other,
        }
    }

    /// The guest gets the #DB that KVM has shown to us.
    fn give_back_debug(&mut self) -> Step {
        match self.set_debug(true) {
            Ok(()) => Step::On,
            Err(e) => Step::Fail(e.to_string()),
        }
    }

    /// The local APIC's registers that the guest can reach without an exit. `before`: CR8 when it began to run.
    fn after_run(&mut self, io: &dyn CpuIo, before: u8) {
        let (vm, run) = (&self.vm, self.fd.get_kvm_run());
        if vm.kernel_lapic() {
            return;
        }
        let (cr8, base) = (run.cr8 as u8 & 15, run.apic_base);
        // The access that ended the run may have written TPR: that came last.
        if cr8 != before && io.cr8() == before {
            io.set_cr8(cr8);
        }
        if io.msr_read(APIC_BASE).is_some_and(|b| b != base) && !io.msr_write(APIC_BASE, base) {
            dlog!(GUEST_ERRORS, "KVM: local APIC base {base:#x}");
        }
    }

    fn internal_error(&mut self) -> String {
        let (reason, data) = ioctl::internal_error(&mut self.fd);
        match reason {
            KVM_INTERNAL_ERROR_EMULATION => "KVM cannot emulate the instruction".into(),
            _ => format!("KVM has an internal error ({reason}, {data:x?})"),
        }
    }

    fn pio(&mut self, io: &dyn CpuIo) {
        let Some((Pio { port, size, out }, data)) = ioctl::pio(&mut self.fd, self.vm.run_size()) else {
            dlog!(UNIMP, "KVM: a port access that makes no sense");
            return;
        };
        for element in data.chunks_exact_mut(size.into()) {
            let mut word = [0; 4];
            if out {
                word[..element.len()].copy_from_slice(element);
                io.port_write(port, size, u32::from_le_bytes(word));
            } else {
                word = io.port_read(port, size).to_le_bytes();
                element.copy_from_slice(&word[..element.len()]);
            }
        }
        self.open = true;
    }

    /// Ends the instruction that an access belongs to.
    fn complete(&mut self, io: &dyn CpuIo) -> Result<(), String> {
        for _ in 0..COMPLETIONS {
            if !self.open {
                return Ok(());
            }
            self.kicker.immediate_exit(true);
            match self.step(io) {
                Step::Pio => self.pio(io),
                Step::Halt => self.halted = true,
                Step::Fail(why) => return Err(why),
                Step::On | Step::Interrupted | Step::Shutdown | Step::Break | Step::OwnDebug => {}
            }
        }
        Err("an instruction does not come to its end".into())
    }

    fn failure(&mut self, why: String, io: &dyn CpuIo) -> Failure {
        self.fetch(Some(io));
        if let Some(vector) = self.refused.take() {
            self.cpu.pending = PendingEvent { valid: true, vector, ..Default::default() };
        }
        let rip = self.cpu.linear(self.cpu.rip).0;
        let byte = |i: u64| self.cpu.debug_walk(Va(rip.wrapping_add(i)), &Walk(io)).map(|pa| io.mmio_read(pa, 1));
        let bytes: Vec<String> = (0..15).map_while(byte).map(|b| format!("{b:02x}")).collect();
        Failure { why, rip, bytes: if bytes.is_empty() { "not mapped".into() } else { bytes.join(" ") } }
    }
}

impl Drop for KvmCpu {
    fn drop(&mut self) {
        self.kicker.forget();
    }
}

fn run_window(fd: &mut VcpuFd, io: &dyn CpuIo) {
    fd.get_kvm_run().request_interrupt_window = io.signals().pending().contains(Events::INTR).into();
}

fn mmio_read(io: &dyn CpuIo, pa: u64, data: &mut [u8]) {
    if matches!(data.len(), 1 | 2 | 4 | 8) {
        let n = data.len();
        data.copy_from_slice(&io.mmio_read(Pa(pa), n as u8).to_le_bytes()[..n]);
    } else {
        (pa..).zip(data).for_each(|(a, b)| *b = io.mmio_read(Pa(a), 1) as u8);
    }
}

fn mmio_write(io: &dyn CpuIo, pa: u64, data: &[u8]) {
    if matches!(data.len(), 1 | 2 | 4 | 8) {
        let v = data.iter().rev().fold(0, |v, b| v << 8 | u64::from(*b));
        io.mmio_write(Pa(pa), data.len() as u8, v);
    } else {
        (pa..).zip(data).for_each(|(a, b)| io.mmio_write(Pa(a), 1, (*b).into()));
    }
}

/// Page tables, to look up what lies at an address.
pub struct Walk<'a>(pub &'a dyn CpuIo);

impl PhysMem for Walk<'_> {
    fn read_u64(&self, pa: Pa) -> u64 {
        self.0.mmio_read(pa, 8)
    }

    fn read_u32(&self, pa: Pa) -> u32 {
        self.0.mmio_read(pa, 4) as u32
    }

    fn cas_u64(&self, _: Pa, _: u64, _: u64) -> bool {
        true
    }

    fn cas_u32(&self, _: Pa, _: u32, _: u32) -> bool {
        true
    }
}
