//! A virtual machine of KVM: opening it, what the host's KVM can do, its memory slots, its vCPUs.

use crate::ioctl::{Slot, set_slot, take_signal};
use crate::{KvmError, at};
use arch_x86::cpuid::Word;
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use parking_lot::Mutex;
use std::sync::Arc;
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

/// One virtual machine.
pub struct Vm {
    // Before `ram`, so that it goes first.
    fd: VmFd,
    supported: CpuId,
    tsc_follows: bool,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    ram: Option<Arc<Ram>>,
    slots: Vec<Slot>,
}

impl Vm {
    /// Opens /dev/kvm and makes a machine without memory or vCPUs.
    pub fn new() -> Result<Arc<Self>, KvmError> {
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
        take_signal();
        let tsc_follows = fd.check_extension(Cap::TscControl);
        Ok(Arc::new(Self { fd, supported, tsc_follows, memory: Mutex::default() }))
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
        // The local APIC is the machine's: x2APIC is, whatever KVM's own can do; its deadline counts the machine's TSC.
        words[Word::L1Ecx as usize] |= 1 << 21 | 1 << 31;
        if !self.tsc_follows {
            words[Word::L1Ecx as usize] &= !(1 << 24);
        }
        words
    }

    /// XSAVE components that KVM keeps for a guest.
    pub(crate) fn components(&self) -> u64 {
        let leaf = self.supported.as_slice().iter().find(|e| (e.function, e.index) == (0xd, 0));
        leaf.map_or(3, |e| u64::from(e.eax) | u64::from(e.edx) << 32)
    }

    /// May the guest's TSC run at another rate than the host's?
    pub fn tsc_follows(&self) -> bool {
        self.tsc_follows
    }

    /// Makes `ranges` (guest-physical address, length, offset in `ram`, writable) the guest's memory. No vCPU runs meanwhile.
    pub fn set_memory(&self, ram: &Arc<Ram>, ranges: impl Iterator<Item = (u64, u64, u64, bool)>) -> Result<(), KvmError> {
        let slots: Vec<Slot> = ranges.map(|(gpa, len, offset, writable)| Slot { gpa, len, offset, writable }).collect();
        let mut m = self.memory.lock();
        assert!(m.ram.as_ref().is_none_or(|r| Arc::ptr_eq(r, ram)), "a machine has one RAM");
        let fail = at("KVM_SET_USER_MEMORY_REGION");
        if m.slots == slots {
            return Ok(());
        }
        // A slot that changes must be emptied first; slots must not overlap meanwhile.
        for (n, old) in (0..).zip(&m.slots) {
            if slots.get(n as usize) != Some(old) {
                set_slot(&self.fd, ram, n, None).map_err(&fail)?;
            }
        }
        for (n, new) in (0..).zip(&slots) {
            if m.slots.get(n as usize) != Some(new) {
                set_slot(&self.fd, ram, n, Some(*new)).map_err(&fail)?;
            }
        }
        *m = Memory { ram: Some(ram.clone()), slots };
        Ok(())
    }

    pub(crate) fn vcpu(&self, n: u32) -> Result<VcpuFd, KvmError> {
        self.fd.create_vcpu(n.into()).map_err(at("KVM_CREATE_VCPU"))
    }

    /// Bytes of the mapping that a vCPU shares with KVM.
    pub(crate) fn run_size(&self) -> usize {
        self.fd.run_size()
    }
}
