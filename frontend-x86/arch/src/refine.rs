//! What a page walk cannot tell of a fault, because it does not know the instruction: that a read is half of a
//! read-modify-write, which processors check as a write (SDM 3A "Page-Fault Exceptions", W/R), and that 32-bit code
//! reached beyond its segments, which have 4 GiB at most. Decodes the instruction once more; faults only.

use crate::fault::{gp, pf, ss, vector};
use crate::mode::CodeSize;
use crate::state::{CpuState, SegReg};
use iced_x86::{Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register, UsedMemory};
use vm_core::guest::{GuestEnv, PhysMem};
use vm_core::{Access, CpuIo, Fault, Pa, Target, Va};

const MAX_LEN: u64 = 15;

/// Physical memory for looking only.
struct Look<'a>(&'a dyn CpuIo);

impl Look<'_> {
    fn ram(&self, pa: Pa, size: u8) -> Option<u64> {
        match self.0.target(pa) {
            Target::Ram { offset, .. } if offset & 0xfff <= 4096 - u64::from(size) => Some(self.0.ram().read_uint(offset, size)),
            _ => None,
        }
    }
}

impl PhysMem for Look<'_> {
    fn read_u64(&self, pa: Pa) -> u64 {
        self.ram(pa, 8).unwrap_or(!0)
    }
    fn read_u32(&self, pa: Pa) -> u32 {
        self.ram(pa, 4).unwrap_or(!0) as u32
    }
    fn cas_u64(&self, _: Pa, _: u64, _: u64) -> bool {
        true
    }
    fn cas_u32(&self, _: Pa, _: u32, _: u32) -> bool {
        true
    }
}

/// The fault `f` of the instruction at RIP as the processor reports it.
pub fn refine<E: GuestEnv<Cpu = CpuState>>(env: &mut E, f: Fault) -> Fault {
    let data = f.vector == vector::PF && f.error.is_some_and(|e| e & pf::I == 0);
    if !data {
        return f;
    }
    let bytes = code(env.cpu_ref(), env.io());
    with_code(env, &bytes, f)
}

/// As `refine`, with the bytes of the instruction.
pub fn with_code<E: GuestEnv<Cpu = CpuState>>(env: &mut E, bytes: &[u8], f: Fault) -> Fault {
    let data = f.vector == vector::PF && f.error.is_some_and(|e| e & pf::I == 0);
    let read = data && f.error.is_some_and(|e| e & pf::W == 0);
    let wraps = data && !env.cpu_ref().mode().is_64() && f.addr >> 12 == 0xf_ffff;
    let Some(insn) = instruction(env.cpu_ref(), bytes) else { return f };
    if wraps && let Some(seg) = wrapping(env.cpu_ref(), &insn) {
        return if seg == Register::SS { ss(0) } else { gp(0) };
    }
    if read && let Some(start) = modified(env.cpu_ref(), &insn) {
        // Of an operand on two pages the first comes first.
        let before = f.addr.wrapping_sub(start);
        let ctx = env.cpu_ref().mode().ctx();
        let far = matches!(insn.mnemonic(), Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc) && insn.op1_kind() == OpKind::Register;
        let second = f.addr & 0xfff == 0 && !far;
        if second
            && (1..16).contains(&before)
            && let Err(first) = env.probe(Va(start), before, Access::Write, ctx)
        {
            return first;
        }
        return Fault { error: f.error.map(|e| e | pf::W), ..f };
    }
    f
}

/// Bytes at RIP, as far as they can be read.
fn code(cpu: &CpuState, io: &dyn CpuIo) -> Vec<u8> {
    let (mem, mut bytes) = (Look(io), Vec::with_capacity(MAX_LEN as usize));
    let base = if cpu.mode().is_64() { 0 } else { cpu.seg(SegReg::Cs).base };
    for k in 0..MAX_LEN {
        let va = base.wrapping_add(cpu.rip.wrapping_add(k) & cpu.mode().pc_mask());
        let Some(b) = crate::paging::debug_walk(cpu, Va(va), &mem).and_then(|pa| mem.ram(pa, 1)) else { break };
        bytes.push(b as u8);
    }
    bytes
}

fn instruction(cpu: &CpuState, bytes: &[u8]) -> Option<Instruction> {
    let bits = match cpu.mode().code_size() {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    let insn = Decoder::with_ip(bits, bytes, cpu.rip, DecoderOptions::NONE).decode();
    (!insn.is_invalid()).then_some(insn)
}

/// Linear address of the operand that it reads to write it, if there is one.
fn modified(cpu: &CpuState, insn: &Instruction) -> Option<u64> {
    // ARPL writes only what it has to.
    if insn.mnemonic() == Mnemonic::Arpl {
        return None;
    }
    let both = |a: OpAccess| matches!(a, OpAccess::ReadWrite | OpAccess::ReadCondWrite);
    let mut info = InstructionInfoFactory::new();
    let m = info.info(insn).used_memory().iter().find(|m| both(m.access()))?;
    let va = m.virtual_address(0, |r, _, _| register(cpu, r, true))?;
    Some(if cpu.mode().is_64() { va } else { va & 0xffff_ffff })
}

/// Value of a register in an address; of a segment register its base, if `bases`.
fn register(cpu: &CpuState, r: Register, bases: bool) -> Option<u64> {
    if r.is_segment_register() {
        let seg = SegReg::from_index(r.number() as u64)?;
        let based = bases && (!cpu.mode().is_64() || matches!(seg, SegReg::Fs | SegReg::Gs));
        return Some(if based { cpu.seg(seg).base } else { 0 });
    }
    if !r.is_gpr() {
        return None;
    }
    let v = *cpu.gpr.get(r.number())?;
    Some(match r.size() {
        8 => v,
        4 => v & 0xffff_ffff,
        _ => v & 0xffff,
    })
}

/// The segment of an operand that goes beyond offset FFFFFFFFh, which is beyond any limit.
fn wrapping(cpu: &CpuState, insn: &Instruction) -> Option<Register> {
    let mut info = InstructionInfoFactory::new();
    let beyond = |m: &&UsedMemory| {
        let offset = m.virtual_address(0, |r, _, _| register(cpu, r, false)).map_or(0, |o| o & 0xffff_ffff);
        offset + m.memory_size().size() as u64 > 1 << 32
    };
    info.info(insn).used_memory().iter().find(beyond).map(|m| m.segment())
}
