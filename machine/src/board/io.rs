//! The board as a vCPU sees it. All of this runs on the vCPU's thread.

use super::{Board, TSC_HZ};
use devices::irq::Lapic;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_core::{CpuIo, Pa, Ram, Target, VcpuSignals, dlog};

const _: () = assert!(TSC_HZ == 1_000_000_000, "tsc() hands out the clock's nanoseconds");
const APIC_PAGE: u64 = 0xfff;

/// Way of one vCPU, by its number, to the board, by way of its own local APIC.
pub struct BoardIo(pub Arc<Board>, pub usize);

impl BoardIo {
    fn lapic(&self) -> &Lapic {
        &self.0.lapics[self.1]
    }

    /// Offset in the local APIC's page, if `pa` lies in it.
    fn apic_offset(&self, pa: Pa) -> Option<u64> {
        (self.lapic().mmio_base()? == pa.0 & !APIC_PAGE).then_some(pa.0 & APIC_PAGE)
    }

    fn map_target(&self, pa: Pa) -> Target {
        self.0.map.target_in(pa, self.0.in_smm[self.1].load(Ordering::Relaxed))
    }

    /// SDM 3A "Local APIC Register Address Map": registers are accessed by aligned 32-bit loads and stores; what other
    /// sizes do is undefined. Here they read the register's bytes, and write nothing.
    fn apic_read(&self, offset: u64, size: u8) -> u64 {
        let lapic = self.lapic();
        let low = u64::from(lapic.mmio_read(offset & !3));
        match size {
            4 if offset & 3 == 0 => low,
            8 if offset & 7 == 0 => low | u64::from(lapic.mmio_read(offset | 4)) << 32,
            _ => low >> (8 * (offset & 3)),
        }
    }

    fn apic_write(&self, offset: u64, size: u8, value: u64) {
        if size >= 4 && offset & 3 == 0 {
            self.lapic().mmio_write(offset, value as u32);
        } else {
            dlog!(GUEST_ERRORS, "lapic: {size}-byte write of {value:#x} at {offset:#x}");
        }
    }
}

impl CpuIo for BoardIo {
    fn port_read(&self, port: u16, size: u8) -> u32 {
        self.0.ports.read(port, size)
    }

    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.0.ports.write(port, size, value);
    }

    fn mmio_read(&self, pa: Pa, size: u8) -> u64 {
        if let Some(offset) = self.apic_offset(pa) {
            return self.apic_read(offset, size);
        }
        match self.map_target(pa) {
            Target::Ram { offset, .. } => self.0.ram.read_uint(offset, size),
            Target::Mmio => self.0.mmio.read(pa, size),
        }
    }

    fn mmio_write(&self, pa: Pa, size: u8, value: u64) {
        if let Some(offset) = self.apic_offset(pa) {
            return self.apic_write(offset, size, value);
        }
        match self.map_target(pa) {
            Target::Ram { offset, writable: true } => self.0.ram.write_uint(offset, size, value),
            Target::Ram { .. } => dlog!(GUEST_ERRORS, "write of {value:#x} to ROM at {pa:?}"),
            Target::Mmio => self.0.mmio.write(pa, size, value),
        }
    }

    fn msr_read(&self, index: u32) -> Option<u64> {
        self.lapic().msr_read(index)
    }

    fn msr_write(&self, index: u32, value: u64) -> bool {
        self.lapic().msr_write(index, value)
    }

    fn cr8(&self) -> u8 {
        self.lapic().tpr()
    }

    fn set_cr8(&self, v: u8) {
        self.lapic().set_tpr(v);
    }

    /// The local APIC's page lies over RAM.
    fn target(&self, pa: Pa) -> Target {
        if self.apic_offset(pa).is_some() { Target::Mmio } else { self.map_target(pa) }
    }

    fn plain(&self) -> std::ops::Range<u64> {
        let all = self.0.map.plain();
        // The local APIC's page may have been put there.
        if self.lapic().mmio_base().is_some_and(|page| all.contains(&page)) { 0..0 } else { all }
    }

    fn ram(&self) -> &Ram {
        &self.0.ram
    }

    fn signals(&self) -> &VcpuSignals {
        self.lapic().signals()
    }

    fn index(&self) -> usize {
        self.1
    }

    fn ack_intr(&self) -> Option<u8> {
        self.lapic().ack()
    }

    /// Only the bootstrap processor's pins lead anywhere (MP specification 1.4 "Floating Point Exception Interrupt").
    fn ferr(&self, on: bool) {
        if let (0, Some(c)) = (self.1, &self.0.coprocessor) {
            c.lock().set_ferr(on);
        }
    }

    fn ignne(&self) -> bool {
        self.1 == 0 && self.0.coprocessor.as_ref().is_some_and(|c| c.lock().ignne())
    }

    /// Only this vCPU's own thread asks.
    fn set_smm(&self, on: bool) {
        self.0.in_smm[self.1].store(on, Ordering::Relaxed);
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.0.apic_bus.broadcast_eoi(vector);
    }

    fn sipi_vector(&self) -> u8 {
        self.lapic().sipi_vector()
    }

    fn tsc(&self) -> u64 {
        self.0.clock.tell()
    }

    fn kvm_clock_offset(&self) -> u64 {
        self.0.kvm_clock.lock().offset()
    }

    fn raise_kvm_clock(&self, offset: u64) {
        self.0.kvm_clock.lock().set_offset(offset);
    }

    fn wall_clock(&self) -> i64 {
        self.0.unix_seconds.saturating_mul(1_000_000_000)
    }

    fn time_is_counted(&self) -> bool {
        self.0.clock.counts()
    }

    /// Where time follows instructions, time decides: a splitmix64 step.
    fn determined_random(&self) -> Option<u64> {
        self.time_is_counted().then(|| {
            let z = self.0.clock.now().wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        })
    }
}
