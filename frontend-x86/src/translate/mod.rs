//! Guest code to IR: the block loop. Each topic file translates the mnemonics it lists.

mod alu;
mod atomic;
mod bcd;
mod bits;
mod bmi;
mod branch;
mod ctx;
mod ea;
mod far;
mod flags;
mod guess;
mod io;
mod mmx;
mod mov;
mod muldiv;
mod shift;
mod sse;
mod stack;
mod string;
mod system;
#[cfg(test)]
mod tests;
mod x87;
mod xsave;

pub use ctx::{Flow, Place, Tr};

use crate::helpers;
use crate::layout;
use arch_x86::cpuid::Word;
use arch_x86::fault::vector;
use arch_x86::{CodeSize, Mode};
use iced_x86::{Decoder, DecoderError, DecoderOptions, Formatter, GasFormatter, Instruction};
use ir::{Block, CodeFetch, Frontend, HelperDesc, Path, StateLayout, TranslateError};

const PAGE: usize = 4096;
/// Longest instruction (SDM 2 "Instruction Format").
const MAX_LEN: usize = 15;

/// Topics in the order of how often their instructions occur.
const TOPICS: &[fn(&mut Tr<'_>) -> bool] = &[
    mov::translate,
    alu::translate,
    branch::translate,
    stack::translate,
    shift::translate,
    sse::translate,
    bits::translate,
    bmi::translate,
    muldiv::translate,
    string::translate,
    atomic::translate,
    x87::translate,
    mmx::translate,
    far::translate,
    system::translate,
    xsave::translate,
    io::translate,
    bcd::translate,
];

/// CPUID features that decide whether instructions translated here exist.
pub(crate) mod feature {
    use arch_x86::cpuid::Word;
    pub use arch_x86::cpuid::feature::{FSGSBASE, PKU, RDPID, RDTSCP, SMAP};
    pub const CLFSH: (Word, u32) = (Word::L1Edx, 19);
    pub const MONITOR: (Word, u32) = (Word::L1Ecx, 3);
    pub const CX16: (Word, u32) = (Word::L1Ecx, 13);
    pub const MOVBE: (Word, u32) = (Word::L1Ecx, 22);
    pub const POPCNT: (Word, u32) = (Word::L1Ecx, 23);
    pub const LZCNT: (Word, u32) = (Word::ExtEcx, 5);
    pub const BMI1: (Word, u32) = (Word::L7Ebx, 3);
    pub const BMI2: (Word, u32) = (Word::L7Ebx, 8);
    pub const INVPCID: (Word, u32) = (Word::L7Ebx, 10);
    pub const RDSEED: (Word, u32) = (Word::L7Ebx, 18);
    pub const ADX: (Word, u32) = (Word::L7Ebx, 19);
    pub const SSE4_2: (Word, u32) = (Word::L1Ecx, 20);
    pub const XSAVE: (Word, u32) = (Word::L1Ecx, 26);
    pub const XSAVEOPT: (Word, u32) = (Word::XsaveEax, 0);
    pub const XSAVEC: (Word, u32) = (Word::XsaveEax, 1);
    pub const XSAVES: (Word, u32) = (Word::XsaveEax, 3);
    pub const XGETBV1: (Word, u32) = (Word::XsaveEax, 2);
    pub const RDRAND: (Word, u32) = (Word::L1Ecx, 30);
    pub const CLFLUSHOPT: (Word, u32) = (Word::L7Ebx, 23);
    pub const CLWB: (Word, u32) = (Word::L7Ebx, 24);
}

/// The x86 front end for a CPU with given features.
pub struct X86 {
    layout: StateLayout,
    helpers: Vec<HelperDesc>,
    features: [u32; 16],
    peers: bool,
}

impl X86 {
    /// `features`: CPUID feature words, as in `CpuState::features`.
    pub fn new(features: [u32; 16]) -> Self {
        Self { layout: layout::layout(), helpers: helpers::descs(), features, peers: false }
    }

    /// For a CPU among others (`true`): its accesses must be ordered for them.
    pub fn with_peers(self, peers: bool) -> Self {
        Self { peers, ..self }
    }
}

fn bitness(mode: Mode) -> u32 {
    match mode.code_size() {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    }
}

/// The feature without which a CPU is so old that instructions may be missing that are not looked at one by one: SSE2.
const OLDEST: u32 = 26;

/// 0F 18..0F 1F and 0F 0D are no-ops whatever later extensions made of them.
const OPTIONS: u32 = DecoderOptions::FORCE_RESERVED_NOP;

impl Frontend for X86 {
    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn helpers(&self) -> &[HelperDesc] {
        &self.helpers
    }

    fn translate<C: CodeFetch>(
        &self,
        mode: u64,
        start: u32,
        max_insns: u32,
        code: &mut C,
        out: &mut Block,
    ) -> Result<(), TranslateError<C::Fault>> {
        out.clear();
        out.start = start % PAGE as u32;
        let mode = Mode(mode);
        let limit = if mode.has(Mode::STEP) { 1 } else { max_insns.max(1) };
        let first = out.start as usize;
        let mut tr = Tr {
            b: out,
            mode,
            features: &self.features,
            peers: self.peers,
            insn: Instruction::default(),
            bytes: [0; 16],
            off: first as i64,
            next: first as i64,
            flow: Flow::Next,
            shadowed: None,
            retry: None,
            lazy: flags::Lazy::UNKNOWN,
            guess: code.guess(),
            changing: code.changing(),
            path: if mode.has(Mode::STEP) { Path::default() } else { code.path() },
        };
        let fits = block(&mut tr, &code.page()[first..], limit);
        if !fits {
            let mut buf = [0u8; 2 * MAX_LEN];
            let head = PAGE - first;
            buf[..head].copy_from_slice(&code.page()[first..]);
            let next = code.next_page().map_err(TranslateError::Fetch)?;
            buf[head..head + MAX_LEN].copy_from_slice(&next[..MAX_LEN]);
            tr.b.straddles = true;
            block(&mut tr, &buf[..head + MAX_LEN], 1);
        }
        let next = tr.next;
        out.next = next;
        Ok(())
    }

    fn disassemble(&self, mode: u64, pc: u64, bytes: &[u8]) -> (String, usize) {
        let mut d = Decoder::with_ip(bitness(Mode(mode)), bytes, pc, OPTIONS);
        let insn = d.decode();
        if insn.is_invalid() {
            return ("(bad)".to_string(), 1);
        }
        let mut text = String::new();
        GasFormatter::new().format(&insn, &mut text);
        (text, insn.len())
    }
}

/// Translates up to `limit` instructions of `bytes`, which lie at `tr.off`. `false`: not even the first was whole.
fn block(tr: &mut Tr<'_>, bytes: &[u8], limit: u32) -> bool {
    let start = tr.off;
    let mut decoder = Decoder::with_ip(bitness(tr.mode), bytes, start as u64, OPTIONS);
    for n in 0..limit {
        let at = (tr.next - start) as usize;
        if at >= bytes.len() || at >= PAGE {
            break;
        }
        decoder.decode_out(&mut tr.insn);
        let len = decoder.position().saturating_sub(at).clamp(1, MAX_LEN);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            if n == 0 {
                return false;
            }
            break;
        }
        tr.off = tr.next;
        tr.next += len as i64;
        tr.b.insn(tr.off as u32, len as u32);
        let here = &bytes[at..];
        let n = here.len().min(tr.bytes.len());
        tr.bytes[..n].copy_from_slice(&here[..n]);
        tr.shadowed = None;
        instruction(tr, len);
        if let Some(again) = tr.retry.take()
            && tr.flow == Flow::Next
        {
            tr.b.br(again, tr.off);
            tr.flow = Flow::Ended;
        }
        if tr.flow == Flow::Ended {
            return true;
        }
        if tr.next != tr.off + len as i64 && !go_to(&mut decoder, tr.next, start) {
            break;
        }
    }
    let next = tr.next;
    if let Some(was) = tr.shadowed {
        system::end_in_shadow(tr, was);
    } else if tr.mode.has(Mode::STEP) {
        tr.exit_next()
    } else {
        tr.jump(next)
    }
    true
}

/// Goes on at a page offset; `start`: that of the bytes. `false`: it does not lie in them.
fn go_to(decoder: &mut Decoder<'_>, to: i64, start: i64) -> bool {
    decoder.set_ip(to as u64);
    decoder.set_position((to - start) as usize).is_ok()
}

fn instruction(tr: &mut Tr<'_>, len: usize) {
    // All of the instruction must lie in the code segment.
    if tr.code_limited() {
        let last = tr.b.pcrel(tr.next - 1);
        tr.in_code_limit(last, None);
    }
    if tr.insn.is_invalid() {
        // Prefixes up to the limit are a general-protection fault (SDM 3A "Interrupt 13").
        return if len == MAX_LEN { tr.gp0() } else { tr.raise(vector::UD, None) };
    }
    if !tr.has(Word::L1Edx as usize, OLDEST) && !tr.has_features() {
        return tr.raise(vector::UD, None);
    }
    if TOPICS.iter().any(|t| t(tr)) {
        return;
    }
    let mut first = [0u8; 8];
    let n = len.min(8);
    first[..n].copy_from_slice(&tr.bytes[..n]);
    tr.call_imm(helpers::system::UNIMP, &[tr.insn.mnemonic() as u64, u64::from_le_bytes(first)]);
    tr.exit_next();
}
