//! Random bytes as code in every mode, from random registers: whatever they are, the emulator goes on.

use crate::engines::machine::{Image, Machine, World, at};
use arch_x86::flags::bit;
use arch_x86::state::{cr0, cr4};
use arch_x86::{CpuState, SegReg, Segment};
use backend::Settings;
use std::fmt;
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

/// Instructions that a string of bytes may run for: most of them in the interpreter, one of 32 and all others.
const INSTRUCTIONS: [u64; 2] = [1, 12];
/// Strings begin this far apart. What one of them leads to beyond is the next.
const STRING: usize = 64;
/// Strings of a batch: those of a page of random bytes.
pub const BATCH: u64 = PAGE / STRING as u64;
const PAGE: u64 = 4096;
/// Where code of 16 bits lies.
const LOW: u64 = 0x5000;

/// One machine, and what it starts from in each mode.
pub struct AnyBytes {
    machine: Machine,
    counter: Arc<InsnCounter>,
    jit: bool,
    starts: Vec<Start>,
    /// The mode whose memory the machine has.
    loaded: Option<usize>,
}

struct Start {
    image: Image,
    /// Where in the image pages of RAM are, by page number.
    index: Vec<Option<usize>>,
    /// The page of the strings.
    page: u64,
}

/// What runs ended in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ends {
    /// By mode, in the order of `MODES`.
    pub runs: [u64; MODES.len()],
    pub limit: u64,
    pub halted: u64,
    pub triple: u64,
}

impl Ends {
    pub fn all(&self) -> u64 {
        self.runs.iter().sum()
    }

    pub fn add(&mut self, other: &Ends) {
        self.runs.iter_mut().zip(other.runs).for_each(|(a, b)| *a += b);
        self.limit += other.limit;
        self.halted += other.halted;
        self.triple += other.triple;
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} strings (", self.all())?;
        for (i, (mode, runs)) in MODES.iter().zip(self.runs).enumerate() {
            write!(f, "{}{mode:?} {runs}", if i == 0 { "" } else { ", " })?;
        }
        write!(f, "): {} halted, {} shut down, {} went on", self.halted, self.triple, self.limit)
    }
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
            // More would be translated for nothing.
            max_insns: if jit { 8 } else { 1 },
            counter: Some(counter.clone()),
            perfmap: None,
        };
        let machine = Machine::new(settings)?;
        machine.ram().log_writes();
        Ok(AnyBytes { machine, counter, jit, starts: MODES.iter().map(|m| Start::new(*m)).collect(), loaded: None })
    }

    /// Runs the strings of one page of random bytes in a mode: the same for the same seed.
    pub fn batch(&mut self, mode: Mode, seed: u64, ends: &mut Ends) {
        let n = mode as usize;
        let r = &mut Rng(seed ^ (n as u64) << 56);
        self.starts[n].draw(r);
        if self.loaded.replace(n) == Some(n) {
            self.restore(n);
            let page = self.starts[n].page;
            [page, page + 1].iter().for_each(|p| self.restore_page(n, *p));
        } else {
            self.machine.load(&self.starts[n].image);
        }
        self.machine.ram().take_written();
        for k in 0..BATCH {
            self.once(r, n, k * STRING as u64);
            ends.runs[n] += 1;
            match self.machine.run() {
                StopReason::Halted => ends.halted += 1,
                StopReason::TripleFault => ends.triple += 1,
                _ => ends.limit += 1,
            }
            self.restore(n);
        }
    }

    /// Makes the CPU ready for the string at an offset in its page.
    fn once(&mut self, r: &mut Rng, mode: usize, offset: u64) {
        let start = &self.starts[mode].image.cpu;
        let cpu = self.machine.engine.cpu();
        // What the TLB holds is still good, or as stale as it may be in a guest.
        let kept = offset != 0 && translation(cpu) == translation(start);
        cpu.clone_from(start);
        cpu.rip += offset;
        registers(r, cpu);
        if !kept {
            self.machine.engine.cpu_changed();
        }
        let long = self.jit || r.next_u64() >> 59 == 0;
        self.counter.set_limit(self.counter.executed() + INSTRUCTIONS[usize::from(long)]);
    }

    /// Brings pages back that have been written.
    fn restore(&mut self, mode: usize) {
        let written = self.machine.ram().take_written();
        if !written.is_empty() {
            written.iter().for_each(|page| self.restore_page(mode, *page));
            // Those were writes as well.
            self.machine.ram().take_written();
        }
    }

    fn restore_page(&self, mode: usize, page: u64) {
        let start = &self.starts[mode];
        if let Some(Some(i)) = start.index.get(page as usize) {
            self.machine.ram().write(page * PAGE, &start.image.pages[*i].1[..]);
        }
    }
}

impl Start {
    fn new(mode: Mode) -> Start {
        let image = image(mode);
        let last = image.pages.iter().map(|p| p.0).max().unwrap_or(0);
        let index = (0..=last).map(|n| image.pages.iter().position(|p| p.0 == n)).collect();
        Start { page: image.cpu.rip / PAGE, image, index }
    }

    /// New strings; what lies behind their page is random as well where that is code.
    fn draw(&mut self, r: &mut Rng) {
        let behind = usize::from(self.page * PAGE == at::CODE);
        for p in self.page..=self.page + behind as u64 {
            let Some(bytes) = self.index[p as usize].map(|i| &mut self.image.pages[i].1) else { continue };
            bytes.chunks_mut(8).for_each(|c| c.copy_from_slice(&r.next_u64().to_le_bytes()));
            bytes.chunks_mut(STRING).for_each(|c| shape(r, c));
        }
    }
}

/// Registers that translations of addresses depend on.
fn translation(c: &CpuState) -> ([u64; 4], [u64; 4], u32, bool, bool) {
    ([c.cr0, c.cr3, c.cr4, c.efer], c.pdpte, c.pkru, c.a20_masked, c.smm)
}

/// Half of the strings begin with something that random bytes seldom begin with.
fn shape(r: &mut Rng, code: &mut [u8]) {
    let head: &[u8] = match r.next_u64() >> 8 & 31 {
        0 => &[0x66, 0x0f],
        1 => &[0xf3, 0x0f],
        2 => &[0xf2, 0x0f],
        3 => &[0xc5],
        4 => &[0xc4, 0xe2],
        5 => &[0x0f, 0x01],
        6 => &[0x0f, 0xae],
        7 => &[0x0f, 0x00],
        8 => &[0xf0],
        9 => &[0x0f, 0xc7],
        10 => &[0x0f, 0x38],
        11 => &[0x0f, 0x3a],
        12 => &[0x48],
        13..16 => &[0x0f],
        _ => &[],
    };
    code[..head.len()].copy_from_slice(head);
}

fn registers(r: &mut Rng, c: &mut CpuState) {
    const TABLES: [u64; 8] =
        [at::GDT, at::IDT, at::TSS, at::TABLES, at::CODE, at::TABLES + 0x3000, at::FAULT_STACK - 0x80, at::STACK];
    for g in &mut c.gpr {
        let x = r.next_u64();
        *g = match x & 7 {
            0 | 1 => r.next_u64(),
            2 => (x >> 8) as i8 as u64,
            3 => 1 << (x >> 58),
            4 => at::DATA + (x >> 20 & 0x3fff),
            5 => TABLES[(x >> 8 & 7) as usize] + (x >> 20 & 0xff),
            _ => x >> 20 & 0x1ff,
        };
    }
    let x = r.next_u64();
    if x & 3 != 0 {
        c.gpr[4] = if c.rip < 0x1_0000 { 0x6f00 } else { at::STACK_TOP } - (x >> 8 & 0x38);
    }
    let mut v = u128::from(x) << 64 | u128::from(r.next_u64());
    for x in &mut c.xmm {
        v = v.wrapping_mul(0x2545_f491_4f6c_dd1d_9e37_79b9_7f4a_7c15).wrapping_add(1);
        *x = v;
    }
    let y = r.next_u64();
    if x >> 16 & 3 == 0 {
        (c.mxcsr, c.fcw, c.fsw) = (y as u32 & 0xffff, (y >> 16) as u16, (y >> 32) as u16);
    }
    c.ftw = (y >> 48) as u8;
    let settable = bit::ARITH | bit::DF | bit::TF | bit::AC | bit::NT | bit::RF;
    let f = c.rflags() & bit::VM | r.next_u64() & settable & if x >> 18 & 3 == 0 { !0 } else { !bit::TF };
    c.set_rflags(f | 2 | (x >> 20 & 3) << 12);
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
            c.idt.base = 0;
            c.rip = LOW;
            // Vectors of four bytes, segment 0.
            (0..256).for_each(|v| i.put(4 * v, &(at::HANDLER as u32).to_le_bytes()));
        }
        Mode::V86 => {
            c.seg = [Segment { attr: 0xf300, ..real }; 6];
            (c.cpl, c.rip) = (3, LOW);
            c.set_rflags(bit::VM | 2);
            // The TSS's ESP0 and SS0, where faults lead to.
            i.put(at::TSS + 4, &[at::FAULT_STACK.to_le_bytes(), 0x10u64.to_le_bytes()].map(|w| w[..4].to_vec()).concat());
        }
        Mode::Protected16 => {
            let code = c.seg_mut(SegReg::Cs);
            (code.limit, code.attr) = (0xffff, 0x9b00);
            for s in [SegReg::Ss, SegReg::Ds, SegReg::Es] {
                (c.seg_mut(s).limit, c.seg_mut(s).attr) = (0xffff, 0x9300);
            }
            c.rip = LOW;
        }
        Mode::Protected32 => {}
        Mode::Long => upper_tables(&mut i, 0x23),
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
    upper_tables(i, 0x27);
    for page in (0x200..0x203).chain(0x300..0x303).chain(0x306..0x307).chain(0x30f..0x312u64) {
        i.put(at::TABLES + 0x3000 + 8 * page, &[0x67]);
    }
}

/// The low byte of entries of the upper page tables. With the accessed bit strings need not write it, one after the other.
fn upper_tables(i: &mut Image, low: u8) {
    let t = at::TABLES;
    i.put(t, &[low]);
    i.put(t + 0x1000, &[low]);
    for pt in 0..8 {
        i.put(t + 0x2000 + 8 * pt, &[low]);
    }
}
