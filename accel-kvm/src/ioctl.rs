//! What kvm-ioctls leaves to its users: memory slots, the union of exits, a kick from other threads, and KVM_INTERRUPT.
//!
//! UNSAFE: gives KVM the machine's RAM, reads unions that KVM fills, writes one byte of a mapping that KVM shares.
#![allow(unsafe_code)]

use kvm_bindings::{kvm_interrupt, kvm_userspace_memory_region, kvm_xsave};
use kvm_ioctls::{Error as Errno, VcpuFd, VmFd};
use parking_lot::Mutex;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, Ordering};
use vm_core::Ram;

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
const READONLY: u32 = kvm_bindings::KVM_MEM_READONLY;

/// A memory slot: `len` bytes at guest-physical `gpa` are those of RAM from `offset` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub gpa: u64,
    pub len: u64,
    pub offset: u64,
    pub writable: bool,
}

/// Sets slot `number`, or empties it. `ram` must be the same for all slots of a VM; the VM keeps it.
pub fn set_slot(vm: &VmFd, ram: &Arc<Ram>, number: u32, slot: Option<Slot>) -> Result<(), Errno> {
    let s = slot.unwrap_or(Slot { gpa: 0, len: 0, offset: 0, writable: true });
    assert!(s.offset.checked_add(s.len).is_some_and(|end| end <= ram.size()), "slots lie in RAM");
    let region = kvm_userspace_memory_region {
        slot: number,
        flags: if s.writable { 0 } else { READONLY },
        guest_phys_addr: s.gpa,
        memory_size: s.len,
        userspace_addr: (ram.host_base() as u64).wrapping_add(s.offset),
    };
    // SAFETY: the range lies in the mapping of `ram`, which `Vm` keeps for as long as its vCPUs can run, and which is only
    // ever accessed as memory that others write.
    unsafe { vm.set_user_memory_region(region) }
}

/// A port access that the guest made: elements of `size` bytes, several if its instruction is repeated.
#[derive(Clone, Copy, Debug)]
pub struct Pio {
    pub port: u16,
    pub size: u8,
    pub out: bool,
}

/// The access of a KVM_EXIT_IO, and its data, element after element. `None`: it is no such exit, or makes no sense. `run_size`: of the mapping.
pub fn pio(vcpu: &mut VcpuFd, run_size: usize) -> Option<(Pio, &mut [u8])> {
    let run = vcpu.get_kvm_run();
    if run.exit_reason != kvm_bindings::KVM_EXIT_IO {
        return None;
    }
    // SAFETY: KVM_EXIT_IO fills this member; it holds plain numbers.
    let io = unsafe { run.__bindgen_anon_1.io };
    let len = usize::from(io.size).checked_mul(io.count as usize)?;
    let at = usize::try_from(io.data_offset).ok()?;
    if !matches!(io.size, 1 | 2 | 4) || at.checked_add(len)? > run_size {
        return None;
    }
    let out = u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_OUT;
    // SAFETY: the bytes lie in the mapping of `run_size` bytes that begins with `run`; it lives as long as `vcpu`, which is
    // borrowed, and KVM writes it only while the vCPU runs.
    let data = unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(run).cast::<u8>().add(at), len) };
    Some((Pio { port: io.port, size: io.size, out }, data))
}

/// Reason, and up to three words more, of a KVM_EXIT_INTERNAL_ERROR.
pub fn internal_error(vcpu: &mut VcpuFd) -> (u32, Vec<u64>) {
    // SAFETY: KVM_EXIT_INTERNAL_ERROR fills this member; for other exits these are some numbers, nothing worse.
    let e = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    (e.suberror, e.data.iter().take((e.ndata as usize).min(3)).copied().collect())
}

/// Queues an external interrupt; the guest must be able to take it (`ready_for_interrupt_injection`).
pub fn interrupt(vcpu: &VcpuFd, vector: u8) -> Result<(), Errno> {
    let irq = kvm_interrupt { irq: vector.into() };
    // SAFETY: the request reads a `kvm_interrupt`, which lives until it returns.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT as _, &irq) } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    }
}

pub fn set_xsave(vcpu: &VcpuFd, area: &kvm_xsave) -> Result<(), Errno> {
    // SAFETY: `KvmCpu` is made only where KVM_CAP_XSAVE2 says that its areas are no longer than this structure.
    unsafe { vcpu.set_xsave(area) }
}

/// Makes a vCPU come back from KVM_RUN, from any thread.
#[derive(Default)]
pub struct Kicker(Mutex<Kicked>);

#[derive(Default)]
struct Kicked {
    /// Address of the mapping's `immediate_exit`; 0: there is no vCPU any more.
    immediate_exit: usize,
    /// The thread that is in `run`.
    thread: Option<i32>,
}

impl Kicker {
    /// For a vCPU, until `forget`.
    pub fn set(&self, vcpu: &mut VcpuFd) {
        self.0.lock().immediate_exit = std::ptr::from_mut(&mut vcpu.get_kvm_run().immediate_exit) as usize;
    }

    /// The vCPU is about to go.
    pub fn forget(&self) {
        *self.0.lock() = Kicked::default();
    }

    /// This thread runs the vCPU from now on, or nobody does.
    pub fn runs_here(&self, on: bool) {
        // SAFETY: takes nothing and cannot fail.
        let me = unsafe { libc::gettid() };
        self.0.lock().thread = on.then_some(me);
    }

    /// A run that is under way ends soon, the next one at once.
    pub fn kick(&self) {
        let k = self.0.lock();
        if k.immediate_exit == 0 {
            return;
        }
        self.write(&k, 1);
        if let Some(thread) = k.thread {
            // SAFETY: sends a signal whose handler does nothing to a thread of this process; `runs_here` takes it off under
            // the same lock before it can end.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, signal()) };
        }
    }

    /// Whether the next run is to end at once.
    pub fn immediate_exit(&self, on: bool) {
        let k = self.0.lock();
        if k.immediate_exit != 0 {
            self.write(&k, on.into());
        }
    }

    fn write(&self, k: &Kicked, v: u8) {
        // SAFETY: a byte of the vCPU's mapping, which is there until `forget`, and that took the lock we hold. KVM reads it.
        unsafe { AtomicU8::from_ptr(k.immediate_exit as *mut u8) }.store(v, Ordering::SeqCst);
    }
}

/// The signal that ends a run.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

extern "C" fn nothing(_: libc::c_int) {}

/// Sees to it that the kicks' signal does no harm.
pub fn take_signal() {
    static DONE: Once = Once::new();
    // SAFETY: `nothing` may be called at any time. Its only effect is that system calls end with EINTR, without SA_RESTART.
    DONE.call_once(|| unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(signal(), &action, std::ptr::null_mut());
    });
}
