//! What KVM's clock for guests shows beside guest time (Linux, Documentation/virt/kvm/x86/msr.rst): the board keeps it, so that it goes on
//! where the guest does.

use serde::{Deserialize, Serialize};
use vm_core::{Device, LoadError, Section};

const VERSION: u32 = 1;

/// No registers: the CPUs' MSRs name pages that the clock is told in.
#[derive(Default, Serialize, Deserialize)]
pub struct KvmClock {
    /// ns, wrapping.
    offset: u64,
}

impl KvmClock {
    /// What it shows is guest time and this, ns (wrapping).
    pub fn offset(&self) -> u64 {
        self.offset
    }

    pub fn set_offset(&mut self, ns: u64) {
        self.offset = ns;
    }
}

impl Device for KvmClock {
    fn name(&self) -> &'static str {
        "kvmclock"
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn save(&self) -> Section {
        Section::pack(self.name(), VERSION, self)
    }

    fn load(&mut self, s: &Section) -> Result<(), LoadError> {
        *self = s.unpack(VERSION)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_and_reset() {
        let mut c = KvmClock::default();
        c.set_offset(u64::MAX - 5);
        let mut d = KvmClock::default();
        d.load(&c.save()).expect("its own");
        assert_eq!(d.offset(), u64::MAX - 5);
        d.reset();
        assert_eq!((d.offset(), d.save()), (0, KvmClock::default().save()));
    }
}
