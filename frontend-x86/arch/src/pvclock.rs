//! The clock that KVM shows to guests in a page of theirs, for those that run on it at other times (Linux,
//! Documentation/virt/kvm/x86/msr.rst: MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_WALL_CLOCK_NEW).

use crate::cpuid::feature;
use crate::state::CpuState;
use vm_core::{CpuIo, Pa, Target, dlog};

/// MSR numbers; each has an older one.
pub const WALL_CLOCK: u32 = 0x4b56_4d00;
pub const SYSTEM_TIME: u32 = 0x4b56_4d01;
pub const WALL_CLOCK_OLD: u32 = 0x11;
pub const SYSTEM_TIME_OLD: u32 = 0x12;

/// Set in SYSTEM_TIME: the page is kept up to date.
const ENABLED: u64 = 1;
/// `struct pvclock_vcpu_time_info`: offsets and length. Time is that of the page, and a tick since its TSC more for each nanosecond:
/// (ticks << shift) * multiplier / 2^32.
const TSC: u64 = 8;
const TIME: u64 = 16;
const MULTIPLIER: u64 = 24;
const SHIFT_AND_FLAGS: u64 = 28;
const TIME_LEN: u64 = 32;
/// `struct pvclock_wall_clock`: version, seconds, nanoseconds.
const WALL_LEN: u64 = 12;
/// Of a TSC that counts nanoseconds.
const ONE: (u32, u32) = (1 << 31, 1);
/// The page that another engine has left may be ahead of the clock by as much, ns: its time went by the TSC since it was last written.
const AHEAD: u64 = 1_000_000;

/// Does the CPU have this MSR?
pub(crate) fn is_known(cpu: &CpuState, msr: u32) -> bool {
    cpu.has(feature::KVM_CLOCK) && matches!(msr, WALL_CLOCK | SYSTEM_TIME | WALL_CLOCK_OLD | SYSTEM_TIME_OLD)
}

pub(crate) fn read(cpu: &CpuState, msr: u32) -> u64 {
    if matches!(msr, WALL_CLOCK | WALL_CLOCK_OLD) { cpu.pv_wall } else { cpu.pv_time }
}

pub(crate) fn set(cpu: &mut CpuState, msr: u32, value: u64) {
    if matches!(msr, WALL_CLOCK | WALL_CLOCK_OLD) { cpu.pv_wall = value } else { cpu.pv_time = value }
}

/// One has been set.
pub(crate) fn written(cpu: &CpuState, io: &dyn CpuIo, msr: u32) {
    if matches!(msr, WALL_CLOCK | WALL_CLOCK_OLD) { tell_wall(cpu.pv_wall, io) } else { tell(cpu, io) }
}

/// RAM that the guest can write, all of it.
fn is_ram(io: &dyn CpuIo, at: u64, len: u64) -> bool {
    let writable = |pa| matches!(io.target(Pa(pa)), Target::Ram { writable: true, .. });
    let there = at.checked_add(len).is_some_and(|end| writable(at) && writable(end - 1));
    if !there {
        dlog!(GUEST_ERRORS, "a clock of KVM's at {at:#x}, where no RAM is");
    }
    there && at.is_multiple_of(4)
}

/// Writes a structure that begins with a version, which is odd meanwhile.
fn versioned(io: &dyn CpuIo, at: u64, write: impl FnOnce()) {
    let odd = io.mmio_read(Pa(at), 4) as u32 | 1;
    io.mmio_write(Pa(at), 4, odd.into());
    write();
    io.mmio_write(Pa(at), 4, odd.wrapping_add(1).into());
}

/// In words of 4 bytes, none of which crosses a page.
fn put(io: &dyn CpuIo, at: u64, value: u64) {
    io.mmio_write(Pa(at), 4, value & 0xffff_ffff);
    io.mmio_write(Pa(at + 4), 4, value >> 32);
}

fn get(io: &dyn CpuIo, at: u64) -> u64 {
    io.mmio_read(Pa(at), 4) | io.mmio_read(Pa(at + 4), 4) << 32
}

/// What the page says when the TSC is `tsc`.
fn shown(io: &dyn CpuIo, page: u64, tsc: u64) -> u64 {
    let ticks = tsc.wrapping_sub(get(io, page + TSC));
    let (multiplier, shift) = (io.mmio_read(Pa(page + MULTIPLIER), 4), io.mmio_read(Pa(page + SHIFT_AND_FLAGS), 4) as i8);
    let by = u32::from(shift.unsigned_abs());
    let ticks = if shift < 0 { ticks.checked_shr(by) } else { ticks.checked_shl(by) };
    let passed = (u128::from(ticks.unwrap_or(0)) * u128::from(multiplier)) >> 32;
    get(io, page + TIME).wrapping_add(passed as u64)
}

/// Writes the page by the machine's clock, if the guest wants it: on its enabling, after changes of the TSC, and when another engine or
/// another machine has written it. The CPU's own thread calls it, between two instructions.
pub fn tell(cpu: &CpuState, io: &dyn CpuIo) {
    let page = cpu.pv_time & !ENABLED;
    if cpu.pv_time & ENABLED == 0 || !is_ram(io, page, TIME_LEN) {
        return;
    }
    let now = io.tsc();
    let tsc = now.wrapping_add(cpu.tsc_offset);
    let clock = now.wrapping_add(io.kvm_clock_offset());
    // Never backwards.
    let was = shown(io, page, tsc);
    let ahead = was.wrapping_sub(clock) < AHEAD;
    let time = if ahead { was } else { clock };
    if ahead {
        io.raise_kvm_clock(was.wrapping_sub(now));
    }
    versioned(io, page, || {
        put(io, page + TSC, tsc);
        put(io, page + TIME, time);
        io.mmio_write(Pa(page + MULTIPLIER), 4, ONE.0.into());
        // No flags: pages of different CPUs are written at different times, so the guest must see to their order.
        io.mmio_write(Pa(page + SHIFT_AND_FLAGS), 4, ONE.1.into());
    });
}

/// Writes what the host's clock showed when KVM's was 0.
fn tell_wall(at: u64, io: &dyn CpuIo) {
    if !is_ram(io, at, WALL_LEN) {
        return;
    }
    let ns = io.wall_clock().saturating_sub(io.kvm_clock_offset() as i64);
    let (seconds, rest) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    versioned(io, at, || put(io, at + 4, seconds as u64 & 0xffff_ffff | (rest as u64) << 32));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::configure;
    use crate::tests::Io;
    use std::sync::atomic::Ordering;

    const PAGE: u64 = 0x1000;
    const RAM: u64 = 0x3000;

    fn set_up() -> (CpuState, Io) {
        let tweaks = [(true, "kvmclock".to_owned())];
        let cpu = CpuState::new(&configure("qemu64", &tweaks).expect("a model"), 0);
        let told = |pa| if pa < RAM { Target::Ram { offset: pa, writable: pa < 0x2000 } } else { Target::Mmio };
        let wall_clock = 1_700_000_000_250_000_000;
        (cpu, Io { told, wall_clock, tsc: 5_000_000_000.into(), kvm_clock: 700.into(), ..Io::new() })
    }

    fn write(cpu: &mut CpuState, io: &Io, msr: u32, value: u64) {
        set(cpu, msr, value);
        written(cpu, io, msr);
    }

    #[test]
    fn models_have_it_only_where_it_is_asked_for() {
        let (cpu, _) = set_up();
        assert!(is_known(&cpu, SYSTEM_TIME) && is_known(&cpu, WALL_CLOCK_OLD) && !is_known(&cpu, 0x13));
        assert_eq!(crate::cpuid::cpuid(&cpu, 0x4000_0000, 0), [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
        assert_eq!(
            (crate::cpuid::cpuid(&cpu, 0x4000_0001, 0), crate::cpuid::cpuid(&cpu, 0x4000_0002, 0)),
            ([9, 0, 0, 0], [0; 4])
        );
        let max = CpuState::new(&configure("max", &[]).expect("a model"), 0);
        assert!(!is_known(&max, SYSTEM_TIME) && crate::cpuid::cpuid(&max, 0x4000_0001, 0)[0] == 0);
    }

    #[test]
    fn the_page_tells_the_clock_by_the_tsc() {
        let (mut cpu, io) = set_up();
        cpu.tsc_offset = 1 << 40;
        write(&mut cpu, &io, SYSTEM_TIME, PAGE | 1);
        assert_eq!(read(&cpu, SYSTEM_TIME_OLD), PAGE | 1);
        assert_eq!((io.ram.read_uint(PAGE, 4) & 1, io.ram.read_uint(PAGE, 4) > 0), (0, true), "the version");
        let at = |io: &Io, cpu: &CpuState| shown(io, PAGE, io.tsc().wrapping_add(cpu.tsc_offset));
        assert_eq!(at(&io, &cpu), 5_000_000_700);
        io.tsc.store(5_000_012_345, Ordering::Relaxed);
        assert_eq!(at(&io, &cpu), 5_000_013_045);
        // Another TSC: nothing is seen of it.
        cpu.tsc_offset = 77;
        tell(&cpu, &io);
        assert_eq!(at(&io, &cpu), 5_000_013_045);
        write(&mut cpu, &io, WALL_CLOCK, 0x1100);
        let (seconds, ns) = (io.ram.read_uint(0x1104, 4), io.ram.read_uint(0x1108, 4));
        assert_eq!((seconds, ns, io.ram.read_uint(0x1100, 4) & 1), (1_700_000_000, 249_999_300, 0));
    }

    #[test]
    fn what_another_engine_has_told_is_not_taken_back() {
        let (mut cpu, io) = set_up();
        cpu.pv_time = PAGE | 1;
        // 3 GHz: (ticks >> 1) * 2863311530 / 2^32, a little ahead of the clock.
        let clock = io.tsc() + 700;
        put(&io, PAGE + TSC, 0);
        put(&io, PAGE + TIME, clock + 900 - io.tsc() / 3);
        put(&io, PAGE + MULTIPLIER, 2_863_311_530 | 0xff << 32);
        let before = shown(&io, PAGE, io.tsc());
        tell(&cpu, &io);
        let after = shown(&io, PAGE, io.tsc());
        assert!(before > clock && after == before && io.kvm_clock_offset() == before - io.tsc(), "{before} {after} {clock}");
        // One that makes no sense is.
        put(&io, PAGE + TIME, 1 << 60);
        tell(&cpu, &io);
        assert_eq!(shown(&io, PAGE, io.tsc()), io.tsc() + io.kvm_clock_offset());
        // Whatever its factors are.
        for rest in [0x7f, 0x80, 0xff, 0x1f] {
            put(&io, PAGE + MULTIPLIER, 0xffff_ffff | rest << 32);
            tell(&cpu, &io);
        }
    }

    #[test]
    fn nothing_is_written_but_ram() {
        let (mut cpu, io) = set_up();
        for page in [0x2001, RAM | 1, 0x1003, !0, u64::MAX - 30, 0x1ff1, 0x1000] {
            write(&mut cpu, &io, SYSTEM_TIME, page);
            write(&mut cpu, &io, WALL_CLOCK, page & !1);
            // But for the wall clock, which needs no enabling, where there is RAM.
            let told = page == 0x1000 || page == 0x1ff1;
            assert!(told || (0..RAM).all(|a| io.ram.read_uint(a, 1) == 0), "{page:#x}");
        }
        assert_eq!(io.ram.read_uint(PAGE + TIME, 8), 0, "not enabled");
    }
}
