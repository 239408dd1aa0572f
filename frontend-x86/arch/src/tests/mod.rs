//! Tests of this crate, and the environment they run in: flat RAM behind the crate's own page walk.

mod control;
mod debug;
mod deliver;
mod far;
mod hostile;
mod paging;
mod smm;
mod task;

use crate::cpuid::CpuConfigured;
use crate::flags::bit;
use crate::models::configure;
use crate::state::{CpuState, SegReg, Segment, cr0, cr4, efer};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use vm_core::guest::{Flush, GuestCpu, GuestEnv, PhysMem};
use vm_core::{Access, CpuIo, Fault, Pa, Ram, Target, Va, VcpuSignals};

pub const RAM_SIZE: u64 = 2 << 20;

pub struct Io {
    pub ram: Ram,
    pub signals: VcpuSignals,
    /// The vector that `ack_intr` returns; 256 for none.
    pub vector: AtomicU32,
    pub cr8: AtomicU32,
    pub tsc: AtomicU64,
    /// What lies where, as `target` tells it; all of `ram` is accessible whatever that is.
    pub told: fn(u64) -> Target,
    pub kvm_clock: AtomicU64,
    pub wall_clock: i64,
}

impl Io {
    pub fn new() -> Self {
        Self {
            ram: Ram::new(RAM_SIZE).unwrap(),
            signals: VcpuSignals::default(),
            vector: AtomicU32::new(256),
            cr8: AtomicU32::new(0),
            tsc: AtomicU64::new(1000),
            told: |_| Target::Mmio,
            kvm_clock: AtomicU64::new(0),
            wall_clock: 0,
        }
    }
}

impl CpuIo for Io {
    fn port_read(&self, _port: u16, _size: u8) -> u32 {
        !0
    }
    fn port_write(&self, _port: u16, _size: u8, _value: u32) {}
    fn mmio_read(&self, pa: Pa, size: u8) -> u64 {
        if pa.0 > RAM_SIZE - 8 { !0 } else { self.ram.read_uint(pa.0, size) }
    }
    fn mmio_write(&self, pa: Pa, size: u8, value: u64) {
        if pa.0 <= RAM_SIZE - 8 {
            self.ram.write_uint(pa.0, size, value);
        }
    }
    fn msr_read(&self, index: u32) -> Option<u64> {
        (index == 0x1b).then_some(0xfee0_0900)
    }
    fn msr_write(&self, index: u32, _value: u64) -> bool {
        index == 0x1b
    }
    fn cr8(&self) -> u8 {
        self.cr8.load(Ordering::Relaxed) as u8
    }
    fn set_cr8(&self, v: u8) {
        self.cr8.store(v.into(), Ordering::Relaxed);
    }
    fn target(&self, pa: Pa) -> Target {
        (self.told)(pa.0)
    }
    fn ram(&self) -> &Ram {
        &self.ram
    }
    fn signals(&self) -> &VcpuSignals {
        &self.signals
    }
    fn ack_intr(&self) -> Option<u8> {
        u8::try_from(self.vector.load(Ordering::Relaxed)).ok()
    }
    fn tsc(&self) -> u64 {
        self.tsc.load(Ordering::Relaxed)
    }
    fn kvm_clock_offset(&self) -> u64 {
        self.kvm_clock.load(Ordering::Relaxed)
    }
    fn raise_kvm_clock(&self, offset: u64) {
        self.kvm_clock.store(offset, Ordering::Relaxed);
    }
    fn wall_clock(&self) -> i64 {
        self.wall_clock
    }
}

impl PhysMem for Io {
    fn read_u64(&self, pa: Pa) -> u64 {
        self.mmio_read(pa, 8)
    }
    fn read_u32(&self, pa: Pa) -> u32 {
        self.mmio_read(pa, 4) as u32
    }
    fn cas_u64(&self, pa: Pa, old: u64, new: u64) -> bool {
        pa.0 <= RAM_SIZE - 8 && self.ram.cas_u64(pa.0, old, new)
    }
    fn cas_u32(&self, pa: Pa, old: u32, new: u32) -> bool {
        pa.0 <= RAM_SIZE - 4 && self.ram.cas_u32(pa.0, old, new)
    }
}

pub struct Env {
    pub cpu: CpuState,
    pub io: Io,
    pub flushes: Vec<Flush>,
}

impl GuestEnv for Env {
    type Cpu = CpuState;
    fn cpu(&mut self) -> &mut CpuState {
        &mut self.cpu
    }
    fn cpu_ref(&self) -> &CpuState {
        &self.cpu
    }
    fn io(&self) -> &dyn CpuIo {
        &self.io
    }
    fn load(&mut self, va: Va, size: u8, ctx: usize) -> Result<u64, Fault> {
        let mut v = 0;
        for i in 0..u64::from(size) {
            let pa = self.translate(va.0.wrapping_add(i), Access::Read, ctx)?;
            v |= (self.io.mmio_read(Pa(pa), 1) & 0xff) << (8 * i);
        }
        Ok(v)
    }
    fn store(&mut self, va: Va, size: u8, value: u64, ctx: usize) -> Result<(), Fault> {
        for i in 0..u64::from(size) {
            let pa = self.translate(va.0.wrapping_add(i), Access::Write, ctx)?;
            if pa < RAM_SIZE {
                self.io.ram.write_uint(pa, 1, value >> (8 * i));
            }
        }
        Ok(())
    }
    fn probe(&mut self, va: Va, len: u64, access: Access, ctx: usize) -> Result<(), Fault> {
        self.translate(va.0, access, ctx)?;
        self.translate(va.0.wrapping_add(len.max(1) - 1), access, ctx).map(|_| ())
    }
    fn bulk_copy(&mut self, _dst: Va, _src: Va, _len: u64, _down: bool, _ctx: usize) -> Result<u64, Fault> {
        Ok(0)
    }
    fn bulk_fill(&mut self, _dst: Va, _size: u8, _value: u64, _count: u64, _ctx: usize) -> Result<u64, Fault> {
        Ok(0)
    }
    fn flush(&mut self, what: Flush) {
        self.flushes.push(what);
    }
}

/// Where the tests put things.
pub mod at {
    pub const IDT: u64 = 0x1000;
    pub const GDT: u64 = 0x2000;
    pub const TSS: u64 = 0x3000;
    pub const CR3: u64 = 0x10_0000;
}

/// GDT selectors of `Env::protected` and `Env::long`.
pub mod sel {
    pub const CODE0: u16 = 0x08;
    pub const DATA0: u16 = 0x10;
    pub const CODE3: u16 = 0x1b;
    pub const DATA3: u16 = 0x23;
    pub const TSS: u16 = 0x28;
    /// 32-bit code of DPL 0 in `Env::long`.
    pub const COMPAT0: u16 = 0x40;
    pub const COMPAT3: u16 = 0x4b;
    pub const CONFORMING: u16 = 0x50;
    pub const ABSENT_DATA: u16 = 0x58;
    pub const READ_ONLY: u16 = 0x60;
    pub const GATE: u16 = 0x68;
}

impl Env {
    /// Real mode, IDT at 0, stack at 0:8000h.
    pub fn real() -> Env {
        Env::with(&configure("qemu64", &[]).unwrap())
    }

    pub fn with(config: &CpuConfigured) -> Env {
        let io = Io::new();
        let mut cpu = CpuState::new(config, 0);
        cpu.idt.limit = 0x3ff;
        cpu.gpr[4] = 0x8000;
        cpu.rip = 0x123;
        Env { cpu, io, flushes: Vec::new() }
    }

    fn translate(&self, va: u64, access: Access, ctx: usize) -> Result<u64, Fault> {
        let m = self.cpu.walk(Va(va), access, ctx, &self.io)?;
        Ok(m.page.0 | va & 0xfff)
    }

    pub fn poke(&self, pa: u64, size: u8, v: u64) {
        self.io.ram.write_uint(pa, size, v);
    }

    pub fn peek(&self, pa: u64, size: u8) -> u64 {
        self.io.ram.read_uint(pa, size)
    }

    pub fn desc(&self, selector: u16, raw: u64) {
        self.poke(at::GDT + u64::from(selector & !7), 8, raw);
    }

    /// 32-bit protected mode without paging, CPL `cpl`.
    pub fn protected(cpl: u8) -> Env {
        let mut e = Env::real();
        e.cpu.cr0 |= cr0::PE;
        e.tables(0x00cf_9b00_0000_ffff, 0x00cf_fb00_0000_ffff);
        e.poke(at::TSS + 4, 4, 0x7000);
        e.poke(at::TSS + 8, 4, sel::DATA0.into());
        e.enter(cpl);
        e
    }

    /// 64-bit mode with the first 2 MiB mapped 1:1 for user and supervisor, CPL `cpl`.
    pub fn long(cpl: u8) -> Env {
        let mut e = Env::real();
        let c = &mut e.cpu;
        c.cr0 |= cr0::PE | cr0::PG | cr0::WP;
        c.cr4 |= cr4::PAE;
        c.efer |= efer::LME | efer::LMA | efer::SCE | efer::NXE;
        c.cr3 = at::CR3;
        e.poke(at::CR3, 8, (at::CR3 + 0x1000) | 7);
        e.poke(at::CR3 + 0x1000, 8, (at::CR3 + 0x2000) | 7);
        e.poke(at::CR3 + 0x2000, 8, 0x87);
        e.tables(0x00af_9b00_0000_ffff, 0x00af_fb00_0000_ffff);
        e.poke(at::TSS + 4, 8, 0x7000);
        e.poke(at::TSS + 0x24, 8, 0x6008);
        e.enter(cpl);
        e
    }

    fn tables(&mut self, code0: u64, code3: u64) {
        let rows = [
            (sel::CODE0, code0),
            (sel::DATA0, 0x00cf_9300_0000_ffff),
            (sel::CODE3, code3),
            (sel::DATA3, 0x00cf_f300_0000_ffff),
            (sel::TSS, 0x0000_8900_3000_0fff),
            (sel::COMPAT0, 0x00cf_9b00_0000_ffff),
            (sel::COMPAT3, 0x00cf_fb00_0000_ffff),
            (sel::CONFORMING, code0 | 1 << 42),
            (sel::ABSENT_DATA, 0x00cf_1300_0000_ffff),
            (sel::READ_ONLY, 0x00cf_9100_0000_ffff),
        ];
        for (s, raw) in rows {
            self.desc(s, raw);
        }
        let c = &mut self.cpu;
        (c.gdt.base, c.gdt.limit) = (at::GDT, 0x7f);
        (c.idt.base, c.idt.limit) = (at::IDT, 0xfff);
        c.tr = Segment { base: at::TSS, limit: 0xfff, attr: Segment::P | 11 << 8, selector: sel::TSS };
    }

    fn enter(&mut self, cpl: u8) {
        let (cs, ss) = if cpl == 3 { (sel::CODE3, sel::DATA3) } else { (sel::CODE0, sel::DATA0) };
        for (reg, s) in [(SegReg::Cs, cs), (SegReg::Ss, ss), (SegReg::Ds, ss), (SegReg::Es, ss)] {
            let d = crate::desc::Desc { raw: self.peek(at::GDT + u64::from(s & !7), 8), va: 0 };
            *self.cpu.seg_mut(reg) = d.segment(s);
        }
        self.cpu.cpl = cpl;
        self.cpu.set_rflags(bit::IF | bit::ZF);
        self.cpu.gpr[4] = 0x9000;
        self.cpu.rip = 0x1234;
    }

    /// A gate of the IDT in the layout of the current mode.
    pub fn gate(&self, vector: u8, kind: u64, dpl: u64, selector: u16, offset: u64, ist: u64) {
        let raw = offset & 0xffff
            | u64::from(selector) << 16
            | ist << 32
            | kind << 40
            | dpl << 45
            | 1 << 47
            | (offset >> 16 & 0xffff) << 48;
        let size = if self.cpu.long_mode() { 16 } else { 8 };
        let at = at::IDT + u64::from(vector) * size;
        self.poke(at, 8, raw);
        if size == 16 {
            self.poke(at + 8, 8, offset >> 32);
        }
    }

    pub fn sp(&self) -> u64 {
        self.cpu.gpr[4]
    }

    /// The `i`th value of `size` bytes on the stack.
    pub fn stack(&self, size: u8, i: u64) -> u64 {
        self.peek(self.sp() + i * u64::from(size), size)
    }
}
