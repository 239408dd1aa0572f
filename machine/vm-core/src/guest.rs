//! What an engine may ask of the guest CPU's architectural state, and what slow instructions may ask of an engine.
//! Neither side knows the other: `arch-x86` implements `GuestCpu`, `backend` implements `GuestEnv`.

use crate::accel::CpuIo;
use crate::addr::{Pa, Va};

/// Kind of memory access, for permission checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Execute,
}

/// An exception as the guest CPU defines it; opaque to engines. For x86: vector, error code, CR2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub vector: u8,
    pub error: Option<u32>,
    /// Faulting address (x86: goes to CR2 on #PF).
    pub addr: u64,
}

/// A translated page, as the page walk found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Guest-physical address of the 4 KiB page.
    pub page: Pa,
    /// log2 of the bytes that the guest maps as one page: 12 and more. What drops part of it drops all.
    pub shift: u32,
    /// May a read, write, instruction fetch in this access context use the entry without a further walk? A page whose
    /// dirty bit is still clear is not writable here.
    pub read: bool,
    pub write: bool,
    pub exec: bool,
    /// Survives an address-space switch (x86: CR4.PGE and the G bit).
    pub global: bool,
}

/// Physical memory as a page walk sees it. Reads of nothing give ones.
pub trait PhysMem {
    fn read_u64(&self, pa: Pa) -> u64;
    fn read_u32(&self, pa: Pa) -> u32;
    /// Sets bits in a page-table entry atomically if it still holds `old`; `false` if it changed: walk again.
    fn cas_u64(&self, pa: Pa, old: u64, new: u64) -> bool;
    fn cas_u32(&self, pa: Pa, old: u32, new: u32) -> bool;
}

/// Which translations a change of the guest's registers made stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// All entries, global ones too.
    All,
    /// All but global entries (x86: MOV CR3), of the address space that the CPU is in.
    NonGlobal,
    /// The same, as the CPU goes from one address space to another. Entries of the one may be kept until it comes back with `keep`
    /// (x86: process-context identifiers, SDM 3A 4.10.1), then those kept of the other hold again; else they are dropped.
    Switch { from: u64, to: u64, keep: bool },
    /// What is kept of an address space that the CPU is not in.
    Left(u64),
    /// One page in every context (x86: INVLPG).
    Page(Va),
}

/// Access contexts: each has a TLB of its own. Number = index.
pub const CTX_COUNT: usize = 3;

/// Bytes of FNSAVE's and FRSTOR's operand.
pub const X87_IMAGE: usize = 108;

/// Bits of a mode word that may be used, from the lowest on: engines have uses for the others.
pub const MODE_BITS: u32 = 21;

/// Guest CPU state, as engines see it.
pub trait GuestCpu: Send + 'static {
    /// Tells the machine, before the CPU runs, what of its state shows outside.
    fn announce(&self, _io: &dyn CpuIo) {}
    /// Every bit of state that translation may read; part of the block key. Less than 2^`MODE_BITS`.
    fn mode(&self) -> u64;
    /// Access context (0..CTX_COUNT) of ordinary data accesses and fetches in `mode`.
    fn mode_ctx(mode: u64) -> usize;
    /// Base added to the program counter to get the linear address of the next instruction (x86: CS base).
    fn code_base(&self) -> u64;
    /// Program counter relative to `code_base` (x86: RIP).
    fn pc(&self) -> u64;
    fn set_pc(&mut self, pc: u64);
    /// Linear address at which the instruction at program counter `pc` lies, with the width of the mode.
    fn linear(&self, pc: u64) -> Va;
    /// Walks the page tables for an access in context `ctx`, setting accessed and dirty bits.
    fn walk(&self, va: Va, access: Access, ctx: usize, mem: &dyn PhysMem) -> Result<Mapping, Fault>;
    /// The same without side effects or permission checks, for debuggers.
    fn debug_walk(&self, va: Va, mem: &dyn PhysMem) -> Option<Pa>;
    /// Address-space identifier of the current mappings; entries of other identifiers may be kept.
    fn asid(&self) -> u64;
    /// Halted until an event (x86: after HLT).
    fn halted(&self) -> bool;
    /// Events are held until the next instruction has run (x86: after STI, MOV SS). The dispatcher runs one instruction
    /// with events held, then calls `end_shadow`.
    fn in_shadow(&self) -> bool;
    fn end_shadow(&mut self);
    /// Something must be done before or after each instruction (x86: TF, breakpoints): `before_insn`, a block of one
    /// instruction, `after_insn`.
    fn single_step(&self) -> bool;
    /// Takes the most urgent event that the CPU accepts now and enters its handler. `Ok(false)`: none was accepted.
    fn deliver_event<E: GuestEnv<Cpu = Self>>(env: &mut E) -> Result<bool, Shutdown>
    where
        Self: Sized;
    /// Enters the handler of a fault raised by the instruction at the current program counter, escalating to double
    /// fault as the manual says. `Err`: triple fault.
    fn deliver_fault<E: GuestEnv<Cpu = Self>>(env: &mut E, fault: Fault) -> Result<(), Shutdown>
    where
        Self: Sized;
    /// Work due before an instruction in single-step mode (x86: breakpoints). `Ok(true)`: a handler was entered instead.
    fn before_insn<E: GuestEnv<Cpu = Self>>(env: &mut E) -> Result<bool, Shutdown>
    where
        Self: Sized;
    /// Must `accessed` be called for each access to the page of `va` (x86: data breakpoints)? Asked when a page would enter the
    /// TLB; a change of the answer flushes it. True only in single-step mode.
    fn watches(&self, va: Va) -> bool;
    /// `size` bytes at `va` were accessed, at least where `watches` says so.
    fn accessed(&mut self, va: Va, size: u8, write: bool);
    /// Work due after an instruction in single-step mode that did not fault (x86: #DB with DR6.BS).
    fn after_insn<E: GuestEnv<Cpu = Self>>(env: &mut E) -> Result<(), Shutdown>
    where
        Self: Sized;
    /// The x87 state as FRSTOR's operand in 32-bit protected mode (SDM 1 "Protected Mode x87 FPU State Image"), without
    /// pointers; `None` if an exception is unmasked or there is no x87.
    fn x87_image(&self) -> Option<[u8; X87_IMAGE]> {
        None
    }
    /// Takes over what FNSAVE stored.
    fn set_x87_image(&mut self, _image: &[u8; X87_IMAGE]) {}
    /// Text of `-d cpu` and `info registers`.
    fn dump(&self) -> String;
    /// Text of `info tlb`: the mappings of the current page tables, bounded in length.
    fn dump_mappings(&self, mem: &dyn PhysMem) -> String;
}

/// The CPU cannot go on (x86: triple fault).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shutdown;

/// What slow instructions (helpers), fault delivery and event delivery may ask of the engine that runs them.
pub trait GuestEnv {
    type Cpu: GuestCpu;
    fn cpu(&mut self) -> &mut Self::Cpu;
    fn cpu_ref(&self) -> &Self::Cpu;
    fn io(&self) -> &dyn CpuIo;
    /// Loads `size` (1, 2, 4, 8) bytes at a linear address in access context `ctx`; any alignment.
    fn load(&mut self, va: Va, size: u8, ctx: usize) -> Result<u64, Fault>;
    fn store(&mut self, va: Va, size: u8, value: u64, ctx: usize) -> Result<(), Fault>;
    /// Checks that `len` bytes (at most a page) can be accessed, filling the TLB, without touching them.
    fn probe(&mut self, va: Va, len: u64, access: Access, ctx: usize) -> Result<(), Fault>;
    /// Loads bytes, at most a page, that all lie in plain RAM that can be read as it is; `false`: go piece by piece, nothing was done.
    fn load_block(&mut self, _va: Va, _buf: &mut [u8], _ctx: usize) -> bool {
        false
    }
    /// The same of stores.
    fn store_block(&mut self, _va: Va, _bytes: &[u8], _ctx: usize) -> bool {
        false
    }
    /// Copies up to `len` bytes, both sides RAM, not beyond the end of either page; returns how many were copied. 0 where one side is not
    /// plain RAM (MMIO, code, watched), or where byte by byte, from the lowest up or else `down` from the highest, some would be
    /// written before they are read: go one by one.
    fn bulk_copy(&mut self, dst: Va, src: Va, len: u64, down: bool, ctx: usize) -> Result<u64, Fault>;
    /// Fills up to `count` elements of `size` bytes upwards, within one page of RAM; returns how many were written.
    fn bulk_fill(&mut self, dst: Va, size: u8, value: u64, count: u64, ctx: usize) -> Result<u64, Fault>;
    /// Atomically stores `new` at a linear address aligned to 16 if it holds `expected`; gives what it held. The bytes are
    /// checked for writing either way.
    fn cas_128(&mut self, va: Va, expected: u128, new: u128, ctx: usize) -> Result<u128, Fault> {
        self.probe(va, 16, Access::Write, ctx)?;
        let (low, high) = (self.load(va, 8, ctx)?, self.load(Va(va.0.wrapping_add(8)), 8, ctx)?);
        let old = u128::from(low) | u128::from(high) << 64;
        let value = if old == expected { new } else { old };
        self.store(va, 8, value as u64, ctx)?;
        self.store(Va(va.0.wrapping_add(8)), 8, (value >> 64) as u64, ctx)?;
        Ok(old)
    }
    /// Before work that can neither be undone nor begun again in the middle. `Err`: the instruction must run alone first.
    fn alone(&mut self) -> Result<(), Fault> {
        Ok(())
    }
    /// The guest waits for another CPU in a loop: lets the host's other threads run.
    fn relax(&mut self) {}
    fn flush(&mut self, what: Flush);
    /// How many iterations of a repeated instruction may follow the present one before other things are due.
    fn iterations_left(&self) -> u64 {
        u64::MAX
    }
    /// As many further iterations of a repeated instruction begin, or have been done in bulk. Where instructions are counted,
    /// each iteration counts as one.
    fn count_iterations(&mut self, _n: u64) {}
}
