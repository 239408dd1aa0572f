//! A guest of a few instructions that does what kernels need, to find out whether the host's KVM can run one: where the processor
//! cannot virtualise, KVM's emulator runs all that is privileged, and lacks much. Takes milliseconds.

use crate::vcpu::KvmCpu;
use crate::vm::Vm;
use crate::{Irqchip, KvmError};
use arch_x86::cpuid::{CpuConfigured, feature};
use arch_x86::state::{DescTable, SegReg, Segment, cr0, cr4, efer};
use arch_x86::{CpuState, models};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;
use std::time::Duration;
use vm_core::{CpuIo, Events, Pa, Ram, StopReason, Target, VcpuSignals};

const RAM: u64 = 64 << 10;
const PML4: u64 = 0x1000;
const GDT: u64 = 0x4000;
const TSS: u64 = 0x4800;
const IDT: u64 = 0x5000;
pub(crate) const CODE: u64 = 0x6000;
#[cfg(test)]
pub(crate) const DATA: u64 = 0x8000;
/// Top of the kernel's stack.
pub(crate) const STACK: u64 = 0xa000;
/// Offsets in the code: handlers of INT3 and of the external interrupt, entry of SYSCALL.
const INT3_AT: u64 = 0x200;
const IRQ_AT: u64 = 0x220;
const SYSCALL_AT: u64 = 0x240;
const IRQ: u8 = 0x40;
/// Port of the numbers that the guest gets to, and the one that asks for an interrupt.
const PROGRESS: u16 = 0x80;
const ASK: u16 = 0x81;
const DONE: u32 = 0xaa;
const LIMIT: Duration = Duration::from_secs(1);

/// What each number stands for, from 1.
const STEPS: [&str; 6] =
    ["its first instruction", "CMPXCHG16B", "FXRSTOR and XRSTOR", "INT3 and IRET", "a ring change and SYSCALL", "an interrupt"];

// GNU as, linked for 6000h; EDI is 1 where XSAVE is. Handlers follow at the offsets above.
// .code64
// start:
//  mov $1,%al; out %al,$0x80
//  mov $0x8000,%esi
//  xor %eax,%eax; xor %edx,%edx; mov $1,%ebx; mov $2,%ecx
//  lock cmpxchg16b (%rsi)
//  jne bad
//  cmpq $2,8(%rsi)
//  jne bad
//  mov $2,%al; out %al,$0x80
//  fxsave 0x8200
//  fxrstor 0x8200
//  test %edi,%edi
//  jz 1f
//  mov %cr4,%rax; or $0x40000,%eax; mov %rax,%cr4
//  xor %ecx,%ecx; xgetbv
//  xsave 0x8400
//  xrstor 0x8400
// 1:
//  mov $3,%al; out %al,$0x80
//  int3
//  cmpl $1,0x8010
//  jne bad
//  mov $4,%al; out %al,$0x80
//  push $0x23; push $0xa000; push $2; push $0x2b; push $user; iretq
// user:
//  mov $5,%eax
//  syscall
// bad:
//  mov $0xff,%al; out %al,$0x80; cli; hlt
// syscalled:
//  mov $0x9f00,%esp
//  cmp $5,%eax; jne bad
//  out %al,$0x80
//  out %al,$0x81
//  sti
//  hlt
//  cli
//  cmpl $1,0x8014
//  jne bad
//  mov $6,%al; out %al,$0x80
//  mov $0xc0000102,%ecx; mov $0x1234,%eax; mov $0x1,%edx; wrmsr
//  swapgs
//  mov $0xc0000101,%ecx; rdmsr
//  cmp $0x1234,%eax; jne bad
//  swapgs
//  mov %cr3,%rax; mov %rax,%cr3; invlpg 0x8000
//  clts; rdtsc; cpuid
//  movaps %xmm0,0x8200
//  lock incl 0x8018
//  mov $0xaa,%al; out %al,$0x80
//  cli; hlt
// .org 0x200
//  incl 0x8010; iretq
// .org 0x220
//  incl 0x8014; iretq
// .org 0x240
//  jmp syscalled
#[rustfmt::skip]
const MAIN: [u8; 253] = [
    0xb0, 0x01, 0xe6, 0x80, 0xbe, 0x00, 0x80, 0x00, 0x00, 0x31, 0xc0, 0x31, 0xd2, 0xbb, 0x01, 0x00,
    0x00, 0x00, 0xb9, 0x02, 0x00, 0x00, 0x00, 0xf0, 0x48, 0x0f, 0xc7, 0x0e, 0x75, 0x6b, 0x48, 0x83,
    0x7e, 0x08, 0x02, 0x75, 0x64, 0xb0, 0x02, 0xe6, 0x80, 0x0f, 0xae, 0x04, 0x25, 0x00, 0x82, 0x00,
    0x00, 0x0f, 0xae, 0x0c, 0x25, 0x00, 0x82, 0x00, 0x00, 0x85, 0xff, 0x74, 0x20, 0x0f, 0x20, 0xe0,
    0x0d, 0x00, 0x00, 0x04, 0x00, 0x0f, 0x22, 0xe0, 0x31, 0xc9, 0x0f, 0x01, 0xd0, 0x0f, 0xae, 0x24,
    0x25, 0x00, 0x84, 0x00, 0x00, 0x0f, 0xae, 0x2c, 0x25, 0x00, 0x84, 0x00, 0x00, 0xb0, 0x03, 0xe6,
    0x80, 0xcc, 0x83, 0x3c, 0x25, 0x10, 0x80, 0x00, 0x00, 0x01, 0x75, 0x1d, 0xb0, 0x04, 0xe6, 0x80,
    0x6a, 0x23, 0x68, 0x00, 0xa0, 0x00, 0x00, 0x6a, 0x02, 0x6a, 0x2b, 0x68, 0x82, 0x60, 0x00, 0x00,
    0x48, 0xcf, 0xb8, 0x05, 0x00, 0x00, 0x00, 0x0f, 0x05, 0xb0, 0xff, 0xe6, 0x80, 0xfa, 0xf4, 0xbc,
    0x00, 0x9f, 0x00, 0x00, 0x83, 0xf8, 0x05, 0x75, 0xf0, 0xe6, 0x80, 0xe6, 0x81, 0xfb, 0xf4, 0xfa,
    0x83, 0x3c, 0x25, 0x14, 0x80, 0x00, 0x00, 0x01, 0x75, 0xdf, 0xb0, 0x06, 0xe6, 0x80, 0xb9, 0x02,
    0x01, 0x00, 0xc0, 0xb8, 0x34, 0x12, 0x00, 0x00, 0xba, 0x01, 0x00, 0x00, 0x00, 0x0f, 0x30, 0x0f,
    0x01, 0xf8, 0xb9, 0x01, 0x01, 0x00, 0xc0, 0x0f, 0x32, 0x3d, 0x34, 0x12, 0x00, 0x00, 0x75, 0xb9,
    0x0f, 0x01, 0xf8, 0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x0f, 0x01, 0x3c, 0x25, 0x00, 0x80, 0x00,
    0x00, 0x0f, 0x06, 0x0f, 0x31, 0x0f, 0xa2, 0x0f, 0x29, 0x04, 0x25, 0x00, 0x82, 0x00, 0x00, 0xf0,
    0xff, 0x04, 0x25, 0x18, 0x80, 0x00, 0x00, 0xb0, 0xaa, 0xe6, 0x80, 0xfa, 0xf4,
];
/// incl COUNTER; iretq: of INT3, of the interrupt.
const ON_INT3: [u8; 9] = [0xff, 0x04, 0x25, 0x10, 0x80, 0x00, 0x00, 0x48, 0xcf];
const ON_IRQ: [u8; 9] = [0xff, 0x04, 0x25, 0x14, 0x80, 0x00, 0x00, 0x48, 0xcf];
/// jmp syscalled
const ON_SYSCALL: [u8; 5] = [0xe9, 0x4a, 0xfe, 0xff, 0xff];

/// A machine of RAM, two ports and nothing else.
pub(crate) struct Bench {
    pub ram: Arc<Ram>,
    pub signals: Arc<VcpuSignals>,
    /// What was written to ports and to the rest of memory: (address, size, value).
    pub written: Mutex<Vec<(u64, u8, u64)>>,
    pub index: usize,
    /// The vCPU is asked to stop as it takes an interrupt.
    #[cfg(test)]
    pub stops_at_intr: AtomicBool,
}

impl Bench {
    pub fn new(ram_bytes: u64) -> std::io::Result<Self> {
        let ram = Arc::new(Ram::new(ram_bytes)?);
        Ok(Self::over(ram, 0))
    }

    /// Another CPU's way to the same RAM.
    #[cfg(test)]
    pub fn sibling(&self, index: usize) -> Self {
        Self::over(self.ram.clone(), index)
    }

    fn over(ram: Arc<Ram>, index: usize) -> Self {
        Self {
            ram,
            signals: Arc::default(),
            written: Mutex::default(),
            index,
            #[cfg(test)]
            stops_at_intr: false.into(),
        }
    }

    /// The last number that came out.
    fn progress(&self) -> u32 {
        self.written.lock().iter().rev().find(|w| w.0 == u64::from(PROGRESS)).map_or(0, |w| w.2 as u32)
    }
}

impl CpuIo for Bench {
    fn port_read(&self, port: u16, _: u8) -> u32 {
        u32::from(port) * 0x0101
    }

    fn port_write(&self, port: u16, size: u8, value: u32) {
        self.written.lock().push((port.into(), size, value.into()));
        if port == ASK {
            self.signals.raise(Events::INTR);
        }
    }

    fn mmio_read(&self, pa: Pa, size: u8) -> u64 {
        match self.target(pa) {
            Target::Ram { offset, .. } if offset + u64::from(size) <= self.ram.size() => self.ram.read_uint(offset, size),
            _ => pa.0 & 0xff,
        }
    }

    fn mmio_write(&self, pa: Pa, size: u8, value: u64) {
        self.written.lock().push((pa.0, size, value));
    }

    fn msr_read(&self, index: u32) -> Option<u64> {
        (index == arch_x86::msr::index::APIC_BASE).then_some(0xfee0_0900)
    }

    fn msr_write(&self, _: u32, _: u64) -> bool {
        false
    }

    fn cr8(&self) -> u8 {
        0
    }

    fn set_cr8(&self, _: u8) {}

    fn target(&self, pa: Pa) -> Target {
        match pa.0 < self.ram.size() {
            true => Target::Ram { offset: pa.0, writable: true },
            false => Target::Mmio,
        }
    }

    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn signals(&self) -> &VcpuSignals {
        &self.signals
    }

    fn index(&self) -> usize {
        self.index
    }

    fn ack_intr(&self) -> Option<u8> {
        self.signals.clear(Events::INTR);
        #[cfg(test)]
        if self.stops_at_intr.load(std::sync::atomic::Ordering::Relaxed) {
            self.signals.raise(Events::STOP);
        }
        Some(IRQ)
    }

    fn tsc(&self) -> u64 {
        0
    }
}

/// 64-bit mode at CPL 0, with everything below 2 MiB mapped for the user too; RIP at `CODE`.
pub(crate) fn long_mode(ram: &Ram, config: &CpuConfigured) -> CpuState {
    let put = |at: u64, v: u64| ram.write_uint(at, 8, v);
    put(PML4, 0x2007);
    put(0x2000, 0x3007);
    put(0x3000, 0x87);
    // 64-bit code and data of the kernel, 32-bit code, data and 64-bit code of the user, TSS.
    let gdt =
        [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x00cf_fb00_0000_ffff, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff];
    (0..).zip(gdt).for_each(|(i, d)| put(GDT + 8 * i, d));
    put(GDT + 0x30, 0x0000_8b00_0000_0067 | TSS << 16);
    put(GDT + 0x38, 0);
    put(TSS + 4, STACK);
    for (vector, at) in [(3, INT3_AT), (u64::from(IRQ), IRQ_AT)] {
        let at = CODE + at;
        // Gates for CPL 3 too.
        put(IDT + 16 * vector, 0xee00 << 32 | 8 << 16 | at & 0xffff | (at & !0xffff) << 32);
        put(IDT + 16 * vector + 8, 0);
    }
    let mut cpu = CpuState::new(config, 0);
    let code = Segment { base: 0, limit: u32::MAX, attr: 0xa0_9b00, selector: 8 };
    let data = Segment { base: 0, limit: u32::MAX, attr: 0xc0_9300, selector: 0x10 };
    cpu.seg = [data; 6];
    *cpu.seg_mut(SegReg::Cs) = code;
    cpu.tr = Segment { base: TSS, limit: 0x67, attr: 0x8b00, selector: 0x30 };
    cpu.gdt = DescTable { base: GDT, limit: 0x3f };
    cpu.idt = DescTable { base: IDT, limit: 0xfff };
    (cpu.cr0, cpu.cr3) = (cr0::PE | cr0::PG | cr0::NE | cr0::ET | cr0::MP, PML4);
    cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    cpu.efer = efer::LME | efer::LMA | efer::SCE;
    (cpu.star, cpu.lstar) = (0x0018_0008 << 32, CODE + SYSCALL_AT);
    (cpu.rip, cpu.gpr[4]) = (CODE, STACK);
    cpu.update_mode();
    cpu
}

/// The features of `model` that KVM has.
pub(crate) fn config(vm: &Vm, model: &str) -> Result<CpuConfigured, KvmError> {
    let mut c = models::configure(model, &[]).map_err(KvmError::SelfTest)?;
    c.features.iter_mut().zip(vm.features()).for_each(|(w, there)| *w &= there);
    Ok(c)
}

/// Runs until the guest halts with interrupts off, or time is up. Gives why KVM failed, if it did.
pub(crate) fn run_bench(cpu: &mut KvmCpu, io: &Bench, limit: Duration) -> Result<StopReason, String> {
    let (done, ended) = channel::<()>();
    std::thread::scope(|s| {
        s.spawn(move || {
            if ended.recv_timeout(limit).is_err_and(|e| e == std::sync::mpsc::RecvTimeoutError::Timeout) {
                io.signals.raise(Events::STOP);
            }
        });
        let outcome = cpu.run(io, &AtomicBool::new(false)).map_err(|f| f.to_string());
        drop(done);
        outcome
    })
}

/// Whether the host's KVM can run a kernel.
pub fn self_test() -> Result<(), KvmError> {
    let vm = Vm::new(Irqchip::Off)?;
    let io = Bench::new(RAM).map_err(|e| KvmError::SelfTest(e.to_string()))?;
    vm.set_memory(&io.ram, std::iter::once((0, RAM, 0, true)))?;
    for (at, code) in [(0, &MAIN[..]), (INT3_AT, &ON_INT3), (IRQ_AT, &ON_IRQ), (SYSCALL_AT, &ON_SYSCALL)] {
        io.ram.write(CODE + at, code);
    }
    let mut state = long_mode(&io.ram, &config(&vm, "max")?);
    state.gpr[7] = state.has(feature::XSAVE).into();
    let mut cpu = KvmCpu::new(&vm, 0, state)?;
    io.signals.set_kick(Box::new(cpu.kick()));
    let outcome = run_bench(&mut cpu, &io, LIMIT);
    let got_to = io.progress();
    if got_to == DONE && outcome == Ok(StopReason::Halted) {
        return Ok(());
    }
    let step = STEPS.get(got_to as usize).unwrap_or(&"moving registers of the system");
    let how = match outcome {
        Err(why) => why,
        Ok(StopReason::Stopped) => "no end in a second".into(),
        Ok(why) => format!("{why:?}, wrong result"),
    };
    Err(KvmError::SelfTest(format!("{step}: {how}")))
}
