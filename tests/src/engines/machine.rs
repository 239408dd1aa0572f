//! A machine of RAM and one CPU, small enough to be reset between thousands of test programs.

use crate::counters;
use arch_x86::cpuid::Word;
use arch_x86::models::configure;
use arch_x86::state::{cr0, cr4, efer};
use arch_x86::{CpuState, SegReg, Segment};
use backend::{Engine, Helper, Settings, VcpuBlock};
use frontend_x86::X86;
use iced_x86::IcedError;
use iced_x86::code_asm::CodeAssembler;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use vm_core::{CpuIo, Events, Pa, Ram, StopReason, Target, Vcpu, VcpuSignals};

pub const RAM_SIZE: u64 = 16 << 20;
const PAGE: u64 = 4096;

/// Where things lie; linear addresses, and physical ones unless said otherwise.
pub mod at {
    pub const IDT: u64 = 0x1000;
    pub const GDT: u64 = 0x2000;
    pub const TSS: u64 = 0x3000;
    pub const HANDLER: u64 = 0x4000;
    pub const FAULT_STACK: u64 = 0x7000;
    pub const TABLES: u64 = 0x10_0000;
    /// Two pages of code.
    pub const CODE: u64 = 0x20_0000;
    /// Two pages of ordinary data.
    pub const DATA: u64 = 0x30_0000;
    pub const READ_ONLY: u64 = 0x30_2000;
    pub const ABSENT: u64 = 0x30_3000;
    /// Linear alias of `DATA`.
    pub const ALIAS: u64 = 0x30_4000;
    /// Linear alias of the first page of `CODE`.
    pub const CODE_ALIAS: u64 = 0x30_5000;
    /// Ordinary data whose accessed and dirty bits are clear.
    pub const FRESH: u64 = 0x30_6000;
    /// Linear address of a page of `MMIO`.
    pub const DEVICE: u64 = 0x30_7000;
    pub const MMIO: u64 = 0x2000_0000;
    pub const STACK: u64 = 0x31_0000;
    pub const STACK_TOP: u64 = 0x31_0800;
}

/// Pages that programs may change, as (first, count): what is reset and compared.
const USED: &[(u64, u64)] = &[(0, 8), (0x100, 16), (0x200, 3), (0x2ff, 10), (0x30f, 3)];

const CODE_SEL: u16 = 0x08;
const DATA_SEL: u16 = 0x10;
const TSS_SEL: u16 = 0x18;

/// What programs run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// 64-bit mode, paging.
    Long,
    /// 32-bit flat protected mode, no paging.
    Flat,
}

/// RAM, a device that answers reads with a pattern and notes writes, no interrupt controller.
pub struct Board {
    ram: Ram,
    signals: Arc<VcpuSignals>,
    /// Vector of the interrupt that `Events::INTR` announces; accepting it clears the event.
    pub vector: AtomicU8,
    /// Pages that are memory, as (first, count).
    used: &'static [(u64, u64)],
    /// (physical address, size, value)
    pub writes: Mutex<Vec<(u64, u8, u64)>>,
}

impl CpuIo for Board {
    fn port_read(&self, _: u16, _: u8) -> u32 {
        !0
    }

    fn port_write(&self, _: u16, _: u8, _: u32) {}

    fn mmio_read(&self, pa: Pa, size: u8) -> u64 {
        if let Target::Ram { offset, .. } = self.target(pa)
            && offset <= RAM_SIZE - 8
        {
            return self.ram.read_uint(offset, size);
        }
        let v = pa.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        if size >= 8 { v } else { v & ((1 << (8 * size)) - 1) }
    }

    fn mmio_write(&self, pa: Pa, size: u8, value: u64) {
        let mut w = self.writes.lock().expect("no test panics with the lock held");
        if w.len() < 1000 {
            w.push((pa.0, size, if size >= 8 { value } else { value & ((1 << (8 * size)) - 1) }));
        }
    }

    fn msr_read(&self, index: u32) -> Option<u64> {
        (index == 0x1b).then_some(0xfee0_0900)
    }

    fn msr_write(&self, index: u32, _: u64) -> bool {
        index == 0x1b
    }

    fn cr8(&self) -> u8 {
        0
    }

    fn set_cr8(&self, _: u8) {}

    fn target(&self, pa: Pa) -> Target {
        // What is not compared is no memory.
        let used = self.used.iter().any(|&(first, n)| (first..first + n).contains(&(pa.0 / PAGE)));
        if used { Target::Ram { offset: pa.0, writable: true } } else { Target::Mmio }
    }

    fn ram(&self) -> &Ram {
        &self.ram
    }

    fn signals(&self) -> &VcpuSignals {
        &self.signals
    }

    fn ack_intr(&self) -> Option<u8> {
        self.signals.clear(Events::INTR);
        Some(self.vector.load(Ordering::SeqCst))
    }

    fn tsc(&self) -> u64 {
        1000
    }
}

/// Memory at a program's start: the pages of `USED`, and the CPU.
#[derive(Clone)]
pub struct Image {
    pub pages: Vec<(u64, Box<[u8; 4096]>)>,
    pub cpu: CpuState,
}

/// What a program left behind.
#[derive(Clone, PartialEq)]
pub struct Outcome {
    pub stop: StopReason,
    pub cpu: CpuState,
    pub pages: Vec<(u64, Box<[u8; 4096]>)>,
    pub mmio: Vec<(u64, u8, u64)>,
}

/// One engine with its machine.
pub struct Machine {
    pub board: Board,
    pub engine: Engine<X86, CpuState>,
}

/// All features but random numbers (RDRAND, RDSEED), which no two runs have alike.
pub fn new_cpu() -> CpuState {
    let mut config = configure("qemu64", &[]).expect("a known model");
    let all = arch_x86::features::implemented();
    config.features[..all.len()].copy_from_slice(&all);
    config.features[Word::L1Ecx as usize] &= !(1 << 30);
    config.features[Word::L7Ebx as usize] &= !(1 << 18);
    CpuState::new(&config, 0)
}

impl Machine {
    pub fn new(settings: Settings) -> std::io::Result<Machine> {
        Machine::over(USED, settings)
    }

    /// A machine whose memory is the pages `used`, as (first, count), below `RAM_SIZE`.
    pub fn over(used: &'static [(u64, u64)], settings: Settings) -> std::io::Result<Machine> {
        let cpu = new_cpu();
        let fe = Arc::new(X86::new(cpu.features));
        let helpers: Arc<[Helper<CpuState>]> = frontend_x86::helpers::table::<VcpuBlock<CpuState>>().into();
        let engine = Engine::new(fe, cpu, helpers, settings, None)?;
        let signals = Arc::new(VcpuSignals::default());
        signals.set_kick(engine.kick());
        let ram = Ram::new(RAM_SIZE)?;
        ram.add_listener(signals.clone());
        Ok(Machine { board: Board { ram, signals, vector: AtomicU8::new(0), used, writes: Mutex::default() }, engine })
    }

    pub fn ram(&self) -> &Ram {
        &self.board.ram
    }

    pub fn signals(&self) -> Arc<VcpuSignals> {
        self.board.signals.clone()
    }

    /// Brings memory and CPU to the image; pages that hold it already are not touched.
    pub fn load(&mut self, image: &Image) {
        let mut now = [0; 4096];
        for (page, bytes) in &image.pages {
            self.board.ram.read(page * PAGE, &mut now);
            if now != **bytes {
                self.board.ram.write(page * PAGE, &bytes[..]);
            }
        }
        *self.engine.cpu() = image.cpu.clone();
        self.engine.cpu_changed();
        self.board.writes.lock().expect("no test panics with the lock held").clear();
    }

    pub fn run(&mut self) -> StopReason {
        self.engine.run(&self.board)
    }

    /// Blocks and regions compiled so far.
    pub fn compiled(&mut self) -> u64 {
        counters::compiled(&self.engine.info_jit())
    }

    /// Runs from the image to the end.
    pub fn outcome(&mut self, image: &Image) -> Outcome {
        self.load(image);
        let stop = self.run();
        let mut cpu = self.engine.cpu().clone();
        let flags = cpu.rflags();
        cpu.set_rflags(flags);
        (cpu.pc_page, cpu.vtmp) = (0, [0; 2]);
        let mut pages = blank(self.board.used);
        for (page, bytes) in &mut pages {
            self.board.ram.read(*page * PAGE, &mut bytes[..]);
        }
        let mmio = self.board.writes.lock().expect("no test panics with the lock held").clone();
        Outcome { stop, cpu, pages, mmio }
    }
}

fn blank(used: &[(u64, u64)]) -> Vec<(u64, Box<[u8; 4096]>)> {
    used.iter().flat_map(|&(first, n)| first..first + n).map(|p| (p, Box::new([0; 4096]))).collect()
}

impl Image {
    /// Tables, handlers that halt, and a CPU at the start of `CODE`.
    pub fn new(world: World) -> Image {
        let mut i = Image { pages: blank(USED), cpu: new_cpu() };
        i.put(at::GDT + u64::from(CODE_SEL), &descriptor(world).to_le_bytes());
        i.put(at::GDT + u64::from(DATA_SEL), &0x00cf_9300_0000_ffffu64.to_le_bytes());
        i.put(at::TSS + 0x24, &at::FAULT_STACK.to_le_bytes());
        // Programs that go astray end soon.
        for page in [0, 5, 6, 7] {
            i.put(page * PAGE, &[0xf4; 0xe00]);
        }
        i.put(at::HANDLER, &[0xf4; 256]);
        for v in 0..32 {
            i.gate(world, v);
        }
        if world == World::Long {
            i.page_tables();
        }
        i.cpu(world);
        i
    }

    /// Writes bytes at a physical address inside the used pages; others are dropped.
    pub fn put(&mut self, pa: u64, bytes: &[u8]) {
        for (k, b) in bytes.iter().enumerate() {
            let a = pa + k as u64;
            if let Some((_, page)) = self.pages.iter_mut().find(|(p, _)| *p == a / PAGE) {
                page[(a % PAGE) as usize] = *b;
            }
        }
    }

    fn gate(&mut self, world: World, vector: u64) {
        self.handler(world, vector, at::HANDLER + 8 * vector);
    }

    /// An interrupt gate, in long mode on the stack of faults.
    pub fn handler(&mut self, world: World, vector: u64, handler: u64) {
        let ist = u64::from(world == World::Long);
        let raw = handler & 0xffff | u64::from(CODE_SEL) << 16 | ist << 32 | 0x8e << 40 | (handler >> 16) << 48;
        let size = if world == World::Long { 16 } else { 8 };
        self.put(at::IDT + vector * size, &raw.to_le_bytes());
    }

    /// The first 16 MiB 1:1 by small pages, with the exceptions that `at` names.
    fn page_tables(&mut self) {
        const ALL: u64 = 0x63;
        let t = at::TABLES;
        for (i, to) in [(0, t + 0x1000), (1, t + 0x2000)] {
            self.put(t + i * 0x1000, &(to | 3).to_le_bytes());
        }
        for pt in 0..8 {
            self.put(t + 0x2000 + 8 * pt, &((t + 0x3000 + 0x1000 * pt) | 3).to_le_bytes());
            for n in 0..512 {
                let va = (pt << 21) + (n << 12);
                let entry = match va {
                    at::READ_ONLY => va | 0x61,
                    at::ABSENT => 0,
                    at::ALIAS => at::DATA | ALL,
                    at::CODE_ALIAS => at::CODE | ALL,
                    at::FRESH => va | 3,
                    at::DEVICE => at::MMIO | ALL,
                    // Global, as kernels map themselves.
                    at::CODE => va | ALL | 0x100,
                    _ => va | ALL,
                };
                self.put(t + 0x3000 + 0x1000 * pt + 8 * n, &entry.to_le_bytes());
            }
        }
    }

    fn cpu(&mut self, world: World) {
        let c = &mut self.cpu;
        c.cr0 |= cr0::PE | cr0::WP;
        c.cr4 |= cr4::OSFXSR | cr4::OSXMMEXCPT;
        if world == World::Long {
            c.cr0 |= cr0::PG;
            c.cr4 |= cr4::PAE | cr4::PGE;
            c.efer |= efer::LME | efer::LMA | efer::NXE;
            c.cr3 = at::TABLES;
        }
        (c.gdt.base, c.gdt.limit) = (at::GDT, 0xff);
        (c.idt.base, c.idt.limit) = (at::IDT, 0xfff);
        c.tr = Segment { base: at::TSS, limit: 0xfff, attr: Segment::P | 11 << 8, selector: TSS_SEL };
        let code = Segment { base: 0, limit: !0, attr: (descriptor(world) >> 32) as u32 & 0x00f0_ff00, selector: CODE_SEL };
        *c.seg_mut(SegReg::Cs) = code;
        let data = Segment { base: 0, limit: !0, attr: 0x00c0_9300, selector: DATA_SEL };
        for s in [SegReg::Ss, SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs] {
            *c.seg_mut(s) = data;
        }
        c.cpl = 0;
        c.mxcsr = 0x1f80;
        c.fcw = 0x37f;
        c.gpr[4] = at::STACK_TOP;
        c.rip = at::CODE;
        c.set_rflags(2);
    }
}

fn descriptor(world: World) -> u64 {
    if world == World::Long { 0x00af_9b00_0000_ffff } else { 0x00cf_9b00_0000_ffff }
}

/// Names and settings of the engines that are compared; the first is the reference.
pub fn engines() -> Vec<(&'static str, Settings)> {
    let s = |jit, threshold, single_block_regions, background| Settings {
        jit,
        threshold,
        tier1: false,
        hot: 0,
        single_block_regions,
        bisect: None,
        background,
        max_insns: backend::MAX_INSNS,
        counter: None,
        perfmap: None,
    };
    vec![
        ("interp", s(false, 0, false, false)),
        ("jit0", s(true, 0, false, false)),
        ("jit0-single", s(true, 0, true, false)),
        ("jit2", s(true, 2, false, false)),
        ("jit2-bg", s(true, 2, false, true)),
        ("tier1", Settings { tier1: true, ..s(true, 0, false, false) }),
        ("regions", Settings { tier1: true, hot: 3, ..s(true, 2, false, false) }),
    ]
}

/// Does something with a machine of each setting, and sees that those compile that should.
pub fn on_all(f: impl Fn(&str, &mut Machine)) {
    for (name, settings) in engines() {
        // The compile thread may still be at work when a short program ends.
        let (off, at_once) = (!settings.jit, settings.jit && !settings.background);
        let mut m = Machine::new(settings).unwrap();
        f(name, &mut m);
        let compiled = m.compiled();
        assert!(!(off && compiled > 0 || at_once && compiled == 0), "{name}: {compiled} compiled");
    }
}

/// `code` at a distance from `at::CODE`, to be run from its first byte.
pub fn image(world: World, offset: u64, code: &[u8]) -> Image {
    let mut i = Image::new(world);
    i.put(at::CODE + offset, code);
    i.cpu.rip = at::CODE + offset;
    i
}

/// 64-bit code for `at::CODE`.
pub fn assembled(code: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    code(&mut a).unwrap();
    a.assemble(at::CODE).unwrap()
}
