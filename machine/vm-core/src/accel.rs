//! What a CPU engine may ask of the machine (`CpuIo`), and what the machine may ask of an engine (`Vcpu`).

use crate::addr::Pa;
use crate::debug::{DebugEvent, Go, SharedPlan};
use crate::memmap::Target;
use crate::observe::Observer;
use crate::ram::Ram;
use crate::signals::VcpuSignals;

/// The machine as one vCPU sees it. Every access is answered: what nobody owns reads as ones and drops writes.
pub trait CpuIo: Sync {
    /// `size` is 1, 2 or 4 bytes; the result is zero-extended.
    fn port_read(&self, port: u16, size: u8) -> u32;
    fn port_write(&self, port: u16, size: u8, value: u32);
    /// `size` is 1, 2, 4 or 8 bytes and does not cross a page. RAM is accepted too.
    fn mmio_read(&self, pa: Pa, size: u8) -> u64;
    fn mmio_write(&self, pa: Pa, size: u8, value: u64);
    /// MSRs that belong to the machine (IA32_APIC_BASE, IA32_TSC_DEADLINE, x2APIC). `None`: no such MSR, #GP.
    fn msr_read(&self, index: u32) -> Option<u64>;
    /// `false`: no such MSR or a reserved bit is set, #GP.
    fn msr_write(&self, index: u32, value: u64) -> bool;
    /// CR8: bits 7:4 of the local APIC's task priority (SDM 3A "CR8 and TPR"); 0..=15.
    fn cr8(&self) -> u8;
    fn set_cr8(&self, v: u8);
    /// What lies at a guest-physical page.
    fn target(&self, pa: Pa) -> Target;
    /// Addresses that are RAM at the same offset, whatever else `target` looks at; perhaps not all.
    fn plain(&self) -> std::ops::Range<u64> {
        0..0
    }
    fn ram(&self) -> &Ram;
    fn signals(&self) -> &VcpuSignals;
    /// Number of this vCPU, from 0.
    fn index(&self) -> usize {
        0
    }
    /// Accepts the interrupt that `Events::INTR` announces and returns its vector; `None` if it has gone (spurious).
    fn ack_intr(&self) -> Option<u8>;
    /// The guest has ended a level-triggered interrupt of the I/O APIC's, where the local APICs are not the machine's.
    fn end_of_interrupt(&self, _vector: u8) {}
    /// Page number that the start-up IPI of `Events::SIPI` named (SDM 3A "Issuing Interrupt Commands").
    fn sipi_vector(&self) -> u8 {
        0
    }
    /// The processor's FERR# output (SDM 1 "MS-DOS Compatibility Sub-mode").
    fn ferr(&self, _on: bool) {}
    /// Its IGNNE# input.
    fn ignne(&self) -> bool {
        false
    }
    /// The processor is in system management mode, and sees the memory that is kept for it.
    fn set_smm(&self, _on: bool) {}
    /// Virtual time-stamp counter before the guest's offset, in `tsc_hz` ticks since power-on.
    fn tsc(&self) -> u64;
    /// What KVM's clock for guests shows beyond guest time, ns (wrapping), where `tsc` counts nanoseconds.
    fn kvm_clock_offset(&self) -> u64 {
        0
    }
    /// It shows this at least beyond guest time: another engine has told as much.
    fn raise_kvm_clock(&self, _offset: u64) {}
    /// What the machine's real-time clock showed at guest time 0, in ns since 1970.
    fn wall_clock(&self) -> i64 {
        0
    }
    /// Guest time follows the instructions that are executed (`-icount`): it stands still while an instruction waits.
    fn time_is_counted(&self) -> bool {
        false
    }
    /// What the guest gets for a random number, where nothing is left to chance; `None`: the host's will do.
    fn determined_random(&self) -> Option<u64> {
        None
    }
}

/// Why `Vcpu::run` returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// `Events::STOP` was raised.
    Stopped,
    /// HLT with nothing deliverable: run again once an event is pending.
    Halted,
    /// The limit of an `InsnCounter` is reached, or may have to be set anew (`Events::TIMER`).
    Limit,
    /// Triple fault (SDM 3A "Interrupt 8"): the machine resets or ends.
    TripleFault,
    /// What the debugger asked for has happened.
    Debug(DebugEvent),
}

/// One virtual CPU of an engine. `Cpu` is the architectural state that gdb, snapshots and the monitor use.
pub trait Vcpu: Send {
    type Cpu;
    /// Runs until there is a reason to stop; the state is then exact, at an instruction boundary.
    fn run(&mut self, io: &dyn CpuIo) -> StopReason;
    fn cpu(&mut self) -> &mut Self::Cpu;
    /// The architectural state was changed from outside (reset, load): drop all that was derived from it.
    fn cpu_changed(&mut self);
    /// Tells `observer` of all that the vCPU does from now on, or nobody any more; gives the one that was told.
    fn observe(&mut self, observer: Option<Box<dyn Observer<Self::Cpu>>>) -> Option<Box<dyn Observer<Self::Cpu>>>;
    /// Where a debugger wants it to stop from now on; `None`: nowhere.
    fn debug(&mut self, plan: Option<SharedPlan<Self::Cpu>>);
    /// How far the debugger lets it go. It holds until `run` returns `StopReason::Debug`, then it is `Go::On`.
    fn go(&mut self, go: Go);
    /// Text of the monitor's `info jit`.
    fn info_jit(&mut self) -> String;
    /// Text of the monitor's `info tlb`, from the guest's page tables.
    fn info_tlb(&mut self, io: &dyn CpuIo) -> String;
    /// Translates for the debugger without faulting or setting accessed bits.
    fn debug_translate(&mut self, io: &dyn CpuIo, va: crate::addr::Va) -> Option<Pa>;
}
