//! What cannot be told of a fault without the instruction: that a read is half of a read-modify-write, which processors check
//! as a write (SDM 3A "Page-Fault Exceptions", W/R), that 32-bit code reached beyond its segments, which have 4 GiB at most,
//! and through which segment an address was not canonical. Decodes the instruction once more, of such faults only.

use crate::fault::{gp, pf, ss, vector};
use crate::mode::CodeSize;
use crate::paging::unmappable;
use crate::state::{CpuState, SegReg};
use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess, OpKind, Register, UsedMemory,
};
use vm_core::guest::{GuestEnv, PhysMem};
use vm_core::{Access, CpuIo, Fault, Pa, Target, Va};

const MAX_LEN: usize = 15;

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
    if Doubt::of(env.cpu_ref(), &f).is_none() {
        return f;
    }
    let code = Code::at_rip(env.cpu_ref(), env.io());
    with_code(env, code.bytes(), f)
}

/// The instruction at RIP, if it can be read and is one.
pub(crate) fn at_rip(cpu: &CpuState, io: &dyn CpuIo) -> Option<Instruction> {
    instruction(cpu, Code::at_rip(cpu, io).bytes())
}

/// As `refine`, with the bytes of the instruction.
pub fn with_code<E: GuestEnv<Cpu = CpuState>>(env: &mut E, bytes: &[u8], f: Fault) -> Fault {
    let cpu = env.cpu_ref();
    let Some((doubt, insn)) = Doubt::of(cpu, &f).zip(instruction(cpu, bytes)) else { return f };
    match doubt {
        Doubt::Canonical if through_stack(cpu, &insn, f.addr) => Fault { vector: vector::SS, ..f },
        Doubt::Canonical => f,
        Doubt::Wraps | Doubt::WrapsOrWrites if let Some(stack) = wrapping(cpu, &insn, f.addr) => {
            if stack {
                ss(0)
            } else {
                gp(0)
            }
        }
        Doubt::Wraps => f,
        Doubt::Writes | Doubt::WrapsOrWrites => written(env, &insn, f),
    }
}

/// What is not known of a fault as it was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doubt {
    /// A non-canonical address raises #SS(0) through the stack segment, else #GP(0) (SDM 3A "Interrupt 12—Stack Fault Exception").
    Canonical,
    /// The access may have gone beyond offset FFFFFFFFh, or beyond the last canonical address.
    Wraps,
    /// The read may be half of a write.
    Writes,
    WrapsOrWrites,
}

impl Doubt {
    fn of(cpu: &CpuState, f: &Fault) -> Option<Self> {
        let long = cpu.mode().is_64();
        if f.vector == vector::GP {
            let doubt = if long { Doubt::Canonical } else { Doubt::Wraps };
            return (f.addr != 0).then_some(doubt);
        }
        let data = f.vector == vector::PF && f.error.is_some_and(|e| e & pf::I == 0);
        let reads = data && f.error.is_some_and(|e| e & pf::W == 0);
        let next = (f.addr | 0xfff).wrapping_add(1);
        let wraps = data && if long { unmappable(cpu, Va(next)).is_some() } else { f.addr >> 12 == 0xf_ffff };
        match (wraps, reads) {
            (true, true) => Some(Doubt::WrapsOrWrites),
            (true, false) => Some(Doubt::Wraps),
            (false, true) => Some(Doubt::Writes),
            (false, false) => None,
        }
    }
}

/// The page fault of a read, as that of the write it belongs to if it does.
fn written<E: GuestEnv<Cpu = CpuState>>(env: &mut E, insn: &Instruction, f: Fault) -> Fault {
    let Some(start) = modified(env.cpu_ref(), insn) else { return f };
    // Of an operand on two pages the first comes first.
    let before = f.addr.wrapping_sub(start);
    let ctx = env.cpu_ref().mode().ctx();
    let second = f.addr & 0xfff == 0;
    if second
        && (1..16).contains(&before)
        && let Err(first) = env.probe(Va(start), before, Access::Write, ctx)
    {
        return first;
    }
    Fault { error: f.error.map(|e| e | pf::W), ..f }
}

/// The bytes at RIP, as far as they can be read without a trace.
struct Code {
    bytes: [u8; MAX_LEN],
    len: usize,
}

impl Code {
    fn at_rip(cpu: &CpuState, io: &dyn CpuIo) -> Self {
        let (mem, mut code) = (Look(io), Code { bytes: [0; MAX_LEN], len: 0 });
        let base = if cpu.mode().is_64() { 0 } else { cpu.seg(SegReg::Cs).base };
        let mut page = None;
        for k in 0..MAX_LEN {
            let va = base.wrapping_add(cpu.rip.wrapping_add(k as u64) & cpu.mode().pc_mask());
            if k == 0 || va & 0xfff == 0 {
                page = crate::paging::debug_walk(cpu, Va(va & !0xfff), &mem);
            }
            let Some(b) = page.and_then(|p| mem.ram(Pa(p.0 | va & 0xfff), 1)) else { break };
            code.bytes[k] = b as u8;
            code.len = k + 1;
        }
        code
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
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
    let va = address(cpu, m, bits_away(cpu, insn))?.linear;
    Some(if cpu.mode().is_64() { va } else { va & 0xffff_ffff })
}

/// Where an operand lies.
struct Operand {
    /// Offset in its segment, of the address size's bits.
    offset: u64,
    /// Of 64 bits, also where linear addresses have 32.
    linear: u64,
}

/// Of an operand `away` bytes beyond where the instruction's address leads, which wraps round as that does (SDM 1 "Memory Operands").
fn address(cpu: &CpuState, m: &UsedMemory, away: u64) -> Option<Operand> {
    let offset = m.virtual_address(0, |r, _, _| register(cpu, r, false))?.wrapping_add(away);
    let offset = match m.address_size() {
        iced_x86::CodeSize::Code16 => offset & 0xffff,
        iced_x86::CodeSize::Code32 => offset & 0xffff_ffff,
        _ => offset,
    };
    let base = register(cpu, m.segment(), true).unwrap_or(0);
    Some(Operand { offset, linear: offset.wrapping_add(base) })
}

/// How far from its operand BT or one of its kin reaches by a bit number in a register.
fn bits_away(cpu: &CpuState, insn: &Instruction) -> u64 {
    use Mnemonic::{Bt, Btc, Btr, Bts};
    if !matches!(insn.mnemonic(), Bt | Bts | Btr | Btc) || insn.op1_kind() != OpKind::Register {
        return 0;
    }
    let size = insn.op1_register().size() as u32;
    let bit = register(cpu, insn.op1_register(), false).unwrap_or(0);
    let bit = (bit << (64 - 8 * size)) as i64 >> (64 - 8 * size);
    (bit >> (8 * size).trailing_zeros()).wrapping_mul(size.into()) as u64
}

/// Bytes of its operand that it accesses first, of instructions that do so in parts, each with its own faults. Elements that a
/// mask selects are checked where they are accessed.
fn first_part(insn: &Instruction) -> Option<u64> {
    use Mnemonic::{Bound, Maskmovdqu, Popa, Popad, Vmaskmovdqu, Vmaskmovpd, Vmaskmovps, Vpmaskmovd, Vpmaskmovq};
    match insn.mnemonic() {
        Bound => return Some(insn.memory_size().size() as u64 / 2),
        Popa => return Some(2),
        Popad => return Some(4),
        Maskmovdqu | Vmaskmovdqu => return Some(8),
        Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq => return Some(0),
        _ => {}
    }
    match insn.memory_size() {
        MemorySize::Float80 | MemorySize::Bcd => Some(8),
        MemorySize::FpuEnv14 | MemorySize::FpuState94 => Some(2),
        MemorySize::FpuEnv28 | MemorySize::FpuState108 => Some(4),
        _ => None,
    }
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

/// Whether the 64-bit instruction reached the non-canonical `addr` through the stack segment: with RSP or RBP as base, and neither
/// FS nor GS.
fn through_stack(cpu: &CpuState, insn: &Instruction, addr: u64) -> bool {
    let mut info = InstructionInfoFactory::new();
    let used = info.info(insn).used_memory();
    // State areas have no size of their own.
    let size = |m: &UsedMemory| if m.memory_size().size() == 0 { 4096 } else { m.memory_size().size() as u64 };
    let there = |m: &&UsedMemory| {
        m.virtual_address(0, |r, _, _| register(cpu, r, true)).is_some_and(|start| addr.wrapping_sub(start) < size(m))
    };
    // Bits and gathered elements lie elsewhere than the operand.
    used.iter().find(there).or(used.first()).is_some_and(stack_base)
}

/// Of an operand with `addr` in it that goes beyond offset FFFFFFFFh, which is beyond any limit, or beyond the last canonical address:
/// whether it is reached through the stack segment.
fn wrapping(cpu: &CpuState, insn: &Instruction, addr: u64) -> Option<bool> {
    let (mut info, long, part) = (InstructionInfoFactory::new(), cpu.mode().is_64(), first_part(insn));
    let away = if insn.op0_kind() == OpKind::Memory { bits_away(cpu, insn) } else { 0 };
    let beyond = |m: &&UsedMemory| {
        let Some(Operand { offset, linear: va }) = address(cpu, m, away) else { return false };
        let size = part.unwrap_or(m.memory_size().size() as u64);
        if long {
            let bad = |va: u64| unmappable(cpu, Va(va)).is_some();
            size > 1 && addr.wrapping_sub(va) < size && !bad(va) && bad(va.wrapping_add(size - 1))
        } else {
            addr.wrapping_sub(va) & 0xffff_ffff < size && (offset & 0xffff_ffff) + size > 1 << 32
        }
    };
    let m = *info.info(insn).used_memory().iter().find(beyond)?;
    Some(if long { stack_base(&m) } else { m.segment() == Register::SS })
}

/// In 64-bit code: is it an operand of the stack segment?
fn stack_base(m: &UsedMemory) -> bool {
    let stack = matches!(m.base(), Register::RSP | Register::RBP | Register::ESP | Register::EBP);
    stack && !matches!(m.segment(), Register::FS | Register::GS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{Segment, cr0, efer};

    fn cpu() -> CpuState {
        CpuState::new(&crate::models::configure("qemu64", &[]).unwrap(), 0)
    }

    /// Whether the code reaches `addr` through the stack with RAX, RBX, RBP, RSP, RDI and R13 at the places given.
    fn stack(code: &[u8], addr: u64, operand: u64, rsp: u64) -> bool {
        let mut cpu = cpu();
        cpu.gpr = [operand; 16];
        cpu.gpr[4] = rsp;
        let insn = Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE).decode();
        !insn.is_invalid() && through_stack(&cpu, &insn, addr)
    }

    #[test]
    fn operands_and_pushes_are_told_apart() {
        const BAD: u64 = 1 << 63;
        let operand = |code: &[u8]| stack(code, BAD, BAD, 0x1000);
        // mov eax, [rbp]; [rbx]; [rbp] behind FS; [r13]; [rsp]; a register's own bytes.
        assert!(operand(&[0x8b, 0x45, 0]));
        assert!(!operand(&[0x8b, 0x03]));
        assert!(!operand(&[0x64, 0x8b, 0x45, 0]));
        assert!(!operand(&[0x41, 0x8b, 0x45, 0]));
        assert!(stack(&[0x8b, 0x04, 0x24], BAD, 0, BAD));
        // An ignored override changes nothing; DS: [rbp].
        assert!(operand(&[0x3e, 0x8b, 0x45, 0]));
        // push rax; ret; push [rax] with a bad operand, with a bad stack; pop [rax]; call [rbp].
        assert!(stack(&[0x50], BAD - 8, 0, BAD) && stack(&[0xc3], BAD, 0, BAD));
        assert!(!operand(&[0xff, 0x30]) && stack(&[0xff, 0x30], BAD - 8, 0, BAD));
        assert!(!operand(&[0x8f, 0x00]) && operand(&[0xff, 0x55, 0]));
        // movaps and vaddps of [rbp], of [rbx] or [r13]; push fs; stosb.
        assert!(operand(&[0x0f, 0x28, 0x45, 0]) && !operand(&[0x0f, 0x28, 0x03]));
        assert!(operand(&[0xc5, 0xf8, 0x58, 0x45, 0]) && !operand(&[0xc4, 0xc1, 0x78, 0x58, 0x45, 0]));
        assert!(stack(&[0x0f, 0xa0], BAD - 8, 0, BAD) && !operand(&[0xaa]));
        // bt [rbp], rax reaches far from its operand; xsave [rbp] over its area; vpgatherdd of [rbp + xmm0].
        assert!(operand(&[0x48, 0x0f, 0xa3, 0x45, 0]) && stack(&[0x0f, 0xae, 0x65, 0], BAD + 0x200, BAD, 0x1000));
        assert!(operand(&[0xc4, 0xe2, 0x71, 0x90, 0x54, 0x05, 0]));
        // Nothing but prefixes.
        assert!(!operand(&[0x66; 15]));
    }

    #[test]
    fn bits_far_away_wrap_round_with_the_address() {
        let mut cpu = cpu();
        (cpu.cr0, cpu.efer) = (cr0::PE | cr0::PG, efer::LME | efer::LMA);
        cpu.seg_mut(SegReg::Cs).attr |= Segment::L;
        cpu.update_mode();
        (cpu.gpr[3], cpu.seg_mut(SegReg::Gs).base) = (0xffff_fff8, 1 << 40);
        let mut at = |code: &[u8], bit: u64| {
            cpu.gpr[1] = bit;
            modified(&cpu, &Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE).decode()).expect("it writes")
        };
        // bts %rcx,0x10(%rbx); of EBX; of EBX behind GS.
        let [far, near, gs] = [
            &[0x48, 0x0f, 0xab, 0x4b, 0x10][..],
            &[0x67, 0x48, 0x0f, 0xab, 0x4b, 0x10],
            &[0x65, 0x67, 0x48, 0x0f, 0xab, 0x4b, 0x10],
        ];
        for bit in [0, 1 << 35, 1 << 38, 1 << 62, 1 << 63, u64::MAX << 40] {
            assert_eq!((at(near, bit), at(gs, bit)), (8, 8 + (1 << 40)), "{bit:x}");
        }
        assert_eq!((at(far, 1 << 38), at(far, 128)), (0x8_0000_0000 + 0x1_0000_0008, 0x1_0000_0018));
        assert_eq!((at(near, 128), at(near, !0)), (0x18, 0));
    }

    #[test]
    fn only_faults_in_doubt_are_looked_into() {
        let cpu = cpu();
        let fault = |error, addr| crate::fault::page(addr, error);
        assert_eq!(Doubt::of(&cpu, &fault(pf::U, 0x1000)), Some(Doubt::Writes));
        assert_eq!(Doubt::of(&cpu, &fault(pf::U | pf::W, 0x1000)), None);
        assert_eq!(Doubt::of(&cpu, &fault(pf::U | pf::W, 0xffff_fffc)), Some(Doubt::Wraps));
        assert_eq!(Doubt::of(&cpu, &fault(pf::U | pf::I, 0xffff_fffc)), None);
    }
}
