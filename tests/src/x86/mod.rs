//! A bare x86 guest for instruction tests: flat memory without paging, no devices; and the engines that run it.

mod engine;
mod slots;
mod translating;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arch_x86::cpuid::feature;
use arch_x86::state::{cr0, cr4, efer};
use arch_x86::{CpuState, SegReg, Segment, fault, models};
use vm_core::guest::Flush;
use vm_core::{Access, CpuIo, Fault, GuestEnv, Pa, Ram, Target, Va, VcpuSignals};

pub use engine::{ENGINES, Engine, Stop};

/// Address of the first byte of the code under test.
pub const CODE: u64 = 0x1000;
/// The page where every access faults.
pub const ABSENT: std::ops::Range<u64> = 0xbad000..0xbae000;

/// Ports read ones, there is no interrupt.
struct NoIo {
    ram: Ram,
    signals: Arc<VcpuSignals>,
    /// Bytes of RAM in the physical address space, from 0, but for `ABSENT`; the reference interpreter uses none.
    size: u64,
    /// Accesses outside RAM.
    strays: AtomicU32,
}

impl NoIo {
    fn new(ram: Ram, signals: Arc<VcpuSignals>) -> NoIo {
        NoIo { ram, signals, size: 0, strays: AtomicU32::new(0) }
    }
}

impl CpuIo for NoIo {
    fn port_read(&self, _: u16, size: u8) -> u32 {
        u32::MAX >> (32 - 8 * u32::from(size.clamp(1, 4)))
    }
    fn port_write(&self, _: u16, _: u8, _: u32) {}
    fn mmio_read(&self, _: Pa, _: u8) -> u64 {
        self.strays.fetch_add(1, Ordering::Relaxed);
        !0
    }
    fn mmio_write(&self, _: Pa, _: u8, _: u64) {
        self.strays.fetch_add(1, Ordering::Relaxed);
    }
    fn msr_read(&self, _: u32) -> Option<u64> {
        None
    }
    fn msr_write(&self, _: u32, _: u64) -> bool {
        false
    }
    fn cr8(&self) -> u8 {
        0
    }
    fn set_cr8(&self, _: u8) {}
    fn target(&self, pa: Pa) -> Target {
        if pa.0 < self.size && !ABSENT.contains(&pa.0) { Target::Ram { offset: pa.0, writable: true } } else { Target::Mmio }
    }
    fn ram(&self) -> &Ram {
        &self.ram
    }
    fn signals(&self) -> &VcpuSignals {
        &self.signals
    }
    fn ack_intr(&self) -> Option<u8> {
        None
    }
    fn tsc(&self) -> u64 {
        0x1234_5678
    }
}

/// CPU and memory of the guest.
pub struct Guest {
    pub cpu: CpuState,
    /// Linear memory; zero where absent.
    pub memory: BTreeMap<u64, u8>,
    io: NoIo,
}

impl Guest {
    /// A CPU at CPL 0 with flat segments in code of 16, 32 or 64 bits.
    pub fn new(bits: u32) -> Result<Guest, String> {
        Guest::with("max", bits)
    }

    /// The same with a CPU as `-cpu` describes it: `MODEL[,+FEATURE][,-FEATURE]`.
    pub fn with(cpu: &str, bits: u32) -> Result<Guest, String> {
        let (model, tweaks) = cpu.split_once(',').unwrap_or((cpu, ""));
        let tweak = |t: &str| t.strip_prefix('-').map_or((true, t.trim_start_matches('+').into()), |t| (false, t.into()));
        let tweaks: Vec<_> = tweaks.split(',').filter(|t| !t.is_empty()).map(tweak).collect();
        let config = models::configure(model, &tweaks)?;
        let mut cpu = CpuState::new(&config, 0);
        cpu.cr0 |= cr0::PE | cr0::NE;
        cpu.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
        if cpu.has(feature::XSAVE) {
            cpu.cr4 |= cr4::OSXSAVE;
            cpu.xcr0 = if cpu.has(feature::AVX) { 7 } else { 3 };
        }
        if cpu.has(feature::PKU) {
            cpu.cr4 |= cr4::PKE;
        }
        let size = match bits {
            16 => 0,
            32 => Segment::DB,
            64 => {
                cpu.cr0 |= cr0::PG;
                cpu.cr4 |= cr4::PAE;
                cpu.efer |= efer::LME | efer::LMA;
                Segment::L
            }
            _ => return Err(format!("no mode {bits}")),
        };
        let usual = Segment::P | Segment::S | Segment::RW | Segment::ACCESSED | Segment::G;
        for s in SegReg::ALL {
            let attr = usual
                | if s == SegReg::Cs {
                    Segment::CODE | size
                } else if bits == 16 {
                    0
                } else {
                    Segment::DB
                };
            *cpu.seg_mut(s) = Segment { base: 0, limit: u32::MAX, attr, selector: 8 + 8 * u16::from(s != SegReg::Cs) };
        }
        cpu.rip = CODE;
        cpu.gpr = [0; 16];
        cpu.set_rflags(0);
        let ram = Ram::new(1 << 16).map_err(|e| e.to_string())?;
        Ok(Guest { cpu, memory: BTreeMap::new(), io: NoIo::new(ram, Arc::default()) })
    }

    /// Faults if the bytes touch the absent page.
    fn check(&self, va: u64, len: u64, write: bool) -> Result<(), Fault> {
        let absent = (0..len).map(|k| va.wrapping_add(k)).find(|a| ABSENT.contains(a));
        let error = if write { fault::pf::W } else { 0 };
        absent.map_or(Ok(()), |a| Err(fault::page(a, error)))
    }

    /// Reads up to 16 bytes.
    pub fn read(&self, va: u64, len: u32) -> Result<u128, Fault> {
        self.check(va, len.into(), false)?;
        let byte = |k: u32| self.memory.get(&va.wrapping_add(k.into())).copied().unwrap_or(0);
        Ok((0..len).rev().fold(0, |v, k| v << 8 | u128::from(byte(k))))
    }

    /// Writes up to 16 bytes.
    pub fn write(&mut self, va: u64, len: u32, v: u128) -> Result<(), Fault> {
        self.check(va, len.into(), true)?;
        for k in 0..len {
            self.memory.insert(va.wrapping_add(k.into()), (v >> (8 * k)) as u8);
        }
        Ok(())
    }
}

impl GuestEnv for Guest {
    type Cpu = CpuState;
    fn cpu(&mut self) -> &mut CpuState {
        &mut self.cpu
    }
    fn cpu_ref(&self) -> &CpuState {
        &self.cpu
    }
    fn io(&self) -> &dyn CpuIo {
        &self.io
    }
    fn load(&mut self, va: Va, size: u8, _: usize) -> Result<u64, Fault> {
        self.read(va.0, size.into()).map(|v| v as u64)
    }
    fn store(&mut self, va: Va, size: u8, value: u64, _: usize) -> Result<(), Fault> {
        self.write(va.0, size.into(), value.into())
    }
    fn probe(&mut self, va: Va, len: u64, access: Access, _: usize) -> Result<(), Fault> {
        self.check(va.0, len.min(4096), access == Access::Write)
    }
    fn bulk_copy(&mut self, _: Va, _: Va, _: u64, _: bool, _: usize) -> Result<u64, Fault> {
        Ok(0)
    }
    fn bulk_fill(&mut self, _: Va, _: u8, _: u64, _: u64, _: usize) -> Result<u64, Fault> {
        Ok(0)
    }
    fn flush(&mut self, _: Flush) {}
}
