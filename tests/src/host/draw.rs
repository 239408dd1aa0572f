//! Draws instructions: a form, one of its templates, then prefixes, registers, addressing and constants at random.

use super::forms::{Form, Template, decode};
use super::{Bits, at};
use iced_x86::{
    ConstantOffsets, Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic as M, OpAccess, OpKind, Register,
};
use vm_core::testing::Rng;

/// An instruction at its place.
#[derive(Clone, Debug)]
pub struct Drawn {
    pub bits: Bits,
    /// Linear address.
    pub ip: u64,
    pub bytes: Vec<u8>,
    pub insn: Instruction,
    /// Index of the form that was meant.
    pub form: usize,
    pub writes_memory: bool,
}

impl Drawn {
    /// Checks `bytes` at `ip`: `None` if that is no instruction that may run natively.
    pub fn new(bits: Bits, ip: u64, bytes: &[u8]) -> Option<Drawn> {
        let insn = decode(bits, ip, bytes);
        if insn.is_invalid() || insn.memory_segment() == Register::FS {
            return None;
        }
        let bytes = bytes[..insn.len()].to_vec();
        if vendors_differ(bits, &bytes, &insn) {
            return None;
        }
        let mut info = InstructionInfoFactory::new();
        let write = |a: OpAccess| !matches!(a, OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess);
        let writes_memory = info.info(&insn).used_memory().iter().any(|m| write(m.access()));
        Some(Drawn { bits, ip, bytes, insn, form: 0, writes_memory })
    }

    /// Where displacement and immediates lie.
    pub fn offsets(&self) -> ConstantOffsets {
        let mut d = Decoder::with_ip(self.bits.count(), &self.bytes, self.ip, DecoderOptions::NONE);
        let i = d.decode();
        d.get_constant_offsets(&i)
    }

    /// Does `c` make it an access that Intel's processors want aligned, and AMD's do not: SHA's? Or a repeated string instruction
    /// that begins or ends where canonical addresses do, of which AMD's check several elements at once?
    pub fn vendors_differ(&self, c: &super::case::Case) -> bool {
        let at_end = |a: u64| a << 17 > u64::MAX << 29;
        let repeats = self.insn.has_rep_prefix() || self.insn.has_repne_prefix();
        if self.bits == Bits::B64
            && repeats
            && self.insn.is_string_instruction()
            && [6, 7].iter().any(|r| at_end(c.state.gpr[*r]))
        {
            return true;
        }
        let memory = (0..self.insn.op_count()).any(|k| self.insn.op_kind(k) == OpKind::Memory);
        memory && sha(&self.insn) && super::bench::operand_address(self, &c.state) & 15 != 0
    }

    /// Does it go on with the next instruction, whatever it does? Not POPF, which may set TF.
    pub fn falls_through(&self) -> bool {
        self.insn.flow_control() == iced_x86::FlowControl::Next && !matches!(self.insn.mnemonic(), M::Popf | M::Popfd | M::Popfq)
    }

    /// What makes an encoding: the bytes without displacement and immediate.
    pub fn encoding(&self) -> u64 {
        let o = self.offsets();
        let (d, i) = (o.displacement_offset(), o.immediate_offset());
        let end = [(d, o.has_displacement()), (i, o.has_immediate())].iter().filter(|x| x.1).map(|x| x.0).min();
        let head = &self.bytes[..end.unwrap_or(self.bytes.len())];
        head.iter().fold(0xcbf2_9ce4_8422_2325 ^ self.bits as u64, |h: u64, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3))
    }
}

/// Where Intel's and AMD's processors differ by their manuals, and ours follows Intel's, which the host may not be: near branches
/// with an operand-size prefix in 64-bit code (AMD's are 16 bits wide), REX.B before PAUSE.
fn vendors_differ(bits: Bits, bytes: &[u8], i: &Instruction) -> bool {
    use iced_x86::FlowControl as Flow;
    let branch = matches!(
        i.flow_control(),
        Flow::UnconditionalBranch
            | Flow::ConditionalBranch
            | Flow::Call
            | Flow::IndirectBranch
            | Flow::IndirectCall
            | Flow::Return
    );
    let sized = bytes
        .iter()
        .take_while(|b| matches!(b, 0x66 | 0x67 | 0xf0 | 0xf2 | 0xf3 | 0x26 | 0x2e | 0x36 | 0x3e | 0x65))
        .any(|b| *b == 0x66);
    // Repeat prefixes are reserved there (SDM 2 2.1.1, APM 3 1.2.6), and some processors do something with them.
    let looped = matches!(i.mnemonic(), M::Loope | M::Loopne | M::Loop) && bytes.iter().take(4).any(|b| matches!(b, 0xf2 | 0xf3));
    // AMD's processors read 32 bits.
    let extended = i.code() == iced_x86::Code::Movsxd_r16_rm16 && i.op1_kind() == OpKind::Memory;
    // Intel's REX.B makes no difference to PAUSE, AMD's makes it an exchange with R8.
    let pause = i.mnemonic() == M::Pause && bytes.iter().any(|b| b & 0xf1 == 0x41);
    looped || extended || pause || bits == Bits::B64 && branch && sized
}

/// An address for the operand of `i`. SHA's is aligned: Intel's processors want it so, AMD's do not.
pub fn operand_address(r: &mut Rng, i: &Instruction) -> u64 {
    let size = if i.is_vsib() { 4 } else { i.memory_size().size() as u64 };
    let a = data_address(r, size);
    if sha(i) { a & !15 } else { a }
}

fn sha(i: &Instruction) -> bool {
    i.cpuid_features().contains(&iced_x86::CpuidFeature::SHA)
}

/// A data address at random: mostly inside, sometimes across pages, read-only, absent.
pub fn data_address(r: &mut Rng, size: u64) -> u64 {
    let size = size.clamp(1, 64);
    let page = r.pick(&[at::DATA, at::DATA, at::DATA + 0x1000, at::DATA2, at::DATA2 + 0x1000]);
    match r.below(24) {
        0 | 1 => r.pick(&[at::DATA, at::DATA2]) + 0x1000 - 1 - r.below(size),
        2 => r.pick(&[at::ABSENT, at::END, at::READ_ONLY]) - 1 - r.below(size),
        3 => at::READ_ONLY + r.below(0xf00),
        4 if r.one_in(3) => at::DATA2 - 1 - r.below(size),
        // Where canonical addresses end and begin again.
        4 if r.one_in(3) => r.pick(&[1 << 47, u64::MAX << 47]).wrapping_sub(1 + r.below(2 * size)),
        4 => r.pick(&[at::ABSENT, at::END]) + r.below(0x1000),
        5..=7 => page + 64 + r.below(0xe00),
        _ => page + 64 + (r.below(0xe00) & !(size.next_power_of_two().min(32) - 1)),
    }
}

/// Draws one instruction of a form for the address `ip`. `None`: this attempt gave none.
pub fn draw(r: &mut Rng, bits: Bits, f: &Form, form: usize, ip: u64) -> Option<Drawn> {
    let t = r.pick(&f.templates);
    let bytes = assemble(r, bits, &t);
    let mut d = Drawn::new(bits, ip, &bytes)?;
    // A prefix or field at random may have made another form of it; it must not be one that is left out.
    if d.insn.code() != f.code {
        return None;
    }
    d.form = form;
    constants(r, &mut d);
    let again = decode(bits, ip, &d.bytes);
    (again.code() == f.code && again.len() == d.bytes.len()).then(|| {
        d.insn = again;
        d
    })
}

fn assemble(r: &mut Rng, bits: Bits, t: &Template) -> Vec<u8> {
    let mut b = Vec::with_capacity(24);
    if r.one_in(8) {
        b.push(r.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x65, 0x67, 0x67, 0x67]));
    }
    if t.map < 5 && r.one_in(8) {
        b.push(r.pick(&[0x66, 0xf2, 0xf3, 0xf0, 0xf0]));
    }
    if t.map < 5 && r.one_in(30) {
        b.push(r.pick(&[0x66, 0xf2, 0xf3]));
    }
    let random = r.next_u64();
    let modrm = match random & 15 {
        0..=6 => 0xc0 | (random >> 8) as u8,
        7..=12 => (random >> 8) as u8,
        13 => t.modrm & 0x38 | (random >> 8) as u8 & 0xc7,
        14 => t.modrm & 0xc7 | (random >> 8) as u8 & 0x38,
        _ => t.modrm,
    };
    // Half of the templates have a fixed part, mostly the middle.
    let modrm = if random >> 17 & 1 == 0 { modrm & 0xc7 | t.modrm & 0x38 } else { modrm };
    let rxb = if random >> 16 & 1 == 0 { 0 } else { (random >> 20) as u8 & 7 };
    b.extend(t.bytes(bits, rxb, (random >> 24) as u8, modrm));
    b.extend(r.next_u64().to_le_bytes());
    b.extend(r.next_u64().to_le_bytes());
    b.truncate(24);
    b
}

/// Displacements that no register can make up for, branch targets, and constants that matter.
fn constants(r: &mut Rng, d: &mut Drawn) {
    let o = d.offsets();
    let i = &d.insn;
    let n = o.displacement_size();
    let mut put = |off: usize, n: usize, v: u64| d.bytes[off..off + n].copy_from_slice(&v.to_le_bytes()[..n]);
    if o.has_displacement() && n >= 4 {
        let target = operand_address(r, i);
        if i.is_ip_rel_memory_operand() {
            put(o.displacement_offset(), n, target.wrapping_sub(d.ip + i.len() as u64));
        } else if i.memory_base() == Register::None && !i.is_vsib() {
            put(o.displacement_offset(), n, target);
        } else if r.one_in(2) {
            put(o.displacement_offset(), n, (r.next_u64() as i16) as u64);
        }
    }
    if i.near_branch_target() != 0 || matches!(i.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) {
        // Behind the instruction lie INT3s; data cannot be executed.
        let n = o.immediate_size().max(1);
        let to = if n == 1 || r.one_in(2) { r.below(16) } else { r.next_u64() as i32 as u64 | 1 << 27 };
        put(o.immediate_offset(), n, to);
    } else if o.has_immediate() && r.one_in(2) && i.mnemonic() != M::Enter {
        put(o.immediate_offset(), 1, r.below(18));
    }
}
