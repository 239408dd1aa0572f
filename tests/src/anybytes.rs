//! Random bytes as code in every mode, from random registers: whatever they are, the emulator goes on.

use crate::engines::machine::{Image, Machine, World, at};
use arch_x86::flags::bit;
use arch_x86::state::{cr0, cr4};
use arch_x86::{CpuState, SegReg, Segment};
use backend::Settings;
use std::sync::Arc;
use vm_core::testing::Rng;
use vm_core::{InsnCounter, StopReason, Vcpu};

/// The modes that code runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Real,
    V86,
    Protected16,
    Protected32,
    Long,
    LongUser,
}

pub const MODES: [Mode; 6] = [Mode::Real, Mode::V86, Mode::Protected16, Mode::Protected32, Mode::Long, Mode::LongUser];

/// Instructions that a string of bytes may run for.
const INSTRUCTIONS: u64 = 24;
/// Bytes of code.
const BYTES: usize = 48;
/// Where code of 16 bits lies.
const LOW: u64 = 0x5000;

/// One machine, and what it starts from in each mode.
pub struct AnyBytes {
    machine: Machine,
    counter: Arc<InsnCounter>,
    images: Vec<Image>,
    /// Runs since memory was last brought back whole.
    runs: u64,
}

/// What runs ended in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    pub runs: u64,
    pub limit: u64,
    pub halted: u64,
    pub triple: u64,
}

impl AnyBytes {
    /// `jit`: each block is compiled before it runs.
    pub fn new(jit: bool) -> std::io::Result<AnyBytes> {
        let counter = Arc::new(InsnCounter::default());
        let settings = Settings {
            jit,
            threshold: 0,
            tier1: jit,
            hot: 0,
            single_block_regions: false,
            bisect: None,
            background: false,
            // Strings are short; what lies behind them is not to be translated at length.
            max_insns: if jit { backend::MAX_INSNS } else { 12 },
            counter: Some(counter.clone()),
        };
        let images = MODES.iter().map(|m| image(*m)).collect();
        Ok(AnyBytes { machine: Machine::new(settings)?, counter, images, runs: 0 })
    }

    /// Runs `count` strings of random bytes in each mode in turn.
    pub fn run(&mut self, r: &mut Rng, count: u64, ends: &mut Ends) {
        for n in 0..count {
            let mode = (n % MODES.len() as u64) as usize;
            // Most runs leave memory as it was; what they leave is random memory for the next.
            if self.runs.is_multiple_of(64 * MODES.len() as u64) || mode == 0 && self.runs.is_multiple_of(6 * 16) {
                self.machine.load(&self.images[mode]);
            }
            self.runs += 1;
            self.once(r, mode, ends);
        }
    }

    fn once(&mut self, r: &mut Rng, mode: usize, ends: &mut Ends) {
        let image = &self.images[mode];
        let base = image.cpu.rip + image.cpu.seg(SegReg::Cs).base;
        let mut code = [0u8; BYTES];
        code.chunks_mut(8).for_each(|c| c.copy_from_slice(&r.next_u64().to_le_bytes()));
        shape(r, &mut code);
        // Tables and page tables, which the code may have changed.
        for (page, bytes) in &image.pages {
            let system = *page < 5 || (0x100..0x110).contains(page);
            let mut now = [0; 4096];
            if system {
                self.machine.ram().read(page * 4096, &mut now);
                if now != **bytes {
                    self.machine.ram().write(page * 4096, &bytes[..]);
                }
            }
        }
        self.machine.ram().write(base, &code);
        self.machine.ram().write(base + BYTES as u64, &[0xf4; 16]);
        let mut cpu = image.cpu.clone();
        registers(r, &mut cpu);
        *self.machine.engine.cpu() = cpu;
        self.machine.engine.cpu_changed();
        self.counter.set_limit(self.counter.executed() + INSTRUCTIONS);
        ends.runs += 1;
        match self.machine.run() {
            StopReason::Halted => ends.halted += 1,
            StopReason::TripleFault => ends.triple += 1,
            _ => ends.limit += 1,
        }
    }
}

/// Half of the strings begin with something that random bytes seldom begin with.
fn shape(r: &mut Rng, code: &mut [u8; BYTES]) {
    let x = r.next_u64();
    let head: &[u8] = match x % 12 {
        0 => &[0x0f],
        1 => &[0x66, 0x0f],
        2 => &[0xf3, 0x0f],
        3 => &[0xf2, 0x0f],
        4 => &[0xc5],
        5 => &[0xc4, 0xe2],
        6 => &[0x0f, 0x01],
        7 => &[0x0f, 0xae],
        8 => &[0x0f, 0x00],
        9 => &[0xf0],
        10 => &[0x0f, 0xc7],
        _ => &[0x0f, 0x38],
    };
    for at in [0, 16, 32] {
        if r.one_in(2) {
            code[at..at + head.len()].copy_from_slice(head);
        }
    }
}

fn registers(r: &mut Rng, c: &mut CpuState) {
    for g in &mut c.gpr {
        *g = match r.below(6) {
            0 => r.next_u64(),
            1 => r.next_u64() as i8 as u64,
            2 => 1 << r.below(64),
            3 => at::DATA + r.below(0x4000),
            4 => r.pick(&[at::GDT, at::IDT, at::TSS, at::TABLES, at::CODE]) + r.below(0x100),
            _ => r.below(0x200),
        };
    }
    if !r.one_in(4) {
        c.gpr[4] = if c.rip < 0x1_0000 { 0x6f00 } else { at::STACK_TOP } - 8 * r.below(8);
    }
    c.xmm.iter_mut().for_each(|x| *x = u128::from(r.next_u64()) << 64 | u128::from(r.next_u64()));
    if r.one_in(3) {
        c.mxcsr = r.next_u64() as u32 & 0xffff;
        c.fcw = r.next_u64() as u16;
        c.fsw = r.next_u64() as u16;
    }
    c.ftw = r.next_u64() as u8;
    let settable = bit::ARITH | bit::DF | bit::TF | bit::AC | bit::NT | bit::RF;
    let f = c.rflags() & bit::VM | r.next_u64() & settable & if r.one_in(4) { !0 } else { !bit::TF };
    c.set_rflags(f | 2 | r.below(4) << 12);
}

fn image(mode: Mode) -> Image {
    let long = matches!(mode, Mode::Long | Mode::LongUser);
    let mut i = Image::new(if long { World::Long } else { World::Flat });
    let c = &mut i.cpu;
    c.cr4 |= cr4::OSXSAVE | cr4::DE;
    c.cr0 |= cr0::AM | cr0::MP | cr0::NE;
    c.xcr0 = 7;
    let real = Segment { base: 0, limit: 0xffff, attr: 0x9300, selector: 0 };
    match mode {
        Mode::Real => {
            c.cr0 &= !cr0::PE;
            c.seg = [real; 6];
            c.idt.limit = 0x3ff;
            c.rip = LOW;
        }
        Mode::V86 => {
            c.seg = [Segment { attr: 0xf300, ..real }; 6];
            (c.cpl, c.rip) = (3, LOW);
            c.set_rflags(bit::VM | 2);
        }
        Mode::Protected16 => {
            let code = c.seg_mut(SegReg::Cs);
            (code.limit, code.attr) = (0xffff, 0x9b00);
            for s in [SegReg::Ss, SegReg::Ds, SegReg::Es] {
                (c.seg_mut(s).limit, c.seg_mut(s).attr) = (0xffff, 0x9300);
            }
            c.rip = LOW;
        }
        Mode::Protected32 | Mode::Long => {}
        Mode::LongUser => {
            c.cpl = 3;
            for s in [SegReg::Cs, SegReg::Ss, SegReg::Ds, SegReg::Es] {
                c.seg_mut(s).attr |= 3 << Segment::DPL_SHIFT;
                c.seg_mut(s).selector |= 3;
            }
            user_pages(&mut i);
        }
    }
    i.cpu.update_mode();
    i
}

/// Lets user code use code, data and stack.
fn user_pages(i: &mut Image) {
    let t = at::TABLES;
    i.put(t, &[7]);
    i.put(t + 0x1000, &[7]);
    for pt in 0..8 {
        i.put(t + 0x2000 + 8 * pt, &[7]);
    }
    for page in (0x200..0x203).chain(0x300..0x303).chain(0x306..0x307).chain(0x30f..0x312u64) {
        i.put(t + 0x3000 + 8 * page, &[0x67]);
    }
}
