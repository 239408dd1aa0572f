//! KVM as a CPU engine: the host's processor runs the guest's code, all else is the same machine (Linux,
//! Documentation/virt/kvm/api.rst; docs/kvm.md).
//!
//! A `Vm` has the machine's RAM as memory slots and a `KvmCpu` for each vCPU. Interrupt controllers and timers are the machine's
//! own, so interrupts come by `CpuIo::ack_intr`; or the local APICs are KVM's (`Irqchip::Split`), or all of them (`Irqchip::On`), and give
//! their state back when KVM does not run. Registers live in KVM while it runs, and in
//! `CpuState` otherwise. Where KVM cannot go on, `KvmCpu::run` says why, and the state is exact: another engine may.

mod bells;
mod chips;
#[cfg(test)]
mod chips_tests;
mod cpuid;
mod debug;
mod footprint;
mod ioctl;
mod msrs;
mod port;
mod regs;
mod selftest;
mod state;
#[cfg(test)]
mod tests;
mod vcpu;
mod vm;
mod whole;
mod xsave;

pub use bells::Doorbells;
pub use chips::{Irqchip, PINS};
pub use debug::BREAKPOINTS;
pub use footprint::forget_start_up;
pub use port::{CpuPort, LapicRegs, Latched};
pub use selftest::self_test;
pub use vcpu::{Failure, KvmCpu, Walk};
pub use vm::Vm;
pub use whole::{ChannelRegs, HPET_LEGACY, Input, IoApicRegs, PicRegs, PitRegs, SPEAKER};

use kvm_ioctls::Error as Errno;

/// Why there is no KVM; one line each, to be read after "KVM: ".
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    #[error("there is no /dev/kvm (no virtualisation, or its kernel module is not loaded)")]
    NotThere,
    #[error("no permission to open /dev/kvm (be root, or a member of its group)")]
    NoPermission,
    #[error("/dev/kvm: {0}")]
    Open(#[source] Errno),
    #[error("the host's KVM speaks version {0} of its interface, not 12")]
    Version(i32),
    #[error("the host's KVM has no {0}")]
    Lacks(&'static str),
    #[error("{0}: {1}")]
    Ioctl(&'static str, #[source] Errno),
    #[error("its self-test failed: {0}")]
    SelfTest(String),
}

/// Names the request that an error is from.
fn at(what: &'static str) -> impl Fn(Errno) -> KvmError {
    move |e| KvmError::Ioctl(what, e)
}
