//! `CpuState` as engines see it: `vm_core::GuestCpu`.

use crate::debug;
use crate::deliver::{self, Event, Source, deliver};
use crate::fault::vector;
use crate::ferr;
use crate::flags::bit;
use crate::mode::Mode;
use crate::smm;
use crate::state::{CpuState, PendingEvent, SegReg, shadow};
use crate::{dump, paging, refine, x87_image};
use vm_core::guest::{GuestCpu, GuestEnv, Mapping, PhysMem, Shutdown, X87_IMAGE};
use vm_core::{Access, CpuIo, Events, Fault, Pa, Va};

impl GuestCpu for CpuState {
    fn announce(&self, io: &dyn CpuIo) {
        io.set_smm(self.smm);
    }

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
        self.eflags & bit::TF != 0 || self.pending.valid || self.breakpoints() || self.records_branches()
    }

    fn deliver_event<E: GuestEnv<Cpu = Self>>(env: &mut E) -> Result<bool, Shutdown> {
        let pending = env.io().signals().pending();
        // System management mode holds back INIT, NMI and further SMIs.
        if pending.contains(Events::INIT) && !env.cpu_ref().smm {
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
        if cpu.shadow == shadow::NONE && cpu.pending.valid {
            return debug::take_pending(env).map(|()| true);
        }
        if pending.contains(Events::SMI) && !cpu.smm && cpu.shadow == shadow::NONE {
            env.io().signals().clear(Events::SMI);
            smm::enter(env);
            return Ok(true);
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
        let fault = refine::refine(env, fault);
        let cpu = env.cpu();
        // Breakpoints that the instruction met before it faulted are met again when it is run anew.
        if cpu.pending.vector == vector::DB {
            cpu.pending = PendingEvent::default();
        }
        if fault.vector == vector::MF && ferr::report(env) {
            return Ok(());
        }
        let cpu = env.cpu();
        let event = deliver::from_fault(cpu, fault);
        if fault.vector == vector::DB {
            cpu.dr[6] |= fault.addr & debug::dr6::WRITABLE;
        }
        deliver(env, event, fault.addr)
    }

    fn before_insn<E: GuestEnv<Cpu = Self>>(env: &mut E) -> Result<bool, Shutdown> {
        debug::before_insn(env)
    }

    fn watches(&self, va: Va) -> bool {
        self.watches_page(va)
    }

    fn accessed(&mut self, va: Va, size: u8, write: bool) {
        self.note_access(va, size, write);
    }

    fn after_insn<E: GuestEnv<Cpu = Self>>(env: &mut E) -> Result<(), Shutdown> {
        debug::after_insn(env)
    }

    fn x87_image(&self) -> Option<[u8; X87_IMAGE]> {
        x87_image::image(self)
    }

    fn set_x87_image(&mut self, image: &[u8; X87_IMAGE]) {
        x87_image::set_image(self, image);
    }

    fn dump(&self) -> String {
        dump::dump(self)
    }

    fn dump_mappings(&self, mem: &dyn PhysMem) -> String {
        paging::dump_mappings(self, mem)
    }
}

/// An interrupt of the machine.
pub(crate) fn external<E: GuestEnv<Cpu = CpuState>>(env: &mut E, vector: u8) -> Result<(), Shutdown> {
    env.cpu().halted = false;
    let rip = env.cpu_ref().rip;
    deliver(env, Event { vector, error: None, source: Source::External, rip, rf: false }, 0)
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
