//! Runs one instruction through translator, reference interpreter and helpers.

use super::Area;
use crate::{Helper, X86, helpers};
use arch_x86::CpuState;
use arch_x86::state::{Segment, cr0, cr4, efer};
use ir::interp::{Interp, Memory, Outcome};
use ir::{Block, CodeFetch, Frontend, HelperId, Rmw, Ty};
use vm_core::guest::Flush;
use vm_core::{Access, CpuIo, Fault, GuestEnv, Va};

/// Where the guest's memory lies.
const MEM: u64 = 0x10_0000;

pub struct Mem([u8; 512]);

impl Mem {
    fn at(&self, addr: u64, n: u64) -> Result<usize, Fault> {
        let off = addr.wrapping_sub(MEM);
        if off.saturating_add(n) <= self.0.len() as u64 { Ok(off as usize) } else { Err(arch_x86::fault::ud()) }
    }

    fn read(&self, addr: u64, n: usize) -> Result<u128, Fault> {
        let at = self.at(addr, n as u64)?;
        let mut b = [0; 16];
        b[..n].copy_from_slice(&self.0[at..at + n]);
        Ok(u128::from_le_bytes(b))
    }

    fn write(&mut self, addr: u64, n: usize, v: u128) -> Result<(), Fault> {
        let at = self.at(addr, n as u64)?;
        self.0[at..at + n].copy_from_slice(&v.to_le_bytes()[..n]);
        Ok(())
    }
}

impl Memory for Mem {
    type Fault = Fault;
    fn load(&mut self, addr: u64, ty: Ty, _: u16) -> Result<u128, Fault> {
        self.read(addr, ty.bytes() as usize)
    }
    fn store(&mut self, addr: u64, ty: Ty, value: u128, _: u16) -> Result<(), Fault> {
        self.write(addr, ty.bytes() as usize, value)
    }
    fn rmw(&mut self, _: u64, _: Ty, _: Rmw, _: u64, _: u16) -> Result<u64, Fault> {
        panic!("no atomics here")
    }
    fn cas(&mut self, _: u64, _: Ty, _: u64, _: u64, _: u16) -> Result<u64, Fault> {
        panic!("no atomics here")
    }
    fn probe(&mut self, addr: u64, len: u32, _: u16) -> Result<(), Fault> {
        self.at(addr, len.into()).map(|_| ())
    }
}

/// What helpers see.
pub struct TestEnv<'a> {
    cpu: &'a mut CpuState,
    mem: &'a mut Mem,
}

impl GuestEnv for TestEnv<'_> {
    type Cpu = CpuState;
    fn cpu(&mut self) -> &mut CpuState {
        self.cpu
    }
    fn cpu_ref(&self) -> &CpuState {
        self.cpu
    }
    fn io(&self) -> &dyn CpuIo {
        panic!("no devices here")
    }
    fn load(&mut self, va: Va, size: u8, _: usize) -> Result<u64, Fault> {
        self.mem.read(va.0, size.into()).map(|v| v as u64)
    }
    fn store(&mut self, va: Va, size: u8, value: u64, _: usize) -> Result<(), Fault> {
        self.mem.write(va.0, size.into(), value.into())
    }
    fn probe(&mut self, va: Va, len: u64, _: Access, _: usize) -> Result<(), Fault> {
        self.mem.at(va.0, len).map(|_| ())
    }
    fn bulk_copy(&mut self, _: Va, _: Va, _: u64, _: usize) -> Result<u64, Fault> {
        Ok(0)
    }
    fn bulk_fill(&mut self, _: Va, _: u8, _: u64, _: u64, _: usize) -> Result<u64, Fault> {
        Ok(0)
    }
    fn flush(&mut self, _: Flush) {}
}

struct Code([u8; 4096]);

impl CodeFetch for Code {
    type Fault = ();
    fn page(&self) -> &[u8; 4096] {
        &self.0
    }
    fn next_page(&mut self) -> Result<&[u8; 4096], ()> {
        Err(())
    }
}

pub struct Guest {
    x86: X86,
    table: Vec<Helper<TestEnv<'static>>>,
    pub cpu: Box<CpuState>,
    pub block: Block,
}

impl Guest {
    /// A CPU with all features in 64-bit mode at CPL 0.
    pub fn new() -> Guest {
        // SAFETY: all fields are integers and bools, for which zero bytes are a value.
        let mut cpu: Box<CpuState> = unsafe { Box::new_zeroed().assume_init() };
        cpu.cr0 = cr0::PE | cr0::PG | cr0::NE | cr0::ET;
        cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT;
        cpu.efer = efer::LMA | efer::LME;
        cpu.mxcsr = 0x1f80;
        cpu.seg[1].attr = Segment::L | Segment::P | Segment::S | Segment::CODE | Segment::RW;
        cpu.features = [!0; 16];
        cpu.update_mode();
        Guest { x86: X86::new([!0; 16]), table: helpers::table(), cpu, block: Block::default() }
    }

    pub fn translate(&mut self, insn: &[u8]) {
        let mut page = [0x90; 4096];
        page[..insn.len()].copy_from_slice(insn);
        self.x86.translate(self.cpu.mode, 0, 1, &mut Code(page), &mut self.block).expect("within the page");
        if let Err(e) = ir::verify::verify(&self.block, self.x86.layout(), self.x86.helpers()) {
            panic!("{insn:02x?}: {e}\n{}", self.text());
        }
    }

    pub fn text(&self) -> String {
        self.block.display(self.x86.layout(), self.x86.helpers()).to_string()
    }

    /// Loads `a`, runs the block, stores the state back.
    pub fn run(&mut self, a: &mut Area) -> Outcome<Fault> {
        helpers::x87::restore(&mut self.cpu, &a.fx, true).expect("MXCSR is valid");
        self.cpu.gpr[..3].copy_from_slice(&a.gpr[..3]);
        self.cpu.gpr[6] = MEM;
        self.cpu.gpr[7] = MEM;
        self.cpu.set_rflags(a.gpr[3]);
        let mut mem = Mem(a.mem);
        let outcome = self.interpret(&mut mem);
        a.mem = mem.0;
        a.gpr[..3].copy_from_slice(&self.cpu.gpr[..3]);
        a.gpr[3] = self.cpu.rflags();
        a.fx[..416].copy_from_slice(&helpers::x87::save(&self.cpu, true).0[..416]);
        outcome
    }

    fn interpret(&mut self, mem: &mut Mem) -> Outcome<Fault> {
        let interp = Interp { layout: self.x86.layout(), helpers: self.x86.helpers(), mode: self.cpu.mode };
        let table = &self.table;
        let size = size_of::<CpuState>();
        // SAFETY: the state was made of zero bytes and is repr(C); blocks write whole fields.
        let bytes = unsafe { std::slice::from_raw_parts_mut((&raw mut *self.cpu).cast::<u8>(), size) };
        interp.run(&self.block, bytes, mem, &mut |state, mem, id: HelperId, [x, y, z]| {
            let mem = &raw mut *mem;
            // SAFETY: `state` is the CpuState above; the interpreter does not touch it during the call. The helpers ask
            // for an environment of any lifetime and keep none.
            let mut env: TestEnv<'static> =
                unsafe { TestEnv { cpu: &mut *state.as_mut_ptr().cast::<CpuState>(), mem: &mut *mem } };
            table[usize::from(id.0)](&mut env, x, y, z)
        })
    }
}
