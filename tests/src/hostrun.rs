//! Runs one user-mode instruction natively on an x86-64 host, as the oracle of translation tests.
#![allow(unsafe_code)]

use arch_x86::CpuState;
use frontend_x86::layout;
use ir::{Block, HelperId, Interp, Memory, Outcome};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

const PAGE: usize = 4096;
/// Offsets in the data page.
const IN: usize = 0;
const FLAGS_IN: usize = 128;
const SAVED_RSP: usize = 136;
const OUT: usize = 256;
const FLAGS_OUT: usize = 384;

/// General registers in the encoding's order, and RFLAGS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Regs {
    pub gpr: [u64; 16],
    pub flags: u64,
}

/// A mapping of a code page, a data page and a page of memory for the instruction's operands.
pub struct HostRun {
    base: *mut u8,
}

impl HostRun {
    pub fn new() -> std::io::Result<Self> {
        let prot = ProtFlags::READ | ProtFlags::WRITE | ProtFlags::EXEC;
        // SAFETY: a fresh private mapping at an address of the kernel's choice touches nothing of ours.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), 3 * PAGE, prot, MapFlags::PRIVATE) }?;
        Ok(Self { base: base.cast() })
    }

    /// Address of the operand page.
    pub fn scratch_addr(&self) -> u64 {
        self.base as u64 + 2 * PAGE as u64
    }

    pub fn scratch(&mut self) -> &mut [u8; PAGE] {
        // SAFETY: the third page of the mapping, which lives as long as `self` and is borrowed with it.
        unsafe { &mut *self.base.add(2 * PAGE).cast() }
    }

    fn data(&mut self, off: usize) -> &mut u64 {
        assert!(off < PAGE && off.is_multiple_of(8));
        // SAFETY: inside the second page of the mapping, aligned, borrowed with `self`.
        unsafe { &mut *self.base.add(PAGE + off).cast() }
    }

    /// Runs `insn`. The caller answers for it: no branch, no system instruction, no access outside the operand page
    /// and no fault.
    pub fn run(&mut self, insn: &[u8], regs: &Regs) -> Regs {
        for (i, v) in regs.gpr.iter().enumerate() {
            *self.data(IN + 8 * i) = *v;
        }
        *self.data(FLAGS_IN) = regs.flags;
        let code = trampoline(insn);
        assert!(code.len() <= PAGE);
        // SAFETY: the code page is ours and large enough; the function just written keeps the C calling convention: it
        // restores the callee-saved registers, RSP and DF, and `insn` is harmless by this function's contract.
        unsafe {
            std::ptr::copy_nonoverlapping(code.as_ptr(), self.base, code.len());
            let f: extern "C" fn() = std::mem::transmute(self.base);
            f();
        }
        Regs { gpr: std::array::from_fn(|i| *self.data(OUT + 8 * i)), flags: *self.data(FLAGS_OUT) }
    }
}

impl Drop for HostRun {
    fn drop(&mut self) {
        // SAFETY: unmaps the mapping made by `new`; nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.base.cast(), 3 * PAGE) };
    }
}

/// Loads all registers and flags, runs `insn`, stores all registers and flags.
fn trampoline(insn: &[u8]) -> Vec<u8> {
    let mut c: Vec<u8> = vec![0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57];
    // One instruction with a RIP-relative operand in the data page.
    let rip = |c: &mut Vec<u8>, op: &[u8], to: usize| {
        c.extend(op);
        let disp = (PAGE + to) as i32 - (c.len() as i32 + 4);
        c.extend(disp.to_le_bytes());
    };
    let mov = |op: u8, r: usize| [0x48 | (r as u8 >> 3) << 2, op, 5 | (r as u8 & 7) << 3];
    rip(&mut c, &mov(0x89, 4), SAVED_RSP);
    rip(&mut c, &[0xff, 0x35], FLAGS_IN);
    c.push(0x9d);
    (0..16).for_each(|r| rip(&mut c, &mov(0x8b, r), IN + 8 * r));
    c.extend(insn);
    (0..16).for_each(|r| rip(&mut c, &mov(0x89, r), OUT + 8 * r));
    rip(&mut c, &mov(0x8b, 4), SAVED_RSP);
    c.push(0x9c);
    rip(&mut c, &[0x8f, 0x05], FLAGS_OUT);
    c.extend([0x6a, 0x02, 0x9d, 0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3]);
    c
}

/// Runs a block on the reference interpreter over a `CpuState`; `call` runs a helper.
pub fn interpret<M: Memory>(
    interp: &Interp<'_>,
    block: &Block,
    cpu: &mut CpuState,
    mem: &mut M,
    mut call: impl FnMut(&mut CpuState, &mut M, HelperId, [u64; 3]) -> Result<u64, M::Fault>,
) -> Outcome<M::Fault> {
    assert_eq!(layout::layout().size as usize, size_of::<CpuState>());
    // SAFETY: the bytes of `cpu`, borrowed with it. The interpreter touches slots only, whose bytes are initialised, and
    // writes `bool`s only as the front end does, with 0 or 1.
    let state = unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(cpu).cast::<u8>(), size_of::<CpuState>()) };
    interp.run(block, state, mem, &mut |state, mem, id, args| {
        assert_eq!(state.len(), size_of::<CpuState>());
        // SAFETY: `state` is the slice made above: a valid, aligned `CpuState`, reborrowed for this call only.
        let cpu = unsafe { &mut *state.as_mut_ptr().cast::<CpuState>() };
        call(cpu, mem, id, args)
    })
}
