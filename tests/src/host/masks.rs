//! What the manuals leave undefined, as data: the one table that comparisons with the host apply. A row masks only what both
//! Intel's SDM and AMD's APM call undefined.

use super::draw::Drawn;
use super::{State, Trap};
use arch_x86::flags::bit;
use iced_x86::{Mnemonic as M, OpKind};

/// What is not compared.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// These RFLAGS.
    Flags(u64),
    /// These bits of the x87 status word.
    Fsw(u16),
    /// The destination register.
    Dest,
    /// Flags in MXCSR of exceptions that are masked.
    MaskedFlags,
    /// Bits 127:64 of the destination register.
    DestHigh,
    /// These bytes of the memory operand.
    Memory(usize, usize),
    /// CR2's offset in the operand.
    FaultAddress,
    /// x87 tags and TOP.
    Tags,
    /// All general registers.
    Registers,
    /// Which of #SS, #GP, #PF, #AC it is.
    Class,
}

/// When a row holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum When {
    Always,
    /// The masked count of a shift or rotate is not 0 and not 1.
    CountAbove1,
    /// The masked count is not 0.
    Count,
    /// The masked count is the operand's size or more, of 8 or 16 bits.
    CountReachesSize,
    /// The masked count is above the operand's size, of 16 bits.
    CountAboveSize,
    /// The environment has the 16-bit or the 32-bit format.
    Short,
    Long,
    /// The host's trap is a page fault, or #XM.
    PageFault,
    /// The host faulted.
    Fault,
    SimdFault,
    /// Operand size 16.
    Size16,
}

/// Mnemonics, when, what, and where the manuals say so (SDM volume 2 and APM volumes 3 to 5, at the instruction's name).
pub type Row = (&'static [M], When, What, &'static str);

const SZAP: u64 = bit::SF | bit::ZF | bit::AF | bit::PF;

pub const TABLE: &[Row] = &[
    (&[M::And, M::Or, M::Xor, M::Test], When::Always, What::Flags(bit::AF), "SDM 2 AND, APM 3 AND: AF"),
    (&[M::Andn], When::Always, What::Flags(bit::AF | bit::PF), "SDM 2 ANDN, APM 3 ANDN: AF, PF"),
    (&[M::Shl, M::Sal, M::Shr, M::Sar, M::Shld, M::Shrd], When::Count, What::Flags(bit::AF), "SDM 2 SAL, SHLD; APM 3: AF"),
    (
        &[M::Shl, M::Sal, M::Shr, M::Sar, M::Shld, M::Shrd, M::Rol, M::Ror, M::Rcl, M::Rcr],
        When::CountAbove1,
        What::Flags(bit::OF),
        "SDM 2 SAL, RCL; APM 3: OF for counts other than 1",
    ),
    (
        &[M::Shl, M::Sal, M::Shr],
        When::CountReachesSize,
        What::Flags(bit::CF),
        "SDM 2 SAL; APM 3 SHL: CF for counts of the size or more",
    ),
    (&[M::Shld, M::Shrd], When::CountAboveSize, What::Dest, "SDM 2 SHLD, APM 3 SHLD: count above the operand size"),
    (&[M::Shld, M::Shrd], When::CountAboveSize, What::Flags(bit::ARITH), "SDM 2 SHLD, APM 3 SHLD: count above the operand size"),
    (&[M::Mul, M::Imul], When::Always, What::Flags(SZAP), "SDM 2 MUL, IMUL; APM 3: SF, ZF, AF, PF"),
    (&[M::Div, M::Idiv], When::Always, What::Flags(bit::ARITH), "SDM 2 DIV, APM 3 DIV: all six"),
    (&[M::Bt, M::Bts, M::Btr, M::Btc], When::Always, What::Flags(bit::OF | bit::SF | bit::AF | bit::PF), "SDM 2 BT, APM 3 BT"),
    (&[M::Bsf, M::Bsr], When::Always, What::Flags(bit::ARITH & !bit::ZF), "SDM 2 BSF, APM 3 BSF"),
    (&[M::Tzcnt, M::Lzcnt], When::Always, What::Flags(bit::OF | bit::SF | bit::AF | bit::PF), "SDM 2 TZCNT, APM 3 TZCNT"),
    (&[M::Bextr], When::Always, What::Flags(bit::SF | bit::AF | bit::PF), "SDM 2 BEXTR, APM 3 BEXTR"),
    (&[M::Blsi, M::Blsmsk, M::Blsr, M::Bzhi], When::Always, What::Flags(bit::AF | bit::PF), "SDM 2 BLSI, BZHI; APM 3"),
    (&[M::Bswap], When::Size16, What::Dest, "SDM 2 BSWAP, APM 3 BSWAP: 16-bit operand"),
    (&[M::Aaa, M::Aas], When::Always, What::Flags(bit::OF | bit::SF | bit::ZF | bit::PF), "SDM 2 AAA, APM 3 AAA"),
    (&[M::Aam, M::Aad], When::Always, What::Flags(bit::OF | bit::AF | bit::CF), "SDM 2 AAM, APM 3 AAM"),
    (&[M::Daa, M::Das], When::Always, What::Flags(bit::OF), "SDM 2 DAA, APM 3 DAA"),
    (&[M::Extrq, M::Insertq], When::Always, What::DestHigh, "APM 4 EXTRQ, INSERTQ (AMD's alone): bits 127:64"),
    (&[M::Fnstenv, M::Fnsave], When::Long, What::Memory(12, 28), "SDM 1 8.1.8, APM 2 11.4.4.2: pointers of no exception"),
    (&[M::Fnstenv, M::Fnsave], When::Short, What::Memory(6, 14), "SDM 1 8.1.8, APM 2 11.4.4.2: pointers of no exception"),
    (&[M::Fxsave, M::Fxsave64], When::Always, What::Memory(28, 32), "SDM 1 10.5.1.2, APM 2 11.4.4: MXCSR_MASK is the model's"),
    (
        &[
            M::Fnsave,
            M::Frstor,
            M::Fnstenv,
            M::Fldenv,
            M::Fxsave,
            M::Fxsave64,
            M::Fxrstor,
            M::Fxrstor64,
            M::Pusha,
            M::Pushad,
            M::Popa,
            M::Popad,
            M::Enter,
            M::Cmpsb,
            M::Cmpsw,
            M::Cmpsd,
            M::Cmpsq,
        ],
        When::PageFault,
        What::FaultAddress,
        "SDM 3A 4.7, APM 2 8.2.15: order of an instruction's accesses",
    ),
    (
        &[M::Cvtpi2ps, M::Cvtpi2pd, M::Cvtps2pi, M::Cvttps2pi, M::Cvtpd2pi, M::Cvttpd2pi],
        When::SimdFault,
        What::Tags,
        "SDM 1 9.5.1, APM 1 5.12: the x87 tags when such an instruction faults",
    ),
    (
        &[M::Dpps, M::Vdpps],
        When::SimdFault,
        What::MaskedFlags,
        "SDM 2 DPPS, APM 4 DPPS: order of the sums, of which one raises an exception",
    ),
    (&[M::Maskmovq], When::Fault, What::Tags, "SDM 1 9.5.1, APM 1 5.12: the x87 tags when such an instruction faults"),
    (&[M::Popa, M::Popad], When::Fault, What::Registers, "SDM 2 POPA, APM 3 POPA: registers that were popped before a fault"),
    (
        &[M::Call, M::Enter, M::Leave, M::Cmpsb, M::Cmpsw, M::Cmpsd, M::Cmpsq, M::Fxsave, M::Fxsave64, M::Fxrstor, M::Fxrstor64],
        When::Fault,
        What::Class,
        "SDM 3A 6.9, APM 2 8.5: order of the faults that executing it meets",
    ),
    (&[M::Fxsave, M::Fxsave64], When::Always, What::Memory(6, 24), "SDM 1 8.1.8, APM 2 11.4.4.2: pointers of no exception"),
];

/// What is left of a comparison.
#[derive(Clone, Debug)]
pub struct Mask {
    pub flags: u64,
    pub fsw: u16,
    pub mxcsr: u32,
    /// Whether the last x87 opcode is compared.
    pub fop: bool,
    pub gpr: Option<usize>,
    pub xmm_high: Option<usize>,
    /// Bytes of memory (linear addresses).
    pub memory: Vec<std::ops::Range<u64>>,
    pub fault_address: bool,
    pub tags: bool,
    pub registers: bool,
    pub class: bool,
}

/// RFLAGS that mean something after a trap: not RF, which the trap sets.
const COMPARED: u64 = 0x24_4fd5 | 0x200;

impl Mask {
    /// The mask where nothing is undefined.
    pub fn all() -> Mask {
        Mask {
            flags: COMPARED,
            fsw: !0,
            mxcsr: !0,
            fop: true,
            gpr: None,
            xmm_high: None,
            memory: Vec::new(),
            fault_address: false,
            tags: false,
            registers: false,
            class: false,
        }
    }

    /// The mask for `d` run from `s`, with its operand at `target`, which ended in `trap` on the host.
    pub fn new(d: &Drawn, s: &State, target: u64, trap: Trap) -> Mask {
        let mut m = Mask::all();
        for (ops, when, what, _) in TABLE {
            if !ops.contains(&d.insn.mnemonic()) || !holds(*when, d, s, trap) {
                continue;
            }
            match *what {
                What::Flags(f) => m.flags &= !f,
                What::Fsw(f) => m.fsw &= !f,
                What::Dest if d.insn.op0_kind() == OpKind::Register => m.gpr = Some(d.insn.op0_register().number()),
                What::Dest => m.memory.push(target..target + 2),
                What::MaskedFlags => m.mxcsr &= !(s.mxcsr >> 7 & 0x3f),
                What::DestHigh => m.xmm_high = Some(d.insn.op0_register().number()),
                What::Memory(a, b) => m.memory.push(target + a as u64..target + b as u64),
                What::FaultAddress => m.fault_address = true,
                What::Tags => m.tags = true,
                What::Registers => m.registers = true,
                What::Class => m.class = true,
            }
        }
        m
    }
}

fn holds(when: When, d: &Drawn, s: &State, trap: Trap) -> bool {
    let size = operand_size(d);
    let count = || count(d, s, size);
    match when {
        When::Always => true,
        When::Count => count() != 0,
        When::CountAbove1 => count() > 1,
        When::CountReachesSize => size <= 2 && count() >= 8 * size,
        When::CountAboveSize => size == 2 && count() > 16,
        When::Size16 => size == 2,
        When::Short => matches!(d.insn.memory_size().size(), 14 | 94),
        When::Long => !matches!(d.insn.memory_size().size(), 14 | 94),
        When::PageFault => trap.vector == 14,
        When::SimdFault => trap.vector == 19,
        When::Fault => trap.vector != 3,
    }
}

fn operand_size(d: &Drawn) -> u64 {
    match d.insn.op0_kind() {
        OpKind::Register => d.insn.op0_register().size() as u64,
        _ => d.insn.memory_size().size() as u64,
    }
}

/// Masked count of a shift or rotate.
fn count(d: &Drawn, s: &State, size: u64) -> u64 {
    let last = d.insn.op_count().saturating_sub(1);
    let raw = match d.insn.op_kind(last) {
        OpKind::Register => s.gpr[1],
        OpKind::Immediate8 => d.insn.immediate8().into(),
        _ => 1,
    };
    raw & if size == 8 { 63 } else { 31 }
}
