//! Runs one instruction through translator, reference interpreter and helpers.

use super::Area;
use crate::testing::{CodePage, FlatEnv, FlatMemory};
use crate::{Helper, X86, helpers};
use arch_x86::CpuState;
use arch_x86::state::{Segment, cr0, cr4, efer};
use ir::interp::{Interp, Outcome};
use ir::{Block, Frontend, HelperId};
use vm_core::Fault;

/// Where the guest's memory lies: aligned as `Area::mem` is.
const MEM: u64 = 0x10_0020;

pub struct Guest {
    x86: X86,
    table: Vec<Helper<FlatEnv<'static>>>,
    pub cpu: Box<CpuState>,
    pub block: Block,
}

impl Guest {
    /// A CPU with all features in 64-bit mode at CPL 0.
    pub fn new() -> Guest {
        // SAFETY: all fields are integers and bools, for which zero bytes are a value.
        let mut cpu: Box<CpuState> = unsafe { Box::new_zeroed().assume_init() };
        cpu.cr0 = cr0::PE | cr0::PG | cr0::NE | cr0::ET;
        cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
        cpu.xcr0 = 7;
        cpu.efer = efer::LMA | efer::LME;
        cpu.mxcsr = 0x1f80;
        cpu.seg[1].attr = Segment::L | Segment::P | Segment::S | Segment::CODE | Segment::RW;
        cpu.features = [!0; 16];
        cpu.update_mode();
        Guest { x86: X86::new([!0; 16]), table: helpers::table(), cpu, block: Block::default() }
    }

    pub fn translate(&mut self, insn: &[u8]) {
        self.x86.translate(self.cpu.mode, 0, 1, &mut CodePage::new(insn), &mut self.block).expect("within the page");
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
        for (y, b) in self.cpu.ymmh.iter_mut().zip(a.upper.as_chunks::<16>().0) {
            *y = u128::from_le_bytes(*b);
        }
        let mut mem = FlatMemory { base: MEM, bytes: a.mem.to_vec() };
        let outcome = self.interpret(&mut mem);
        a.mem.copy_from_slice(&mem.bytes);
        a.gpr[..3].copy_from_slice(&self.cpu.gpr[..3]);
        a.gpr[3] = self.cpu.rflags();
        for (y, b) in self.cpu.ymmh.iter().zip(a.upper.as_chunks_mut::<16>().0) {
            *b = y.to_le_bytes();
        }
        a.fx[..416].copy_from_slice(&helpers::x87::save(&self.cpu, true).0[..416]);
        outcome
    }

    fn interpret(&mut self, mem: &mut FlatMemory) -> Outcome<Fault> {
        let interp = Interp { layout: self.x86.layout(), helpers: self.x86.helpers(), mode: self.cpu.mode };
        let table = &self.table;
        let size = size_of::<CpuState>();
        // SAFETY: the state was made of zero bytes and is repr(C); blocks write whole fields.
        let bytes = unsafe { std::slice::from_raw_parts_mut((&raw mut *self.cpu).cast::<u8>(), size) };
        interp.run(&self.block, bytes, mem, &mut |state, mem, id: HelperId, [x, y, z]| {
            let mem = &raw mut *mem;
            // SAFETY: `state` is the CpuState above; the interpreter does not touch it during the call. The helpers ask
            // for an environment of any lifetime and keep none.
            let mut env: FlatEnv<'static> =
                unsafe { FlatEnv { cpu: &mut *state.as_mut_ptr().cast::<CpuState>(), mem: &mut *mem } };
            table[usize::from(id.0)](&mut env, x, y, z)
        })
    }
}
