//! x87 instructions: calls of one helper, which an engine on an x86 host may execute as instructions of the host instead
//! (SDM 1 chapter 8). The guest's x87 state then lives in the host's FPU meanwhile.

use crate::layout::HelperId;

/// How an instruction may be executed as one of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum X87Kind {
    /// By a call of the helper only.
    Call,
    /// Works on registers.
    Plain,
    /// Reads memory; the helper's second operand is the linear address.
    Load,
    /// Writes it.
    Store,
    /// Compares registers: ZF, PF, CF as in RFLAGS are the result.
    Flags,
    /// FCMOV; the helper's second operand is its condition, not 0 if it holds.
    Move,
    /// The helper's second operand becomes the control word.
    Control,
}

const KINDS: [X87Kind; 7] =
    [X87Kind::Call, X87Kind::Plain, X87Kind::Load, X87Kind::Store, X87Kind::Flags, X87Kind::Move, X87Kind::Control];

/// What engines read in the helper's first operand, a constant; its low three bytes are the front end's own. The third
/// operand is the offset of the memory operand in its segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct X87Insn {
    pub kind: X87Kind,
    /// Bytes of the memory operand: 0, 2, 4, 8 or 10.
    pub bytes: u8,
    /// Its segment register.
    pub seg: u8,
    /// Its access context.
    pub ctx: u8,
    /// First byte of the opcode, D8 to DF.
    pub opcode: u8,
    /// Second byte of the opcode; for instructions with memory only bits 5:3 count.
    pub modrm: u8,
}

impl X87Insn {
    /// Bits 63:24 of the operand.
    pub fn pack(self) -> u64 {
        u64::from_le_bytes([0, 0, 0, self.bytes, self.seg, self.ctx & 15 | (self.kind as u8) << 4, self.opcode, self.modrm])
    }

    pub fn unpack(v: u64) -> X87Insn {
        let [_, _, _, bytes, seg, how, opcode, modrm] = v.to_le_bytes();
        let kind = KINDS.get(usize::from(how >> 4)).copied().unwrap_or(X87Kind::Call);
        X87Insn { kind, bytes, seg, ctx: how & 15, opcode, modrm }
    }
}

/// Where the x87 part of the guest's state lies: byte offsets.
#[derive(Clone, Copy, Debug)]
pub struct X87Layout {
    pub helper: HelperId,
    /// Helpers that raise a pending exception and do nothing else, and whose result is the status word.
    pub wait: HelperId,
    pub status: HelperId,
    /// All of it, the pointers of the last instruction included.
    pub start: u32,
    pub end: u32,
    /// Control word, which is right also while the rest is in the host's FPU; status word (2 bytes each).
    pub fcw: u32,
    pub fsw: u32,
    /// Pointers of the last instruction and its operand (8 bytes), their selectors (2 bytes).
    pub fip: u32,
    pub fdp: u32,
    pub fcs: u32,
    pub fds: u32,
    /// Selectors of the six segment registers: that of ES, distance to the next, number of CS.
    pub selectors: u32,
    pub selector_step: u32,
    pub cs: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        for kind in KINDS {
            let i = X87Insn { kind, bytes: 10, seg: 3, ctx: 2, opcode: 0xdb, modrm: 0x28 };
            assert_eq!(X87Insn::unpack(i.pack() | 0xff_ffff), i);
        }
    }
}
