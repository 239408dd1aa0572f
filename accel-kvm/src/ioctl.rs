//! What kvm-ioctls leaves to its users: memory slots, the union of exits, a kick from other threads, and KVM_INTERRUPT.
//!
//! UNSAFE: gives KVM the machine's RAM, reads unions that KVM fills, reads and writes mappings that KVM shares.
#![allow(unsafe_code)]

use crate::whole::IoApicRegs;
use kvm_bindings::{
    KVM_COALESCED_MMIO_PAGE_OFFSET, KVM_MEM_LOG_DIRTY_PAGES, kvm_coalesced_mmio, kvm_coalesced_mmio_ring, kvm_interrupt,
    kvm_ioapic_state, kvm_ioapic_state__bindgen_ty_1, kvm_irqchip, kvm_irqchip__bindgen_ty_1, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_pic_state, kvm_userspace_memory_region, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::{Error as Errno, VcpuFd, VmFd};
use parking_lot::Mutex;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};
use vm_core::Ram;

/// `_IOW(KVMIO, 0x86, struct kvm_interrupt)`.
const KVM_INTERRUPT: libc::c_ulong = 0x4004_ae86;
/// KVM_GET_MSRS, KVM_SET_MSRS, KVM_GET_LAPIC, KVM_SET_LAPIC, KVM_GET_MP_STATE, KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, as
/// <linux/kvm.h> composes them from direction, length and number.
const KVM_GET_MSRS: libc::c_ulong = 0xc008_ae88;
const KVM_SET_MSRS: libc::c_ulong = 0x4008_ae89;
const KVM_GET_LAPIC: libc::c_ulong = 0x8400_ae8e;
const KVM_SET_LAPIC: libc::c_ulong = 0x4400_ae8f;
const KVM_GET_MP_STATE: libc::c_ulong = 0x8004_ae98;
const KVM_GET_VCPU_EVENTS: libc::c_ulong = 0x8040_ae9f;
const KVM_SET_VCPU_EVENTS: libc::c_ulong = 0x4040_aea0;
const _: () = assert!(size_of::<kvm_lapic_state>() == 0x400 && size_of::<kvm_vcpu_events>() == 0x40);
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
/// `logged`: KVM logs the pages that are written.
pub fn set_slot(vm: &VmFd, ram: &Arc<Ram>, number: u32, slot: Option<Slot>, logged: bool) -> Result<(), Errno> {
    let s = slot.unwrap_or(Slot { gpa: 0, len: 0, offset: 0, writable: true });
    assert!(s.offset.checked_add(s.len).is_some_and(|end| end <= ram.size()), "slots lie in RAM");
    let region = kvm_userspace_memory_region {
        slot: number,
        flags: if s.writable { 0 } else { READONLY } | if logged && s.writable { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
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

/// A request to a vCPU that other threads than its own may make.
pub enum Asked<'a> {
    Lapic(&'a mut kvm_lapic_state),
    SetLapic(&'a kvm_lapic_state),
    MpState(&'a mut kvm_mp_state),
    Events(&'a mut kvm_vcpu_events),
    SetEvents(&'a kvm_vcpu_events),
}

pub fn ask(vcpu: &OwnedFd, what: Asked) -> Result<(), Errno> {
    let (request, data): (_, *mut libc::c_void) = match what {
        Asked::Lapic(s) => (KVM_GET_LAPIC, std::ptr::from_mut(s).cast()),
        Asked::SetLapic(s) => (KVM_SET_LAPIC, std::ptr::from_ref(s).cast_mut().cast()),
        Asked::MpState(s) => (KVM_GET_MP_STATE, std::ptr::from_mut(s).cast()),
        Asked::Events(s) => (KVM_GET_VCPU_EVENTS, std::ptr::from_mut(s).cast()),
        Asked::SetEvents(s) => (KVM_SET_VCPU_EVENTS, std::ptr::from_ref(s).cast_mut().cast()),
    };
    // SAFETY: each request reads or writes a structure of the type beside it, which is borrowed until it returns; those of
    // constant ones only read.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), request as _, data) } {
        -1 => Err(Errno::last()),
        _ => Ok(()),
    }
}

/// `kvm_msrs` with room for one.
#[repr(C)]
#[derive(Default)]
struct OneMsr {
    nmsrs: u32,
    pad: u32,
    entry: kvm_msr_entry,
}

fn one_msr(vcpu: &OwnedFd, request: libc::c_ulong, index: u32, data: u64) -> Result<u64, Errno> {
    let mut m = OneMsr { nmsrs: 1, entry: kvm_msr_entry { index, data, ..Default::default() }, ..Default::default() };
    // SAFETY: both requests read a `kvm_msrs` with as many entries as it says, and KVM_GET_MSRS writes these; it lives until they return.
    match unsafe { libc::ioctl(vcpu.as_raw_fd(), request as _, &mut m) } {
        1 => Ok(m.entry.data),
        0 => Err(Errno::new(libc::EINVAL)),
        _ => Err(Errno::last()),
    }
}

pub fn msr(vcpu: &OwnedFd, index: u32) -> Result<u64, Errno> {
    one_msr(vcpu, KVM_GET_MSRS, index, 0)
}

pub fn set_msr(vcpu: &OwnedFd, index: u32, value: u64) -> Result<(), Errno> {
    one_msr(vcpu, KVM_SET_MSRS, index, value).map(|_| ())
}

/// Another descriptor of the same vCPU.
pub fn duplicate(vcpu: &VcpuFd) -> Result<OwnedFd, Errno> {
    // SAFETY: the descriptor is open for as long as `vcpu` is borrowed.
    let fd = unsafe { BorrowedFd::borrow_raw(vcpu.as_raw_fd()) };
    fd.try_clone_to_owned().map_err(|e| Errno::new(e.raw_os_error().unwrap_or(libc::EMFILE)))
}

pub fn set_xsave(vcpu: &VcpuFd, area: &kvm_xsave) -> Result<(), Errno> {
    // SAFETY: `KvmCpu` is made only where KVM_CAP_XSAVE2 says that its areas are no longer than this structure.
    unsafe { vcpu.set_xsave(area) }
}

/// One of the 8259s of KVM's: `KVM_IRQCHIP_PIC_MASTER` or `_SLAVE`.
pub fn pic(vm: &VmFd, chip: u32) -> Result<kvm_pic_state, Errno> {
    let mut state = kvm_irqchip { chip_id: chip, ..Default::default() };
    vm.get_irqchip(&mut state)?;
    // SAFETY: this request fills this member for these chips; it holds plain numbers, and was zeros before.
    Ok(unsafe { state.chip.pic })
}

pub fn set_pic(vm: &VmFd, chip: u32, pic: kvm_pic_state) -> Result<(), Errno> {
    vm.set_irqchip(&kvm_irqchip { chip_id: chip, chip: kvm_irqchip__bindgen_ty_1 { pic }, ..Default::default() })
}

/// KVM's I/O APIC.
pub fn ioapic(vm: &VmFd) -> Result<IoApicRegs, Errno> {
    let mut state = kvm_irqchip { chip_id: kvm_bindings::KVM_IRQCHIP_IOAPIC, ..Default::default() };
    vm.get_irqchip(&mut state)?;
    // SAFETY: this request fills this member for this chip; it holds plain numbers, and was zeros before.
    let s = unsafe { state.chip.ioapic };
    // SAFETY: both members of the union are the same 64 bits.
    let rte = s.redirtbl.map(|e| unsafe { e.bits });
    Ok(IoApicRegs { id: s.id, select: s.ioregsel, asserted: s.irr, rte })
}

/// At `base`.
pub fn set_ioapic(vm: &VmFd, base: u64, regs: &IoApicRegs) -> Result<(), Errno> {
    let redirtbl = regs.rte.map(|bits| kvm_ioapic_state__bindgen_ty_1 { bits });
    let ioapic =
        kvm_ioapic_state { base_address: base, ioregsel: regs.select, id: regs.id, irr: regs.asserted, pad: 0, redirtbl };
    let chip = kvm_irqchip__bindgen_ty_1 { ioapic };
    vm.set_irqchip(&kvm_irqchip { chip_id: kvm_bindings::KVM_IRQCHIP_IOAPIC, chip, ..Default::default() })
}

const PAGE: usize = 4096;

/// The page in which KVM puts writes of the guest by (api.rst: KVM_REGISTER_COALESCED_MMIO). All vCPUs of a VM have the same.
pub struct Ring(usize);

impl Ring {
    const ENTRIES: u32 = ((PAGE - size_of::<kvm_coalesced_mmio_ring>()) / size_of::<kvm_coalesced_mmio>()) as u32;

    /// Maps it; without one it is empty.
    pub fn map(vcpu: &VcpuFd) -> Self {
        let at = (KVM_COALESCED_MMIO_PAGE_OFFSET as usize * PAGE) as libc::off_t;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping, of a page that KVM has there; nothing else lies where the host puts it.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, prot, flags, vcpu.as_raw_fd(), at) };
        Self(if page == libc::MAP_FAILED { 0 } else { page as usize })
    }

    fn word(&self, n: usize) -> &AtomicU32 {
        // SAFETY: `first` and `last` are the first two words of the page, which is mapped for as long as `self`; KVM changes `last`
        // while we look.
        unsafe { AtomicU32::from_ptr((self.0 as *mut u32).add(n)) }
    }

    /// The oldest write that is in it.
    pub fn next(&mut self) -> Option<kvm_coalesced_mmio> {
        if self.0 == 0 {
            return None;
        }
        let (first, last) = (self.word(0).load(Ordering::Relaxed), self.word(1).load(Ordering::Acquire));
        if first == last || first >= Self::ENTRIES {
            return None;
        }
        let entries = (self.0 + size_of::<kvm_coalesced_mmio_ring>()) as *const kvm_coalesced_mmio;
        // SAFETY: entry `first` lies in the page, and KVM leaves it alone until `first` has passed it. Any bytes are a value.
        let entry = unsafe { entries.add(first as usize).read_volatile() };
        self.word(0).store((first + 1) % Self::ENTRIES, Ordering::Release);
        Some(entry)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.0 != 0 {
            // SAFETY: `map` mapped it, and nobody refers to it any more.
            unsafe { libc::munmap(self.0 as *mut libc::c_void, PAGE) };
        }
    }
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
