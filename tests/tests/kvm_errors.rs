//! A KVM that is not there, lacks something or fails: one line with `-accel kvm`, and the JIT where it may go on. The host's kernel
//! refuses the requests, to the program as it is.

use rhea_tests::boot::{Guest, kvm_is_there, program, scratch};
use rhea_tests::refuse::{Refusal, refuse};
use rhea_tests::small::guest_of;
use std::process::Command;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
/// `isa-debug-exit` got 16.
const RIGHT: i32 = 33;

/// Requests of KVM's (<linux/kvm.h>); the request is an ioctl's argument 1.
const GET_API_VERSION: (usize, u32) = (1, 0xae00);
const CREATE_VM: (usize, u32) = (1, 0xae01);
const CHECK_EXTENSION: (usize, u32) = (1, 0xae03);
const CREATE_VCPU: (usize, u32) = (1, 0xae41);
const SET_USER_MEMORY_REGION: (usize, u32) = (1, 0x4020_ae46);
const CREATE_IRQCHIP: (usize, u32) = (1, 0xae60);
const SET_GSI_ROUTING: (usize, u32) = (1, 0x4008_ae6a);
const ENABLE_CAP: (usize, u32) = (1, 0x4068_aea3);
const RUN: (usize, u32) = (1, 0xae80);
const GET_REGS: (usize, u32) = (1, 0x8090_ae81);
const SET_REGS: (usize, u32) = (1, 0x4090_ae82);
const SET_SREGS: (usize, u32) = (1, 0x4138_ae84);
const INTERRUPT: (usize, u32) = (1, 0x4004_ae86);
const SET_LAPIC: (usize, u32) = (1, 0x4400_ae8f);
const GET_LAPIC: (usize, u32) = (1, 0x8400_ae8e);
const SET_CPUID2: (usize, u32) = (1, 0x4008_ae90);
/// KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_SPLIT_IRQCHIP; a capability is KVM_CHECK_EXTENSION's argument.
const IMMEDIATE_EXIT: (usize, u32) = (2, 136);
const SPLIT_IRQCHIP: (usize, u32) = (2, 121);

/// The way in which /dev/kvm is opened, and nothing else of the program's.
const fn open(errno: i32) -> Refusal {
    Refusal { call: libc::SYS_openat, with: &[(2, (libc::O_RDWR | libc::O_CLOEXEC) as u32)], errno }
}

const NO_MEMORY: i32 = libc::ENOMEM;
const INVALID: i32 = libc::EINVAL;
const FAULT: i32 = libc::EFAULT;

struct Case {
    refusal: Refusal,
    irqchip: &'static str,
    /// What is said of it.
    words: &'static str,
    /// With the place where the guest was.
    place: bool,
}

const fn case(refusal: Refusal, irqchip: &'static str, words: &'static str) -> Case {
    Case { refusal, irqchip, words, place: false }
}

const fn placed(refusal: Refusal, irqchip: &'static str, words: &'static str) -> Case {
    Case { refusal, irqchip, words, place: true }
}

const CASES: &[Case] = &[
    case(open(libc::ENOENT), "off", "there is no /dev/kvm (no virtualisation, or its kernel module is not loaded)"),
    case(open(libc::EACCES), "off", "no permission to open /dev/kvm (be root, or a member of its group)"),
    case(open(libc::EBUSY), "off", "/dev/kvm: Device or resource busy"),
    case(Refusal::ioctl(&[GET_API_VERSION], 0), "off", "speaks version 0 of its interface, not 12"),
    case(Refusal::ioctl(&[CHECK_EXTENSION, IMMEDIATE_EXIT], 0), "off", "the host's KVM has no immediate exit"),
    case(Refusal::ioctl(&[CHECK_EXTENSION, SPLIT_IRQCHIP], 0), "split", "the host's KVM has no split interrupt controllers"),
    case(Refusal::ioctl(&[CREATE_VM], NO_MEMORY), "off", "KVM_CREATE_VM: Cannot allocate memory"),
    case(Refusal::ioctl(&[CREATE_IRQCHIP], INVALID), "on", "KVM_CREATE_IRQCHIP: Invalid argument"),
    case(Refusal::ioctl(&[ENABLE_CAP], INVALID), "off", "KVM_ENABLE_CAP(X86_USER_SPACE_MSR): Invalid argument"),
    case(Refusal::ioctl(&[CREATE_VCPU], NO_MEMORY), "off", "KVM_CREATE_VCPU: Cannot allocate memory"),
    // The second one.
    case(Refusal::ioctl(&[CREATE_VCPU, (2, 1)], INVALID), "off", "KVM_CREATE_VCPU: Invalid argument"),
    case(Refusal::ioctl(&[SET_CPUID2], libc::E2BIG), "off", "KVM_SET_CPUID2: Argument list too long"),
    case(Refusal::ioctl(&[SET_USER_MEMORY_REGION], NO_MEMORY), "off", "KVM_SET_USER_MEMORY_REGION: Cannot allocate memory"),
    case(Refusal::ioctl(&[SET_GSI_ROUTING], INVALID), "split", "KVM_SET_GSI_ROUTING: Invalid argument"),
    case(Refusal::ioctl(&[SET_LAPIC], INVALID), "split", "KVM_SET_LAPIC: Invalid argument"),
    placed(Refusal::ioctl(&[SET_SREGS], INVALID), "off", "KVM_SET_SREGS: Invalid argument"),
    placed(Refusal::ioctl(&[SET_REGS], INVALID), "on", "KVM_SET_REGS: Invalid argument"),
    placed(Refusal::ioctl(&[RUN], FAULT), "off", "KVM_RUN: Bad address"),
    placed(Refusal::ioctl(&[RUN], libc::EIO), "split", "KVM_RUN: Input/output error"),
    placed(Refusal::ioctl(&[RUN], FAULT), "on", "KVM_RUN: Bad address"),
    // While it runs: the timer's first interrupt, which must not get lost.
    placed(Refusal::ioctl(&[INTERRUPT], FAULT), "off", "KVM_INTERRUPT: Bad address"),
];

fn start(kernel: &str, irqchip: &str, more: &[&str], refusals: &[Refusal]) -> Guest {
    let accel = format!("kvm,self-test=off,kernel-irqchip={irqchip}");
    let mut command = Command::new(program());
    command.args(["-m", "16", "-smp", "2", "-display", "none", "-nodefaults", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
    command.args(["-cpu", "x86-64-v1", "-kernel", kernel, "-accel", &accel]).args(more);
    refuse(&mut command, refusals);
    Guest::spawn("kvm-errors", &mut command)
}

/// What was said, without what is said of a KVM that runs.
fn said(g: &mut Guest, status: i32) -> (Vec<String>, String) {
    g.expect_exit(status, LIMIT);
    let output = g.serial_to_end();
    let lines = g.errors_to_end();
    let other = |l: &&str| !l.contains("KVM runs the guest") && !l.contains("warning: KVM doesn't support");
    (lines.lines().filter(other).map(str::to_owned).collect(), output)
}

#[test]
fn a_kvm_that_fails_is_told_in_one_line_and_the_jit_goes_on() {
    let Some(kernel) = guest_of("guest.S", "errors", &["TICKS=20"]) else { return };
    if !kvm_is_there() {
        return;
    }
    for Case { refusal, irqchip, words, place } in CASES {
        let serial = ["-serial", "stdio"];
        let (lines, output) = said(&mut start(&kernel, irqchip, &serial, &[*refusal]), 1);
        let what = format!("{words} ({irqchip}): {lines:#?} {output:?}");
        assert!(lines.len() == 1 && lines[0].starts_with("rhea: -accel kvm: ") && lines[0].contains(words), "{what}");
        assert_eq!(lines[0].contains(" at 0x") && lines[0].contains("(bytes "), *place, "{what}");
        let (lines, output) = said(&mut start(&kernel, irqchip, &[&serial[..], &["-accel", "jit"]].concat(), &[*refusal]), RIGHT);
        let what = format!("{words} ({irqchip}), and the JIT: {lines:#?}");
        assert_eq!(output, "begins\nright\n", "{what}");
        let goes_on = |l: &String| l.contains("the guest goes on without it") || l.contains("-accel jit, for there is no KVM: ");
        assert!(lines.len() == 1 && lines[0].contains(words) && goes_on(&lines[0]), "{what}");
    }
}

/// Registers that KVM keeps to itself are lost: no other engine can go on.
#[test]
fn where_registers_are_lost_the_run_ends() {
    let Some(kernel) = guest_of("guest.S", "errors-long", &["TICKS=1000000"]) else { return };
    if !kvm_is_there() {
        return;
    }
    let log = scratch().join("kvm-errors.log");
    let serial = format!("file:{}", log.display());
    for (request, irqchip, name) in
        [(&[GET_REGS], "off", "KVM_GET_REGS"), (&[GET_REGS], "on", "KVM_GET_REGS"), (&[GET_LAPIC], "split", "KVM_GET_LAPIC")]
    {
        for more in [&[][..], &["-accel", "jit"]] {
            let _ = std::fs::remove_file(&log);
            let args = [&["-monitor", "stdio", "-serial", &serial], more].concat();
            let mut g = start(&kernel, irqchip, &args, &[Refusal::ioctl(request, FAULT)]);
            let began = Instant::now();
            // It may end before it begins, if somebody has wanted the registers by then.
            while std::fs::read(&log).unwrap_or_default() != b"begins\n" && !g.errors().contains("lost") {
                assert!(began.elapsed() < LIMIT, "the guest does not begin: {}", g.errors());
                std::thread::sleep(Duration::from_millis(5));
            }
            if !g.errors().contains("lost") {
                g.send("info registers\n");
            }
            let (mut lines, _) = said(&mut g, 1);
            // The monitor, if it is not answered any more.
            lines.retain(|l| l != "rhea: the CPU does not answer");
            let wanted = format!("rhea: -accel kvm: {name}: Bad address (os error 14); the guest's state is lost");
            assert_eq!(lines, [wanted], "{irqchip} {more:?}");
        }
    }
}

/// A KVM that only ever comes back at once gets nowhere, but whoever wants something of the machine gets it.
#[test]
fn a_storm_of_interruptions_holds_nobody_up() {
    let Some(kernel) = guest_of("halt.S", "errors-halt", &[]) else { return };
    if !kvm_is_there() {
        return;
    }
    for errno in [libc::EINTR, libc::EAGAIN] {
        let mut g = start(&kernel, "off", &["-monitor", "stdio"], &[Refusal::ioctl(&[RUN], errno)]);
        let began = Instant::now();
        g.wait_for("(rhea)", LIMIT);
        std::thread::sleep(Duration::from_millis(100));
        g.send("info registers\nquit\n");
        g.wait_for("EIP=001000", LIMIT);
        g.expect_exit(0, LIMIT);
        assert!(began.elapsed() < LIMIT / 4, "{:?}", began.elapsed());
    }
}
