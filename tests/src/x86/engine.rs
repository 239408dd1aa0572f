//! Engines that run the bare guest. An engine joins the filetests by a line in `ENGINES`.

use arch_x86::CpuState;
use frontend_x86::{Helper, X86, helpers};
use ir::{Block, CodeFetch, Frontend, HelperId, Interp, Memory, Outcome, Passes, Rmw, Ty, interp, verify};
use vm_core::Fault;

use super::translating::Translating;
use super::{CODE, Guest, slots};

/// Why a run stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The program counter left the code.
    Left,
    /// An instruction raised this; the program counter is at it.
    Fault(Fault),
    /// The engine's machine cannot hold this case, for this reason.
    Unfit(String),
}

/// Something that executes x86 code.
pub trait Engine: Sync {
    fn name(&self) -> &'static str;
    /// Runs the `len` bytes at `CODE` (at most a page) from `guest.cpu.rip` until the program counter lies outside or an
    /// instruction faults. `Err`: the engine is broken, or the code does not end.
    fn run(&self, guest: &mut Guest, len: usize) -> Result<Stop, String>;
}

/// Every engine under test.
pub const ENGINES: &[&dyn Engine] = &[
    &Reference { optimise: false },
    &Reference { optimise: true },
    &Translating { name: "tier 0", jit: false, tier1: false, single_block_regions: false, hot: 0 },
    &Translating { name: "jit", jit: true, tier1: false, single_block_regions: false, hot: 0 },
    &Translating { name: "tier 1", jit: true, tier1: true, single_block_regions: false, hot: 0 },
    &Translating { name: "regions", jit: true, tier1: true, single_block_regions: false, hot: backend::AT_ONCE },
    &Translating { name: "jit, single blocks", jit: true, tier1: false, single_block_regions: true, hot: 0 },
];

/// Blocks executed before code counts as endless.
const MAX_BLOCKS: usize = 1000;

/// The IR's reference interpreter.
struct Reference {
    optimise: bool,
}

struct Code([u8; 4096]);

impl CodeFetch for Code {
    type Fault = Fault;
    fn page(&self) -> &[u8; 4096] {
        &self.0
    }
    fn next_page(&mut self) -> Result<&[u8; 4096], Fault> {
        Ok(&self.0)
    }
}

impl Memory for Guest {
    type Fault = Fault;
    fn load(&mut self, addr: u64, ty: Ty, _: u16) -> Result<u128, Fault> {
        self.read(addr, ty.bytes())
    }
    fn store(&mut self, addr: u64, ty: Ty, value: u128, _: u16) -> Result<(), Fault> {
        self.write(addr, ty.bytes(), value)
    }
    fn rmw(&mut self, addr: u64, ty: Ty, kind: Rmw, value: u64, _: u16) -> Result<u64, Fault> {
        self.check(addr, ty.bytes().into(), true)?;
        let old = self.read(addr, ty.bytes())? as u64;
        self.write(addr, ty.bytes(), interp::rmw(ty, kind, old, value).into())?;
        Ok(old)
    }
    fn cas(&mut self, addr: u64, ty: Ty, expected: u64, new: u64, _: u16) -> Result<u64, Fault> {
        self.check(addr, ty.bytes().into(), true)?;
        let old = self.read(addr, ty.bytes())? as u64;
        if old == expected {
            self.write(addr, ty.bytes(), new.into())?;
        }
        Ok(old)
    }
    fn probe(&mut self, addr: u64, len: u32, _: u16) -> Result<(), Fault> {
        self.check(addr, len.into(), true)
    }
}

impl Engine for Reference {
    fn name(&self) -> &'static str {
        if self.optimise { "ir, optimised" } else { "ir" }
    }

    fn run(&self, guest: &mut Guest, len: usize) -> Result<Stop, String> {
        let front = X86::new(guest.cpu.features);
        let table = helpers::table::<Guest>();
        for _ in 0..MAX_BLOCKS {
            let at = guest.cpu.rip.wrapping_sub(CODE);
            if at >= len as u64 {
                return Ok(Stop::Left);
            }
            let block = self.translate(&front, guest, at as u32, len)?;
            if let Some(fault) = execute(&front, &table, guest, &block)? {
                // As the delivery of a fault does.
                let at = guest.cpu.rip;
                let bytes: Vec<u8> = (0..15).map(|k| guest.memory.get(&(at + k)).copied().unwrap_or(0)).collect();
                let fault = arch_x86::refine::with_code(guest, &bytes, fault);
                return Ok(Stop::Fault(fault));
            }
        }
        Err("the code does not end".into())
    }
}

impl Reference {
    fn translate(&self, front: &X86, guest: &Guest, at: u32, len: usize) -> Result<Block, String> {
        let mut code = Code([0xf4; 4096]);
        for (k, b) in code.0.iter_mut().enumerate().take(len) {
            *b = guest.memory.get(&(CODE + k as u64)).copied().unwrap_or(0);
        }
        let (mut n, mut off) = (0, at as usize);
        while off < len {
            off += front.disassemble(guest.cpu.mode, 0, &code.0[off..len]).1.max(1);
            n += 1;
        }
        let mut block = Block::default();
        front.translate(guest.cpu.mode, at, n, &mut code, &mut block).map_err(|e| format!("{e:?}"))?;
        let text = |b: &Block| b.display(front.layout(), front.helpers()).to_string();
        verify(&block, front.layout(), front.helpers()).map_err(|e| format!("{e}\n{}", text(&block)))?;
        if self.optimise {
            Passes::new().optimize(&mut block, front.layout(), front.helpers());
            verify(&block, front.layout(), front.helpers()).map_err(|e| format!("optimised: {e}\n{}", text(&block)))?;
        }
        Ok(block)
    }
}

/// Runs one block and brings the program counter up to date.
fn execute(front: &X86, table: &[Helper<Guest>], guest: &mut Guest, block: &Block) -> Result<Option<Fault>, String> {
    let layout = front.layout();
    let mode = guest.cpu.mode;
    let mask = (layout.pc_mask)(mode);
    guest.cpu.pc_page = CODE;
    let mut image = vec![0; size_of::<CpuState>()];
    slots::store(&mut guest.cpu, layout, &mut image);
    let mut call = |image: &mut [u8], g: &mut Guest, h: HelperId, a: [u64; 3]| {
        slots::load(&mut g.cpu, layout, image);
        let r = table[usize::from(h.0)](g, a[0], a[1], a[2]);
        slots::store(&mut g.cpu, layout, image);
        r
    };
    let outcome = Interp { layout, helpers: front.helpers(), mode }.run(block, &mut image, guest, &mut call);
    slots::load(&mut guest.cpu, layout, &image);
    let cpu = &mut guest.cpu;
    let at = |to: i64| CODE.wrapping_add(to as u64) & mask;
    let fault = match outcome {
        Outcome::Jump { to } | Outcome::ExitNext { to } => {
            cpu.rip = at(to);
            None
        }
        Outcome::Indirect { pc, .. } => {
            cpu.rip = pc & mask;
            None
        }
        Outcome::Exit => None,
        Outcome::Fault { at: insn, fault } => {
            cpu.rip = at(insn);
            Some(fault)
        }
        Outcome::Raise { at: insn, vector, error } => {
            cpu.rip = at(insn);
            Some(Fault { vector, error, addr: 0 })
        }
        Outcome::Leave { at } => return Err(format!("the instruction at {at:#x} guesses")),
        Outcome::Undefined { inst } => return Err(format!("%{inst} divides without a guard")),
    };
    Ok(fault)
}
