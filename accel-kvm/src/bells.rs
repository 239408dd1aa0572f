//! Doorbells: registers whose writes do no more than wake a device. KVM takes them without coming back, and another thread does the
//! rest (api.rst: KVM_IOEVENTFD).

use crate::{KvmError, Vm, at};
use kvm_ioctls::Error as Errno;
use parking_lot::Mutex;
use std::os::fd::AsRawFd;
use vm_core::Pa;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// How long `wait` waits at most, ms.
const NAP: i32 = 1000;

/// All doorbells of a machine: 4 bytes each at an address, with the value that rings it.
pub struct Doorbells {
    epoll: Epoll,
    bells: Vec<(EventFd, Pa, u32)>,
    /// Held while one is answered.
    answering: Mutex<()>,
}

impl Doorbells {
    pub fn new(vm: &Vm, list: &[(Pa, u32)]) -> Result<Self, KvmError> {
        let system = |e: std::io::Error| at("epoll")(Errno::new(e.raw_os_error().unwrap_or(0)));
        let epoll = Epoll::new().map_err(system)?;
        let mut bells = Vec::new();
        for (pa, value) in list {
            let fd = vm.doorbell(*pa, *value)?;
            epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).map_err(system)?;
            bells.push((fd, *pa, *value));
        }
        Ok(Self { epoll, bells, answering: Mutex::new(()) })
    }

    /// Waits until one may have rung, for a second at most.
    pub fn wait(&self) {
        // Errors are interruptions by signals.
        let _ = self.epoll.wait(NAP, &mut [EpollEvent::default()]);
    }

    /// Makes the writes of those that have rung. When it returns, all that rang before have been answered.
    pub fn answer(&self, mut write: impl FnMut(Pa, u32)) {
        let _one = self.answering.lock();
        for (fd, pa, value) in &self.bells {
            if fd.read().is_ok() {
                write(*pa, *value);
            }
        }
    }
}
