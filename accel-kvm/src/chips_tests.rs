//! KVM's local APIC, doorbells, writes that it puts by, and its log of written pages. Where there is no KVM they say so, and do nothing.

use crate::selftest::{Bench, CODE, run_bench};
use crate::tests::{machine_with, say, started};
use crate::{Doorbells, Irqchip};
use arch_x86::CpuState;
use arch_x86::cpuid::Word;
use std::sync::atomic::Ordering;
use std::time::Duration;
use vm_core::{CpuIo, Events, Pa, StopReason};

const LIMIT: Duration = Duration::from_secs(20);
/// Long enough for a guest of a few instructions that does not end by itself.
const A_WHILE: Duration = Duration::from_millis(300);

#[test]
fn doorbells_ring_without_an_exit_and_are_answered_by_others() {
    // mov $0x100050,%ebx; movl $1,(%rbx); movl $2,(%rbx); movw $1,(%rbx); hlt
    let code = [
        0xbb, 0x50, 0x00, 0x10, 0x00, 0xc7, 0x03, 0x01, 0x00, 0x00, 0x00, 0xc7, 0x03, 0x02, 0x00, 0x00, 0x00, 0x66, 0xc7, 0x03,
        0x01, 0x00, 0xf4,
    ];
    let Some((vm, io, state)) = machine_with(Irqchip::Off, 64 << 10, &code) else { return };
    let bells = Doorbells::new(&vm, &[(Pa(0x10_0050), 0), (Pa(0x10_0050), 1)]).expect("ioeventfd");
    let mut cpu = started(&vm, &io, state);
    assert_eq!(run_bench(&mut cpu, &io, LIMIT), Ok(StopReason::Halted));
    // Another value and another size are no doorbells.
    assert_eq!(*io.written.lock(), [(0x10_0050, 4, 2), (0x10_0050, 2, 1)]);
    bells.wait();
    let mut rung = Vec::new();
    bells.answer(|pa, v| rung.push((pa.0, v)));
    bells.answer(|pa, v| rung.push((pa.0, v)));
    assert_eq!(rung, [(0x10_0050, 1)], "once");
}

#[test]
fn writes_that_are_put_by_come_in_order_before_what_follows() {
    // mov $0x100000,%ebx; mov $300,%ecx; 1: mov %cx,(%rbx); loop 1b; out %al,$0x42; mov %al,8(%rbx); hlt
    let code = [
        0xbb, 0x00, 0x00, 0x10, 0x00, 0xb9, 0x2c, 0x01, 0x00, 0x00, 0x66, 0x89, 0x0b, 0xe2, 0xfb, 0xe6, 0x42, 0x88, 0x43, 0x08,
        0xf4,
    ];
    let Some((vm, io, state)) = machine_with(Irqchip::Off, 64 << 10, &code) else { return };
    let there = vm.coalesce(0x10_0000, 0x1000);
    let mut cpu = started(&vm, &io, state);
    assert_eq!(run_bench(&mut cpu, &io, LIMIT), Ok(StopReason::Halted));
    let mut expected: Vec<(u64, u8, u64)> = (1..=300).rev().map(|n| (0x10_0000, 2, n)).collect();
    expected.extend([(0x42, 1, 0), (0x10_0008, 1, 0)]);
    assert_eq!(*io.written.lock(), expected);
    say(&format!("302 writes, {} exits{}", cpu.exits(), if there { "" } else { " (KVM puts none by)" }));
    assert!(!there || cpu.exits() < 20, "{} exits", cpu.exits());
}

#[test]
fn pages_that_the_guest_writes_are_logged() {
    // mov %eax,0x9000; mov 0xb000,%eax; hlt
    let code = [0x89, 0x04, 0x25, 0x00, 0x90, 0x00, 0x00, 0x8b, 0x04, 0x25, 0x00, 0xb0, 0x00, 0x00, 0xf4];
    let Some((vm, io, state)) = machine_with(Irqchip::Off, 64 << 10, &code) else { return };
    assert_eq!(vm.take_written().expect("a log"), None);
    vm.log_writes(true).expect("a log");
    let mut cpu = started(&vm, &io, state.clone());
    assert_eq!(run_bench(&mut cpu, &io, LIMIT), Ok(StopReason::Halted));
    let pages = vm.take_written().expect("a log").expect("it is on");
    assert!(pages.contains(&9) && !pages.contains(&0xb) && !pages.contains(&0xf), "{pages:x?}");
    assert_eq!(vm.take_written().expect("a log"), Some(vec![]), "taken");
    vm.log_writes(false).expect("no log");
    assert_eq!(vm.take_written().expect("a log"), None);
}

/// x2APIC mode, software enable, the timer by vector 40h once after 100 µs; the handler says 7 and waits in a loop.
// mov $0x1b,%ecx; rdmsr; or $0x400,%eax; wrmsr
// mov $0x80f,%ecx; mov $0x1ff,%eax; xor %edx,%edx; wrmsr
// mov $0x832,%ecx; mov $0x40,%eax; wrmsr; mov $0x83e,%ecx; mov $0xb,%eax; wrmsr; mov $0x838,%ecx; mov $100000,%eax; wrmsr
// sti; hlt; mov $9,%al; out %al,$0x80; 1: jmp 1b
const TIMER: [u8; 70] = [
    0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x0d, 0, 4, 0, 0, 0x0f, 0x30, 0xb9, 0x0f, 8, 0, 0, 0xb8, 0xff, 1, 0, 0, 0x31, 0xd2, 0x0f,
    0x30, 0xb9, 0x32, 8, 0, 0, 0xb8, 0x40, 0, 0, 0, 0x0f, 0x30, 0xb9, 0x3e, 8, 0, 0, 0xb8, 0x0b, 0, 0, 0, 0x0f, 0x30, 0xb9, 0x38,
    8, 0, 0, 0xb8, 0xa0, 0x86, 1, 0, 0x0f, 0x30, 0xfb, 0xf4, 0x90, 0x90, 0xeb, 0xfe,
];
/// mov $7,%al; out %al,$0x80; jmp .
const HANDLER: [u8; 6] = [0xb0, 7, 0xe6, 0x80, 0xeb, 0xfe];

/// Registers of the local APIC.
const SVR: usize = 0x0f;
const ISR_40: usize = 0x12;
const CURRENT: usize = 0x39;
const LVT0: usize = 0x35;
/// LINT0 is the 8259s'.
const EXTINT: u32 = 0x700;

fn with_timer() -> Option<(std::sync::Arc<crate::Vm>, Bench, CpuState)> {
    let (vm, io, mut state) = machine_with(Irqchip::Split, 64 << 10, &TIMER)?;
    state.features[Word::L1Ecx as usize] |= 1 << 21;
    io.ram.write(CODE + 0x220, &HANDLER);
    Some((vm, io, state))
}

#[test]
fn kvms_local_apic_interrupts_out_of_hlt_and_its_state_can_be_had() {
    let Some((vm, io, state)) = with_timer() else { return };
    let mut cpu = started(&vm, &io, state);
    let port = cpu.port().expect("a descriptor");
    assert_eq!(run_bench(&mut cpu, &io, A_WHILE), Ok(StopReason::Stopped));
    assert_eq!(*io.written.lock(), [(0x80, 1, 7)]);
    let c = cpu.cpu();
    assert_eq!((c.rip, c.halted), (CODE + 0x224, false));
    let (mut lapic, latched) = port.take_lapic().expect("KVM gives it");
    assert_eq!((lapic.base & 0xfff, lapic.regs[SVR]), (0xd00, 0x1ff), "{lapic:x?}");
    // In service; but a KVM without VT may end it as it delivers it.
    assert!(lapic.regs[ISR_40] <= 1 && lapic.regs[0x22] == 0, "{lapic:x?}");
    assert_eq!(latched, crate::Latched::default());
    // Back, changed: nothing in service, another that waits.
    lapic.regs[ISR_40] = 0;
    lapic.regs[CURRENT] = 0;
    lapic.regs[0x22] = 1 << 1;
    port.set_lapic(&lapic).expect("KVM takes it");
    assert_eq!(port.take_lapic().expect("KVM gives it").0.regs[0x22], 2);
}

#[test]
fn a_halt_in_kvm_is_seen_and_ends_by_a_message() {
    // sti; hlt; jmp .
    let Some((vm, io, state)) = machine_with(Irqchip::Split, 64 << 10, &[0xfb, 0xf4, 0xeb, 0xfe]) else { return };
    io.ram.write(CODE + 0x220, &HANDLER);
    let mut cpu = started(&vm, &io, state);
    let port = cpu.port().expect("a descriptor");
    assert_eq!(run_bench(&mut cpu, &io, A_WHILE), Ok(StopReason::Stopped));
    assert!(cpu.cpu().halted && cpu.cpu().rip == CODE + 2, "{:#x}", cpu.cpu().rip);
    let (mut lapic, _) = port.take_lapic().expect("KVM gives it");
    lapic.regs[SVR] = 0x1ff;
    port.set_lapic(&lapic).expect("KVM takes it");
    io.signals.clear(Events::STOP);
    vm_core::MsiSink::send_msi(&*vm, 0xfee0_0000, 0x4040);
    assert_eq!(run_bench(&mut cpu, &io, A_WHILE), Ok(StopReason::Stopped));
    assert_eq!(*io.written.lock(), [(0x80, 1, 7)]);
}

#[test]
fn the_8259s_interrupt_reaches_a_cpu_with_kvms_local_apic() {
    // sti; hlt; jmp .
    let Some((vm, io, state)) = machine_with(Irqchip::Split, 64 << 10, &[0xfb, 0xf4, 0xeb, 0xfe]) else { return };
    io.ram.write(CODE + 0x220, &HANDLER);
    let mut cpu = started(&vm, &io, state);
    let port = cpu.port().expect("a descriptor");
    let (mut lapic, _) = port.take_lapic().expect("KVM gives it");
    (lapic.regs[SVR], lapic.regs[LVT0]) = (0x1ff, EXTINT);
    port.set_lapic(&lapic).expect("KVM takes it");
    std::thread::scope(|s| {
        s.spawn(|| {
            std::thread::sleep(A_WHILE / 3);
            io.signals.raise(Events::INTR);
        });
        assert_eq!(run_bench(&mut cpu, &io, A_WHILE), Ok(StopReason::Stopped));
    });
    assert_eq!(*io.written.lock(), [(0x80, 1, 7)]);
    assert!(!io.signals().pending().contains(Events::INTR), "it was acknowledged");
}

/// It is part of the state, also where the vCPU is stopped before the guest has taken it, in a loop and in HLT; and whoever has that state
/// has it alone.
#[test]
fn an_interrupt_that_is_acknowledged_is_not_lost_by_a_stop() {
    // sti; jmp . and sti; hlt; jmp .
    let guests: [&[u8]; 2] = [&[0xfb, 0xeb, 0xfe], &[0xfb, 0xf4, 0xeb, 0xfe]];
    for (irqchip, code) in [Irqchip::Off, Irqchip::Split].into_iter().flat_map(|i| guests.map(|g| (i, g))) {
        for elsewhere in [false, true] {
            let what = format!("{irqchip:?} {code:x?} {elsewhere}");
            let Some((vm, io, state)) = machine_with(irqchip, 64 << 10, code) else { return };
            io.ram.write(CODE + 0x220, &HANDLER);
            let mut cpu = started(&vm, &io, state);
            if irqchip == Irqchip::Split {
                let port = cpu.port().expect("a descriptor");
                let (mut lapic, _) = port.take_lapic().expect("KVM gives it");
                (lapic.regs[SVR], lapic.regs[LVT0]) = (0x1ff, EXTINT);
                port.set_lapic(&lapic).expect("KVM takes it");
            }
            let waits = run_bench(&mut cpu, &io, A_WHILE / 3).expect("it runs");
            assert!(matches!(waits, StopReason::Stopped | StopReason::Halted), "{what}: {waits:?}");
            io.signals.clear(Events::STOP);
            io.stops_at_intr.store(true, Ordering::Relaxed);
            io.signals.raise(Events::INTR);
            assert_eq!(run_bench(&mut cpu, &io, LIMIT), Ok(StopReason::Stopped), "{what}");
            let pending = std::mem::take(&mut cpu.cpu().pending);
            assert_eq!((pending.valid, pending.vector, cpu.cpu().halted), (true, 0x40, false), "{what}");
            assert_eq!(*io.written.lock(), [], "{what}: the handler has begun");
            if !elsewhere {
                cpu.cpu().pending = pending;
            }
            io.signals.clear(Events::STOP);
            assert_eq!(run_bench(&mut cpu, &io, A_WHILE / 3), Ok(StopReason::Stopped), "{what}");
            assert_eq!(io.written.lock().as_slice(), if elsewhere { &[][..] } else { &[(0x80, 1, 7)] }, "{what}");
        }
    }
}

/// Not a check: what a message costs by request, and by an eventfd that KVM listens to.
#[test]
fn how_long_a_message_takes() {
    let Some((vm, io, state)) = machine_with(Irqchip::Split, 64 << 10, &[0xf4]) else { return };
    let _cpu = started(&vm, &io, state);
    let (by_request, by_eventfd) = vm.time_messages(2000).expect("both ways");
    say(&format!("a message takes {by_request} ns by KVM_SIGNAL_MSI, {by_eventfd} ns by an irqfd"));
}
