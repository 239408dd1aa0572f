//! What the machine and KVM share beside the CPUs: interrupt controllers that KVM has while it runs the guest (`kernel-irqchip=split`: the
//! local APICs; `on`: all), and doorbells of virtio devices.

use crate::board::Board;
use crate::irqchip::Whole;
use accel_kvm::{CpuPort, Doorbells, KvmError, LapicRegs, PINS, Vm};
use devices::irq::{LapicImage, Routes};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use vm_core::{Events, dlog};

/// The machine's side of KVM's interrupt controllers.
pub struct Chips {
    vm: Arc<Vm>,
    board: Arc<Board>,
    /// Of each vCPU, where KVM has its local APIC.
    ports: Vec<CpuPort>,
    bells: Option<Arc<Doorbells>>,
    /// Where KVM has all interrupt controllers.
    whole: Option<Whole>,
}

/// Tells KVM which level-triggered messages the I/O APIC sends.
struct Table {
    vm: Arc<Vm>,
    messages: Mutex<[Option<(u64, u32)>; PINS]>,
}

impl Routes for Table {
    fn set(&self, pin: usize, message: Option<(u64, u32)>) {
        let mut all = self.messages.lock();
        let Some(m) = all.get_mut(pin).filter(|m| **m != message) else { return };
        *m = message;
        if let Err(e) = self.vm.set_routes(&all) {
            dlog!(UNIMP, "{e}");
        }
    }
}

impl Chips {
    /// Connects a board with KVM. `ports`: of all vCPUs, if the local APICs are to be KVM's, else none.
    pub fn new(vm: &Arc<Vm>, board: &Arc<Board>, ports: Vec<CpuPort>) -> Result<Self, KvmError> {
        let whole = vm.kernel_irqchip().then(|| Whole::new(vm, board)).transpose()?;
        if !ports.is_empty() && whole.is_none() {
            let (vm, messages) = (vm.clone(), Mutex::new([None; PINS]));
            vm.set_routes(&[None; PINS])?;
            board.ioapic.lock().set_routes(Arc::new(Table { vm, messages }));
        }
        let list = board.doorbells();
        let bells = if list.is_empty() { None } else { Some(Arc::new(Doorbells::new(vm, &list)?)) };
        if let Some(bells) = &bells {
            answer(bells.clone(), Arc::downgrade(board));
        }
        Ok(Self { vm: vm.clone(), board: board.clone(), ports, bells, whole })
    }

    /// KVM is about to run the guest; `elsewhere`: it has not run it last.
    pub fn give(&self, elsewhere: bool) -> Result<(), KvmError> {
        let shown = self.board.clock.now().wrapping_add(self.board.kvm_clock.lock().offset());
        self.vm.set_clock(shown, elsewhere)?;
        if self.ports.is_empty() {
            return Ok(());
        }
        let outcome = self.give_all();
        if outcome.is_err() {
            // What was given already. Its errors are no others.
            let _ = self.take_all();
        }
        outcome
    }

    fn give_all(&self) -> Result<(), KvmError> {
        self.whole.as_ref().map_or(Ok(()), Whole::give_pic)?;
        let give = |n: usize, i: &LapicImage| match self.ports.get(n) {
            Some(port) => port.set_lapic(&LapicRegs { regs: i.regs, base: i.base }),
            None => Ok(()),
        };
        self.board.apic_bus.hand_over(self.vm.clone(), give)?;
        self.whole.as_ref().map_or(Ok(()), Whole::give_rest)
    }

    /// KVM does not run any more.
    pub fn take(&self) -> Result<(), KvmError> {
        // Before KVM's, so that it is not behind that.
        let now = self.board.clock.now();
        if let Some(clock) = self.vm.clock()? {
            self.board.kvm_clock.lock().set_offset(clock.wrapping_sub(now));
        }
        if let Some(bells) = &self.bells {
            bells.answer(|pa, value| self.board.ring(pa, value));
        }
        if self.ports.is_empty() {
            return Ok(());
        }
        self.take_all()
    }

    fn take_all(&self) -> Result<(), KvmError> {
        let first = self.whole.as_ref().map_or(Ok(()), Whole::take_first);
        let lapics = self.take_lapics();
        let pic = self.whole.as_ref().map_or(Ok(()), Whole::take_pic);
        first.and(lapics).and(pic)
    }

    fn take_lapics(&self) -> Result<(), KvmError> {
        self.board.apic_bus.take_back(|n| {
            let port = self.ports.get(n).ok_or(KvmError::Lacks("a vCPU for each local APIC"))?;
            let (LapicRegs { regs, base }, latched) = port.take_lapic()?;
            if latched.nmi {
                self.board.lapics[n].signals().raise(Events::NMI);
            }
            Ok(LapicImage { regs, base, wait_sipi: latched.waits })
        })
    }
}

/// Answers doorbells for as long as the board is there.
fn answer(bells: Arc<Doorbells>, board: Weak<Board>) {
    let answers = move || {
        loop {
            bells.wait();
            let Some(board) = board.upgrade() else { return };
            bells.answer(|pa, value| board.ring(pa, value));
        }
    };
    if let Err(e) = std::thread::Builder::new().name("doorbells".into()).spawn(answers) {
        crate::say!("no thread for doorbells: {e}");
    }
}
