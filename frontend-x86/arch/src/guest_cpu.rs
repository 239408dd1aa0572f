//! `CpuState` as engines see it: `vm_core::GuestCpu`.

use crate::deliver::{self, Event, Source, deliver};
use crate::fault::vector;
use crate::flags::bit;
use crate::mode::Mode;
use crate::state::{CpuState, SegReg, shadow};
use crate::{dump, paging};
use vm_core::guest::{GuestCpu, GuestEnv, Mapping, PhysMem, Shutdown};
use vm_core::{Access, Events, Fault, Pa, Va};

/// DR6.BS: single step (SDM 3B "Debug Status Register").
const DR6_BS: u64 = 1 << 14;

impl GuestCpu for CpuState {
    fn mode(&self) -> u64 {
        self.mode
    }

    fn mode_ctx(mode: u64) -> usize {
        Mode(mode).ctx()
    }

    fn code_base(&self) -> u64 {
        if CpuState::mode(self).is_64() { 0 } else { self.seg(SegReg::Cs).base }
    }

    fn pc(&self) -> u64 {
        self.rip
    }

    fn set_pc(&mut self, pc: u64) {
        self.rip = pc;
    }

    fn linear(&self, pc: u64) -> Va {
        if CpuState::mode(self).is_64() {
            return Va(pc);
        }
        Va(self.seg(SegReg::Cs).base.wrapping_add(pc) & 0xffff_ffff)
    }

    fn walk(&self, va: Va, access: Access, ctx: usize, mem: &dyn PhysMem) -> Result<Mapping, Fault> {
        paging::walk(self, va, access, ctx, mem)
    }

    fn debug_walk(&self, va: Va, mem: &dyn PhysMem) -> Option<Pa> {
        paging::debug_walk(self, va, mem)
    }

    fn asid(&self) -> u64 {
        0
    }

    fn halted(&self) -> bool {
        self.halted || self.wait_sipi
    }

    fn in_shadow(&self) -> bool {
        self.shadow != shadow::NONE
    }

    fn end_shadow(&mut self) {
        self.shadow = shadow::NONE;
    }

    fn single_step(&self) -> bool {
        self.eflags & bit::TF != 0
    }

    fn deliver_event<E: GuestEnv<Cpu = Self>>(env: &mut E) -> Result<bool, Shutdown> {
        let pending = env.io().signals().pending();
        if pending.contains(Events::INIT) {
            env.io().signals().clear(Events::INIT);
            return Ok(take_init(env));
        }
        if env.cpu_ref().wait_sipi {
            return Ok(pending.contains(Events::SIPI) && take_sipi(env));
        }
        if pending.contains(Events::SIPI) {
            // A start-up IPI that nobody waits for is lost.
            env.io().signals().clear(Events::SIPI);
        }
        let cpu = env.cpu_ref();
        if pending.contains(Events::DUE) && (cpu.shadow == shadow::NONE || !cpu.pending.valid) {
            env.io().signals().clear(Events::DUE);
        }
        if cpu.shadow == shadow::NONE && cpu.pending.valid {
            return take_pending(env).map(|()| true);
        }
        if pending.contains(Events::SMI) {
            env.io().signals().clear(Events::SMI);
            vm_core::dlog!(UNIMP, "SMI: system management mode is not implemented");
        }
        let cpu = env.cpu();
        if pending.contains(Events::NMI) && !cpu.nmi_blocked && cpu.shadow == shadow::NONE {
            cpu.nmi_blocked = true;
            env.io().signals().clear(Events::NMI);
            return external(env, vector::NMI).map(|()| true);
        }
        if pending.contains(Events::INTR) && cpu.eflags & bit::IF != 0 && cpu.shadow == shadow::NONE {
            let Some(v) = env.io().ack_intr() else {
                return Ok(false);
            };
            return external(env, v).map(|()| true);
        }
        Ok(false)
    }

    fn deliver_fault<E: GuestEnv<Cpu = Self>>(env: &mut E, fault: Fault) -> Result<(), Shutdown> {
        let event = deliver::from_fault(env.cpu_ref(), fault);
        deliver(env, event, fault.addr)
    }

    fn after_insn<E: GuestEnv<Cpu = Self>>(env: &mut E) -> Result<(), Shutdown> {
        // An instruction that entered a handler has cleared TF and traps no more; MOV SS holds the trap back.
        let cpu = env.cpu();
        if cpu.eflags & bit::TF == 0 || cpu.shadow == shadow::MOV_SS {
            return Ok(());
        }
        if cpu.pending.valid {
            // With a trap that is due they are one exception; a fault of the task switched to comes first.
            if cpu.pending.vector == vector::DB {
                cpu.pending.payload |= DR6_BS;
            }
            return Ok(());
        }
        cpu.dr[6] |= DR6_BS;
        debug_trap(env)
    }

    fn dump(&self) -> String {
        dump::dump(self)
    }

    fn dump_mappings(&self, mem: &dyn PhysMem) -> String {
        paging::dump_mappings(self, mem)
    }
}

/// #DB as a trap: RIP is already behind the instruction.
fn debug_trap<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<(), Shutdown> {
    let rip = env.cpu_ref().rip;
    // Any #DB clears DR7.GD so that the handler may use the debug registers.
    env.cpu().dr[7] &= !(1 << 13);
    deliver(env, Event { vector: vector::DB, error: None, source: Source::Exception, rip, rf: false }, 0)
}

fn external<E: GuestEnv<Cpu = CpuState>>(env: &mut E, vector: u8) -> Result<(), Shutdown> {
    env.cpu().halted = false;
    let rip = env.cpu_ref().rip;
    deliver(env, Event { vector, error: None, source: Source::External, rip, rf: false }, 0)
}

/// An event whose delivery was interrupted before this engine took over (KVM_VCPU_EVENTS).
fn take_pending<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> Result<(), Shutdown> {
    let cpu = env.cpu();
    let p = std::mem::take(&mut cpu.pending);
    cpu.halted = false;
    let error = p.has_error.then_some(p.error);
    // Vectors the CPU raises itself are below 32; NMI among them.
    let exception = p.vector < 32 && p.vector != vector::NMI;
    if exception && p.vector == vector::DB {
        cpu.dr[6] |= p.payload;
        return debug_trap(env);
    }
    if exception {
        return CpuState::deliver_fault(env, Fault { vector: p.vector, error, addr: p.payload });
    }
    external(env, p.vector)
}

fn take_init<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> bool {
    env.cpu().init();
    env.flush(vm_core::guest::Flush::All);
    true
}

fn take_sipi<E: GuestEnv<Cpu = CpuState>>(env: &mut E) -> bool {
    env.io().signals().clear(Events::SIPI);
    let vector = env.io().sipi_vector();
    env.cpu().start_up(vector);
    true
}
