//! The same case in the guest: 64-bit paging, CPL 3, Linux's selectors, one engine of the translating back end.

use super::{Bits, DATA_SIZE, Memory, State, Trap, at};
use crate::engines::machine::{Image, Machine, World, at as low};
use arch_x86::state::{cr0, cr4};
use arch_x86::{CpuState, F80, SegReg, Segment};
use backend::Settings;
use vm_core::{Ram, StopReason, Vcpu};

/// Pages that are memory, as (first, count): tables, code, data.
const USED: &[(u64, u64)] = &[(0, 8), (0x100, 16), (0x1f1, 1), (0x200, 16), (0xbab, 2), (0xbae, 3)];
const PAGE: u64 = 4096;
const NX: u64 = 1 << 63;
/// Present, user, accessed; and writable, dirty.
const READ: u64 = 0x25;
const WRITE: u64 = 0x67;

/// A machine with one engine setting.
pub struct Guest {
    pub name: &'static str,
    machine: Machine,
    /// The CPU before each case, of 32-bit and of 64-bit code.
    start: [CpuState; 2],
}

impl Guest {
    pub fn new(name: &'static str, settings: Settings) -> std::io::Result<Guest> {
        let mut machine = Machine::over(USED, settings)?;
        let image = image();
        for (page, bytes) in &image.pages {
            machine.ram().write(page * PAGE, &bytes[..]);
        }
        page_tables(machine.ram());
        let start = [Bits::B32, Bits::B64].map(|b| user(&image.cpu, b));
        *machine.engine.cpu() = start[1].clone();
        machine.engine.cpu_changed();
        Ok(Guest { name, machine, start })
    }

    /// Writes code at an offset of the code area.
    pub fn set_code(&mut self, offset: u64, code: &[u8]) {
        self.machine.ram().write(at::CODE + offset, code);
    }

    /// Writes data memory at an offset of `Memory`.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        let (first, second) = bytes.split_at(bytes.len().min(0x2000usize.saturating_sub(offset)));
        self.machine.ram().write(super::address(offset), first);
        self.machine.ram().write(super::address(offset + first.len()), second);
    }

    /// Writes the counters of loops.
    pub fn set_counters(&mut self, bytes: &[u8]) {
        self.machine.ram().write(at::COUNTER, bytes);
    }

    pub fn set_memory(&mut self, m: &Memory) {
        self.write(0, m);
    }

    /// Copies data memory out.
    pub fn memory(&self, m: &mut Memory) {
        let ram = self.machine.ram();
        ram.read(at::DATA, &mut m[..0x2000]);
        ram.read(at::DATA2, &mut m[0x2000..DATA_SIZE]);
    }

    pub fn info_jit(&mut self) -> String {
        self.machine.engine.info_jit()
    }

    /// As `Native::run`. `Err`: the engine stopped otherwise than in a handler.
    pub fn run(&mut self, bits: Bits, s: &State) -> Result<(State, Trap), String> {
        let start = &self.start[bits as usize];
        let c = self.machine.engine.cpu();
        c.seg = start.seg;
        (c.cpl, c.halted, c.shadow, c.nmi_blocked) = (3, false, 0, false);
        load(c, s);
        let stop = self.machine.run();
        if stop != StopReason::Halted {
            return Err(format!("{stop:?}"));
        }
        let c = self.machine.engine.cpu();
        let vector = c.rip.wrapping_sub(low::HANDLER) / 8;
        if vector >= 32 || c.rip % 8 != 1 {
            return Err(format!("halted at {:x}", c.rip));
        }
        let mut got = stored(c);
        let (cr2, rsp) = (c.cr2, c.gpr[4]);
        let has_error = matches!(vector, 8 | 10..=14 | 17 | 21);
        if rsp != low::FAULT_STACK - if has_error { 48 } else { 40 } {
            return Err(format!("exception {vector} left rsp {rsp:x}"));
        }
        let word = |n: u64| self.machine.ram().read_uint(low::FAULT_STACK - 8 * n, 8);
        (got.rip, got.flags, got.gpr[4]) = (word(5), word(3), word(2));
        let error = if has_error { word(6) as u32 } else { 0 };
        Ok((got, Trap { vector: vector as u8, error, addr: if vector == 14 { cr2 } else { 0 } }))
    }
}

fn load(c: &mut CpuState, s: &State) {
    (c.gpr, c.rip, c.xmm, c.ymmh) = (s.gpr, s.rip, s.xmm, s.ymmh);
    (c.mxcsr, c.fcw, c.fsw, c.ftw) = (s.mxcsr, s.fcw, s.fsw, s.ftw);
    (c.fip, c.fdp, c.fop) = (0, 0, 0);
    let top = usize::from(s.fsw >> 11 & 7);
    for (i, r) in s.st.iter().enumerate() {
        c.fpr[(top + i) & 7] = *r;
    }
    // Computes the mode word of all of these, too.
    c.set_rflags(s.flags);
}

fn stored(c: &CpuState) -> State {
    let top = usize::from(c.fsw >> 11 & 7);
    State {
        gpr: c.gpr,
        rip: c.rip,
        flags: 0,
        xmm: c.xmm,
        ymmh: c.ymmh,
        st: std::array::from_fn(|i| F80 { mant: c.fpr[(top + i) & 7].mant, sexp: c.fpr[(top + i) & 7].sexp }),
        mxcsr: c.mxcsr,
        fcw: c.fcw,
        fsw: c.fsw,
        ftw: c.ftw,
        fip: c.fip,
        fdp: c.fdp,
        fop: c.fop,
    }
}

fn image() -> Image {
    let mut i = Image::new(World::Long);
    // Linux's user code of 32 bits, data, code of 64 bits; INT3 and INTO may be used by them.
    for (index, d) in [(4, 0x00cf_fb00_0000_ffffu64), (5, 0x00cf_f300_0000_ffff), (6, 0x00af_fb00_0000_ffff)] {
        i.put(low::GDT + 8 * index, &d.to_le_bytes());
    }
    // The I/O bitmap lies beyond the TSS: no port is allowed.
    i.put(low::TSS + 0x66, &0x1000u16.to_le_bytes());
    for v in [3, 4] {
        i.put(low::IDT + 16 * v + 5, &[0xee]);
    }
    i
}

fn user(cpu: &CpuState, bits: Bits) -> CpuState {
    let mut c = cpu.clone();
    c.cr0 |= cr0::AM | cr0::NE | cr0::MP;
    c.cr4 |= cr4::OSXSAVE | cr4::UMIP | cr4::FSGSBASE;
    c.xcr0 = 7;
    let (selector, size) = if bits == Bits::B32 { (0x23, Segment::DB) } else { (0x33, Segment::L) };
    let attr = Segment::P | Segment::S | Segment::RW | Segment::ACCESSED | Segment::G | 3 << Segment::DPL_SHIFT;
    let flat = Segment { base: 0, limit: u32::MAX, attr, selector: 0x2b };
    for s in [SegReg::Ss, SegReg::Ds, SegReg::Es] {
        *c.seg_mut(s) = Segment { attr: attr | Segment::DB, ..flat };
    }
    for s in [SegReg::Fs, SegReg::Gs] {
        *c.seg_mut(s) = Segment { attr: Segment::UNUSABLE, ..Segment::default() };
    }
    *c.seg_mut(SegReg::Cs) = Segment { attr: attr | Segment::CODE | size, selector, ..flat };
    c.cpl = 3;
    c.update_mode();
    c
}

/// User pages as the native process has them, and the system's own, which it has not.
fn page_tables(ram: &Ram) {
    let t = low::TABLES;
    let put = |at: u64, v: u64| ram.write(at, &v.to_le_bytes());
    put(t, (t + 0x1000) | 7);
    put(t + 0x1000, (t + 0x2000) | 7);
    for pt in 0..8 {
        put(t + 0x2000 + 8 * pt, (t + 0x3000 + PAGE * pt) | 7);
        for n in 0..512 {
            let va = (pt << 21) + (n << 12);
            let entry = match va {
                0x1000..0x8000 => va | 0x63,
                at::CODE..0x21_0000 => va | READ,
                at::COUNTER..0x1f_2000 | at::DATA..at::ABSENT | at::DATA2..at::READ_ONLY => va | WRITE | NX,
                at::READ_ONLY => va | READ | NX,
                _ => 0,
            };
            put(t + 0x3000 + PAGE * pt + 8 * n, entry);
        }
    }
}
