//! A virtual machine of KVM: opening it, what the host's KVM can do, its memory slots, its vCPUs.

use crate::chips::{self, Irqchip};
use crate::ioctl::{Ring, Slot, set_slot, take_signal};
use crate::{KvmError, at};
use arch_x86::cpuid::Word;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_clock_data, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use vm_core::Ram;

/// What is needed of the host's KVM, with the words for it.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "memory slots"),
    (Cap::ImmediateExit, "immediate exit"),
    (Cap::Xcrs, "XCRs"),
    (Cap::Xsave, "XSAVE state"),
    (Cap::VcpuEvents, "vCPU events"),
    (Cap::Debugregs, "debug registers"),
    (Cap::ReadonlyMem, "read-only memory"),
    (Cap::X86UserSpaceMsr, "MSRs in user space"),
];

/// Bytes of XSAVE state that `kvm_xsave` has room for.
const XSAVE_BYTES: i32 = 4096;
/// Three pages that KVM may use on processors without unrestricted guests, where no RAM lies and no BIOS (below 4 GiB, under the flash).
const TSS_PAGES: usize = 0xfffb_d000;

/// KVM's clock is left alone where it is no more than this from what it should show, ns: it runs on while the guest is halted.
const CLOCK_SLACK: u64 = 100_000;

/// One virtual machine.
pub struct Vm {
    // Before `ram`, so that it goes first.
    fd: VmFd,
    supported: CpuId,
    tsc_follows: bool,
    irqchip: Irqchip,
    /// Guests see the host processor's name (`-cpu host`).
    show_host: AtomicBool,
    /// Some guest may see KVM's clock.
    clock_shown: AtomicBool,
    memory: Mutex<Memory>,
    /// Writes that KVM has put by; once there is a vCPU to map it by.
    ring: Mutex<Option<Ring>>,
}

#[derive(Default)]
struct Memory {
    ram: Option<Arc<Ram>>,
    slots: Vec<Slot>,
    /// The slots are logged.
    logged: bool,
}

impl Vm {
    /// Opens /dev/kvm and makes a machine without memory or vCPUs.
    pub fn new(irqchip: Irqchip) -> Result<Arc<Self>, KvmError> {
        let kvm = Kvm::new().map_err(|e| match e.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::NotThere,
            libc::EACCES | libc::EPERM => KvmError::NoPermission,
            _ => KvmError::Open(e),
        })?;
        match kvm.get_api_version() {
            12 => {}
            other => return Err(KvmError::Version(other)),
        }
        if let Some((_, what)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(KvmError::Lacks(what));
        }
        let fd = kvm.create_vm().map_err(at("KVM_CREATE_VM"))?;
        if fd.check_extension_int(Cap::Xsave2) > XSAVE_BYTES {
            return Err(KvmError::Lacks("XSAVE state that fits 4 KiB"));
        }
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(at("KVM_GET_SUPPORTED_CPUID"))?;
        fd.set_tss_address(TSS_PAGES).map_err(at("KVM_SET_TSS_ADDR"))?;
        crate::msrs::to_user_space(&fd)?;
        chips::create(&fd, irqchip)?;
        take_signal();
        let tsc_follows = fd.check_extension(Cap::TscControl);
        Ok(Arc::new(Self {
            fd,
            supported,
            tsc_follows,
            irqchip,
            show_host: false.into(),
            clock_shown: false.into(),
            memory: Mutex::default(),
            ring: Mutex::default(),
        }))
    }

    /// Feature words that the host's KVM gives to guests, in the order of `CpuState::features`.
    pub fn features(&self) -> [u32; 16] {
        let of = |function, index| self.supported.as_slice().iter().find(|e| (e.function, e.index) == (function, index));
        let mut words = [0; 16];
        let mut set = |w: Word, v: Option<u32>| words[w as usize] = v.unwrap_or(0);
        set(Word::L1Edx, of(1, 0).map(|e| e.edx));
        set(Word::L1Ecx, of(1, 0).map(|e| e.ecx));
        set(Word::ExtEdx, of(0x8000_0001, 0).map(|e| e.edx));
        set(Word::ExtEcx, of(0x8000_0001, 0).map(|e| e.ecx));
        set(Word::L7Ebx, of(7, 0).map(|e| e.ebx));
        set(Word::L7Ecx, of(7, 0).map(|e| e.ecx));
        set(Word::L7Edx, of(7, 0).map(|e| e.edx));
        set(Word::XsaveEax, of(0xd, 1).map(|e| e.eax));
        set(Word::L6Eax, of(6, 0).map(|e| e.eax));
        set(Word::ApmEdx, of(0x8000_0007, 0).map(|e| e.edx));
        set(Word::Ext8Ebx, of(0x8000_0008, 0).map(|e| e.ebx));
        set(Word::KvmEax, of(0x4000_0001, 0).map(|e| e.eax));
        // The local APIC is the machine's: x2APIC is, whatever KVM's own can do; its deadline counts the machine's TSC.
        words[Word::L1Ecx as usize] |= 1 << 21 | 1 << 31;
        // KVM's local APIC counts KVM's TSC, which is another where the guest goes on without it.
        if !self.tsc_follows || self.kernel_lapic() {
            words[Word::L1Ecx as usize] &= !(1 << 24);
        }
        words
    }

    /// XSAVE components that KVM keeps for a guest.
    pub(crate) fn components(&self) -> u64 {
        let leaf = self.supported.as_slice().iter().find(|e| (e.function, e.index) == (0xd, 0));
        leaf.map_or(3, |e| u64::from(e.eax) | u64::from(e.edx) << 32)
    }

    pub(crate) fn fd(&self) -> &VmFd {
        &self.fd
    }

    /// Has vCPUs that are made from now on show the host processor's vendor, model and name, or not.
    pub fn show_host(&self, on: bool) {
        self.show_host.store(on, Ordering::Relaxed);
    }

    /// Leaves of CPUID that have the host processor's name; none if they are the model's.
    pub(crate) fn host_names(&self) -> impl Iterator<Item = &kvm_cpuid_entry2> {
        let shown = self.show_host.load(Ordering::Relaxed);
        self.supported.as_slice().iter().filter(move |_| shown)
    }

    /// Are the local APICs KVM's?
    pub fn kernel_lapic(&self) -> bool {
        self.irqchip != Irqchip::Off
    }

    /// Are all interrupt controllers KVM's?
    pub fn kernel_irqchip(&self) -> bool {
        self.irqchip == Irqchip::On
    }

    /// May the guest's TSC run at another rate than the host's?
    pub fn tsc_follows(&self) -> bool {
        self.tsc_follows
    }

    /// The guest may see KVM's clock.
    pub(crate) fn show_clock(&self) {
        self.clock_shown.store(true, Ordering::Relaxed);
    }

    /// What KVM's clock for guests shows, ns; `None`: no guest can see it.
    pub fn clock(&self) -> Result<Option<u64>, KvmError> {
        if !self.clock_shown.load(Ordering::Relaxed) {
            return Ok(None);
        }
        self.fd.get_clock().map(|c| Some(c.clock)).map_err(at("KVM_GET_CLOCK"))
    }

    /// Has it show `ns`, if it is not about there; `exactly`: in any case. No vCPU runs meanwhile.
    pub fn set_clock(&self, ns: u64, exactly: bool) -> Result<(), KvmError> {
        let Some(now) = self.clock()? else { return Ok(()) };
        if !exactly && now.abs_diff(ns) < CLOCK_SLACK {
            return Ok(());
        }
        let clock = kvm_clock_data { clock: ns, ..Default::default() };
        self.fd.set_clock(&clock).map_err(at("KVM_SET_CLOCK"))
    }

    /// Makes `ranges` (guest-physical address, length, offset in `ram`, writable) the guest's memory. No vCPU runs meanwhile.
    pub fn set_memory(&self, ram: &Arc<Ram>, ranges: impl Iterator<Item = (u64, u64, u64, bool)>) -> Result<(), KvmError> {
        let slots: Vec<Slot> = ranges.map(|(gpa, len, offset, writable)| Slot { gpa, len, offset, writable }).collect();
        let mut m = self.memory.lock();
        let logged = m.logged;
        assert!(m.ram.as_ref().is_none_or(|r| Arc::ptr_eq(r, ram)), "a machine has one RAM");
        let fail = at("KVM_SET_USER_MEMORY_REGION");
        if m.slots == slots {
            return Ok(());
        }
        // A slot that changes must be emptied first; slots must not overlap meanwhile.
        for (n, old) in (0..).zip(&m.slots) {
            if slots.get(n as usize) != Some(old) {
                set_slot(&self.fd, ram, n, None, false).map_err(&fail)?;
            }
        }
        for (n, new) in (0..).zip(&slots) {
            if m.slots.get(n as usize) != Some(new) {
                set_slot(&self.fd, ram, n, Some(*new), logged).map_err(&fail)?;
            }
        }
        *m = Memory { ram: Some(ram.clone()), slots, logged };
        Ok(())
    }

    /// Has KVM log which pages of RAM the guest writes, or not any more. No vCPU runs meanwhile.
    pub fn log_writes(&self, on: bool) -> Result<(), KvmError> {
        let mut m = self.memory.lock();
        let Some(ram) = m.ram.clone().filter(|_| m.logged != on) else { return Ok(()) };
        for (n, slot) in (0..).zip(&m.slots).filter(|(_, s)| s.writable) {
            set_slot(&self.fd, &ram, n, Some(*slot), on).map_err(at("KVM_SET_USER_MEMORY_REGION"))?;
        }
        m.logged = on;
        Ok(())
    }

    /// Pages of RAM (offset / 4096) that the guest has written since the log began or was last taken. `None`: there is no log.
    pub fn take_written(&self) -> Result<Option<Vec<u64>>, KvmError> {
        let m = self.memory.lock();
        if !m.logged {
            return Ok(None);
        }
        let mut pages = Vec::new();
        for (n, slot) in (0..).zip(&m.slots).filter(|(_, s)| s.writable) {
            let words = self.fd.get_dirty_log(n, slot.len as usize).map_err(at("KVM_GET_DIRTY_LOG"))?;
            for (i, word) in (0u64..).zip(words) {
                pages.extend((0..64).filter(|b| word >> b & 1 != 0).map(|b| slot.offset / 4096 + 64 * i + b));
            }
        }
        Ok(Some(pages))
    }

    /// Eight bytes of the guest's memory; ones where there is none.
    pub(crate) fn read_u64(&self, gpa: u64) -> u64 {
        let m = self.memory.lock();
        let inside = |s: &&Slot| gpa.checked_sub(s.gpa).is_some_and(|at| at < s.len && s.len - at >= 8);
        match (&m.ram, m.slots.iter().find(inside)) {
            (Some(ram), Some(s)) => ram.read_uint(s.offset + (gpa - s.gpa), 8),
            _ => !0,
        }
    }

    /// Lets KVM put writes to this range by, until a vCPU comes back for another reason. `false`: KVM cannot.
    pub fn coalesce(&self, start: u64, len: u32) -> bool {
        self.fd.check_extension(Cap::CoalescedMmio) && self.fd.register_coalesced_mmio(IoEventAddress::Mmio(start), len).is_ok()
    }

    /// Does what the guest has written where writes are put by, in its order.
    pub(crate) fn drain(&self, mut write: impl FnMut(u64, &[u8])) {
        let mut ring = self.ring.lock();
        while let Some(e) = ring.as_mut().and_then(Ring::next) {
            write(e.phys_addr, e.data.get(..e.len as usize).unwrap_or_default());
        }
    }

    pub(crate) fn vcpu(&self, n: u32) -> Result<VcpuFd, KvmError> {
        let vcpu = self.fd.create_vcpu(n.into()).map_err(at("KVM_CREATE_VCPU"))?;
        if self.fd.check_extension(Cap::CoalescedMmio) {
            // Any vCPU's mapping shows the same ring.
            self.ring.lock().get_or_insert_with(|| Ring::map(&vcpu));
        }
        Ok(vcpu)
    }

    /// Bytes of the mapping that a vCPU shares with KVM.
    pub(crate) fn run_size(&self) -> usize {
        self.fd.run_size()
    }
}
