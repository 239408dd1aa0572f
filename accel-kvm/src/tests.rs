//! Small guests on the host's KVM. Where there is none they say so, and do nothing.

use crate::selftest::{Bench, CODE, DATA, STACK, config, long_mode, run_bench, self_test};
use crate::{Failure, Irqchip, KvmCpu, KvmError, Vm, regs, xsave};
use arch_x86::state::{F80, PendingEvent, SegReg, shadow};
use arch_x86::{CpuState, models};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vm_core::{CpuIo, Events, StopReason};

const LIMIT: Duration = Duration::from_secs(20);

/// Past the test harness, which keeps what tests print.
pub(crate) fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// A machine with `ram` bytes in which `code` runs in 64-bit mode. `None`: there is no KVM here.
fn machine(ram: u64, code: &[u8]) -> Option<(Arc<Vm>, Bench, CpuState)> {
    machine_with(Irqchip::Off, ram, code)
}

pub(crate) fn machine_with(irqchip: Irqchip, ram: u64, code: &[u8]) -> Option<(Arc<Vm>, Bench, CpuState)> {
    let vm = match Vm::new(irqchip) {
        Ok(vm) => vm,
        Err(e @ (KvmError::NotThere | KvmError::NoPermission)) => {
            say(&format!("LEFT OUT: no /dev/kvm: {e}"));
            return None;
        }
        Err(e) => panic!("{e}"),
    };
    let io = Bench::new(ram).expect("memory");
    vm.set_memory(&io.ram, std::iter::once((0, ram, 0, true))).expect("a slot");
    io.ram.write(CODE, code);
    let state = long_mode(&io.ram, &config(&vm, "qemu64").expect("a model"));
    Some((vm, io, state))
}

pub(crate) fn started(vm: &Arc<Vm>, io: &Bench, state: CpuState) -> KvmCpu {
    let cpu = KvmCpu::new(vm, io.index() as u32, state).expect("a vCPU");
    io.signals.set_kick(Box::new(cpu.kick()));
    cpu
}

#[test]
fn ports_and_devices_are_reached_and_the_state_is_exact_after_it() {
    let code = [
        0xba, 0x34, 0x12, 0x00, 0x00, // mov $0x1234,%edx
        0xed, // in (%dx),%eax
        0x66, 0xe7, 0x42, // out %ax,$0x42
        0xbb, 0x00, 0x00, 0x10, 0x00, // mov $0x100000,%ebx: no RAM
        0x8b, 0x4b, 0x44, // mov 0x44(%rbx),%ecx
        0x48, 0x89, 0x0b, // mov %rcx,(%rbx)
        0xf4, // hlt
    ];
    let Some((vm, io, state)) = machine(64 << 10, &code) else { return };
    let mut cpu = started(&vm, &io, state);
    assert_eq!(run_bench(&mut cpu, &io, LIMIT), Ok(StopReason::Halted));
    let c = cpu.cpu();
    assert_eq!((c.gpr[0], c.gpr[1], c.rip, c.halted), (0x1234 * 0x0101, 0x44, CODE + code.len() as u64, true));
    assert_eq!(*io.written.lock(), [(0x42, 2, (0x1234 * 0x0101) & 0xffff), (0x10_0000, 8, 0x44)]);
}

#[test]
fn string_io_moves_every_element() {
    // mov $DATA,%edi; mov $5,%ecx; mov $0x10,%edx; rep insw; mov $DATA,%esi; mov $5,%ecx; rep outsw; hlt
    let code = [
        0xbf, 0x00, 0x80, 0x00, 0x00, 0xb9, 0x05, 0x00, 0x00, 0x00, 0xba, 0x10, 0x00, 0x00, 0x00, 0xf3, 0x66, 0x6d, 0xbe, 0x00,
        0x80, 0x00, 0x00, 0xb9, 0x05, 0x00, 0x00, 0x00, 0xf3, 0x66, 0x6f, 0xf4,
    ];
    let Some((vm, io, state)) = machine(64 << 10, &code) else { return };
    let mut cpu = started(&vm, &io, state);
    assert_eq!(run_bench(&mut cpu, &io, LIMIT), Ok(StopReason::Halted));
    assert_eq!((0..5).map(|i| io.ram.read_uint(DATA + 2 * i, 2)).collect::<Vec<_>>(), [0x1010; 5]);
    assert_eq!(*io.written.lock(), [(0x10, 2, 0x1010); 5]);
    assert_eq!((cpu.cpu().gpr[1], cpu.cpu().gpr[7]), (0, DATA + 10));
}

#[test]
fn a_kick_ends_a_loop_and_the_loop_goes_on() {
    // 1: inc %rax; jmp 1b
    let Some((vm, io, state)) = machine(64 << 10, &[0x48, 0xff, 0xc0, 0xeb, 0xfb]) else { return };
    let mut cpu = started(&vm, &io, state);
    let mut last = 0;
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(run_bench(&mut cpu, &io, Duration::from_millis(20)), Ok(StopReason::Stopped));
        assert!(began.elapsed() < Duration::from_secs(2), "the kick came late");
        io.signals.clear(Events::STOP);
        let c = cpu.cpu();
        assert!(c.gpr[0] > last && (CODE..CODE + 4).contains(&c.rip), "{:#x} {:#x}", c.gpr[0], c.rip);
        last = c.gpr[0];
    }
    // What is changed in between holds.
    cpu.cpu().gpr[0] = 1 << 60;
    assert_eq!(run_bench(&mut cpu, &io, Duration::from_millis(20)), Ok(StopReason::Stopped));
    assert!(cpu.cpu().gpr[0] > 1 << 60);
}

/// Nothing is lost, and nothing done twice, where signals come all the time.
#[test]
fn a_loop_under_a_storm_of_kicks_comes_to_its_end() {
    // mov $20000,%ecx; 1: inc %rax; out %al,$0x80; loop 1b; hlt
    let code = [0xb9, 0x20, 0x4e, 0x00, 0x00, 0x48, 0xff, 0xc0, 0xe6, 0x80, 0xe2, 0xf9, 0xf4];
    let Some((vm, io, state)) = machine(64 << 10, &code) else { return };
    let mut cpu = started(&vm, &io, state);
    let (kick, ended) = (cpu.kick(), AtomicBool::new(false));
    std::thread::scope(|s| {
        let kicks = s.spawn(|| {
            let mut n = 0u32;
            while !ended.load(Ordering::Relaxed) {
                kick();
                n += 1;
                // The vCPU gets to an instruction now and then.
                std::thread::sleep(Duration::from_micros(u64::from(n % 4) * 10));
            }
            n
        });
        let outcome = run_bench(&mut cpu, &io, LIMIT);
        ended.store(true, Ordering::Relaxed);
        assert_eq!(outcome, Ok(StopReason::Halted));
        assert!(kicks.join().expect("no panic") > 100);
    });
    assert_eq!((cpu.cpu().gpr[0], io.written.lock().len()), (20_000, 20_000));
}

/// 55 bytes for ring 3: `rdi` rounds of xorshift64 from a fixed seed, the result to `DATA`, INT3.
#[rustfmt::skip]
const XORSHIFT: [u8; 55] = [
    0x48, 0xb8, 0x44, 0x7a, 0xbf, 0xcb, 0x8d, 0x40, 0x39, 0x01, 0x48, 0x89, 0xc1, 0x48, 0xc1, 0xe1,
    0x0d, 0x48, 0x31, 0xc8, 0x48, 0x89, 0xc1, 0x48, 0xc1, 0xe9, 0x07, 0x48, 0x31, 0xc8, 0x48, 0x89,
    0xc1, 0x48, 0xc1, 0xe1, 0x11, 0x48, 0x31, 0xc8, 0x48, 0xff, 0xcf, 0x75, 0xdd, 0x48, 0x89, 0x04,
    0x25, 0x00, 0x80, 0x00, 0x00, 0xcc, 0x90,
];

fn xorshift(rounds: u64) -> u64 {
    (0..rounds).fold(88_172_645_463_325_252u64, |mut x, _| {
        x ^= x << 13;
        x ^= x >> 7;
        x ^ x << 17
    })
}

/// Enters the code at CPL 3; INT3 leads to a HLT. (SYSCALL does not change CS on every KVM without VT.)
fn in_ring_3(io: &Bench, mut state: CpuState, rounds: u64) -> CpuState {
    io.ram.write(CODE + 0x200, &[0xf4]);
    state.seg_mut(SegReg::Cs).selector = 0x2b;
    state.seg_mut(SegReg::Cs).attr = 0xa0_fb00;
    state.seg_mut(SegReg::Ss).selector = 0x23;
    state.seg_mut(SegReg::Ss).attr = 0xc0_f300;
    state.cpl = 3;
    (state.gpr[7], state.gpr[4]) = (rounds, STACK - 0x800);
    state.update_mode();
    state
}

/// How many times as long as natively it takes, the best of three. `None`: there is no KVM here.
fn ring_3(rounds: u64) -> Option<f64> {
    let (vm, io, state) = machine(64 << 10, &XORSHIFT)?;
    let (mut natively, mut took) = (Duration::MAX, Duration::MAX);
    for n in 0..3 {
        let began = Instant::now();
        let native = xorshift(std::hint::black_box(rounds));
        natively = natively.min(began.elapsed());
        let other = io.sibling(n);
        let mut cpu = started(&vm, &other, in_ring_3(&other, state.clone(), rounds));
        let began = Instant::now();
        let outcome = run_bench(&mut cpu, &other, LIMIT);
        assert_eq!(outcome, Ok(StopReason::Halted), "{}", vm_core::GuestCpu::dump(cpu.cpu()));
        took = took.min(began.elapsed());
        assert_eq!(io.ram.read_uint(DATA, 8), native);
    }
    let best = took.as_secs_f64() / natively.as_secs_f64();
    say(&format!("ring 3 under KVM: {took:.2?}, natively {natively:.2?}: {best:.2} times as long"));
    Some(best)
}

#[test]
fn ring_3_computes_at_the_hosts_speed() {
    // Under other load it may be twice that; one that emulates takes a hundred times as long.
    assert!(ring_3(100_000_000).is_none_or(|best| best < 5.0));
}

#[test]
#[ignore = "wants a host without other load"]
fn ring_3_computes_for_a_second_at_the_hosts_speed() {
    assert!(ring_3(600_000_000).is_none_or(|best| best <= 1.1));
}

#[test]
fn two_cpus_lose_no_locked_increment() {
    // mov $20000,%ecx; 1: lock incq DATA; loop 1b; hlt
    let code = [0xb9, 0x20, 0x4e, 0x00, 0x00, 0xf0, 0x48, 0xff, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 0xe2, 0xf5, 0xf4];
    let Some((vm, io, state)) = machine(64 << 10, &code) else { return };
    let other = io.sibling(1);
    let mut cpus = [started(&vm, &io, state.clone()), started(&vm, &other, state)];
    let [a, b] = &mut cpus;
    std::thread::scope(|s| {
        let t = s.spawn(|| run_bench(b, &other, LIMIT));
        assert_eq!(run_bench(a, &io, LIMIT), Ok(StopReason::Halted));
        assert_eq!(t.join().expect("no panic"), Ok(StopReason::Halted));
    });
    assert_eq!(io.ram.read_uint(DATA, 8), 40_000);
}

#[test]
fn memory_slots_can_change_and_rom_is_read_only() {
    // mov DATA,%al; mov %al,%ah; inc %ah; mov %ah,DATA; mov DATA,%bl; hlt
    let code = [
        0x8a, 0x04, 0x25, 0x00, 0x80, 0x00, 0x00, 0x88, 0xc4, 0xfe, 0xc4, 0x88, 0x24, 0x25, 0x00, 0x80, 0x00, 0x00, 0x8a, 0x1c,
        0x25, 0x00, 0x80, 0x00, 0x00, 0xf4,
    ];
    let Some((vm, io, state)) = machine(64 << 10, &code) else { return };
    io.ram.write(0x9000, &[7]);
    // Page 8000h is page 9000h of RAM, and read-only.
    let ranges = [(0, 0x8000, 0, true), (0x8000, 0x1000, 0x9000, false), (0x9000, 0x7000, 0x9000, true)];
    vm.set_memory(&io.ram, ranges.into_iter()).expect("slots");
    let mut cpu = started(&vm, &io, state);
    assert_eq!(run_bench(&mut cpu, &io, LIMIT), Ok(StopReason::Halted));
    assert_eq!((cpu.cpu().gpr[0] & 0xff, cpu.cpu().gpr[3] & 0xff), (7, 7));
    assert_eq!(*io.written.lock(), [(0x8000, 1, 8)], "the write went to the bus");
}

#[test]
fn what_kvm_cannot_do_is_told_with_the_state_before_it() {
    let Err(KvmError::SelfTest(why)) = self_test() else { return };
    assert!(why.contains(": "), "{why}");
    say(&format!("this KVM's self-test fails: {why}"));
    // mov $7,%eax; lock cmpxchg16b DATA: what a KVM without the processor's help lacks.
    let code = [0xb8, 0x07, 0x00, 0x00, 0x00, 0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x00, 0x80, 0x00, 0x00, 0xf4];
    let Some((vm, io, state)) = machine(64 << 10, &code) else { return };
    let mut cpu = started(&vm, &io, state);
    let Err(Failure { rip, bytes, .. }) = cpu.run(&io, &AtomicBool::new(false)) else { return };
    assert_eq!((rip, cpu.cpu().rip, cpu.cpu().gpr[0]), (CODE + 5, CODE + 5, 7));
    assert!(bytes.starts_with("f0 48 0f c7 0c 25 00 80 00 00 f4"), "{bytes}");
}

/// A state with a value of its own in all that KVM keeps.
fn full(config: &arch_x86::cpuid::CpuConfigured) -> CpuState {
    let mut c = CpuState::new(config, 0);
    (0..).zip(&mut c.gpr).for_each(|(i, r)| *r = 0x1111_1111_1111_1111 * i);
    (0..).zip(&mut c.xmm).for_each(|(i, r)| *r = 0x0123_4567_89ab_cdef_0011_2233_4455_6677 + i);
    (0..).zip(&mut c.fpr).for_each(|(i, r)| *r = F80 { mant: 1 << 63 | i, sexp: 0x3fff + i as u16 });
    (c.fcw, c.fsw, c.ftw, c.fop, c.mxcsr) = (0x27f, 0x3800, 0x7e, 0x123, 0x1fa0);
    (c.dr[0], c.dr[3], c.dr[6], c.dr[7]) = (0x1234, 0x5678, 0xffff_0ff1, 0x400);
    (c.star, c.cstar, c.sfmask, c.kernel_gs_base) = (1 << 40, 0x2000, 0x700, 0x8888);
    (c.sysenter_cs, c.sysenter_esp, c.sysenter_eip) = (8, 0x7000, 0x7100);
    (c.cr2, c.nmi_blocked, c.shadow) = (0xdead_b000, true, shadow::STI);
    c.rip = 0x123;
    c.set_rflags(0x8d7);
    c
}

#[test]
fn states_come_back_from_kvms_structures_as_they_went() {
    let config = models::configure("max", &[]).expect("a model");
    let mut c = full(&config);
    (0..).zip(&mut c.ymmh).for_each(|(i, r)| *r = u128::MAX - i);
    c.pkru = 0x5555;
    for pending in [
        PendingEvent::default(),
        PendingEvent { valid: true, vector: 0x61, ..Default::default() },
        PendingEvent { valid: true, vector: 2, ..Default::default() },
        PendingEvent { valid: true, vector: 14, has_error: true, error: 6, payload: 0xdead_b000 },
    ] {
        c.pending = pending;
        c.update_mode();
        let mut d = CpuState::new(&config, 0);
        regs::set_regs(&mut d, &regs::regs(&c));
        regs::set_sregs(&mut d, &regs::sregs(&c, 0, 0));
        regs::set_debug_registers(&mut d, &regs::debug_registers(&c));
        xsave::unpack(&mut d, &xsave::pack(&c, !0));
        regs::set_events(&mut d, &regs::events(&c));
        assert_eq!((d.gpr, d.rflags(), d.seg, d.dr), (c.gpr, c.rflags(), c.seg, c.dr));
        assert_eq!((d.xmm, d.ymmh, d.fpr, d.pkru), (c.xmm, c.ymmh, c.fpr, c.pkru));
        assert_eq!((d.fcw, d.fsw, d.ftw, d.fop, d.mxcsr), (c.fcw, c.fsw, c.ftw, c.fop, c.mxcsr));
        assert_eq!((d.pending, d.shadow, d.nmi_blocked), (c.pending, c.shadow, c.nmi_blocked));
        assert_eq!((d.cr0, d.cr2, d.cpl, d.tr, d.ldt, d.idt), (c.cr0, c.cr2, c.cpl, c.tr, c.ldt, c.idt));
    }
}

#[test]
fn states_come_back_from_kvm_as_they_went() {
    // Two HLTs.
    let Some((vm, io, long)) = machine(64 << 10, &[0xf4, 0xf4]) else { return };
    let mut c = full(&config(&vm, "qemu64").expect("a model"));
    let CpuState { seg, tr, gdt, idt, cr0, cr3, cr4, efer, .. } = long;
    (c.seg, c.tr, c.gdt, c.idt, c.cr0, c.cr3, c.cr4, c.efer) = (seg, tr, gdt, idt, cr0, cr3, cr4, efer);
    (c.rip, c.lstar, c.shadow, c.nmi_blocked) = (CODE, 0x9999, shadow::NONE, false);
    c.set_rflags(0x8d7);
    c.update_mode();
    let mut cpu = started(&vm, &io, c.clone());
    assert_eq!(run_bench(&mut cpu, &io, LIMIT), Ok(StopReason::Halted));
    let d = cpu.cpu().clone();
    assert_eq!((d.gpr, d.rip, d.rflags(), d.halted), (c.gpr, CODE + 1, c.rflags(), true));
    assert_eq!((d.xmm, d.fpr, d.fcw, d.fsw, d.ftw, d.mxcsr), (c.xmm, c.fpr, c.fcw, c.fsw, c.ftw, c.mxcsr));
    assert_eq!((d.seg, d.tr, d.gdt, d.idt, d.cpl), (c.seg, c.tr, c.gdt, c.idt, 0));
    assert_eq!((d.cr0, d.cr2, d.cr3, d.cr4, d.efer), (c.cr0, c.cr2, c.cr3, c.cr4, c.efer));
    assert_eq!((d.star, d.lstar, d.cstar, d.sfmask, d.kernel_gs_base), (c.star, c.lstar, c.cstar, c.sfmask, c.kernel_gs_base));
    assert_eq!((d.sysenter_cs, d.sysenter_esp, d.sysenter_eip, d.pat), (c.sysenter_cs, c.sysenter_esp, c.sysenter_eip, c.pat));
    assert_eq!(d.dr, c.dr);
    // An interrupt does not end the halt while they are off.
    io.signals.raise(Events::INTR);
    assert_eq!(cpu.run(&io, &AtomicBool::new(false)), Ok(StopReason::Halted));
    assert_eq!(cpu.cpu().rip, CODE + 1);
}

#[test]
fn a_second_cpu_waits_for_its_start_up_interrupt() {
    let Some((vm, io, _)) = machine(64 << 10, &[]) else { return };
    // Real mode at page 0: mov $0x5a,%al; out %al,$0x42; cli; hlt
    io.ram.write(0, &[0xb0, 0x5a, 0xe6, 0x42, 0xfa, 0xf4]);
    let state = CpuState::new(&config(&vm, "qemu64").expect("a model"), 1);
    let second = io.sibling(1);
    let mut cpu = started(&vm, &second, state);
    assert_eq!(run_bench(&mut cpu, &second, LIMIT), Ok(StopReason::Halted));
    assert!(second.written.lock().is_empty() && cpu.cpu().wait_sipi);
    second.signals.raise(Events::SIPI);
    assert_eq!(run_bench(&mut cpu, &second, LIMIT), Ok(StopReason::Halted));
    assert_eq!(*second.written.lock(), [(0x42, 1, 0x5a)]);
    assert_eq!((cpu.cpu().rip, cpu.cpu().halted, cpu.cpu().wait_sipi), (6, true, false));
    // INIT, and it waits again.
    second.signals.raise(Events::INIT);
    assert_eq!(run_bench(&mut cpu, &second, LIMIT), Ok(StopReason::Halted));
    assert_eq!((cpu.cpu().rip, cpu.cpu().wait_sipi), (0xfff0, true));
}
